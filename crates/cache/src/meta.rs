//! RFC 9111 without IO: what may be stored, how old it is, for whom it may be used again.

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        AGE, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, EXPIRES, LAST_MODIFIED,
        PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
};

use crate::{
    date,
    directives::{RequestDirectives, ResponseDirectives, members, seconds, withheld},
    rules::{CacheRules, SetCookie},
    tags::{self, Tags},
    targeted,
    vary::{Selector, selection, selectors},
};

/// When a response was asked for and when it came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) asked: Instant,
    pub(crate) received: Instant,
    /// `received` by the clock on the wall.
    pub(crate) wall: SystemTime,
}

/// What is kept of a request while it is forwarded.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// What the response's `Vary` may name.
    pub(crate) fields: HeaderMap,
    pub(crate) authorized: bool,
}

/// A response that may be stored, without its body.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    pub(crate) status: StatusCode,
    /// End-to-end fields, without `Age`, with a `Date`.
    pub(crate) headers: HeaderMap,
    /// What selects this response, and the values of the request that it answered.
    pub(crate) selectors: Box<[Selector]>,
    pub(crate) selection: Box<[u8]>,
    pub(crate) tags: Tags,
    /// Already used up when the response came (RFC 9111 section 4.2.3).
    initial_age: Duration,
    lifetime: Duration,
    received: Instant,
    /// `no-cache`: never used without asking.
    always_validate: bool,
    /// For how long past its freshness it may be given out while it is asked for anew, and when that fails.
    stale: StaleFor,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct StaleFor {
    /// RFC 9111 section 4.2.4: an origin's word forbids it, whatever the request or the rules say.
    forbidden: bool,
    revalidating: Duration,
    failing: Duration,
}

/// How a stored response may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// As it is; it stays fresh for this long.
    Fresh(Duration),
    /// As it is, though stale for this long: the request takes it so.
    Taken(Duration),
    /// As it is, though stale for this long, while it is asked for anew.
    Revalidating(Duration),
    /// After validation, since it is stale or says so itself.
    Stale,
    /// After validation, since this request asks for it.
    Asked,
}

/// What a response to HEAD says of a stored one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compared {
    /// A validator is the same, and nothing is another.
    Same,
    /// A validator or the length is another.
    Other,
    /// Nothing.
    Unknown,
}

/// Decides whether a response to a GET may be stored (RFC 9111 section 3) and what is kept of it.
pub(crate) fn judge(
    request: &Asked,
    status: StatusCode,
    headers: &HeaderMap,
    times: Times,
    rules: &CacheRules,
) -> Option<Meta> {
    let targeted = rules.targeted.iter().find_map(|name| targeted::read(headers, name));
    let directives = targeted.unwrap_or_else(|| ResponseDirectives::read(headers));
    // Most responses that are not to be stored end here, on the cheapest questions.
    let lifetime = lifetime(status, &directives, targeted.is_some(), headers, times.wall, rules)?;
    let understood = is_understood(status);
    // RFC 9111 section 5.2.2.3: who understands may leave no-store aside, who does not has to keep away.
    let kept_out = if directives.must_understand { !understood } else { directives.no_store };
    if kept_out || directives.private || !is_storable(status) {
        return None;
    }
    // RFC 9111 section 3.5.
    let shareable = directives.public || directives.must_revalidate || directives.s_maxage.is_some();
    if request.authorized && !shareable {
        return None;
    }
    // A cookie is for one client, unless the origin says outright that the response is for all.
    if rules.set_cookie == SetCookie::Refuse && headers.contains_key(SET_COOKIE) && !directives.public {
        return None;
    }
    let tags = tags::read(headers)?;
    let selectors = selectors(headers, rules)?;
    let selection = selection(&selectors, &request.fields)?.as_slice().into();
    let meta = Meta {
        status,
        headers: kept(headers, times.wall, &directives, rules),
        selectors,
        selection,
        tags,
        initial_age: initial_age(headers, times),
        lifetime: lifetime.min(rules.max_ttl),
        received: times.received,
        always_validate: directives.no_cache,
        stale: StaleFor {
            // Section 5.2.2.10: s-maxage has proxy-revalidate in it.
            forbidden: directives.must_revalidate
                || directives.proxy_revalidate
                || directives.no_cache
                || directives.s_maxage.is_some(),
            revalidating: directives.stale_while_revalidate.unwrap_or(rules.stale_while_revalidate),
            failing: directives.stale_if_error.unwrap_or(rules.stale_if_error),
        },
    };
    // Something that has to be fetched anew every time is of no use.
    let usable = !meta.always_validate
        && (meta.fresh_for(times.received) > Duration::ZERO
            || meta.stale_for(times.received) > Duration::ZERO);
    (meta.has_validator() || usable).then_some(meta)
}

fn is_storable(status: StatusCode) -> bool {
    // Not final; partial; without a response of its own; for one client, request or connection, the last four by RFC 6585 sections 3 to 6.
    !matches!(
        status.as_u16(),
        100..=199 | 206 | 304 | 401 | 407 | 408 | 416 | 421 | 425 | 428 | 429 | 431 | 511
    )
}

