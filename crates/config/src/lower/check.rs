//! What only the whole file shows: names that lead nowhere, things that stand twice, things that no one uses.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    net::SocketAddr,
};

use portcullis_edge::{
    listener::{BindPlan, ListenAddr, Overlap, TcpOptions, UnixOptions},
    plan::{AdminPlan, ClusterPlan, DiscoveryPlan, ListenOn},
    proxy::{RouteError, Router},
    upstream::discovery::DnsRecords,
};

use super::{certificate::Certificate, cluster::Cluster, listener::Listener, route::Route};
use crate::{
    errors::{Lines, escape},
    reader::{Sink, Spanned, Wrong},
    suggest::nearest,
};

fn first_on(lines: &Lines<'_>, at: usize) -> String {
    format!("the first one is on line {}", lines.number(at))
}

pub(crate) fn listeners(
    sink: &Sink,
    lines: &Lines<'_>,
    listeners: &[Listener],
    certificates: &[Certificate],
    on_demand: bool,
    admin: Option<&AdminPlan>,
) {
    if listeners.is_empty() {
        let wrong = Wrong::new("the file has no `[[listener]]`")
            .hint("add one with `address = \"[::]:443\"` and `protocol = \"https\"`");
        sink.absent(0..0, wrong);
    }
    conflicts(sink, lines, listeners, admin);
    split_port(sink, lines, listeners);

    let needs_one = listeners.iter().filter(|listener| listener.needs_certificate());
    if let (Some(protocol), true) = (
        needs_one.filter_map(|listener| listener.protocol.as_ref()).next(),
        certificates.is_empty() && !on_demand,
    ) {
        let wrong = Wrong::new("a listener speaks TLS but the file has no `[[certificate]]`")
            .hint("add one with `cert` and `key`, or with `acme = [\"www.example.com\"]` to have it issued, or for local use \
                   `self_signed = [\"localhost\"]`");
        sink.absent(protocol.span(), wrong);
    }
    if !listeners.iter().any(Listener::is_https) {
        for certificate in certificates {
            let wrong = Wrong::new("no listener speaks TLS: the certificate is not used");
            sink.warn(certificate.span.clone(), wrong.hint("a listener needs `protocol = \"https\"`"));
        }
    }
}

/// Addresses that can't be bound together, by the rules of those who bind them.
fn conflicts(sink: &Sink, lines: &Lines<'_>, listeners: &[Listener], admin: Option<&AdminPlan>) {
    let mut with_address = Vec::new();
    let mut inherited: HashMap<&str, usize> = HashMap::new();
    let mut plan = BindPlan::new();
    for listener in listeners {
        let Some(address) = &listener.address else { continue };
        plan = match address.get_ref() {
            ListenOn::Address(ListenAddr::Ip(ip)) => {
                plan.tcp(*ip, TcpOptions::default()).only_v6(listener.only_v6)
            }
            ListenOn::Address(ListenAddr::Unix(name)) => plan.unix(name.clone(), UnixOptions::default()),
            ListenOn::Inherited(name) => {
                match inherited.entry(name) {
                    Entry::Occupied(first) => {
                        let wrong = Wrong::new(format!(
                            "the sockets called \"{}\" are listened on twice",
                            escape(name)
                        ));
                        sink.error(address.span(), wrong.hint(first_on(lines, *first.get())));
                    }
                    Entry::Vacant(entry) => {
                        entry.insert(listener.span.start);
                    }
                }
                continue;
            }
            _ => continue,
        };
        plan = plan.shared(listener.shared);
        with_address.push((listener, address));
    }
    if let Some(admin) = admin {
        plan = plan.tcp(admin.address, TcpOptions::default());
    }
    for conflict in plan.check().err().iter().flat_map(|error| error.conflicts()) {
        let (first, first_address) = with_address[conflict.first];
        let Some((_, second_address)) = with_address.get(conflict.second) else {
            let wrong = Wrong::new(format!(
                "the address {} is in the way of the admin service on {}",
                conflict.first_address, conflict.second_address
            ));
            sink.error(first_address.span(), wrong.hint("give one of them another port"));
            continue;
        };
        let (here, there) = (&conflict.second_address, &conflict.first_address);
        let line = lines.number(first.span.start);
        let (message, hint) = match conflict.overlap {
            Overlap::Same | Overlap::SamePath => (
                format!("the address {here} is listened on twice"),
                format!("the first one is on line {line}"),
            ),
            Overlap::DualStack => (
                format!("{here} and {there} both take IPv4 on port {}", here.ip().map_or(0, |ip| ip.port())),
                format!(
                    "the other one is on line {line}; give the IPv6 one `only_v6 = true`, or leave the IPv4 one out"
                ),
            ),
            _ => (
                format!("{here} and {there} clash: one of them is every address"),
                format!("the other one is on line {line}; leave one out, or name each address"),
            ),
        };
        sink.error(second_address.span(), Wrong::new(message).hint(hint));
    }
}

/// HTTPS for IPv6 and a redirect for IPv4 on one port: who comes by IPv4 is sent to where he already is.
fn split_port(sink: &Sink, lines: &Lines<'_>, listeners: &[Listener]) {
    let at = |listener: &Listener| listener.address.as_ref().and_then(|address| address.get_ref().ip());
    let is_v4 = |address: SocketAddr| address.ip().to_canonical().is_ipv4();
    for secure in listeners.iter().filter(|listener| listener.is_https()) {
        let Some(address) = &secure.address else { continue };
        let Some(v6) = address.get_ref().ip() else { continue };
        let takes_v4 = is_v4(v6) || v6.ip().is_unspecified() && !secure.only_v6;
        if takes_v4 || v6.port() == 0 {
            continue;
        }
        let redirect = listeners.iter().filter(|other| other.is_redirect()).find_map(|other| {
            at(other).filter(|v4| is_v4(*v4) && v4.port() == v6.port()).map(|v4| (other, v4))
        });
        if let Some((other, v4)) = redirect {
            let line = lines.number(other.span.start);
            let wrong = Wrong::new(format!(
                "IPv4 users get no HTTPS: port {} is HTTPS on IPv6 only, and {v4} (line {line}) only redirects",
                v6.port()
            ))
            .hint("one listener on `[::]` without `only_v6` serves both, and redirects plain HTTP on the same port");
            sink.warn(address.span(), wrong);
        }
    }
}

