//! `Cache-Control` (RFC 9111 section 5.2), read without allocating.

use std::time::Duration;

use http::{
    HeaderMap, HeaderValue,
    header::{CACHE_CONTROL, PRAGMA},
};

/// RFC 9111 section 1.2.2: what does not fit is taken as this, about 68 years.
const MAX_DELTA: u64 = 1 << 31;

/// What a response says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResponseDirectives {
    pub(crate) no_store: bool,
    /// Bare or with field names: both keep a shared cache away here.
    pub(crate) private: bool,
    /// Bare or with field names: both ask for validation here.
    pub(crate) no_cache: bool,
    pub(crate) public: bool,
    pub(crate) must_revalidate: bool,
    pub(crate) must_understand: bool,
    pub(crate) max_age: Option<Duration>,
    pub(crate) s_maxage: Option<Duration>,
}

impl ResponseDirectives {
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        let mut read = Self::default();
        for (name, value) in directives(headers.get_all(CACHE_CONTROL)) {
            let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
            // RFC 9111 section 4.2.1: of conflicting values the one that gives less freshness.
            let least = |now: Option<Duration>| {
                let new = delta(value);
                Some(now.map_or(new, |now| now.min(new)))
            };
            if is("max-age") {
                read.max_age = least(read.max_age);
            } else if is("s-maxage") {
                read.s_maxage = least(read.s_maxage);
            } else if is("no-store") {
                read.no_store = true;
            } else if is("private") {
                read.private = true;
            } else if is("no-cache") {
                read.no_cache = true;
            } else if is("public") {
                read.public = true;
            } else if is("must-revalidate") || is("proxy-revalidate") {
                read.must_revalidate = true;
            } else if is("must-understand") {
                read.must_understand = true;
            }
        }
        read
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestDirectives {
    pub(crate) no_store: bool,
    pub(crate) no_cache: bool,
    pub(crate) only_if_cached: bool,
    pub(crate) max_age: Option<Duration>,
    pub(crate) min_fresh: Option<Duration>,
}

impl RequestDirectives {
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        let mut read = Self::default();
        if !headers.contains_key(CACHE_CONTROL) {
            // RFC 9111 section 5.4: Pragma counts only without Cache-Control.
            let mut pragma = directives(headers.get_all(PRAGMA));
            read.no_cache = pragma.any(|(name, _)| name.eq_ignore_ascii_case(b"no-cache"));
            return read;
        }
        for (name, value) in directives(headers.get_all(CACHE_CONTROL)) {
            let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
            if is("no-store") {
                read.no_store = true;
            } else if is("no-cache") {
                read.no_cache = true;
            } else if is("only-if-cached") {
                read.only_if_cached = true;
            } else if is("max-age") {
                read.max_age = Some(delta(value));
            } else if is("min-fresh") {
                read.min_fresh = Some(delta(value));
            }
        }
        read
    }
}

/// Name and value of each member of a comma-separated list, quotes taken off.
fn directives<'a>(
    lines: impl IntoIterator<Item = &'a HeaderValue>,
) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> {
    lines.into_iter().flat_map(|line| members(line.as_bytes())).filter_map(|member| {
        let (name, value) = match member.iter().position(|byte| *byte == b'=') {
            Some(at) => (&member[..at], Some(member[at + 1..].trim_ascii())),
            None => (member, None),
        };
        let unquoted = |value: &'a [u8]| {
            value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value)
        };
        let name = name.trim_ascii();
        (!name.is_empty()).then(|| (name, value.map(unquoted)))
    })
}

/// The members of a list (RFC 9110 section 5.6.1), trimmed; a comma within quotes does not separate.
pub(crate) fn members(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(list);
    std::iter::from_fn(move || {
        let list = rest?;
        let (mut quoted, mut escaped) = (false, false);
        let end = list.iter().position(|byte| {
            let was_escaped = escaped;
            escaped = quoted && *byte == b'\\' && !was_escaped;
            match byte {
                b'"' if !was_escaped => quoted = !quoted,
                b',' => return !quoted,
                _ => {}
            }
            false
        });
        rest = end.map(|end| &list[end + 1..]);
        Some(list[..end.unwrap_or(list.len())].trim_ascii())
    })
    .filter(|member| !member.is_empty())
}

