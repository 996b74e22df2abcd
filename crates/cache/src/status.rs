//! The `Cache-Status` field (RFC 9211).

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::{key, rules::CacheRules};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Why a request was forwarded (section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Bypass,
    Method,
    UriMiss,
    VaryMiss,
    Stale,
    Request,
}

impl Why {
    fn name(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Stale => "stale",
            Self::Request => "request",
        }
    }
}

/// What is told of one response.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Status<'a> {
    pub(crate) hit: bool,
    pub(crate) fwd: Option<Why>,
    /// The origin's status, where the response has another.
    pub(crate) fwd_status: Option<StatusCode>,
    /// Seconds of freshness left; less than 0 where it is stale.
    pub(crate) ttl: Option<i64>,
    pub(crate) stored: bool,
    pub(crate) collapsed: bool,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) detail: Option<&'static str>,
}

impl Status<'_> {
    pub(crate) fn hit(ttl: i64) -> Self {
        Self { hit: true, ttl: Some(ttl), ..Self::default() }
    }

    pub(crate) fn fwd(why: Why) -> Self {
        Self { fwd: Some(why), ..Self::default() }
    }

    /// Adds our member behind those of caches nearer to the origin (section 2).
    pub(crate) fn note(&self, rules: &CacheRules, headers: &mut HeaderMap) {
        if rules.cache_status
            && let Ok(value) = HeaderValue::try_from(self.text(rules.cache_status_key))
        {
            headers.append(CACHE_STATUS, value);
        }
    }

    fn text(&self, with_key: bool) -> String {
        let mut text = String::with_capacity(64);
        text.push_str("portcullis");
        if self.hit {
            text.push_str("; hit");
        }
        if let Some(why) = self.fwd {
            text.push_str("; fwd=");
            text.push_str(why.name());
        }
        // Writing to a String can't fail.
        if let Some(status) = self.fwd_status {
            let _ = write!(text, "; fwd-status={}", status.as_u16());
        }
        if let Some(ttl) = self.ttl {
            let _ = write!(text, "; ttl={ttl}");
        }
        for (is, name) in [(self.stored, "; stored"), (self.collapsed, "; collapsed")] {
            if is {
                text.push_str(name);
            }
        }
        if let Some(key) = self.key.filter(|_| with_key).map(key::uri)
            && key.iter().all(|byte| matches!(byte, b' '..=b'~'))
        {
            text.push_str("; key=\"");
            for byte in key {
                if matches!(byte, b'"' | b'\\') {
                    text.push('\\');
                }
                text.push(char::from(*byte));
            }
            text.push('"');
        }
        if let Some(detail) = self.detail {
            text.push_str("; detail=");
            text.push_str(detail);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        let full = Status {
            fwd_status: Some(StatusCode::NOT_MODIFIED),
            stored: true,
            collapsed: true,
            key: Some(b"https://a:443/\"x\"\0p"),
            detail: Some("x"),
            ..Status::fwd(Why::Stale)
        };
        for (status, key, want) in [
            (Status::hit(-5), true, "portcullis; hit; ttl=-5"),
            (Status::fwd(Why::UriMiss), true, "portcullis; fwd=uri-miss"),
            (full, false, "portcullis; fwd=stale; fwd-status=304; stored; collapsed; detail=x"),
            (
                full,
                true,
                "portcullis; fwd=stale; fwd-status=304; stored; collapsed; key=\"https://a:443/\\\"x\\\"\"; detail=x",
            ),
        ] {
            assert_eq!(status.text(key), want);
        }
    }
}
