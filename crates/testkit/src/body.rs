//! A body that plays back what a test wrote down.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

#[derive(Debug)]
enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    Fail,
    Pend,
    Hang,
}

/// A body built step by step; it ends cleanly after the last one. Its size is unknown unless it was stated.
#[derive(Debug, Default)]
pub struct ScriptBody {
    steps: VecDeque<Step>,
    exact: Option<u64>,
}

impl ScriptBody {
    /// An empty body.
    pub fn new() -> Self {
        Self::default()
    }

    /// Then a data frame.
    #[must_use]
    pub fn data(self, data: impl Into<Bytes>) -> Self {
        self.step(Step::Data(data.into()))
    }

    /// Then trailers.
    #[must_use]
    pub fn trailers(self, trailers: HeaderMap) -> Self {
        self.step(Step::Trailers(trailers))
    }

    /// Then an error of kind `ConnectionReset`.
    #[must_use]
    pub fn fail(self) -> Self {
        self.step(Step::Fail)
    }

    /// Then one `Pending` that wakes at once.
    #[must_use]
    pub fn pend(self) -> Self {
        self.step(Step::Pend)
    }

    /// Then nothing, for ever.
    #[must_use]
    pub fn hang(self) -> Self {
        self.step(Step::Hang)
    }

    /// States an exact size, as `Content-Length` would; true or not.
    #[must_use]
    pub fn with_exact_size(mut self, size: u64) -> Self {
        self.exact = Some(size);
        self
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push_back(step);
        self
    }
}

impl Body for ScriptBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.steps.pop_front() {
            None => Poll::Ready(None),
            Some(Step::Data(data)) => {
                let left = self.exact.map(|size| size.saturating_sub(data.len() as u64));
                self.exact = left;
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Step::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Some(Step::Fail) => Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into()))),
            Some(Step::Pend) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Step::Hang) => {
                self.steps.push_front(Step::Hang);
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.exact.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
