//! What the edge answers by itself when an upstream fails.

use http::Method;
use portcullis_testkit::origin::{Answer, RawOrigin};

use crate::{
    config::plain,
    support::{
        client::{Client, empty},
        edge::Edge,
        raw, run,
    },
};

/// The cause is in the log with the id that the client is told, and never in the answer.
#[test]
fn a_fault_is_told_in_the_form_that_is_asked_for() {
    run(async {
        // it is bound and nobody listens, so nobody else will
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let nobody = socket.local_addr().unwrap();
        let edge = Edge::run(&format!("[errors]\nproxy_status = true\n{}", plain(nobody))).await;
        for (accept, kind, part) in [
            ("*/*", "text/plain; charset=utf-8", "502 Bad Gateway\nrequest abc-1\n"),
            ("application/json", "application/problem+json", "\"status\":502,\"request_id\":\"abc-1\""),
            ("text/html,*/*;q=0.8", "text/html; charset=utf-8", "<h1>502 Bad Gateway</h1>"),
        ] {
            let request =
                format!("GET / HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\nX-Request-Id: abc-1\r\n\r\n");
            let answered = raw::send(edge.http(), request).await;
            let text = &answered.text;
            assert_eq!(answered.statuses(), [502], "{accept}: {text}");
            assert!(text.contains(&format!("\r\ncontent-type: {kind}\r\n")), "{accept}: {text}");
            assert!(text.contains("\r\nx-request-id: abc-1\r\n") && text.contains(part), "{accept}: {text}");
            assert!(text.contains("\r\nproxy-status: portcullis; error=connection_refused\r\n"), "{text}");
            assert!(!text.contains(&nobody.to_string()), "{accept}: {text}");
        }
        let line = edge.stderr.find("request failed").await;
        assert!(line.contains("abc-1") && line.contains(&nobody.to_string()), "{line}");
    });
}

enum Want {
    /// 502, and nothing of the answer.
    Bad,
    /// The client sees that it was cut: over HTTP/2 the stream is reset.
    Cut,
    /// The client gets this body and no more.
    Whole(&'static str),
}

/// Every hostile answer over both protocols; the next request over the same edge gets its own answer and nothing of this one.
#[test]
fn hostile_answers_are_refused_or_cut_and_never_reach_the_next_client() {
    use Want::{Bad, Cut, Whole};
    let next = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let ok = |rest: &str| format!("HTTP/1.1 200 OK\r\n{rest}");
    let cases: Vec<(&str, String, Want)> = vec![
        ("both framings", ok("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), Bad),
        ("two lengths", ok("Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"), Bad),
        ("a length that is none", ok("Content-Length: 3x\r\n\r\nabc"), Bad),
        ("another coding", ok("Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), Bad),
        ("a coding on 1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(), Bad),
        ("obs-fold", ok("X: a\r\n b\r\nContent-Length: 0\r\n\r\n"), Bad),
        ("a space before the colon", ok("X : a\r\nContent-Length: 0\r\n\r\n"), Bad),
        ("a NUL", ok("X: a\0b\r\nContent-Length: 0\r\n\r\n"), Bad),
        ("a bare CR in a value", ok("X: a\rb\r\nContent-Length: 0\r\n\r\n"), Bad),
        ("no status", "HTTP/1.1 \r\nContent-Length: 0\r\n\r\n".into(), Bad),
        ("a status of two digits", "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n".into(), Bad),
        ("HTTP/0.9", "<html>hello</html>".into(), Bad),
        ("another version", "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n".into(), Bad),
        (
            "a 101 that nobody asked for",
            "HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n".into(),
            Bad,
        ),
        ("a flood of 1xx", "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(100), Bad),
        ("an endless head", ok(&"X: y\r\n".repeat(20_000)), Bad),
        ("bad chunk", ok("Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nxyz\r\n"), Cut),
        ("a chunk cut", ok("Transfer-Encoding: chunked\r\n\r\n5\r\nabc"), Cut),
        ("no last chunk", ok("Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"), Cut),
        ("a short body", ok("Content-Length: 5\r\n\r\nabc"), Cut),
        ("a bare LF behind a size", ok("Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n"), Cut),
        ("splitting behind a length", ok(&format!("Content-Length: 3\r\n\r\nabc{next}")), Whole("abc")),
        (
            "splitting behind chunks",
            ok(&format!("Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n{next}")),
            Whole("abc"),
        ),
        ("splitting behind 204", format!("HTTP/1.1 204 No Content\r\n\r\n{next}"), Whole("")),
        (
            "splitting behind 304",
            format!("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n{next}"),
            Whole(""),
        ),
    ];
    run(async {
        let mut wrong = Vec::new();
        for (name, bytes, want) in cases {
            for h2 in [false, true] {
                let script = vec![Answer::ReplyThenClose(bytes.clone().into()), Answer::ok("clean")];
                let origin = RawOrigin::script(script).await;
                let edge = Edge::run(&plain(origin.addr())).await;
                let client = async || match h2 {
                    true => Client::plain_h2(edge.http(), "a.test").await,
                    false => Client::plain(edge.http(), "a.test").await,
                };
                let mut first = client().await;
                // a POST is not tried again, so what comes is the answer to this one
                let post = first.request(Method::POST, "/").body(empty()).unwrap();
                let got = first.try_fetch(post).await;
                let well = match (&want, &got) {
                    (Want::Bad, Ok(reply)) => reply.status == 502 && !reply.body.contains("evil"),
                    (Want::Cut, got) => got.is_err(),
                    (Want::Whole(body), Ok(reply)) => reply.body == *body,
                    _ => false,
                };
                let reply = client().await.get("/next").await;
                if !well || reply.body != "clean" {
                    wrong.push(format!("{name} (HTTP/2: {h2}): {got:?}; then {:?}", reply.body));
                }
            }
        }
        assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    });
}
