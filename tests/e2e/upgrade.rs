//! Tunnels, and what must not become one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use portcullis_testkit::origin::{Answer, RawOrigin};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};

use crate::{
    config::{plain, secure},
    support::{
        SOON,
        client::{Client, Protocol, empty},
        edge::Edge,
        raw, run, within,
    },
};

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: a.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade, x-hop\r\nX-Hop: 1\r\n\
                      Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

async fn read_until(conn: &mut (impl AsyncReadExt + Unpin), end: &[u8]) -> Vec<u8> {
    let mut got = Vec::new();
    while !got.ends_with(end) {
        let read = within(SOON, "more bytes", conn.read_buf(&mut got)).await.unwrap();
        assert_ne!(read, 0, "closed after {:?}", String::from_utf8_lossy(&got));
    }
    got
}

#[test]
fn bytes_pass_both_ways_and_each_end_by_itself() {
    run(async {
        let origin = RawOrigin::with(|mut conn| async move {
            let mut buffer = Vec::new();
            conn.read_request(&mut buffer).await.unwrap();
            // the first bytes of the tunnel come with the 101, in one write
            conn.write_all(format!("{SWITCH}first ").as_bytes()).await.unwrap();
            let mut all = Vec::new();
            conn.read_to_end(&mut all).await.unwrap();
            conn.write_all(format!("and last after {}", all.len()).as_bytes()).await.unwrap();
        })
        .await;
        let edge = Edge::run(&plain(origin.addr())).await;
        let mut stream = TcpStream::connect(edge.http()).await.unwrap();
        stream.write_all(ASK.as_bytes()).await.unwrap();
        let head = read_until(&mut stream, b"first ").await;
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        for (field, there) in [
            ("\r\nconnection: upgrade\r\n", true),
            ("\r\nupgrade: websocket\r\n", true),
            ("\r\nsec-websocket-accept: ", true),
            ("x-hop", false),
            ("\r\ncontent-length", false),
            ("\r\ntransfer-encoding", false),
        ] {
            assert_eq!(head.contains(field), there, "{field:?} in {head}");
        }
        stream.write_all(&vec![b'x'; 1_000_000]).await.unwrap();
        // this end is done, and the other still speaks
        stream.shutdown().await.unwrap();
        let mut rest = String::new();
        within(SOON, "the rest", stream.read_to_string(&mut rest)).await.unwrap();
        assert_eq!(rest, "and last after 1000000");
    });
}

/// RUSTSEC-2026-0033: what a client sends behind its request may not reach the origin before the origin has agreed.
#[test]
fn early_bytes_wait_for_the_101() {
    run(async {
        let (asked, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let early = Arc::new(AtomicBool::new(false));
        let origin = RawOrigin::with({
            let (asked, go, early) = (Arc::clone(&asked), Arc::clone(&go), Arc::clone(&early));
            move |mut conn| {
                let (asked, go, early) = (Arc::clone(&asked), Arc::clone(&go), Arc::clone(&early));
                async move {
                    let mut buffer = Vec::new();
                    conn.read_request(&mut buffer).await.unwrap();
                    asked.notify_one();
                    let mut byte = [0];
                    tokio::select! {
                        _ = conn.read(&mut byte) => early.store(true, Ordering::SeqCst),
                        () = go.notified() => {}
                    }
                    if !buffer.is_empty() {
                        early.store(true, Ordering::SeqCst);
                    }
                    conn.write_all(SWITCH.as_bytes()).await.unwrap();
                    let got = read_until(&mut conn, b"early").await;
                    conn.write_all(&got).await.unwrap();
                }
            }
        })
        .await;
        let edge = Edge::run(&plain(origin.addr())).await;
        let mut stream = TcpStream::connect(edge.http()).await.unwrap();
        stream.write_all(format!("{ASK}early").as_bytes()).await.unwrap();
        asked.notified().await;
        // time enough for bytes that don't wait
        tokio::time::sleep(Duration::from_millis(200)).await;
        go.notify_one();
        let got = read_until(&mut stream, b"early").await;
        assert!(got.starts_with(b"HTTP/1.1 101"));
        assert!(!early.load(Ordering::SeqCst), "the origin got bytes before it agreed");
    });
}

/// A request smuggled behind an upgrade that is not agreed to is a request like any other, and no bytes of a tunnel.
#[test]
fn a_200_is_no_101() {
    run(async {
        let origin = RawOrigin::script(vec![Answer::ok("no tunnel"), Answer::ok("second")]).await;
        let edge = Edge::run(&plain(origin.addr())).await;
        let next =
            "GET /next HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 203.0.113.9\r\nConnection: close\r\n\r\n";
        let answered = raw::send(edge.http(), format!("{ASK}{next}")).await;
        assert_eq!(answered.statuses(), [200, 200], "{answered:?}");
        assert!(answered.text.contains("no tunnel") && answered.text.ends_with("second"), "{answered:?}");
        assert!(!origin.received_text().contains("203.0.113.9"), "the second was read by the rules");
    });
}

#[test]
fn what_is_no_upgrade_goes_on_as_a_plain_request() {
    run(async {
        let origin = RawOrigin::script(vec![Answer::ok("plain")]).await;
        let edge = Edge::run(&plain(origin.addr())).await;
        for ask in [
            ASK.replace("websocket", "h2c"),
            ASK.replace("GET", "POST"),
            ASK.replace(", Upgrade", ""),
            ASK.replace("HTTP/1.1", "HTTP/1.0"),
        ] {
            let answered = raw::send(edge.http(), &ask).await;
            assert!(answered.text.ends_with("plain"), "{ask}: {answered:?}");
        }
        let sent = origin.received_text().to_ascii_lowercase();
        assert!(!sent.contains("\r\nupgrade:") && !sent.contains("\r\nconnection: upgrade"), "{sent}");
    });
}

#[test]
fn a_101_that_nobody_asked_for_is_a_502() {
    run(async {
        for (ask, switch) in [
            (ASK.replace(", Upgrade", ""), SWITCH.to_owned()),
            (ASK.to_owned(), SWITCH.replace("websocket", "h2c")),
            (ASK.to_owned(), SWITCH.replace("Upgrade: websocket\r\n", "")),
        ] {
            let origin = RawOrigin::script(vec![Answer::raw(switch.clone())]).await;
            let edge = Edge::run(&plain(origin.addr())).await;
            let answered = raw::send(edge.http(), &ask).await;
            assert_eq!(answered.statuses(), [502], "{switch}: {answered:?}");
        }
        let origin = RawOrigin::script(vec![Answer::raw(SWITCH)]).await;
        let edge = Edge::run(&secure(origin.addr())).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let request = client.request(http::Method::GET, "/").body(empty()).unwrap();
            assert_eq!(client.fetch(request).await.status, 502, "{protocol:?}");
        }
    });
}
