//! A deadline that moves with every request and is cheap to move.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

/// The runtime's timer is touched only when it fires before the deadline or would fire after it. Deadlines mostly
/// move forward, so a busy connection touches it once per timeout and not once per request.
#[derive(Debug, Default)]
pub(crate) struct LazyTimer {
    sleep: Option<Pin<Box<Sleep>>>,
    deadline: Option<Instant>,
}

impl LazyTimer {
    pub(crate) fn set(&mut self, timeout: Duration) {
        // one that is too far away to be written down is none
        self.deadline = Instant::now().checked_add(timeout);
    }

    pub(crate) fn clear(&mut self) {
        self.deadline = None;
    }

    pub(crate) fn is_set(&self) -> bool {
        self.deadline.is_some()
    }

    /// Ready once the deadline has passed; pending for ever without one.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                self.deadline = None;
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    async fn poll_once(timer: &mut LazyTimer) {
        let pending = poll_fn(|cx| Poll::Ready(timer.poll(cx).is_pending())).await;
        assert!(pending);
    }

    #[tokio::test(start_paused = true)]
    async fn fires_at_the_last_deadline_set() {
        let mut timer = LazyTimer::default();
        let start = Instant::now();
        timer.set(Duration::from_secs(1));
        poll_once(&mut timer).await;
        tokio::time::advance(Duration::from_millis(500)).await;
        timer.set(Duration::from_secs(1));
        poll_fn(|cx| timer.poll(cx)).await;
        assert_eq!(start.elapsed().as_millis() / 10, 150);
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_deadline_is_kept() {
        let mut timer = LazyTimer::default();
        timer.set(Duration::from_secs(100));
        poll_once(&mut timer).await;
        timer.set(Duration::from_secs(1));
        let start = Instant::now();
        poll_fn(|cx| timer.poll(cx)).await;
        assert!(start.elapsed() < Duration::from_secs(2));
    }
}
