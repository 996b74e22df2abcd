//! Who may pass: CORS, CSRF, and those that authenticate, in this order. Preflights of CORS carry no credentials, so they are answered first.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Method, Request, Response, header};
use portcullis_middleware::{basic_auth::BasicAuthLayer, forward_auth::ForwardAuthLayer, jwt::JwtLayer};
use portcullis_proxy::{Fault, InternalFault, hop::strip_response, target::to_origin_form};
use tower::{ServiceBuilder, util::MapRequestLayer};
use tower_http::{
    cors::{AllowOrigin, Any, Cors, CorsLayer},
    csrf::CsrfLayer,
};
use tower_layer::Layer as _;
use tower_service::Service;

use crate::{
    Body, PlanFault,
    explain::Step,
    forward::ToCluster,
    plan::{ChainPlan, CorsOrigins, CorsPlan, CsrfPlan, ForwardAuthPlan},
    service::EdgeService,
};

/// The layers of a chain that say who may pass, beside its filter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Admission {
    pub(crate) cors: Option<CorsLayer>,
    pub(crate) csrf: Option<CsrfLayer>,
    pub(crate) basic_auth: Option<BasicAuthLayer>,
    pub(crate) jwt: Option<JwtLayer>,
    pub(crate) forward_auth: Option<ForwardAuthPlan>,
}

impl Admission {
    pub(crate) fn is_empty(&self) -> bool {
        let Self { cors, csrf, basic_auth, jwt, forward_auth } = self;
        cors.is_none() && csrf.is_none() && basic_auth.is_none() && jwt.is_none() && forward_auth.is_none()
    }

    /// Around what is boxed already. `clusters` are those of the worker.
    pub(crate) fn around(
        &self,
        mut service: EdgeService,
        clusters: impl Fn(&str) -> Option<ToCluster>,
    ) -> EdgeService {
        if let Some(plan) = &self.forward_auth {
            let ask = Ask(clusters(&plan.cluster));
            service = EdgeService::new(ForwardAuthLayer::new(plan.options.clone(), ask).layer(service));
        }
        if let Some(jwt) = &self.jwt {
            service = EdgeService::new(jwt.layer(service));
        }
        if let Some(basic_auth) = &self.basic_auth {
            service = EdgeService::new(basic_auth.layer(service));
        }
        if let Some(csrf) = &self.csrf {
            let layers = ServiceBuilder::new()
                .layer(MapRequestLayer::new(handshake_as_unsafe))
                .layer(csrf.clone())
                .layer(MapRequestLayer::new(handshake_as_it_was));
            service = EdgeService::new(layers.service(service));
        }
        if let Some(cors) = &self.cors {
            service = EdgeService::new(Preflights { plain: service.clone(), cors: cors.layer(service) });
        }
        service
    }
}

/// The same order in words.
pub(crate) fn steps(edge: &ChainPlan, route: &ChainPlan) -> [Option<Step>; 5] {
    [
        Step::of("CORS", &edge.cors, &route.cors, |_| "answers preflights".to_owned()),
        Step::of("CSRF", &edge.csrf, &route.csrf, |_| "403 for what pages of other sites send".to_owned()),
        Step::of("passwords", &edge.basic_auth, &route.basic_auth, |own| {
            format!("401 for who is not in {}", own.users.display())
        }),
        Step::of("tokens", &edge.jwt, &route.jwt, |own| {
            let names: Vec<_> = own.options.algorithms.iter().map(|algorithm| algorithm.name()).collect();
            format!("401 without one by {}", names.join(", "))
        }),
        Step::of("forward-auth", &edge.forward_auth, &route.forward_auth, |own| {
            format!("asks the cluster {}", own.cluster)
        }),
    ]
}

/// Of a request: it is an upgrade by GET, whose method is put back behind the check.
#[derive(Clone, Copy)]
struct UpgradeByGet;

/// tower-http's layer lets every GET pass. A handshake of a WebSocket is one over HTTP/1.1 (RFC 6455 section 4.1), browsers send cookies with it, and no
/// preflight goes before it; over HTTP/2 and HTTP/3 the same handshake is a CONNECT (RFC 8441, RFC 9220), which is looked at. So that the protocol makes no difference, an upgrade
/// is shown to the layer as what it would be there.
fn handshake_as_unsafe(mut request: Request<Body>) -> Request<Body> {
    if *request.method() == Method::GET && request.headers().contains_key(header::UPGRADE) {
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(UpgradeByGet);
    }
    request
}

