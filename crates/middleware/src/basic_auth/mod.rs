//! Names and passwords (RFC 7617), with argon2 hashes.
//!
//! tower-http's `ValidateRequestHeader` compares with one password in the clear; here are hashes, and the cost of hashing is kept from being turned
//! against the server:
//!
//! - Hashing takes some 20 ms of a core and 19 MiB. It happens on threads of its own, at most [`BasicAuthOptions::max_hashing`] at a time, and
//!   at most [`BasicAuthOptions::max_waiting`] requests wait for it; beyond that a request is answered 503 with `Retry-After`. Who floods with
//!   wrong passwords keeps out only those who log in anew, and a rate limit in front keeps him from that.
//! - What was right is remembered for a while, which begins anew with each use, by a digest under a key that nobody has, and costs a microsecond from then on.
//! - A name that is not known costs as much as one that is.
//!
//! Passwords travel in the clear: a request over a connection that is not encrypted is best redirected before it gets here.

mod check;
mod users;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use base64::{Engine as _, alphabet, engine::general_purpose};
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode,
    header::{AUTHORIZATION, WWW_AUTHENTICATE},
};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    early,
    identity::{Authenticated, Identified, IdentityFields, Scheme, field_value, quoted},
};

use self::check::{Checker, Verdict};
pub use self::users::{HashError, InvalidUser, UserStore, Users, hash_password};

/// The longest credentials that are looked at, encoded.
const MAX_CREDENTIALS: usize = 2048;

/// How names and passwords are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BasicAuthOptions {
    /// What the client is told that it logs in to. Default `restricted`. Printable ASCII; what else there is becomes a question mark.
    pub realm: String,
    /// Whether `Authorization` is taken away before the request goes on. Default `true`: the service behind has no use for a password that was
    /// checked.
    pub strip: bool,
    /// A field that tells the service behind the user's name. What clients send under it, or under a name that is much like it, is taken
    /// away. Default `None`.
    pub user_field: Option<HeaderName>,
    /// How many passwords are hashed at a time. Default 2, at least 1. Each takes a core and the memory of its parameters, 19 MiB with the usual ones.
    pub max_hashing: usize,
    /// How many requests wait for their turn to be hashed; the next is answered 503. Default 64, which is some 0.7 s of waiting. Each takes what a request takes.
    pub max_waiting: usize,
    /// How many pairs of name and password that were right are remembered, each in some 150 bytes. Default 4096; past it the oldest is forgotten.
    /// 0 remembers none, and every request is hashed for.
    pub remember: usize,
    /// For how long since they were used last. Default 5 min. Replacing the users forgets at once.
    pub remember_for: Duration,
}

impl Default for BasicAuthOptions {
    fn default() -> Self {
        Self {
            realm: "restricted".to_owned(),
            strip: true,
            user_field: None,
            max_hashing: 2,
            max_waiting: 64,
            remember: 4096,
            remember_for: Duration::from_secs(300),
        }
    }
}

impl BasicAuthOptions {
    /// Sets [`BasicAuthOptions::realm`].
    #[must_use]
    pub fn with_realm(mut self, realm: impl Into<String>) -> Self {
        self.realm = realm.into();
        self
    }

    /// Sets [`BasicAuthOptions::strip`].
    #[must_use]
    pub fn with_strip(mut self, strip: bool) -> Self {
        self.strip = strip;
        self
    }

    /// Sets [`BasicAuthOptions::user_field`].
    #[must_use]
    pub fn with_user_field(mut self, field: Option<HeaderName>) -> Self {
        self.user_field = field;
        self
    }

    /// Sets [`BasicAuthOptions::max_hashing`].
    #[must_use]
    pub fn with_max_hashing(mut self, max: usize) -> Self {
        self.max_hashing = max;
        self
    }

    /// Sets [`BasicAuthOptions::max_waiting`].
    #[must_use]
    pub fn with_max_waiting(mut self, max: usize) -> Self {
        self.max_waiting = max;
        self
    }

    /// Sets [`BasicAuthOptions::remember`].
    #[must_use]
    pub fn with_remember(mut self, remember: usize) -> Self {
        self.remember = remember;
        self
    }

    /// Sets [`BasicAuthOptions::remember_for`].
    #[must_use]
    pub fn with_remember_for(mut self, time: Duration) -> Self {
        self.remember_for = time;
        self
    }
}

/// Lets pass who has a name and its password, and answers the others 401 (RFC 9110 section 11.6.1) without a body. Who passed is in
/// [`Authenticated`], among the extensions of request and response.
#[derive(Clone)]
pub struct BasicAuthLayer {
    shared: Arc<Shared>,
}

struct Shared {
    checker: Arc<Checker>,
    challenge: HeaderValue,
    strip: bool,
    user_field: Option<HeaderName>,
    stripped: IdentityFields,
}

impl fmt::Debug for BasicAuthLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BasicAuthLayer").field("challenge", &self.shared.challenge).finish_non_exhaustive()
    }
}

