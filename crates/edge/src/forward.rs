//! Where proxy and upstream meet: a cluster's client as the service that the proxy forwards to.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response, StatusCode};
use portcullis_conn::ConnInfo;
use portcullis_middleware::access_log::UpstreamName;
use portcullis_proxy::{ClientFault, Fault, InternalFault, Kind, UpstreamFault, UpstreamTunnel};
use portcullis_upstream::{Client, ClientAddresses, EndpointName, Error, UpgradedSlot};
use tower_service::Service;

use crate::{
    Body,
    connect::{ToEndpoint, UpstreamIo},
};

/// Sends what the proxy has made ready to one cluster.
#[derive(Clone, Debug)]
pub(crate) struct ToCluster {
    /// One reference, and one that no other worker counts: it is cloned for every request.
    client: Arc<Client<ToEndpoint>>,
    /// Whether connections are told whose request they carry.
    per_client: bool,
}

impl ToCluster {
    pub(crate) fn new(client: Client<ToEndpoint>, per_client: bool) -> Self {
        Self { client: Arc::new(client), per_client }
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
        if self.per_client
            && let Some(info) = request.extensions().get::<Arc<ConnInfo>>()
        {
            let addresses = ClientAddresses { peer: info.peer, local: info.local };
            request.extensions_mut().insert(addresses);
        }
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
                parts.extensions.insert(UpstreamName(name));
            }
            Ok(Response::from_parts(parts, Body::from(body)))
        })
    }
}

/// Who is at fault, by what the cluster says.
fn to_fault(error: Error) -> Fault {
    let kind = match &error {
        Error::NoEndpoint => Kind::Upstream(UpstreamFault::NoEndpoint),
        Error::Overloaded { .. } | Error::QueueTimeout { .. } => Kind::Upstream(UpstreamFault::Overloaded),
        Error::Resolve { .. } | Error::Connect { .. } | Error::Tls { .. } => {
            Kind::Upstream(UpstreamFault::ConnectFailed)
        }
        Error::ConnectTimeout { .. } | Error::TlsTimeout { .. } => {
            Kind::Upstream(UpstreamFault::ConnectTimeout)
        }
        Error::ResponseTimeout { .. }
        | Error::ReadTimeout { .. }
        | Error::WriteTimeout { .. }
        | Error::TotalTimeout => Kind::Upstream(UpstreamFault::ResponseTimeout),
        Error::Closed { .. } | Error::Reset { .. } => Kind::Upstream(UpstreamFault::Closed),
        Error::Protocol { .. } | Error::NoExtendedConnect { .. } => Kind::Upstream(UpstreamFault::Protocol),
        Error::RequestTimeout => Kind::Client(ClientFault::Timeout),
        Error::RequestBody { .. } | Error::InvalidRequest { .. } => Kind::Client(ClientFault::Malformed),
        _ => Kind::Internal(InternalFault::Failed),
    };
    Fault::new(kind).with_source(error)
}
