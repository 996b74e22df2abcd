//! `[rate_limit]` and `[[rate_limit]]`, and `[rate_limit_store]`.

use std::{cell::Cell, collections::HashSet, num::NonZeroU32, time::Duration};

use http::{HeaderName, Method, StatusCode};
use portcullis_edge::{
    middleware::rate_limit::{
        KeyPart, OnFailure, OnMissing, RateKey, RateLimitOptions, RateRule, Refusal, Tarpit,
        redis::{RedisLender, RedisOptions},
    },
    plan::ChainPlan,
};
use toml::de::DeValue;

use super::super::{
    There,
    route::{
        Route,
        changes::field_value,
        matches::{cookie_name, method},
    },
};
use crate::{
    errors::{Lines, escape},
    net::{network, not},
    reader::{Read, Sink, Spanned, Table, Wrong, items},
    values::{boolean, choice, duration, integer, ms, secs, text, word},
};

/// The rules of one list. A wrong one is told and left out.
pub(super) fn rules(tables: Vec<Table<'_, '_>>, there: There) -> Option<RateLimitOptions> {
    let several = tables.len() > 1;
    let mut names = HashSet::new();
    let mut options: Option<RateLimitOptions> = None;
    let mut fields = false;
    for mut table in tables {
        fields |= table.get("fields", boolean).is_some_and(Spanned::into_inner);
        let named = table.key_span("name").unwrap_or_else(|| table.span());
        let sink = table.sink();
        let Some(rule) = rule(table, there) else { continue };
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

fn rule(mut table: Table<'_, '_>, there: There) -> Option<RateRule> {
    let requests = table.need("requests", "100", count).map(|requests| requests.into_inner());
    let mut per = secs(1);
    table.set("per", &mut per, duration(ms(1)..=secs(30 * 86_400)));
    let mut rule = RateRule::new(requests.unwrap_or(NonZeroU32::MIN), per);
    let burst = table.get("burst", count);
    if let (Some(burst), Some(requests)) = (&burst, requests) {
        let most = most_at_once(requests, per);
        if burst.get_ref().get() > most {
            let wrong = Wrong::new(format!("`burst` is more than what refills in ten years, {most}"));
            table.sink().error(burst.span(), wrong.hint("it would count as that: lower it"));
        }
    }
    let known = burst.is_some() || requests.is_some();
    rule.burst = burst.map_or(rule.burst, Spanned::into_inner);
    table.set("name", &mut rule.name, name);
    table.set("max_clients", &mut rule.max_keys, integer(1000..=100_000_000));
    key(&mut table, &mut rule);
    let missing = [("share", OnMissing::Share), ("skip", OnMissing::Skip)];
    table.set("missing", &mut rule.on_missing, choice(&missing));
    costs(&mut table, &mut rule, known);
    if let Some(allow) = table.list("allow", "\"10.0.0.0/8\"", network) {
        rule.allow = allow.into_inner().into_iter().map(|net| net.into_inner()).collect();
    }
    table.set("dry_run", &mut rule.dry_run, boolean);
    rule.refusal = refusal(&mut table);
    let shared = [("open", OnFailure::Open), ("closed", OnFailure::Closed), ("local", OnFailure::Local)];
    let at = table.key_span("shared");
    rule.shared = table.get("shared", choice(&shared)).map(Spanned::into_inner);
    if let (Some(at), Some(_), false) = (at, rule.shared, there.rate_limit_store) {
        let wrong = Wrong::new("`shared` has no store to share by");
        table.sink().absent(at, wrong.hint("add a `[rate_limit_store]` at the top level"));
    }
    table.finish();
    requests.map(|_| rule)
}

/// What a bucket can hold: no more than refills in ten years, as those say who keep it.
fn most_at_once(requests: NonZeroU32, per: Duration) -> u32 {
    const LONGEST: Duration = secs(10 * 365 * 86_400);
    let each = (per.as_nanos() / u128::from(requests.get())).max(1);
    u32::try_from(LONGEST.as_nanos() / each).unwrap_or(u32::MAX)
}

/// What requests take; `burst_known` says whether there is anything to compare it with.
fn costs(table: &mut Table<'_, '_>, rule: &mut RateRule, burst_known: bool) {
    let sink = table.sink();
    let too_much = |at, cost: u32, burst: NonZeroU32| {
        if burst_known && cost > burst.get() {
            let wrong = Wrong::new(format!("a request costs {cost}, and `burst` is {burst}"));
            sink.error(at, wrong.hint("it could never pass"));
        }
    };
    if let Some(cost) = table.get("cost", integer(0..=1_000_000)) {
        rule.cost = *cost.get_ref();
        too_much(cost.span(), rule.cost, rule.burst);
    }
    let Some(costs) = table.list("method_costs", "\"POST=5\"", method_cost) else { return };
    for cost in costs.into_inner() {
        too_much(cost.span(), cost.get_ref().1, rule.burst);
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
    let prefixes = ["v4_prefix", "v6_prefix"].map(|key| (key, table.key_span(key)));
    table.set("v4_prefix", &mut v4_prefix, integer(0..=32));
    table.set("v6_prefix", &mut v6_prefix, integer(0..=128));
    let own = |part: KeyPart| match part {
        KeyPart::Client { .. } => KeyPart::Client { v4_prefix, v6_prefix },
        part => part,
    };
    // a part that is wrong may have been meant to be it
    let by_client = Cell::new(false);
    let part = |value: &DeValue<'_>| {
        let part = key_part(value);
        by_client.set(by_client.get() || matches!(part, Err(_) | Ok(KeyPart::Client { .. })));
        part.map(own)
    };
    let mut read = |name| Some(RateKey::new(items(Some(table.list(name, "\"client\"", part)?))));
    let (key, otherwise) = (read("key"), read("else_key"));
    let key = key.unwrap_or_else(|| {
        by_client.set(true);
        RateKey::new([own(KeyPart::CLIENT)])
    });
    for (key, at) in prefixes {
        if let (Some(at), false) = (at, by_client.get()) {
            let wrong = Wrong::new(format!("`{key}` goes with \"client\" in the key"));
            table.sink().error(at, wrong.hint("leave it out: no address is counted by"));
        }
    }
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
        Some(("cookie", name)) => KeyPart::Cookie(cookie_name(name)?.into()),
        Some(("path", segments)) => {
            // of none there would be one bucket for all, which is what "constant" says
            let segments = segments.parse().ok().filter(|segments| *segments > 0);
            KeyPart::Path { segments: Some(segments.ok_or_else(wrong)?) }
        }
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
    let asked = table.key_span("body").is_some();
    let body = table.get("body", body).map(Spanned::into_inner);
    let bare = body.as_ref().map_or(!asked, String::is_empty);
    refusal.body = body.unwrap_or_default().into();
    if let (Some(at), true) = (table.key_span("body_type"), bare) {
        let wrong = Wrong::new("`body_type` goes with `body`");
        table.sink().error(at, wrong.hint("add `body = \"slower, please\"`, or leave it out"));
    }
    table.set("body_type", &mut refusal.content_type, field_value(1));
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
    // read as it is when the store is opened. What a message shows could be a password
    let sound = known && RedisLender::open(&RedisOptions::new(text)).is_ok();
    sound.then(|| text.to_owned()).ok_or_else(|| {
        Wrong::new("is not the address of a store")
            .hint("a host, and a port if it is not 6379, as in \"redis://10.0.0.5:6379\", or \"unix:///run/valkey.sock\"")
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
