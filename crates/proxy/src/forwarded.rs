//! Who the client is, and the fields that tell the upstream.
//!
//! One rule: what says who the client is, is believed only from a peer in [`Trust`]; from anybody else it is dropped,
//! `_` spellings included, and what this edge saw by itself takes its place. The `_` spellings are dropped from
//! trusted peers too: no proxy sends them, and a backend may not tell them from the real ones. `Content_Length` and
//! `Transfer_Encoding` go with them.
//!
//! | field | from a trusted peer | from anybody else |
//! |---|---|---|
//! | `X-Forwarded-For` | the peer is appended | the peer alone |
//! | `X-Real-IP` | set to [`client_ip`] | set to the peer |
//! | `X-Forwarded-Proto`, `X-Forwarded-Host` | kept if there is one line, else set | set |
//! | `X-Forwarded-Port`, by choice | kept if there is one line, else set | set |
//! | other `X-Forwarded-*`, `Forwarded` (RFC 7239) | kept | dropped |
//!
//! That is [`ForwardedStyle::XForwarded`], the default. The other styles send fewer or other fields:
//!
//! | style | `X-Forwarded-*`, `X-Real-IP` | `Forwarded` from a trusted peer | from anybody else |
//! |---|---|---|---|
//! | [`XForwarded`](ForwardedStyle::XForwarded) | as above | kept | dropped |
//! | [`Forwarded`](ForwardedStyle::Forwarded) | dropped, whoever sent them | an element is appended | the element alone |
//! | [`Both`](ForwardedStyle::Both) | as above | an element is appended | the element alone |
//! | [`None`](ForwardedStyle::None) | dropped, whoever sent them | dropped | dropped |
//!
//! The element is `for=` the peer, or `unknown` (RFC 7239 section 6.2) where it has no address; `by=` our own address, when
//! known; `host=` what came as `Host`; and `proto=` (section 5). An IPv6 address is in brackets and quotes (section 6.1).
//! A list that a trusted peer left inside of a quoted string is dropped: an element behind it would be part of the string.
//!
//! `Via` (RFC 9110 section 7.6.3) is off by default: the section asks for it, no peer project sends it, servers are known
//! to switch compression off when they see it, and it names this hop to every upstream. [`Via`] turns it on.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use bytes::{BufMut as _, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use portcullis_conn::{ConnInfo, Transport};

use crate::fields::{Seen, is_asserted, is_underscored, members};

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
static X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// The peers whose word about the client is taken. By default nobody's.
///
/// A unix socket's peer has the unspecified address: `0.0.0.0/32` trusts it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    v4: Vec<Ipv4Net>,
    v6: Vec<Ipv6Net>,
}

impl Trust {
    /// These networks.
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        let mut trust = Self::default();
        for network in networks {
            match network {
                IpNet::V4(network) => trust.v4.push(network),
                IpNet::V6(network) => trust.v6.push(network),
            }
        }
        trust
    }

    /// Whether an address is in one of the networks. An IPv4-mapped address counts as IPv4.
    pub fn trusts(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.iter().any(|network| network.contains(&address)),
            IpAddr::V6(address) => self.v6.iter().any(|network| network.contains(&address)),
        }
    }
}

impl FromIterator<IpNet> for Trust {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        Self::new(networks)
    }
}

/// What this edge saw of the client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Downstream {
    /// The address at the other end; the unspecified one when there is none (unix sockets) or it is not known.
    pub peer: IpAddr,
    /// Our own address, when known.
    pub local: Option<SocketAddr>,
    /// Whether the connection is encrypted.
    pub secure: bool,
}

impl Downstream {
    /// A connection from `peer`.
    pub fn new(peer: IpAddr, secure: bool) -> Self {
        Self { peer, local: None, secure }
    }

    /// A connection of which nothing is known: nothing that it says is believed.
    pub fn unknown() -> Self {
        Self::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), false)
    }
}

impl From<&ConnInfo> for Downstream {
    fn from(info: &ConnInfo) -> Self {
        Self {
            peer: info.client_ip(),
            local: Some(info.local).filter(|local| !local.ip().is_unspecified()),
            // QUIC is never in the clear (RFC 9001)
            secure: info.is_secure() || info.transport == Transport::Quic,
        }
    }
}

