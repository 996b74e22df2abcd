//! What belongs to the whole process: the top level, `[limits]`, `[admin]`, `[access_log]`, `[forwarded]`,
//! `[timeouts]`, `[reload]`, `[upgrade]`.

use std::{num::NonZeroUsize, time::Duration};

use portcullis_edge::{
    listener::{ClientLimit, OverClient, OverLimit},
    plan::{AdminPlan, Plan, UpgradePlan, Workers},
    proxy::{Format, ForwardedStyle, ProxyName, UpgradeProtocols, Via},
};
use toml::de::DeValue;

use crate::{
    ProcessOptions,
    errors::escape,
    net::{self, network, socket_address},
    reader::{Read, Table, Wrong, items},
    values::{boolean, choice, duration, integer, ms, secs, word},
};

/// The most connections, QUIC connections or tunnels that can be asked for.
pub(crate) const MOST_OPEN: u64 = 1_000_000;

pub(crate) fn read(root: &mut Table<'_, '_>, plan: &mut Plan) {
    let threads = root
        .get("threads", integer::<usize>(1..=255))
        .and_then(|threads| NonZeroUsize::new(threads.into_inner()));
    let workers =
        [("per-core", Workers::PerCore(threads)), ("work-stealing", Workers::WorkStealing(threads))];
    plan.workers = Workers::PerCore(threads);
    root.set("workers", &mut plan.workers, choice(&workers));
    root.set("drain_delay", &mut plan.drain_delay, duration(Duration::ZERO..=secs(3600)));
    root.set("drain_timeout", &mut plan.drain_timeout, duration(Duration::ZERO..=secs(3600)));
    root.set("certificate_poll", &mut plan.certificate_reload.poll, duration(ms(100)..=secs(86_400)));
    root.set("health_path", &mut plan.health_path, health_path);

    if let Some(mut limits) = root.table("limits", "`[limits]`") {
        let to = &mut plan.limits;
        limits
            .set("max_connections", &mut to.max_connections, |value| integer(1..=MOST_OPEN)(value).map(Some));
        let over = [("wait", OverLimit::Wait), ("close", OverLimit::Close), ("reset", OverLimit::Reset)];
        limits.set("over_max_connections", &mut to.over, choice(&over));
        limits.set("reserved_descriptors", &mut to.headroom, integer(0..=65_536));
        to.per_client = per_client(&mut limits);
        limits.set("max_quic_connections", &mut to.max_quic_connections, integer(1..=MOST_OPEN));
        limits.set("max_tunnels", &mut to.max_tunnels, integer(0..=MOST_OPEN));
        limits.finish();
    }
    if let Some(mut admin) = root.table("admin", "`[admin]`") {
        let address = admin.need("address", "\"127.0.0.1:9090\"", socket_address);
        if let Some(address) = &address
            && !address.get_ref().ip().to_canonical().is_loopback()
        {
            let wrong = Wrong::new("the admin service is not on loopback: who can reach it can read it")
                .hint("use \"127.0.0.1:9090\", or keep others away with a firewall");
            admin.sink().warn(address.span(), wrong);
        }
        plan.admin = address.map(|address| AdminPlan::new(address.into_inner()));
        admin.finish();
    }
    plan.access_log = super::log::read(root);
    if let Some(forwarded) = root.table("forwarded", "`[forwarded]`") {
        forwarded_fields(forwarded, plan);
    }
    if let Some(upgrades) = root.table("upgrades", "`[upgrades]`") {
        self::upgrades(upgrades, &mut plan.upgrades);
    }
    if let Some(mut errors) = root.table("errors", "`[errors]`") {
        let formats =
            [("auto", Format::Auto), ("text", Format::Text), ("json", Format::Json), ("html", Format::Html)];
        errors.set("format", &mut plan.errors.format, choice(&formats));
        let mut proxy_status = false;
        errors.set("proxy_status", &mut proxy_status, boolean);
        plan.errors.proxy_status = proxy_status.then(|| ProxyName::new("portcullis")).flatten();
        errors.finish();
    }
}

