//! A request's body, whose client must keep sending.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::{CloseReason, state::ConnState};

/// The body of a request. It fails once its client has been too slow for too long, see
/// [`HttpOptions::min_body_rate`](crate::HttpOptions::min_body_rate).
pub struct RequestBody {
    inner: Incoming,
    /// `None` once it is over.
    state: Option<Arc<ConnState>>,
    /// From the first wait on.
    watch: Option<Box<Watch>>,
    /// Set when the response has begun: from then on both sides may talk by turns, and silence is no slowness. `None` when no rate is asked for.
    answered: Option<Arc<AtomicBool>>,
    http1: bool,
}

/// Why the rest of a request's body does not come.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// The client sent less than it has to.
    #[error("the request body came too slowly")]
    TooSlow,
    /// The client broke off, or what it sent is not valid.
    #[error("the request body failed")]
    Http(#[source] hyper::Error),
}

impl BodyError {
    /// Whether the client was too slow: 408 is the answer.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::TooSlow)
    }
}

/// Waits and bytes within one window.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Set again when it fires and not otherwise.
    sleep: Pin<Box<Sleep>>,
    since: Option<Instant>,
    waited: Duration,
    got: u64,
}

impl Watch {
    fn new(tick: Duration) -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(tick)), since: None, waited: Duration::ZERO, got: 0 }
    }

    /// Data is awaited, and is not there. Whether this has gone on for too long.
    fn on_wait(&mut self, state: &ConnState, tick: Duration, cx: &mut Context<'_>) -> bool {
        let now = Instant::now();
        // there was none then and is none now: all of it was the client's time
        if let Some(since) = self.since.replace(now) {
            self.waited += now - since;
        }
        if self.waited >= state.body_grace {
            let least = self.waited.as_millis().saturating_mul(state.min_body_rate.into()) / 1000;
            if u128::from(self.got) < least {
                return true;
            }
            (self.waited, self.got) = (Duration::ZERO, 0);
        }
        while self.sleep.as_mut().poll(cx).is_ready() {
            self.sleep.as_mut().reset(now + tick);
        }
        false
    }

    fn on_data(&mut self, bytes: usize, tick: Duration) {
        if let Some(since) = self.since.take() {
            // when it came in between is not known; whoever reads may have looked late
            self.waited += since.elapsed().min(tick);
        }
        self.got += bytes as u64;
    }
}

/// How often a wait is looked at.
fn tick(state: &ConnState) -> Duration {
    (state.body_grace / 8).max(Duration::from_millis(10))
}

impl RequestBody {
    /// `talks` is for a stream of messages whose client may be silent from its beginning.
    pub(crate) fn new(inner: Incoming, state: &Arc<ConnState>, http1: bool, talks: bool) -> Self {
        let state = (!inner.is_end_stream()).then(|| Arc::clone(state));
        if let Some(state) = &state {
            state.on_body();
        }
        let watched = state.as_ref().is_some_and(|state| state.min_body_rate != 0);
        let answered = watched.then(|| Arc::new(AtomicBool::new(talks)));
        Self { inner, state, watch: None, answered, http1 }
    }

    /// To be set when the response begins; `None` without a body, and when no rate is asked for.
    pub(crate) fn answered(&self) -> Option<Arc<AtomicBool>> {
        self.answered.clone()
    }

    /// Nothing more comes, or is asked for.
    fn end(&mut self) -> Option<Arc<ConnState>> {
        let state = self.state.take()?;
        state.on_body_end();
        if let Some(mut watch) = self.watch.take() {
            (watch.since, watch.waited, watch.got) = (None, Duration::ZERO, 0);
            *state.spare.lock() = Some(watch);
        }
        Some(state)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(state) = &this.state else { return Poll::Ready(None) };
        let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) else {
            if this.answered.as_ref().is_none_or(|answered| answered.load(Ordering::Relaxed)) {
                return Poll::Pending;
            }
            let tick = tick(state);
            let watch = this.watch.get_or_insert_with(|| {
                state.spare.lock().take().unwrap_or_else(|| Box::new(Watch::new(tick)))
            });
            if !watch.on_wait(state, tick, cx) || !state.is_clients_turn() {
                return Poll::Pending;
            }
            let http1 = this.http1;
            if let Some(state) = this.end() {
                state.on_unread_body();
                // over HTTP/2 it is one stream's fault
                if http1 {
                    state.finish_for(CloseReason::BodyTooSlow);
                }
            }
            return Poll::Ready(Some(Err(BodyError::TooSlow)));
        };
        if let (Some(watch), Some(Ok(frame))) = (&mut this.watch, &frame) {
            watch.on_data(frame.data_ref().map_or(0, Bytes::len), tick(state));
        }
        if frame.is_none() || this.inner.is_end_stream() {
            this.end();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Http)))
    }

    fn is_end_stream(&self) -> bool {
        self.state.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(state) = self.end() {
            state.on_unread_body();
        }
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody").field("inner", &self.inner).finish_non_exhaustive()
    }
}
