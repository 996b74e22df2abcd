//! What a route asks of a request: [`RouteMatch`] as it is written, and its conditions made ready to be tested.
//!
//! Every condition that is given must hold. A field that came in several lines is compared as the one value that it is
//! (RFC 9110 section 5.2: the lines joined by a comma and a space); of a query parameter that came several times the first
//! counts. So what a client repeats never makes it match two routes that exclude each other.

use std::{borrow::Cow, fmt, net::IpAddr};

use http::{Extensions, HeaderMap, HeaderName, Method, Request, Version, request};
use ipnet::IpNet;
use regex::bytes::{Regex, RegexBuilder};

use crate::{host, path::hex_pair};

/// What requests a route is for. By default all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouteMatch {
    /// `a.example.com`, `*.example.com` for every name below at any depth, or `None` for any host.
    pub host: Option<String>,
    /// The path. Default: every path, the prefix `/`.
    pub path: PathMatch,
    /// The methods; empty is any. `GET` is `HEAD` too (RFC 9110 section 9.3.2).
    pub methods: Vec<Method>,
    /// Fields that must be there, or must not.
    pub headers: Vec<(HeaderName, ValueMatch)>,
    /// Query parameters, by their decoded names.
    pub query: Vec<(String, ValueMatch)>,
    /// The client's networks; empty is any. A client whose address is not known is in none.
    pub clients: Vec<IpNet>,
    /// The versions; empty is any.
    pub protocols: Vec<Protocol>,
    /// Whether the client's connection is encrypted; `None` is either.
    pub scheme: Option<Scheme>,
    /// Between routes of the same host and path the higher one is asked first. Default 0.
    pub priority: i32,
}

impl Default for RouteMatch {
    fn default() -> Self {
        Self {
            host: None,
            path: PathMatch::Prefix("/".to_owned()),
            methods: Vec::new(),
            headers: Vec::new(),
            query: Vec::new(),
            clients: Vec::new(),
            protocols: Vec::new(),
            scheme: None,
            priority: 0,
        }
    }
}

impl RouteMatch {
    /// Every path of a host, or of every host.
    pub fn new(host: Option<&str>) -> Self {
        Self { host: host.map(str::to_owned), ..Self::default() }
    }

    /// Sets [`Self::path`].
    #[must_use]
    pub fn with_path(mut self, path: PathMatch) -> Self {
        self.path = path;
        self
    }

    /// Adds a method.
    #[must_use]
    pub fn with_method(mut self, method: Method) -> Self {
        self.methods.push(method);
        self
    }

    /// Adds a field.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: ValueMatch) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Adds a query parameter.
    #[must_use]
    pub fn with_query(mut self, name: impl Into<String>, value: ValueMatch) -> Self {
        self.query.push((name.into(), value));
        self
    }

    /// Adds a network of clients.
    #[must_use]
    pub fn with_client(mut self, network: IpNet) -> Self {
        self.clients.push(network);
        self
    }

    /// Adds a protocol.
    #[must_use]
    pub fn with_protocol(mut self, protocol: Protocol) -> Self {
        self.protocols.push(protocol);
        self
    }

    /// Sets [`Self::scheme`].
    #[must_use]
    pub fn with_scheme(mut self, scheme: Option<Scheme>) -> Self {
        self.scheme = scheme;
        self
    }

    /// Sets [`Self::priority`].
    #[must_use]
    pub fn with_priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }
}

/// How a path is matched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PathMatch {
    /// This path and what lies below it, on segment borders. Offers the capture `rest`: what follows, without the slash.
    Prefix(String),
    /// This path alone.
    Exact(String),
    /// Segment by segment: `/users/{id}/posts/{*rest}`. `{name}` is one segment that is not empty, `{*name}` all that follows,
    /// perhaps nothing, and stands last.
    Segments(String),
    /// The whole path, as a regular expression over bytes, without Unicode classes. Its groups are captures, by name and by number.
    Regex(String),
}

impl fmt::Display for PathMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(prefix) => write!(f, "prefix {prefix}"),
            Self::Exact(path) => write!(f, "exact {path}"),
            Self::Segments(pattern) => write!(f, "segments {pattern}"),
            Self::Regex(pattern) => write!(f, "regex {pattern}"),
        }
    }
}

/// How a value is matched.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ValueMatch {
    /// It is there, whatever it is.
    Present,
    /// It is not there.
    Absent,
    /// It is this one.
    Exact(String),
    /// The whole of it is what this regular expression says.
    Regex(String),
}

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// HTTP/1.1 and 1.0.
    Http1,
    /// HTTP/2.
    Http2,
    /// HTTP/3.
    Http3,
}

