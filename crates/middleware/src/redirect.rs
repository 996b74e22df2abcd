//! Sends every request to HTTPS, to the same host and target.
//!
//! tower-http's `Redirect` service has one fixed target; this one keeps the host, the path and the query of each
//! request, and trusts none of them before they are checked.

use std::{
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    marker::PhantomData,
    net::Ipv6Addr,
    task::{Context, Poll},
};

use http::{
    HeaderValue, Request, Response, StatusCode, Version,
    header::{HOST, LOCATION},
    uri::PathAndQuery,
};
use tower_service::Service;

/// The longest host name that is accepted, as in the DNS (RFC 1035 section 2.3.4).
const MAX_HOST: usize = 253;

/// Why a request can't be redirected; the answer to each is 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RedirectError {
    /// Neither the target nor a Host field names a host.
    #[error("request names no host")]
    MissingHost,
    /// There are several Host fields, or one that disagrees with `:authority`.
    #[error("request names several hosts")]
    AmbiguousHost,
    /// What names the host isn't a host name, an IPv4 address or a bracketed IPv6 address with an optional port.
    #[error("request names an invalid host")]
    InvalidHost,
    /// The target has no path: `*`, or the authority of a CONNECT.
    #[error("request target has no path")]
    NoPath,
}

/// With which status a [`RedirectToHttps`] answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RedirectStatus {
    /// 308: the method and the body are sent again as they are (RFC 9110 section 15.4.9). The default.
    #[default]
    Permanent308,
    /// 301: for clients older than 308 (2015), which make a GET of a POST.
    Moved301,
}

/// Answers every request with a permanent redirect to `https://HOST[:PORT]TARGET`, or with 400.
///
/// The host is the target's authority, else the Host field, without its port. It may be a name of letters, digits,
/// hyphens, dots and underscores, an IPv4 address or an IPv6 address in brackets; anything else that RFC 3986 would
/// allow (user information, commas, percent encodings) is refused, since no certificate could be for it. The answer has
/// no body: `ResBody::default()`. It needs no facts about the connection.
pub struct RedirectToHttps<ResBody> {
    port: u16,
    status: RedirectStatus,
    body: PhantomData<fn() -> ResBody>,
}

impl<ResBody> RedirectToHttps<ResBody> {
    /// To this port; 443 is left out of the location.
    pub fn new(port: u16) -> Self {
        Self { port, status: RedirectStatus::default(), body: PhantomData }
    }

    /// Sets the status. Default [`RedirectStatus::Permanent308`].
    #[must_use]
    pub fn with_status(mut self, status: RedirectStatus) -> Self {
        self.status = status;
        self
    }

    /// Where the request is sent.
    pub fn location<B>(&self, request: &Request<B>) -> Result<HeaderValue, RedirectError> {
        let host = host(request)?;
        let target = request.uri().path_and_query().ok_or(RedirectError::NoPath)?;
        if !target.path().starts_with('/') {
            return Err(RedirectError::NoPath);
        }
        let mut location = Vec::with_capacity("https://:65535".len() + host.len() + target.as_str().len());
        location.extend_from_slice(b"https://");
        location.extend_from_slice(host.as_bytes());
        if self.port != 443 {
            location.extend_from_slice(format!(":{}", self.port).as_bytes());
        }
        push_target(&mut location, target);
        HeaderValue::from_maybe_shared(bytes::Bytes::from(location)).map_err(|_| RedirectError::InvalidHost)
    }
}

impl<ResBody: Default> RedirectToHttps<ResBody> {
    /// The answer to a request.
    pub fn respond<B>(&self, request: &Request<B>) -> Response<ResBody> {
        let mut response = Response::new(ResBody::default());
        *response.status_mut() = match self.location(request) {
            Ok(location) => {
                response.headers_mut().insert(LOCATION, location);
                match self.status {
                    RedirectStatus::Permanent308 => StatusCode::PERMANENT_REDIRECT,
                    RedirectStatus::Moved301 => StatusCode::MOVED_PERMANENTLY,
                }
            }
            Err(error) => {
                tracing::debug!(%error, "no redirect to HTTPS");
                StatusCode::BAD_REQUEST
            }
        };
        response
    }
}

impl<B, ResBody: Default> Service<Request<B>> for RedirectToHttps<ResBody> {
    type Response = Response<ResBody>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ready(Ok(self.respond(&request)))
    }
}

