//! What requests pass on their way: `[security_headers]`, `[rate_limit]`, `[filter]`, who may pass, `[cache]` and those of `shaping`, at the top level for all
//! routes and in a `[[route]]` for its own.

mod admission;
mod filter;
pub(super) mod shaping;

mod cache;

pub(super) mod rate_limit;

use http::HeaderName;
use portcullis_edge::{
    cache::CacheOptions,
    middleware::security_headers::{FrameOptions, SecurityHeaders},
    plan::{ChainPlan, Plan, Setting},
};
use toml::de::DeValue;

use self::admission::Named;
use super::{
    There,
    route::{changes::field_value, matches::header_name},
};
use crate::{
    reader::{Read, Table, Wrong, items},
    values::{boolean, choice, secs, text, whole_seconds},
};

/// The edge's. Gives the clusters that it names.
pub(super) fn read(root: &mut Table<'_, '_>, plan: &mut Plan, there: There) -> Named {
    let mut named = Named::new();
    plan.chain = common(root, &EDGE, there, &mut named);
    plan.request_id = root.table("request_id", "`[request_id]`").map(shaping::request_id);
    if let Some((options, rules)) = root.table("cache", "`[cache]`").map(cache::read) {
        plan.cache = Some(options);
        plan.chain.cache = Setting::Own(rules);
    }
    plan.rate_store = root.table("rate_limit_store", "`[rate_limit_store]`").and_then(rate_limit::store);
    named
}

/// A route's own, where this is the cache's store. The clusters that it names come to `named`.
pub(super) fn of_route(
    route: &mut Table<'_, '_>,
    store: Option<&CacheOptions>,
    there: There,
    named: &mut Named,
) -> ChainPlan {
    let mut chain = common(route, &ROUTE, there, named);
    let at = route.key_span("cache");
    chain.cache = route.setting("cache", "`[route.cache]`", |table| Some(cache::of_route(table, store)));
    if let (Some(at), Setting::Own(_), false) = (at, &chain.cache, there.cache) {
        let wrong = Wrong::new("`[route.cache]` has no cache to put anything into");
        route.sink().absent(at, wrong.hint("add a `[cache]` at the top level"));
    }
    chain
}

/// How messages call the tables.
struct Names {
    security_headers: &'static str,
    rate_limit: &'static str,
    filter: &'static str,
    filter_rule: &'static str,
    cors: &'static str,
    csrf: &'static str,
    basic_auth: &'static str,
    jwt: &'static str,
    forward_auth: &'static str,
    shaping: shaping::Names,
}

const EDGE: Names = Names {
    security_headers: "`[security_headers]`",
    rate_limit: "`[rate_limit]`",
    filter: "`[filter]`",
    filter_rule: "`[[filter.rule]]`",
    cors: "`[cors]`",
    csrf: "`[csrf]`",
    basic_auth: "`[basic_auth]`",
    jwt: "`[jwt]`",
    forward_auth: "`[forward_auth]`",
    shaping: shaping::EDGE,
};

const ROUTE: Names = Names {
    security_headers: "`[route.security_headers]`",
    rate_limit: "`[route.rate_limit]`",
    filter: "`[route.filter]`",
    filter_rule: "`[[route.filter.rule]]`",
    cors: "`[route.cors]`",
    csrf: "`[route.csrf]`",
    basic_auth: "`[route.basic_auth]`",
    jwt: "`[route.jwt]`",
    forward_auth: "`[route.forward_auth]`",
    shaping: shaping::ROUTE,
};

/// What reads alike in both places.
fn common(table: &mut Table<'_, '_>, names: &Names, there: There, named: &mut Named) -> ChainPlan {
    let mut chain = ChainPlan::default();
    chain.security_headers =
        table.setting("security_headers", names.security_headers, |table| Some(security_headers(table)));
    chain.rate_limit =
        table.settings("rate_limit", names.rate_limit, |tables| rate_limit::rules(tables, there));
    chain.filter = table.setting("filter", names.filter, |table| filter::read(table, names.filter_rule));
    chain.cors = table.setting("cors", names.cors, admission::cors);
    chain.csrf = table.setting("csrf", names.csrf, admission::csrf);
    chain.basic_auth = table.setting("basic_auth", names.basic_auth, admission::basic_auth);
    chain.jwt = table.setting("jwt", names.jwt, |table| admission::jwt(table, named));
    chain.forward_auth =
        table.setting("forward_auth", names.forward_auth, |table| admission::forward_auth(table, named));
    shaping::read(table, &names.shaping, &mut chain);
    chain
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
        table.set(key, to, or_off(field_value(1)));
    }
    table.set("replace", &mut headers.replace, boolean);
    if let Some((remove, _)) = table.list_or_empty("remove", "\"server\"", field) {
        headers.remove = items(Some(remove));
    }
    if let Err(error) = headers.check() {
        // values of fields are visible ASCII here, and not long
        table.sink().error(at, Wrong::new(error.to_string()));
    }
    table.finish();
    headers
}

/// The name of a field.
fn field(value: &DeValue<'_>) -> Read<HeaderName> {
    header_name(text(value)?)
}

/// `"off"`, or something.
fn or_off<T>(read: impl Fn(&DeValue<'_>) -> Read<T>) -> impl Fn(&DeValue<'_>) -> Read<Option<T>> {
    move |value| match value {
        DeValue::String(text) if *text == "off" => Ok(None),
        _ => read(value).map(Some).map_err(|Wrong { message, hint }| Wrong {
            message,
            hint: hint.map(|hint| format!("{hint}; or \"off\"")),
        }),
    }
}
