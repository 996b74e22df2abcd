//! The service and the future of a response.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{
    background,
    body::CacheBody,
    complete::{Plan, complete, instead},
    decide::{LookUp, Step},
    flight::BoxError,
    follow::{Follow, Followed},
    layer::Core,
    request::{Changed, Class, classify},
    stats::count,
    status::Why,
};

/// Answers from what is stored, and stores what the inner service answers.
///
/// It is ready when the inner service is. An answer from the store leaves that one's readiness unused until the next call. A request that is asked anew in the background takes the
/// inner service that is ready with it, and leaves a clone. One that waits, for another's response or for the disk, gives its place in the inner service to others: the one that is ready is dropped, and a
/// clone is asked for a place when the wait ends with a request of its own.
///
/// Requests that wait need tokio's timer: on a tokio runtime without one (`enable_time`) they panic. Without a runtime nobody waits for another.
#[derive(Clone, Debug)]
pub struct Cache<S> {
    inner: S,
    core: Arc<Core>,
}

/// The service that was made ready, which may hold a place that a clone of it would wait for.
pub(crate) fn ready_one<S: Clone>(inner: &mut S) -> S {
    let clone = inner.clone();
    std::mem::replace(inner, clone)
}

/// For a request that waits: the service that was made ready is dropped, with the place that it holds, or those that wait would take all places for as long as that takes.
fn one_to_wait<S: Clone>(inner: &mut S) -> S {
    drop(ready_one(inner));
    inner.clone()
}

impl<S> Cache<S> {
    pub(crate) fn new(inner: S, core: Arc<Core>) -> Self {
        Self { inner, core }
    }
}

impl<S, B, R> Service<Request<B>> for Cache<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Body + Default + Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<CacheBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let plan = match classify(&request, &self.core) {
            Class::Lookup { key, directives } => {
                let mut look_up = LookUp::new(key, directives, &request);
                if let Some(load) = self.core.load(look_up.key.as_slice()) {
                    let inner = one_to_wait(&mut self.inner);
                    let follow = Follow::after(&self.core, inner, request, look_up, load);
                    return ResponseFuture { state: State::Follow { follow: Box::new(follow) } };
                }
                match look_up.decide(&self.core, &mut request) {
                    Step::Answer(response) => return ResponseFuture::answer(response),
                    Step::AnswerAndAsk(response, ask) => {
                        background::spawn(ready_one(&mut self.inner), &self.core, *ask);
                        return ResponseFuture::answer(response);
                    }
                    Step::Follow(seat) => {
                        let inner = one_to_wait(&mut self.inner);
                        let follow = Follow::new(&self.core, inner, request, look_up, seat);
                        return ResponseFuture { state: State::Follow { follow: Box::new(follow) } };
                    }
                    Step::Forward(plan) => plan,
                }
            }
            class => {
                count(&self.core.shared.counters.bypassed);
                match class {
                    Class::Unsafe => Plan::Unsafe(Changed::by(&request)),
                    Class::Method => Plan::Pass(Why::Method),
                    _ => Plan::Pass(Why::Bypass),
                }
            }
        };
        let future = self.inner.call(request);
        let core = Arc::clone(&self.core);
        ResponseFuture { state: State::Forward { future, rest: Some((core, plan)) } }
    }
}

pin_project! {
    /// The response on its way.
    pub struct ResponseFuture<S, B, R>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<S, S::Future, B, R>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, F, B, R> {
        Answer { response: Option<Response<CacheBody<R>>> },
        Forward { #[pin] future: F, rest: Option<(Arc<Core>, Plan)> },
        Follow { follow: Box<Follow<S, B>> },
    }
}

impl<S, B, R> ResponseFuture<S, B, R>
where
    S: Service<Request<B>>,
{
    fn answer(response: Response<CacheBody<R>>) -> Self {
        Self { state: State::Answer { response: Some(response) } }
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
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Body + Default + Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Output = Result<Response<CacheBody<R>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        const ONCE: &str = "a future is not polled again once it was ready";
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Answer { response } => return Poll::Ready(Ok(response.take().expect(ONCE))),
                StateProj::Forward { future, rest } => {
                    let result = ready!(future.poll(cx));
                    let (core, plan) = rest.take().expect(ONCE);
                    return Poll::Ready(match result {
                        Ok(response) => Ok(complete(&core, plan, response)),
                        Err(error) => instead(&core, plan).ok_or(error),
                    });
                }
                StateProj::Follow { follow } => match ready!(follow.poll(cx))? {
                    Followed::Answer(response) => return Poll::Ready(Ok(response)),
                    Followed::Forward(future, plan) => {
                        let rest = Some((Arc::clone(follow.core()), plan));
                        state.set(State::Forward { future, rest });
                    }
                },
            }
        }
    }
}
