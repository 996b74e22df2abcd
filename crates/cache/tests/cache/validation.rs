//! Freshness, validation and conditions.

use http::{Method, StatusCode};
use portcullis_cache::CacheRules;

use crate::world::{DATE, FRESH, World, get, reply, validating};

#[tokio::test]
async fn a_stale_response_is_revalidated() {
    for (etag, modified) in [(Some("\"a\""), None), (None, Some(DATE)), (Some("W/\"a\""), Some(DATE))] {
        let world = validating("max-age=0", etag, modified);
        world.get("/").await;
        let again = world.get("/").await;
        assert_eq!((again.status, again.body.as_str()), (StatusCode::OK, "body"));
        assert_eq!((again.cache_status(), again.field("x-n")), ("fwd=stale; fwd-status=304", "new"));
        assert_eq!(again.field("x-call"), "1", "the 304's fields took the place of the stored ones");
        assert_eq!(world.last().get("if-none-match").map(|v| v.to_str().unwrap()), etag);
        assert_eq!(world.last().get("if-modified-since").map(|v| v.to_str().unwrap()), modified);
        assert_eq!(world.stats().revalidated, 1);
    }
}

#[tokio::test]
async fn a_304_makes_it_fresh_again() {
    let world = World::new(|n, _| match n {
        0 => reply(200, &[("cache-control", "max-age=60"), ("age", "60"), ("etag", "\"a\"")], "body"),
        1 => reply(304, FRESH, ""),
        _ => reply(500, &[], "unwanted"),
    });
    world.get("/").await;
    assert_eq!(world.get("/").await.body, "body");
    let fresh = world.get("/").await;
    assert!(fresh.is_hit() && fresh.is_aged(0), "{fresh:?}");
    assert_eq!(world.calls(), 2);
}

#[tokio::test]
async fn a_changed_response_takes_the_place_of_the_stale_one() {
    let world = World::new(|n, _| match n {
        0 => reply(200, &[("cache-control", "max-age=0"), ("etag", "\"a\"")], "old"),
        1 => reply(503, &[], "down"),
        2 => reply(200, &[("cache-control", "max-age=60"), ("etag", "\"b\"")], "new"),
        _ => reply(500, &[], "unwanted"),
    });
    assert_eq!(world.get("/").await.body, "old");
    assert_eq!(world.get("/").await.body, "down");
    let changed = world.get("/").await;
    assert_eq!((changed.body.as_str(), changed.cache_status()), ("new", "fwd=stale; stored"));
    assert_eq!(world.last()["if-none-match"], "\"a\"", "the error did not forget the old one");
    assert_eq!(world.get("/").await.body, "new");
    assert_eq!(world.calls(), 3);
}

#[tokio::test]
async fn a_response_that_became_private_is_forgotten() {
    let world = World::new(|n, request| match n {
        0 => reply(200, &[("cache-control", "max-age=0"), ("etag", "\"a\"")], "old"),
        1 => reply(304, &[("cache-control", "private")], ""),
        _ => reply(200, &[], if request.headers.contains_key("if-none-match") { "asked" } else { "whole" }),
    });
    world.get("/").await;
    assert_eq!(world.get("/").await.body, "old");
    assert_eq!(world.get("/").await.body, "whole");
}

#[tokio::test]
async fn conditional_requests_are_answered_from_the_store() {
    let world = World::counting(&[
        ("cache-control", "max-age=60"),
        ("etag", "\"a\""),
        ("last-modified", DATE),
        ("x-other", "1"),
    ]);
    world.get("/").await;
    for (fields, status) in [
        (&[("if-none-match", "\"a\"")][..], 304),
        (&[("if-none-match", "\"b\", W/\"a\"")], 304),
        (&[("if-none-match", "\"b\"")], 200),
        (&[("if-modified-since", DATE)], 304),
        (&[("if-modified-since", "Sun, 06 Nov 1994 08:49:36 GMT")], 200),
    ] {
        let got = world.send(get("/", fields)).await;
        assert_eq!(got.status.as_u16(), status, "{fields:?}");
        assert!(got.is_hit() && got.field("etag") == "\"a\"" && got.headers.contains_key("age"));
        assert_eq!(got.body.is_empty() && got.field("x-other").is_empty(), status == 304);
    }
    assert_eq!(world.calls(), 1);
}

#[tokio::test]
async fn the_client_s_condition_survives_our_question() {
    let world = validating("max-age=0", Some("\"a\""), None);
    world.get("/").await;
    let got = world.send(get("/", &[("if-none-match", "\"a\"")])).await;
    assert_eq!((got.status.as_u16(), got.body.as_str()), (304, ""));
    let got = world.send(get("/", &[("if-none-match", "\"old\"")])).await;
    assert_eq!((got.status.as_u16(), got.body.as_str()), (200, "body"));
    assert_eq!(world.last()["if-none-match"], "\"a\"", "the origin was asked about ours");
}

