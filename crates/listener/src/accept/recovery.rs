//! What happens after an error of `accept`: at once again, or a rest, and who is told.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};
use tracing::{debug, error, info, warn};

use super::error::{ErrorClass, advice, classify};
use crate::limits::{Own, Reason, Seat};

/// Errors of single connections in a row, without one that succeeds, after which the loop draws breath: enough for
/// any real burst, and a firewall that forbids everything can't make it spin.
pub(super) const MOST_IN_A_ROW: u32 = 128;
pub(super) const BREATH: Duration = Duration::from_millis(10);
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);

/// What the loop does beside accepting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    No,
    /// Not accepting since then, because of an error.
    Paused(Instant),
    /// Accepting again; the timer ends the episode if no further shortage shows.
    Watching,
}

/// One acceptor's part in shortages.
pub(super) struct Recovery {
    own: Arc<Own>,
    name: String,
    pause: Duration,
    rest: Rest,
    /// Made at the first error and reused.
    timer: Option<Pin<Box<Sleep>>>,
    errors_in_a_row: u32,
    /// Whether it has a part in the shortage that runs.
    joined: bool,
    /// Somebody else tells.
    silent: bool,
}

impl Recovery {
    pub(super) fn new(own: Arc<Own>, name: String, pause: Duration) -> Self {
        Self {
            own,
            name,
            pause: pause.max(SHORTEST_PAUSE),
            rest: Rest::No,
            timer: None,
            errors_in_a_row: 0,
            joined: false,
            silent: false,
        }
    }

    /// One that counts and rests, and logs nothing.
    pub(super) fn silent(own: Arc<Own>, pause: Duration) -> Self {
        let mut recovery = Self::new(own, String::new(), pause);
        recovery.silent = true;
        recovery
    }

    /// Pending while paused. `seat` is where it waits for room.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, seat: &mut Seat) -> Poll<()> {
        if self.rest == Rest::No || self.own.group.is_closed() {
            return Poll::Ready(());
        }
        let elapsed = self.timer.as_mut().is_none_or(|timer| timer.as_mut().poll(cx).is_ready());
        match self.rest {
            Rest::No => {}
            Rest::Paused(since) => {
                if !elapsed && !seat.called() {
                    return Poll::Pending;
                }
                seat.leave();
                let now = Instant::now();
                self.own.counters.paused(now - since);
                self.rest = Rest::No;
                if self.joined {
                    self.own.group.shortage.lasted_until(now);
                    self.rest = Rest::Watching;
                    self.set_timer(self.pause);
                    // polled once more, so that the new time is registered with this task
                    return self.poll(cx, seat);
                }
            }
            Rest::Watching => {
                if elapsed {
                    self.rest = Rest::No;
                    self.leave();
                }
            }
        }
        Poll::Ready(())
    }

    /// A connection was accepted.
    pub(super) fn worked(&mut self) {
        self.errors_in_a_row = 0;
    }

    /// Notes an error. False when nothing can be accepted ever again.
    pub(super) fn failed(&mut self, error: &io::Error, seat: &mut Seat) -> bool {
        let class = classify(error);
        self.own.counters.error(error);
        match class {
            ErrorClass::Connection => {
                debug!(%error, listener = %self.name, "a connection was gone before it was accepted");
                self.errors_in_a_row += 1;
                if self.errors_in_a_row >= MOST_IN_A_ROW {
                    self.errors_in_a_row = 0;
                    self.rest(BREATH);
                }
            }
            ErrorClass::Shortage => {
                self.tell(error);
                self.rest(self.pause);
                seat.wait(Reason::Room);
            }
            ErrorClass::Fatal => {
                if self.silent {
                    return false;
                }
                error!(%error, listener = %self.name, "this is no listening socket any more: accepting ends");
                return false;
            }
        }
        true
    }

    fn tell(&mut self, error: &io::Error) {
        let begins = self.own.group.shortage.error(!self.joined);
        self.joined = true;
        if begins {
            self.own.counters.shortage();
        }
        if begins && !self.silent {
            warn!(
                %error,
                listener = %self.name,
                pause = ?self.pause,
                hint = %advice(error, Some(self.own.group.max())),
                "accepting connections is paused"
            );
        }
    }

    fn rest(&mut self, pause: Duration) {
        self.rest = Rest::Paused(Instant::now());
        self.set_timer(pause);
    }

    fn set_timer(&mut self, after: Duration) {
        match &mut self.timer {
            Some(timer) => {
                let now = Instant::now();
                timer.as_mut().reset(now.checked_add(after).unwrap_or(now + Duration::from_secs(86_400)));
            }
            None => self.timer = Some(Box::pin(tokio::time::sleep(after))),
        }
    }

    fn leave(&mut self) {
        if !std::mem::take(&mut self.joined) {
            return;
        }
        if let Some(over) = self.own.group.shortage.leave()
            && !self.silent
        {
            info!(errors = over.errors, lasted = ?over.lasted, listener = %self.name, "accepting connections again");
        }
    }
}

impl Drop for Recovery {
    fn drop(&mut self) {
        self.leave();
    }
}
