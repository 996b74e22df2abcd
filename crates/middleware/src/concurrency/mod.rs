//! How many requests run at once.
//!
//! tower's `ConcurrencyLimitLayer` holds `poll_ready` back, without a bound on who waits or for how long, and its permit ends with the
//! response's head. Here a request holds its place until its response's *body* has ended or is given up; a bounded number wait
//! for a bounded time, in order; everybody else is told 503 with `Retry-After` at once. The places are one set for all clones of the layer, whichever threads they
//! are on, and every option changes while it runs ([`ConcurrencyLimit::set`]).
//!
//! By choice the limit follows latency ([`AdaptiveOptions`]): it comes down when the service is slower than it was with nothing to do, and
//! load is shed before everybody waits. The algorithm stands in the documentation of `adaptive.rs`:
//! windows of samples, a multiplicative decrease by how much slower the service is than is tolerated, an increase by the limit's square root
//! while half of it is in use, and a probe of the service's base latency every half minute. Answers that are errors of a gateway or refusals
//! (429, 502, 503, 504) are no samples, so a service that fails fast does not attract more.
//!
//! **Readiness** is that of the inner service: the place is taken when the request is there. What must always be answered, such as
//! health, goes outside.
//!
//! A response without a body holds no place, and neither does what follows a 101 or the 2xx to a CONNECT: tunnels have a limit of their own.
//!
//! With a free place a request costs a few atomic operations at either end, as its place is given back the short lock of the queue, and no allocation; only
//! one that waits is boxed. The clock is looked at, and the algorithm's lock tried, only while the limit follows latency.

mod adaptive;
mod limit;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{CACHE_CONTROL, RETRY_AFTER},
};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower_layer::Layer;
use tower_service::Service;

use self::limit::{Permit, Waiting};
pub use self::{
    adaptive::AdaptiveOptions,
    limit::{ConcurrencyLimit, ConcurrencyOptions, ConcurrencyStats},
};
use crate::early::OwnAnswer;

/// Lets so many requests run at once.
#[derive(Clone, Debug)]
pub struct ConcurrencyLayer {
    limit: ConcurrencyLimit,
}

impl ConcurrencyLayer {
    /// With places of its own.
    pub fn new(options: ConcurrencyOptions) -> Self {
        Self { limit: ConcurrencyLimit::new(options) }
    }

    /// With these places, which other layers may share.
    pub fn with_limit(limit: ConcurrencyLimit) -> Self {
        Self { limit }
    }

    /// The places, to look at and to change.
    pub fn limit(&self) -> &ConcurrencyLimit {
        &self.limit
    }
}

impl<S> Layer<S> for ConcurrencyLayer {
    type Service = Concurrency<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Concurrency { inner, limit: self.limit.clone() }
    }
}

/// The service of [`ConcurrencyLayer`].
#[derive(Clone, Debug)]
pub struct Concurrency<S> {
    inner: S,
    limit: ConcurrencyLimit,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Concurrency<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    ResBody: Body + Default,
{
    type Response = Response<PlaceBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        if let Some(permit) = self.limit.try_take() {
            return ResponseFuture { state: State::running(self.inner.call(request), permit) };
        }
        let Some((waiting, wait)) = self.limit.queue() else {
            return ResponseFuture { state: State::Refused { retry_after: self.limit.refuse() } };
        };
        // the one that is ready is the one to call
        let clone = self.inner.clone();
        let held = Held {
            service: std::mem::replace(&mut self.inner, clone),
            request,
            place: Box::pin(self.limit.clone().take()),
            limit: self.limit.clone(),
            deadline: Box::pin(tokio::time::sleep(wait)),
            _waiting: waiting,
        };
        ResponseFuture { state: State::Waits { held: Some(Box::new(held)) } }
    }
}

struct Held<S, B> {
    service: S,
    request: Request<B>,
    place: Pin<Box<dyn Future<Output = Option<Permit>> + Send>>,
    limit: ConcurrencyLimit,
    deadline: Pin<Box<Sleep>>,
    _waiting: Waiting,
}

