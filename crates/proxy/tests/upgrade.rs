//! Upgrades over a real HTTP/1 driver: raw bytes from the client, hyper's server, the proxy, hyper's client, a raw upstream.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{convert::Infallible, error::Error as _, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use portcullis_proxy::{
    Fault, ProxyOptions, RelayOptions, ReverseProxy, Tunnels, UpgradeProtocols, UpstreamFault, UpstreamTunnel,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::Mutex,
};
use tower::ServiceExt as _;

/// The client's end of a connection to an edge, and the upstream's end of the one connection behind it.
struct Edge {
    client: DuplexStream,
    upstream: DuplexStream,
    faults: Arc<std::sync::Mutex<Vec<Fault>>>,
}

/// Sends one request over one connection and passes a 101's stream on.
async fn send(io: DuplexStream, request: Request<Incoming>) -> Result<Response<Incoming>, Fault> {
    let failed = |error: hyper::Error| Fault::upstream(UpstreamFault::Closed).with_source(error);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(failed)?;
    tokio::spawn(connection.with_upgrades());
    let mut response = sender.send_request(request).await.map_err(failed)?;
    if response.status() == 101 {
        let upgraded = hyper::upgrade::on(&mut response).await.map_err(failed)?;
        response.extensions_mut().insert(UpstreamTunnel::new(TokioIo::new(upgraded)));
    }
    Ok(response)
}

fn edge(options: ProxyOptions) -> Edge {
    let (client, downstream) = duplex(64 * 1024);
    let (near, upstream) = duplex(64 * 1024);
    let near = Arc::new(Mutex::new(Some(near)));
    let faults = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sender = tower::service_fn(move |request: Request<Incoming>| {
        let near = near.clone();
        async move { send(near.lock().await.take().expect("one request"), request).await }
    });
    let proxy = ReverseProxy::new(options, sender);
    let service = tower::service_fn({
        let faults = faults.clone();
        move |request: Request<Incoming>| {
            let (proxy, faults, version) = (proxy.clone(), faults.clone(), request.version());
            async move {
                Ok::<_, Infallible>(match proxy.oneshot(request).await {
                    Ok(response) => response.map(Either::Left),
                    Err(fault) => {
                        let response: Response<Full<Bytes>> = fault.respond(version);
                        faults.lock().unwrap().push(fault);
                        response.map(Either::Right)
                    }
                })
            }
        }
    });
    tokio::spawn(
        hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(downstream), TowerToHyperService::new(service))
            .with_upgrades(),
    );
    Edge { client, upstream, faults }
}

/// Reads a head, to the empty line and no further.
async fn head(io: &mut DuplexStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.expect("a head"));
    }
    String::from_utf8(head).unwrap().to_ascii_lowercase()
}

async fn exactly(io: &mut DuplexStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    io.read_exact(&mut bytes).await.unwrap();
    bytes
}

const ASK: &[u8] = b"GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: keep-alive, X-Hop\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nX-Hop: 1\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const AGREE: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade, X-Inner\r\nUpgrade: WebSocket\r\n\
    X-Inner: 1\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[tokio::test]
