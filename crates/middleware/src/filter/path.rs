//! Paths in normal form, sets of prefixes, and all the readings of a path.
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
        self.cover_bytes(path.as_bytes())
    }

    fn cover_bytes(&self, path: &[u8]) -> bool {
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

    /// As [`Self::cover`], of a path that is read already.
    pub(super) fn cover_readings(&self, readings: &Readings<'_>) -> bool {
        match readings {
            Readings::Plain(path) => self.cover_plain(path),
            // the first is the path as it came
            Readings::Odd(all) => all.first().is_some_and(|path| self.cover_bytes(path)),
        }
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

/// What servers may take a path for, in a fixed order: the path as it is; then with unreserved characters decoded, with everything
/// decoded once, and twice; each of these as it is, with its dot segments removed, and in the lax reading.
#[derive(Debug)]
pub(super) enum Readings<'p> {
    /// All are this one.
    Plain(&'p [u8]),
    /// [`READINGS`] of them.
    Odd(Vec<Vec<u8>>),
}

/// How many readings a path has that is not plain. They are made once for a request, at a cost of ten times the path's length at most.
pub(super) const READINGS: usize = 1 + 3 * (DECODINGS + 1);

impl<'p> Readings<'p> {
    pub(super) fn of(path: &'p [u8]) -> Self {
        if is_plain(path) {
            return Self::Plain(path);
        }
        let mut all = Vec::with_capacity(READINGS);
        all.push(path.to_vec());
        let mut text = decode_unreserved(path);
        for level in 0..=DECODINGS {
            if level > 0 {
                // from the path itself at first: the strict form is for comparing
                text = decode_all(if level == 1 { path } else { &text });
            }
            all.push(text.clone());
            for reading in [Reading::Strict, Reading::Lax] {
                let mut normal = Vec::with_capacity(text.len() + 1);
                walk(&text, reading, &mut normal, |_| false);
                all.push(normal);
            }
        }
        Self::Odd(all)
    }

    /// Whether it holds for one of them.
    pub(super) fn any(&self, holds: impl Fn(&[u8]) -> bool) -> bool {
        match self {
            Self::Plain(path) => holds(path),
            Self::Odd(all) => all.iter().any(|path| holds(path)),
        }
    }

    /// Whether it holds for each of them, given with its place.
    pub(super) fn all(&self, holds: impl Fn(usize, &[u8]) -> bool) -> bool {
        match self {
            Self::Plain(path) => (0..READINGS).all(|place| holds(place, path)),
            Self::Odd(all) => all.iter().enumerate().all(|(place, path)| holds(place, path)),
        }
    }

    /// Whether it holds for each of them, whatever its place.
    pub(super) fn every(&self, holds: impl Fn(&[u8]) -> bool) -> bool {
        match self {
            Self::Plain(path) => holds(path),
            Self::Odd(all) => all.iter().all(|path| holds(path)),
        }
    }

    /// Owned, by place.
    pub(super) fn into_list(self) -> Vec<Vec<u8>> {
        match self {
            Self::Plain(path) => vec![path.to_vec(); READINGS],
            Self::Odd(all) => all,
        }
    }
}

/// A trailing slash is no difference.
pub(super) fn trimmed(path: &[u8]) -> &[u8] {
    path.strip_suffix(b"/").unwrap_or(path)
}

/// Decodes what may be decoded without a change of meaning (RFC 3986 section 2.3), and gives the other triplets capital
/// digits, so that they compare equal (section 6.2.2.1).
fn decode_unreserved(path: &[u8]) -> Vec<u8> {
    decode(path, |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~'))
}

pub(super) fn decode_all(path: &[u8]) -> Vec<u8> {
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
