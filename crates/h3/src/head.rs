//! What the head of a request must be, and what the head of a response becomes.

use std::{
    cell::RefCell,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header, response,
    uri::{self, Authority, PathAndQuery, Scheme},
};
use portcullis_conn::ConnectProtocol;

use crate::{
    frame::put_varint,
    qpack::{
        decode::{Fields, SectionFault, Value},
        encode,
    },
};

/// RFC 9114 section 7.2.2.
const HEADERS_FRAME: u8 = 0x01;
/// RFC 9114 section 7.2.1.
const DATA_FRAME: u8 = 0x00;

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// What the fields of a request come to.
#[derive(Debug, Default)]
pub(crate) struct RequestFields {
    method: Option<Method>,
    scheme: Option<Scheme>,
    authority: Option<Authority>,
    path: Option<PathAndQuery>,
    protocol: Option<Bytes>,
    headers: HeaderMap,
    /// A field came that is none of the pseudo-header.
    begun: bool,
    length: Option<u64>,
}

/// The head of a request.
#[derive(Debug)]
pub(crate) struct RequestHead {
    pub(crate) request: Request<()>,
    /// The announced length of the body.
    pub(crate) length: Option<u64>,
    /// Whether the client waits for a 100 (RFC 9110 section 10.1.1).
    pub(crate) expects_continue: bool,
}

fn once<T, E>(slot: &mut Option<T>, value: Result<T, E>) -> Result<(), SectionFault> {
    // RFC 9114 section 4.3: none may come twice
    match (value, slot.is_some()) {
        (Ok(value), false) => {
            *slot = Some(value);
            Ok(())
        }
        _ => Err(SectionFault::Malformed),
    }
}

impl Fields for RequestFields {
    fn pseudo(&mut self, name: &[u8], value: Value<'_>) -> Result<(), SectionFault> {
        // RFC 9114 section 4.3: before all other fields
        if self.begun {
            return Err(SectionFault::Malformed);
        }
        match name {
            b":method" => once(&mut self.method, Method::from_bytes(value.as_bytes())),
            b":scheme" => once(&mut self.scheme, Scheme::try_from(value.as_bytes())),
            b":authority" => once(&mut self.authority, authority(value.into_bytes())),
            b":path" => once(&mut self.path, path(value)),
            b":protocol" => once(&mut self.protocol, Ok::<_, ()>(value.into_bytes())),
            _ => Err(SectionFault::Malformed),
        }
    }

    fn field(&mut self, name: HeaderName, value: HeaderValue) -> Result<(), SectionFault> {
        self.begun = true;
        check_field(&name, &value, &mut self.length)?;
        self.headers.try_append(name, value).map(|_| ()).map_err(|_| SectionFault::TooMany)
    }
}

/// RFC 9114 section 4.2: a message with connection-specific fields is malformed, and so is TE with anything but
/// "trailers"; RFC 9110 section 8.6: lengths must agree.
fn check_field(name: &HeaderName, value: &HeaderValue, length: &mut Option<u64>) -> Result<(), SectionFault> {
    if is_connection_specific(name)
        || (*name == header::TE && !value.as_bytes().eq_ignore_ascii_case(b"trailers"))
    {
        return Err(SectionFault::Malformed);
    }
    if *name == header::CONTENT_LENGTH {
        let value = number(value.as_bytes()).ok_or(SectionFault::Malformed)?;
        if length.replace(value).is_some_and(|before| before != value) {
            return Err(SectionFault::Malformed);
        }
    }
    Ok(())
}

/// RFC 9114 section 4.3.1: without the deprecated user part.
fn authority(value: Bytes) -> Result<Authority, SectionFault> {
    if value.contains(&b'@') {
        return Err(SectionFault::Malformed);
    }
    Authority::from_maybe_shared(value).map_err(|_| SectionFault::Malformed)
}

/// RFC 9114 section 4.3.1: a path that begins with a slash, or the asterisk of OPTIONS.
fn path(value: Value<'_>) -> Result<PathAndQuery, SectionFault> {
    if let Value::Static("/") = value {
        return Ok(PathAndQuery::from_static("/"));
    }
    let value = value.into_bytes();
    // a fragment is not sent (RFC 9110 section 7.1), and would be dropped here without a word
    if !(value.starts_with(b"/") || &value[..] == b"*") || value.contains(&b'#') {
        return Err(SectionFault::Malformed);
    }
    PathAndQuery::from_maybe_shared(value).map_err(|_| SectionFault::Malformed)
}

