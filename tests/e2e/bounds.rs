//! What a client can't have more of.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use http::{Method, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use portcullis_testkit::origin::{Answer, RawOrigin};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    config::{plain, secure},
    support::{
        SOON,
        client::{BoxError, Client, Protocol, empty, full},
        edge::Edge,
        origin::Origin,
        raw, run, tls, within,
    },
};

/// RFC 9113 section 3.4 and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[test]
fn http2_settings_are_explicit() {
    run(async {
        let origin = Origin::text("ok").await;
        let edge = Edge::run(&secure(origin.addr())).await;
        let mut io = tls::connect(edge.https(), "localhost", &["h2"]).await;
        io.write_all(PREFACE).await.unwrap();
        let mut head = [0; 9];
        within(SOON, "a frame", io.read_exact(&mut head)).await.unwrap();
        assert_eq!(head[3], 4, "the first frame is SETTINGS: {head:?}");
        let mut payload = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
        within(SOON, "its payload", io.read_exact(&mut payload)).await.unwrap();
        let setting = |id: u16| {
            payload
                .chunks(6)
                .find(|entry| entry[..2] == id.to_be_bytes())
                .map(|entry| u32::from_be_bytes(entry[2..].try_into().unwrap()))
        };
        assert_eq!(setting(3), Some(100), "SETTINGS_MAX_CONCURRENT_STREAMS in {payload:?}");
        assert_eq!(setting(6), Some(64 << 10), "SETTINGS_MAX_HEADER_LIST_SIZE in {payload:?}");
        assert!(
            setting(4).is_none_or(|window| window <= 64 << 10),
            "SETTINGS_INITIAL_WINDOW_SIZE in {payload:?}"
        );
    });
}

#[test]
fn a_head_has_a_hundred_fields_at_most() {
    run(async {
        let origin = Origin::text("ok").await;
        let edge = Edge::run(&secure(origin.addr())).await;
        for protocol in Protocol::ALL {
            for (count, status) in [(99, 200), (101, 431)] {
                let mut client = Client::connect(protocol, edge.https(), "localhost").await;
                let mut request = client.request(Method::GET, "/");
                // HTTP/1 has its Host among them
                for at in usize::from(protocol == Protocol::H1)..count {
                    request = request.header("x-many", at);
                }
                let reply = client.fetch(request.body(empty()).unwrap()).await;
                assert_eq!(reply.status, status, "{protocol:?} {count}");
            }
        }
        assert_eq!(origin.requests(), 3);
    });
}

#[test]
fn a_head_has_a_size() {
    run(async {
        let origin = Origin::text("ok").await;
        let config = secure(origin.addr()).replace("\"https\"\n", "\"https\"\nmax_header_size = \"16KiB\"\n");
        let edge = Edge::run(&config).await;
        for protocol in Protocol::ALL {
            for (size, well) in [(8 << 10, true), (20 << 10, false)] {
                let mut client = Client::connect(protocol, edge.https(), "localhost").await;
                let request = client.request(Method::GET, "/").header("x-long", "x".repeat(size));
                let reply = client.try_fetch(request.body(empty()).unwrap()).await;
                if well {
                    assert_eq!(reply.expect("an answer").status, 200, "{protocol:?} {size}");
                } else {
                    // the client's own library may know the bound from the settings and not send it
                    assert!(
                        reply.is_err() || reply.is_ok_and(|reply| reply.status == 431),
                        "{protocol:?} {size}"
                    );
                }
            }
        }
        assert_eq!(origin.requests(), 3);
    });
}

#[test]
fn a_target_has_a_length() {
    run(async {
        let origin = Origin::text("ok").await;
        let edge = Edge::run(&secure(origin.addr())).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            assert_eq!(client.get(&format!("/{}", "x".repeat(8000))).await.status, 200, "{protocol:?}");
            assert_eq!(client.get(&format!("/{}", "x".repeat(8200))).await.status, 414, "{protocol:?}");
        }
    });
}

/// How long it takes until the connection is closed, if these bytes are all that come.
async fn closed_after(stream: &mut TcpStream, bytes: &[u8]) -> Duration {
    stream.write_all(bytes).await.unwrap();
    let begin = Instant::now();
    raw::closed(stream, SOON).await;
    begin.elapsed()
}

/// The configured 300 ms, and not the default of many seconds.
#[track_caller]
fn assert_in_time(took: Duration, what: &str) {
    assert!((Duration::from_millis(200)..Duration::from_millis(2500)).contains(&took), "{what}: {took:?}");
}

