//! `[[route]]`, and `[paths]` before all of them.

pub(in crate::lower) mod changes;
pub(in crate::lower) mod matches;

use std::ops::Range;

use http::StatusCode;
use portcullis_edge::{
    cache::CacheOptions,
    middleware::files::FileOptions,
    plan::{EarlyPlan, RewritePlan, RouteAction, RoutePlan, UpstreamHost},
    proxy::{EncodedSlash, PathMatch, PathRules, RouteMatch, rewrite::RedirectTarget},
};
use toml::de::DeValue;

use super::{There, chain::shaping};
use crate::{
    disk,
    errors::escape,
    net::{final_status, redirect_status, redirect_target},
    reader::{Read, Spanned, Table, Wrong, items},
    values::{boolean, choice, integer, text, word},
};

/// A route with what the checks point at.
pub(crate) struct Route {
    /// Every cluster that it names.
    pub(crate) clusters: Vec<Spanned<String>>,
    pub(crate) span: Range<usize>,
    /// `None` when it was not read without an error.
    pub(crate) matches: Option<RouteMatch>,
    /// Where it asks for the endpoint's own name, with the number of its own clusters among those above.
    pub(crate) endpoint_host: Option<(Range<usize>, usize)>,
    pub(crate) plan: Option<RoutePlan>,
}

/// The actions, each by its key.
const ACTIONS: &[&str] = &["cluster", "clusters", "redirect", "respond", "files"];

/// What goes with `files` alone.
const FILES: &[&str] = &["index", "fallback", "hidden_files", "precompressed", "cache_control"];

/// What goes with forwarding alone.
const FORWARDING: &[&str] = &[
    "strip_prefix",
    "replace_prefix",
    "rewrite",
    "upstream_host",
    "mirror",
    "set_request_headers",
    "add_request_headers",
    "remove_request_headers",
];

/// The most bytes of a fixed answer. It is held in memory once and goes out in one write.
const LONGEST_ANSWER: usize = 64 << 10;

pub(crate) fn paths(root: &mut Table<'_, '_>) -> PathRules {
    let mut rules = PathRules::default();
    let Some(mut table) = root.table("paths", "`[paths]`") else { return rules };
    table.set("normalise", &mut rules.normalise, boolean);
    table.set("merge_slashes", &mut rules.merge_slashes, boolean);
    let slashes = [("keep", EncodedSlash::Keep), ("reject", EncodedSlash::Reject)];
    table.set("encoded_slash", &mut rules.encoded_slash, choice(&slashes));
    table.finish();
    rules
}

pub(super) fn read(mut table: Table<'_, '_>, store: Option<&CacheOptions>, there: There) -> Route {
    let span = table.span();
    let matches = matches::read(&mut table);
    let first = one_action(&mut table);
    misplaced(&mut table, first);

    let mut clusters = Vec::new();
    let action = action(&mut table, first, matches.as_ref(), &mut clusters);
    let own = clusters.len();
    let mut early_data = EarlyPlan::default();
    let early = [
        ("by-method", EarlyPlan::ByMethod),
        ("serve", EarlyPlan::Serve),
        ("hold", EarlyPlan::Hold),
        ("refuse", EarlyPlan::Refuse),
    ];
    table.set("early_data", &mut early_data, choice(&early));
    let rewrite = changes::rewrite(&mut table, matches.as_ref().map(|matches| &matches.path));
    let host = table.get("upstream_host", changes::upstream_host);
    let endpoint_host =
        host.as_ref().filter(|host| *host.get_ref() == UpstreamHost::Endpoint).map(|host| (host.span(), own));
    let request_fields = changes::edits(&mut table, &changes::REQUEST);
    let response_fields = changes::edits(&mut table, &changes::RESPONSE);
    let content_type = table.get("content_type", changes::field_value(0)).map(Spanned::into_inner);
    let mirror = changes::mirror(&mut table).map(|(cluster, mirror)| {
        clusters.push(cluster);
        mirror
    });
    let chain = super::chain::of_route(&mut table, store, there, &mut clusters);
    let access_log = super::log::of_route(&mut table, there);
    let mut name = None;
    table.set("name", &mut name, super::log::route_name);
    table.finish();

    let plan = matches.clone().zip(action).map(|(matches, action)| {
        let mut plan = RoutePlan::matching(matches, action);
        plan.early_data = early_data;
        match &mut plan.action {
            RouteAction::Files(files) => files.strip_prefix = stripped(rewrite, &plan.matches),
            _ => plan.rewrite = rewrite,
        }
        plan.upstream_host = host.map(Spanned::into_inner).unwrap_or_default();
        plan.request_fields = request_fields;
        plan.response_fields = response_fields;
        plan.content_type = content_type;
        plan.mirror = mirror;
        plan.chain = chain;
        plan.access_log = access_log;
        plan.name = name;
        plan
    });
    Route { clusters, span, matches, endpoint_host, plan }
}

