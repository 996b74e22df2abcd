//! What one client could try in order to be in another's answer.

use http::Method;
use portcullis_cache::{CacheRules, Query};

use crate::world::{FRESH, World, get, reply, request};

/// Fields that are in no key: an origin that heeds them has to say so in `Vary`. They are passed on as they are, so what counts here is that the answer to them is
/// the answer to all, and that with `Vary` it is not.
#[tokio::test]
async fn unkeyed_fields() {
    for name in [
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-forwarded-for",
        "x-forwarded-port",
        "x-host",
        "x-original-host",
        "forwarded",
        "x-real-ip",
        "origin",
        "accept",
        "user-agent",
        "referer",
        "x-any",
    ] {
        for vary in [false, true] {
            let world = World::new(move |_, request| {
                let fields = [("cache-control", "max-age=60"), ("vary", name)];
                let said = request.headers.get(name).map_or("none", |value| value.to_str().unwrap());
                reply(200, if vary { &fields } else { &fields[..1] }, said)
            });
            world.get("/").await;
            let evil = world.send(get("/", &[(name, "evil")])).await;
            assert_eq!(evil.is_hit(), !vary, "{name}");
            let after = world.get("/").await;
            assert!(after.is_hit() && after.body == "none", "{name}: {after:?}");
        }
    }
}

/// Methods and fields that ask for something else under the same URI.
#[tokio::test]
async fn other_questions_under_the_same_uri() {
    type Fields = &'static [(&'static str, &'static str)];
    let table: &[(Method, Fields)] = &[
        (Method::GET, &[("x-http-method-override", "DELETE")]),
        (Method::GET, &[("x-http-method", "POST")]),
        (Method::GET, &[("x-method-override", "PUT")]),
        (Method::GET, &[("x-original-url", "/admin")]),
        (Method::GET, &[("x-rewrite-url", "/admin")]),
        (Method::GET, &[("content-length", "3")]),
        (Method::GET, &[("content-length", "0, 3")]),
        (Method::GET, &[("transfer-encoding", "chunked")]),
        (Method::GET, &[("upgrade", "h2c")]),
        (Method::GET, &[("range", "bytes=0-0")]),
        (Method::GET, &[("if-match", "\"x\"")]),
        (Method::GET, &[("if-unmodified-since", "Sun, 06 Nov 1994 08:49:37 GMT")]),
        (Method::GET, &[("authorization", "Bearer x")]),
        (Method::GET, &[("cache-control", "no-store")]),
        (Method::HEAD, &[]),
        (Method::OPTIONS, &[]),
        (Method::POST, &[]),
        (Method::GET, &[("host", "b.example.com")]),
        (Method::GET, &[("host", "a.example.com"), ("host", "a.example.com")]),
        (Method::GET, &[("host", "a.example.com:80")]),
        (Method::GET, &[("host", "a.example.com@b")]),
        (Method::GET, &[("host", "a.example.com.")]),
    ];
    for (method, fields) in table {
        let world = World::new(|n, _| reply(200, FRESH, if n == 0 { "evil" } else { "good" }));
        let mut first = get("/", fields);
        *first.method_mut() = method.clone();
        world.send(first).await;
        let got = world.get("/").await;
        assert_eq!((got.body.as_str(), got.is_hit()), ("good", false), "{method} {fields:?}");
    }
}

/// An origin decides what is the same path; the cache takes each for another.
#[tokio::test]
async fn encoded_and_odd_paths() {
    let paths = [
        "/a/b",
        "/a%2fb",
        "/a%2Fb",
        "/a//b",
        "/a/./b",
        "/a/c/../b",
        "/A/b",
        "/a/b/",
        "/a/b;x",
        "/a/b%00",
        "/a/b%20",
        "/%61/b",
        "/a/b?",
        "/a/b?x",
        "/a/b?x=",
        "/a/b??",
        "/a/b?%78",
        "/a\\b",
    ];
    let world = World::new(|_, request| reply(200, FRESH, request.uri.path_and_query().unwrap().as_str()));
    for path in paths {
        let got = world.get(path).await;
        assert_eq!((got.body.as_str(), got.is_hit()), (path, false));
    }
    for path in paths {
        let got = world.get(path).await;
        assert_eq!((got.body.as_str(), got.is_hit()), (path, true));
    }
}