impl RequestFields {
    pub(crate) fn new() -> Self {
        // most requests have less than 13 fields
        Self { headers: HeaderMap::with_capacity(16), ..Self::default() }
    }

    /// Puts the request together. `extended` says whether extended CONNECT (RFC 9220) was offered.
    pub(crate) fn finish(self, extended: bool) -> Result<RequestHead, SectionFault> {
        let Self { method, scheme, authority: named, path, protocol, headers, length, .. } = self;
        let method = method.ok_or(SectionFault::Malformed)?;
        let authority = agreed_authority(named, &headers)?;
        let mut uri = uri::Parts::default();
        uri.authority = Some(authority);
        let plain_connect = method == Method::CONNECT && protocol.is_none();
        match (plain_connect, scheme, path) {
            // RFC 9114 section 4.4
            (true, None, None) => {}
            (false, Some(scheme), Some(path)) => {
                if path.as_str() == "*" && method != Method::OPTIONS {
                    return Err(SectionFault::Malformed);
                }
                uri.scheme = Some(scheme);
                uri.path_and_query = Some(path);
            }
            _ => return Err(SectionFault::Malformed),
        }
        let expects_continue = headers
            .get(header::EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        let mut request = Request::new(());
        if let Some(protocol) = protocol {
            // RFC 8441 section 4: with CONNECT alone, and where it was offered
            let protocol =
                std::str::from_utf8(&protocol).ok().filter(|_| extended && method == Method::CONNECT);
            request.extensions_mut().insert(ConnectProtocol::new(protocol.ok_or(SectionFault::Malformed)?));
        }
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from_parts(uri).map_err(|_| SectionFault::Malformed)?;
        *request.version_mut() = Version::HTTP_3;
        *request.headers_mut() = headers;
        Ok(RequestHead { request, length, expects_continue })
    }
}

/// RFC 9114 section 4.3.1: `:authority` or `Host`, and the same if both are there.
fn agreed_authority(named: Option<Authority>, headers: &HeaderMap) -> Result<Authority, SectionFault> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (named, hosts.next(), hosts.next()) {
        (Some(named), None, None) if !named.as_str().is_empty() => Ok(named),
        (Some(named), Some(host), None)
            if named.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) =>
        {
            Ok(named)
        }
        (None, Some(host), None) => authority(Bytes::copy_from_slice(host.as_bytes())),
        _ => Err(SectionFault::Malformed),
    }
}

/// The fields of trailers (RFC 9114 section 4.1: no pseudo-header).
#[derive(Debug, Default)]
pub(crate) struct TrailerFields(pub(crate) HeaderMap);

impl Fields for TrailerFields {
    fn pseudo(&mut self, _: &[u8], _: Value<'_>) -> Result<(), SectionFault> {
        Err(SectionFault::Malformed)
    }

    fn field(&mut self, name: HeaderName, value: HeaderValue) -> Result<(), SectionFault> {
        check_field(&name, &value, &mut None)?;
        self.0.try_append(name, value).map(|_| ()).map_err(|_| SectionFault::TooMany)
    }
}

/// What the fields of a response come to.
#[cfg(feature = "client")]
#[derive(Debug, Default)]
pub(crate) struct ResponseFields {
    status: Option<StatusCode>,
    headers: HeaderMap,
    begun: bool,
    length: Option<u64>,
}

#[cfg(feature = "client")]
impl Fields for ResponseFields {
    fn pseudo(&mut self, name: &[u8], value: Value<'_>) -> Result<(), SectionFault> {
        if self.begun || name != b":status" {
            return Err(SectionFault::Malformed);
        }
        once(&mut self.status, StatusCode::from_bytes(value.as_bytes()))
    }

    fn field(&mut self, name: HeaderName, value: HeaderValue) -> Result<(), SectionFault> {
        self.begun = true;
        check_field(&name, &value, &mut self.length)?;
        self.headers.try_append(name, value).map(|_| ()).map_err(|_| SectionFault::TooMany)
    }
}

#[cfg(feature = "client")]
impl ResponseFields {
    /// The response and the announced length of its body.
    pub(crate) fn finish(self) -> Result<(http::Response<()>, Option<u64>), SectionFault> {
        let status = self.status.ok_or(SectionFault::Malformed)?;
        // RFC 9114 section 4.5
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(SectionFault::Malformed);
        }
        let mut response = http::Response::new(());
        *response.status_mut() = status;
        *response.version_mut() = Version::HTTP_3;
        *response.headers_mut() = self.headers;
        Ok((response, self.length))
    }
}