/// The client's address: the peer if it is not trusted, else the last address of `X-Forwarded-For`, from right to left
/// over all lines, that is not trusted either. Where the chain ends or holds what is no address, the last one known.
///
/// Looks at no more than 64 hops.
pub fn client_ip(headers: &HeaderMap, peer: IpAddr, trust: &Trust) -> IpAddr {
    const MAX_HOPS: usize = 64;
    let mut client = peer.to_canonical();
    if !trust.trusts(client) {
        return client;
    }
    let lines = headers.get_all(&X_FORWARDED_FOR).iter().rev();
    for member in lines.flat_map(|line| members(line).rev()).take(MAX_HOPS) {
        let Some(address) = address(member) else { return client };
        client = address;
        if !trust.trusts(address) {
            return client;
        }
    }
    client
}

/// Whether the client's own connection is encrypted, as a trusted peer tells it by `X-Forwarded-Proto`. `None` where the peer is not trusted, or
/// there is not one line with one scheme.
pub fn client_secure(headers: &HeaderMap, peer: IpAddr, trust: &Trust) -> Option<bool> {
    let line = headers.get(&X_FORWARDED_PROTO).filter(|_| has_one(headers, &X_FORWARDED_PROTO))?;
    let scheme = line.as_bytes().trim_ascii();
    let is = |names: [&str; 2]| names.iter().any(|name| scheme.eq_ignore_ascii_case(name.as_bytes()));
    // some proxies call a WebSocket's so
    let secure = is(["https", "wss"]);
    ((secure || is(["http", "ws"])) && trust.trusts(peer)).then_some(secure)
}

/// An address as proxies write it: bare, `v4:port`, `[v6]` or `[v6]:port`.
fn address(member: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(member).ok()?;
    let address = match text.parse() {
        Ok(address) => address,
        Err(_) => match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(v6) => IpAddr::V6(v6.parse().ok()?),
            None => text.parse::<SocketAddr>().ok()?.ip(),
        },
    };
    Some(address.to_canonical())
}

/// Which fields tell the upstream of the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ForwardedStyle {
    /// `X-Forwarded-*` and `X-Real-IP`. The default: what most backends read.
    #[default]
    XForwarded,
    /// `Forwarded` (RFC 7239) in place of them.
    Forwarded,
    /// All of them.
    Both,
    /// None: the upstream is told nothing of the client, and nothing that anybody else told goes on.
    None,
}

/// What the upstream is told of the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForwardedOptions {
    /// By which fields. Default [`ForwardedStyle::XForwarded`].
    pub style: ForwardedStyle,
    /// Whether the styles that have `X-Forwarded-*` have `X-Forwarded-Port`, the port that the client came to. Default
    /// `false`: `X-Forwarded-Host` has it where it is not the scheme's own.
    pub port: bool,
}

impl ForwardedOptions {
    /// Sets [`Self::style`].
    #[must_use]
    pub fn with_style(mut self, style: ForwardedStyle) -> Self {
        self.style = style;
        self
    }

    /// Sets [`Self::port`].
    #[must_use]
    pub fn with_port(mut self, port: bool) -> Self {
        self.port = port;
        self
    }
}

/// Makes the fields true, as the module's table says. Call it after [`crate::hop::strip_request`] (so that the client's
/// `Connection` can't remove them) and after [`crate::target::set_host`].
pub fn apply(headers: &mut HeaderMap, downstream: Downstream, trust: &Trust, options: ForwardedOptions) {
    apply_seen(headers, Seen::of(headers), downstream, trust, options);
}

const ANY: Seen =
    Seen::X_FORWARDED_FOR.or(Seen::X_FORWARDED_PROTO).or(Seen::X_FORWARDED_HOST).or(Seen::X_REAL_IP);
const RARE: Seen = Seen::X_FORWARDED_OTHER.or(Seen::FORWARDED).or(Seen::UNDERSCORED);

