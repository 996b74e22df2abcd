//! The one service that every protocol meets.

use std::{
    convert::Infallible,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use arc_swap::ArcSwap;
use http::{Method, Request, Response, StatusCode};
use portcullis_cache::NotForStore;
use portcullis_h3::{OnTunnel, RecvBody};
use portcullis_proxy::ClientStream;
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
            let state = State::NotReady { service: service.clone(), request: Some(request) };
            Box::pin(Guarded { state }) as EdgeFuture
        };
        Self { call: Arc::new(call) }
    }

    /// As a call, without the clone that a service has to be to be called.
    pub(crate) fn send(&self, request: Request<Body>) -> EdgeFuture {
        (self.call)(request)
    }
}

pin_project_lite::pin_project! {
    /// Waits until the service is ready, calls it, and turns a panic of it into a 500. Written by hand so that request and
    /// future are moved once, into the box.
    struct Guarded<S: Service<Request<Body>>> {
        #[pin]
        state: State<S>,
    }
}

pin_project_lite::pin_project! {
    #[project = StateProj]
    enum State<S: Service<Request<Body>>> {
        NotReady { service: S, request: Option<Request<Body>> },
        Called { #[pin] future: S::Future },
    }
}

impl<S> Future for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        // after a panic the future is ready, and nothing of the service is used again
        let polled = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let future = match state.as_mut().project() {
                    StateProj::Called { future } => return future.poll(cx),
                    StateProj::NotReady { service, request } => {
                        match ready!(service.poll_ready(cx)) {
                            Ok(()) => {}
                            Err(never) => match never {},
                        }
                        match request.take() {
                            Some(request) => service.call(request),
                            // the state changes right below: the request is taken once
                            None => return Poll::Pending,
                        }
                    }
                };
                state.set(State::Called { future });
            }
        }));
        polled.unwrap_or_else(|panic| Poll::Ready(Ok(panicked(&*panic))))
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Response<Body> {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    error!(message, "a request panicked");
    let mut response = respond(StatusCode::INTERNAL_SERVER_ERROR);
    // it may have been inside of the cache, and no origin said it
    response.extensions_mut().insert(NotForStore);
    response
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
        self.send(request)
    }
}

impl fmt::Debug for EdgeService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeService").finish_non_exhaustive()
    }
}

/// The service that a listener's connections share on one worker: a reload puts another one there. To load it is two uncontended atomic
/// operations on the worker's own cache lines, some ten nanoseconds.
pub(crate) type Slot = Arc<ArcSwap<EdgeService>>;

/// Puts a protocol's own body type into a [`Body`] on the way to the service of the moment.
#[derive(Clone, Debug)]
pub(crate) struct FromProtocol(pub(crate) Slot);

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
        self.0.load().send(request.map(Body::from))
    }
}

/// The same for HTTP/3, whose driver hands the stream behind a CONNECT over in its own way.
#[derive(Clone, Debug)]
pub(crate) struct FromQuic(pub(crate) Slot);

impl Service<Request<RecvBody>> for FromQuic {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = EdgeFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<RecvBody>) -> EdgeFuture {
        if request.method() == Method::CONNECT
            && let Some(tunnel) = request.extensions_mut().remove::<OnTunnel>()
        {
            request.extensions_mut().insert(ClientStream::new(tunnel.wait()));
        }
        self.0.load().send(request.map(Body::from))
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
