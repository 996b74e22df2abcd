//! `Cache-Control` (RFC 9111 section 5.2), read without allocating.

use std::time::Duration;

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CACHE_CONTROL, PRAGMA},
};

/// RFC 9111 section 1.2.2: what does not fit is taken as this, about 68 years.
const MAX_DELTA: u64 = 1 << 31;

/// What a response says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResponseDirectives {
    pub(crate) no_store: bool,
    /// Of the whole response; with names of fields only these are.
    pub(crate) private: bool,
    /// Of the whole response; with names of fields only these are.
    pub(crate) no_cache: bool,
    /// `private` or `no-cache` came with names of fields: see [`withheld`].
    pub(crate) withholds: bool,
    pub(crate) public: bool,
    pub(crate) must_revalidate: bool,
    /// To a shared cache it forbids what `must-revalidate` forbids, but it does not allow what that one allows (sections 3.5 and 5.2.2.8).
    pub(crate) proxy_revalidate: bool,
    pub(crate) must_understand: bool,
    pub(crate) max_age: Option<Duration>,
    pub(crate) s_maxage: Option<Duration>,
    pub(crate) stale_while_revalidate: Option<Duration>,
    pub(crate) stale_if_error: Option<Duration>,
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
            } else if is("private") || is("no-cache") {
                // Sections 5.2.2.4 and 5.2.2.7; names that are none can't be withheld.
                let named = value.is_some_and(|value| members(value).next().is_some() && are_names(value));
                read.withholds |= named;
                read.private |= !named && is("private");
                read.no_cache |= !named && is("no-cache");
            } else if is("stale-while-revalidate") {
                read.stale_while_revalidate = least(read.stale_while_revalidate);
            } else if is("stale-if-error") {
                read.stale_if_error = least(read.stale_if_error);
            } else if is("public") {
                read.public = true;
            } else if is("must-revalidate") {
                read.must_revalidate = true;
            } else if is("proxy-revalidate") {
                read.proxy_revalidate = true;
            } else if is("must-understand") {
                read.must_understand = true;
            }
        }
        let lines = || headers.get_all(CACHE_CONTROL).iter().map(HeaderValue::as_bytes);
        if !lines().all(is_well_quoted) {
            lines().for_each(|line| read.forbid(line));
        }
        read
    }

    /// What a line forbids to who takes quotes for nothing: a stray one would hide the rest of it.
    fn forbid(&mut self, line: &[u8]) {
        for member in line.split(|byte| *byte == b',') {
            let name = member.split(|byte| *byte == b'=').next().unwrap_or_default();
            let name = name.split(|byte| *byte == b'"').map(<[u8]>::trim_ascii).find(|part| !part.is_empty());
            let is = |known: &str| name.is_some_and(|name| name.eq_ignore_ascii_case(known.as_bytes()));
            self.no_store |= is("no-store");
            self.private |= is("private");
            self.no_cache |= is("no-cache");
            self.must_revalidate |= is("must-revalidate");
            self.proxy_revalidate |= is("proxy-revalidate");
        }
    }
}

fn are_names(value: &[u8]) -> bool {
    members(value).all(|name| HeaderName::from_bytes(name).is_ok())
}

