//! What a request is to the cache.

use std::sync::Arc;

use http::{
    HeaderName, Method, Request,
    header::{
        AUTHORIZATION, CONTENT_LENGTH, IF_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE, TRANSFER_ENCODING,
        UPGRADE,
    },
};
use http_body::Body;
use portcullis_conn::ConnInfo;

use crate::{directives::RequestDirectives, key, options::CacheOptions, rules::Selecting, store::is_safe};

/// Fields with which a client can make some origins answer for another method or another path than the key says.
const OVERRIDES: [HeaderName; 5] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
    HeaderName::from_static("x-original-url"),
    HeaderName::from_static("x-rewrite-url"),
];

/// What a request is to the cache.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Nothing to do with it.
    Bypass,
    /// Of another method, and safe.
    Method,
    /// It may change what is stored under this key (RFC 9111 section 4.4).
    Unsafe(Option<String>),
    /// GET or HEAD, to be looked up.
    Lookup {
        /// Where.
        key: String,
        /// Whether only the fields are asked for.
        head: bool,
        /// What the request says about freshness.
        directives: RequestDirectives,
    },
}

/// Among a request's extensions: it is passed on, and its response is not stored. For who is asked for one thing under one URI and answers by
/// what the key does not have: the client's network, a field, the protocol.
#[derive(Clone, Copy, Debug)]
pub struct BypassCache;

pub(crate) fn classify<B: Body>(request: &Request<B>, options: &CacheOptions) -> Class {
    let method = request.method();
    let head = *method == Method::HEAD;
    if *method != Method::GET && !head {
        return match *method {
            // A tunnel is not a response.
            Method::CONNECT => Class::Bypass,
            _ if is_safe(method) => Class::Method,
            _ => Class::Unsafe(key_of(request, options)),
        };
    }
    if request.extensions().get::<BypassCache>().is_some() {
        return Class::Bypass;
    }
    let headers = request.headers();
    // Ranges are for the origin to answer; the other conditions are too (RFC 9111 section 4.3.2).
    let left_to_the_origin = [RANGE, IF_RANGE, IF_MATCH, IF_UNMODIFIED_SINCE, UPGRADE, TRANSFER_ENCODING];
    if left_to_the_origin.iter().chain(&OVERRIDES).any(|name| headers.contains_key(name)) {
        return Class::Bypass;
    }
    // What a body of a GET means is up to the origin (RFC 9110 section 9.3.1), and it is in no key.
    let announced = headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    if announced || !request.body().is_end_stream() {
        return Class::Bypass;
    }
    let directives = RequestDirectives::read(headers);
    if directives.no_store {
        return Class::Bypass;
    }
    match key_of(request, options) {
        Some(key) => Class::Lookup { key, head, directives },
        None => Class::Bypass,
    }
}

fn key_of<B>(request: &Request<B>, options: &CacheOptions) -> Option<String> {
    let secure = request.extensions().get::<Arc<ConnInfo>>().map(|info| info.is_secure());
    key::of(secure, options.scheme.as_ref(), request.uri(), request.headers())
}

/// Keeps what the response's `Vary` may ask for, while the request goes away.
pub(crate) fn selecting<B>(request: &Request<B>) -> Selecting {
    let headers = request.headers();
    Selecting {
        fields: headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        authorized: headers.contains_key(AUTHORIZATION),
    }
}
