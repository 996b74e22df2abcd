//! What a `[[route]]` asks of a request.

use std::cell::Cell;

use http::{HeaderName, Method};
use portcullis_edge::proxy::{
    PathMatch, RouteMatch, ValueMatch,
    matcher::{Protocol, Scheme},
};
use toml::de::DeValue;

use crate::{
    errors::escape,
    net::{host_pattern, network, path},
    reader::{Read, Spanned, Table, Wrong, describe},
    values::{choice, integer, text},
};

/// The keys that say which paths; a route has one of them at most.
const PATHS: &[&str] = &["path", "exact", "segments", "regex"];

/// The most items of one list of conditions.
const MOST: usize = 100;

/// `None` when something in it is wrong, which is told.
pub(super) fn read(table: &mut Table<'_, '_>) -> Option<RouteMatch> {
    let mut sound = true;
    let mut matches = RouteMatch::default();
    let asked = table.key_span("host").is_some();
    matches.host = table.get("host", host_pattern).map(Spanned::into_inner);
    sound &= asked == matches.host.is_some();
    sound &= one_path(table, &mut matches);
    sound &= set(table, "methods", "\"GET\"", method, &mut matches.methods);
    sound &= conditions(table, "headers", header_name, &mut matches.headers);
    sound &= conditions(table, "query", parameter_name, &mut matches.query);
    sound &= set(table, "clients", "\"10.0.0.0/8\"", network, &mut matches.clients);
    let protocols = [("http1", Protocol::Http1), ("http2", Protocol::Http2), ("http3", Protocol::Http3)];
    sound &= set(table, "protocols", "\"http2\"", choice(&protocols), &mut matches.protocols);
    let schemes = [("http", Scheme::Http), ("https", Scheme::Https)];
    let asked = ["scheme", "priority"].map(|key| table.key_span(key).is_some());
    let scheme = table.get("scheme", choice(&schemes)).map(Spanned::into_inner);
    let priority = table.get("priority", integer_i32).map(Spanned::into_inner);
    sound &= asked == [scheme.is_some(), priority.is_some()];
    matches.scheme = scheme;
    matches.priority = priority.unwrap_or_default();
    sound.then_some(matches)
}

fn one_path(table: &mut Table<'_, '_>, matches: &mut RouteMatch) -> bool {
    let given: Vec<_> = PATHS.iter().filter_map(|key| Some((*key, table.key_span(key)?))).collect();
    if let [(first, _), rest @ ..] = &given[..] {
        for (key, at) in rest {
            let wrong = Wrong::new(format!("`{key}` does not go with `{first}`"));
            table.sink().error(at.clone(), wrong.hint("a route says once which paths it is for"));
        }
    }
    let prefix = table.get("path", path).map(|path| PathMatch::Prefix(path.into_inner()));
    let exact = table.get("exact", path).map(|path| PathMatch::Exact(path.into_inner()));
    let segments = table.get("segments", pattern).map(|path| PathMatch::Segments(path.into_inner()));
    let regex = table.get("regex", expression).map(|path| PathMatch::Regex(path.into_inner()));
    let read = prefix.or(exact).or(segments).or(regex);
    let sound = given.is_empty() || (given.len() == 1 && read.is_some());
    if let Some(read) = read {
        matches.path = read;
    }
    sound
}

