//! What SIGTERM does.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http::{Method, Response};
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::watch, task::JoinSet};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

use crate::{
    config::secure,
    support::{
        SOON,
        client::{Client, Protocol, empty, full},
        edge::Edge,
        origin::Origin,
        run, tls, within,
    },
};

/// Holds `/held` until the gate opens, echoes on `/ws`, and answers everything else at once.
async fn gated() -> (Origin, watch::Sender<bool>) {
    let (gate, opened) = watch::channel(false);
    let origin = Origin::start(move |mut request| {
        let mut opened = opened.clone();
        async move {
            let mut response = Response::new(empty());
            if let Some(key) = request.headers().get("sec-websocket-key") {
                let accept = derive_accept_key(key.as_bytes());
                let upgrade = hyper::upgrade::on(&mut request);
                tokio::spawn(async move {
                    let io = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
                    let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
                    while let Some(Ok(message)) = socket.next().await {
                        if message.is_text() && socket.send(message).await.is_err() {
                            return;
                        }
                    }
                });
                *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
                let headers = response.headers_mut();
                headers.insert("connection", "upgrade".parse().unwrap());
                headers.insert("upgrade", "websocket".parse().unwrap());
                headers.insert("sec-websocket-accept", accept.parse().unwrap());
                return response;
            }
            if request.uri().path() == "/held" {
                opened.wait_for(|open| *open).await.unwrap();
            }
            *response.body_mut() = full("done");
            response
        }
    })
    .await;
    (origin, gate)
}

type WebSocket = WebSocketStream<tokio_rustls::client::TlsStream<TcpStream>>;

async fn websocket(edge: &Edge) -> WebSocket {
    let io = tls::connect(edge.https(), "localhost", &["http/1.1"]).await;
    tokio_tungstenite::client_async("wss://localhost/ws", io).await.unwrap().0
}

async fn echo(socket: &mut WebSocket, text: &'static str) {
    socket.send(Message::text(text)).await.unwrap();
    let back = within(SOON, "the echo", socket.next()).await;
    assert_eq!(back.unwrap().unwrap(), Message::text(text));
}

/// Asks for `/held` this many times at once, over connections of every protocol.
async fn hold(edge: &Edge, origin: &Origin, count: usize) -> JoinSet<(Protocol, Result<String, String>)> {
    let mut held = JoinSet::new();
    for at in 0..count {
        let protocol = Protocol::ALL[at % 3];
        let mut client = Client::connect(protocol, edge.https(), "localhost").await;
        held.spawn(async move {
            let request = client.request(Method::GET, "/held").body(empty()).unwrap();
            let reply = client.try_fetch(request).await;
            (
                protocol,
                reply
                    .map(|reply| format!("{} {}", reply.status.as_u16(), reply.body))
                    .map_err(|e| format!("{e:?}")),
            )
        });
    }
    origin.wait_for_requests(count).await;
    held
}

