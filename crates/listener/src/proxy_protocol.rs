//! Reads the header that a proxy in front puts before a connection.

use std::{io, net::IpAddr, time::Duration};

use ipnet::IpNet;
use portcullis_conn::{Conn, ProxiedInfo};
use portcullis_proxy_protocol::{Addresses, Command, Header, Parse, ParseError, parse};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::sniff::{Peek, Peeked};

/// More can't be asked for: version 2 says its length in 16 bits, and both ends' buffers hold it.
const MOST: usize = 16 + 65_535;
/// The longest of version 1.
const LEAST: usize = 107;

/// From whom headers are read, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProxyProtocolOptions {
    /// The proxies that are believed. Default none. A connection from any other address is left as it is: what it sends
    /// is not looked at, so a header of it is garbage to whoever reads next.
    pub trusted: Vec<IpNet>,
    /// Time for the whole header, from the moment it is asked for. Default 5 s.
    pub timeout: Duration,
    /// The longest header in bytes; a longer one is refused as soon as it says its length. Default 4096; at least 107 and at
    /// most 65,551. So much is read for each connection at most.
    pub max_len: usize,
    /// Whether a trusted proxy must send one. Default [`Presence::Required`], as the specification asks for: who
    /// guesses takes a client's own bytes for a header.
    pub presence: Presence,
    /// Whether connections over unix sockets are trusted: their peers have no address. Default `false`.
    pub trust_unix: bool,
}

/// Whether a trusted proxy sends a header before each connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Presence {
    /// Always; a connection without is closed.
    #[default]
    Required,
    /// Perhaps: a connection whose first bytes are no signature is left as it is. For a balancer whose health checks
    /// come without, and where no client's bytes can reach us unheaded.
    Optional,
}

impl Default for ProxyProtocolOptions {
    fn default() -> Self {
        Self {
            trusted: Vec::new(),
            timeout: Duration::from_secs(5),
            max_len: portcullis_proxy_protocol::DEFAULT_MAX_LEN,
            presence: Presence::default(),
            trust_unix: false,
        }
    }
}

impl ProxyProtocolOptions {
    /// Sets [`ProxyProtocolOptions::trusted`].
    #[must_use]
    pub fn with_trusted(mut self, trusted: impl IntoIterator<Item = IpNet>) -> Self {
        self.trusted = trusted.into_iter().collect();
        self
    }

    /// Sets [`ProxyProtocolOptions::timeout`].
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets [`ProxyProtocolOptions::max_len`].
    #[must_use]
    pub fn with_max_len(mut self, bytes: usize) -> Self {
        self.max_len = bytes;
        self
    }

    /// Sets [`ProxyProtocolOptions::presence`].
    #[must_use]
    pub fn with_presence(mut self, presence: Presence) -> Self {
        self.presence = presence;
        self
    }

    /// Sets [`ProxyProtocolOptions::trust_unix`].
    #[must_use]
    pub fn with_trust_unix(mut self, trust_unix: bool) -> Self {
        self.trust_unix = trust_unix;
        self
    }

    fn trusts(&self, conn: &portcullis_conn::ConnInfo) -> bool {
        match conn.transport {
            portcullis_conn::Transport::Unix => self.trust_unix,
            _ => self.trusts_ip(conn.client_ip()),
        }
    }

    fn trusts_ip(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.trusted.iter().any(|network| network.contains(&ip))
    }
}

/// Why a connection has no header that can be believed. It is to be closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyProtocolError {
    /// The header did not come in time.
    #[error("the proxy {proxy} did not send its PROXY protocol header within {timeout:?}")]
    Timeout {
        /// Who.
        proxy: std::net::SocketAddr,
        /// How long it had.
        timeout: Duration,
    },
    /// The connection ended within the header or before it.
    #[error("the proxy {proxy} closed the connection before its PROXY protocol header was whole")]
    Closed {
        /// Who.
        proxy: std::net::SocketAddr,
    },
    /// What came is no header.
    #[error("the proxy {proxy} sent no valid PROXY protocol header")]
    Invalid {
        /// Who.
        proxy: std::net::SocketAddr,
        /// What is wrong with it.
        source: ParseError,
    },
    /// The connection failed.
    #[error("the connection failed while its PROXY protocol header was awaited")]
    Io(#[from] io::Error),
}

