//! What overtakes what: responses, clients, purges.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[allow(dead_code, reason = "it is another test's too")]
#[path = "cache/world.rs"]
mod world;

use std::{convert::Infallible, future::Future, pin::Pin, task::Poll, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, header};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use portcullis_cache::{CacheBody, CacheLayer, CacheRules};
use portcullis_testkit::body::ScriptBody;
use tower::{Layer, Service, ServiceExt};
use world::{FRESH, World, get, https, reply, request, stream};

/// Polls a future once.
async fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await
}

async fn text(body: CacheBody<ScriptBody>) -> String {
    String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

const RELOAD: &[(&str, &str)] = &[("cache-control", "no-cache")];

/// RFC 9111 section 4: the most recent response is used. One that was asked for before it and ends after it does not take its place.
#[tokio::test]
async fn a_slow_response_is_not_stored_over_a_newer_one() {
    for fields in [FRESH, &[("cache-control", "max-age=60"), ("vary", "x")]] {
        let world = World::new(move |n, _| {
            // Where the selecting fields change with it, too.
            let fields = if n == 0 { fields } else { FRESH };
            stream(200, fields, ScriptBody::new().data(format!("body {n}")).pend())
        });
        let slow = world.start(get("/", &[])).await.into_body();
        assert_eq!(world.send(get("/", RELOAD)).await.body, "body 1");
        assert_eq!(text(slow).await, "body 0");
        let got = world.get("/").await;
        assert!(got.is_hit() && got.body == "body 1", "{got:?}");
        // What is asked for after it takes its place.
        assert_eq!(world.send(get("/", RELOAD)).await.body, "body 2");
        assert_eq!((world.get("/").await.body.as_str(), world.stats().stored), ("body 2", 2));
    }
}

/// Neither does the body of before it by a late word that it is still right, which may have been said before the newer one was there (RFC 9111 sections 4.3.4 and 4.3.5).
#[tokio::test]
async fn a_late_validation_does_not_bring_an_old_body_back() {
    for method in [Method::GET, Method::HEAD] {
        for overtaken in [true, false] {
            let world = World::new(|n, parts| {
                let same =
                    parts.method == Method::HEAD || parts.headers.contains_key("if-none-match") && n == 1;
                let status = if same && parts.method == Method::GET { 304 } else { 200 };
                // The validator is weak, and says too little.
                let fields = [("cache-control", "max-age=60"), ("etag", "W/\"e\"")];
                reply(status, &fields, if same { "" } else { ["old", "", "new"][n] })
            });
            assert_eq!(world.get("/").await.body, "old");
            let mut question = request(method.clone(), "/", RELOAD);
            question.headers_mut().insert(header::HOST, "a.example.com".parse().unwrap());
            let mut cache = world.cache.clone();
            // The origin has answered; the answer is on its way.
            let late = cache.ready().await.unwrap().call(question);
            if overtaken {
                assert_eq!(world.send(get("/", RELOAD)).await.body, "new");
            }
            late.await.unwrap();
            let got = world.get("/").await;
            assert!(got.is_hit() && got.body == if overtaken { "new" } else { "old" }, "{method} {got:?}");
        }
    }
}

/// Those who wait for one response leave the places in the inner service to others.
#[tokio::test(start_paused = true)]
async fn who_waits_holds_no_place() {
    let layer =
        CacheLayer::new(https()).with_rules(CacheRules::default().with_collapse_wait(Duration::from_secs(5)));
    let (answer, answers) = tokio::sync::broadcast::channel::<()>(1);
    let inner = tower::service_fn(move |request: Request<Full<Bytes>>| {
        let mut answered = answer.subscribe();
        async move {
            if request.uri().path() == "/slow" {
                let _ = answered.recv().await;
            }
            Ok::<_, Infallible>(reply(200, FRESH, request.uri().path()))
        }
    });
    drop(answers);
    let cache = layer.layer(tower::limit::ConcurrencyLimit::new(inner, 3));
    // Each connection has a service of its own and keeps it.
    let mut connections: Vec<_> = (0..10).map(|_| cache.clone()).collect();
    let mut waiting = Vec::new();
    for connection in &mut connections {
        let ready = tokio::time::timeout(Duration::from_secs(1), connection.ready());
        let mut future = Box::pin(ready.await.expect("a place").unwrap().call(get("/slow", &[])));
        assert!(poll(&mut future).await.is_pending());
        waiting.push(future);
    }
    let other = tokio::time::timeout(Duration::from_secs(1), cache.clone().oneshot(get("/other", &[])));
    assert_eq!(text(other.await.expect("a place").unwrap().into_body()).await, "/other");
    // When they go on alone each waits for a place of its own.
    let all = waiting.into_iter().map(tokio::spawn).collect::<Vec<_>>();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(layer.stats().misses, 1);
    drop(all);
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([(header::ETAG, "\"x\"".parse().unwrap())])
}

async fn next(body: &mut CacheBody<ScriptBody>) -> Bytes {
    body.frame().await.unwrap().unwrap().into_data().unwrap()
}

/// They come after all that `Content-Length` announced, and later than it.
#[tokio::test]
async fn late_trailers_reach_all() {
    let world = World::new(|_, _| {
        let body = ScriptBody::new().data("ab").data("c").pend().pend().trailers(trailers());
        stream(200, FRESH, body.with_exact_size(3))
    });
    let leader = world.start(get("/", &[])).await.into_body();
    let follower = world.start(get("/", &[])).await.into_body();
    for mut body in [leader, follower] {
        assert_eq!((next(&mut body).await, next(&mut body).await), ("ab".into(), "c".into()));
        assert!(!body.is_end_stream() && body.size_hint().exact() == Some(0));
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_trailers().unwrap(), trailers());
        assert!(body.frame().await.is_none());
    }
    assert_eq!((world.calls(), world.stats().stored, world.stats().filling), (1, 0, 0));
}