/// The one value of all `Content-Length` lines; an error if they differ or are not plain numbers (RFC 9110
/// section 8.6).
pub(crate) fn content_length(headers: &HeaderMap) -> Result<Option<u64>, ()> {
    let mut length = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        let value = number(value.as_bytes()).ok_or(())?;
        if length.is_some_and(|length| length != value) {
            return Err(());
        }
        length = Some(value);
    }
    Ok(length)
}

/// Digits only: no sign, no list, no space.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// RFC 9114 section 4.2.
fn is_connection_specific(name: &HeaderName) -> bool {
    name == header::CONNECTION
        || name == header::TRANSFER_ENCODING
        || name == header::UPGRADE
        || name == KEEP_ALIVE
        || name == PROXY_CONNECTION
}

/// Whether a response with this status never has a body (RFC 9110 sections 15.3.5 and 15.4.5).
pub(crate) fn is_bodiless(status: StatusCode) -> bool {
    status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}

/// Writes the HEADERS frame of a response. `length` is announced unless the head announces one already;
/// connection-specific fields are left out and `Date` is added where it is missing (RFC 9110 section 6.6.1).
pub(crate) fn encode_response(out: &mut BytesMut, parts: &response::Parts, length: Option<u64>) {
    encode_frame(out, |out| {
        encode::status(out, parts.status);
        let (mut has_date, mut has_length) = (false, false);
        for (name, value) in &parts.headers {
            if is_connection_specific(name) {
                continue;
            }
            has_date |= name == header::DATE;
            has_length |= name == header::CONTENT_LENGTH;
            encode::field(out, name, value);
        }
        if let (Some(length), false) = (length, has_length) {
            decimal(length, |digits| encode::raw_field(out, "content-length", digits));
        }
        if !has_date {
            with_date(|date| encode::raw_field(out, "date", date));
        }
    });
}

/// Writes the HEADERS frame of trailers.
pub(crate) fn encode_trailers(out: &mut BytesMut, trailers: &HeaderMap) {
    encode_frame(out, |out| {
        for (name, value) in trailers {
            if !is_connection_specific(name) {
                encode::field(out, name, value);
            }
        }
    });
}

fn encode_frame(out: &mut BytesMut, fields: impl FnOnce(&mut BytesMut)) {
    out.put_u8(HEADERS_FRAME);
    let at = out.len();
    out.put_u32(0);
    encode::begin(out);
    fields(out);
    // the length as an integer of 4 bytes (RFC 9000 section 16), whatever it is, so that nothing has to move; a
    // head of 1 GiB does not exist
    let length = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&(length | 0x8000_0000).to_be_bytes());
}

/// Writes the HEADERS frame of an interim response.
pub(crate) fn encode_interim(out: &mut BytesMut, status: StatusCode, headers: &HeaderMap) {
    encode_frame(out, |out| {
        encode::status(out, status);
        for (name, value) in headers {
            if !is_connection_specific(name) {
                encode::field(out, name, value);
            }
        }
    });
}

/// Writes the HEADERS frame of a request whose URI has all its parts.
#[cfg(feature = "client")]
pub(crate) fn encode_request(out: &mut BytesMut, parts: &http::request::Parts, length: Option<u64>) {
    encode_frame(out, |out| {
        let protocol = parts.extensions.get::<ConnectProtocol>();
        encode::method(out, &parts.method);
        if let Some(authority) = parts.uri.authority() {
            encode::authority(out, authority.as_str());
        }
        if parts.method != Method::CONNECT || protocol.is_some() {
            encode::scheme(out, parts.uri.scheme_str().unwrap_or("https"));
            encode::path(out, parts.uri.path_and_query().map_or("/", PathAndQuery::as_str));
        }
        if let Some(protocol) = protocol {
            encode::protocol(out, protocol.as_str());
        }
        let mut has_length = false;
        for (name, value) in &parts.headers {
            // the authority says what Host would
            if is_connection_specific(name) || (*name == header::HOST && parts.uri.authority().is_some()) {
                continue;
            }
            has_length |= name == header::CONTENT_LENGTH;
            encode::field(out, name, value);
        }
        if let (Some(length), false) = (length, has_length) {
            decimal(length, |digits| encode::raw_field(out, "content-length", digits));
        }
    });
}

