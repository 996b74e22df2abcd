//! When an HTTP/2 connection does nothing, and when its client takes nothing.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use crate::{HttpOptions, activity::Activity, connection::FOREVER};

/// Ready once a connection has had no open stream for a whole timeout. It looks when the timer fires and not at
/// every request, so it may take up to twice the timeout.
pub(crate) struct Idle {
    activity: Arc<Activity>,
    timeout: Duration,
    seen: u64,
    sleep: Pin<Box<Sleep>>,
    send_timeout: Duration,
    send_tick: Pin<Box<Sleep>>,
}

impl Idle {
    pub(crate) fn new(activity: Arc<Activity>, options: &HttpOptions) -> Self {
        let first = options.first_request_timeout.min(FOREVER);
        let send_timeout = options.send_timeout.min(FOREVER);
        Self {
            activity,
            timeout: options.idle_timeout.min(FOREVER),
            seen: 0,
            sleep: Box::pin(tokio::time::sleep(first)),
            send_timeout,
            send_tick: Box::pin(tokio::time::sleep(send_timeout)),
        }
    }

    /// Ready once a response has waited for its client for `send_timeout`, or for up to twice that.
    pub(crate) fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.send_tick.as_mut().poll(cx).is_ready() {
            if self.activity.tick() {
                return Poll::Ready(());
            }
            self.send_tick.as_mut().reset(Instant::now() + self.send_timeout);
        }
        Poll::Pending
    }

    /// Whether no request has come yet.
    pub(crate) fn is_unused(&self) -> bool {
        self.activity.total() == 0
    }

    pub(crate) fn restart(&mut self, timeout: Duration) {
        self.timeout = timeout;
        self.seen = self.activity.total();
        self.sleep.as_mut().reset(Instant::now() + timeout);
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.sleep.as_mut().poll(cx).is_ready() {
            let total = self.activity.total();
            if self.activity.is_idle() && total == self.seen {
                return Poll::Ready(());
            }
            self.seen = total;
            self.sleep.as_mut().reset(Instant::now() + self.timeout);
        }
        Poll::Pending
    }
}