pub(crate) fn apply_seen(
    headers: &mut HeaderMap,
    seen: Seen,
    downstream: Downstream,
    trust: &Trust,
    options: ForwardedOptions,
) {
    let asserted = seen.has(ANY.or(RARE));
    let trusted = asserted && trust.trusts(downstream.peer);
    match options.style {
        ForwardedStyle::XForwarded | ForwardedStyle::Both => {
            x_forwarded(headers, seen, downstream, trust, trusted);
            if options.port && !(trusted && has_one(headers, &X_FORWARDED_PORT)) {
                set(headers, &X_FORWARDED_PORT, downstream.local.map(|local| local.port().into()));
            }
        }
        ForwardedStyle::Forwarded if trusted => {
            remove_all(headers, |name| is_asserted(name) && name != b"forwarded");
        }
        ForwardedStyle::Forwarded | ForwardedStyle::None if asserted => remove_all(headers, is_asserted),
        ForwardedStyle::Forwarded | ForwardedStyle::None => {}
    }
    if matches!(options.style, ForwardedStyle::Forwarded | ForwardedStyle::Both) {
        append_element(headers, downstream);
    }
}

fn x_forwarded(headers: &mut HeaderMap, seen: Seen, downstream: Downstream, trust: &Trust, trusted: bool) {
    let peer = downstream.peer.to_canonical();
    // an unspecified address is none: nothing is said about it
    let peer_value = (!peer.is_unspecified()).then(|| ip_value(peer));
    if trusted {
        if seen.has(Seen::UNDERSCORED) {
            remove_all(headers, is_underscored);
        }
        let client = client_ip(headers, peer, trust);
        set(headers, &X_REAL_IP, (!client.is_unspecified()).then(|| ip_value(client)));
        append_peer(headers, peer_value.as_ref());
    } else {
        if seen.has(RARE) {
            remove_all(headers, is_asserted);
        }
        set(headers, &X_REAL_IP, peer_value.clone());
        set(headers, &X_FORWARDED_FOR, peer_value);
    }
    if !(trusted && has_one(headers, &X_FORWARDED_PROTO)) {
        headers.insert(&X_FORWARDED_PROTO, HeaderValue::from_static(scheme(downstream)));
    }
    if !(trusted && has_one(headers, &X_FORWARDED_HOST)) {
        let host = headers.get(header::HOST).filter(|host| !host.is_empty()).cloned();
        set(headers, &X_FORWARDED_HOST, host);
    }
}

fn scheme(downstream: Downstream) -> &'static str {
    if downstream.secure { "https" } else { "http" }
}

/// Our element of `Forwarded` (RFC 7239 section 4), at the end of what is there.
fn append_element(headers: &mut HeaderMap, downstream: Downstream) {
    if !headers.get_all(header::FORWARDED).iter().all(|line| ends_outside_of_quotes(line.as_bytes())) {
        headers.remove(header::FORWARDED);
    }
    let mut element = BytesMut::with_capacity(128);
    let peer = downstream.peer.to_canonical();
    element.put_slice(b"for=");
    if peer.is_unspecified() {
        element.put_slice(b"unknown");
    } else {
        put_node(&mut element, peer);
    }
    if let Some(local) = downstream.local {
        element.put_slice(b";by=");
        put_node(&mut element, local.ip().to_canonical());
    }
    let visible = |byte: &u8| (b'!'..=b'~').contains(byte);
    if let Some(host) = headers.get(header::HOST)
        && !host.is_empty()
        && host.as_bytes().iter().all(visible)
    {
        element.put_slice(b";host=\"");
        for byte in host.as_bytes() {
            if matches!(byte, b'"' | b'\\') {
                element.put_u8(b'\\');
            }
            element.put_u8(*byte);
        }
        element.put_u8(b'"');
    }
    element.put_slice(b";proto=");
    element.put_slice(scheme(downstream).as_bytes());
    let value = HeaderValue::from_maybe_shared(element.freeze()).expect("every byte is visible ascii");
    headers.append(header::FORWARDED, value);
}

/// A node without a port (RFC 7239 section 6).
fn put_node(element: &mut BytesMut, address: IpAddr) {
    match address {
        IpAddr::V4(_) => element.put_slice(ip_value(address).as_bytes()),
        IpAddr::V6(_) => {
            element.put_slice(b"\"[");
            element.put_slice(ip_value(address).as_bytes());
            element.put_slice(b"]\"");
        }
    }
}

