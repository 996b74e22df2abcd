//! `[[cluster]]`.

mod balance;
mod connection;
mod discovery;
mod health;

use std::{
    collections::HashSet,
    ops::{Range, RangeInclusive},
    time::Duration,
};

use portcullis_edge::{
    plan::ClusterPlan,
    upstream::{ClusterOptions, HedgeOptions},
};
use toml::de::DeValue;

use crate::{
    errors::escape,
    reader::{Read, Spanned, Table, Wrong, describe, items},
    values::{boolean, duration, integer, ms, secs, size, word},
};

/// A cluster with what the checks point at.
pub(crate) struct Cluster {
    /// As it was written, even if it can't be a name: a route that names it means this one.
    pub(crate) name: Option<Spanned<String>>,
    pub(crate) span: Range<usize>,
    pub(crate) plan: Option<ClusterPlan>,
}

fn timeout() -> impl Fn(&DeValue<'_>) -> Read<Duration> {
    duration(ms(10)..=secs(24 * 3600))
}

/// Times and bounds of connections and requests.
fn limits(table: &mut Table<'_, '_>, to: &mut ClusterOptions) {
    table.set("connect_timeout", &mut to.connect_timeout, timeout());
    table.set("tls_timeout", &mut to.tls_timeout, timeout());
    table.set("response_timeout", &mut to.response_timeout, timeout());
    table.set("read_timeout", &mut to.read_timeout, timeout());
    table.set("write_timeout", &mut to.write_timeout, timeout());
    table.set("request_timeout", &mut to.request_timeout, timeout());
    to.total_timeout = table.get("total_timeout", timeout()).map(Spanned::into_inner);
    table.set("continue_timeout", &mut to.continue_timeout, timeout());
    table.set("queue_timeout", &mut to.queue_timeout, timeout());
    table.set("idle_timeout", &mut to.idle_timeout, timeout());
    to.max_age = table.get("max_age", duration(secs(1)..=secs(365 * 86_400))).map(Spanned::into_inner);
    to.max_requests_per_connection =
        table.get("max_requests_per_connection", integer(1..=1_000_000_000)).map(Spanned::into_inner);
    table.set("max_idle", &mut to.max_idle, integer(0..=100_000));
    table.set("min_idle", &mut to.min_idle, integer(0..=1000));
    table.set("max_connections", &mut to.max_connections, integer(1..=1_000_000));
    table.set("max_requests", &mut to.max_requests, integer(1..=10_000_000));
    table.set("max_pending", &mut to.max_pending, integer(0..=1_000_000));
    table.set("max_head_size", &mut to.max_head_bytes, size(4 << 10..=1 << 20));
    table.set("h2_max_streams", &mut to.http2.max_streams, integer(1..=10_000));
    table.set("h2_stream_window", &mut to.http2.stream_window, size(64 << 10..=16 << 20));
    table.set("h2_connection_window", &mut to.http2.connection_window, size(64 << 10..=64 << 20));
    table.set("h2_ping_interval", &mut to.http2.ping_interval, timeout());
    table.set("h2_ping_timeout", &mut to.http2.ping_timeout, timeout());
}

/// What is tried again, and when an endpoint is left alone.
fn retry(table: &mut Table<'_, '_>, to: &mut ClusterOptions) {
    table.set("max_fails", &mut to.outlier.consecutive_failures, integer(0..=1000));
    table.set("max_gateway_errors", &mut to.outlier.consecutive_gateway, integer(0..=1000));
    table.set("max_server_errors", &mut to.outlier.consecutive_5xx, integer(0..=1000));
    table.set("fail_timeout", &mut to.outlier.base_ejection, timeout());
    table.set("max_fail_timeout", &mut to.outlier.max_ejection, timeout());
    table.set("max_ejected", &mut to.outlier.max_ejected_percent, integer(0..=100));
    let retry = &mut to.retry;
    table.set("max_attempts", &mut retry.attempts, integer(1..=10));
    if let Some(list) = table.list("retry_statuses", "\"502-504\"", status_range) {
        retry.statuses = items(Some(list));
    }
    table.set("retry_on_timeout", &mut retry.on_timeout, boolean);
    table.set("retry_buffer", &mut retry.replay_bytes, size(0..=16 << 20));
    table.set("retry_percent", &mut retry.budget_percent, integer(0..=100));
    table.set("retry_min", &mut retry.budget_min, integer(0..=100_000));
    table.set("retry_backoff", &mut retry.backoff, duration(ms(0)..=secs(1)));
    to.hedge = table
        .get("hedge_after", duration(ms(1)..=secs(3600)))
        .map(|after| HedgeOptions::new(after.into_inner()));
}

/// `502`, or `500-504`.
pub(super) fn status_range(value: &DeValue<'_>) -> Read<RangeInclusive<u16>> {
    let wrong = || {
        Wrong::new(format!("wants a status or a range of them, found {}", describe(value)))
            .hint("such as 503 or \"500-504\", from 100 to 599")
    };
    let number = |text: &str| text.trim().parse::<u16>().ok().filter(|status| (100..=599).contains(status));
    let (from, to) = match value {
        DeValue::Integer(_) => {
            let one = integer::<u16>(100..=599)(value)?;
            (one, one)
        }
        DeValue::String(text) => match text.split_once('-') {
            Some((from, to)) => (number(from).ok_or_else(wrong)?, number(to).ok_or_else(wrong)?),
            None => {
                let one = number(text).ok_or_else(wrong)?;
                (one, one)
            }
        },
        _ => return Err(wrong()),
    };
    if from > to { Err(wrong()) } else { Ok(from..=to) }
}

pub(crate) fn read(mut table: Table<'_, '_>) -> Cluster {
    let span = table.span();
    let name = table.need("name", "\"app\"", |value| word(value, "a name", "app").map(str::to_owned));
    if let Some(name) = &name {
        let text = name.get_ref();
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if text.is_empty() || text.len() > 64 || !text.chars().all(fits) {
            let wrong = Wrong::new(format!("`name` wants a name, found \"{}\"", escape(text))).hint(
                "1 to 64 of the characters a-z, A-Z, 0-9, `.`, `_` and `-`; it stands in logs and metrics",
            );
            table.sink().error(name.span(), wrong);
        }
    }
    let (endpoints, discovery) = discovery::read(&mut table);
    if let Some(endpoints) = &endpoints {
        let mut seen = HashSet::new();
        for endpoint in endpoints.get_ref() {
            let address = &endpoint.get_ref().address;
            if !seen.insert(address) {
                let wrong = Wrong::new(format!("the endpoint {address} is listed twice"));
                table.sink().error(endpoint.span(), wrong.hint("remove one"));
            }
        }
    }
    let mut plan = ClusterPlan::new(
        name.as_ref().map(|name| name.get_ref().as_str()).unwrap_or_default(),
        endpoints.iter().flat_map(|list| list.get_ref()).map(|endpoint| endpoint.get_ref().clone()),
    );
    let whole = name.is_some() && (endpoints.is_some() || discovery.is_some());
    plan.discovery = discovery;
    connection::read(&mut table, &mut plan);
    limits(&mut table, &mut plan.options);
    balance::read(&mut table, &mut plan);
    retry(&mut table, &mut plan.options);
    plan.health = table.table("health", "`[cluster.health]`").and_then(health::read);
    table.finish();

    Cluster { name, span, plan: whole.then_some(plan) }
}
