//! Endpoints and how to reach them.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::net::TcpStream;
use tower_service::Service;

/// One endpoint of a cluster: `host:port`, where host is a name, an IPv4 address or an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub(crate) name: Arc<str>,
    pub(crate) address: Address,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// An IP address and port.
    Socket(SocketAddr),
    /// A name that is resolved for every new connection, and a port.
    Name {
        /// The name.
        host: Arc<str>,
        /// The port.
        port: u16,
    },
}

impl Endpoint {
    /// The text it was made from.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(addr: SocketAddr) -> Self {
        Self { name: addr.to_string().into(), address: Address::Socket(addr) }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// An endpoint that is not `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not host:port, such as 127.0.0.1:3000, [::1]:3000 or app.internal:3000")]
pub struct InvalidEndpoint {
    text: String,
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidEndpoint { text: text.to_owned() };
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return if addr.port() == 0 { Err(invalid()) } else { Ok(addr.into()) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(invalid)?;
        let is_name = !host.is_empty()
            && host.len() <= 253
            && host.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            })
            // all digits and dots is a mistyped IPv4 address, not a name
            && !host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if !is_name {
            return Err(invalid());
        }
        Ok(Self { name: text.into(), address: Address::Name { host: host.into(), port } })
    }
}

/// Connects by TCP, with Nagle's algorithm off; a name's addresses are tried in turn.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpConnector;

impl Service<Address> for TcpConnector {
    type Response = TcpStream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, address: Address) -> Self::Future {
        Box::pin(async move {
            let stream = match address {
                Address::Socket(addr) => TcpStream::connect(addr).await?,
                Address::Name { host, port } => TcpStream::connect((&*host, port)).await?,
            };
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_that_are_one() {
        for text in ["127.0.0.1:80", "[::1]:3000", "app:1", "a-b.example.com:65535", "x_y:9"] {
            assert_eq!(text.parse::<Endpoint>().map(|e| e.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn endpoints_that_are_none() {
        for text in [
            "",
            ":80",
            "127.0.0.1",
            "host:",
            "host:0",
            "127.0.0.1:0",
            "host:70000",
            "a b:1",
            "::1:80",
            "1.2.3:80",
            "http://a:1",
            "a..b:1",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
