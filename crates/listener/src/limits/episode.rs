//! Stretches of trouble, each told once: a shortage, and a limit that is reached.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};

use super::options::OverLimit;

/// One stretch of shortage, shared by all listeners: begun by the first error, over when the last listener that had
/// one has been without for a pause.
#[derive(Debug, Default)]
pub(crate) struct Shortage(Mutex<Option<Running>>);

#[derive(Debug)]
struct Running {
    members: u32,
    since: Instant,
    until: Instant,
    errors: u64,
}

/// What a shortage was, when it is over.
pub(crate) struct ShortageOver {
    pub(crate) errors: u64,
    pub(crate) lasted: Duration,
}

impl Shortage {
    /// Notes an error. `joins` is whether this listener had none in the episode that runs. True when it begins a new
    /// one, which is to be told.
    pub(crate) fn error(&self, joins: bool) -> bool {
        let now = Instant::now();
        let mut episode = self.0.lock();
        match &mut *episode {
            Some(running) => {
                running.errors += 1;
                running.members += u32::from(joins);
                running.until = now;
                false
            }
            None => {
                *episode = Some(Running { members: 1, since: now, until: now, errors: 1 });
                true
            }
        }
    }

    /// A pause within the episode ended.
    pub(crate) fn lasted_until(&self, until: Instant) {
        if let Some(running) = &mut *self.0.lock() {
            running.until = running.until.max(until);
        }
    }

    /// A listener leaves the episode; the last one ends it, which is to be told.
    pub(crate) fn leave(&self) -> Option<ShortageOver> {
        let mut episode = self.0.lock();
        let running = episode.as_mut()?;
        running.members -= 1;
        if running.members > 0 {
            return None;
        }
        let running = episode.take()?;
        Some(ShortageOver { errors: running.errors, lasted: running.until - running.since })
    }
}

/// How long nobody must have had to wait for a permit until the limit counts as no longer reached: a busy edge at
/// its limit has one episode, and not one for each connection that ends.
const CALM: Duration = Duration::from_secs(5);

/// A stretch in which a limit of connections is reached: that of all, or that of one listener. It is over when somebody comes who need not wait, and
/// nobody had to for a while.
#[derive(Debug, Default)]
pub(crate) struct Full {
    /// Whether there is one, for those who accept.
    runs: AtomicBool,
    episode: Mutex<Option<FullRunning>>,
}

#[derive(Debug)]
struct FullRunning {
    since: Instant,
    last: Instant,
    times: u64,
}

impl Full {
    /// Somebody has to wait, or is refused. True when that begins an episode.
    pub(crate) fn reached(&self, of: &str, max: usize, over: OverLimit) -> bool {
        let now = Instant::now();
        let mut episode = self.episode.lock();
        if let Some(running) = &mut *episode
            && now - running.last < CALM
        {
            running.last = now;
            running.times += 1;
            return false;
        }
        end(of, episode.take().as_ref());
        *episode = Some(FullRunning { since: now, last: now, times: 1 });
        self.runs.store(true, Ordering::Relaxed);
        drop(episode);
        let then = match over {
            OverLimit::Wait => "clients wait in the kernel's queue until a connection ends",
            OverLimit::Close => "new connections are closed",
            OverLimit::Reset => "new connections are reset",
        };
        warn!(
            of,
            max,
            then,
            hint = "raise the limit if memory and descriptors allow, or close idle connections earlier",
            "the limit of connections is reached"
        );
        true
    }

    /// A connection was accepted.
    pub(crate) fn accepted(&self, of: &str) {
        if self.runs.load(Ordering::Relaxed) {
            let mut episode = self.episode.lock();
            if episode.as_ref().is_some_and(|running| running.last.elapsed() >= CALM) {
                self.runs.store(false, Ordering::Relaxed);
                end(of, episode.take().as_ref());
            }
        }
    }
}

fn end(of: &str, running: Option<&FullRunning>) {
    if let Some(FullRunning { since, last, times }) = running {
        info!(of, lasted = ?*last - *since, times, "the limit of connections is no longer reached");
    }
}
