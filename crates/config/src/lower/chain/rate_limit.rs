//! `[rate_limit]` and `[[rate_limit]]`, and `[rate_limit_store]`.

use std::{collections::HashSet, num::NonZeroU32, time::Duration};

use http::{HeaderName, Method, StatusCode};
use portcullis_edge::{
    middleware::rate_limit::{
        KeyPart, OnFailure, OnMissing, RateKey, RateLimitOptions, RateRule, Refusal, Tarpit,
        redis::RedisOptions,
    },
    plan::ChainPlan,
};
use toml::de::DeValue;

use super::super::route::{Route, matches::method};
use crate::{
    errors::{Lines, escape},
    net::{network, not},
    reader::{Read, Sink, Spanned, Table, Wrong},
    values::{boolean, choice, duration, integer, ms, secs, text, word},
};

/// The rules of one list. A wrong one is told and left out.
pub(super) fn rules(tables: Vec<Table<'_, '_>>) -> Option<RateLimitOptions> {
    let several = tables.len() > 1;
    let mut names = HashSet::new();
    let mut options: Option<RateLimitOptions> = None;
    let mut fields = false;
    for mut table in tables {
        fields |= table.get("fields", boolean).is_some_and(Spanned::into_inner);
        let named = table.key_span("name").unwrap_or_else(|| table.span());
        let sink = table.sink();
        let Some(rule) = rule(table) else { continue };
        if !names.insert(rule.name.clone()) {
            let wrong = Wrong::new(format!("two rules are called `{}`", rule.name));
            sink.error(named, wrong.hint("give each rule of a list a `name` of its own"));
        } else if several && names.len() > MOST {
            sink.error(named, Wrong::new(format!("there are more than {MOST} rules")));
        }
        options = Some(match options {
            None => RateLimitOptions::new(rule),
            Some(options) => options.with_rule(rule),
        });
    }
    options.map(|options| options.with_fields(fields))
}

/// Shared rules of one name have the same buckets, in whichever list they stand, so they have to be alike.
pub(in crate::lower) fn alike(sink: &Sink, lines: &Lines<'_>, edge: &ChainPlan, routes: &[Route]) {
    fn rules(chain: &ChainPlan) -> impl Iterator<Item = &RateRule> {
        chain.rate_limit.own().into_iter().flat_map(|limit| &limit.rules)
    }
    // by what they clash with, and where that stands if it is in a route
    let mut known: Vec<(&RateRule, Option<usize>)> = rules(edge).map(|rule| (rule, None)).collect();
    for route in routes {
        let Some(plan) = &route.plan else { continue };
        for rule in rules(&plan.chain).filter(|rule| rule.shared.is_some()) {
            let Some((_, other)) = known.iter().find(|(other, _)| other.clashes_with(rule)) else {
                if known.iter().all(|(other, _)| other.name != rule.name || other.shared.is_none()) {
                    known.push((rule, Some(route.span.start)));
                }
                continue;
            };
            let place = match other {
                Some(at) => format!("the route on line {}", lines.number(*at)),
                None => "the top level".to_owned(),
            };
            let name = escape(&rule.name);
            let wrong = Wrong::new(format!(
                "the shared rule `{name}` has the buckets of that of {place}, by another key or rate"
            ));
            sink.error(route.span.clone(), wrong.hint("give it a `name` of its own in `[route.rate_limit]`"));
        }
    }
}

/// Of one list.
const MOST: usize = 64;

