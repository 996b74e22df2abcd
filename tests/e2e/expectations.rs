//! `Expect: 100-continue` (RFC 9110 section 10.1.1) from a client to an endpoint: what the endpoint says decides whether the body is sent.

use std::time::{Duration, Instant};

use portcullis_testkit::origin::{OriginConn, RawOrigin};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    config::plain,
    support::{SOON, edge::Edge, raw, run, within},
};

const HEAD: &str = "PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";

/// Reads a head and what comes with it.
async fn head(conn: &mut OriginConn) {
    let mut seen = Vec::new();
    while !seen.windows(4).any(|end| end == b"\r\n\r\n") {
        assert_ne!(conn.read_buf(&mut seen).await.unwrap(), 0);
    }
}

async fn ok_behind_the_body(conn: &mut OriginConn) {
    let mut body = [0; 5];
    conn.read_exact(&mut body).await.unwrap();
    assert_eq!(&body, b"hello");
    conn.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
}

async fn ask(edge: &Edge) -> TcpStream {
    let mut client = TcpStream::connect(edge.http()).await.unwrap();
    client.write_all(HEAD.as_bytes()).await.unwrap();
    client
}

#[test]
fn a_refusal_comes_before_the_body_and_in_its_place() {
    run(async {
        let origin = RawOrigin::with(|mut conn| async move {
            head(&mut conn).await;
            conn.write_all(b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            // until the edge lets go of it
            while conn.read(&mut [0; 100]).await.is_ok_and(|read| read > 0) {}
        })
        .await;
        let edge = Edge::run(&format!("{}continue_timeout = \"10s\"\n", plain(origin.addr()))).await;
        for sends_anyway in [false, true] {
            let mut client = ask(&edge).await;
            let answer = raw::head(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 417 "), "and no 100 before it: {answer}");
            if sends_anyway {
                let _ = client.write_all(b"hello").await;
            }
            raw::closed(&mut client, SOON).await;
        }
        for received in origin.received() {
            let received = String::from_utf8(received).unwrap();
            assert!(received.to_ascii_lowercase().contains("\r\nexpect: 100-continue\r\n"), "{received}");
            assert!(received.ends_with("\r\n\r\n"), "no byte of the body: {received}");
        }
    });
}

#[test]
fn the_endpoints_100_is_the_clients() {
    run(async {
        let (may, wait) = tokio::sync::oneshot::channel::<()>();
        let wait = std::sync::Mutex::new(Some(wait));
        let origin = RawOrigin::with(move |mut conn| {
            let wait = wait.lock().unwrap().take();
            async move {
                head(&mut conn).await;
                wait.expect("one connection").await.unwrap();
                conn.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
                ok_behind_the_body(&mut conn).await;
            }
        })
        .await;
        let edge = Edge::run(&format!("{}continue_timeout = \"30s\"\n", plain(origin.addr()))).await;
        let mut client = ask(&edge).await;
        within(SOON, "the request", origin.wait_for_connections(1)).await;
        let early = timeout(Duration::from_millis(300), client.read(&mut [0])).await;
        assert!(early.is_err(), "nothing before the endpoint has said so: {early:?}");
        may.send(()).unwrap();
        let answer = raw::head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 100 "), "{answer}");
        client.write_all(b"hello").await.unwrap();
        let answer = raw::head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    });
}

/// RFC 9110 section 10.1.1: not every endpoint knows it, and nobody waits for one for ever.
#[test]
fn who_hears_nothing_sends_the_body_after_a_while() {
    run(async {
        let origin = RawOrigin::with(|mut conn| async move {
            head(&mut conn).await;
            ok_behind_the_body(&mut conn).await;
        })
        .await;
        let edge = Edge::run(&format!("{}continue_timeout = \"400ms\"\n", plain(origin.addr()))).await;
        let begin = Instant::now();
        let mut client = ask(&edge).await;
        let answer = raw::head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 100 "), "{answer}");
        let took = begin.elapsed();
        assert!((Duration::from_millis(350)..Duration::from_secs(3)).contains(&took), "{took:?}");
        client.write_all(b"hello").await.unwrap();
        let answer = raw::head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    });
}
