//! What is counted: one [`Stats`] per thread, merged at the end.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;

/// The longest latency that is told apart, in nanoseconds; longer ones count as this.
const LONGEST: u64 = 120_000_000_000;

/// One good exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The status code.
    pub(crate) status: u16,
    /// Body bytes received.
    pub(crate) bytes: u64,
}

/// One that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// A short class for the report.
    pub(crate) kind: &'static str,
    /// What happened.
    pub(crate) text: String,
    /// The connection was closed before a byte of the answer came: an idle connection at its end.
    pub(crate) stale: bool,
}

impl Failure {
    pub(crate) fn new(kind: &'static str, error: impl std::fmt::Display) -> Self {
        Self { kind, text: error.to_string(), stale: false }
    }
}

/// The counters of one thread, or of all.
pub(crate) struct Stats {
    latency: Histogram<u64>,
    statuses: BTreeMap<u16, u64>,
    errors: BTreeMap<&'static str, u64>,
    first_error: Option<String>,
    bytes: u64,
    window_bytes: Option<u64>,
    pub(crate) late_starts: u64,
    pub(crate) unstarted: u64,
    pub(crate) reconnects: u64,
}

impl Stats {
    pub(crate) fn new() -> Self {
        Self {
            latency: Histogram::new_with_bounds(1, LONGEST, 3)
                .expect("1 < LONGEST / 2 and 3 digits are in range"),
            statuses: BTreeMap::new(),
            errors: BTreeMap::new(),
            first_error: None,
            bytes: 0,
            window_bytes: None,
            late_starts: 0,
            unstarted: 0,
            reconnects: 0,
        }
    }

    pub(crate) fn success(&mut self, outcome: Outcome, latency: Duration) {
        self.latency.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        self.bytes += outcome.bytes;
        *self.statuses.entry(outcome.status).or_default() += 1;
    }

    pub(crate) fn received(&mut self, len: u64) {
        self.window_bytes = Some(self.window_bytes.unwrap_or(0) + len);
    }

    pub(crate) fn failure(&mut self, failure: Failure) {
        self.failures(failure.kind, 1);
        self.first_error.get_or_insert(failure.text);
    }

    pub(crate) fn failures(&mut self, kind: &'static str, count: u64) {
        if count > 0 {
            *self.errors.entry(kind).or_default() += count;
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.latency.add(&other.latency).expect("all histograms have the same bounds");
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        if self.first_error.is_none() {
            self.first_error = other.first_error;
        }
        self.bytes += other.bytes;
        other.window_bytes.into_iter().for_each(|len| self.received(len));
        self.late_starts += other.late_starts;
        self.unstarted += other.unstarted;
        self.reconnects += other.reconnects;
    }

    /// Good exchanges.
    pub(crate) fn requests(&self) -> u64 {
        self.latency.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Body bytes that arrived in the measured window, of responses that ended in it or not; `None` where the
    /// protocol's driver does not tell.
    pub(crate) fn window_bytes(&self) -> Option<u64> {
        self.window_bytes
    }

    pub(crate) fn errors(&self) -> &BTreeMap<&'static str, u64> {
        &self.errors
    }

    pub(crate) fn first_error(&self) -> Option<&str> {
        self.first_error.as_deref()
    }

    pub(crate) fn statuses(&self) -> &BTreeMap<u16, u64> {
        &self.statuses
    }

    /// A latency quantile in microseconds.
    pub(crate) fn quantile_us(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }

    pub(crate) fn mean_us(&self) -> f64 {
        self.latency.mean() / 1000.0
    }

    pub(crate) fn max_us(&self) -> f64 {
        self.latency.max() as f64 / 1000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_counts_are_sums() {
        let mut all = Stats::new();
        for latency in [10, 20] {
            let mut one = Stats::new();
            one.success(Outcome { status: 200, bytes: 5 }, Duration::from_micros(latency));
            one.failure(Failure::new("connect", latency));
            one.late_starts = 1;
            one.received(3);
            all.merge(one);
        }
        assert_eq!(all.requests(), 2);
        assert_eq!(all.bytes(), 10);
        assert_eq!(all.statuses()[&200], 2);
        assert_eq!(all.errors()["connect"], 2);
        assert_eq!(all.first_error(), Some("10"));
        assert_eq!(all.late_starts, 2);
        assert_eq!(all.window_bytes(), Some(6));
        assert!((all.quantile_us(0.5) - 10.0).abs() < 0.1);
        assert!((all.max_us() - 20.0).abs() < 0.1);
    }

    #[test]
    fn a_latency_out_of_range_is_kept() {
        let mut stats = Stats::new();
        stats.success(Outcome { status: 200, bytes: 0 }, Duration::from_secs(1000));
        assert_eq!(stats.requests(), 1);
        assert!(stats.max_us() > 100_000_000.0);
    }
}
