//! What QUIC does below HTTP/3: packets, streams, addresses, tokens, and what of it changes while an endpoint serves.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use common::{GRACE, Server, get, server_tls, service, soon, udp, until};
use http::Response;
use http_body_util::BodyExt;
use portcullis_h3::{
    ConnLimits, Endpoint, EndpointError, EndpointHandle, QuicKeys, QuicOptions, Retry, TraceWriter, Traces,
    WorkerId, client::Connection,
};
use portcullis_testkit::{body::ScriptBody, certs::TestCa};
use quinn::{ConnectionError, VarInt};
use tokio::net::UdpSocket;

const BODY: usize = 600_000;

fn large() -> common::Service {
    service(async |_| Response::new(ScriptBody::new().data(vec![7; BODY])))
}

fn quic_client(ca: &TestCa) -> quinn::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    quinn::ClientConfig::new(Arc::new(crypto))
}

async fn connect(config: &quinn::ClientConfig, addr: SocketAddr) -> quinn::Connection {
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    soon(endpoint.connect_with(config.clone(), addr, "localhost").unwrap()).await.unwrap()
}

/// The largest packet that a server sends in a long answer.
async fn largest_packet(options: QuicOptions) -> usize {
    let server = Server::start(options, large()).await;
    let relay = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = relay.local_addr().unwrap();
    let relaying = async {
        let (mut packet, mut client, mut largest) = (vec![0; 65_535], None, 0);
        let quiet = Duration::from_millis(500);
        while let Ok(got) = tokio::time::timeout(quiet, relay.recv_from(&mut packet)).await {
            let (length, from) = got.unwrap();
            if from == server.addr {
                largest = largest.max(length);
                relay.send_to(&packet[..length], client.unwrap()).await.unwrap();
            } else {
                client = Some(from);
                relay.send_to(&packet[..length], server.addr).await.unwrap();
            }
        }
        largest
    };
    let asking = Box::pin(async {
        let client = Connection::connect(to, "localhost", Arc::new(server.client_tls())).await.unwrap();
        let answer = client.send(get("/")).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), BODY);
    });
    soon(Box::pin(async { tokio::join!(relaying, asking) })).await.0
}

#[tokio::test]
async fn packets_grow_to_what_the_path_carries() {
    let options = QuicOptions::default;
    assert_eq!(largest_packet(options()).await, 1452);
    assert_eq!(largest_packet(options().with_max_udp_payload(4000)).await, 1472, "what the client takes");
    assert_eq!(largest_packet(options().with_mtu_discovery(false)).await, 1200);
    let fixed = options().with_mtu_discovery(false).with_min_mtu(1300).with_initial_mtu(1400);
    assert_eq!(largest_packet(fixed).await, 1400);
}

#[tokio::test]
async fn packets_one_by_one_are_as_good() {
    let server = Server::start(QuicOptions::default().with_segmentation_offload(false), large()).await;
    let client = server.connect().await;
    let answer = client.send(get("/")).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), BODY);
}

