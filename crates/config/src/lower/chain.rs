//! What requests pass on their way: `[security_headers]`, `[rate_limit]`, `[filter]`, `[cache]` and those of `shaping`, at the top level for all routes and in
//! a `[[route]]` for its own.

pub(super) mod shaping;

mod cache;

use std::num::NonZeroU32;

use http::HeaderValue;
use portcullis_edge::{
    middleware::{
        filter::FilterRules,
        rate_limit::{RateLimitOptions, RateRule},
        security_headers::{FrameOptions, SecurityHeaders},
    },
    plan::{ChainPlan, Plan, Setting},
};
use toml::de::DeValue;

use super::route::header_name;
use crate::{
    net::path,
    reader::{Read, Table, Wrong},
    values::{boolean, choice, duration, integer, ms, secs, text, whole_seconds},
};

/// The edge's.
pub(crate) fn read(root: &mut Table<'_, '_>, plan: &mut Plan) {
    plan.chain = common(root, &EDGE);
    plan.request_id = root.table("request_id", "`[request_id]`").map(shaping::request_id);
    if let Some((options, rules)) = root.table("cache", "`[cache]`").map(cache::read) {
        plan.cache = Some(options);
        plan.chain.cache = Setting::Own(rules);
    }
}

/// A route's own.
pub(crate) fn of_route(route: &mut Table<'_, '_>) -> ChainPlan {
    let mut chain = common(route, &ROUTE);
    chain.cache = route.setting("cache", "`[route.cache]`", |table| Some(cache::of_route(table)));
    chain
}

/// How messages call the tables.
struct Names {
    security_headers: &'static str,
    rate_limit: &'static str,
    filter: &'static str,
    shaping: shaping::Names,
}

const EDGE: Names = Names {
    security_headers: "`[security_headers]`",
    rate_limit: "`[rate_limit]`",
    filter: "`[filter]`",
    shaping: shaping::EDGE,
};

const ROUTE: Names = Names {
    security_headers: "`[route.security_headers]`",
    rate_limit: "`[route.rate_limit]`",
    filter: "`[route.filter]`",
    shaping: shaping::ROUTE,
};

/// What reads alike in both places.
fn common(table: &mut Table<'_, '_>, names: &Names) -> ChainPlan {
    let mut chain = ChainPlan::default();
    chain.security_headers =
        table.setting("security_headers", names.security_headers, |table| Some(security_headers(table)));
    chain.rate_limit = table.setting("rate_limit", names.rate_limit, rate_limit);
    chain.filter = table.setting("filter", names.filter, filter);
    shaping::read(table, &names.shaping, &mut chain);
    chain
}

fn filter(mut filter: Table<'_, '_>) -> Option<FilterRules> {
    let deny = filter.need_list("deny", "\"/.git\"", path);
    for all in deny.iter().flat_map(|deny| deny.get_ref()).filter(|path| path.get_ref() == "/") {
        filter.sink().warn(all.span(), Wrong::new("`/` denies every path"));
    }
    filter.finish();
    Some(FilterRules::deny_prefixes(deny?.into_inner().into_iter().map(|path| path.into_inner())))
}

fn security_headers(mut table: Table<'_, '_>) -> SecurityHeaders {
    let at = table.span();
    let mut headers = SecurityHeaders::default();
    let presets: [(_, fn() -> SecurityHeaders); 3] = [
        ("default", SecurityHeaders::default),
        ("strict", SecurityHeaders::strict),
        ("api", SecurityHeaders::api),
    ];
    if let Some(preset) = table.get("preset", choice(&presets)) {
        headers = preset.into_inner()();
    }
    table.set("nosniff", &mut headers.nosniff, boolean);
    let frames =
        [("same-origin", Some(FrameOptions::SameOrigin)), ("deny", Some(FrameOptions::Deny)), ("off", None)];
    table.set("frame_options", &mut headers.frame_options, choice(&frames));
    table.set("hsts", &mut headers.hsts, or_off(whole_seconds(secs(0)..=secs(10 * 365 * 86_400))));
    table.set("hsts_include_subdomains", &mut headers.hsts_include_subdomains, boolean);
    table.set("hsts_preload", &mut headers.hsts_preload, boolean);
    for (key, to) in [
        ("referrer_policy", &mut headers.referrer_policy),
        ("content_security_policy", &mut headers.content_security_policy),
        ("content_security_policy_report_only", &mut headers.content_security_policy_report_only),
        ("permissions_policy", &mut headers.permissions_policy),
        ("cross_origin_opener_policy", &mut headers.cross_origin_opener_policy),
        ("cross_origin_embedder_policy", &mut headers.cross_origin_embedder_policy),
        ("cross_origin_resource_policy", &mut headers.cross_origin_resource_policy),
    ] {
        table.set(key, to, or_off(field_value));
    }
    table.set("replace", &mut headers.replace, boolean);
    if let Some((remove, _)) = table.list_or_empty("remove", "\"server\"", |value| header_name(text(value)?))
    {
        headers.remove = remove.into_inner().into_iter().map(|name| name.into_inner()).collect();
    }
    if let Err(error) = headers.check() {
        // values of fields are visible ASCII here, and not long
        table.sink().error(at, Wrong::new(error.to_string()));
    }
    table.finish();
    headers
}

/// `"off"`, or something.
fn or_off<T>(read: impl Fn(&DeValue<'_>) -> Read<T>) -> impl Fn(&DeValue<'_>) -> Read<Option<T>> {
    move |value| match value {
        DeValue::String(text) if *text == "off" => Ok(None),
        _ => read(value).map(Some),
    }
}

/// The value of a response field.
fn field_value(value: &DeValue<'_>) -> Read<HeaderValue> {
    const LONGEST: usize = 4 << 10;
    let text = text(value)?;
    // RFC 9110 section 5.5: visible ASCII and spaces, and no space at the ends
    let sound = !text.is_empty()
        && text.len() <= LONGEST
        && text.trim() == text
        && text.chars().all(|c| c == ' ' || c.is_ascii_graphic());
    sound.then(|| HeaderValue::from_str(text).ok()).flatten().ok_or_else(|| {
        Wrong::new("is no value for a response field")
            .hint(format!("1 to {LONGEST} printable ASCII characters in one line, or \"off\""))
    })
}

fn count(value: &DeValue<'_>) -> Read<NonZeroU32> {
    let count: u32 = integer(1..=1_000_000)(value)?;
    NonZeroU32::new(count).ok_or_else(|| Wrong::new("must not be 0"))
}

fn rate_limit(mut table: Table<'_, '_>) -> Option<RateLimitOptions> {
    let requests = table.need("requests", "100", count);
    let mut per = secs(1);
    table.set("per", &mut per, duration(ms(1)..=secs(86_400)));
    let burst = table.get("burst", count);
    let max_clients = table.get("max_clients", integer(1000..=100_000_000));
    table.finish();
    let mut rule = RateRule::new(requests?.into_inner(), per);
    if let Some(burst) = burst {
        rule.burst = burst.into_inner();
    }
    if let Some(max_clients) = max_clients {
        rule.max_keys = max_clients.into_inner();
    }
    Some(RateLimitOptions::new(rule))
}
