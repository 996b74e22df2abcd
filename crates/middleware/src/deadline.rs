//! How long a request may take.
//!
//! tower-http's `TimeoutLayer` bounds the wait for the response's head, and another layer the body by a clock of its own. This
//! one has one clock for both, which starts when the layer is called: [`DeadlineOptions::head`] is when the head must be there,
//! [`DeadlineOptions::total`] when the last byte must have been taken by whoever sends it. What a request waits for in front of the layer does not count. Both count
//! the time that the request's body takes to come, so what takes uploads needs a longer one.
//!
//! Past the first, the service's future is dropped, which ends what it began, and the client gets an empty 504 or 503. Past the second a body
//! that has begun fails with [`DeadlinePassed`]; the driver cuts the response, and no client takes it for whole. A tunnel (a 101, or
//! the 2xx to a CONNECT) is no body, and goes on.
//!
//! A driver that waits for a client to take what it has asks this body for nothing, and so sees no deadline: its own bounds on writing end that wait.
//!
//! Nothing is armed until something has to be waited for: what answers at once costs a look at the clock.

use std::{
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower_layer::Layer;
use tower_service::Service;

type BoxError = Box<dyn Error + Send + Sync>;

/// When a request must be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadlineOptions {
    /// From the call of the layer until the response's head. Default `None`: no limit.
    pub head: Option<Duration>,
    /// From the call of the layer until the response's last byte. It bounds the head too. Default `None`: no limit, for a download
    /// takes as long as its client does.
    pub total: Option<Duration>,
    /// What a client is told whose response has not begun. Default 504: somebody behind did not answer in time (RFC 9110
    /// section 15.6.5). 503 suits a service that has nobody behind it.
    pub status: StatusCode,
}

impl Default for DeadlineOptions {
    fn default() -> Self {
        Self { head: None, total: None, status: StatusCode::GATEWAY_TIMEOUT }
    }
}

impl DeadlineOptions {
    /// Sets [`DeadlineOptions::head`].
    #[must_use]
    pub fn with_head(mut self, head: Option<Duration>) -> Self {
        self.head = head;
        self
    }

    /// Sets [`DeadlineOptions::total`].
    #[must_use]
    pub fn with_total(mut self, total: Option<Duration>) -> Self {
        self.total = total;
        self
    }

    /// Sets [`DeadlineOptions::status`].
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    fn until_head(&self) -> Option<Duration> {
        match (self.head, self.total) {
            (Some(head), Some(total)) => Some(head.min(total)),
            (head, total) => head.or(total),
        }
    }
}

/// The response was not over in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the response was not over in time")]
pub struct DeadlinePassed;

/// Holds a service to [`DeadlineOptions`].
#[derive(Clone, Debug, Default)]
pub struct DeadlineLayer {
    options: DeadlineOptions,
}

impl DeadlineLayer {
    /// These.
    pub fn new(options: DeadlineOptions) -> Self {
        Self { options }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Deadline { inner, options: self.options.clone() }
    }
}

/// The service of [`DeadlineLayer`].
#[derive(Clone, Debug)]
pub struct Deadline<S> {
    inner: S,
    options: DeadlineOptions,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Deadline<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Body + Default,
{
    type Response = Response<DeadlineBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let head = self.options.until_head();
        let now = (head.is_some()).then(Instant::now);
        let after = |time: Option<Duration>| now?.checked_add(time?);
        ResponseFuture {
            head: after(head),
            total: after(self.options.total),
            status: self.options.status,
            inner: Some(self.inner.call(request)),
            sleep: None,
        }
    }
}

pin_project! {
    /// The future of [`Deadline`].
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        // none past the deadline
        #[pin]
        inner: Option<F>,
        head: Option<Instant>,
        total: Option<Instant>,
        status: StatusCode,
        // made when there is something to wait for
        #[pin]
        sleep: Option<Sleep>,
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body + Default,
{
    type Output = Result<Response<DeadlineBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(inner) = this.inner.as_mut().as_pin_mut()
            && let Poll::Ready(result) = inner.poll(cx)
        {
            let total = *this.total;
            return Poll::Ready(result.map(|response| response.map(|body| DeadlineBody::new(body, total))));
        }
        let Some(deadline) = *this.head else { return Poll::Pending };
        if this.sleep.is_none() {
            this.sleep.set(Some(tokio::time::sleep_until(deadline)));
        }
        if let Some(sleep) = this.sleep.as_pin_mut() {
            ready!(sleep.poll(cx));
        }
        // what it began ends now, and not when somebody drops this future
        this.inner.set(None);
        let mut response = Response::new(DeadlineBody::new(B::default(), None));
        *response.status_mut() = *this.status;
        Poll::Ready(Ok(response))
    }
}

pin_project! {
    /// The response's body, which fails when it is not over in time.
    pub struct DeadlineBody<B> {
        #[pin]
        inner: B,
        deadline: Option<Instant>,
        // made when there is something to wait for
        sleep: Option<Pin<Box<Sleep>>>,
    }
}

impl<B: Body> DeadlineBody<B> {
    fn new(inner: B, deadline: Option<Instant>) -> Self {
        let deadline = deadline.filter(|_| !inner.is_end_stream());
        Self { inner, deadline, sleep: None }
    }

    /// The body itself where it has no deadline, which spares a caller the wrapping.
    pub fn into_timeless(self) -> Result<B, Self> {
        match self.deadline {
            None => Ok(self.inner),
            Some(_) => Err(self),
        }
    }
}

