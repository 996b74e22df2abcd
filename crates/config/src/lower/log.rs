//! `[access_log]`, once or as `[[access_log]]` for several destinations, and `[route.access_log]`.

use std::{num::NonZeroU32, ops::Range, path::PathBuf};

use portcullis_edge::{
    middleware::access_log::Sampling,
    plan::{AccessLogPlan, LogOutput, Overflow, Setting},
    telemetry::access_log::{
        FIELDS, Field, FieldError, Format, JsonFields, JsonFieldsError, Redaction, Template, TemplateFault,
    },
};
use toml::de::DeValue;

use super::There;
use crate::{
    disk,
    errors::escape,
    reader::{Read, Spanned, Table, Wrong, describe},
    suggest::nearest,
    values::{choice, duration, integer, ms, secs, size, text, word},
};

/// The most destinations.
const MAX_OUTPUTS: usize = 8;

/// Every destination.
pub(crate) fn read(root: &mut Table<'_, '_>) -> Vec<AccessLogPlan> {
    let tables = root.one_or_more("access_log", "`[access_log]`");
    for table in tables.iter().skip(MAX_OUTPUTS) {
        table
            .sink()
            .error(table.span(), Wrong::new(format!("there are more than {MAX_OUTPUTS} `[[access_log]]`")));
    }
    tables.into_iter().filter_map(output).collect()
}

fn output(mut table: Table<'_, '_>) -> Option<AccessLogPlan> {
    let mut to = Some(LogOutput::Stdout);
    table.set("output", &mut to, destination);
    let format = format(&mut table);
    let redaction = redaction(&mut table);
    let sampling = sampling(&mut table);
    let overflow = overflow(&mut table);
    let mut buffer = 4 << 20;
    table.set("buffer", &mut buffer, size(512 << 10..=1 << 30));
    table.finish();
    let mut plan = AccessLogPlan::new(to?);
    plan.format = format;
    plan.redaction = redaction;
    plan.sampling = sampling;
    plan.overflow = overflow;
    plan.buffer_bytes = usize::try_from(buffer).unwrap_or(usize::MAX);
    Some(plan)
}

/// What a route says.
pub(super) fn of_route(route: &mut Table<'_, '_>, there: There) -> Setting<Sampling> {
    let at = route.key_span("access_log");
    let own = route.setting("access_log", "`[route.access_log]`", |mut table| {
        let sampling = sampling(&mut table);
        table.finish();
        Some(sampling)
    });
    if let (Some(at), Setting::Own(_), false) = (at, &own, there.access_log) {
        let wrong = Wrong::new("`[route.access_log]` samples a log that is not there");
        route.sink().absent(at, wrong.hint("add an `[access_log]` at the top level"));
    }
    own
}

/// What the log calls a route.
pub(crate) fn route_name(value: &DeValue<'_>) -> Read<Option<String>> {
    const LONGEST: usize = 100;
    let name = word(value, "a name", "shop")?;
    if name.is_empty() || name.len() > LONGEST || name.chars().any(char::is_control) {
        return Err(Wrong::new("is no name").hint(format!("1 to {LONGEST} bytes in one line")));
    }
    Ok(Some(name.to_owned()))
}

/// `None` is nowhere.
fn destination(value: &DeValue<'_>) -> Read<Option<LogOutput>> {
    const WHAT: &str = "\"stdout\", \"off\", \"syslog\" or a path";
    let text = word(value, WHAT, "/var/log/portcullis/access.log")?;
    Ok(Some(match text {
        "off" => return Ok(None),
        "stdout" => LogOutput::Stdout,
        "syslog" => LogOutput::Syslog(PathBuf::from("/dev/log")),
        text => match text.strip_prefix("syslog:") {
            Some(path) if path.starts_with('/') => LogOutput::Syslog(disk::named(path)?),
            // the slash tells a path from a slip of the finger
            None if text.contains('/') && !text.ends_with('/') => LogOutput::File(disk::named(text)?),
            _ => {
                let wrong = Wrong::new(format!("must be {WHAT}, found \"{}\"", escape(text)));
                return Err(wrong.hint("a path to a file has a slash in it: \"./access.log\""));
            }
        },
    }))
}

/// The words of `format`.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Combined,
    Common,
    Json,
}

fn format(table: &mut Table<'_, '_>) -> Format {
    let forms = [("combined", Form::Combined), ("common", Form::Common), ("json", Form::Json)];
    let form_at = table.key_span("format");
    let form = table.get("format", choice(&forms));
    let fields_at = table.key_span("fields");
    let fields = table.list("fields", "\"time\", \"status\"", |value| {
        let name = text(value)?;
        Field::named(name).map_err(|error| wrong_field(&error))?;
        Ok(name.to_owned())
    });
    let template = table.get("template", |value| text(value).map(str::to_owned));
    let json = form.as_ref().is_some_and(|form| *form.get_ref() == Form::Json);
    if let Some(at) = fields_at
        && !json
    {
        let wrong = Wrong::new("`fields` goes only with `format = \"json\"`");
        table.sink().error(at, wrong.hint("add `format = \"json\"`, or write a `template`"));
    }
    if let Some(template) = template {
        if let Some(at) = form_at {
            let wrong = Wrong::new("`format` does not go with `template`");
            table.sink().error(at, wrong.hint("a template is a format of its own: remove one of them"));
        }
        return self::template(table, &template).map_or_else(Format::default, Format::Template);
    }
    match form.map(Spanned::into_inner) {
        Some(Form::Common) => Format::Common,
        Some(Form::Json) => Format::Json(fields.and_then(|fields| keys(table, &fields)).unwrap_or_default()),
        _ => Format::Combined,
    }
}

