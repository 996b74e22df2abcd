//! Tells an observer of every request and response, for counters and histograms.
//!
//! Smaller than [`crate::access_log`]: no record, no field values, three calls per request. The observer is the
//! place where the numbers live; this layer knows no registry.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

/// Who is told. Called inside the tasks that serve requests: it must not block.
pub trait RequestObserver: Send + Sync + 'static {
    /// A request came.
    fn on_request(&self, version: Version);

    /// The response's head is ready; the duration is from [`RequestObserver::on_request`] to now.
    fn on_response(&self, version: Version, status: StatusCode, time_to_head: Duration);

    /// The request is over: its response body has ended or was dropped, or there was no response. Called exactly once per
    /// [`RequestObserver::on_request`]. `whole` is whether the response was taken to its end: it is not where the client reset its stream or closed
    /// its connection, and where the response broke off.
    fn on_end(&self, version: Version, whole: bool);
}

/// Tells an observer, which may be a trait object.
pub struct RequestMetricsLayer<O: ?Sized> {
    observer: Arc<O>,
}

impl<O: RequestObserver + ?Sized> RequestMetricsLayer<O> {
    /// Tells this observer.
    pub fn new(observer: Arc<O>) -> Self {
        Self { observer }
    }
}

impl<O: ?Sized> Clone for RequestMetricsLayer<O> {
    fn clone(&self) -> Self {
        Self { observer: Arc::clone(&self.observer) }
    }
}

impl<O: ?Sized> fmt::Debug for RequestMetricsLayer<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestMetricsLayer").finish_non_exhaustive()
    }
}

impl<S, O: RequestObserver + ?Sized> Layer<S> for RequestMetricsLayer<O> {
    type Service = RequestMetrics<S, O>;

    fn layer(&self, inner: S) -> Self::Service {
        RequestMetrics { inner, observer: Arc::clone(&self.observer) }
    }
}

/// The service of [`RequestMetricsLayer`].
pub struct RequestMetrics<S, O: ?Sized> {
    inner: S,
    observer: Arc<O>,
}

impl<S: Clone, O: ?Sized> Clone for RequestMetrics<S, O> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), observer: Arc::clone(&self.observer) }
    }
}

impl<S: fmt::Debug, O: ?Sized> fmt::Debug for RequestMetrics<S, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestMetrics").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, O, ReqBody, ResBody> Service<Request<ReqBody>> for RequestMetrics<S, O>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Body,
    O: RequestObserver + ?Sized,
{
    type Response = Response<ResponseBody<ResBody, O>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, O>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let in_flight = InFlight::new(Arc::clone(&self.observer), request.version());
        let started = Instant::now();
        ResponseFuture { inner: self.inner.call(request), in_flight: Some(in_flight), started }
    }
}

/// One request, from its coming until this is dropped.
struct InFlight<O: RequestObserver + ?Sized> {
    observer: Arc<O>,
    version: Version,
    whole: bool,
}

impl<O: RequestObserver + ?Sized> InFlight<O> {
    fn new(observer: Arc<O>, version: Version) -> Self {
        observer.on_request(version);
        Self { observer, version, whole: false }
    }
}

impl<O: RequestObserver + ?Sized> Drop for InFlight<O> {
    fn drop(&mut self) {
        self.observer.on_end(self.version, self.whole);
    }
}

pin_project! {
    /// The future of [`RequestMetrics`].
    pub struct ResponseFuture<F, O> where O: RequestObserver, O: ?Sized {
        #[pin]
        inner: F,
        in_flight: Option<InFlight<O>>,
        started: Instant,
    }
}

