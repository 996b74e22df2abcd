//! Request bodies are decompressed, within bounds (feature `compression`).
//!
//! tower-http's `RequestDecompressionLayer` decompresses without a bound. A few kilobytes can be gigabytes when they are unfolded; this
//! layer stops at a number of bytes, and where there is more than so many times what came. It takes Zstandard only with windows that
//! every decoder has to have (8 MiB, RFC 9659), and all members of a gzip file.
//!
//! **What it answers.** 413 where the content is larger than a bound, 400 where the bytes are none of their coding or go on after its end, 415 with
//! `Accept-Encoding` (RFC 9110 section 15.5.16) for a coding that it doesn't know or several on top of one another, and 503 with `Retry-After` where too many
//! bodies are being decompressed. A response
//! whose head is already on its way stays as it is, but the body fails in any case.
//!
//! For what is decompressed, the service behind gets neither `Content-Encoding` and `Content-Length` nor digests of the coded content. What has no
//! `Content-Encoding`, or no body, passes as it is.
//!
//! **Memory**, for each body that is being decompressed: its window, up to 8 MiB for Zstandard, 16 MiB for Brotli, and 32 KiB for gzip, and 16 KiB of output;
//! [`RequestDecompressionOptions::max_at_once`] bounds how many there are.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH},
};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    compression::{self, BoxError, Coded, CodedError, Coding},
    early::{self, EarlyFuture},
    overruled::{Broken, Overruled},
};

/// What is decompressed, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestDecompressionOptions {
    /// The most that a body may be unfolded, in bytes. Default 10 MiB.
    pub max_bytes: u64,
    /// How many times larger than what came it may be. Default 100: text is seldom more than 20 times as large. It counts from 1 MiB on,
    /// since a short text that repeats itself does no harm.
    pub max_ratio: u32,
    /// The codings that are taken. Default all.
    pub codings: Vec<Coding>,
    /// Lets other codings through to the service, as they came, in the place of a 415. Default `false`.
    pub pass_others: bool,
    /// How many bodies are decompressed at once, by all clones of a layer; past it a request is answered 503 with `Retry-After`. A client that sends its body
    /// slowly holds its decoder, so this bounds the memory of all: 2 GiB for the default of 128 if each body has the largest window of Brotli, 16 MiB, and
    /// half of that without Brotli. Uploads that are compressed are few and short where they are usual. At least 1.
    pub max_at_once: usize,
}

impl Default for RequestDecompressionOptions {
    fn default() -> Self {
        Self {
            max_bytes: 10 << 20,
            max_ratio: 100,
            codings: vec![Coding::Zstd, Coding::Brotli, Coding::Gzip],
            pass_others: false,
            max_at_once: 128,
        }
    }
}

/// Below this the ratio does not count.
const RATIO_FROM: u64 = 1 << 20;

impl RequestDecompressionOptions {
    /// Sets [`RequestDecompressionOptions::max_bytes`].
    #[must_use]
    pub fn with_max_bytes(mut self, max_bytes: u64) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// Sets [`RequestDecompressionOptions::max_ratio`].
    #[must_use]
    pub fn with_max_ratio(mut self, max_ratio: u32) -> Self {
        self.max_ratio = max_ratio;
        self
    }

    /// Sets [`RequestDecompressionOptions::codings`].
    #[must_use]
    pub fn with_codings(mut self, codings: impl Into<Vec<Coding>>) -> Self {
        self.codings = codings.into();
        self
    }

    /// Sets [`RequestDecompressionOptions::pass_others`].
    #[must_use]
    pub fn with_pass_others(mut self, pass_others: bool) -> Self {
        self.pass_others = pass_others;
        self
    }

    /// Sets [`RequestDecompressionOptions::max_at_once`].
    #[must_use]
    pub fn with_max_at_once(mut self, max_at_once: usize) -> Self {
        self.max_at_once = max_at_once;
        self
    }
}

/// Why a body could not be decompressed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecompressError {
    /// It would have been larger than a bound.
    #[error("the request's body is too large when it is decompressed")]
    TooLarge,
    /// It is none of its coding.
    #[error("the request's body is not what its content coding says")]
    Malformed(#[source] std::io::Error),
}

/// Decompresses request bodies.
#[derive(Clone, Debug)]
pub struct RequestDecompressionLayer {
    options: Arc<RequestDecompressionOptions>,
    /// For decoders.
    places: Arc<Semaphore>,
}

