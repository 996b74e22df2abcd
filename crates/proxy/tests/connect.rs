//! CONNECT over a real HTTP/1 driver: raw bytes from the client, hyper's server, the rules, a connector that a test holds.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use portcullis_conn::{ConnInfo, Transport};
use portcullis_proxy::{
    ConnectOptions, ConnectProxy, ConnectRules, ConnectTarget, Fault, Trust, Tunnels, UpstreamFault,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::{Notify, mpsc},
};
use tower::ServiceExt as _;

const ASK: &str = "CONNECT db.internal:5432 HTTP/1.1\r\nHost: db.internal:5432\r\n\r\n";

/// What the connector does when it is asked.
#[derive(Clone)]
enum Connector {
    /// Connects once it may.
    Wait(Arc<Notify>),
    Fail(UpstreamFault),
}

struct Edge {
    client: DuplexStream,
    /// The target's end of each connection that was made.
    targets: mpsc::UnboundedReceiver<(ConnectTarget, DuplexStream)>,
}

fn options(tunnels: &Tunnels) -> ConnectOptions {
    let rules: ConnectRules =
        ["db.internal:5432", "[2001:db8::/32]:443"].map(|rule| rule.parse().unwrap()).into_iter().collect();
    let clients = Trust::new(["192.0.2.0/24".parse().unwrap()]);
    ConnectOptions::new(tunnels.clone()).with_rules(rules.into()).with_clients(clients.into())
}

fn edge(options: ConnectOptions, connector: Connector, peer: &str) -> Edge {
    let (client, downstream) = duplex(64 * 1024);
    let (made, targets) = mpsc::unbounded_channel();
    let connect = tower::service_fn(move |target: ConnectTarget| {
        let (connector, made) = (connector.clone(), made.clone());
        async move {
            match connector {
                Connector::Wait(go) => go.notified().await,
                Connector::Fail(fault) => return Err(Fault::upstream(fault)),
            }
            let (near, far) = duplex(64 * 1024);
            made.send((target, far)).unwrap();
            Ok(near)
        }
    });
    let proxy = ConnectProxy::new(options, connect);
    // with none, nothing is known of the client
    let known = |peer| Arc::new(ConnInfo::new(Transport::Tcp, peer, "192.0.2.2:80".parse().unwrap()));
    let info = peer.parse().ok().map(known);
    let service = tower::service_fn(move |mut request: Request<Incoming>| {
        let (proxy, version) = (proxy.clone(), request.version());
        if let Some(info) = &info {
            request.extensions_mut().insert(Arc::clone(info));
        }
        async move {
            Ok::<_, Infallible>(match proxy.oneshot(request).await {
                Ok(response) => response.map(|()| Full::<Bytes>::default()),
                Err(fault) => fault.respond(version),
            })
        }
    });
    tokio::spawn(
        hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(downstream), TowerToHyperService::new(service))
            .with_upgrades(),
    );
    Edge { client, targets }
}

fn at_once() -> Connector {
    let go = Arc::new(Notify::new());
    go.notify_one();
    Connector::Wait(go)
}

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

/// The status of the one answer to this.
async fn status(options: ConnectOptions, connector: Connector, ask: &str) -> u16 {
    let mut edge = edge(options, connector, "192.0.2.1:1000");
    edge.client.write_all(ask.as_bytes()).await.unwrap();
    head(&mut edge.client).await[9..12].parse().unwrap()
}

#[tokio::test]
async fn rfc9110_9_3_6_bytes_pass_both_ways_and_each_end_by_itself() {
    let tunnels = Tunnels::new(1);
    let options = options(&tunnels);
    let bound = options.bound.clone();
    let mut edge = edge(options, at_once(), "192.0.2.1:1000");
    edge.client.write_all(ASK.as_bytes()).await.unwrap();
    let answered = head(&mut edge.client).await;
    assert!(answered.starts_with("http/1.1 200 "), "{answered}");
    for absent in ["content-length", "transfer-encoding", "connection"] {
        assert!(!answered.contains(absent), "{absent} in {answered}");
    }
    let (asked, mut far) = edge.targets.recv().await.unwrap();
    assert_eq!(asked.to_string(), "db.internal:5432");
    assert_eq!((tunnels.open(), bound.open()), (1, 1));
    edge.client.write_all(b"up").await.unwrap();
    assert_eq!(exactly(&mut far, 2).await, b"up");
    far.write_all(b"down").await.unwrap();
    assert_eq!(exactly(&mut edge.client, 4).await, b"down");
    // the client is done, the target still has something to say
    edge.client.shutdown().await.unwrap();
    assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0);
    far.write_all(b"bye").await.unwrap();
    drop(far);
    let mut rest = Vec::new();
    edge.client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"bye");
    assert_eq!(tunnels.drain(Duration::from_secs(3600)).await, 0);
    let totals = tunnels.totals();
    assert_eq!((totals.opened, totals.to_upstream, totals.to_downstream), (1, 2, 7));
    assert_eq!(bound.open(), 0);
}

/// Envoy CVE-2025-64763: nothing of the client before its connection stands, and nothing is lost.
#[tokio::test]
async fn early_bytes_wait_for_the_connection() {
    let go = Arc::new(Notify::new());
    let mut edge = edge(options(&Tunnels::new(1)), Connector::Wait(Arc::clone(&go)), "192.0.2.1:1000");
    edge.client.write_all(format!("{ASK}early").as_bytes()).await.unwrap();
    let answered = tokio::time::timeout(Duration::from_millis(50), edge.client.read_u8()).await;
    assert!(answered.is_err(), "{answered:?} before the connection stands");
    go.notify_one();
    let (_, mut far) = edge.targets.recv().await.unwrap();
    assert_eq!(exactly(&mut far, 5).await, b"early");
    assert!(head(&mut edge.client).await.starts_with("http/1.1 200 "));
}

