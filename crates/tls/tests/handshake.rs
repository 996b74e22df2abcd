//! Handshakes over a pipe in memory, against the tokio-rustls client.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{sync::Arc, time::Duration};

use portcullis_conn::{Conn, TlsVersion};
use portcullis_testkit::{
    certs::{TestCa, TestCert},
    io::ShortIo,
};
use portcullis_tls::{
    Acceptor, AcceptorOptions, CertStore, FailureReason, HandshakeError, Resumption, ServerOptions,
    TlsStream, Versions, tcp_config,
};
use rustls::{
    ClientConfig, HandshakeKind, NamedGroup, RootCertStore, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    version::{TLS12, TLS13},
};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsConnector, client};
use tower_service::Service;

struct World {
    ca: TestCa,
    store: Arc<CertStore>,
}

impl World {
    fn new(store: CertStore, names: &[&str]) -> Self {
        let world = Self { ca: TestCa::new(), store: Arc::new(store) };
        world.add(&world.ca.issue(names));
        world
    }

    fn add(&self, cert: &TestCert) {
        self.store.add_pem(cert.pem().as_bytes(), cert.key_pem().as_bytes()).unwrap();
    }

    fn acceptor(&self, options: &ServerOptions) -> Acceptor {
        Acceptor::new(tcp_config(Arc::clone(&self.store), options).unwrap(), AcceptorOptions::default())
    }

    fn client(&self, versions: &[&'static SupportedProtocolVersion], alpn: &[&str]) -> TlsConnector {
        TlsConnector::from(Arc::new(self.config(versions, alpn)))
    }

    fn config(&self, versions: &[&'static SupportedProtocolVersion], alpn: &[&str]) -> ClientConfig {
        self.config_with(aws_lc_rs::default_provider(), versions, alpn)
    }

    fn config_with(
        &self,
        provider: rustls::crypto::CryptoProvider,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&str],
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }
}

type Client = std::io::Result<client::TlsStream<DuplexStream>>;
type Server<Io> = Result<Conn<TlsStream<Io>>, HandshakeError>;

async fn shake_over<Io>(
    acceptor: &Acceptor,
    connector: &TlsConnector,
    name: &'static str,
    (client_io, server_io): (DuplexStream, Io),
) -> (Client, Server<Io>)
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut acceptor = acceptor.clone();
    let name = ServerName::try_from(name).unwrap();
    tokio::join!(connector.connect(name, client_io), acceptor.call(portcullis_testkit::conn(server_io)))
}

async fn shake(
    acceptor: &Acceptor,
    connector: &TlsConnector,
    name: &'static str,
) -> (Client, Server<DuplexStream>) {
    shake_over(acceptor, connector, name, tokio::io::duplex(1 << 16)).await
}

/// A round of data both ways, by which the client also reads the tickets.
async fn talk<Io>(client: &mut client::TlsStream<DuplexStream>, server: &mut TlsStream<Io>)
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffer = [0; 4];
    client.write_all(b"ping").await.unwrap();
    client.flush().await.unwrap();
    server.read_exact(&mut buffer).await.unwrap();
    server.write_all(b"pong").await.unwrap();
    server.flush().await.unwrap();
    client.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"pong");
}

#[tokio::test]
async fn what_was_agreed_is_told() {
    let world = World::new(CertStore::new(), &["a.example.com"]);
    let acceptor = world.acceptor(&ServerOptions::default());
    for (offered, agreed) in [
        (&["h2", "http/1.1"][..], Some("h2")),
        (&["http/1.1", "h2"], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&[], None),
    ] {
        let connector = world.client(&[&TLS13], offered);
        let (client, server) = shake(&acceptor, &connector, "A.example.com").await;
        let (client, server) = (client.unwrap(), server.unwrap());
        let tls = server.info.tls.clone().unwrap();
        assert_eq!(tls.alpn.as_deref(), agreed.map(str::as_bytes));
        assert_eq!(server.info.alpn(), client.get_ref().1.alpn_protocol());
        assert_eq!(tls.server_name.as_deref(), Some("a.example.com"));
        assert_eq!(tls.version, Some(TlsVersion::Tls13));
        assert_eq!(tls.group, Some("X25519MLKEM768"));
        assert_eq!(tls.cipher_suite, Some("TLS_AES_256_GCM_SHA384"));
        assert!(!tls.resumed && tls.early_data.is_none() && tls.peer_chain.is_empty());
        let group = client.get_ref().1.negotiated_key_exchange_group().unwrap();
        assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
        assert!(server.io.is_write_vectored());
    }
    assert_eq!(acceptor.stats().completed(), 4);
    assert_eq!(world.store.certificates()[0].resolutions, 4);
}