fn rule(mut table: Table<'_, '_>) -> Option<RateRule> {
    let requests = table.need("requests", "100", count).map(|requests| requests.into_inner());
    let mut per = secs(1);
    table.set("per", &mut per, duration(ms(1)..=secs(30 * 86_400)));
    let mut rule = RateRule::new(requests.unwrap_or(NonZeroU32::MIN), per);
    table.set("burst", &mut rule.burst, count);
    table.set("name", &mut rule.name, name);
    table.set("max_clients", &mut rule.max_keys, integer(1000..=100_000_000));
    key(&mut table, &mut rule);
    let missing = [("share", OnMissing::Share), ("skip", OnMissing::Skip)];
    table.set("missing", &mut rule.on_missing, choice(&missing));
    let cost = table.get("cost", integer(0..=1_000_000));
    method_costs(&mut table, &mut rule);
    let at = cost.as_ref().map_or_else(|| table.span(), Spanned::span);
    if let Some(cost) = cost {
        rule.cost = cost.into_inner();
    }
    let methods = rule.method_costs.iter().map(|(_, cost)| *cost);
    let most = methods.chain([rule.cost]).max().unwrap_or_default();
    if most > rule.burst.get() {
        let wrong = Wrong::new(format!("a request costs {most}, and `burst` is {}", rule.burst));
        table.sink().error(at, wrong.hint("it could never pass"));
    }
    if let Some(allow) = table.list("allow", "\"10.0.0.0/8\"", network) {
        rule.allow = allow.into_inner().into_iter().map(|net| net.into_inner()).collect();
    }
    table.set("dry_run", &mut rule.dry_run, boolean);
    rule.refusal = refusal(&mut table);
    let shared = [("open", OnFailure::Open), ("closed", OnFailure::Closed), ("local", OnFailure::Local)];
    rule.shared = table.get("shared", choice(&shared)).map(|shared| shared.into_inner());
    table.finish();
    requests.map(|_| rule)
}

fn method_costs(table: &mut Table<'_, '_>, rule: &mut RateRule) {
    let Some(costs) = table.list("method_costs", "\"POST=5\"", method_cost) else { return };
    for cost in costs.into_inner() {
        let at = cost.span();
        let (method, cost) = cost.into_inner();
        if rule.method_costs.iter().any(|(known, _)| *known == method) {
            table.sink().error(at, Wrong::new(format!("`{method}` has two costs")).hint("leave one out"));
            continue;
        }
        rule.method_costs.push((method, cost));
    }
}

fn key(table: &mut Table<'_, '_>, rule: &mut RateRule) {
    let (mut v4_prefix, mut v6_prefix) = (32, 64);
    table.set("v4_prefix", &mut v4_prefix, integer(0..=32));
    table.set("v6_prefix", &mut v6_prefix, integer(0..=128));
    let own = |part: KeyPart| match part {
        KeyPart::Client { .. } => KeyPart::Client { v4_prefix, v6_prefix },
        part => part,
    };
    let mut read = |name| {
        let parts = table.list(name, "\"client\"", key_part)?.into_inner();
        Some(RateKey::new(parts.into_iter().map(|part| own(part.into_inner()))))
    };
    let (key, otherwise) = (read("key"), read("else_key"));
    let key = key.unwrap_or_else(|| RateKey::new([own(KeyPart::CLIENT)]));
    rule.key = match otherwise {
        Some(otherwise) => key.or(otherwise),
        None => key,
    };
}

fn key_part(value: &DeValue<'_>) -> Read<KeyPart> {
    let text = word(value, "what to count by", "client")?;
    let wrong = || {
        not("what to count by", text).hint(
            "\"client\", \"host\", \"path\", \"path:N\", \"route\", \"method\", \"field:NAME\", \"cookie:NAME\", \"server-name\", \
             \"certificate\", \"subject\" or \"constant\"",
        )
    };
    Ok(match text.split_once(':') {
        Some(("field", name)) => KeyPart::Field(HeaderName::try_from(name).map_err(|_| wrong())?),
        Some(("cookie", name))
            if !name.is_empty() && name.chars().all(|c| c.is_ascii_graphic() && !"=;,\"".contains(c)) =>
        {
            KeyPart::Cookie(name.into())
        }
        Some(("path", segments)) => KeyPart::Path { segments: Some(segments.parse().map_err(|_| wrong())?) },
        Some(_) => return Err(wrong()),
        None => match text {
            "client" => KeyPart::CLIENT,
            "host" => KeyPart::Host,
            "path" => KeyPart::Path { segments: None },
            "route" => KeyPart::Route,
            "method" => KeyPart::Method,
            "server-name" => KeyPart::ServerName,
            "certificate" => KeyPart::ClientCertificate,
            "subject" => KeyPart::ClientSubject,
            "constant" => KeyPart::Constant,
            _ => return Err(wrong()),
        },
    })
}

