//! Stale responses, given out while they are asked for anew and when the origin fails.

use std::{
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
    task::Poll,
    time::Duration,
};

use http::{Method, StatusCode};
use portcullis_cache::{CacheRules, InBackground, Purge, StatusTtl};
use tower::ServiceExt as _;

use crate::{
    collapsing::{self, Origin, poll, whole},
    world::{Got, World, get, https, reply, settle},
};

/// Stale at once.
const STALE: (&str, &str) = ("age", "60");

/// How long it is stale counts by the real clock, of which some seconds may pass.
fn just_stale(got: &Got) -> String {
    (1..20).rev().fold(got.cache_status().to_owned(), |status, passed| {
        status.replace(&format!("ttl=-{passed}; "), "ttl=0; ")
    })
}

#[tokio::test]
async fn while_it_is_asked_for_anew() {
    let rules = CacheRules::default().with_stale_while_revalidate(Duration::from_secs(30));
    for (cc, by_rule) in [("max-age=60, stale-while-revalidate=30", false), ("max-age=60", true)] {
        let rules = if by_rule { rules.clone() } else { CacheRules::default() };
        let world = World::ruled(rules, move |n, _| {
            let fields = [("cache-control", cc), ("etag", "\"a\""), STALE];
            reply(200, if n == 0 { &fields } else { &fields[..2] }, &format!("body {n}"))
        });
        world.get("/").await;
        let stale = world.send(get("/", &[("range", "bytes=0-3"), ("x-id", "1")])).await;
        assert_eq!((stale.body.as_str(), stale.status.as_u16()), ("body", 206));
        assert!(just_stale(&stale).starts_with("hit; ttl=0; detail=stale-while-revalidate"), "{stale:?}");
        assert!(stale.is_aged(60), "{stale:?}");
        settle().await;
        assert_eq!(world.calls(), 2, "asked once, without waiting");
        let asked = world.last();
        assert_eq!(
            (&asked["if-none-match"], &asked["x-id"]),
            (&"\"a\"".parse().unwrap(), &"1".parse().unwrap())
        );
        assert!(!asked.contains_key("range"), "for the whole");
        let marked = |n: usize| world.seen.lock().unwrap()[n].extensions.get::<InBackground>().is_some();
        assert_eq!((marked(0), marked(1)), (false, true));
        let fresh = world.get("/").await;
        assert!(fresh.is_hit() && fresh.body == "body 1" && fresh.is_aged(0), "{fresh:?}");
        assert_eq!((world.stats().stale, world.stats().stored), (1, 2));
    }
}

#[tokio::test]
async fn one_asks_for_all() {
    let world = World::ruled(CacheRules::default(), |n, _| {
        let fields = [("cache-control", "max-age=60, stale-while-revalidate=30"), STALE];
        reply(200, if n == 0 { &fields } else { &fields[..1] }, &format!("body {n}"))
    });
    world.get("/").await;
    for _ in 0..10 {
        assert_eq!(world.get("/").await.body, "body 0");
    }
    settle().await;
    assert_eq!((world.calls(), world.get("/").await.body.as_str()), (2, "body 1"));
}

#[tokio::test]
async fn a_304_in_the_background_makes_it_fresh() {
    let world = World::new(|n, _| {
        let fields = [("cache-control", "max-age=60, stale-while-revalidate=30"), ("etag", "\"a\""), STALE];
        if n == 0 { reply(200, &fields, "body") } else { reply(304, &fields[..2], "") }
    });
    world.get("/").await;
    assert_eq!(world.get("/").await.body, "body");
    settle().await;
    let fresh = world.get("/").await;
    assert!(fresh.is_hit() && fresh.is_aged(0), "{fresh:?}");
    assert_eq!(world.stats().revalidated, 1);
}

/// What the origin says in the background is no answer to anybody, and is not counted as one.
#[tokio::test]
async fn a_failure_in_the_background_is_no_answer() {
    let world = World::new(|n, _| {
        let cc = "max-age=60, stale-while-revalidate=30, stale-if-error=30";
        let fields = [("cache-control", cc), ("etag", "\"a\""), STALE];
        if n == 0 { reply(200, &fields, "body") } else { reply(503, &[], "") }
    });
    world.get("/").await;
    assert_eq!(world.get("/").await.body, "body");
    settle().await;
    assert_eq!((world.calls(), world.stats().stale, world.stats().misses), (2, 1, 1));
}

