//! What is told of QUIC and HTTP/3.

use portcullis_h3::{ConnLimits, Distribution, QuicStats};
use portcullis_telemetry::metrics::{HistogramReading, MetricError, Metrics};

/// Every series has labels from closed lists alone.
pub(crate) fn bind(metrics: &Metrics, limits: &ConnLimits) -> Result<(), MetricError> {
    let of = limits.clone();
    metrics.register_gauge_fn("portcullis_quic_connections_open", "Open QUIC connections", move || {
        crate::observe::to_f64(of.open() as u64)
    })?;
    let of = limits.clone();
    metrics.register_counter_series(
        "portcullis_quic_connections_total",
        "QUIC connections by what became of them",
        "result",
        move |series| {
            let stats = of.stats();
            series.push("accepted", stats.accepted);
            series.push("refused", stats.refused);
            series.push("retried", stats.retried);
            series.push("handshake_failed", stats.handshake_failures);
        },
    )?;
    let of = limits.clone();
    metrics.register_counter_series(
        "portcullis_quic_early_data_total",
        "QUIC connections whose requests may be served before the handshake is complete: allowed, or unproven for want of an address token",
        "result",
        move |series| {
            let stats = of.stats();
            series.push("allowed", stats.early_allowed);
            series.push("unproven", stats.early_unproven);
        },
    )?;
    let of = limits.clone();
    metrics.register_counter_series(
        "portcullis_http3_stream_errors_total",
        "HTTP/3 request streams that did not end with a complete response, by the code of RFC 9114",
        "code",
        move |series| {
            for (code, count) in of.stream_errors_by_code() {
                series.push(code, count);
            }
        },
    )?;
    paths(metrics, limits)
}

fn paths(metrics: &Metrics, limits: &ConnLimits) -> Result<(), MetricError> {
    type Count = fn(&QuicStats) -> u64;
    let counters: [(&str, &str, Count); 4] = [
        ("portcullis_quic_packets_sent_total", "QUIC packets that were sent", |stats| stats.sent_packets),
        ("portcullis_quic_packets_lost_total", "QUIC packets that were lost", |stats| stats.lost_packets),
        (
            "portcullis_quic_congestion_events_total",
            "Times that a QUIC connection was told to slow down, by loss or by ECN",
            |stats| stats.congestion_events,
        ),
        (
            "portcullis_quic_migrations_total",
            "Times that a QUIC client was found at another address",
            |stats| stats.migrations,
        ),
    ];
    for (name, help, count) in counters {
        let of = limits.clone();
        metrics.register_counter_fn(name, help, move || count(&of.stats()))?;
    }
    type Spread = fn(&ConnLimits) -> Distribution;
    let histograms: [(&str, &str, Spread); 3] = [
        (
            "portcullis_quic_handshake_seconds",
            "Time that completed QUIC handshakes took, waiting for the client included",
            ConnLimits::handshake_times,
        ),
        (
            "portcullis_quic_rtt_seconds",
            "Smoothed round trips of QUIC connections, each looked at every 5 s and at its end",
            ConnLimits::round_trips,
        ),
        (
            "portcullis_quic_congestion_window_bytes",
            "Congestion windows of QUIC connections, each looked at every 5 s and at its end",
            ConnLimits::congestion_windows,
        ),
    ];
    for (name, help, spread) in histograms {
        let of = limits.clone();
        metrics.register_histogram_fn(name, help, move || {
            let Distribution { count, sum, buckets, .. } = spread(&of);
            HistogramReading { buckets, count, sum }
        })?;
    }
    Ok(())
}
