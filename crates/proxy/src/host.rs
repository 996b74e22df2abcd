//! What a host name is, and when two of them are the same.
//!
//! Stricter than the URI grammar on purpose: only what DNS, IPv4 and IPv6 use. Percent-encoding, sub-delimiters (a comma
//! among them), user information and empty labels are no host, so that no two parsers can take one for different names.

use std::{fmt, io::Write, net::Ipv6Addr, ops::Deref};

use http::{HeaderMap, Request, Uri, header, request};

/// The longest host that is looked at: 253 bytes of name (RFC 1035 section 2.3.4) and a trailing dot.
pub const MAX_HOST: usize = 254;

/// A host and a port as they were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostPort<'a> {
    /// The host, an IPv6 address in its brackets.
    pub host: &'a str,
    /// The port; `None` when there is none or it is empty (`a:`, RFC 3986 section 3.2.3).
    pub port: Option<u16>,
}

impl<'a> HostPort<'a> {
    /// Reads `uri-host [ ":" port ]` (RFC 9110 section 7.2). `None` is for everything else.
    pub fn parse(value: &'a [u8]) -> Option<Self> {
        let (end, port) = split(value)?;
        // checked: only ASCII
        Some(Self { host: std::str::from_utf8(&value[..end]).ok()?, port })
    }

    /// Whether both name the same host and port, with the default port of `scheme` filled in
    /// (RFC 3986 sections 6.2.2.1 and 6.2.3).
    pub fn same(&self, other: &HostPort<'_>, scheme: Option<&str>) -> bool {
        let default = match scheme {
            Some("https") => Some(443),
            Some("http") => Some(80),
            _ => None,
        };
        let hosts = self.host == other.host
            || matches!((canonical(self.host), canonical(other.host)), (Some(a), Some(b)) if *a == *b);
        hosts && self.port.or(default) == other.port.or(default)
    }
}

/// Where the host of an authority ends, and its port. The host is ASCII.
fn split(value: &[u8]) -> Option<(usize, Option<u16>)> {
    let split = match value.first()? {
        b'[' => value.iter().position(|&b| b == b']')? + 1,
        _ => value.iter().position(|&b| b == b':').unwrap_or(value.len()),
    };
    let (host, port) = value.split_at(split);
    let valid = if host.starts_with(b"[") { ipv6(host).is_some() } else { is_name(host) };
    if !valid {
        return None;
    }
    let port = match port {
        [] | [b':'] => None,
        [b':', digits @ ..] if digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit) => {
            let port = digits.iter().fold(0_u32, |sum, &b| sum * 10 + u32::from(b - b'0'));
            Some(u16::try_from(port).ok()?)
        }
        _ => return None,
    };
    Some((split, port))
}

/// Labels of letters, digits, `-`, `_` and `~`, joined by single dots, one dot at the end allowed.
fn is_name(host: &[u8]) -> bool {
    let mut after_dot = true;
    for &b in host {
        match b {
            b'.' if after_dot => return false,
            b'.' => after_dot = true,
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => after_dot = false,
            _ => return false,
        }
    }
    !host.is_empty() && host != b"." && host.len() <= MAX_HOST
}

/// The address in `[…]`. Zone identifiers and future versions (RFC 3986 section 3.2.2) are refused.
fn ipv6(bracketed: &[u8]) -> Option<Ipv6Addr> {
    let inner = bracketed.strip_prefix(b"[")?.strip_suffix(b"]")?;
    std::str::from_utf8(inner).ok()?.parse().ok()
}

/// A host in its one form: lower case, without port and trailing dot, an IPv6 address in the form of RFC 5952 within
/// brackets. Borrowed when it was in that form already, on the stack otherwise.
pub struct CanonicalHost<'a>(Repr<'a>);

#[expect(
    clippy::large_enum_variant,
    reason = "it lives on the stack for one lookup; a box would be an allocation"
)]
enum Repr<'a> {
    Borrowed(&'a str),
    Stack { bytes: [u8; MAX_HOST], len: u8 },
}

impl Deref for CanonicalHost<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Repr::Borrowed(host) => host,
            Repr::Stack { bytes, len } => {
                std::str::from_utf8(&bytes[..usize::from(*len)]).expect("only ASCII was written to it")
            }
        }
    }
}

