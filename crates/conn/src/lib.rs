//! What one part of an edge server hands to the next: a connection and what is known about it.
//!
//! A listener makes a [`Conn`], a handshake (TLS, a PROXY header, a sniffed first byte) turns it into another
//! [`Conn`] with more in its [`ConnInfo`], and a protocol driver puts the `Arc<ConnInfo>` into the extensions of
//! every request it reads, so that a handler asks
//! `request.extensions().get::<std::sync::Arc<portcullis_conn::ConnInfo>>()`.
//!
//! A connection that began as 0-RTT says so in [`TlsInfo::early_data`]; [`ConnInfo::is_early`] is the question that a
//! handler asks.
//!
//! This crate does no IO and knows no runtime; it depends on `std` and `rustls-pki-types`.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use rustls_pki_types::CertificateDer;

mod early;
mod hold;
mod interim;
mod protocol;

pub use early::{Confirm, EarlyData};
pub use hold::StreamHold;
pub use interim::{Interim, InterimEdit, InterimSink, SendInterim};
pub use protocol::ConnectProtocol;

/// A connection: the byte stream and what is known about it.
#[derive(Debug)]
pub struct Conn<Io> {
    /// The byte stream.
    pub io: Io,
    /// What is known about it so far.
    pub info: ConnInfo,
}

impl<Io> Conn<Io> {
    /// Pairs a stream with its facts.
    pub fn new(io: Io, info: ConnInfo) -> Self {
        Self { io, info }
    }

    /// Wraps or replaces the stream and keeps the facts.
    pub fn map<Io2>(self, f: impl FnOnce(Io) -> Io2) -> Conn<Io2> {
        Conn { io: f(self.io), info: self.info }
    }
}

/// Names a connection in logs; unique within the process, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(u64);

impl ConnId {
    /// The next unused id.
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The number behind it.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How the bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Transport {
    /// TCP, with or without TLS above it.
    Tcp,
    /// A unix stream socket: [`ConnInfo::peer`] is the unspecified address.
    Unix,
    /// QUIC over UDP.
    Quic,
}

/// What the first bytes of a stream looked like to a part that peeked at them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FirstBytes {
    /// A TLS handshake record (first byte 0x16, RFC 8446 section 5.1).
    Tls,
    /// The HTTP/2 connection preface (RFC 9113 section 3.4), sent without TLS.
    Http2Preface,
    /// Something that can begin an HTTP/1 request line.
    Http1,
    /// A PROXY protocol header, version 1 or 2.
    ProxyHeader,
    /// None of these.
    Unknown,
}

/// What is known about a connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnInfo {
    /// Names the connection in logs.
    pub id: ConnId,
    /// The address of the other end. IPv4-mapped IPv6 addresses are given as IPv4.
    pub peer: SocketAddr,
    /// Our own address on this connection, IPv4-mapped ones as IPv4.
    pub local: SocketAddr,
    /// How the bytes travel.
    pub transport: Transport,
    /// When it was accepted.
    pub accepted_at: Instant,
    /// What the first bytes looked like, where somebody peeked.
    pub first_bytes: Option<FirstBytes>,
    /// What TLS agreed; `None` on a plain connection.
    pub tls: Option<Arc<TlsInfo>>,
    /// What a proxy in front said in its PROXY protocol header; [`ConnInfo::peer`] and [`ConnInfo::local`] are then
    /// the addresses of the client's own connection to it. `None` where no header was read.
    pub proxied: Option<Arc<ProxiedInfo>>,
    /// Counts the connection's requests, for whoever numbers them.
    pub requests: RequestCount,
}

/// Counts the requests of a connection. A clone goes on by itself.
#[derive(Debug, Default)]
pub struct RequestCount(AtomicU64);

impl RequestCount {
    /// The number of the next one, from 1.
    pub fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Clone for RequestCount {
    fn clone(&self) -> Self {
        Self(AtomicU64::new(self.0.load(Ordering::Relaxed)))
    }
}

impl ConnInfo {
    /// The facts of a connection accepted now. IPv4-mapped addresses (`::ffff:192.0.2.1`), as a dual-stack socket
    /// reports them, become IPv4, so that logs, limits and address lists see one form.
    pub fn new(transport: Transport, peer: SocketAddr, local: SocketAddr) -> Self {
        Self {
            id: ConnId::next(),
            peer: canonical(peer),
            local: canonical(local),
            transport,
            accepted_at: Instant::now(),
            first_bytes: None,
            tls: None,
            proxied: None,
            requests: RequestCount::default(),
        }
    }

    /// Replaces the addresses by those that a proxy in front gave, and keeps what it said. `None` keeps the addresses:
    /// the proxy spoke for itself.
    #[must_use]
    pub fn with_proxied(mut self, addresses: Option<(SocketAddr, SocketAddr)>, proxied: ProxiedInfo) -> Self {
        if let Some((peer, local)) = addresses {
            self.peer = canonical(peer);
            self.local = canonical(local);
        }
        self.proxied = Some(Arc::new(proxied));
        self
    }

    /// Adds what TLS agreed.
    #[must_use]
    pub fn with_tls(mut self, tls: TlsInfo) -> Self {
        self.tls = Some(Arc::new(tls));
        self
    }

    /// The address of the other end without its port.
    pub fn client_ip(&self) -> IpAddr {
        self.peer.ip()
    }

    /// Whether the connection is encrypted, which decides between the `https` and `http` schemes.
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether what is read now may be a replay: the connection began as 0-RTT and its handshake is not complete. It says nothing against the
    /// address: a QUIC driver must hand out early requests only where the client's address is proven (RFC 9000 section 8.1), as
    /// portcullis-h3 does by a token.
    pub fn is_early(&self) -> bool {
        self.early_data().is_some_and(|early| !early.is_confirmed())
    }

