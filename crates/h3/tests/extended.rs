//! Beyond request and response: interim responses, tunnels, priorities, and what clients say on their control streams.

#![allow(clippy::unwrap_used, clippy::large_futures, reason = "a test may panic")]

mod common;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use common::{CONTROL, GRACE, Server, frame, get, raw_head, request, service, soon, until};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use portcullis_conn::ConnectProtocol;
use portcullis_h3::{
    ConnLimits, InterimError, InterimSender, OnTunnel, QuicOptions, RecvBody, client::OnInterim,
};
use portcullis_testkit::body::ScriptBody;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Interims = Arc<Mutex<Vec<(StatusCode, HeaderMap)>>>;

fn on_interim() -> (OnInterim, Interims) {
    let seen: Interims = Arc::default();
    let told = seen.clone();
    let on = OnInterim::new(move |status, headers: &HeaderMap| {
        told.lock().unwrap().push((status, headers.clone()));
    });
    (on, seen)
}

#[tokio::test]
async fn early_hints_come_before_the_response() {
    let (go, gate) = tokio::sync::watch::channel(false);
    let server = Server::start(
        QuicOptions::default(),
        service(move |request: Request<RecvBody>| {
            let mut gate = gate.clone();
            async move {
                let interim = request.extensions().get::<InterimSender>().unwrap().clone();
                let mut hints = HeaderMap::new();
                hints.insert("link", "</a.css>; rel=preload".parse().unwrap());
                interim.send(StatusCode::EARLY_HINTS, hints).unwrap();
                assert_eq!(interim.send(StatusCode::OK, HeaderMap::new()), Err(InterimError::Status));
                assert_eq!(
                    interim.send(StatusCode::SWITCHING_PROTOCOLS, HeaderMap::new()),
                    Err(InterimError::Status)
                );
                gate.wait_for(|open| *open).await.unwrap();
                interim.send(StatusCode::PROCESSING, HeaderMap::new()).unwrap();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    assert_eq!(
                        interim.send(StatusCode::PROCESSING, HeaderMap::new()),
                        Err(InterimError::Late)
                    );
                });
                Response::new(ScriptBody::new().data("done"))
            }
        }),
    )
    .await;
    let connection = server.connect().await;
    let (on, seen) = on_interim();
    let mut ask = get("/");
    ask.extensions_mut().insert(on);
    let answer =
        tokio::spawn(async move { connection.send(ask).await.unwrap().collect().await.unwrap().to_bytes() });
    // it is here although the response is not
    until(|| seen.lock().unwrap().len() == 1).await;
    assert!(!answer.is_finished());
    go.send(true).unwrap();
    assert_eq!(soon(answer).await.unwrap(), "done");
    let seen = seen.lock().unwrap();
    assert_eq!(
        (seen[0].0, &seen[0].1["link"]),
        (StatusCode::EARLY_HINTS, &"</a.css>; rel=preload".parse().unwrap())
    );
    assert_eq!((seen.len(), seen[1].0), (2, StatusCode::PROCESSING));
}

#[tokio::test]
async fn who_expects_a_100_gets_it_when_the_body_is_asked_for() {
    let server = Server::start(
        QuicOptions::default(),
        service(|request: Request<RecvBody>| async move {
            if request.uri().path() == "/refused" {
                return Response::builder().status(417).body(ScriptBody::new()).unwrap();
            }
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Response::new(ScriptBody::new().data(body))
        }),
    )
    .await;
    let connection = server.connect().await;
    for (path, status, interims) in [("/", 200, vec![StatusCode::CONTINUE]), ("/refused", 417, vec![])] {
        let (on, seen) = on_interim();
        let mut ask = request("POST", path, Full::new(Bytes::from_static(b"payload")));
        ask.headers_mut().insert("expect", "100-continue".parse().unwrap());
        ask.extensions_mut().insert(on);
        let answer = soon(connection.send(ask)).await.unwrap();
        assert_eq!(answer.status(), status);
        let seen: Vec<_> = seen.lock().unwrap().iter().map(|(status, _)| *status).collect();
        assert_eq!(seen, interims, "{path}");
    }
}

fn offering() -> QuicOptions {
    QuicOptions::default().with_extended_connect(true)
}

