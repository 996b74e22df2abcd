//! Request counters in arrays, one copy per group of threads.

use std::{
    array, fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{StatusCode, Version};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

use crate::stripe::{Padded, thread_number};

pub(super) const NAMES: [&str; 4] = [
    "portcullis_requests",
    "portcullis_request_duration_seconds",
    "portcullis_requests_in_flight",
    "portcullis_requests_aborted",
];

/// By their ALPN names, in the order of [`protocol`].
pub(super) const PROTOCOLS: [&str; 5] = ["http/1.0", "http/1.1", "h2", "h3", "other"];
/// In the order of [`class`].
const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other"];
/// Upper bounds of the histogram in microseconds: from what a cached answer takes to what a deadline allows.
const BOUNDS: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];
const BUCKETS: usize = BOUNDS.len() + 1;
/// Copies of the counters, 1 KiB each.
const STRIPES: usize = 32;

pub(super) fn protocol(version: Version) -> usize {
    match version {
        Version::HTTP_10 => 0,
        Version::HTTP_11 => 1,
        Version::HTTP_2 => 2,
        Version::HTTP_3 => 3,
        _ => 4,
    }
}

/// RFC 9110 section 15: the class is the first digit.
fn class(status: StatusCode) -> usize {
    match status.as_u16() {
        status @ 100..=599 => usize::from(status / 100) - 1,
        _ => 5,
    }
}

/// Which bucket a duration belongs to: the first whose bound is not below it.
fn bucket(duration: Duration) -> usize {
    BOUNDS.partition_point(|bound| Duration::from_micros(*bound) < duration)
}

#[derive(Debug, Default)]
struct Counters {
    begun: [AtomicU64; PROTOCOLS.len()],
    ended: [AtomicU64; PROTOCOLS.len()],
    /// Of those, the ones that were not whole.
    aborted: [AtomicU64; PROTOCOLS.len()],
    responses: [[AtomicU64; CLASSES.len()]; PROTOCOLS.len()],
    buckets: [[AtomicU64; BUCKETS]; PROTOCOLS.len()],
    nanos: [AtomicU64; PROTOCOLS.len()],
}

#[derive(Default)]
pub(super) struct Requests {
    stripes: [Padded<Counters>; STRIPES],
}

impl Requests {
    fn here(&self) -> &Counters {
        &self.stripes[thread_number() % STRIPES].0
    }

    pub(super) fn begin(&self, version: Version) {
        self.here().begun[protocol(version)].fetch_add(1, Relaxed);
    }

    pub(super) fn end(&self, version: Version, whole: bool) {
        let counters = self.here();
        counters.ended[protocol(version)].fetch_add(1, Relaxed);
        if !whole {
            counters.aborted[protocol(version)].fetch_add(1, Relaxed);
        }
    }

    pub(super) fn respond(&self, version: Version, status: StatusCode, time_to_head: Duration) {
        let counters = self.here();
        let protocol = protocol(version);
        counters.responses[protocol][class(status)].fetch_add(1, Relaxed);
        counters.buckets[protocol][bucket(time_to_head)].fetch_add(1, Relaxed);
        let nanos = u64::try_from(time_to_head.as_nanos()).unwrap_or(u64::MAX);
        counters.nanos[protocol].fetch_add(nanos, Relaxed);
    }

    fn sum(&self, read: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        self.stripes.iter().fold(0, |sum: u64, stripe| sum.wrapping_add(read(&stripe.0).load(Relaxed)))
    }

    /// Reads what has ended first, so that a request between the two readings counts as in flight, never as less than none.
    fn in_flight(&self, protocol: usize) -> u64 {
        let ended = self.sum(|counters| &counters.ended[protocol]);
        self.sum(|counters| &counters.begun[protocol]).saturating_sub(ended)
    }
}

pub(super) struct RequestsCollector(pub(super) Arc<Requests>);

impl fmt::Debug for RequestsCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestsCollector").finish_non_exhaustive()
    }
}

impl Collector for RequestsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let [requests, duration, in_flight, aborted] = NAMES;
        let help = "Responses by protocol and status class";
        let mut family = encoder.encode_descriptor(requests, help, None, MetricType::Counter)?;
        for (protocol, name) in PROTOCOLS.into_iter().enumerate() {
            for (class, class_name) in CLASSES.into_iter().enumerate() {
                let count = self.0.sum(|counters| &counters.responses[protocol][class]);
                let labels = [("protocol", name), ("status_class", class_name)];
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }

        let help = "Time from a request's coming to its response's head";
        let mut family = encoder.encode_descriptor(duration, help, None, MetricType::Histogram)?;
        for (protocol, name) in PROTOCOLS.into_iter().enumerate() {
            let buckets: [(f64, u64); BUCKETS] = array::from_fn(|at| {
                let bound = BOUNDS.get(at).map_or(f64::INFINITY, |micros| *micros as f64 / 1e6);
                (bound, self.0.sum(|counters| &counters.buckets[protocol][at]))
            });
            let count = buckets.iter().map(|(_, count)| count).sum();
            let sum = self.0.sum(|counters| &counters.nanos[protocol]) as f64 / 1e9;
            let labels = [("protocol", name)];
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }

        let help = "Requests whose response is not over";
        let mut family = encoder.encode_descriptor(in_flight, help, None, MetricType::Gauge)?;
        for (protocol, name) in PROTOCOLS.into_iter().enumerate() {
            let labels = [("protocol", name)];
            family.encode_family(&labels)?.encode_gauge(&self.0.in_flight(protocol))?;
        }

        let help =
            "Requests whose response was not taken to its end: reset or left by the client, or broken off";
        let mut family = encoder.encode_descriptor(aborted, help, None, MetricType::Counter)?;
        for (protocol, name) in PROTOCOLS.into_iter().enumerate() {
            let count = self.0.sum(|counters| &counters.aborted[protocol]);
            let labels = [("protocol", name)];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive() {
        let table = [
            (Duration::ZERO, 0),
            (Duration::from_micros(500), 0),
            (Duration::from_nanos(500_001), 1),
            (Duration::from_millis(1), 1),
            (Duration::from_secs(10), 13),
            (Duration::from_nanos(10_000_000_001), 14),
            (Duration::MAX, 14),
        ];
        for (duration, expected) in table {
            assert_eq!(bucket(duration), expected, "{duration:?}");
        }
        assert!(BOUNDS.is_sorted());
    }

    #[test]
    fn every_status_has_a_class_and_every_version_a_protocol() {
        for code in 100..=999 {
            let name = CLASSES[class(StatusCode::from_u16(code).unwrap())];
            let first = code / 100;
            assert_eq!(name, if first < 6 { format!("{first}xx") } else { "other".to_owned() });
        }
        let versions =
            [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2, Version::HTTP_3, Version::HTTP_09];
        assert_eq!(versions.map(|version| PROTOCOLS[protocol(version)]), PROTOCOLS);
    }

    #[test]
    fn a_copy_is_as_large_as_said() {
        assert_eq!(size_of::<Padded<Counters>>(), 1024);
    }

    #[test]
    fn requests_that_end_on_another_thread_are_not_in_flight() {
        let requests = Requests::default();
        requests.begin(Version::HTTP_2);
        requests.begin(Version::HTTP_2);
        std::thread::scope(|scope| {
            scope.spawn(|| requests.end(Version::HTTP_2, true));
        });
        assert_eq!(requests.in_flight(protocol(Version::HTTP_2)), 1);
        assert_eq!(requests.in_flight(protocol(Version::HTTP_3)), 0);
    }
}
