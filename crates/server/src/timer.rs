//! The timer that hyper gets: one runtime timer per connection, however many deadlines hyper sets on it.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use hyper::rt;
use parking_lot::Mutex;

/// hyper's HTTP/1 driver makes a sleep for every head that it awaits and drops it when the head is there. With the
/// runtime's own sleeps that is two turns at its timer wheel per request; here all of them share one, which is
/// touched when it fires and not otherwise. Only one sleep of a connection may be in use at a time, which is so in
/// hyper's HTTP/1.
#[derive(Clone, Default)]
pub(crate) struct ConnTimer {
    shared: Arc<Mutex<Option<Pin<Box<tokio::time::Sleep>>>>>,
}

impl rt::Timer for ConnTimer {
    fn sleep(&self, duration: std::time::Duration) -> Pin<Box<dyn rt::Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn rt::Sleep>> {
        Box::pin(ConnSleep { timer: self.clone(), deadline: deadline.into() })
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into()
    }
}

impl fmt::Debug for ConnTimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnTimer").finish_non_exhaustive()
    }
}

struct ConnSleep {
    timer: ConnTimer,
    deadline: tokio::time::Instant,
}

impl rt::Sleep for ConnSleep {}

impl Future for ConnSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut shared = self.timer.shared.lock();
        let sleep = shared.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(self.deadline)));
        if sleep.deadline() > self.deadline {
            sleep.as_mut().reset(self.deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if tokio::time::Instant::now() >= self.deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(self.deadline);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rt::Timer as _;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn sleeps_that_follow_one_another_fire_at_their_own_deadlines() {
        let timer = ConnTimer::default();
        let start = tokio::time::Instant::now();
        let mut first = timer.sleep(Duration::from_secs(10));
        std::future::poll_fn(|cx| {
            assert!(first.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        drop(first);
        timer.sleep(Duration::from_secs(2)).await;
        assert_eq!(start.elapsed().as_secs(), 2);
        timer.sleep(Duration::from_secs(30)).await;
        assert_eq!(start.elapsed().as_secs(), 32);
    }
}
