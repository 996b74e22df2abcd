//! The fields that a line may have, by name.

mod value;

use http::{
    HeaderName,
    header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION, SET_COOKIE},
};

/// One field of a line, by its name in templates and the lists of JSON: `client`, `duration_ms`, `header:accept`.
///
/// See [`FIELDS`] for the names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field(pub(super) Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain(Plain),
    /// A duration, in milliseconds or else in seconds.
    Time(Timing, bool),
    RequestField(HeaderName),
    ResponseField(HeaderName),
    Cookie(Box<str>),
}

/// Those of a fixed name. In the order of [`FIELDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plain {
    Time,
    TimeLocal,
    TimeUnix,
    Client,
    Peer,
    Local,
    Method,
    Scheme,
    Host,
    Target,
    Path,
    Query,
    Protocol,
    Version,
    Request,
    Status,
    Bytes,
    Received,
    Referer,
    UserAgent,
    Route,
    User,
    Upstream,
    Cluster,
    Attempts,
    Fault,
    Cache,
    Outcome,
    Aborted,
    RequestId,
    TraceId,
    Conn,
    ConnRequest,
    Transport,
    Tls,
    TlsCipher,
    TlsGroup,
    TlsResumed,
    TlsEarly,
    Sni,
    Alpn,
    ClientSubject,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timing {
    Duration,
    TimeToHead,
    Queue,
    Connect,
    FirstByte,
}

/// The names of all fields, each with what it says. Durations have a second name that ends in `_ms`, in milliseconds. To these come `header:NAME`, `response_header:NAME` and `cookie:NAME`.
pub const FIELDS: [(&str, &str); 47] = [
    ("time", "when the request came, UTC with milliseconds (RFC 3339)"),
    ("time_local", "the same as the common log format has it, in UTC"),
    ("time_unix", "the same in seconds since 1970, with milliseconds"),
    ("client", "the client's address; behind trusted proxies the one they tell; none on a unix socket"),
    ("peer", "the connection's other end, address and port"),
    ("local", "our own address and port on it"),
    ("method", "of the request"),
    ("scheme", "`https` or `http`, as the connection is"),
    ("host", "that was asked for"),
    ("target", "path and query, as in a request line; the authority of a CONNECT"),
    ("path", "of the target"),
    ("query", "of the target, without the question mark"),
    ("protocol", "`http/1.0`, `http/1.1`, `h2` or `h3`"),
    ("version", "`HTTP/1.0`, `HTTP/1.1`, `HTTP/2.0` or `HTTP/3.0`"),
    ("request", "method, target and version, as in a request line"),
    ("status", "of the response; none where the client left before it"),
    ("bytes", "of the response's content"),
    ("received", "bytes of the request's content that were read"),
    ("referer", "of the request"),
    ("user_agent", "of the request"),
    ("route", "the name of the route"),
    ("user", "who the client is, where a layer asked"),
    ("upstream", "the endpoint that answered, or that was tried last"),
    ("cluster", "the cluster that it belongs to"),
    ("attempts", "how many attempts were made at endpoints"),
    ("fault", "why there was no answer of an endpoint's, by its name"),
    (
        "cache",
        "what the cache did, by the last `Cache-Status` of the response as it leaves: `hit`, `stale`, `uri-miss` or another word of RFC 9211; \
         none where `cache_status = false`, or where a route takes the field away",
    ),
    ("outcome", "`complete`, `aborted` or `failed`"),
    ("aborted", "whether the response was given up before its end"),
    (
        "request_id",
        "what `[request_id]` gave; without it the response's or else the request's `X-Request-Id`",
    ),
    ("trace_id", "of the request's `traceparent` (W3C trace context)"),
    ("conn", "the connection's number, as in the log"),
    ("conn_request", "the request's number on its connection, from 1"),
    ("transport", "`tcp`, `unix` or `quic`"),
    ("tls", "`TLSv1.2` or `TLSv1.3`"),
    ("tls_cipher", "the cipher suite, by its IANA name"),
    ("tls_group", "the key exchange group"),
    ("tls_resumed", "whether the handshake resumed a session"),
    ("tls_early", "whether the connection began with early data"),
    ("sni", "the server name that the client asked for"),
    ("alpn", "the protocol that TLS agreed"),
    ("client_subject", "the subject of the client's certificate (RFC 4514)"),
    ("duration", "seconds from the request's coming until the response was over"),
    ("time_to_head", "seconds from there until the response's head"),
    ("queue", "of these, waiting for a place at an endpoint"),
    ("connect", "of these, connecting to endpoints, TLS included; none on a connection that was there"),
    ("first_byte", "seconds from sending the request to an endpoint until its response's head"),
];

