//! `[cache]`: the store, and the rules that go with it at the top level and with a route.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use portcullis_edge::cache::{
    Bypass, CacheOptions, CacheRules, DiskOptions, Heuristic, Query, SetCookie, StatusTtl,
};
use toml::de::DeValue;

use super::{super::route::matches::cookie_name, field};
use crate::{
    disk,
    net::path,
    reader::{Read, Table, Wrong, items},
    values::{boolean, choice, duration, integer, ms, secs, show_size, size, text, word},
};

/// The edge's: the store and its rules.
pub(super) fn read(mut table: Table<'_, '_>) -> (CacheOptions, CacheRules) {
    let mut options = CacheOptions::default();
    table.set("max_size", &mut options.max_bytes, size(1 << 20..=1 << 40));
    table.set("max_fill", &mut options.max_fill_bytes, size(1 << 20..=1 << 40));
    table.set("max_variants", &mut options.max_variants, integer(1..=64));
    table.set("max_background", &mut options.max_background, integer(1..=1_000_000));
    if let Some(table) = table.table("disk", "`[cache.disk]`") {
        options.disk = disk(table);
    }
    let rules = rules(table, Some(&options));
    (options, rules)
}

fn disk(mut table: Table<'_, '_>) -> Option<DiskOptions> {
    let path = table.need("path", "\"/var/cache/portcullis\"", disk::path);
    let mut options = DiskOptions::new(PathBuf::new());
    table.set("max_size", &mut options.max_bytes, size(64 << 20..=1 << 44));
    table.finish();
    options.path = path?.into_inner();
    Some(options)
}

/// A route's: rules alone, for the store that there is.
pub(super) fn of_route(table: Table<'_, '_>, store: Option<&CacheOptions>) -> CacheRules {
    rules(table, store)
}

fn rules(mut table: Table<'_, '_>, store: Option<&CacheOptions>) -> CacheRules {
    let mut rules = CacheRules::default();
    if let Some(object) = table.get("max_object", size(1 << 10..=1 << 30)) {
        let bounds = store.map(|store| [("max_size", store.max_bytes), ("max_fill", store.max_fill_bytes)]);
        for (key, most) in bounds.into_iter().flatten() {
            if *object.get_ref() > most {
                let wrong =
                    Wrong::new(format!("`max_object` is larger than `{key}`: it would never be stored"));
                table.sink().error(object.span(), wrong.hint(format!("`{key}` is {}", show_size(most))));
            }
        }
        rules.max_object_bytes = object.into_inner();
    } else if let Some(store) = store {
        // What nobody asked for is no error, and nothing larger than the store is kept.
        rules.max_object_bytes = rules.max_object_bytes.min(store.max_bytes).min(store.max_fill_bytes);
    }
    freshness(&mut table, &mut rules);
    key(&mut table, &mut rules);
    passing(&mut table, &mut rules);
    table.set("collapse", &mut rules.collapse, boolean);
    table.set("collapse_wait", &mut rules.collapse_wait, duration(ms(10)..=secs(600)));
    table.set("fetch_ranges", &mut rules.fetch_ranges, boolean);
    table.set("finish_fetch", &mut rules.finish_fetch, boolean);
    table.set("cache_status", &mut rules.cache_status, boolean);
    table.set("cache_status_key", &mut rules.cache_status_key, boolean);
    table.finish();
    rules
}

const LONGEST_STALE: Duration = secs(30 * 86_400);

fn freshness(table: &mut Table<'_, '_>, rules: &mut CacheRules) {
    table.set("max_ttl", &mut rules.max_ttl, duration(secs(1)..=secs(365 * 86_400)));
    table.set("keep_stale", &mut rules.keep_stale, duration(secs(0)..=LONGEST_STALE));
    let stale = || duration(secs(0)..=LONGEST_STALE);
    table.set("stale_while_revalidate", &mut rules.stale_while_revalidate, stale());
    table.set("stale_if_error", &mut rules.stale_if_error, stale());
    table.set("heuristic", &mut rules.heuristic, heuristic);
    let mut longest = Heuristic::default().max;
    let at = table.key_span("heuristic_max");
    table.set("heuristic_max", &mut longest, duration(secs(1)..=secs(365 * 86_400)));
    match (&mut rules.heuristic, at) {
        (Some(heuristic), _) => heuristic.max = longest,
        (None, Some(at)) => {
            let wrong = Wrong::new("`heuristic_max` bounds nothing without `heuristic`");
            table.sink().error(at, wrong.hint("add `heuristic = 10`, or leave it out"));
        }
        (None, None) => {}
    }
    for mut table in table.tables("ttl", "`ttl` of a cache") {
        let statuses = table.need("status", "\"404\"", statuses);
        let ttl = table.need("time", "\"1m\"", duration(secs(0)..=secs(365 * 86_400)));
        let mut overrides = false;
        table.set("override", &mut overrides, boolean);
        table.finish();
        if let (Some(statuses), Some(ttl)) = (statuses, ttl) {
            rules.ttl.push(StatusTtl { statuses: statuses.into_inner(), ttl: ttl.into_inner(), overrides });
        }
    }
    table.set("obey_request", &mut rules.obey_request, boolean);
    if let Some((targeted, _)) = table.list_or_empty("targeted", "\"cdn-cache-control\"", field) {
        rules.targeted = items(Some(targeted));
    }
    let choices = [("refuse", SetCookie::Refuse), ("strip", SetCookie::Strip), ("keep", SetCookie::Keep)];
    table.set("set_cookie", &mut rules.set_cookie, choice(&choices));
}

