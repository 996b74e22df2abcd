//! Whether a request asks for another protocol on its connection, and whether the upstream agreed
//! (RFC 9110 section 7.8, RFC 6455 section 4).
//!
//! An upgrade that is not forwarded is not an error: the fields are removed and the request goes on as a plain one, as
//! RFC 9110 section 7.8 lets a server do. Bytes that a client sends before it has its 101 stay where they are: in
//! the driver's buffer, the next request's if no 101 comes, the tunnel's first if it does. None reaches the upstream
//! before the upstream's own 101.

use http::{Extensions, HeaderMap, HeaderValue, Method, Request, Version, header};
use hyper::ext::Protocol;
use portcullis_conn::ConnectProtocol;

use crate::{
    fields::{any_member, digits, members},
    websocket,
};

/// The protocols that a client may upgrade to. By default `websocket` alone.
///
/// Every other one is a byte stream past every rule that is applied here: add only what the upstream is known to speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpgradeProtocols(Vec<HeaderValue>);

/// Why a protocol can't be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// RFC 9110 section 7.8: `token [ "/" token ]`.
    #[error("not a protocol name")]
    Invalid,
    /// An HTTP version inside a tunnel takes requests past every rule (`h2c` smuggling), and TLS belongs to a listener.
    #[error("this protocol is never tunnelled")]
    Never,
}

impl Default for UpgradeProtocols {
    fn default() -> Self {
        Self(vec![HeaderValue::from_static("websocket")])
    }
}

impl UpgradeProtocols {
    /// No protocol at all: every upgrade is forwarded as a plain request.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// Allows one more. `h2c`, `h2`, `HTTP/…` and `TLS/…` are refused.
    pub fn allow(mut self, protocol: &str) -> Result<Self, ProtocolError> {
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(&b);
        if protocol.is_empty() || !protocol.bytes().all(is_token) {
            return Err(ProtocolError::Invalid);
        }
        let name = protocol.split('/').next().unwrap_or_default();
        if ["h2c", "h2", "h3", "http", "tls"].iter().any(|never| name.eq_ignore_ascii_case(never)) {
            return Err(ProtocolError::Never);
        }
        let value = HeaderValue::from_str(protocol).map_err(|_| ProtocolError::Invalid)?;
        if self.find(protocol.as_bytes()).is_none() {
            self.0.push(value);
        }
        Ok(self)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find(&self, protocol: &[u8]) -> Option<&HeaderValue> {
        self.0.iter().find(|allowed| allowed.as_bytes().eq_ignore_ascii_case(protocol))
    }
}

/// An upgrade that a client asked for and that may be forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpgradeRequest {
    protocol: HeaderValue,
}

impl UpgradeRequest {
    /// The protocol, in the spelling of the allow-list.
    pub fn protocol(&self) -> &HeaderValue {
        &self.protocol
    }

    /// Whether it is `websocket` (RFC 6455), whose two fields of the handshake are checked as well.
    pub fn is_websocket(&self) -> bool {
        self.protocol.as_bytes().eq_ignore_ascii_case(b"websocket")
    }

    /// Writes the fields that ask for it, or that agree to it, after those of the last hop were removed.
    pub fn set(&self, headers: &mut HeaderMap) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, self.protocol.clone());
    }

    /// Whether the fields of a 101 agree to this protocol and no other. RFC 9110 section 7.8: a server MUST NOT switch to one
    /// that was not asked for; section 15.2.2: it MUST name the one that it switched to.
    pub fn is_agreed(&self, headers: &HeaderMap) -> bool {
        let mut members = headers.get_all(header::UPGRADE).iter().flat_map(members);
        let agreed =
            members.next().is_some_and(|agreed| self.protocol.as_bytes().eq_ignore_ascii_case(agreed));
        agreed && members.next().is_none()
    }
}

/// Whether a request asks for any upgrade: an `upgrade` member in any `Connection` line, in any case, and an `Upgrade`
/// field, on HTTP/1.1.
pub fn is_upgrade<B>(request: &Request<B>) -> bool {
    asks(request.version(), request.headers())
}

fn asks(version: Version, headers: &HeaderMap) -> bool {
    // RFC 9110 section 7.8: on HTTP/1.0 it MUST be ignored, without the connection option it is not for us.
    // RFC 9113 section 8.6: HTTP/2 has no such mechanism.
    version == Version::HTTP_11
        && headers.contains_key(header::UPGRADE)
        && any_member(headers, &header::CONNECTION, b"upgrade")
}