fn is_understood(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200 | 203 | 204 | 300..=303 | 307 | 308 | 400 | 403..=405 | 410 | 414 | 500..=504
    )
}

/// RFC 9110 section 15.1.
fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// RFC 9111 section 4.2.1; `None` where nothing says that it may be stored at all.
fn lifetime(
    status: StatusCode,
    directives: &ResponseDirectives,
    targeted: bool,
    headers: &HeaderMap,
    now: SystemTime,
    rules: &CacheRules,
) -> Option<Duration> {
    let ruled = rules.ttl_of(status);
    if let Some(rule) = ruled.filter(|rule| rule.overrides) {
        return Some(rule.ttl);
    }
    if let Some(lifetime) = directives.s_maxage.or(directives.max_age) {
        return Some(lifetime);
    }
    // RFC 9213 section 2.2: beside a targeted field neither Cache-Control nor Expires says anything.
    if !targeted && headers.contains_key(EXPIRES) {
        return Some(until_expires(headers, now));
    }
    if let Some(rule) = ruled {
        return Some(rule.ttl);
    }
    if let Some(heuristic) = rules.heuristic
        && (is_heuristically_cacheable(status) || directives.public)
        && let Some(modified) = headers.get(LAST_MODIFIED).and_then(date::read)
    {
        let from = headers.get(DATE).and_then(date::read).unwrap_or(now);
        let unmodified = from.duration_since(modified).unwrap_or_default();
        return Some((unmodified / 100 * u32::from(heuristic.percent)).min(heuristic.max));
    }
    directives.no_cache.then_some(Duration::ZERO)
}

fn until_expires(headers: &HeaderMap, now: SystemTime) -> Duration {
    let mut lines = headers.get_all(EXPIRES).iter();
    let (Some(expires), None) = (lines.next(), lines.next()) else { return Duration::ZERO };
    // Section 5.3: an invalid date, above all "0", is in the past.
    let Some(expires) = date::read(expires) else { return Duration::ZERO };
    let from = headers.get(DATE).and_then(date::read).unwrap_or(now);
    expires.duration_since(from).unwrap_or_default()
}

/// RFC 9111 section 4.2.3.
fn initial_age(headers: &HeaderMap, times: Times) -> Duration {
    let date = headers.get(DATE).and_then(date::read).unwrap_or(times.wall);
    let apparent = times.wall.duration_since(date).unwrap_or_default();
    let told = headers.get(AGE).and_then(|age| {
        // Section 5.1: the first member, if there is more than one.
        members(age.as_bytes()).next().and_then(seconds)
    });
    let delay = times.received.saturating_duration_since(times.asked);
    apparent.max(Duration::from_secs(told.unwrap_or(0)).saturating_add(delay))
}

/// What is stored of a response's fields (RFC 9111 section 3.1): not those of the connection, not what is counted
/// anew, not what the origin withholds from others, and no cookie but by choice.
fn kept(
    headers: &HeaderMap,
    now: SystemTime,
    directives: &ResponseDirectives,
    rules: &CacheRules,
) -> HeaderMap {
    let is_kept = |name: &HeaderName| {
        let cookie = *name == SET_COOKIE && rules.set_cookie != SetCookie::Keep;
        let left_out = *name == AGE || cookie || (directives.withholds && withheld(headers, name));
        !left_out && !is_hop_by_hop(name, headers)
    };
    let mut kept = HeaderMap::with_capacity(headers.len() + 1);
    for (name, value) in headers.iter().filter(|(name, _)| is_kept(name)) {
        kept.append(name, value.clone());
    }
    own(&mut kept);
    dated(&mut kept, now);
    kept
}

/// RFC 9110 section 6.6.1: a recipient without a date adds one when it stores.
fn dated(headers: &mut HeaderMap, now: SystemTime) {
    if !headers.contains_key(DATE)
        && let Ok(now) = HeaderValue::try_from(httpdate::fmt_http_date(now))
    {
        headers.insert(DATE, now);
    }
}

/// Copies the values, all to one place. A value that came is a part of all that was read with it, which would stay in memory with it and is in no weight.
fn own(headers: &mut HeaderMap) {
    let mut all = Vec::with_capacity(headers.values().map(HeaderValue::len).sum());
    headers.values().for_each(|value| all.extend_from_slice(value.as_bytes()));
    let mut all = Bytes::from(all);
    for value in headers.values_mut() {
        // it was a value before, and is one still
        if let Ok(mut copy) = HeaderValue::from_maybe_shared(all.split_to(value.len())) {
            copy.set_sensitive(value.is_sensitive());
            *value = copy;
        }
    }
}

/// RFC 9110 section 7.6.1, with every line of `Connection`.
fn is_hop_by_hop(name: &HeaderName, headers: &HeaderMap) -> bool {
    [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION]
        .contains(name)
        || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "proxy-authentication-info")
        || headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|line| members(line.as_bytes()))
            .any(|member| member.eq_ignore_ascii_case(name.as_str().as_bytes()))
}