fn handshake_as_it_was(mut request: Request<Body>) -> Request<Body> {
    if *request.method() == Method::CONNECT && request.extensions_mut().remove::<UpgradeByGet>().is_some() {
        *request.method_mut() = Method::GET;
    }
    request
}

/// What tower-http would panic at, and what browsers would not take for all (Fetch standard section 3.2.3).
pub(crate) fn check_cors(plan: &CorsPlan) -> Result<(), PlanFault> {
    match &plan.origins {
        CorsOrigins::Any if plan.credentials => return Err(PlanFault::CorsForAll),
        CorsOrigins::List(list) if list.iter().any(|origin| origin == "*") => {
            return Err(PlanFault::CorsWildcard("origins"));
        }
        _ => {}
    }
    let lists = [
        ("methods", plan.methods.iter().any(|method| method.as_str() == "*")),
        ("headers", plan.headers.iter().any(|name| name == "*")),
        ("expose", plan.expose.iter().any(|name| name == "*")),
    ];
    match lists.into_iter().find(|(_, all)| *all) {
        Some((list, _)) if plan.credentials => Err(PlanFault::CorsWildcard(list)),
        _ => Ok(()),
    }
}

/// Of a plan that was checked.
pub(crate) fn cors(plan: &CorsPlan) -> CorsLayer {
    let layer = CorsLayer::new()
        .allow_methods(plan.methods.clone())
        .allow_headers(plan.headers.clone())
        .expose_headers(plan.expose.clone());
    let layer = match &plan.origins {
        CorsOrigins::Any => layer.allow_origin(Any),
        CorsOrigins::List(list) => {
            layer.allow_origin(AllowOrigin::list(list.iter().cloned())).allow_credentials(plan.credentials)
        }
    };
    match plan.max_age {
        Some(age) => layer.max_age(age),
        None => layer,
    }
}

pub(crate) fn csrf(plan: &CsrfPlan) -> Result<CsrfLayer, PlanFault> {
    plan.trusted.iter().try_fold(CsrfLayer::new(), |layer, origin| {
        layer
            .add_trusted_origin(origin)
            .map_err(|source| PlanFault::CsrfOrigin { origin: origin.clone(), source: Box::new(source) })
    })
}

/// An OPTIONS that is no preflight goes on to the service, as does what has no `Origin`: tower-http's layer would answer every OPTIONS.
#[derive(Clone)]
struct Preflights {
    plain: EdgeService,
    cors: Cors<EdgeService>,
}

impl Service<Request<Body>> for Preflights {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = PreflightsFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> PreflightsFuture {
        let is_preflight = || {
            let headers = request.headers();
            headers.contains_key(header::ORIGIN)
                && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
        };
        if *request.method() == Method::OPTIONS && !is_preflight() {
            return PreflightsFuture::Plain { future: self.plain.send(request) };
        }
        PreflightsFuture::Cors { future: self.cors.call(request) }
    }
}

pin_project_lite::pin_project! {
    #[project = PreflightsProj]
    enum PreflightsFuture {
        Plain { #[pin] future: <EdgeService as Service<Request<Body>>>::Future },
        Cors { #[pin] future: <Cors<EdgeService> as Service<Request<Body>>>::Future },
    }
}

impl Future for PreflightsFuture {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            PreflightsProj::Plain { future } => future.poll(cx),
            PreflightsProj::Cors { future } => future.poll(cx),
        }
    }
}

/// Asks a cluster. Without it every question fails.
#[derive(Clone)]
struct Ask(Option<ToCluster>);

impl Service<Request<Body>> for Ask {
    type Response = Response<Body>;
    type Error = Fault;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Fault>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let Some(mut cluster) = self.0.clone() else {
            return Box::pin(std::future::ready(Err(Fault::internal(InternalFault::Failed))));
        };
        to_origin_form(request.uri_mut());
        Box::pin(async move {
            let mut response = cluster.call(request).await?;
            // it may go on to the client
            strip_response(response.headers_mut());
            Ok(response)
        })
    }
}
