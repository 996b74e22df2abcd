//! How long a request's body may be.
//!
//! tower-http's `RequestBodyLimitLayer` answers 413 by `Content-Length` too, and breaks the body off where the length is not
//! known; what the client sees of that is up to the service. This layer remembers that it broke the body off, and
//! makes the answer a 413 (RFC 9110 section 15.5.14) whatever the service made of the broken body.
//!
//! **Before reading on.** A `Content-Length`, or a body that knows to be too long, is refused before the service is called, and
//! nothing of the body is read. A client that asked first (`Expect: 100-continue`) sends nothing then. What becomes of a body that
//! is on its way is the protocol driver's affair: over HTTP/1 the connection can't be used again unless the rest is read, over
//! HTTP/2 and HTTP/3 the stream is reset.
//!
//! **In the middle.** A body whose length nobody knows is counted as it passes. The frame that crosses the limit is not handed on: the
//! body fails with [`TooLong`], so that the service can't take a part for the whole. A response whose head is already on its way stays as it is.
//!
//! A body that is known to be short enough passes as it is, uncounted: no allocation, no lock.

use std::{
    error::Error,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http::{HeaderMap, Request, Response, StatusCode, header::CONTENT_LENGTH};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    early::{self, EarlyFuture},
    overruled::{Broken, Overruled},
};

type BoxError = Box<dyn Error + Send + Sync>;

/// The body is longer than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request's body is longer than {limit} bytes")]
pub struct TooLong {
    /// The limit, in bytes.
    pub limit: u64,
}

/// Refuses requests whose body is longer than so many bytes.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimitLayer {
    limit: u64,
}

impl BodyLimitLayer {
    /// At most this many bytes, as they come: before any decompression, and without the coding of the transfer. Trailers are not
    /// counted; the protocol's limit of fields bounds them.
    pub fn new(limit: u64) -> Self {
        Self { limit }
    }
}

impl<S> Layer<S> for BodyLimitLayer {
    type Service = BodyLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        BodyLimit { inner, limit: self.limit }
    }
}

/// The service of [`BodyLimitLayer`].
#[derive(Clone, Debug)]
pub struct BodyLimit<S> {
    inner: S,
    limit: u64,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for BodyLimit<S>
where
    S: Service<Request<LimitedBody<ReqBody>>, Response = Response<ResBody>>,
    ReqBody: Body,
    ResBody: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let hint = request.body().size_hint();
        let told = content_length(request.headers()).unwrap_or(0);
        if told > self.limit || hint.lower() > self.limit {
            return EarlyFuture::answered(early::empty(StatusCode::PAYLOAD_TOO_LARGE));
        }
        if hint.upper().is_some_and(|most| most <= self.limit) {
            let request = request.map(|inner| LimitedBody { inner, count: None });
            return EarlyFuture::inner(Overruled::new(self.inner.call(request), None));
        }
        let broken = Broken::default();
        let count = Count { limit: self.limit, left: self.limit, broken: broken.clone() };
        let request = request.map(|inner| LimitedBody { inner, count: Some(count) });
        EarlyFuture::inner(Overruled::new(self.inner.call(request), Some(broken)))
    }
}

/// The largest that is said; two that differ are refused elsewhere.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    let lines = headers.get_all(CONTENT_LENGTH).iter();
    lines.filter_map(|value| value.to_str().ok()?.trim().parse().ok()).max()
}

/// The future of [`BodyLimit`].
pub type ResponseFuture<F, B> = EarlyFuture<Overruled<F>, B>;

struct Count {
    limit: u64,
    left: u64,
    broken: Broken,
}

pin_project! {
    /// The request's body, counted if its length is not known.
    pub struct LimitedBody<B> {
        #[pin]
        inner: B,
        count: Option<Count>,
    }
}

impl<B> LimitedBody<B> {
    /// The body itself if it is known to be short enough, which spares a caller the wrapping.
    pub fn into_short(self) -> Result<B, Self> {
        match self.count {
            None => Ok(self.inner),
            Some(_) => Err(self),
        }
    }
}

