//! Endpoints and how to reach them.

use std::{fmt, io, net::SocketAddr, path::Path, str::FromStr, sync::Arc};

use crate::BoxError;

/// One endpoint of a cluster, most easily made from text: `host:port`, where host is a name, an IPv4 address or an IPv6
/// address in brackets, or `unix:` and the path of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub(crate) name: Arc<str>,
    pub(crate) address: Address,
    pub(crate) weight: u32,
    pub(crate) priority: u8,
    pub(crate) zone: Option<Arc<str>>,
    pub(crate) host: Option<Arc<str>>,
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
    /// The path of a unix socket.
    Unix(Arc<Path>),
}

/// The addresses of a client's connection, for a header that tells the upstream of it (the PROXY protocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddresses {
    /// The client's own.
    pub peer: SocketAddr,
    /// The one that it connected to.
    pub local: SocketAddr,
}

/// What a connector is asked for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Destination {
    /// Where to connect to.
    pub address: Address,
    /// The endpoint's name, as it stands in logs and metrics.
    pub endpoint: Arc<str>,
    /// What [`Endpoint::with_host`] said.
    pub host: Option<Arc<str>>,
    /// The client that the connection is for and will be used for alone, see
    /// [`crate::ClusterOptions::connection_per_client`].
    pub client: Option<ClientAddresses>,
}

impl From<&Endpoint> for Destination {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            address: endpoint.address.clone(),
            endpoint: Arc::clone(&endpoint.name),
            host: endpoint.host.clone(),
            client: None,
        }
    }
}

/// Why a connector made no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The endpoint's name has no address.
    #[error("its name could not be resolved")]
    Resolve(#[source] io::Error),
    /// The endpoint's name has addresses, and none of them may be connected to.
    #[error("none of its addresses is allowed")]
    NotAllowed,
    /// The system refused.
    #[error("no connection")]
    Io(#[from] io::Error),
    /// The connection was not made in time.
    #[error("connecting took too long")]
    Timeout,
    /// The TLS handshake failed.
    #[error("the TLS handshake failed")]
    Tls(#[source] BoxError),
    /// The TLS handshake was not over in time.
    #[error("the TLS handshake took too long")]
    TlsTimeout,
}

/// The most that an endpoint can weigh.
pub(crate) const MAX_WEIGHT: u32 = 1000;

impl Endpoint {
    /// An endpoint of any name.
    pub fn new(name: impl Into<Arc<str>>, address: Address) -> Self {
        Self { name: name.into(), address, weight: 1, priority: 0, zone: None, host: None }
    }

    /// How large its share is beside that of others, from 1 to 1000. Default 1.
    #[must_use]
    pub fn with_weight(mut self, weight: u32) -> Self {
        self.weight = weight.clamp(1, MAX_WEIGHT);
        self
    }

    /// Its level: endpoints of a higher number are used when too few of those of lower ones are left. Default 0, the first.
    #[must_use]
    pub fn with_priority(mut self, priority: u8) -> Self {
        self.priority = priority;
        self
    }

    /// Where it stands: endpoints in the client's own zone are preferred. Default none.
    #[must_use]
    pub fn with_zone(mut self, zone: Option<Arc<str>>) -> Self {
        self.zone = zone;
        self
    }

    /// The name of the host whose address it is, if another than the address says: what it proves over TLS, and what checks ask it for. Default
    /// none.
    #[must_use]
    pub fn with_host(mut self, host: Option<Arc<str>>) -> Self {
        self.host = host;
        self
    }

    /// See [`Endpoint::with_weight`].
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// See [`Endpoint::with_priority`].
    pub fn priority(&self) -> u8 {
        self.priority
    }

    /// See [`Endpoint::with_zone`].
    pub fn zone(&self) -> Option<&Arc<str>> {
        self.zone.as_ref()
    }

    /// See [`Endpoint::with_host`].
    pub fn host(&self) -> Option<&Arc<str>> {
        self.host.as_ref()
    }

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
        Self::new(addr.to_string(), Address::Socket(addr))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// An endpoint that is neither `host:port` nor `unix:/path`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not host:port or unix:/path, such as 127.0.0.1:3000, [::1]:3000, app.internal:3000 or unix:/run/app.sock"
)]
pub struct InvalidEndpoint {
    text: String,
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidEndpoint { text: text.to_owned() };
        if let Some(path) = text.strip_prefix("unix:") {
            // what a sockaddr_un holds, with the zero at its end
            let fits = path.starts_with('/') && path.len() < 108 && !path.contains('\0');
            return if fits {
                Ok(Self::new(text, Address::Unix(Path::new(path).into())))
            } else {
                Err(invalid())
            };
        }
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
        Ok(Self::new(text, Address::Name { host: host.into(), port }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_that_are_one() {
        for text in
            ["127.0.0.1:80", "[::1]:3000", "app:1", "a-b.example.com:65535", "x_y:9", "unix:/run/app.sock"]
        {
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
            "unix:",
            "unix:run/app.sock",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
