//! The plan of a cluster: where its endpoints are, how they are spoken to, and who watches over them.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use portcullis_tls::{
    Versions,
    client::{ClientConfigError, Roots},
};
use portcullis_upstream::discovery::{DnsOptions, DnsRecords};
use portcullis_upstream::health::HealthOptions;
use portcullis_upstream::{ClusterOptions, Endpoint, InvalidEndpoint, Protocol};

/// A cluster of upstream endpoints.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ClusterPlan {
    /// How routes name it.
    pub name: String,
    /// Its endpoints: at least one, and none with [`ClusterPlan::discovery`].
    pub endpoints: Vec<EndpointPlan>,
    /// Where its endpoints are found while the edge runs. Default `None`: they are those of [`ClusterPlan::endpoints`].
    pub discovery: Option<DiscoveryPlan>,
    /// TLS towards them. Default `None`: plain.
    pub tls: Option<UpstreamTlsPlan>,
    /// Whether HTTP/3 is spoken to them (RFC 9114), over one QUIC connection to each from every worker; it needs [`ClusterPlan::tls`]. Default
    /// `false`, and then [`ClusterOptions::protocol`] says what is. Of [`ClusterPlan::options`] what bounds connections over TCP has no meaning
    /// then, requests with a body are sent once, and checks go over TCP as ever.
    pub http3: bool,
    /// A header of the PROXY protocol before each connection, which is then for one client alone. Default `None`.
    pub proxy_header: Option<ProxyHeader>,
    /// Checks that the edge makes of them. Default `None`: only requests tell.
    pub health: Option<HealthOptions>,
    /// A cookie that keeps a session at its endpoint. Default `None`.
    pub sticky: Option<StickyPlan>,
    /// Protocol, timeouts, bounds, balancing, retries and failure handling.
    pub options: ClusterOptions,
}

impl ClusterPlan {
    /// A cluster with default options.
    pub fn new(
        name: impl Into<String>,
        endpoints: impl IntoIterator<Item = impl Into<EndpointPlan>>,
    ) -> Self {
        Self {
            name: name.into(),
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            discovery: None,
            tls: None,
            http3: false,
            proxy_header: None,
            health: None,
            sticky: None,
            options: ClusterOptions::default(),
        }
    }

    /// A cluster with default options whose endpoints are found while the edge runs.
    pub fn discovered(name: impl Into<String>, discovery: DiscoveryPlan) -> Self {
        Self { discovery: Some(discovery), ..Self::new(name, [] as [EndpointPlan; 0]) }
    }

    /// Speaks TLS to the endpoints.
    #[must_use]
    pub fn with_tls(mut self, tls: UpstreamTlsPlan) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets [`ClusterPlan::http3`].
    #[must_use]
    pub fn with_http3(mut self, http3: bool) -> Self {
        self.http3 = http3;
        self
    }

    /// Sets [`ClusterPlan::options`].
    #[must_use]
    pub fn with_options(mut self, options: ClusterOptions) -> Self {
        self.options = options;
        self
    }

    /// What is offered by ALPN (RFC 7301).
    pub(crate) fn alpn(&self) -> &'static [&'static [u8]] {
        match self.options.protocol {
            Protocol::Http2 => &[b"h2"],
            Protocol::ByAlpn => &[b"h2", b"http/1.1"],
            _ => &[b"http/1.1"],
        }
    }
}

/// Where the endpoints of a cluster are found. Until there is a first list requests wait for it, each for
/// [`ClusterOptions::queue_timeout`]; then the edge answers 503.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiscoveryPlan {
    /// A file of at most 1 MiB: an endpoint a line, `host:port weight=2 priority=1 zone=a`, and what follows a `#` is a comment. While it is
    /// empty, wrong or gone, the last list stays.
    File {
        /// Where it is.
        path: PathBuf,
        /// How often it is read.
        interval: Duration,
    },
    /// Records in DNS, asked for again as their TTL ends. While there is no answer, or none with endpoints, the last list stays.
    Dns {
        /// The name, taken as it is: search domains have no part in it.
        name: String,
        /// Addresses, or SRV records.
        records: DnsRecords,
        /// Who is asked, and how often.
        options: DnsOptions,
    },
}

