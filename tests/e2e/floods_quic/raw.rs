//! A QUIC client that writes the frames of HTTP/3 by hand.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use quinn::{ClientConfig, Endpoint, TransportConfig, VarInt, crypto::rustls::QuicClientConfig};
use tokio::{net::UdpSocket, time::timeout};

use crate::support::tls;

pub(super) const HEADERS: u8 = 0x01;
/// RFC 9114 section 8.1.
pub(super) const EXCESSIVE_LOAD: u64 = 0x107;
pub(super) const CANCELLED: VarInt = VarInt::from_u32(0x10c);
/// A client's control stream with empty settings.
const CONTROL: [u8; 3] = [0x00, 0x04, 0x00];

/// A frame whose length is written in eight bytes, be it that of the payload or not.
pub(super) fn frame(kind: u8, length: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&(length | 3 << 62).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The field section of a request of at most 126 bytes of path, without a dynamic table (RFC 9204 section 4.5).
pub(super) fn section(method: &str, path: &str) -> Vec<u8> {
    let method = if method == "POST" { 20 } else { 17 };
    let mut block = vec![0, 0, 0xc0 | method, 0xc0 | 23, 0x51, u8::try_from(path.len()).unwrap()];
    block.extend_from_slice(path.as_bytes());
    block.extend_from_slice(&[0x50, 9]);
    block.extend_from_slice(b"localhost");
    block
}

pub(super) fn head(method: &str, path: &str) -> Vec<u8> {
    let section = section(method, path);
    frame(HEADERS, section.len() as u64, &section)
}

/// Connections from a few sockets, so that all workers get some.
pub(super) struct Clients {
    to: SocketAddr,
    endpoints: Vec<Endpoint>,
    next: AtomicU64,
}

impl Clients {
    /// `window` is what a connection and each of its streams take.
    pub(super) fn new(to: SocketAddr, window: u32) -> Arc<Self> {
        let config = config(window);
        let endpoints = (0..8).map(|_| {
            let mut endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
            endpoint.set_default_client_config(config.clone());
            endpoint
        });
        Arc::new(Self { to, endpoints: endpoints.collect(), next: AtomicU64::new(0) })
    }

    fn begin(&self) -> quinn::Connecting {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) as usize % self.endpoints.len();
        self.endpoints[turn].connect(self.to, "localhost").unwrap()
    }

    pub(super) async fn connect(&self) -> Option<Raw> {
        Raw::begin(timeout(Duration::from_secs(10), self.begin()).await.ok()?.ok()?).await
    }

    /// In 0-RTT where there is a ticket; whether there was.
    pub(super) async fn connect_early(&self) -> Option<(Raw, bool)> {
        let (connection, early) = match self.begin().into_0rtt() {
            Ok((connection, _accepted)) => (connection, true),
            Err(connecting) => (timeout(Duration::from_secs(10), connecting).await.ok()?.ok()?, false),
        };
        Some((Raw::begin(connection).await?, early))
    }
}

/// A connection whose settings are said.
pub(super) struct Raw {
    pub(super) connection: quinn::Connection,
    /// It is to stay open as long as the connection.
    _control: quinn::SendStream,
}

impl Raw {
    async fn begin(connection: quinn::Connection) -> Option<Self> {
        let mut control = connection.open_uni().await.ok()?;
        control.write_all(&CONTROL).await.ok()?;
        Some(Self { connection, _control: control })
    }

    /// A stream, unless the server allows no more of them.
    pub(super) async fn open(&self) -> Option<(quinn::SendStream, quinn::RecvStream)> {
        timeout(Duration::from_millis(300), self.connection.open_bi()).await.ok()?.ok()
    }

    /// The code with which the server closed the connection, if it did.
    pub(super) fn closed_with(&self) -> Option<u64> {
        match self.connection.close_reason() {
            Some(quinn::ConnectionError::ApplicationClosed(close)) => Some(close.error_code.into_inner()),
            _ => None,
        }
    }
}

fn config(window: u32) -> ClientConfig {
    let mut tls = Arc::unwrap_or_clone(tls::config(None, &["h3"]));
    tls.enable_early_data = true;
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(window))
        .receive_window(VarInt::from_u32(window))
        .send_window(16 << 20)
        .keep_alive_interval(Some(Duration::from_secs(5)));
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    config.transport_config(Arc::new(transport));
    config
}

/// The first packets of so many connections that never go on: caught by a socket that does not answer.
pub(super) async fn first_packets(count: usize) -> Vec<Vec<u8>> {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = silent.local_addr().unwrap();
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = config(1 << 20);
    let (mut seen, mut packets, mut open) = (HashSet::new(), Vec::new(), Vec::new());
    let mut packet = [0; 2048];
    while packets.len() < count {
        open.push(endpoint.connect_with(config.clone(), to, "localhost").unwrap());
        while let Ok(Ok(length)) = timeout(Duration::from_millis(5), silent.recv(&mut packet)).await {
            // a hello may take two packets; the first of an id is enough for a server to begin with
            let id = packet[6..6 + usize::from(packet[5])].to_vec();
            if seen.insert(id) {
                packets.push(packet[..length].to_vec());
                break;
            }
        }
        if open.len() > 64 {
            open.clear();
        }
    }
    packets
}