/// The upgrade that a request asks for, if it may be forwarded: the first protocol of its `Upgrade` that is allowed.
///
/// `websocket` needs a GET and one `Sec-WebSocket-Key` (RFC 6455 section 4.1), by which the upstream's agreement is
/// checked. A request with a body is not upgraded: its bytes and the tunnel's would share a stream.
pub fn requested<B>(request: &Request<B>, allowed: &UpgradeProtocols) -> Option<UpgradeRequest> {
    if !asks(request.version(), request.headers()) || has_body(request.headers()) {
        return None;
    }
    let mut asked = request.headers().get_all(header::UPGRADE).iter().flat_map(members);
    let protocol = asked.find_map(|protocol| allowed.find(protocol))?;
    let asked = UpgradeRequest { protocol: protocol.clone() };
    let may = !asked.is_websocket()
        || (request.method() == Method::GET && websocket::key(request.headers()).is_some());
    may.then_some(asked)
}

/// The protocol of an extended CONNECT: hyper's word for it over HTTP/2, ours over HTTP/3.
pub(crate) fn connect_protocol(extensions: &Extensions) -> Option<&str> {
    let http2 = extensions.get::<Protocol>().map(Protocol::as_str);
    http2.or_else(|| extensions.get::<ConnectProtocol>().map(ConnectProtocol::as_str))
}

/// Whether a request is an extended CONNECT (RFC 8441 section 4, RFC 9220): it asks for a protocol on its own stream, and is
/// routed and forwarded as the GET that HTTP/1.1 would have for it.
pub fn is_extended_connect<B>(request: &Request<B>) -> bool {
    request.method() == Method::CONNECT && connect_protocol(request.extensions()).is_some()
}

/// Why an extended CONNECT is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExtendedError {
    /// RFC 9220 section 3: a protocol that is not supported is answered 501.
    #[error("an extended connect to a protocol that is not allowed")]
    Protocol,
    /// RFC 9110 section 9.3.6: a CONNECT has no content.
    #[error("an extended connect with a length")]
    Length,
}

