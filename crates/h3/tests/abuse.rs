//! What no well-behaved client sends.

#![allow(clippy::unwrap_used, clippy::large_futures, reason = "a test may panic")]

mod common;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use common::{CONTROL, Server, frame, get, raw_head, service, soon, until};
use http::Response;
use http_body_util::BodyExt;
use portcullis_h3::{BodyError, ConnLimits, Endpoint, EndpointError, QuicOptions, Retry, WorkerId};
use portcullis_testkit::{body::ScriptBody, certs::TestCa};
use quinn::VarInt;

const FRAME_UNEXPECTED: u64 = 0x105;
const FRAME_ERROR: u64 = 0x106;
const EXCESSIVE_LOAD: u64 = 0x107;
const REQUEST_INCOMPLETE: u64 = 0x10d;
const MESSAGE_ERROR: u64 = 0x10e;

/// Reads every request to its end and remembers how that went.
async fn reading(options: QuicOptions) -> (Server, Arc<Mutex<Vec<Result<usize, String>>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let server = Server::start(options, {
        let seen = seen.clone();
        tower::service_fn(move |request: http::Request<portcullis_h3::RecvBody>| {
            let seen = seen.clone();
            async move {
                let result = request.into_body().collect().await.map(|body| body.to_bytes().len());
                let kind = |error: &BodyError| match error {
                    BodyError::Length { .. } => "length".to_owned(),
                    other => other.to_string(),
                };
                seen.lock().unwrap().push(result.as_ref().map(|n| *n).map_err(kind));
                result.map(|_| Response::new(ScriptBody::new()))
            }
        })
    })
    .await;
    (server, seen)
}

/// The code with which the server resets the stream.
async fn reset_code(recv: &mut quinn::RecvStream) -> u64 {
    match soon(recv.read_to_end(1 << 20)).await {
        Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(code))) => code.into_inner(),
        other => panic!("not reset: {other:?}"),
    }
}

/// The code with which the server closes the connection.
async fn close_code(connection: &quinn::Connection) -> u64 {
    match soon(connection.closed()).await {
        quinn::ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
        other => panic!("not closed: {other:?}"),
    }
}

/// Writes as long as the server takes it, up to 64 MiB, and says how much that was and how it ended.
async fn flood(send: &mut quinn::SendStream, unit: &[u8]) -> (usize, Option<quinn::WriteError>) {
    let block: Bytes = unit.repeat((64 * 1024 / unit.len()).max(1)).into();
    let mut written = 0;
    while written < 64 << 20 {
        match tokio::time::timeout(Duration::from_secs(3), send.write_chunk(block.clone())).await {
            Ok(Ok(())) => written += block.len(),
            Ok(Err(error)) => return (written, Some(error)),
            Err(_) => return (written, None),
        }
    }
    (written, None)
}

#[tokio::test]
async fn a_huge_frame_is_refused_by_its_length() {
    let (server, _) = reading(QuicOptions::default()).await;
    // HEADERS and an unknown type; each announces 1 GiB
    for kind in [0x01u8, 0x21] {
        let raw = server.raw().await;
        let (mut send, mut recv) = raw.open_bi().await.unwrap();
        send.write_all(&[kind, 0xc0, 0, 0, 0, 0x40, 0, 0, 0]).await.unwrap();
        let (written, error) = flood(&mut send, &[0]).await;
        assert!(written <= 4 << 20, "{kind:#x}: the server took {written} bytes");
        assert_eq!(error, Some(quinn::WriteError::Stopped(VarInt::from_u32(EXCESSIVE_LOAD as u32))));
        assert_eq!(reset_code(&mut recv).await, EXCESSIVE_LOAD);
        // the connection is still good
        let (mut send, mut recv) = raw.open_bi().await.unwrap();
        send.write_all(&raw_head(None)).await.unwrap();
        send.finish().unwrap();
        assert_eq!(soon(recv.read_to_end(4096)).await.unwrap()[0], 0x01);
    }
}

#[tokio::test]
async fn a_huge_frame_on_the_control_stream_closes_the_connection() {
    let (server, _) = reading(QuicOptions::default()).await;
    let raw = server.raw().await;
    let mut control = raw.open_uni().await.unwrap();
    control.write_all(&[CONTROL, &[0x21, 0xc0, 0, 0, 0, 0x40, 0, 0, 0]].concat()).await.unwrap();
    assert_eq!(close_code(&raw).await, EXCESSIVE_LOAD);
}

