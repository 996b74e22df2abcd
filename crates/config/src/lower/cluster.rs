//! `[[cluster]]`.

use std::{collections::HashSet, ops::Range};

use portcullis_edge::plan::ClusterPlan;

use crate::{
    errors::escape,
    net::endpoint,
    reader::{Spanned, Table, Wrong},
    values::{duration, integer, ms, secs, size, word},
};

/// A cluster with what the checks point at.
pub(crate) struct Cluster {
    /// As it was written, even if it can't be a name: a route that names it means this one.
    pub(crate) name: Option<Spanned<String>>,
    pub(crate) span: Range<usize>,
    pub(crate) plan: Option<ClusterPlan>,
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
    let endpoints = table.need_list("endpoints", "\"127.0.0.1:3000\"", endpoint);
    if let Some(endpoints) = &endpoints {
        let mut seen = HashSet::new();
        for endpoint in endpoints.get_ref() {
            if !seen.insert(endpoint.get_ref()) {
                let wrong = Wrong::new(format!("the endpoint {} is listed twice", endpoint.get_ref()));
                table.sink().error(endpoint.span(), wrong.hint("remove one"));
            }
        }
    }
    let mut plan = ClusterPlan::new(
        name.as_ref().map(|name| name.get_ref().as_str()).unwrap_or_default(),
        endpoints.iter().flat_map(|list| list.get_ref()).map(|endpoint| endpoint.get_ref().as_str()),
    );
    let to = &mut plan.options;
    let timeout = || duration(ms(10)..=secs(24 * 3600));
    table.set("connect_timeout", &mut to.connect_timeout, timeout());
    table.set("response_timeout", &mut to.response_timeout, timeout());
    table.set("read_timeout", &mut to.read_timeout, timeout());
    table.set("write_timeout", &mut to.write_timeout, timeout());
    table.set("request_timeout", &mut to.request_timeout, timeout());
    table.set("idle_timeout", &mut to.idle_timeout, timeout());
    table.set("max_idle", &mut to.max_idle, integer(0..=100_000));
    table.set("max_connections", &mut to.max_connections, integer(1..=1_000_000));
    table.set("max_fails", &mut to.max_fails, integer(0..=1000));
    table.set("fail_timeout", &mut to.fail_timeout, timeout());
    table.set("max_attempts", &mut to.retry.attempts, integer(1..=10));
    table.set("max_head_size", &mut to.max_head_bytes, size(4 << 10..=1 << 20));
    table.finish();

    let whole = name.is_some() && endpoints.is_some();
    Cluster { name, span, plan: whole.then_some(plan) }
}