/// Whether a field is named by `private="..."` or `no-cache="..."`.
pub(crate) fn withheld(headers: &HeaderMap, field: &HeaderName) -> bool {
    directives(headers.get_all(CACHE_CONTROL)).any(|(name, value)| {
        (name.eq_ignore_ascii_case(b"private") || name.eq_ignore_ascii_case(b"no-cache"))
            && value.is_some_and(|value| {
                members(value).any(|name| name.eq_ignore_ascii_case(field.as_str().as_bytes()))
            })
    })
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestDirectives {
    pub(crate) no_store: bool,
    pub(crate) no_cache: bool,
    pub(crate) only_if_cached: bool,
    pub(crate) max_age: Option<Duration>,
    pub(crate) min_fresh: Option<Duration>,
    /// For how long past its freshness it would take a response; without a value, any time.
    pub(crate) max_stale: Option<Duration>,
    pub(crate) stale_if_error: Option<Duration>,
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
            } else if is("max-stale") {
                read.max_stale =
                    Some(value.map_or(Duration::from_secs(MAX_DELTA), |value| delta(Some(value))));
            } else if is("stale-if-error") {
                read.stale_if_error = Some(delta(value));
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
    split(list, b',').filter(|member| !member.is_empty())
}

/// The parts between separators that are not within quotes, trimmed, also where there is nothing between them.
pub(crate) fn split(list: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(list);
    std::iter::from_fn(move || {
        let list = rest?;
        let (mut quoted, mut escaped) = (false, false);
        let end = list.iter().position(|byte| {
            let was_escaped = escaped;
            escaped = quoted && *byte == b'\\' && !was_escaped;
            match *byte {
                b'"' if !was_escaped => quoted = !quoted,
                byte if byte == separator => return !quoted,
                _ => {}
            }
            false
        });
        rest = end.map(|end| &list[end + 1..]);
        Some(list[..end.unwrap_or(list.len())].trim_ascii())
    })
}

/// Whether quotes stand only around whole values (RFC 9110 section 5.6.6). Else others may see other members in a line.
pub(crate) fn is_well_quoted(line: &[u8]) -> bool {
    let mut rest = line.iter();
    // The last byte that is neither space nor quoted.
    let mut before = b',';
    while let Some(byte) = rest.next() {
        match *byte {
            b' ' | b'\t' => {}
            b'"' => {
                if before != b'=' || !is_closed(&mut rest) {
                    return false;
                }
                before = b'"';
            }
            byte if before == b'"' && !matches!(byte, b',' | b';') => return false,
            byte => before = byte,
        }
    }
    true
}

/// Whether there is an end to the quotes; goes there.
fn is_closed<'a>(rest: &mut impl Iterator<Item = &'a u8>) -> bool {
    while let Some(byte) = rest.next() {
        match *byte {
            b'"' => return true,
            b'\\' => _ = rest.next(),
            _ => {}
        }
    }
    false
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
            (&["no-cache=\"set-cookie\""], ResponseDirectives { withholds: true, ..none }),
            (&["private=\"a, b\", private=c"], ResponseDirectives { withholds: true, ..none }),
            (&["private=\"\""], ResponseDirectives { private: true, ..none }),
            (&["private=\"a\", private"], ResponseDirectives { private: true, withholds: true, ..none }),
            (&["no-cache="], ResponseDirectives { no_cache: true, ..none }),
            (
                &["stale-while-revalidate=5, stale-if-error=6"],
                ResponseDirectives { stale_while_revalidate: secs(5), stale_if_error: secs(6), ..none },
            ),
            (
                &["ext=\"a\\\", no-store\", proxy-revalidate"],
                ResponseDirectives { proxy_revalidate: true, ..none },
            ),
            (&["Must-Revalidate"], ResponseDirectives { must_revalidate: true, ..none }),
            (&["max-age=60; private"], ResponseDirectives { max_age: secs(0), ..none }),
            (&[" , ,=5, NO-STORE"], ResponseDirectives { no_store: true, ..none }),
            (&["x-no-store"], none),
            (&["max-age=60, x=\"a"], ResponseDirectives { max_age: secs(60), ..none }),
            (&["x=\"a, private"], ResponseDirectives { private: true, ..none }),
            (&["t=a\"b, no-store"], ResponseDirectives { no_store: true, ..none }),
            (&["t=a\"b, No-Store, u=c\"d"], ResponseDirectives { no_store: true, ..none }),
            (&["t=\"a\"b\", private, u=\"c\""], ResponseDirectives { private: true, ..none }),
            (&["x=\"a\\\", no-store"], ResponseDirectives { no_store: true, ..none }),
            (
                &["x=\"a, no-cache=b, \"private\""],
                ResponseDirectives { no_cache: true, private: true, ..none },
            ),
            (&["x=\"a", "y=\"b, private\""], ResponseDirectives { private: true, ..none }),
            (&["y=\"b, private\""], none),
            (&["\"b, private\""], ResponseDirectives { private: true, ..none }),
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
        assert_eq!(read("cache-control", "max-stale=5").max_stale, Some(Duration::from_secs(5)));
        assert_eq!(read("cache-control", "max-stale").max_stale, Some(Duration::from_secs(1 << 31)));
        assert_eq!(read("cache-control", "max-stale=x").max_stale, Some(Duration::ZERO));
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
            prop_assert!(has_no_store(&before, &after), "{before:?} {after:?}");
        }

        #[test]
        fn no_quotes_hide_it_but_those_around_it(before in "[a-z=\", -]{0,20}", after in "[a-z=\", -]{0,20}") {
            let quoted = before.contains('"') && after.contains('"');
            let hidden = quoted && is_well_quoted(format!("{before}, No-Store ,{after}").as_bytes());
            prop_assert!(hidden || has_no_store(&before, &after), "{before:?} {after:?}");
        }
    }

    /// Also where it is no field at all.
    fn has_no_store(before: &str, after: &str) -> bool {
        HeaderValue::from_str(&format!("{before}, No-Store ,{after}")).is_err()
            || response(&[&format!("{before}, No-Store ,{after}")]).no_store
    }
}