/// An endpoint of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndpointPlan {
    /// `host:port`, or `unix:` and a path. A name is resolved when a connection is made.
    pub address: String,
    /// Its share beside that of others, 1 to 1000. Default 1.
    pub weight: u32,
    /// Its level: endpoints of a higher number are used when too few of those of lower ones are left. Default 0.
    pub priority: u8,
    /// Where it stands. Default `None`.
    pub zone: Option<String>,
}

impl<T: Into<String>> From<T> for EndpointPlan {
    fn from(address: T) -> Self {
        Self { address: address.into(), weight: 1, priority: 0, zone: None }
    }
}

impl EndpointPlan {
    pub(crate) fn endpoint(&self) -> Result<Endpoint, InvalidEndpoint> {
        let endpoint: Endpoint = self.address.parse()?;
        Ok(endpoint
            .with_weight(self.weight)
            .with_priority(self.priority)
            .with_zone(self.zone.as_deref().map(Arc::from)))
    }
}

/// A cookie that keeps a session at its endpoint. What it holds is sealed.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StickyPlan {
    /// Its name. Default `portcullis_sticky`.
    pub name: Option<String>,
    /// The key that seals it: the same one for all instances that share clients. Default `None`: a random one, so that a restart moves sessions.
    pub key: Option<[u8; 32]>,
    /// Whether clients send it over TLS alone. Default `false`.
    pub secure: bool,
    /// How long clients keep it. Default `None`: until they are closed.
    pub max_age: Option<Duration>,
}

impl StickyPlan {
    /// A cookie with the defaults.
    pub fn new() -> Self {
        Self { name: None, key: None, secure: false, max_age: None }
    }
}

impl Default for StickyPlan {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for StickyPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StickyPlan")
            .field("name", &self.name)
            .field("secure", &self.secure)
            .finish_non_exhaustive()
    }
}

/// The version of the PROXY protocol that is spoken to endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProxyHeader {
    /// Version 1, a line of text.
    V1,
    /// Version 2, in binary.
    V2,
}

/// TLS towards endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpstreamTlsPlan {
    /// The name that endpoints are asked for (SNI) and must prove. Default `None`: the host of each endpoint. A unix socket needs one.
    pub server_name: Option<String>,
    /// Which endpoints are believed. Default [`UpstreamRoots::Native`].
    pub roots: UpstreamRoots,
    /// The protocol versions. Default [`Versions::Tls12AndUp`]: many servers behind a proxy are old.
    pub versions: Versions,
    /// Chain and key, in PEM, to show where an endpoint asks for a certificate. Default `None`.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Default for UpstreamTlsPlan {
    fn default() -> Self {
        Self {
            server_name: None,
            roots: UpstreamRoots::Native,
            versions: Versions::Tls12AndUp,
            identity: None,
        }
    }
}

/// Which endpoints are believed. Files are read when the edge is made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UpstreamRoots {
    /// Those of whom an authority of the system's store vouches.
    Native,
    /// Those of whom an authority in this PEM file vouches.
    File(PathBuf),
    /// Those of whom one of these vouches.
    Given(Roots),
    /// Every one, whoever it is: who stands in between reads and changes everything. For tests alone.
    DangerouslyAcceptAnyCertificate,
}

impl UpstreamRoots {
    pub(crate) fn load(&self) -> Result<Roots, ClientConfigError> {
        match self {
            Self::Native => Ok(Roots::Native),
            Self::File(path) => Roots::from_file(path),
            Self::Given(roots) => Ok(roots.clone()),
            Self::DangerouslyAcceptAnyCertificate => Ok(Roots::DangerouslyAcceptAnyCertificate),
        }
    }
}
