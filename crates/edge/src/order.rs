//! THE order of the middleware, written once.
//!
//! ```text
//! request  ->  request id -> client address -> metrics -> access log -> field count -> Alt-Svc -> misdirected -> ACME challenge
//!              -> health -> paths -> early data -> identity fields -> route -> its chain (chain.rs) -> what the route does: forward, redirect, answer
//! response <-  the same way back
//! ```
//!
//! Before all of them, fields that the client's `Connection` lists are taken away (RFC 9110 section 7.6.1): what is added from there on can't be listed.
//!
//! Why so: the request's id must be there before anything can be told of it, and what comes with it is believed by the peer, not by the client that a peer names. Who the client is, where a trusted proxy tells it, must be known to the log and the rate limit. Metrics and the log see everything, refusals too. A head with too many fields is refused before anything
//! looks at it. `/health` answers even a client that is over its limit, so that an overloaded edge can still be told
//! from a dead one. A request
//! for another host than its connection was made for is refused before anything answers for that host. An authority that comes to see the answer to its challenge is answered before a limit or a
//! redirect could keep it out. Paths are brought into their one form before anything decides by
//! them, and stay as received in the log. What may be a replay is held before
//! it counts anywhere, and is not held longer than a handshake. Then the route is looked up, since what stands in a request's way from there on may be
//! the route's own; what has no route, and a CONNECT, passes the edge's. Fields
//! by which a chain tells the services behind who the user is are taken away before any route is looked up, so that nobody can set them on a route
//! without that chain, nor be routed by them.

use std::sync::Arc;

use http::{Method, Request, Response, header::CONNECTION};
use hyper::ext::Protocol;
use portcullis_acme::Http01Layer;
use portcullis_conn::{ConnInfo, ConnectProtocol};
use portcullis_middleware::{
    ClientIp, ClientSecure,
    access_log::{self, AccessLogLayer},
    alt_svc::AltSvcLayer,
    early_data::EarlyDataLayer,
    header_limits::HeaderLimitsLayer,
    health::HealthLayer,
    identity::IdentityFields,
    metrics::{self, RequestMetricsLayer},
    misdirected::MisdirectedLayer,
    request_id::RequestIdLayer,
};
use portcullis_proxy::{Trust, client_ip, client_secure, hop::end_nominations};
use std::convert::Infallible;
use tower::{
    ServiceBuilder,
    util::{MapRequestLayer, option_layer},
};
use tower_http::map_response_body::MapResponseBodyLayer;
use tower_service::Service;

use crate::{
    Body, access_log::LogSink, no_tunnel::NoTunnelLayer, observe::Observer, paths::PathsLayer,
    service::EdgeService,
};

type Observed = metrics::ResponseBody<Body, Observer>;
type Logged = access_log::ResponseBody<Body, LogSink>;
type Counted = access_log::RequestBody<Body>;

/// A layer of the program's own.
pub(crate) type UserLayer = Arc<dyn Fn(EdgeService) -> EdgeService + Send + Sync>;

/// What there is to put around the routes. What is `None` costs nothing.
#[derive(Clone)]
pub(crate) struct Order {
    pub(crate) request_id: Option<RequestIdLayer>,
    /// Networks of proxies in front; `None` when there are none.
    pub(crate) trust: Option<Arc<Trust>>,
    pub(crate) metrics: Option<RequestMetricsLayer<Observer>>,
    pub(crate) access_log: Option<AccessLogLayer<LogSink>>,
    pub(crate) header_limits: HeaderLimitsLayer,
    pub(crate) alt_svc: Option<AltSvcLayer>,
    pub(crate) paths: Option<PathsLayer>,
    pub(crate) early_data: Option<EarlyDataLayer>,
    pub(crate) misdirected: Option<MisdirectedLayer>,
    pub(crate) acme: Option<Http01Layer>,
    pub(crate) health: Option<HealthLayer>,
    /// Fields that clients can't set.
    pub(crate) identity: Option<Arc<IdentityFields>>,
}

