//! What shapes requests and responses: ids, maintenance, lengths, deadlines, compression, how many at once, files.

use std::{fs, io::Write};

use http::{Method, Response};
use http_body_util::BodyExt;
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::watch};

use crate::{
    config::{plain, secure},
    support::{
        Dir,
        client::{Client, Protocol, empty, full},
        edge::Edge,
        origin::Origin,
        raw, run,
    },
};

#[test]
fn a_request_has_one_id_everywhere() {
    run(async {
        let origin = Origin::text("ok").await;
        let edge = Edge::run(&format!("[request_id]\nrespond = true\n{}", secure(origin.addr()))).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let request = client.request(Method::GET, "/").header("x-request-id", "forged");
            let reply = client.fetch(request.body(empty()).unwrap()).await;
            let id = reply.field("x-request-id").to_owned();
            assert!(id.len() == 32 && id != "forged", "{protocol:?} {id}");
            assert_eq!(origin.last().1["x-request-id"], *id);
        }
        // an answer to what failed has it too
        drop(origin);
        let mut client = Client::connect(Protocol::H2, edge.https(), "localhost").await;
        let reply = client.get("/").await;
        assert_eq!((reply.status.as_u16(), reply.body.contains(reply.field("x-request-id"))), (502, true));
    });
}

#[test]
fn a_trusted_proxy_names_the_id() {
    run(async {
        let origin = Origin::text("ok").await;
        let layers = "[request_id]\n[forwarded]\ntrusted = [\"127.0.0.1\"]\n";
        let edge = Edge::run(&format!("{layers}{}", plain(origin.addr()))).await;
        let mut client = Client::plain(edge.http(), "localhost").await;
        let request = client.request(Method::GET, "/").header("x-request-id", "from-the-proxy");
        let reply = client.fetch(request.body(empty()).unwrap()).await;
        assert_eq!(reply.field("x-request-id"), "");
        assert_eq!(origin.last().1["x-request-id"], "from-the-proxy");
    });
}

#[test]
fn responses_are_compressed_and_conditions_hold() {
    run(async {
        let origin = Origin::start(|request| async move {
            let asked = request.headers().get("if-none-match").map(|tag| tag.to_str().unwrap().to_owned());
            let known = asked.is_some_and(|asked| asked.contains("\"v1\""));
            let mut response = Response::new(if known { empty() } else { full("text ".repeat(1000)) });
            if known {
                *response.status_mut() = http::StatusCode::NOT_MODIFIED;
            }
            response.headers_mut().insert("etag", "\"v1\"".parse().unwrap());
            response.headers_mut().insert("content-type", "text/plain".parse().unwrap());
            response
        })
        .await;
        let edge = Edge::run(&format!("[compression]\n{}", secure(origin.addr()))).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let ask = |method, client: &Client| client.request(method, "/").header("accept-encoding", "gzip");
            let reply = client.fetch(ask(Method::GET, &client).body(empty()).unwrap()).await;
            assert_eq!(reply.field("content-encoding"), "gzip", "{protocol:?}");
            assert_eq!((reply.field("etag"), reply.field("vary")), ("W/\"v1\"", "accept-encoding"));
            assert!(reply.field("content-length").is_empty() && reply.body.len() < 1000);
            let head = client.fetch(ask(Method::HEAD, &client).body(empty()).unwrap()).await;
            assert_eq!(head.field("content-encoding"), "gzip", "{protocol:?}");
            let again = ask(Method::GET, &client).header("if-none-match", "W/\"v1\"");
            let again = client.fetch(again.body(empty()).unwrap()).await;
            assert_eq!((again.status.as_u16(), again.field("etag")), (304, "W/\"v1\""), "{protocol:?}");
            let plain = client.get("/").await;
            assert_eq!((plain.body.len(), plain.field("vary")), (5000, "accept-encoding"));
        }
    });
}

#[test]
fn request_bodies_are_decompressed_within_bounds() {
    run(async {
        let origin = Origin::start(|request| async move {
            assert!(!request.headers().contains_key("content-encoding"));
            let body = request.into_body().collect().await;
            Response::new(full(body.map_or_else(|_| "cut".into(), |body| body.to_bytes())))
        })
        .await;
        let edge = Edge::run(&format!("[request_decompression]\n{}", secure(origin.addr()))).await;
        let gzip = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        for protocol in Protocol::ALL {
            for (body, coding, status, text) in [
                (gzip(b"hello"), "gzip", 200, "hello"),
                (gzip(&vec![0; 20 << 20]), "gzip", 413, ""),
                (b"no gzip".to_vec(), "gzip", 400, ""),
                (b"x".to_vec(), "compress", 415, ""),
            ] {
                // a body that was not read to its end ends an HTTP/1 connection
                let mut client = Client::connect(protocol, edge.https(), "localhost").await;
                let request = client.request(Method::POST, "/").header("content-encoding", coding);
                let reply = client.fetch(request.body(full(body)).unwrap()).await;
                assert_eq!((reply.status.as_u16(), &*reply.body), (status, text), "{protocol:?} {coding}");
            }
        }
    });
}