impl RequestDecompressionLayer {
    /// As the options say.
    pub fn new(options: RequestDecompressionOptions) -> Self {
        let places = crate::places(options.max_at_once.max(1));
        Self { options: Arc::new(options), places }
    }
}

impl Default for RequestDecompressionLayer {
    fn default() -> Self {
        Self::new(RequestDecompressionOptions::default())
    }
}

impl<S> Layer<S> for RequestDecompressionLayer {
    type Service = RequestDecompression<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let (options, places) = (Arc::clone(&self.options), Arc::clone(&self.places));
        RequestDecompression { inner, options, places }
    }
}

/// The service of [`RequestDecompressionLayer`].
#[derive(Clone, Debug)]
pub struct RequestDecompression<S> {
    inner: S,
    options: Arc<RequestDecompressionOptions>,
    places: Arc<Semaphore>,
}

enum Told {
    Nothing,
    One(Coding),
    Other,
}

/// What `Content-Encoding` says. `identity` says nothing (RFC 9110 section 8.4), and what is coded twice is unfolded by nobody here.
fn told(headers: &HeaderMap, known: &[Coding]) -> Told {
    let mut told = Told::Nothing;
    for line in headers.get_all(CONTENT_ENCODING) {
        let Ok(line) = line.to_str() else { return Told::Other };
        for name in line.split(',').map(str::trim) {
            if name.is_empty() || name.eq_ignore_ascii_case("identity") {
                continue;
            }
            told = match (told, Coding::by_name(name).filter(|coding| known.contains(coding))) {
                (Told::Nothing, Some(coding)) => Told::One(coding),
                _ => return Told::Other,
            };
        }
    }
    told
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for RequestDecompression<S>
where
    S: Service<Request<DecompressedBody<ReqBody>>, Response = Response<ResBody>>,
    ReqBody: Body,
    ReqBody::Error: Into<BoxError>,
    ResBody: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let coding = match told(&parts.headers, &self.options.codings) {
            Told::One(coding) if !body.is_end_stream() => Some(coding),
            // a coding of nothing, as on a GET, must not be refused: a cache outside may take the answer for the page's
            Told::Other if !self.options.pass_others && !body.is_end_stream() => {
                return EarlyFuture::answered(unsupported(&self.options.codings));
            }
            _ => None,
        };
        let Some(coding) = coding else {
            let request = Request::from_parts(parts, DecompressedBody { kind: Kind::Plain { body } });
            return EarlyFuture::inner(Overruled::new(self.inner.call(request), None));
        };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return EarlyFuture::answered(early::come_again());
        };
        parts.headers.remove(CONTENT_ENCODING);
        parts.headers.remove(CONTENT_LENGTH);
        for digest in &compression::DIGESTS {
            parts.headers.remove(digest);
        }
        let broken = Broken::default();
        let bound = Bound {
            max_bytes: self.options.max_bytes,
            max_ratio: self.options.max_ratio.into(),
            made: 0,
            broken: broken.clone(),
        };
        let kind = Kind::Coded { coded: Coded::decode(body, coding), bound, _place: place };
        let request = Request::from_parts(parts, DecompressedBody { kind });
        EarlyFuture::inner(Overruled::new(self.inner.call(request), Some(broken)))
    }
}

fn unsupported<B: Default>(codings: &[Coding]) -> Response<B> {
    let mut response = early::empty(StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let accept = codings.iter().map(|coding| coding.name()).collect::<Vec<_>>().join(", ");
    if let Ok(accept) = HeaderValue::try_from(accept) {
        response.headers_mut().insert(ACCEPT_ENCODING, accept);
    }
    response
}

/// The future of [`RequestDecompression`].
pub type ResponseFuture<F, B> = EarlyFuture<Overruled<F>, B>;

struct Bound {
    max_bytes: u64,
    max_ratio: u64,
    made: u64,
    broken: Broken,
}

impl Bound {
    /// Counts what was made of so many bytes.
    fn holds(&mut self, made: usize, of: u64) -> bool {
        self.made += made as u64;
        let by_ratio = of.saturating_mul(self.max_ratio).max(RATIO_FROM);
        self.made <= self.max_bytes.min(by_ratio)
    }
}

pin_project! {
    /// The request's body, decompressed or as it was.
    pub struct DecompressedBody<B: Body> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<B: Body> {
        Plain { #[pin] body: B },
        Coded { coded: Coded<B>, bound: Bound, _place: OwnedSemaphorePermit },
        Broken,
    }
}

impl<B: Body> DecompressedBody<B> {
    /// The body itself where it is as it was, which spares a caller the wrapping.
    pub fn into_plain(self) -> Result<B, Self> {
        match self.kind {
            Kind::Plain { body } => Ok(body),
            kind => Err(Self { kind }),
        }
    }
}

impl<B: Body> fmt::Debug for DecompressedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let coded = !matches!(self.kind, Kind::Plain { .. });
        f.debug_struct("DecompressedBody").field("coded", &coded).finish_non_exhaustive()
    }
}

