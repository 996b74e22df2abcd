//! How a fault is told to the client: in the form that it accepts, with an id that the log has as well, and, by choice, with
//! `Proxy-Status`. The cause is never told.

use std::{
    fmt::Write as _,
    hash::{BuildHasher, Hasher, RandomState},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version, header};
use http_body_util::Full;

use super::{ClientFault, Fault, InternalFault, Kind, UpstreamFault};

static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// The longest request id of a client that is taken over, in bytes.
const LONGEST_ID: usize = 128;

/// What an answer to a fault looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// What the client's `Accept` likes best of the others; text if it likes nothing better.
    #[default]
    Auto,
    /// `text/plain`.
    Text,
    /// `application/problem+json` (RFC 9457).
    Json,
    /// `text/html`.
    Html,
}

/// How faults are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AnswerOptions {
    /// The form of the answer. Default [`Format::Auto`].
    pub format: Format,
    /// The name of this edge in `Proxy-Status` (RFC 9209). Default none: the field is not sent, since it tells strangers what
    /// happened between this edge and its upstreams.
    pub proxy_status: Option<ProxyName>,
}

impl AnswerOptions {
    /// Sets [`Self::format`].
    #[must_use]
    pub fn with_format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// Sets [`Self::proxy_status`].
    #[must_use]
    pub fn with_proxy_status(mut self, name: Option<ProxyName>) -> Self {
        self.proxy_status = name;
        self
    }
}

/// The name of an edge in `Proxy-Status`: a token that begins with a letter (RFC 8941 section 3.3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyName(String);

impl ProxyName {
    /// `None` for what is no such token.
    pub fn new(name: &str) -> Option<Self> {
        let well = name.starts_with(|c: char| c.is_ascii_alphabetic()) && is_token(name.as_bytes());
        well.then(|| Self(name.to_owned()))
    }
}

/// What is kept of a request until it is known whether it fails: no more than references to its fields.
#[derive(Clone, Debug)]
pub struct Asker {
    version: Version,
    accept: Option<HeaderValue>,
    id: Option<HeaderValue>,
}

impl Asker {
    /// The asker of a request.
    pub fn of<B>(request: &Request<B>) -> Self {
        let headers = request.headers();
        let mut asker = Self { version: request.version(), accept: None, id: None };
        // one pass by length costs less than two look-ups, each with a hash
        for (name, value) in headers {
            match name.as_str().len() {
                6 if *name == header::ACCEPT && asker.accept.is_none() => asker.accept = Some(value.clone()),
                6 if *name == header::ACCEPT => asker.accept = accept(headers),
                12 if asker.id.is_none() && *name == X_REQUEST_ID => asker.id = Some(value.clone()),
                _ => {}
            }
        }
        asker
    }

    /// The request's own id if it is one token of 128 bytes at most, else a fresh one.
    pub fn request_id(&self) -> HeaderValue {
        let valid = |id: &&HeaderValue| id.len() <= LONGEST_ID && is_token(id.as_bytes());
        self.id.as_ref().filter(valid).cloned().unwrap_or_else(fresh_id)
    }
}

/// All lines as one; a request with several is rare.
fn accept(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut lines = headers.get_all(header::ACCEPT).iter();
    let first = lines.next()?;
    let mut joined: Option<Vec<u8>> = None;
    for line in lines {
        let joined = joined.get_or_insert_with(|| first.as_bytes().to_vec());
        joined.push(b',');
        joined.extend_from_slice(line.as_bytes());
    }
    match joined {
        None => Some(first.clone()),
        Some(joined) => HeaderValue::from_bytes(&joined).ok(),
    }
}

fn is_token(bytes: &[u8]) -> bool {
    let part = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    !bytes.is_empty() && bytes.iter().all(part)
}

