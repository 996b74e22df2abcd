//! What passes by, and what must never meet.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{Empty, Full};
use portcullis_cache::{CacheLayer, CacheOptions, ClientSecure};
use portcullis_conn::{ConnInfo, TlsInfo};
use tower::{Layer, Service};

use crate::world::{FRESH, World, get, reply, request};

/// Two requests that must not share an answer, however alike they look.
#[tokio::test]
async fn nothing_crosses() {
    let tls = |secure: bool| {
        let mut info = portcullis_testkit::conn(()).info;
        if secure {
            info = info.with_tls(TlsInfo::default());
        }
        Arc::new(info)
    };
    let with = |secure, uri: &str, fields: &[(&'static str, &str)]| {
        let mut request = request(Method::GET, uri, fields);
        request.extensions_mut().insert::<Arc<ConnInfo>>(tls(secure));
        request
    };
    let base = || with(true, "/x", &[("host", "a")]);
    for (name, other) in [
        ("host", with(true, "/x", &[("host", "b")])),
        ("scheme", with(false, "/x", &[("host", "a")])),
        ("port", with(true, "/x", &[("host", "a:8443")])),
        ("port of the other scheme", with(true, "/x", &[("host", "a:80")])),
        ("path", with(true, "/X", &[("host", "a")])),
        ("encoded path", with(true, "/%78", &[("host", "a")])),
        ("dots", with(true, "/./x", &[("host", "a")])),
        ("query", with(true, "/x?", &[("host", "a")])),
        ("two hosts", with(true, "/x", &[("host", "a"), ("host", "b")])),
        ("host and authority", with(true, "https://a/x", &[("host", "b")])),
        ("authority and host", with(true, "https://b/x", &[("host", "a")])),
        ("scheme and connection", with(true, "http://a/x", &[("host", "a")])),
        ("user", with(true, "/x", &[("host", "b@a")])),
        ("no host", with(true, "/x", &[])),
        ("method override", with(true, "/x", &[("host", "a"), ("x-http-method-override", "POST")])),
        ("other URL", with(true, "/x", &[("host", "a"), ("x-original-url", "/admin")])),
        ("rewritten URL", with(true, "/x", &[("host", "a"), ("x-rewrite-url", "/admin")])),
        ("fat GET", base().map(|_| Full::from("x"))),
        ("announced body", with(true, "/x", &[("host", "a"), ("content-length", "5")])),
        ("chunked body", with(true, "/x", &[("host", "a"), ("transfer-encoding", "chunked")])),
        ("upgrade", with(true, "/x", &[("host", "a"), ("upgrade", "websocket")])),
    ] {
        for other_first in [false, true] {
            let world = World::with(CacheOptions::default(), |n, _| reply(200, FRESH, &format!("body {n}")));
            let (first, second) = if other_first { (other.clone(), base()) } else { (base(), other.clone()) };
            world.send(first).await;
            let got = world.send(second).await;
            assert_eq!(got.body, "body 1", "{name}, {other_first}: {got:?}");
            assert!(world.send(base()).await.is_hit(), "{name}");
        }
    }
}

/// Behind one that ends TLS for its clients all come over one kind of connection.
#[tokio::test]
async fn who_speaks_https_in_front_is_kept_apart() {
    let world = World::with(CacheOptions::default(), |n, _| reply(200, FRESH, &format!("body {n}")));
    let ask = |method: Method, secure: bool| {
        let mut request = request(method, "/x", &[("host", "a")]);
        let info = portcullis_testkit::conn(()).info;
        request.extensions_mut().insert::<Arc<ConnInfo>>(Arc::new(info));
        request.extensions_mut().insert(ClientSecure(secure));
        request
    };
    for (n, secure) in [true, false].into_iter().enumerate() {
        for _ in 0..2 {
            assert_eq!(world.send(ask(Method::GET, secure)).await.body, format!("body {n}"));
        }
    }
    world.send(ask(Method::POST, true)).await;
    let hits = [world.send(ask(Method::GET, true)).await, world.send(ask(Method::GET, false)).await];
    assert_eq!(hits.map(|got| got.is_hit()), [false, true], "what was changed is what was told");
}

#[tokio::test]
async fn the_same_origin_in_other_words_is_the_same() {
    let world = World::counting(FRESH);
    world.send(request(Method::GET, "/x", &[("host", "a.example.com")])).await;
    for (uri, fields) in [
        ("/x", &[("host", "A.Example.COM:443")][..]),
        ("https://a.example.com/x", &[]),
        ("https://A.example.com:443/x", &[("host", "a.example.com")]),
    ] {
        assert!(world.send(request(Method::GET, uri, fields)).await.is_hit(), "{uri}");
    }
}

#[tokio::test]
async fn without_a_scheme_requests_pass_by() {
    let world = World::with(CacheOptions::default(), |_, _| reply(200, FRESH, "x"));
    for _ in 0..2 {
        assert_eq!(world.get("/").await.cache_status(), "fwd=bypass");
    }
    assert_eq!(world.calls(), 2);
}

#[tokio::test]
async fn errors_and_other_methods_pass() {
    let world = World::counting(FRESH);
    for method in [Method::OPTIONS, Method::TRACE, Method::CONNECT, Method::POST] {
        let mut request = get("/", &[]);
        *request.method_mut() = method;
        let body = world.start(request).await.into_body();
        assert!(!body.is_stored());
    }
    assert_eq!(world.stats().bypassed, 4);
    assert_eq!(world.stats().stored, 0);
}

#[test]
fn the_future_can_be_sent() {
    fn is_send<T: Send>(_: &T) {}
    let inner = tower::service_fn(|_: Request<Empty<Bytes>>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let mut cache = CacheLayer::new(CacheOptions::default()).layer(inner);
    is_send(&cache.call(Request::new(Empty::new())));
}