impl<B> Body for DecompressedBody<B>
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
        let mut kind = self.project().kind;
        let error: BoxError = match kind.as_mut().project() {
            KindProj::Broken => return Poll::Ready(None),
            KindProj::Plain { body } => return compression::poll_plain(body, cx),
            KindProj::Coded { coded, bound, .. } => match ready!(coded.poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Ok(frame)) => {
                    let made = frame.data_ref().map_or(0, Bytes::len);
                    if bound.holds(made, coded.taken()) {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    bound.broken.set(StatusCode::PAYLOAD_TOO_LARGE);
                    DecompressError::TooLarge.into()
                }
                Some(Err(CodedError::Body(error))) => error,
                Some(Err(CodedError::Coding(error))) => {
                    bound.broken.set(StatusCode::BAD_REQUEST);
                    DecompressError::Malformed(error).into()
                }
            },
        };
        // the coder and its window are let go of
        kind.set(Kind::Broken);
        Poll::Ready(Some(Err(error)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Plain { body } => body.is_end_stream(),
            Kind::Coded { coded, .. } => coded.is_done(),
            Kind::Broken => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Plain { body } => body.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::early::OwnAnswer;
    use http_body_util::{BodyExt, Full};
    use std::{convert::Infallible, io::Write};
    use tower::{ServiceExt, service_fn};

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn br(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 9, 22);
        encoder.write_all(bytes).unwrap();
        encoder.into_inner()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(bytes, 3).unwrap()
    }

    /// The status, and what the service read.
    async fn run(
        options: RequestDecompressionOptions,
        coding: &[&str],
        body: Vec<u8>,
    ) -> (u16, Option<String>, Vec<u8>) {
        let service = service_fn(|request: Request<DecompressedBody<Full<Bytes>>>| async move {
            let told = request.headers().get(CONTENT_ENCODING).cloned();
            assert!(told.is_some() || !request.headers().contains_key(CONTENT_LENGTH));
            Ok::<_, Infallible>(match request.into_body().collect().await {
                Ok(body) => {
                    let mut response = Response::new(Full::<Bytes>::from(body.to_bytes()));
                    response.headers_mut().extend(told.map(|told| (CONTENT_ENCODING, told)));
                    response
                }
                Err(_) => Response::builder().status(502).body(Full::default()).unwrap(),
            })
        });
        let mut request = Request::post("/").body(Full::from(body)).unwrap();
        for line in coding {
            request.headers_mut().append(CONTENT_ENCODING, HeaderValue::from_str(line).unwrap());
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("7"));
        }
        let response = RequestDecompressionLayer::new(options).layer(service).oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let own = response.extensions().get::<OwnAnswer>().is_some();
        assert_eq!(own, status >= 400, "{status}");
        let accept = response.headers().get(ACCEPT_ENCODING).map(|value| value.to_str().unwrap().to_owned());
        (status, accept, response.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    #[tokio::test]
    async fn every_coding() {
        let text = b"some text ".repeat(1000);
        for (name, body) in
            [("gzip", gzip(&text)), ("X-GZIP", gzip(&text)), ("br", br(&text)), ("zstd", zstd(&text))]
        {
            let got = run(RequestDecompressionOptions::default(), &[name], body).await;
            assert_eq!(got, (200, None, text.clone()), "{name}");
        }
    }

    #[tokio::test]
    async fn all_members_are_read() {
        for (name, encode) in [("gzip", gzip as fn(&[u8]) -> Vec<u8>), ("zstd", zstd)] {
            let body = [encode(b"one "), encode(b"two")].concat();
            let got = run(RequestDecompressionOptions::default(), &[name], body).await;
            assert_eq!(got, (200, None, b"one two".to_vec()), "{name}");
        }
    }

    #[tokio::test]
    async fn bombs() {
        let mega = vec![0; 8 << 20];
        for (name, encode) in [("gzip", gzip as fn(&[u8]) -> Vec<u8>), ("br", br), ("zstd", zstd)] {
            // by the ratio, and by the bytes
            let defaults = RequestDecompressionOptions::default();
            assert_eq!(run(defaults.clone(), &[name], encode(&mega)).await.0, 413, "{name}");
            let loose = defaults.clone().with_max_ratio(u32::MAX);
            assert_eq!(run(loose.clone(), &[name], encode(&mega)).await.0, 200, "{name}");
            let tight = loose.with_max_bytes((8 << 20) - 1);
            assert_eq!(run(tight, &[name], encode(&mega)).await.0, 413, "{name}");
            // what is small may be as regular as it likes
            assert_eq!(run(defaults, &[name], encode(&mega[..1 << 20])).await.0, 200, "{name}");
        }
    }

    #[tokio::test]
    async fn what_is_none_of_its_coding_is_400() {
        let sound = [("gzip", gzip(b"text")), ("br", br(b"text")), ("zstd", zstd(b"text"))];
        for (name, sound) in sound {
            let cut = sound[..sound.len() - 1].to_vec();
            let more = [&sound[..], b"garbage"].concat();
            for body in [b"this is not it".to_vec(), cut, more] {
                let got = run(RequestDecompressionOptions::default(), &[name], body.clone()).await;
                assert_eq!(got.0, 400, "{name} {body:?}");
            }
        }
        // a window that nobody has to have
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(&vec![7; 1 << 20]).unwrap();
        let got = run(RequestDecompressionOptions::default(), &["zstd"], encoder.finish().unwrap()).await;
        assert_eq!(got.0, 400);
    }

    #[tokio::test]
    async fn unknown_codings() {
        let options = RequestDecompressionOptions::default().with_codings([Coding::Gzip]);
        let accept = Some("gzip".to_owned());
        for lines in [&["deflate"][..], &["br"], &["gzip, gzip"], &["gzip", "gzip"], &["gzip, br"]] {
            let got = run(options.clone(), lines, b"x".to_vec()).await;
            assert_eq!(got, (415, accept.clone(), vec![]), "{lines:?}");
            let passes = options.clone().with_pass_others(true);
            assert_eq!(run(passes, lines, b"x".to_vec()).await, (200, None, b"x".to_vec()), "{lines:?}");
        }
        for lines in [&[][..], &["identity"], &[""]] {
            assert_eq!(run(options.clone(), lines, b"x".to_vec()).await, (200, None, b"x".to_vec()));
        }
        // where there is nothing, no coding is wrong
        for name in ["gzip", "x"] {
            assert_eq!(run(options.clone(), &[name], vec![]).await, (200, None, vec![]));
        }
    }

    #[tokio::test]
    async fn no_more_at_once_than_may() {
        // keeps the bodies, and reads none
        let kept = std::sync::Mutex::new(Vec::new());
        let service = service_fn(|request: Request<DecompressedBody<Full<Bytes>>>| {
            kept.lock().unwrap().push(request.into_body());
            std::future::ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())))
        });
        let options = RequestDecompressionOptions::default().with_max_at_once(2);
        let layer = RequestDecompressionLayer::new(options);
        let ask = async |coding: &'static str| {
            let mut request = Request::post("/").body(Full::from(gzip(b"text"))).unwrap();
            request.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
            // clones share the places
            layer.clone().layer(service).oneshot(request).await.unwrap()
        };
        for expected in [200, 200, 503] {
            assert_eq!(ask("gzip").await.status(), expected);
        }
        let busy = ask("gzip").await;
        assert_eq!(busy.headers()[http::header::RETRY_AFTER], "1");
        assert!(busy.extensions().get::<OwnAnswer>().is_some(), "a cache outside keeps nothing of it");
        assert_eq!(ask("identity").await.status(), 200, "what passes as it is needs no place");
        let gone = kept.lock().unwrap().remove(0);
        drop(gone);
        assert_eq!(ask("gzip").await.status(), 200);
        assert_eq!(ask("gzip").await.status(), 503);
    }

    #[tokio::test]
    async fn digests_of_the_coded_content_go_with_the_coding() {
        let fields = ["content-digest", "repr-digest", "digest", "content-md5"];
        for (coding, kept) in [("gzip", false), ("identity", true)] {
            let service = service_fn(move |request: Request<DecompressedBody<Full<Bytes>>>| {
                let left = fields.map(|name| request.headers().contains_key(name));
                assert_eq!(left, [kept; 4], "{coding}");
                std::future::ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())))
            });
            let mut request = Request::post("/").body(Full::from(gzip(b"text"))).unwrap();
            request.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
            for name in fields {
                request.headers_mut().insert(name, HeaderValue::from_static("x"));
            }
            RequestDecompressionLayer::default().layer(service).oneshot(request).await.unwrap();
        }
    }
}
