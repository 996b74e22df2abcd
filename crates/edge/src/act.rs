//! What a route does with a request, and what becomes of one that no route is for.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header, uri};
use portcullis_cache::NotForStore;
use portcullis_conn::ConnInfo;
use portcullis_middleware::{
    access_log::{FaultReason, UpstreamName},
    files::{FileBody, ServeFiles, ServeFuture},
    redirect::RedirectToHttps,
};
use portcullis_proxy::{
    AnswerOptions, Asked, Asker, ClientFault, ConnectProxy, Fault, Lookup, ReverseProxy, Router, is_connect,
    rewrite::RedirectTarget, split::Split,
};
use tower_service::Service;
use tracing::{debug, warn};

use crate::{Body, Causes, routes::connection, service::respond, to_route::ToRoute, tunnel_to::ToTarget};

/// What a listener does with requests that came without TLS.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Insecure {
    /// Routes them like any other.
    Route,
    /// Redirects them.
    Redirect(RedirectToHttps<Body>),
}

/// What the routes of one worker do, with everything that takes.
#[derive(Debug)]
pub(crate) struct Targets {
    pub(crate) router: Router<()>,
    /// By the numbers of the routes.
    pub(crate) targets: Vec<Target>,
    /// What answers CONNECT, in the place of routes.
    pub(crate) connect: Option<ConnectProxy<ToTarget>>,
    /// How faults are told.
    pub(crate) errors: Arc<AnswerOptions>,
}

impl Targets {
    /// Whether this asks for a tunnel, which is no affair of the routes.
    pub(crate) fn is_tunnel<B>(&self, request: &Request<B>) -> bool {
        self.connect.is_some() && is_connect(request)
    }

    pub(crate) fn look_up<B>(&self, request: &Request<B>) -> Lookup<'_, ()> {
        self.find(request, Asked::of(request))
    }

    /// As if it had this method.
    pub(crate) fn look_up_as<B>(&self, request: &Request<B>, method: &Method) -> Lookup<'_, ()> {
        self.find(request, Asked::of(request).with_method(method))
    }

    fn find<B>(&self, request: &Request<B>, mut asked: Asked<'_>) -> Lookup<'_, ()> {
        if self.router.looks_at_connection() {
            let (client, secure) = connection(request.extensions());
            asked = asked.with_connection(client, secure);
        }
        self.router.lookup(&asked)
    }
}

/// What a route does, with everything it takes.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Forward(ReverseProxy<ToRoute>),
    Split(Split<ReverseProxy<ToRoute>>),
    /// Answers by itself.
    Answer(Action),
    Files(ServeFiles),
}

/// How a route answers by itself.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Redirect { to: RedirectTarget, status: StatusCode },
    Respond { status: StatusCode, content_type: HeaderValue, body: Bytes },
}

/// Whom a request is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    /// The route of this number.
    Route(usize),
    /// Whichever route it is that the request asks for now, or none.
    LookUp(Insecure),
}

/// The innermost service: does what the route says.
#[derive(Clone, Debug)]
pub(crate) struct Actor {
    pub(crate) targets: Arc<Targets>,
    pub(crate) act: Act,
}

impl Service<Request<Body>> for Actor {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = ActFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> ActFuture {
        match &self.act {
            Act::Route(number) => self.do_as(*number, request),
            Act::LookUp(insecure) => {
                if let Some(redirect) = insecure.redirects(&request) {
                    return ActFuture::Ready { response: Some(redirect.respond(&request)) };
                }
                if let Some(connect) = &self.targets.connect
                    && is_connect(&request)
                {
                    return self.tunnel(connect.clone(), request);
                }
                match self.targets.look_up(&request) {
                    Lookup::Found(found) => {
                        let number = found.number;
                        self.do_as(number, request)
                    }
                    Lookup::MethodNotAllowed(methods) => {
                        let response = self.refuse(&request, ClientFault::MethodNotAllowed);
                        ActFuture::Ready { response: Some(allowing(response, &methods)) }
                    }
                    _ => ActFuture::Ready { response: Some(self.refuse(&request, ClientFault::NotFound)) },
                }
            }
        }
    }
}

impl Insecure {
    /// Where this request has to be redirected for want of TLS.
    pub(crate) fn redirects<B>(&self, request: &Request<B>) -> Option<&RedirectToHttps<Body>> {
        let Self::Redirect(redirect) = self else { return None };
        let secure = request.extensions().get::<Arc<ConnInfo>>().is_some_and(|info| info.is_secure());
        (!secure).then_some(redirect)
    }
}

