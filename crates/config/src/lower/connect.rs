//! `[connect]`: tunnels by CONNECT.

use portcullis_edge::{
    plan::{ConnectPlan, Plan},
    proxy::{ConnectRule, ConnectRuleError, ConnectRules},
};
use toml::de::DeValue;

use super::process::{MOST_OPEN, forwarder};
use crate::{
    errors::escape,
    reader::{Read, Table, Wrong},
    values::{duration, integer, ms, secs, word},
};

/// Comes after `[limits]`, whose `max_tunnels` holds for these too.
pub(crate) fn read(root: &mut Table<'_, '_>, plan: &Plan) -> Option<ConnectPlan> {
    let mut table = root.table("connect", "`[connect]`")?;
    let allow = table.need_list("allow", "\"db.internal:5432\"", rule);
    if let Some(allow) = &allow
        && allow.get_ref().len() > ConnectRules::MAX
    {
        let wrong = Wrong::new(format!("`allow` has more than {} entries", ConnectRules::MAX));
        table.sink().error(allow.span(), wrong.hint("name a domain or a network in the place of many hosts"));
    }
    let clients = table.need_list("clients", "\"127.0.0.1\"", forwarder);
    for everybody in clients.iter().flat_map(|clients| clients.get_ref()) {
        if everybody.get_ref().prefix_len() == 0 {
            let wrong =
                Wrong::new(format!("`{}` lets everybody tunnel to what is allowed", everybody.get_ref()))
                    .hint("name only the networks of those who are meant to");
            table.sink().warn(everybody.span(), wrong);
        }
    }
    let rules = allow.into_iter().flat_map(|allow| allow.into_inner()).map(|rule| rule.into_inner());
    let clients = clients.into_iter().flat_map(|clients| clients.into_inner());
    let mut connect = ConnectPlan::new(rules.collect(), clients.map(|network| network.into_inner()));
    table.set("connect_timeout", &mut connect.connect_timeout, duration(ms(10)..=secs(300)));
    table.set("idle_timeout", &mut connect.relay.idle_timeout, duration(secs(1)..=secs(30 * 86_400)));
    if let Some(max) = table.get("max_tunnels", integer(1..=MOST_OPEN)) {
        let all = plan.limits.max_tunnels;
        if *max.get_ref() > all {
            let wrong =
                Wrong::new(format!("`max_tunnels` is more than that of `[limits]`, {all}, which holds too"));
            table.sink().warn(max.span(), wrong.hint("raise that one, or lower this"));
        }
        connect.max_tunnels = max.into_inner();
    }
    table.finish();
    Some(connect)
}

/// Hosts and ports.
fn rule(value: &DeValue<'_>) -> Read<ConnectRule> {
    let text = word(value, "a host and its ports", "db.internal:5432")?;
    text.parse::<ConnectRule>().map_err(|error| {
        let hint = match error {
            // as it was written
            ConnectRuleError::NoPorts(host) => ConnectRuleError::NoPorts(escape(&host)).to_string(),
            error => error.to_string(),
        };
        Wrong::new(format!("wants a host and its ports, found \"{}\"", escape(text))).hint(hint)
    })
}