#[test]
fn a_slow_head_is_not_waited_for() {
    run(async {
        let origin = Origin::text("ok").await;
        let timeouts = "[timeouts]\nheader = \"300ms\"\nidle = \"1s\"\n";
        let edge = Edge::run(&format!("{timeouts}{}", plain(origin.addr()))).await;
        for begin in ["", "G", "GET / HTTP/1.1\r\nHost: a\r\nX-Slow: "] {
            let mut stream = TcpStream::connect(edge.http()).await.unwrap();
            // with nothing sent it is the handshake's time or this one; both are set here only for the head
            if !begin.is_empty() {
                assert_in_time(closed_after(&mut stream, begin.as_bytes()).await, begin);
            }
        }
        // a byte now and then does not help
        let mut stream = TcpStream::connect(edge.http()).await.unwrap();
        let begin = Instant::now();
        let drip = async {
            let (mut reader, mut writer) = stream.split();
            let feed = async {
                writer.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").await.unwrap();
                while writer.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::select! {
                () = raw::closed(&mut reader, SOON) => {}
                () = feed => {}
            }
        };
        within(SOON, "the connection is closed", drip).await;
        assert_in_time(begin.elapsed(), "a byte every 50 ms");
        // and an idle connection is kept for its own time
        let mut stream = TcpStream::connect(edge.http()).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(raw::head(&mut stream).await.starts_with("HTTP/1.1 200"));
        assert_in_time(closed_after(&mut stream, b"").await, "keep-alive");
        assert_eq!(origin.requests(), 1);
    });
}

#[test]
fn a_handshake_is_not_waited_for() {
    run(async {
        let origin = Origin::text("ok").await;
        let edge = Edge::run(&format!("[timeouts]\nhandshake = \"300ms\"\n{}", secure(origin.addr()))).await;
        // nothing; a record header; a ClientHello that announces more than comes
        for begin in [&b""[..], b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
            let mut stream = TcpStream::connect(edge.https()).await.unwrap();
            assert_in_time(closed_after(&mut stream, begin).await, &format!("{begin:?}"));
        }
        assert_eq!(Client::connect(Protocol::H2, edge.https(), "localhost").await.get("/").await.status, 200);
    });
}

/// TLS is done, `h2` is agreed, and then nothing: the preface does not come, or not whole.
#[test]
fn an_http2_preface_is_not_waited_for() {
    run(async {
        let origin = Origin::text("ok").await;
        let timeouts = "[timeouts]\nheader = \"300ms\"\nhandshake = \"300ms\"\n";
        let edge = Edge::run(&format!("{timeouts}{}", secure(origin.addr()))).await;
        for sent in [0, 5, 23] {
            let mut io = tls::connect(edge.https(), "localhost", &["h2"]).await;
            io.write_all(&PREFACE[..sent]).await.unwrap();
            raw::closed(&mut io, SOON).await;
        }
    });
}

#[test]
fn a_slow_upload_is_not_waited_for() {
    run(async {
        let origin = Origin::start(|request| async move {
            let whole = request.into_body().collect().await.is_ok();
            Response::new(full(if whole { "whole" } else { "cut" }))
        })
        .await;
        let edge = Edge::run(&format!("{}request_timeout = \"300ms\"\n", secure(origin.addr()))).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let first = stream::once(async { Ok::<_, BoxError>(Frame::data("part".into())) });
            let body = StreamBody::new(first.chain(stream::pending())).boxed_unsync();
            let request = client.request(Method::POST, "/").body(body).unwrap();
            let begin = Instant::now();
            let response = within(SOON, "an answer", client.send(request)).await.expect("an answer");
            assert_eq!(response.status(), 408, "{protocol:?}");
            assert_in_time(begin.elapsed(), protocol.alpn());
        }
    });
}

#[test]
fn slow_handshakes_do_not_keep_others_out() {
    run(async {
        let origin = Origin::text("ok").await;
        let edge = Edge::run(&secure(origin.addr())).await;
        let mut slow = Vec::new();
        for _ in 0..100 {
            let mut stream = TcpStream::connect(edge.https()).await.unwrap();
            stream.write_all(b"\x16").await.unwrap();
            slow.push(stream);
        }
        for protocol in Protocol::ALL {
            let client = Client::connect(protocol, edge.https(), "localhost");
            assert_eq!(
                within(SOON, "a handshake", Box::pin(client)).await.get("/").await.status,
                200,
                "{protocol:?}"
            );
        }
    });
}