/// `[reload]` and `[upgrade]`.
pub(crate) fn options(root: &mut Table<'_, '_>) -> ProcessOptions {
    let mut options = ProcessOptions::default();
    if let Some(mut reload) = root.table("reload", "`[reload]`") {
        reload.set("watch", &mut options.watch, boolean);
        reload.finish();
    }
    if let Some(mut upgrade) = root.table("upgrade", "`[upgrade]`") {
        upgrade.set("timeout", &mut options.upgrade_timeout, duration(ms(100)..=secs(3600)));
        upgrade.finish();
    }
    options
}

/// Keys that say more about `max_connections_per_client`.
const PER_CLIENT_KEYS: [&str; 5] =
    ["over_max_per_client", "client_delay", "client_prefix_v4", "client_prefix_v6", "uncounted_clients"];

fn per_client(limits: &mut Table<'_, '_>) -> Option<ClientLimit> {
    let Some(max) = limits.get("max_connections_per_client", integer(1..=MOST_OPEN)) else {
        for key in PER_CLIENT_KEYS {
            if let Some(at) = limits.key_span(key) {
                let wrong = Wrong::new(format!("`{key}` goes only with `max_connections_per_client`"));
                limits.sink().error(at, wrong.hint("remove it, or set the limit"));
            }
        }
        // the keys are known all the same
        let mut scrap = ClientLimit::new(1);
        client_details(limits, &mut scrap);
        return None;
    };
    let mut client = ClientLimit::new(max.into_inner());
    client_details(limits, &mut client);
    Some(client)
}

fn client_details(limits: &mut Table<'_, '_>, client: &mut ClientLimit) {
    #[derive(Clone, Copy, PartialEq)]
    enum Over {
        Close,
        Reset,
        Delay,
    }
    let mut over = Over::Close;
    let words = [("close", Over::Close), ("reset", Over::Reset), ("delay", Over::Delay)];
    limits.set("over_max_per_client", &mut over, choice(&words));
    let mut up_to = secs(5);
    if let (Some(at), true) = (limits.key_span("client_delay"), over != Over::Delay) {
        let wrong = Wrong::new("`client_delay` goes only with `over_max_per_client = \"delay\"`");
        limits.sink().error(at, wrong.hint("remove it, or delay"));
    }
    limits.set("client_delay", &mut up_to, duration(ms(10)..=secs(60)));
    client.over = match over {
        Over::Close => OverClient::Close,
        Over::Reset => OverClient::Reset,
        Over::Delay => OverClient::Delay { up_to },
    };
    limits.set("client_prefix_v4", &mut client.ipv4_prefix, integer(8..=32));
    limits.set("client_prefix_v6", &mut client.ipv6_prefix, integer(16..=128));
    if let Some(exempt) = limits.list("uncounted_clients", "\"10.0.0.0/8\"", network) {
        client.exempt = items(Some(exempt));
    }
}

/// The most protocols that can be allowed: they are looked through for every upgrade.
const MOST_PROTOCOLS: usize = 16;

fn upgrades(mut table: Table<'_, '_>, to: &mut UpgradePlan) {
    if let Some((protocols, _)) = table.list_or_empty("protocols", "\"websocket\"", protocol) {
        let at = protocols.span();
        let protocols = protocols.into_inner();
        if protocols.len() > MOST_PROTOCOLS {
            let wrong = Wrong::new(format!("`protocols` has more than {MOST_PROTOCOLS} entries"));
            table.sink().error(at, wrong);
        }
        let none = UpgradeProtocols::none();
        to.protocols = protocols.iter().fold(none, |allowed, protocol| {
            // each was allowed by itself when it was read
            allowed.clone().allow(protocol.get_ref()).unwrap_or(allowed)
        });
    }
    table.set("http2", &mut to.http2, boolean);
    table.set("idle_timeout", &mut to.relay.idle_timeout, duration(secs(1)..=secs(30 * 86_400)));
    table.finish();
}

