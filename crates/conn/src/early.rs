//! Whether a connection that began with early data has proven itself.

use std::{
    fmt,
    future::poll_fn,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

/// A connection that began as 0-RTT (RFC 8446 section 2.3): what came before its handshake was complete may be a replay
/// of what another connection sent. Once the handshake is complete it is not, for nobody but the client can complete it.
///
/// Clones are the same connection's.
#[derive(Clone)]
pub struct EarlyData(Arc<State>);

/// Says that the handshake is complete. Held by whoever drives the handshake.
#[derive(Debug)]
pub struct Confirm(Arc<State>);

#[derive(Default)]
struct State {
    confirmed: AtomicBool,
    /// One for each request that waits, and of those that were given up meanwhile: as many as a client can begin while his handshake is under
    /// way. Over TCP that is what fits into early data, over QUIC the bound of streams and of those that may be cancelled.
    waiting: Mutex<Vec<Waker>>,
}

impl EarlyData {
    /// A connection whose handshake is under way, and what tells of its completion.
    pub fn new() -> (Self, Confirm) {
        let state = Arc::<State>::default();
        (Self(Arc::clone(&state)), Confirm(state))
    }

    /// Whether the handshake is complete, so that nothing read so far is a replay.
    pub fn is_confirmed(&self) -> bool {
        self.0.confirmed.load(Ordering::Acquire)
    }

    /// Ready once the handshake is complete; never if it fails, for then the connection ends and its requests with it.
    /// Whoever waits elsewhere adds a deadline.
    pub fn poll_confirmed(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_confirmed() {
            return Poll::Ready(());
        }
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // it may have been confirmed before the lock was had
        if self.is_confirmed() {
            return Poll::Ready(());
        }
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Waits as [`EarlyData::poll_confirmed`] does. Dropping the future is harmless.
    pub async fn confirmed(&self) {
        poll_fn(|cx| self.poll_confirmed(cx)).await;
    }
}

impl Confirm {
    /// The handshake is complete. Wakes all who wait.
    pub fn confirm(self) {
        let waiting = {
            let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            self.0.confirmed.store(true, Ordering::Release);
            std::mem::take(&mut *waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for EarlyData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EarlyData").field("confirmed", &self.is_confirmed()).finish()
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("confirmed", &self.confirmed).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        pin::pin,
        sync::atomic::AtomicUsize,
        task::{Context, Wake},
    };

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_waits_is_woken_once() {
        let (early, confirm) = EarlyData::new();
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let clone = early.clone();
        let mut future = pin!(clone.confirmed());
        assert!(future.as_mut().poll(&mut cx).is_pending());
        assert!(future.as_mut().poll(&mut cx).is_pending());
        assert!(!early.is_confirmed());
        confirm.confirm();
        assert_eq!(count.0.load(Ordering::Relaxed), 1, "the same waker is kept once");
        assert!(early.is_confirmed() && future.as_mut().poll(&mut cx).is_ready());
        assert!(early.poll_confirmed(&mut cx).is_ready());
    }
}
