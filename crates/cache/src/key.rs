//! What a stored response is known by.

use std::fmt::Write as _;

use http::{HeaderMap, Uri, header::HOST, uri::Scheme};

/// Scheme, host in lower case, port, path and query of a request, in one string: `https://a.example.com:443/x?y`.
/// Only responses to GET are stored, so the method needs no place in it.
///
/// `None` when one is missing, or when two places tell it differently: two parties that read such a request would
/// not read the same, which is how a cache is poisoned.
pub(crate) fn of(
    secure: Option<bool>,
    fallback: Option<&Scheme>,
    uri: &Uri,
    headers: &HeaderMap,
) -> Option<String> {
    let secure = match (secure, uri.scheme()) {
        (Some(secure), Some(scheme)) => (is_https(scheme)? == secure).then_some(secure)?,
        (Some(secure), None) => secure,
        (None, Some(scheme)) => is_https(scheme)?,
        (None, None) => is_https(fallback?)?,
    };
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    // RFC 9112 section 3.2: more than one Host field is an error.
    if hosts.next().is_some() {
        return None;
    }
    let host = host.map(|host| split(host.as_bytes(), secure));
    let authority = uri.authority().map(|authority| split(authority.as_str().as_bytes(), secure));
    let (name, port) = match (authority, host) {
        (Some(authority), Some(host)) => {
            let (authority, host) = (authority?, host?);
            let same = authority.0.eq_ignore_ascii_case(host.0) && authority.1 == host.1;
            same.then_some(authority)?
        }
        (Some(authority), None) => authority?,
        (None, Some(host)) => host?,
        (None, None) => return None,
    };
    let path = uri.path_and_query()?.as_str();
    // Asterisk form and what is no path at all.
    if !path.starts_with('/') {
        return None;
    }
    let scheme = if secure { "https" } else { "http" };
    let mut key = String::with_capacity(scheme.len() + name.len() + path.len() + 9);
    key.push_str(scheme);
    key.push_str("://");
    key.extend(name.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    // Writing to a String can't fail.
    let _ = write!(key, ":{port}{path}");
    Some(key)
}

/// The key of another URI of the same origin as `key`, for what a response's `Location` or `Content-Location`
/// names (RFC 9111 section 4.4): an absolute path, or an absolute URI.
pub(crate) fn same_origin(key: &str, reference: &str) -> Option<String> {
    let origin = &key[..origin_len(key)?];
    let reference = reference.split('#').next()?;
    if reference.starts_with('/') && !reference.starts_with("//") {
        return Some(format!("{origin}{reference}"));
    }
    let other = of(None, None, &reference.parse().ok()?, &HeaderMap::new())?;
    (origin_len(&other)? == origin.len() && other.starts_with(origin)).then_some(other)
}

fn origin_len(key: &str) -> Option<usize> {
    let start = key.find("://")? + 3;
    key[start..].find('/').map(|path| start + path)
}

fn is_https(scheme: &Scheme) -> Option<bool> {
    // http's Scheme compares without case.
    if *scheme == Scheme::HTTPS {
        return Some(true);
    }
    (*scheme == Scheme::HTTP).then_some(false)
}

/// Host and port; the scheme's port where none is given. `None` for what is not plainly a host: user information,
/// an empty name, a port that is no number.
fn split(authority: &[u8], secure: bool) -> Option<(&[u8], u16)> {
    let default = if secure { 443 } else { 80 };
    let (name, port) = if authority.first() == Some(&b'[') {
        let end = authority.iter().position(|byte| *byte == b']')? + 1;
        let inside = &authority[1..end - 1];
        if inside.is_empty() || !inside.iter().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.')) {
            return None;
        }
        authority.split_at(end)
    } else {
        let end = authority.iter().position(|byte| *byte == b':').unwrap_or(authority.len());
        let (name, port) = authority.split_at(end);
        let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if name.is_empty() || !name.iter().all(plain) {
            return None;
        }
        (name, port)
    };
    let port = match port {
        [] | [b':'] => default,
        [b':', digits @ ..] if digits.iter().all(u8::is_ascii_digit) => {
            std::str::from_utf8(digits).ok()?.parse().ok()?
        }
        _ => return None,
    };
    Some((name, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(secure: Option<bool>, uri: &str, hosts: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, host.parse().unwrap());
        }
        of(secure, None, &uri.parse().unwrap(), &headers)
    }

    #[test]
    fn everything_is_in_it() {
        for (secure, uri, hosts, want) in [
            (Some(true), "/x?y=1", &["A.example.com"][..], Some("https://a.example.com:443/x?y=1")),
            (Some(false), "/x?y=1", &["a.example.com"], Some("http://a.example.com:80/x?y=1")),
            (Some(true), "/x", &["a:443"], Some("https://a:443/x")),
            (Some(true), "/x", &["a:"], Some("https://a:443/x")),
            (Some(true), "/x", &["a:80"], Some("https://a:80/x")),
            (Some(true), "/x", &["a:0443"], Some("https://a:443/x")),
            (Some(true), "https://a/x", &[], Some("https://a:443/x")),
            (None, "http://A:8080/X", &[], Some("http://a:8080/X")),
            (Some(true), "https://a/x", &["A:443"], Some("https://a:443/x")),
            (Some(true), "/", &["[2001:DB8::1]:8443"], Some("https://[2001:db8::1]:8443/")),
            (Some(true), "/a%2Fb", &["a"], Some("https://a:443/a%2Fb")),
            (Some(true), "/a/../b", &["a"], Some("https://a:443/a/../b")),
        ] {
            assert_eq!(key(secure, uri, hosts).as_deref(), want, "{uri} {hosts:?}");
        }
    }

    #[test]
    fn what_is_missing_or_told_twice_has_none() {
        for (secure, uri, hosts) in [
            (None, "/x", &["a"][..]),
            (Some(true), "/x", &[]),
            (Some(true), "/x", &["a", "a"]),
            (Some(true), "/x", &["a", "b"]),
            (Some(true), "https://a/x", &["b"]),
            (Some(true), "https://a/x", &["a:8443"]),
            (Some(true), "http://a/x", &["a"]),
            (Some(false), "https://a/x", &["a"]),
            (Some(true), "https://u@a/x", &[]),
            (Some(true), "/x", &["u@a"]),
            (Some(true), "/x", &[""]),
            (Some(true), "/x", &["a/b"]),
            (Some(true), "/x", &["a b"]),
            (Some(true), "/x", &["a:99999"]),
            (Some(true), "/x", &["a:1:2"]),
            (Some(true), "/x", &["a:+80"]),
            (Some(true), "/x", &["[::1"]),
            (Some(true), "/x", &["[]"]),
            (Some(true), "/x", &["[::1]x"]),
            (Some(true), "ftp://a/x", &[]),
            (Some(true), "*", &["a"]),
            (Some(true), "a:443", &[]),
        ] {
            assert_eq!(key(secure, uri, hosts), None, "{uri} {hosts:?}");
        }
    }

    #[test]
    fn references_within_the_origin() {
        let key = "https://a:443/x?y";
        for (reference, want) in [
            ("/z?q", Some("https://a:443/z?q")),
            ("/z#part", Some("https://a:443/z")),
            ("https://A/z", Some("https://a:443/z")),
            ("https://a:443/z", Some("https://a:443/z")),
            ("https://b/z", None),
            ("http://a/z", None),
            ("https://a:4431/z", None),
            ("//b/z", None),
            ("z", None),
            ("", None),
        ] {
            assert_eq!(same_origin(key, reference).as_deref(), want, "{reference}");
        }
    }
}
