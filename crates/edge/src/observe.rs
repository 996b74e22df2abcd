//! Binds the cheap counters of the parts to the metrics registry.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{StatusCode, Version};
use portcullis_middleware::metrics::{RequestMetricsLayer, RequestObserver};
use portcullis_proxy::{
    LIFE_BOUNDS,
    mirror::{Mirror, MirrorStats},
};
use portcullis_server::CloseReason;
use portcullis_telemetry::{
    admin::AdminService,
    metrics::{HistogramReading, MAX_SERIES, MetricError, Metrics},
};
use portcullis_tls::{CertSummary, FailureReason, HandshakeStats};

use crate::{
    certificates_page::{page, state},
    edge::Shared,
    observe_chains,
};

/// Tells the registry of every request.
#[derive(Debug)]
pub(crate) struct Observer(Metrics);

impl RequestObserver for Observer {
    fn on_request(&self, version: Version) {
        self.0.on_request(version);
    }

    fn on_response(&self, version: Version, status: StatusCode, time_to_head: Duration) {
        self.0.on_response(version, status, time_to_head);
    }

    fn on_end(&self, version: Version, whole: bool) {
        self.0.on_end(version, whole);
    }
}

/// The metrics of one edge.
#[derive(Clone, Debug)]
pub(crate) struct Telemetry {
    metrics: Metrics,
    observer: Arc<Observer>,
}

impl Telemetry {
    pub(crate) fn new() -> Self {
        let metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
        Self { observer: Arc::new(Observer(metrics.clone())), metrics }
    }

    pub(crate) fn layer(&self) -> RequestMetricsLayer<Observer> {
        RequestMetricsLayer::new(Arc::clone(&self.observer))
    }

    pub(crate) fn admin(&self, shared: &Shared) -> AdminService {
        let service = AdminService::new(self.metrics.clone()).with_draining(Arc::clone(&shared.draining));
        let service = crate::cache_page::add(service, &shared.live);
        let Some(store) = shared.tls.store.clone() else { return service };
        let acme = shared.tls.acme.clone();
        service.with_page("/certificates", "application/json", move || page(&store, acme.as_ref()))
    }

    /// Exposes what the parts count. The names are listed in docs/operations.md.
    pub(crate) fn bind_parts(&self, shared: &Shared) -> Result<(), MetricError> {
        self.bind_connections(shared)?;
        self.bind_tls(shared)?;
        crate::observe_quic::bind(&self.metrics, &shared.quic_limits)?;
        self.bind_clusters(shared)?;
        self.bind_tunnels(shared)?;
        self.bind_middleware(shared)?;
        crate::observe_cache::bind(&self.metrics, &shared.live)?;
        self.bind_reloads(shared)
    }

    fn bind_http(&self, shared: &Shared) -> Result<(), MetricError> {
        let http = Arc::clone(&shared.http);
        self.metrics.register_gauge_series(
            "portcullis_http_connections_open",
            "Open connections by protocol",
            "protocol",
            move |series| {
                let stats = http.stats();
                series.push("http1", to_f64(stats.http1_open));
                series.push("http2", to_f64(stats.http2_open));
            },
        )?;
        let http = Arc::clone(&shared.http);
        self.metrics.register_gauge_fn(
            "portcullis_http_connections_resting",
            "Idle HTTP/1 connections that have given their buffers back",
            move || to_f64(http.stats().http1_resting),
        )?;
        let http = Arc::clone(&shared.http);
        self.metrics.register_counter_series(
            "portcullis_http_connections_closed_total",
            "HTTP/1 and 2 connections that ended, by reason",
            "reason",
            move |series| {
                let stats = http.stats();
                for reason in CloseReason::ALL {
                    series.push(reason.as_str(), stats.closed(reason));
                }
            },
        )
    }

