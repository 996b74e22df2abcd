//! `[[listener]]`.

use std::ops::Range;

use portcullis_edge::{
    listener::ListenAddr,
    plan::{ListenOn, ListenerMode, ListenerPlan, PlainHttp, WithoutCertificate},
};

use super::{
    http,
    process::{MOST_OPEN, Timeouts},
    quic, socket, tls,
};
use crate::{
    errors::escape,
    net::listen_on,
    reader::{Spanned, Table, Wrong},
    values::{boolean, choice, integer, size},
};

/// A listener with what the checks point at.
pub(crate) struct Listener {
    pub(crate) address: Option<Spanned<ListenOn>>,
    pub(crate) protocol: Option<Spanned<Protocol>>,
    pub(crate) only_v6: bool,
    pub(crate) shared: bool,
    pub(crate) span: Range<usize>,
    /// Whole if address and protocol are.
    pub(crate) plan: Option<ListenerPlan>,
}

impl Listener {
    fn speaks(&self, protocol: Protocol) -> bool {
        self.protocol.as_ref().is_some_and(|found| *found.get_ref() == protocol)
    }

    pub(crate) fn is_https(&self) -> bool {
        self.speaks(Protocol::Https)
    }

    /// Whether nothing can start without a certificate for it.
    pub(crate) fn needs_certificate(&self) -> bool {
        let fails = |plan: &ListenerPlan| plan.tls.without_certificate == WithoutCertificate::Fail;
        self.is_https() && self.plan.as_ref().is_none_or(fails)
    }

    pub(crate) fn is_redirect(&self) -> bool {
        self.speaks(Protocol::Redirect)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Https,
    Http,
    Redirect,
}

const PROTOCOLS: &[(&str, Protocol)] =
    &[("https", Protocol::Https), ("http", Protocol::Http), ("redirect", Protocol::Redirect)];

/// Keys that go with one protocol only.
const PROTOCOL_KEYS: &[(&str, Protocol, &str)] = &[
    ("http3", Protocol::Https, "https"),
    ("plain_http", Protocol::Https, "https"),
    ("redirect_port", Protocol::Redirect, "redirect"),
    ("tls", Protocol::Https, "https"),
    ("quic", Protocol::Https, "https"),
];

pub(crate) fn read(mut table: Table<'_, '_>, timeouts: &Timeouts) -> Listener {
    let span = table.span();
    let address = table.need("address", "\"[::]:443\"", listen_on);
    let protocol = table.need("protocol", "\"https\"", choice(PROTOCOLS));
    if let Some(protocol) = &protocol {
        for (key, wanted, name) in PROTOCOL_KEYS {
            if protocol.get_ref() != wanted
                && let Some(at) = table.key_span(key)
            {
                let wrong = Wrong::new(format!("`{key}` goes only with `protocol = \"{name}\"`"));
                table.sink().error(at, wrong.hint("remove it, or change the protocol"));
            }
        }
    }
    let unix = address.as_ref().is_some_and(|address| is_unix(address.get_ref()));
    let (mut http3, mut plain_http, mut redirect_port) = (!unix, PlainHttp::default(), 443);
    table.set("http3", &mut http3, boolean);
    if let (true, true, Some(address)) = (unix, http3, &address) {
        let wrong = Wrong::new("HTTP/3 is UDP: there is none on a unix socket");
        table.sink().error(address.span(), wrong.hint("remove `http3`"));
    }
    table.set(
        "plain_http",
        &mut plain_http,
        choice(&[
            ("redirect", PlainHttp::Redirect),
            ("refuse", PlainHttp::Refuse),
            ("serve", PlainHttp::Serve),
        ]),
    );
    table.set("redirect_port", &mut redirect_port, integer(1..=65_535));
    let only_v6 = v6_flag(&mut table, "only_v6", address.as_ref());
    let v4_fallback = v6_flag(&mut table, "v4_fallback", address.as_ref());

    // options are read even if the listener can't be made, for the errors in them
    let mode = match protocol.as_ref().map_or(Protocol::Http, |protocol| *protocol.get_ref()) {
        Protocol::Https => ListenerMode::Https { http3, plain_http },
        Protocol::Http => ListenerMode::Http,
        Protocol::Redirect => ListenerMode::RedirectToHttps { port: redirect_port },
    };
    let any = || ListenOn::from(std::net::SocketAddr::from(([0, 0, 0, 0], 0)));
    let mut plan = ListenerPlan::new(address.as_ref().map_or_else(any, |a| a.get_ref().clone()), mode);
    plan.only_v6 = only_v6;
    plan.v4_fallback = v4_fallback;
    table.set("shared", &mut plan.shared, boolean);
    let shared = plan.shared;
    options(&mut table, &mut plan, timeouts);
    http::read(&mut table, &mut plan);
    tls::read(&mut table, &mut plan);
    socket::read(&mut table, &mut plan, address.as_ref());
    quic::listener(&mut table, &mut plan);
    table.finish();

    let whole = address.is_some() && protocol.is_some();
    Listener { address, protocol, only_v6, shared, span, plan: whole.then_some(plan) }
}

fn is_unix(address: &ListenOn) -> bool {
    matches!(address, ListenOn::Address(ListenAddr::Unix(_)))
}

/// A flag that means something for IPv6 addresses only.
fn v6_flag(table: &mut Table<'_, '_>, key: &'static str, address: Option<&Spanned<ListenOn>>) -> bool {
    let flag = table.get(key, boolean);
    if let (Some(set), Some(address)) = (&flag, address)
        && *set.get_ref()
        && !address.get_ref().ip().is_some_and(|address| address.is_ipv6())
    {
        let wrong =
            Wrong::new(format!("`{key}` has no meaning for {}", escape(&address.get_ref().to_string())));
        table.sink().error(set.span(), wrong.hint("remove it, or listen on an IPv6 address"));
    }
    flag.is_some_and(Spanned::into_inner)
}

fn options(table: &mut Table<'_, '_>, plan: &mut ListenerPlan, timeouts: &Timeouts) {
    table.set("backlog", &mut plan.tcp.backlog, integer(1..=65_535));
    plan.unix.backlog = Some(plan.tcp.backlog);
    table.set("max_connections", &mut plan.max_connections, |value| integer(1..=MOST_OPEN)(value).map(Some));
    if let Some(most) = table.get("max_headers", integer(1..=1000)) {
        plan.http.max_headers = *most.get_ref();
        plan.quic.max_fields = most.into_inner();
    }
    if let Some(most) = table.get("max_header_size", size::<u32>(8 << 10..=1 << 20)) {
        let most = most.into_inner();
        plan.http.max_header_bytes = most as usize;
        plan.quic.max_field_section_size = most.into();
        // a head comes in one frame, which is no longer than the head that it holds compressed
        plan.quic.max_frame_size = plan.quic.max_frame_size.max(most.into());
    }
    if let Some(most) = table.get("max_streams", integer::<u32>(1..=10_000)) {
        plan.http.h2_max_streams = *most.get_ref();
        plan.quic.max_bidi_streams = most.into_inner();
    }
    if let Some(handshake) = timeouts.handshake {
        plan.http.handshake_timeout = handshake;
        plan.quic.handshake_timeout = handshake;
    }
    if let Some(header) = timeouts.header {
        plan.http.header_timeout = header;
        plan.http.first_request_timeout = header;
        // there it is the head alone, without the wait for it: longer than the default helps nobody but an attacker
        plan.quic.header_timeout = plan.quic.header_timeout.min(header);
    }
    if let Some(idle) = timeouts.idle {
        plan.http.idle_timeout = idle;
        plan.quic.max_idle_timeout = idle;
    }
}
