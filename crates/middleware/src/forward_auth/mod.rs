//! Asks another service whether a request may pass (nginx's `auth_request`, Traefik's `ForwardAuth`).
//!
//! The question is a GET without a body, with the fields of the request and, in fields of its own, what is asked about:
//!
//! | field | what |
//! |---|---|
//! | `X-Original-Method`, `X-Forwarded-Method` | the request's method |
//! | `X-Original-URI`, `X-Forwarded-Uri` | its path and query |
//! | `X-Forwarded-Host` | its host |
//! | `X-Forwarded-Proto` | `https` or `http`, by [`crate::ClientSecure`] or else the connection |
//! | `X-Forwarded-For` | the client's address |
//!
//! What clients send under these names, or under names much like them, is taken out of the question. So are fields of the connection and
//! of the body, conditions and ranges: the answer must not depend on them.
//!
//! | answer | then |
//! |---|---|
//! | 2xx | the request passes, with the fields of the answer that were asked for in the place of the client's |
//! | 401, 403, 425, a redirect (301, 302, 303, 307, 308) | goes to the client as it is |
//! | 5xx, an error, none in time | 503: it fails closed |
//! | anything else | 500: the service doesn't speak about this |
//!
//! The body of an answer that lets pass is dropped; let it be empty, so that its connection can be used again.

mod question;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, uri::PathAndQuery};
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    early,
    identity::{Authenticated, IdentityFields, Scheme},
};

/// What is asked, and what becomes of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForwardAuthOptions {
    /// The path and query of the question. There is no default.
    pub target: PathAndQuery,
    /// The host of the question. Default `None`: that of the request.
    pub host: Option<HeaderValue>,
    /// How long an answer may take, until its fields are there. Default 5 s.
    pub timeout: Duration,
    /// Fields of an answer that lets pass which go into the request. What the client sent under these names, or names much like them, is taken
    /// away, whether the answer has them or not. Default empty.
    pub request_fields: Vec<HeaderName>,
    /// Fields of an answer that lets pass which go into the response to the client, `Set-Cookie` for one. Default empty.
    pub response_fields: Vec<HeaderName>,
    /// The field of the answer that has the user's name, for [`Authenticated`]. Default `None`: the name is empty.
    pub user_field: Option<HeaderName>,
}

impl ForwardAuthOptions {
    /// Asks at this path.
    pub fn new(target: PathAndQuery) -> Self {
        Self {
            target,
            host: None,
            timeout: Duration::from_secs(5),
            request_fields: Vec::new(),
            response_fields: Vec::new(),
            user_field: None,
        }
    }

    /// Sets [`ForwardAuthOptions::host`].
    #[must_use]
    pub fn with_host(mut self, host: Option<HeaderValue>) -> Self {
        self.host = host;
        self
    }

    /// Sets [`ForwardAuthOptions::timeout`].
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Adds to [`ForwardAuthOptions::request_fields`].
    #[must_use]
    pub fn with_request_field(mut self, name: HeaderName) -> Self {
        self.request_fields.push(name);
        self
    }

    /// Adds to [`ForwardAuthOptions::response_fields`].
    #[must_use]
    pub fn with_response_field(mut self, name: HeaderName) -> Self {
        self.response_fields.push(name);
        self
    }

    /// Sets [`ForwardAuthOptions::user_field`].
    #[must_use]
    pub fn with_user_field(mut self, name: Option<HeaderName>) -> Self {
        self.user_field = name;
        self
    }
}

/// Asks the service `C` about every request. Who passed is in [`Authenticated`], among the extensions of request and response.
#[derive(Clone)]
pub struct ForwardAuthLayer<C> {
    ask: C,
    shared: Arc<Shared>,
}

struct Shared {
    options: ForwardAuthOptions,
    stripped: IdentityFields,
}

impl<C> fmt::Debug for ForwardAuthLayer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardAuthLayer").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl<C> ForwardAuthLayer<C> {
    /// Asks `ask`, of which each question gets a clone. Its `poll_ready` is part of the time that an answer may take.
    pub fn new(options: ForwardAuthOptions, ask: C) -> Self {
        let stripped = IdentityFields::new(&options.request_fields);
        Self { ask, shared: Arc::new(Shared { options, stripped }) }
    }
}

impl<S, C: Clone> Layer<S> for ForwardAuthLayer<C> {
    type Service = ForwardAuth<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        ForwardAuth { inner, ask: self.ask.clone(), shared: Arc::clone(&self.shared) }
    }
}

/// The service of [`ForwardAuthLayer`]. It clones the inner service for every request.
#[derive(Clone)]
pub struct ForwardAuth<S, C> {
    inner: S,
    ask: C,
    shared: Arc<Shared>,
}

impl<S: fmt::Debug, C> fmt::Debug for ForwardAuth<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardAuth").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, C, ReqBody, ResBody> Service<Request<ReqBody>> for ForwardAuth<S, C>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    C: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    C::Error: fmt::Display,
    ReqBody: Default,
    ResBody: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, C, ReqBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let question = question::about(&request, &self.shared.options);
        // the one that is ready goes with the request
        let next = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, next);
        let rest = Box::new(Rest { inner, request, shared: Arc::clone(&self.shared) });
        let sleep = tokio::time::sleep(self.shared.options.timeout);
        let state = State::Waiting { ask: self.ask.clone(), question: Some(question) };
        ResponseFuture { state, sleep, rest: Some(rest) }
    }
}

