//! RFC 9111 without IO: what may be stored, how old it is, for whom it may be used again.

use std::time::{Duration, Instant, SystemTime};

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        AGE, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, EXPIRES, LAST_MODIFIED,
        PROXY_AUTHENTICATE, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VARY,
    },
};

use crate::{
    directives::{RequestDirectives, ResponseDirectives, members, seconds},
    options::CacheOptions,
};

/// More names in `Vary` than this are not followed.
const MAX_VARY: usize = 16;

/// When a response was asked for and when it came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) asked: Instant,
    pub(crate) received: Instant,
    /// `received` by the clock on the wall.
    pub(crate) wall: SystemTime,
}

/// The fields of a request that a later response may name in `Vary`, kept while it is forwarded.
#[derive(Debug, Default)]
pub(crate) struct Selecting {
    pub(crate) fields: Vec<(HeaderName, HeaderValue)>,
    pub(crate) authorized: bool,
}

/// Names from `Vary`, each with the request's lines.
type Selection = Box<[(HeaderName, Box<[HeaderValue]>)]>;

/// A response that may be stored, without its body.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    pub(crate) status: StatusCode,
    /// End-to-end fields, without `Age`, with a `Date`.
    pub(crate) headers: HeaderMap,
    /// The request's fields that select this response, each with its lines.
    vary: Selection,
    /// Already used up when the response came (RFC 9111 section 4.2.3).
    initial_age: Duration,
    lifetime: Duration,
    received: Instant,
    /// `no-cache`: never used without asking.
    always_validate: bool,
}

/// How a stored response may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// As it is; it stays fresh for this long.
    Fresh(Duration),
    /// After validation, since it is stale or says so itself.
    Stale,
    /// After validation, since this request asks for it.
    Asked,
}

/// Decides whether a response to a GET may be stored (RFC 9111 section 3) and what is kept of it.
pub(crate) fn judge(
    request: &Selecting,
    status: StatusCode,
    headers: &HeaderMap,
    times: Times,
    options: &CacheOptions,
) -> Option<Meta> {
    // Most responses that are not to be stored end here, on the cheapest question.
    let directives = ResponseDirectives::read(headers);
    let explicit = directives.s_maxage.is_some()
        || directives.max_age.is_some()
        || directives.no_cache
        || headers.contains_key(EXPIRES);
    if !explicit || directives.no_store || directives.private || !storable_status(status, &directives) {
        return None;
    }
    // RFC 9111 section 3.5.
    let shareable = directives.public || directives.must_revalidate || directives.s_maxage.is_some();
    if request.authorized && !shareable {
        return None;
    }
    // A cookie is for one client, unless the origin says outright that the response is for all.
    if headers.contains_key(SET_COOKIE) && !directives.public {
        return None;
    }
    if headers.contains_key(CONTENT_RANGE) {
        return None;
    }
    let vary = selecting(headers, request)?;
    let initial_age = initial_age(headers, times);
    let lifetime = lifetime(&directives, headers, times.wall).min(options.max_ttl);
    let meta = Meta {
        status,
        headers: end_to_end(headers, times.wall),
        vary,
        initial_age,
        lifetime,
        received: times.received,
        always_validate: directives.no_cache,
    };
    // Something that has to be fetched anew every time is of no use.
    (meta.has_validator() || (meta.fresh_for(times.received) > Duration::ZERO && !meta.always_validate))
        .then_some(meta)
}

fn storable_status(status: StatusCode, directives: &ResponseDirectives) -> bool {
    match status.as_u16() {
        // Not final; partial; without a response of its own; for one client or connection.
        100..=199 | 206 | 304 | 401 | 407 | 416 | 421 => false,
        200 | 203 | 204 | 300 | 301 | 302 | 303 | 307 | 308 | 404 | 405 | 410 | 414 | 501 => true,
        // RFC 9111 section 5.2.2.3: only what is understood.
        _ => !directives.must_understand,
    }
}

/// RFC 9111 section 4.2.1.
fn lifetime(directives: &ResponseDirectives, headers: &HeaderMap, now: SystemTime) -> Duration {
    if let Some(lifetime) = directives.s_maxage.or(directives.max_age) {
        return lifetime;
    }
    let mut lines = headers.get_all(EXPIRES).iter();
    let (Some(expires), None) = (lines.next(), lines.next()) else { return Duration::ZERO };
    // Section 5.3: an invalid date, above all "0", is in the past.
    let Some(expires) = date(expires) else { return Duration::ZERO };
    let from = headers.get(DATE).and_then(date).unwrap_or(now);
    expires.duration_since(from).unwrap_or_default()
}

/// RFC 9111 section 4.2.3.
fn initial_age(headers: &HeaderMap, times: Times) -> Duration {
    let date = headers.get(DATE).and_then(date).unwrap_or(times.wall);
    let apparent = times.wall.duration_since(date).unwrap_or_default();
    let told = headers.get(AGE).and_then(|age| {
        // Section 5.1: the first member, if there is more than one.
        members(age.as_bytes()).next().and_then(seconds)
    });
    let delay = times.received.saturating_duration_since(times.asked);
    apparent.max(Duration::from_secs(told.unwrap_or(0)) + delay)
}

fn date(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?).ok()
}

