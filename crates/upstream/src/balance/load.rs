//! How busy one endpoint is and how fast it answers.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::BalanceOptions;

/// The time in which an old latency loses its weight.
const DECAY_MICROS: f64 = 10_000_000.0;
/// What a failure counts as.
const PENALTY: Duration = Duration::from_secs(5);
/// What an endpoint that never answered is taken for, in nanoseconds.
const UNKNOWN_NANOS: f64 = 30_000_000.0;
/// One unit of weight in [`Load::effective_weight`].
pub(crate) const WHOLE: u64 = 1000;

/// Counters of one endpoint that all threads share. Two threads that report a latency at the same time may lose one of
/// the two reports; requests under way are exact.
#[derive(Debug)]
pub(crate) struct Load {
    base: Instant,
    weight: u32,
    busy: AtomicUsize,
    /// Bits of an f64: nanoseconds.
    latency: AtomicU64,
    /// Microseconds after `base` that `latency` is of.
    stamp: AtomicU64,
    /// Microseconds after `base`, plus one, at which it became available; 0 when slow start is over or never was.
    since: AtomicU64,
}

impl Load {
    /// An idle endpoint that is up to its whole weight, from 1 to 1000.
    pub(crate) fn new(weight: u32, now: Instant) -> Self {
        Self {
            base: now,
            weight: weight.clamp(1, 1000),
            busy: AtomicUsize::new(0),
            latency: AtomicU64::new(UNKNOWN_NANOS.to_bits()),
            stamp: AtomicU64::new(0),
            since: AtomicU64::new(0),
        }
    }

    /// Requests under way.
    pub(crate) fn busy(&self) -> usize {
        self.busy.load(Relaxed)
    }

    /// A request goes to it.
    pub(crate) fn begin(&self) {
        self.busy.fetch_add(1, Relaxed);
    }

    /// A request that [`Load::begin`] counted is over.
    pub(crate) fn end(&self) {
        let before = self.busy.fetch_sub(1, Relaxed);
        debug_assert!(before > 0, "each end has its begin");
    }

    fn micros(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.base).as_micros()).unwrap_or(u64::MAX - 1)
    }

    /// It answered, so fast.
    pub(crate) fn observe(&self, now: Instant, latency: Duration) {
        let now = self.micros(now);
        let sample = latency.as_nanos() as f64;
        let old = f64::from_bits(self.latency.load(Relaxed));
        let kept = decay(now.saturating_sub(self.stamp.load(Relaxed)));
        let new = if sample > old * kept { sample } else { old * kept + sample * (1.0 - kept) };
        self.latency.store(new.to_bits(), Relaxed);
        self.stamp.store(now, Relaxed);
    }

    /// It failed: that counts like an answer after 5 s, however fast it was.
    pub(crate) fn penalise(&self, now: Instant) {
        self.observe(now, PENALTY);
    }

    /// The latency as of now, in nanoseconds, at least 1 µs.
    pub(crate) fn latency(&self, now: Instant) -> f64 {
        let age = self.micros(now).saturating_sub(self.stamp.load(Relaxed));
        (f64::from_bits(self.latency.load(Relaxed)) * decay(age)).max(1000.0)
    }

    /// Latency times requests under way, for its weight: the less the better.
    pub(crate) fn cost(&self, now: Instant) -> f64 {
        let weight = f64::from(self.weight);
        self.latency(now) * (self.busy() as f64 + weight) / weight
    }

    /// Slow start begins.
    pub(crate) fn became_available(&self, now: Instant) {
        self.since.store(self.micros(now) + 1, Relaxed);
    }

    /// Its weight in thousandths: less than the whole while it starts slowly.
    pub(crate) fn effective_weight(&self, now: Instant, options: &BalanceOptions) -> u64 {
        let whole = u64::from(self.weight) * WHOLE;
        if options.slow_start.is_zero() {
            return whole;
        }
        let since = self.since.load(Relaxed);
        if since == 0 {
            return whole;
        }
        let passed = self.micros(now).saturating_sub(since - 1);
        let all = u64::try_from(options.slow_start.as_micros()).unwrap_or(u64::MAX).max(1);
        if passed >= all {
            // only if no other slow start began meanwhile
            let _ = self.since.compare_exchange(since, 0, Relaxed, Relaxed);
            return whole;
        }
        let share = (passed as f64 / all as f64).max(0.1);
        ((whole as f64 * share) as u64).max(1)
    }
}

/// What is left of something after so many microseconds.
fn decay(micros: u64) -> f64 {
    let age = micros as f64 / DECAY_MICROS;
    if age < 0.05 { 1.0 - age + age * age / 2.0 } else { (-age).exp() }
}