#[test]
fn a_body_that_is_too_long_is_refused_before_and_in_the_middle() {
    run(async {
        let origin = Origin::start(|request| async move {
            let body = request.into_body().collect().await;
            Response::new(full(body.map_or_else(|_| "cut".into(), |body| body.to_bytes())))
        })
        .await;
        let config = plain(origin.addr()).replacen(
            "[[cluster]]",
            "[[route]]\npath = \"/any\"\ncluster = \"app\"\nbody_limit = \"off\"\n[[cluster]]",
            1,
        );
        let edge = Edge::run(&format!("[body_limit]\nmax_size = \"10B\"\n{config}")).await;
        // nothing of it is asked for, and nothing of it gets to the endpoint
        let mut stream = TcpStream::connect(edge.http()).await.unwrap();
        let asks = "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\nexpect: 100-continue\r\n\r\n";
        stream.write_all(asks.as_bytes()).await.unwrap();
        let answered = raw::drain(&mut stream).await;
        assert!(answered.text.starts_with("HTTP/1.1 413 ") && answered.closed, "{answered:?}");
        assert_eq!(origin.requests(), 0);
        // in the middle
        let mut chunked = "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
        chunked.push_str("8\r\n01234567\r\n8\r\n01234567\r\n0\r\n\r\n");
        let answered = raw::send(edge.http(), chunked).await;
        assert_eq!(answered.statuses(), [413], "{answered:?}");
        let fits = "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\n01234\r\n0\r\n\r\n";
        let answered = raw::send(edge.http(), fits).await;
        assert!(answered.statuses() == [200] && answered.text.ends_with("01234"), "{answered:?}");
        let other = "POST /any HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n\r\n01234567890";
        assert_eq!(raw::send(edge.http(), other).await.statuses(), [200]);
    });
}

#[test]
fn a_deadline_answers_for_an_endpoint_that_does_not() {
    run(async {
        let origin = Origin::start(|request| async move {
            if request.uri().path() == "/slow" {
                std::future::pending::<()>().await;
            }
            Response::new(full("ok"))
        })
        .await;
        let deadline = "[deadline]\nhead = \"2s\"\nstatus = 503\n";
        let edge = Edge::run(&format!("{deadline}{}", secure(origin.addr()))).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            assert_eq!(client.get("/slow").await.status, 503, "{protocol:?}");
            assert_eq!(client.get("/").await.body, "ok");
        }
    });
}

#[test]
fn so_many_at_once_and_more_after_a_reload() {
    run(async {
        let (open, opened) = watch::channel(false);
        let origin = Origin::start(move |_| {
            let mut opened = opened.clone();
            async move {
                let _ = opened.wait_for(|open| *open).await;
                Response::new(full("ok"))
            }
        })
        .await;
        let config = |max: u32| {
            let filter = if max == 1 { "[filter]\ndeny = [\"/.git\"]\n" } else { "" };
            format!(
                "[admin]\naddress = \"127.0.0.1:0\"\n{filter}[concurrency]\nmax = {max}\nqueue = 0\nretry_after = \"7s\"\n{}",
                plain(origin.addr())
            )
        };
        let edge = Edge::run(&config(1)).await;
        let held = |edge: &Edge| {
            let addr = edge.http();
            tokio::spawn(async move { Client::plain(addr, "localhost").await.get("/").await })
        };
        let first = held(&edge);
        origin.wait_for_requests(1).await;
        let mut client = Client::plain(edge.http(), "localhost").await;
        let reply = client.get("/").await;
        assert_eq!((reply.status.as_u16(), reply.field("retry-after")), (503, "7"));
        assert_eq!(client.get("/health").await.status, 200, "health is always told");
        assert_eq!(client.get("/.git").await.status, 404);
        let of_edge = |name: &str| format!("portcullis_concurrency_{name}{{chain=\"edge\"}}");
        for (name, value) in [("limit", 1.0), ("running", 1.0), ("waiting", 0.0), ("refused_total", 1.0)] {
            assert_eq!(edge.metric(&of_edge(name)).await, value, "{name}");
        }
        edge.reload(&config(2), 1).await;
        assert_eq!(edge.metric(&of_edge("limit")).await, 2.0);
        assert_eq!(edge.metric("portcullis_filtered_total").await, 1.0, "it never falls");
        // the first one still counts
        let second = held(&edge);
        origin.wait_for_requests(2).await;
        assert_eq!(client.get("/").await.status, 503);
        open.send(true).unwrap();
        for held in [first, second] {
            assert_eq!(held.await.unwrap().body, "ok");
        }
        assert_eq!(client.get("/").await.body, "ok");
    });
}