/// Answers CONNECT with an echo, or with the status that the path says.
async fn echoing(mut request: Request<RecvBody>) -> Response<ScriptBody> {
    if request.uri().path().len() > 1 {
        let status: u16 = request.uri().path()[1..].parse().unwrap();
        return Response::builder().status(status).body(ScriptBody::new().data("no tunnel")).unwrap();
    }
    let protocol = request.extensions().get::<ConnectProtocol>().map(|p| p.as_str().to_owned());
    let tunnel = request.extensions_mut().remove::<OnTunnel>().unwrap();
    tokio::spawn(async move {
        let Ok(mut tunnel) = tunnel.wait().await else { return };
        let mut buffer = [0; 10_000];
        loop {
            match tunnel.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(n) if buffer[..n].starts_with(b"break") => return,
                Ok(n) => tunnel.write_all(&buffer[..n]).await.unwrap(),
            }
        }
        tunnel.write_all(b" bye").await.unwrap();
        tunnel.shutdown().await.unwrap();
    });
    Response::builder().header("x-protocol", protocol.unwrap_or_default()).body(ScriptBody::new()).unwrap()
}

fn ask(path: &str, protocol: Option<&str>) -> Request<()> {
    match protocol {
        Some(protocol) => {
            let mut ask = request("CONNECT", path, ());
            ask.extensions_mut().insert(ConnectProtocol::new(protocol));
            ask
        }
        None => Request::connect("localhost:443").body(()).unwrap(),
    }
}

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways_and_each_end_by_itself() {
    let server = Server::start(offering(), service(echoing)).await;
    let connection = server.connect().await;
    for protocol in [Some("websocket"), None] {
        let (response, tunnel) = soon(connection.open_tunnel(ask("/", protocol))).await.unwrap();
        assert_eq!(response.headers()["x-protocol"], protocol.unwrap_or_default());
        assert!(!response.headers().contains_key("content-length"));
        let mut tunnel = tunnel.unwrap();
        let mut buffer = [0; 5];
        tunnel.write_all(b"hello").await.unwrap();
        soon(tunnel.read_exact(&mut buffer)).await.unwrap();
        assert_eq!(&buffer, b"hello");
        // more than any window holds
        let (mut reader, mut writer) = tokio::io::split(tunnel);
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
        let writing = tokio::spawn({
            let sent = sent.clone();
            async move {
                writer.write_all(&sent).await.unwrap();
                writer.shutdown().await.unwrap();
                writer
            }
        });
        let mut got = Vec::new();
        soon(reader.read_to_end(&mut got)).await.unwrap();
        writing.await.unwrap();
        assert!(got == [&sent[..], b" bye"].concat(), "{protocol:?}: {} bytes came back", got.len());
    }
}

