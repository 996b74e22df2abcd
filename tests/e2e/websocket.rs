//! WebSockets through the edge, with HTTP/1.1 and HTTP/2 on either side.

pub(crate) mod peers;

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Method, Request, StatusCode};
use portcullis_testkit::origin::{Answer, RawOrigin};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::{
    Message,
    handshake::derive_accept_key,
    protocol::{
        CloseFrame,
        frame::{
            Frame,
            coding::{CloseCode, Data, OpCode},
        },
    },
};

use self::peers::{Echo, H2Io, Http, LARGE, Socket, ask_three, connect_three, connect_two, open};
use crate::{
    config::plain,
    support::{SOON, edge::Edge, raw, run, within},
};

async fn next(socket: &mut Socket) -> Message {
    within(Duration::from_secs(20), "a message", socket.next()).await.unwrap().unwrap()
}

async fn all_kinds(downstream: Http, upstream: Http) {
    let origin = Echo::start(upstream).await;
    let edge = Edge::run(&origin.config(downstream, upstream)).await;
    let (mut socket, _two) = open(downstream, &edge).await;
    for message in [
        Message::text("hello"),
        Message::text(""),
        Message::binary(vec![0, 255, 13, 10]),
        Message::text("ä".repeat(40_000)),
    ] {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(next(&mut socket).await, message);
    }
    // in three frames, a ping between them
    let frame = |bytes: &'static [u8], code, last| {
        Message::Frame(Frame::message(Bytes::from_static(bytes), OpCode::Data(code), last))
    };
    socket.send(frame(b"one ", Data::Text, false)).await.unwrap();
    socket.send(frame(b"two ", Data::Continue, false)).await.unwrap();
    socket.send(Message::Ping(Bytes::from_static(b"there?"))).await.unwrap();
    socket.send(frame(b"three", Data::Continue, true)).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::Pong(Bytes::from_static(b"there?")));
    assert_eq!(next(&mut socket).await, Message::text("one two three"));
    // more than every buffer on the way
    let mut bytes = vec![0; LARGE];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::try_from(at * 31 % 251).unwrap();
    }
    let bytes = Bytes::from(bytes);
    socket.send(Message::Binary(bytes.clone())).await.unwrap();
    let back = next(&mut socket).await;
    assert!(back == Message::Binary(bytes), "16 MiB came back changed");
    let close = CloseFrame { code: CloseCode::Library(4321), reason: "enough".into() };
    socket.close(Some(close.clone())).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::Close(Some(close)));
    let end = within(SOON, "the end", socket.next()).await;
    assert!(matches!(end, None | Some(Err(_))), "{end:?}");
    // it was the origin that closed first: this end is open until here
    drop(socket);
    let closed = edge.stderr.find("tunnel closed").await;
    assert!(closed.contains("websocket") && closed.contains("to_upstream=168"), "{closed}");
}

#[test]
fn one_to_one_all_that_a_websocket_can_do() {
    run(all_kinds(Http::One, Http::One));
}

#[test]
fn rfc8441_two_to_one_all_that_a_websocket_can_do() {
    run(all_kinds(Http::Two, Http::One));
}

#[test]
fn rfc8441_one_to_two_all_that_a_websocket_can_do() {
    run(all_kinds(Http::One, Http::Two));
}

#[test]
fn rfc8441_two_to_two_all_that_a_websocket_can_do() {
    run(all_kinds(Http::Two, Http::Two));
}

#[test]
fn rfc9220_three_to_one_all_that_a_websocket_can_do() {
    run(all_kinds(Http::Three, Http::One));
}

#[test]
fn rfc9220_three_to_two_all_that_a_websocket_can_do() {
    run(all_kinds(Http::Three, Http::Two));
}

