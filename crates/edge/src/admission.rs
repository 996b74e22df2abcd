//! Who may pass: CORS, CSRF, and those that authenticate, in this order. Preflights of CORS carry no credentials, so they are answered first.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Method, Request, Response, header};
use portcullis_cache::Authorized;
use portcullis_middleware::{
    basic_auth::BasicAuthLayer, forward_auth::ForwardAuthLayer, identity::Authenticated, jwt::JwtLayer,
};
use portcullis_proxy::{Fault, InternalFault, hop::strip_response, target::to_origin_form};
use tower::util::MapRequest;
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
        if self.basic_auth.is_some() || self.jwt.is_some() || self.forward_auth.is_some() {
            service = EdgeService::new(MapRequest::new(service, as_authorized));
        }
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
            service = EdgeService::new(csrf.layer(service));
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

/// RFC 9111 section 3.5 holds for whoever was authenticated, with or without `Authorization`.
fn as_authorized(mut request: Request<Body>) -> Request<Body> {
    if request.extensions().get::<Authenticated>().is_some() {
        request.extensions_mut().insert(Authorized);
    }
    request
}

pub(crate) fn check_cors(plan: &CorsPlan) -> Result<(), PlanFault> {
    match plan.origins {
        CorsOrigins::Any if plan.credentials => Err(PlanFault::CorsForAll),
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
        let headers = request.headers();
        let preflight = headers.contains_key(header::ORIGIN)
            && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if *request.method() == Method::OPTIONS && !preflight {
            return PreflightsFuture::Plain { future: self.plain.call(request) };
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
