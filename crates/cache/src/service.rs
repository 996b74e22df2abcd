//! The layer, its service and the future of a response.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    body::CacheBody,
    conditional::{self, Conditions},
    directives::RequestDirectives,
    forward::{self, Get, Plan, Why},
    key,
    options::CacheOptions,
    request::{Class, classify, selecting},
    rules::Use,
    stats::{CacheStats, count},
    store::{Shared, Stored, select},
};

/// Puts a [`Cache`] around a service. All services it makes, and those of its clones, share what is stored.
#[derive(Clone, Debug)]
pub struct CacheLayer {
    shared: Arc<Shared>,
}

impl CacheLayer {
    /// An empty cache.
    pub fn new(options: CacheOptions) -> Self {
        Self { shared: Arc::new(Shared::new(options)) }
    }

    /// Drops what has expired or is too much. Requests do a part of it as they come; call it from a timer, every
    /// few seconds, for the time when none do.
    pub fn run_pending(&self) {
        self.shared.run_pending();
    }

    /// The counters.
    pub fn stats(&self) -> CacheStats {
        self.shared.stats()
    }

    /// Forgets what is stored for an absolute URI, all variants. `false` when the URI has no scheme or host.
    pub fn purge(&self, uri: &Uri) -> bool {
        let key = key::of(None, None, uri, &http::HeaderMap::new());
        key.is_some_and(|key| {
            self.shared.invalidate(&key);
            true
        })
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.shared.clear();
    }
}

impl<S> Layer<S> for CacheLayer {
    type Service = Cache<S>;

    fn layer(&self, inner: S) -> Cache<S> {
        Cache { inner, shared: Arc::clone(&self.shared) }
    }
}

/// Answers from what is stored, and stores what the inner service answers.
#[derive(Clone, Debug)]
pub struct Cache<S> {
    inner: S,
    shared: Arc<Shared>,
}

/// What the look-up came to.
enum Found<R> {
    Answer(Response<CacheBody<R>>),
    Forward(Plan),
}

impl<S> Cache<S> {
    fn look_up<B, R>(
        &self,
        request: &mut Request<B>,
        key: String,
        head: bool,
        directives: &RequestDirectives,
    ) -> Found<R> {
        let shared = &self.shared;
        let now = Instant::now();
        let variants = shared.get(&key);
        let stored = variants.as_ref().and_then(|variants| select(variants, request.headers()));
        let (why, stored) = match stored {
            Some(stored) => match stored.meta.usable(directives, now) {
                Use::Fresh(left) => {
                    let conditions = Conditions::read(request.headers());
                    return Found::Answer(forward::hit(shared, stored, now, left, &conditions, head));
                }
                Use::Stale => (Why::Stale, Some(stored)),
                Use::Asked => (Why::Request, Some(stored)),
            },
            None if variants.is_some() => (Why::VaryMiss, None),
            None => (Why::UriMiss, None),
        };
        if directives.only_if_cached {
            return Found::Answer(forward::only_if_cached(shared));
        }
        if head {
            count(&shared.counters.misses);
            return Found::Forward(Plan::Pass(why));
        }
        let selecting = selecting(request);
        let revalidates =
            stored.filter(|stored| stored.meta.has_validator()).map(|stored| revalidate(stored, request));
        let generation = shared.generation(&key);
        Found::Forward(Plan::Get(Box::new(Get { key, generation, asked: now, selecting, why, revalidates })))
    }
}

/// Turns the request into a question about what is stored (RFC 9111 section 4.3.1).
fn revalidate<B>(stored: &Arc<Stored>, request: &mut Request<B>) -> (Arc<Stored>, Conditions) {
    let conditions = Conditions::read(request.headers());
    conditional::ask(request.headers_mut(), &stored.meta.headers);
    (Arc::clone(stored), conditions)
}

impl<S, B, R> Service<Request<B>> for Cache<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    B: Body,
    R: Body<Data = Bytes>,
{
    type Response = Response<CacheBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let plan = match classify(&request, &self.shared.options) {
            Class::Lookup { key, head, directives } => {
                match self.look_up(&mut request, key, head, &directives) {
                    Found::Answer(response) => {
                        return ResponseFuture { state: State::Answer { response: Some(response) } };
                    }
                    Found::Forward(plan) => plan,
                }
            }
            class => {
                count(&self.shared.counters.bypassed);
                match class {
                    Class::Unsafe(key) => Plan::Unsafe(key),
                    Class::Method => Plan::Pass(Why::Method),
                    _ => Plan::Pass(Why::Bypass),
                }
            }
        };
        let future = self.inner.call(request);
        let shared = Arc::clone(&self.shared);
        ResponseFuture { state: State::Forward { future, rest: Some((shared, plan)) } }
    }
}

pin_project! {
    /// The response on its way.
    pub struct ResponseFuture<S, B, R>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<S::Future, R>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, R> {
        Answer { response: Option<Response<CacheBody<R>>> },
        Forward { #[pin] future: F, rest: Option<(Arc<Shared>, Plan)> },
    }
}

impl<S, B, R> fmt::Debug for ResponseFuture<S, B, R>
where
    S: Service<Request<B>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<S, B, R> Future for ResponseFuture<S, B, R>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Body,
{
    type Output = Result<Response<CacheBody<R>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        const ONCE: &str = "a future is not polled again once it was ready";
        Poll::Ready(match self.project().state.project() {
            StateProj::Answer { response } => Ok(response.take().expect(ONCE)),
            StateProj::Forward { future, rest } => ready!(future.poll(cx)).map(|response| {
                let (shared, plan) = rest.take().expect(ONCE);
                forward::complete(&shared, plan, response)
            }),
        })
    }
}