/// The service that was made ready may hold the only place, so that a clone would wait for it.
#[tokio::test(start_paused = true)]
async fn what_is_ready_is_used() {
    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::{BodyExt, Empty, Full};
    use portcullis_cache::CacheLayer;
    use std::sync::atomic::AtomicUsize;
    use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimit};

    let calls = Arc::new(AtomicUsize::new(0));
    let inner = tower::service_fn({
        let calls = Arc::clone(&calls);
        move |request: Request<Empty<Bytes>>| {
            calls.fetch_add(1, Ordering::Relaxed);
            async move {
                if request.uri().path() == "/never" {
                    std::future::pending::<()>().await;
                }
                let cc = "max-age=60, stale-while-revalidate=30";
                let response = Response::builder().header("cache-control", cc).header("age", "60");
                Ok::<_, std::convert::Infallible>(response.body(Full::<Bytes>::from("body")).unwrap())
            }
        }
    });
    let ask = |path: &str| Request::builder().uri(path).header("host", "a").body(Empty::new()).unwrap();
    let mut cache = CacheLayer::new(crate::world::https()).layer(ConcurrencyLimit::new(inner, 2));
    let never = tokio::spawn(cache.ready().await.unwrap().call(ask("/never")));
    // One place is left.
    for _ in 0..2 {
        let response = cache.ready().await.unwrap().call(ask("/")).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "body");
    }
    settle().await;
    assert_eq!(calls.load(Ordering::Relaxed), 3, "it was asked anew");
    let alone = cache.ready().await.unwrap().call(ask("/never"));
    let alone = tokio::spawn(alone);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(calls.load(Ordering::Relaxed), 4, "it waited for the first, and then went alone");
    never.abort();
    alone.abort();
}

#[tokio::test]
async fn when_the_origin_fails() {
    let rules = CacheRules::default().with_stale_if_error(Duration::from_secs(30));
    for (cc, by_rule, status, stale) in [
        ("max-age=60, stale-if-error=30", false, 503, true),
        ("max-age=60", true, 500, true),
        ("max-age=60", true, 502, true),
        ("max-age=60", true, 504, true),
        ("max-age=60", true, 404, false),
        ("max-age=60", true, 501, false),
        ("max-age=60", false, 503, false),
        ("max-age=60, must-revalidate", true, 503, false),
        ("max-age=60, proxy-revalidate", true, 503, false),
        ("s-maxage=60", true, 503, false),
        ("max-age=60, no-cache", true, 503, false),
        ("max-age=59, stale-if-error=1", false, 503, false),
    ] {
        for method in [Method::GET, Method::HEAD] {
            let rules = if by_rule { rules.clone() } else { CacheRules::default() };
            let world = World::ruled(rules, move |n, _| match n {
                0 => reply(200, &[("cache-control", cc), ("etag", "\"a\""), STALE], "body"),
                _ => reply(status, &[], "broken"),
            });
            world.get("/").await;
            let mut request = get("/", &[]);
            *request.method_mut() = method.clone();
            let got = world.send(request).await;
            let name = format!("{method} {cc} {status}");
            assert_eq!(got.status == StatusCode::OK, stale, "{name}");
            if stale {
                let want = format!("fwd=stale; fwd-status={status}; ttl=0; detail=stale-if-error");
                assert_eq!(just_stale(&got), want, "{name}");
                assert_eq!(got.body, if method == Method::GET { "body" } else { "" });
                assert_eq!(world.stats().stale, 1);
            }
        }
    }
}