impl Actor {
    fn do_as(&self, number: usize, request: Request<Body>) -> ActFuture {
        let proxy = match self.targets.targets.get(number) {
            Some(Target::Forward(proxy)) => proxy,
            Some(Target::Split(split)) => split.next(),
            Some(Target::Answer(action)) => {
                return ActFuture::Ready { response: Some(action.answer(request.uri())) };
            }
            Some(Target::Files(files)) => {
                let (asker, errors) = (Asker::of(&request), Arc::clone(&self.targets.errors));
                return ActFuture::Files { future: files.serve(&request), asker, errors };
            }
            None => {
                let response = self.refuse(&request, ClientFault::NotFound);
                return ActFuture::Ready { response: Some(response) };
            }
        };
        let (asker, errors) = (Asker::of(&request), Arc::clone(&self.targets.errors));
        // a route's proxy is always ready; its clone is a few references
        ActFuture::Forward { future: proxy.clone().call(request), asker, errors }
    }

    /// Apart from the routes: a CONNECT has no path, and its authority is not one of ours.
    fn tunnel(&self, mut connect: ConnectProxy<ToTarget>, request: Request<Body>) -> ActFuture {
        let (asker, errors) = (Asker::of(&request), Arc::clone(&self.targets.errors));
        let name = request.uri().authority().map(|authority| Arc::from(authority.as_str()));
        let opening = connect.call(request);
        let future = Box::pin(async move {
            let mut response = opening.await?.map(|()| Body::empty());
            if let Some(name) = name {
                response.extensions_mut().insert(UpstreamName(name));
            }
            Ok(response)
        });
        ActFuture::Tunnel { future, asker, errors }
    }

    fn refuse(&self, request: &Request<Body>, fault: ClientFault) -> Response<Body> {
        answer(&Fault::client(fault), &Asker::of(request), &self.targets.errors)
    }
}

impl Action {
    fn answer(&self, uri: &Uri) -> Response<Body> {
        match self {
            Self::Redirect { to, status } => {
                let root = uri::PathAndQuery::from_static("/");
                match to.location(uri.path_and_query().unwrap_or(&root)) {
                    Ok(location) => {
                        let mut response = respond(*status);
                        response.headers_mut().insert(header::LOCATION, location);
                        response
                    }
                    Err(_) => respond(StatusCode::BAD_REQUEST),
                }
            }
            Self::Respond { status, content_type, body } => {
                let mut response = Response::new(Body::from(body.clone()));
                *response.status_mut() = *status;
                response.headers_mut().insert(header::CONTENT_TYPE, content_type.clone());
                response
            }
        }
    }
}

/// RFC 9110 section 15.5.6: with the methods that would do.
fn allowing(mut response: Response<Body>, methods: &[Method]) -> Response<Body> {
    let methods: Vec<_> = methods.iter().map(Method::as_str).collect();
    if let Ok(allow) = HeaderValue::try_from(methods.join(", ")) {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}

pin_project_lite::pin_project! {
    /// The future of [`Actor`].
    #[project = ActProj]
    pub(crate) enum ActFuture {
        Ready { response: Option<Response<Body>> },
        Tunnel {
            future: Pin<Box<dyn Future<Output = Result<Response<Body>, Fault>> + Send>>,
            asker: Asker,
            errors: Arc<AnswerOptions>,
        },
        Files { future: ServeFuture, asker: Asker, errors: Arc<AnswerOptions> },
        Forward {
            #[pin] future: <ReverseProxy<ToRoute> as Service<Request<Body>>>::Future,
            asker: Asker,
            errors: Arc<AnswerOptions>,
        },
    }
}

impl Future for ActFuture {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            ActProj::Ready { response } => match response.take() {
                Some(response) => Poll::Ready(Ok(response)),
                // it was ready before: nobody may ask again
                None => Poll::Pending,
            },
            ActProj::Tunnel { future, asker, errors } => future
                .as_mut()
                .poll(cx)
                .map(|result| Ok(result.unwrap_or_else(|fault| answer(&fault, asker, errors)))),
            ActProj::Files { future, asker, errors } => {
                let Ok(response) = ready!(Pin::new(future).poll(cx));
                Poll::Ready(Ok(match response.status() {
                    StatusCode::NOT_FOUND => answer(&Fault::client(ClientFault::NotFound), asker, errors),
                    // most files are short, and come whole
                    _ => response.map(|body: FileBody| body.into_whole().map_or_else(Body::new, Body::from)),
                }))
            }
            ActProj::Forward { future, asker, errors } => {
                future.poll(cx).map(|result| Ok(result.unwrap_or_else(|fault| answer(&fault, asker, errors))))
            }
        }
    }
}

/// The fault in the log, with its causes and the request's id; its status and the id, and no more, to the client.
fn answer(fault: &Fault, asker: &Asker, errors: &AnswerOptions) -> Response<Body> {
    let (status, reason, id) = (fault.log_status(), fault.reason(), asker.request_id());
    let request = id.to_str().unwrap_or_default();
    let cause = Causes(std::error::Error::source(fault));
    if fault.status().is_server_error() {
        warn!(status, reason, request, %fault, %cause, "request failed");
    } else {
        debug!(status, reason, request, %fault, %cause, "request refused");
    }
    let mut response = fault.answer(asker, &id, errors).map(Body::new);
    response.extensions_mut().insert(FaultReason(reason));
    // no origin said it: no rule of the cache for what origins leave open is meant
    response.extensions_mut().insert(NotForStore);
    response
}
