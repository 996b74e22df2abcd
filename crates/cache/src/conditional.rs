//! Conditional requests, answered from what is stored (RFC 9110 section 13, RFC 9111 section 4.3.2).

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        CACHE_CONTROL, CONTENT_LOCATION, DATE, ETAG, EXPIRES, IF_MODIFIED_SINCE, IF_NONE_MATCH,
        LAST_MODIFIED, VARY,
    },
};

use crate::{date, directives::members};

/// The conditions of a request that a cache evaluates.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conditions {
    none_match: Vec<HeaderValue>,
    modified_since: Option<HeaderValue>,
}

impl Conditions {
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        Self {
            none_match: headers.get_all(IF_NONE_MATCH).iter().cloned().collect(),
            modified_since: headers.get(IF_MODIFIED_SINCE).cloned(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.none_match.is_empty() && self.modified_since.is_none()
    }

    /// Whether 304 is the answer for a stored 200 with these fields.
    pub(crate) fn not_modified(&self, stored: &HeaderMap) -> bool {
        // RFC 9110 section 13.2.2: If-Modified-Since counts only without If-None-Match.
        if !self.none_match.is_empty() {
            let etag = stored.get(ETAG).map(|etag| opaque(etag.as_bytes()));
            return self
                .none_match
                .iter()
                .flat_map(|line| members(line.as_bytes()))
                .any(|member| member == b"*" || etag == Some(opaque(member)));
        }
        let (Some(since), Some(modified)) = (
            self.modified_since.as_ref().and_then(date::read),
            // RFC 9111 section 4.3.2: the date stands in for a missing Last-Modified.
            stored.get(LAST_MODIFIED).or_else(|| stored.get(DATE)).and_then(date::read),
        ) else {
            return false;
        };
        modified <= since
    }
}

/// The tag without the mark of weakness: comparison is weak (RFC 9110 section 13.1.2).
fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Puts the stored validators in place of the client's conditions.
pub(crate) fn ask(request: &mut HeaderMap, stored: &HeaderMap) {
    for (name, field) in [(IF_NONE_MATCH, ETAG), (IF_MODIFIED_SINCE, LAST_MODIFIED)] {
        match stored.get(field) {
            Some(value) => {
                request.insert(name, value.clone());
            }
            None => {
                request.remove(name);
            }
        }
    }
}

/// The fields of a 304 (RFC 9110 section 15.4.5).
pub(crate) fn fields_of_304(stored: &HeaderMap) -> HeaderMap {
    const SENT: [HeaderName; 7] = [CACHE_CONTROL, CONTENT_LOCATION, DATE, ETAG, EXPIRES, VARY, LAST_MODIFIED];
    let mut fields = HeaderMap::with_capacity(SENT.len() + 2);
    for name in SENT {
        for value in stored.get_all(&name) {
            fields.append(&name, value.clone());
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        let earlier = "Sun, 06 Nov 1994 08:49:36 GMT";
        let headers = |fields: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, value.parse().unwrap());
            }
            headers
        };
        let stored = headers(&[("etag", "\"a,b\""), ("last-modified", date)]);
        for (request, want) in [
            (&[("if-none-match", "\"a,b\"")][..], true),
            (&[("if-none-match", "W/\"a,b\"")], true),
            (&[("if-none-match", "\"x\", \"a,b\"")], true),
            (&[("if-none-match", "\"x\""), ("if-none-match", "\"a,b\"")], true),
            (&[("if-none-match", "*")], true),
            (&[("if-none-match", "\"x\""), ("if-modified-since", date)], false),
            (&[("if-none-match", "a,b")], false),
            (&[("if-none-match", "")], false),
            (&[("if-modified-since", date)], true),
            (&[("if-modified-since", earlier)], false),
            (&[("if-modified-since", "x")], false),
            (&[], false),
        ] {
            assert_eq!(Conditions::read(&headers(request)).not_modified(&stored), want, "{request:?}");
        }
        let weak = headers(&[("etag", "W/\"a\"")]);
        assert!(Conditions::read(&headers(&[("if-none-match", "\"a\"")])).not_modified(&weak));
        let undated = headers(&[("date", date)]);
        assert!(Conditions::read(&headers(&[("if-modified-since", date)])).not_modified(&undated));
    }
}