#[tokio::test]
async fn it_works_a_few_bytes_at_a_time() {
    let world = World::new(CertStore::new(), &["a.example.com"]);
    let acceptor = world.acceptor(&ServerOptions::default());
    // Large enough for the tickets, which nobody reads before both futures are done.
    let (near, far) = tokio::io::duplex(1024);
    let connector = world.client(&[&TLS13], &["h2"]);
    let ends = (near, ShortIo::new(far, 7, 5));
    let (client, server) = shake_over(&acceptor, &connector, "a.example.com", ends).await;
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    let (reply, ()) = tokio::join!(
        async {
            client.write_all(b"ping").await.unwrap();
            client.shutdown().await.unwrap();
            let mut reply = Vec::new();
            client.read_to_end(&mut reply).await.unwrap();
            reply
        },
        async {
            let mut got = Vec::new();
            server.io.read_to_end(&mut got).await.unwrap();
            server.io.write_all(&got.repeat(1000)).await.unwrap();
            server.io.shutdown().await.unwrap();
        }
    );
    assert_eq!(reply, b"ping".repeat(1000));
}

#[tokio::test]
async fn older_versions_only_by_choice() {
    let world = World::new(CertStore::new(), &["a.example.com"]);
    let connector = world.client(&[&TLS12], &["h2"]);
    let acceptor = world.acceptor(&ServerOptions::default());
    let (client, server) = shake(&acceptor, &connector, "a.example.com").await;
    assert!(client.is_err());
    assert_eq!(server.unwrap_err().reason(), FailureReason::Incompatible);
    let acceptor = world.acceptor(&ServerOptions::default().with_versions(Versions::Tls12AndUp));
    let (_, server) = shake(&acceptor, &connector, "a.example.com").await;
    assert_eq!(server.unwrap().info.tls.unwrap().version, Some(TlsVersion::Tls12));
}

#[tokio::test]
async fn a_strict_store_refuses_unknown_names() {
    for (strict, want) in [(true, Some(FailureReason::UnknownName)), (false, Some(FailureReason::Alert))] {
        let world = World::new(CertStore::new().with_strict(strict), &["a.example.com"]);
        let acceptor = world.acceptor(&ServerOptions::default());
        let connector = world.client(&[&TLS13], &["h2"]);
        let (client, server) = shake(&acceptor, &connector, "b.example.com").await;
        assert!(client.is_err(), "refused, or not the right certificate");
        assert_eq!(server.err().map(|error| error.reason()), want);
        assert_eq!(world.store.unknown_names(), 1);
        assert_eq!(acceptor.stats().failed(want.unwrap()), 1);
    }
}

#[tokio::test]
async fn an_address_is_asked_for_without_a_name() {
    let world = World::new(CertStore::new().with_strict(true), &["a.example.com"]);
    world.add(&world.ca.issue(&["192.0.2.2"]));
    let acceptor = world.acceptor(&ServerOptions::default());
    let (client, server) = shake(&acceptor, &world.client(&[&TLS13], &["h2"]), "192.0.2.2").await;
    client.unwrap();
    assert_eq!(server.unwrap().info.tls.unwrap().server_name, None);
}

#[tokio::test]
async fn no_protocol_in_common() {
    let world = World::new(CertStore::new(), &["a.example.com"]);
    let acceptor = world.acceptor(&ServerOptions::default());
    let (_, server) = shake(&acceptor, &world.client(&[&TLS13], &["ftp"]), "a.example.com").await;
    assert_eq!(server.unwrap_err().reason(), FailureReason::Incompatible);
}