impl<F: fmt::Debug, O: RequestObserver + ?Sized> fmt::Debug for ResponseFuture<F, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<F, O, B, E> Future for ResponseFuture<F, O>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
    O: RequestObserver + ?Sized,
{
    type Output = Result<Response<ResponseBody<B, O>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        let mut in_flight = this.in_flight.take().expect("a future is not polled after it was ready");
        let response = result?;
        in_flight.whole = response.body().is_end_stream();
        in_flight.observer.on_response(in_flight.version, response.status(), this.started.elapsed());
        Poll::Ready(Ok(response.map(|inner| ResponseBody { inner, in_flight: Some(in_flight) })))
    }
}

pin_project! {
    /// The inner body; the request is in flight as long as it is.
    pub struct ResponseBody<B, O> where O: RequestObserver, O: ?Sized {
        #[pin]
        inner: B,
        in_flight: Option<InFlight<O>>,
    }
}

impl<B: fmt::Debug, O: RequestObserver + ?Sized> fmt::Debug for ResponseBody<B, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<B: Body, O: RequestObserver + ?Sized> Body for ResponseBody<B, O> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        if let Some(in_flight) = this.in_flight {
            // a driver needn't ask again after the last frame
            in_flight.whole = match &frame {
                Some(Ok(_)) => this.inner.is_end_stream(),
                Some(Err(_)) => false,
                None => true,
            };
        }
        if !matches!(frame, Some(Ok(_))) {
            *this.in_flight = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Mutex, task::Waker};

    use http_body_util::BodyExt;
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::test_support::{FnService, get, ok};

    #[derive(Debug, Default)]
    struct Events(Mutex<Vec<String>>);

    impl Events {
        fn push(&self, event: String) {
            self.0.lock().unwrap().push(event);
        }

        fn take(&self) -> Vec<String> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl RequestObserver for Events {
        fn on_request(&self, version: Version) {
            self.push(format!("request {version:?}"));
        }

        fn on_response(&self, version: Version, status: StatusCode, time_to_head: Duration) {
            assert!(time_to_head < Duration::from_secs(60));
            self.push(format!("response {version:?} {}", status.as_u16()));
        }

        fn on_end(&self, version: Version, whole: bool) {
            self.push(format!("end {version:?}{}", if whole { "" } else { " early" }));
        }
    }

    #[tokio::test]
    async fn in_flight_until_the_body_is_over() {
        let events = Arc::new(Events::default());
        let layer = RequestMetricsLayer::new(Arc::clone(&events));
        for read in [true, false] {
            let mut request = get("/");
            *request.version_mut() = Version::HTTP_3;
            let mut response = layer.layer(FnService(ok)).oneshot(request).await.unwrap();
            assert_eq!(events.take(), ["request HTTP/3.0", "response HTTP/3.0 200"]);
            if read {
                assert_eq!(response.body().size_hint().exact(), Some(5));
                let body = response.body_mut();
                while body.frame().await.is_some() {}
                assert!(response.body().is_end_stream());
                assert_eq!(events.take(), ["end HTTP/3.0"]);
                drop(response);
                assert!(events.take().is_empty(), "ended twice");
            } else {
                drop(response);
                assert_eq!(events.take(), ["end HTTP/3.0 early"]);
            }
        }
    }

    #[tokio::test]
    async fn no_response_ends_too() {
        let events: Arc<Events> = Arc::default();
        let layer: RequestMetricsLayer<dyn RequestObserver> =
            RequestMetricsLayer::new(Arc::clone(&events) as Arc<dyn RequestObserver>);
        let failing = service_fn(|_: Request<()>| std::future::ready(Err::<Response<String>, _>("down")));
        assert!(layer.layer(failing).oneshot(get("/")).await.is_err());
        assert_eq!(events.take(), ["request HTTP/1.1", "end HTTP/1.1 early"]);

        let hanging =
            service_fn(|_: Request<()>| std::future::pending::<Result<Response<String>, Infallible>>());
        let mut future = Box::pin(layer.layer(hanging).oneshot(get("/")));
        assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(future);
        assert_eq!(events.take(), ["request HTTP/1.1", "end HTTP/1.1 early"]);
    }
}