    fn bind_connections(&self, shared: &Shared) -> Result<(), MetricError> {
        let counter = |name, help, read: Box<dyn Fn() -> u64 + Send + Sync>| {
            self.metrics.register_counter_fn(name, help, read)
        };
        let limits = shared.limits.clone();
        self.metrics.register_gauge_fn("portcullis_connections_open", "Open TCP connections", move || {
            to_f64(limits.open() as u64)
        })?;
        let limits = shared.limits.clone();
        counter(
            "portcullis_connections_accepted_total",
            "Accepted TCP connections",
            Box::new(move || limits.stats().accepted),
        )?;
        let limits = shared.limits.clone();
        self.metrics.register_counter_series(
            "portcullis_accept_errors_total",
            "Errors of accept by class",
            "class",
            move |series| {
                let stats = limits.stats();
                series.push("connection", stats.connection_errors);
                series.push("shortage", stats.shortage_errors);
            },
        )?;
        let limits = shared.limits.clone();
        self.metrics.register_counter_series(
            "portcullis_connections_refused_total",
            "TCP and unix connections closed at once, by reason: limit (max_connections), client (its own limit)",
            "reason",
            move |series| {
                let stats = limits.stats();
                series.push("limit", stats.refused_over_limit);
                series.push("client", stats.refused_over_client);
            },
        )?;
        self.bind_http(shared)?;
        let limits = shared.limits.clone();
        counter(
            "portcullis_accept_paused_milliseconds_total",
            "Time that accepting rested because of errors or a shortage, summed over the acceptors",
            Box::new(move || u64::try_from(limits.stats().paused.as_millis()).unwrap_or(u64::MAX)),
        )?;
        let limits = shared.limits.clone();
        counter(
            "portcullis_connection_limit_reached_total",
            "Episodes in which the limit of connections was reached",
            Box::new(move || limits.stats().limit_reached),
        )?;
        let http = Arc::clone(&shared.http);
        counter(
            "portcullis_connection_errors_total",
            "HTTP/1 and 2 connections that ended in an error",
            Box::new(move || http.stats().connection_errors),
        )
    }

    fn bind_tls(&self, shared: &Shared) -> Result<(), MetricError> {
        let counter = |name, help, read: Box<dyn Fn() -> u64 + Send + Sync>| {
            self.metrics.register_counter_fn(name, help, read)
        };
        let stats: Vec<_> = shared.tls.acceptors().map(|acceptor| Arc::clone(acceptor.stats())).collect();
        let sum = stats.clone();
        counter(
            "portcullis_tls_handshakes_total",
            "Completed TLS handshakes over TCP",
            Box::new(move || sum.iter().map(|stats| stats.completed()).sum()),
        )?;
        let sum = stats.clone();
        counter(
            "portcullis_tls_resumed_total",
            "Completed TLS handshakes over TCP that resumed a session",
            Box::new(move || sum.iter().map(|stats| stats.resumed()).sum()),
        )?;
        let sum = stats.clone();
        counter(
            "portcullis_tls_early_data_total",
            "TLS handshakes over TCP in which early data was accepted",
            Box::new(move || sum.iter().map(|stats| stats.early()).sum()),
        )?;
        let sum = stats.clone();
        self.metrics.register_histogram_fn(
            "portcullis_tls_handshake_seconds",
            "Time that completed TLS handshakes over TCP took, waiting for the client included",
            move || handshake_times(&sum),
        )?;
        self.metrics.register_counter_series(
            "portcullis_tls_handshake_failures_total",
            "Failed TLS handshakes over TCP by reason",
            "reason",
            move |series| {
                for reason in FailureReason::ALL {
                    series.push(reason.as_str(), stats.iter().map(|stats| stats.failed(reason)).sum());
                }
            },
        )?;
        self.bind_certificates(shared)?;
        self.bind_acme(shared)
    }

    fn bind_acme(&self, shared: &Shared) -> Result<(), MetricError> {
        let Some(acme) = shared.tls.acme.clone() else { return Ok(()) };
        let of = acme.clone();
        self.metrics.register_counter_series(
            "portcullis_acme_orders_total",
            "Orders for certificates by how they ended: ok, failed",
            "result",
            move |series| {
                let stats = of.stats();
                series.push("ok", stats.orders_ok);
                series.push("failed", stats.orders_failed);
            },
        )?;
        let of = acme.clone();
        self.metrics.register_counter_series(
            "portcullis_acme_on_demand_total",
            "Names that clients asked for and that had no certificate, by what became of them: asked, refused (of those), over_bound",
            "result",
            move |series| {
                let stats = of.stats();
                series.push("asked", stats.on_demand_asked);
                series.push("refused", stats.on_demand_refused);
                series.push("over_bound", stats.on_demand_over_bound);
            },
        )?;
        let of = acme.clone();
        self.metrics.register_gauge_series(
            "portcullis_acme_certificates",
            "Certificates that are kept up by ACME, by state",
            "state",
            move |series| {
                let mut counts = [
                    ("missing", 0),
                    ("valid", 0),
                    ("due", 0),
                    ("expired", 0),
                    ("issuing", 0),
                    ("waiting", 0),
                ];
                for certificate in of.status() {
                    let (state, _) = state(certificate.state);
                    counts.iter_mut().filter(|(name, _)| *name == state).for_each(|(_, count)| *count += 1);
                }
                for (state, count) in counts {
                    series.push(state, to_f64(count));
                }
            },
        )?;
        self.metrics.register_gauge_fn(
            "portcullis_acme_next_renewal_timestamp_seconds",
            "When the next certificate is renewed by ACME, in seconds since 1970; 0 without any",
            move || {
                let next = acme.status().into_iter().filter_map(|certificate| certificate.next_renewal).min();
                next.map_or(0.0, seconds_since_1970)
            },
        )
    }