/// Whether each quoted string of a line has its end (RFC 9110 section 5.6.4).
fn ends_outside_of_quotes(line: &[u8]) -> bool {
    let (mut quoted, mut escaped) = (false, false);
    for byte in line {
        match (quoted, escaped, byte) {
            (_, true, _) => escaped = false,
            (true, _, b'\\') => escaped = true,
            (_, _, b'"') => quoted = !quoted,
            _ => {}
        }
    }
    !quoted
}

fn set(headers: &mut HeaderMap, name: &'static HeaderName, value: Option<HeaderValue>) {
    match value {
        Some(value) => drop(headers.insert(name, value)),
        None => drop(headers.remove(name)),
    }
}

fn has_one(headers: &HeaderMap, name: &HeaderName) -> bool {
    let mut lines = headers.get_all(name).iter();
    lines.next().is_some() && lines.next().is_none()
}

#[cold]
fn remove_all(headers: &mut HeaderMap, which: fn(&[u8]) -> bool) {
    let names: Vec<HeaderName> =
        headers.keys().filter(|name| which(name.as_str().as_bytes())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// All lines and the peer as one line.
fn append_peer(headers: &mut HeaderMap, peer: Option<&HeaderValue>) {
    let lines = || headers.get_all(&X_FORWARDED_FOR).iter().chain(peer).filter(|line| !line.is_empty());
    let mut joined = BytesMut::with_capacity(lines().map(|line| line.len() + 2).sum());
    for line in lines() {
        if !joined.is_empty() {
            joined.put_slice(b", ");
        }
        joined.put_slice(line.as_bytes());
    }
    let value = (!joined.is_empty()).then(|| {
        HeaderValue::from_maybe_shared(joined.freeze())
            .expect("field values and separators make a field value")
    });
    set(headers, &X_FORWARDED_FOR, value);
}

/// An address as a field value, written on the stack: the value's own bytes are the only allocation.
fn ip_value(address: IpAddr) -> HeaderValue {
    let mut text = Text { bytes: [0; 48], len: 0 };
    match address {
        IpAddr::V4(address) => {
            for (i, octet) in address.octets().into_iter().enumerate() {
                if i > 0 {
                    text.push(b'.');
                }
                text.push_octet(octet);
            }
        }
        // RFC 5952, as the standard library writes it
        IpAddr::V6(address) => write!(text, "{address}").expect("an address is at most 45 characters"),
    }
    HeaderValue::from_bytes(text.as_bytes()).expect("an address is visible ascii")
}

struct Text {
    bytes: [u8; 48],
    len: usize,
}

impl Text {
    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn push_octet(&mut self, octet: u8) {
        if octet >= 100 {
            self.push(b'0' + octet / 100);
        }
        if octet >= 10 {
            self.push(b'0' + octet / 10 % 10);
        }
        self.push(b'0' + octet % 10);
    }
}

impl std::fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let free = self.bytes.get_mut(self.len..self.len + text.len()).ok_or(std::fmt::Error)?;
        free.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

/// A `Via` member for each version that a message can come by (RFC 9110 section 7.6.3), made once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Via([HeaderValue; 4]);

impl Via {
    /// With this pseudonym for the edge, a token (RFC 9110 section 5.6.2).
    pub fn new(pseudonym: &str) -> Result<Self, header::InvalidHeaderValue> {
        // a separator in it would make two members or a comment of one
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if pseudonym.is_empty() || !pseudonym.bytes().all(token) {
            return Err(HeaderValue::from_bytes(b"\0").expect_err("a zero byte is never valid"));
        }
        let member = |version: &str| HeaderValue::try_from(format!("{version} {pseudonym}"));
        Ok(Self([member("1.0")?, member("1.1")?, member("2")?, member("3")?]))
    }

    /// Adds the member for a message that came by `version`.
    pub fn append(&self, headers: &mut HeaderMap, version: Version) {
        let [http10, http11, http2, http3] = &self.0;
        let member = match version {
            Version::HTTP_2 => http2,
            Version::HTTP_3 => http3,
            Version::HTTP_11 => http11,
            _ => http10,
        };
        headers.append(header::VIA, member.clone());
    }
}

#[cfg(test)]
mod tests;
