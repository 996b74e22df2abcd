//! What the cache counts, as metrics. Without a cache there are no series.

use std::sync::Arc;

use arc_swap::ArcSwap;
use portcullis_cache::CacheStats;
use portcullis_telemetry::metrics::{MetricError, Metrics};

use crate::{live::Live, observe::to_f64};

type Row = (&'static str, fn(&CacheStats) -> u64);

/// By how a request was answered.
const RESULTS: [Row; 6] = [
    ("hit", |stats| stats.hits),
    ("stale", |stats| stats.stale),
    ("revalidated", |stats| stats.revalidated),
    ("collapsed", |stats| stats.collapsed),
    ("miss", |stats| stats.misses),
    ("bypass", |stats| stats.bypassed),
];

/// What became of responses.
const EVENTS: [Row; 5] = [
    ("stored", |stats| stats.stored),
    ("abandoned", |stats| stats.abandoned),
    ("evicted", |stats| stats.evicted),
    ("purged", |stats| stats.purged),
    ("invalidated", |stats| stats.invalidated),
];

/// What is there now.
const BYTES: [Row; 2] = [("stored", |stats| stats.bytes), ("filling", |stats| stats.filling)];

pub(crate) fn bind(metrics: &Metrics, live: &Arc<ArcSwap<Live>>) -> Result<(), MetricError> {
    let counters: [(&str, &str, &str, &'static [Row]); 2] = [
        (
            "portcullis_cache_requests_total",
            "Requests that came to the cache, by how they were answered: hit, stale, revalidated, collapsed (from another's response), miss, bypass",
            "result",
            &RESULTS,
        ),
        (
            "portcullis_cache_responses_total",
            "Responses by what the cache did with them: stored, abandoned (on the way), evicted (for others), purged, invalidated (by an unsafe method)",
            "event",
            &EVENTS,
        ),
    ];
    for (name, help, label, rows) in counters {
        let live = Arc::clone(live);
        metrics.register_counter_series(name, help, label, move |series| {
            if let Some(stats) = stats(&live) {
                rows.iter().for_each(|(name, read)| series.push(name, read(&stats)));
            }
        })?;
    }
    let of = Arc::clone(live);
    metrics.register_gauge_series(
        "portcullis_cache_bytes",
        "Bytes that the cache holds: stored, and filling (on their way into it)",
        "of",
        move |series| {
            if let Some(stats) = stats(&of) {
                BYTES.iter().for_each(|(name, read)| series.push(name, to_f64(read(&stats))));
            }
        },
    )?;
    let of = Arc::clone(live);
    metrics.register_gauge_fn("portcullis_cache_entries", "Keys in the cache", move || {
        stats(&of).map_or(0.0, |stats| to_f64(stats.entries))
    })
}

fn stats(live: &ArcSwap<Live>) -> Option<CacheStats> {
    live.load().cache.as_ref().map(portcullis_cache::CacheLayer::stats)
}
