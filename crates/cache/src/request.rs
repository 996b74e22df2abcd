//! What a request is to the cache.

use std::sync::Arc;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri,
    header::{
        AUTHORIZATION, CONTENT_LENGTH, HOST, IF_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE,
        TRANSFER_ENCODING, UPGRADE,
    },
};
use http_body::Body;
use portcullis_conn::{ConnInfo, Interim};

use crate::{
    buf::Buf,
    directives::RequestDirectives,
    family::Form,
    key::{self, Secure},
    layer::Core,
    meta::Asked,
    rules::CacheRules,
    store::is_safe,
};

/// Fields with which a client can make some origins answer for another method or another path than the key says.
const OVERRIDES: [HeaderName; 5] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
    HeaderName::from_static("x-original-url"),
    HeaderName::from_static("x-rewrite-url"),
];

/// What a request is to the cache.
#[allow(clippy::large_enum_variant, reason = "the large one is the usual one, and lives for one call")]
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Nothing to do with it.
    Bypass,
    /// Of another method, and safe.
    Method,
    /// It may change what is stored for its URI (RFC 9111 section 4.4).
    Unsafe,
    /// GET or HEAD, to be looked up.
    Lookup {
        /// Where.
        key: Buf,
        /// What the request says about freshness.
        directives: RequestDirectives,
    },
}

/// Among a request's extensions: it is passed on, and its response is not stored. For who is asked for one thing under one URI and answers by
/// what the key does not have: the client's network, a field, the protocol.
#[derive(Clone, Copy, Debug)]
pub struct BypassCache;

/// Among a request's extensions: it counts as one with `Authorization` (RFC 9111 section 3.5), which somebody in front may have checked and
/// taken away.
#[derive(Clone, Copy, Debug)]
pub struct Authorized;

/// Among a request's extensions: whether the client speaks https, as somebody trusted in front told, who ended its TLS. It counts in place of the connection's, so that what goes to
/// `http` clients is not given to `https` ones where both come over one kind of connection. A URI with a scheme may have either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientSecure(pub bool);

/// Among a response's extensions: it says nothing of what was asked for, as the refusal of somebody between the cache and the origin. It is not stored,
/// whatever it or [`crate::CacheRules::ttl`] says, is given to nobody else, and leaves what is stored as it is. In place of a 500, 502, 503 or 504 what is stale may be given
/// out as ever (RFC 5861 section 4). A 304 counts as any other.
#[derive(Clone, Copy, Debug)]
pub struct NotForStore;

/// Among the extensions of a request that the cache makes on its own, to ask anew for what it has already given out stale (RFC 5861 section 3): no client
/// waits for its answer. The other extensions are those of the client's request that led to it. So what counts, logs or sends something ahead for that client, from behind
/// the cache, has to leave a request with this alone.
#[derive(Clone, Copy, Debug)]
pub struct InBackground;

pub(crate) fn classify<B: Body>(request: &Request<B>, core: &Core) -> Class {
    let method = request.method();
    if *method != Method::GET && *method != Method::HEAD {
        return match *method {
            // A tunnel is not a response.
            Method::CONNECT => Class::Bypass,
            _ if is_safe(method) => Class::Method,
            _ => Class::Unsafe,
        };
    }
    if request.extensions().get::<BypassCache>().is_some() {
        return Class::Bypass;
    }
    let headers = request.headers();
    // The other conditions are for the origin to answer (RFC 9111 section 4.3.2).
    let left_to_the_origin = [IF_MATCH, IF_UNMODIFIED_SINCE, UPGRADE, TRANSFER_ENCODING];
    if left_to_the_origin.iter().chain(&OVERRIDES).any(|name| headers.contains_key(name)) {
        return Class::Bypass;
    }
    // What a body of a GET means is up to the origin (RFC 9110 section 9.3.1), and it is in no key.
    let announced = headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    if announced || !request.body().is_end_stream() || passes_by(request, &core.rules) {
        return Class::Bypass;
    }
    let directives =
        if core.rules.obey_request { RequestDirectives::read(headers) } else { RequestDirectives::default() };
    if directives.no_store {
        return Class::Bypass;
    }
    match key_of(request, core) {
        Some(key) => Class::Lookup { key, directives },
        None => Class::Bypass,
    }
}

fn passes_by<B>(request: &Request<B>, rules: &CacheRules) -> bool {
    rules.bypass.iter().any(|bypass| bypass.matches(request.uri().path(), request.headers()))
}

/// What the keys of an unsafe request are made of, for when it turns out to be needed: most of it is shared with the request.
#[derive(Debug)]
pub(crate) struct Changed {
    uri: Uri,
    host: Option<HeaderValue>,
    secure: Secure,
}

impl Changed {
    /// `None` where there is no key: there is more than one `Host`.
    pub(crate) fn by<B>(request: &Request<B>) -> Option<Box<Self>> {
        let mut hosts = request.headers().get_all(HOST).iter();
        let host = hosts.next().cloned();
        let one = hosts.next().is_none();
        one.then(|| Box::new(Self { uri: request.uri().clone(), host, secure: secure(request) }))
    }

    /// The keys that the URI has in all layers over the store, each with a form that gives it.
    pub(crate) fn keys(self, core: &Core) -> Vec<(Buf, Arc<Form>)> {
        let headers: HeaderMap = self.host.map(|host| (HOST, host)).into_iter().collect();
        let mut keys: Vec<(Buf, Arc<Form>)> = Vec::new();
        for form in core.family.forms() {
            let scheme = core.shared.options.scheme.as_ref();
            if let Some(key) = key::of(self.secure, scheme, &self.uri, &headers, &form)
                && !keys.iter().any(|(known, _)| *known == key)
            {
                keys.push((key, form));
            }
        }
        keys
    }
}

fn secure<B>(request: &Request<B>) -> Secure {
    let extensions = request.extensions();
    Secure {
        connection: extensions.get::<Arc<ConnInfo>>().map(|info| info.is_secure()),
        told: extensions.get::<ClientSecure>().map(|told| told.0),
    }
}

fn key_of<B>(request: &Request<B>, core: &Core) -> Option<Buf> {
    let scheme = core.shared.options.scheme.as_ref();
    key::of(secure(request), scheme, request.uri(), request.headers(), &core.form)
}

/// Keeps what the response's `Vary` may ask for, while the request goes away.
pub(crate) fn asked<B>(request: &Request<B>) -> Asked {
    Asked { fields: request.headers().clone(), authorized: is_authorized(request) }
}

pub(crate) fn is_authorized<B>(request: &Request<B>) -> bool {
    request.headers().contains_key(AUTHORIZATION) || request.extensions().get::<Authorized>().is_some()
}

/// Makes a request for a part one for the whole.
pub(crate) fn ask_for_all<B>(request: &mut Request<B>) {
    request.headers_mut().remove(RANGE);
    request.headers_mut().remove(IF_RANGE);
}

/// A request for the same, for nobody: it has no body, as the first had none, and no conditions of a client.
pub(crate) fn again<B: Default>(request: &Request<B>) -> Request<B> {
    let mut again = Request::new(B::default());
    *again.method_mut() = Method::GET;
    *again.uri_mut() = request.uri().clone();
    *again.version_mut() = request.version();
    *again.headers_mut() = request.headers().clone();
    *again.extensions_mut() = request.extensions().clone();
    // What comes ahead of this response is for no client.
    again.extensions_mut().remove::<Interim>();
    again.extensions_mut().insert(InBackground);
    ask_for_all(&mut again);
    again
}
