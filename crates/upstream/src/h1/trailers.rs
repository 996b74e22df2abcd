//! What has no place in a trailer section.

use http::{HeaderMap, HeaderName, header};

/// RFC 9110 section 6.5.1: what frames, routes, authenticates, controls or describes a message must be known before
/// its content. A recipient that merges trailers into the head would take them for such, so they go no further; and so
/// do the fields by which a proxy says who its client is.
const DENIED: &[HeaderName] = &[
    header::AGE,
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::EXPECT,
    header::FORWARDED,
    header::HOST,
    header::IF_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::IF_RANGE,
    header::IF_UNMODIFIED_SINCE,
    header::LOCATION,
    header::MAX_FORWARDS,
    header::ORIGIN,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::RANGE,
    header::RETRY_AFTER,
    header::SET_COOKIE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::VARY,
    header::VIA,
    header::WWW_AUTHENTICATE,
];

pub(crate) fn is_allowed(name: &HeaderName) -> bool {
    let text = name.as_str();
    !DENIED.contains(name)
        && !["keep-alive", "proxy-connection", "proxy", "early-data", "http2-settings"].contains(&text)
        && !["x-forwarded", "x_forwarded", "x-real-ip", "x_real_ip"]
            .iter()
            .any(|family| text.starts_with(family))
}

pub(crate) fn keep_allowed(trailers: &mut HeaderMap) {
    let denied: Vec<HeaderName> = trailers.keys().filter(|name| !is_allowed(name)).cloned().collect();
    for name in denied {
        trailers.remove(name);
    }
}

/// The section without what has no place in one.
pub(crate) fn allowed(mut trailers: HeaderMap) -> HeaderMap {
    keep_allowed(&mut trailers);
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_describes_the_message_is_denied_and_the_rest_is_kept() {
        let mut trailers = HeaderMap::new();
        for name in ["grpc-status", "grpc-message", "x-checksum", "server-timing", "digest"] {
            trailers.insert(HeaderName::from_static(name), "1".parse().unwrap());
        }
        for name in DENIED.iter().map(HeaderName::as_str).chain([
            "x-forwarded-for",
            "x_forwarded_for",
            "x-real-ip",
            "proxy",
        ]) {
            trailers.insert(HeaderName::from_static(name), "1".parse().unwrap());
        }
        keep_allowed(&mut trailers);
        assert_eq!(trailers.len(), 5, "{trailers:?}");
    }
}