// by hand, since derives would ask the same of the body, which isn't there
impl<ResBody> Clone for RedirectToHttps<ResBody> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<ResBody> Copy for RedirectToHttps<ResBody> {}

impl<ResBody> fmt::Debug for RedirectToHttps<ResBody> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedirectToHttps").field("port", &self.port).field("status", &self.status).finish()
    }
}

/// The host that the request is for, checked, without its port.
fn host<B>(request: &Request<B>) -> Result<&str, RedirectError> {
    let mut fields = request.headers().get_all(HOST).iter();
    let field = fields.next();
    // RFC 9112 section 3.2: more than one Host field is 400
    if fields.next().is_some() {
        return Err(RedirectError::AmbiguousHost);
    }
    match (request.uri().authority(), field) {
        (Some(authority), field) => {
            // RFC 9113 section 8.3.1 and RFC 9114 section 4.3.1: both must say the same. In HTTP/1 the target of a
            // proxy request wins (RFC 9112 section 3.2.2)
            let agree =
                |field: &HeaderValue| field.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes());
            if request.version() >= Version::HTTP_2 && !field.is_none_or(agree) {
                return Err(RedirectError::AmbiguousHost);
            }
            check_authority(authority.as_str())
        }
        (None, Some(field)) => check_authority(field.to_str().map_err(|_| RedirectError::InvalidHost)?),
        (None, None) => Err(RedirectError::MissingHost),
    }
}

/// Takes `host[:port]` apart and gives the host (RFC 9110 section 7.2).
fn check_authority(authority: &str) -> Result<&str, RedirectError> {
    let end = match authority.strip_prefix('[') {
        Some(rest) => {
            let inner = rest.find(']').ok_or(RedirectError::InvalidHost)?;
            rest[..inner].parse::<Ipv6Addr>().map_err(|_| RedirectError::InvalidHost)?;
            inner + 2
        }
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at(end);
    if host.is_empty() {
        return Err(RedirectError::MissingHost);
    }
    let name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if !host.starts_with('[') && (host.len() > MAX_HOST || !host.bytes().all(name)) {
        return Err(RedirectError::InvalidHost);
    }
    match port.strip_prefix(':') {
        // RFC 3986 section 3.2.3: the port may be empty after its colon
        None if port.is_empty() => Ok(host),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) && fits_a_port(digits) => Ok(host),
        _ => Err(RedirectError::InvalidHost),
    }
}

fn fits_a_port(digits: &str) -> bool {
    digits.is_empty() || digits.parse::<u16>().is_ok()
}

