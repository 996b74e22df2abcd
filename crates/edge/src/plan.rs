//! The typed description of a whole edge: what a configuration file lowers to and what the builder fills in.
//!
//! A plan is plain data. Making one opens nothing; [`Plan::check`] finds what contradicts itself, and
//! [`crate::Edge::new`] turns it into sockets and tasks.

use std::{fmt, net::SocketAddr, num::NonZeroUsize, sync::Arc, time::Duration};

use ipnet::IpNet;

use portcullis_cache::CacheOptions;
use portcullis_h3::QuicOptions;
use portcullis_listener::{
    ClientLimit, ListenAddr, OverLimit, ProxyProtocolOptions, TcpOptions, UdpOptions, UnixOptions,
};
use portcullis_middleware::rate_limit::{RateRule, redis::RedisOptions};
use portcullis_proxy::{ForwardedOptions, PathRules, RelayOptions, UpgradeProtocols, Via};
use portcullis_server::HttpOptions;
use portcullis_tls::{CertStore, ReloadOptions};

pub use portcullis_tls::CertSource as CertificateSource;

pub use crate::acme_plan::{AcmePlan, AcmeStorage, DnsHookPlan, ExternalAccountPlan, OnDemandPlan};
pub use crate::admission_plan::{
    BasicAuthPlan, CorsOrigins, CorsPlan, CsrfPlan, FilterPlan, ForwardAuthPlan, JwtKeys, JwtPlan,
};
pub use crate::chain_plan::{ChainPlan, MaintenancePlan, Setting};
pub use crate::cluster_plan::{
    ClusterPlan, DiscoveryPlan, EndpointPlan, ProxyHeader, StickyPlan, UpstreamRoots, UpstreamTlsPlan,
};
pub use crate::connect_plan::ConnectPlan;
pub use crate::log_plan::{AccessLogPlan, LogOutput, Overflow};
pub use crate::qlog::QlogPlan;
pub use crate::quic_plan::{QuicFileError, QuicPlan, RoutableIdsPlan, hex, read_key};
pub use crate::request_id_plan::{RequestIdPlan, TrustIds};
pub use crate::route_plan::{EarlyPlan, MirrorPlan, RewritePlan, RouteAction, RoutePlan, UpstreamHost};
pub use crate::tls_plan::{ClientAuthPlan, HostTlsPlan, ResumptionPlan, TlsPlan, WithoutCertificate};

/// A whole edge.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Plan {
    /// How the work is spread over the cores.
    pub workers: Workers,
    /// Where to listen. At least one.
    pub listeners: Vec<ListenerPlan>,
    /// Where certificates come from. At least one if a listener speaks TLS and there is no [`Plan::cert_store`] and no [`Plan::acme`].
    pub certificates: Vec<CertificateSource>,
    /// How files are followed: of certificates, ticket keys and revocation lists, and those that chains name.
    pub certificate_reload: ReloadOptions,
    /// A store that the program fills by itself, in place of [`Plan::certificates`].
    pub cert_store: Option<Arc<CertStore>>,
    /// Certificates by ACME, beside those of [`Plan::certificates`] or the program's own. Default `None`.
    pub acme: Option<AcmePlan>,
    /// Which request goes where; the most specific route wins, see `portcullis_proxy::router`.
    pub routes: Vec<RoutePlan>,
    /// What happens to every path before anything is decided by it. Default: nothing, paths are routed and forwarded as received.
    pub paths: PathRules,
    /// The clusters that routes name.
    pub clusters: Vec<ClusterPlan>,
    /// Where `/metrics` and `/health` are served in plain HTTP. Default `None`: nowhere.
    pub admin: Option<AdminPlan>,
    /// The access log, once for each of its destinations. Default: none.
    pub access_log: Vec<AccessLogPlan>,
    /// Ids of requests. Default `None`: an error's answer names one, and nothing else does.
    pub request_id: Option<RequestIdPlan>,
    /// Peers whose `X-Forwarded-*` and `Forwarded` fields are believed. Default empty: nobody's.
    pub trusted_proxies: Vec<IpNet>,
    /// Which fields tell the clusters of the client. Default `X-Forwarded-*` and `X-Real-IP`.
    pub forwarded: ForwardedOptions,
    /// What the edge calls itself in `Via` (RFC 9110 section 7.6.3), in requests and responses. Default `None`: it adds none.
    pub via: Option<Via>,
    /// WebSockets and what else leaves HTTP behind.
    pub upgrades: UpgradePlan,
    /// Tunnels by CONNECT. Default `None`: every CONNECT is answered 501.
    pub connect: Option<ConnectPlan>,
    /// How a request that could not be forwarded is answered. Default: text, JSON or HTML by its `Accept`.
    pub errors: portcullis_proxy::AnswerOptions,
    /// What all QUIC endpoints have in common.
    pub quic: QuicPlan,
    /// Limits over all listeners.
    pub limits: Limits,
    /// Called on the thread of each worker after idle connections gave their buffers back, once a second at most: a program whose allocator
    /// keeps what is freed can tell it to give that back to the system. Work-stealing workers call it on one of their threads. It must not
    /// block. Default `None`.
    pub give_back: Option<fn()>,
    /// How long a drain may take before what is left is aborted. Default 10 s.
    pub drain_timeout: Duration,
    /// How long `/health` says 503 before the drain begins, while everything goes on as before: time for a balancer in
    /// front to notice and send its clients elsewhere. Default 0.
    pub drain_delay: Duration,
    /// The path that answers GET and HEAD with the edge's own health on every listener, before any route; `None` is no
    /// such path. Default `/health`.
    pub health_path: Option<String>,
    /// What the requests pass of every route that has nothing of its own there, and those that no route is for. Default: nothing.
    pub chain: ChainPlan,
    /// The store of the shared response cache; `None` (the default) caches nothing. Another one begins empty.
    pub cache: Option<CacheOptions>,
    /// Where the rules of rate limits keep their buckets that say so (`RateRule::shared`); `None` (the default) is nowhere. Needs the feature `redis`; without it a plan
    /// that has one is refused.
    pub rate_store: Option<RedisOptions>,
}

