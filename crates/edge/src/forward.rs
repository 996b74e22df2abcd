//! Where proxy and upstream meet: a cluster's client as the service that the proxy forwards to.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response, StatusCode};
use portcullis_middleware::access_log::UpstreamName;
use portcullis_proxy::{ClientFault, Fault, InternalFault, Kind, UpstreamFault, UpstreamTunnel};
use portcullis_upstream::{Client, EndpointName, Error, TcpConnector, UpgradedSlot};
use tokio::net::TcpStream;
use tower_service::Service;

use crate::Body;

/// Sends what the proxy has made ready to one cluster.
#[derive(Clone, Debug)]
pub(crate) struct ToCluster {
    /// One reference, and one that no other worker counts: it is cloned for every request.
    client: Arc<Client<TcpConnector>>,
}

impl ToCluster {
    pub(crate) fn new(client: Client<TcpConnector>) -> Self {
        Self { client: Arc::new(client) }
    }
}

impl Service<Request<Body>> for ToCluster {
    type Response = Response<Body>;
    type Error = Fault;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Fault>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let client = Arc::clone(&self.client);
        Box::pin(async move {
            let response = client.send(request).await.map_err(to_fault)?;
            let (mut parts, body) = response.into_parts();
            if parts.status == StatusCode::SWITCHING_PROTOCOLS
                && let Some(slot) = parts.extensions.remove::<UpgradedSlot<TcpStream>>()
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
        Error::Overloaded { .. } => Kind::Upstream(UpstreamFault::Overloaded),
        Error::Connect { .. } => Kind::Upstream(UpstreamFault::ConnectFailed),
        Error::ConnectTimeout { .. } => Kind::Upstream(UpstreamFault::ConnectTimeout),
        Error::ResponseTimeout { .. } | Error::ReadTimeout { .. } | Error::WriteTimeout { .. } => {
            Kind::Upstream(UpstreamFault::ResponseTimeout)
        }
        Error::Closed { .. } => Kind::Upstream(UpstreamFault::Closed),
        Error::Protocol { .. } => Kind::Upstream(UpstreamFault::Protocol),
        Error::RequestTimeout => Kind::Client(ClientFault::Timeout),
        error if is_slow_body(error) => Kind::Client(ClientFault::Timeout),
        Error::RequestBody { .. } | Error::InvalidRequest { .. } => Kind::Client(ClientFault::Malformed),
        _ => Kind::Internal(InternalFault::Failed),
    };
    Fault::new(kind).with_source(error)
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
