//! What is stored, for how long, and what makes it go.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode, header};
use http_body::Body;
use http_body_util::BodyExt;
use portcullis_cache::CacheRules;
use portcullis_testkit::body::ScriptBody;

use crate::world::{Also, FRESH, World, get, https, reply, stream};

#[tokio::test]
async fn a_fresh_response_is_answered_from_the_store() {
    let world = World::counting(&[
        ("cache-control", "max-age=60"),
        ("age", "20"),
        ("x-a", "1"),
        ("x-a", "2"),
        ("connection", "x-b"),
        ("x-b", "hop"),
    ]);
    let first = world.get("/x?y").await;
    assert_eq!((first.body.as_str(), first.cache_status()), ("body 0", "fwd=uri-miss; stored"));
    assert_eq!(first.field("x-b"), "hop", "what passes is not touched");
    let again = world.get("/x?y").await;
    assert_eq!((again.status, again.body.as_str()), (StatusCode::OK, "body 0"));
    assert!(again.is_hit() && again.is_aged(20) && again.field("x-b").is_empty());
    assert_eq!(again.headers.get_all("x-a").iter().count(), 2);
    assert!(again.headers.contains_key("date"));
    assert_eq!(world.calls(), 1);
    let stats = world.stats();
    assert_eq!((stats.hits, stats.misses, stats.stored, stats.entries), (1, 1, 1, 1));
    assert!(stats.bytes > 500 && stats.bytes < 2000, "{} bytes", stats.bytes);
}

#[tokio::test]
async fn a_stored_body_knows_its_size() {
    let world = World::counting(FRESH);
    world.get("/").await;
    let body = world.start(get("/", &[])).await.into_body();
    assert!(body.is_stored() && !body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(6));
}

#[tokio::test]
async fn what_is_not_for_all_is_not_stored() {
    let authorized: &[(&str, &str)] = &[("authorization", "Bearer x")];
    for (request_fields, fields, stored) in [
        (&[][..], FRESH, true),
        (&[], &[("cache-control", "private, max-age=60")], false),
        (&[], &[("cache-control", "no-store, max-age=60")], false),
        (&[], &[("cache-control", "max-age=60"), ("set-cookie", "id=1")], false),
        (&[], &[("cache-control", "max-age=60"), ("vary", "*")], false),
        (&[], &[], false),
        (&[("cookie", "id=1")], FRESH, true),
        (authorized, FRESH, false),
        (authorized, &[("cache-control", "public, max-age=60")], true),
        (&[("cache-control", "no-store")], FRESH, false),
    ] {
        let world = World::new(move |n, _| reply(200, fields, &format!("body {n}")));
        for _ in 0..2 {
            world.send(get("/", request_fields)).await;
        }
        assert_eq!(world.calls(), if stored { 1 } else { 2 }, "{request_fields:?} {fields:?}");
    }
}

#[tokio::test]
async fn a_shared_cookie_is_given_to_the_first_client_only() {
    let world = World::counting(&[("cache-control", "public, max-age=60"), ("set-cookie", "id=1")]);
    assert_eq!(world.get("/").await.field("set-cookie"), "id=1");
    let again = world.get("/").await;
    assert!(again.is_hit() && again.field("set-cookie").is_empty());
}