impl BasicAuthLayer {
    /// Who may pass are the users of this store, which may be replaced later.
    pub fn new(options: &BasicAuthOptions, users: UserStore) -> Self {
        // RFC 7617 section 2.1: names and passwords are in UTF-8
        let challenge = format!("Basic realm={}, charset=\"UTF-8\"", quoted(&options.realm));
        let challenge = HeaderValue::try_from(challenge).expect("a quoted string is printable ASCII");
        let shared = Shared {
            checker: Arc::new(Checker::new(users, options)),
            challenge,
            strip: options.strip,
            user_field: options.user_field.clone(),
            stripped: IdentityFields::new(&options.user_field),
        };
        Self { shared: Arc::new(shared) }
    }
}

impl<S> Layer<S> for BasicAuthLayer {
    type Service = BasicAuth<S>;

    fn layer(&self, inner: S) -> Self::Service {
        BasicAuth { inner, shared: Arc::clone(&self.shared) }
    }
}

/// The service of [`BasicAuthLayer`]. It clones the inner service for a request whose password has to be hashed.
#[derive(Clone)]
pub struct BasicAuth<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S: fmt::Debug> fmt::Debug for BasicAuth<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BasicAuth").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for BasicAuth<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    ResBody: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqBody, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let shared = &self.shared;
        let state = match credentials(request.headers()) {
            Some((name, password)) => match shared.checker.recall(&name, &password) {
                Ok(user) => pass(shared, &mut self.inner, request, user),
                Err(credentials) => {
                    // the one that is ready goes with the request
                    let next = self.inner.clone();
                    let inner = std::mem::replace(&mut self.inner, next);
                    let check = Box::pin(Arc::clone(&shared.checker).check(credentials));
                    let rest = Box::new((inner, request, Arc::clone(shared)));
                    State::Checking { check, rest: Some(rest) }
                }
            },
            None => State::Answered { response: Some(shared.unauthorized()) },
        };
        ResponseFuture { state }
    }
}

fn pass<S, ReqBody, ResBody>(
    shared: &Shared,
    inner: &mut S,
    mut request: Request<ReqBody>,
    user: Arc<str>,
) -> State<S, ReqBody, S::Future, ResBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    let headers = request.headers_mut();
    if shared.strip {
        headers.remove(AUTHORIZATION);
    }
    shared.stripped.strip(headers);
    if let (Some(field), Some(value)) = (&shared.user_field, field_value(&user)) {
        headers.insert(field, value);
    }
    let who = Authenticated::new(user, Scheme::Basic);
    request.extensions_mut().insert(who.clone());
    State::Inner { inner: Identified::new(inner.call(request), who) }
}

impl Shared {
    fn unauthorized<B: Default>(&self) -> Response<B> {
        let mut response = early::empty(StatusCode::UNAUTHORIZED);
        response.headers_mut().insert(WWW_AUTHENTICATE, self.challenge.clone());
        response
    }
}

/// RFC 7617 section 2: the name ends at the first colon. Padding may be there or not. With several lines nobody knows whose it is.
fn credentials(headers: &HeaderMap) -> Option<(String, Vec<u8>)> {
    const BASE64: general_purpose::GeneralPurpose = general_purpose::GeneralPurpose::new(
        &alphabet::STANDARD,
        general_purpose::GeneralPurposeConfig::new()
            .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
    );
    let mut lines = headers.get_all(AUTHORIZATION).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return None };
    // RFC 9110 section 11.1: the scheme is in any letter case
    let (scheme, encoded) = line.as_bytes().split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") || encoded.len() > MAX_CREDENTIALS {
        return None;
    }
    let mut pair = BASE64.decode(encoded.trim_ascii()).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    let password = pair.split_off(colon + 1);
    pair.pop();
    Some((String::from_utf8(pair).ok()?, password))
}

pin_project! {
    /// The future of [`BasicAuth`].
    pub struct ResponseFuture<S, ReqBody, ResBody>
    where
        S: Service<Request<ReqBody>>,
    {
        #[pin]
        state: State<S, ReqBody, S::Future, ResBody>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, ReqBody, F, ResBody> {
        Answered { response: Option<Response<ResBody>> },
        Checking {
            check: Pin<Box<dyn Future<Output = Verdict> + Send>>,
            rest: Option<Box<(S, Request<ReqBody>, Arc<Shared>)>>,
        },
        Inner { #[pin] inner: Identified<F> },
    }
}

impl<S, ReqBody, ResBody> fmt::Debug for ResponseFuture<S, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<S, ReqBody, ResBody> Future for ResponseFuture<S, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Default,
{
    type Output = Result<Response<ResBody>, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        const ONCE: &str = "a future is not polled after it was ready";
        loop {
            let mut this = self.as_mut().project();
            let next = match this.state.as_mut().project() {
                StateProj::Answered { response } => return Poll::Ready(Ok(response.take().expect(ONCE))),
                StateProj::Inner { inner } => return inner.poll(cx),
                StateProj::Checking { check, rest } => {
                    let verdict = ready!(check.as_mut().poll(cx));
                    let (mut inner, request, shared) = *rest.take().expect(ONCE);
                    match verdict {
                        Verdict::Right(user) => pass(&shared, &mut inner, request, user),
                        Verdict::Wrong => {
                            tracing::debug!("a name and password are wrong");
                            State::Answered { response: Some(shared.unauthorized()) }
                        }
                        Verdict::Busy => State::Answered { response: Some(early::come_again()) },
                    }
                }
            };
            this.state.set(next);
        }
    }
}

#[cfg(test)]
mod tests;
