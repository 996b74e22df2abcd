//! What a `[[route]]` changes on the way to a cluster and back.

use http::{HeaderName, HeaderValue};
use portcullis_edge::{
    plan::{MirrorPlan, RewritePlan, UpstreamHost},
    proxy::{
        FieldEdits, PathMatch,
        mirror::MirrorOptions,
        rewrite::{Rewrite, RewriteError},
    },
};
use toml::de::DeValue;

use super::matches::{header_name, pairs};
use crate::{
    errors::escape,
    net::path,
    reader::{Read, Spanned, Table, Wrong},
    values::{integer, size, text},
};

/// What the target becomes. The keys exclude one another, but for a prefix that is replaced by another.
pub(super) fn rewrite(table: &mut Table<'_, '_>, route: Option<&PathMatch>) -> Option<RewritePlan> {
    let keys = ["strip_prefix", "replace_prefix", "rewrite"];
    let [strip_at, replace_at, rewrite_at] = keys.map(|key| table.key_span(key));
    if let (Some(at), true) = (&rewrite_at, strip_at.is_some() || replace_at.is_some()) {
        let wrong = Wrong::new("`rewrite` does not go with `strip_prefix` and `replace_prefix`");
        table.sink().error(at.clone(), wrong.hint("it says the whole path"));
    }
    let strip = table.get("strip_prefix", path);
    let replace = table.get("replace_prefix", path);
    let rewrite = table.get("rewrite", |value| text(value).map(str::to_owned));
    let (plan, at) = if let Some(text) = rewrite {
        let at = text.span();
        (RewritePlan::Template(text.into_inner()), at)
    } else {
        let at = replace.as_ref().or(strip.as_ref())?.span();
        let from = strip.map(Spanned::into_inner);
        let to = replace.map_or_else(|| "/".to_owned(), Spanned::into_inner);
        (RewritePlan::Prefix { from, to }, at)
    };
    // an error in the route's own path is told there
    if let Some(route) = route
        && let Err(error) = check(&plan, route)
    {
        table.sink().error(at, Wrong::new(escape(&error.to_string())).hint(hint(&error)));
        return None;
    }
    Some(plan)
}

fn check(plan: &RewritePlan, route: &PathMatch) -> Result<(), RewriteError> {
    match plan {
        RewritePlan::Template(text) => Rewrite::template(text, route).map(drop),
        RewritePlan::Prefix { from, to } => {
            let from = match (from, route) {
                (Some(from), _) => from,
                (None, PathMatch::Prefix(prefix)) => prefix,
                (None, other) => return Err(RewriteError::NotBelow(other.to_string())),
            };
            Rewrite::replace_prefix(from, to, route).map(drop)
        }
        _ => Ok(()),
    }
}

pub(super) fn hint(error: &RewriteError) -> &'static str {
    match error {
        RewriteError::NotBelow(_) => {
            "the route's `path`, `exact` or `segments` must be at or below the prefix; with `regex` use `rewrite`"
        }
        RewriteError::UnknownCapture { .. } => {
            "names come from the route's `segments`, `regex` or `path` (`rest`)"
        }
        _ => "for example \"/users/{id}\"",
    }
}

/// The `Host` that a cluster sees.
pub(super) fn upstream_host(value: &DeValue<'_>) -> Read<UpstreamHost> {
    match text(value)? {
        "keep" => Ok(UpstreamHost::Keep),
        "endpoint" => Ok(UpstreamHost::Endpoint),
        text => host(text).map(UpstreamHost::Value).map_err(|Wrong { hint, .. }| Wrong {
            message: "wants \"keep\", \"endpoint\" or a host".to_owned(),
            hint,
        }),
    }
}

/// A value of `Host`.
pub(in crate::lower) fn host(text: &str) -> Read<HeaderValue> {
    let sound = portcullis_edge::proxy::host::HostPort::parse(text.as_bytes()).is_some();
    let host = HeaderValue::from_str(text).ok().filter(|_| sound);
    host.ok_or_else(|| {
        Wrong::new("wants a host").hint("a host with or without port, as in \"app.internal:8080\"")
    })
}

/// The keys that change the fields of one direction.
pub(super) struct EditKeys {
    set: &'static str,
    add: &'static str,
    remove: &'static str,
}

pub(super) const REQUEST: EditKeys =
    EditKeys { set: "set_request_headers", add: "add_request_headers", remove: "remove_request_headers" };

pub(super) const RESPONSE: EditKeys =
    EditKeys { set: "set_response_headers", add: "add_response_headers", remove: "remove_response_headers" };

pub(super) fn edits(table: &mut Table<'_, '_>, keys: &EditKeys) -> FieldEdits {
    let mut edits = FieldEdits::default();
    let remove = table.list(keys.remove, "\"x-name\"", |value| protected(header_name(text(value)?)?));
    for name in remove.map(Spanned::into_inner).unwrap_or_default() {
        edits = edits.clone().remove(name.into_inner()).unwrap_or(edits);
    }
    let name = |name: &str| protected(header_name(name)?);
    for (header, value) in fields(table, keys.set, name) {
        edits = edits.clone().set(header, value).unwrap_or(edits);
    }
    for (header, value) in fields(table, keys.add, name) {
        edits = edits.clone().add(header, value).unwrap_or(edits);
    }
    edits
}

fn fields(
    table: &mut Table<'_, '_>,
    key: &'static str,
    name: impl Fn(&str) -> Read<HeaderName>,
) -> Vec<(HeaderName, HeaderValue)> {
    table.get(key, |value| pairs(value, &name, field_value(0))).map(Spanned::into_inner).unwrap_or_default()
}

/// A name that a route may change, and that may say who the user is.
pub(in crate::lower) fn protected(name: HeaderName) -> Read<HeaderName> {
    FieldEdits::default().remove(name.clone()).map_err(|_| {
        let hint = if name == http::header::HOST {
            "`upstream_host` says which Host a cluster sees"
        } else {
            "fields of the message's frame and of one hop are the edge's own"
        };
        Wrong::new("is not a route's to change").hint(hint)
    })?;
    Ok(name)
}

/// The value of a field, of so many characters at least.
pub(in crate::lower) fn field_value(least: usize) -> impl Fn(&DeValue<'_>) -> Read<HeaderValue> {
    const LONGEST: usize = 4 << 10;
    move |value| {
        let text = text(value)?;
        // RFC 9110 section 5.5: visible ASCII and spaces, and no space at the ends
        let sound = (least..=LONGEST).contains(&text.len())
            && text.trim() == text
            && text.bytes().all(|b| matches!(b, b' '..=b'~'));
        sound.then(|| HeaderValue::from_str(text).ok()).flatten().ok_or_else(|| {
            let hint = format!("{least} to {LONGEST} printable ASCII characters in one line");
            Wrong::new("is no value of a field").hint(hint)
        })
    }
}

/// `mirror = { cluster = "shadow", … }`.
pub(super) fn mirror(table: &mut Table<'_, '_>) -> Option<(Spanned<String>, MirrorPlan)> {
    let mut table = table.table("mirror", "`mirror`")?;
    let cluster = table.need("cluster", "\"shadow\"", |value| text(value).map(str::to_owned));
    let mut options = MirrorOptions::default();
    table.set("percent", &mut options.percent, integer(1..=100));
    table.set("max_body", &mut options.max_body, size(0..=16 << 20));
    table.set("max_in_flight", &mut options.max_in_flight, integer(1..=10_000));
    table.finish();
    let cluster = cluster?;
    let mut plan = MirrorPlan::new(cluster.get_ref());
    plan.options = options;
    Some((cluster, plan))
}
