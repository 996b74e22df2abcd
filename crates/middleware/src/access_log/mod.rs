//! One record per request, handed to a [`Sink`] when the response is over.
//!
//! tower-http's `TraceLayer` opens a span and emits events for the parts of a request; this layer makes a single record
//! when everything is known, the bytes sent among it, and leaves its form to the sink. It writes nothing by itself
//! and doesn't go through `tracing`.
//!
//! A record is made for *every* request: when the response body ends, fails or is dropped, when the inner service
//! fails, and when the response future is dropped before there was a response ([`Outcome`]).
//!
//! **Readiness.** `poll_ready` waits while the sink asks for it ([`Sink::wait`]), before the inner service is asked, and so before a request counts
//! as begun. A sink that never asks costs nothing.
//!
//! Memory: the target and three field values (`Host`, `User-Agent`, `Referer`), and what [`RecordOptions`] ask for, are kept until then, by reference count; a
//! protocol driver that hands out slices of its read buffer can't reuse that buffer before. Without a `ConnInfo` the record has no address.

mod body;
mod details;
mod record;
mod sampling;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use self::record::{Pending, To};
pub use self::{
    body::{RequestBody, ResponseBody},
    details::{Details, FaultReason, LogSlot, RecordOptions, RouteLog, Upstream, UpstreamDetails, Which},
    record::{AccessRecord, Outcome},
    sampling::Sampling,
};

/// The name of whoever made the response, put into the response's extensions for the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamName(pub Arc<str>);

/// Where records go.
///
/// Called once per request, inside the task that sends the response: it must not block, and should only copy what it
/// needs into a buffer. Closures over `&AccessRecord` are sinks.
pub trait Sink: Send + Sync + 'static {
    /// Takes a record.
    fn record(&self, record: &AccessRecord);

    /// What a new request has to wait for, as long as there is no room for its record; `None` (the default) where it need not. The future
    /// should end after a while in any case: whoever waits serves nobody.
    fn wait(&self) -> Option<Waiting> {
        None
    }
}

/// See [`Sink::wait`].
pub type Waiting = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

impl<F: Fn(&AccessRecord) + Send + Sync + 'static> Sink for F {
    fn record(&self, record: &AccessRecord) {
        self(record);
    }
}

/// Makes a record of every request for a sink, which may be a trait object: `AccessLogLayer<dyn Sink>`.
pub struct AccessLogLayer<K: ?Sized> {
    to: Arc<To<K>>,
}

impl<K: Sink + ?Sized> AccessLogLayer<K> {
    /// Records go to this sink.
    pub fn new(sink: Arc<K>) -> Self {
        Self { to: Arc::new(To { options: RecordOptions::default(), sink }) }
    }

    /// Sets what records are to know beyond the usual.
    #[must_use]
    pub fn with_options(self, options: RecordOptions) -> Self {
        Self { to: Arc::new(To { options, sink: Arc::clone(&self.to.sink) }) }
    }
}

impl<K: ?Sized> Clone for AccessLogLayer<K> {
    fn clone(&self) -> Self {
        Self { to: Arc::clone(&self.to) }
    }
}

impl<K: ?Sized> fmt::Debug for AccessLogLayer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessLogLayer").finish_non_exhaustive()
    }
}

impl<S, K: Sink + ?Sized> Layer<S> for AccessLogLayer<K> {
    type Service = AccessLog<S, K>;

    fn layer(&self, inner: S) -> Self::Service {
        AccessLog { inner, to: Arc::clone(&self.to), waiting: None }
    }
}

/// The service of [`AccessLogLayer`].
pub struct AccessLog<S, K: ?Sized> {
    inner: S,
    to: Arc<To<K>>,
    waiting: Option<Waiting>,
}

impl<S: Clone, K: ?Sized> Clone for AccessLog<S, K> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), to: Arc::clone(&self.to), waiting: None }
    }
}

impl<S: fmt::Debug, K: ?Sized> fmt::Debug for AccessLog<S, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessLog").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, K, ReqBody, ResBody> Service<Request<ReqBody>> for AccessLog<S, K>
where
    S: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>,
    K: Sink + ?Sized,
    ReqBody: Body,
    ResBody: Body,
{
    type Response = Response<ResponseBody<ResBody, K>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, K>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if self.waiting.is_none() {
            self.waiting = self.to.sink.wait();
        }
        if let Some(waiting) = &mut self.waiting {
            ready!(waiting.as_mut().poll(cx));
            self.waiting = None;
        }
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let record = AccessRecord::begin(&mut request, &self.to.options);
        let count = record.details.as_ref().and_then(|details| details.counter());
        let request = request.map(|body| RequestBody::new(body, count));
        let pending = Pending::new(record, Arc::clone(&self.to));
        ResponseFuture { inner: self.inner.call(request), pending: Some(pending) }
    }
}

pin_project! {
    /// The future of [`AccessLog`].
    pub struct ResponseFuture<F, K> where K: Sink, K: ?Sized {
        #[pin]
        inner: F,
        pending: Option<Pending<K>>,
    }
}

impl<F: fmt::Debug, K: Sink + ?Sized> fmt::Debug for ResponseFuture<F, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<F, K, B, E> Future for ResponseFuture<F, K>
where
    F: Future<Output = Result<Response<B>, E>>,
    K: Sink + ?Sized,
    B: Body,
{
    type Output = Result<Response<ResponseBody<B, K>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        let mut pending = this.pending.take().expect("a future is not polled after it was ready");
        match result {
            Ok(response) => {
                pending.head(&response);
                Poll::Ready(Ok(response.map(|body| ResponseBody::new(body, pending))))
            }
            Err(error) => {
                pending.fail();
                Poll::Ready(Err(error))
            }
        }
    }
}

#[cfg(test)]
mod tests;
