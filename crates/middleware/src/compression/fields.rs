//! What compression does to the fields of a response.

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
        CONTENT_TYPE, ETAG, VARY,
    },
};

use super::{Coding, options::Compiled};

/// Digests are of the content in its coding (RFC 9530 sections 2 and 3), and would be wrong afterwards.
pub(crate) const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// Whether a response may be compressed, for whoever accepts that. `size` is that of its content, where it is known.
pub(super) fn may_be_coded(
    compiled: &Compiled,
    status: StatusCode,
    headers: &HeaderMap,
    size: Option<u64>,
) -> bool {
    let has_content = !status.is_informational()
        && !matches!(
            status,
            StatusCode::NO_CONTENT
                | StatusCode::RESET_CONTENT
                | StatusCode::PARTIAL_CONTENT
                | StatusCode::NOT_MODIFIED
        );
    let said = || content_length(headers);
    has_content
        && size.or_else(said).is_none_or(|size| size >= compiled.options.min_size)
        && headers.get(CONTENT_TYPE).is_some_and(|kind| compiled.types.have(kind))
        && !headers.contains_key(CONTENT_ENCODING)
        && !headers.contains_key(CONTENT_RANGE)
        && !DIGESTS.iter().any(|digest| headers.contains_key(digest))
        && !no_transform(headers)
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// RFC 9110 section 7.7, RFC 9111 section 5.2.2.6.
fn no_transform(headers: &HeaderMap) -> bool {
    headers.get_all(CACHE_CONTROL).iter().any(|line| {
        let mut directives = line.to_str().unwrap_or_default().split(',');
        directives.any(|directive| directive.trim().eq_ignore_ascii_case("no-transform"))
    })
}

/// Says that others may get something else (RFC 9110 section 12.5.5). In the line that is there, and once.
pub(super) fn vary(headers: &mut HeaderMap) {
    let names = |line: &HeaderValue| {
        let mut names = line.to_str().unwrap_or_default().split(',').map(str::trim);
        names.any(|name| name == "*" || name.eq_ignore_ascii_case(ACCEPT_ENCODING.as_str()))
    };
    let lines = headers.get_all(VARY);
    if lines.iter().any(names) {
        return;
    }
    let mut line = lines.iter().next().map(|line| line.as_bytes().to_vec()).unwrap_or_default();
    let others: Vec<_> = lines.iter().skip(1).cloned().collect();
    if !line.is_empty() {
        line.extend_from_slice(b", ");
    }
    line.extend_from_slice(b"accept-encoding");
    let Ok(line) = HeaderValue::from_bytes(&line) else { return };
    // a map that is full stays as it is
    let _ = headers.try_insert(VARY, line);
    for other in others {
        let _ = headers.try_append(VARY, other);
    }
}

/// What a response in this coding says.
pub(super) fn coded(headers: &mut HeaderMap, coding: Coding) {
    headers.remove(CONTENT_LENGTH);
    // ranges would be those of what the service has
    headers.remove(ACCEPT_RANGES);
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    weaken(headers);
}

/// RFC 9110 section 8.8.1: with the same strong tag, two representations are the same byte for byte.
pub(super) fn weaken(headers: &mut HeaderMap) {
    let Some(tag) = headers.get(ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/")) else { return };
    match HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()) {
        Ok(weak) => drop(headers.insert(ETAG, weak)),
        Err(_) => drop(headers.remove(ETAG)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vary_is_merged_once() {
        for (before, after) in [
            (&[][..], &["accept-encoding"][..]),
            (&["origin"], &["origin, accept-encoding"]),
            (&["origin", "cookie"], &["origin, accept-encoding", "cookie"]),
            (&["Accept-Encoding"], &["Accept-Encoding"]),
            (&["origin", "cookie, ACCEPT-encoding"], &["origin", "cookie, ACCEPT-encoding"]),
            (&["*"], &["*"]),
            (&["x-accept-encoding"], &["x-accept-encoding, accept-encoding"]),
        ] {
            let mut headers = HeaderMap::new();
            for line in before {
                headers.append(VARY, HeaderValue::from_static(line));
            }
            vary(&mut headers);
            assert_eq!(headers.get_all(VARY).iter().collect::<Vec<_>>(), after, "{before:?}");
        }
    }

    #[test]
    fn tags_become_weak() {
        for (before, after) in [("\"a\"", "W/\"a\""), ("W/\"a\"", "W/\"a\"")] {
            let mut headers = HeaderMap::new();
            headers.insert(ETAG, HeaderValue::from_static(before));
            weaken(&mut headers);
            assert_eq!(headers[ETAG], after);
        }
    }
}
