//! What is spoken to the endpoints of a cluster, and through what.

use portcullis_edge::{
    plan::{ClusterPlan, ProxyHeader, UpstreamRoots, UpstreamTlsPlan},
    tls::Versions,
    upstream::Protocol,
};
use toml::de::DeValue;

use crate::{
    disk::path,
    net::certificate_name,
    reader::{Read, Spanned, Table, Wrong},
    values::{boolean, choice},
};

/// The keys that mean nothing without TLS.
const TLS_KEYS: &[&str] =
    &["tls_server_name", "tls_ca", "tls_verify", "tls_certificate", "tls_key", "tls_min_version"];

pub(super) fn read(table: &mut Table<'_, '_>, plan: &mut ClusterPlan) {
    let protocols = [
        ("http1", (Protocol::Http1, false)),
        ("http2", (Protocol::Http2, false)),
        ("http3", (Protocol::Http1, true)),
        ("auto", (Protocol::ByAlpn, false)),
    ];
    let protocol_at = table.key_span("protocol");
    let mut protocol = (plan.options.protocol, plan.http3);
    table.set("protocol", &mut protocol, choice(&protocols));
    (plan.options.protocol, plan.http3) = protocol;
    table.set("title_case", &mut plan.options.title_case, boolean);
    let headers = [("v1", ProxyHeader::V1), ("v2", ProxyHeader::V2)];
    plan.proxy_header = table.get("proxy_protocol", choice(&headers)).map(Spanned::into_inner);
    plan.tls = tls(table);
    if plan.tls.is_none()
        && plan.options.protocol == Protocol::ByAlpn
        && let Some(at) = protocol_at.clone()
    {
        let wrong = Wrong::new("`protocol = \"auto\"` is decided in the TLS handshake, and there is none");
        table.sink().error(at, wrong.hint("add `tls = true`, or write \"http1\" or \"http2\""));
    }
    if plan.http3
        && let Some(at) = protocol_at
    {
        if plan.tls.is_none() {
            let wrong = Wrong::new("HTTP/3 is spoken over TLS alone");
            table.sink().error(at.clone(), wrong.hint("add `tls = true`"));
        }
        if plan.proxy_header.is_some() {
            let wrong = Wrong::new("`proxy_protocol` is for connections over TCP: QUIC has none");
            table.sink().error(at, wrong.hint("remove `proxy_protocol`, or speak \"http1\" or \"http2\""));
        }
    }
}

fn tls(table: &mut Table<'_, '_>) -> Option<UpstreamTlsPlan> {
    let mut on = false;
    table.set("tls", &mut on, boolean);
    for key in TLS_KEYS {
        if !on && let Some(at) = table.key_span(key) {
            let wrong = Wrong::new(format!("`{key}` goes only with `tls = true`"));
            table.sink().error(at, wrong);
        }
    }
    let mut plan = UpstreamTlsPlan::default();
    plan.server_name = table.get("tls_server_name", server_name).map(Spanned::into_inner);
    let ca_at = table.key_span("tls_ca");
    if let Some(ca) = table.get("tls_ca", path) {
        plan.roots = UpstreamRoots::File(ca.into_inner());
    }
    let mut verify = true;
    table.set("tls_verify", &mut verify, boolean);
    if !verify {
        if let Some(at) = ca_at {
            let wrong = Wrong::new("`tls_ca` does not go with `tls_verify = false`");
            table.sink().error(at, wrong.hint("remove one: with an authority there is something to verify"));
        }
        plan.roots = UpstreamRoots::DangerouslyAcceptAnyCertificate;
    }
    let pair_at = ["tls_certificate", "tls_key"].map(|key| table.key_span(key));
    let chain = table.get("tls_certificate", path);
    let key = table.get("tls_key", path);
    match (chain, key, pair_at) {
        (Some(chain), Some(key), _) => plan.identity = Some((chain.into_inner(), key.into_inner())),
        (_, _, [Some(at), None] | [None, Some(at)]) => {
            table.sink().error(at, Wrong::new("`tls_certificate` and `tls_key` go together"));
        }
        _ => {}
    }
    let versions = [("1.2", Versions::Tls12AndUp), ("1.3", Versions::Tls13Only)];
    table.set("tls_min_version", &mut plan.versions, choice(&versions));
    on.then_some(plan)
}

fn server_name(value: &DeValue<'_>) -> Read<String> {
    let name = certificate_name(value)?;
    if name.starts_with("*.") {
        return Err(
            Wrong::new(format!("wants one name, found \"{name}\"")).hint("a wildcard stands for many")
        );
    }
    Ok(name)
}