impl ProxyProtocolError {
    /// Whether it was the deadline.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }
}

/// Reads the header of a trusted proxy and takes it out of the stream; the addresses in it become those of the connection
/// ([`portcullis_conn::ConnInfo::peer`]), and what else it says is kept
/// ([`portcullis_conn::ConnInfo::proxied`]). A proxy that speaks for itself (`LOCAL`), or gives no TCP or UDP addresses,
/// leaves the connection's own.
///
/// It belongs into the connection's own task: a proxy that sends nothing holds up nobody else. Not one byte behind the
/// header is taken. Where clients are counted ([`crate::ClientLimit`]) the true client is counted afterwards, with
/// [`crate::Permitted::count_client`].
///
/// # Errors
/// See [`ProxyProtocolError`]; the connection is to be dropped then. So it is when the future is dropped half-way.
pub async fn read_proxy_header<Io>(
    conn: &mut Conn<Io>,
    options: &ProxyProtocolOptions,
) -> Result<(), ProxyProtocolError>
where
    Io: Peek + AsyncRead + Unpin,
{
    if !options.trusts(&conn.info) {
        return Ok(());
    }
    let proxy = conn.info.peer;
    let read = tokio::time::timeout(options.timeout, take(conn, options));
    let timeout = options.timeout;
    let header = read.await.map_err(|_| ProxyProtocolError::Timeout { proxy, timeout })??;
    if let Some(header) = header {
        note(conn, header);
    }
    Ok(())
}

async fn take<Io>(
    conn: &mut Conn<Io>,
    options: &ProxyProtocolOptions,
) -> Result<Option<Header>, ProxyProtocolError>
where
    Io: Peek + AsyncRead + Unpin,
{
    let proxy = conn.info.peer;
    let max_len = options.max_len.clamp(LEAST, MOST);
    // enough for version 1 and for every common header of version 2
    let mut buf = vec![0; 256.min(max_len)];
    let mut seen = 0;
    let (header, len) = loop {
        let Peeked { len, ended } = conn.io.peek(&mut buf, seen).await?;
        match parse(&buf[..len], max_len) {
            Ok(Parse::Complete { header, len }) => break (header, len),
            Ok(Parse::Incomplete { .. }) if ended => {
                if options.presence == Presence::Optional {
                    return Ok(None);
                }
                return Err(ProxyProtocolError::Closed { proxy });
            }
            Ok(Parse::Incomplete { need }) => {
                // as much as it says, which is not above the bound: a longer one is an error
                if need > buf.len() {
                    buf.resize(need.min(max_len), 0);
                }
                seen = len;
            }
            Err(ParseError::NoSignature) if options.presence == Presence::Optional => return Ok(None),
            Err(source) => return Err(ProxyProtocolError::Invalid { proxy, source }),
        }
    };
    conn.io.read_exact(&mut buf[..len]).await?;
    Ok(Some(header))
}

fn note<Io>(conn: &mut Conn<Io>, header: Header) {
    let addresses = match (header.command, header.addresses) {
        (
            Command::Proxy,
            Addresses::Stream { source, destination } | Addresses::Datagram { source, destination },
        ) => Some((source, destination)),
        _ => None,
    };
    let tlvs = header.tlvs.into_iter().map(|tlv| (tlv.kind, tlv.value)).collect();
    let said = ProxiedInfo::new(conn.info.peer, conn.info.local, tlvs);
    conn.info = conn.info.clone().with_proxied(addresses, said);
}

#[cfg(test)]
mod tests;