#[test]
fn connections_past_the_limit_wait() {
    run(async {
        let origin = Origin::text("ok").await;
        for workers in ["per-core", "work-stealing"] {
            let head = format!("workers = \"{workers}\"\nthreads = 2\n[limits]\nmax_connections = 4\n");
            let edge = Edge::run(&format!("{head}{}", plain(origin.addr()))).await;
            let mut open = Vec::new();
            for at in 0..4 {
                let mut client = Client::plain(edge.http(), "a.test").await;
                let reply = within(SOON, &format!("{workers}: connection {at}"), client.get("/")).await;
                assert_eq!(reply.status, 200);
                open.push(client);
            }
            // the kernel takes it; nobody answers
            let mut fifth = Client::plain(edge.http(), "a.test").await;
            let asked = origin.requests();
            let mut answer = Box::pin(fifth.get("/"));
            assert!(
                timeout(Duration::from_millis(300), &mut answer).await.is_err(),
                "{workers}: a fifth is served"
            );
            assert_eq!(origin.requests(), asked);
            open.pop();
            assert_eq!(within(SOON, &format!("{workers}: the fifth"), answer).await.status, 200);
        }
    });
}

#[test]
fn tunnels_have_a_bound() {
    run(async {
        let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                      sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        let origin = RawOrigin::script(vec![Answer::raw(switch)]).await;
        let edge = Edge::run(&format!("[limits]\nmax_tunnels = 1\n{}", plain(origin.addr()))).await;
        let ask = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let mut first = TcpStream::connect(edge.http()).await.unwrap();
        first.write_all(ask.as_bytes()).await.unwrap();
        assert!(raw::head(&mut first).await.starts_with("HTTP/1.1 101"));
        assert_eq!(raw::send(edge.http(), ask).await.statuses(), [503]);
        drop(first);
        let free = async { while raw::send(edge.http(), ask).await.statuses() != [101] {} };
        within(SOON, "the place of the first", free).await;
    });
}

/// RFC 9113 section 5.1.2: what a client opens beyond the setting is refused, and nothing else of it suffers.
#[test]
fn streams_that_are_reset_at_once_end_the_connection() {
    run(async {
        let origin = Origin::text("ok").await;
        let edge = Edge::run(&secure(origin.addr())).await;
        let mut io = tls::connect(edge.https(), "localhost", &["h2"]).await;
        io.write_all(PREFACE).await.unwrap();
        // :method GET, :scheme https, :path /, :authority a (RFC 7541 section 6.1 and 6.2.2)
        let fields = b"\x82\x87\x84\x01\x01a";
        let mut flood = Vec::new();
        for stream in (1..20_001u32).step_by(2) {
            flood.extend_from_slice(&[0, 0, u8::try_from(fields.len()).unwrap(), 1, 5]);
            flood.extend_from_slice(&stream.to_be_bytes());
            flood.extend_from_slice(fields);
            // RST_STREAM with CANCEL
            flood.extend_from_slice(&[0, 0, 4, 3, 0]);
            flood.extend_from_slice(&stream.to_be_bytes());
            flood.extend_from_slice(&[0, 0, 0, 8]);
        }
        let (mut reader, mut writer) = tokio::io::split(io);
        let feed = tokio::spawn(async move {
            // fails when the edge has had enough
            let _ = writer.write_all(&flood).await;
            writer
        });
        let mut got = Vec::new();
        within(SOON, "the end of the connection", async {
            while !matches!(reader.read_buf(&mut got).await, Ok(0) | Err(_)) {}
        })
        .await;
        drop(feed.await);
        // GOAWAY (type 7) with ENHANCE_YOUR_CALM (11)
        let mut at = 0;
        let mut calm = false;
        while let Some(head) = got.get(at..at + 9) {
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            calm |= head[3] == 7 && got.get(at + 13..at + 17) == Some(&[0, 0, 0, 11]);
            at += 9 + length;
        }
        assert!(calm, "no GOAWAY with ENHANCE_YOUR_CALM in {} bytes", got.len());
        assert!(origin.requests() < 1000, "{} of 10,000 got through", origin.requests());
        // others are served as before
        assert_eq!(Client::connect(Protocol::H2, edge.https(), "localhost").await.get("/").await.status, 200);
    });
}
