//! What happens to a request on its way, told to whoever wants to know.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Filled in while a request is on its way: `Arc<Trip>` among the request's extensions asks for it, and can be read at any time, be the
/// request answered, failed or dropped. Without it nothing is measured.
#[derive(Debug, Default)]
pub struct Trip {
    attempts: AtomicU32,
    endpoint: Mutex<Option<Arc<str>>>,
    queue: AtomicU64,
    connect: AtomicU64,
    first_byte: AtomicU64,
}

impl Trip {
    /// How many attempts were made at endpoints, the one that is under way among them.
    pub fn attempts(&self) -> u32 {
        self.attempts.load(Relaxed)
    }

    /// The endpoint of the last one.
    pub fn endpoint(&self) -> Option<Arc<str>> {
        self.endpoint.lock().clone()
    }

    /// How long all of them waited: for the first list of endpoints, for a connection that another request made, or for a place where there were as many connections
    /// as there may be.
    pub fn queue(&self) -> Duration {
        Duration::from_nanos(self.queue.load(Relaxed))
    }

    /// How long they took to connect, TLS included; `None` where all connections were there.
    pub fn connect(&self) -> Option<Duration> {
        some(&self.connect)
    }

    /// From when the last one began to send the request until it had the response's head; `None` before that.
    pub fn first_byte(&self) -> Option<Duration> {
        some(&self.first_byte)
    }

    /// An attempt begins, at this endpoint.
    pub fn begin(&self, endpoint: &Arc<str>) {
        self.attempts.fetch_add(1, Relaxed);
        self.first_byte.store(0, Relaxed);
        *self.endpoint.lock() = Some(Arc::clone(endpoint));
    }

    /// It waits, until what is given back is dropped.
    pub fn waiting(&self) -> Spell<'_> {
        Spell { sum: &self.queue, least: 0, since: Instant::now() }
    }

    /// It connects, until what is given back is dropped.
    pub fn connecting(&self) -> Spell<'_> {
        Spell { sum: &self.connect, least: 1, since: Instant::now() }
    }

    /// The head of its answer is there; it began to send then.
    pub fn answered(&self, since: Instant) {
        self.first_byte.store(nanos(since).max(1), Relaxed);
    }
}

/// A time that a [`Trip`] is told of when this is dropped: also where a deadline, or a client that leaves, puts an end to it.
#[derive(Debug)]
#[must_use = "it is over when this is dropped"]
pub struct Spell<'t> {
    sum: &'t AtomicU64,
    least: u64,
    since: Instant,
}

impl Drop for Spell<'_> {
    fn drop(&mut self) {
        self.sum.fetch_add(nanos(self.since).max(self.least), Relaxed);
    }
}

fn some(nanos: &AtomicU64) -> Option<Duration> {
    match nanos.load(Relaxed) {
        0 => None,
        nanos => Some(Duration::from_nanos(nanos)),
    }
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