/// `delta-seconds`; what is not one is no freshness at all (RFC 9111 section 4.2.1).
fn delta(value: Option<&[u8]>) -> Duration {
    Duration::from_secs(value.and_then(seconds).unwrap_or(0))
}

/// Digits only, without sign or fraction; too large is the largest.
pub(crate) fn seconds(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: u64, digit: &u8| (sum * 10 + u64::from(digit - b'0')).min(MAX_DELTA);
    Some(text.iter().fold(0, add))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn response(lines: &[&str]) -> ResponseDirectives {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CACHE_CONTROL, line.parse().unwrap());
        }
        ResponseDirectives::read(&headers)
    }

    #[test]
    fn responses() {
        let none = ResponseDirectives::default();
        let secs = |n| Some(Duration::from_secs(n));
        for (lines, want) in [
            (&[][..], none),
            (&["max-age=60"], ResponseDirectives { max_age: secs(60), ..none }),
            (&["MAX-AGE = 60 , Public"], ResponseDirectives { max_age: secs(60), public: true, ..none }),
            (&["max-age=\"60\""], ResponseDirectives { max_age: secs(60), ..none }),
            (&["max-age=60", "max-age=10"], ResponseDirectives { max_age: secs(10), ..none }),
            (&["max-age"], ResponseDirectives { max_age: secs(0), ..none }),
            (&["max-age=-1"], ResponseDirectives { max_age: secs(0), ..none }),
            (&["max-age=1.5"], ResponseDirectives { max_age: secs(0), ..none }),
            (&["max-age=99999999999999999999999"], ResponseDirectives { max_age: secs(1 << 31), ..none }),
            (&["s-maxage=5,max-age=9"], ResponseDirectives { s_maxage: secs(5), max_age: secs(9), ..none }),
            (
                &["private=\"a, max-age=60\", no-store"],
                ResponseDirectives { private: true, no_store: true, ..none },
            ),
            (&["no-cache=\"set-cookie\""], ResponseDirectives { no_cache: true, ..none }),
            (
                &["ext=\"a\\\", no-store\", proxy-revalidate"],
                ResponseDirectives { must_revalidate: true, ..none },
            ),
            (&["max-age=60; private"], ResponseDirectives { max_age: secs(0), ..none }),
            (&[" , ,=5, NO-STORE"], ResponseDirectives { no_store: true, ..none }),
            (&["x-no-store"], none),
        ] {
            assert_eq!(response(lines), want, "{lines:?}");
        }
    }

    #[test]
    fn requests() {
        let read = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            RequestDirectives::read(&headers)
        };
        assert!(read("pragma", "No-Cache").no_cache);
        assert!(read("cache-control", "No-Cache").no_cache);
        assert!(read("cache-control", "only-if-cached").only_if_cached);
        assert_eq!(read("cache-control", "min-fresh=5").min_fresh, Some(Duration::from_secs(5)));
        let mut headers = HeaderMap::new();
        headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=3"));
        assert!(!RequestDirectives::read(&headers).no_cache, "Cache-Control outweighs Pragma");
    }

    proptest! {
        #[test]
        fn any_field_is_survived(bytes in proptest::collection::vec(32_u8..255, 0..100)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                headers.insert(CACHE_CONTROL, value);
                let _ = ResponseDirectives::read(&headers);
                let _ = RequestDirectives::read(&headers);
            }
        }

        #[test]
        fn no_store_is_found_beside_anything_unquoted(before in "[a-z0-9=, -]{0,20}", after in "[^\"]{0,20}") {
            let line = format!("{before}, No-Store ,{after}");
            if let Ok(value) = HeaderValue::from_str(&line) {
                let mut headers = HeaderMap::new();
                headers.insert(CACHE_CONTROL, value);
                prop_assert!(ResponseDirectives::read(&headers).no_store, "{line:?}");
            }
        }
    }
}
