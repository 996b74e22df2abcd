//! The question about a request.

use std::sync::LazyLock;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version,
    header::{
        ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_LOCATION,
        CONTENT_RANGE, CONTENT_TYPE, COOKIE, EXPECT, HOST, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH,
        IF_RANGE, IF_UNMODIFIED_SINCE, RANGE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS,
        SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TE, TRAILER, TRANSFER_ENCODING,
        UPGRADE,
    },
    uri::Scheme,
};

use super::ForwardAuthOptions;
use crate::identity::IdentityFields;

static X_ORIGINAL_METHOD: HeaderName = HeaderName::from_static("x-original-method");
static X_ORIGINAL_URI: HeaderName = HeaderName::from_static("x-original-uri");
static X_FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
static X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What is said in the question alone by us.
static OURS: LazyLock<IdentityFields> = LazyLock::new(|| {
    IdentityFields::new([
        &X_ORIGINAL_METHOD,
        &X_ORIGINAL_URI,
        &X_FORWARDED_METHOD,
        &X_FORWARDED_URI,
        &X_FORWARDED_HOST,
        &X_FORWARDED_PROTO,
        &X_FORWARDED_FOR,
        // other ways to say the same
        &HeaderName::from_static("x-original-url"),
        &HeaderName::from_static("x-rewrite-url"),
        &HeaderName::from_static("x-http-method-override"),
        &HeaderName::from_static("x-http-method"),
        &HeaderName::from_static("x-method-override"),
        &HeaderName::from_static("x-real-ip"),
        &HeaderName::from_static("forwarded"),
        // and the frame of a message in names that gateways take for it
        &CONTENT_LENGTH,
        &TRANSFER_ENCODING,
    ])
});

/// Of the connection (RFC 9110 section 7.6.1), of the body, and what an answer must not depend on. A compressed answer is of no use.
const LEFT_OUT: [HeaderName; 24] = [
    ACCEPT_ENCODING,
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_LANGUAGE,
    CONTENT_LOCATION,
    CONTENT_RANGE,
    CONTENT_TYPE,
    EXPECT,
    HOST,
    IF_MATCH,
    IF_MODIFIED_SINCE,
    IF_NONE_MATCH,
    IF_RANGE,
    IF_UNMODIFIED_SINCE,
    RANGE,
    SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION,
    TE,
    TRAILER,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// The question. It has the extensions that tell of the client, and no others.
pub(super) fn about<B, C: Default>(request: &Request<B>, options: &ForwardAuthOptions) -> Request<C> {
    let mut question = Request::new(C::default());
    *question.method_mut() = Method::GET;
    *question.version_mut() = Version::HTTP_11;
    let extensions = request.extensions();
    let info = crate::conn_info(extensions);
    if let Some(info) = info {
        question.extensions_mut().insert(std::sync::Arc::clone(info));
    }
    if let Some(client) = extensions.get::<crate::ClientIp>() {
        question.extensions_mut().insert(*client);
    }
    if let Some(told) = extensions.get::<crate::ClientSecure>() {
        question.extensions_mut().insert(*told);
    }
    let host = host(request);
    *question.uri_mut() = target(options, host.as_ref(), info.is_some_and(|info| info.is_secure()));
    let fields = question.headers_mut();
    *fields = kept(request.headers());
    let mut set = |name: &HeaderName, value: Option<HeaderValue>| {
        if let Some(value) = value {
            // the map has room: it has fewer fields than the request's, and these are seven
            let _ = fields.try_insert(name, value);
        }
    };
    let method = HeaderValue::from_str(crate::method_of(request).as_str()).ok();
    let uri = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let uri = HeaderValue::from_str(uri).ok();
    set(&X_ORIGINAL_METHOD, method.clone());
    set(&X_FORWARDED_METHOD, method);
    set(&X_ORIGINAL_URI, uri.clone());
    set(&X_FORWARDED_URI, uri);
    let proto = crate::client_secure(extensions).map(|is| if is { "https" } else { "http" });
    set(&X_FORWARDED_PROTO, proto.map(HeaderValue::from_static));
    let client = crate::client_ip(extensions);
    set(&X_FORWARDED_FOR, client.and_then(|client| HeaderValue::try_from(client.to_string()).ok()));
    set(&HOST, options.host.clone().or_else(|| host.clone()));
    set(&X_FORWARDED_HOST, host);
    question
}

/// The host that a request is for, whichever way its protocol says it.
fn host<B>(request: &Request<B>) -> Option<HeaderValue> {
    match request.uri().authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => request.headers().get(HOST).cloned(),
    }
}

/// In absolute form where there is a host, which is what clients and connectors of HTTP/2 want.
fn target(options: &ForwardAuthOptions, host: Option<&HeaderValue>, secure: bool) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(options.target.clone());
    let relative = || Uri::from(options.target.clone());
    let host = options.host.as_ref().or(host);
    let Some(authority) = host.and_then(|host| host.as_bytes().try_into().ok()) else { return relative() };
    parts.authority = Some(authority);
    parts.scheme = Some(if secure { Scheme::HTTPS } else { Scheme::HTTP });
    Uri::from_parts(parts).unwrap_or_else(|_| relative())
}

fn kept(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<&[u8]> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .collect();
    let is_named =
        |name: &HeaderName| named.iter().any(|own| own.eq_ignore_ascii_case(name.as_str().as_bytes()));
    let mut kept = HeaderMap::with_capacity(headers.keys_len());
    for (name, value) in headers {
        let proxys =
            matches!(name.as_str(), "proxy-connection" | "proxy-authorization" | "proxy" | "http2-settings");
        if !proxys && !LEFT_OUT.contains(name) && !is_named(name) && !OURS.covers(name) {
            let _ = kept.try_append(name, value.clone());
        }
    }
    join_cookies(&mut kept);
    kept
}

/// A client of HTTP/2 or HTTP/3 may send its cookies as several lines. The question is one of HTTP/1.1, where they are one (RFC 9113 section
/// 8.2.3, RFC 9114 section 4.2.1), or a service may look at the first alone.
fn join_cookies(fields: &mut HeaderMap) {
    let lines = fields.get_all(COOKIE);
    if lines.iter().nth(1).is_none() {
        return;
    }
    let joined = lines.iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
    let sensitive = lines.iter().any(HeaderValue::is_sensitive);
    let mut joined =
        HeaderValue::from_bytes(&joined).expect("field values and separators make a field value");
    joined.set_sensitive(sensitive);
    fields.insert(COOKIE, joined);
}
