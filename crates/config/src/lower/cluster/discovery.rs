//! Where the endpoints of a cluster come from: `endpoints`, `[cluster.file]` or `[cluster.dns]`.

use std::{net::SocketAddr, time::Duration};

use portcullis_edge::{
    plan::{DiscoveryPlan, EndpointPlan},
    upstream::discovery::{DnsFamily, DnsOptions, DnsRecords, DnsSource},
};
use toml::de::DeValue;

use crate::{
    disk::path,
    errors::escape,
    net::{endpoint, socket_address},
    reader::{Read, Spanned, Table, Wrong, items},
    values::{choice, duration, integer, ms, secs, word},
};

type Endpoints = Spanned<Vec<Spanned<EndpointPlan>>>;

/// Exactly one of the three.
pub(super) fn read(table: &mut Table<'_, '_>) -> (Option<Endpoints>, Option<DiscoveryPlan>) {
    let places = ["endpoints", "file", "dns"].map(|key| table.key_span(key));
    let mut given = places.iter().flatten();
    let first = given.next().cloned();
    for second in given {
        let wrong = Wrong::new("a cluster has its endpoints from one place alone");
        table
            .sink()
            .error(second.clone(), wrong.hint("keep `endpoints`, `[cluster.file]` or `[cluster.dns]`"));
    }
    let dns = table.table("dns", "`[cluster.dns]`").map(dns);
    let file = table.table("file", "`[cluster.file]`").map(file);
    if first.is_some() && places[0].is_none() {
        return (None, file.or(dns).flatten());
    }
    (table.need_list("endpoints", "\"127.0.0.1:3000\"", endpoint), None)
}

fn file(mut table: Table<'_, '_>) -> Option<DiscoveryPlan> {
    let path = table.need("path", "\"/run/app.endpoints\"", path);
    let mut interval = Duration::from_secs(1);
    table.set("interval", &mut interval, duration(ms(100)..=secs(3600)));
    table.finish();
    Some(DiscoveryPlan::File { path: path?.into_inner(), interval })
}

fn dns(mut table: Table<'_, '_>) -> Option<DiscoveryPlan> {
    let kinds = [("address", false), ("srv", true)];
    let mut services = false;
    table.set("records", &mut services, choice(&kinds));
    let name_of = |value: &DeValue<'_>| dns_name(value, services);
    let name = table.need(
        "name",
        if services { "\"_http._tcp.app.internal\"" } else { "\"app.internal\"" },
        name_of,
    );
    let records = if services {
        if let Some(at) = table.key_span("port") {
            let wrong = Wrong::new("`port` does not go with `records = \"srv\"`");
            table.sink().error(at, wrong.hint("SRV records have a port of their own"));
        }
        let _ = table.get("port", integer::<u16>(1..=65_535));
        Some(DnsRecords::Services)
    } else {
        let port = table.need("port", "3000", integer(1..=65_535));
        port.map(|port| DnsRecords::Addresses { port: port.into_inner() })
    };
    let mut options = DnsOptions::default();
    if let Some(servers) = table.list("servers", "\"10.0.0.2:53\"", server) {
        options.servers = items(Some(servers));
    }
    table.set("timeout", &mut options.timeout, duration(ms(100)..=secs(60)));
    table.set("attempts", &mut options.attempts, integer(1..=10));
    let families = [("both", DnsFamily::Both), ("ipv4", DnsFamily::V4), ("ipv6", DnsFamily::V6)];
    table.set("family", &mut options.family, choice(&families));
    let at = table.key_span("min_ttl").or(table.key_span("max_ttl"));
    table.set("min_ttl", &mut options.min_ttl, duration(ms(100)..=secs(86_400)));
    table.set("max_ttl", &mut options.max_ttl, duration(ms(100)..=secs(86_400)));
    if options.min_ttl > options.max_ttl
        && let Some(at) = at
    {
        table
            .sink()
            .error(at, Wrong::new("`min_ttl` is more than `max_ttl`").hint("swap them, or raise `max_ttl`"));
    }
    table.finish();
    Some(DiscoveryPlan::Dns { name: name?.into_inner(), records: records?, options })
}

/// A resolver's address, on port 53 if it says nothing else.
fn server(value: &DeValue<'_>) -> Read<SocketAddr> {
    let text = word(value, "the address of a resolver", "10.0.0.2:53")?;
    match text.parse() {
        Ok(ip) => Ok(SocketAddr::new(ip, 53)),
        Err(_) => socket_address(value),
    }
}

fn dns_name(value: &DeValue<'_>, services: bool) -> Read<String> {
    let text = word(value, "a name in DNS", "app.internal")?;
    let wrong = || Wrong::new(format!("`name` wants a name in DNS, found \"{}\"", escape(text)));
    if text.parse::<std::net::IpAddr>().is_ok() || text.contains([':', '/']) {
        return Err(wrong().hint("only the name: an address goes into `endpoints`, a port into `port`"));
    }
    if !DnsSource::is_name(text) {
        return Err(
            wrong().hint("labels of 1 to 63 ASCII characters with dots between them, as in \"app.internal\"")
        );
    }
    if services && !text.starts_with('_') {
        return Err(
            wrong().hint("SRV records stand at the service and its protocol: \"_http._tcp.app.internal\"")
        );
    }
    Ok(text.to_owned())
}
