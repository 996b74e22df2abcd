//! Answers of layers themselves: the future of a layer that either answers at once or hands the request on, and the mark of an answer
//! that nobody behind the layer made.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderValue, Response, StatusCode, header::RETRY_AFTER};
use pin_project_lite::pin_project;

/// Among a response's extensions: the layer said it in the place of the service behind, of which it tells nothing. A cache outside must not
/// take such an answer for the origin's; [`crate::concurrency`] and [`crate::request_decompression`], which may stand behind one, set it on all of theirs.
#[derive(Clone, Copy, Debug)]
pub struct OwnAnswer;

pin_project! {
    /// Either an answer that is already there or the inner service's future.
    #[derive(Debug)]
    pub struct EarlyFuture<F, B> {
        #[pin]
        state: State<F, B>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = StateProj]
    enum State<F, B> {
        Answered { response: Option<Response<B>> },
        Inner { #[pin] future: F },
    }
}

impl<F, B> EarlyFuture<F, B> {
    pub(crate) fn answered(response: Response<B>) -> Self {
        Self { state: State::Answered { response: Some(response) } }
    }

    pub(crate) fn inner(future: F) -> Self {
        Self { state: State::Inner { future } }
    }
}

/// An answer of this status, without a body.
pub(crate) fn empty<B: Default>(status: StatusCode) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = status;
    response.extensions_mut().insert(OwnAnswer);
    response
}

/// 503 for what will soon be over (RFC 9110 section 10.2.3).
pub(crate) fn come_again<B: Default>() -> Response<B> {
    let mut response = empty(StatusCode::SERVICE_UNAVAILABLE);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

impl<F, B, E> Future for EarlyFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Answered { response } => {
                Poll::Ready(Ok(response.take().expect("a future is not polled after it was ready")))
            }
            StateProj::Inner { future } => future.poll(cx),
        }
    }
}