#[tokio::test]
async fn endless_frames_without_payload_are_refused() {
    let (server, _) = reading(QuicOptions::default()).await;
    for idle in [&[0x00u8, 0x00][..], &[0x21, 0x00]] {
        let raw = server.raw().await;
        let (mut send, _recv) = raw.open_bi().await.unwrap();
        send.write_all(&raw_head(None)).await.unwrap();
        let (written, error) = flood(&mut send, idle).await;
        assert!(written <= 4 << 20, "the server took {written} bytes");
        assert_eq!(error, Some(quinn::WriteError::Stopped(VarInt::from_u32(EXCESSIVE_LOAD as u32))));
    }
}

#[tokio::test]
async fn a_body_that_is_not_read_on_stays_within_the_window() {
    let options = QuicOptions::default().with_stream_window(32 * 1024).with_connection_window(128 * 1024);
    let server = Server::start(
        options,
        service(|request| async move {
            let mut body = request.into_body();
            // some frames, slowly, and then no more: the rest must stay outside
            for _ in 0..200 {
                body.frame().await.unwrap().unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            std::future::pending::<()>().await;
            drop(body);
            unreachable!()
        }),
    )
    .await;
    // tiny frames, the kind that costs most to hold
    let raw = server.raw().await;
    let (mut send, _recv) = raw.open_bi().await.unwrap();
    send.write_all(&raw_head(None)).await.unwrap();
    let mut written = 0;
    let tiny: Bytes = [0x00, 0x01, b'x'].repeat(1000).into();
    while let Ok(result) =
        tokio::time::timeout(Duration::from_millis(500), send.write_chunk(tiny.clone())).await
    {
        result.unwrap();
        written += tiny.len();
        // the client's QUIC takes what the window lets it send, and no more
        assert!(written < 100 * 1024, "the server took {written} bytes");
    }
}

#[tokio::test]
async fn tiny_and_empty_frames_are_read_like_any_other() {
    let (server, seen) = reading(QuicOptions::default()).await;
    let raw = server.raw().await;
    let (mut send, mut recv) = raw.open_bi().await.unwrap();
    let mut stream = raw_head(Some("3000"));
    for i in 0..3000 {
        stream.extend_from_slice(&[0x00, 0x01, b'x']);
        if i % 7 == 0 {
            stream.extend_from_slice(&[0x00, 0x00]);
        }
        if i % 11 == 0 {
            stream.extend_from_slice(&[0x21, 0x02, 0, 0]);
        }
    }
    stream.extend_from_slice(&[0x00, 0x00]);
    send.write_all(&stream).await.unwrap();
    send.finish().unwrap();
    assert_eq!(soon(recv.read_to_end(4096)).await.unwrap()[0], 0x01);
    assert_eq!(*seen.lock().unwrap(), [Ok(3000)]);
}

#[tokio::test]
async fn a_request_byte_by_byte() {
    let (server, seen) = reading(QuicOptions::default()).await;
    let raw = server.raw().await;
    let (mut send, mut recv) = raw.open_bi().await.unwrap();
    for byte in [raw_head(Some("5")), frame(0, b"hello")].concat() {
        send.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    send.finish().unwrap();
    assert_eq!(soon(recv.read_to_end(4096)).await.unwrap()[0], 0x01);
    assert_eq!(*seen.lock().unwrap(), [Ok(5)]);
}

#[tokio::test]
async fn bodies_must_have_the_announced_length() {
    let (server, seen) = reading(QuicOptions::default()).await;
    let raw = server.raw().await;
    for (announced, body) in [("4", &b"hello"[..]), ("6", b"hello"), ("1", b"")] {
        let (mut send, mut recv) = raw.open_bi().await.unwrap();
        let mut stream = raw_head(Some(announced));
        if !body.is_empty() {
            stream.extend(frame(0, body));
        }
        send.write_all(&stream).await.unwrap();
        send.finish().unwrap();
        assert_eq!(reset_code(&mut recv).await, MESSAGE_ERROR, "{announced}");
    }
    // the last one was refused before the service saw it, its end having come with its head
    let seen = seen.lock().unwrap();
    assert!(seen.len() >= 2 && seen.iter().all(|result| *result == Err("length".to_owned())), "{seen:?}");
}

#[tokio::test]
async fn malformed_heads_reset_the_stream() {
    let (server, seen) = reading(QuicOptions::default()).await;
    let raw = server.raw().await;
    let field = |name: &[u8], value: &[u8]| {
        let mut block = raw_head(None)[3..].to_vec();
        if name.len() < 7 {
            block.push(0x20 | name.len() as u8);
        } else {
            block.extend_from_slice(&[0x27, name.len() as u8 - 7]);
        }
        block.extend_from_slice(name);
        block.push(value.len() as u8);
        block.extend_from_slice(value);
        frame(0x01, &block)
    };
    for head in [
        field(b"connection", b"close"),
        field(b"transfer-encoding", b"chunked"),
        field(b"te", b"gzip"),
        field(b"Upper", b"case"),
        field(b"x", b"line\nbreak"),
        raw_head(Some("1x")),
    ] {
        let (mut send, mut recv) = raw.open_bi().await.unwrap();
        send.write_all(&head).await.unwrap();
        send.finish().unwrap();
        assert_eq!(reset_code(&mut recv).await, MESSAGE_ERROR, "{head:02x?}");
    }
    assert!(seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn frames_out_of_order_close_the_connection() {
    let (server, _) = reading(QuicOptions::default()).await;
    let head = raw_head(None);
    let trailers = frame(1, b"\0\0\x52\x017");
    for stream in [
        frame(0, b"first"),
        [head.clone(), trailers.clone(), frame(0, b"late")].concat(),
        [head.clone(), trailers.clone(), trailers].concat(),
        [head.clone(), frame(0x04, b"")].concat(),
        vec![0x40, 0x41, 0x00],
    ] {
        let raw = server.raw().await;
        let (mut send, _recv) = raw.open_bi().await.unwrap();
        send.write_all(&stream).await.unwrap();
        send.finish().unwrap();
        assert_eq!(close_code(&raw).await, FRAME_UNEXPECTED, "{stream:02x?}");
    }
}

#[tokio::test]
async fn a_stream_that_ends_inside_a_frame_closes_the_connection() {
    let (server, seen) = reading(QuicOptions::default()).await;
    let head = raw_head(None);
    for stream in [
        head[..head.len() - 1].to_vec(),
        [head.clone(), vec![0x00]].concat(),
        [head.clone(), vec![0x00, 0x05]].concat(),
        [head.clone(), vec![0x00, 0x05, b'x']].concat(),
        [head.clone(), frame(0, b"x"), vec![0x01, 0x05, 0x00]].concat(),
    ] {
        let raw = server.raw().await;
        let (mut send, _recv) = raw.open_bi().await.unwrap();
        send.write_all(&stream).await.unwrap();
        send.finish().unwrap();
        assert_eq!(close_code(&raw).await, FRAME_ERROR, "{stream:02x?}");
    }
    // nobody was told that the body was complete
    assert!(seen.lock().unwrap().iter().all(Result::is_err));
}

#[tokio::test]
async fn a_head_that_does_not_come_is_not_waited_for() {
    let options = QuicOptions::default().with_header_timeout(Duration::from_millis(50));
    let (server, _) = reading(options).await;
    let raw = server.raw().await;
    let (mut send, mut recv) = raw.open_bi().await.unwrap();
    send.write_all(&raw_head(None)[..4]).await.unwrap();
    assert_eq!(reset_code(&mut recv).await, REQUEST_INCOMPLETE);
    assert_eq!(soon(send.stopped()).await.unwrap(), Some(VarInt::from_u32(REQUEST_INCOMPLETE as u32)));
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_given_up() {
    let options = QuicOptions::default().with_send_timeout(Duration::from_millis(50));
    let server = Server::start(
        options,
        service(|_| async { Response::new(ScriptBody::new().data(vec![0; 4 << 20])) }),
    )
    .await;
    let raw = server.raw().await;
    let (mut send, mut recv) = raw.open_bi().await.unwrap();
    send.write_all(&raw_head(None)).await.unwrap();
    send.finish().unwrap();
    // the client's window is 1.25 MB and it does not read
    assert_eq!(soon(recv.received_reset()).await.unwrap(), Some(VarInt::from_u32(EXCESSIVE_LOAD as u32)));
}

#[tokio::test]
async fn past_the_limit_connections_are_refused() {
    let limits = ConnLimits::new(1);
    let hello = service(|_| async { Response::new(ScriptBody::new().data("hello")) });
    let server = Server::start_with(QuicOptions::default(), hello, limits.clone(), common::GRACE).await;
    let first = server.connect().await;
    assert!(server.try_connect().await.is_err());
    assert_eq!((limits.open(), limits.stats().refused), (1, 1));
    assert!(soon(first.send(get("/"))).await.is_ok());
    first.close();
    until(|| limits.open() == 0).await;
    assert!(server.try_connect().await.is_ok());
}

/// By a completed handshake, or by a token before it.
#[tokio::test]
async fn a_client_has_its_share_once_its_address_is_proven() {
    for retry in [Retry::Never, Retry::Always] {
        let open = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (counted, asked) = (Arc::clone(&open), Arc::new(Mutex::new(Vec::new())));
        let seen = Arc::clone(&asked);
        struct Hold(Arc<std::sync::atomic::AtomicUsize>);
        impl Drop for Hold {
            fn drop(&mut self) {
                self.0.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            }
        }
        let limits = ConnLimits::with_admission(10, move |client| {
            seen.lock().unwrap().push(client);
            if counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst) >= 1 {
                counted.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                return None;
            }
            Some(Box::new(Hold(Arc::clone(&counted))))
        });
        let hello = service(|_| async { Response::new(ScriptBody::new().data("hello")) });
        let options = QuicOptions::default().with_retry(retry);
        let server = Server::start_with(options, hello, limits.clone(), common::GRACE).await;
        let first = server.connect().await;
        assert!(soon(first.send(get("/"))).await.is_ok());
        // refused by its token, or closed when its handshake is done
        if let Ok(second) = server.try_connect().await {
            assert!(soon(second.send(get("/"))).await.is_err(), "{retry:?}");
        }
        assert_eq!(limits.stats().refused, 1, "{retry:?}");
        assert_eq!(
            asked.lock().unwrap()[..],
            [std::net::IpAddr::from([127, 0, 0, 1]); 2],
            "each is asked for once"
        );
        first.close();
        until(|| open.load(std::sync::atomic::Ordering::SeqCst) == 0).await;
        let third = server.connect().await;
        assert!(soon(third.send(get("/"))).await.is_ok());
    }
}

#[tokio::test]
async fn retry_makes_a_client_prove_its_address() {
    for (retry, retried) in [(Retry::Always, 1), (Retry::UnderLoad, 0), (Retry::Never, 0)] {
        let hello = service(|_| async { Response::new(ScriptBody::new().data("hello")) });
        let server = Server::start(QuicOptions::default().with_retry(retry), hello).await;
        let connection = server.connect().await;
        assert!(soon(connection.send(get("/"))).await.is_ok());
        assert_eq!(server.limits.stats().retried, retried, "{retry:?}");
    }
}

/// A QUIC connection to which no HTTP/3 control stream can be opened.
async fn without_uni_streams(server: &Server) -> quinn::Connection {
    let mut tls = server.client_tls();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut transport = quinn::TransportConfig::default();
    transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    config.transport_config(Arc::new(transport));
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.connect_with(config, server.addr, "localhost").unwrap().await.unwrap()
}

#[tokio::test]
async fn a_handshake_that_stands_still_is_dropped() {
    let limits = ConnLimits::new(5);
    let hello = service(|_| async { Response::new(ScriptBody::new()) });
    let options = QuicOptions::default().with_handshake_timeout(Duration::from_millis(100));
    let server = Server::start_with(options, hello, limits.clone(), common::GRACE).await;
    let raw = without_uni_streams(&server).await;
    soon(raw.closed()).await;
    until(|| limits.open() == 0).await;
    assert_eq!((limits.stats().handshake_failures, limits.stats().accepted), (1, 0));
}

#[tokio::test]
async fn under_load_addresses_are_checked_and_past_it_refused() {
    let hello = service(|_| async { Response::new(ScriptBody::new()) });
    let server = Server::start(QuicOptions::default().with_max_incoming(2), hello).await;
    let _first = without_uni_streams(&server).await;
    assert_eq!(server.limits.stats().retried, 0);
    let _second = without_uni_streams(&server).await;
    assert_eq!(server.limits.stats().retried, 1);
    assert!(server.try_connect().await.is_err());
    assert_eq!((server.limits.stats().retried, server.limits.stats().refused), (2, 1));
}

#[tokio::test]
async fn a_client_that_only_opens_and_resets_is_closed() {
    let options = QuicOptions::default().with_max_cancelled(50);
    let server = Server::start(options, service(|_| std::future::pending())).await;
    // before the head, and after it
    for head in [&raw_head(None)[..3], &raw_head(None)] {
        let raw = server.raw().await;
        let opened = soon(async {
            let mut opened = 0;
            while let Ok((mut send, mut recv)) = raw.open_bi().await {
                if send.write_all(head).await.is_err() {
                    break;
                }
                opened += 1;
                // let the server see the stream before it is gone
                tokio::time::sleep(Duration::from_millis(1)).await;
                let _ = send.reset(VarInt::from_u32(0x10c));
                let _ = recv.stop(VarInt::from_u32(0x10c));
            }
            opened
        });
        let opened = opened.await;
        assert_eq!(close_code(&raw).await, EXCESSIVE_LOAD);
        assert!(opened > 50, "closed after {opened}");
    }
}

#[tokio::test]
async fn connection_ids_name_the_worker() {
    let (server, _) = reading(QuicOptions::default()).await;
    let relay = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut tls = server.client_tls();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let connect =
        portcullis_h3::client::Connection::connect(relay.local_addr().unwrap(), "localhost", Arc::new(tls));
    let spy = async {
        let (mut packet, mut client, mut ids) = ([0; 2048], None, Vec::new());
        loop {
            let (length, from) = relay.recv_from(&mut packet).await.unwrap();
            if from != server.addr {
                client = Some(from);
                relay.send_to(&packet[..length], server.addr).await.unwrap();
                continue;
            }
            relay.send_to(&packet[..length], client.unwrap()).await.unwrap();
            // RFC 8999 section 5.1: a long header names both ids in clear
            if packet[0] & 0x80 != 0 {
                let source = 6 + usize::from(packet[5]);
                let end = source + 1 + usize::from(packet[source]);
                ids.push(packet[source + 1..end].to_vec());
            } else {
                break ids;
            }
        }
    };
    let (ids, connected) =
        soon(async { tokio::join!(spy, tokio::time::timeout(Duration::from_secs(1), connect)) }).await;
    drop(connected);
    assert!(!ids.is_empty() && ids.iter().all(|id| id.len() == 8 && id[3] == 7), "{ids:02x?}");
}

#[tokio::test]
async fn endpoints_refuse_what_they_cannot_serve() {
    let ca = TestCa::new();
    let new = async |change: fn(&mut rustls::ServerConfig), options: QuicOptions| {
        let mut tls = common::server_tls(&ca);
        change(&mut tls);
        Endpoint::new(common::udp().await, Arc::new(tls), &options, WorkerId::new(0), ConnLimits::new(1))
    };
    let error =
        new(|tls| tls.alpn_protocols = vec![b"h2".to_vec()], QuicOptions::default()).await.unwrap_err();
    assert!(matches!(error, EndpointError::Alpn), "{error:?}");
    let error = new(|tls| tls.max_early_data_size = 1000, QuicOptions::default()).await.unwrap_err();
    assert!(matches!(error, EndpointError::EarlyData), "{error:?}");
    let error = new(|_| (), QuicOptions::default().with_max_uni_streams(1)).await.unwrap_err();
    assert!(matches!(error, EndpointError::Option { option: "max_uni_streams", .. }), "{error:?}");
    assert!(new(|_| (), QuicOptions::default()).await.is_ok());

    let leaf = ca.issue(&["localhost"]);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut old = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der()], leaf.key_der())
        .unwrap();
    old.alpn_protocols = vec![b"h3".to_vec()];
    let socket = common::udp().await;
    let error =
        Endpoint::new(socket, Arc::new(old), &QuicOptions::default(), WorkerId::new(0), ConnLimits::new(1));
    assert!(matches!(error.unwrap_err(), EndpointError::Tls(_)));
}