impl Meta {
    /// What the selecting fields and tags take.
    pub(crate) fn selection_bytes(&self) -> usize {
        self.selectors.len() * 64
            + self.selection.len()
            + self.tags.iter().map(|tag| tag.len() + 16).sum::<usize>()
    }

    /// Until it is of no use any more, when it may be kept for `stale` after its freshness to be validated.
    pub(crate) fn expires_in(&self, now: Instant, stale: Duration) -> Duration {
        let validated = if self.has_validator() { stale } else { Duration::ZERO };
        let given = if self.stale.forbidden {
            Duration::ZERO
        } else {
            self.stale.revalidating.max(self.stale.failing)
        };
        self.lifetime.saturating_add(validated.max(given)).saturating_sub(self.age(now))
    }

    /// Its age in seconds, for the `Age` field.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        self.initial_age.saturating_add(now.saturating_duration_since(self.received))
    }

    /// For how long it is fresh from `now` on.
    pub(crate) fn fresh_for(&self, now: Instant) -> Duration {
        self.lifetime.saturating_sub(self.age(now))
    }

    /// Whether requests without wishes of their own may be answered with it, without asking.
    pub(crate) fn is_fresh(&self, now: Instant) -> bool {
        !self.always_validate && self.fresh_for(now) > Duration::ZERO
    }

    /// Whether it never is fresh, for anybody.
    pub(crate) fn is_never_fresh(&self) -> bool {
        self.always_validate || self.lifetime == Duration::ZERO
    }

    pub(crate) fn has_validator(&self) -> bool {
        self.headers.contains_key(ETAG) || self.headers.contains_key(LAST_MODIFIED)
    }

    /// For how long it has been stale: since its end, or since a soft purge before that (`outdated`).
    pub(crate) fn stale_since(&self, now: Instant, outdated: Option<Instant>) -> Duration {
        let purged = outdated.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.age(now).saturating_sub(self.lifetime).max(purged)
    }

    /// For how long it could still be given out if its origin allowed it by RFC 5861.
    fn stale_for(&self, now: Instant) -> Duration {
        self.expires_in(now, Duration::ZERO)
    }

    /// Whether it may be given out since the origin fails (RFC 5861 section 4).
    pub(crate) fn usable_on_error(
        &self,
        request: &RequestDirectives,
        now: Instant,
        outdated: Option<Instant>,
    ) -> bool {
        let longest =
            request.stale_if_error.map_or(self.stale.failing, |asked| self.stale.failing.max(asked));
        let demanding = request.no_cache || request.max_age.is_some() || request.min_fresh.is_some();
        !self.stale.forbidden && !demanding && self.stale_since(now, outdated) < longest
    }

    /// Whether this request may be answered with it (RFC 9111 sections 4 and 5.2.1). `outdated` is when a soft purge marked it.
    pub(crate) fn usable(&self, request: &RequestDirectives, now: Instant, outdated: Option<Instant>) -> Use {
        let left = if outdated.is_some() { Duration::ZERO } else { self.fresh_for(now) };
        let too_old = request.max_age.is_some_and(|max| self.age(now) > max);
        if !self.always_validate && left > Duration::ZERO {
            let too_short = request.min_fresh.is_some_and(|min| left < min);
            return if request.no_cache || too_old || too_short { Use::Asked } else { Use::Fresh(left) };
        }
        if self.stale.forbidden || request.no_cache || too_old || request.min_fresh.is_some() {
            return Use::Stale;
        }
        let since = self.stale_since(now, outdated);
        if since < self.stale.revalidating {
            Use::Revalidating(since)
        } else if outdated.is_none() && request.max_stale.is_some_and(|max| since <= max) {
            Use::Taken(since)
        } else {
            Use::Stale
        }
    }

    /// What a response to HEAD says of this one, whose body is `len` long (RFC 9111 section 4.3.5). A length alone does not tell that it is the same.
    pub(crate) fn compare(&self, head: &HeaderMap, len: u64) -> Compared {
        // What is a validator in one of them alone was received and does not match.
        let differs =
            |name: HeaderName| head.get(&name).is_some_and(|new| self.headers.get(name) != Some(new));
        let length = head.get(CONTENT_LENGTH).map(|length| length.to_str().ok().and_then(|n| n.parse().ok()));
        if differs(ETAG) || differs(LAST_MODIFIED) || length.is_some_and(|told| told != Some(len)) {
            Compared::Other
        } else if head.contains_key(ETAG) || head.contains_key(LAST_MODIFIED) {
            Compared::Same
        } else {
            Compared::Unknown
        }
    }

    /// For the client that asked for it, with the fields of a 304, also those that are not stored (RFC 9111 section 4.3.4).
    pub(crate) fn told(&self, mut updated: HeaderMap, times: Times) -> Self {
        let initial_age = initial_age(&updated, times);
        updated.remove(AGE);
        dated(&mut updated, times.wall);
        Self { headers: updated, initial_age, received: times.received, ..self.clone() }
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

#[cfg(feature = "disk")]
pub(crate) mod record;

#[cfg(test)]
mod tests;
