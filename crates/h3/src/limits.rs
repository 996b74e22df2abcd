//! How many connections there may be, and what has happened so far.

use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use quinn::{BloomTokenLog, TokenLog};

use crate::{Distribution, QuicKeyError, QuicKeys, codes, watch::Paths};

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
    /// What tokens and resets are made with where nothing else is said: those of one endpoint are good at all of them.
    keys: OnceLock<QuicKeys>,
    /// Remembers used tokens.
    used_tokens: Arc<dyn TokenLog>,
    /// One set per endpoint, so that workers do not write to each other's cache lines.
    counters: Mutex<Vec<Arc<Counters>>>,
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
    /// Connections whose requests could be served before their handshake was complete (0-RTT).
    pub early_allowed: u64,
    /// Connections that could not have this, where TLS offers it, since their client did not prove its address by a token.
    pub early_unproven: u64,
    /// Packets that were sent.
    pub sent_packets: u64,
    /// Of these, lost ones.
    pub lost_packets: u64,
    /// Times that a connection was told to slow down: by loss, or by marks of the network (ECN).
    pub congestion_events: u64,
    /// Times that a client was found at another address than before; looked for each 5 s and at a connection's end.
    pub migrations: u64,
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
    stream_errors: AtomicU64,
    pub(crate) early_allowed: AtomicU64,
    pub(crate) early_unproven: AtomicU64,
    /// In the order of [`codes::NAMES`], and the rest.
    stream_codes: [AtomicU64; codes::NAMES.len() + 1],
    pub(crate) paths: Paths,
}

impl Counters {
    /// Counts a request stream that did not end with a complete response, by the code that was given.
    pub(crate) fn stream_error(&self, code: u64) {
        count(&self.stream_errors);
        let place = codes::NAMES.iter().position(|(known, _)| u64::from(*known) == code);
        count(&self.stream_codes[place.unwrap_or(codes::NAMES.len())]);
    }
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
        let (open, counters, keys) = Default::default();
        let (max, used_tokens) = (AtomicUsize::new(max), Arc::new(BloomTokenLog::default()));
        Self(Arc::new(Inner { max, open, admission, keys, used_tokens, counters }))
    }

    /// Whether a client may have one more connection, and what that holds.
    pub(crate) fn admit(&self, client: IpAddr) -> Result<Option<ClientHold>, Refused> {
        match &self.0.admission {
            None => Ok(None),
            Some(admission) => admission(client.to_canonical()).map(Some).ok_or(Refused),
        }
    }

    /// Secrets that nobody else has, for all endpoints.
    pub(crate) fn keys(&self) -> Result<QuicKeys, QuicKeyError> {
        if let Some(made) = self.0.keys.get() {
            return Ok(made.clone());
        }
        let made = QuicKeys::random()?;
        Ok(self.0.keys.get_or_init(|| made).clone())
    }

    pub(crate) fn used_tokens(&self) -> Arc<dyn TokenLog> {
        self.0.used_tokens.clone()
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
            stats.early_allowed += counters.early_allowed.load(Ordering::Relaxed);
            stats.early_unproven += counters.early_unproven.load(Ordering::Relaxed);
            let paths = &counters.paths;
            stats.sent_packets += paths.sent_packets.load(Ordering::Relaxed);
            stats.lost_packets += paths.lost_packets.load(Ordering::Relaxed);
            stats.congestion_events += paths.congestion_events.load(Ordering::Relaxed);
            stats.migrations += paths.migrations.load(Ordering::Relaxed);
        }
        stats
    }

    /// Seconds that complete handshakes took, waiting for the client included.
    pub fn handshake_times(&self) -> Distribution {
        self.distribution(Paths::add_handshakes)
    }

    /// Smoothed round trips in seconds, of every open connection each 5 s and of each at its end.
    pub fn round_trips(&self) -> Distribution {
        self.distribution(Paths::add_rtt)
    }

    /// Congestion windows in bytes, of every open connection each 5 s and of each at its end.
    pub fn congestion_windows(&self) -> Distribution {
        self.distribution(Paths::add_windows)
    }

    fn distribution(&self, add: fn(&Paths, &mut Distribution)) -> Distribution {
        let mut total = Distribution::default();
        for counters in self.0.counters.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            add(&counters.paths, &mut total);
        }
        total
    }

    /// [`QuicStats::stream_errors`] by the name of the code that was given (RFC 9114 section 8.1): a closed list, `other` at its end.
    pub fn stream_errors_by_code(&self) -> Vec<(&'static str, u64)> {
        let mut total: Vec<_> =
            codes::NAMES.iter().map(|(_, name)| (*name, 0)).chain([("other", 0)]).collect();
        for counters in self.0.counters.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for ((_, sum), count) in total.iter_mut().zip(&counters.stream_codes) {
                *sum += count.load(Ordering::Relaxed);
            }
        }
        total
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
    fn the_bound_changes_while_running() {
        let limits = ConnLimits::new(2);
        let held: Vec<_> = (0..2).map(|_| limits.acquire()).collect();
        limits.set_max(3);
        let third = limits.acquire();
        assert!(third.is_some());
        limits.set_max(1);
        drop(third);
        assert!(limits.acquire().is_none(), "two are open");
        assert_eq!((limits.max(), limits.open()), (1, 2));
        drop(held);
        assert!(limits.acquire().is_some());
    }

    #[test]
    fn codes_have_names() {
        let limits = ConnLimits::new(1);
        let (one, two) = (limits.register(), limits.register());
        for code in [0x10c, 0x10c, 0x10b, 7] {
            one.stream_error(code);
        }
        two.stream_error(0x10b);
        let found: Vec<_> =
            limits.stream_errors_by_code().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(found, [("H3_REQUEST_REJECTED", 2), ("H3_REQUEST_CANCELLED", 2), ("other", 1)]);
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