/// What waits for the answer.
struct Rest<S, ReqBody> {
    inner: S,
    request: Request<ReqBody>,
    shared: Arc<Shared>,
}

/// What becomes of a request that was answered for.
enum After<ResBody> {
    Pass(HeaderMap),
    Answer(Response<ResBody>),
}

fn judge<ResBody: Default>(answer: Response<ResBody>) -> After<ResBody> {
    let status = answer.status();
    match status.as_u16() {
        200..=299 => After::Pass(answer.into_parts().0.headers),
        // 425: the question keeps `Early-Data`, and the client is to ask again (RFC 8470 section 5.2)
        401 | 403 | 425 | 301 | 302 | 303 | 307 | 308 => After::Answer(answer),
        500..=599 => {
            tracing::warn!(status = status.as_u16(), "the service that says who may pass is unwell");
            After::Answer(early::come_again())
        }
        _ => {
            tracing::warn!(
                status = status.as_u16(),
                "the service that says who may pass gives no answer to that"
            );
            After::Answer(early::empty(StatusCode::INTERNAL_SERVER_ERROR))
        }
    }
}

impl<S, ReqBody> Rest<S, ReqBody> {
    /// Sends the request on. Gives what is to be said of it in the response, too.
    fn pass<ResBody>(mut self, answer: &HeaderMap) -> (S::Future, Told)
    where
        S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    {
        let options = &self.shared.options;
        let headers = self.request.headers_mut();
        self.shared.stripped.strip(headers);
        copy(answer, &options.request_fields, headers);
        let user = options.user_field.as_ref().and_then(|name| answer.get(name)?.to_str().ok());
        let who = Authenticated::new(user.unwrap_or_default(), Scheme::Forward);
        let mut fields = HeaderMap::new();
        copy(answer, &options.response_fields, &mut fields);
        self.request.extensions_mut().insert(who.clone());
        (self.inner.call(self.request), Told { who, fields })
    }
}

/// All lines of these fields. A map that is full takes no more, and a field that is missing says less and not more.
fn copy(from: &HeaderMap, names: &[HeaderName], to: &mut HeaderMap) {
    for name in names {
        for value in from.get_all(name) {
            let _ = to.try_append(name, value.clone());
        }
    }
}

/// What a response is told.
struct Told {
    who: Authenticated,
    fields: HeaderMap,
}

pin_project! {
    /// The future of [`ForwardAuth`].
    pub struct ResponseFuture<S, C, ReqBody>
    where
        S: Service<Request<ReqBody>>,
        C: Service<Request<ReqBody>>,
    {
        #[pin]
        state: State<C, C::Future, S::Future, ReqBody>,
        #[pin]
        sleep: Sleep,
        rest: Option<Box<Rest<S, ReqBody>>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<C, A, F, ReqBody> {
        Waiting { ask: C, question: Option<Request<ReqBody>> },
        Asking { #[pin] answer: A },
        Inner { #[pin] inner: F, told: Option<Told> },
    }
}

impl<S, C, ReqBody> fmt::Debug for ResponseFuture<S, C, ReqBody>
where
    S: Service<Request<ReqBody>>,
    C: Service<Request<ReqBody>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<S, C, ReqBody, ResBody> Future for ResponseFuture<S, C, ReqBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    C: Service<Request<ReqBody>, Response = Response<ResBody>>,
    C::Error: fmt::Display,
    ResBody: Default,
{
    type Output = Result<Response<ResBody>, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        const ONCE: &str = "a future is not polled after it was ready";
        loop {
            let mut this = self.as_mut().project();
            let answer = match this.state.as_mut().project() {
                StateProj::Waiting { ask, question } => match ask.poll_ready(cx) {
                    Poll::Ready(Ok(())) => {
                        let answer = ask.call(question.take().expect(ONCE));
                        this.state.set(State::Asking { answer });
                        continue;
                    }
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    Poll::Pending => Poll::Pending,
                },
                StateProj::Asking { answer } => answer.poll(cx),
                StateProj::Inner { inner, told } => {
                    let mut response = ready!(inner.poll(cx))?;
                    if let Some(Told { who, fields }) = told.take() {
                        response.extensions_mut().insert(who);
                        let names: Vec<_> = fields.keys().cloned().collect();
                        copy(&fields, &names, response.headers_mut());
                    }
                    return Poll::Ready(Ok(response));
                }
            };
            let after = match answer {
                Poll::Ready(Ok(answer)) => judge(answer),
                Poll::Ready(Err(error)) => {
                    tracing::warn!(%error, "the service that says who may pass can't be asked");
                    After::Answer(early::come_again())
                }
                Poll::Pending => {
                    ready!(this.sleep.poll(cx));
                    tracing::warn!("the service that says who may pass gave no answer in time");
                    After::Answer(early::come_again())
                }
            };
            match after {
                After::Answer(response) => return Poll::Ready(Ok(response)),
                After::Pass(fields) => {
                    let (inner, told) = this.rest.take().expect(ONCE).pass(&fields);
                    this.state.set(State::Inner { inner, told: Some(told) });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
