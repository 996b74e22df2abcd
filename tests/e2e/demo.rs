//! `portcullis` without a command.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    client::{Body, Client, Protocol, empty},
    edge::{Edge, run_to_end},
    raw, run, tls, within,
};

/// 64 MiB.
const SIZE: u64 = 128 << 20;

#[test]
fn every_protocol_shows_the_request_as_the_origin_got_it() {
    run(async {
        let edge = Edge::demo().await;
        let port = edge.https().port();
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let reply = client.get("/?a=b%20c").await;
            assert_eq!(reply.status, 200, "{protocol:?}");
            let mut lines = reply.body.lines();
            assert_eq!(lines.next(), Some("GET /?a=b%20c HTTP/1.1"), "{protocol:?}");
            let lines: Vec<_> = lines.collect();
            for expected in [
                format!("host: localhost:{port}"),
                format!("x-forwarded-host: localhost:{port}"),
                "x-forwarded-for: 127.0.0.1".to_owned(),
                "x-forwarded-proto: https".to_owned(),
            ] {
                assert_eq!(
                    lines.iter().filter(|line| **line == expected).count(),
                    1,
                    "{protocol:?} {expected}"
                );
            }
        }
    });
}

#[test]
fn health_and_alt_svc() {
    run(async {
        let edge = Edge::demo().await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let reply = client.get("/health").await;
            assert_eq!(reply.status, 200, "{protocol:?}");
            // RFC 7838: whoever is on HTTP/3 already needs no advice
            let advice = format!("h3=\":{}\"", edge.https().port());
            for reply in [reply, client.get("/").await] {
                assert_eq!(
                    reply.field("alt-svc").contains(&advice),
                    protocol != Protocol::H3,
                    "{protocol:?}"
                );
            }
        }
    });
}

#[test]
fn plain_http_on_the_tls_port_is_redirected() {
    run(async {
        let edge = Edge::demo().await;
        let port = edge.https().port();
        let request = format!("GET /a/b?c=d&e HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n");
        let answered = raw::send(edge.https(), request).await;
        assert_eq!(answered.statuses(), [308], "{answered:?}");
        assert!(
            answered.text.contains(&format!("location: https://localhost:{port}/a/b?c=d&e\r\n")),
            "{answered:?}"
        );
        assert!(!answered.text.contains("alt-svc"), "{answered:?}");
    });
}

#[test]
fn a_websocket_echoes() {
    run(async {
        let edge = Edge::demo().await;
        let io = tls::connect(edge.https(), "localhost", &["http/1.1"]).await;
        let url = format!("wss://localhost:{}/ws", edge.https().port());
        let (mut socket, response) = tokio_tungstenite::client_async(url, io).await.unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        for message in [Message::text("hello"), Message::binary(vec![7; 300_000]), Message::text("again")] {
            socket.send(message.clone()).await.unwrap();
            let back = within(Duration::from_secs(5), "the echo", socket.next()).await;
            assert_eq!(back.unwrap().unwrap(), message);
        }
        socket.close(None).await.unwrap();
        let rest = within(Duration::from_secs(5), "the end", async {
            while let Some(Ok(message)) = socket.next().await {
                assert!(message.is_close(), "{message:?}");
            }
        });
        rest.await;
    });
}

async fn download(edge: &Edge, protocol: Protocol, size: u64) {
    let mut client = Client::connect(protocol, edge.https(), "localhost").await;
    let request = client.request(Method::GET, &format!("/bytes/{size}")).body(empty()).unwrap();
    let response = client.send(request).await.unwrap();
    assert_eq!(response.headers()["content-length"], size.to_string());
    let (mut body, mut got) = (response.into_body(), 0);
    while let Some(frame) = body.frame().await {
        got += frame.unwrap().into_data().map_or(0, |data| data.len() as u64);
    }
    assert_eq!(got, size, "{protocol:?}");
}

async fn upload(edge: &Edge, protocol: Protocol, size: u64) {
    let piece = Bytes::from(vec![b'x'; 1 << 16]);
    let frames = (0..size / piece.len() as u64).map(move |_| Ok(Frame::data(piece.clone())));
    let body: Body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    let mut client = Client::connect(protocol, edge.https(), "localhost").await;
    let request = client.request(Method::POST, "/upload").body(body).unwrap();
    assert_eq!(client.fetch(request).await.body, format!("received {size} bytes\n"), "{protocol:?}");
}

/// A body that was held anywhere on its way would be seen here twice over: half of one is allowed. That is what the
/// system's socket buffers make each side take at once, and one segment of the allocator's, 32 MiB, which it may begin at
/// any time.
#[test]
fn bodies_stream_in_bounded_memory() {
    run(async {
        let edge = Edge::demo().await;
        for protocol in Protocol::ALL {
            download(&edge, protocol, 1 << 20).await;
        }
        let before = edge.peak_memory();
        for protocol in Protocol::ALL {
            download(&edge, protocol, SIZE).await;
            upload(&edge, protocol, SIZE).await;
            let grown = edge.peak_memory() - before;
            assert!(grown < 64 << 10, "{grown} KiB more than {before} after {protocol:?}");
        }
        let peak = edge.peak_memory();
        assert!(peak < 96 << 10, "{peak} KiB in all");
    });
}

#[test]
fn a_busy_port_names_its_holder() {
    run(async {
        let edge = Edge::demo().await;
        let port = edge.https().port();
        let (status, stdout, stderr) = run_to_end(["--port", &port.to_string()]);
        assert!(!status.success());
        assert!(!stdout.contains("listening on"), "{stdout}");
        for part in [port.to_string(), edge.pid().to_string(), "`--port`".to_owned()] {
            assert!(stderr.contains(&part), "no {part} in:\n{stderr}");
        }
        // the first one is none the worse
        assert_eq!(
            Client::connect(Protocol::H2, edge.https(), "localhost").await.get("/health").await.status,
            200
        );
    });
}
