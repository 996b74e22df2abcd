//! Counters.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// Counted since the store was made, over all layers.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct CacheStats {
            $($(#[$doc])+ pub $name: u64,)+
            /// Keys stored now, as of the last [`crate::CacheLayer::run_pending`].
            pub entries: u64,
            /// Bytes stored now, as of the last [`crate::CacheLayer::run_pending`].
            pub bytes: u64,
            /// Bytes set aside now for bodies on their way into the store.
            pub filling: u64,
            /// Responses written to the second tier, those that it had no room for among them; 0 without one.
            pub disk_writes: u64,
            /// Responses that came back from there.
            pub disk_hits: u64,
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)+
        }

        impl Counters {
            pub(crate) fn read(&self, entries: u64, bytes: u64, filling: u64, disk: (u64, u64)) -> CacheStats {
                CacheStats {
                    $($name: self.$name.load(Ordering::Relaxed),)+
                    entries,
                    bytes,
                    filling,
                    disk_writes: disk.0,
                    disk_hits: disk.1,
                }
            }
        }
    };
}

counters! {
    /// Requests answered from what was stored and fresh, without asking the origin.
    hits,
    /// Requests answered with what was stored though it was stale: while it was asked for anew, since the origin failed, or since the request took it.
    stale,
    /// Requests that could have been answered but were forwarded whole: nothing was stored, or it was stale and
    /// changed.
    misses,
    /// Requests answered from what was stored, after the origin said that it is still right; background ones too.
    revalidated,
    /// Requests answered from another request's response, which they waited for.
    collapsed,
    /// Requests that passed by because of what they are: another method, a body, a rule and so on.
    bypassed,
    /// Responses stored, refreshed ones not counted.
    stored,
    /// Responses that were to be stored but were cut short, grew too large or found no room.
    abandoned,
    /// Keys dropped for others, since the store was full.
    evicted,
    /// Keys forgotten or marked stale by a purge.
    purged,
    /// Keys forgotten since an unsafe method changed what they stand for.
    invalidated,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
