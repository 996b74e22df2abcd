//! The bodies that count: the response's lets the record go when it is over.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::{Sink, record::Pending};

pin_project! {
    /// The inner body, counted.
    pub struct ResponseBody<B, K> where K: Sink, K: ?Sized {
        #[pin]
        inner: B,
        // handed over when this body is dropped, or as soon as the inner one has ended
        pending: Option<Pending<K>>,
    }
}

impl<B: Body, K: Sink + ?Sized> ResponseBody<B, K> {
    pub(super) fn new(inner: B, mut pending: Pending<K>) -> Self {
        if inner.is_end_stream() {
            pending.complete();
        }
        Self { inner, pending: Some(pending) }
    }
}

impl<B: fmt::Debug, K: Sink + ?Sized> fmt::Debug for ResponseBody<B, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<B: Body, K: Sink + ?Sized> Body for ResponseBody<B, K> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        match (&frame, this.pending.as_mut()) {
            (Some(Ok(frame)), Some(pending)) => {
                if let Some(data) = frame.data_ref() {
                    pending.sent(data.remaining() as u64);
                }
                // a driver needn't ask again after the last frame
                if this.inner.is_end_stream() {
                    pending.complete();
                }
            }
            (Some(Err(_)), Some(pending)) => {
                pending.fail();
                *this.pending = None;
            }
            (None, Some(pending)) => {
                pending.complete();
                *this.pending = None;
            }
            (_, None) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

pin_project! {
    /// The request's body, counted where somebody wants to know.
    #[derive(Debug)]
    pub struct RequestBody<B> {
        #[pin]
        inner: B,
        count: Option<Arc<AtomicU64>>,
    }
}

impl<B> RequestBody<B> {
    pub(super) fn new(inner: B, count: Option<Arc<AtomicU64>>) -> Self {
        Self { inner, count }
    }

    /// The inner body where nobody counts: it needs nothing around it.
    ///
    /// # Errors
    /// Itself where it counts.
    pub fn into_plain(self) -> Result<B, Self> {
        match self.count {
            None => Ok(self.inner),
            Some(_) => Err(self),
        }
    }
}

impl<B: Body> Body for RequestBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(cx));
        if let (Some(count), Some(Ok(frame))) = (this.count, &frame)
            && let Some(data) = frame.data_ref()
        {
            count.fetch_add(data.remaining() as u64, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
