//! Open connections: what their paths are like, from time to time and at their end, and a way to change them all.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::limits::Counters;

/// How often open connections are looked at.
const EVERY: Duration = Duration::from_secs(5);
/// How many at a time; other work gets its turn in between.
const AT_ONCE: usize = 64;
/// Places of a histogram.
const PLACES: usize = 12;

/// Seconds, as the handshakes over TCP are told.
const HANDSHAKE_BOUNDS: [f64; PLACES] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Seconds.
const RTT_BOUNDS: [f64; PLACES] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 2.0];
/// Bytes.
const WINDOW_BOUNDS: [f64; PLACES] = [
    4096.0, 8192.0, 16384.0, 32768.0, 65536.0, 131072.0, 262144.0, 524288.0, 1048576.0, 2097152.0, 4194304.0,
    16777216.0,
];

/// How values are spread: a histogram.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Distribution {
    /// How many there were.
    pub count: u64,
    /// What they add up to.
    pub sum: f64,
    /// Upper bounds, rising, each with how many were no larger.
    pub buckets: Vec<(f64, u64)>,
}

/// Values by size; what they add up to in millionths.
#[derive(Debug, Default)]
struct Spread {
    count: AtomicU64,
    millionths: AtomicU64,
    places: [AtomicU64; PLACES],
}

impl Spread {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "values are positive and small"
    )]
    fn add(&self, value: f64, bounds: &[f64; PLACES]) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.millionths.fetch_add((value * 1e6) as u64, Ordering::Relaxed);
        if let Some(place) = bounds.iter().position(|bound| value <= *bound) {
            self.places[place].fetch_add(1, Ordering::Relaxed);
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "exact up to 2^53")]
    fn add_to(&self, total: &mut Distribution, bounds: &[f64; PLACES]) {
        total.count += self.count.load(Ordering::Relaxed);
        total.sum += self.millionths.load(Ordering::Relaxed) as f64 / 1e6;
        total.buckets.resize(PLACES, (0.0, 0));
        let mut below = 0;
        for (at, (bound, count)) in total.buckets.iter_mut().enumerate() {
            below += self.places[at].load(Ordering::Relaxed);
            (*bound, *count) = (bounds[at], *count + below);
        }
    }
}

/// What the paths of an endpoint's connections were like.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    handshakes: Spread,
    rtt: Spread,
    windows: Spread,
    pub(crate) sent_packets: AtomicU64,
    pub(crate) lost_packets: AtomicU64,
    pub(crate) congestion_events: AtomicU64,
    pub(crate) migrations: AtomicU64,
    open: Mutex<HashMap<usize, Watched>>,
}

impl Paths {
    pub(crate) fn add_handshakes(&self, total: &mut Distribution) {
        self.handshakes.add_to(total, &HANDSHAKE_BOUNDS);
    }

    pub(crate) fn add_rtt(&self, total: &mut Distribution) {
        self.rtt.add_to(total, &RTT_BOUNDS);
    }

    pub(crate) fn add_windows(&self, total: &mut Distribution) {
        self.windows.add_to(total, &WINDOW_BOUNDS);
    }

    /// How long a handshake took that is complete.
    pub(crate) fn handshake(&self, took: Duration) {
        self.handshakes.add(took.as_secs_f64(), &HANDSHAKE_BOUNDS);
    }

    fn open(&self) -> MutexGuard<'_, HashMap<usize, Watched>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to every open connection.
    pub(crate) fn each(&self, act: impl Fn(&quinn::Connection)) {
        self.open().values().for_each(|watched| act(&watched.quinn));
    }

    /// Looks at a connection: how it stands now, and what has happened since.
    #[allow(clippy::cast_precision_loss, reason = "no window is anywhere near 2^53")]
    fn look(&self, watched: &mut Watched) {
        let path = watched.quinn.stats().path;
        let since = |now: u64, before: &mut u64| now.saturating_sub(std::mem::replace(before, now));
        self.rtt.add(path.rtt.as_secs_f64(), &RTT_BOUNDS);
        self.windows.add(path.cwnd as f64, &WINDOW_BOUNDS);
        self.sent_packets.fetch_add(since(path.sent_packets, &mut watched.sent), Ordering::Relaxed);
        self.lost_packets.fetch_add(since(path.lost_packets, &mut watched.lost), Ordering::Relaxed);
        self.congestion_events
            .fetch_add(since(path.congestion_events, &mut watched.events), Ordering::Relaxed);
        let address = watched.quinn.remote_address();
        if std::mem::replace(&mut watched.address, address) != address {
            self.migrations.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn look_at(&self, keys: &[usize]) {
        let mut open = self.open();
        for key in keys {
            if let Some(watched) = open.get_mut(key) {
                self.look(watched);
            }
        }
    }
}

/// An open connection, and how it was when it was last looked at.
#[derive(Debug)]
struct Watched {
    quinn: quinn::Connection,
    address: SocketAddr,
    sent: u64,
    lost: u64,
    events: u64,
}

/// A connection is watched as long as this lives.
pub(crate) struct Watch {
    counters: Arc<Counters>,
    key: usize,
}

impl Watch {
    pub(crate) fn begin(quinn: &quinn::Connection, counters: &Arc<Counters>) -> Self {
        let key = quinn.stable_id();
        let address = quinn.remote_address();
        let watched = Watched { quinn: quinn.clone(), address, sent: 0, lost: 0, events: 0 };
        counters.paths.open().insert(key, watched);
        Self { counters: counters.clone(), key }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let paths = &self.counters.paths;
        let watched = paths.open().remove(&self.key);
        if let Some(mut watched) = watched {
            paths.look(&mut watched);
        }
    }
}

/// Looks at all open connections every few seconds, for ever.
pub(crate) async fn look_at_all(counters: &Counters) {
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let keys: Vec<usize> = counters.paths.open().keys().copied().collect();
        for keys in keys.chunks(AT_ONCE) {
            counters.paths.look_at(keys);
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_add_up_over_endpoints() {
        let (one, two) = (Paths::default(), Paths::default());
        for millis in [1, 3, 700] {
            one.handshake(Duration::from_millis(millis));
        }
        two.handshake(Duration::from_secs(20));
        let mut total = Distribution::default();
        one.add_handshakes(&mut total);
        two.add_handshakes(&mut total);
        let at = |bound: f64| total.buckets.iter().find(|(found, _)| *found == bound).unwrap().1;
        assert_eq!((at(0.001), at(0.0025), at(0.005), at(1.0), at(10.0)), (1, 1, 2, 3, 3));
        assert_eq!((total.count, total.sum), (4, 20.704));
    }
}