impl Order {
    pub(crate) fn around<S>(&self, routes: S) -> EdgeService
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        let client = self.trust.clone().map(|trust| {
            MapRequestLayer::new(move |request: Request<Body>| with_client_address(request, &trust))
        });
        let identity = self.identity.clone().map(|fields| {
            MapRequestLayer::new(move |mut request: Request<Body>| {
                fields.strip(request.headers_mut());
                request
            })
        });
        // layers that wrap the response's body get a `Body` around what they make of it
        let metrics =
            self.metrics.clone().map(|layer| (MapResponseBodyLayer::new(Body::new::<Observed>), layer));
        let access_log = self.access_log.clone().map(|layer| {
            let plain = MapRequestLayer::new(|request: Request<Counted>| request.map(uncounted));
            (MapResponseBodyLayer::new(Body::new::<Logged>), layer, plain)
        });
        let service = ServiceBuilder::new()
            .layer(MapRequestLayer::new(settled))
            .layer(option_layer(self.request_id.clone()))
            .layer(option_layer(client))
            .layer(option_layer(metrics))
            .layer(option_layer(access_log))
            .layer(NoTunnelLayer)
            .layer(self.header_limits)
            .layer(option_layer(self.alt_svc.clone()))
            .layer(option_layer(self.misdirected.clone()))
            .layer(option_layer(self.acme.clone()))
            .layer(option_layer(self.health.clone()))
            .layer(option_layer(self.paths))
            .layer(option_layer(self.early_data.clone()))
            .layer(option_layer(identity))
            .service(routes);
        EdgeService::new(service)
    }
}

/// What is to be settled before anybody adds fields to a request or decides by its method: fields that `Connection` lists are gone from here on, so that a client can't list away
/// what the edge adds, nor select by what the upstream does not see; and an extended CONNECT says so in one way, whichever protocol it came by.
fn settled(mut request: Request<Body>) -> Request<Body> {
    if request.headers().contains_key(CONNECTION) {
        end_nominations(request.headers_mut());
    }
    if request.method() == Method::CONNECT
        && let Some(protocol) = request.extensions().get::<Protocol>()
    {
        let protocol = ConnectProtocol::new(protocol.as_str());
        request.extensions_mut().insert(protocol);
    }
    request
}

/// Only a body that is counted needs something around it.
fn uncounted(body: Counted) -> Body {
    match body.into_plain() {
        Ok(plain) => plain,
        Err(counted) => Body::new(counted),
    }
}

/// Who the client is behind proxies that are trusted to tell, and whether its connection is encrypted. Without them it is the
/// connection's peer, and nothing is added to the request.
fn with_client_address(mut request: Request<Body>, trust: &Trust) -> Request<Body> {
    if let Some(peer) = request.extensions().get::<Arc<ConnInfo>>().map(|info| info.client_ip()) {
        let client = client_ip(request.headers(), peer, trust);
        if client != peer {
            request.extensions_mut().insert(ClientIp(client));
        }
        if let Some(secure) = client_secure(request.headers(), peer, trust) {
            request.extensions_mut().insert(ClientSecure(secure));
        }
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_conn::Transport;

    #[test]
    fn what_a_trusted_proxy_tells_of_the_client() {
        let trust: Trust = ["10.0.0.0/8".parse().unwrap()].into_iter().collect();
        for (peer, believed) in [("10.0.0.1:4000", true), ("203.0.113.9:4000", false)] {
            let mut request = Request::new(Body::default());
            for (name, value) in [("x-forwarded-for", "198.51.100.7"), ("x-forwarded-proto", "https")] {
                request.headers_mut().insert(name, value.parse().unwrap());
            }
            let conn = ConnInfo::new(Transport::Tcp, peer.parse().unwrap(), "192.0.2.1:80".parse().unwrap());
            request.extensions_mut().insert(Arc::new(conn));
            let request = with_client_address(request, &trust);
            let told = request.extensions();
            let client = ClientIp("198.51.100.7".parse().unwrap());
            assert_eq!(told.get(), believed.then_some(&client), "{peer}");
            assert_eq!(told.get(), believed.then_some(&ClientSecure(true)), "{peer}");
        }
    }
}
