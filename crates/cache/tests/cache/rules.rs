//! What rules change.

use std::time::Duration;

use http::HeaderName;
use portcullis_cache::{Bypass, CacheRules, Heuristic, Query, SetCookie, StatusTtl};

use crate::world::{FRESH, World, get, reply};

#[tokio::test]
async fn requests_that_pass_by() {
    let rules = CacheRules::default().with_bypass([
        Bypass::Cookie("session*".into()),
        Bypass::Field(HeaderName::from_static("x-preview")),
        Bypass::Path("/admin".into()),
    ]);
    let world = World::ruled(rules, |n, _| reply(200, FRESH, &format!("body {n}")));
    for (path, fields, bypassed) in [
        ("/", &[("cookie", "theme=dark")][..], false),
        ("/", &[("cookie", "a=1; session_id=2")], true),
        ("/", &[("x-preview", "")], true),
        ("/admin/x", &[], true),
        ("/adm", &[], false),
    ] {
        for _ in 0..2 {
            world.send(get(path, fields)).await;
        }
        let status = world.send(get(path, fields)).await;
        assert_eq!(status.cache_status() == "fwd=bypass", bypassed, "{path} {fields:?}");
        assert_eq!(status.is_hit(), !bypassed, "{path} {fields:?}");
    }
    let world =
        World::ruled(CacheRules::default().with_bypass([Bypass::Cookies]), |_, _| reply(200, FRESH, ""));
    world.get("/").await;
    assert!(world.get("/").await.is_hit());
    assert_eq!(world.send(get("/", &[("cookie", "x")])).await.cache_status(), "fwd=bypass");
}

#[tokio::test]
async fn the_key_by_query_fields_and_cookies() {
    let rules = CacheRules::default()
        .with_query(Query::Without(vec!["utm_*".into()]))
        .with_sort_query(true)
        .with_key_fields([HeaderName::from_static("x-country")])
        .with_key_cookies(["theme".to_owned()]);
    let world = World::ruled(rules, |n, _| reply(200, FRESH, &format!("body {n}")));
    world.send(get("/?a=1&b=2&utm_x=9", &[("x-country", "de"), ("cookie", "theme=dark")])).await;
    for (path, fields, hit) in [
        ("/?b=2&a=1", &[("x-country", "de"), ("cookie", "id=7; theme=dark")][..], true),
        ("/?a=1&utm_y=1&b=2", &[("x-country", "de"), ("cookie", "theme=dark")], true),
        ("/?a=1&b=3", &[("x-country", "de"), ("cookie", "theme=dark")], false),
        ("/?a=1&b=2", &[("x-country", "at"), ("cookie", "theme=dark")], false),
        ("/?a=1&b=2", &[("x-country", "de"), ("cookie", "theme=light")], false),
        ("/?a=1&b=2", &[], false),
    ] {
        assert_eq!(world.send(get(path, fields)).await.is_hit(), hit, "{path} {fields:?}");
    }
    assert_eq!(
        world.seen.lock().unwrap()[0].uri.query(),
        Some("a=1&b=2&utm_x=9"),
        "the origin gets all of it"
    );
}

#[tokio::test]
async fn cookies_of_responses() {
    let fields: &'static [_] = &[("cache-control", "max-age=60"), ("set-cookie", "a=1")];
    for (choice, hit, cookie) in
        [(SetCookie::Refuse, false, "a=1"), (SetCookie::Strip, true, ""), (SetCookie::Keep, true, "a=1")]
    {
        let world =
            World::ruled(CacheRules::default().with_set_cookie(choice), |_, _| reply(200, fields, ""));
        world.get("/").await;
        let again = world.get("/").await;
        assert_eq!((again.is_hit(), again.field("set-cookie")), (hit, cookie), "{choice:?}");
    }
}