/// Waits until nothing can be connected to any more.
async fn refuses(edge: &Edge) {
    edge.stderr.find("draining").await;
    let refused = async {
        while TcpStream::connect(edge.https()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(SOON, "a new connection is refused", refused).await;
    let quic = Client::try_connect(Protocol::H3, edge.https(), "localhost", tls::config(None, &["h3"]));
    match tokio::time::timeout(Duration::from_secs(1), quic).await {
        // closed or unanswered: either is a refusal
        Ok(Err(_)) | Err(_) => {}
        Ok(Ok(mut client)) => {
            let request = client.request(Method::GET, "/").body(empty()).unwrap();
            assert!(
                client.try_fetch(request).await.is_err(),
                "a new HTTP/3 connection is served during the drain"
            );
        }
    }
}

#[test]
fn a_hundred_requests_are_answered_and_a_websocket_goes_on() {
    run(async {
        let (origin, gate) = gated().await;
        let mut edge = Edge::run(&format!("drain_timeout = \"4s\"\n{}", secure(origin.addr()))).await;
        let mut held = hold(&edge, &origin, 100).await;
        let mut socket = websocket(&edge).await;
        echo(&mut socket, "before").await;

        edge.terminate();
        refuses(&edge).await;
        echo(&mut socket, "during").await;
        gate.send(true).unwrap();
        while let Some(answer) = held.join_next().await {
            let (protocol, answer) = answer.unwrap();
            assert_eq!(answer.as_deref(), Ok("200 done"), "{protocol:?}");
        }
        // the requests are over, and the tunnel has the rest of the time
        echo(&mut socket, "after").await;
        let (status, took) = edge.ended(Duration::from_secs(6)).await;
        assert!(status.success(), "{status}");
        assert!(took > Duration::from_secs(1), "the tunnel kept its time, and not only {took:?}");
        let end = within(SOON, "the end of the tunnel", socket.next()).await;
        assert!(!matches!(end, Some(Ok(Message::Text(_)))), "{end:?}");
    });
}

#[test]
fn a_websocket_that_closes_ends_the_drain() {
    run(async {
        let (origin, _gate) = gated().await;
        let mut edge = Edge::run(&format!("drain_timeout = \"30s\"\n{}", secure(origin.addr()))).await;
        let mut socket = websocket(&edge).await;
        echo(&mut socket, "hello").await;
        edge.terminate();
        refuses(&edge).await;
        echo(&mut socket, "still").await;
        socket.close(None).await.unwrap();
        while let Some(Ok(_)) = within(SOON, "the closing handshake", socket.next()).await {}
        drop(socket);
        let (status, _) = edge.ended(Duration::from_secs(2)).await;
        assert!(status.success(), "{status}");
    });
}

#[test]
fn what_is_not_done_by_the_deadline_is_cut() {
    run(async {
        let (origin, _gate) = gated().await;
        let mut edge = Edge::run(&format!("drain_timeout = \"1s\"\n{}", secure(origin.addr()))).await;
        let mut held = hold(&edge, &origin, 3).await;
        edge.terminate();
        let (status, took) = edge.ended(Duration::from_secs(3)).await;
        assert!(status.success(), "{status}");
        assert!(took > Duration::from_millis(800), "{took:?}");
        while let Some(answer) = held.join_next().await {
            let (protocol, answer) = answer.unwrap();
            assert!(answer.is_err(), "{protocol:?} {answer:?}");
        }
    });
}

#[test]
fn with_nothing_open_the_end_is_at_once() {
    run(async {
        let (origin, _gate) = gated().await;
        for workers in ["per-core", "work-stealing"] {
            let mut edge = Edge::run(&format!("workers = \"{workers}\"\n{}", secure(origin.addr()))).await;
            edge.terminate();
            let (status, _) = edge.ended(Duration::from_secs(1)).await;
            assert!(status.success(), "{workers}: {status}");
        }
    });
}

const LONG: &str = "drain_timeout = \"20s\"\n[admin]\naddress = \"127.0.0.1:0\"\n";

#[test]
fn idle_connections_do_not_hold_it() {
    run(async {
        let (origin, _gate) = gated().await;
        let mut edge = Edge::run(&format!("{LONG}{}", secure(origin.addr()))).await;
        let mut idle = vec![Client::plain(edge.admin(), "localhost").await];
        for protocol in Protocol::ALL {
            for _ in 0..2 {
                idle.push(Client::connect(protocol, edge.https(), "localhost").await);
            }
        }
        for client in &mut idle {
            client.get("/").await;
        }
        edge.terminate();
        let (status, _) = edge.ended(Duration::from_secs(1)).await;
        assert!(status.success(), "{status}");
        drop(idle);
    });
}

/// Connections on which no request has begun: nothing is lost with them.
#[test]
fn silent_connections_do_not_hold_it() {
    run(async {
        let (origin, _gate) = gated().await;
        let mut held = Vec::new();
        for what in ["admin", "http/1.1", "h2", "nothing", "a part of a ClientHello"] {
            let mut edge = Edge::run(&format!("{LONG}{}", secure(origin.addr()))).await;
            let (mut plain, mut shaken) = (None, None);
            match what {
                "admin" => plain = Some(TcpStream::connect(edge.admin()).await.unwrap()),
                "http/1.1" | "h2" => shaken = Some(tls::connect(edge.https(), "localhost", &[what]).await),
                _ => {
                    let mut stream = TcpStream::connect(edge.https()).await.unwrap();
                    if what != "nothing" {
                        stream.write_all(b"\x16\x03\x01\x02").await.unwrap();
                    }
                    plain = Some(stream);
                }
            }
            // what came before this one is in the hands of its task by now
            Client::connect(Protocol::H1, edge.https(), "localhost").await.get("/").await;
            edge.terminate();
            if tokio::time::timeout(Duration::from_secs(1), edge.ended(SOON)).await.is_err() {
                held.push(what);
            }
            drop((plain, shaken));
        }
        assert!(held.is_empty(), "the drain is held by {held:?}");
    });
}

#[test]
fn interrupt_is_the_same_and_twice_is_at_once() {
    run(async {
        let (origin, _gate) = gated().await;
        let mut edge = Edge::run(&format!("drain_timeout = \"30s\"\n{}", secure(origin.addr()))).await;
        let held = hold(&edge, &origin, 1).await;
        edge.signal("INT");
        refuses(&edge).await;
        edge.signal("INT");
        let (status, _) = edge.ended(Duration::from_secs(1)).await;
        assert_eq!(status.code(), Some(1));
        drop(held);
    });
}

#[test]
fn health_says_so() {
    run(async {
        let (origin, gate) = gated().await;
        let mut edge = Edge::run(&secure(origin.addr())).await;
        // a stream of this connection keeps it open while another asks
        let mut client = Client::connect(Protocol::H2, edge.https(), "localhost").await;
        let held = client.request(Method::GET, "/held").body(empty()).unwrap();
        let health = client.request(Method::GET, "/health").body(empty()).unwrap();
        assert_eq!(client.get("/health").await.status, 200);
        let asked =
            tokio::spawn(async move { (client.fetch(held).await.status, client.try_fetch(health).await) });
        origin.wait_for_requests(1).await;
        edge.terminate();
        refuses(&edge).await;
        gate.send(true).unwrap();
        let (status, health) = asked.await.unwrap();
        assert_eq!(status, 200);
        // RFC 9113 section 6.8: after the GOAWAY no new stream is taken up; one that came before it says 503
        assert!(health.is_err() || health.is_ok_and(|reply| reply.status == 503));
        let (status, _) = edge.ended(Duration::from_secs(2)).await;
        assert!(status.success(), "{status}");
    });
}

/// Whoever balances in front sees it before anything is refused.
#[test]
fn the_delay_before_a_drain() {
    run(async {
        let (origin, _gate) = gated().await;
        let config = format!("drain_delay = \"1s\"\ndrain_timeout = \"20s\"\n{}", secure(origin.addr()));
        let mut edge = Edge::run(&config).await;
        edge.terminate();
        edge.stderr.find("shutting down").await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            assert_eq!(client.get("/health").await.status, 503, "{protocol:?}");
            assert_eq!(client.get("/").await.status, 200, "{protocol:?}");
        }
        let (status, _) = edge.ended(Duration::from_secs(2)).await;
        assert!(status.success(), "{status}");
    });
}