/// Parameters that are left out of the key can't be smuggled into another's.
#[tokio::test]
async fn parameters_that_do_not_count() {
    let rules = CacheRules::default().with_query(Query::Without(vec!["utm".into()]));
    let world = World::ruled(rules, |n, _| reply(200, FRESH, &format!("body {n}")));
    world.get("/?a=1").await;
    for (query, hit) in [
        ("/?a=1&utm=x", true),
        ("/?utm=x&a=1", true),
        ("/?utm=x;a=2&a=1", true),
        ("/?a=1;utm=x", false),
        ("/?a=1%26utm=x", false),
        ("/?%75tm=x&a=1", false),
        ("/?a=1&UTM=x", false),
        ("/?a=1&utm2=x", false),
    ] {
        assert_eq!(world.get(query).await.is_hit(), hit, "{query}");
    }
}

#[tokio::test]
async fn tricks_with_vary() {
    let long = "x".repeat(8000);
    let names = |count: usize| (0..count).map(|n| format!("x-{n},")).collect::<String>();
    for (vary, is_stored) in [
        ("", true),
        ("foo", true),
        ("foo, , bar,", true),
        // A name is a name, however long it is.
        (&long, true),
        (&names(16), true),
        (&names(17), false),
        (&names(40), false),
        ("*", false),
        ("foo, *", false),
        ("foo, \"*\"", false),
        ("not a name", false),
    ] {
        let fields = vary.to_owned();
        let world = World::new(move |n, _| {
            reply(200, &[("cache-control", "max-age=60"), ("vary", &fields)], &format!("body {n}"))
        });
        world.get("/").await;
        let again = world.get("/").await;
        let body = if is_stored { "body 0" } else { "body 1" };
        assert_eq!((again.is_hit(), again.body.as_str()), (is_stored, body), "{vary:?}");
        assert_eq!(world.stats().entries, u64::from(is_stored), "{vary:?}");
    }
    // A value that is too long selects nothing, and is not stored.
    let world = World::counting(&[("cache-control", "max-age=60"), ("vary", "foo")]);
    for _ in 0..2 {
        assert!(!world.send(get("/", &[("foo", &long)])).await.is_hit());
    }
    // What changes its mind about what it varies by is believed in the last thing that it said.
    let world = World::new(|n, _| {
        let vary = if n % 2 == 0 { "foo" } else { "bar" };
        reply(200, &[("cache-control", "max-age=60"), ("vary", vary)], &format!("body {n}"))
    });
    world.send(get("/", &[("foo", "1"), ("bar", "1")])).await;
    world.send(get("/", &[("foo", "2"), ("bar", "1")])).await;
    assert!(world.send(get("/", &[("foo", "3"), ("bar", "1")])).await.body == "body 1");
    assert!(!world.send(get("/", &[("foo", "1"), ("bar", "2")])).await.is_hit());
    assert!(world.stats().entries == 1);
}

/// What an origin may take for another value than the one that it resembles is not stored for that one.
#[tokio::test]
async fn values_that_resemble_others() {
    for (name, evil, good) in [
        ("origin", "https://good.example,", "https://good.example"),
        ("origin", ",https://good.example", "https://good.example"),
        ("x-any", "a,,b", "a,b"),
        ("accept-language", "d e", "de"),
        ("accept-encoding", "g zip", "gzip"),
        ("accept", "text/html;v=A", "text/html;v=a"),
    ] {
        let world = World::new(move |_, request| {
            let fields = [("cache-control", "max-age=60"), ("vary", name)];
            reply(200, &fields, request.headers[name].to_str().unwrap())
        });
        world.send(get("/", &[(name, evil)])).await;
        let got = world.send(get("/", &[(name, good)])).await;
        assert_eq!((got.is_hit(), got.body.as_str()), (false, good), "{name}: {evil}");
    }
    let rules = CacheRules::default().with_key_cookies(["theme".to_owned()]);
    let world =
        World::ruled(rules, |_, request| reply(200, FRESH, request.headers["cookie"].to_str().unwrap()));
    for cookie in ["theme =dark", "theme= dark", "theme=dark"] {
        let got = world.send(get("/", &[("cookie", cookie)])).await;
        assert_eq!((got.is_hit(), got.body.as_str()), (false, cookie));
    }
    assert!(world.send(get("/", &[("cookie", "theme=dark")])).await.is_hit());
}