/// What is taken off a path before a file is looked for.
fn stripped(rewrite: Option<RewritePlan>, matches: &RouteMatch) -> Option<String> {
    match (rewrite?, &matches.path) {
        (RewritePlan::Prefix { from: Some(from), .. }, _) => Some(from),
        (RewritePlan::Prefix { from: None, .. }, PathMatch::Prefix(path)) => Some(path.clone()),
        _ => None,
    }
}

/// The key of the one thing that a route does.
fn one_action(table: &mut Table<'_, '_>) -> Option<&'static str> {
    let actions: Vec<_> = ACTIONS.iter().filter_map(|key| Some((*key, table.key_span(key)?))).collect();
    match &actions[..] {
        [] => {
            let wrong = Wrong::new("the `[[route]]` does nothing").hint(
                "add `cluster = \"app\"`, `redirect = \"https://example.com\"`, `respond = \"text\"` or `files = \"/srv/www\"`",
            );
            table.sink().absent(table.span(), wrong);
        }
        [(first, _), rest @ ..] => {
            for (key, at) in rest {
                let wrong = Wrong::new(format!("`{key}` does not go with `{first}`"));
                table.sink().error(at.clone(), wrong.hint("a route does one thing"));
            }
        }
    }
    actions.first().map(|(key, _)| *key)
}

/// Keys that mean nothing with what the route does.
fn misplaced(table: &mut Table<'_, '_>, action: Option<&str>) {
    let forwards = matches!(action, Some("cluster" | "clusters"));
    let wrong = |key: &str, with: &str| Wrong::new(format!("`{key}` goes only with {with}"));
    if action.is_some() && !forwards {
        // a prefix is taken off for files too
        for key in FORWARDING.iter().filter(|key| action != Some("files") || **key != "strip_prefix") {
            if let Some(at) = table.key_span(key) {
                table.sink().error(at, wrong(key, "`cluster` and `clusters`"));
            }
        }
    }
    let of_files = FILES.iter().map(|key| (*key, "files"));
    for (key, with) in [("content_type", "respond"), ("keep_query", "redirect")].into_iter().chain(of_files) {
        if let Some(at) = table.key_span(key)
            && action.is_some_and(|action| action != with)
        {
            table.sink().error(at, wrong(key, &format!("`{with}`")));
        }
    }
}

fn action(
    table: &mut Table<'_, '_>,
    first: Option<&str>,
    matches: Option<&RouteMatch>,
    clusters: &mut Vec<Spanned<String>>,
) -> Option<RouteAction> {
    let cluster = table.get("cluster", |value| text(value).map(str::to_owned));
    let split = split(table, clusters);
    let redirect = table.get("redirect", redirect_target);
    let keep_query = table.get("keep_query", boolean).map(Spanned::into_inner);
    let respond = table.get("respond", answer);
    let files = files(table);
    let status = status(table, first, respond.as_ref());
    let action = match first? {
        "files" => files.map(RouteAction::Files),
        "cluster" => cluster.as_ref().map(|name| RouteAction::Forward { cluster: name.get_ref().clone() }),
        "clusters" => split.map(|clusters| RouteAction::Split { clusters }),
        "redirect" => {
            let redirect = redirect?;
            if let Some(matches) = matches
                && let Err(error) = RedirectTarget::new(redirect.get_ref(), keep_query, &matches.path)
            {
                let wrong = Wrong::new(escape(&error.to_string())).hint(changes::hint(&error));
                table.sink().error(redirect.span(), wrong);
            }
            let status = status.unwrap_or(StatusCode::PERMANENT_REDIRECT);
            Some(RouteAction::Redirect { to: redirect.into_inner(), status, keep_query })
        }
        "respond" => respond.map(|body| RouteAction::Respond {
            status: status.unwrap_or(StatusCode::OK),
            body: body.into_inner(),
        }),
        _ => None,
    };
    clusters.extend(cluster);
    action
}

