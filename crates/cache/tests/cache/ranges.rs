//! Parts of what is stored, and of what is on its way.

use http::{Method, StatusCode};
use portcullis_cache::CacheRules;

use crate::world::{Also, DATE, World, get, reply, request, settle, stream};
use portcullis_testkit::body::ScriptBody;

const FIELDS: &[(&str, &str)] = &[
    ("cache-control", "max-age=60"),
    ("etag", "\"a\""),
    ("last-modified", DATE),
    ("content-type", "text/plain"),
];

#[tokio::test]
async fn of_a_stored_response() {
    let world = World::new(|_, _| reply(200, FIELDS, "0123456789"));
    world.get("/").await;
    for (fields, status, body, range) in [
        (&[("range", "bytes=0-1")][..], 206, "01", "bytes 0-1/10"),
        (&[("range", "bytes=8-")], 206, "89", "bytes 8-9/10"),
        (&[("range", "bytes=-3")], 206, "789", "bytes 7-9/10"),
        (&[("range", "bytes=0-99")], 206, "0123456789", "bytes 0-9/10"),
        (&[("range", "bytes=10-")], 416, "", "bytes */10"),
        (&[("range", "bytes=0-1, 3-4")], 200, "0123456789", ""),
        (&[("range", "bytes=x")], 200, "0123456789", ""),
        (&[("range", "bytes=0-1"), ("range", "bytes=2-3")], 200, "0123456789", ""),
        (&[("range", "bytes=0-1"), ("if-range", "\"a\"")], 206, "01", "bytes 0-1/10"),
        (&[("range", "bytes=0-1"), ("if-range", DATE)], 206, "01", "bytes 0-1/10"),
        (&[("range", "bytes=0-1"), ("if-range", "\"b\"")], 200, "0123456789", ""),
        (&[("range", "bytes=0-1"), ("if-range", "W/\"a\"")], 200, "0123456789", ""),
        (&[("range", "bytes=0-1"), ("if-none-match", "\"a\"")], 304, "", ""),
        (&[("range", "bytes=0-1"), ("if-none-match", "\"b\"")], 206, "01", "bytes 0-1/10"),
    ] {
        let got = world.send(get("/", fields)).await;
        assert_eq!((got.status.as_u16(), got.body.as_str()), (status, body), "{fields:?}");
        assert_eq!(got.field("content-range"), range, "{fields:?}");
        assert!(got.is_hit() && got.field("etag") == "\"a\"" && got.headers.contains_key("age"));
        if status == 206 {
            assert_eq!(got.field("content-length"), body.len().to_string());
        }
    }
    let mut head = request(Method::HEAD, "/", &[("host", "a.example.com"), ("range", "bytes=0-1")]);
    *head.method_mut() = Method::HEAD;
    assert_eq!(world.send(head).await.status, StatusCode::OK, "a range is a matter of GET");
    assert_eq!(world.calls(), 1);
}

#[tokio::test]
async fn of_a_body_in_many_pieces() {
    let world = World::new(|_, _| {
        let body = (0..100).fold(ScriptBody::new(), |body, n| body.data(vec![n; 10_000]));
        stream(200, FIELDS, body)
    });
    let start = |range: &str| {
        let world = &world;
        let request = get("/", &[("range", range)]);
        async move {
            let response = world.start(request).await;
            http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes()
        }
    };
    http_body_util::BodyExt::collect(world.start(get("/", &[])).await.into_body()).await.unwrap();
    let all: Vec<u8> = (0..100_u8).flat_map(|n| vec![n; 10_000]).collect();
    for (range, want) in [
        ("bytes=0-", &all[..]),
        ("bytes=9999-10000", &all[9_999..10_001]),
        ("bytes=65530-131080", &all[65_530..131_081]),
        ("bytes=-1", &all[999_999..]),
    ] {
        assert!(start(range).await == want, "{range}");
    }
    assert_eq!(world.calls(), 1);
}

#[tokio::test]
async fn of_what_is_not_stored_they_pass() {
    let world = World::new(|_, request| match request.headers.get("range") {
        Some(_) => reply(206, &[("cache-control", "max-age=60"), ("content-range", "bytes 0-1/10")], "01"),
        None => reply(200, FIELDS, "0123456789"),
    });
    let range = || get("/", &[("range", "bytes=0-1")]);
    for _ in 0..2 {
        let got = world.send(range()).await;
        assert_eq!((got.status.as_u16(), got.cache_status()), (206, "fwd=uri-miss"));
    }
    let whole = world.get("/").await;
    assert_eq!(
        (whole.status.as_u16(), whole.body.as_str()),
        (200, "0123456789"),
        "a part is not stored as the whole"
    );
    assert!(world.send(range()).await.is_hit());
    assert_eq!(world.calls(), 3);
}