const PLAIN: [Plain; 42] = [
    Plain::Time,
    Plain::TimeLocal,
    Plain::TimeUnix,
    Plain::Client,
    Plain::Peer,
    Plain::Local,
    Plain::Method,
    Plain::Scheme,
    Plain::Host,
    Plain::Target,
    Plain::Path,
    Plain::Query,
    Plain::Protocol,
    Plain::Version,
    Plain::Request,
    Plain::Status,
    Plain::Bytes,
    Plain::Received,
    Plain::Referer,
    Plain::UserAgent,
    Plain::Route,
    Plain::User,
    Plain::Upstream,
    Plain::Cluster,
    Plain::Attempts,
    Plain::Fault,
    Plain::Cache,
    Plain::Outcome,
    Plain::Aborted,
    Plain::RequestId,
    Plain::TraceId,
    Plain::Conn,
    Plain::ConnRequest,
    Plain::Transport,
    Plain::Tls,
    Plain::TlsCipher,
    Plain::TlsGroup,
    Plain::TlsResumed,
    Plain::TlsEarly,
    Plain::Sni,
    Plain::Alpn,
    Plain::ClientSubject,
];

const TIMINGS: [Timing; 5] =
    [Timing::Duration, Timing::TimeToHead, Timing::Queue, Timing::Connect, Timing::FirstByte];

pub(super) const MAX_TARGET: usize = 4096;
pub(super) const MAX_REFERER: usize = 2048;
pub(super) const MAX_USER_AGENT: usize = 1024;
pub(super) const MAX_OTHER: usize = 256;

/// Why a name is no field's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FieldError {
    /// There is no such field.
    #[error("there is no field {0:?}")]
    Unknown(String),
    /// What comes after the colon is no name of a field in a message (RFC 9110 section 5.1), or of a cookie.
    #[error("{0:?} names no header or cookie")]
    Name(String),
    /// Credentials are never logged; a cookie only by its own name.
    #[error("{0:?} is never logged")]
    Secret(String),
}