pin_project! {
    /// The future of [`Concurrency`].
    pub struct ResponseFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<S, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B>
    where
        S: Service<Request<B>>,
    {
        Running { #[pin] future: S::Future, run: Run },
        Waits { held: Option<Box<Held<S, B>>> },
        Refused { retry_after: Duration },
    }
}

impl<S: Service<Request<B>>, B> State<S, B> {
    fn running(future: S::Future, permit: Permit) -> Self {
        let since = permit.begins();
        Self::Running { future, run: Run { permit: Some(permit), since } }
    }
}

/// A request that has a place and no response yet. Dropped before, it was given up.
struct Run {
    permit: Option<Permit>,
    /// Where the limit follows latency.
    since: Option<Instant>,
}

impl Run {
    fn answered(&mut self, status: Option<StatusCode>) -> Option<Permit> {
        let permit = self.permit.take()?;
        if let Some(since) = self.since
            && status.is_some_and(|status| !matches!(status.as_u16(), 429 | 502 | 503 | 504))
        {
            permit.sample(since.elapsed(), false);
        }
        Some(permit)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let (Some(permit), Some(since)) = (self.permit.take(), self.since) {
            permit.sample(since.elapsed(), true);
        }
    }
}

impl<S: Service<Request<B>>, B> fmt::Debug for ResponseFuture<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<S, B, ResBody> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>, Response = Response<ResBody>>,
    ResBody: Body + Default,
{
    type Output = Result<Response<PlaceBody<ResBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Running { future, run } => {
                    let result = ready!(future.poll(cx));
                    let permit = run.answered(result.as_ref().ok().map(Response::status));
                    return Poll::Ready(
                        result.map(|response| response.map(|body| PlaceBody::new(body, permit))),
                    );
                }
                StateProj::Refused { retry_after } => return Poll::Ready(Ok(refusal(*retry_after))),
                StateProj::Waits { held } => {
                    let Some(waits) = held.as_mut() else { return Poll::Pending };
                    match waits.place.as_mut().poll(cx) {
                        Poll::Pending => {
                            ready!(waits.deadline.as_mut().poll(cx));
                            State::Refused { retry_after: waits.limit.refuse() }
                        }
                        Poll::Ready(permit) => match (permit, held.take().map(|held| *held)) {
                            (Some(permit), Some(Held { mut service, request, .. })) => {
                                State::running(service.call(request), permit)
                            }
                            // it was there above, and places are never closed
                            _ => return Poll::Pending,
                        },
                    }
                }
            };
            state.set(next);
        }
    }
}

fn refusal<B: Default>(retry_after: Duration) -> Response<PlaceBody<B>> {
    let mut response = Response::new(PlaceBody { inner: B::default(), permit: None });
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(crate::whole_seconds(retry_after)));
    // there may be places for the next one
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.extensions_mut().insert(OwnAnswer);
    response
}

pin_project! {
    /// The response's body, which holds its place until it is over.
    pub struct PlaceBody<B> {
        #[pin]
        inner: B,
        permit: Option<Permit>,
    }
}

impl<B: Body> PlaceBody<B> {
    fn new(inner: B, permit: Option<Permit>) -> Self {
        let permit = permit.filter(|_| !inner.is_end_stream());
        Self { inner, permit }
    }

    /// The body itself where it holds no place, which spares a caller the wrapping.
    pub fn into_placeless(self) -> Result<B, Self> {
        match self.permit {
            None => Ok(self.inner),
            Some(_) => Err(self),
        }
    }
}

impl<B: fmt::Debug> fmt::Debug for PlaceBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlaceBody").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<B: Default> Default for PlaceBody<B> {
    fn default() -> Self {
        Self { inner: B::default(), permit: None }
    }
}

impl<B: Body> Body for PlaceBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        // a driver needn't ask again after the last frame
        if !matches!(frame, Some(Ok(_))) || this.inner.is_end_stream() {
            *this.permit = None;
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
mod tests;