#[tokio::test]
async fn a_body_is_stored_only_when_it_ended_well() {
    let length = |n: &'static str| [("cache-control", "max-age=60"), ("content-length", n)];
    let trailers = || HeaderMap::from_iter([(header::ETAG, "\"x\"".parse().unwrap())]);
    type Fields = Vec<(&'static str, &'static str)>;
    type Row = (&'static str, fn() -> ScriptBody, Fields, bool);
    let table: [Row; 10] = [
        ("streamed", || ScriptBody::new().data("ab").pend().data("c"), FRESH.to_vec(), true),
        ("empty", ScriptBody::new, FRESH.to_vec(), true),
        ("as announced", || ScriptBody::new().data("ab").data("c"), length("3").to_vec(), true),
        ("too short", || ScriptBody::new().data("ab"), length("3").to_vec(), false),
        ("too long", || ScriptBody::new().data("abcd"), length("3").to_vec(), false),
        ("empty though announced", ScriptBody::new, length("3").to_vec(), false),
        ("broken", || ScriptBody::new().data("ab").fail(), FRESH.to_vec(), false),
        ("too large", || ScriptBody::new().data("12345678").data("9"), FRESH.to_vec(), false),
        ("announced too large", || ScriptBody::new().data("123456789"), length("9").to_vec(), false),
        ("a size that is a lie", || ScriptBody::new().data("a").with_exact_size(2), FRESH.to_vec(), false),
    ];
    let rules = CacheRules::default().with_max_object_bytes(8);
    for (name, body, fields, stored) in table {
        let world = World::ruled(rules.clone(), move |_, _| stream(200, &fields, body()));
        for _ in 0..2 {
            let _ = world.start(get("/", &[])).await.into_body().collect().await;
        }
        assert_eq!(world.calls(), if stored { 1 } else { 2 }, "{name}");
        assert_eq!(world.stats().abandoned > 0, !stored && name != "announced too large", "{name}");
    }
    let world = World::new(move |_, _| stream(200, FRESH, ScriptBody::new().data("a").trailers(trailers())));
    for _ in 0..2 {
        world.get("/").await;
    }
    assert_eq!(world.calls(), 2, "trailers");
}

/// Trailers come behind the last byte, also where everybody knows which that is.
#[tokio::test]
async fn trailers_of_a_body_of_known_length_reach_all() {
    let world = World::new(|_, _| {
        let trailers = HeaderMap::from_iter([(header::ETAG, "\"x\"".parse().unwrap())]);
        let body = ScriptBody::new().data("ab").pend().data("c").trailers(trailers);
        stream(200, FRESH, body.with_exact_size(3))
    });
    let leader = world.start(get("/", &[])).await.into_body();
    let follower = world.start(get("/", &[])).await.into_body();
    for mut body in [leader, follower] {
        assert_eq!(body.size_hint().exact(), Some(3));
        let mut data = Vec::new();
        let trailers = loop {
            assert!(!body.is_end_stream());
            match body.frame().await.unwrap().unwrap().into_data() {
                Ok(piece) => data.extend_from_slice(&piece),
                Err(frame) => break frame.into_trailers().unwrap(),
            }
        };
        assert_eq!((data.as_slice(), &trailers[header::ETAG]), (&b"abc"[..], &"\"x\"".parse().unwrap()));
        assert!(body.is_end_stream() && body.frame().await.is_none());
    }
    assert_eq!(world.calls(), 1);
}

/// What comes beyond the announced length is not passed on.
#[tokio::test]
async fn a_body_ends_where_it_was_announced_to() {
    let world = World::new(|_, _| {
        let fields = [("cache-control", "max-age=60"), ("content-length", "3")];
        stream(200, &fields, ScriptBody::new().data("ab").data("cd").data("e").hang())
    });
    assert_eq!(world.get("/").await.body, "abc");
}

#[tokio::test]
async fn a_client_that_leaves_stores_nothing_and_gives_its_room_back() {
    let options = https().with_max_fill_bytes(6 + 3 * 64);
    let world = World::with(options, |_, _| stream(200, FRESH, ScriptBody::new().data("abcd").data("ef")));
    let mut body = world.start(get("/", &[])).await.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "abcd");
    let other = world.get("/other").await;
    assert_eq!(other.body, "abcdef", "no room to copy it, but it passes");
    assert!(!world.get("/other").await.is_hit());
    drop(body);
    assert!(!world.get("/").await.is_hit(), "the first was cut short");
    assert!(world.get("/").await.is_hit(), "this one had room");
}

#[tokio::test]
async fn variants_are_kept_apart_and_bounded() {
    let options = https().with_max_variants(2);
    let world = World::with(options, |_, request| {
        let language = request.headers.get("accept-language").map_or("none", |v| v.to_str().unwrap());
        reply(200, &[("cache-control", "max-age=60"), ("vary", "Accept-Language")], language)
    });
    let ask = |language: &'static str| world.send(get("/", &[("accept-language", language)]));
    assert_eq!(ask("de").await.body, "de");
    let other = ask("en").await;
    assert_eq!((other.body.as_str(), other.cache_status()), ("en", "fwd=vary-miss; stored"));
    let again = ask("de").await;
    assert!(again.is_hit() && again.body == "de");
    assert_eq!(world.get("/").await.body, "none");
    assert!(ask("en").await.is_hit(), "one of the two that are left");
    assert!(!ask("de").await.is_hit(), "the oldest went");
}