impl Protocol {
    fn of(version: Version) -> Self {
        match version {
            Version::HTTP_2 => Self::Http2,
            Version::HTTP_3 => Self::Http3,
            _ => Self::Http1,
        }
    }
}

/// Whether a connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scheme {
    /// It is not.
    Http,
    /// It is.
    Https,
}

/// What a router is asked.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Asked<'a> {
    /// The authority, with or without port, as received.
    pub host: &'a str,
    /// The path, as received. What does not begin with `/` (`*`) counts as `/`.
    pub path: &'a str,
    /// The query, without `?`.
    pub query: Option<&'a str>,
    /// The method.
    pub method: &'a Method,
    /// The fields; `None` are none.
    pub headers: Option<&'a HeaderMap>,
    /// The version.
    pub version: Version,
    /// The client, where it is known.
    pub client: Option<IpAddr>,
    /// Whether the client's connection is encrypted.
    pub secure: bool,
}

static GET: Method = Method::GET;

/// An extended CONNECT (RFC 8441, RFC 9220) is looked up as the GET that HTTP/1.1 has in its place.
fn as_routed<'a>(method: &'a Method, extensions: &Extensions) -> &'a Method {
    if method == Method::CONNECT && crate::upgrade::connect_protocol(extensions).is_some() {
        &Method::GET
    } else {
        method
    }
}

impl<'a> Asked<'a> {
    /// A GET without fields over plain HTTP/1.1 from nowhere.
    pub fn new(host: &'a str, path: &'a str) -> Self {
        Self {
            host,
            path,
            query: None,
            method: &GET,
            headers: None,
            version: Version::HTTP_11,
            client: None,
            secure: false,
        }
    }

    /// All that a request says by itself; what its connection says is added by hand.
    pub fn of<B>(request: &'a Request<B>) -> Self {
        Self {
            host: host::of(request).unwrap_or_default(),
            path: request.uri().path(),
            query: request.uri().query(),
            method: as_routed(request.method(), request.extensions()),
            headers: Some(request.headers()),
            version: request.version(),
            client: None,
            secure: false,
        }
    }

    /// The same for a request without its body.
    pub fn of_parts(parts: &'a request::Parts) -> Self {
        Self {
            host: host::of_parts(parts).unwrap_or_default(),
            path: parts.uri.path(),
            query: parts.uri.query(),
            method: as_routed(&parts.method, &parts.extensions),
            headers: Some(&parts.headers),
            version: parts.version,
            client: None,
            secure: false,
        }
    }

    /// Sets [`Self::method`].
    #[must_use]
    pub fn with_method(mut self, method: &'a Method) -> Self {
        self.method = method;
        self
    }

    /// Sets [`Self::query`].
    #[must_use]
    pub fn with_query(mut self, query: Option<&'a str>) -> Self {
        self.query = query;
        self
    }

    /// Sets [`Self::headers`].
    #[must_use]
    pub fn with_headers(mut self, headers: &'a HeaderMap) -> Self {
        self.headers = Some(headers);
        self
    }

    /// Sets [`Self::version`].
    #[must_use]
    pub fn with_version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// Sets [`Self::client`] and [`Self::secure`].
    #[must_use]
    pub fn with_connection(mut self, client: Option<IpAddr>, secure: bool) -> Self {
        self.client = client.map(|client| client.to_canonical());
        self.secure = secure;
        self
    }
}

/// The condition that a request did not meet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Miss {
    /// The method, and nothing else.
    Method,
    /// This field.
    Header(HeaderName),
    /// This query parameter.
    Query(String),
    /// The client's address.
    Client,
    /// The version.
    Protocol,
    /// Encrypted or not.
    Scheme,
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Method => f.write_str("the method is another"),
            Self::Header(name) => write!(f, "the field {name} does not match"),
            Self::Query(name) => write!(f, "the query parameter {name:?} does not match"),
            Self::Client => f.write_str("the client's address is in none of the networks"),
            Self::Protocol => f.write_str("the protocol is another"),
            Self::Scheme => f.write_str("the scheme is another"),
        }
    }
}

/// The longest regular expression, in bytes.
pub const MAX_REGEX: usize = 1024;

/// The most memory of one compiled regular expression, and of its cache, in bytes.
pub const MAX_REGEX_BYTES: usize = 1 << 20;

/// Why a regular expression is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegexError {
    /// It has more than [`MAX_REGEX`] bytes.
    #[error("the regular expression is longer than {MAX_REGEX} bytes")]
    TooLong,
    /// It is none, or takes more than [`MAX_REGEX_BYTES`].
    #[error("{0}")]
    Invalid(String),
}