#[test]
fn what_is_not_offered_over_http3_is_refused() {
    run(async {
        let origin = Echo::start(Http::One).await;
        let config = origin.config(Http::Three, Http::One);
        let edge = Edge::run(&config).await;
        let three = connect_three(edge.https()).await;
        // RFC 9220 section 3
        let (response, tunnel) = three.open_tunnel(ask_three("connect-udp", "/chat")).await.unwrap();
        assert_eq!((response.status().as_u16(), tunnel.is_none()), (501, true));
        // where no upgrade is allowed nothing is offered, and what was not offered is malformed
        let edge = Edge::run(&format!("[upgrades]\nprotocols = []\n{config}")).await;
        let three = connect_three(edge.https()).await;
        let refused = three.open_tunnel(ask_three("websocket", "/chat")).await.unwrap_err();
        assert!(refused.to_string().contains("0x10e"), "{refused}");
    });
}

#[test]
fn a_tunnel_over_http3_outlives_the_begin_of_a_drain() {
    run(async {
        let origin = Echo::start(Http::One).await;
        let mut edge =
            Edge::run(&format!("drain_timeout = \"3s\"\n{}", origin.config(Http::Three, Http::One))).await;
        let (mut socket, _below) = open(Http::Three, &edge).await;
        edge.terminate();
        for word in ["one", "two", "three"] {
            tokio::time::sleep(Duration::from_millis(200)).await;
            socket.send(Message::text(word)).await.unwrap();
            assert_eq!(next(&mut socket).await, Message::text(word));
        }
        socket.close(None).await.unwrap();
        while let Some(Ok(_)) = within(SOON, "the end", socket.next()).await {}
        drop(socket);
        assert!(edge.ended(Duration::from_secs(10)).await.0.success());
    });
}

/// The bytes of a head are the origin's to read, whatever it answers.
async fn answers(answer: impl Fn(&str) -> String + Clone + Send + Sync + 'static) -> RawOrigin {
    RawOrigin::with(move |mut conn| {
        let answer = answer.clone();
        async move {
            let mut buffer = Vec::new();
            let Ok(request) = conn.read_request(&mut buffer).await else { return };
            let text = format!("{request:?}");
            let _ = conn.write_all(answer(&text).as_bytes()).await;
            let mut rest = Vec::new();
            let _ = conn.read_to_end(&mut rest).await;
            let _ = conn.write_all(format!("{} more", rest.len()).as_bytes()).await;
        }
    })
    .await
}

const SWITCH: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade, x-hop\r\nX-Hop: 1\r\nUpgrade: websocket\r\n";

/// What an extended CONNECT is answered, by what the origin answers to the upgrade.
#[test]
fn only_a_right_101_is_a_tunnel_over_http2() {
    run(async {
        let wrong = derive_accept_key(b"dGhlIHNhbXBsZSBub25jZQ==");
        for (answer, expected) in [
            // Envoy CVE-2024-23326: to a CONNECT a 200 would be a tunnel
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno".to_owned(), 502),
            ("HTTP/1.1 204 No Content\r\n\r\n".to_owned(), 502),
            (
                "HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n"
                    .to_owned(),
                502,
            ),
            ("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno".to_owned(), 403),
            ("HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n".to_owned(), 302),
            (format!("{SWITCH}\r\n"), 502),
            (format!("{SWITCH}Sec-WebSocket-Accept: {wrong}\r\n\r\n"), 502),
            (format!("{}Sec-WebSocket-Accept: {wrong}\r\n\r\n", SWITCH.replace("websocket", "h2c")), 502),
        ] {
            let origin = RawOrigin::script(vec![Answer::raw(answer.clone())]).await;
            let edge = Edge::run(&plain(origin.addr())).await;
            let two = connect_two(edge.http()).await;
            let (response, _send) = two.ask(Some("websocket"), "http://a.test/chat").await;
            assert_eq!(response.status(), expected, "{answer}");
            let sent = origin.received_text().to_ascii_lowercase();
            assert!(sent.starts_with("get /chat http/1.1\r\n"), "{sent}");
            for field in [
                "connection: upgrade\r\n",
                "upgrade: websocket\r\n",
                "sec-websocket-key: ",
                "host: a.test\r\n",
            ] {
                assert_eq!(sent.matches(&format!("\r\n{field}")).count(), 1, "{field:?} in {sent}");
            }
        }
    });
}