/// `asked`: the clusters that the edge's own chain names.
pub(crate) fn routes(
    sink: &Sink,
    lines: &Lines<'_>,
    routes: &[Route],
    asked: &[Spanned<String>],
    clusters: &[Cluster],
) {
    let mut names: HashMap<&str, usize> = HashMap::new();
    for cluster in clusters {
        let Some(name) = &cluster.name else { continue };
        match names.get(name.get_ref().as_str()) {
            Some(first) => {
                let wrong = Wrong::new(format!("two clusters are called \"{}\"", escape(name.get_ref())));
                sink.error(name.span(), wrong.hint(first_on(lines, *first)));
            }
            None => {
                names.insert(name.get_ref(), cluster.span.start);
            }
        }
    }

    ambiguous(sink, lines, routes);
    let named = || routes.iter().flat_map(|route| &route.clusters).chain(asked);
    for cluster in named() {
        if !names.contains_key(cluster.get_ref().as_str()) {
            unknown_cluster(sink, cluster.span(), cluster.get_ref(), clusters);
        }
    }
    for route in routes {
        if let Some((at, own)) = &route.endpoint_host {
            one_endpoint_each(sink, at, &route.clusters[..*own], clusters);
        }
    }

    let used: HashSet<_> = named().map(|cluster| cluster.get_ref()).collect();
    for cluster in clusters {
        let Some(name) = &cluster.name else { continue };
        if !used.contains(name.get_ref()) {
            let wrong = Wrong::new(format!("no route leads to the cluster \"{}\"", escape(name.get_ref())));
            sink.warn(name.span(), wrong);
        }
    }
}

/// Routes that can't be, or of which nothing says which one goes first.
fn ambiguous(sink: &Sink, lines: &Lines<'_>, routes: &[Route]) {
    let mut builder = Router::<()>::builder();
    let mut added = Vec::new();
    for route in routes {
        let Some(matches) = &route.matches else { continue };
        match builder.add(matches.clone(), ()) {
            Ok(()) => added.push(route.span.start),
            Err(RouteError::Ambiguous { other, route: name, .. }) => {
                let wrong = Wrong::new(format!("two routes match the same, {}", escape(&name)));
                let first = first_on(lines, added[other]);
                let hint = format!("{first}; where both are meant, give one of them a `priority`");
                sink.error(route.span.clone(), wrong.hint(hint));
            }
            Err(error) => sink.error(route.span.clone(), Wrong::new(escape(&error.to_string()))),
        }
    }
    if let Err(error) = builder.build()
        && let Some(first) = routes.first()
    {
        sink.error(first.span.clone(), Wrong::new(escape(&error.to_string())));
    }
}

/// Why there is no one name that all of its endpoints go by, if there is none.
fn no_one_host(plan: &ClusterPlan) -> Option<&'static str> {
    match (&*plan.endpoints, &plan.discovery) {
        ([endpoint], None) if endpoint.address.starts_with("unix:") => {
            Some("is a unix socket, which has no host")
        }
        ([] | [_], None) => None,
        (_, Some(DiscoveryPlan::Dns { records: DnsRecords::Addresses { .. }, .. })) => None,
        _ => Some("has several endpoints"),
    }
}

/// `upstream_host = "endpoint"` needs clusters whose endpoints go by one name.
fn one_endpoint_each(
    sink: &Sink,
    at: &std::ops::Range<usize>,
    named: &[crate::reader::Spanned<String>],
    clusters: &[Cluster],
) {
    let why = |name: &str| {
        let plans = clusters.iter().filter_map(|cluster| cluster.plan.as_ref());
        plans.filter(|plan| plan.name == name).find_map(no_one_host)
    };
    for name in named {
        let Some(why) = why(name.get_ref()) else { continue };
        let name = escape(name.get_ref());
        let wrong =
            Wrong::new(format!("`upstream_host` can not be \"endpoint\": the cluster \"{name}\" {why}"));
        sink.error(at.clone(), wrong.hint("name the host that it answers for"));
    }
}

fn unknown_cluster(sink: &Sink, span: std::ops::Range<usize>, name: &str, clusters: &[Cluster]) {
    let names: Vec<&str> =
        clusters.iter().filter_map(|cluster| Some(cluster.name.as_ref()?.get_ref().as_str())).collect();
    let wrong = Wrong::new(format!("there is no cluster \"{}\"", escape(name)));
    let wrong = match nearest(name, names.iter().copied()) {
        Some(meant) => wrong.hint(format!("did you mean \"{}\"?", escape(meant))),
        None if names.is_empty() => {
            wrong.hint(format!("add a `[[cluster]]` with `name = \"{}\"`", escape(name)))
        }
        None => {
            const SHOWN: usize = 10;
            let more = if names.len() > SHOWN { ", …" } else { "" };
            let names: Vec<_> =
                names.iter().take(SHOWN).map(|name| format!("\"{}\"", escape(name))).collect();
            wrong.hint(format!("clusters of this file: {}{more}", names.join(", ")))
        }
    };
    sink.absent(span, wrong);
}
