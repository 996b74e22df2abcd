//! From the path of a URI to one below the root, without the file system.

use crate::percent;

/// Where a path leads, relative to the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Below {
    /// Names of directories and a file, joined by `/`; empty is the root.
    pub(super) path: String,
    /// A slash at the end asks for a directory.
    pub(super) directory: bool,
}

/// `None` for what is nothing below the root: `.` and `..`, however they are encoded; empty segments, of which a redirect could make another
/// host; an encoded slash or a NUL, a backslash; what is no UTF-8; and hidden names, unless they are served. `.well-known` is none (RFC 8615).
pub(super) fn below(path: &str, hidden: bool) -> Option<Below> {
    let path = path.strip_prefix('/')?;
    if path.is_empty() {
        return Some(Below { path: String::new(), directory: true });
    }
    let (path, directory) = path.strip_suffix('/').map_or((path, false), |path| (path, true));
    let mut names = Vec::new();
    for segment in path.split('/') {
        let name = decode(segment)?;
        let dots = matches!(&*name, "" | "." | "..");
        let hides = name.starts_with('.') && !hidden && name != ".well-known";
        let strange = name.contains(['/', '\\', '\0']) || (cfg!(windows) && name.contains(':'));
        if dots || hides || strange {
            return None;
        }
        names.push(name);
    }
    Some(Below { path: names.join("/"), directory })
}

fn decode(segment: &str) -> Option<String> {
    let octets = percent::octets(segment.as_bytes());
    // a percent sign that encodes nothing is malformed
    let octets = octets.map(|octet| (octet != (b'%', false)).then_some(octet.0));
    String::from_utf8(octets.collect::<Option<_>>()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::{Component, Path};

    #[test]
    fn what_leads_where() {
        for (path, expected) in [
            ("/", Some(("", true))),
            ("/a", Some(("a", false))),
            ("/a/", Some(("a", true))),
            ("/a/b.txt", Some(("a/b.txt", false))),
            ("/a%20b%C3%A4", Some(("a bä", false))),
            ("/%61", Some(("a", false))),
            ("/.well-known/acme", Some((".well-known/acme", false))),
            ("/a..b", Some(("a..b", false))),
            ("//", None),
            ("//a", None),
            ("/a//b", None),
            ("/a//", None),
            ("/..", None),
            ("/a/../b", None),
            ("/./a", None),
            ("/%2e%2e/a", None),
            ("/.%2E/a", None),
            ("/%2e", None),
            ("/a%2fb", None),
            ("/a%5cb", None),
            ("/a\\b", None),
            ("/a%00", None),
            ("/%", None),
            ("/%4", None),
            ("/%zz", None),
            ("/%ff", None),
            ("/.git/config", None),
            ("/a/.env", None),
            ("/%2egit", None),
            ("/.well-known2", None),
            ("a", None),
            ("", None),
            ("*", None),
        ] {
            let expected = expected.map(|(path, directory)| Below { path: path.to_owned(), directory });
            assert_eq!(below(path, false), expected, "{path}");
        }
        assert_eq!(below("/.git", true).unwrap().path, ".git");
        assert_eq!(below("/..", true), None);
    }

    proptest! {
        #[test]
        fn nothing_leads_out(path in "/[a.%2eEfF/\\\\c5:0]{0,24}", hidden: bool) {
            if let Some(below) = below(&path, hidden) {
                let normal = |part| matches!(part, Component::Normal(_));
                prop_assert!(Path::new(&below.path).components().all(normal));
            }
        }
    }
}