/// RFC 9000 section 13.4: on the way to the client, in the field of the IP header that routers mark.
#[tokio::test]
async fn packets_say_that_they_understand_congestion_marks() {
    use quinn::udp::{EcnCodepoint, RecvMeta, UdpSockRef, UdpSocketState};

    let server = Server::start(QuicOptions::default(), large()).await;
    let relay = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let state = UdpSocketState::new(UdpSockRef::from(&relay)).unwrap();
    let tls = Arc::new(server.client_tls());
    let connecting = Connection::connect(relay.local_addr().unwrap(), "localhost", tls);
    let spying = async {
        let (mut packet, mut meta) = ([0; 2048], [RecvMeta::default()]);
        loop {
            relay.readable().await.unwrap();
            let got = relay.try_io(tokio::io::Interest::READABLE, || {
                state.recv((&relay).into(), &mut [std::io::IoSliceMut::new(&mut packet)], &mut meta)
            });
            match got {
                Ok(_) if meta[0].addr == server.addr => break meta[0].ecn,
                Ok(_) => drop(relay.send_to(&packet[..meta[0].len], server.addr).await.unwrap()),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
    };
    let ecn = tokio::select! {
        ecn = spying => ecn,
        connected = connecting => panic!("no packet came: {connected:?}"),
        () = tokio::time::sleep(Duration::from_secs(20)) => panic!("no packet came"),
    };
    assert_eq!(ecn, Some(EcnCodepoint::Ect0));
}

#[tokio::test]
async fn one_stream_too_many_waits() {
    let options = QuicOptions::default().with_max_bidi_streams(2).with_max_uni_streams(4);
    let server = Server::start(options, large()).await;
    let quinn = server.raw().await;
    let brief = Duration::from_millis(200);
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(soon(quinn.open_bi()).await.unwrap());
    }
    assert!(tokio::time::timeout(brief, quinn.open_bi()).await.is_err(), "a third");
    // one that is over makes room
    let (mut send, recv) = open.pop().unwrap();
    send.reset(VarInt::from_u32(0x10c)).unwrap();
    drop(recv);
    open.push(soon(quinn.open_bi()).await.unwrap());
    // a stream without a type is held open
    let mut uni = Vec::new();
    for _ in 0..4 {
        uni.push(soon(quinn.open_uni()).await.unwrap());
    }
    assert!(tokio::time::timeout(brief, quinn.open_uni()).await.is_err(), "a fifth");
}

#[tokio::test]
async fn pings_keep_a_silent_connection() {
    let options = QuicOptions::default().with_max_idle_timeout(Duration::from_secs(1));
    let kept = options.clone().with_keep_alive(Some(Duration::from_millis(200)));
    let (lost, kept) = (Server::start(options, large()).await, Server::start(kept, large()).await);
    let (silent, pinged) = (lost.raw().await, kept.raw().await);
    assert_eq!(soon(silent.closed()).await, ConnectionError::TimedOut);
    // whose clock began no later
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(pinged.close_reason().is_none());
    assert!(pinged.stats().frame_rx.ping > 1, "{:?}", pinged.stats().frame_rx);
}

/// An endpoint that answers nobody's requests.
async fn endpoint(ca: &TestCa, options: &QuicOptions, limits: &ConnLimits) -> (SocketAddr, EndpointHandle) {
    let tls = Arc::new(server_tls(ca));
    let endpoint = Endpoint::new(udp().await, tls, options, WorkerId::new(7), limits.clone()).unwrap();
    let found = (endpoint.local_addr().unwrap(), endpoint.handle());
    tokio::spawn(endpoint.serve(large(), std::future::pending(), GRACE));
    found
}

const KEY: &str = "1111111111111111111111111111111111111111111111111111111111111111";

#[tokio::test]
async fn a_token_of_one_instance_is_good_at_another() {
    let ca = TestCa::new();
    let keys = || QuicKeys::from_text(KEY).unwrap();
    let proof = QuicOptions::default().with_retry(Retry::Always);
    for (options, retried) in [
        (proof.clone().with_keys(Some(keys())), 0),
        (proof.clone(), 1),
        (proof.clone().with_keys(Some(keys())).with_token_lifetime(Duration::ZERO), 1),
    ] {
        let [one, two] = [ConnLimits::new(10), ConnLimits::new(10)];
        let (first, _) = endpoint(&ca, &QuicOptions::default().with_keys(Some(keys())), &one).await;
        let (second, _) = endpoint(&ca, &options, &two).await;
        // it keeps tokens by the server's name
        let config = quic_client(&ca);
        let connection = connect(&config, first).await;
        soon(async {
            while connection.stats().frame_rx.new_token == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        connect(&config, second).await;
        assert_eq!(two.stats().retried, retried, "{options:?}");
    }
}

/// What takes a client's packets to one instance and then to another.
struct Relay {
    addr: SocketAddr,
    inside: Arc<UdpSocket>,
    client: Arc<std::sync::Mutex<Option<SocketAddr>>>,
    to: Arc<std::sync::Mutex<(SocketAddr, Arc<UdpSocket>)>>,
}

impl Relay {
    async fn to(first: SocketAddr) -> Self {
        let inside = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let addr = inside.local_addr().unwrap();
        let client = Arc::new(std::sync::Mutex::new(None));
        let outside = Self::port(&inside, &client).await;
        let to = Arc::new(std::sync::Mutex::new((first, outside)));
        let relay = Self { addr, inside: inside.clone(), client: client.clone(), to: to.clone() };
        tokio::spawn(async move {
            let mut packet = [0; 2048];
            while let Ok((length, from)) = inside.recv_from(&mut packet).await {
                *client.lock().unwrap() = Some(from);
                let (server, outside) = to.lock().unwrap().clone();
                let _ = outside.send_to(&packet[..length], server).await;
            }
        });
        relay
    }

    /// The client has another address from now on.
    async fn rebind(&self) {
        let outside = Self::port(&self.inside, &self.client).await;
        self.to.lock().unwrap().1 = outside;
    }

    async fn port(
        inside: &Arc<UdpSocket>,
        client: &Arc<std::sync::Mutex<Option<SocketAddr>>>,
    ) -> Arc<UdpSocket> {
        let outside = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let (from, inside, client) = (outside.clone(), inside.clone(), client.clone());
        tokio::spawn(async move {
            let mut packet = [0; 2048];
            while let Ok((length, _)) = from.recv_from(&mut packet).await {
                let to = *client.lock().unwrap();
                if let Some(to) = to {
                    let _ = inside.send_to(&packet[..length], to).await;
                }
            }
        });
        outside
    }
}

#[tokio::test]
async fn an_instance_ends_the_connections_of_one_that_is_gone() {
    let ca = TestCa::new();
    let options = QuicOptions::default().with_keys(Some(QuicKeys::from_text(KEY).unwrap()));
    let limits = ConnLimits::new(10);
    let (first, _) = endpoint(&ca, &options, &limits).await;
    let (second, _) =
        endpoint(&ca, &options.with_keys(Some(QuicKeys::from_text(KEY).unwrap())), &limits).await;
    let relay = Relay::to(first).await;
    let client = connect(&quic_client(&ca), relay.addr).await;
    relay.to.lock().unwrap().0 = second;
    let mut stream = client.open_uni().await.unwrap();
    let error = soon(async {
        // the first packet alone may be too short for an answer (RFC 9000 section 10.3)
        loop {
            let _ = stream.write_all(&[0x21; 200]).await;
            if let Ok(error) = tokio::time::timeout(Duration::from_millis(50), client.closed()).await {
                break error;
            }
        }
    })
    .await;
    assert_eq!(error, ConnectionError::Reset);
}

#[tokio::test]
async fn options_change_for_new_connections_and_open_ones() {
    let ca = TestCa::new();
    let limits = ConnLimits::new(10);
    let options = QuicOptions::default().with_max_bidi_streams(1);
    let (addr, handle) = endpoint(&ca, &options, &limits).await;
    let before = connect(&quic_client(&ca), addr).await;
    until(|| limits.stats().accepted == 1).await;
    let _one = soon(before.open_bi()).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(200), before.open_bi()).await.is_err());
    let wrong = options.clone().with_max_uni_streams(0);
    assert!(matches!(
        handle.set_options(&wrong),
        Err(EndpointError::Option { option: "max_uni_streams", .. })
    ));
    assert_eq!(*handle.options().unwrap(), options);

    // the QUIC stack's defaults must not come back with it: they allow 100 of each
    let more = options.with_max_bidi_streams(3).with_max_uni_streams(5);
    assert!(handle.set_options(&more).unwrap());
    let after = connect(&quic_client(&ca), addr).await;
    for (connection, room) in [(&before, 2), (&after, 3)] {
        let mut open = Vec::new();
        for _ in 0..room {
            open.push(soon(connection.open_bi()).await.unwrap());
        }
        assert!(tokio::time::timeout(Duration::from_millis(200), connection.open_bi()).await.is_err());
    }
    let mut uni = Vec::new();
    for _ in 0..5 {
        uni.push(soon(after.open_uni()).await.unwrap());
    }
    assert!(tokio::time::timeout(Duration::from_millis(200), after.open_uni()).await.is_err());
}

#[tokio::test]
async fn a_handle_does_not_keep_an_endpoint() {
    let tls = Arc::new(server_tls(&TestCa::new()));
    let options = QuicOptions::default();
    let socket = udp().await;
    let endpoint = Endpoint::new(socket, tls, &options, WorkerId::new(0), ConnLimits::new(1)).unwrap();
    let (handle, addr) = (endpoint.handle(), endpoint.local_addr().unwrap());
    soon(endpoint.serve(large(), async {}, GRACE)).await;
    assert!(!handle.set_options(&options).unwrap() && handle.options().is_none());
    soon(async {
        // its driver ends a moment later
        while UdpSocket::bind(addr).await.is_err() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn paths_are_told_of() {
    let server = Server::start(QuicOptions::default(), large()).await;
    let relay = Relay::to(server.addr).await;
    let tls = Arc::new(server.client_tls());
    let client = soon(Connection::connect(relay.addr, "localhost", tls)).await.unwrap();
    let ask = async || {
        let answer = soon(client.send(get("/"))).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), BODY);
    };
    ask().await;
    assert_eq!(server.limits.handshake_times().count, 1);
    assert_eq!(server.limits.stats().migrations, 0);
    relay.rebind().await;
    ask().await;
    // at its end a connection is looked at
    drop(client);
    until(|| server.limits.stats().migrations > 0).await;
    let stats = server.limits.stats();
    assert_eq!(stats.migrations, 1);
    assert!(stats.sent_packets > 2 * BODY as u64 / 1500, "{stats:?}");
    assert!(stats.lost_packets < stats.sent_packets, "{stats:?}");
    for spread in [server.limits.round_trips(), server.limits.congestion_windows()] {
        assert!(spread.count >= 1 && spread.sum > 0.0, "{spread:?}");
    }
}

/// Takes a trace.
#[derive(Clone, Default)]
struct Trace(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Trace {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn chosen_connections_are_traced() {
    let (trace, asked) = (Trace::default(), Arc::new(std::sync::Mutex::new(Vec::new())));
    let (of, seen) = (trace.clone(), asked.clone());
    let traces = Traces::new(move |client, id| {
        let mut asked = seen.lock().unwrap();
        asked.push((client, id.len()));
        (asked.len() == 1).then(|| Box::new(of.clone()) as TraceWriter)
    });
    let options = QuicOptions::default().with_traces(Some(traces)).with_max_bidi_streams(1);
    let server = Server::start(options, large()).await;
    let raw = server.raw().await;
    // what it gets besides is what others get
    let _open = soon(raw.open_bi()).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(200), raw.open_bi()).await.is_err());
    let text = || String::from_utf8(trace.0.lock().unwrap().clone()).unwrap();
    let before = text();
    assert!(before.contains("\"qlog_version\"") && before.contains("packet_sent"), "{before:.300}");
    assert!(before.contains("packet_received"), "{before:.300}");
    raw.close(VarInt::from_u32(0x100), b"");
    until(|| server.limits.open() == 0).await;
    let after = text().len();
    let other = server.connect().await;
    assert_eq!(soon(other.send(get("/"))).await.unwrap().status(), 200);
    assert_eq!(text().len(), after, "another is not in it");
    let asked = asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|(client, id)| client.is_loopback() && *id >= 8), "{asked:?}");
}