impl Plan {
    /// The rules that limit rates, of all chains.
    pub(crate) fn rate_rules(&self) -> impl Iterator<Item = &RateRule> {
        crate::parts::chains(self).filter_map(|chain| chain.rate_limit.own()).flat_map(|limit| &limit.rules)
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            workers: Workers::default(),
            listeners: Vec::new(),
            certificates: Vec::new(),
            certificate_reload: ReloadOptions::default(),
            cert_store: None,
            acme: None,
            routes: Vec::new(),
            paths: PathRules::default(),
            clusters: Vec::new(),
            admin: None,
            access_log: Vec::new(),
            request_id: None,
            trusted_proxies: Vec::new(),
            forwarded: ForwardedOptions::default(),
            via: None,
            upgrades: UpgradePlan::default(),
            connect: None,
            errors: portcullis_proxy::AnswerOptions::default(),
            quic: QuicPlan::default(),
            limits: Limits::default(),
            give_back: None,
            drain_timeout: Duration::from_secs(10),
            drain_delay: Duration::ZERO,
            health_path: Some("/health".to_owned()),
            chain: ChainPlan::default(),
            cache: None,
            rate_store: None,
        }
    }
}

/// How the work is spread over the cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Workers {
    /// One single-threaded runtime, one listening socket and one upstream pool per worker, 255 at most; `None` is
    /// one worker per core. The default: it costs the least CPU per request.
    PerCore(Option<NonZeroUsize>),
    /// One multi-threaded runtime with work stealing; `None` is one thread per core. The choice when a few
    /// connections do most of the work.
    WorkStealing(Option<NonZeroUsize>),
}

impl Default for Workers {
    fn default() -> Self {
        Self::PerCore(None)
    }
}

/// Where a listener's sockets come from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListenOn {
    /// The edge makes them. With port 0 the system chooses one.
    Address(ListenAddr),
    /// A parent made them and handed them over under this name, see [`crate::EdgeBuilder::inherit`]; with systemd
    /// that is `FileDescriptorName=` of the socket unit.
    Inherited(String),
}

impl ListenOn {
    /// The IP address and port, where that is known before anything is bound.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Address(address) => address.ip(),
            Self::Inherited(_) => None,
        }
    }
}

impl From<SocketAddr> for ListenOn {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address.into())
    }
}

impl From<ListenAddr> for ListenOn {
    fn from(address: ListenAddr) -> Self {
        Self::Address(address)
    }
}

impl fmt::Display for ListenOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Inherited(name) => write!(f, "inherited:{name}"),
        }
    }
}

/// One address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListenerPlan {
    /// Where.
    pub address: ListenOn,
    /// What is spoken there.
    pub mode: ListenerMode,
    /// For an IPv6 address: whether IPv4 is kept out (`IPV6_V6ONLY`). Default `false`: `[::]` serves both.
    pub only_v6: bool,
    /// Whether other processes of the same user may listen on the same port (`SO_REUSEPORT`), as several instances of
    /// an edge do. Default `false`: the port is this edge's alone.
    pub shared: bool,
    /// Whether `[::]` may become `0.0.0.0` on a system without IPv6. Default `false`: that is an error.
    pub v4_fallback: bool,
    /// Open connections of this listener, over all workers, as backpressure; `None` (the default) leaves it to
    /// [`Limits::max_connections`] alone.
    pub max_connections: Option<usize>,
    /// Reads the PROXY protocol from the proxies that it names. Default `None`: nobody speaks it here. On TCP and unix
    /// sockets only, never on QUIC.
    pub proxy_protocol: Option<ProxyProtocolOptions>,
    /// Mode and owner of a unix socket.
    pub unix: UnixOptions,
    /// TLS, where it is spoken.
    pub tls: TlsPlan,
    /// TCP socket options.
    pub tcp: TcpOptions,
    /// UDP socket options, for HTTP/3.
    pub udp: UdpOptions,
    /// HTTP/1.1 and HTTP/2 limits and deadlines.
    pub http: HttpOptions,
    /// QUIC limits and deadlines.
    pub quic: QuicOptions,
}

