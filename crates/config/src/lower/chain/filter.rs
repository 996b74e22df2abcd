//! `[filter]` and its `[[filter.rule]]`.

use std::ops::Range;

use http::{StatusCode, header::USER_AGENT};
use portcullis_edge::{
    middleware::filter::{
        Action, ClientSet, Countries, CountryCode, FieldPattern, FilterOptions, FilterRules, FilterSets,
        PathPattern, Rule,
    },
    plan::FilterPlan,
    proxy::ValueMatch,
};
use toml::de::DeValue;

use super::super::route::matches::{condition, header_name, method, pairs};
use crate::{
    disk,
    errors::escape,
    net::{final_status, host_pattern, network, path},
    reader::{Read, Spanned, Table, Wrong, items},
    values::{choice, text},
};

/// The most rules of one filter.
const MOST: usize = 1000;

/// Actions by their words. `"hide"` is 404, `"deny"` 403 or what `status` says.
const ACTIONS: [(&str, Action); 4] = [
    ("allow", Action::Allow),
    ("deny", Action::Deny(StatusCode::FORBIDDEN)),
    ("hide", Action::Deny(StatusCode::NOT_FOUND)),
    ("close", Action::Close),
];

pub(super) fn read(mut table: Table<'_, '_>, rule_name: &'static str) -> Option<FilterPlan> {
    let mut plan = FilterPlan::default();
    if let Some(deny) = table.list("deny", "\"/.git\"", path) {
        for all in deny.get_ref().iter().filter(|path| path.get_ref() == "/") {
            table.sink().warn(all.span(), Wrong::new("`/` denies every path"));
        }
        plan.options.deny = items(Some(deny));
    }
    table.set("default", &mut plan.options.default, choice(&ACTIONS));
    // one with mistakes is there too
    let database = table.key_span("countries").is_some();
    plan.countries = table.get("countries", disk::path).map(Spanned::into_inner);
    let rules = table.tables("rule", rule_name);
    if rules.len() > MOST {
        table.sink().error(table.span(), Wrong::new(format!("a filter has at most {MOST} rules")));
        return None;
    }
    let mut sound = true;
    for rule in rules {
        let (sink, span) = (rule.sink(), rule.span());
        let (rule, patterns) = self::rule(rule, database);
        if let Err(error) = compiles(&rule) {
            // told where the patterns stand that are the reason
            let alone = |pattern: &Spanned<PathPattern>| Some((pattern.span(), alone(pattern)?));
            let mut wrong: Vec<_> = patterns.iter().filter_map(alone).collect();
            if wrong.is_empty() {
                wrong.push((span, error));
            }
            wrong.into_iter().for_each(|(at, error)| sink.error(at, Wrong::new(escape(&error))));
            sound = false;
        }
        plan.options.rules.push(rule);
    }
    if plan.options.is_empty() && sound {
        let wrong = Wrong::new("the filter lets everything pass");
        table.sink().warn(table.span(), wrong.hint("add `deny`, rules, or `default = \"deny\"`"));
    }
    table.finish();
    Some(plan)
}

/// Patterns are as the edge will have them. What is in the files is seen at its start.
fn compiles(rule: &Rule) -> Result<(), String> {
    let mut sets = FilterSets::default().with_countries(Countries::default());
    for name in &rule.client_sets {
        sets = sets.with_clients(name, ClientSet::default());
    }
    let options = FilterOptions::default().with_rule(rule.clone());
    let error = FilterRules::compile(&options, &sets).err().map(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        // it is the only one of its kind here
        format!("{error}{cause}").replacen("rule 1: ", "the rule is wrong: ", 1)
    });
    error.map_or(Ok(()), Err)
}

/// A rule with this pattern and nothing else, to see what is wrong with it.
fn alone(pattern: &Spanned<PathPattern>) -> Option<String> {
    let mut rule = Rule::default();
    rule.paths = vec![pattern.get_ref().clone()];
    compiles(&rule).err()
}

