//! Early data over a pipe in memory, against rustls's client driven by hand.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{future::poll_fn, io::Write as _, pin::Pin, sync::Arc, time::Duration};

use portcullis_conn::Conn;
use portcullis_testkit::certs::TestCa;
use portcullis_tls::{
    Acceptor, AcceptorOptions, CertStore, Resumption, ServerOptions, ServerTls, TlsStream, ZeroRtt,
    tcp_config,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    version::{TLS12, TLS13},
};
use rustls_pki_types::ServerName;
use std::io::Read as _;
use tokio::io::{AsyncReadExt, AsyncWrite as _, AsyncWriteExt, DuplexStream};
use tokio_rustls::TlsConnector;

struct World {
    acceptor: Acceptor,
    client: Arc<ClientConfig>,
}

impl World {
    /// A client that has been here once and may send early data now.
    async fn new(zero_rtt: ZeroRtt) -> Self {
        let ca = TestCa::new();
        let cert = ca.issue(&["a.example.com"]);
        let store = Arc::new(CertStore::new());
        store.add_pem(cert.pem().as_bytes(), cert.key_pem().as_bytes()).unwrap();
        let options = ServerOptions::default().with_resumption(Resumption::ZeroRtt(zero_rtt));
        let options = options.with_tickets(4);
        let acceptor = ServerTls::new(store, &options).unwrap().acceptor(AcceptorOptions::default());
        Self::of(acceptor, &ca).await
    }

    async fn of(acceptor: Acceptor, ca: &TestCa) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(ca.der()).unwrap();
        let mut client = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.enable_early_data = true;
        client.alpn_protocols = vec![b"h2".to_vec()];
        let world = Self { acceptor, client: Arc::new(client) };
        let (near, far) = tokio::io::duplex(1 << 16);
        let connector = TlsConnector::from(Arc::clone(&world.client));
        let (client, server) = tokio::join!(
            connector.connect(ServerName::try_from("a.example.com").unwrap(), near),
            world.accept(far)
        );
        let (mut client, mut server) = (client.unwrap(), server.unwrap().io);
        server.write_all(b"x").await.unwrap();
        server.flush().await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
        world
    }

    async fn accept(&self, io: DuplexStream) -> Result<Conn<TlsStream<DuplexStream>>, String> {
        let accepted = self.acceptor.clone().accept(portcullis_testkit::conn(io)).await;
        accepted.map_err(|error| error.to_string())
    }

    /// A client's first flight with this in it.
    fn flight(&self, early: &[u8]) -> (ClientConnection, Vec<u8>) {
        let name = ServerName::try_from("a.example.com").unwrap();
        let mut client = ClientConnection::new(Arc::clone(&self.client), name).unwrap();
        client.early_data().expect("it has a ticket that allows it").write_all(early).unwrap();
        let flight = written(&mut client);
        (client, flight)
    }
}

fn written(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// Gives the client what the server has sent so far.
async fn receive(client: &mut ClientConnection, near: &mut DuplexStream) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 16];
    let read = tokio::time::timeout(Duration::from_millis(50), near.read(&mut bytes)).await;
    let mut bytes = &bytes[..read.map_or(0, Result::unwrap)];
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        client.process_new_packets().unwrap();
    }
    let mut plain = Vec::new();
    let _ = client.reader().read_to_end(&mut plain);
    plain
}