/// 128 bits that nobody can guess: two hashes under keys that the system's randomness made.
fn fresh_id() -> HeaderValue {
    let half = || RandomState::new().build_hasher().finish();
    let id = format!("{:016x}{:016x}", half(), half());
    HeaderValue::try_from(id).expect("hexadecimal digits make a field value")
}

/// What an `Accept` likes best (RFC 9110 section 12.5.1). Between equals the order is text, JSON, HTML; what is not
/// named at all is not liked.
fn negotiate(accept: Option<&HeaderValue>) -> Format {
    const FORMS: [(Format, &[(&str, &str)]); 3] = [
        (Format::Text, &[("text", "plain")]),
        (Format::Json, &[("application", "problem+json"), ("application", "json")]),
        (Format::Html, &[("text", "html")]),
    ];
    let Some(accept) = accept.and_then(|accept| accept.to_str().ok()) else { return Format::Text };
    let (mut best, mut liking) = (Format::Text, 0);
    for (format, types) in FORMS {
        let weight = types.iter().map(|(kind, sub)| weight(accept, kind, sub)).max().unwrap_or(0);
        if weight > liking {
            (best, liking) = (format, weight);
        }
    }
    best
}

/// The weight in thousandths that the most specific range for a type has; 0 if there is none.
fn weight(accept: &str, kind: &str, sub: &str) -> u16 {
    let mut found = (0, 0);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let Some((range_kind, range_sub)) = parts.next().and_then(|range| range.split_once('/')) else {
            continue;
        };
        let specific = match (range_kind, range_sub) {
            ("*", "*") => 1,
            (found, "*") if found.eq_ignore_ascii_case(kind) => 2,
            (found, other) if found.eq_ignore_ascii_case(kind) && other.eq_ignore_ascii_case(sub) => 3,
            _ => continue,
        };
        let weight = parts
            .filter_map(|parameter| parameter.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
            .map_or(1000, |(_, value)| thousandths(value.trim()));
        if specific > found.0 {
            found = (specific, weight);
        }
    }
    found.1
}

/// A weight (RFC 9110 section 12.4.2) in thousandths; what is none counts as 0.
fn thousandths(value: &str) -> u16 {
    let (whole, part) = value.split_once('.').unwrap_or((value, ""));
    if !matches!(whole, "0" | "1") || part.len() > 3 || !part.bytes().all(|b| b.is_ascii_digit()) {
        return 0;
    }
    let part = format!("{part:0<3}").parse::<u16>().unwrap_or(0);
    (whole.parse::<u16>().unwrap_or(0) * 1000 + part).min(1000)
}