#[tokio::test]
async fn what_is_refused_is_never_connected_to() {
    let host = "Host: db.internal:5432\r\n";
    for (ask, expected) in [
        (ASK.to_owned(), 200),
        (ASK.replace("HTTP/1.1", "HTTP/1.0"), 200),
        (ASK.replace("db.internal:5432", "DB.internal.:5432"), 200),
        (ASK.replace("db.internal:5432", "[2001:db8::7]:443"), 200),
        // RFC 9112 section 3.2.2: the target wins over Host
        (ASK.replace(host, "Host: db.internal\r\n"), 200),
        (ASK.replace("db.internal:5432", "db.internal:5433"), 403),
        (ASK.replace("db.internal:5432", "other.internal:5432"), 403),
        (ASK.replace("db.internal:5432", "127.0.0.1:5432"), 403),
        (ASK.replace("db.internal:5432", "db.internal"), 400),
        (ASK.replace("db.internal:5432", "127.1:5432"), 400),
        (ASK.replace("CONNECT ", "CONNECT http://"), 400),
        (ASK.replace("CONNECT ", "CONNECT u@"), 400),
        (ASK.replace("CONNECT db.internal:5432", "CONNECT /"), 400),
        (ASK.replace(host, ""), 400),
        (ASK.replace(host, &format!("{host}{host}")), 400),
        (ASK.replace(host, "Host: a b\r\n"), 400),
        (ASK.replace(host, &format!("{host}Content-Length: 0\r\n")), 400),
        (ASK.replace(host, &format!("{host}Content-Length: 1\r\n")), 400),
        (ASK.replace(host, &format!("{host}Transfer-Encoding: chunked\r\n")), 400),
        (ASK.replace(host, &format!("{host}Expect: a\r\n")), 417),
    ] {
        let mut edge = edge(options(&Tunnels::new(1)), at_once(), "192.0.2.1:1000");
        edge.client.write_all(ask.as_bytes()).await.unwrap();
        let answered = head(&mut edge.client).await;
        assert_eq!(answered[9..12].parse::<u16>().unwrap(), expected, "{ask}");
        let made = edge.targets.try_recv().is_ok();
        assert_eq!(made, expected == 200, "{ask}");
    }
}

#[tokio::test]
async fn who_may_is_told_by_the_connection_or_a_proxy_that_is_trusted() {
    let told = ASK.replace("\r\n\r\n", "\r\nX-Forwarded-For: 192.0.2.9\r\n\r\n");
    let trust = Arc::new(Trust::new(["198.51.100.1/32".parse().unwrap()]));
    for (peer, ask, expected) in [
        ("192.0.2.1:1000", ASK, "200"),
        ("203.0.113.1:1000", ASK, "403"),
        ("", ASK, "403"),
        ("203.0.113.1:1000", told.as_str(), "403"),
        ("198.51.100.1:1000", ASK, "403"),
        ("198.51.100.1:1000", told.as_str(), "200"),
    ] {
        let options = options(&Tunnels::new(1)).with_trust(Arc::clone(&trust));
        let mut edge = edge(options, at_once(), peer);
        edge.client.write_all(ask.as_bytes()).await.unwrap();
        assert_eq!(&head(&mut edge.client).await[9..12], expected, "{peer} {ask}");
    }
}

/// HTTP/3, and whatever else hands over no stream.
#[tokio::test]
async fn a_driver_that_can_not_is_501() {
    let connect = tower::service_fn(|_: ConnectTarget| async { Ok::<_, Fault>(duplex(1).0) });
    let proxy = ConnectProxy::new(options(&Tunnels::new(1)), connect);
    let request = Request::connect("db.internal:5432").header("host", "db.internal:5432").body(()).unwrap();
    assert_eq!(proxy.oneshot(request).await.unwrap_err().status(), 501);
}

#[tokio::test]
async fn what_keeps_a_connection_from_standing_is_told() {
    for (fault, expected) in
        [(UpstreamFault::ConnectFailed, 502), (UpstreamFault::Dns, 502), (UpstreamFault::ConnectTimeout, 504)]
    {
        let tunnels = Tunnels::new(1);
        let options = options(&tunnels);
        let bound = options.bound.clone();
        assert_eq!(status(options, Connector::Fail(fault), ASK).await, expected, "{fault:?}");
        assert_eq!((tunnels.open(), bound.open()), (0, 0));
    }
}

#[tokio::test]
async fn past_either_bound_it_is_503() {
    for (all, own, expected) in [(1, 1, 200), (0, 1, 503), (1, 0, 503)] {
        let options = options(&Tunnels::new(all)).with_bound(Tunnels::new(own));
        assert_eq!(status(options, at_once(), ASK).await, expected, "{all} {own}");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_attempt() {
    let tunnels = Tunnels::new(1);
    let mut edge = edge(options(&tunnels), Connector::Wait(Arc::new(Notify::new())), "192.0.2.1:1000");
    edge.client.write_all(ASK.as_bytes()).await.unwrap();
    while tunnels.open() == 0 {
        tokio::task::yield_now().await;
    }
    drop(edge.client);
    tokio::time::timeout(Duration::from_secs(5), async {
        while tunnels.open() != 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}