/// Appends path and query, with what a URI can't hold (RFC 3986 appendix A) percent-encoded: a request line may carry
/// quotes, braces and bytes beyond ASCII that have no place in a Location field.
fn push_target(out: &mut Vec<u8>, target: &PathAndQuery) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in target.as_str().bytes() {
        if byte.is_ascii_graphic()
            && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}')
        {
            out.push(byte);
        } else {
            out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Uri;
    use tower::ServiceExt;

    use super::*;

    fn request(target: &str, hosts: &[&[u8]]) -> Request<()> {
        let mut request = Request::get(target).body(()).unwrap();
        for host in hosts {
            request.headers_mut().append(HOST, HeaderValue::from_bytes(host).unwrap());
        }
        request
    }

    fn location(port: u16, request: &Request<()>) -> Result<String, RedirectError> {
        let location = RedirectToHttps::<()>::new(port).location(request)?;
        Ok(location.to_str().unwrap().to_owned())
    }

    #[test]
    fn host_port_path_and_query() {
        let table: [(u16, &str, &[u8], &str); 14] = [
            (443, "/", b"example.com", "https://example.com/"),
            (443, "/a/b?c=d&e", b"example.com", "https://example.com/a/b?c=d&e"),
            (443, "/", b"example.com:80", "https://example.com/"),
            (443, "/", b"example.com:", "https://example.com/"),
            (8443, "/x", b"example.com", "https://example.com:8443/x"),
            (8443, "/x", b"example.com:8080", "https://example.com:8443/x"),
            (443, "/", b"192.0.2.1:80", "https://192.0.2.1/"),
            (443, "/", b"[2001:db8::1]", "https://[2001:db8::1]/"),
            (8443, "/", b"[2001:db8::1]:80", "https://[2001:db8::1]:8443/"),
            (443, "//evil.example/..", b"a.example", "https://a.example//evil.example/.."),
            (443, "/?", b"my_host-1.example.", "https://my_host-1.example./?"),
            (443, "/%41?%42", b"a", "https://a/%41?%42"),
            (443, "/{\"}", b"a", "https://a/%7B%22%7D"),
            (443, "/\u{e9}", b"a", "https://a/%C3%A9"),
        ];
        for (port, target, host, expected) in table {
            assert_eq!(location(port, &request(target, &[host])).as_deref(), Ok(expected), "{target}");
        }
    }

    #[test]
    fn hosts_that_are_refused() {
        use RedirectError::{AmbiguousHost, InvalidHost, MissingHost};
        let long = [b'a'; MAX_HOST + 1];
        let table: [(&[&[u8]], RedirectError); 20] = [
            (&[], MissingHost),
            (&[b""], MissingHost),
            (&[b":80"], MissingHost),
            (&[b"a", b"b"], AmbiguousHost),
            (&[b"a", b"a"], AmbiguousHost),
            (&[b"user@example.com"], InvalidHost),
            (&[b"user:pw@example.com"], InvalidHost),
            (&[b"a,b"], InvalidHost),
            (&[b"a b"], InvalidHost),
            (&[b"a\tb"], InvalidHost),
            (&[b"a/b"], InvalidHost),
            (&[b"a?b"], InvalidHost),
            (&[b"a#b"], InvalidHost),
            (&[b"a%2eb"], InvalidHost),
            (&[b"b\xc3\xbccher.example"], InvalidHost),
            (&[b"a:65536"], InvalidHost),
            (&[b"a:8x"], InvalidHost),
            (&[b"a:+80"], InvalidHost),
            (&[b"2001:db8::1"], InvalidHost),
            (&[&long], InvalidHost),
        ];
        for (hosts, expected) in table {
            assert_eq!(location(443, &request("/", hosts)), Err(expected), "{hosts:?}");
        }
        for host in
            ["[::1", "[::1]x", "[::1]:99999", "[]", "[::g]", "[fe80::1%25eth0]", "[127.0.0.1]", "::1]"]
        {
            let got = location(443, &request("/", &[host.as_bytes()]));
            assert!(matches!(got, Err(InvalidHost | MissingHost)), "{host}");
        }
    }

    #[test]
    fn the_target_names_the_host_first() {
        let absolute = request("http://a.example:81/x", &[b"b.example"]);
        assert_eq!(location(443, &absolute).as_deref(), Ok("https://a.example/x"));
        let mut two = request("http://a.example/x", &[b"b.example"]);
        *two.version_mut() = Version::HTTP_2;
        assert_eq!(location(443, &two), Err(RedirectError::AmbiguousHost));
        two.headers_mut().insert(HOST, HeaderValue::from_static("A.example"));
        assert_eq!(location(443, &two).as_deref(), Ok("https://a.example/x"));
        two.headers_mut().remove(HOST);
        assert_eq!(location(443, &two).as_deref(), Ok("https://a.example/x"));
        let user = request("http://user@a.example/", &[]);
        assert_eq!(location(443, &user), Err(RedirectError::InvalidHost));
    }

    #[test]
    fn targets_without_a_path_are_refused() {
        let star = request("*", &[b"a"]);
        assert_eq!(location(443, &star), Err(RedirectError::NoPath));
        let mut connect = request("/", &[]);
        *connect.uri_mut() = Uri::from_static("a.example:443");
        assert_eq!(location(443, &connect), Err(RedirectError::NoPath));
    }

    #[tokio::test]
    async fn statuses() {
        let table = [
            (RedirectStatus::Permanent308, request("/", &[b"a"]), 308),
            (RedirectStatus::Moved301, request("/", &[b"a"]), 301),
            (RedirectStatus::Permanent308, request("/", &[]), 400),
        ];
        for (status, request, expected) in table {
            let service = RedirectToHttps::<String>::new(443).with_status(status);
            let response = service.oneshot(request).await.unwrap();
            assert_eq!(response.status(), expected);
            assert_eq!(response.headers().contains_key(LOCATION), expected != 400);
            assert_eq!(response.body(), "");
        }
    }
}
