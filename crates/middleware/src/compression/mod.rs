//! Responses are compressed for clients that accept it (feature `compression`).
//!
//! tower-http's `CompressionLayer` compresses too; it leaves a strong `ETag` as it is, has one level for all codings, and looks
//! at neither `no-transform` nor digests. This layer is on the same encoders (async-compression) and does the rest of what RFC 9110 asks.
//!
//! **Which responses.** Those of the types, and not known to be shorter than the size, in [`CompressionOptions`]. Never: what has a `Content-Encoding` already, ranges (206,
//! `Content-Range`), what says `Cache-Control: no-transform`, what has a digest, server-sent events, gRPC, and what has no
//! content. `Accept-Encoding` decides with its weights: `q=0` refuses, and a client that says nothing gets the content as it is. So does one that refuses
//! everything, `identity` too: that is better than a 406. HEAD is told what GET would be.
//!
//! **Caches.** `Vary: Accept-Encoding` is on every response that could have been compressed, compressed or not, merged into the line that is there.
//! A cache belongs inside, where it keeps one copy for all.
//!
//! **Entity tags.** A compressed response is another sequence of bytes, so its strong tag becomes weak: `"a"` is `W/"a"`. Conditions go on as they are.
//! `If-None-Match: W/"a"` is compared weakly (RFC 9110 section 13.1.2), so the service that knows `"a"` says 304; the tag of that 304 is
//! made weak again for a client that asked weakly, and `Vary` is completed, since a cache finds what it has by them (RFC 9111 section 4.3.4). `If-Match` and `If-Range` are compared strongly and fail with a weak
//! tag, which is right: nobody may put together bytes of two representations.
//!
//! **Flushing.** When the service's body has nothing more for the moment, what was encoded goes out.
//!
//! **BREACH.** Compression tells an observer of lengths whether something that he can put into a response is like something secret
//! in it. Where a response has both a secret (a CSRF token) and what a stranger can choose (a search term), leave compression off for that
//! route, or mask the secret anew for each response. TLS does not help.
//!
//! **Memory**, for each response that is being compressed: about 0.5 MiB for gzip, and for the default levels up to 3.5 MiB for Zstandard and as much for Brotli, whose
//! window is 512 KiB; far more at the highest levels. [`CompressionOptions::max_at_once`] bounds how many there are. What is not compressed passes as it is, without an allocation.

mod coded;
mod fields;
mod options;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::IF_NONE_MATCH};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::sync::OwnedSemaphorePermit;
use tower_layer::Layer;
use tower_service::Service;

use self::options::Compiled;
pub use self::options::CompressionOptions;
pub(crate) use self::{
    coded::{BoxError, Coded, CodedError, poll_plain},
    fields::DIGESTS,
};
use crate::coding;
pub use crate::coding::Coding;

/// Compresses responses.
#[derive(Clone, Debug)]
pub struct CompressionLayer {
    compiled: Arc<Compiled>,
}

impl CompressionLayer {
    /// As the options say.
    pub fn new(options: CompressionOptions) -> Self {
        Self { compiled: Arc::new(Compiled::new(options)) }
    }
}

impl Default for CompressionLayer {
    fn default() -> Self {
        Self::new(CompressionOptions::default())
    }
}

impl<S> Layer<S> for CompressionLayer {
    type Service = Compression<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Compression { inner, compiled: Arc::clone(&self.compiled) }
    }
}

/// The service of [`CompressionLayer`].
#[derive(Clone, Debug)]
pub struct Compression<S> {
    inner: S,
    compiled: Arc<Compiled>,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Compression<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Body,
    ResBody::Error: Into<BoxError>,
{
    type Response = Response<CompressedBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let headers = request.headers();
        let weak = |line: &http::HeaderValue| line.as_bytes().windows(2).any(|two| two == b"W/");
        ResponseFuture {
            coding: coding::choose(headers, &self.compiled.options.codings),
            is_head: *request.method() == Method::HEAD,
            is_connect: *request.method() == Method::CONNECT,
            asked_weakly: headers.get_all(IF_NONE_MATCH).iter().any(weak),
            compiled: Arc::clone(&self.compiled),
            inner: self.inner.call(request),
        }
    }
}

pin_project! {
    /// The future of [`Compression`].
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        compiled: Arc<Compiled>,
        coding: Option<Coding>,
        is_head: bool,
        is_connect: bool,
        asked_weakly: bool,
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<CompressedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let (mut parts, body) = ready!(this.inner.poll(cx))?.into_parts();
        if parts.status == StatusCode::NOT_MODIFIED && *this.asked_weakly {
            fields::weaken(&mut parts.headers);
            // RFC 9110 section 15.4.5: what the 200 would say
            fields::vary(&mut parts.headers);
        }
        // the body of an answer to HEAD says nothing of its size
        let size = (!*this.is_head).then(|| body.size_hint().exact()).flatten();
        let may_be =
            !*this.is_connect && fields::may_be_coded(this.compiled, parts.status, &parts.headers, size);
        if may_be {
            fields::vary(&mut parts.headers);
        }
        let kind = match this.coding.filter(|_| may_be) {
            None => Kind::Plain { body },
            Some(coding) if *this.is_head => {
                fields::coded(&mut parts.headers, coding);
                Kind::Plain { body }
            }
            Some(coding) => match Arc::clone(&this.compiled.places).try_acquire_owned() {
                Err(_) => Kind::Plain { body },
                Ok(place) => {
                    fields::coded(&mut parts.headers, coding);
                    let level = this.compiled.options.level(coding);
                    Kind::Coded { coded: Coded::encode(body, coding, level), _place: place }
                }
            },
        };
        Poll::Ready(Ok(Response::from_parts(parts, CompressedBody { kind })))
    }
}

pin_project! {
    /// The response's body, compressed or as it was.
    pub struct CompressedBody<B: Body> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<B: Body> {
        Plain { #[pin] body: B },
        Coded { coded: Coded<B>, _place: OwnedSemaphorePermit },
    }
}

impl<B: Body> CompressedBody<B> {
    /// The body itself where it is as it was, which spares a caller the wrapping.
    pub fn into_plain(self) -> Result<B, Self> {
        match self.kind {
            Kind::Plain { body } => Ok(body),
            kind @ Kind::Coded { .. } => Err(Self { kind }),
        }
    }
}

impl<B: Body> fmt::Debug for CompressedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let coded = matches!(self.kind, Kind::Coded { .. });
        f.debug_struct("CompressedBody").field("coded", &coded).finish_non_exhaustive()
    }
}

impl<B: Body + Default> Default for CompressedBody<B> {
    fn default() -> Self {
        Self { kind: Kind::Plain { body: B::default() } }
    }
}

impl<B> Body for CompressedBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().kind.project() {
            KindProj::Plain { body } => poll_plain(body, cx),
            KindProj::Coded { coded, .. } => coded.poll_frame(cx).map(|frame| {
                frame.map(|frame| {
                    frame.map_err(|error| match error {
                        CodedError::Body(error) => error,
                        CodedError::Coding(error) => error.into(),
                    })
                })
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Plain { body } => body.is_end_stream(),
            Kind::Coded { coded, .. } => coded.is_done(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Plain { body } => body.size_hint(),
            Kind::Coded { .. } => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests;