#[test]
fn a_site_is_closed_and_opened_by_a_reload() {
    run(async {
        let origin = Origin::text("ok").await;
        let open = plain(origin.addr());
        let edge = Edge::run(&open).await;
        let page = edge.dir().write("closed.html", "<p>closed");
        let mut client = Client::plain(edge.http(), "localhost").await;
        assert_eq!(client.get("/").await.body, "ok");
        let layers = format!("[maintenance]\nfile = \"{}\"\nallow_paths = [\"/status\"]\n", page.display());
        edge.reload(&format!("{layers}{open}"), 1).await;
        let reply = client.get("/").await;
        assert_eq!((reply.status.as_u16(), &*reply.body), (503, "<p>closed"));
        assert_eq!(
            (reply.field("content-type"), reply.field("retry-after")),
            ("text/html; charset=utf-8", "600")
        );
        assert_eq!(client.get("/status/x").await.body, "ok");
        assert_eq!(client.get("/health").await.status, 200);
        edge.reload(&open, 2).await;
        assert_eq!(client.get("/").await.body, "ok");
    });
}

#[test]
fn a_directory_is_served_and_nothing_beside_it() {
    run(async {
        let dir = Dir::new();
        fs::create_dir_all(dir.path().join("www/sub")).unwrap();
        dir.write("secret.txt", "secret");
        dir.write("www/a.txt", "0123456789");
        dir.write("www/sub/index.html", "<p>sub");
        dir.write("www/.env", "hidden");
        dir.write("www/big.bin", &"x".repeat(1 << 20));
        std::os::unix::fs::symlink("../secret.txt", dir.path().join("www/out.txt")).unwrap();
        let origin = Origin::text("app").await;
        let route = format!(
            "[[route]]\npath = \"/static\"\nfiles = \"{}\"\nstrip_prefix = \"/static\"\nset_response_headers = {{ x-set = \"yes\" }}\n",
            dir.path().join("www").display()
        );
        let config = secure(origin.addr()).replacen("[[route]]", &format!("{route}[[route]]"), 1);
        let edge = Edge::run(&config).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            for (path, status, body) in [
                ("/static/a.txt", 200, "0123456789"),
                ("/static/sub/", 200, "<p>sub"),
                ("/static/.env", 404, ""),
                ("/static/out.txt", 404, ""),
                ("/static/nothing", 404, ""),
                ("/static/%2e%2e%2fsecret.txt", 404, ""),
                ("/other", 200, "app"),
            ] {
                let reply = client.get(path).await;
                assert_eq!(reply.status, status, "{protocol:?} {path}");
                assert!(status == 404 || reply.body == body, "{protocol:?} {path} {}", reply.body);
                assert_eq!(reply.field("x-set") == "yes", path.starts_with("/static"), "{path}");
            }
            let redirect = client.get("/static/sub").await;
            assert_eq!((redirect.status.as_u16(), redirect.field("location")), (301, "/static/sub/"));
            let request = client.request(Method::GET, "/static/a.txt").header("range", "bytes=2-4");
            let part = client.fetch(request.body(empty()).unwrap()).await;
            assert_eq!((part.status.as_u16(), &*part.body), (206, "234"), "{protocol:?}");
            assert_eq!(client.get("/static/big.bin").await.body.len(), 1 << 20);
            let request = client.request(Method::HEAD, "/static/a.txt");
            let head = client.fetch(request.body(empty()).unwrap()).await;
            assert_eq!((head.status.as_u16(), head.field("content-length")), (200, "10"), "{protocol:?}");
        }
    });
}

#[test]
fn the_presets_of_security_fields_are_checked() {
    run(async {
        let origin = Origin::text("ok").await;
        let fields = "[security_headers]\npreset = \"strict\"\ncross_origin_opener_policy = \"off\"\n";
        let edge = Edge::run(&format!("{fields}{}", secure(origin.addr()))).await;
        let mut client = Client::connect(Protocol::H2, edge.https(), "localhost").await;
        let reply = client.get("/").await;
        assert!(reply.field("content-security-policy").starts_with("default-src 'self'"));
        assert_eq!(reply.field("cross-origin-opener-policy"), "");
        assert_eq!(reply.field("strict-transport-security"), "max-age=31536000; includeSubDomains");
    });
}