fn keys(table: &Table<'_, '_>, fields: &Spanned<Vec<Spanned<String>>>) -> Option<JsonFields> {
    if fields.get_ref().is_empty() {
        // what stood there was wrong and is told
        return None;
    }
    let names = fields.get_ref().iter().map(|name| name.get_ref().as_str());
    let (at, wrong) = match JsonFields::new(names) {
        Ok(json) => return Some(json),
        Err(JsonFieldsError::Twice { at }) => {
            let item = fields.get_ref().get(at).map_or(fields.span(), Spanned::span);
            (item, Wrong::new("`fields` has this name twice"))
        }
        Err(_) => (
            fields.span(),
            Wrong::new("`fields` could make lines longer than 16 KiB")
                .hint("take fewer of the long ones: targets, paths, queries, Referer, User-Agent"),
        ),
    };
    table.sink().error(at, wrong);
    None
}

fn template(table: &Table<'_, '_>, text: &Spanned<String>) -> Option<Template> {
    let error = match Template::parse(text.get_ref()) {
        Ok(template) => return Some(template),
        Err(error) => error,
    };
    let (span, len) = (text.span(), text.get_ref().len());
    // between quotes and without escapes the text stands as it is
    let exact = (span.len() == len + 2).then(|| sub_span(&span, text.get_ref(), error.at));
    let place = match &exact {
        Some(_) => String::new(),
        None => format!(" at character {}", text.get_ref()[..error.at.min(len)].chars().count() + 1),
    };
    let wrong = match &error.fault {
        TemplateFault::Field(error) => wrong_field(error),
        fault => Wrong::new(fault.to_string()),
    };
    let message = format!("`template` is not right{place}: {}", wrong.message);
    table.sink().error(exact.unwrap_or(span), Wrong { message, hint: wrong.hint });
    None
}

/// From a byte of the text until its next space or quote, in the file.
fn sub_span(literal: &Range<usize>, text: &str, at: usize) -> Range<usize> {
    let rest = text.get(at..).unwrap_or_default();
    let len = rest.find([' ', '"']).unwrap_or(rest.len()).max(1);
    let start = literal.start + 1 + at;
    start..(start + len).min(literal.end)
}

fn wrong_field(error: &FieldError) -> Wrong {
    match error {
        FieldError::Unknown(name) => {
            let (stem, ending) = match name.strip_suffix("_ms") {
                Some(stem) => (stem, "_ms"),
                None => (name.as_str(), ""),
            };
            let wrong = Wrong::new(format!("there is no field \"{}\"", escape(name)));
            match nearest(stem, FIELDS.iter().map(|(known, _)| *known)) {
                Some(meant) if Field::named(&format!("{meant}{ending}")).is_ok() => {
                    wrong.hint(format!("did you mean \"{meant}{ending}\"?"))
                }
                Some(meant) => wrong.hint(format!("did you mean \"{meant}\"?")),
                None => wrong.hint("docs/access-log.md has the names of all fields"),
            }
        }
        FieldError::Secret(name) => Wrong::new(format!("\"{}\" is never logged", escape(name)))
            .hint("a cookie is logged by its own name: \"cookie:NAME\"; credentials are not logged at all"),
        other => Wrong::new(escape(&other.to_string())),
    }
}

fn redaction(table: &mut Table<'_, '_>) -> Redaction {
    let mut redaction = Redaction::default();
    if table.is_word("redact", "off") {
        redaction = Redaction::none();
        table.get("redact", text_of);
    } else if let Some(more) = table.list("redact", "\"card_number\"", text_of) {
        redaction = redaction.with(more.get_ref().iter().map(|name| name.get_ref().as_str()));
    }
    if let Some(less) = table.list("redact_except", "\"code\"", text_of) {
        redaction = redaction.without(less.get_ref().iter().map(|name| name.get_ref().as_str()));
    }
    redaction
}

/// The name of a parameter.
fn text_of(value: &DeValue<'_>) -> Read<String> {
    const LONGEST: usize = 64;
    match value {
        DeValue::String(name) if (1..=LONGEST).contains(&name.len()) => Ok(name.clone().into_owned()),
        other => Err(Wrong::new(format!("wants the name of a parameter, found {}", describe(other)))
            .hint(format!("1 to {LONGEST} bytes, or \"off\" for no redaction at all"))),
    }
}

fn sampling(table: &mut Table<'_, '_>) -> Sampling {
    let mut one_in = NonZeroU32::MIN;
    table.set("sample", &mut one_in, |value| {
        let count: u32 = integer(1..=1_000_000)(value)?;
        NonZeroU32::new(count).ok_or_else(|| Wrong::new("must not be 0"))
    });
    let mut errors = None;
    table.set("keep_errors", &mut errors, choice(&[("off", None), ("4xx", Some(400)), ("5xx", Some(500))]));
    let mut slow = None;
    table.set("keep_slow", &mut slow, |value| match value {
        DeValue::String(text) if *text == "off" => Ok(None),
        value => duration(ms(1)..=secs(3600))(value).map(Some),
    });
    Sampling::new(one_in).with_errors_from(errors).with_slower_than(slow)
}

fn overflow(table: &mut Table<'_, '_>) -> Overflow {
    let mut wait = false;
    table.set("overflow", &mut wait, choice(&[("drop", false), ("wait", true)]));
    let at = table.key_span("max_wait");
    let mut most = secs(1);
    table.set("max_wait", &mut most, duration(ms(1)..=secs(60)));
    if wait {
        return Overflow::Wait(most);
    }
    if let Some(at) = at {
        let wrong = Wrong::new("`max_wait` goes only with `overflow = \"wait\"`");
        table.sink().error(at, wrong.hint("without it nobody waits"));
    }
    Overflow::Drop
}
