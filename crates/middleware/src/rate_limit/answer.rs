//! What a client is told: the answer to who is refused, and how much is left.

use std::{fmt::Write as _, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER},
};

use super::{rules::Rule, store::Standing};

/// Draft-ietf-httpapi-ratelimit-headers-10, section 3: the rules.
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// Section 4: what is left of them.
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// Both fields of a response.
#[derive(Debug)]
pub(super) struct Fields {
    policy: HeaderValue,
    limit: HeaderValue,
}

impl Fields {
    pub(super) fn new(policy: Option<&HeaderValue>, limit: Option<String>) -> Option<Box<Self>> {
        let limit = HeaderValue::try_from(limit?).ok()?;
        Some(Box::new(Self { policy: policy?.clone(), limit }))
    }

    /// Both are lists, so that those of an upstream stay beside ours.
    pub(super) fn add_to(self, headers: &mut HeaderMap) {
        headers.append(POLICY, self.policy);
        headers.append(LIMIT, self.limit);
    }
}

/// `RateLimit-Policy`: how much a bucket holds, and in what time that much comes in.
pub(super) fn policy(rules: &[Rule]) -> Option<HeaderValue> {
    let mut text = String::new();
    // what is not enforced is not told
    for rule in rules.iter().filter(|rule| !rule.options.dry_run) {
        let window = whole_seconds(rule.quota.fills_in());
        separate(&mut text);
        let _ = write!(text, "\"{}\";q={};w={window}", rule.name, rule.quota.burst);
    }
    HeaderValue::try_from(text).ok()
}

/// Adds to `RateLimit`: what is left of a rule, and when that much will be the whole.
pub(super) fn add_standing(text: &mut String, rule: &str, standing: Standing) {
    separate(text);
    // a String takes whatever is written
    let _ = write!(text, "\"{rule}\";r={};t={}", standing.left, whole_seconds(standing.full_in));
}

fn separate(list: &mut String) {
    if !list.is_empty() {
        list.push_str(", ");
    }
}

/// RFC 9110 section 10.2.3: whole seconds. Rounded up, so that who obeys is let in; never 0.
fn whole_seconds(time: Duration) -> u64 {
    crate::whole_seconds(time).max(1)
}

/// The answer to who is refused. RFC 6585 section 4: caches must not store a 429; the others are told.
pub(super) fn refusal<B: From<Bytes>>(rule: &Rule, wait: Option<Duration>, unavailable: bool) -> Response<B> {
    let options = &rule.options.refusal;
    let status = match options.status {
        _ if unavailable => StatusCode::SERVICE_UNAVAILABLE,
        status if status.is_client_error() || status.is_server_error() => status,
        _ => StatusCode::TOO_MANY_REQUESTS,
    };
    let mut response = Response::new(B::from(if unavailable { Bytes::new() } else { options.body.clone() }));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if let Some(wait) = wait {
        headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
    }
    if status != StatusCode::TOO_MANY_REQUESTS {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if !options.body.is_empty() && !unavailable {
        headers.insert(CONTENT_TYPE, options.content_type.clone());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_rounded_up() {
        let table =
            [(0, 1), (1, 1), (999_999_999, 1), (1_000_000_000, 1), (1_000_000_001, 2), (59_500_000_000, 60)];
        for (nanos, seconds) in table {
            assert_eq!(whole_seconds(Duration::from_nanos(nanos)), seconds, "{nanos}");
        }
    }
}
