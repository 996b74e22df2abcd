//! One form for paths that mean the same, as far as counting goes.

use std::borrow::Cow;

/// The path decoded, without dot segments, empty segments and a slash at its end; each segment after a slash, so that the
/// root is empty. An encoded slash stays encoded, with capital digits. A path that is in this form already, as
/// most are, is not copied.
pub(super) fn normal(path: &str) -> Cow<'_, [u8]> {
    let bytes = path.as_bytes();
    let plain = bytes.first() == Some(&b'/')
        && !bytes.contains(&b'%')
        && !bytes.windows(2).any(|pair| matches!(pair, b"//" | b"/."));
    if plain {
        return Cow::Borrowed(bytes.strip_suffix(b"/").unwrap_or(bytes));
    }
    let decoded = decoded(bytes);
    let mut out = Vec::with_capacity(decoded.len() + 1);
    for segment in decoded.split(|byte| *byte == b'/') {
        match segment {
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
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, triplet(after)) {
            (b'%', Some(b'/')) => {
                out.extend_from_slice(b"%2F");
                rest = &after[2..];
            }
            (b'%', Some(octet)) => {
                out.push(octet);
                rest = &after[2..];
            }
            _ => out.push(byte),
        }
    }
    out
}

/// The octet that two digits after a percent sign stand for.
fn triplet(after: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
    u8::try_from(digit(0)? << 4 | digit(1)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_a_path() {
        let table: [(&str, &str); 14] = [
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
