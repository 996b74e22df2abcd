//! Numbers of the edge and their exposition in the OpenMetrics text format.
//!
//! Requests are counted here, in arrays that are indexed by protocol and status class: recording one is a few additions
//! to numbers that seldom leave a core's cache. Everything else is read from where it is counted when somebody
//! asks: parts keep cheap counters, and closures registered here read them. There is no process-wide registry.
//!
//! Every label's values are from a set that is known beforehand, or cut at [`MAX_SERIES`] where they come from a closure.

mod hosts;
mod requests;
mod series;

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use http::{StatusCode, Version};
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::text,
    metrics::{gauge::ConstGauge, info::Info},
    registry::Registry,
};

pub use self::hosts::{HostPlace, HostRequests, MAX_HOSTS};
pub use self::series::{HistogramReading, MAX_SERIES, Series};
use self::{
    hosts::HostsCollector,
    requests::{Requests, RequestsCollector},
    series::{Kind, SeriesCollector},
};

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why a metric isn't registered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetricError {
    /// The name can't stand in an exposition: it has other characters than letters, digits, underscores and colons, begins
    /// with a digit, or ends as only another type's may.
    #[error("invalid metric name {name:?}")]
    InvalidName {
        /// The name.
        name: String,
    },
    /// The label's name can't stand in an exposition.
    #[error("invalid label name {label:?}")]
    InvalidLabel {
        /// The label's name.
        label: String,
    },
    /// There is a metric of this name.
    #[error("metric {name:?} is registered already")]
    Duplicate {
        /// The name.
        name: String,
    },
}

/// The metrics of one edge; every clone is the same.
#[derive(Clone)]
pub struct Metrics {
    shared: Arc<Shared>,
}

struct Shared {
    requests: Arc<Requests>,
    registered: Mutex<Registered>,
}

struct Registered {
    registry: Registry,
    names: HashSet<String>,
}

impl Metrics {
    /// Metrics of a program of this version, with all built-in ones registered: `portcullis_requests_total` and
    /// `portcullis_request_duration_seconds` (time to the response's head), both by protocol, `portcullis_requests_in_flight`,
    /// `portcullis_up` and `portcullis_build_info`. The counters take 32 KiB.
    pub fn new(version: &str) -> Self {
        let requests = Arc::new(Requests::default());
        let mut registry = Registry::default();
        registry.register_collector(Box::new(RequestsCollector(Arc::clone(&requests))));
        registry.register("portcullis_up", "Whether the edge is running", ConstGauge::new(1_u64));
        let info = Info::new(vec![("version".to_owned(), version.to_owned())]);
        registry.register("portcullis_build", "The program that runs", info);
        let names = requests::NAMES.into_iter().chain(["portcullis_up", "portcullis_build"]);
        let names = names.map(str::to_owned).collect();
        Self { shared: Arc::new(Shared { requests, registered: Mutex::new(Registered { registry, names }) }) }
    }

    /// A request came.
    pub fn on_request(&self, version: Version) {
        self.shared.requests.begin(version);
    }

    /// A response's head is ready, this long after its request came.
    pub fn on_response(&self, version: Version, status: StatusCode, time_to_head: Duration) {
        self.shared.requests.respond(version, status, time_to_head);
    }

    /// A request that came is over; `whole` is whether its response was taken to the end.
    pub fn on_end(&self, version: Version, whole: bool) {
        self.shared.requests.end(version, whole);
    }

