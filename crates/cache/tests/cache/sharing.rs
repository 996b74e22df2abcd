//! Who may have a response that was made for another, while it is on its way.

use std::{task::Poll, time::Duration};

use futures_util::future::join_all;
use http::{Response, StatusCode};
use portcullis_cache::{CacheBody, CacheRules, NotForStore, StatusTtl};
use tower::ServiceExt;

use crate::{
    collapsing::{Channel, Origin, data, poll, reply, status, whole},
    world::{FRESH, get},
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
    // Ages count by the real clock.
    let start = std::time::Instant::now();
    let (response, _body) = reply(200, &[("cache-control", "max-age=1")]);
    origin.came().unwrap().send(response).ok().unwrap();
    let _first = first.await.unwrap();
    let mut second = Box::pin(cache.clone().oneshot(get("/", &[])));
    let second: Poll<Result<Response<CacheBody<Channel>>, _>> = poll!(&mut second);
    match second {
        Poll::Ready(response) => assert!(status(&response.unwrap()).ends_with("collapsed")),
        Poll::Pending => assert!(start.elapsed() >= Duration::from_secs(1), "it was fresh"),
    }
    while start.elapsed() < Duration::from_millis(1010) {
        std::thread::park_timeout(Duration::from_millis(100));
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

/// What is for one client alone because of what he sent does not keep others from sharing.
#[tokio::test]
async fn what_one_client_sends_keeps_nobody_from_sharing() {
    let long = "en,".repeat(2000);
    let vary = &[("cache-control", "max-age=60"), ("vary", "accept-language")];
    for (sent, code, fields) in [
        (("authorization", "x"), 200, FRESH),
        (("authorization", "x"), 401, &[]),
        (("accept-language", long.as_str()), 200, vary),
        (("cookie", long.as_str()), 400, &[]),
        (("x-a", "1"), 429, &[]),
    ] {
        let mut origin = Origin::new(CacheRules::default());
        let cache = origin.cache.clone();
        let ask = |fields: &[_]| Box::pin(cache.clone().oneshot(get("/", fields)));
        let mut first = ask(&[sent]);
        assert!(poll!(&mut first).is_pending());
        let (response, body) = reply(code, fields);
        origin.came().unwrap().send(response).ok().unwrap();
        drop(body);
        whole(first.await.unwrap()).await.unwrap();
        let (mut second, mut third) = (ask(&[]), ask(&[]));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        assert!(origin.came().is_some() && origin.came().is_none(), "{code} for {}", sent.0);
    }
}

/// The first sent too much to tell his response from others: of those that waited for it one asks for all.
#[tokio::test]
async fn who_waited_for_what_selects_nothing_shares() {
    let mut origin = Origin::new(CacheRules::default());
    let cache = origin.cache.clone();
    let long = "en,".repeat(2000);
    let mut first = Box::pin(cache.clone().oneshot(get("/", &[("accept-language", &long)])));
    let mut others: Vec<_> = (0..3).map(|_| Box::pin(cache.clone().oneshot(get("/", &[])))).collect();
    assert!(poll!(&mut first).is_pending());
    for other in &mut others {
        assert!(poll!(other).is_pending());
    }
    let (response, _body) = reply(200, &[("cache-control", "max-age=60"), ("vary", "accept-language")]);
    origin.came().unwrap().send(response).ok().unwrap();
    let _first = first.await.unwrap();
    for other in &mut others {
        assert!(poll!(other).is_pending());
    }
    assert!(origin.came().is_some() && origin.came().is_none());
}

/// Who waits for another's response gets his own range of it.
#[tokio::test]
async fn ranges_of_one_thing_are_one_request() {
    let mut origin = Origin::new(CacheRules::default().with_fetch_ranges(true));
    let cache = origin.cache.clone();
    let ask = |range: &str| Box::pin(cache.clone().oneshot(get("/", &[("range", range)])));
    let (mut first, mut second) = (ask("bytes=3-4"), ask("bytes=5-"));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    let (request, answer) = origin.requests.try_recv().unwrap();
    assert!(!request.headers().contains_key("range") && origin.came().is_none());
    let (response, body) = reply(200, &[("cache-control", "max-age=60"), ("content-length", "10")]);
    answer.send(response).ok().unwrap();
    body.send(data("0123456789")).await.unwrap();
    drop(body);
    for (response, want) in [(first.await.unwrap(), "34"), (second.await.unwrap(), "56789")] {
        assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(whole(response).await.unwrap(), want);
    }
}

/// What two fields ask for is up to the origin, which may send a part: nobody else waits for that.
#[tokio::test]
async fn nobody_waits_for_two_ranges() {
    for fetch in [false, true] {
        let mut origin = Origin::new(CacheRules::default().with_fetch_ranges(fetch));
        let cache = origin.cache.clone();
        let ask = |fields| Box::pin(cache.clone().oneshot(get("/", fields)));
        let mut two = ask(&[("range", "bytes=0-1"), ("range", "bytes=3-4")]);
        let (mut plain, mut other) = (ask(&[]), ask(&[]));
        for one in [&mut two, &mut plain, &mut other] {
            assert!(poll!(one).is_pending());
        }
        let (request, answer) = origin.requests.try_recv().unwrap();
        assert_eq!(request.headers().contains_key("range"), !fetch);
        let (whole_answer, part) = if fetch { (Some(answer), None) } else { (origin.came(), Some(answer)) };
        assert!(origin.came().is_none(), "the others share");
        if let Some(part) = part {
            part.send(reply(206, &[("content-range", "bytes 0-1/5")]).0).ok().unwrap();
        }
        let (response, body) = reply(200, FRESH);
        whole_answer.unwrap().send(response).ok().unwrap();
        body.send(data("01234")).await.unwrap();
        drop(body);
        let two = two.await.unwrap();
        assert_eq!(two.status().as_u16(), if fetch { 200 } else { 206 });
        for one in [plain, other] {
            assert_eq!(whole(one.await.unwrap()).await.unwrap(), "01234");
        }
        assert!(origin.came().is_none());
    }
}

/// RFC 9211 section 2.2: who follows is told why he was not answered from the store.
#[tokio::test]
async fn a_follower_keeps_his_reason() {
    let mut origin = Origin::new(CacheRules::default());
    let cache = origin.cache.clone();
    let ask = |x: &str| Box::pin(cache.clone().oneshot(get("/", &[("x", x)])));
    for (x, age, want) in [("1", "60", "uri-miss"), ("1", "0", "stale"), ("2", "0", "vary-miss")] {
        let (mut first, mut second) = (ask(x), ask(x));
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
        let fields = [("cache-control", "max-age=60"), ("etag", "\"a\""), ("vary", "x"), ("age", age)];
        let (response, body) = reply(200, &fields);
        origin.came().unwrap().send(response).ok().unwrap();
        drop(body);
        whole(first.await.unwrap()).await.unwrap();
        if age == "60" {
            // It was for the first alone.
            drop(second);
            continue;
        }
        let second = second.await.unwrap();
        assert_eq!(status(&second), format!("portcullis; fwd={want}; ttl=60; collapsed"));
    }
}
