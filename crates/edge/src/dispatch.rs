//! From the edge's middleware to a route's chain.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Method, Request, Response, header};
use portcullis_middleware::{
    access_log::{LogSlot, RouteLog},
    rate_limit::RouteName,
};
use portcullis_proxy::Lookup;
use portcullis_telemetry::metrics::{HostPlace, HostRequests};
use tower_service::Service;

use crate::{
    Body,
    act::{Act, ActFuture, Actor, Insecure, Targets},
    forward::ToCluster,
    service::{EdgeFuture, EdgeService},
};

/// The routes of one worker.
#[derive(Debug)]
pub(crate) struct Routes {
    pub(crate) targets: Arc<Targets>,
    /// By the numbers of the routes. `None` where nothing stands between the edge and what the route does.
    pub(crate) chains: Vec<Option<EdgeService>>,
    /// By the same, whether the chain answers preflights.
    pub(crate) preflights: Vec<bool>,
    /// The cluster that the edge's own chain asks who may pass.
    pub(crate) asked: Option<ToCluster>,
    /// By the numbers of the routes.
    pub(crate) told: Vec<Told>,
    pub(crate) hosts: Arc<HostRequests>,
}

/// What is told of a route's requests.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// To the access log, if it asks.
    pub(crate) log: Option<Arc<RouteLog>>,
    /// Where they are counted.
    pub(crate) host: HostPlace,
    /// To rate limits, if one counts by route.
    pub(crate) name: Option<RouteName>,
}

impl Routes {
    /// Tells who counts, who logs and who limits of a request that is for this route, or for none.
    fn tell(&self, number: Option<usize>, request: &mut Request<Body>) {
        let told = number.and_then(|number| self.told.get(number));
        self.hosts.count(told.map_or(HostPlace::OTHER, |told| told.host), request.version());
        if let Some(log) = told.and_then(|told| told.log.as_ref())
            && let Some(slot) = request.extensions().get::<LogSlot>()
        {
            slot.set_route(Arc::clone(log));
        }
        if let Some(name) = told.and_then(|told| told.name.as_ref()) {
            request.extensions_mut().insert(name.clone());
        }
    }
}

/// Looks up the route and hands the request to its chain.
#[derive(Clone, Debug)]
pub(crate) struct Dispatch {
    pub(crate) routes: Arc<Routes>,
    pub(crate) insecure: Insecure,
    /// The edge's own chain, for what has no route.
    pub(crate) unrouted: EdgeService,
    /// The same without asking who it is, for what is redirected for want of TLS: a password would be told in the clear.
    pub(crate) redirecting: EdgeService,
}

impl Dispatch {
    /// The number of the route that is to deal with this request.
    fn choose(&self, request: &Request<Body>) -> Option<usize> {
        let targets = &self.routes.targets;
        if targets.is_tunnel(request) {
            return None;
        }
        if *request.method() == Method::OPTIONS
            && let Some(number) = self.preflight(request)
        {
            return Some(number);
        }
        match targets.look_up(request) {
            Lookup::Found(found) => Some(found.number),
            _ => None,
        }
    }

    /// The route that a preflight asks about, if that answers some: none need be for OPTIONS itself, and a less specific one knows nothing of it.
    fn preflight(&self, request: &Request<Body>) -> Option<usize> {
        let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
        if !request.headers().contains_key(header::ORIGIN) {
            return None;
        }
        let method = Method::from_bytes(asked.as_bytes()).ok()?;
        let Lookup::Found(found) = self.routes.targets.look_up_as(request, &method) else { return None };
        (self.routes.preflights.get(found.number) == Some(&true)).then_some(found.number)
    }
}

impl Service<Request<Body>> for Dispatch {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = DispatchFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> DispatchFuture {
        if self.insecure.redirects(&request).is_some() {
            self.routes.tell(None, &mut request);
            return DispatchFuture::Chain { future: self.redirecting.send(request) };
        }
        let number = self.choose(&request);
        self.routes.tell(number, &mut request);
        let Some(number) = number else {
            return DispatchFuture::Chain { future: self.unrouted.send(request) };
        };
        match self.routes.chains.get(number) {
            Some(Some(chain)) => DispatchFuture::Chain { future: chain.send(request) },
            _ => {
                let targets = Arc::clone(&self.routes.targets);
                let mut actor = Actor { targets, act: Act::Route(number) };
                DispatchFuture::Act { future: actor.call(request) }
            }
        }
    }
}

pin_project_lite::pin_project! {
    /// The future of [`Dispatch`].
    #[project = DispatchProj]
    pub(crate) enum DispatchFuture {
        Chain { future: EdgeFuture },
        Act { #[pin] future: ActFuture },
    }
}

impl Future for DispatchFuture {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            DispatchProj::Chain { future } => future.as_mut().poll(cx),
            DispatchProj::Act { future } => future.poll(cx),
        }
    }
}
