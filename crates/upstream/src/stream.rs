//! Connections as this crate makes them: over TCP and unix sockets.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::JoinSet,
};
use tower_service::Service;

use crate::{Address, ConnectError, Destination};

/// A byte stream that carries HTTP to an endpoint.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Whether it is encrypted: HTTP/2 tells the endpoint the scheme. Default `false`.
    fn is_secure(&self) -> bool {
        false
    }

    /// The protocol that was agreed upon by ALPN (RFC 7301), where there is TLS: `h2` is spoken as HTTP/2 by a cluster whose
    /// [`crate::Protocol`] leaves it open. Default `None`.
    fn alpn(&self) -> Option<&[u8]> {
        None
    }
}

impl Transport for TcpStream {}
impl Transport for tokio::io::DuplexStream {}
impl Transport for Stream {}
#[cfg(unix)]
impl Transport for UnixStream {}

/// A connection over TCP or a unix socket.
#[derive(Debug)]
#[non_exhaustive]
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a unix socket.
    #[cfg(unix)]
    Unix(UnixStream),
}

macro_rules! each {
    ($self:expr, $io:ident => $call:expr) => {
        match $self {
            Stream::Tcp($io) => $call,
            #[cfg(unix)]
            Stream::Unix($io) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), io => Pin::new(io).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, io => io.is_write_vectored())
    }
}

/// Connects by TCP, with Nagle's algorithm off, and to unix sockets.
///
/// The addresses of a name are tried as RFC 8305 has it (happy eyeballs): IPv6 and IPv4 in turn, each a moment after the one before
/// or as soon as that has failed, and the first that connects is taken.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Connector {
    /// From the beginning of a name's resolution to the connection. Default 5 s.
    pub timeout: Duration,
    /// The moment between one address and the next. Default 250 ms (RFC 8305 section 8).
    pub attempt_delay: Duration,
}

/// Addresses of a name that are tried at most.
const MAX_ADDRESSES: usize = 16;

impl Default for Connector {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(5), attempt_delay: Duration::from_millis(250) }
    }
}

impl Connector {
    /// Sets [`Connector::timeout`].
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets [`Connector::attempt_delay`].
    #[must_use]
    pub fn with_attempt_delay(mut self, delay: Duration) -> Self {
        self.attempt_delay = delay;
        self
    }

    /// Connects, within the timeout.
    ///
    /// # Errors
    /// When the name has no address, no address can be connected to, or time is up. Dropping the future ends it.
    pub async fn connect(self, address: Address) -> Result<Stream, ConnectError> {
        self.connect_where(address, |_| true).await
    }

    /// The same, to such addresses of a name alone as `may` says: for names that somebody else has chosen or resolves. An address that
    /// is given as one is not asked about.
    ///
    /// # Errors
    /// As [`Connector::connect`], and [`ConnectError::NotAllowed`] when the name has addresses and `may` lets none of them pass.
    pub async fn connect_where(
        self,
        address: Address,
        may: impl Fn(SocketAddr) -> bool,
    ) -> Result<Stream, ConnectError> {
        tokio::time::timeout(self.timeout, self.any(address, may)).await.map_err(|_| ConnectError::Timeout)?
    }

    async fn any(self, address: Address, may: impl Fn(SocketAddr) -> bool) -> Result<Stream, ConnectError> {
        let tcp = match address {
            Address::Socket(address) => TcpStream::connect(address).await?,
            Address::Name { host, port } => {
                let found = tokio::net::lookup_host((&*host, port)).await.map_err(ConnectError::Resolve)?;
                self.race(in_turn(only(found.collect(), may)?)).await?
            }
            #[cfg(unix)]
            Address::Unix(path) => return Ok(Stream::Unix(UnixStream::connect(path).await?)),
            #[cfg(not(unix))]
            Address::Unix(_) => return Err(io::Error::from(io::ErrorKind::Unsupported).into()),
        };
        tcp.set_nodelay(true)?;
        Ok(Stream::Tcp(tcp))
    }

