//! From the middleware to the routes, and from a route to what it does.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response, StatusCode, Uri, header, uri};
use portcullis_conn::ConnInfo;
use portcullis_middleware::redirect::RedirectToHttps;
use portcullis_proxy::{AnswerOptions, Asker, Fault, ReverseProxy, Router, host};
use tower_service::Service;
use tracing::{debug, warn};

use crate::{Body, Causes, forward::ToCluster, service::respond};

/// What a listener does with requests that came without TLS.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Insecure {
    /// Routes them like any other.
    Route,
    /// Redirects them.
    Redirect(RedirectToHttps<Body>),
}

/// What a route does, with everything it takes.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Forward(ReverseProxy<ToCluster>),
    Redirect { to: Uri, status: StatusCode },
    Respond { status: StatusCode, body: Arc<str> },
}

/// The innermost service: looks up the route and does what it says.
#[derive(Clone, Debug)]
pub(crate) struct Dispatch {
    pub(crate) routes: Arc<Router<Target>>,
    pub(crate) insecure: Insecure,
    /// How faults are told.
    pub(crate) errors: Arc<AnswerOptions>,
}

impl Service<Request<Body>> for Dispatch {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = DispatchFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> DispatchFuture {
        if let Insecure::Redirect(redirect) = &self.insecure
            && !request.extensions().get::<Arc<ConnInfo>>().is_some_and(|info| info.is_secure())
        {
            return DispatchFuture::Ready { response: Some(redirect.respond(&request)) };
        }
        let host = host::of(&request).unwrap_or_default();
        let response = match self.routes.find(host, request.uri().path()) {
            None => respond(StatusCode::NOT_FOUND),
            Some(Target::Forward(proxy)) => {
                let (asker, errors) = (Asker::of(&request), Arc::clone(&self.errors));
                // a route's proxy is always ready; its clone is a few references
                return DispatchFuture::Forward { future: proxy.clone().call(request), asker, errors };
            }
            Some(Target::Redirect { to, status }) => redirect(to, *status, request.uri()),
            Some(Target::Respond { status, body }) => {
                let mut response = Response::new(Body::from(body.to_string()));
                *response.status_mut() = *status;
                let text = HeaderValue::from_static("text/plain; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, text);
                response
            }
        };
        DispatchFuture::Ready { response: Some(response) }
    }
}

/// The target as it is, or with the request's path and query where it has no more than an origin.
fn redirect(to: &Uri, status: StatusCode, from: &Uri) -> Response<Body> {
    let mut parts = to.clone().into_parts();
    if matches!(parts.path_and_query.as_ref().map(uri::PathAndQuery::as_str), None | Some("/")) {
        parts.path_and_query = from.path_and_query().cloned();
    }
    let location = Uri::from_parts(parts).unwrap_or_else(|_| to.clone()).to_string();
    let Ok(location) = HeaderValue::from_maybe_shared(bytes::Bytes::from(location)) else {
        return respond(StatusCode::BAD_REQUEST);
    };
    let mut response = respond(status);
    response.headers_mut().insert(header::LOCATION, location);
    response
}

pin_project_lite::pin_project! {
    /// The future of [`Dispatch`].
    #[project = DispatchProj]
    pub(crate) enum DispatchFuture {
        Ready { response: Option<Response<Body>> },
        Forward {
            #[pin] future: <ReverseProxy<ToCluster> as Service<Request<Body>>>::Future,
            asker: Asker,
            errors: Arc<AnswerOptions>,
        },
    }
}

impl Future for DispatchFuture {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            DispatchProj::Ready { response } => match response.take() {
                Some(response) => Poll::Ready(Ok(response)),
                // it was ready before: nobody may ask again
                None => Poll::Pending,
            },
            DispatchProj::Forward { future, asker, errors } => {
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
    fault.answer(asker, &id, errors).map(Body::new)
}