async fn a_websocket_is_relayed_and_counted() {
    let tunnels = Tunnels::new(1);
    let mut edge = edge(ProxyOptions::new(tunnels.clone()));
    edge.client.write_all(ASK).await.unwrap();
    let asked = head(&mut edge.upstream).await;
    assert!(asked.starts_with("get /chat http/1.1\r\n"), "{asked}");
    assert!(asked.contains("connection: upgrade\r\n") && asked.contains("upgrade: websocket\r\n"), "{asked}");
    assert!(asked.contains("sec-websocket-key: ") && !asked.contains("x-hop"), "{asked}");
    // the upstream's first bytes come in one piece with its 101
    edge.upstream.write_all(&[AGREE, b"hello"].concat()).await.unwrap();
    let agreed = head(&mut edge.client).await;
    assert!(agreed.starts_with("http/1.1 101 "), "{agreed}");
    assert!(
        agreed.contains("connection: upgrade\r\n") && agreed.contains("upgrade: websocket\r\n"),
        "{agreed}"
    );
    assert!(agreed.contains("sec-websocket-accept: "), "{agreed}");
    // Caddy CVE-2026-55458: a 101 has fields of its hop as well
    assert!(!agreed.contains("x-inner"), "{agreed}");
    assert!(!agreed.contains("content-length") && !agreed.contains("transfer-encoding"), "{agreed}");
    assert_eq!(exactly(&mut edge.client, 5).await, b"hello");
    for message in [&b"\x00\xff binary"[..], &[7; 100_000]] {
        let Edge { client, upstream, .. } = &mut edge;
        let (sent, got) = tokio::join!(client.write_all(message), exactly(upstream, message.len()));
        sent.unwrap();
        assert!(got == message);
        let (sent, got) = tokio::join!(upstream.write_all(message), exactly(client, message.len()));
        sent.unwrap();
        assert!(got == message);
    }
    assert_eq!(tunnels.open(), 1);
    assert!(tunnels.try_open().is_none());
    // half-close: the client is done, the upstream still has something to say
    edge.client.shutdown().await.unwrap();
    assert_eq!(edge.upstream.read(&mut [0; 1]).await.unwrap(), 0);
    edge.upstream.write_all(b"bye").await.unwrap();
    drop(edge.upstream);
    let mut rest = Vec::new();
    edge.client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"bye");
    // resolves by itself: the grace is not needed
    assert_eq!(tunnels.drain(Duration::from_secs(3600)).await, 0);
    assert_eq!(tunnels.totals().opened, 1);
    assert_eq!(tunnels.totals().to_downstream, 5 + 9 + 100_000 + 3);
}

#[tokio::test]
async fn cve_2026_2833_early_bytes_wait_for_the_101() {
    let mut edge = edge(ProxyOptions::default());
    edge.client.write_all(&[ASK, b"early"].concat()).await.unwrap();
    head(&mut edge.upstream).await;
    // nothing but the head may have arrived: what is there is what a read gives at once
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let early = tokio::time::timeout(Duration::ZERO, edge.upstream.read_u8()).await;
    assert!(early.is_err(), "{early:?} before the 101");
    edge.upstream.write_all(AGREE).await.unwrap();
    assert_eq!(exactly(&mut edge.upstream, 5).await, b"early");
}

#[tokio::test]
async fn a_refused_upgrade_is_no_tunnel() {
    // Envoy CVE-2024-23326: a 200 is an answer, and what follows from the client is a request
    let tunnels = Tunnels::new(1);
    let mut edge = edge(ProxyOptions::new(tunnels.clone()));
    let smuggled = b"GET /second HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\nHost: a\r\n\r\n";
    edge.client.write_all(&[ASK, &smuggled[..]].concat()).await.unwrap();
    head(&mut edge.upstream).await;
    edge.upstream
        .write_all(
            b"HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nno",
        )
        .await
        .unwrap();
    let answer = head(&mut edge.client).await;
    assert!(answer.starts_with("http/1.1 200 "), "{answer}");
    assert!(!answer.contains("upgrade"), "{answer}");
    assert_eq!(exactly(&mut edge.client, 2).await, b"no");
    // the second request was read as one, and refused by the rules
    let second = head(&mut edge.client).await;
    assert!(second.starts_with("http/1.1 400 "), "{second}");
    assert!(second.contains("connection: close\r\n"), "{second}");
    assert_eq!(tunnels.open(), 0);
    assert_eq!(tunnels.totals().opened, 0);
}

async fn bad_switch(ask: &[u8], agree: &[u8]) -> (String, String) {
    let tunnels = Tunnels::new(1);
    let mut edge = edge(ProxyOptions::new(tunnels.clone()));
    edge.client.write_all(ask).await.unwrap();
    head(&mut edge.upstream).await;
    edge.upstream.write_all(agree).await.unwrap();
    let answer = head(&mut edge.client).await;
    assert_eq!(tunnels.open(), 0);
    let cause = edge.faults.lock().unwrap().pop().and_then(|fault| Some(fault.source()?.to_string()));
    (answer, cause.unwrap_or_default())
}