#[tokio::test]
async fn of_what_is_not_stored_they_are_cut_from_the_whole_by_choice() {
    for length in [true, false] {
        let world = World::ruled(CacheRules::default().with_fetch_ranges(true), move |_, request| {
            assert!(!request.headers.contains_key("range") && !request.headers.contains_key("if-range"));
            let mut fields = FIELDS.to_vec();
            if length {
                fields.push(("content-length", "10"));
            }
            stream(200, &fields, ScriptBody::new().data("0123").pend().data("45").data("6789"))
        });
        let got = world.send(get("/", &[("range", "bytes=3-4"), ("if-range", "\"a\"")])).await;
        let want = if length { (206, "34") } else { (200, "0123456789") };
        assert_eq!((got.status.as_u16(), got.body.as_str()), want);
        settle().await;
        let got = world.send(get("/", &[("range", "bytes=3-")])).await;
        assert!(got.is_hit(), "the rest was read for nobody");
        assert_eq!((got.status.as_u16(), got.body.as_str()), (206, "3456789"));
        assert_eq!(world.calls(), 1);
    }
}

/// Also where there is no part of it to be given out.
#[tokio::test]
async fn a_range_behind_the_end_leaves_the_whole_behind() {
    let world = World::ruled(CacheRules::default().with_fetch_ranges(true), |_, _| {
        reply(200, FIELDS, "0123456789").also(("content-length", "10"))
    });
    let got = world.send(get("/", &[("range", "bytes=10-")])).await;
    assert_eq!((got.status.as_u16(), got.field("content-range")), (416, "bytes */10"));
    settle().await;
    assert!(world.get("/").await.is_hit());
}

/// What is not to be stored is not sent whole for each range.
#[tokio::test]
async fn of_what_is_never_stored_they_pass() {
    type Fields = &'static [(&'static str, &'static str)];
    let cases: [(Fields, Fields, &'static [&'static str]); 4] = [
        (&[("cache-control", "private")], &[], &["01"]),
        // Before the head nobody knows, and where no length is told not before the end.
        (&[("cache-control", "max-age=60"), ("content-length", "10")], &[], &["0123", "45", "6789"]),
        (&[("cache-control", "max-age=60")], &[], &["0123", "45", "6789"]),
        (&[("cache-control", "max-age=60")], &[("authorization", "x")], &["01"]),
    ];
    for (fields, sent, pieces) in cases {
        let rules = CacheRules::default().with_fetch_ranges(true).with_max_object_bytes(5);
        let world = World::ruled(rules, move |_, request| match request.headers.get("range") {
            Some(_) => reply(206, &[("content-range", "bytes 0-1/10")], "01"),
            None => {
                stream(200, fields, pieces.iter().fold(ScriptBody::new(), |body, piece| body.data(*piece)))
            }
        });
        let ask = || get("/", &[&[("range", "bytes=0-1")], sent].concat());
        for range in [false, true, true] {
            world.send(ask()).await;
            settle().await;
            assert_eq!(world.last().contains_key("range"), range, "{fields:?} {sent:?}");
        }
        // What those with credentials get says nothing of what others do.
        if !sent.is_empty() {
            world.send(get("/", &[("range", "bytes=0-1")])).await;
            assert!(!world.last().contains_key("range"));
        }
    }
}

/// What is there and stale is asked about, whatever the last answer was.
#[tokio::test]
async fn of_what_is_validated_they_do_not_pass() {
    let world = World::ruled(CacheRules::default().with_fetch_ranges(true), |n, _| {
        let fields = [("cache-control", "no-cache"), ("etag", "\"a\"")];
        if n == 0 { reply(200, &fields, "0123456789") } else { reply(304, &fields, "") }
    });
    world.get("/").await;
    let got = world.send(get("/", &[("range", "bytes=3-4")])).await;
    assert_eq!((got.status.as_u16(), got.body.as_str()), (206, "34"));
}

/// RFC 5861 section 4.
#[tokio::test]
async fn of_what_is_stale_when_the_origin_fails() {
    let world = World::new(|n, request| match n {
        0 => {
            let cc = ("cache-control", "max-age=60, stale-if-error=600");
            reply(200, &[cc, ("age", "60"), ("etag", "\"a\"")], "0123456789")
        }
        1 => {
            assert!(request.headers.contains_key("range"));
            reply(503, &[], "down")
        }
        _ => reply(206, &[("content-range", "bytes 3-4/10")], "xy"),
    });
    world.get("/").await;
    let range = || get("/", &[("range", "bytes=3-4")]);
    let got = world.send(range()).await;
    assert_eq!((got.status.as_u16(), got.body.as_str()), (206, "34"));
    assert!(got.cache_status().contains("detail=stale-if-error"), "{got:?}");
    assert_eq!((world.stats().stale, world.stats().misses), (1, 1));
    let got = world.send(range()).await;
    assert_eq!((got.body.as_str(), got.cache_status()), ("xy", "fwd=stale"));
    assert_eq!((world.stats().stale, world.stats().misses), (1, 2));
}
