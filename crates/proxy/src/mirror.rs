//! A copy of some requests to another place, which never shows in what becomes of the requests themselves.
//!
//! A request's body is copied as it passes, up to a bound, and the copy is sent when the body is over: nothing waits for
//! the copy, and what it is answered is nobody's business. A request whose body is longer or breaks off is not copied. Copies
//! in flight, with those whose body is still passing, have a bound of their own; past it none is made.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::split::Turns;

/// How much is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MirrorOptions {
    /// How many of a hundred requests are copied; more than 100 is all. Default 100.
    pub percent: u32,
    /// The longest body that is copied, in bytes. Default 64 KiB.
    pub max_body: usize,
    /// Copies at once. Memory is at most this many times [`Self::max_body`]. Default 64.
    pub max_in_flight: usize,
}

impl Default for MirrorOptions {
    fn default() -> Self {
        Self { percent: 100, max_body: 64 << 10, max_in_flight: 64 }
    }
}

impl MirrorOptions {
    /// Sets [`Self::percent`].
    #[must_use]
    pub fn with_percent(mut self, percent: u32) -> Self {
        self.percent = percent;
        self
    }

    /// Sets [`Self::max_body`].
    #[must_use]
    pub fn with_max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// Sets [`Self::max_in_flight`].
    #[must_use]
    pub fn with_max_in_flight(mut self, copies: usize) -> Self {
        self.max_in_flight = copies;
        self
    }
}

/// What became of copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MirrorStats {
    /// Copies that were answered, with whatever status.
    pub answered: u64,
    /// Copies that were sent, or were to be, and not answered.
    pub failed: u64,
    /// Requests whose body was longer than [`MirrorOptions::max_body`].
    pub too_long: u64,
    /// Requests whose body broke off.
    pub broken: u64,
    /// Requests that were not copied since there were [`MirrorOptions::max_in_flight`].
    pub over_bound: u64,
    /// Copies that are in flight.
    pub in_flight: usize,
}

/// Decides which requests are copied, and counts. Clones are one.
#[derive(Clone, Debug)]
pub struct Mirror {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: MirrorOptions,
    turns: Turns,
    in_flight: AtomicUsize,
    answered: AtomicU64,
    failed: AtomicU64,
    too_long: AtomicU64,
    broken: AtomicU64,
    over_bound: AtomicU64,
}

impl Mirror {
    /// With these bounds.
    pub fn new(options: MirrorOptions) -> Self {
        Self {
            inner: Arc::new(Inner {
                options,
                turns: Turns::new(100),
                in_flight: AtomicUsize::new(0),
                answered: AtomicU64::new(0),
                failed: AtomicU64::new(0),
                too_long: AtomicU64::new(0),
                broken: AtomicU64::new(0),
                over_bound: AtomicU64::new(0),
            }),
        }
    }

    /// What became of copies so far.
    pub fn stats(&self) -> MirrorStats {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        MirrorStats {
            answered: read(&self.inner.answered),
            failed: read(&self.inner.failed),
            too_long: read(&self.inner.too_long),
            broken: read(&self.inner.broken),
            over_bound: read(&self.inner.over_bound),
            in_flight: self.inner.in_flight.load(Ordering::Relaxed),
        }
    }

    /// A place for the copy of a request, if it is one that is copied. `expected` is what is known of its body's length; one that
    /// is known to be too long is not begun.
    pub fn begin(&self, expected: &SizeHint) -> Option<Copy> {
        let inner = &self.inner;
        if inner.turns.next() >= inner.options.percent {
            return None;
        }
        if expected.lower() > inner.options.max_body as u64 {
            inner.too_long.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let max = inner.options.max_in_flight;
        let free = |open: usize| (open < max).then_some(open + 1);
        if inner.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free).is_err() {
            inner.over_bound.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Copy { inner: Arc::clone(inner), outcome: Outcome::Failed })
    }
}

/// A place among the copies in flight, for as long as it lives. A copy counts as failed if nothing else is said of it.
#[derive(Debug)]
pub struct Copy {
    inner: Arc<Inner>,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Failed,
    Answered,
    TooLong,
    Broken,
}

impl Copy {
    /// The copy was answered.
    pub fn answered(mut self) {
        self.outcome = Outcome::Answered;
    }

    /// The copy got no answer.
    pub fn failed(self) {
        drop(self);
    }

    fn ended(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let count = match self.outcome {
            Outcome::Failed => &self.inner.failed,
            Outcome::Answered => &self.inner.answered,
            Outcome::TooLong => &self.inner.too_long,
            Outcome::Broken => &self.inner.broken,
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.inner.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is to be done with the bytes of a whole body.
struct Waiting<F> {
    copy: Copy,
    send: F,
    bytes: BytesMut,
    /// The length that was announced.
    expected: Option<u64>,
}

pin_project! {
    /// A body that is copied as it passes. When it is over, `send` is called with the bytes, once; it must not block.
    /// Trailers are not copied.
    pub struct MirrorBody<B, F>
    where
        F: FnOnce(Copy, Bytes),
    {
        #[pin]
        body: B,
        waiting: Option<Waiting<F>>,
    }

    impl<B, F: FnOnce(Copy, Bytes)> PinnedDrop for MirrorBody<B, F> {
        fn drop(this: Pin<&mut Self>) {
            if let Some(waiting) = this.project().waiting.take() {
                waiting.copy.ended(Outcome::Broken);
            }
        }
    }
}

impl<B: Body<Data = Bytes>, F: FnOnce(Copy, Bytes)> MirrorBody<B, F> {
    /// Copies `body` and gives the copy to `send`.
    pub fn new(body: B, copy: Copy, send: F) -> Self {
        let waiting = Waiting { copy, send, bytes: BytesMut::new(), expected: body.size_hint().exact() };
        let mut this = Self { body, waiting: Some(waiting) };
        if this.body.is_end_stream() {
            finish(&mut this.waiting);
        }
        this
    }
}

/// The body is over.
fn finish<F: FnOnce(Copy, Bytes)>(waiting: &mut Option<Waiting<F>>) {
    if let Some(Waiting { copy, send, bytes, .. }) = waiting.take() {
        send(copy, bytes.freeze());
    }
}

impl<B: Body<Data = Bytes>, F: FnOnce(Copy, Bytes)> Body for MirrorBody<B, F> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let polled = ready!(this.body.as_mut().poll_frame(cx));
        match &polled {
            None => finish(this.waiting),
            Some(Err(_)) => {
                if let Some(waiting) = this.waiting.take() {
                    waiting.copy.ended(Outcome::Broken);
                }
            }
            Some(Ok(frame)) => {
                if let (Some(data), Some(waiting)) = (frame.data_ref(), this.waiting.as_mut()) {
                    if waiting.bytes.len() + data.len() > waiting.copy.inner.options.max_body {
                        if let Some(waiting) = this.waiting.take() {
                            waiting.copy.ended(Outcome::TooLong);
                        }
                    } else {
                        waiting.bytes.extend_from_slice(data);
                    }
                }
                // who reads it may know the length, and ask no further
                let all = this.waiting.as_ref().is_some_and(|w| w.expected == Some(w.bytes.len() as u64));
                if all || this.body.is_end_stream() {
                    finish(this.waiting);
                }
            }
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