    /// Exposes a number that only rises. `_total` is appended to the name where it isn't there. The closure is called for
    /// each exposition, must be quick, and must not call these metrics.
    pub fn register_counter_fn(
        &self,
        name: &str,
        help: &str,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<(), MetricError> {
        self.register(name, help, None, Kind::Counter(Box::new(move |series| series.push("", read()))))
    }

    /// Exposes a number that rises and falls; else as [`Metrics::register_counter_fn`].
    pub fn register_gauge_fn(
        &self,
        name: &str,
        help: &str,
        read: impl Fn() -> f64 + Send + Sync + 'static,
    ) -> Result<(), MetricError> {
        self.register(name, help, None, Kind::Gauge(Box::new(move |series| series.push("", read()))))
    }

    /// Exposes numbers that only rise, told apart by the values of one label: the closure pushes each. The same values
    /// should be pushed each time. Else as [`Metrics::register_counter_fn`].
    pub fn register_counter_series(
        &self,
        name: &str,
        help: &str,
        label: &str,
        read: impl Fn(&mut Series<u64>) + Send + Sync + 'static,
    ) -> Result<(), MetricError> {
        self.register(name, help, Some(label), Kind::Counter(Box::new(read)))
    }

    /// Exposes numbers that rise and fall, told apart by the values of one label; else as
    /// [`Metrics::register_counter_series`].
    pub fn register_gauge_series(
        &self,
        name: &str,
        help: &str,
        label: &str,
        read: impl Fn(&mut Series<f64>) + Send + Sync + 'static,
    ) -> Result<(), MetricError> {
        self.register(name, help, Some(label), Kind::Gauge(Box::new(read)))
    }

    /// Exposes times or sizes that were counted by upper bound: the closure gives, by rising bound, how many were no larger than
    /// it, how many there were in all, and their sum. Else as [`Metrics::register_counter_fn`].
    ///
    /// # Errors
    /// When the name is none, or taken.
    pub fn register_histogram_fn(
        &self,
        name: &str,
        help: &str,
        read: impl Fn() -> HistogramReading + Send + Sync + 'static,
    ) -> Result<(), MetricError> {
        self.register(name, help, None, Kind::Histogram(Box::new(read)))
    }

    /// Exposes requests by host as `portcullis_requests_by_host_total`; the closure gives the counters of the moment. Else as
    /// [`Metrics::register_counter_fn`].
    ///
    /// # Errors
    /// When there is such a metric.
    pub fn register_hosts(
        &self,
        read: impl Fn() -> Arc<HostRequests> + Send + Sync + 'static,
    ) -> Result<(), MetricError> {
        let mut registered = self.shared.registered.lock();
        if !registered.names.insert(hosts::NAME.to_owned()) {
            return Err(MetricError::Duplicate { name: hosts::NAME.to_owned() });
        }
        registered.registry.register_collector(Box::new(HostsCollector(Box::new(read))));
        Ok(())
    }

    fn register(&self, name: &str, help: &str, label: Option<&str>, kind: Kind) -> Result<(), MetricError> {
        // the format appends it to every counter
        let family = match &kind {
            Kind::Counter(_) => name.strip_suffix("_total").unwrap_or(name),
            Kind::Gauge(_) | Kind::Histogram(_) => name,
        };
        if !is_metric_name(family) {
            return Err(MetricError::InvalidName { name: name.to_owned() });
        }
        if let Some(label) = label.filter(|label| !is_label_name(label)) {
            return Err(MetricError::InvalidLabel { label: label.to_owned() });
        }
        let mut registered = self.shared.registered.lock();
        if !registered.names.insert(family.to_owned()) {
            return Err(MetricError::Duplicate { name: name.to_owned() });
        }
        let collector: Box<dyn Collector> = Box::new(SeriesCollector {
            name: family.to_owned(),
            help: escape_help(help),
            label: label.map(str::to_owned),
            kind,
        });
        registered.registry.register_collector(collector);
        Ok(())
    }

    /// All metrics, in the format that [`CONTENT_TYPE`] names.
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(16 * 1024);
        let registered = self.shared.registered.lock();
        text::encode(&mut out, &registered.registry)
            .expect("a String takes every write, and nothing else here fails");
        out
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// The characters of a name, and none of the endings that the format itself gives to the lines of a family.
fn is_metric_name(name: &str) -> bool {
    const RESERVED: [&str; 6] = ["_total", "_created", "_count", "_sum", "_bucket", "_info"];
    let start = |byte: u8| byte.is_ascii_alphabetic() || matches!(byte, b'_' | b':');
    name.bytes().next().is_some_and(start)
        && name.bytes().all(|byte| start(byte) || byte.is_ascii_digit())
        && !RESERVED.iter().any(|ending| name.ends_with(ending))
}

/// Two leading underscores are for the server that collects, `le` is for histograms.
fn is_label_name(label: &str) -> bool {
    let start = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    label.bytes().next().is_some_and(start)
        && label.bytes().all(|byte| start(byte) || byte.is_ascii_digit())
        && !label.starts_with("__")
        && label != "le"
}

fn escape_help(help: &str) -> String {
    help.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

#[cfg(test)]
mod tests;