fn protocol(value: &DeValue<'_>) -> Read<String> {
    let protocol = word(value, "a protocol", "\"websocket\"")?;
    match UpgradeProtocols::none().allow(protocol) {
        Ok(_) => Ok(protocol.to_owned()),
        Err(error) => Err(Wrong::new(format!("{error}: \"{}\"", escape(protocol)))
            .hint("for example \"websocket\"; HTTP and TLS inside a tunnel would pass every rule by")),
    }
}

fn health_path(value: &DeValue<'_>) -> Read<Option<String>> {
    match value {
        DeValue::String(text) if text.is_empty() => Ok(None),
        _ => net::path(value).map(Some),
    }
}

/// A network, or the peers of unix sockets, whose address is the unspecified one.
pub(crate) fn forwarder(value: &DeValue<'_>) -> Read<ipnet::IpNet> {
    match value {
        DeValue::String(text) if text == "unix" => Ok(std::net::IpAddr::from([0, 0, 0, 0]).into()),
        _ => network(value),
    }
}

/// A pseudonym for `Via`.
fn via(value: &DeValue<'_>) -> Read<Option<Via>> {
    let name = word(value, "a name", "edge")?;
    let wrong = || {
        Wrong::new(format!("\"{}\" is no name for `Via`", escape(name)))
            .hint("letters, digits, `-`, `.` and `_` make one (RFC 9110 section 5.6.2)")
    };
    Via::new(name).map(Some).map_err(|_| wrong())
}

fn forwarded_fields(mut forwarded: Table<'_, '_>, plan: &mut Plan) {
    const EXAMPLE: &str = "\"10.0.0.0/8\"";
    // the table says something without it if it has another key
    let other = ["headers", "port", "via"].iter().any(|key| forwarded.key_span(key).is_some());
    let port_at = forwarded.key_span("port");
    let styles = [
        ("x-forwarded", ForwardedStyle::XForwarded),
        ("forwarded", ForwardedStyle::Forwarded),
        ("both", ForwardedStyle::Both),
        ("none", ForwardedStyle::None),
    ];
    forwarded.set("headers", &mut plan.forwarded.style, choice(&styles));
    forwarded.set("port", &mut plan.forwarded.port, boolean);
    forwarded.set("via", &mut plan.via, via);
    if let Some(at) = port_at
        && plan.forwarded.port
        && matches!(plan.forwarded.style, ForwardedStyle::Forwarded | ForwardedStyle::None)
    {
        let wrong = Wrong::new("`port` goes only with `headers = \"x-forwarded\"` or `\"both\"`");
        forwarded.sink().error(at, wrong.hint("remove it: `X-Forwarded-Port` is one of those fields"));
    }
    let trusted = if other {
        forwarded.list("trusted", EXAMPLE, forwarder)
    } else {
        forwarded.need_list("trusted", EXAMPLE, forwarder)
    };
    if let Some(trusted) = trusted {
        for network in trusted.get_ref().iter().filter(|network| network.get_ref().prefix_len() == 0) {
            let wrong = Wrong::new(format!("`{}` trusts everybody to say who they are", network.get_ref()))
                .hint("name only the networks of your own proxies");
            forwarded.sink().warn(network.span(), wrong);
        }
        plan.trusted_proxies = items(Some(trusted));
    }
    forwarded.finish();
}

/// `[timeouts]`, for every listener.
#[derive(Debug, Default)]
pub(crate) struct Timeouts {
    pub(crate) handshake: Option<Duration>,
    pub(crate) header: Option<Duration>,
    pub(crate) idle: Option<Duration>,
}

pub(crate) fn timeouts(root: &mut Table<'_, '_>) -> Timeouts {
    let mut timeouts = Timeouts::default();
    if let Some(mut table) = root.table("timeouts", "`[timeouts]`") {
        let from = |least| move |value: &DeValue<'_>| duration(least..=secs(3600))(value).map(Some);
        table.set("handshake", &mut timeouts.handshake, from(ms(100)));
        table.set("header", &mut timeouts.header, from(ms(100)));
        table.set("idle", &mut timeouts.idle, from(secs(1)));
        table.finish();
    }
    timeouts
}
