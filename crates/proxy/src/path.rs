//! The one form of a path: what is compared, and what an edge may make of a path before anything looks at it.
//!
//! Routes compare a path with the percent-encoding of unreserved characters taken away ([`decode_unreserved`]), which by
//! RFC 3986 section 6.2.2.2 is the same path; nothing else is changed, and what is forwarded are the bytes that came.
//! [`PathRules`] go further, for a whole edge and before any route is looked up, so that what is routed on is
//! what is forwarded: a path that some server behind would read in another way has one reading left, or none.

use std::borrow::Cow;

use http::uri::PathAndQuery;

use crate::framing::has_dot_segment;

/// What an edge does with every path before anything is decided by it. By default nothing: paths are routed and forwarded as
/// received (and those with dot segments are refused later, see [`crate::Dots`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PathRules {
    /// Brings every path into the normal form of RFC 3986 section 6.2.2: unreserved characters are decoded, the hexadecimal
    /// digits of what stays encoded are upper case, dot segments are removed. Default `false`.
    pub normalise: bool,
    /// Makes one slash of several. The section does not: `//` is a path of its own, which most servers read as `/`.
    /// Default `false`.
    pub merge_slashes: bool,
    /// What happens to an encoded slash. Default [`EncodedSlash::Keep`].
    pub encoded_slash: EncodedSlash,
}

impl PathRules {
    /// Sets [`Self::normalise`].
    #[must_use]
    pub fn with_normalise(mut self, normalise: bool) -> Self {
        self.normalise = normalise;
        self
    }

    /// Sets [`Self::merge_slashes`].
    #[must_use]
    pub fn with_merge_slashes(mut self, merge_slashes: bool) -> Self {
        self.merge_slashes = merge_slashes;
        self
    }

    /// Sets [`Self::encoded_slash`].
    #[must_use]
    pub fn with_encoded_slash(mut self, encoded_slash: EncodedSlash) -> Self {
        self.encoded_slash = encoded_slash;
        self
    }

    /// Whether they leave every path as it is.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The target in the form that the rules ask for; borrowed, and nothing allocated, when it is in it already. The query
    /// stays as it came.
    pub fn apply<'t>(&self, target: &'t PathAndQuery) -> Result<Cow<'t, PathAndQuery>, PathError> {
        let path = target.path();
        if self.encoded_slash == EncodedSlash::Reject && has_encoded_slash(path.as_bytes()) {
            return Err(PathError::EncodedSlash);
        }
        // a server-wide OPTIONS
        if !path.starts_with('/') {
            return Ok(Cow::Borrowed(target));
        }
        let mut path = Cow::Borrowed(path);
        if self.normalise {
            path = match normal_encoding(&path)? {
                Some(encoded) => Cow::Owned(encoded),
                None => path,
            };
        }
        if self.merge_slashes && path.contains("//") {
            path = Cow::Owned(merge_slashes(&path));
        }
        if self.normalise
            && let Some(resolved) = remove_dot_segments(&path)
        {
            path = Cow::Owned(resolved);
        }
        // what stands above a removed segment may meet the one below in two slashes
        if self.merge_slashes && path.contains("//") {
            path = Cow::Owned(merge_slashes(&path));
        }
        match path {
            Cow::Borrowed(_) => Ok(Cow::Borrowed(target)),
            Cow::Owned(path) => Ok(Cow::Owned(join(path, target.query())?)),
        }
    }
}

/// A path with a query put behind it.
fn join(mut path: String, query: Option<&str>) -> Result<PathAndQuery, PathError> {
    if let Some(query) = query {
        path.push('?');
        path.push_str(query);
    }
    PathAndQuery::try_from(path).map_err(|_| PathError::Invalid)
}