    /// The state of a connection that began as 0-RTT; `None` for any other.
    pub fn early_data(&self) -> Option<&EarlyData> {
        self.tls.as_deref().and_then(|tls| tls.early_data.as_ref())
    }

    /// The protocol agreed by ALPN (RFC 7301), as bytes: `h2`, `http/1.1`, `h3`.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.tls.as_deref().and_then(|tls| tls.alpn.as_deref())
    }
}

/// A connection that came through a proxy which says so with the PROXY protocol.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProxiedInfo {
    /// The proxy's own address on the connection to us.
    pub proxy: SocketAddr,
    /// Our address on it.
    pub local: SocketAddr,
    /// The type-length-value fields of a version 2 header in their order, as (type, value); empty with version 1.
    pub tlvs: Vec<(u8, Box<[u8]>)>,
}

impl ProxiedInfo {
    /// What was seen of the proxy's own connection, with the fields of its header.
    pub fn new(proxy: SocketAddr, local: SocketAddr, tlvs: Vec<(u8, Box<[u8]>)>) -> Self {
        Self { proxy: canonical(proxy), local: canonical(local), tlvs }
    }

    /// The value of the first field of this type.
    pub fn tlv(&self, kind: u8) -> Option<&[u8]> {
        self.tlvs.iter().find(|(found, _)| *found == kind).map(|(_, value)| &**value)
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), v6.port()),
            None => addr,
        },
        SocketAddr::V4(_) => addr,
    }
}

/// What the two ends of a TLS connection agreed.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct TlsInfo {
    /// The server name the client asked for (SNI, RFC 6066 section 3), in lower case.
    pub server_name: Option<String>,
    /// The protocol agreed by ALPN (RFC 7301).
    pub alpn: Option<Vec<u8>>,
    /// The protocol version.
    pub version: Option<TlsVersion>,
    /// The key exchange group, by its IANA name.
    pub group: Option<&'static str>,
    /// The cipher suite, by its IANA name.
    pub cipher_suite: Option<&'static str>,
    /// Whether this connection began as 0-RTT, and whether its handshake is complete by now: a request that is read
    /// before that may be a replay (RFC 8446 section 8).
    pub early_data: Option<EarlyData>,
    /// Whether the handshake resumed an earlier session.
    pub resumed: bool,
    /// The certificates the client showed, leaf first; empty without client authentication.
    pub peer_chain: Vec<CertificateDer<'static>>,
}

/// A TLS protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    Tls12,
    /// TLS 1.3 (RFC 8446).
    Tls13,
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls12 => "TLSv1.2",
            Self::Tls13 => "TLSv1.3",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_become_ipv4() {
        let info = ConnInfo::new(
            Transport::Tcp,
            "[::ffff:192.0.2.7]:4000".parse().unwrap(),
            "[::ffff:127.0.0.1]:443".parse().unwrap(),
        );
        assert_eq!(info.peer, "192.0.2.7:4000".parse().unwrap());
        assert_eq!(info.local, "127.0.0.1:443".parse().unwrap());
    }

    #[test]
    fn native_ipv6_stays() {
        let peer: SocketAddr = "[2001:db8::1]:1".parse().unwrap();
        assert_eq!(ConnInfo::new(Transport::Quic, peer, peer).peer, peer);
    }

    #[test]
    fn a_proxy_in_front_gives_the_addresses() {
        let [balancer, edge, client, site] =
            ["10.0.0.2:9", "10.0.0.1:443", "[::ffff:192.0.2.7]:4000", "198.51.100.1:443"]
                .map(|text| text.parse::<SocketAddr>().unwrap());
        let said = ProxiedInfo::new(balancer, edge, vec![(2, b"a.example"[..].into()), (2, b"b"[..].into())]);
        let info = ConnInfo::new(Transport::Tcp, balancer, edge);
        let itself = info.clone().with_proxied(None, said.clone());
        assert_eq!((itself.peer, itself.local), (balancer, edge));
        let info = info.with_proxied(Some((client, site)), said);
        assert_eq!((info.peer.to_string().as_str(), info.local), ("192.0.2.7:4000", site));
        let said = info.proxied.unwrap();
        assert_eq!((said.proxy, said.local), (balancer, edge));
        assert_eq!((said.tlv(2), said.tlv(3)), (Some(&b"a.example"[..]), None));
    }

    #[test]
    fn ids_are_unique_and_rise() {
        let (a, b) = (ConnId::next(), ConnId::next());
        assert!(a < b);
    }

    #[test]
    fn early_until_the_handshake_is_complete() {
        let addr: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let info = ConnInfo::new(Transport::Tcp, addr, addr);
        assert!(!info.is_early());
        let (early, confirm) = EarlyData::new();
        let info = info.with_tls(TlsInfo { early_data: Some(early), ..TlsInfo::default() });
        assert!(info.is_early());
        confirm.confirm();
        assert!(!info.is_early() && info.early_data().is_some());
    }

    #[test]
    fn alpn_comes_from_tls_only() {
        let addr: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let info = ConnInfo::new(Transport::Tcp, addr, addr);
        assert!(info.alpn().is_none() && !info.is_secure());
        let info = info.with_tls(TlsInfo { alpn: Some(b"h2".to_vec()), ..TlsInfo::default() });
        assert_eq!(info.alpn(), Some(&b"h2"[..]));
        assert!(info.is_secure());
    }
}