impl Field {
    /// The field of this name.
    ///
    /// # Errors
    /// Where there is none, or it is one that is never logged: `Authorization` and `Proxy-Authorization`, and `Cookie` and `Set-Cookie`
    /// as a whole.
    pub fn named(name: &str) -> Result<Self, FieldError> {
        if let Some((kind, rest)) = name.split_once(':') {
            let wrong = || FieldError::Name(rest.to_owned());
            if kind == "cookie" {
                let token = |byte: u8| byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&byte);
                let sound = !rest.is_empty() && rest.len() <= MAX_OTHER && rest.bytes().all(token);
                return if sound { Ok(Self(Kind::Cookie(rest.into()))) } else { Err(wrong()) };
            }
            let header = || HeaderName::from_bytes(rest.as_bytes()).map_err(|_| wrong());
            let header = match kind {
                "header" | "response_header" => header()?,
                _ => return Err(FieldError::Unknown(name.to_owned())),
            };
            if [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE, SET_COOKIE].contains(&header) {
                return Err(FieldError::Secret(rest.to_owned()));
            }
            return Ok(Self(if kind == "header" {
                Kind::RequestField(header)
            } else {
                Kind::ResponseField(header)
            }));
        }
        let (plain, millis) = match name.strip_suffix("_ms") {
            Some(plain) => (plain, true),
            None => (name, false),
        };
        let at = FIELDS.iter().position(|(known, _)| *known == plain);
        match at.map(|at| (at, at.checked_sub(PLAIN.len()))) {
            Some((_, Some(timing))) => Ok(Self(Kind::Time(TIMINGS[timing], millis))),
            Some((at, None)) if !millis => Ok(Self(Kind::Plain(PLAIN[at]))),
            _ => Err(FieldError::Unknown(name.to_owned())),
        }
    }

    /// The field of a message that has to be kept for this one, and whether it is one of the response.
    pub fn header(&self) -> Option<(HeaderName, bool)> {
        match &self.0 {
            Kind::RequestField(name) => Some((name.clone(), false)),
            Kind::ResponseField(name) => Some((name.clone(), true)),
            Kind::Cookie(_) => Some((COOKIE, false)),
            _ => None,
        }
    }

    /// Whether this is one of those that have a name of their own, and which.
    pub fn is(&self, name: &str) -> bool {
        Self::named(name).is_ok_and(|field| match (&self.0, &field.0) {
            (Kind::Time(a, _), Kind::Time(b, _)) => a == b,
            (a, b) => a == b,
        })
    }

    /// The most bytes that it takes in a line, quotes included.
    pub(super) fn max_len(&self) -> usize {
        const AROUND: usize = 8;
        AROUND
            + match &self.0 {
                Kind::Plain(Plain::Target | Plain::Path | Plain::Query) => MAX_TARGET,
                Kind::Plain(Plain::Request) => MAX_TARGET + MAX_OTHER + 16,
                Kind::Plain(Plain::Referer) => MAX_REFERER,
                Kind::Plain(Plain::UserAgent) => MAX_USER_AGENT,
                Kind::Plain(
                    Plain::Status
                    | Plain::Bytes
                    | Plain::Received
                    | Plain::Attempts
                    | Plain::Conn
                    | Plain::ConnRequest
                    | Plain::Aborted
                    | Plain::TlsResumed
                    | Plain::TlsEarly
                    | Plain::Scheme
                    | Plain::Protocol
                    | Plain::Version
                    | Plain::Outcome
                    | Plain::Transport
                    | Plain::Tls
                    | Plain::Time
                    | Plain::TimeLocal
                    | Plain::TimeUnix,
                )
                | Kind::Time(..) => 40,
                Kind::Plain(Plain::Client | Plain::Peer | Plain::Local) => 64,
                _ => MAX_OTHER,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_field_of_its_own() {
        let mut seen = Vec::new();
        for (name, what) in FIELDS {
            let field = Field::named(name).unwrap();
            assert!(!seen.contains(&field) && !what.is_empty(), "{name}");
            assert!(field.is(name));
            seen.push(field);
        }
        assert_eq!(Field::named("duration_ms").unwrap().0, Kind::Time(Timing::Duration, true));
        assert_eq!(Field::named("first_byte").unwrap().0, Kind::Time(Timing::FirstByte, false));
        assert_eq!(Field::named("client_subject").unwrap().0, Kind::Plain(Plain::ClientSubject));
    }

    #[test]
    fn what_is_no_field() {
        for (name, secret) in [
            ("", false),
            ("clients", false),
            ("client_ms", false),
            ("header:", false),
            ("header:a b", false),
            ("cookie:a=b", false),
            ("cookie:", false),
            ("body:x", false),
            ("header:authorization", true),
            ("header:Proxy-Authorization", true),
            ("header:Cookie", true),
            ("response_header:set-cookie", true),
        ] {
            let error = Field::named(name).unwrap_err();
            assert_eq!(matches!(error, FieldError::Secret(_)), secret, "{name}: {error}");
        }
    }
}