/// What happens to a path that has a slash in an encoded form, or what some servers take for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodedSlash {
    /// It is data, as RFC 3986 section 2.2 has it: neither a segment border nor decoded.
    #[default]
    Keep,
    /// A path with `%2F`, `%5C`, `\` or `%00` is refused: servers disagree about where such a path leads.
    Reject,
}

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// See [`EncodedSlash::Reject`].
    #[error("the path has an encoded slash, a backslash or an encoded zero byte")]
    EncodedSlash,
    /// It has a `%` without two hexadecimal digits behind it, or its normal form is no path.
    #[error("the path has no normal form")]
    Invalid,
}

fn has_encoded_slash(path: &[u8]) -> bool {
    path.iter().enumerate().any(|(at, byte)| match byte {
        b'\\' => true,
        b'%' => matches!(path.get(at + 1..at + 3), Some(b"2f" | b"2F" | b"5c" | b"5C" | b"00")),
        _ => false,
    })
}

/// Unreserved characters decoded and the other triplets in upper case (RFC 3986 sections 6.2.2.1 and 6.2.2.2). `None`
/// when that changes nothing. A `%` without two digits has no normal form: what is decoded behind it could make a triplet of it.
fn normal_encoding(path: &str) -> Result<Option<String>, PathError> {
    let bytes = path.as_bytes();
    let whole = |at: usize| bytes.get(at + 1..at + 3).and_then(hex_pair).is_some();
    if !path.match_indices('%').all(|(at, _)| whole(at)) {
        return Err(PathError::Invalid);
    }
    let mut normal = decode_unreserved(path).into_owned();
    let triplets: Vec<usize> = normal.match_indices('%').map(|(at, _)| at).collect();
    for at in triplets {
        if let Some(digits) = normal.get(at + 1..at + 3) {
            let upper = digits.to_ascii_uppercase();
            normal.replace_range(at + 1..at + 3, &upper);
        }
    }
    Ok((normal != path).then_some(normal))
}

fn merge_slashes(path: &str) -> String {
    let mut merged = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !merged.ends_with('/') {
            merged.push(c);
        }
    }
    merged
}

/// RFC 3986 section 5.2.4, for a path that begins with a slash. `None` when there are none.
fn remove_dot_segments(path: &str) -> Option<String> {
    let is_dots = |segment: &str| matches!(segment, "." | "..");
    let below = path.strip_prefix('/')?;
    if !below.split('/').any(is_dots) {
        return None;
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = below.split('/').peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "." => {}
            ".." => drop(kept.pop()),
            name => kept.push(name),
        }
        // the last one stands for a directory
        if is_dots(segment) && segments.peek().is_none() {
            kept.push("");
        }
    }
    Some(format!("/{}", kept.join("/")))
}

/// Whether a path is at or below a prefix: `/api` covers `/api` and `/api/x`, not `/apix`; `/api/` covers `/api/x`, not `/api`.
pub(crate) fn covers(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/'))
}

/// Whether some segment is `.` or `..` in any spelling that a server behind may resolve.
pub fn has_dots(path: &str) -> bool {
    has_dot_segment(path.as_bytes())
}

/// The path with `%XX` of unreserved characters (RFC 3986 section 2.3) decoded and all else as it is.
pub fn decode_unreserved(path: &str) -> Cow<'_, str> {
    // on short text this is less than what a search for a character sets up
    let Some(first) = path.bytes().position(|b| b == b'%') else { return Cow::Borrowed(path) };
    let mut decoded = Vec::new();
    let (mut done, mut at) = (0, first);
    let bytes = path.as_bytes();
    while let Some(offset) = bytes[at..].iter().position(|&b| b == b'%') {
        at += offset;
        match bytes.get(at + 1..at + 3).and_then(unreserved) {
            Some(byte) => {
                decoded.extend_from_slice(&bytes[done..at]);
                decoded.push(byte);
                at += 3;
                done = at;
            }
            None => at += 1,
        }
    }
    if done == 0 {
        return Cow::Borrowed(path);
    }
    decoded.extend_from_slice(&bytes[done..]);
    Cow::Owned(String::from_utf8(decoded).expect("ascii replaced whole ascii sequences of a str"))
}

