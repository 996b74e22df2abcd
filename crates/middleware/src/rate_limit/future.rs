//! The future of the layer.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_service::Service;

use super::{
    answer::{self, Fields},
    key::Asked,
    options::Tarpit,
    rules::{Judgement, Judging, Rule, RuleSet},
    store::Verdict,
};

/// The longest that an answer is held back.
const LONGEST_HOLD: Duration = Duration::from_secs(60);

pin_project! {
    /// The future of [`super::RateLimit`]. Only a request that waits for a shared store, and an answer that is held back, are in a box.
    pub struct ResponseFuture<S, ReqBody, ResBody>
    where
        S: Service<Request<ReqBody>>,
    {
        #[pin]
        state: State<S, ReqBody, ResBody>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, ReqBody, ResBody>
    where
        S: Service<Request<ReqBody>>,
    {
        Called { #[pin] future: S::Future, fields: Option<Box<Fields>> },
        Answered { answer: Option<Box<Answer<ResBody>>> },
        Asking { asking: Option<Box<Asking<S, ReqBody>>> },
    }
}

/// A request whose next rule's store has to ask.
struct Asking<S, ReqBody> {
    answer: Pin<Box<dyn Future<Output = Verdict> + Send>>,
    request: Request<ReqBody>,
    service: S,
    rules: Arc<RuleSet>,
    judging: Judging,
}

/// An answer to who is refused, perhaps held back.
struct Answer<ResBody> {
    response: Response<ResBody>,
    held: Option<(Pin<Box<Sleep>>, Held)>,
}

/// Counts an answer that is held back, until it is dropped.
struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Held {
    fn new(held: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let before = held.fetch_add(1, Ordering::Relaxed);
        let held = Self(Arc::clone(held));
        (before < most).then_some(held)
    }
}

impl<S, ReqBody, ResBody> ResponseFuture<S, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>>,
    ResBody: From<Bytes>,
{
    /// The request passed.
    pub(super) fn called(future: S::Future, fields: Option<Box<Fields>>) -> Self {
        Self { state: State::Called { future, fields } }
    }

    pub(super) fn asking(
        answer: Pin<Box<dyn Future<Output = Verdict> + Send>>,
        request: Request<ReqBody>,
        service: S,
        rules: Arc<RuleSet>,
        judging: Judging,
    ) -> Self {
        let asking = Asking { answer, request, service, rules, judging };
        Self { state: State::Asking { asking: Some(Box::new(asking)) } }
    }

    /// The request is refused.
    pub(super) fn refused(
        rule: &Rule,
        wait: Option<Duration>,
        unavailable: bool,
        fields: Option<Box<Fields>>,
    ) -> Self {
        Self { state: State::Answered { answer: Some(refused(rule, wait, unavailable, fields)) } }
    }
}

fn refused<B: From<Bytes>>(
    rule: &Rule,
    wait: Option<Duration>,
    unavailable: bool,
    fields: Option<Box<Fields>>,
) -> Box<Answer<B>> {
    let mut response = answer::refusal(rule, wait, unavailable);
    if let Some(fields) = fields {
        fields.add_to(response.headers_mut());
    }
    let held = match rule.options.refusal.tarpit {
        Some(Tarpit { hold, max_held }) if !unavailable => Held::new(&rule.held, max_held)
            .map(|held| (Box::pin(tokio::time::sleep(hold.min(LONGEST_HOLD))), held)),
        _ => None,
    };
    Box::new(Answer { response, held })
}

impl<S, ReqBody, ResBody> Future for ResponseFuture<S, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: From<Bytes>,
{
    type Output = Result<Response<ResBody>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        const PROOF: &str = "a future is not polled after it was ready";
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Called { future, fields } => {
                    let mut response = ready!(future.poll(cx))?;
                    if let Some(fields) = fields.take() {
                        fields.add_to(response.headers_mut());
                    }
                    return Poll::Ready(Ok(response));
                }
                StateProj::Answered { answer } => {
                    if let Some((sleep, _)) = &mut answer.as_mut().expect(PROOF).held {
                        ready!(sleep.as_mut().poll(cx));
                    }
                    return Poll::Ready(Ok(answer.take().expect(PROOF).response));
                }
                StateProj::Asking { asking } => {
                    let verdict = ready!(asking.as_mut().expect(PROOF).answer.as_mut().poll(cx));
                    let next = go_on(asking.take().expect(PROOF), verdict);
                    this.state.set(next);
                }
            }
        }
    }
}

/// What becomes of a request when its rule's store has answered.
fn go_on<S, ReqBody, ResBody>(
    mut asking: Box<Asking<S, ReqBody>>,
    verdict: Verdict,
) -> State<S, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: From<Bytes>,
{
    let rules = Arc::clone(&asking.rules);
    asking.judging.waited(verdict);
    let judgement = {
        let asked = Asked::of(&asking.request);
        match rules.settle(&asked, &mut asking.judging, verdict) {
            Some(refused) => refused,
            None => rules.judge(&asked, &mut asking.judging),
        }
    };
    match judgement {
        Judgement::Ask(answer) => {
            asking.answer = answer;
            State::Asking { asking: Some(asking) }
        }
        Judgement::Pass => {
            let fields = Fields::new(rules.policy.as_ref(), asking.judging.field.take());
            let Asking { request, mut service, .. } = *asking;
            State::Called { future: service.call(request), fields }
        }
        Judgement::Refused { rule, wait, unavailable } => {
            let fields = Fields::new(rules.policy.as_ref(), asking.judging.field.take());
            State::Answered { answer: Some(refused(rule, wait, unavailable, fields)) }
        }
    }
}

impl<S, ReqBody, ResBody> fmt::Debug for ResponseFuture<S, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Called { .. } => "called",
            State::Answered { .. } => "answered",
            State::Asking { .. } => "asking",
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish_non_exhaustive()
    }
}