#[tokio::test]
async fn a_tunnel_that_breaks_is_reset_and_not_ended() {
    let server = Server::start(offering(), service(echoing)).await;
    let connection = server.connect().await;
    for (protocol, code) in [(Some("websocket"), "0x10c"), (None, "0x10f")] {
        let (_, tunnel) = soon(connection.open_tunnel(ask("/", protocol))).await.unwrap();
        let mut tunnel = tunnel.unwrap();
        tunnel.write_all(b"break").await.unwrap();
        let error = soon(tunnel.read(&mut [0; 10])).await.unwrap_err();
        assert!(error.to_string().contains(code), "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_is_no_success_has_a_body() {
    let server = Server::start(offering(), service(echoing)).await;
    let connection = server.connect().await;
    // without the tunnel taken, a 200 is an answer like any other
    for status in [200, 403, 501] {
        let (response, tunnel) =
            soon(connection.open_tunnel(ask(&format!("/{status}"), Some("websocket")))).await.unwrap();
        assert_eq!((response.status().as_u16(), tunnel.is_some()), (status, status == 200));
        if let Some(mut tunnel) = tunnel {
            let mut text = String::new();
            soon(tunnel.read_to_string(&mut text)).await.unwrap();
            assert_eq!(text, "no tunnel");
        } else {
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "no tunnel");
        }
    }
}

#[tokio::test]
async fn an_open_tunnel_is_waited_for_in_a_drain_and_cut_at_its_end() {
    let limits = ConnLimits::new(10);
    let grace = Duration::from_millis(800);
    let mut server = Server::start_with(offering(), service(echoing), limits, grace).await;
    let connection = server.connect().await;
    let (_, tunnel) = soon(connection.open_tunnel(ask("/", Some("websocket")))).await.unwrap();
    let mut tunnel = tunnel.unwrap();
    let begun = std::time::Instant::now();
    let mut done = std::pin::pin!(server.stop());
    let mut buffer = [0; 2];
    for _ in 0..3 {
        tokio::select! {
            _ = &mut done => panic!("the drain ended with a tunnel open"),
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        tunnel.write_all(b"ab").await.unwrap();
        soon(tunnel.read_exact(&mut buffer)).await.unwrap();
    }
    soon(done).await.unwrap();
    assert!(begun.elapsed() >= grace && begun.elapsed() < GRACE);
    soon(tunnel.read(&mut buffer)).await.unwrap_err();
}

#[tokio::test]
async fn the_end_of_a_tunnel_arrives_in_a_drain() {
    let tail = |mut request: Request<RecvBody>| async move {
        let tunnel = request.extensions_mut().remove::<OnTunnel>().unwrap();
        tokio::spawn(async move {
            let mut tunnel = tunnel.wait().await.unwrap();
            tunnel.read_exact(&mut [0; 2]).await.unwrap();
            tunnel.write_all(&[7; 600_000]).await.unwrap();
            tunnel.shutdown().await.unwrap();
        });
        Response::new(ScriptBody::new())
    };
    let mut server = Server::start(offering(), service(tail)).await;
    let connection = server.connect().await;
    let (_, tunnel) = soon(connection.open_tunnel(ask("/", Some("websocket")))).await.unwrap();
    let mut tunnel = tunnel.unwrap();
    let mut done = std::pin::pin!(server.stop());
    // past the last GOAWAY
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut done).await.is_err());
    tunnel.write_all(b"go").await.unwrap();
    let mut got = Vec::new();
    soon(tunnel.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got.len(), 600_000);
    soon(done).await.unwrap();
}

#[tokio::test]
async fn without_the_offer_an_extended_connect_is_malformed() {
    let server = Server::start(QuicOptions::default(), service(echoing)).await;
    let connection = server.connect().await;
    let refused = soon(connection.open_tunnel(ask("/", Some("websocket")))).await.unwrap_err();
    assert!(refused.to_string().contains("0x10e"), "{refused}");
}

/// The code with which the server closes the connection.
async fn close_code(connection: &quinn::Connection) -> u64 {
    match soon(connection.closed()).await {
        quinn::ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
        other => panic!("not closed: {other:?}"),
    }
}

#[tokio::test]
async fn what_breaks_the_connection_has_its_code() {
    let server =
        Server::start(QuicOptions::default(), service(|_| async { Response::new(ScriptBody::new()) })).await;
    let goaway = |id: u8| vec![0x07, 1, id];
    for (streams, code) in [
        // RFC 9114: settings first, and once; no second control stream; none of them ends
        (vec![vec![0x00, 0x07, 1, 0]], 0x10a),
        (vec![[CONTROL, &[0x04, 0]].concat()], 0x105),
        (vec![CONTROL.to_vec(), CONTROL.to_vec()], 0x103),
        (vec![vec![0x02], vec![0x02]], 0x103),
        (vec![vec![0x01]], 0x103),
        (vec![[CONTROL, &[0x00, 0]].concat()], 0x105),
        (vec![[CONTROL, &goaway(0)[..], &goaway(4)[..]].concat()], 0x108),
        (vec![vec![0x00, 0x04, 2, 0x02, 0x01]], 0x109),
        (vec![vec![0x00, 0x04, 1, 0x06]], 0x106),
        // RFC 9204
        (vec![vec![0x02, 0x3f, 0x80, 0x01]], 0x201),
        (vec![vec![0x03, 0x84]], 0x202),
    ] {
        let raw = server.raw().await;
        let mut open = Vec::new();
        for stream in &streams {
            let mut send = raw.open_uni().await.unwrap();
            send.write_all(stream).await.unwrap();
            open.push(send);
        }
        assert_eq!(close_code(&raw).await, code, "{streams:02x?}");
    }
    // a critical stream that ends
    let raw = server.raw().await;
    let mut control = raw.open_uni().await.unwrap();
    control.write_all(CONTROL).await.unwrap();
    control.finish().unwrap();
    assert_eq!(close_code(&raw).await, 0x104);
    // a reference to the dynamic table, in a head and in trailers
    for section in [frame(1, b"\0\0\x80"), [raw_head(None), frame(1, b"\x02\0\x80")].concat()] {
        let raw = server.raw().await;
        let (mut send, _recv) = raw.open_bi().await.unwrap();
        send.write_all(&section).await.unwrap();
        if section.len() > 10 {
            // trailers are read with the body, which this service drops
            continue;
        }
        assert_eq!(close_code(&raw).await, 0x200);
    }
}