/// Writes the header of a DATA frame.
pub(crate) fn encode_data_header(out: &mut BytesMut, length: u64) {
    out.put_u8(DATA_FRAME);
    put_varint(out, length);
}

fn decimal(mut number: u64, write: impl FnOnce(&[u8])) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    write(&digits[at..]);
}

/// Hands out the date of now, formatted once per second and thread.
fn with_date(write: impl FnOnce(&[u8])) {
    thread_local! {
        static DATE: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    DATE.with_borrow_mut(|(second, date)| {
        if *second != now {
            *date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now));
            *second = now;
        }
        write(date.as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;
    use crate::qpack::decode::{Bounds, decode};

    /// The fields of `GET https://a.test/x` and these.
    fn read(fields: &[(&str, &str)], extended: bool) -> Result<RequestHead, SectionFault> {
        let mut out = BytesMut::new();
        encode::begin(&mut out);
        for (name, value) in fields {
            encode::raw_field(&mut out, name, value.as_bytes());
        }
        let mut fields = RequestFields::new();
        decode(&out, Bounds { size: 10_000, fields: 8 }, &mut fields)?;
        fields.finish(extended)
    }

    const GET: [(&str, &str); 4] =
        [(":method", "GET"), (":scheme", "https"), (":authority", "a.test"), (":path", "/x")];

    fn get(more: &[(&str, &str)]) -> Result<Option<u64>, SectionFault> {
        read(&[&GET, more].concat(), true).map(|head| head.length)
    }

    #[test]
    fn fields_of_requests() {
        let malformed = Err(SectionFault::Malformed);
        for (fields, expected) in [
            (&[][..], Ok(None)),
            (&[("te", "trailers")], Ok(None)),
            (&[("te", "gzip")], malformed),
            (&[("connection", "x")], malformed),
            (&[("keep-alive", "x")], malformed),
            (&[("proxy-connection", "x")], malformed),
            (&[("transfer-encoding", "chunked")], malformed),
            (&[("upgrade", "x")], malformed),
            (&[("content-length", "12")], Ok(Some(12))),
            (&[("content-length", "12"), ("content-length", "12")], Ok(Some(12))),
            (&[("content-length", "12"), ("content-length", "13")], malformed),
            (&[("content-length", "")], malformed),
            (&[("content-length", "+1")], malformed),
            (&[("content-length", "1, 1")], malformed),
            (&[("content-length", "18446744073709551616")], malformed),
            (&[("host", "A.test")], Ok(None)),
            (&[("host", "b.test")], malformed),
            (&[("host", "a.test"), ("host", "a.test")], malformed),
            (&[("a", "1"), (":path", "/")], malformed),
            (&[(":method", "GET")], malformed),
            (&[(":status", "200")], malformed),
            (&[(":other", "x")], malformed),
            (&[(":protocol", "websocket")], malformed),
            (&[("a", "1"); 9], Err(SectionFault::TooMany)),
        ] {
            assert_eq!(get(fields), expected, "{fields:?}");
        }
    }

    #[test]
    fn pseudo_header_fields() {
        let of = |method, scheme, authority, path, protocol: Option<&str>| {
            let names = [":method", ":scheme", ":authority", ":path", ":protocol"];
            let values: [Option<&str>; 5] = [method, scheme, authority, path, protocol];
            let fields: Vec<_> =
                names.into_iter().zip(values).filter_map(|(name, value)| Some((name, value?))).collect();
            read(&fields, true).map(|head| head.request.uri().to_string())
        };
        let (get, https, host) = (Some("GET"), Some("https"), Some("a.test"));
        let malformed = Err(SectionFault::Malformed);
        assert_eq!(of(get, https, host, Some("/a?b"), None), Ok("https://a.test/a?b".to_owned()));
        assert_eq!(of(Some("OPTIONS"), https, host, Some("*"), None), Ok("https://a.test*".to_owned()));
        for (method, scheme, authority, path) in [
            (None, https, host, Some("/")),
            (get, None, host, Some("/")),
            (get, https, None, Some("/")),
            (get, https, host, None),
            (get, https, Some(""), Some("/")),
            (get, https, Some("u@a.test"), Some("/")),
            (get, https, Some("a b"), Some("/")),
            (get, https, host, Some("")),
            (get, https, host, Some("a")),
            (get, https, host, Some("*")),
            (get, https, host, Some("/a#b")),
            (get, https, host, Some("/a b")),
            (get, Some("h ttp"), host, Some("/")),
            (Some("G T"), https, host, Some("/")),
            (Some(""), https, host, Some("/")),
        ] {
            assert_eq!(
                of(method, scheme, authority, path, None),
                malformed,
                "{method:?} {authority:?} {path:?}"
            );
        }
        // RFC 9114 section 4.4
        let connect = Some("CONNECT");
        assert_eq!(of(connect, None, Some("a.test:443"), None, None), Ok("a.test:443".to_owned()));
        assert_eq!(of(connect, https, Some("a.test:443"), None, None), malformed);
        assert_eq!(of(connect, None, Some("a.test:443"), Some("/"), None), malformed);
        // RFC 9220
        let extended = of(connect, https, host, Some("/chat"), Some("websocket"));
        assert_eq!(extended, Ok("https://a.test/chat".to_owned()));
        assert_eq!(of(connect, None, host, None, Some("websocket")), malformed);
        let offered = [GET[1], GET[2], GET[3], (":method", "CONNECT"), (":protocol", "websocket")];
        assert!(read(&offered, false).is_err());
        let head = read(&offered, true).unwrap();
        assert_eq!(head.request.extensions().get::<ConnectProtocol>().unwrap().as_str(), "websocket");
    }

    #[test]
    fn who_waits_for_a_100() {
        let expects =
            |value| read(&[&GET[..], &[("expect", value)]].concat(), true).unwrap().expects_continue;
        assert!(expects("100-Continue") && !expects("200-ok"));
    }

    #[test]
    fn host_alone_names_the_authority() {
        let head = read(&[GET[0], GET[1], GET[3], ("host", "b.test:8443")], true).unwrap();
        assert_eq!(head.request.uri(), "https://b.test:8443/x");
        assert_eq!(head.request.version(), Version::HTTP_3);
        assert!(read(&[GET[0], GET[1], GET[3], ("host", "u@b.test")], true).is_err());
    }

    #[test]
    fn responses_lose_connection_specific_fields_and_gain_length_and_date() {
        let response = Response::builder()
            .header("connection", "x")
            .header("keep-alive", "x")
            .header("upgrade", "x")
            .header("transfer-encoding", "chunked")
            .header("proxy-connection", "x")
            .header("x-kept", "yes")
            .body(())
            .unwrap();
        let mut out = BytesMut::new();
        encode_response(&mut out, &response.into_parts().0, Some(40));
        assert_eq!(out[0], HEADERS_FRAME);
        let length = u32::from_be_bytes(out[1..5].try_into().unwrap()) & 0x3fff_ffff;
        assert_eq!(length as usize, out.len() - 5);
        let mut expected = BytesMut::new();
        encode::begin(&mut expected);
        encode::status(&mut expected, StatusCode::OK);
        encode::raw_field(&mut expected, "x-kept", b"yes");
        encode::raw_field(&mut expected, "content-length", b"40");
        encode::raw_field(&mut expected, "date", &[b'x'; 29]);
        assert_eq!(out.len() - 5, expected.len());
        assert_eq!(out[5..out.len() - 29], expected[..expected.len() - 29]);
    }

    #[test]
    fn what_the_service_said_stays() {
        let response =
            Response::builder().header("content-length", "7").header("date", "then").body(()).unwrap();
        let mut out = BytesMut::new();
        encode_response(&mut out, &response.into_parts().0, Some(40));
        let mut expected = BytesMut::new();
        encode::begin(&mut expected);
        encode::status(&mut expected, StatusCode::OK);
        encode::raw_field(&mut expected, "content-length", b"7");
        encode::raw_field(&mut expected, "date", b"then");
        assert_eq!(out[5..], expected[..]);
    }

    #[test]
    fn data_headers_of_every_size() {
        for (length, bytes) in [
            (5, &[0, 5][..]),
            (64, &[0, 0x40, 64]),
            (16_384, &[0, 0x80, 0, 0x40, 0]),
            (1 << 30, &[0, 0xc0, 0, 0, 0, 0x40, 0, 0, 0]),
        ] {
            let mut out = BytesMut::new();
            encode_data_header(&mut out, length);
            assert_eq!(out, bytes);
        }
    }

    #[test]
    fn decimals() {
        for number in [0, 9, 10, u64::MAX] {
            decimal(number, |digits| assert_eq!(digits, number.to_string().as_bytes()));
        }
    }
}
