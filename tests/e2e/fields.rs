//! Which fields of a message go on, both ways, at an origin that records every byte.

use http::Method;
use portcullis_testkit::origin::{Answer, RawOrigin};

use crate::{
    config::{plain, secure},
    support::{
        client::{Client, Protocol, empty},
        edge::Edge,
        raw, run,
    },
};

/// The lines of a recorded head, without the request line.
fn lines(head: &str) -> Vec<String> {
    head.split("\r\n").skip(1).take_while(|line| !line.is_empty()).map(str::to_ascii_lowercase).collect()
}

#[test]
fn fields_of_the_last_hop_stay_there() {
    run(async {
        let answer = "HTTP/1.1 200 OK\r\nConnection: X-Resp-One\r\nX-Resp-One: 1\r\nconnection: x-resp-two, keep-alive\r\n\
                      X-Resp-Two: 2\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c\r\n\
                      Proxy-Authenticate: Basic\r\nX-Kept: yes\r\nContent-Length: 2\r\n\r\nok";
        let origin = RawOrigin::script(vec![Answer::raw(answer)]).await;
        let edge = Edge::run(&plain(origin.addr())).await;
        let answered = raw::send(
            edge.http(),
            "GET /hop HTTP/1.1\r\nHost: a.test\r\nConnection: X-One, close\r\nX-One: 1\r\nConnection: x-two\r\nX-Two: 2\r\n\
             CONNECTION: X-Forwarded-For, X-Forwarded-Proto, Host\r\nKeep-Alive: timeout=5\r\n\
             Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\
             TE: trailers, deflate;q=0.5\r\nProxy-Authorization: Basic eDp5\r\nTrailer: X-T\r\nX-Kept: yes\r\n\r\n",
        )
        .await;
        assert_eq!(answered.statuses(), [200], "{answered:?}");

        let sent = origin.received_text();
        let sent_lines = lines(&sent);
        for gone in ["x-one", "x-two", "keep-alive", "proxy-connection", "upgrade", "http2-settings"] {
            assert!(
                !sent_lines.iter().any(|line| line.starts_with(&format!("{gone}:"))),
                "{gone} in:\n{sent}"
            );
        }
        // RFC 9110 section 10.1.4: trailers is the one member that is for everybody
        for kept in [
            "host: a.test",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-proto: http",
            "x-kept: yes",
            "te: trailers",
        ] {
            assert_eq!(sent_lines.iter().filter(|line| *line == kept).count(), 1, "{kept} in:\n{sent}");
        }

        let back = lines(&answered.text);
        for gone in ["x-resp-one", "x-resp-two", "keep-alive", "proxy-connection", "upgrade"] {
            assert!(
                !back.iter().any(|line| line.starts_with(&format!("{gone}:"))),
                "{gone} in:\n{}",
                answered.text
            );
        }
        assert!(back.contains(&"x-kept: yes".to_owned()), "{answered:?}");
        assert!(answered.closed, "the client asked for that");
    });
}

#[test]
fn the_other_protocols_get_no_field_of_http1() {
    run(async {
        let answer = "HTTP/1.1 200 OK\r\nConnection: keep-alive, x-listed\r\nX-Listed: 1\r\nKeep-Alive: timeout=5\r\n\
                      Transfer-Encoding: chunked\r\nUpgrade: h2c\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        let origin = RawOrigin::script(vec![Answer::raw(answer)]).await;
        let edge = Edge::run(&secure(origin.addr())).await;
        for protocol in [Protocol::H2, Protocol::H3] {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let request = client.request(Method::GET, "/").header("te", "trailers").body(empty()).unwrap();
            let reply = client.fetch(request).await;
            assert_eq!((reply.status.as_u16(), reply.body.as_str()), (200, "ok"), "{protocol:?}");
            for gone in ["connection", "x-listed", "keep-alive", "transfer-encoding", "upgrade"] {
                assert!(!reply.headers.contains_key(gone), "{protocol:?} {gone}: {reply:?}");
            }
        }
        let sent = origin.received_text().to_ascii_lowercase();
        assert_eq!(sent.matches("\r\nte: trailers\r\n").count(), 2, "{sent}");
    });
}

/// RFC 9113 section 8.2.3: a client may split its cookies; behind HTTP/1.1 they are one line again.
#[test]
fn split_cookies_are_joined() {
    run(async {
        let origin = RawOrigin::script(vec![Answer::ok("ok")]).await;
        let edge = Edge::run(&secure(origin.addr())).await;
        for protocol in [Protocol::H2, Protocol::H3] {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let request = client.request(Method::GET, "/").header("cookie", "a=1").header("cookie", "b=2");
            assert_eq!(client.fetch(request.body(empty()).unwrap()).await.status, 200);
            let sent = origin.received_text();
            let last = &sent[sent.rfind("GET /").unwrap()..];
            assert!(last.contains("\r\ncookie: a=1; b=2\r\n"), "{protocol:?}:\n{last}");
        }
    });
}