/// What came for one client is for no other.
#[tokio::test]
async fn private_answers() {
    for fields in [
        &[("cache-control", "private")][..],
        &[("cache-control", "private, max-age=60")],
        &[("cache-control", "max-age=60"), ("cache-control", "private")],
        &[("cache-control", "max-age=60, PRIVATE")],
        &[("cache-control", "max-age=60"), ("set-cookie", "id=1")],
        &[("cache-control", "s-maxage=60"), ("set-cookie", "id=1")],
        &[("expires", "Fri, 01 Jan 2100 00:00:00 GMT"), ("set-cookie", "id=1")],
        &[("cdn-cache-control", "private"), ("cache-control", "public, max-age=60")],
        &[("cache-control", "no-store")],
        &[],
    ] {
        let world = World::new(move |n, _| reply(200, fields, &format!("body {n}")));
        for n in 0..3 {
            let got = world.send(get("/", &[("cookie", "id=1")])).await;
            assert_eq!(
                (got.body, got.headers.contains_key("age")),
                (format!("body {n}"), false),
                "{fields:?}"
            );
        }
    }
    // What says which fields are for one is stored without them.
    let world = World::counting(&[("cache-control", "max-age=60, private=\"x-user\""), ("x-user", "1")]);
    assert_eq!(world.get("/").await.field("x-user"), "1");
    let again = world.get("/").await;
    assert!(again.is_hit() && again.field("x-user").is_empty());
}

/// Whoever has the origin asked, and refuse him or know him, drops nothing that others get.
#[tokio::test]
async fn what_is_said_to_one_client_drops_nothing() {
    let long = "x=".to_owned() + &"x".repeat(9000);
    let known = ("authorization", "Basic eDp5");
    for (fields, status, kept) in [
        (&[known][..], 401, true),
        (&[known], 403, true),
        (&[known], 200, true),
        (&[known], 304, true),
        (&[known], 404, true),
        (&[("cookie", long.as_str())], 400, true),
        (&[], 401, true),
        (&[], 429, true),
        (&[], 503, true),
        // This is of the resource.
        (&[], 200, false),
        (&[], 303, false),
        (&[], 404, false),
        (&[], 410, false),
    ] {
        for method in [Method::GET, Method::HEAD] {
            let world = World::new(move |n, _| match n {
                0 => reply(200, &[("cache-control", "max-age=60"), ("etag", "\"a\"")], "good"),
                1 => reply(status, &[("cache-control", "private"), ("etag", "\"b\"")], ""),
                _ => reply(200, &[], "other"),
            });
            world.get("/").await;
            let mut evil = get("/", &[&[("cache-control", "no-cache")], fields].concat());
            *evil.method_mut() = method.clone();
            world.send(evil).await;
            let after = world.get("/").await;
            assert_eq!(after.is_hit(), kept, "{method} {status} {fields:?}");
            assert_eq!(world.calls(), if kept { 2 } else { 3 });
        }
    }
}

#[tokio::test]
async fn hosts_of_requests_with_absolute_uris() {
    let world = World::new(|_, request| {
        reply(
            200,
            FRESH,
            request.uri.host().or(request.headers.get("host").map(|h| h.to_str().unwrap())).unwrap(),
        )
    });
    for (uri, fields) in [
        ("https://a/", &[][..]),
        ("https://b/", &[]),
        ("https://b/", &[("host", "a")]),
        ("/", &[("host", "b")]),
        ("http://a/", &[]),
    ] {
        world.send(request(Method::GET, uri, fields)).await;
    }
    for (uri, host, body) in [("/", "a", "a"), ("/", "b", "b")] {
        let got = world.send(request(Method::GET, uri, &[("host", host)])).await;
        assert!(got.is_hit() && got.body == body, "{got:?}");
    }
}