#[tokio::test]
async fn a_304_for_the_client_s_own_condition_is_passed_on() {
    let world = validating("max-age=60", Some("\"a\""), None);
    let got = world.send(get("/", &[("if-none-match", "\"a\"")])).await;
    assert_eq!(got.status.as_u16(), 304);
    assert_eq!(world.get("/").await.body, "body", "and was not stored");
}

#[tokio::test]
async fn head_is_answered_from_a_get() {
    let world = World::counting(FRESH);
    let head = || {
        let mut request = get("/", &[]);
        *request.method_mut() = Method::HEAD;
        request
    };
    assert_eq!(world.send(head()).await.cache_status(), "fwd=uri-miss");
    assert_eq!(world.get("/").await.cache_status(), "fwd=uri-miss; stored", "a HEAD stores nothing");
    let got = world.send(head()).await;
    assert!(got.is_hit() && got.body.is_empty());
    assert_eq!(got.field("content-length"), "6");
}

#[tokio::test]
async fn what_requests_ask_for_is_done() {
    let world = World::counting(&[("cache-control", "max-age=60"), ("age", "30")]);
    world.get("/").await;
    for (field, status) in [
        (("cache-control", "max-age=40"), "hit"),
        (("cache-control", "max-age=10"), "fwd=request"),
        (("cache-control", "min-fresh=50"), "fwd=request"),
        (("cache-control", "no-cache"), "fwd=request"),
        (("pragma", "no-cache"), "fwd=request"),
        (("cache-control", "no-store"), "fwd=bypass"),
        (("cache-control", "only-if-cached"), "hit"),
    ] {
        let got = world.send(get("/", &[field])).await;
        assert!(got.cache_status().starts_with(status), "{field:?}: {}", got.cache_status());
    }
    let got = world.send(get("/nothing", &[("cache-control", "only-if-cached")])).await;
    assert_eq!(got.status, StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test]
async fn the_status_field_is_a_choice_and_comes_last() {
    let upstream: &'static [_] = &[("cache-control", "max-age=60"), ("cache-status", "inner; hit")];
    let world = World::counting(upstream);
    world.get("/").await;
    let lines: Vec<_> = {
        let got = world.get("/").await;
        got.headers.get_all("cache-status").iter().map(|v| v.to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(lines[0], "inner; hit");
    assert!(lines[1].starts_with("portcullis; hit; ttl="));
    let world = World::ruled(CacheRules::default().with_cache_status(false), |_, _| reply(200, FRESH, "x"));
    assert!(!world.get("/").await.headers.contains_key("cache-status"));
}

/// RFC 9111 section 4.3.4: the one who asked gets what the 304 says, also what is not for the others.
#[tokio::test]
async fn what_a_304_says_is_said_to_its_client() {
    for (cc, stored) in [("max-age=60, public", true), ("private", false), ("max-age=60", false)] {
        let world = World::new(move |n, _| match n {
            0 => reply(200, &[("cache-control", "max-age=0"), ("etag", "\"a\""), ("x-n", "old")], "body"),
            1 | 2 => {
                let fields =
                    [("cache-control", cc), ("x-n", "new"), ("set-cookie", "a=1"), ("set-cookie", "b=2")];
                reply(304, &fields, "")
            }
            _ => reply(500, &[], "unwanted"),
        });
        world.get("/").await;
        let got = world.get("/").await;
        assert_eq!((got.body.as_str(), got.field("x-n"), got.field("cache-control")), ("body", "new", cc));
        let cookies: Vec<_> = got.headers.get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a=1", "b=2"], "{cc}");
        assert!(got.is_aged(0) && got.headers.get_all("date").iter().count() == 1, "{got:?}");
        if stored {
            let hit = world.get("/").await;
            assert!(hit.is_hit() && hit.field("x-n") == "new" && !hit.headers.contains_key("set-cookie"));
        } else {
            assert_eq!(world.stats().entries, 0, "{cc}");
        }
    }
    // Also to who has it already.
    let world = World::new(|n, _| match n {
        0 => reply(200, &[("cache-control", "max-age=0"), ("etag", "\"a\"")], "body"),
        _ => reply(304, &[("cache-control", "max-age=60, public"), ("set-cookie", "a=1")], ""),
    });
    world.get("/").await;
    let got = world.send(get("/", &[("if-none-match", "\"a\"")])).await;
    assert_eq!((got.status.as_u16(), got.field("set-cookie")), (304, "a=1"));
}

/// RFC 9110 section 8.6.
#[tokio::test]
async fn head_for_a_204_has_no_length() {
    let world = World::new(|_, _| reply(204, FRESH, ""));
    world.get("/").await;
    let mut request = get("/", &[]);
    *request.method_mut() = Method::HEAD;
    let got = world.send(request).await;
    assert!(got.is_hit() && !got.headers.contains_key("content-length"), "{got:?}");
}