#[test]
fn what_is_not_offered_over_http2_is_refused() {
    run(async {
        let origin = Echo::start(Http::One).await;
        let answer = "[[route]]\npath = \"/own\"\nrespond = \"hello\"\n";
        let edge = Edge::run(&format!("{answer}{}", plain(origin.addr))).await;
        let two = connect_two(edge.http()).await;
        for (protocol, uri, expected) in [
            (Some("connect-udp"), "http://a.test/chat", 501),
            (Some("h2c"), "http://a.test/chat", 501),
            // a route that answers by itself knows of no tunnel
            (Some("websocket"), "http://a.test/own", 501),
            (Some("websocket"), "http://a.test/a/../b", 400),
            (None, "a.test:443", 501),
        ] {
            let (response, _send) = two.ask(protocol, uri).await;
            assert_eq!(response.status(), expected, "{protocol:?} {uri}");
        }
        let (response, _send) = two.ask(Some("websocket"), "http://a.test/chat").await;
        assert_eq!(response.status(), 200, "the connection is as good as before");
        let off = Edge::run(&format!("[upgrades]\nhttp2 = false\n{}", plain(origin.addr))).await;
        let two = connect_two(off.http()).await;
        assert!(!two.sender.is_extended_connect_protocol_enabled());
        let connect = raw::send(edge.http(), "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n").await;
        assert_eq!(connect.statuses(), [501], "{connect:?}");
    });
}

#[test]
fn a_wrong_accept_is_a_502_over_http1_too() {
    run(async {
        let accept = derive_accept_key(b"AQIDBAUGBwgJCgsMDQ4PEA==");
        let ask = "GET /chat HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==\r\n\r\n";
        let field = format!("Sec-WebSocket-Accept: {accept}\r\n");
        for (fields, expected) in [
            (field.clone(), 101),
            (String::new(), 502),
            (field.to_ascii_lowercase(), 502),
            (format!("{field}{field}"), 502),
        ] {
            let origin = answers(move |_| format!("{SWITCH}{fields}\r\n")).await;
            let edge = Edge::run(&plain(origin.addr())).await;
            let answered = raw::send(edge.http(), ask).await;
            assert_eq!(answered.statuses(), [expected], "{answered:?}");
        }
    });
}

/// What comes behind the request waits for the 101, and each end of an HTTP/2 tunnel closes by itself.
#[test]
fn early_bytes_and_half_closes_over_http2() {
    run(async {
        let origin = RawOrigin::with(|mut conn| async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(conn.read_u8().await.unwrap());
            }
            let early = tokio::time::timeout(Duration::from_millis(200), conn.read_u8()).await;
            assert!(early.is_err(), "the origin got a byte before it agreed");
            let head = String::from_utf8(head).unwrap();
            let key =
                head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap_or_else(|| {
                    head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).expect("a key")
                });
            let accept = derive_accept_key(key.trim().as_bytes());
            conn.write_all(format!("{SWITCH}Sec-WebSocket-Accept: {accept}\r\n\r\nfirst ").as_bytes())
                .await
                .unwrap();
            let mut rest = Vec::new();
            conn.read_to_end(&mut rest).await.unwrap();
            conn.write_all(format!("and last after {}", String::from_utf8(rest).unwrap()).as_bytes())
                .await
                .unwrap();
        })
        .await;
        let edge = Edge::run(&plain(origin.addr())).await;
        let two = connect_two(edge.http()).await;
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri("http://a.test/chat")
            .extension(h2::ext::Protocol::from_static("websocket"))
            .body(())
            .unwrap();
        let (response, mut send) =
            two.sender.clone().ready().await.unwrap().send_request(request, false).unwrap();
        send.send_data(Bytes::from_static(b"early"), true).unwrap();
        let response = within(SOON, "an answer", response).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let mut io = H2Io::new(send, response.into_body());
        let mut all = String::new();
        within(SOON, "the rest", io.read_to_string(&mut all)).await.unwrap();
        assert_eq!(all, "first and last after early");
    });
}