fn refusal(table: &mut Table<'_, '_>) -> Refusal {
    let mut refusal = Refusal::default();
    if let Some(status) = table.get("status", integer::<u16>(400..=599)) {
        refusal.status = StatusCode::from_u16(status.into_inner()).unwrap_or(refusal.status);
    }
    if let Some(body) = table.get("body", body) {
        refusal.body = body.into_inner().into();
    }
    table.set("body_type", &mut refusal.content_type, super::field_value);
    let hold = table.get("tarpit", duration(ms(10)..=secs(60)));
    let max_held = table.get("max_held", integer(1..=1_000_000));
    if let Some(hold) = hold {
        let mut tarpit = Tarpit::new(hold.into_inner());
        if let Some(max_held) = max_held {
            tarpit.max_held = max_held.into_inner();
        }
        refusal.tarpit = Some(tarpit);
    } else if let Some(max_held) = max_held {
        let wrong = Wrong::new("`max_held` goes with `tarpit`");
        table.sink().error(max_held.span(), wrong.hint("add `tarpit = \"2s\"`, or leave it out"));
    }
    refusal
}

/// The store that instances share.
pub(super) fn store(mut table: Table<'_, '_>) -> Option<RedisOptions> {
    let url = table.need("url", "\"redis://10.0.0.5:6379\"", url);
    let mut options = RedisOptions::new(url.as_ref().map_or("", |url| url.get_ref()));
    table.set("prefix", &mut options.prefix, prefix);
    table.set("timeout", &mut options.timeout, duration(ms(1)..=Duration::from_secs(5)));
    table.finish();
    url.map(|_| options)
}

fn url(value: &DeValue<'_>) -> Read<String> {
    let text = word(value, "the address of a store", "redis://10.0.0.5:6379")?;
    if text.starts_with("rediss:") {
        return Err(Wrong::new("there is no TLS to the store").hint("use a unix socket, or a tunnel"));
    }
    let known =
        ["redis://", "valkey://", "unix://", "redis+unix://"].iter().any(|scheme| text.starts_with(scheme));
    // what a message shows could be a password
    known.then(|| text.to_owned()).ok_or_else(|| {
        Wrong::new("is not the address of a store")
            .hint("for example \"redis://10.0.0.5:6379\" or \"unix:///run/valkey.sock\"")
    })
}

fn body(value: &DeValue<'_>) -> Read<String> {
    const LONGEST: usize = 64 << 10;
    let text = text(value)?;
    (text.len() <= LONGEST)
        .then(|| text.to_owned())
        .ok_or_else(|| Wrong::new(format!("is longer than {LONGEST} bytes")))
}

/// As it is in metrics and response fields.
fn name(value: &DeValue<'_>) -> Read<String> {
    plain(value, "a name", "per-second", "")
}

fn prefix(value: &DeValue<'_>) -> Read<String> {
    plain(value, "a prefix", "portcullis:rate", ":")
}

fn plain(value: &DeValue<'_>, what: &str, example: &str, more: &str) -> Read<String> {
    let text = word(value, what, example)?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c) || more.contains(c);
    let sound = (1..=64).contains(&text.len()) && text.chars().all(is_plain);
    sound
        .then(|| text.to_owned())
        .ok_or_else(|| not(what, text).hint(format!("1 to 64 letters, digits, `.`, `_`, `-`: \"{example}\"")))
}

fn count(value: &DeValue<'_>) -> Read<NonZeroU32> {
    let count: u32 = integer(1..=1_000_000)(value)?;
    NonZeroU32::new(count).ok_or_else(|| Wrong::new("must not be 0"))
}

fn method_cost(value: &DeValue<'_>) -> Read<(Method, u32)> {
    let text = word(value, "a method and its cost", "POST=5")?;
    let wrong = || not("a method and its cost", text).hint("for example \"POST=5\"");
    let (name, cost) = text.split_once('=').ok_or_else(wrong)?;
    Ok((method(&DeValue::String(name.into()))?, cost.parse().map_err(|_| wrong())?))
}
