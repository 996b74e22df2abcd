//! Answers from what is stored, and from what is on its way to be.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode,
    header::{ACCEPT_RANGES, AGE, CONTENT_LENGTH, CONTENT_RANGE},
};

use crate::{
    body::CacheBody,
    conditional::{Conditions, fields_of_304},
    flight::Seat,
    meta::Meta,
    range::{Part, Ranged},
    store::Stored,
};

/// What of a request decides how it is answered from a stored response.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) head: bool,
    pub(crate) conditions: Conditions,
    pub(crate) ranged: Ranged,
}

impl Wanted {
    pub(crate) fn read(method: &Method, headers: &HeaderMap) -> Self {
        Self {
            head: *method == Method::HEAD,
            conditions: Conditions::read(headers),
            ranged: Ranged::read(method, headers),
        }
    }
}

/// Where the body is.
enum From {
    Store(Arc<Stored>),
    Way { seat: Seat, wait: Duration },
}

/// From the store.
pub(crate) fn stored<B>(stored: &Arc<Stored>, wanted: &Wanted, now: Instant) -> Response<CacheBody<B>> {
    answer(&stored.meta, From::Store(Arc::clone(stored)), Some(stored.body.len), wanted, now)
}

/// From what is on its way, of this length where it is known.
pub(crate) fn on_its_way<B>(
    meta: &Meta,
    seat: Seat,
    len: Option<u64>,
    wait: Duration,
    wanted: &Wanted,
    now: Instant,
) -> Response<CacheBody<B>> {
    answer(meta, From::Way { seat, wait }, len, wanted, now)
}

fn answer<B>(
    meta: &Meta,
    from: From,
    len: Option<u64>,
    wanted: &Wanted,
    now: Instant,
) -> Response<CacheBody<B>> {
    let not_modified = !wanted.conditions.is_empty()
        && meta.status == StatusCode::OK
        && wanted.conditions.not_modified(&meta.headers);
    let mut response = if not_modified {
        let mut response = Response::new(CacheBody::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        *response.headers_mut() = fields_of_304(&meta.headers);
        response
    } else {
        with_body(meta, from, len, wanted)
    };
    // RFC 9111 section 4: a response from the store carries its age.
    response.headers_mut().insert(AGE, HeaderValue::from(meta.age(now).as_secs()));
    response
}

fn with_body<B>(meta: &Meta, from: From, len: Option<u64>, wanted: &Wanted) -> Response<CacheBody<B>> {
    let part = len.map_or(Part::Whole, |len| wanted.ranged.part(meta.status, &meta.headers, len));
    let (status, body, length, range) = match (part, len) {
        (Part::Bytes(range), Some(len)) => {
            let left = range.end - range.start;
            let told = format!("bytes {}-{}/{len}", range.start, range.end - 1);
            // A range is a matter of GET, so there is a body.
            let body = match from {
                From::Store(stored) => CacheBody::stored(stored, range.start, left),
                From::Way { seat, wait } => CacheBody::shared_part(seat, range.start, left, wait),
            };
            (StatusCode::PARTIAL_CONTENT, body, Some(left), Some(told))
        }
        (Part::Unsatisfiable, Some(len)) => {
            let told = format!("bytes */{len}");
            (StatusCode::RANGE_NOT_SATISFIABLE, CacheBody::empty(), Some(0), Some(told))
        }
        _ => {
            let body = match from {
                _ if wanted.head => CacheBody::empty(),
                From::Store(stored) => CacheBody::stored(stored, 0, len.unwrap_or(0)),
                From::Way { seat, wait } => CacheBody::shared(seat, len, wait),
            };
            // RFC 9110 section 8.6: a 204 has no length.
            let told = wanted.head && meta.status != StatusCode::NO_CONTENT;
            (meta.status, body, len.filter(|_| told), None)
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    // A 416 has none of what describes the body.
    let all = status != StatusCode::RANGE_NOT_SATISFIABLE;
    *headers = if all { meta.headers.clone() } else { fields_of_304(&meta.headers) };
    if let Some(range) = range.and_then(|range| HeaderValue::try_from(range).ok()) {
        headers.insert(CONTENT_RANGE, range);
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        if let Some(length) = length {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
    } else if let Some(length) = length
        && !headers.contains_key(CONTENT_LENGTH)
    {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
}