impl fmt::Debug for CanonicalHost<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// The one form of a host, given with or without a port. `None` for what is no host ([`HostPort::parse`]). Allocates
/// nothing.
pub fn canonical(authority: &str) -> Option<CanonicalHost<'_>> {
    let host = &authority[..split(authority.as_bytes())?.0];
    let mut bytes = [0; MAX_HOST];
    if host.starts_with('[') {
        let address = ipv6(host.as_bytes())?;
        let mut left = &mut bytes[..];
        write!(left, "[{address}]").ok()?;
        let len = MAX_HOST - left.len();
        return Some(CanonicalHost(Repr::Stack { bytes, len: u8::try_from(len).ok()? }));
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    if !host.bytes().any(|b| b.is_ascii_uppercase()) {
        return Some(CanonicalHost(Repr::Borrowed(host)));
    }
    let stack = &mut bytes[..host.len()];
    stack.copy_from_slice(host.as_bytes());
    stack.make_ascii_lowercase();
    Some(CanonicalHost(Repr::Stack { bytes, len: u8::try_from(host.len()).ok()? }))
}

/// The authority that a request is for: of its target, else its `Host` (RFC 9110 section 7.1). As received, with port.
pub fn of<B>(request: &Request<B>) -> Option<&str> {
    authority(request.uri(), request.headers())
}

/// The same for a request without its body.
pub fn of_parts(request: &request::Parts) -> Option<&str> {
    authority(&request.uri, &request.headers)
}

fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    match uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => headers.get(header::HOST)?.to_str().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn valid_ones() {
        for (value, host, port) in [
            ("a", "a", None),
            ("a.example.com", "a.example.com", None),
            ("A.Example.com.:8443", "A.Example.com.", Some(8443)),
            ("a:", "a", None),
            ("a:0", "a", Some(0)),
            ("127.0.0.1:80", "127.0.0.1", Some(80)),
            ("[::1]", "[::1]", None),
            ("[2001:DB8::1]:443", "[2001:DB8::1]", Some(443)),
            ("xn--bcher-kva.example", "xn--bcher-kva.example", None),
            ("under_score", "under_score", None),
        ] {
            assert_eq!(HostPort::parse(value.as_bytes()), Some(HostPort { host, port }), "{value}");
        }
    }

    #[test]
    fn refused_ones() {
        let long = "a".repeat(255);
        for value in [
            "",
            ":80",
            ".",
            "..",
            ".a",
            "a..b",
            "a b",
            " a",
            "a ",
            "a,b",
            "a/b",
            "a?b",
            "a#b",
            "user@a",
            "a@b",
            "a:b",
            "a:65536",
            "a:-1",
            "a:+1",
            "a:80:80",
            "::1",
            "[::1",
            "[::1]x",
            "[::1]:x",
            "[fe80::1%25eth0]",
            "[v1.x]",
            "[]",
            "a%2eb",
            "b\u{fc}cher",
            "a\tb",
            "a\0",
            "*",
            "*.a",
            "a;b",
            "a!b",
            "(a)",
            &long,
        ] {
            assert_eq!(HostPort::parse(value.as_bytes()), None, "{value:?}");
        }
    }

    #[test]
    fn one_form() {
        for (value, form) in [
            ("A.Example.COM:80", "a.example.com"),
            ("a.example.com.", "a.example.com"),
            ("a.example.com", "a.example.com"),
            ("[2001:0DB8:0:0::1]:443", "[2001:db8::1]"),
            ("[::FFFF:192.0.2.1]", "[::ffff:192.0.2.1]"),
        ] {
            assert_eq!(&*canonical(value).unwrap(), form, "{value}");
        }
        assert!(canonical("a b").is_none());
    }

    #[test]
    fn sameness_fills_in_the_default_port() {
        let host = |value: &'static str| HostPort::parse(value.as_bytes()).unwrap();
        assert!(host("A.example").same(&host("a.example:443"), Some("https")));
        assert!(!host("a.example").same(&host("a.example:443"), Some("http")));
        assert!(host("a.example:80").same(&host("a.example."), Some("http")));
        assert!(!host("a.example").same(&host("b.example"), Some("http")));
        assert!(!host("a.example").same(&host("a.example:80"), None));
    }

    proptest! {
        #[test]
        fn never_panics_and_the_form_is_stable(value in "[a-zA-Z0-9.:\\[\\]%@, -]{0,40}") {
            if let Some(form) = canonical(&value) {
                let again = canonical(&form).expect("a canonical host is a host");
                prop_assert_eq!(&*form, &*again);
                prop_assert!(!form.bytes().any(|b| b.is_ascii_uppercase()));
            }
        }

        #[test]
        fn any_bytes(value in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = HostPort::parse(&value);
        }
    }
}
