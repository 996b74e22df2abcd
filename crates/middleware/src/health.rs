//! A liveness path that answers whatever else goes on.
//!
//! GET and HEAD of exactly this path are answered here: 200 while serving, 503 while draining. Other methods and
//! other paths go on to the service behind. The answer says that this process takes requests, not that any service
//! behind it is well.
//!
//! This layer is always ready: where the service behind it isn't, as under a concurrency limit, the health path
//! still answers, and any other request waits inside its own future. For that the inner service must be `Clone`; it
//! is cloned only where it wasn't ready.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE},
};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

/// Answers the health path.
#[derive(Clone, Debug)]
pub struct HealthLayer {
    state: Arc<State>,
}

#[derive(Clone, Debug)]
struct State {
    path: Box<str>,
    draining: Arc<AtomicBool>,
}

impl HealthLayer {
    /// At `/health`, and never draining.
    pub fn new() -> Self {
        Self { state: Arc::new(State { path: "/health".into(), draining: Arc::new(AtomicBool::new(false)) }) }
    }

    /// Sets the path, compared as it is with the request's path. Default `/health`.
    #[must_use]
    pub fn with_path(mut self, path: impl Into<String>) -> Self {
        Arc::make_mut(&mut self.state).path = path.into().into_boxed_str();
        self
    }

    /// Sets the flag that says whether a drain is under way: while it holds the answer is 503, which takes this instance
    /// out of a balancer's rotation. Default: a flag that is never set.
    #[must_use]
    pub fn with_draining(mut self, draining: Arc<AtomicBool>) -> Self {
        Arc::make_mut(&mut self.state).draining = draining;
        self
    }
}

impl Default for HealthLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for HealthLayer {
    type Service = Health<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Health { inner, inner_ready: false, state: Arc::clone(&self.state) }
    }
}

/// The service of [`HealthLayer`].
#[derive(Debug)]
pub struct Health<S> {
    inner: S,
    /// Whether the inner service said so since its last call.
    inner_ready: bool,
    state: Arc<State>,
}

