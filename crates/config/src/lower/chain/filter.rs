//! `[filter]` and its `[[filter.rule]]`.

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

use super::super::{
    certificate,
    route::matches::{condition, header_name, method, pairs},
};
use crate::{
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
    plan.countries = table.get("countries", certificate::path).map(Spanned::into_inner);
    let rules = table.tables("rule", rule_name);
    if rules.len() > MOST {
        table.sink().error(table.span(), Wrong::new(format!("a filter has at most {MOST} rules")));
        return None;
    }
    let mut sound = true;
    for rule in rules {
        let (sink, span) = (rule.sink(), rule.span());
        let rule = self::rule(rule);
        if let Err(error) = compiles(&rule, plan.countries.is_some()) {
            sink.error(span, Wrong::new(escape(&error)));
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

/// Patterns and countries are as the edge will have them. What is in the files is seen at its start.
fn compiles(rule: &Rule, countries: bool) -> Result<(), String> {
    let mut sets = FilterSets::default();
    for name in &rule.client_sets {
        sets = sets.with_clients(name, ClientSet::default());
    }
    if countries {
        sets = sets.with_countries(Countries::default());
    }
    let options = FilterOptions::default().with_rule(rule.clone());
    let error = FilterRules::compile(&options, &sets).err().map(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        // it is the only one of its kind here
        format!("{error}{cause}").replacen("rule 1: ", "the rule is wrong: ", 1)
    });
    error.map_or(Ok(()), Err)
}

fn rule(mut table: Table<'_, '_>) -> Rule {
    let mut rule = Rule::default();
    table
        .need("action", "\"deny\"", choice(&ACTIONS))
        .into_iter()
        .for_each(|action| rule.action = action.into_inner());
    if let Some(status) = table.get("status", final_status) {
        match rule.action {
            Action::Deny(_) => rule.action = Action::Deny(status.into_inner()),
            _ => table.sink().error(status.span(), Wrong::new("`status` goes with `action = \"deny\"`")),
        }
    }
    let prefixes = items(table.list("paths", "\"/admin\"", path));
    rule.paths.extend(prefixes.into_iter().map(PathPattern::Prefix));
    rule.paths.extend(items(table.list("exact", "\"/admin\"", path)).into_iter().map(PathPattern::Exact));
    rule.paths
        .extend(items(table.list("globs", "\"/**/*.php\"", pattern)).into_iter().map(PathPattern::Glob));
    rule.paths
        .extend(items(table.list("regexes", "\"\\\\.php$\"", pattern)).into_iter().map(PathPattern::Regex));
    rule.methods = items(table.list("methods", "\"POST\"", method));
    rule.hosts = items(table.list("hosts", "\"*.example.com\"", host_pattern));
    let fields = table.get("headers", |value| pairs(value, header_name, field));
    rule.fields = fields.map(Spanned::into_inner).unwrap_or_default();
    if let Some(agent) = table.get("user_agent", pattern) {
        rule.fields.push((USER_AGENT, FieldPattern::Regex(agent.into_inner())));
    }
    rule.query = table.get("query", pattern).map(Spanned::into_inner);
    rule.clients = items(table.list("clients", "\"10.0.0.0/8\"", network));
    let files = items(table.list("client_files", "\"blocked.txt\"", certificate::path));
    rule.client_sets = files.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    rule.countries = items(table.list("countries", "\"CH\"", country));
    table.finish();
    rule
}

fn pattern(value: &DeValue<'_>) -> Read<String> {
    text(value).map(str::to_owned)
}

fn field(value: &DeValue<'_>) -> Read<FieldPattern> {
    Ok(match condition(value)? {
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