#[tokio::test]
async fn unknown_streams_and_frames_are_passed_over() {
    let server =
        Server::start(QuicOptions::default(), service(|_| async { Response::new(ScriptBody::new()) })).await;
    let raw = server.raw().await;
    let mut control = raw.open_uni().await.unwrap();
    control.write_all(&[CONTROL, &[0x21, 3, 1, 2, 3, 0x0d, 1, 5]].concat()).await.unwrap();
    let mut unknown = raw.open_uni().await.unwrap();
    unknown.write_all(&[0x21, 1, 2, 3]).await.unwrap();
    let stopped = soon(unknown.stopped()).await.unwrap();
    assert_eq!(stopped.map(quinn::VarInt::into_inner), Some(0x103));
    let (mut send, mut recv) = raw.open_bi().await.unwrap();
    send.write_all(&[frame(0x21, &[0; 40]), raw_head(None)].concat()).await.unwrap();
    send.finish().unwrap();
    assert_eq!(soon(recv.read_to_end(4096)).await.unwrap()[0], 0x01);
    assert!(raw.close_reason().is_none());
}

/// Long answers, all begun before any is read.
async fn answers_in_order(signals: [&'static str; 3], update: Option<(u64, &'static str)>) -> Vec<usize> {
    let options = QuicOptions::default().with_send_window(64 * 1024);
    let (go, gate) = tokio::sync::watch::channel(false);
    let served = tower::service_fn(move |_: Request<RecvBody>| {
        let mut gate = gate.clone();
        async move {
            gate.wait_for(|open| *open).await.unwrap();
            Ok::<_, Infallible>(Response::new(ScriptBody::new().data(vec![7; 1 << 20])))
        }
    });
    let server = Server::start(options, served).await;
    let raw = server.raw().await;
    let mut control = raw.open_uni().await.unwrap();
    control.write_all(CONTROL).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for (place, signal) in signals.into_iter().enumerate() {
        let (mut send, mut recv) = raw.open_bi().await.unwrap();
        let mut section = raw_head(None)[3..].to_vec();
        // a literal name and value
        section.extend_from_slice(&[0x27, 1]);
        section.extend_from_slice(b"priority");
        section.push(signal.len() as u8);
        section.extend_from_slice(signal.as_bytes());
        send.write_all(&frame(1, &section)).await.unwrap();
        send.finish().unwrap();
        let order = order.clone();
        tasks.push(tokio::spawn(async move {
            recv.read_to_end(2 << 20).await.unwrap();
            order.lock().unwrap().push(place);
        }));
    }
    if let Some((id, value)) = update {
        let mut payload = vec![id as u8];
        payload.extend_from_slice(value.as_bytes());
        let mut bytes = vec![0x80, 0x0f, 0x07, 0x00, payload.len() as u8];
        bytes.extend_from_slice(&payload);
        control.write_all(&bytes).await.unwrap();
    }
    until(|| server.limits.stats().requests == 3).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    go.send(true).unwrap();
    for task in tasks {
        soon(task).await.unwrap();
    }
    let order = order.lock().unwrap();
    order.clone()
}

#[tokio::test]
async fn responses_come_by_urgency() {
    assert_eq!(answers_in_order(["u=5", "u=0", "u=3"], None).await, [1, 2, 0]);
    // of one urgency in the order of the requests
    assert_eq!(answers_in_order(["u=3", "", "u=3"], None).await, [0, 1, 2]);
    // a frame overrides the field
    assert_eq!(answers_in_order(["u=5", "u=4", "u=3"], Some((0, "u=1"))).await, [0, 2, 1]);
}
