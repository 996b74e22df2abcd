//! Answers to HTTP-01 challenges (RFC 8555 section 8.3), as a tower layer.

use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response,
    header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE},
};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{answers::Answers, dns::BoxFuture};

const PREFIX: &str = "/.well-known/acme-challenge/";

/// The answers that this instance and those with the same storage have.
#[derive(Clone)]
pub struct Http01 {
    answers: Arc<Answers>,
    is_used: bool,
}

impl Http01 {
    /// The answer to a token, from memory or else from the storage; `None` for one that is nobody's, or where another
    /// challenge is set. Looking into the storage happens on a blocking thread, for 8 tokens at once; who waits longer
    /// than a second for that gets `None`.
    pub async fn answer(&self, token: &str) -> Option<String> {
        if self.is_used { self.answers.http(token).await } else { None }
    }
}

impl fmt::Debug for Http01 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http01").field("is_used", &self.is_used).finish_non_exhaustive()
    }
}

/// Answers GET and HEAD of `/.well-known/acme-challenge/TOKEN` for tokens of orders that are under way. Everything
/// else goes on to the service behind as it is, other tokens included: an application may have its own certificates
/// issued.
///
/// It goes outside of what redirects to HTTPS. Where the challenge is another one, it does nothing at all. The inner
/// service must be `Clone`: a request with a token waits for the answer while others go on.
#[derive(Clone, Debug)]
pub struct Http01Layer {
    http01: Http01,
}

impl Http01Layer {
    pub(crate) fn new(answers: Arc<Answers>, is_used: bool) -> Self {
        Self { http01: Http01 { answers, is_used } }
    }

    /// The answers, to be had without tower.
    pub fn answers(&self) -> Http01 {
        self.http01.clone()
    }
}

impl<S> Layer<S> for Http01Layer {
    type Service = Http01Service<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Http01Service { inner, http01: self.http01.clone() }
    }
}

/// The service of [`Http01Layer`].
#[derive(Clone, Debug)]
pub struct Http01Service<S> {
    inner: S,
    http01: Http01,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Http01Service<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    ResBody: From<Bytes>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqBody, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let token = request.uri().path().strip_prefix(PREFIX).filter(|_| is_read && self.http01.is_used);
        let kind = match token.map(str::to_owned) {
            None => Kind::Calling { future: self.inner.call(request) },
            Some(token) => {
                let http01 = self.http01.clone();
                let fresh = self.inner.clone();
                Kind::Looking {
                    answer: Box::pin(async move { http01.answer(&token).await }),
                    // the one that is ready
                    service: mem::replace(&mut self.inner, fresh),
                    request: Some(request),
                }
            }
        };
        ResponseFuture { kind }
    }
}

fn respond<B: From<Bytes>>(answer: String, is_head: bool) -> Response<B> {
    let length = answer.len();
    // RFC 9110 section 9.3.2: HEAD has the fields of GET and no content
    let body = if is_head { Bytes::new() } else { Bytes::from(answer) };
    let mut response = Response::new(B::from(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    response
}

pin_project! {
    /// The future of [`Http01Service`].
    pub struct ResponseFuture<S, ReqBody, F> {
        #[pin]
        kind: Kind<S, ReqBody, F>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<S, ReqBody, F> {
        Looking { answer: BoxFuture<'static, Option<String>>, service: S, request: Option<Request<ReqBody>> },
        Calling { #[pin] future: F },
    }
}

impl<S, ReqBody, F> fmt::Debug for ResponseFuture<S, ReqBody, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.kind {
            Kind::Looking { .. } => "looking for the answer",
            Kind::Calling { .. } => "calling the service",
        };
        f.debug_tuple("ResponseFuture").field(&state).finish()
    }
}

impl<S, ReqBody, ResBody> Future for ResponseFuture<S, ReqBody, S::Future>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: From<Bytes>,
{
    type Output = Result<Response<ResBody>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut kind = self.project().kind;
        loop {
            match kind.as_mut().project() {
                KindProj::Calling { future } => return future.poll(cx),
                KindProj::Looking { answer, service, request } => {
                    let answer = ready!(answer.as_mut().poll(cx));
                    let request = request.take().expect("a future is not polled after it was ready");
                    if let Some(answer) = answer {
                        let is_head = request.method() == Method::HEAD;
                        return Poll::Ready(Ok(respond(answer, is_head)));
                    }
                    let future = service.call(request);
                    kind.set(Kind::Calling { future });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