/// Whether a regular expression can be one of a route's.
pub fn check_regex(pattern: &str) -> Result<(), RegexError> {
    whole(pattern).map(drop)
}

/// Compiles one that has to match a whole value.
pub(crate) fn whole(pattern: &str) -> Result<Regex, RegexError> {
    if pattern.len() > MAX_REGEX {
        return Err(RegexError::TooLong);
    }
    let build = |pattern: &str| {
        RegexBuilder::new(pattern)
            .unicode(false)
            .size_limit(MAX_REGEX_BYTES)
            .dfa_size_limit(MAX_REGEX_BYTES)
            .build()
            .map_err(|error| {
                let told = error.to_string();
                RegexError::Invalid(told.lines().last().unwrap_or("not a regular expression").to_owned())
            })
    };
    // by itself first: `a)|(b` would be one only between our own parentheses
    build(pattern)?;
    build(&anchored(pattern))
}

/// The pattern for the whole of a value. The pattern must be sound by itself.
pub(crate) fn anchored(pattern: &str) -> String {
    format!(r"\A(?:{pattern})\z")
}

#[derive(Clone, Debug)]
enum Value {
    Present,
    Absent,
    Exact(Box<str>),
    Regex(Regex),
}

impl Value {
    fn new(value: &ValueMatch) -> Result<Self, RegexError> {
        Ok(match value {
            ValueMatch::Present => Self::Present,
            ValueMatch::Absent => Self::Absent,
            ValueMatch::Exact(value) => Self::Exact(value.as_str().into()),
            ValueMatch::Regex(pattern) => Self::Regex(whole(pattern)?),
        })
    }

    fn matches(&self, found: Option<&[u8]>) -> bool {
        match (self, found) {
            (Self::Absent, found) => found.is_none(),
            (_, None) => false,
            (Self::Present, Some(_)) => true,
            (Self::Exact(value), Some(found)) => value.as_bytes() == found,
            (Self::Regex(regex), Some(found)) => regex.is_match(found),
        }
    }
}

/// Whether no value is both.
fn exclude(one: &ValueMatch, other: &ValueMatch) -> bool {
    match (one, other) {
        (ValueMatch::Absent, ValueMatch::Absent) => false,
        (ValueMatch::Absent, _) | (_, ValueMatch::Absent) => true,
        (ValueMatch::Exact(one), ValueMatch::Exact(other)) => one != other,
        (ValueMatch::Exact(value), ValueMatch::Regex(pattern))
        | (ValueMatch::Regex(pattern), ValueMatch::Exact(value)) => {
            whole(pattern).is_ok_and(|regex| !regex.is_match(value.as_bytes()))
        }
        _ => false,
    }
}

/// Everything but host and path, made ready.
#[derive(Clone, Debug)]
pub(crate) struct Conditions {
    methods: Vec<Method>,
    headers: Vec<(HeaderName, Value)>,
    query: Vec<(Box<str>, Value)>,
    clients: Vec<IpNet>,
    protocols: Vec<Protocol>,
    scheme: Option<Scheme>,
}

impl Conditions {
    /// `None` when there are none.
    pub(crate) fn new(of: &RouteMatch) -> Result<Option<Box<Self>>, RegexError> {
        let mut methods = of.methods.clone();
        if methods.contains(&Method::GET) && !methods.contains(&Method::HEAD) {
            methods.push(Method::HEAD);
        }
        let headers = of
            .headers
            .iter()
            .map(|(name, value)| Ok((name.clone(), Value::new(value)?)))
            .collect::<Result<_, _>>()?;
        let query = of
            .query
            .iter()
            .map(|(name, value)| Ok((name.as_str().into(), Value::new(value)?)))
            .collect::<Result<_, _>>()?;
        let conditions = Self {
            methods,
            headers,
            query,
            clients: of.clients.iter().map(canonical_net).collect(),
            protocols: of.protocols.clone(),
            scheme: of.scheme,
        };
        let none = conditions.methods.is_empty()
            && conditions.headers.is_empty()
            && conditions.query.is_empty()
            && conditions.clients.is_empty()
            && conditions.protocols.is_empty()
            && conditions.scheme.is_none();
        Ok((!none).then(|| Box::new(conditions)))
    }

    pub(crate) fn methods(&self) -> &[Method] {
        &self.methods
    }

    /// Whether they ask for what only the connection tells.
    pub(crate) fn look_at_connection(&self) -> bool {
        !self.clients.is_empty() || self.scheme.is_some()
    }