pub(crate) fn hex_pair(hex: &[u8]) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(*hex.first()?)? << 4 | digit(*hex.get(1)?)?)
}

fn unreserved(hex: &[u8]) -> Option<u8> {
    hex_pair(hex).filter(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn applied(rules: PathRules, target: &str) -> Result<String, PathError> {
        let target: PathAndQuery = target.parse().unwrap();
        rules.apply(&target).map(|target| target.to_string())
    }

    #[test]
    fn rfc3986_6_2_2_normal_forms() {
        let plain = PathRules::default().with_normalise(true);
        let merged = plain.with_merge_slashes(true);
        for (from, normal, without_double) in [
            ("/", "/", "/"),
            ("/a/b?c=%7e&d=//../", "/a/b?c=%7e&d=//../", "/a/b?c=%7e&d=//../"),
            ("/%7euser/%c3%a9", "/~user/%C3%A9", "/~user/%C3%A9"),
            ("/a/./b/../c", "/a/c", "/a/c"),
            ("/a/%2e%2E/b", "/b", "/b"),
            ("/../../a", "/a", "/a"),
            ("/a/..", "/", "/"),
            ("/a/b/.", "/a/b/", "/a/b/"),
            ("/a//b", "/a//b", "/a/b"),
            ("/a//../b", "/a/b", "/b"),
            ("//", "//", "/"),
            ("/%2f..%2f", "/%2F..%2F", "/%2F..%2F"),
            ("/%252e", "/%252e", "/%252e"),
            ("*", "*", "*"),
        ] {
            assert_eq!(applied(plain, from).as_deref(), Ok(normal), "{from}");
            assert_eq!(applied(merged, from).as_deref(), Ok(without_double), "{from}");
            assert_eq!(applied(PathRules::default(), from).as_deref(), Ok(from));
        }
    }

    #[test]
    fn broken_triplets_have_no_normal_form() {
        let rules = PathRules::default().with_normalise(true);
        // the last one would be `/%61` when decoded once, and `/a` when decoded twice
        for path in ["/%", "/%2", "/%zz", "/a%2/b", "/%%36%31"] {
            assert_eq!(applied(rules, path), Err(PathError::Invalid), "{path}");
            assert_eq!(applied(PathRules::default(), path).as_deref(), Ok(path));
        }
        assert_eq!(applied(rules, "/a?%").as_deref(), Ok("/a?%"));
    }

    #[test]
    fn encoded_slashes_are_refused_where_that_was_asked_for() {
        let reject = PathRules::default().with_encoded_slash(EncodedSlash::Reject);
        for path in ["/a%2Fb", "/a%2fb", "/%5c", "/%5C", "/a\\b", "/x%00"] {
            let Ok(target) = path.parse::<PathAndQuery>() else { continue };
            assert_eq!(reject.apply(&target), Err(PathError::EncodedSlash), "{path}");
        }
        for path in ["/a?b=%2F", "/%252F", "/%2", "/%20"] {
            assert_eq!(applied(reject, path).as_deref(), Ok(path));
        }
    }

    proptest! {
        #[test]
        fn the_normal_form_is_stable_and_has_no_dots(path in "(/|\\.|%2e|%2F|%|a|~|;|%7E){0,16}", merge: bool) {
            let rules = PathRules::default().with_normalise(true).with_merge_slashes(merge);
            let Ok(once) = applied(rules, &format!("/{path}")) else { return Ok(()) };
            let twice = applied(rules, &once);
            prop_assert_eq!(twice.as_deref(), Ok(once.as_str()));
            prop_assert!(!once.split('/').any(|segment| matches!(segment, "." | "..")), "{}", once);
            prop_assert!(once.starts_with('/'));
            prop_assert!(!merge || !once.contains("//"));
        }
    }
}
