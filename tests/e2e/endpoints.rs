//! What the binary speaks to its endpoints, and how it chooses among them: the PROXY protocol, TLS, unix sockets, sticky
//! and hashed requests, health checks, and the bounds of a cluster.

use std::{
    collections::HashSet,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::Response;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use portcullis_testkit::{certs::TestCa, origin::RawOrigin};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixListener},
    task::JoinSet,
};

use crate::support::{
    Dir, SOON,
    client::{Client, full},
    edge::Edge,
    origin::Origin,
    raw, run,
    tls_origin::TlsOrigin,
    within,
};

/// A plain listener before one cluster; a table of the cluster may end `keys`.
fn config(endpoints: &[String], keys: &str) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
    format!(
        "[errors]\nproxy_status = true\n[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"http\"\n\
         [[route]]\ncluster = \"app\"\n[[cluster]]\nname = \"app\"\nendpoints = [{}]\n{keys}",
        endpoints.join(", ")
    )
}

/// One request on a connection of its own that stays open, and where that comes from.
async fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok") {
        assert_ne!(within(SOON, "an answer", stream.read_buf(&mut answer)).await.unwrap(), 0);
    }
    String::from_utf8(answer).unwrap()
}

/// The specification's sections 2.1 and 2.2: one header, at the very beginning, which names the client and where it came in.
#[test]
fn a_proxy_header_names_the_client_of_its_connection() {
    run(async {
        for version in ["v1", "v2"] {
            let origin = RawOrigin::with(|mut conn| async move {
                let mut seen = Vec::new();
                while conn.read_buf(&mut seen).await.is_ok_and(|read| read > 0) {
                    if seen.ends_with(b"\r\n\r\n") {
                        let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                        conn.write_all(ok).await.unwrap();
                    }
                }
            })
            .await;
            let keys = format!("proxy_protocol = \"{version}\"\n");
            let edge = Edge::run(&config(&[origin.addr().to_string()], &keys)).await;
            let mut clients = Vec::new();
            for _ in 0..2 {
                clients.push(TcpStream::connect(edge.http()).await.unwrap());
            }
            for _ in 0..3 {
                for client in &mut clients {
                    ask(client).await;
                }
            }
            let received = origin.received();
            assert_eq!(received.len(), 2, "{version}: a connection is one client's");
            for (client, received) in clients.iter().zip(received) {
                let (from, to) = (client.local_addr().unwrap(), edge.http());
                let header = match version {
                    "v1" => format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", from.port(), to.port())
                        .into_bytes(),
                    _ => {
                        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
                        header.extend([Ipv4Addr::LOCALHOST.octets(); 2].concat());
                        header.extend([from.port().to_be_bytes(), to.port().to_be_bytes()].concat());
                        header
                    }
                };
                let rest = received.strip_prefix(&header[..]);
                let rest = rest.unwrap_or_else(|| panic!("{version}: {}", received.escape_ascii()));
                let text = std::str::from_utf8(rest).unwrap();
                assert!(text.starts_with("GET / HTTP/1.1\r\n"), "{version}: {text}");
                assert_eq!(text.matches("GET / HTTP/1.1\r\n").count(), 3, "{version}: {text}");
                assert!(!text.contains("PROXY"), "{version}: once");
            }
        }
    });
}

#[test]
fn an_endpoint_is_a_unix_socket() {
    run(async {
        let dir = Dir::new();
        let path = dir.path().join("app.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let mut all = JoinSet::new();
            while let Ok((io, _)) = listener.accept().await {
                let answer = |request: http::Request<Incoming>| async move {
                    let host = request.headers()["host"].to_str().unwrap().to_owned();
                    Ok::<_, std::convert::Infallible>(Response::new(full(host)))
                };
                all.spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(io), service_fn(answer)),
                );
            }
        });
        let text = config(&[format!("unix:{}", path.display())], "");
        let edge = Edge::run_in(dir, &text).await;
        let mut client = Client::plain(edge.http(), "app.test").await;
        for _ in 0..3 {
            let reply = client.get("/").await;
            assert_eq!((reply.status.as_u16(), &*reply.body), (200, "app.test"));
        }
        server.abort();
    });
}