#[tokio::test]
async fn when_the_origin_gives_no_answer_at_all() {
    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::{BodyExt, Empty, Full};
    use portcullis_cache::CacheLayer;
    use tower::{Layer, Service, ServiceExt};

    let down = Arc::new(AtomicBool::new(false));
    let inner = tower::service_fn({
        let down = Arc::clone(&down);
        move |_: Request<Empty<Bytes>>| {
            let result = if down.load(Ordering::Relaxed) {
                Err("down")
            } else {
                let response = Response::builder().header("cache-control", "max-age=60, stale-if-error=9");
                Ok(response.header("age", "60").body(Full::<Bytes>::from("body")).unwrap())
            };
            std::future::ready(result)
        }
    });
    let mut cache = CacheLayer::new(crate::world::https()).layer(inner);
    let ask = |path: &str| Request::builder().uri(path).header("host", "a").body(Empty::new()).unwrap();
    let first = cache.ready().await.unwrap().call(ask("/")).await.unwrap();
    first.into_body().collect().await.unwrap();
    down.store(true, Ordering::Relaxed);
    let stale = cache.ready().await.unwrap().call(ask("/")).await.unwrap();
    assert_eq!(stale.into_body().collect().await.unwrap().to_bytes(), "body");
    assert_eq!(cache.ready().await.unwrap().call(ask("/other")).await.unwrap_err(), "down");
}

#[tokio::test]
async fn a_client_may_take_it_stale() {
    let world = World::counting(&[("cache-control", "max-age=60"), STALE]);
    world.get("/").await;
    assert!(!world.get("/").await.is_hit(), "it is not stored, since nothing could be done with it");
    let world = World::counting(&[("cache-control", "max-age=60"), ("etag", "\"a\""), STALE]);
    world.get("/").await;
    let got = world.send(get("/", &[("cache-control", "max-stale=10")])).await;
    assert_eq!(just_stale(&got), "hit; ttl=0; detail=max-stale");
    assert_eq!(world.calls(), 1);
}

/// RFC 9111 section 4.3.5.
#[tokio::test]
async fn head_refreshes_what_is_stored() {
    for (fields, refreshed) in [
        (&[("cache-control", "max-age=60"), ("etag", "\"a\""), ("x-new", "1")][..], true),
        (&[("cache-control", "max-age=60"), ("etag", "\"a\""), ("content-length", "6")], false),
        (&[("cache-control", "max-age=60"), ("etag", "\"b\"")], false),
        (&[("cache-control", "private"), ("etag", "\"a\"")], false),
    ] {
        let world = World::new(move |n, request| {
            let first = [("cache-control", "max-age=60"), ("etag", "\"a\""), ("content-length", "4"), STALE];
            match (n, request.method == Method::HEAD) {
                (0, _) => reply(200, &first, "body"),
                (_, true) => reply(200, fields, ""),
                _ => reply(200, &[], "other"),
            }
        });
        world.get("/").await;
        let mut head = get("/", &[]);
        *head.method_mut() = Method::HEAD;
        assert_eq!(world.send(head).await.cache_status(), "fwd=stale");
        let got = world.get("/").await;
        assert_eq!(got.is_hit(), refreshed, "{fields:?} {got:?}");
        assert_eq!(got.body, if refreshed { "body" } else { "other" });
        assert_eq!(got.field("x-new").is_empty(), !refreshed);
    }
}

/// A HEAD that says nothing of what is stored does not prolong it (RFC 9111 section 4.3.5).
#[tokio::test]
async fn head_without_validators_refreshes_nothing() {
    let gone = StatusTtl { statuses: 404..=404, ttl: Duration::from_secs(60), overrides: false };
    type Fields = &'static [(&'static str, &'static str)];
    const CC: (&str, &str) = ("cache-control", "max-age=60, stale-if-error=60");
    let cases: [(u16, Fields, Fields); 6] = [
        (200, &[CC, STALE], &[CC]),
        (200, &[CC, STALE, ("content-length", "4")], &[CC, ("content-length", "4")]),
        (200, &[CC, STALE, ("etag", "\"a\"")], &[CC]),
        (200, &[CC, STALE, ("etag", "\"a\"")], &[CC, ("etag", "\"a\""), ("content-length", "5")]),
        (404, &[CC, STALE], &[]),
        (404, &[CC, STALE, ("etag", "\"a\"")], &[CC, ("etag", "\"a\"")]),
    ];
    for (status, first, head) in cases {
        let world = World::ruled(CacheRules::default().with_ttl([gone.clone()]), move |n, request| {
            match (n, request.method == Method::HEAD) {
                (0, _) => reply(status, first, "body"),
                (_, true) => reply(status, head, ""),
                _ => reply(200, &[], "other"),
            }
        });
        world.get("/").await;
        let mut request = get("/", &[]);
        *request.method_mut() = Method::HEAD;
        assert_eq!(world.send(request).await.cache_status(), "fwd=stale");
        assert_eq!(world.get("/").await.body, "other", "{status} {first:?} {head:?}");
    }
}

