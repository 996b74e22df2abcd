//! `[cluster.health]`.

use portcullis_edge::upstream::health::{
    Check, GrpcCheck, HealthOptions, HttpCheck, InitialHealth, TcpCheck,
};
use toml::de::DeValue;

use super::status_range;
use crate::{
    errors::escape,
    reader::{Read, Spanned, Table, Wrong, items},
    values::{choice, duration, integer, ms, secs, text, word},
};

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Http,
    Tcp,
    Grpc,
}

/// Keys, the kind that they belong to, and its name.
const KEYS: &[(&str, Kind, &str)] = &[
    ("path", Kind::Http, "http"),
    ("method", Kind::Http, "http"),
    ("host", Kind::Http, "http"),
    ("statuses", Kind::Http, "http"),
    ("contains", Kind::Http, "http"),
    ("send", Kind::Tcp, "tcp"),
    ("expect", Kind::Tcp, "tcp"),
    ("service", Kind::Grpc, "grpc"),
];

pub(super) fn read(mut table: Table<'_, '_>) -> Option<HealthOptions> {
    let span = table.span();
    let mut kind = Kind::Http;
    table.set("check", &mut kind, choice(&[("http", Kind::Http), ("tcp", Kind::Tcp), ("grpc", Kind::Grpc)]));
    for (key, wanted, name) in KEYS {
        if kind != *wanted
            && let Some(at) = table.key_span(key)
        {
            table.sink().error(at, Wrong::new(format!("`{key}` goes only with `check = \"{name}\"`")));
        }
    }
    let http = http(&mut table);
    let mut tcp = TcpCheck::default();
    if let Some(send) = table.get("send", bytes) {
        tcp = tcp.with_send(send.into_inner());
    }
    if let Some(expect) = table.get("expect", bytes) {
        tcp = tcp.with_expect(expect.into_inner());
    }
    let mut grpc = GrpcCheck::default();
    if let Some(service) = table.get("service", bytes) {
        grpc = grpc.with_service(service.into_inner());
    }
    let check = match kind {
        Kind::Http => Check::Http(http),
        Kind::Tcp => Check::Tcp(tcp),
        Kind::Grpc => Check::Grpc(grpc),
    };
    let mut options = HealthOptions::new(check);
    let time = || duration(ms(10)..=secs(3600));
    table.set("interval", &mut options.interval, time());
    options.unhealthy_interval = table.get("unhealthy_interval", time()).map(Spanned::into_inner);
    table.set("timeout", &mut options.timeout, time());
    table.set("healthy_after", &mut options.healthy_threshold, integer(1..=100));
    table.set("unhealthy_after", &mut options.unhealthy_threshold, integer(1..=100));
    let initial = [("healthy", InitialHealth::Healthy), ("unhealthy", InitialHealth::Unhealthy)];
    table.set("initial", &mut options.initial, choice(&initial));
    table.set("max_concurrent", &mut options.max_concurrent, integer(1..=10_000));
    if let Err(error) = options.validate() {
        table.sink().error(span, Wrong::new(error.to_string()));
    }
    table.finish();
    Some(options)
}

fn http(table: &mut Table<'_, '_>) -> HttpCheck {
    let path = table.get("path", path).map(Spanned::into_inner);
    let mut check = HttpCheck::new(path.unwrap_or(http::uri::PathAndQuery::from_static("/")));
    if let Some(method) =
        table.get("method", choice(&[("GET", false), ("HEAD", true)])).map(Spanned::into_inner)
    {
        check = check.with_method(if method { http::Method::HEAD } else { http::Method::GET });
    }
    if let Some(host) = table.get("host", host) {
        check = check.with_host(host.into_inner());
    }
    if let Some(statuses) = table.list("statuses", "\"200-299\"", status_range) {
        check = check.with_statuses(items(Some(statuses)));
    }
    if let Some(contains) = table.get("contains", bytes) {
        check = check.with_body_contains(contains.into_inner());
    }
    check
}

fn path(value: &DeValue<'_>) -> Read<http::uri::PathAndQuery> {
    let text = word(value, "a path", "/health")?;
    let wrong = || Wrong::new(format!("wants a path, found \"{}\"", escape(text))).hint("it begins with `/`");
    if !text.starts_with('/') {
        return Err(wrong());
    }
    text.parse().map_err(|_| wrong())
}

fn host(value: &DeValue<'_>) -> Read<http::HeaderValue> {
    let text = word(value, "a host", "app.internal")?;
    let fits = text.parse::<http::uri::Authority>().is_ok();
    fits.then(|| http::HeaderValue::try_from(text).ok())
        .flatten()
        .ok_or_else(|| Wrong::new(format!("wants a host, found \"{}\"", escape(text))))
}

fn bytes(value: &DeValue<'_>) -> Read<String> {
    match text(value)? {
        "" => Err(Wrong::new("is empty")),
        text if text.len() > 1024 => Err(Wrong::new("has more than 1024 bytes")),
        text => Ok(text.to_owned()),
    }
}
