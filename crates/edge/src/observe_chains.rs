//! What the layers of chains count, as metrics.

use std::sync::Arc;

use arc_swap::ArcSwap;
use portcullis_middleware::{concurrency::ConcurrencyStats, rate_limit::RuleCounts};
use portcullis_telemetry::metrics::{MetricError, Metrics};

use crate::{counted::Counted, live::Live, observe::to_f64};

pub(crate) fn bind(metrics: &Metrics, live: &Arc<ArcSwap<Live>>) -> Result<(), MetricError> {
    type Read = fn(&Counted) -> u64;
    let counters: [(&str, &str, Read); 3] = [
        ("portcullis_rate_limited_total", "Requests that rate limits refused", |counted| {
            counted.rate_limited
        }),
        ("portcullis_filtered_total", "Requests that filters denied", |counted| counted.denied),
        ("portcullis_access_log_dropped_total", "Access log lines dropped", |counted| counted.lines_dropped),
    ];
    for (name, help, read) in counters {
        let live = Arc::clone(live);
        metrics.register_counter_fn(name, help, move || read(&Counted::of(&live.load())))?;
    }
    bind_rates(metrics, live)?;
    bind_concurrency(metrics, live)
}

/// By the rules' names.
fn bind_rates(metrics: &Metrics, live: &Arc<ArcSwap<Live>>) -> Result<(), MetricError> {
    type Read = fn(&RuleCounts) -> u64;
    let series: [(&str, &str, Read); 5] = [
        ("allowed", "Requests that a rule of a rate limit let through", |counts| counts.allowed),
        ("refused", "Requests that a rule refused", |counts| counts.refused),
        ("dry_run", "Requests that a rule would have refused if it were not a dry run", |counts| {
            counts.dry_run
        }),
        ("unavailable", "Requests for which the shared store could not be asked in time", |counts| {
            counts.unavailable
        }),
        ("forgotten", "Keys forgotten for want of room before their bucket was full again", |counts| {
            counts.forgotten
        }),
    ];
    for (name, help, read) in series {
        let live = Arc::clone(live);
        let name = format!("portcullis_rate_limit_{name}_total");
        metrics.register_counter_series(&name, help, "rule", move |series| {
            for (rule, counts) in Counted::of(&live.load()).rates {
                series.push(&rule, read(&counts));
            }
        })?;
    }
    Ok(())
}

/// By whose places they are: the edge's, or a route's by its name.
fn bind_concurrency(metrics: &Metrics, live: &Arc<ArcSwap<Live>>) -> Result<(), MetricError> {
    type Read = fn(&ConcurrencyStats) -> usize;
    let gauges: [(&str, &str, Read); 3] = [
        ("portcullis_concurrency_limit", "Requests that may run at once by now", |stats| stats.limit),
        ("portcullis_concurrency_running", "Requests that have a place", |stats| stats.running),
        ("portcullis_concurrency_waiting", "Requests that wait for a place", |stats| stats.waiting),
    ];
    for (name, help, read) in gauges {
        let live = Arc::clone(live);
        metrics.register_gauge_series(name, help, "chain", move |series| {
            for (chain, stats) in live.load().chains.concurrency() {
                series.push(&chain, to_f64(read(&stats) as u64));
            }
        })?;
    }
    let live = Arc::clone(live);
    metrics.register_counter_series(
        "portcullis_concurrency_refused_total",
        "Requests answered 503 for want of a place",
        "chain",
        move |series| {
            for (chain, refused) in Counted::of(&live.load()).without_place {
                series.push(&chain, refused);
            }
        },
    )
}