impl Fault {
    /// The answer for whoever asked, with `id` in it: [`Asker::request_id`], which the log should have as well.
    pub fn answer(&self, asker: &Asker, id: &HeaderValue, options: &AnswerOptions) -> Response<Full<Bytes>> {
        let mut response = self.respond(asker.version);
        let format = match options.format {
            Format::Auto => negotiate(asker.accept.as_ref()),
            format => format,
        };
        if self.kind() != Kind::Client(ClientFault::HopsSpent) {
            let (kind, body) = self.body(id, format);
            *response.body_mut() = Full::new(body);
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            if options.format == Format::Auto {
                // RFC 9110 section 12.5.5
                response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
            }
        }
        let headers = response.headers_mut();
        headers.insert(&X_REQUEST_ID, id.clone());
        if self.is_passing() {
            // RFC 9110 section 10.2.3, in seconds
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let (Some(ProxyName(name)), Some(error)) = (&options.proxy_status, self.proxy_error())
            && let Ok(value) = HeaderValue::try_from(format!("{name}; error={error}"))
        {
            headers.insert(&PROXY_STATUS, value);
        }
        response
    }

    fn body(&self, id: &HeaderValue, format: Format) -> (&'static str, Bytes) {
        let status = self.status();
        let title = status.canonical_reason().unwrap_or("Error");
        // a token, so there is nothing in it that JSON would escape; HTML would `&` and so does `escape`
        let id = id.to_str().unwrap_or_default();
        match format {
            Format::Json => {
                let code = status.as_u16();
                let body = format!(
                    "{{\"type\":\"about:blank\",\"title\":\"{title}\",\"status\":{code},\"request_id\":\"{id}\"}}\n"
                );
                ("application/problem+json", body.into())
            }
            Format::Html => {
                let mut body = format!(
                    "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{status}</title></head>\n\
                     <body><h1>{status}</h1><p>Request "
                );
                escape(id, &mut body);
                body.push_str("</p></body></html>\n");
                ("text/html; charset=utf-8", body.into())
            }
            Format::Text | Format::Auto => {
                let mut body = format!("{status}\n");
                // a String takes whatever is written
                let _ = writeln!(body, "request {id}");
                ("text/plain; charset=utf-8", body.into())
            }
        }
    }

    /// Whether the same request may do better in a second: this edge or its upstreams are full.
    fn is_passing(&self) -> bool {
        matches!(
            self.kind(),
            Kind::Upstream(
                UpstreamFault::Overloaded | UpstreamFault::QueueTimeout | UpstreamFault::CircuitOpen
            ) | Kind::Internal(InternalFault::TunnelsFull)
        )
    }

    /// The type of a proxy error (RFC 9209 section 2.3); `None` for what has none.
    pub fn proxy_error(&self) -> Option<&'static str> {
        Some(match self.kind() {
            Kind::Client(ClientFault::Gone | ClientFault::HopsSpent) => return None,
            Kind::Client(ClientFault::NotFound) => "destination_not_found",
            Kind::Client(
                ClientFault::MethodNotAllowed
                | ClientFault::ConnectNotAllowed
                | ClientFault::TooManyRequests
                | ClientFault::TooEarly,
            ) => "http_request_denied",
            Kind::Client(_) => "http_request_error",
            Kind::Upstream(fault) => match fault {
                UpstreamFault::ConnectFailed => "connection_refused",
                UpstreamFault::ConnectTimeout => "connection_timeout",
                UpstreamFault::Dns => "dns_error",
                UpstreamFault::TlsFailed => "tls_protocol_error",
                UpstreamFault::TlsCertificate => "tls_certificate_error",
                UpstreamFault::TlsTimeout => "connection_timeout",
                UpstreamFault::ResponseTimeout | UpstreamFault::TotalTimeout => "http_response_timeout",
                UpstreamFault::ReadTimeout => "connection_read_timeout",
                UpstreamFault::Closed => "connection_terminated",
                UpstreamFault::Protocol => "http_protocol_error",
                UpstreamFault::NoEndpoint | UpstreamFault::CircuitOpen => "destination_unavailable",
                UpstreamFault::Overloaded | UpstreamFault::QueueTimeout => "connection_limit_reached",
            },
            Kind::Internal(InternalFault::Failed) => "proxy_internal_error",
            Kind::Internal(InternalFault::TunnelsFull) => "connection_limit_reached",
        })
    }
}

fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    fn asker(lines: &[(&str, &str)]) -> Asker {
        let mut request = Request::builder();
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        Asker::of(&request.body(()).unwrap())
    }

    fn text(response: Response<Full<Bytes>>) -> String {
        let collect = std::pin::pin!(response.into_body().collect());
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let std::task::Poll::Ready(Ok(body)) = collect.poll(&mut cx) else { panic!("a full body is ready") };
        String::from_utf8(body.to_bytes().to_vec()).unwrap()
    }

    #[test]
    fn rfc9110_12_5_1_what_is_liked_best() {
        use Format::{Html, Json, Text};
        for (accept, format) in [
            (&[][..], Text),
            (&["*/*"], Text),
            (&[""], Text),
            (&["application/json"], Json),
            (&["application/problem+json"], Json),
            (&["application/*"], Json),
            (&["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], Html),
            (&["text/*"], Text),
            (&["text/html;q=0.5, application/json;q=0.6"], Json),
            (&["text/html;q=0.5", "application/json;q=0.4"], Html),
            (&["text/plain;q=0, */*;q=0.1"], Json),
            (&["text/plain;q=0, application/*;q=0, */*"], Html),
            (&["TEXT/HTML; Q=1"], Html),
            (&["text/html;q=2"], Text),
            (&["text/html;q=0.0001"], Text),
            (&["text/html;level=1;q=0.7, text/plain;q=0.6"], Html),
            (&["image/png"], Text),
            (&["nonsense"], Text),
        ] {
            let lines: Vec<_> = accept.iter().map(|line| ("accept", *line)).collect();
            assert_eq!(negotiate(asker(&lines).accept.as_ref()), format, "{accept:?}");
        }
    }

    #[test]
    fn an_id_is_taken_over_or_made() {
        assert_eq!(asker(&[("x-request-id", "abc-1_2")]).request_id(), "abc-1_2");
        let long = "x".repeat(129);
        for bad in ["", "a b", "a,b", "<a>", "a\"b", &long] {
            let asker = asker(&[("x-request-id", bad)]);
            let (id, other) = (asker.request_id(), asker.request_id());
            assert!(id.len() == 32 && id.as_bytes().iter().all(u8::is_ascii_hexdigit), "{bad:?}: {id:?}");
            assert_ne!(id, other);
        }
    }

    #[test]
    fn every_form_has_the_id_and_none_the_cause() {
        let fault = Fault::upstream(UpstreamFault::Dns).with_source("no such name: db.internal");
        let asker = asker(&[("x-request-id", "a&b'c")]);
        let id = asker.request_id();
        for (format, kind, in_body) in [
            (Format::Auto, "text/plain; charset=utf-8", "502 Bad Gateway\nrequest a&b'c\n"),
            (Format::Text, "text/plain; charset=utf-8", "request a&b'c\n"),
            (Format::Json, "application/problem+json", "\"status\":502,\"request_id\":\"a&b'c\"}\n"),
            (Format::Html, "text/html; charset=utf-8", "Request a&amp;b&#39;c</p>"),
        ] {
            let response = fault.answer(&asker, &id, &AnswerOptions::default().with_format(format));
            assert_eq!(response.status(), 502);
            assert_eq!(response.headers()["content-type"], kind);
            assert_eq!(response.headers()["x-request-id"], id);
            assert_eq!(response.headers().contains_key("vary"), format == Format::Auto);
            assert!(!response.headers().contains_key("proxy-status"));
            let body = text(response);
            assert!(body.contains(in_body) && !body.contains("internal"), "{body}");
        }
    }

    #[test]
    fn rfc9209_the_error_is_named_when_that_is_wanted() {
        let options = AnswerOptions::default().with_proxy_status(ProxyName::new("edge-1"));
        let asker = asker(&[]);
        let id = asker.request_id();
        let response = Fault::upstream(UpstreamFault::ConnectTimeout).answer(&asker, &id, &options);
        assert_eq!(response.headers()["proxy-status"], "edge-1; error=connection_timeout");
        for bad in ["", "1a", "a b", "a;b", "\"a\""] {
            assert_eq!(ProxyName::new(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_passes_says_when_to_come_again() {
        let asker = asker(&[]);
        let id = asker.request_id();
        for (fault, again) in [
            (UpstreamFault::CircuitOpen, true),
            (UpstreamFault::QueueTimeout, true),
            (UpstreamFault::Overloaded, true),
            (UpstreamFault::NoEndpoint, false),
            (UpstreamFault::TotalTimeout, false),
        ] {
            let response = Fault::upstream(fault).answer(&asker, &id, &AnswerOptions::default());
            assert_eq!(response.headers().contains_key("retry-after"), again, "{fault:?}");
        }
    }
}
