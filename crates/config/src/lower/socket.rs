//! `[listener.tcp]`, `[listener.udp]`, `[listener.unix]` and `[listener.proxy_protocol]`.

use portcullis_edge::{
    listener::{Keepalive, ListenAddr, Presence, ProxyProtocolOptions, UnixOwner},
    plan::{ListenOn, ListenerPlan},
};
use toml::de::DeValue;

use crate::{
    errors::escape,
    net::network,
    reader::{Read, Spanned, Table, Wrong},
    values::{boolean, duration, integer, ms, secs, size, whole_seconds, word},
};

/// Reads them into the plan.
pub(crate) fn read(table: &mut Table<'_, '_>, plan: &mut ListenerPlan, address: Option<&Spanned<ListenOn>>) {
    let is_unix = match &plan.address {
        ListenOn::Address(ListenAddr::Unix(_)) => Some(true),
        ListenOn::Address(_) => Some(false),
        _ => None,
    };
    // told only where the address is known to be of another kind
    let misplaced = |table: &Table<'_, '_>, what: &str| {
        if address.is_some() {
            let wrong = Wrong::new(format!("{what} has no meaning for {}", escape(&plan_name(address))));
            table.sink().error(table.span(), wrong.hint("remove it"));
        }
    };
    if let Some(mut tcp) = table.table("tcp", "`[listener.tcp]`") {
        if is_unix == Some(true) {
            misplaced(&tcp, "`[listener.tcp]`");
        }
        read_tcp(&mut tcp, plan);
        tcp.finish();
    }
    if let Some(mut udp) = table.table("udp", "`[listener.udp]`") {
        if is_unix == Some(true) {
            misplaced(&udp, "`[listener.udp]`");
        }
        udp.set("recv_buffer", &mut plan.udp.recv_buffer, size(4 << 10..=1 << 30));
        udp.set("send_buffer", &mut plan.udp.send_buffer, size(4 << 10..=1 << 30));
        udp.finish();
    }
    if let Some(mut unix) = table.table("unix", "`[listener.unix]`") {
        if is_unix == Some(false) {
            misplaced(&unix, "`[listener.unix]`");
        }
        unix.set("mode", &mut plan.unix.mode, mode);
        unix.set("user", &mut plan.unix.user, owner);
        unix.set("group", &mut plan.unix.group, owner);
        unix.finish();
    }
    if let Some(proxy) = table.table("proxy_protocol", "`[listener.proxy_protocol]`") {
        plan.proxy_protocol = proxy_protocol(proxy, is_unix == Some(true));
    }
}

fn plan_name(address: Option<&Spanned<ListenOn>>) -> String {
    address.map_or_else(String::new, |address| address.get_ref().to_string())
}

fn read_tcp(tcp: &mut Table<'_, '_>, plan: &mut ListenerPlan) {
    let to = &mut plan.tcp;
    tcp.set("nodelay", &mut to.nodelay, boolean);
    let buffer = |value: &DeValue<'_>| size(4 << 10..=1 << 30)(value).map(Some);
    tcp.set("recv_buffer", &mut to.recv_buffer, buffer);
    tcp.set("send_buffer", &mut to.send_buffer, buffer);
    tcp.set("notsent_lowat", &mut to.notsent_lowat, |value| size(1..=1 << 30)(value).map(Some));
    tcp.set("fast_open", &mut to.fast_open, |value| integer(1..=65_535)(value).map(Some));
    tcp.set("defer_accept", &mut to.defer_accept, |value| whole_seconds(secs(1)..=secs(60))(value).map(Some));
    tcp.set("user_timeout", &mut to.user_timeout, |value| duration(ms(100)..=secs(3600))(value).map(Some));
    tcp.set("congestion", &mut to.congestion, |value| congestion(value).map(Some));
    tcp.set("dscp", &mut to.dscp, |value| integer(0..=63)(value).map(Some));

    // Linux takes at most 32767 s
    let seconds = |value: &DeValue<'_>| whole_seconds(secs(1)..=secs(9 * 3600))(value);
    let idle = tcp.get("keepalive", seconds);
    for key in ["keepalive_interval", "keepalive_retries"] {
        if let (Some(at), None) = (tcp.key_span(key), &idle) {
            let wrong = Wrong::new(format!("`{key}` goes only with `keepalive`"));
            tcp.sink().error(at, wrong.hint("remove it, or set `keepalive`"));
        }
    }
    let mut keepalive = Keepalive::from(idle.as_ref().map_or(secs(1), |idle| *idle.get_ref()));
    tcp.set("keepalive_interval", &mut keepalive.interval, |value| seconds(value).map(Some));
    tcp.set("keepalive_retries", &mut keepalive.retries, |value| integer(1..=127)(value).map(Some));
    to.keepalive = idle.map(|_| keepalive);
}