/// With its patterns, and where they stand; `database` says whether countries can be told.
fn rule(mut table: Table<'_, '_>, database: bool) -> (Rule, Vec<Spanned<PathPattern>>) {
    let mut rule = Rule::default();
    let action = table.need("action", "\"deny\"", choice(&ACTIONS)).map(Spanned::into_inner);
    rule.action = action.unwrap_or_default();
    if let Some(status) = table.get("status", final_status) {
        match action {
            // an action that is wrong may have been meant to be this one
            Some(Action::Deny(StatusCode::FORBIDDEN)) | None => {
                rule.action = Action::Deny(status.into_inner());
            }
            _ => table.sink().error(status.span(), Wrong::new("`status` goes with `action = \"deny\"`")),
        }
    }
    let prefixes = items(table.list("paths", "\"/admin\"", path));
    rule.paths.extend(prefixes.into_iter().map(PathPattern::Prefix));
    rule.paths.extend(items(table.list("exact", "\"/admin\"", path)).into_iter().map(PathPattern::Exact));
    let mut patterns = Vec::new();
    let glob = |value: &DeValue<'_>| pattern(value).map(PathPattern::Glob);
    patterns.extend(table.list("globs", "\"/**/*.php\"", glob).into_iter().flat_map(Spanned::into_inner));
    let regex = |value: &DeValue<'_>| pattern(value).map(PathPattern::Regex);
    patterns.extend(table.list("regexes", "\"\\\\.php$\"", regex).into_iter().flat_map(Spanned::into_inner));
    rule.paths.extend(patterns.iter().map(|pattern| pattern.get_ref().clone()));
    rule.methods = items(table.list("methods", "\"POST\"", method));
    rule.hosts = items(table.list("hosts", "\"*.example.com\"", host_pattern));
    let fields = table.get("headers", |value| pairs(value, header_name, field));
    if let Some(fields) = &fields {
        patterns.extend(fields.get_ref().iter().filter_map(|(_, field)| match field {
            FieldPattern::Regex(regex) => Some(searched(fields.span(), regex)),
            _ => None,
        }));
    }
    rule.fields = fields.map(Spanned::into_inner).unwrap_or_default();
    if let Some(agent) = table.get("user_agent", pattern) {
        patterns.push(searched(agent.span(), agent.get_ref()));
        rule.fields.push((USER_AGENT, FieldPattern::Regex(agent.into_inner())));
    }
    let query = table.get("query", pattern);
    patterns.extend(query.as_ref().map(|query| searched(query.span(), query.get_ref())));
    rule.query = query.map(Spanned::into_inner);
    rule.clients = items(table.list("clients", "\"10.0.0.0/8\"", network));
    let files = items(table.list("client_files", "\"blocked.txt\"", disk::path));
    rule.client_sets = files.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    let countries = table.list("countries", "\"CH\"", country);
    if let (Some(countries), false) = (&countries, database) {
        let wrong = Wrong::new("countries need a database");
        let hint = "add `countries = \"GeoLite2-Country.mmdb\"` to the filter";
        table.sink().absent(countries.span(), wrong.hint(hint));
    }
    rule.countries = items(countries);
    table.finish();
    (rule, patterns)
}

/// An expression for something else than the path. It is right or wrong in any place.
fn searched(at: Range<usize>, regex: &str) -> Spanned<PathPattern> {
    Spanned::new(at, PathPattern::Regex(regex.to_owned()))
}

/// As it is: whether it is one is seen when the rule is made ready, by the bounds of filters and not by those of routes.
fn pattern(value: &DeValue<'_>) -> Read<String> {
    text(value).map(str::to_owned)
}

fn field(value: &DeValue<'_>) -> Read<FieldPattern> {
    Ok(match condition(value, pattern)? {
        ValueMatch::Exact(text) => FieldPattern::Equals(text),
        ValueMatch::Regex(regex) => FieldPattern::Regex(regex),
        ValueMatch::Present => FieldPattern::Present,
        ValueMatch::Absent => FieldPattern::Absent,
        _ => return Err(Wrong::new("is no condition of a filter")),
    })
}

fn country(value: &DeValue<'_>) -> Read<CountryCode> {
    CountryCode::new(text(value)?).ok_or_else(|| {
        Wrong::new("wants a country by its two letters (ISO 3166-1)").hint("for example \"CH\"")
    })
}
