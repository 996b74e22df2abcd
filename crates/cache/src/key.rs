//! What a stored response is known by.

use http::{HeaderMap, Uri, header::HOST, uri::Scheme};

use crate::{buf::Buf, family::Form, query};

/// Whether the client speaks https.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Secure {
    /// By the connection.
    pub(crate) connection: Option<bool>,
    /// As somebody trusted in front told; it counts in place of the connection's.
    pub(crate) told: Option<bool>,
}

/// In a key behind the URI, where a form was forgotten and is there again. No partition has it, since it is in no text.
const GENERATION: u8 = 0xFF;

/// Scheme, host in lower case, port, path and the part of the query that counts, then the partition behind a byte that no URI has:
/// `https://a.example.com:443/x?y`. Only responses to GET are stored, so the method needs no place in it.
///
/// `None` when one is missing, or when two places tell it differently: two parties that read such a request would
/// not read the same, which is how a cache is poisoned.
pub(crate) fn of(
    secure: Secure,
    fallback: Option<&Scheme>,
    uri: &Uri,
    headers: &HeaderMap,
    form: &Form,
) -> Option<Buf> {
    let Secure { connection, told } = secure;
    let secure = match (told.or(connection), uri.scheme()) {
        (Some(secure), Some(scheme)) => {
            // Who is in front may write what it speaks itself.
            let scheme = Some(is_https(scheme)?);
            (scheme == Some(secure) || scheme == connection).then_some(secure)?
        }
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
    // Asterisk form and what is no path at all.
    if !uri.path().starts_with('/') {
        return None;
    }
    let mut key = origin(secure, name, port);
    key.extend(uri.path().as_bytes());
    if let Some(query) = uri.query() {
        query::write(query, &form.query, form.sort_query, &mut key);
    }
    if form.generation > 0 {
        key.push(0);
        key.push(GENERATION);
        key.extend(&form.generation.to_be_bytes());
    }
    if let Some(partition) = &form.partition {
        key.push(0);
        key.extend(partition.as_bytes());
    }
    Some(key)
}

fn origin(secure: bool, name: &[u8], port: u16) -> Buf {
    let mut key = Buf::new();
    key.extend(if secure { b"https://" } else { b"http://" });
    key.extend_lower(name);
    key.push(b':');
    let mut digits = [0; 5];
    let (mut at, mut rest) = (digits.len(), port);
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    key.extend(&digits[at..]);
    key
}

/// The key without its partition: the URI.
pub(crate) fn uri(key: &[u8]) -> &[u8] {
    key.split(|byte| *byte == 0).next().unwrap_or(key)
}

/// What the keys below an absolute URI begin with. `None` without a scheme or a host.
pub(crate) fn prefix(uri: &Uri) -> Option<Box<[u8]>> {
    let secure = is_https(uri.scheme()?)?;
    let (name, port) = split(uri.authority()?.as_str().as_bytes(), secure)?;
    let mut key = origin(secure, name, port);
    key.extend(uri.path_and_query()?.as_str().as_bytes());
    Some(key.as_slice().into())
}

/// The key of another URI of the same origin as `key`, for what a response's `Location` or `Content-Location`
/// names (RFC 9111 section 4.4).
pub(crate) fn same_origin(key: &[u8], reference: &str, form: &Form) -> Option<Buf> {
    let base = std::str::from_utf8(uri(key)).ok()?;
    let origin = &base[..origin_len(base)?];
    let path = &base[origin.len()..];
    let path = path.split('?').next()?;
    let reference = reference.split('#').next()?;
    let absolute = if reference.starts_with("//") {
        let scheme = base.split("//").next()?;
        format!("{scheme}{reference}")
    } else if reference.starts_with('/') {
        format!("{origin}{reference}")
    } else if reference.starts_with('?') {
        format!("{origin}{path}{reference}")
    } else if reference.is_empty() {
        base.to_owned()
    } else if reference.split(['/', '?']).next()?.contains(':') {
        reference.to_owned()
    } else {
        format!("{origin}{}", merged(path, reference))
    };
    let other = of(Secure::default(), None, &absolute.parse().ok()?, &HeaderMap::new(), form)?;
    let text = std::str::from_utf8(uri(other.as_slice())).ok()?;
    (text.get(..origin_len(text)?) == Some(origin)).then_some(other)
}

/// A path relative to another (RFC 3986 sections 5.2.3 and 5.2.4).
fn merged(base: &str, reference: &str) -> String {
    let (path, query) = reference.split_once('?').map_or((reference, None), |(p, q)| (p, Some(q)));
    let directory = &base[..=base.rfind('/').unwrap_or(0)];
    let mut segments: Vec<&str> = directory.trim_end_matches('/').split('/').collect();
    let mut ends_in_directory = false;
    for segment in path.split('/') {
        ends_in_directory = matches!(segment, "." | ".." | "");
        match segment {
            "." | "" => {}
            ".." => {
                if segments.len() > 1 {
                    segments.pop();
                }
            }
            _ => segments.push(segment),
        }
    }
    let mut merged = segments.join("/");
    if ends_in_directory || merged.is_empty() {
        merged.push('/');
    }
    if let Some(query) = query {
        merged.push('?');
        merged.push_str(query);
    }
    merged
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
    use crate::rules::{CacheRules, Query};

    fn key(connection: Option<bool>, uri: &str, hosts: &[&str]) -> Option<String> {
        by(Secure { connection, told: None }, uri, hosts)
    }

    fn by(secure: Secure, uri: &str, hosts: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, host.parse().unwrap());
        }
        of(secure, None, &uri.parse().unwrap(), &headers, &form(&CacheRules::default())).as_ref().map(text)
    }

    fn form(rules: &CacheRules) -> Form {
        Form::new(rules, 0)
    }

    fn text(key: &Buf) -> String {
        String::from_utf8(key.as_slice().to_vec()).unwrap()
    }

    #[test]
    fn rules_change_it() {
        let uri = "https://a/x?b=1&utm_id=2&a=3".parse().unwrap();
        let of = |rules: CacheRules| {
            text(&of(Secure::default(), None, &uri, &HeaderMap::new(), &form(&rules)).unwrap())
        };
        let rules = CacheRules::default();
        assert_eq!(of(rules.clone()), "https://a:443/x?b=1&utm_id=2&a=3");
        let without = rules.clone().with_query(Query::Without(vec!["utm_*".into()])).with_sort_query(true);
        assert_eq!(of(without), "https://a:443/x?a=3&b=1");
        let partition = of(rules.with_partition(Some("p".into())));
        assert_eq!(partition, "https://a:443/x?b=1&utm_id=2&a=3\0p");
        assert_eq!(super::uri(partition.as_bytes()), b"https://a:443/x?b=1&utm_id=2&a=3");
    }

    #[test]
    fn a_form_that_comes_back_has_other_keys() {
        let uri = "https://a/x".parse().unwrap();
        let all = [None, Some(""), Some("p")].into_iter().flat_map(|partition| {
            let rules = CacheRules::default().with_partition(partition.map(Into::into));
            [0, 1, u64::from(u32::MAX), 1 << 63].map(|generation| Form::new(&rules, generation))
        });
        let keys: std::collections::HashSet<Vec<u8>> = all
            .map(|form| of(Secure::default(), None, &uri, &HeaderMap::new(), &form).unwrap())
            .inspect(|key| assert_eq!(super::uri(key.as_slice()), b"https://a:443/x"))
            .map(|key| key.as_slice().to_vec())
            .collect();
        assert_eq!(keys.len(), 12);
    }

    #[test]
    fn what_is_told_in_front_counts() {
        for (connection, told, uri, want) in [
            (Some(false), Some(true), "/x", Some("https://a:443/x")),
            (Some(true), Some(false), "/x", Some("http://a:80/x")),
            (None, Some(true), "/x", Some("https://a:443/x")),
            // In the words of who is in front, or of the client.
            (Some(false), Some(true), "http://a/x", Some("https://a:443/x")),
            (Some(false), Some(true), "https://a/x", Some("https://a:443/x")),
            (Some(false), Some(false), "https://a/x", None),
            (Some(true), Some(true), "http://a/x", None),
            (None, Some(true), "http://a/x", None),
            (Some(false), Some(true), "ftp://a/x", None),
        ] {
            let key = by(Secure { connection, told }, uri, &["a"]);
            assert_eq!(key.as_deref(), want, "{connection:?} {told:?} {uri}");
        }
    }

    #[test]
    fn prefixes() {
        let of = |uri: &str| prefix(&uri.parse().unwrap()).map(|p| String::from_utf8(p.to_vec()).unwrap());
        assert_eq!(of("https://A.example.com/img/").as_deref(), Some("https://a.example.com:443/img/"));
        assert_eq!(of("http://a").as_deref(), Some("http://a:80/"));
        assert_eq!(of("/img/"), None);
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
        let key = b"https://a:443/d/x?y";
        for (reference, want) in [
            ("/z?q", Some("https://a:443/z?q")),
            ("/z#part", Some("https://a:443/z")),
            ("https://A/z", Some("https://a:443/z")),
            ("https://a:443/z", Some("https://a:443/z")),
            ("https://b/z", None),
            ("http://a/z", None),
            ("https://a:4431/z", None),
            ("//b/z", None),
            ("//a/z", Some("https://a:443/z")),
            ("z", Some("https://a:443/d/z")),
            ("z/?q", Some("https://a:443/d/z/?q")),
            ("./z", Some("https://a:443/d/z")),
            ("../z", Some("https://a:443/z")),
            ("../../../z/..", Some("https://a:443/")),
            ("?q", Some("https://a:443/d/x?q")),
            ("", Some("https://a:443/d/x?y")),
            ("mailto:x", None),
            ("a b", None),
        ] {
            let other = same_origin(key, reference, &form(&CacheRules::default())).as_ref().map(text);
            assert_eq!(other.as_deref(), want, "{reference}");
        }
    }
}