/// A list that replaces an empty one. Whether it was sound.
fn set<T>(
    table: &mut Table<'_, '_>,
    key: &'static str,
    example: &str,
    read: impl Fn(&DeValue<'_>) -> Read<T>,
    to: &mut Vec<T>,
) -> bool {
    let asked = table.key_span(key).is_some();
    let wrong = Cell::new(false);
    let list = table.list(key, example, |value| {
        let item = read(value);
        wrong.set(wrong.get() || item.is_err());
        item
    });
    let Some(list) = list else { return !asked };
    if list.get_ref().len() > MOST {
        let wrong = Wrong::new(format!("`{key}` has more than {MOST} items"));
        table.sink().error(list.span(), wrong);
        return false;
    }
    to.extend(list.into_inner().into_iter().map(Spanned::into_inner));
    !wrong.get()
}

/// A table of names and what their values have to be.
fn conditions<N>(
    table: &mut Table<'_, '_>,
    key: &'static str,
    name: impl Fn(&str) -> Read<N>,
    to: &mut Vec<(N, ValueMatch)>,
) -> bool {
    let asked = table.key_span(key).is_some();
    let found = table.get(key, |value| pairs(value, &name, |value| condition(value, expression)));
    let sound = asked == found.is_some();
    to.extend(found.map(Spanned::into_inner).unwrap_or_default());
    sound
}

/// The items of a table whose keys are the file's own.
pub(in crate::lower) fn pairs<N, T>(
    value: &DeValue<'_>,
    name: impl Fn(&str) -> Read<N>,
    read: impl Fn(&DeValue<'_>) -> Read<T>,
) -> Read<Vec<(N, T)>> {
    let DeValue::Table(table) = value else {
        return Err(Wrong::new(format!("wants a table of names and values, found {}", describe(value)))
            .hint("for example `{ \"x-name\" = \"value\" }`"));
    };
    if table.len() > MOST {
        return Err(Wrong::new(format!("has more than {MOST} items")));
    }
    let item = |(key, value): (&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
        let within = |Wrong { message, hint }: Wrong| Wrong {
            message: format!("has the item `{}`, which {message}", escape(key.get_ref())),
            hint,
        };
        Ok((name(key.get_ref()).map_err(within)?, read(value.get_ref()).map_err(within)?))
    };
    table.iter().map(item).collect()
}

const CONDITIONS: &str =
    "a string is the value itself; `true`: it is there; `false`: it is not; `{ regex = \"[0-9]+\" }`";

/// What the text of a regular expression may be is for `regex` to say.
pub(in crate::lower) fn condition(
    value: &DeValue<'_>,
    regex: impl Fn(&DeValue<'_>) -> Read<String>,
) -> Read<ValueMatch> {
    match value {
        DeValue::String(text) => Ok(ValueMatch::Exact(text.to_string())),
        DeValue::Boolean(true) => Ok(ValueMatch::Present),
        DeValue::Boolean(false) => Ok(ValueMatch::Absent),
        DeValue::Table(table) => match table.iter().next() {
            Some((key, value)) if table.len() == 1 && key.get_ref() == "regex" => {
                regex(value.get_ref()).map(ValueMatch::Regex)
            }
            _ => Err(Wrong::new("is no condition").hint(CONDITIONS)),
        },
        other => Err(Wrong::new(format!("is no condition: {}", describe(other))).hint(CONDITIONS)),
    }
}

pub(in crate::lower) fn header_name(name: &str) -> Read<HeaderName> {
    HeaderName::try_from(name).map_err(|_| Wrong::new("is no name of a field"))
}

/// The name of a cookie that another one set: browsers take what is no token too (RFC 6265 section 5.2), as `cart[1]`, but what has
/// `=` or `;` in it would never match.
pub(in crate::lower) fn cookie_name(name: &str) -> Read<String> {
    const LONGEST: usize = 256;
    let sound = |byte: u8| byte.is_ascii_graphic() && !b"=;,\"".contains(&byte);
    if !(1..=LONGEST).contains(&name.len()) || !name.bytes().all(sound) {
        let wrong = Wrong::new(format!("wants the name of a cookie, found \"{}\"", escape(name)));
        return Err(
            wrong.hint(format!("1 to {LONGEST} printable ASCII characters, none of `=` `;` `,` `\"`"))
        );
    }
    Ok(name.to_owned())
}

fn parameter_name(name: &str) -> Read<String> {
    if name.is_empty() || name.len() > 256 {
        return Err(Wrong::new("is no name of a parameter").hint("1 to 256 bytes, decoded"));
    }
    Ok(name.to_owned())
}

pub(in crate::lower) fn method(value: &DeValue<'_>) -> Read<Method> {
    let name = text(value)?;
    let upper = name.bytes().all(|b| b.is_ascii_uppercase() || b == b'-' || b == b'_');
    let method = Method::from_bytes(name.as_bytes()).ok().filter(|_| upper && name.len() <= 32);
    method.ok_or_else(|| {
        let wrong = Wrong::new(format!("wants a method, found \"{}\"", escape(name)));
        wrong.hint("in capital letters, as in \"GET\"; `GET` is `HEAD` too")
    })
}

fn pattern(value: &DeValue<'_>) -> Read<String> {
    let text = text(value)?;
    let wrong = |hint: &str| {
        Err(Wrong::new(format!("wants a pattern of segments, found \"{}\"", escape(text)))
            .hint(hint.to_owned()))
    };
    if !text.starts_with('/') || text.len() > 1024 || text.contains(['?', '#', ' ']) || !text.is_ascii() {
        return wrong("for example \"/users/{id}/posts/{*rest}\", 1024 bytes at most");
    }
    Ok(text.to_owned())
}

fn expression(value: &DeValue<'_>) -> Read<String> {
    let text = text(value)?;
    portcullis_edge::proxy::matcher::check_regex(text).map_err(|error| {
        Wrong::new(format!("is no regular expression: {}", escape(&error.to_string())))
            .hint("it has to match the whole value, is at most 1024 bytes long, and knows no Unicode classes")
    })?;
    Ok(text.to_owned())
}

fn integer_i32(value: &DeValue<'_>) -> Read<i32> {
    // the reader of integers knows none below 0
    if let DeValue::Integer(number) = value
        && let Some(positive) = number.to_string().strip_prefix('-')
        && let Ok(number @ 0..=1000) = positive.parse::<i32>()
    {
        return Ok(-number);
    }
    integer::<u16>(0..=1000)(value).map(i32::from).map_err(|wrong| wrong.hint("from -1000 to 1000"))
}
