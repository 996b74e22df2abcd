//! A request that waits for another's response.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use http::{Request, Response};
use http_body::Body;
use tokio::time::Sleep;
use tower_service::Service;

use crate::{
    answer, background,
    body::CacheBody,
    complete::{Plan, content_length, seconds},
    decide::{LookUp, Step},
    disk::Load,
    flight::{BoxError, Outcome, Seat},
    layer::Core,
    meta::{Meta, Use},
    service::ready_one,
    stats::count,
    status::{Status, Why},
    store::Stored,
    vary::{fit, selection},
};

/// After so many responses that were of no use it goes on its own.
const TRIES: u8 = 3;

pub(crate) struct Follow<S, B> {
    core: Arc<Core>,
    inner: S,
    request: Option<Request<B>>,
    look_up: LookUp,
    state: Waiting,
    /// Until it goes on its own.
    patience: Pin<Box<Sleep>>,
    tries: u8,
}

enum Waiting {
    ForDisk(Load),
    ForOutcome(Seat),
    ToForward(Option<Plan>),
}

/// How the wait ended.
pub(crate) enum Followed<F, R> {
    Answer(Response<CacheBody<R>>),
    Forward(F, Plan),
}

type Waited<F, R, E> = Poll<Result<Followed<F, R>, E>>;

impl<S, B> Follow<S, B> {
    pub(crate) fn new(
        core: &Arc<Core>,
        inner: S,
        request: Request<B>,
        mut look_up: LookUp,
        seat: Seat,
    ) -> Self {
        look_up.waited = true;
        Self {
            core: Arc::clone(core),
            inner,
            request: Some(request),
            look_up,
            state: Waiting::ForOutcome(seat),
            patience: Box::pin(tokio::time::sleep(core.rules.collapse_wait)),
            tries: 0,
        }
    }

    /// Waits until what may be on disk is in memory, and looks it up then.
    pub(crate) fn after(
        core: &Arc<Core>,
        inner: S,
        request: Request<B>,
        look_up: LookUp,
        load: Load,
    ) -> Self {
        Self {
            core: Arc::clone(core),
            inner,
            request: Some(request),
            look_up,
            state: Waiting::ForDisk(load),
            patience: Box::pin(tokio::time::sleep(core.rules.collapse_wait)),
            tries: 0,
        }
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }
}

impl<S, B, R> Follow<S, B>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Body + Default + Send + 'static,
    R: Body<Data = bytes::Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Waited<S::Future, R, S::Error> {
        const ONCE: &str = "the request is taken when the wait ends, and then nothing is polled any more";
        loop {
            let seat = match &mut self.state {
                Waiting::ForDisk(load) => {
                    ready!(load.as_mut().poll(cx));
                    match self.look_up() {
                        Some(answer) => return Poll::Ready(Ok(Followed::Answer(answer))),
                        None => continue,
                    }
                }
                Waiting::ForOutcome(seat) => seat,
                Waiting::ToForward(plan) => {
                    ready!(self.inner.poll_ready(cx))?;
                    let future = self.inner.call(self.request.take().expect(ONCE));
                    return Poll::Ready(Ok(Followed::Forward(future, plan.take().expect(ONCE))));
                }
            };
            let outcome = match seat.poll_outcome(cx) {
                Poll::Ready(outcome) => outcome,
                Poll::Pending => {
                    ready!(self.patience.as_mut().poll(cx));
                    Outcome::Alone
                }
            };
            let request = self.request.as_mut().expect(ONCE);
            let (now, directives) = (Instant::now(), &self.look_up.directives);
            match outcome {
                // It is stored, or as good as: what a stored response may not be used for it is not either.
                Outcome::Streaming(meta)
                    if is_for(&meta, request, &self.core)
                        && !matches!(meta.usable(directives, now, None), Use::Fresh(_)) =>
                {
                    self.look_up.alone = true;
                }
                Outcome::Failed(stored)
                    if is_for(&stored.meta, request, &self.core) && !stored.is_spare(directives, now) =>
                {
                    self.look_up.alone = true;
                }
                Outcome::Streaming(meta) if is_for(&meta, request, &self.core) => {
                    let state = std::mem::replace(&mut self.state, Waiting::ToForward(None));
                    let Waiting::ForOutcome(seat) = state else { continue };
                    let answer = along(&self.core, &self.look_up, &meta, seat);
                    return Poll::Ready(Ok(Followed::Answer(answer)));
                }
                Outcome::Failed(stored) if is_for(&stored.meta, request, &self.core) => {
                    let answer = failed(&self.core, &self.look_up, &stored);
                    return Poll::Ready(Ok(Followed::Answer(answer)));
                }
                Outcome::Alone => self.look_up.alone = true,
                outcome => {
                    // It is for others. They are told apart by this, though nothing is stored yet: who is not among them waits for one of his own.
                    if let Outcome::Streaming(meta) = outcome
                        && fit(&meta.selectors, &self.core.rules)
                    {
                        self.look_up.met = Some(meta);
                    }
                    self.tries += 1;
                    self.look_up.alone = self.tries == TRIES;
                }
            }
            if let Some(answer) = self.look_up() {
                return Poll::Ready(Ok(Followed::Answer(answer)));
            }
        }
    }

    /// Looks again: an answer, or the next state.
    fn look_up(&mut self) -> Option<Response<CacheBody<R>>> {
        let request = self.request.as_mut()?;
        match self.look_up.decide(&self.core, request) {
            Step::Answer(answer) => return Some(answer),
            Step::AnswerAndAsk(answer, ask) => {
                background::spawn(ready_one(&mut self.inner), &self.core, *ask);
                return Some(answer);
            }
            Step::Forward(plan) => self.state = Waiting::ToForward(Some(plan)),
            Step::Follow(seat) => {
                self.look_up.waited = true;
                self.state = Waiting::ForOutcome(seat);
            }
        }
        None
    }
}

fn is_for<B>(meta: &Meta, request: &Request<B>, core: &Core) -> bool {
    fit(&meta.selectors, &core.rules)
        && selection(&meta.selectors, request.headers())
            .is_some_and(|values| values.as_slice() == &*meta.selection)
}

/// The same response, as it comes.
fn along<R>(core: &Core, look_up: &LookUp, meta: &Meta, seat: Seat) -> Response<CacheBody<R>> {
    count(&core.shared.counters.collapsed);
    let now = Instant::now();
    let len = seat.expected().or_else(|| content_length(&meta.headers));
    let mut response = answer::on_its_way(meta, seat, len, core.rules.collapse_wait, &look_up.wanted, now);
    let key = Some(look_up.key.as_slice());
    let ttl = Some(seconds(meta.fresh_for(now)));
    let status = Status { collapsed: true, key, ttl, ..Status::fwd(look_up.why) };
    status.note(&core.rules, response.headers_mut());
    response
}

fn failed<R>(core: &Core, look_up: &LookUp, stored: &Arc<Stored>) -> Response<CacheBody<R>> {
    count(&core.shared.counters.stale);
    let now = Instant::now();
    let mut response = answer::stored(stored, &look_up.wanted, now);
    let key = Some(look_up.key.as_slice());
    let ttl = Some(-seconds(stored.meta.stale_since(now, stored.outdated_at())));
    let detail = Some("stale-if-error");
    let status = Status { collapsed: true, key, ttl, detail, ..Status::fwd(Why::Stale) };
    status.note(&core.rules, response.headers_mut());
    response
}
