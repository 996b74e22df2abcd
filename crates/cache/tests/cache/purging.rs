//! Forgetting on demand.

use http::Uri;
use portcullis_cache::{CacheRules, Purge, PurgeError, Query};

use crate::world::{FRESH, World, get, reply, validating};

fn uri(text: &str) -> Uri {
    text.parse().unwrap()
}

async fn hits(world: &World, paths: &[&str]) -> Vec<bool> {
    let mut hits = Vec::new();
    for path in paths {
        hits.push(world.get(path).await.is_hit());
    }
    hits
}

#[tokio::test]
async fn by_uri() {
    let world = World::counting(FRESH);
    hits(&world, &["/a", "/a?x", "/b"]).await;
    assert_eq!(world.layer.purge(&uri("https://A.example.com/a"), Purge::Hard), Ok(1));
    assert_eq!(world.layer.purge(&uri("https://A.example.com/none"), Purge::Hard), Ok(0));
    assert_eq!(world.layer.purge(&uri("http://A.example.com/b"), Purge::Hard), Ok(0), "another scheme");
    assert_eq!(world.layer.purge(&uri("/a"), Purge::Hard), Err(PurgeError::NotAbsolute));
    assert_eq!(hits(&world, &["/a", "/a?x", "/b"]).await, [false, true, true]);
    assert_eq!(world.stats().purged, 1);
    world.layer.clear();
    assert_eq!(hits(&world, &["/b"]).await, [false]);
}

/// A URI is another key in each layer; purging knows them all.
#[tokio::test]
async fn by_uri_in_all_layers() {
    let world = World::counting(FRESH);
    let other = world.also_with(CacheRules::default().with_partition(Some("other".into())));
    let blind = world
        .also_with(CacheRules::default().with_partition(Some("blind".into())).with_query(Query::Nothing));
    for world in [&world, &other, &blind] {
        assert_eq!(hits(world, &["/a?x", "/a?x"]).await, [false, true], "they do not share");
    }
    assert_eq!(other.layer.purge(&uri("https://a.example.com/a?x"), Purge::Hard), Ok(3));
    for world in [&world, &other, &blind] {
        assert_eq!(hits(world, &["/a?x"]).await, [false]);
    }
}

#[tokio::test]
async fn by_the_beginning() {
    let world = World::counting(FRESH);
    let other = world.also_with(CacheRules::default().with_partition(Some("other".into())));
    let paths = ["/img/a", "/img/b?x", "/img", "/imgs", "/"];
    hits(&world, &paths).await;
    hits(&other, &["/img/a"]).await;
    assert_eq!(world.layer.purge_prefix(&uri("https://a.example.com/img/"), Purge::Hard), Ok(3));
    assert_eq!(world.layer.purge_prefix(&uri("https://a.example.co/"), Purge::Hard), Ok(0));
    assert_eq!(hits(&world, &paths).await, [false, false, true, true, true]);
    assert_eq!(hits(&other, &["/img/a"]).await, [false]);
    assert!(world.layer.purge_prefix(&uri("/img"), Purge::Hard).is_err());
}

#[tokio::test]
async fn by_tag() {
    let world = World::new(|_, request| {
        let fields: &[_] = match request.uri.path() {
            "/a" => &[("cache-control", "max-age=60"), ("cache-tag", "one, two")],
            "/b" => &[("cache-control", "max-age=60"), ("surrogate-key", "two three")],
            _ => FRESH,
        };
        reply(200, fields, "x")
    });
    let paths = ["/a", "/b", "/c"];
    hits(&world, &paths).await;
    assert_eq!(world.layer.purge_tag("on", Purge::Hard), 0);
    assert_eq!(world.layer.purge_tag("one", Purge::Hard), 1);
    assert_eq!(hits(&world, &paths).await, [false, true, true]);
    assert_eq!(world.layer.purge_tag("two", Purge::Hard), 2);
    assert_eq!(hits(&world, &paths).await, [false, false, true]);
}