/// Who has all that was announced and needs no end goes, as HTTP/1 does, and the last to go stores it.
#[tokio::test]
async fn a_complete_body_without_an_end_is_stored_by_the_last_to_go() {
    let world = World::new(|_, _| {
        stream(
            200,
            &[("cache-control", "max-age=60"), ("content-length", "3")],
            ScriptBody::new().data("abc").hang(),
        )
    });
    let mut leader = world.start(get("/", &[])).await.into_body();
    assert_eq!(next(&mut leader).await, "abc");
    let mut follower = world.start(get("/", &[])).await.into_body();
    assert_eq!((next(&mut follower).await, world.calls()), ("abc".into(), 1));
    assert!(poll(&mut Box::pin(leader.frame())).await.is_pending());
    drop(leader);
    assert_eq!(world.stats().stored, 0);
    drop(follower);
    assert_eq!((world.stats().stored, world.stats().filling), (1, 0));
    let got = world.get("/").await;
    assert!(got.is_hit() && got.body == "abc");
}

/// A body that nobody polls, as its length is 0, is one too.
#[tokio::test]
async fn an_empty_body_without_an_end_is_stored() {
    let world = World::new(|_, _| {
        stream(200, &[("cache-control", "max-age=60"), ("content-length", "0")], ScriptBody::new().hang())
    });
    drop(world.start(get("/", &[])).await);
    assert!(world.get("/").await.is_hit());
}

/// Slow readers of bodies that were stored keep no others from being stored, and get all of it.
#[tokio::test]
async fn slow_readers_of_stored_bodies_reserve_nothing() {
    for (pieces, piece) in [(4, 64 << 10), (200, 1000), (3000, 100)] {
        let size = pieces * piece;
        let world = World::with(
            https().with_max_fill_bytes(2 * size as u64 + pieces as u64 * 64 + (64 << 10)),
            move |_, _| {
                let body = (0..pieces)
                    .fold(ScriptBody::new(), |body, n| body.data(vec![b'a' + (n % 26) as u8; piece]));
                stream(200, FRESH, body)
            },
        );
        let mut slow = Vec::new();
        for n in 0..6 {
            let path = format!("/{n}");
            let mut reader = world.start(get(&path, &[])).await.into_body();
            let begin: Vec<u8> = next(&mut reader).await.to_vec();
            let other = world.get(&path).await;
            assert_eq!((other.body.len(), world.stats().stored, world.stats().filling), (size, n + 1, 0));
            slow.push((reader, begin, other.body));
        }
        for (reader, begin, want) in slow {
            assert!(begin.into_iter().chain(text(reader).await.into_bytes()).eq(want.into_bytes()));
        }
    }
}

/// What is on the disk alone is purged as what is in memory is.
#[cfg(feature = "disk")]
#[tokio::test]
async fn a_purge_reaches_what_is_on_the_disk_alone() {
    use portcullis_cache::{DiskOptions, Purge};
    const BODY: usize = 64 << 10;
    let dir = std::env::temp_dir().join(format!("portcullis-cache-{}-alone", std::process::id()));
    let options = https().with_max_bytes(512 << 10);
    let options = options.with_disk(Some(DiskOptions::new(&dir).with_max_bytes(64 << 20)));
    let world = World::over(CacheLayer::open(options).unwrap(), |_, parts| {
        let tag = parts.uri.path().trim_start_matches('/');
        let fields = [("cache-control", "max-age=600"), ("cache-tag", tag), ("etag", "\"e\"")];
        reply(200, &fields, &"x".repeat(BODY))
    });
    let uri = |path: &str| format!("https://a.example.com{path}").parse().unwrap();
    type By = fn(&World, &dyn Fn(&str) -> http::Uri, &str, Purge) -> u64;
    let purges: [By; 4] = [
        |world, uri, path, how| world.layer.purge(&uri(path), how).unwrap(),
        |world, uri, path, how| world.layer.purge_prefix(&uri(&path[..path.len() - 1]), how).unwrap(),
        |world, _, path, how| world.layer.purge_tag(path.trim_start_matches('/'), how),
        |world, _, _, how| world.layer.purge_all(how),
    ];
    let mut alone = [0; 4];
    for n in 0..10 {
        for how in [Purge::Hard, Purge::Soft] {
            for (by, purge) in purges.into_iter().enumerate() {
                let path = format!("/{how:?}/{by}/{n}/x");
                let twin = format!("/twin{path}");
                world.get(&path).await;
                world.get(&twin).await;
                // Memory drops them: the others are wanted more. A disk that is busy with these would not take them.
                for _ in 0..3 {
                    for n in 0..16 {
                        world.layer.wait_for_disk().await;
                        world.get(&format!("/other/{n}")).await;
                    }
                }
                world.layer.wait_for_disk().await;
                let before = world.stats().disk_hits;
                assert!(world.get(&twin).await.is_hit(), "{twin}");
                let was_on_disk = world.stats().disk_hits > before;
                let found = purge(&world, &uri, &path, how);
                let before = (world.calls(), world.stats().disk_hits);
                let got = world.get(&path).await;
                assert!(!got.is_hit(), "{path} {}", got.cache_status());
                assert_eq!((world.calls(), world.stats().disk_hits), (before.0 + 1, before.1), "{path}");
                alone[by] += usize::from(was_on_disk && (found == 0 || by == 3));
            }
        }
    }
    assert!(alone.iter().all(|times| *times > 5), "{alone:?}");
    let _ = std::fs::remove_dir_all(&dir);
}