#[tokio::test]
async fn a_101_to_another_protocol_is_502() {
    for agree in [
        "HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        "HTTP/1.1 101 x\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: websocket, h2c\r\n\r\n",
    ] {
        let (answer, cause) = bad_switch(ASK, agree.as_bytes()).await;
        assert!(answer.starts_with("http/1.1 502 "), "{answer}");
        assert_eq!(cause, "a 101 to another protocol than was asked for");
    }
}

#[tokio::test]
async fn a_101_that_nobody_asked_for_is_502() {
    for ask in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        // asked for, and not forwarded: not allowed, not a GET, with a body
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\nx",
    ] {
        let (answer, _) = bad_switch(ask.as_bytes(), AGREE).await;
        assert!(answer.starts_with("http/1.1 502 "), "{ask}: {answer}");
    }
}

#[tokio::test]
async fn past_the_bound_an_upgrade_is_503_and_a_plain_request_is_not() {
    let mut full = edge(ProxyOptions::new(Tunnels::new(0)));
    full.client.write_all(ASK).await.unwrap();
    let answer = head(&mut full.client).await;
    assert!(answer.starts_with("http/1.1 503 "), "{answer}");
    let mut plain = edge(ProxyOptions::new(Tunnels::new(0)));
    plain.client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    head(&mut plain.upstream).await;
    plain.upstream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    assert!(head(&mut plain.client).await.starts_with("http/1.1 204 "));
}

#[tokio::test]
async fn another_protocol_by_allow_list() {
    let upgrades = UpgradeProtocols::none().allow("tcp-over-http").unwrap();
    let mut edge = edge(ProxyOptions::default().with_upgrades(upgrades));
    let ask = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: TCP-over-HTTP\r\n\r\n";
    edge.client.write_all(ask).await.unwrap();
    assert!(head(&mut edge.upstream).await.contains("upgrade: tcp-over-http\r\n"));
    edge.upstream
        .write_all(b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: tcp-over-http\r\n\r\n1")
        .await
        .unwrap();
    assert!(head(&mut edge.client).await.starts_with("http/1.1 101 "));
    assert_eq!(exactly(&mut edge.client, 1).await, b"1");
}

async fn open_tunnel(options: ProxyOptions) -> Edge {
    let mut edge = edge(options);
    edge.client.write_all(ASK).await.unwrap();
    head(&mut edge.upstream).await;
    edge.upstream.write_all(&[AGREE, b"!"].concat()).await.unwrap();
    head(&mut edge.client).await;
    exactly(&mut edge.client, 1).await;
    edge
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_what_does_not_end_by_itself() {
    let tunnels = Tunnels::new(2);
    let mut stays = open_tunnel(ProxyOptions::new(tunnels.clone())).await;
    let goes = open_tunnel(ProxyOptions::new(tunnels.clone())).await;
    assert_eq!(tunnels.open(), 2);
    drop((goes.client, goes.upstream));
    assert_eq!(tunnels.drain(Duration::from_secs(10)).await, 1);
    assert_eq!(tunnels.open(), 0);
    assert_eq!(stays.client.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(stays.upstream.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_tunnel_is_closed() {
    let relay = RelayOptions::default().with_idle_timeout(Duration::from_secs(5));
    let tunnels = Tunnels::new(1);
    let mut edge = open_tunnel(ProxyOptions::new(tunnels.clone()).with_relay(relay)).await;
    let started = tokio::time::Instant::now();
    assert_eq!(edge.client.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(started.elapsed().as_secs(), 5);
}

#[tokio::test]
async fn a_client_that_goes_away_before_the_101_gives_its_place_back() {
    let tunnels = Tunnels::new(1);
    let mut edge = edge(ProxyOptions::new(tunnels.clone()));
    edge.client.write_all(ASK).await.unwrap();
    head(&mut edge.upstream).await;
    assert_eq!(tunnels.open(), 1);
    drop(edge.client);
    assert_eq!(tunnels.drain(Duration::from_secs(3600)).await, 0);
}