#[tokio::test]
async fn softly_it_is_asked_for_anew() {
    for soft in [
        |world: &World| world.layer.purge(&uri("https://a.example.com/"), Purge::Soft).unwrap(),
        |world: &World| world.layer.purge_prefix(&uri("https://a.example.com/"), Purge::Soft).unwrap(),
        |world: &World| world.layer.purge_all(Purge::Soft),
    ] {
        let world = validating("max-age=60", Some("\"a\""), None);
        world.get("/").await;
        assert!(world.get("/").await.is_hit());
        assert_eq!(soft(&world), 1);
        let again = world.get("/").await;
        assert_eq!(again.cache_status(), "fwd=stale; fwd-status=304");
        assert_eq!(world.last()["if-none-match"], "\"a\"");
        assert!(world.get("/").await.is_hit(), "and is as good as new");
    }
}

/// What was asked for before a purge is neither stored nor given to who asks after it.
#[tokio::test]
async fn what_is_on_its_way_is_not_stored() {
    for purge in [
        |world: &World| world.layer.purge(&uri("https://a.example.com/"), Purge::Hard).unwrap(),
        |world: &World| world.layer.purge(&uri("https://a.example.com/"), Purge::Soft).unwrap(),
        |world: &World| world.layer.purge_prefix(&uri("https://a.example.com/"), Purge::Hard).unwrap(),
        |world: &World| world.layer.purge_tag("t", Purge::Soft),
        |world: &World| world.layer.purge_all(Purge::Hard),
    ] {
        let world = World::counting(&[("cache-control", "max-age=60"), ("cache-tag", "t")]);
        let before = world.start(get("/", &[])).await;
        purge(&world);
        assert_eq!(world.get("/").await.body, "body 1", "nobody joins what was asked for before");
        drop(before);
        let world = World::counting(&[("cache-control", "max-age=60"), ("cache-tag", "t")]);
        let before = world.start(get("/", &[])).await.into_body();
        purge(&world);
        http_body_util::BodyExt::collect(before).await.unwrap();
        assert!(!world.get("/").await.is_hit());
    }
}

/// Rules come and go by reloads: what was purged while others were there does not come back with them.
#[tokio::test]
async fn by_uri_in_layers_that_are_gone() {
    let world = World::counting(FRESH);
    let blind = || CacheRules::default().with_partition(Some("blind".into())).with_query(Query::Nothing);
    for change in [true, false] {
        assert_eq!(hits(&world.also_with(blind()), &["/a?x", "/a?x"]).await, [false, true]);
        if change {
            assert_eq!(world.layer.purge(&uri("https://a.example.com/a?x"), Purge::Hard), Ok(1));
        } else {
            let mut post = get("/a?x", &[]);
            *post.method_mut() = http::Method::POST;
            world.send(post).await;
        }
        assert_eq!(hits(&world.also_with(blind()), &["/a?x"]).await, [false]);
        world.layer.clear();
    }
    // Nor where they are not remembered any more.
    assert_eq!(hits(&world.also_with(blind()), &["/a?x", "/a?x"]).await, [false, true]);
    assert_eq!(hits(&world.also_with(blind()), &["/a?x"]).await, [true], "as long as they are");
    for n in 0..20 {
        drop(world.layer.with_rules(CacheRules::default().with_partition(Some(n.to_string().into()))));
    }
    assert_eq!(world.layer.purge(&uri("https://a.example.com/a?x"), Purge::Hard), Ok(0));
    assert_eq!(hits(&world.also_with(blind()), &["/a?x", "/a?x"]).await, [false, true]);
}

/// A purge of others lets those wait on who wait for one response.
#[tokio::test]
async fn who_is_not_meant_reads_along() {
    for (prefix, meant) in [("https://a.example.com/img/", true), ("https://a.example.com/js/", false)] {
        let world = World::counting(FRESH);
        let first = world.start(get("/img/a", &[])).await;
        world.layer.purge_prefix(&uri(prefix), Purge::Hard).unwrap();
        let second = world.start(get("/img/a", &[])).await;
        assert_eq!(world.calls(), if meant { 2 } else { 1 });
        drop((first, second));
    }
}