    async fn race(self, addresses: Vec<SocketAddr>) -> Result<TcpStream, ConnectError> {
        let mut left = addresses.into_iter();
        let first = left.next().ok_or_else(|| {
            ConnectError::Resolve(io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
        })?;
        if left.len() == 0 {
            return Ok(TcpStream::connect(first).await?);
        }
        // dropping the set ends those that are not needed
        let mut attempts = JoinSet::new();
        attempts.spawn(TcpStream::connect(first));
        let mut last = None;
        loop {
            let next = left.len() > 0;
            tokio::select! {
                biased;
                ended = attempts.join_next(), if !attempts.is_empty() => match ended {
                    Some(Ok(Ok(stream))) => return Ok(stream),
                    Some(Ok(Err(error))) => last = Some(error),
                    Some(Err(_)) | None => {}
                },
                () = tokio::time::sleep(self.attempt_delay), if next && !attempts.is_empty() => {}
                else => {}
            }
            match left.next() {
                Some(address) => drop(attempts.spawn(TcpStream::connect(address))),
                None if attempts.is_empty() => {
                    let error = last.unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into());
                    return Err(error.into());
                }
                None => {}
            }
        }
    }
}

/// Those that may be connected to; not none of some.
fn only(
    mut found: Vec<SocketAddr>,
    may: impl Fn(SocketAddr) -> bool,
) -> Result<Vec<SocketAddr>, ConnectError> {
    let any = !found.is_empty();
    found.retain(|address| may(*address));
    if any && found.is_empty() { Err(ConnectError::NotAllowed) } else { Ok(found) }
}

/// RFC 8305 section 4: the families in turn, the first as the resolver has it.
fn in_turn(mut found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    found.truncate(MAX_ADDRESSES);
    let Some(first) = found.first().map(SocketAddr::is_ipv6) else { return found };
    let (mut one, mut other): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|found| found.is_ipv6() == first);
    one.reverse();
    other.reverse();
    let mut ordered = Vec::with_capacity(one.len() + other.len());
    while one.len() + other.len() > 0 {
        ordered.extend(one.pop());
        ordered.extend(other.pop());
    }
    ordered
}

impl Service<Destination> for Connector {
    type Response = Stream;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, destination: Destination) -> Self::Future {
        Box::pin(self.connect(destination.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn rfc8305_4_families_take_turns() {
        let found = addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "127.0.0.1:1", "127.0.0.2:1"]);
        let wanted = addresses(&["[::1]:1", "127.0.0.1:1", "[::2]:1", "127.0.0.2:1", "[::3]:1"]);
        assert_eq!(in_turn(found), wanted);
        assert_eq!(in_turn(addresses(&["127.0.0.1:1", "[::1]:1"])), addresses(&["127.0.0.1:1", "[::1]:1"]));
        assert!(in_turn(Vec::new()).is_empty());
    }

    #[tokio::test]
    async fn an_address_that_refuses_costs_no_time_and_one_that_is_silent_a_moment() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let refusing = {
            let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
            closed.local_addr().unwrap()
        };
        let connector = Connector::default().with_attempt_delay(Duration::from_secs(60));
        let stream = connector.race(vec![refusing, good]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        // TEST-NET-1 (RFC 5737): nobody answers, or the system knows no way there
        let connector = Connector::default().with_attempt_delay(Duration::from_millis(20));
        let stream = connector.race(vec!["192.0.2.1:9".parse().unwrap(), good]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        assert!(matches!(connector.race(vec![refusing, refusing]).await, Err(ConnectError::Io(_))));
        assert!(matches!(connector.race(vec![]).await, Err(ConnectError::Resolve(_))));
    }

    #[tokio::test]
    async fn a_name_is_connected_to_where_it_may_be() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let name = || Address::Name { host: "localhost".into(), port };
        let connector = Connector::default();
        let refused = connector.connect_where(name(), |_| false).await;
        assert!(matches!(refused, Err(ConnectError::NotAllowed)), "{refused:?}");
        let made = connector.connect_where(name(), |address| address.is_ipv4()).await.unwrap();
        assert!(matches!(made, Stream::Tcp(made) if made.peer_addr().unwrap().port() == port));
        // an address says itself where it is
        let address = Address::Socket(listener.local_addr().unwrap());
        assert!(connector.connect_where(address, |_| false).await.is_ok());
        // what has no address at all is not what may not be
        assert!(only(Vec::new(), |_| false).unwrap().is_empty());
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn unix_sockets() {
        let path = std::env::temp_dir().join(format!("portcullis-endpoint-{}.sock", std::process::id()));
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let endpoint: crate::Endpoint = format!("unix:{}", path.display()).parse().unwrap();
        let connecting = Connector::default().connect(endpoint.address().clone());
        let (stream, _) = tokio::join!(connecting, listener.accept());
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(stream.unwrap(), Stream::Unix(_)));
    }
}