fn files(table: &mut Table<'_, '_>) -> Option<FileOptions> {
    let root = table.get("files", disk::path);
    let mut options = FileOptions::new(root.as_ref().map(|root| root.get_ref().clone()).unwrap_or_default());
    if let Some(index) = table.list("index", "\"index.html\"", below_root) {
        options.index = items(Some(index));
    }
    options.fallback = table.get("fallback", below_root).map(Spanned::into_inner);
    table.set("hidden_files", &mut options.hidden, boolean);
    if let Some((codings, _)) = table.list_or_empty("precompressed", "\"gzip\"", choice(&shaping::CODINGS)) {
        options.precompressed = items(Some(codings));
    }
    options.cache_control = table.get("cache_control", changes::field_value(0)).map(Spanned::into_inner);
    root.map(|_| options)
}

/// A path of a file below the directory.
fn below_root(value: &DeValue<'_>) -> Read<String> {
    let text = word(value, "a file's path", "index.html")?;
    let sound = text.split('/').all(|name| !matches!(name, "" | "." | "..")) && !text.contains('\\');
    sound.then(|| text.to_owned()).ok_or_else(|| {
        Wrong::new(format!("is no path below the directory: \"{}\"", escape(text)))
            .hint("for example \"index.html\"")
    })
}

/// `clusters = [{ name = "a", weight = 9 }, …]`.
fn split(table: &mut Table<'_, '_>, clusters: &mut Vec<Spanned<String>>) -> Option<Vec<(String, u32)>> {
    const MOST: usize = 100;
    let at = table.key_span("clusters");
    let mut shares = Vec::new();
    for mut share in table.tables("clusters", "`clusters`") {
        let name = share.need("name", "\"app\"", |value| text(value).map(str::to_owned));
        let mut weight = 1_u32;
        share.set("weight", &mut weight, integer(0..=10_000));
        share.finish();
        if let Some(name) = name {
            shares.push((name.get_ref().clone(), weight));
            clusters.push(name);
        }
    }
    let at = at?;
    if shares.len() > MOST || shares.iter().all(|(_, weight)| *weight == 0) {
        let wrong =
            Wrong::new(format!("`clusters` wants 1 to {MOST} clusters, one of them with a weight above 0"));
        table.sink().error(at, wrong.hint("for example `[{ name = \"a\", weight = 9 }, { name = \"b\" }]`"));
        return None;
    }
    Some(shares)
}

fn answer(value: &DeValue<'_>) -> Read<String> {
    let text = text(value)?;
    if text.len() > LONGEST_ANSWER {
        return Err(Wrong::new(format!("has {} bytes, more than {LONGEST_ANSWER}", text.len()))
            .hint("serve it from a cluster"));
    }
    Ok(text.to_owned())
}

fn status(
    table: &mut Table<'_, '_>,
    action: Option<&str>,
    body: Option<&Spanned<String>>,
) -> Option<StatusCode> {
    match action {
        Some("redirect") => table.get("status", redirect_status).map(Spanned::into_inner),
        Some("cluster" | "clusters" | "files") => {
            if let Some(at) = table.key_span("status") {
                let wrong = Wrong::new("`status` goes only with `redirect` and `respond`");
                table.sink().error(at, wrong.hint("endpoints and files have their own"));
            }
            table.get("status", final_status).map(Spanned::into_inner)
        }
        _ => {
            let status = table.get("status", final_status)?;
            let code = status.get_ref().as_u16();
            // RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5: these have no content
            if matches!(code, 204 | 205 | 304) && body.is_some_and(|body| !body.get_ref().is_empty()) {
                let wrong = Wrong::new(format!("`status` {code} is sent without a body"));
                table.sink().error(status.span(), wrong.hint("write `respond = \"\"`, or another status"));
            }
            Some(status.into_inner())
        }
    }
}