/// A name as the kernel lists it.
fn congestion(value: &DeValue<'_>) -> Read<String> {
    let text = word(value, "the name of a congestion control", "bbr")?;
    let fits = (1..16).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    fits.then(|| text.to_owned()).ok_or_else(|| {
        Wrong::new(format!("wants the name of a congestion control, found \"{}\"", escape(text)))
            .hint("`sysctl net.ipv4.tcp_available_congestion_control` lists them")
    })
}

/// The bits of a file's mode, written as `chmod` takes them.
fn mode(value: &DeValue<'_>) -> Read<Option<u32>> {
    let text = word(value, "the bits of a mode", "0660")?;
    let bits = u32::from_str_radix(text, 8).ok().filter(|bits| text.len() >= 3 && *bits <= 0o777);
    bits.map(Some).ok_or_else(|| {
        Wrong::new(format!("wants the bits of a mode, found \"{}\"", escape(text)))
            .hint("three octal digits, as chmod takes them: \"0660\"")
    })
}

/// A user or a group by name or number.
fn owner(value: &DeValue<'_>) -> Read<Option<UnixOwner>> {
    let name = word(value, "a name or a number", "www-data")?;
    let fits =
        (1..=256).contains(&name.len()) && !name.contains([':', '/']) && !name.chars().any(char::is_control);
    if !fits {
        let wrong = Wrong::new(format!("wants a name or a number, found \"{}\"", escape(name)));
        return Err(wrong.hint("a name of /etc/passwd or /etc/group, such as \"www-data\""));
    }
    Ok(Some(name.parse().map_or_else(|_| UnixOwner::Name(name.to_owned()), UnixOwner::Id)))
}

/// Who may connect to a unix socket is trusted: its mode says who that is.
fn proxy_protocol(mut table: Table<'_, '_>, is_unix: bool) -> Option<ProxyProtocolOptions> {
    const EXAMPLE: &str = "\"10.0.0.0/8\"";
    let trusted = if is_unix {
        table.list("trusted", EXAMPLE, network)
    } else {
        table.need_list("trusted", EXAMPLE, network)
    };
    let mut options = ProxyProtocolOptions::default();
    if let Some(trusted) = &trusted {
        for network in trusted.get_ref().iter().filter(|network| network.get_ref().prefix_len() == 0) {
            let wrong = Wrong::new(format!("`{}` lets everybody say who they are", network.get_ref()))
                .hint("name only the networks of your own proxies");
            table.sink().warn(network.span(), wrong);
        }
        options.trusted = trusted.get_ref().iter().map(|network| *network.get_ref()).collect();
    }
    table.set("timeout", &mut options.timeout, duration(ms(100)..=secs(60)));
    let mut required = true;
    table.set("required", &mut required, boolean);
    options.presence = if required { Presence::Required } else { Presence::Optional };
    table.finish();
    options.trust_unix = is_unix;
    (is_unix || trusted.is_some()).then_some(options)
}
