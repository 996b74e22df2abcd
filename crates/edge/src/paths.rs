//! The one form of paths, where the plan asks for one: made before anything decides by the path, and never again.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response, StatusCode, Uri};
use portcullis_proxy::PathRules;
use std::borrow::Cow;
use tower_layer::Layer;
use tower_service::Service;
use tracing::debug;

use crate::{Body, service::respond};

/// Brings every path into the form that the rules ask for; a path that they refuse is answered 400.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PathsLayer(PathRules);

impl PathsLayer {
    /// `None` for rules that change nothing.
    pub(crate) fn new(rules: PathRules) -> Option<Self> {
        (!rules.is_empty()).then_some(Self(rules))
    }
}

impl<S> Layer<S> for PathsLayer {
    type Service = Paths<S>;

    fn layer(&self, inner: S) -> Paths<S> {
        Paths { inner, rules: self.0 }
    }
}

/// The service of [`PathsLayer`].
#[derive(Clone, Debug)]
pub(crate) struct Paths<S> {
    inner: S,
    rules: PathRules,
}

impl<S> Service<Request<Body>> for Paths<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = PathsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let Some(target) = request.uri().path_and_query() else {
            return PathsFuture::Inner { future: self.inner.call(request) };
        };
        let changed = match self.rules.apply(target) {
            Ok(Cow::Borrowed(_)) => None,
            Ok(Cow::Owned(target)) => Some(target),
            Err(error) => {
                debug!(%error, "request refused");
                return PathsFuture::Refused { response: Some(respond(StatusCode::BAD_REQUEST)) };
            }
        };
        if let Some(target) = changed {
            let mut parts = std::mem::take(request.uri_mut()).into_parts();
            parts.path_and_query = Some(target);
            match Uri::from_parts(parts) {
                Ok(uri) => *request.uri_mut() = uri,
                Err(_) => {
                    return PathsFuture::Refused { response: Some(respond(StatusCode::BAD_REQUEST)) };
                }
            }
        }
        PathsFuture::Inner { future: self.inner.call(request) }
    }
}

pin_project_lite::pin_project! {
    /// The future of [`Paths`].
    #[project = PathsProj]
    pub(crate) enum PathsFuture<F> {
        Inner { #[pin] future: F },
        Refused { response: Option<Response<Body>> },
    }
}

impl<F: Future<Output = Result<Response<Body>, Infallible>>> Future for PathsFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            PathsProj::Inner { future } => future.poll(cx),
            PathsProj::Refused { response } => {
                Poll::Ready(Ok(response.take().expect("a future is not polled after it was ready")))
            }
        }
    }
}