#[tokio::test]
async fn negative_answers_and_guesses() {
    let rules = CacheRules::default().with_heuristic(Some(Heuristic::default())).with_ttl([StatusTtl {
        statuses: 404..=404,
        ttl: Duration::from_secs(60),
        overrides: false,
    }]);
    let answer = |_: usize, request: &http::request::Parts| match request.uri.path() {
        "/404" => reply(404, &[], "none"),
        "/old" => reply(200, &[("last-modified", crate::world::DATE)], "old"),
        _ => reply(200, &[], "new"),
    };
    let world = World::ruled(rules, answer);
    let plain = World::new(answer);
    for (path, hit) in [("/404", true), ("/old", true), ("/new", false)] {
        for world in [&world, &plain] {
            world.get(path).await;
        }
        assert_eq!(world.get(path).await.is_hit(), hit, "{path}");
        assert!(!plain.get(path).await.is_hit(), "{path}, by default");
    }
}

#[tokio::test]
async fn a_cache_that_shields_does_not_obey() {
    let rules = CacheRules::default().with_obey_request(false);
    let world = World::ruled(rules, |n, _| reply(200, FRESH, &format!("body {n}")));
    world.get("/").await;
    for field in [
        ("cache-control", "no-cache"),
        ("cache-control", "no-store"),
        ("cache-control", "max-age=0"),
        ("pragma", "no-cache"),
    ] {
        assert!(world.send(get("/", &[field])).await.is_hit(), "{field:?}");
    }
}

/// What changed by way of one layer changed for all.
#[tokio::test]
async fn an_unsafe_method_reaches_all_layers() {
    let world = World::counting(FRESH);
    let other = world.also_with(CacheRules::default().with_partition(Some("other".into())));
    let blind = world
        .also_with(CacheRules::default().with_partition(Some("blind".into())).with_query(Query::Nothing));
    for world in [&world, &other, &blind] {
        world.get("/?x").await;
    }
    let mut post = get("/?x", &[]);
    *post.method_mut() = http::Method::POST;
    world.send(post).await;
    for world in [&world, &other, &blind] {
        assert!(!world.get("/?x").await.is_hit());
    }
    assert_eq!(world.stats().invalidated, 3);
}

#[tokio::test]
async fn layers_share_a_store_where_their_keys_are_the_same() {
    let world = World::counting(FRESH);
    let same = world.also_with(CacheRules::default().with_cache_status_key(true));
    let other = world.also_with(CacheRules::default().with_partition(Some("other".into())));
    world.get("/").await;
    let hit = same.get("/").await;
    assert!(hit.is_hit() && hit.cache_status().ends_with("; key=\"https://a.example.com:443/\""), "{hit:?}");
    assert!(!other.get("/").await.is_hit());
    assert!(other.get("/").await.is_hit());
    assert_eq!(world.stats().entries, 2);
}

/// What others write behind the cache is nothing to tell requests apart by.
#[tokio::test]
async fn what_is_written_behind_the_cache() {
    let name = HeaderName::from_static("x-forwarded-for");
    for (written, hit) in [(None, true), (Some(name), false)] {
        let world = World::ruled(CacheRules::default().with_written_behind(written), |n, _| {
            reply(200, &[("cache-control", "max-age=60"), ("vary", "X-Forwarded-For")], &format!("body {n}"))
        });
        world.get("/").await;
        assert_eq!(world.get("/").await.is_hit(), hit);
    }
}

/// After a reload that tells requests apart by more, what was stored before is for nobody.
#[tokio::test]
async fn what_was_stored_by_others_is_told_apart() {
    let world = World::counting(FRESH);
    let name = HeaderName::from_static("x-country");
    for rules in [
        CacheRules::default().with_key_cookies(["theme".to_owned()]),
        CacheRules::default().with_key_fields([name.clone()]),
    ] {
        world.layer.clear();
        world.get("/").await;
        let apart = world.also_with(rules);
        assert!(world.get("/").await.is_hit());
        assert!(!apart.get("/").await.is_hit());
        assert!(apart.get("/").await.is_hit());
        for fields in [("cookie", "theme=dark"), ("x-country", "de")] {
            apart.send(get("/", &[fields])).await;
        }
        assert!(world.get("/").await.is_hit(), "by less it may be used");
    }
    // Nor do they read along what is on its way for others.
    world.layer.clear();
    let first = world.start(get("/", &[])).await;
    let apart = world.also_with(CacheRules::default().with_key_fields([name]));
    let calls = world.calls();
    let second = apart.start(get("/", &[("x-country", "de")])).await;
    assert_eq!(world.calls(), calls + 1);
    drop((first, second));
}