/// What stands in the target goes on byte for byte: nobody behind sees another path than was routed.
#[test]
fn targets_go_on_as_they_are() {
    run(async {
        let origin = RawOrigin::script(vec![Answer::ok("ok")]).await;
        let edge = Edge::run(&plain(origin.addr())).await;
        for target in
            ["/a%2Fb", "/%41", "/a//b", "/a;v=1/b", "/?", "/a?b=%00&c=/../", "/a%20b?x=+", "/~'()*!$&,:@=+"]
        {
            let request = format!("GET {target} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
            assert_eq!(raw::send(edge.http(), request).await.statuses(), [200], "{target}");
            let line = format!("GET {target} HTTP/1.1\r\n");
            assert!(
                origin.received_text().contains(&line),
                "{target} is not among:\n{}",
                origin.received_text()
            );
        }
        for target in ["/../etc", "/a/..", "/a/%2e%2e/b", "/a/.%2E/b", "/./a", "/a/..;x/b"] {
            let asked = origin.requests();
            let request = format!("GET {target} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
            assert_eq!(raw::send(edge.http(), request).await.statuses(), [400], "{target}");
            assert_eq!(origin.requests(), asked, "{target}");
        }
    });
}

/// An HTTP/1.0 client gets what it can read: no chunks, and the end of the body is known.
#[test]
fn old_clients() {
    run(async {
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3\r\n...\r\n0\r\n\r\n";
        let origin = RawOrigin::script(vec![Answer::ok("known"), Answer::raw(chunked)]).await;
        let edge = Edge::run(&plain(origin.addr())).await;
        let answered = raw::send(edge.http(), "GET /1 HTTP/1.0\r\nHost: a.test\r\n\r\n").await;
        assert!(answered.closed && answered.text.ends_with("\r\n\r\nknown"), "{answered:?}");
        let answered = raw::send(edge.http(), "GET /2 HTTP/1.0\r\nHost: a.test\r\n\r\n").await;
        assert!(answered.closed && answered.text.ends_with("\r\n\r\nhello..."), "{answered:?}");
        assert!(!answered.text.to_ascii_lowercase().contains("transfer-encoding"), "{answered:?}");
        let sent = origin.received_text();
        assert!(sent.starts_with("GET /1 HTTP/1.1\r\n"), "a proxy speaks its own version: {sent}");
        // RFC 9112 section 9.3: an old client may ask to stay
        let kept =
            raw::send(edge.http(), "GET /3 HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n").await;
        assert_eq!(kept.statuses(), [200], "{kept:?}");
    });
}

#[test]
fn interim_responses_pass_or_are_dropped() {
    run(async {
        let answer = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n\
                      HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let origin = RawOrigin::script(vec![Answer::raw(answer)]).await;
        let edge = Edge::run(&secure(origin.addr())).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            for _ in 0..2 {
                let reply = client.get("/").await;
                assert_eq!((reply.status.as_u16(), reply.body.as_str()), (200, "ok"), "{protocol:?}");
                assert!(reply.field("link").is_empty(), "{protocol:?}");
            }
        }
    });
}

/// RFC 9110 section 15.2: all but the 100 that nobody asked for, and to nobody who is older than they are.
#[test]
fn early_hints_go_ahead_of_the_response() {
    run(async {
        let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: X-Mine\r\nX-Mine: 1\r\n\r\n";
        let answer = format!(
            "{hints}HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        );
        let origin = RawOrigin::script(vec![Answer::raw(answer)]).await;
        let edge = Edge::run(&plain(origin.addr())).await;
        let request = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
        let last = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
        let answered = raw::send(edge.http(), &format!("{request}{last}")).await;
        let one = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n";
        assert_eq!(answered.text.matches(one).count(), 2, "{answered:?}");
        assert_eq!(answered.text.matches("HTTP/1.1 ").count(), 6, "{answered:?}");
        let old = raw::send(edge.http(), "GET / HTTP/1.0\r\nHost: a.test\r\n\r\n").await;
        assert_eq!(old.statuses(), [200], "{old:?}");
        // what a route changes in responses it changes in these too
        let edits = "cluster = \"app\"\nremove_response_headers = [\"link\"]\nset_response_headers = { x-frame = \"1\" }\n";
        let edge = Edge::run(&plain(origin.addr()).replace("cluster = \"app\"\n", edits)).await;
        let answered = raw::send(edge.http(), last).await;
        let ahead = "HTTP/1.1 103 Early Hints\r\nx-frame: 1\r\n\r\nHTTP/1.1 102 Processing\r\nx-frame: 1\r\n\r\nHTTP/1.1 200 OK\r\n";
        assert!(answered.text.starts_with(ahead), "{answered:?}");
        // and what no response is to have they have neither
        let removed = format!("[security_headers]\nremove = [\"link\"]\n{}", plain(origin.addr()));
        let edge = Edge::run(&removed).await;
        let answered = raw::send(edge.http(), last).await;
        let ahead = "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n";
        assert!(answered.text.starts_with(ahead), "{answered:?}");
    });
}

/// RFC 9110 section 10.1.1: a client that waits for leave gets it, and its body comes whole.
#[test]
fn expect_100_continue() {
    use tokio::io::AsyncWriteExt;
    run(async {
        let origin = RawOrigin::script(vec![Answer::ok("got it")]).await;
        let edge = Edge::run(&plain(origin.addr())).await;
        let mut stream = tokio::net::TcpStream::connect(edge.http()).await.unwrap();
        stream
            .write_all(
                b"POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n",
            )
            .await
            .unwrap();
        assert!(raw::head(&mut stream).await.starts_with("HTTP/1.1 100 "));
        stream.write_all(b"body").await.unwrap();
        let answered = raw::drain(&mut stream).await;
        assert!(
            answered.text.starts_with("HTTP/1.1 200") && answered.text.ends_with("got it"),
            "{answered:?}"
        );
        assert!(origin.received_text().ends_with("\r\n\r\nbody"));
        let odd = "POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 200-ok\r\nContent-Length: 4\r\n\r\nbody";
        assert_eq!(raw::send(edge.http(), odd).await.statuses(), [417]);
    });
}

/// RFC 7239 and RFC 9110 section 7.6.3: what the upstream is told of the client is a choice.
#[test]
fn what_is_told_of_the_client() {
    const ASK: &str = "GET / HTTP/1.1\r\nHost: a.test:81\r\nX-Forwarded-For: 1.1.1.1\r\nForwarded: for=1.1.1.1\r\nVia: 1.0 fred\r\n\
                       X-Forwarded-Port: 7\r\nConnection: close\r\n\r\n";
    let element = "for=127.0.0.1;by=127.0.0.1;host=\"a.test:81\";proto=http";
    run(async {
        for (keys, told) in [
            ("headers = \"forwarded\"", &[("forwarded", element)][..]),
            ("headers = \"none\"", &[]),
            (
                "port = true",
                &[
                    ("x-forwarded-for", "127.0.0.1"),
                    ("x-forwarded-host", "a.test:81"),
                    ("x-forwarded-port", "PORT"),
                    ("x-forwarded-proto", "http"),
                    ("x-real-ip", "127.0.0.1"),
                ],
            ),
            (
                "headers = \"forwarded\"\ntrusted = [\"127.0.0.1\"]",
                &[("forwarded", "for=1.1.1.1"), ("forwarded", element)],
            ),
            (
                "headers = \"both\"\ntrusted = [\"127.0.0.1\"]",
                &[
                    ("forwarded", "for=1.1.1.1"),
                    ("forwarded", element),
                    ("x-forwarded-for", "1.1.1.1, 127.0.0.1"),
                    ("x-forwarded-host", "a.test:81"),
                    ("x-forwarded-port", "7"),
                    ("x-forwarded-proto", "http"),
                    ("x-real-ip", "1.1.1.1"),
                ],
            ),
        ] {
            let origin = RawOrigin::script(vec![Answer::ok("ok")]).await;
            let edge =
                Edge::run(&format!("[forwarded]\n{keys}\nvia = \"edge\"\n{}", plain(origin.addr()))).await;
            let answered = raw::send(edge.http(), ASK).await;
            assert_eq!(answered.statuses(), [200], "{keys}");
            assert!(lines(&answered.text).contains(&"via: 1.1 edge".to_owned()), "{keys}: {answered:?}");
            let sent = lines(&origin.received_text());
            let mut found: Vec<_> = sent
                .iter()
                .filter(|line| {
                    ["x-forwarded", "forwarded", "x-real"].iter().any(|name| line.starts_with(name))
                })
                .cloned()
                .collect();
            found.sort();
            let port = edge.http().port().to_string();
            let mut wanted: Vec<_> = told
                .iter()
                .map(|(name, value)| format!("{name}: {}", value.replace("PORT", &port)))
                .collect();
            wanted.sort();
            assert_eq!(found, wanted, "{keys}");
            let via: Vec<_> = sent.iter().filter(|line| line.starts_with("via:")).collect();
            assert_eq!(via, ["via: 1.0 fred", "via: 1.1 edge"], "{keys}");
        }
    });
}
