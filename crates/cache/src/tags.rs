//! Tags by which responses are purged together: `Cache-Tag: a, b` and `Surrogate-Key: a b`.

use http::{HeaderMap, HeaderName};

pub(crate) type Tags = Box<[Box<str>]>;

const CACHE_TAG: HeaderName = HeaderName::from_static("cache-tag");
const SURROGATE_KEY: HeaderName = HeaderName::from_static("surrogate-key");

/// With more tags, or more bytes of them, a response is not stored: it could not be purged by what is left out.
const MAX_TAGS: usize = 128;
const MAX_BYTES: usize = 8 << 10;

/// `None` when there are too many.
pub(crate) fn read(headers: &HeaderMap) -> Option<Tags> {
    let mut tags: Vec<Box<str>> = Vec::new();
    let mut bytes = 0;
    for (name, comma) in [(CACHE_TAG, true), (SURROGATE_KEY, false)] {
        for line in headers.get_all(&name) {
            let separates = |byte: &u8| if comma { *byte == b',' } else { byte.is_ascii_whitespace() };
            for tag in line.as_bytes().split(separates).map(<[u8]>::trim_ascii).filter(|tag| !tag.is_empty())
            {
                let tag = std::str::from_utf8(tag).ok()?;
                bytes += tag.len();
                if tags.len() == MAX_TAGS || bytes > MAX_BYTES {
                    return None;
                }
                if !tags.iter().any(|known| **known == *tag) {
                    tags.push(tag.into());
                }
            }
        }
    }
    Some(tags.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags() {
        let of = |fields: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, value.parse().unwrap());
            }
            read(&headers).map(|tags| tags.join("|"))
        };
        for (fields, want) in [
            (&[][..], Some("")),
            (&[("cache-tag", "a, b c,,a ")], Some("a|b c")),
            (&[("surrogate-key", "a  b c"), ("cache-tag", "x")], Some("x|a|b|c")),
            (&[("cache-tag", "a"), ("cache-tag", "b")], Some("a|b")),
        ] {
            assert_eq!(of(fields).as_deref(), want, "{fields:?}");
        }
        let many: Vec<_> = (0..=MAX_TAGS).map(|n| n.to_string()).collect();
        assert_eq!(of(&[("surrogate-key", &many.join(" "))]), None);
        assert_eq!(of(&[("cache-tag", &"x".repeat(MAX_BYTES + 1))]), None);
    }
}
