//! Paths in normal form, and sets of prefixes.
//!
//! The strict reading is RFC 3986 section 6.2.2: percent-encoded unreserved characters are decoded and dot segments
//! removed; beyond it repeated slashes are one. The lax readings are what servers make of it that decode
//! everything, once or twice (`%2F` and `\` become separators), drop path parameters (`;x=1`) and stop at a NUL.
//! Only for a path with a character that they disagree about are the lax readings made.

use std::{borrow::Cow, collections::HashSet};

/// How often the lax reading decodes: a proxy behind this one may do it before the application does.
const DECODINGS: usize = 2;

/// Prefixes in normal form: without a trailing slash, so that the root is empty.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Prefixes {
    set: HashSet<Box<[u8]>>,
    longest: usize,
}

impl Prefixes {
    pub(super) fn insert(&mut self, prefix: &str) {
        let mut normal = Vec::new();
        let unreserved = decode_unreserved(prefix.as_bytes());
        walk(&unreserved, Reading::Strict, &mut normal, |_| false);
        self.longest = self.longest.max(normal.len());
        self.set.insert(normal.into_boxed_slice());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Whether one of the prefixes covers the path in one of its readings.
    pub(super) fn cover(&self, path: &str) -> bool {
        let path = path.as_bytes();
        if is_plain(path) {
            return self.cover_plain(path);
        }
        let mut normal = Vec::with_capacity(path.len() + 1);
        let unreserved = decode_unreserved(path);
        if self.cover_reading(&unreserved, Reading::Strict, &mut normal) {
            return true;
        }
        let mut decoded = Cow::Borrowed(path);
        for _ in 0..DECODINGS {
            decoded = Cow::Owned(decode_all(&decoded));
            if self.cover_reading(&decoded, Reading::Lax, &mut normal) {
                return true;
            }
        }
        false
    }

    fn cover_reading(&self, path: &[u8], reading: Reading, normal: &mut Vec<u8>) -> bool {
        normal.clear();
        walk(path, reading, normal, |so_far| so_far.len() <= self.longest && self.set.contains(so_far))
    }

    /// A path that is its own normal form, looked at without a copy.
    fn cover_plain(&self, path: &[u8]) -> bool {
        let borders = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        borders
            .chain([path.len()])
            .take_while(|end| *end <= self.longest)
            .any(|end| self.set.contains(&path[..end]))
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Reading {
    Strict,
    Lax,
}

/// Whether all readings of the path are the path itself: it begins with a slash, has no empty segment but perhaps the
/// last, none that begins with a dot, and nothing to decode or to disagree about.
fn is_plain(path: &[u8]) -> bool {
    path.first() == Some(&b'/')
        && !path.iter().any(|byte| matches!(byte, b'%' | b'\\' | b';' | 0))
        && !path.windows(2).any(|pair| matches!(pair, b"//" | b"/."))
}

/// Walks the segments and keeps the path so far, each segment after a slash, in `normal`. Stops with `true` as
/// soon as `covered` holds: for the root at first, then after each segment. What a later `..` takes away has
/// counted, so that servers which keep dot segments are covered, too.
fn walk(path: &[u8], reading: Reading, normal: &mut Vec<u8>, covered: impl Fn(&[u8]) -> bool) -> bool {
    if covered(normal) {
        return true;
    }
    let lax = reading == Reading::Lax;
    let end = path.iter().position(|byte| lax && *byte == 0).unwrap_or(path.len());
    for segment in path[..end].split(|byte| *byte == b'/' || (lax && *byte == b'\\')) {
        let parameters = segment.iter().position(|byte| lax && *byte == b';');
        match &segment[..parameters.unwrap_or(segment.len())] {
            b"" | b"." => {}
            b".." => {
                let parent = normal.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                normal.truncate(parent);
            }
            name => {
                normal.push(b'/');
                normal.extend_from_slice(name);
                if covered(normal) {
                    return true;
                }
            }
        }
    }
    false
}

/// Decodes what may be decoded without a change of meaning (RFC 3986 section 2.3), and gives the other triplets capital
/// digits, so that they compare equal (section 6.2.2.1).
fn decode_unreserved(path: &[u8]) -> Vec<u8> {
    decode(path, |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~'))
}

fn decode_all(path: &[u8]) -> Vec<u8> {
    decode(path, |_| true)
}

fn decode(path: &[u8], wanted: impl Fn(u8) -> bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, tail @ ..] = rest {
        match (first, triplet(rest)) {
            (b'%', Some(byte)) => {
                if wanted(byte) {
                    out.push(byte);
                } else {
                    out.extend_from_slice(&[
                        b'%',
                        rest[1].to_ascii_uppercase(),
                        rest[2].to_ascii_uppercase(),
                    ]);
                }
                rest = &rest[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// The byte that a `%XX` at the beginning stands for.
fn triplet(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = text else { return None };
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefixes(list: &[&str]) -> Prefixes {
        let mut set = Prefixes::default();
        for prefix in list {
            set.insert(prefix);
        }
        set
    }

    #[test]
    fn nothing_slips_past() {
        let set = prefixes(&["/admin", "/a/b/"]);
        let denied = [
            "/admin",
            "/admin/",
            "/admin/x",
            "//admin",
            "/./admin",
            "/x/../admin",
            "/x//..//admin",
            "/%61dmin",
            "/%61%64%6d%69%6E/x",
            "/x/%2e%2e/admin",
            "/x/.%2E/admin",
            "/%2fadmin",
            "/x%2f..%2fadmin",
            "/x/..%2fadmin",
            "/%2561dmin",
            "/x/%252e%252e/admin",
            "/\\admin",
            "/x\\..\\admin",
            "/%5cadmin",
            "/admin;v=1",
            "/;v=1/admin",
            "/x/..;/admin",
            "/admin%00",
            "/admin%00.png",
            "/admin%2fx",
            "/admin%2f..%2fpublic",
            "/admin/../public",
            "/../admin",
            "/a/b",
            "/a//b",
            "/a/./b",
            "/a/c/../b",
            "/a%2fb",
            "admin",
        ];
        for path in denied {
            assert!(set.cover(path), "{path}");
        }
        let passed = [
            "/",
            "",
            "*",
            "/administrator",
            "/admin-x",
            "/admin.php",
            "/Admin",
            "/x/admin",
            "/admi",
            "/a",
            "/a/bc",
            "/a/x/b",
            "/x%20y",
            "/%zz",
            "/%",
            "/%4",
            "/.well-known/x",
            "/a;/c",
            "/%E2%82%AC",
        ];
        for path in passed {
            assert!(!set.cover(path), "{path}");
        }
    }

    #[test]
    fn prefixes_are_normalised_too() {
        for prefix in
            ["secret", "/secret", "/secret/", "//secret//", "/%73ecret", "/x/../secret", "/./secret/."]
        {
            let set = prefixes(&[prefix]);
            assert!(set.cover("/secret/x"), "{prefix}");
            assert!(!set.cover("/secrets"), "{prefix}");
        }
        assert!(prefixes(&["/a b%2f"]).cover("/a b%2F/c"));
    }

    #[test]
    fn the_root_denies_everything() {
        for root in ["/", "", "//", "/."] {
            let set = prefixes(&[root]);
            for path in ["/", "/x", "", "*", "/%41", "//"] {
                assert!(set.cover(path), "{root} {path}");
            }
        }
    }

    /// One spelling of a segment among many that mean the same.
    fn spell(segment: &str, choices: &[u8]) -> String {
        let mut out = String::new();
        for (byte, choice) in segment.bytes().zip(choices.iter().cycle()) {
            match choice % 3 {
                0 => out.push(char::from(byte)),
                1 => out.push_str(&format!("%{byte:02x}")),
                _ => out.push_str(&format!("%{byte:02X}")),
            }
        }
        out
    }

    proptest! {
        #[test]
        fn every_spelling_of_a_denied_path_is_denied(
            name in "[a-z]{1,8}",
            choices in prop::collection::vec(any::<u8>(), 1..8),
            before in prop::sample::select(vec!["/", "//", "/./", "/x/../", "/x/%2e%2e/", "/../", "/%2e/"]),
            after in prop::sample::select(vec!["", "/", "/y", "//", "/../z"]),
        ) {
            let set = prefixes(&[name.as_str()]);
            let path = format!("{before}{}{after}", spell(&name, &choices));
            prop_assert!(set.cover(&path), "{}", path);
        }

        #[test]
        fn the_plain_way_agrees_with_the_walk(path in "(/[a-c]{0,2}){0,5}", prefix in "(/[a-c]{1,2}){0,3}") {
            let set = prefixes(&[prefix.as_str()]);
            if is_plain(path.as_bytes()) {
                let walked = set.cover_reading(path.as_bytes(), Reading::Strict, &mut Vec::new());
                prop_assert_eq!(set.cover_plain(path.as_bytes()), walked);
                prop_assert_eq!(set.cover(&path), walked);
            }
        }

        #[test]
        fn no_path_panics(path in "\\PC*") {
            prefixes(&["/a"]).cover(&path);
        }
    }
}
