//! The one service that every protocol meets.

use std::{
    convert::Infallible,
    fmt,
    future::poll_fn,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use tower_service::Service;
use tracing::error;

use crate::Body;

/// The future of [`EdgeService`].
pub type EdgeFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

type Call = dyn Fn(Request<Body>) -> EdgeFuture + Send + Sync;

/// A service from request to response that never fails, with its type erased. A clone is a reference; a request
/// costs one boxed future, however many layers there are below.
#[derive(Clone)]
pub struct EdgeService {
    call: Arc<Call>,
}

impl EdgeService {
    /// Erases a service. It is cloned for every request and waited for until it is ready. A panic inside is logged
    /// and answered 500.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        let call = move |request| {
            let mut service = service.clone();
            let response = async move {
                match poll_fn(|cx| service.poll_ready(cx)).await {
                    Ok(()) => service.call(request).await,
                    Err(never) => match never {},
                }
            };
            // nothing of the service is used again after a panic: its clone is gone with the future
            let response = AssertUnwindSafe(response).catch_unwind();
            Box::pin(async move { response.await.unwrap_or_else(|panic| Ok(panicked(&*panic))) })
                as EdgeFuture
        };
        Self { call: Arc::new(call) }
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Response<Body> {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    error!(message, "a request panicked");
    respond(StatusCode::INTERNAL_SERVER_ERROR)
}

/// A short text that says no more than the status.
pub(crate) fn respond(status: StatusCode) -> Response<Body> {
    let reason = status.canonical_reason().unwrap_or("Error");
    let mut response = Response::new(Body::from(format!("{} {reason}\n", status.as_u16())));
    *response.status_mut() = status;
    let text = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, text);
    response
}

impl Service<Request<Body>> for EdgeService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = EdgeFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> EdgeFuture {
        (self.call)(request)
    }
}

impl fmt::Debug for EdgeService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeService").finish_non_exhaustive()
    }
}

/// Puts a protocol's own body type into a [`Body`] on the way to the service.
#[derive(Clone, Debug)]
pub(crate) struct FromProtocol(pub(crate) EdgeService);

impl<B> Service<Request<B>> for FromProtocol
where
    Body: From<B>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = EdgeFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> EdgeFuture {
        self.0.call(request.map(Body::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_500() {
        let mut service = EdgeService::new(tower::service_fn(|request: Request<Body>| async move {
            assert_eq!(request.uri().path(), "/good", "bad path");
            Ok(Response::new(Body::empty()))
        }));
        let get = |path: &str| Request::get(path).body(Body::empty()).unwrap();
        assert_eq!(service.call(get("/good")).await.unwrap().status(), StatusCode::OK);
        assert_eq!(service.call(get("/bad")).await.unwrap().status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(service.call(get("/good")).await.unwrap().status(), StatusCode::OK);
    }
}