impl<S: Clone> Clone for Health<S> {
    fn clone(&self) -> Self {
        // a clone of a ready service isn't ready
        Self { inner: self.inner.clone(), inner_ready: false, state: Arc::clone(&self.state) }
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Health<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    ResBody: From<Bytes>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqBody, S::Future, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if !self.inner_ready {
            match self.inner.poll_ready(cx) {
                Poll::Ready(result) => {
                    result?;
                    self.inner_ready = true;
                }
                Poll::Pending => {}
            }
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let asked = request.uri().path() == &*self.state.path;
        let kind = if asked && matches!(*request.method(), Method::GET | Method::HEAD) {
            let draining = self.state.draining.load(Ordering::Relaxed);
            Kind::Answered { response: Some(answer(draining, request.method() == Method::HEAD)) }
        } else if mem::take(&mut self.inner_ready) {
            Kind::Calling { future: self.inner.call(request) }
        } else {
            // the one that waits keeps its place in whatever queue it stands in
            let fresh = self.inner.clone();
            Kind::Waiting { service: mem::replace(&mut self.inner, fresh), request: Some(request) }
        };
        ResponseFuture { kind }
    }
}

fn answer<B: From<Bytes>>(draining: bool, head: bool) -> Response<B> {
    let (status, text) =
        if draining { (StatusCode::SERVICE_UNAVAILABLE, "draining\n") } else { (StatusCode::OK, "ok\n") };
    // RFC 9110 section 9.3.2: HEAD has the fields of GET and no content
    let body = if head { Bytes::new() } else { Bytes::from_static(text.as_bytes()) };
    let mut response = Response::new(B::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    response
}

pin_project! {
    /// The future of [`Health`].
    pub struct ResponseFuture<S, ReqBody, F, ResBody> {
        #[pin]
        kind: Kind<S, ReqBody, F, ResBody>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<S, ReqBody, F, ResBody> {
        Answered { response: Option<Response<ResBody>> },
        Waiting { service: S, request: Option<Request<ReqBody>> },
        Calling { #[pin] future: F },
    }
}

impl<S, ReqBody, F, ResBody> fmt::Debug for ResponseFuture<S, ReqBody, F, ResBody> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.kind {
            Kind::Answered { .. } => "answered",
            Kind::Waiting { .. } => "waiting for the service",
            Kind::Calling { .. } => "calling the service",
        };
        f.debug_tuple("ResponseFuture").field(&state).finish()
    }
}

impl<S, ReqBody, ResBody> Future for ResponseFuture<S, ReqBody, S::Future, ResBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    type Output = Result<Response<ResBody>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut kind = self.project().kind;
        loop {
            match kind.as_mut().project() {
                KindProj::Answered { response } => {
                    let response = response.take().expect("a future is not polled after it was ready");
                    return Poll::Ready(Ok(response));
                }
                KindProj::Calling { future } => return future.poll(cx),
                KindProj::Waiting { service, request } => {
                    ready!(service.poll_ready(cx))?;
                    let request = request.take().expect("a future is not polled after it was ready");
                    let future = service.call(request);
                    kind.set(Kind::Calling { future });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tower::ServiceExt;
    use tower_test::mock;

    use super::*;
    use crate::test_support::{Body, get, ok, through};

    #[tokio::test]
    async fn which_requests_are_answered() {
        let layer = HealthLayer::new().with_path("/live");
        let table = [
            ("GET", "/live", "ok\n"),
            ("GET", "/live?x", "ok\n"),
            ("HEAD", "/live", ""),
            ("POST", "/live", "inner"),
            ("GET", "/live/", "inner"),
            ("GET", "/health", "inner"),
        ];
        for (method, target, expected) in table {
            let mut request = get(target);
            *request.method_mut() = method.parse().unwrap();
            let response = through(&layer, ok, request).await;
            assert_eq!(response.status(), 200);
            let own = expected != "inner";
            assert_eq!(response.headers().get(CACHE_CONTROL).is_some_and(|v| v == "no-store"), own);
            assert_eq!(response.headers().get(CONTENT_LENGTH).is_some_and(|v| v == "3"), own);
            assert_eq!(
                response.into_body().collect().await.unwrap().to_bytes(),
                expected,
                "{method} {target}"
            );
        }
    }

    #[tokio::test]
    async fn draining_is_503_and_the_rest_goes_on() {
        let draining = Arc::new(AtomicBool::new(false));
        let layer = HealthLayer::new().with_draining(Arc::clone(&draining));
        assert_eq!(through(&layer, ok, get("/health")).await.status(), 200);
        draining.store(true, Ordering::Relaxed);
        assert_eq!(through(&layer, ok, get("/health")).await.status(), 503);
        assert_eq!(through(&layer, ok, get("/")).await.status(), 200);
    }

    #[tokio::test]
    async fn health_answers_while_the_service_is_not_ready() {
        let (mock, mut handle) = mock::pair::<Request<()>, Response<Body>>();
        handle.allow(0);
        let service = HealthLayer::new().layer(mock);
        let response = service.clone().oneshot(get("/health")).await.unwrap();
        assert_eq!(response.status(), 200);

        let mut waiting = task(service.oneshot(get("/x")));
        assert!(waiting.poll().is_pending());
        assert!(handle.poll_request().is_pending(), "called before it was ready");
        handle.allow(1);
        assert!(waiting.poll().is_pending());
        let Poll::Ready(Some((request, reply))) = handle.poll_request() else { panic!("not called") };
        assert_eq!(request.uri(), "/x");
        reply.send_response(Response::builder().status(204).body(Body::default()).unwrap());
        let Poll::Ready(response) = waiting.poll() else { panic!("no answer") };
        assert_eq!(response.unwrap().status(), 204);
    }

    #[tokio::test]
    async fn readiness_is_used_once() {
        let (mock, mut handle) = mock::pair::<Request<()>, Response<Body>>();
        handle.allow(1);
        let mut service = HealthLayer::new().layer(mock);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut futures = Vec::new();
        for _ in 0..2 {
            let ready = Service::<Request<()>>::poll_ready(&mut service, &mut cx);
            assert!(matches!(ready, Poll::Ready(Ok(()))));
            let mut future = Box::pin(service.call(get("/x")));
            assert!(future.as_mut().poll(&mut cx).is_pending());
            futures.push(future);
        }
        assert!(handle.poll_request().is_ready());
        assert!(handle.poll_request().is_pending(), "called a service that was not ready");
    }

    #[tokio::test]
    async fn a_ready_service_is_called_without_a_clone() {
        #[derive(Debug)]
        struct NoClone<S>(S);
        impl<S> Clone for NoClone<S> {
            fn clone(&self) -> Self {
                panic!("cloned");
            }
        }
        impl<S: Service<Request<()>>> Service<Request<()>> for NoClone<S> {
            type Response = S::Response;
            type Error = S::Error;
            type Future = S::Future;
            fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
                self.0.poll_ready(cx)
            }
            fn call(&mut self, request: Request<()>) -> S::Future {
                self.0.call(request)
            }
        }
        let service = HealthLayer::new().layer(NoClone(crate::test_support::FnService(ok)));
        assert_eq!(service.oneshot(get("/x")).await.unwrap().status(), 200);
    }

    struct Task<F>(Pin<Box<F>>);

    fn task<F: Future>(future: F) -> Task<F> {
        Task(Box::pin(future))
    }

    impl<F: Future> Task<F> {
        fn poll(&mut self) -> Poll<F::Output> {
            self.0.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()))
        }
    }
}