async fn read(stream: &mut TlsStream<DuplexStream>, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test(start_paused = true)]
async fn it_is_served_before_the_handshake_is_complete() {
    let world = World::new(ZeroRtt::default()).await;
    let (mut client, flight) = world.flight(b"early");
    let (mut near, far) = tokio::io::duplex(1 << 16);
    near.write_all(&flight).await.unwrap();
    let Conn { io: mut server, info } = world.accept(far).await.unwrap();
    assert!(info.is_early() && info.tls.as_ref().unwrap().resumed);
    assert_eq!(info.alpn(), Some(&b"h2"[..]));
    assert_eq!(read(&mut server, 5).await, b"early");
    server.write_all(b"answer").await.unwrap();
    server.flush().await.unwrap();
    assert_eq!(receive(&mut client, &mut near).await, b"answer", "before the client's Finished");
    assert!(info.is_early());

    client.writer().write_all(b"later").unwrap();
    near.write_all(&written(&mut client)).await.unwrap();
    assert_eq!(read(&mut server, 5).await, b"later", "what comes after it comes after it");
    assert!(!info.is_early());
    assert_eq!(world.acceptor.stats().early(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_recorded_flight_is_served_once() {
    let world = World::new(ZeroRtt::default()).await;
    let (_client, flight) = world.flight(b"early");
    let mut served = 0;
    for _ in 0..3 {
        let (mut near, far) = tokio::io::duplex(1 << 16);
        near.write_all(&flight).await.unwrap();
        match world.accept(far).await {
            Ok(mut conn) => {
                assert_eq!(read(&mut conn.io, 5).await, b"early");
                served += 1;
            }
            // its session was taken: a full handshake, which the attacker can't complete
            Err(error) => assert!(error.contains("in time"), "{error}"),
        }
    }
    assert_eq!((served, world.acceptor.stats().early()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn without_half_rtt_data_the_answer_waits() {
    let world = World::new(ZeroRtt::default().with_half_rtt(false)).await;
    let (mut client, flight) = world.flight(b"early");
    let (mut near, far) = tokio::io::duplex(1 << 16);
    near.write_all(&flight).await.unwrap();
    let Conn { io: mut server, info } = world.accept(far).await.unwrap();
    assert_eq!(read(&mut server, 5).await, b"early");
    server.write_all(b"answer").await.unwrap();
    server.flush().await.unwrap();
    assert_eq!(receive(&mut client, &mut near).await, b"");
    near.write_all(&written(&mut client)).await.unwrap();
    server.flush().await.unwrap();
    assert!(!info.is_early());
    assert_eq!(receive(&mut client, &mut near).await, b"answer");
}

/// An HTTP/1 driver reads no more while a request is under way; that it flushes has to be enough.
#[tokio::test(start_paused = true)]
async fn who_waits_is_told_though_nobody_reads() {
    let world = World::new(ZeroRtt::default()).await;
    let (mut client, flight) = world.flight(b"POST");
    let (mut near, far) = tokio::io::duplex(1 << 16);
    near.write_all(&flight).await.unwrap();
    let Conn { io: mut server, info } = world.accept(far).await.unwrap();
    let early = info.early_data().unwrap().clone();
    let held = tokio::spawn(async move {
        poll_fn(|cx| {
            let held = early.poll_confirmed(cx);
            let _ = Pin::new(&mut server).poll_flush(cx).map(Result::unwrap);
            held
        })
        .await;
        read(&mut server, 10).await
    });
    tokio::task::yield_now().await;
    assert!(!held.is_finished());
    receive(&mut client, &mut near).await;
    client.writer().write_all(b" later").unwrap();
    near.write_all(&written(&mut client)).await.unwrap();
    assert_eq!(held.await.unwrap(), b"POST later", "nothing was lost meanwhile");
    assert!(!info.is_early());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_in_the_middle_is_an_error() {
    let world = World::new(ZeroRtt::default()).await;
    let (_, flight) = world.flight(b"early");
    let (mut near, far) = tokio::io::duplex(1 << 16);
    near.write_all(&flight).await.unwrap();
    near.shutdown().await.unwrap();
    let mut server = world.accept(far).await.unwrap().io;
    let mut got = Vec::new();
    let error = server.read_to_end(&mut got).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(got, b"early");
}

#[tokio::test(start_paused = true)]
async fn a_client_of_good_will_keeps_to_the_bound() {
    let world = World::new(ZeroRtt::default().with_max_early_data(16)).await;
    let name = ServerName::try_from("a.example.com").unwrap();
    let mut client = ClientConnection::new(Arc::clone(&world.client), name).unwrap();
    assert_eq!(client.early_data().unwrap().bytes_left(), 16, "a client of good will keeps to it");
    assert_eq!(client.early_data().unwrap().write(&[b'x'; 100]).unwrap(), 16);
}

/// A ticket that allowed more than the server takes now: what is over is refused, and the connection with it.
#[tokio::test(start_paused = true)]
async fn more_than_is_allowed_ends_the_connection() {
    let ca = TestCa::new();
    let store = Arc::new(CertStore::new());
    let cert = ca.issue(&["a.example.com"]);
    store.add_pem(cert.pem().as_bytes(), cert.key_pem().as_bytes()).unwrap();
    let wide = tcp_config(store, &ServerOptions::default().with_zero_rtt()).unwrap();
    let mut narrow = ServerConfig::clone(&wide);
    narrow.max_early_data_size = 16;
    let [wide, narrow] =
        [wide, Arc::new(narrow)].map(|config| Acceptor::new(config, AcceptorOptions::default()));
    let world = World::of(wide, &ca).await;
    let world = World { acceptor: narrow, ..world };
    for (len, is_taken) in [(16, true), (17, false)] {
        let (_client, flight) = world.flight(&vec![b'x'; len]);
        let (mut near, far) = tokio::io::duplex(1 << 16);
        near.write_all(&flight).await.unwrap();
        let outcome = match world.accept(far).await {
            Ok(conn) => {
                let (mut io, mut got) = (conn.io, vec![0; len]);
                io.read_exact(&mut got).await.map(drop).map_err(|error| error.to_string())
            }
            Err(error) => Err(error),
        };
        assert_eq!(outcome.is_ok(), is_taken, "{len}: {outcome:?}");
    }
}

/// The client has its deadline too where it is served before its handshake is complete.
#[tokio::test(start_paused = true)]
async fn who_never_completes_the_handshake_is_not_served_for_ever() {
    let world = World::new(ZeroRtt::default()).await;
    let (_client, flight) = world.flight(b"early");
    let (mut near, far) = tokio::io::duplex(1 << 16);
    near.write_all(&flight).await.unwrap();
    let begun = tokio::time::Instant::now();
    let mut server = world.accept(far).await.unwrap().io;
    assert_eq!(read(&mut server, 5).await, b"early");
    let error = server.read(&mut [0; 16]).await.unwrap_err();
    assert_eq!((error.kind(), begun.elapsed().as_secs()), (std::io::ErrorKind::TimedOut, 10));
    assert!(server.write_all(b"x").await.is_err() && server.flush().await.is_err());
}

/// A response that waits for the client is not cut off by the end of the connection.
#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_what_was_written() {
    for half_rtt in [false, true] {
        let world = World::new(ZeroRtt::default().with_half_rtt(half_rtt)).await;
        let (mut client, flight) = world.flight(b"early");
        let (mut near, far) = tokio::io::duplex(1 << 16);
        near.write_all(&flight).await.unwrap();
        let mut server = world.accept(far).await.unwrap().io;
        read(&mut server, 5).await;
        let ended = tokio::spawn(async move {
            server.write_all(b"answer").await.unwrap();
            server.shutdown().await.unwrap();
        });
        let mut got = receive(&mut client, &mut near).await;
        assert!(!ended.is_finished());
        near.write_all(&written(&mut client)).await.unwrap();
        ended.await.unwrap();
        got.extend(receive(&mut client, &mut near).await);
        assert_eq!(got, b"answer", "{half_rtt}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_nobody_sent_early_is_not_early() {
    let world = World::new(ZeroRtt::default()).await;
    let (near, far) = tokio::io::duplex(1 << 16);
    let mut cautious = ClientConfig::clone(&world.client);
    cautious.enable_early_data = false;
    let connector = TlsConnector::from(Arc::new(cautious));
    let name = ServerName::try_from("a.example.com").unwrap();
    let (client, server) = tokio::join!(connector.connect(name, near), world.accept(far));
    let info = server.unwrap().info;
    assert!(!info.is_early() && info.early_data().is_none(), "resumed, but nothing came early");
    assert_eq!(client.unwrap().get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
}
