//! Who may have a response that was made for another, while it is on its way.

use std::{task::Poll, time::Duration};

use futures_util::future::join_all;
use http::Response;
use portcullis_cache::{CacheBody, CacheRules, NotForStore, StatusTtl};
use tower::ServiceExt;

use crate::{
    collapsing::{Channel, Origin, data, poll, reply, status, whole},
    world::get,
};

/// Two users at once, whose responses are stored to be validated for each request: each gets his own.
#[tokio::test]
async fn what_needs_validation_is_asked_for_by_each() {
    for cc in
        ["no-cache", "max-age=0", "max-age=0, stale-while-revalidate=60", "public, no-cache, max-age=60"]
    {
        let mut origin = Origin::new(CacheRules::default());
        let cache = origin.cache.clone();
        let ask = |cookie: &str| Box::pin(cache.clone().oneshot(get("/", &[("cookie", cookie)])));
        let mut asked = [ask("id=1"), ask("id=2"), ask("id=3")];
        for one in &mut asked {
            assert!(poll!(one).is_pending());
        }
        let first = origin.came_from().unwrap();
        assert!(origin.came_from().is_none(), "nobody knows yet: {cc}");
        let answer = |(cookie, answer): (String, crate::collapsing::Answer)| {
            let (response, body) = reply(200, &[("cache-control", cc), ("etag", "\"a\"")]);
            answer.send(response).ok().unwrap();
            body.try_send(data(&cookie)).unwrap();
        };
        answer(first);
        let [first, second, third] = asked;
        let first = first.await.unwrap();
        let mut others = [second, third];
        for one in &mut others {
            assert!(poll!(one).is_pending(), "{cc}");
        }
        // One that comes while the first streams has no part in it either.
        let mut late = ask("id=4");
        assert!(poll!(&mut late).is_pending(), "{cc}");
        for n in 0..3 {
            answer(origin.came_from().unwrap_or_else(|| panic!("{cc}: {n}")));
        }
        let [second, third] = others;
        let responses = [Ok(first), second.await, third.await, late.await];
        let bodies = join_all(responses.into_iter().map(|response| whole(response.unwrap()))).await;
        let bodies: Vec<_> = bodies.into_iter().map(Result::unwrap).collect();
        assert_eq!(bodies, ["id=1", "id=2", "id=3", "id=4"], "{cc}");
        assert_eq!(origin.layer.stats().collapsed, 0, "{cc}");
    }
}

/// What a request asks for holds for a response on its way as for a stored one.
#[tokio::test]
async fn who_asks_for_newer_goes_alone() {
    for (wish, alone) in [
        ("no-cache", true),
        ("max-age=5", true),
        ("min-fresh=55", true),
        ("max-age=20", false),
        ("min-fresh=45", false),
    ] {
        let mut origin = Origin::new(CacheRules::default());
        let cache = origin.cache.clone();
        let mut first = Box::pin(cache.clone().oneshot(get("/", &[])));
        let mut second = Box::pin(cache.clone().oneshot(get("/", &[("cache-control", wish)])));
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
        let (response, body) = reply(200, &[("cache-control", "max-age=60"), ("age", "10")]);
        origin.came().unwrap().send(response).ok().unwrap();
        body.try_send(data("x")).unwrap();
        let _first = first.await.unwrap();
        let answered: Poll<Result<Response<CacheBody<Channel>>, _>> = poll!(&mut second);
        assert_eq!((answered.is_pending(), origin.came().is_some()), (alone, alone), "{wish}");
        if let Poll::Ready(response) = answered {
            assert!(status(&response.unwrap()).ends_with("collapsed"), "{wish}");
        }
    }
}

/// The origin failed, and what is stale goes to those that take it.
#[tokio::test]
async fn what_is_stale_goes_to_who_takes_it() {
    for (wish, alone) in [("max-stale=5", false), ("min-fresh=1", true), ("max-age=70", true)] {
        let mut origin = Origin::new(CacheRules::default());
        let cache = origin.cache.clone();
        let ask = |wish: &str| Box::pin(cache.clone().oneshot(get("/", &[("cache-control", wish)])));
        let mut first = ask("x");
        assert!(poll!(&mut first).is_pending());
        let fields = [("cache-control", "max-age=60, stale-if-error=60"), ("etag", "\"a\""), ("age", "66")];
        let (response, body) = reply(200, &fields);
        origin.came().unwrap().send(response).ok().unwrap();
        drop(body);
        whole(first.await.unwrap()).await.unwrap();
        let (mut first, mut second) = (ask("x"), ask(wish));
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
        origin.came().unwrap().send(reply(503, &[]).0).ok().unwrap();
        assert!(status(&first.await.unwrap()).contains("stale-if-error"));
        assert_eq!((poll!(&mut second).is_pending(), origin.came().is_some()), (alone, alone), "{wish}");
    }
}

/// Once it is stale nobody joins any more, though it is still on its way.
#[tokio::test]
async fn nobody_joins_what_became_stale() {
    let mut origin = Origin::new(CacheRules::default());
    let cache = origin.cache.clone();
    let mut first = Box::pin(cache.clone().oneshot(get("/", &[])));
    assert!(poll!(&mut first).is_pending());
    let (response, _body) = reply(200, &[("cache-control", "max-age=1")]);
    origin.came().unwrap().send(response).ok().unwrap();
    let _first = first.await.unwrap();
    assert!(status(&origin.ask(&[]).await).ends_with("collapsed"));
    // Ages count by the real clock.
    let start = std::time::Instant::now();
    while start.elapsed() < std::time::Duration::from_millis(1010) {
        std::thread::park_timeout(std::time::Duration::from_millis(100));
    }
    let mut late = Box::pin(cache.clone().oneshot(get("/", &[])));
    assert!(poll!(&mut late).is_pending() && origin.came().is_some());
}

/// A refusal on the way to the origin, that rules would store: it is for one request, and the next goes on.
#[tokio::test]
async fn what_is_not_for_the_store_is_for_one() {
    let ttl = StatusTtl { statuses: 503..=503, ttl: Duration::from_secs(60), overrides: true };
    for refused in [false, true] {
        let mut origin = Origin::new(CacheRules::default().with_ttl([ttl.clone()]));
        let cache = origin.cache.clone();
        let ask = || Box::pin(cache.clone().oneshot(get("/", &[])));
        let (mut first, mut second) = (ask(), ask());
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
        let (mut response, body) = reply(503, &[]);
        if refused {
            response.extensions_mut().insert(NotForStore);
        }
        origin.came().unwrap().send(response).ok().unwrap();
        drop(body);
        whole(first.await.unwrap()).await.unwrap();
        assert_eq!((poll!(&mut second).is_pending(), origin.came().is_some()), (refused, refused));
        assert_eq!(origin.layer.stats().stored, u64::from(!refused));
        drop(second);
        // It says nothing of whether waiting is of use.
        let (mut third, mut fourth) = (ask(), ask());
        assert_eq!((poll!(&mut third).is_pending(), poll!(&mut fourth).is_pending()), (refused, refused));
        assert_eq!((origin.came().is_some(), origin.came().is_some()), (refused, false));
    }
}