    fn bind_certificates(&self, shared: &Shared) -> Result<(), MetricError> {
        let Some(store) = shared.tls.store.clone() else { return Ok(()) };
        let of = Arc::clone(&store);
        self.metrics.register_gauge_fn(
            "portcullis_tls_certificates",
            "Certificates that are served",
            move || to_f64(of.len() as u64),
        )?;
        let of = Arc::clone(&store);
        self.metrics.register_gauge_fn(
            "portcullis_tls_next_expiry_timestamp_seconds",
            "When the next certificate expires, in seconds since 1970; 0 without any",
            move || of.next_expiry().map_or(0.0, seconds_since_1970),
        )?;
        let of = Arc::clone(&store);
        self.metrics.register_gauge_series(
            "portcullis_tls_certificate_expiry_timestamp_seconds",
            "When a certificate expires, by its first name, for the first 1000",
            "name",
            move |series| {
                for certificate in of.certificates().iter().take(MAX_SERIES) {
                    series.push(name_of(certificate), seconds_since_1970(certificate.not_after));
                }
            },
        )?;
        let of = Arc::clone(&store);
        self.metrics.register_counter_series(
            "portcullis_tls_resolutions_total",
            "Full TLS handshakes that asked for a certificate, by its first name, over TCP and QUIC",
            "name",
            move |series| {
                for certificate in of.certificates() {
                    series.push(name_of(&certificate), certificate.resolutions);
                }
            },
        )?;
        self.metrics.register_counter_fn(
            "portcullis_tls_unknown_names_total",
            "TLS handshakes for a name without a certificate",
            move || store.unknown_names(),
        )
    }

    fn bind_clusters(&self, shared: &Shared) -> Result<(), MetricError> {
        type Read = fn(&portcullis_upstream::ClusterStats) -> u64;
        let counters: [(&str, &str, Read); 7] = [
            ("portcullis_upstream_requests_total", "Requests sent to a cluster", |stats| stats.requests),
            ("portcullis_upstream_retries_total", "Attempts beyond the first", |stats| stats.retries),
            ("portcullis_upstream_errors_total", "Requests to a cluster that ended in an error", |stats| {
                stats.errors
            }),
            ("portcullis_upstream_hedges_total", "Attempts beside a slow one", |stats| stats.hedges),
            (
                "portcullis_upstream_overloads_total",
                "Requests that a limit of their cluster ended",
                |stats| stats.overloads,
            ),
            ("portcullis_upstream_ejections_total", "Endpoints left alone for their failures", |stats| {
                stats.ejections
            }),
            (
                "portcullis_upstream_panics_total",
                "Picks among all endpoints since too few were available",
                |stats| stats.panics,
            ),
        ];
        for (name, help, read) in counters {
            let live = Arc::clone(&shared.live);
            self.metrics.register_counter_series(name, help, "cluster", move |series| {
                for part in live.load().clusters.values() {
                    series.push(part.cluster.name(), read(&part.cluster.stats()));
                }
            })?;
        }
        let live = Arc::clone(&shared.live);
        self.metrics.register_gauge_series(
            "portcullis_upstream_endpoint_healthy",
            "Whether requests go to an endpoint (1) or it is left alone (0), by cluster/endpoint",
            "endpoint",
            move |series| {
                for cluster in live.load().clusters.values().map(|part| &part.cluster) {
                    for endpoint in cluster.stats().endpoints {
                        let name = format!("{}/{}", cluster.name(), endpoint.name);
                        series.push(&name, if endpoint.healthy { 1.0 } else { 0.0 });
                    }
                }
            },
        )
    }