#[tokio::test]
async fn an_origin_that_begins_to_vary_is_believed_for_the_old_responses_too() {
    let world = World::new(|n, _| {
        let response = reply(200, FRESH, &format!("body {n}"));
        if n == 0 { response } else { response.also(("vary", "x-a")) }
    });
    world.get("/").await;
    world.send(get("/", &[("x-a", "1"), ("cache-control", "no-cache")])).await;
    assert!(world.send(get("/", &[("x-a", "1")])).await.is_hit());
    assert_eq!(world.send(get("/", &[("x-a", "2")])).await.body, "body 2", "not the one without Vary");
}

#[tokio::test]
async fn unsafe_methods_invalidate() {
    let invalidating = |method: Method, status: u16| async move {
        let world = World::new(move |n, request| match request.method {
            Method::GET => reply(200, FRESH, &format!("body {n}")),
            _ => reply(status, &[("location", "/other"), ("content-location", "/x/1")], ""),
        });
        for path in ["/x", "/other", "/x/1", "/third"] {
            world.get(path).await;
        }
        let mut change = get("/x", &[]);
        *change.method_mut() = method;
        world.send(change).await;
        let mut hits = [false; 4];
        for (hit, path) in hits.iter_mut().zip(["/x", "/other", "/x/1", "/third"]) {
            *hit = world.get(path).await.is_hit();
        }
        hits
    };
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, "PURGE".parse().unwrap()] {
        assert_eq!(invalidating(method, 200).await, [false, false, false, true]);
    }
    assert_eq!(invalidating(Method::POST, 303).await, [false, false, false, true]);
    assert_eq!(invalidating(Method::POST, 500).await, [true; 4]);
    assert_eq!(invalidating(Method::OPTIONS, 200).await, [true; 4]);
}

/// What another origin has is not for this one to speak of.
#[tokio::test]
async fn unsafe_methods_invalidate_nothing_of_others() {
    let world = World::new(|_, request| match request.method {
        Method::GET => reply(200, FRESH, ""),
        _ => reply(
            200,
            &[("location", "https://b.example.com/x"), ("content-location", "//b.example.com/x")],
            "",
        ),
    });
    let other = || get("/x", &[("host", "b.example.com")]);
    world.send(other()).await;
    let mut change = get("/y", &[]);
    *change.method_mut() = Method::POST;
    world.send(change).await;
    assert!(world.send(other()).await.is_hit());
}

#[tokio::test]
async fn what_was_on_its_way_when_it_was_invalidated_is_not_stored() {
    let world = World::counting(FRESH);
    let body = world.start(get("/", &[])).await.into_body();
    let mut post = get("/", &[]);
    *post.method_mut() = Method::POST;
    world.send(post).await;
    body.collect().await.unwrap();
    assert!(!world.get("/").await.is_hit());
    assert!(world.get("/").await.is_hit());
}

#[tokio::test]
async fn the_memory_is_bounded() {
    let options = https().with_max_bytes(100_000);
    let world = World::with(options, |_, _| reply(200, FRESH, &"x".repeat(4000)));
    for n in 0..200 {
        world.get(&format!("/{n}")).await;
    }
    let stats = world.stats();
    assert_eq!(stats.stored, 200);
    assert!(stats.bytes <= 100_000 && stats.entries >= 10, "{stats:?}");
}

#[tokio::test]
async fn a_lifetime_is_capped() {
    let rules = CacheRules::default().with_max_ttl(Duration::from_secs(30));
    let world =
        World::ruled(rules, |_, _| reply(200, &[("cache-control", "max-age=60"), ("age", "40")], "x"));
    world.get("/").await;
    assert!(!world.get("/").await.is_hit(), "older than the cap allows");
}
