//! Counters.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counted since the layer was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// Requests answered from what was stored, without asking the origin.
    pub hits: u64,
    /// Requests that could have been answered but were forwarded whole: nothing was stored, or it was stale and
    /// changed.
    pub misses: u64,
    /// Requests answered from what was stored, after the origin said that it is still right.
    pub revalidated: u64,
    /// Requests that passed by because of what they are: another method, a body, a range and so on.
    pub bypassed: u64,
    /// Responses stored, refreshed ones not counted.
    pub stored: u64,
    /// Responses that were to be stored but were cut short, grew too large or found no room to be copied.
    pub abandoned: u64,
    /// Keys stored now, as of the last [`crate::CacheLayer::run_pending`].
    pub entries: u64,
    /// Bytes stored now, as of the last [`crate::CacheLayer::run_pending`].
    pub bytes: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) revalidated: AtomicU64,
    pub(crate) bypassed: AtomicU64,
    pub(crate) stored: AtomicU64,
    pub(crate) abandoned: AtomicU64,
}

impl Counters {
    pub(crate) fn read(&self, entries: u64, bytes: u64) -> CacheStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheStats {
            hits: get(&self.hits),
            misses: get(&self.misses),
            revalidated: get(&self.revalidated),
            bypassed: get(&self.bypassed),
            stored: get(&self.stored),
            abandoned: get(&self.abandoned),
            entries,
            bytes,
        }
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