impl<B: fmt::Debug> fmt::Debug for LimitedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitedBody").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<B> Body for LimitedBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        let Some(frame) = ready!(this.inner.poll_frame(cx)) else { return Poll::Ready(None) };
        let frame = frame.map_err(Into::into)?;
        if let (Some(count), Some(data)) = (this.count.as_mut(), frame.data_ref()) {
            match count.left.checked_sub(data.remaining() as u64) {
                Some(left) => count.left = left,
                None => {
                    // nothing more fits, however small
                    count.left = 0;
                    count.broken.set(StatusCode::PAYLOAD_TOO_LARGE);
                    return Poll::Ready(Some(Err(TooLong { limit: count.limit }.into())));
                }
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full, StreamBody};
    use std::convert::Infallible;
    use tower::{Service, ServiceExt, service_fn};

    type Answer = Full<Bytes>;

    fn chunks(
        sizes: &'static [usize],
    ) -> StreamBody<impl futures_core::Stream<Item = Result<Frame<Bytes>, Infallible>>> {
        let frames = sizes.iter().map(|size| Ok(Frame::data(Bytes::from(vec![b'x'; *size]))));
        StreamBody::new(crate::test_support::Iter(frames))
    }

    /// Reads the whole body and says how much there was; 400 where it broke.
    async fn count<B>(request: Request<LimitedBody<B>>) -> Result<Response<Answer>, Infallible>
    where
        B: Body + Unpin,
        B::Error: Into<BoxError>,
    {
        let mut body = request.into_body();
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => read += frame.data_ref().map_or(0, Buf::remaining),
                Err(error) => {
                    assert_eq!(*error.downcast::<TooLong>().unwrap(), TooLong { limit: 10 });
                    // what a service makes of it is its own affair
                    return Ok(Response::builder().status(400).body(Answer::from("broken")).unwrap());
                }
            }
        }
        Ok(Response::new(Answer::from(read.to_string())))
    }

    async fn text(response: Response<Answer>) -> (u16, String) {
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn an_unknown_length_is_counted() {
        for (sizes, expected) in [
            (&[][..], (200, "0")),
            (&[10], (200, "10")),
            (&[4, 3, 3], (200, "10")),
            (&[11], (413, "")),
            (&[4, 3, 4], (413, "")),
            (&[10, 0, 1], (413, "")),
        ] {
            let service = BodyLimitLayer::new(10).layer(service_fn(count));
            let response = service.oneshot(Request::new(chunks(sizes))).await.unwrap();
            let (status, body) = text(response).await;
            assert_eq!((status, body.as_str()), expected, "{sizes:?}");
        }
    }

    #[tokio::test]
    async fn a_known_length_is_refused_before_the_service_is_called() {
        let (mock, mut handle) = tower_test::mock::pair::<Request<LimitedBody<Answer>>, Response<Answer>>();
        let mut service = BodyLimitLayer::new(10).layer(mock);
        handle.allow(3);
        let long = Request::new(Answer::from("12345678901"));
        let said = Request::builder().header("content-length", "11").body(Answer::default()).unwrap();
        for request in [long, said] {
            let response = service.ready().await.unwrap().call(request).await.unwrap();
            assert_eq!(response.status(), 413);
        }
        // and the next, which fits, is the first that comes
        let call = service.ready().await.unwrap().call(Request::new(Answer::from("1234567890")));
        let (response, ()) = tokio::join!(call, async {
            let (request, send) = handle.next_request().await.unwrap();
            let body = request.into_body().into_short().expect("its length is known");
            assert_eq!(body.collect().await.unwrap().to_bytes(), "1234567890");
            send.send_response(Response::new(Answer::from("fine")));
        });
        assert_eq!(response.unwrap().status(), 200);
    }

    #[tokio::test]
    async fn a_head_that_was_sent_stays() {
        // what comes goes back at once
        let echo = service_fn(|request: Request<LimitedBody<_>>| async move {
            Ok::<_, Infallible>(Response::new(request.into_body().boxed_unsync()))
        });
        let service = BodyLimitLayer::new(10).layer(echo);
        let response = service.oneshot(Request::new(chunks(&[4, 3, 4]))).await.unwrap();
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        for size in [4, 3] {
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), size);
        }
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!(*error.downcast::<TooLong>().unwrap(), TooLong { limit: 10 });
    }
}
