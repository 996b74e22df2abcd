//! What becomes of a response that came for a forwarded request.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{AGE, CONTENT_LENGTH, CONTENT_LOCATION, LOCATION},
};
use http_body::Body;

use crate::{
    body::CacheBody,
    conditional::{Conditions, fields_of_304},
    fill::Fill,
    key,
    rules::{Meta, Selecting, Times, judge},
    stats::count,
    store::{Shared, Stored},
};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// What to do once the inner service has answered.
#[derive(Debug)]
pub(crate) enum Plan {
    /// Pass it on.
    Pass(Why),
    /// Forget what is stored for this key, if the response is no error.
    Unsafe(Option<String>),
    /// Store it, or refresh what is stored.
    Get(Box<Get>),
}

/// Why a request was forwarded (RFC 9211 section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Bypass,
    Method,
    UriMiss,
    VaryMiss,
    Stale,
    Request,
}

#[derive(Debug)]
pub(crate) struct Get {
    pub(crate) key: String,
    pub(crate) generation: u32,
    pub(crate) asked: Instant,
    pub(crate) selecting: Selecting,
    pub(crate) why: Why,
    /// What was asked about, and the client's own conditions, which were taken out of the request for it.
    pub(crate) revalidates: Option<(Arc<Stored>, Conditions)>,
}

/// The `Cache-Status` of a forwarded response (RFC 9211).
fn status_value(why: Why, stored: bool, validated: bool) -> HeaderValue {
    HeaderValue::from_static(match (why, stored, validated) {
        (Why::Bypass, ..) => "portcullis; fwd=bypass",
        (Why::Method, ..) => "portcullis; fwd=method",
        (Why::UriMiss, false, _) => "portcullis; fwd=uri-miss",
        (Why::UriMiss, true, _) => "portcullis; fwd=uri-miss; stored",
        (Why::VaryMiss, false, _) => "portcullis; fwd=vary-miss",
        (Why::VaryMiss, true, _) => "portcullis; fwd=vary-miss; stored",
        (Why::Stale, false, false) => "portcullis; fwd=stale",
        (Why::Stale, true, false) => "portcullis; fwd=stale; stored",
        (Why::Stale, false, true) => "portcullis; fwd=stale; fwd-status=304",
        (Why::Stale, true, true) => "portcullis; fwd=stale; fwd-status=304; stored",
        (Why::Request, false, false) => "portcullis; fwd=request",
        (Why::Request, true, false) => "portcullis; fwd=request; stored",
        (Why::Request, false, true) => "portcullis; fwd=request; fwd-status=304",
        (Why::Request, true, true) => "portcullis; fwd=request; fwd-status=304; stored",
    })
}

/// Finishes a response as planned.
pub(crate) fn complete<B: Body>(
    shared: &Arc<Shared>,
    plan: Plan,
    response: Response<B>,
) -> Response<CacheBody<B>> {
    match plan {
        Plan::Pass(why) => pass(shared, why, response),
        Plan::Unsafe(key) => {
            if let Some(key) = key {
                invalidate(shared, &key, &response);
            }
            pass(shared, Why::Method, response)
        }
        Plan::Get(get) => complete_get(shared, *get, response),
    }
}

fn pass<B>(shared: &Shared, why: Why, response: Response<B>) -> Response<CacheBody<B>> {
    let mut response = response.map(CacheBody::passed);
    note(shared, response.headers_mut(), || status_value(why, false, false));
    response
}

/// Adds our member behind those of caches nearer to the origin (RFC 9211 section 2).
fn note(shared: &Shared, headers: &mut HeaderMap, value: impl FnOnce() -> HeaderValue) {
    if shared.options.cache_status {
        headers.append(CACHE_STATUS, value());
    }
}

/// RFC 9111 section 4.4.
fn invalidate<B>(shared: &Shared, key: &str, response: &Response<B>) {
    if !response.status().is_success() && !response.status().is_redirection() {
        return;
    }
    shared.invalidate(key);
    for name in [LOCATION, CONTENT_LOCATION] {
        let reference = response.headers().get(name).and_then(|value| value.to_str().ok());
        if let Some(other) = reference.and_then(|reference| key::same_origin(key, reference)) {
            shared.invalidate(&other);
        }
    }
}