impl ListenerPlan {
    /// A listener with default options.
    pub fn new(address: impl Into<ListenOn>, mode: ListenerMode) -> Self {
        Self {
            address: address.into(),
            mode,
            only_v6: false,
            shared: false,
            v4_fallback: false,
            max_connections: None,
            proxy_protocol: None,
            unix: UnixOptions::default(),
            tls: TlsPlan::default(),
            tcp: TcpOptions::default(),
            udp: UdpOptions::default(),
            http: HttpOptions::default(),
            quic: QuicOptions::default(),
        }
    }
}

impl ListenerPlan {
    /// Whether HTTP/3 is spoken and told of.
    pub(crate) fn has_http3(&self) -> bool {
        matches!(self.mode, ListenerMode::Https { http3: true, .. })
    }

    /// Whether requests may come before the handshake is complete.
    pub(crate) fn takes_early_data(&self) -> bool {
        matches!(self.mode, ListenerMode::Https { .. })
            && matches!(self.tls.resumption, ResumptionPlan::ZeroRtt(_))
    }

    /// Whether hosts differ in what TLS asks of clients.
    pub(crate) fn has_host_policies(&self) -> bool {
        matches!(self.mode, ListenerMode::Https { .. }) && !self.tls.hosts.is_empty()
    }
}

/// What a listener speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListenerMode {
    /// TLS with HTTP/1.1 and HTTP/2 by ALPN.
    Https {
        /// HTTP/3 on the UDP port of the same number, advertised by `Alt-Svc`.
        http3: bool,
        /// What happens to plain HTTP on this port.
        plain_http: PlainHttp,
    },
    /// Plain HTTP/1.1, and HTTP/2 by prior knowledge (RFC 9113 section 3.3).
    Http,
    /// Plain HTTP that answers every request with a redirect to HTTPS.
    RedirectToHttps {
        /// The port that the redirect names; 443 is left out of the URL.
        port: u16,
    },
}

/// What happens to plain HTTP on a TLS port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum PlainHttp {
    /// Answered with a redirect to `https://` on the same port.
    #[default]
    Redirect,
    /// The connection is closed.
    Refuse,
    /// Routed like any other, HTTP/2 by prior knowledge too; a layer tells the two apart by
    /// [`ConnInfo::is_secure`](portcullis_conn::ConnInfo::is_secure).
    Serve,
}

/// Where the admin service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdminPlan {
    /// Plain HTTP; keep it on loopback or a private network.
    pub address: SocketAddr,
}

impl AdminPlan {
    /// On this address.
    pub fn new(address: SocketAddr) -> Self {
        Self { address }
    }
}

/// WebSockets and other protocols that clients may change to on a connection or stream of theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpgradePlan {
    /// Which. Default `websocket`. With none of them every upgrade is forwarded as a plain request.
    pub protocols: UpgradeProtocols,
    /// Whether HTTP/2 offers them too, by extended CONNECT (RFC 8441). Default `true`: browsers that see the offer open
    /// WebSockets on the connection that they have.
    pub http2: bool,
    /// How the tunnels are relayed.
    pub relay: RelayOptions,
}

impl Default for UpgradePlan {
    fn default() -> Self {
        Self { protocols: UpgradeProtocols::default(), http2: true, relay: RelayOptions::default() }
    }
}

impl UpgradePlan {
    /// Whether HTTP/2 has anything to offer.
    pub(crate) fn over_http2(&self) -> bool {
        self.http2 && !self.protocols.is_empty()
    }
}

/// Limits over all listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Open TCP and unix connections over all listeners. `None` (the default) is as many as the descriptors of this
    /// process carry, and 1000 at most; see `portcullis_listener::DescriptorBudget`. More than they carry is refused
    /// when the edge is made. Worst-case memory is about this many times 100 KiB plus the bodies in flight.
    pub max_connections: Option<usize>,
    /// What happens past it. Default: clients wait in the kernel's queue.
    pub over: OverLimit,
    /// Open connections of one client over all listeners; `None` (the default) is no limit. The peers of
    /// [`Plan::trusted_proxies`] and those that speak the PROXY protocol are not counted: behind them are many.
    pub per_client: Option<ClientLimit>,
    /// Descriptors that accepting connections leaves free for the work on those that are open. Default 32.
    pub headroom: u32,
    /// Open QUIC connections over all listeners; past it new ones are refused. Default 1000. Worst-case memory of each
    /// is in the documentation of `portcullis_h3::QuicOptions`.
    pub max_quic_connections: usize,
    /// Open tunnels (WebSocket and other upgrades, CONNECT). Past it an upgrade or a CONNECT is answered 503. Default 1000.
    pub max_tunnels: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: None,
            over: OverLimit::Wait,
            per_client: None,
            headroom: 32,
            max_quic_connections: 1000,
            max_tunnels: 1000,
        }
    }
}