    fn bind_tunnels(&self, shared: &Shared) -> Result<(), MetricError> {
        let tunnels = shared.tunnels.clone();
        self.metrics.register_gauge_fn("portcullis_tunnels_open", "Open tunnels", move || {
            to_f64(tunnels.open() as u64)
        })?;
        let tunnels = shared.tunnels.clone();
        self.metrics.register_counter_fn(
            "portcullis_tunnels_opened_total",
            "Tunnels that began",
            move || tunnels.totals().opened,
        )?;
        let tunnels = shared.tunnels.clone();
        self.metrics.register_counter_series(
            "portcullis_tunnel_bytes_total",
            "Bytes that tunnels carried, counted when they close, by where they went",
            "to",
            move |series| {
                let totals = tunnels.totals();
                series.push("upstream", totals.to_upstream);
                series.push("downstream", totals.to_downstream);
            },
        )?;
        let tunnels = shared.tunnels.clone();
        self.metrics.register_histogram_fn(
            "portcullis_tunnel_life_seconds",
            "How long tunnels lived that have closed",
            move || {
                let totals = tunnels.totals();
                let lives = LIFE_BOUNDS.iter().zip(totals.lives);
                HistogramReading {
                    buckets: lives.map(|(bound, count)| (to_f64(*bound), count)).collect(),
                    count: totals.closed,
                    sum: totals.life.as_secs_f64(),
                }
            },
        )
    }

    fn bind_middleware(&self, shared: &Shared) -> Result<(), MetricError> {
        let live = Arc::clone(&shared.live);
        self.metrics.register_counter_series(
            "portcullis_mirrored_requests_total",
            "Requests of which a copy was due, by what became of it: answered, failed, too_long, broken (the body), over_bound (of copies at once)",
            "result",
            move |series| {
                let stats: Vec<_> = live.load().mirrors.values().map(Mirror::stats).collect();
                if stats.is_empty() {
                    return;
                }
                let sum = |read: fn(&MirrorStats) -> u64| stats.iter().map(read).sum();
                series.push("answered", sum(|stats| stats.answered));
                series.push("failed", sum(|stats| stats.failed));
                series.push("too_long", sum(|stats| stats.too_long));
                series.push("broken", sum(|stats| stats.broken));
                series.push("over_bound", sum(|stats| stats.over_bound));
            },
        )?;
        observe_chains::bind(&self.metrics, &shared.live)?;
        let live = Arc::clone(&shared.live);
        self.metrics.register_hosts(move || Arc::clone(&live.load().hosts))
    }

    fn bind_reloads(&self, shared: &Shared) -> Result<(), MetricError> {
        let reloads = Arc::clone(&shared.reloads);
        self.metrics.register_counter_series(
            "portcullis_reloads_total",
            "Reloads of the configuration by how they ended: ok, failed (the one before stays)",
            "result",
            move |series| {
                series.push("ok", reloads.ok());
                series.push("failed", reloads.failed());
            },
        )?;
        let reloads = Arc::clone(&shared.reloads);
        self.metrics.register_gauge_fn(
            "portcullis_last_reload_timestamp_seconds",
            "When the configuration was last reloaded with success, in seconds since 1970; 0 before",
            move || reloads.last().map_or(0.0, seconds_since_1970),
        )
    }
}

fn handshake_times(stats: &[Arc<HandshakeStats>]) -> HistogramReading {
    let mut reading = HistogramReading::default();
    for stats in stats {
        reading.count += stats.completed();
        reading.sum += stats.total_time().as_secs_f64();
        for (place, (bound, count)) in stats.times().enumerate() {
            match reading.buckets.get_mut(place) {
                Some((_, sum)) => *sum += count,
                None => reading.buckets.push((bound, count)),
            }
        }
    }
    reading
}

/// Certificates have as many label values as there are certificates; what is beyond the bound of a label is added up.
fn name_of(certificate: &CertSummary) -> &str {
    certificate.names.first().map_or("(address)", String::as_str)
}

fn seconds_since_1970(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Exact up to 2^53, which no gauge here gets near.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn to_f64(n: u64) -> f64 {
    n as f64
}