/// RFC 9525, RFC 9209 section 2.3: what an endpoint can not prove is a 502 that says so, and nothing is sent to it.
#[test]
fn an_endpoint_proves_who_it_is_and_so_does_the_edge() {
    run(async {
        let (ca, other) = (TestCa::new(), TestCa::new());
        let dir = Dir::new();
        let roots = dir.write("ca.pem", &ca.pem());
        let own = ca.issue_client("edge");
        let (chain, key) = (dir.write("edge.pem", own.pem()), dir.write("edge.key", &own.key_pem()));
        let name = "tls_server_name = \"app.test\"\n";
        let identity =
            format!("{name}tls_certificate = \"{}\"\ntls_key = \"{}\"\n", chain.display(), key.display());
        let good = ca.issue(&["app.test"]);
        let cases = [
            ("its own name", &good, false, name, true),
            ("another name", &ca.issue(&["other.test"]), false, name, false),
            ("an address in place of the name", &good, false, "", false),
            ("its address", &ca.issue(&["127.0.0.1"]), false, "", true),
            ("expired", &ca.issue_expired(&["app.test"]), false, name, false),
            ("not yet valid", &ca.issue_future(&["app.test"]), false, name, false),
            ("of nobody we know", &other.issue(&["app.test"]), false, name, false),
            ("wants a certificate and gets it", &good, true, &identity, true),
            ("wants a certificate and gets none", &good, true, name, false),
        ];
        for (what, cert, mutual, keys, works) in cases {
            let origin = TlsOrigin::start(cert, mutual.then_some(&ca), &["http/1.1"]).await;
            let keys = format!("tls = true\ntls_ca = \"{}\"\nmax_fails = 0\n{keys}", roots.display());
            let edge = Edge::run(&config(&[origin.addr.to_string()], &keys)).await;
            let answered =
                raw::send(edge.http(), "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
            let expected: u16 = if works { 200 } else { 502 };
            assert_eq!(answered.statuses(), [expected], "{what}: {}", answered.text);
            if !works && !mutual {
                let told = "\r\nproxy-status: portcullis; error=tls_certificate_error\r\n";
                assert!(answered.text.contains(told), "{what}: {}", answered.text);
            }
        }
    });
}

#[test]
fn the_handshake_tells_which_http_an_endpoint_speaks() {
    run(async {
        let ca = TestCa::new();
        let dir = Dir::new();
        let roots = dir.write("ca.pem", &ca.pem());
        let cert = ca.issue(&["127.0.0.1"]);
        for (alpn, version) in [(&["h2", "http/1.1"][..], "h2"), (&["http/1.1"], "h1"), (&[], "h1")] {
            let origin = TlsOrigin::start(&cert, None, alpn).await;
            let keys = format!("protocol = \"auto\"\ntls = true\ntls_ca = \"{}\"\n", roots.display());
            let edge = Edge::run(&config(&[origin.addr.to_string()], &keys)).await;
            let mut client = Client::plain(edge.http(), "a").await;
            for _ in 0..3 {
                assert_eq!(client.get("/").await.body, version, "{alpn:?}");
            }
        }
    });
}

async fn three() -> ([Origin; 3], Vec<String>) {
    let all = [Origin::text("one").await, Origin::text("two").await, Origin::text("three").await];
    let addresses = all.iter().map(|origin| origin.addr().to_string()).collect();
    (all, addresses)
}

#[test]
fn a_cookie_leads_back_to_where_a_client_was() {
    run(async {
        let (origins, addresses) = three().await;
        let edge = Edge::run(&config(&addresses, "sticky_cookie = \"at\"\n")).await;
        let mut client = Client::plain(edge.http(), "a").await;
        let mut places = HashSet::new();
        for _ in 0..12 {
            let first = client.get("/").await;
            let cookie = first.field("set-cookie").split(';').next().unwrap().to_owned();
            assert!(cookie.starts_with("at=") && first.field("set-cookie").contains("HttpOnly"), "{first:?}");
            for _ in 0..4 {
                let request = client.request(http::Method::GET, "/").header("cookie", &cookie);
                let again = client.fetch(request.body(full("")).unwrap()).await;
                assert_eq!((&again.body, again.field("set-cookie")), (&first.body, ""));
            }
            places.insert(first.body);
        }
        assert_eq!(places.len(), 3, "those without a cookie are spread");
        // a forged one leads nowhere, and is replaced
        let request = client.request(http::Method::GET, "/").header("cookie", "at=AAAAAAAAAAAAAAAAAAAAAA");
        let forged = client.fetch(request.body(full("")).unwrap()).await;
        assert!(forged.status.is_success() && forged.field("set-cookie").starts_with("at="), "{forged:?}");
        drop(origins);
    });
}

#[test]
fn what_hashes_alike_goes_to_one_endpoint() {
    run(async {
        let (_origins, addresses) = three().await;
        for balance in ["maglev", "ring-hash"] {
            let keys = format!("balance = \"{balance}\"\nhash_on = [\"header:x-user\"]\n");
            let edge = Edge::run(&config(&addresses, &keys)).await;
            let mut client = Client::plain(edge.http(), "a").await;
            let mut places = HashSet::new();
            for user in 0..24 {
                let mut here = HashSet::new();
                for _ in 0..4 {
                    let request = client.request(http::Method::GET, "/").header("x-user", user);
                    here.insert(client.fetch(request.body(full("")).unwrap()).await.body);
                }
                assert_eq!(here.len(), 1, "{balance} {user}");
                places.extend(here);
            }
            assert_eq!(places.len(), 3, "{balance}");
        }
    });
}

#[test]
fn an_endpoint_that_says_it_is_unfit_gets_no_requests_until_it_is_fit() {
    run(async {
        let fit = Arc::new(AtomicBool::new(true));
        let (asked, says) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&fit));
        let served = Arc::clone(&asked);
        let unfit = Origin::start(move |request| {
            let mut response = Response::new(full("sick"));
            if request.uri().path() != "/health" {
                served.fetch_add(1, Ordering::SeqCst);
            } else if !says.load(Ordering::SeqCst) {
                *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            }
            async move { response }
        })
        .await;
        let well = Origin::text("well").await;
        let health = "[cluster.health]\npath = \"/health\"\ninterval = \"50ms\"\nunhealthy_after = 2\nhealthy_after = 2\n";
        let addresses = [unfit.addr().to_string(), well.addr().to_string()];
        let edge = Edge::run(&config(&addresses, health)).await;
        let mut client = Client::plain(edge.http(), "a").await;
        for (now, text) in [(true, "sick"), (false, "well"), (true, "sick")] {
            fit.store(now, Ordering::SeqCst);
            // until ten in a row say so
            let settled = async {
                let mut in_a_row = 0;
                while in_a_row < 10 {
                    let bodies = [client.get("/").await.body, client.get("/").await.body];
                    let is =
                        if now { bodies.iter().any(|body| body == text) } else { bodies == [text, text] };
                    in_a_row = if is { in_a_row + 1 } else { 0 };
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            within(SOON, text, settled).await;
            if !now {
                let before = asked.load(Ordering::SeqCst);
                for _ in 0..50 {
                    assert_eq!(client.get("/").await.body, "well");
                }
                assert_eq!(asked.load(Ordering::SeqCst), before);
            }
        }
    });
}

/// RFC 9110 section 15.6.4: past its bounds a cluster sheds at once, and says when to come again.
#[test]
fn a_full_cluster_makes_some_wait_and_refuses_the_rest() {
    run(async {
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let held = Arc::clone(&gate);
        let origin = Origin::start(move |_| {
            let held = Arc::clone(&held);
            async move {
                held.acquire().await.unwrap().forget();
                Response::new(full("ok"))
            }
        })
        .await;
        let keys = "max_connections = 1\nmax_pending = 2\nqueue_timeout = \"5s\"\nmax_attempts = 1\n";
        let edge = Edge::run(&config(&[origin.addr().to_string()], keys)).await;
        let mut all = JoinSet::new();
        for _ in 0..6 {
            let addr = edge.http();
            all.spawn(async move { Client::plain(addr, "a").await.get("/").await });
        }
        let mut statuses = Vec::new();
        // those beyond the two that wait come back at once
        for _ in 0..3 {
            let refused = within(SOON, "a refusal", all.join_next()).await.unwrap().unwrap();
            assert!(!refused.field("retry-after").is_empty(), "{refused:?}");
            statuses.push(refused.status.as_u16());
        }
        assert_eq!(statuses, [503; 3]);
        within(SOON, "the one that has the connection", origin.wait_for_requests(1)).await;
        assert_eq!(origin.requests(), 1);
        gate.add_permits(3);
        for reply in all.join_all().await {
            assert_eq!((reply.status.as_u16(), &*reply.body), (200, "ok"));
        }
    });
}
