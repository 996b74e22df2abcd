//! Requests by host, of a set of hosts that is known beforehand.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use http::Version;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

use super::requests::{PROTOCOLS, protocol};
use crate::stripe::{Padded, thread_number};

pub(super) const NAME: &str = "portcullis_requests_by_host";
/// How many hosts are told apart; those beyond are counted as `other`.
pub const MAX_HOSTS: usize = 1000;
/// What is none of them.
const OTHER: &str = "other";
/// Copies of each counter, 128 bytes each.
const STRIPES: usize = 8;

type Counts = [Padded<[AtomicU64; PROTOCOLS.len()]>; STRIPES];

/// Counters of requests by host and protocol. A kibibyte for each host, at most [`MAX_HOSTS`]; nothing that a client sends adds to them.
pub struct HostRequests {
    hosts: Vec<(Arc<str>, Arc<Counts>)>,
    /// Where each of them is in the list.
    places: HashMap<Arc<str>, HostPlace>,
}

/// One of the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPlace(usize);

impl HostPlace {
    /// None of them.
    pub const OTHER: Self = Self(0);
}

impl HostRequests {
    /// Counters for these hosts, each once, and one for all others. Those of `before` go on.
    pub fn new<'h>(hosts: impl IntoIterator<Item = &'h str>, before: Option<&Self>) -> Self {
        let known: HashMap<&str, &Arc<Counts>> =
            before.iter().flat_map(|before| &before.hosts).map(|(host, counts)| (&**host, counts)).collect();
        let counts = |host: &str| known.get(host).map_or_else(Arc::default, |counts| Arc::clone(counts));
        let mut all: Vec<(Arc<str>, Arc<Counts>)> = vec![(OTHER.into(), counts(OTHER))];
        let mut places: HashMap<Arc<str>, HostPlace> = [(OTHER.into(), HostPlace::OTHER)].into();
        for host in hosts {
            if all.len() <= MAX_HOSTS && !places.contains_key(host) {
                let name: Arc<str> = host.into();
                places.insert(Arc::clone(&name), HostPlace(all.len()));
                all.push((name, counts(host)));
            }
        }
        Self { hosts: all, places }
    }

    /// Where a host is counted.
    pub fn place(&self, host: &str) -> HostPlace {
        self.places.get(host).copied().unwrap_or(HostPlace::OTHER)
    }

    /// A request came for it.
    pub fn count(&self, place: HostPlace, version: Version) {
        if let Some((_, counts)) = self.hosts.get(place.0) {
            counts[thread_number() % STRIPES].0[protocol(version)].fetch_add(1, Relaxed);
        }
    }
}

impl fmt::Debug for HostRequests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostRequests").field("hosts", &self.hosts.len()).finish_non_exhaustive()
    }
}

pub(super) struct HostsCollector(pub(super) Box<dyn Fn() -> Arc<HostRequests> + Send + Sync>);

impl fmt::Debug for HostsCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostsCollector").finish_non_exhaustive()
    }
}

impl Collector for HostsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests by the host that their route names, and protocol";
        let mut family = encoder.encode_descriptor(NAME, help, None, MetricType::Counter)?;
        for (host, counts) in &(self.0)().hosts {
            for (at, name) in PROTOCOLS.into_iter().enumerate() {
                let count =
                    counts.iter().fold(0, |sum: u64, stripe| sum.wrapping_add(stripe.0[at].load(Relaxed)));
                // what nobody speaks is no line
                if count > 0 || matches!(name, "http/1.1" | "h2" | "h3") {
                    let labels = [("host", &**host), ("protocol", name)];
                    family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn shown(hosts: &Arc<HostRequests>) -> String {
        let metrics = Metrics::new("1");
        let hosts = Arc::clone(hosts);
        metrics.register_hosts(move || Arc::clone(&hosts)).unwrap();
        metrics.encode()
    }

    #[test]
    fn each_host_has_its_counter_and_keeps_it() {
        let before = HostRequests::new(["a.test", "*.b.test", "a.test", "other"], None);
        let (a, b) = (before.place("a.test"), before.place("*.b.test"));
        assert_ne!(a, b);
        assert_eq!((before.place("x.b.test"), before.place("other")), (HostPlace::OTHER, HostPlace::OTHER));
        for (place, version, times) in
            [(a, Version::HTTP_2, 3), (b, Version::HTTP_11, 2), (HostPlace::OTHER, Version::HTTP_3, 1)]
        {
            (0..times).for_each(|_| before.count(place, version));
        }
        let after = Arc::new(HostRequests::new(["c.test", "a.test"], Some(&before)));
        std::thread::scope(|scope| {
            scope.spawn(|| after.count(after.place("a.test"), Version::HTTP_2));
        });
        // a request that began before the change
        before.count(a, Version::HTTP_2);
        let text = shown(&after);
        for line in [
            "portcullis_requests_by_host_total{host=\"a.test\",protocol=\"h2\"} 5",
            "portcullis_requests_by_host_total{host=\"c.test\",protocol=\"h3\"} 0",
            "portcullis_requests_by_host_total{host=\"other\",protocol=\"h3\"} 1",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(!text.contains("b.test") && !text.contains("http/1.0\"} 0\nportcullis_requests_by_host"));
    }

    #[test]
    fn there_are_not_more_than_the_bound() {
        let names: Vec<String> = (0..MAX_HOSTS + 10).map(|n| format!("h{n}.test")).collect();
        let hosts = HostRequests::new(names.iter().map(String::as_str), None);
        assert_eq!(hosts.hosts.len(), MAX_HOSTS + 1);
        assert_eq!(hosts.place(&names[MAX_HOSTS]), HostPlace::OTHER);
        assert_ne!(hosts.place(&names[MAX_HOSTS - 1]), HostPlace::OTHER);
    }
}