    /// `None` when all hold. The method comes last: [`Miss::Method`] says that everything else does.
    pub(crate) fn test(&self, asked: &Asked<'_>) -> Option<Miss> {
        if !self.protocols.is_empty() && !self.protocols.contains(&Protocol::of(asked.version)) {
            return Some(Miss::Protocol);
        }
        if self.scheme.is_some_and(|scheme| (scheme == Scheme::Https) != asked.secure) {
            return Some(Miss::Scheme);
        }
        if !self.clients.is_empty()
            && !asked
                .client
                .is_some_and(|client| self.clients.iter().any(|network| network.contains(&client)))
        {
            return Some(Miss::Client);
        }
        for (name, value) in &self.headers {
            let found = asked.headers.and_then(|headers| one_value(headers, name));
            if !value.matches(found.as_deref()) {
                return Some(Miss::Header(name.clone()));
            }
        }
        for (name, value) in &self.query {
            let found = asked.query.and_then(|query| parameter(query, name));
            if !value.matches(found.as_deref()) {
                return Some(Miss::Query(name.to_string()));
            }
        }
        (!self.methods.is_empty() && !self.methods.contains(asked.method)).then_some(Miss::Method)
    }
}

/// The one value that all lines of a field are.
fn one_value<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<Cow<'h, [u8]>> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?.as_bytes();
    let Some(second) = lines.next() else { return Some(Cow::Borrowed(first)) };
    // RFC 9113 section 8.2.3: cookies of several lines are one as they go on
    let between: &[u8] = if *name == http::header::COOKIE { b"; " } else { b", " };
    let mut joined = first.to_vec();
    for line in std::iter::once(second).chain(lines) {
        joined.extend_from_slice(between);
        joined.extend_from_slice(line.as_bytes());
    }
    Some(Cow::Owned(joined))
}

/// A network of IPv4 addresses mapped into IPv6 is one of IPv4: clients are looked at in that form.
pub(crate) fn canonical_net(net: &IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return *net };
    let mapped = v6.network().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    mapped.and_then(|(network, length)| ipnet::Ipv4Net::new(network, length).ok()).map_or(*net, IpNet::V4)
}

/// The value of the first parameter of a name, both decoded as forms are: `+` is a space.
fn parameter<'q>(query: &'q str, name: &str) -> Option<Cow<'q, [u8]>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (*decoded(key) == *name.as_bytes()).then(|| decoded(value))
    })
}

fn decoded(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(bytes);
    }
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let (byte, taken) = match byte {
            b'+' => (b' ', 1),
            b'%' => bytes.get(at + 1..at + 3).and_then(hex_pair).map_or((b'%', 1), |byte| (byte, 3)),
            other => (*other, 1),
        };
        decoded.push(byte);
        at += taken;
    }
    Cow::Owned(decoded)
}

/// In what order routes of the same host and path are asked; the lower first. Equal ones must exclude each other.
pub(crate) type Rank = (std::cmp::Reverse<i32>, std::cmp::Reverse<[usize; 4]>);

pub(crate) fn rank(of: &RouteMatch) -> Rank {
    let others = [!of.clients.is_empty(), !of.protocols.is_empty(), of.scheme.is_some()];
    let others = others.into_iter().filter(|given| *given).count();
    let counts = [usize::from(!of.methods.is_empty()), of.headers.len(), of.query.len(), others];
    (std::cmp::Reverse(of.priority), std::cmp::Reverse(counts))
}

/// Whether no request meets the conditions of both, as far as that is plain to see.
pub(crate) fn are_disjoint(one: &RouteMatch, other: &RouteMatch) -> bool {
    fn apart<T>(one: &[T], other: &[T], meet: impl Fn(&T, &T) -> bool) -> bool {
        !one.is_empty() && !other.is_empty() && !one.iter().any(|a| other.iter().any(|b| meet(a, b)))
    }
    let same_method = |a: &Method, b: &Method| {
        let get = |m: &Method| if *m == Method::HEAD { Method::GET } else { m.clone() };
        // GET stands for HEAD, not the other way round: two HEADs or a GET and a HEAD meet
        a == b || (get(a) == get(b) && (*a == Method::GET || *b == Method::GET))
    };
    apart(&one.methods, &other.methods, same_method)
        || apart(&one.protocols, &other.protocols, |a, b| a == b)
        || apart(&one.clients, &other.clients, |a, b| a.contains(b) || b.contains(a))
        || matches!((one.scheme, other.scheme), (Some(a), Some(b)) if a != b)
        || one.headers.iter().any(|(name, value)| {
            other.headers.iter().any(|(same, other)| name == same && exclude(value, other))
        })
        || one.query.iter().any(|(name, value)| {
            other.query.iter().any(|(same, other)| name == same && exclude(value, other))
        })
}

#[cfg(test)]
mod tests;