/// The request's values of the fields that `Vary` names; `None` for `*` and for too many.
fn selecting(headers: &HeaderMap, request: &Selecting) -> Option<Selection> {
    let mut vary: Vec<(HeaderName, Box<[HeaderValue]>)> = Vec::new();
    for member in headers.get_all(VARY).iter().flat_map(|line| members(line.as_bytes())) {
        // `*` is a valid token and would pass for a name.
        let name = HeaderName::from_bytes(member).ok().filter(|name| name.as_str() != "*")?;
        if vary.iter().any(|(known, _)| *known == name) {
            continue;
        }
        if vary.len() == MAX_VARY {
            return None;
        }
        let lines = request.fields.iter().filter(|(other, _)| *other == name);
        let values = lines.map(|(_, value)| value.clone()).collect();
        vary.push((name, values));
    }
    Some(vary.into())
}

/// What is stored of a response's fields (RFC 9111 section 3.1): not those of the connection, not what is counted
/// anew, and no cookie.
fn end_to_end(headers: &HeaderMap, now: SystemTime) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(headers.len() + 1);
    for (name, value) in headers {
        if !is_hop_by_hop(name, headers) && *name != AGE && *name != SET_COOKIE {
            kept.append(name, value.clone());
        }
    }
    // RFC 9110 section 6.6.1: a recipient without a date adds one when it stores.
    if !kept.contains_key(DATE)
        && let Ok(now) = HeaderValue::try_from(httpdate::fmt_http_date(now))
    {
        kept.insert(DATE, now);
    }
    kept
}

/// RFC 9110 section 7.6.1, with every line of `Connection`.
fn is_hop_by_hop(name: &HeaderName, headers: &HeaderMap) -> bool {
    [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, PROXY_AUTHENTICATE].contains(name)
        || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "proxy-authentication-info")
        || headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|line| members(line.as_bytes()))
            .any(|member| member.eq_ignore_ascii_case(name.as_str().as_bytes()))
}

impl Meta {
    /// Whether the request's fields select this response (RFC 9111 section 4.1).
    pub(crate) fn selected_by(&self, request: &HeaderMap) -> bool {
        self.vary.iter().all(|(name, values)| request.get_all(name).iter().eq(values.iter()))
    }

    /// Whether both were selected by the same fields with the same values.
    pub(crate) fn same_selection(&self, other: &Self) -> bool {
        self.vary == other.vary
    }

    /// Whether the same fields of a request select both.
    pub(crate) fn varies_like(&self, other: &Self) -> bool {
        let names = |meta: &Self| meta.vary.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        self.vary.len() == other.vary.len() && names(self) == names(other)
    }

    /// What the selecting fields take.
    pub(crate) fn selection_bytes(&self) -> usize {
        let values = |values: &[HeaderValue]| values.iter().map(|value| value.len() + 40).sum::<usize>();
        self.vary.iter().map(|(name, lines)| name.as_str().len() + 48 + values(lines)).sum()
    }

    /// Until it is of no use any more, when it may be kept for `stale` after its freshness.
    pub(crate) fn expires_in(&self, now: Instant, stale: Duration) -> Duration {
        (self.lifetime + stale).saturating_sub(self.age(now))
    }

    /// Its age in seconds, for the `Age` field.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        self.initial_age + now.saturating_duration_since(self.received)
    }

    /// For how long it is fresh from `now` on.
    pub(crate) fn fresh_for(&self, now: Instant) -> Duration {
        self.lifetime.saturating_sub(self.age(now))
    }

    pub(crate) fn has_validator(&self) -> bool {
        self.headers.contains_key(ETAG) || self.headers.contains_key(LAST_MODIFIED)
    }

    /// Whether this request may be answered with it (RFC 9111 sections 4 and 5.2.1).
    pub(crate) fn usable(&self, request: &RequestDirectives, now: Instant) -> Use {
        let left = self.fresh_for(now);
        if self.always_validate || left == Duration::ZERO {
            return Use::Stale;
        }
        let too_old = request.max_age.is_some_and(|max| self.age(now) > max);
        let too_short = request.min_fresh.is_some_and(|min| left < min);
        if request.no_cache || too_old || too_short { Use::Asked } else { Use::Fresh(left) }
    }

    /// The fields after a 304 (RFC 9111 sections 3.2 and 4.3.4); `None` when its strong validator is another one,
    /// so that it does not speak of this response.
    pub(crate) fn updated(&self, not_modified: &HeaderMap) -> Option<HeaderMap> {
        if let (Some(new), Some(old)) = (not_modified.get(ETAG), self.headers.get(ETAG))
            && !new.as_bytes().starts_with(b"W/")
            && new != old
        {
            return None;
        }
        let mut headers = self.headers.clone();
        let updates = |name: &HeaderName| {
            // What describes the body is the body's.
            ![CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_RANGE].contains(name)
                && !is_hop_by_hop(name, not_modified)
        };
        // A new date stands for the time of the validation, also where the 304 has none.
        headers.remove(DATE);
        for name in not_modified.keys().filter(|name| updates(name)) {
            headers.remove(name);
            for value in not_modified.get_all(name) {
                headers.append(name, value.clone());
            }
        }
        Some(headers)
    }
}

#[cfg(test)]
mod tests;