fn complete_get<B: Body>(shared: &Arc<Shared>, get: Get, response: Response<B>) -> Response<CacheBody<B>> {
    let times = Times { asked: get.asked, received: Instant::now(), wall: SystemTime::now() };
    if response.status() == StatusCode::NOT_MODIFIED
        && let Some((stored, conditions)) = &get.revalidates
    {
        return refreshed(shared, &get, stored, conditions, response.headers(), times);
    }
    count(&shared.counters.misses);
    let meta = judge(&get.selecting, response.status(), response.headers(), times, &shared.options)
        .filter(|_| !is_too_large(&response, shared.options.max_object_bytes));
    let Some(meta) = meta else {
        // What was asked about is not what the origin has any more; an error says nothing about it.
        if get.revalidates.is_some() && !response.status().is_server_error() {
            shared.invalidate(&get.key);
        }
        return pass(shared, get.why, response);
    };
    let expected = content_length(response.headers()).or_else(|| response.body().size_hint().exact());
    let fill = Fill::new(Arc::clone(shared), get.key, get.generation, meta, expected);
    let mut response = response.map(|body| CacheBody::filled(body, fill));
    note(shared, response.headers_mut(), || status_value(get.why, true, false));
    response
}

/// The origin says that what is stored is still right (RFC 9111 section 4.3.3).
fn refreshed<B>(
    shared: &Shared,
    get: &Get,
    stored: &Arc<Stored>,
    conditions: &Conditions,
    not_modified: &HeaderMap,
    times: Times,
) -> Response<CacheBody<B>> {
    count(&shared.counters.revalidated);
    let status = stored.meta.status;
    let headers = stored.meta.updated(not_modified);
    let meta = headers.and_then(|headers| judge(&get.selecting, status, &headers, times, &shared.options));
    let mut response = match meta {
        Some(meta) => {
            let stored = Stored { meta, body: stored.body.clone() };
            let response = answer(&stored.meta, &stored.body, times.received, conditions, false);
            shared.insert(&get.key, get.generation, stored);
            response
        }
        // Good for this request, and for no other.
        None => {
            shared.invalidate(&get.key);
            answer(&stored.meta, &stored.body, times.received, conditions, false)
        }
    };
    note(shared, response.headers_mut(), || status_value(get.why, false, true));
    response
}

/// An answer from what is stored and fresh.
pub(crate) fn hit<B>(
    shared: &Shared,
    stored: &Stored,
    now: Instant,
    left: Duration,
    conditions: &Conditions,
    head: bool,
) -> Response<CacheBody<B>> {
    count(&shared.counters.hits);
    let mut response = answer(&stored.meta, &stored.body, now, conditions, head);
    note(shared, response.headers_mut(), || {
        HeaderValue::try_from(format!("portcullis; hit; ttl={}", left.as_secs()))
            .unwrap_or_else(|_| HeaderValue::from_static("portcullis; hit"))
    });
    response
}

fn answer<B>(
    meta: &Meta,
    body: &Bytes,
    now: Instant,
    conditions: &Conditions,
    head: bool,
) -> Response<CacheBody<B>> {
    let not_modified =
        !conditions.is_empty() && meta.status == StatusCode::OK && conditions.not_modified(&meta.headers);
    let mut response = if not_modified {
        let mut response = Response::new(CacheBody::stored(Bytes::new()));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        *response.headers_mut() = fields_of_304(&meta.headers);
        response
    } else {
        let data = if head { Bytes::new() } else { body.clone() };
        let mut response = Response::new(CacheBody::stored(data));
        *response.status_mut() = meta.status;
        *response.headers_mut() = meta.headers.clone();
        if head && !meta.headers.contains_key(CONTENT_LENGTH) {
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        response
    };
    // RFC 9111 section 4: a response from the store carries its age.
    response.headers_mut().insert(AGE, HeaderValue::from(meta.age(now).as_secs()));
    response
}

/// The answer where nothing is stored and the client wants nothing else (RFC 9111 section 5.2.1.7).
pub(crate) fn only_if_cached<B>(shared: &Shared) -> Response<CacheBody<B>> {
    let mut response = Response::new(CacheBody::stored(Bytes::new()));
    *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
    note(shared, response.headers_mut(), || HeaderValue::from_static("portcullis; detail=only-if-cached"));
    response
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn is_too_large<B: Body>(response: &Response<B>, max: u64) -> bool {
    content_length(response.headers()).is_some_and(|length| length > max)
        || response.body().size_hint().lower() > max
}