/// The keys that say which part of the query counts.
const QUERY_KEYS: [&str; 3] = ["query", "query_without", "query_only"];

fn key(table: &mut Table<'_, '_>, rules: &mut CacheRules) {
    let said: Vec<_> = QUERY_KEYS.iter().filter_map(|key| Some((*key, table.key_span(key)?))).collect();
    if let [(first, _), rest @ ..] = &said[..] {
        for (key, at) in rest {
            let wrong = Wrong::new(format!("`{key}` does not go with `{first}`"));
            table.sink().error(at.clone(), wrong.hint("one key says which part of the query counts"));
        }
    }
    let whole = table.get("query", choice(&[("all", true), ("none", false)]));
    let without = table.list("query_without", "\"utm_*\"", name);
    let only = table.list("query_only", "\"page\"", name);
    if let Some(without) = without {
        rules.query = Query::Without(items(Some(without)));
    } else if let Some(only) = only {
        rules.query = Query::Only(items(Some(only)));
    } else if whole.is_some_and(|whole| !whole.into_inner()) {
        rules.query = Query::Nothing;
    }
    table.set("sort_query", &mut rules.sort_query, boolean);
    if let Some(fields) = table.list("key_fields", "\"x-country\"", field) {
        rules.key_fields = items(Some(fields));
    }
    if let Some(cookies) = table.list("key_cookies", "\"theme\"", cookie) {
        rules.key_cookies = items(Some(cookies));
    }
}

fn passing(table: &mut Table<'_, '_>, rules: &mut CacheRules) {
    if let Some(cookies) = table.list("bypass_cookies", "\"session*\"", cookie) {
        rules.bypass.extend(cookies.into_inner().into_iter().map(|name| match name.into_inner() {
            name if name == "*" => Bypass::Cookies,
            name => Bypass::Cookie(name),
        }));
    }
    if let Some(fields) = table.list("bypass_fields", "\"x-preview\"", field) {
        rules.bypass.extend(fields.into_inner().into_iter().map(|name| Bypass::Field(name.into_inner())));
    }
    if let Some(paths) = table.list("bypass_paths", "\"/admin/\"", path) {
        rules.bypass.extend(paths.into_inner().into_iter().map(|path| Bypass::Path(path.into_inner())));
    }
}

/// Hundredths, or `"off"`.
fn heuristic(value: &DeValue<'_>) -> Read<Option<Heuristic>> {
    match value {
        DeValue::String(text) if *text == "off" => Ok(None),
        _ => integer(1..=100)(value).map(|percent| Some(Heuristic { percent, ..Heuristic::default() })),
    }
}

/// `404`, `5xx`, or `300-308`.
fn statuses(value: &DeValue<'_>) -> Read<RangeInclusive<u16>> {
    let text = word(value, "statuses", "404")?;
    let wrong = || {
        Wrong::new("names no statuses").hint("one as \"404\", a class as \"5xx\" or a range as \"300-308\"")
    };
    let status = |text: &str| {
        let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|status| digits && (200..=599).contains(status)).ok_or_else(wrong)
    };
    if let Some(class) = text.strip_suffix("xx") {
        let first: u16 = status(&format!("{class}00"))?;
        return Ok(first..=first + 99);
    }
    match text.split_once('-') {
        Some((first, last)) => {
            let (first, last) = (status(first)?, status(last)?);
            if first <= last { Ok(first..=last) } else { Err(wrong()) }
        }
        None => status(text).map(|status| status..=status),
    }
}

/// Of a cookie; that a `*` at the end of one of `bypass_cookies` stands for any rest is for the cache to know.
fn cookie(value: &DeValue<'_>) -> Read<String> {
    cookie_name(text(value)?)
}

/// Of a parameter; with `*` at its end for any rest.
fn name(value: &DeValue<'_>) -> Read<String> {
    let text = text(value)?;
    let sound = (1..=256).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'&' | b'=' | b';' | b','));
    sound.then(|| text.to_owned()).ok_or_else(|| {
        Wrong::new("is no name")
            .hint("1 to 256 characters as requests have them; a `*` at the end stands for any rest")
    })
}