/// The upgrade that an extended CONNECT asks for, if it may be forwarded.
pub fn extended<B>(
    request: &Request<B>,
    allowed: &UpgradeProtocols,
) -> Result<UpgradeRequest, ExtendedError> {
    let asked = connect_protocol(request.extensions()).ok_or(ExtendedError::Protocol)?;
    let protocol = allowed.find(asked.as_bytes()).ok_or(ExtendedError::Protocol)?;
    if has_body(request.headers()) {
        return Err(ExtendedError::Length);
    }
    Ok(UpgradeRequest { protocol: protocol.clone() })
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| digits(length.as_bytes()) != Some(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stands for a request without a key.
    const NO_KEY: (&str, &str) = ("x-test", "no key");

    fn request(method: &str, version: Version, fields: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().method(method).version(version);
        if !fields.contains(&NO_KEY) {
            request = request.header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        }
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn rfc9110_7_8_what_is_forwarded() {
        const H11: Version = Version::HTTP_11;
        type Case<'a> = (&'a str, &'a str, Version, &'a [(&'a str, &'a str)], Option<&'a str>);
        let ws = ("upgrade", "websocket");
        let cases: &[Case<'_>] = &[
            ("plain", "GET", H11, &[("connection", "upgrade"), ws], Some("websocket")),
            (
                "any case",
                "GET",
                H11,
                &[("connection", "UpGrade"), ("upgrade", "WebSocket")],
                Some("websocket"),
            ),
            ("a list", "GET", H11, &[("connection", "keep-alive, Upgrade"), ws], Some("websocket")),
            (
                "the second line",
                "GET",
                H11,
                &[("connection", "keep-alive"), ("connection", "upgrade"), ws],
                Some("websocket"),
            ),
            (
                "the first that is allowed",
                "GET",
                H11,
                &[("connection", "upgrade"), ("upgrade", "h2c, websocket")],
                Some("websocket"),
            ),
            ("no connection option", "GET", H11, &[ws], None),
            ("another option", "GET", H11, &[("connection", "upgrades"), ws], None),
            ("no upgrade field", "GET", H11, &[("connection", "upgrade")], None),
            ("HTTP/1.0", "GET", Version::HTTP_10, &[("connection", "upgrade"), ws], None),
            ("HTTP/2", "GET", Version::HTTP_2, &[("connection", "upgrade"), ws], None),
            ("RFC 6455 4.1: GET", "POST", H11, &[("connection", "upgrade"), ws], None),
            ("RFC 6455 4.1: a key", "GET", H11, &[("connection", "upgrade"), ws, NO_KEY], None),
            (
                "two keys",
                "GET",
                H11,
                &[("connection", "upgrade"), ws, ("sec-websocket-key", "AQIDBAUGBwgJCgsMDQ4PEA==")],
                None,
            ),
            ("h2c", "GET", H11, &[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")], None),
            ("a body", "GET", H11, &[("connection", "upgrade"), ws, ("content-length", "5")], None),
            (
                "an empty body",
                "GET",
                H11,
                &[("connection", "upgrade"), ws, ("content-length", "0")],
                Some("websocket"),
            ),
            (
                "a chunked body",
                "GET",
                H11,
                &[("connection", "upgrade"), ws, ("transfer-encoding", "chunked")],
                None,
            ),
        ];
        for (why, method, version, fields, protocol) in cases {
            let found = requested(&request(method, *version, fields), &UpgradeProtocols::default());
            assert_eq!(found.as_ref().map(|found| found.protocol.to_str().unwrap()), *protocol, "{why}");
        }
    }

    #[test]
    fn the_allow_list() {
        let fields = [("connection", "upgrade"), ("upgrade", "irc/6.9")];
        let post = request("POST", Version::HTTP_11, &fields);
        assert!(is_upgrade(&post));
        assert_eq!(requested(&post, &UpgradeProtocols::default()), None);
        let allowed = UpgradeProtocols::default().allow("IRC/6.9").unwrap();
        assert_eq!(requested(&post, &allowed).unwrap().protocol(), "IRC/6.9");
        let ws = request("GET", Version::HTTP_11, &[("connection", "upgrade"), ("upgrade", "websocket")]);
        assert_eq!(requested(&ws, &UpgradeProtocols::none()), None);
    }

    #[test]
    fn what_is_never_allowed() {
        for never in ["h2c", "H2C", "HTTP/2.0", "TLS/1.0", "h2"] {
            assert_eq!(UpgradeProtocols::none().allow(never).unwrap_err(), ProtocolError::Never, "{never}");
        }
        for invalid in ["", "a b", "a,b", "a\r\nb"] {
            assert_eq!(
                UpgradeProtocols::none().allow(invalid).unwrap_err(),
                ProtocolError::Invalid,
                "{invalid:?}"
            );
        }
    }

    #[test]
    fn rfc8441_4_extended_connect() {
        let ask = |protocol: Option<&'static str>, length: Option<&str>| {
            let mut request = Request::connect("http://a.test/chat").version(Version::HTTP_2);
            if let Some(protocol) = protocol {
                request = request.extension(Protocol::from_static(protocol));
            }
            if let Some(length) = length {
                request = request.header("content-length", length);
            }
            request.body(()).unwrap()
        };
        let allowed = UpgradeProtocols::default();
        let cases = [
            (Some("websocket"), None, Ok("websocket")),
            (Some("WebSocket"), Some("0"), Ok("websocket")),
            (Some("websocket"), Some("1"), Err(ExtendedError::Length)),
            (Some("connect-udp"), None, Err(ExtendedError::Protocol)),
            (Some(""), None, Err(ExtendedError::Protocol)),
            (None, None, Err(ExtendedError::Protocol)),
        ];
        for (protocol, length, expected) in cases {
            let request = ask(protocol, length);
            let found = extended(&request, &allowed);
            let found = found.as_ref().map(|asked| asked.protocol.to_str().unwrap()).map_err(|error| *error);
            assert_eq!(found, expected, "{protocol:?} {length:?}");
            assert_eq!(is_extended_connect(&request), protocol.is_some());
        }
        assert_eq!(
            extended(&ask(Some("websocket"), None), &UpgradeProtocols::none()),
            Err(ExtendedError::Protocol)
        );
    }

    #[test]
    fn rfc9110_15_2_2_a_101_names_what_was_asked_for() {
        let asked = UpgradeRequest { protocol: HeaderValue::from_static("websocket") };
        for (lines, agreed) in [
            (&["websocket"][..], true),
            (&["WebSocket"], true),
            (&[], false),
            (&[""], false),
            (&["h2c"], false),
            (&["websocket, h2c"], false),
            (&["websocket", "h2c"], false),
            (&["h2c, websocket"], false),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("upgrade", line.parse().unwrap());
            }
            assert_eq!(asked.is_agreed(&headers), agreed, "{lines:?}");
        }
    }
}
