//! Where proxy and upstream meet: a cluster's client as the service that the proxy forwards to.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response, StatusCode, header};
use portcullis_conn::ConnInfo;
use portcullis_middleware::access_log::UpstreamName;
use portcullis_proxy::{ClientFault, Fault, InternalFault, Kind, UpstreamFault, UpstreamTunnel};
use portcullis_upstream::{
    BoxError, Client, ClientAddresses, ClientIp, EndpointName, Error, HashKey, PreferEndpoint, StickyCookie,
    UpgradedSlot,
};
use tower_service::Service;

use crate::{
    Body,
    access_log::watch,
    clusters::ClusterPart,
    connect::{ToEndpoint, UpstreamIo},
    h3_cluster::H3Cluster,
};

/// Sends what the proxy has made ready to one cluster.
#[derive(Clone, Debug)]
pub(crate) struct ToCluster {
    /// One reference, and one that no other worker counts: it is cloned for every request.
    client: Arc<Way>,
    /// The cluster's name.
    name: Arc<str>,
    extras: Extras,
}

/// How a cluster's endpoints are spoken to.
#[derive(Debug)]
enum Way {
    Streams(Client<ToEndpoint>),
    Http3(H3Cluster),
}

impl Way {
    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, Error> {
        match self {
            Self::Streams(client) => Ok(client.send(request).await?.map(Body::from)),
            Self::Http3(client) => Box::pin(client.send(request)).await,
        }
    }
}

/// What some clusters want to know of a request and others do not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extras {
    /// Connections are told whose request they carry.
    pub(crate) per_client: bool,
    /// The client's address is hashed.
    pub(crate) by_client: bool,
    /// Sessions stay where they are.
    pub(crate) sticky: Option<Arc<StickyCookie>>,
}

impl Extras {
    pub(crate) fn of(part: &ClusterPart) -> Self {
        let options = part.cluster.options();
        Self {
            per_client: options.connection_per_client,
            by_client: options.balance.hash_on.contains(&HashKey::ClientIp),
            sticky: part.sticky.clone(),
        }
    }

    /// Puts it among the extensions. Gives back the endpoint that the session's cookie names.
    fn add(&self, request: &mut Request<Body>) -> Option<u64> {
        if self.per_client
            && let Some(info) = request.extensions().get::<Arc<ConnInfo>>()
        {
            let addresses = ClientAddresses { peer: info.peer, local: info.local };
            request.extensions_mut().insert(addresses);
        }
        if self.by_client
            && let Some(client) = request.extensions().get::<portcullis_middleware::ClientIp>()
        {
            let client = ClientIp(client.0);
            request.extensions_mut().insert(client);
        }
        let identity = self.sticky.as_ref()?.read(request.headers())?;
        request.extensions_mut().insert(PreferEndpoint(identity));
        Some(identity)
    }
}

impl ToCluster {
    pub(crate) fn new(client: Client<ToEndpoint>, name: &str, extras: Extras) -> Self {
        Self { client: Arc::new(Way::Streams(client)), name: name.into(), extras }
    }

    pub(crate) fn by_http3(client: H3Cluster, name: &str, extras: Extras) -> Self {
        Self { client: Arc::new(Way::Http3(client)), name: name.into(), extras }
    }
}

impl Service<Request<Body>> for ToCluster {
    type Response = Response<Body>;
    type Error = Fault;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Fault>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let client = Arc::clone(&self.client);
        let at = self.extras.add(&mut request);
        watch(&mut request, &self.name);
        let sticky = self.extras.sticky.clone();
        Box::pin(async move {
            let response = client.send(request).await.map_err(to_fault)?;
            let (mut parts, body) = response.into_parts();
            if parts.status == StatusCode::SWITCHING_PROTOCOLS
                && let Some(slot) = parts.extensions.remove::<UpgradedSlot<UpstreamIo>>()
                && let Some(stream) = slot.take()
            {
                parts.extensions.insert(UpstreamTunnel::new(stream));
            }
            if let Some(EndpointName(name)) = parts.extensions.remove::<EndpointName>() {
                if let Some(sticky) = sticky
                    && at != Some(StickyCookie::identity(&name))
                    && let Some(cookie) = sticky.write(&name)
                {
                    parts.headers.append(header::SET_COOKIE, cookie);
                }
                parts.extensions.insert(UpstreamName(name));
            }
            Ok(Response::from_parts(parts, body))
        })
    }
}

/// Who is at fault, by what the cluster says.
fn to_fault(error: Error) -> Fault {
    let kind = match &error {
        Error::NoEndpoint => Kind::Upstream(UpstreamFault::NoEndpoint),
        Error::QueueTimeout { .. } => Kind::Upstream(UpstreamFault::QueueTimeout),
        Error::Overloaded { .. } => Kind::Upstream(UpstreamFault::Overloaded),
        Error::Resolve { .. } => Kind::Upstream(UpstreamFault::Dns),
        Error::Tls { source, .. } if is_certificate(source) => Kind::Upstream(UpstreamFault::TlsCertificate),
        Error::Tls { .. } => Kind::Upstream(UpstreamFault::TlsFailed),
        Error::TlsTimeout { .. } => Kind::Upstream(UpstreamFault::TlsTimeout),
        Error::Connect { .. } => Kind::Upstream(UpstreamFault::ConnectFailed),
        Error::ConnectTimeout { .. } => Kind::Upstream(UpstreamFault::ConnectTimeout),
        Error::ReadTimeout { .. } => Kind::Upstream(UpstreamFault::ReadTimeout),
        Error::TotalTimeout => Kind::Upstream(UpstreamFault::TotalTimeout),
        Error::ResponseTimeout { .. } | Error::WriteTimeout { .. } => {
            Kind::Upstream(UpstreamFault::ResponseTimeout)
        }
        Error::Closed { .. } | Error::Reset { .. } => Kind::Upstream(UpstreamFault::Closed),
        Error::Protocol { .. } | Error::NoExtendedConnect { .. } => Kind::Upstream(UpstreamFault::Protocol),
        Error::RequestTimeout => Kind::Client(ClientFault::Timeout),
        error if is_slow_body(error) => Kind::Client(ClientFault::Timeout),
        Error::RequestBody { .. } | Error::InvalidRequest { .. } => Kind::Client(ClientFault::Malformed),
        _ => Kind::Internal(InternalFault::Failed),
    };
    Fault::new(kind).with_source(error)
}

/// Whether a handshake failed because of the endpoint's certificate.
fn is_certificate(error: &BoxError) -> bool {
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    let tls = inner.and_then(|error| error.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
}

/// Whether it is the client's body that came too slowly.
fn is_slow_body(error: &Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.downcast_ref::<portcullis_server::BodyError>().is_some_and(|error| error.is_timeout()) {
            return true;
        }
        cause = error.source();
    }
    false
}
