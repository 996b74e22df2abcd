//! One form for paths that mean the same, as far as counting goes.

use std::borrow::Cow;

use crate::percent;

/// How often it is decoded: a proxy behind this one may do it before the application does.
const DECODINGS: usize = 2;

/// The path decoded, up to a NUL, without dot segments, path parameters, empty segments and a slash at its end; each segment
/// after a slash, so that the root is empty. A backslash is a slash; an encoded slash stays encoded, with capital digits.
/// Where servers disagree about what two paths are, they are one here: a bucket too few is the strict side. A path
/// that is in this form already, as most are, is not copied.
pub(super) fn normal(path: &str) -> Cow<'_, [u8]> {
    let bytes = path.as_bytes();
    let plain = bytes.first() == Some(&b'/')
        && !bytes.iter().any(|byte| matches!(byte, b'%' | b'\\' | b';'))
        && !bytes.windows(2).any(|pair| matches!(pair, b"//" | b"/."));
    if plain {
        return Cow::Borrowed(bytes.strip_suffix(b"/").unwrap_or(bytes));
    }
    let mut text = decoded(bytes);
    for _ in 1..DECODINGS {
        text = decoded(&text);
    }
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    let mut out = Vec::with_capacity(end + 1);
    for segment in text[..end].split(|byte| matches!(byte, b'/' | b'\\')) {
        let parameters = segment.iter().position(|byte| *byte == b';');
        match &segment[..parameters.unwrap_or(segment.len())] {
            b"" | b"." => {}
            b".." => out.truncate(out.iter().rposition(|byte| *byte == b'/').unwrap_or(0)),
            name => {
                out.push(b'/');
                out.extend_from_slice(name);
            }
        }
    }
    Cow::Owned(out)
}

/// The first segments of a path in normal form.
pub(super) fn first_segments(path: &[u8], segments: Option<u8>) -> &[u8] {
    let Some(segments) = segments else { return path };
    let mut slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.nth(usize::from(segments)).map_or(path, |(at, _)| &path[..at])
}

fn decoded(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    for octet in percent::octets(path) {
        match octet {
            (b'/', true) => out.extend_from_slice(b"%2F"),
            (octet, _) => out.push(octet),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_a_path() {
        let table: [(&str, &str); 24] = [
            ("/", ""),
            ("", ""),
            ("*", "/*"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b"),
            ("//a///b//", "/a/b"),
            ("/a/./b/../c", "/a/c"),
            ("/../../a", "/a"),
            ("/%2e%2E/a", "/a"),
            ("/a%2fb%2F", "/a%2Fb%2F"),
            ("/%41%zz%4", "/A%zz%4"),
            ("/a/..", ""),
            ("/.hidden", "/.hidden"),
            ("/a%", "/a%"),
            ("/login;1", "/login"),
            ("/login%3b1/b;c=d/e", "/login/b/e"),
            ("/a/..;x/b", "/b"),
            ("/;x/a", "/a"),
            ("/a\\b", "/a/b"),
            ("/a%5c..%5Cb", "/b"),
            ("/login%00.css", "/login"),
            ("/log%2569n", "/login"),
            ("/a%252e%252fb%252f", "/a.%2Fb%2F"),
            ("/a%25252fb", "/a%2fb"),
        ];
        for (path, expected) in table {
            assert_eq!(normal(path), expected.as_bytes(), "{path}");
        }
    }

    #[test]
    fn leading_segments() {
        let table =
            [("/a/b/c", 2, "/a/b"), ("/a/b", 2, "/a/b"), ("/a", 2, "/a"), ("/a/b", 0, ""), ("", 3, "")];
        for (path, segments, expected) in table {
            assert_eq!(first_segments(path.as_bytes(), Some(segments)), expected.as_bytes(), "{path}");
        }
        assert_eq!(first_segments(b"/a/b", None), b"/a/b");
    }
}
