//! Plain numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::CloseReason;

/// Where [`crate::serve`] counts.
#[derive(Debug, Default)]
pub struct ServerCounters {
    pub(crate) http1: Gauge,
    pub(crate) resting: Gauge,
    pub(crate) http2: Gauge,
    pub(crate) handshake_failures: AtomicU64,
    pub(crate) handshake_timeouts: AtomicU64,
    pub(crate) connection_errors: AtomicU64,
    pub(crate) finishing: AtomicU64,
    closed: [AtomicU64; CloseReason::ALL.len()],
}

/// What [`ServerCounters`] hold at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ServerStats {
    /// HTTP/1 connections so far.
    pub http1_total: u64,
    /// HTTP/1 connections open; upgraded ones no longer count.
    pub http1_open: u64,
    /// Of these, connections that have given their buffers back, see
    /// [`HttpOptions::release_after`](crate::HttpOptions::release_after).
    pub http1_resting: u64,
    /// How often connections did so far.
    pub http1_rests: u64,
    /// HTTP/2 connections so far.
    pub http2_total: u64,
    /// HTTP/2 connections open.
    pub http2_open: u64,
    /// Handshakes that failed.
    pub handshake_failures: u64,
    /// Handshakes that took too long.
    pub handshake_timeouts: u64,
    /// Connections that ended in an error.
    pub connection_errors: u64,
    closed: [u64; CloseReason::ALL.len()],
}

impl ServerStats {
    /// HTTP connections that ended for this reason. One whose handshake failed was none.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closed[reason.index()]
    }
}

impl ServerCounters {
    /// The numbers now.
    pub fn stats(&self) -> ServerStats {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        ServerStats {
            http1_total: load(&self.http1.total),
            http1_open: load(&self.http1.open),
            http1_resting: load(&self.resting.open),
            http1_rests: load(&self.resting.total),
            http2_total: load(&self.http2.total),
            http2_open: load(&self.http2.open),
            handshake_failures: load(&self.handshake_failures),
            handshake_timeouts: load(&self.handshake_timeouts),
            connection_errors: load(&self.connection_errors),
            closed: std::array::from_fn(|place| load(&self.closed[place])),
        }
    }

    pub(crate) fn on_closed(&self, reason: CloseReason) {
        count(&self.closed[reason.index()]);
    }
}

#[derive(Debug, Default)]
pub(crate) struct Gauge {
    total: AtomicU64,
    open: AtomicU64,
}

impl Gauge {
    /// Counts one until the guard is dropped.
    pub(crate) fn enter(&self) -> impl Drop + '_ {
        struct Guard<'a>(&'a AtomicU64);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.total.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        Guard(&self.open)
    }
}

pub(crate) fn count(n: &AtomicU64) {
    n.fetch_add(1, Ordering::Relaxed);
}
