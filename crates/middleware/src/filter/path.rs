//! Paths in normal form, sets of prefixes, and all the readings of a path.
//!
//! The strict reading is RFC 3986 section 6.2.2: percent-encoded unreserved characters are decoded and dot segments
//! removed; beyond it repeated slashes are one. The others are what servers make of it that decode more, drop path parameters or take `\` for a
//! slash ([`readings`]). Only for a path with a character that they disagree about are they made.

mod readings;

use std::collections::HashSet;

pub(super) use self::readings::{Readings, Written, is_under, trimmed};
use self::readings::{Texts, Walk};

/// Prefixes in normal form: without a trailing slash, so that the root is empty.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    set: HashSet<Box<[u8]>>,
    longest: usize,
}

impl Prefixes {
    /// In each reading that keeps all of it. One that is the root by another than the strict one is left out: `/%2F..` doesn't ask for everything, and neither
    /// does `/a;b` for all below `/a`.
    pub(super) fn insert(&mut self, prefix: &str) {
        let texts = Texts::of(prefix.as_bytes());
        let mut normal = Vec::new();
        let mut is_strict = true;
        for text in texts.whole() {
            for walk in Walk::all(text).filter(|walk| !walk.drops_parameters) {
                walk.go(text, &mut normal, |_| false);
                if is_strict || !normal.is_empty() {
                    self.longest = self.longest.max(normal.len());
                    self.set.insert(normal.as_slice().into());
                }
                is_strict = false;
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Whether one of the prefixes, of which there is one at least, covers the path in one of its readings.
    pub(super) fn cover(&self, path: &Readings<'_>) -> bool {
        match path {
            Readings::Plain(path) => self.cover_plain(path),
            Readings::Odd(odd) => self.cover_texts(&odd.texts),
            Readings::TooLong => true,
        }
    }

    fn cover_texts(&self, texts: &Texts) -> bool {
        let mut normal = Vec::new();
        texts.iter().any(|text| Walk::all(text).any(|walk| self.cover_walk(walk, text, &mut normal)))
    }

    fn cover_walk(&self, walk: Walk, text: &[u8], normal: &mut Vec<u8>) -> bool {
        walk.go(text, normal, |so_far| so_far.len() <= self.longest && self.set.contains(so_far))
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

/// Paths that are let through with all below them, as a rule that allows has them: only if every reading of a path is below the same reading of
/// one of these.
#[derive(Debug)]
pub(crate) struct AllowedPaths(Box<[Written]>);

impl AllowedPaths {
    pub(crate) fn new(paths: &[String]) -> Self {
        Self(paths.iter().map(|path| Written::of(path)).collect())
    }

    pub(crate) fn allow(&self, path: &str) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let readings = Readings::of(path.as_bytes());
        self.0.iter().any(|own| readings.agree(own, is_under))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{readings::is_plain, *};

    fn covers(set: &Prefixes, path: &str) -> bool {
        set.cover(&Readings::of(path.as_bytes()))
    }

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
            // parameters dropped before anything is decoded
            "/;%2fx/admin",
            "/;%2fx/%2fadmin",
            "/x;%2fy/..%2fadmin",
            "/a;%2f..%2f/b",
            "/%3b%252fx/admin",
            // decoded once before, or once more after
            "/%3b%252fx/%252fadmin",
            "/x;%2fy/%252e%252e/admin",
            // a backslash parts segments and parameters stay, and the other way round
            "/a\\..;\\..\\b",
            "/a/y\\../..;/b",
            // an encoded slash stays
            "/x%2fy/..%3b/admin",
            "/x%2fy%5c..%5cadmin",
        ];
        for path in denied {
            assert!(covers(&set, path), "{path}");
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
            assert!(!covers(&set, path), "{path}");
        }
    }

    #[test]
    fn prefixes_are_normalised_too() {
        for prefix in
            ["secret", "/secret", "/secret/", "//secret//", "/%73ecret", "/x/../secret", "/./secret/."]
        {
            let set = prefixes(&[prefix]);
            assert!(covers(&set, "/secret/x"), "{prefix}");
            assert!(!covers(&set, "/secrets"), "{prefix}");
        }
        assert!(covers(&prefixes(&["/a b%2f"]), "/a b%2F/c"));
        let set = prefixes(&["/my%20admin", "/a%5cb", "/c%252fd"]);
        for path in [
            "/my%20admin",
            "/my%20admin/x",
            "/my%2520admin",
            "/my%20admin;x",
            "/my%20admin%2fx",
            "/my%20admin%00",
            "/a%5Cb",
            "/a\\b;x",
            "/c/d",
            "/c%2fd;x",
        ] {
            assert!(covers(&set, path), "{path}");
        }
        for path in ["/my", "/my/admin", "/my%20admins", "/a", "/a/bc", "/c", "/c/e"] {
            assert!(!covers(&set, path), "{path}");
        }
        // a prefix that some servers make something shorter of denies no more than is written
        let set = prefixes(&["/x;v=1", "/%2f..", "/..;"]);
        assert!(covers(&set, "/x;v=1/a") && covers(&set, "/..;/a"));
        for path in ["/", "/x", "/x/a", "/a"] {
            assert!(!covers(&set, path), "{path}");
        }
    }

    #[test]
    fn the_root_denies_everything() {
        for root in ["/", "", "//", "/."] {
            let set = prefixes(&[root]);
            for path in ["/", "/x", "", "*", "/%41", "//"] {
                assert!(covers(&set, path), "{root} {path}");
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
            prop_assert!(covers(&set, &path), "{}", path);
        }

        #[test]
        fn the_plain_way_agrees_with_the_walk(path in "(/[a-c]{0,2}){0,5}", prefix in "(/[a-c]{1,2}){0,3}") {
            let set = prefixes(&[prefix.as_str()]);
            if is_plain(path.as_bytes()) {
                let strict = Walk { drops_parameters: false, takes_backslashes: false };
                let walked = set.cover_walk(strict, path.as_bytes(), &mut Vec::new());
                prop_assert_eq!(set.cover_plain(path.as_bytes()), walked);
                prop_assert_eq!(covers(&set, &path), walked);
            }
        }

        #[test]
        fn no_path_panics(path in "\\PC*") {
            covers(&prefixes(&["/a"]), &path);
        }
    }
}