/// A tunnel is work: its connection is not idle, and a drain lets it come to its end.
#[test]
fn a_tunnel_over_http2_outlives_idle_times_and_the_begin_of_a_drain() {
    run(async {
        let origin = Echo::start(Http::One).await;
        let config = origin
            .config(Http::Two, Http::One)
            .replace("[[route]]", "[listener.http]\nidle_timeout = \"1s\"\n[[route]]");
        let mut edge = Edge::run(&format!("drain_timeout = \"8s\"\n{config}")).await;
        let (mut socket, _two) = open(Http::Two, &edge).await;
        let mut echoes = async |text: &'static str| {
            socket.send(Message::text(text)).await.unwrap();
            assert_eq!(next(&mut socket).await, Message::text(text));
        };
        echoes("before").await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        echoes("after the idle time").await;
        edge.terminate();
        edge.stderr.find("draining").await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        echoes("during the drain").await;
        let (status, took) = edge.ended(Duration::from_secs(8)).await;
        assert!(status.success() && took > Duration::from_secs(2), "{status} after {took:?}");
        let end = within(SOON, "the end", socket.next()).await;
        assert!(matches!(end, None | Some(Err(_))), "{end:?}");
        let closed = edge.stderr.find("tunnel closed").await;
        // by its own deadline or with its connection, at the same moment
        assert!(closed.contains("\"aborted\"") || closed.contains("\"failed\""), "{closed}");
    });
}

#[test]
fn an_idle_tunnel_is_closed_and_counted() {
    run(async {
        let origin = Echo::start(Http::One).await;
        let text = format!(
            "[admin]\naddress = \"127.0.0.1:0\"\n[upgrades]\nidle_timeout = \"1s\"\n{}",
            origin.config(Http::One, Http::One)
        );
        let edge = Edge::run(&text).await;
        for http in [Http::One, Http::Two] {
            let (mut socket, _two) = open(http, &edge).await;
            socket.send(Message::text("x")).await.unwrap();
            assert_eq!(next(&mut socket).await, Message::text("x"));
            let end = within(SOON, "the end", socket.next()).await;
            assert!(matches!(end, None | Some(Err(_))), "{end:?}");
        }
        let closed = edge.stderr.find("tunnel closed").await;
        assert!(closed.contains("idle") && closed.contains("to_upstream=7"), "{closed}");
        let metrics = async {
            loop {
                let told =
                    raw::send(edge.admin(), "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                        .await;
                if told.text.contains("portcullis_tunnel_life_seconds_count 2") {
                    return told.text;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let metrics = within(SOON, "two lives", metrics).await;
        for line in [
            "portcullis_tunnels_open 0",
            "portcullis_tunnels_opened_total 2",
            "portcullis_tunnel_bytes_total{to=\"upstream\"} 14",
            "portcullis_tunnel_bytes_total{to=\"downstream\"} 6",
            "portcullis_tunnel_life_seconds_bucket{le=\"10.0\"} 2",
        ] {
            assert!(metrics.contains(line), "{line} in {metrics}");
        }
    });
}

/// 200 here; `PORTCULLIS_TUNNELS` names another number.
#[test]
fn idle_tunnels_are_small() {
    let count: u64 = std::env::var("PORTCULLIS_TUNNELS").ok().map_or(200, |count| count.parse().unwrap());
    run(async move {
        let origin = Echo::start(Http::One).await;
        let text = format!(
            "[limits]\nmax_tunnels = 5_000\nmax_connections = 2_000\n{}",
            origin.config(Http::One, Http::One)
        );
        let edge = Edge::run(&text).await;
        let mut sockets = Vec::new();
        let mut before = 0;
        // the first ones are those that fill what is made once
        for at in 0..count + 20 {
            if at == 20 {
                before = edge.resident_memory();
            }
            let (mut socket, _) = open(Http::One, &edge).await;
            socket.send(Message::text("x")).await.unwrap();
            assert_eq!(next(&mut socket).await, Message::text("x"));
            sockets.push(socket);
        }
        let each = edge.resident_memory().saturating_sub(before) * 1024 / count;
        eprintln!("{count} idle tunnels: {each} bytes each");
        assert!(each < 64 << 10, "{each} bytes for an idle tunnel");
        for socket in &mut sockets {
            socket.send(Message::text("y")).await.unwrap();
            assert_eq!(next(socket).await, Message::text("y"));
        }
    });
}