impl<B: fmt::Debug> fmt::Debug for DeadlineBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadlineBody").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<B: Default> Default for DeadlineBody<B> {
    fn default() -> Self {
        Self { inner: B::default(), deadline: None, sleep: None }
    }
}

impl<B> Body for DeadlineBody<B>
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
        if let Some(deadline) = *this.deadline {
            // also where there is always something to send: a client that reads slowly holds it up as well
            if Instant::now() >= deadline {
                return Poll::Ready(Some(Err(DeadlinePassed.into())));
            }
        }
        match this.inner.poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(frame.map(|frame| frame.map_err(Into::into))),
            Poll::Pending => {
                let Some(deadline) = *this.deadline else { return Poll::Pending };
                let sleep = this.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
                ready!(sleep.as_mut().poll(cx));
                Poll::Ready(Some(Err(DeadlinePassed.into())))
            }
        }
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
    use http_body_util::{BodyExt, Empty, combinators::UnsyncBoxBody};
    use std::{convert::Infallible, sync::Arc};
    use tower::{Service, ServiceExt, service_fn};

    type Answer = UnsyncBoxBody<Bytes, BoxError>;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// A body that gives a byte after each of these pauses.
    struct Slow(Vec<u64>, Option<Pin<Box<Sleep>>>);

    impl Body for Slow {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let Some(pause) = self.0.first().copied() else { return Poll::Ready(None) };
            ready!(self.1.get_or_insert_with(|| Box::pin(tokio::time::sleep(secs(pause)))).as_mut().poll(cx));
            self.1 = None;
            self.0.remove(0);
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
        }
    }

    /// Waits before the head, and then for each byte. Returns the status, the bytes, whether the body was whole, and the seconds.
    async fn run(options: DeadlineOptions, head: u64, body: &[u64]) -> (u16, usize, bool, u64) {
        let begun = Instant::now();
        let body = body.to_vec();
        let service = service_fn(move |_: Request<Empty<Bytes>>| {
            let body = Slow(body.clone(), None);
            async move {
                tokio::time::sleep(secs(head)).await;
                Ok::<_, Infallible>(Response::new(MayBe(Some(body))))
            }
        });
        let service = DeadlineLayer::new(options).layer(service);
        let response = service.oneshot(Request::new(Empty::new())).await.unwrap();
        let status = response.status().as_u16();
        let mut body: Answer = response.into_body().boxed_unsync();
        let mut bytes = 0;
        let whole = loop {
            match body.frame().await {
                None => break true,
                Some(Ok(frame)) => bytes += frame.into_data().unwrap().len(),
                Some(Err(error)) => {
                    error.downcast::<DeadlinePassed>().unwrap();
                    break false;
                }
            }
        };
        (status, bytes, whole, begun.elapsed().as_secs())
    }

    #[derive(Default)]
    struct MayBe(Option<Slow>);

    impl Body for MayBe {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match &mut self.0 {
                Some(body) => Pin::new(body).poll_frame(cx),
                None => Poll::Ready(None),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_head_has_a_deadline_and_the_body_has_none() {
        let options = DeadlineOptions::default().with_head(Some(secs(5)));
        assert_eq!(run(options.clone(), 4, &[10, 10]).await, (200, 2, true, 24));
        assert_eq!(run(options.clone(), 6, &[1]).await, (504, 0, true, 5));
        let unavailable = options.with_status(StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(run(unavailable, 6, &[1]).await.0, 503);
    }

    #[tokio::test(start_paused = true)]
    async fn the_total_counts_from_the_call_on() {
        let options = DeadlineOptions::default().with_total(Some(secs(10)));
        assert_eq!(run(options.clone(), 4, &[2, 3]).await, (200, 2, true, 9));
        assert_eq!(run(options.clone(), 4, &[2, 2, 3]).await, (200, 2, false, 10));
        assert_eq!(run(options.clone(), 11, &[]).await, (504, 0, true, 10));
        // the sooner of two
        assert_eq!(run(options.with_head(Some(secs(3))), 4, &[]).await, (504, 0, true, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_always_ready_ends_too() {
        let service = service_fn(|_: Request<Empty<Bytes>>| async {
            Ok::<_, Infallible>(Response::new(MayBe(Some(Slow(vec![0; 8], None)))))
        });
        let layer = DeadlineLayer::new(DeadlineOptions::default().with_total(Some(secs(10))));
        let response = layer.layer(service).oneshot(Request::new(Empty::new())).await.unwrap();
        let mut body: Answer = response.into_body().boxed_unsync();
        assert!(body.frame().await.unwrap().is_ok());
        tokio::time::advance(secs(11)).await;
        assert!(body.frame().await.unwrap().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn none_is_no_limit() {
        assert_eq!(run(DeadlineOptions::default(), 10_000, &[10_000]).await, (200, 1, true, 20_000));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_service_began_is_dropped() {
        let begun = Arc::new(());
        let service = service_fn(|_: Request<Empty<Bytes>>| {
            let begun = Arc::clone(&begun);
            async move {
                std::future::pending::<()>().await;
                drop(begun);
                Ok::<_, Infallible>(Response::new(MayBe::default()))
            }
        });
        let options = DeadlineOptions::default().with_head(Some(secs(1)));
        let mut service = DeadlineLayer::new(options).layer(service);
        let mut call = std::pin::pin!(service.ready().await.unwrap().call(Request::new(Empty::new())));
        assert_eq!(Arc::strong_count(&begun), 2);
        assert_eq!(call.as_mut().await.unwrap().status(), 504);
        // though the future itself is still there
        assert_eq!(Arc::strong_count(&begun), 1);
    }
}