/// What was purged for good while it was asked about is not what is given out when that fails.
#[tokio::test]
async fn what_was_purged_is_no_spare() {
    for (how, given) in [(Purge::Hard, false), (Purge::Soft, true)] {
        let mut origin = Origin::new(CacheRules::default());
        let cache = origin.cache.clone();
        let ask = |method: Method, fields: &[_]| {
            let mut request = get("/", fields);
            *request.method_mut() = method;
            Box::pin(cache.clone().oneshot(request))
        };
        let mut first = ask(Method::GET, &[]);
        assert!(poll!(&mut first).is_pending());
        let fields = [("cache-control", "max-age=60, stale-if-error=600"), ("etag", "\"a\""), STALE];
        origin.came().unwrap().send(collapsing::reply(200, &fields).0).ok().unwrap();
        whole(first.await.unwrap()).await.unwrap();
        let mut asked = [
            ask(Method::GET, &[]),
            ask(Method::GET, &[]),
            ask(Method::HEAD, &[]),
            ask(Method::GET, &[("range", "bytes=0-0")]),
        ];
        for one in &mut asked {
            assert!(poll!(one).is_pending());
        }
        let answers = [(); 3].map(|()| origin.came().unwrap());
        assert!(origin.came().is_none(), "the second follows");
        assert_eq!(origin.layer.purge_all(how), 1);
        for answer in answers {
            answer.send(collapsing::reply(503, &[]).0).ok().unwrap();
        }
        let [leader, mut follower, head, range] = asked;
        for response in [leader, head, range] {
            assert_eq!(response.await.unwrap().status() != 503, given, "{how:?}");
        }
        assert_eq!(poll!(&mut follower).is_ready(), given, "{how:?}");
        assert_eq!(origin.came().is_none(), given, "it asks for itself");
    }
}

/// Who is one too many gets it stale, and the next who comes asks for it.
#[tokio::test]
async fn what_is_asked_for_at_one_time_is_bounded() {
    let world = World::with(https().with_max_background(1), |n, _| {
        let fields = [("cache-control", "max-age=60, stale-while-revalidate=600"), STALE];
        reply(200, if n < 2 { &fields } else { &fields[..1] }, &format!("body {n}"))
    });
    for path in ["/a", "/b", "/a", "/b", "/a", "/b"] {
        world.get(path).await;
    }
    settle().await;
    assert_eq!(world.calls(), 3);
    assert_eq!((world.get("/a").await.body, world.get("/b").await.body), ("body 2".into(), "body 1".into()));
    settle().await;
    assert_eq!((world.calls(), world.get("/b").await.body.as_str()), (4, "body 3"));
}

/// What turned out too large is not read for nobody.
#[tokio::test]
async fn what_is_not_stored_is_not_read_on() {
    let mut origin = Origin::new(CacheRules::default().with_max_object_bytes(10));
    let fields = [("cache-control", "max-age=60, stale-while-revalidate=600"), STALE];
    let mut first = Box::pin(origin.cache.clone().oneshot(get("/", &[])));
    assert!(poll!(&mut first).is_pending());
    origin.came().unwrap().send(collapsing::reply(200, &fields).0).ok().unwrap();
    whole(first.await.unwrap()).await.unwrap();
    whole(origin.ask(&[]).await).await.unwrap();
    settle().await;
    let (response, body) = collapsing::reply(200, &fields);
    origin.came().unwrap().send(response).ok().unwrap();
    for closed in [false, true] {
        body.try_send(collapsing::data("12345678")).unwrap();
        settle().await;
        assert_eq!(body.is_closed(), closed);
    }
}