#[tokio::test(start_paused = true)]
async fn silence_ends_at_the_deadline() {
    let world = World::new(CertStore::new(), &["a.example.com"]);
    let config = tcp_config(Arc::clone(&world.store), &ServerOptions::default()).unwrap();
    let options = AcceptorOptions::default().with_handshake_timeout(Duration::from_secs(3));
    let acceptor = Acceptor::new(config, options);
    // Nothing at all, and half of a record header.
    for sent in [&b""[..], b"\x16\x03\x01"] {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(sent).await.unwrap();
        let begun = tokio::time::Instant::now();
        let error = acceptor.clone().accept(portcullis_testkit::conn(server)).await.unwrap_err();
        assert!(error.is_timeout());
        assert_eq!(begun.elapsed().as_secs(), 3);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "the connection was closed");
    }
    assert_eq!(acceptor.stats().failed(FailureReason::Timeout), 2);
}

#[tokio::test]
async fn failures_are_sorted() {
    let world = World::new(CertStore::new(), &["a.example.com"]);
    let acceptor = world.acceptor(&ServerOptions::default());
    for (sent, want) in [
        (&b""[..], FailureReason::Closed),
        (b"\x16\x03\x01\x00\x10", FailureReason::Closed),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", FailureReason::NotTls),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", FailureReason::NotTls),
        (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", FailureReason::Protocol),
        (b"\x15\x03\x03\x00\x02\x02\x28", FailureReason::Alert),
    ] {
        let (mut client, server) = tokio::io::duplex(1024);
        client.write_all(sent).await.unwrap();
        client.shutdown().await.unwrap();
        let error = acceptor.clone().accept(portcullis_testkit::conn(server)).await.unwrap_err();
        assert_eq!(error.reason(), want, "{sent:?}: {error} {:?}", std::error::Error::source(&error));
        assert!(acceptor.stats().failed(want) > 0);
    }
}

