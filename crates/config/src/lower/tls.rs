//! `[listener.tls]` and `[[listener.tls.host]]`.

use std::path::PathBuf;

use portcullis_edge::{
    plan::{
        ClientAuthPlan, HostTlsPlan, ListenerMode, ListenerPlan, PlainHttp, ResumptionPlan, TlsPlan,
        WithoutCertificate,
    },
    tls::{UnknownNames, Versions, ZeroRtt},
};

use crate::{
    disk::path,
    net::host_pattern,
    reader::{Spanned, Table, Wrong, items},
    values::{choice, integer, size},
};

const VERSIONS: &[(&str, Versions)] = &[("1.3", Versions::Tls13Only), ("1.2", Versions::Tls12AndUp)];

#[derive(Clone, Copy, PartialEq)]
enum How {
    Tickets,
    ZeroRtt,
    Off,
}

/// Keys that go with one way of resumption.
const RESUMPTION_KEYS: &[(&str, How, &str)] = &[
    ("ticket_keys", How::Tickets, "tickets"),
    ("max_early_data", How::ZeroRtt, "zero-rtt"),
    ("sessions", How::ZeroRtt, "zero-rtt"),
];

/// Reads them into the plan.
pub(crate) fn read(table: &mut Table<'_, '_>, plan: &mut ListenerPlan) {
    let Some(mut tls) = table.table("tls", "`[listener.tls]`") else { return };
    let is_serve = matches!(plan.mode, ListenerMode::Https { plain_http: PlainHttp::Serve, .. });
    let serves_plain = is_serve.then(|| tls.span());
    let to = &mut plan.tls;
    tls.set("min_version", &mut to.versions, choice(VERSIONS));
    to.resumption = resumption(&mut tls);
    let unknown = [("default", UnknownNames::Default), ("refuse", UnknownNames::Refuse)];
    tls.set("unknown_names", &mut to.unknown_names, choice(&unknown));
    let asked_at = tls.key_span("client_auth");
    to.client_auth = client_auth(&mut tls);
    let without = [("error", WithoutCertificate::Fail), ("plain-http", WithoutCertificate::PlainHttp)];
    let at = tls.key_span("without_certificate");
    tls.set("without_certificate", &mut to.without_certificate, choice(&without));
    let goes_plain = at.filter(|_| to.without_certificate != WithoutCertificate::Fail);
    tls.set("handshakes_at_once", &mut to.handshakes_at_once, integer(1..=1000));
    if let (ResumptionPlan::ZeroRtt(_), true, Some(at)) =
        (&to.resumption, to.client_auth != ClientAuthPlan::None, asked_at)
    {
        let wrong = Wrong::new("`client_auth` does not go with `resumption = \"zero-rtt\"`")
            .hint("a replayed request would have the certificate's rights; use \"tickets\"");
        tls.sink().error(at, wrong);
    }
    let hosts: Vec<_> = tls
        .tables("host", "`[[listener.tls.host]]`")
        .into_iter()
        .filter_map(|table| host(table, to))
        .collect();
    to.hosts = hosts;
    let is_asked = to.asks_for_certificates();
    for (at, does, instead) in [
        (serves_plain, "`plain_http = \"serve\"`", "\"redirect\" or \"refuse\""),
        (goes_plain, "`without_certificate = \"plain-http\"`", "\"error\""),
    ] {
        if let (Some(at), true) = (at, is_asked) {
            let wrong = Wrong::new(format!("{does} does not go with `client_auth`"));
            tls.sink().error(at, wrong.hint(format!("without TLS nobody would be asked; use {instead}")));
        }
    }
    tls.finish();
}

fn resumption(tls: &mut Table<'_, '_>) -> ResumptionPlan {
    let words = [("tickets", How::Tickets), ("zero-rtt", How::ZeroRtt), ("off", How::Off)];
    let mut how = How::Tickets;
    tls.set("resumption", &mut how, choice(&words));
    for (key, wanted, name) in RESUMPTION_KEYS {
        if how != *wanted
            && let Some(at) = tls.key_span(key)
        {
            let wrong = Wrong::new(format!("`{key}` goes only with `resumption = \"{name}\"`"));
            tls.sink().error(at, wrong.hint("remove it, or change `resumption`"));
        }
    }
    let keys = tls.get("ticket_keys", path).map(Spanned::into_inner);
    let mut early = ZeroRtt::default();
    tls.set("max_early_data", &mut early.max_early_data, size(1..=16 << 10));
    tls.set("sessions", &mut early.sessions, integer(16..=10_000_000));
    match how {
        How::Off => ResumptionPlan::Off,
        How::Tickets => ResumptionPlan::Tickets { keys },
        How::ZeroRtt => ResumptionPlan::ZeroRtt(early),
    }
}

fn client_auth(table: &mut Table<'_, '_>) -> ClientAuthPlan {
    #[derive(Clone, Copy, PartialEq)]
    enum Ask {
        No,
        Optional,
        Required,
    }
    let mut ask = Ask::No;
    let words = [("none", Ask::No), ("optional", Ask::Optional), ("required", Ask::Required)];
    table.set("client_auth", &mut ask, choice(&words));
    if ask == Ask::No {
        for key in ["client_ca", "client_crls"] {
            if let Some(at) = table.key_span(key) {
                let wrong = Wrong::new(format!("`{key}` goes only with `client_auth`"));
                table.sink().error(at, wrong.hint("add `client_auth = \"required\"`, or remove it"));
            }
        }
    }
    let ca = if ask == Ask::No {
        table.get("client_ca", path)
    } else {
        table.need("client_ca", "\"clients-ca.pem\"", path)
    };
    let crls: Vec<PathBuf> =
        table.list("client_crls", "\"revoked.pem\"", path).map(|list| items(Some(list))).unwrap_or_default();
    let Some(ca) = ca.map(Spanned::into_inner) else { return ClientAuthPlan::None };
    match ask {
        Ask::No => ClientAuthPlan::None,
        Ask::Optional => ClientAuthPlan::Optional { ca, crls },
        Ask::Required => ClientAuthPlan::Required { ca, crls },
    }
}

/// What it does not say is as the listener has it.
fn host(mut table: Table<'_, '_>, listener: &TlsPlan) -> Option<HostTlsPlan> {
    let names = table.need_list("names", "\"admin.example.com\"", host_pattern);
    let mut versions = listener.versions;
    table.set("min_version", &mut versions, choice(VERSIONS));
    let is_said = table.key_span("client_auth").is_some();
    let own = client_auth(&mut table);
    // left out it is the listener's: less is asked of nobody by accident
    let client_auth = if is_said { own } else { listener.client_auth.clone() };
    table.finish();
    let names = items(Some(names?));
    let mut host = HostTlsPlan::new(names, client_auth);
    host.versions = versions;
    Some(host)
}
