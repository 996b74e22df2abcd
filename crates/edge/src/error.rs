//! What keeps an edge from starting or running.

use std::io;

use crate::plan::ListenOn;

/// Why an edge does not start, or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EdgeError {
    /// The plan contradicts itself.
    #[error("the plan can not be carried out")]
    Plan(#[from] PlanFault),
    /// Sockets clash with one another.
    #[error("the listeners clash with one another")]
    Listeners(#[source] portcullis_listener::PlanError),
    /// A socket could not be bound.
    #[error("could not listen")]
    Bind(#[source] portcullis_listener::BindError),
    /// A listener wants sockets that were not handed over, or that are of the wrong kind.
    #[error("the listener {address} has no socket: {why}")]
    NotInherited {
        /// What was asked for.
        address: ListenOn,
        /// What there is instead, and what to do.
        why: String,
    },
    /// The system refused something about a socket that was handed over.
    #[error("could not use a socket that was handed over")]
    Inherited(#[source] io::Error),
    /// The descriptors of this process do not carry the connections that are asked for.
    #[error("max_connections is too high")]
    Descriptors(#[source] portcullis_listener::TooManyConnections),
    /// The file of a maintenance page could not be read.
    #[error("could not read the maintenance page {}", path.display())]
    MaintenancePage {
        /// Where.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A certificate could not be used.
    #[error("could not use a certificate")]
    Certificate(#[source] portcullis_tls::CertError),
    /// The file of ticket keys could not be used.
    #[error("could not use the ticket keys")]
    TicketKeys(#[source] portcullis_tls::TicketKeyError),
    /// The authorities or revocation lists for clients' certificates could not be used.
    #[error("could not use the authorities for clients' certificates")]
    ClientCas(#[source] portcullis_tls::ClientCaError),
    /// Certificates by ACME could not be set up.
    #[error("could not set up ACME")]
    Acme(#[source] portcullis_acme::AcmeError),
    /// The roots for the ACME authority could not be used.
    #[error("could not use the roots for the ACME authority")]
    AcmeRoots(#[source] portcullis_tls::client::ClientConfigError),
    /// TLS could not be set up.
    #[error("could not set up TLS")]
    Tls(#[source] portcullis_tls::ConfigError),
    /// Keys of QUIC could not be used.
    #[error("could not use the keys of QUIC")]
    QuicFile(#[from] crate::plan::QuicFileError),
    /// QUIC could not be set up.
    #[error("could not set up QUIC on {address}")]
    Quic {
        /// Where.
        address: String,
        /// Why.
        source: portcullis_h3::EndpointError,
    },
    /// The access log could not be opened.
    #[error("could not open the access log")]
    AccessLog(#[source] portcullis_telemetry::access_log::WriterError),
    /// A file that a chain needs could not be used.
    #[error("could not use {}", path.display())]
    File {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        source: crate::BoxError,
    },
    /// The store of the rate limits could not be used.
    #[error("could not use the store of the rate limits")]
    RateStore(#[source] crate::BoxError),
    /// The cache's second tier could not be made ready.
    #[error("could not open the cache on disk")]
    Cache(#[source] portcullis_cache::DiskError),
    /// Two metrics have one name: a defect of this crate.
    #[error("could not register the metrics")]
    Metrics(#[source] portcullis_telemetry::metrics::MetricError),
    /// The operating system refused something a worker needs.
    #[error("a worker could not start")]
    Worker(#[source] io::Error),
    /// A listener stopped serving although nobody asked it to: a defect of the program, or a socket that failed.
    #[error("a listener stopped serving by itself")]
    ListenerEnded,
    /// A worker did not end with the drain: a service blocks its thread.
    #[error("a worker did not end: a service blocks its thread")]
    WorkerStuck,
    /// A reload of an edge that is not running yet, or drains.
    #[error("the edge is not running, or drains already")]
    NotRunning,
    /// The process before this one did not let it take over.
    #[cfg(unix)]
    #[error("could not take over from the process before")]
    TakeOver(#[from] crate::UpgradeError),
    /// A worker panicked: a defect of the program.
    #[error("a worker panicked")]
    WorkerPanicked,
}

/// How a plan contradicts itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanFault {
    /// Nothing to listen on.
    #[error("no listener is given")]
    NoListener,
    /// More workers than a byte of a connection id can name.
    #[error("{0} workers are too many: at most 255 can have sockets of their own")]
    TooManyWorkers(usize),
    /// Clients must show certificates on a listener that lets plain HTTP through to the same routes.
    #[error(
        "{0} asks clients for certificates and serves plain HTTP too, which would lead around it: redirect or refuse plain HTTP, and do not do \
         without a certificate of the listener's own"
    )]
    PlainBesideClientAuth(ListenOn),
    /// TLS without a certificate.
    #[error("{0} speaks TLS, but no certificate is given")]
    NoCertificate(ListenOn),
    /// A rule of a rate limit shares its buckets, and nothing says where.
    #[error("rule `{0}` of a rate limit is shared, but there is no store: `[rate_limit_store]` names one")]
    NoRateStore(String),
    /// Two rules of rate limits share the same buckets, each by its own key or rate.
    #[error(
        "two shared rules of rate limits are called `{0}`, and so have the same buckets, but differ in key or rate: give each a name of its own"
    )]
    RatesClash(String),
    /// A route to a cluster that is not there.
    #[error("a route names cluster `{0}`, which is not defined")]
    UnknownCluster(String),
    /// The rules of a filter can't be.
    #[error("the rules of a filter are wrong")]
    Filter(#[source] portcullis_middleware::filter::FilterError),
    /// What is asked of tokens can't be.
    #[error("the options for tokens are wrong")]
    Jwt(#[source] portcullis_middleware::jwt::JwtError),
    /// Pages of any origin with the user's cookies.
    #[error("CORS for any origin does not go with credentials: every page could act as the user")]
    CorsForAll,
    /// A list of CORS with `*` where it does not stand for all.
    #[error(
        "`{0}` of CORS has `*`, which stands for all neither among origins that are listed nor, where credentials are allowed, among methods and fields"
    )]
    CorsWildcard(&'static str),
    /// A field of a message's frame, or of one hop, that what says who may pass was to set.
    #[error(
        "the field {0} belongs to the message's frame or to one hop: what says who may pass can't set it"
    )]
    ProtectedField(http::HeaderName),
    /// No origin.
    #[error("`{origin}` is no origin")]
    CsrfOrigin {
        /// What is given.
        origin: String,
        /// What is wrong with it.
        source: Box<tower_http::csrf::ConfigError>,
    },
    /// Two clusters of one name.
    #[error("cluster `{0}` is defined twice")]
    DuplicateCluster(String),
    /// A cluster with endpoints of its own, and others that are found.
    #[error("cluster `{0}` names endpoints, and where to find others")]
    EndpointsBesideDiscovery(String),
    /// The endpoints of a cluster can't be asked for.
    #[error("the endpoints of cluster `{cluster}` can't be asked for")]
    Discovery {
        /// The cluster.
        cluster: String,
        /// What is wrong.
        source: portcullis_upstream::discovery::DnsError,
    },
    /// An endpoint that is none.
    #[error("cluster `{cluster}` has a bad endpoint")]
    Endpoint {
        /// The cluster.
        cluster: String,
        /// What is wrong with it.
        source: portcullis_upstream::InvalidEndpoint,
    },
    /// Health checks that can not be.
    #[error("the health checks of cluster `{cluster}` can not be made")]
    Health {
        /// The cluster.
        cluster: String,
        /// Why.
        source: portcullis_upstream::health::InvalidHealthOptions,
    },
    /// A sticky cookie that can not be.
    #[error("the sticky cookie of cluster `{cluster}` can not be made")]
    Sticky {
        /// The cluster.
        cluster: String,
        /// Why.
        source: portcullis_upstream::StickyError,
    },
    /// HTTP/3 is spoken over TLS alone.
    #[error("cluster `{cluster}` speaks HTTP/3, so it needs TLS")]
    Http3WithoutTls {
        /// The cluster.
        cluster: String,
    },
    /// QUIC knows neither unix sockets nor the PROXY protocol.
    #[error(
        "cluster `{cluster}` speaks HTTP/3, which goes neither to unix sockets nor with a PROXY protocol header"
    )]
    Http3Unfit {
        /// The cluster.
        cluster: String,
    },
    /// TLS towards a cluster that can not be.
    #[error("TLS to cluster `{cluster}` can not be set up")]
    UpstreamTls {
        /// The cluster.
        cluster: String,
        /// Why.
        source: portcullis_tls::client::ClientConfigError,
    },
    /// A name that no certificate can have.
    #[error(
        "cluster `{cluster}` has the server name {name:?}, which is neither a host name nor an IP address"
    )]
    UpstreamName {
        /// The cluster.
        cluster: String,
        /// The name.
        name: String,
    },
    /// A cluster that can not be.
    #[error("a cluster can not be made")]
    Cluster(#[from] portcullis_upstream::ClusterError),
    /// A route that can not be, or is there twice.
    #[error("a route can not be made")]
    Route(#[from] portcullis_proxy::RouteError),
    /// A rewrite or a redirect that does not fit its route.
    #[error("what a route makes of the target can not be")]
    Rewrite(#[from] portcullis_proxy::rewrite::RewriteError),
    /// Weights that give nobody a share.
    #[error("the clusters of a route can not share its requests")]
    Split(#[from] portcullis_proxy::split::SplitError),
    /// The `Host` of an endpoint where there are several.
    #[error(
        "cluster `{0}` has several endpoints: a route can not send the endpoint's own name as Host, name one"
    )]
    HostOfEndpoints(String),
}
