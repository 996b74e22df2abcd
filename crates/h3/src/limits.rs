//! How many connections there may be, and what has happened so far.

use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use aws_lc_rs::{
    hkdf::{HKDF_SHA256, Prk, Salt},
    rand,
};
use quinn::{BloomTokenLog, TokenLog};

/// A bound on open QUIC connections, shared by all endpoints that are given a clone, with their counters.
#[derive(Clone)]
pub struct ConnLimits(Arc<Inner>);

/// Something that a client's connection keeps as long as it is open.
pub type ClientHold = Box<dyn Send>;

type Admission = dyn Fn(IpAddr) -> Option<ClientHold> + Send + Sync;

struct Inner {
    max: AtomicUsize,
    open: AtomicUsize,
    admission: Option<Box<Admission>>,
    /// Address tokens (RFC 9000 section 8.1) that one endpoint gave are good at all of them.
    tokens: Tokens,
    /// One set per endpoint, so that workers do not write to each other's cache lines.
    counters: Mutex<Vec<Arc<Counters>>>,
}

/// What address tokens are made with; made when the first endpoint is.
#[derive(Default)]
pub(crate) struct Tokens(OnceLock<(Arc<Prk>, Arc<dyn TokenLog>)>);

impl Tokens {
    /// A key that nobody else has, and what remembers used tokens. `None` when the system gives no random bytes.
    pub(crate) fn get(&self) -> Option<(Arc<Prk>, Arc<dyn TokenLog>)> {
        if let Some(made) = self.0.get() {
            return Some(made.clone());
        }
        let mut secret = [0; 64];
        rand::fill(&mut secret).ok()?;
        let key = Salt::new(HKDF_SHA256, &[]).extract(&secret);
        let made = (Arc::new(key), Arc::new(BloomTokenLog::default()) as Arc<dyn TokenLog>);
        Some(self.0.get_or_init(|| made).clone())
    }
}

/// What the endpoints of one [`ConnLimits`] did so far, and how many connections they have now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuicStats {
    /// Connections whose handshake completed.
    pub accepted: u64,
    /// Connection attempts refused because a limit was reached, that of a client among them, or the endpoint was
    /// draining.
    pub refused: u64,
    /// Connection attempts asked to prove their address first (Retry, RFC 9000 section 8.1.2).
    pub retried: u64,
    /// Handshakes that failed or took too long.
    pub handshake_failures: u64,
    /// Connections open now, handshakes included.
    pub open: u64,
    /// Requests whose head was read.
    pub requests: u64,
    /// Request streams that did not end with a complete response.
    pub stream_errors: u64,
}

/// The counters of one endpoint; on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Counters {
    pub(crate) accepted: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) handshake_failures: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) stream_errors: AtomicU64,
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl ConnLimits {
    /// At most `max` open connections at a time; past it a new one is refused (`CONNECTION_REFUSED`, RFC 9000
    /// section 20.1).
    pub fn new(max: usize) -> Self {
        Self::of(max, None)
    }

    /// The same, and `admission` is asked for each client once its address is proven, by a completed handshake or by a
    /// token (RFC 9000 section 8.1): `None` closes the connection, what else it gives is dropped when the connection
    /// is over. An address that is only claimed is never asked for: nobody can use up the share of another.
    pub fn with_admission(
        max: usize,
        admission: impl Fn(IpAddr) -> Option<ClientHold> + Send + Sync + 'static,
    ) -> Self {
        Self::of(max, Some(Box::new(admission)))
    }

    fn of(max: usize, admission: Option<Box<Admission>>) -> Self {
        let (open, counters) = Default::default();
        let max = AtomicUsize::new(max);
        Self(Arc::new(Inner { max, open, admission, tokens: Tokens::default(), counters }))
    }

    /// Whether a client may have one more connection, and what that holds.
    pub(crate) fn admit(&self, client: IpAddr) -> Result<Option<ClientHold>, Refused> {
        match &self.0.admission {
            None => Ok(None),
            Some(admission) => admission(client.to_canonical()).map(Some).ok_or(Refused),
        }
    }

    pub(crate) fn tokens(&self) -> &Tokens {
        &self.0.tokens
    }

    /// The bound.
    pub fn max(&self) -> usize {
        self.0.max.load(Ordering::Relaxed)
    }

    /// Changes the bound. A lower one closes nothing: new connections are refused until enough have ended.
    pub fn set_max(&self, max: usize) {
        self.0.max.store(max, Ordering::Relaxed);
    }

    /// Connections open now, handshakes included.
    pub fn open(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }

    /// The counters of all endpoints, added up.
    pub fn stats(&self) -> QuicStats {
        let mut stats = QuicStats { open: self.open() as u64, ..QuicStats::default() };
        for counters in self.0.counters.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            stats.accepted += counters.accepted.load(Ordering::Relaxed);
            stats.refused += counters.refused.load(Ordering::Relaxed);
            stats.retried += counters.retried.load(Ordering::Relaxed);
            stats.handshake_failures += counters.handshake_failures.load(Ordering::Relaxed);
            stats.requests += counters.requests.load(Ordering::Relaxed);
            stats.stream_errors += counters.stream_errors.load(Ordering::Relaxed);
        }
        stats
    }

    pub(crate) fn register(&self) -> Arc<Counters> {
        let counters = Arc::new(Counters::default());
        self.0.counters.lock().unwrap_or_else(PoisonError::into_inner).push(counters.clone());
        counters
    }

    /// A place among the open connections, until it is dropped.
    pub(crate) fn acquire(&self) -> Option<Permit> {
        let max = self.max();
        self.0
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < max).then_some(open + 1))
            .ok()
            .map(|_| Permit(self.clone()))
    }
}

impl fmt::Debug for ConnLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnLimits").field("max", &self.max()).field("open", &self.open()).finish()
    }
}

/// The client has its share.
#[derive(Debug)]
pub(crate) struct Refused;

pub(crate) struct Permit(ConnLimits);

impl Permit {
    pub(crate) fn limits(&self) -> &ConnLimits {
        &self.0
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_come_back() {
        let limits = ConnLimits::new(2);
        let other = limits.clone();
        let (a, b) = (limits.acquire(), other.acquire());
        assert!(a.is_some() && b.is_some() && limits.acquire().is_none() && other.acquire().is_none());
        assert_eq!((limits.open(), limits.stats().open), (2, 2));
        drop(a);
        assert!(limits.acquire().is_some());
        limits.set_max(1);
        assert!(limits.acquire().is_none());
        limits.set_max(2);
        assert!(limits.acquire().is_some());
        drop(b);
        assert_eq!(limits.open(), 0);
    }

    #[test]
    fn stats_add_up_over_endpoints() {
        let limits = ConnLimits::new(1);
        let (a, b) = (limits.register(), limits.register());
        count(&a.requests);
        count(&b.requests);
        count(&b.refused);
        assert_eq!(limits.stats(), QuicStats { requests: 2, refused: 1, ..QuicStats::default() });
    }
}
