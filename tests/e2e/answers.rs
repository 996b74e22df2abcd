//! What the edge answers by itself when an upstream fails.

use crate::{
    config::plain,
    support::{edge::Edge, raw, run},
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