#[tokio::test]
async fn sessions_are_resumed_and_survive_a_change_of_certificates() {
    for version in [&TLS13, &TLS12] {
        let world = World::new(CertStore::new(), &["a.example.com"]);
        let acceptor = world.acceptor(&ServerOptions::default().with_versions(Versions::Tls12AndUp));
        let connector = world.client(&[version], &["h2"]);
        let (client, server) = shake(&acceptor, &connector, "a.example.com").await;
        talk(&mut client.unwrap(), &mut server.unwrap().io).await;
        world.add(&world.ca.issue(&["a.example.com"]));
        let (client, server) = shake(&acceptor, &connector, "a.example.com").await;
        assert_eq!(client.unwrap().get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
        assert!(server.unwrap().info.tls.unwrap().resumed);
        assert_eq!((acceptor.stats().completed(), acceptor.stats().resumed()), (2, 1));
    }
}

#[tokio::test]
async fn without_sessions_nothing_is_resumed() {
    let world = World::new(CertStore::new(), &["a.example.com"]);
    let acceptor = world.acceptor(&ServerOptions::default().with_resumption(Resumption::Off));
    let connector = world.client(&[&TLS13], &["h2"]);
    for _ in 0..2 {
        let (client, server) = shake(&acceptor, &connector, "a.example.com").await;
        let mut server = server.unwrap();
        talk(&mut client.unwrap(), &mut server.io).await;
        assert!(!server.info.tls.unwrap().resumed);
    }
}

#[tokio::test]
async fn a_replaced_certificate_is_seen_by_the_next_handshake_and_hurts_none() {
    let world = World::new(CertStore::new(), &["a.example.com"]);
    let acceptor = world.acceptor(&ServerOptions::default().with_resumption(Resumption::Off));
    let connector = world.client(&[&TLS13], &["h2"]);
    let shown = |client: &client::TlsStream<DuplexStream>| {
        client.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    };

    // A handshake under way: the server's flight does not fit into the pipe, so it is stuck in the middle.
    let (near, far) = tokio::io::duplex(512);
    let server = tokio::spawn(acceptor.clone().accept(portcullis_testkit::conn(far)));
    let name = ServerName::try_from("a.example.com").unwrap();
    let mut client = Box::pin(connector.connect(name, near));
    let before = world.store.certificates()[0].fingerprint.clone();
    while world.store.certificates()[0].resolutions == 0 {
        assert!(poll_once(client.as_mut()).await.is_none(), "the pipe is too small for one turn");
        tokio::task::yield_now().await;
    }
    let new = world.ca.issue(&["a.example.com"]);
    world.add(&new);
    assert_ne!(world.store.certificates()[0].fingerprint, before);
    assert_eq!(world.store.certificates()[0].resolutions, 1, "the count goes on");
    let mut client = client.await.unwrap();
    assert_ne!(shown(&client), new.der(), "it goes on with what it found");
    talk(&mut client, &mut server.await.unwrap().unwrap().io).await;

    let (client, server) = shake(&acceptor, &connector, "a.example.com").await;
    server.unwrap();
    assert_eq!(shown(&client.unwrap()), new.der());
}

/// How many bytes the server sends before it waits for the client.
async fn first_flight(acceptor: &Acceptor, config: ClientConfig) -> usize {
    let name = ServerName::try_from("a.example.com").unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let (mut near, far) = tokio::io::duplex(1 << 16);
    near.write_all(&hello).await.unwrap();
    let server = tokio::spawn(acceptor.clone().accept(portcullis_testkit::conn(far)));
    let mut flight = vec![0; 1 << 16];
    let mut len = 0;
    while let Ok(read) = tokio::time::timeout(Duration::from_secs(1), near.read(&mut flight[len..])).await {
        len += read.unwrap();
    }
    server.abort();
    let mut sent = &flight[..len];
    while !sent.is_empty() {
        client.read_tls(&mut sent).unwrap();
        client.process_new_packets().unwrap();
    }
    assert!(client.peer_certificates().is_some(), "it is understood");
    len
}

#[tokio::test(start_paused = true)]
async fn certificates_are_compressed_for_who_can_unfold_them() {
    let names: Vec<String> = (0..60).map(|i| format!("host-{i}.a.example.com")).collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.push("a.example.com");
    let world = World::new(CertStore::new(), &names);
    let acceptor = world.acceptor(&ServerOptions::default());
    let plain = world.config(&[&TLS13], &["h2"]);
    let all = plain.cert_decompressors.clone();
    assert_eq!(all.len(), 2);
    let with = |decompressors: &[&'static dyn rustls::compress::CertDecompressor]| {
        let mut config = plain.clone();
        config.cert_decompressors = decompressors.to_vec();
        config
    };
    let uncompressed = first_flight(&acceptor, with(&[])).await;
    for one in all {
        let compressed = first_flight(&acceptor, with(&[one])).await;
        assert!(compressed + 500 < uncompressed, "{one:?}: {compressed} of {uncompressed}");
        let again = first_flight(&acceptor, with(&[one])).await;
        assert!(again.abs_diff(compressed) < 16, "as it was remembered");
    }
}

#[tokio::test]
async fn a_client_that_prefers_chacha_gets_it() {
    let world = World::new(CertStore::new(), &["a.example.com"]);
    let acceptor = world.acceptor(&ServerOptions::default());
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| !format!("{suite:?}").contains("CHACHA20"));
    let config = world.config_with(provider, &[&TLS13], &["h2"]);
    let (_, server) = shake(&acceptor, &TlsConnector::from(Arc::new(config)), "a.example.com").await;
    let suite = server.unwrap().info.tls.unwrap().cipher_suite;
    assert_eq!(suite, Some("TLS_CHACHA20_POLY1305_SHA256"));
}

/// A place in the line is given back only after all else that is ready has had its turn.
#[tokio::test]
async fn a_flood_of_handshakes_leaves_others_their_turn() {
    let world = World::new(CertStore::new(), &["a.example.com"]);
    let config = tcp_config(Arc::clone(&world.store), &ServerOptions::default()).unwrap();
    let acceptor = Acceptor::new(config, AcceptorOptions::default().with_handshakes_at_once(2));
    let name = ServerName::try_from("a.example.com").unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(world.config(&[&TLS13], &["h2"])), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let mut flood = Vec::new();
    for _ in 0..100 {
        let (mut near, far) = tokio::io::duplex(1 << 16);
        near.write_all(&hello).await.unwrap();
        flood.push((near, tokio::spawn(acceptor.clone().accept(portcullis_testkit::conn(far)))));
    }
    // other work, which is always ready: it gets a turn for every two handshakes
    let mut turns = 0;
    while world.store.certificates()[0].resolutions < 100 {
        let before = world.store.certificates()[0].resolutions;
        tokio::task::yield_now().await;
        assert!(world.store.certificates()[0].resolutions - before <= 4, "more at once than the line lets");
        turns += 1;
    }
    assert!(turns >= 25, "{turns}");
}

/// Polls once.
async fn poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match future.as_mut().poll(cx) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}
