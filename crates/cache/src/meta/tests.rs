use super::*;
use crate::rules::{Heuristic, StatusTtl};
use proptest::prelude::*;

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, value.parse().unwrap());
    }
    headers
}

fn times() -> Times {
    let now = Instant::now();
    // Sun, 06 Nov 1994 08:49:37 GMT.
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
    Times { asked: now, received: now, wall }
}

fn meta(request: &Asked, status: u16, fields: &[(&'static str, &str)]) -> Option<Meta> {
    let status = StatusCode::from_u16(status).unwrap();
    judge(request, status, &headers(fields), times(), &CacheRules::default())
}

/// Seconds of freshness left at reception; `None` where nothing is stored.
fn fresh(fields: &[(&'static str, &str)]) -> Option<u64> {
    meta(&Asked::default(), 200, fields).map(|meta| meta.fresh_for(meta.received).as_secs())
}

const CC: &str = "cache-control";

#[test]
fn freshness() {
    let now = "Sun, 06 Nov 1994 08:49:37 GMT";
    let in_a_minute = "Sun, 06 Nov 1994 08:50:37 GMT";
    let a_minute_ago = "Sun, 06 Nov 1994 08:48:37 GMT";
    for (fields, want) in [
        (&[(CC, "max-age=60")][..], Some(60)),
        (&[(CC, "max-age=60"), ("age", "20")], Some(40)),
        (&[(CC, "max-age=60"), ("age", "20, 50")], Some(40)),
        (&[(CC, "max-age=60"), ("age", "x")], Some(60)),
        (&[(CC, "max-age=60"), ("age", "60")], None),
        (&[(CC, "max-age=60"), ("age", "18446744073709551615")], None),
        (&[(CC, "max-age=60"), ("date", a_minute_ago)], None),
        (&[(CC, "max-age=90"), ("date", a_minute_ago), ("age", "5")], Some(30)),
        (&[(CC, "max-age=60"), ("date", in_a_minute)], Some(60)),
        (&[(CC, "max-age=60, s-maxage=10")], Some(10)),
        (&[(CC, "max-age=10, s-maxage=60")], Some(60)),
        (&[(CC, "s-maxage=0, max-age=60")], None),
        (&[("expires", in_a_minute), ("date", now)], Some(60)),
        (&[("expires", in_a_minute)], Some(60)),
        (&[("expires", "Sunday, 06-Nov-94 08:50:37 GMT")], Some(60)),
        (&[("expires", "Sun Nov  6 08:50:37 1994")], Some(60)),
        (&[("expires", in_a_minute), (CC, "max-age=5")], Some(5)),
        (&[("expires", a_minute_ago)], None),
        (&[("expires", "0")], None),
        (&[("expires", in_a_minute), ("expires", in_a_minute)], None),
        (&[(CC, "max-age=99999999999")], Some(24 * 3600)),
        (&[("cdn-cache-control", "max-age=60"), (CC, "no-store"), ("expires", "0")], Some(60)),
        (&[("cdn-cache-control", "max-age=5"), (CC, "s-maxage=60")], Some(5)),
        (&[("cdn-cache-control", "no-store"), (CC, "max-age=60")], None),
        (&[("cdn-cache-control", "private"), (CC, "max-age=60")], None),
        (&[("cdn-cache-control", "x"), (CC, "max-age=60")], None),
        (&[("cdn-cache-control", "x"), ("expires", in_a_minute)], None),
        (&[("cdn-cache-control", "max-age=60, &"), (CC, "max-age=5")], Some(5)),
        (&[("cdn-cache-control", "no-cache"), ("etag", "\"a\"")], Some(0)),
        (&[(CC, "max-age=60, no-store, must-understand")], Some(60)),
        // Given out stale while it is asked for anew, so it is of use.
        (&[(CC, "max-age=0, stale-while-revalidate=60")], Some(0)),
        (&[(CC, "max-age=0, stale-while-revalidate=60, must-revalidate")], None),
        // Kept for validation only.
        (&[(CC, "max-age=0"), ("etag", "\"a\"")], Some(0)),
        (&[(CC, "no-cache"), ("last-modified", now)], Some(0)),
        (&[(CC, "no-cache")], None),
        // Without explicit freshness nothing is stored.
        (&[], None),
        (&[("etag", "\"a\""), ("last-modified", a_minute_ago)], None),
        (&[(CC, "public")], None),
    ] {
        assert_eq!(fresh(fields), want, "{fields:?}");
    }
}

#[test]
fn what_is_never_stored() {
    let with = |more: &[(&'static str, &'static str)]| {
        let mut fields = vec![(CC, "max-age=60")];
        fields.extend_from_slice(more);
        fresh(&fields)
    };
    assert_eq!(with(&[]), Some(60));
    for more in [
        &[(CC, "no-store")][..],
        &[(CC, "No-Store")],
        &[(CC, "private")],
        &[(CC, "PRIVATE=\"x y\"")],
        &[("vary", "*")],
        &[("vary", "accept"), ("vary", "*")],
        &[("vary", "accept, *")],
        &[("vary", "not a name")],
        &[("vary", "a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q")],
        &[("set-cookie", "id=1")],
    ] {
        assert_eq!(with(more), None, "{more:?}");
    }
}

#[test]
fn a_public_response_is_stored_without_its_cookie() {
    let request = Asked::default();
    let meta = meta(&request, 200, &[(CC, "public, max-age=60"), ("set-cookie", "id=1")]).unwrap();
    assert!(!meta.headers.contains_key(SET_COOKIE));
}

#[test]
fn statuses() {
    let stored = |status, cc: &'static str| meta(&Asked::default(), status, &[(CC, cc)]).is_some();
    for status in [200, 203, 204, 301, 302, 308, 404, 410, 451, 500, 503, 599] {
        assert!(stored(status, "max-age=60"), "{status}");
    }
    for status in [101, 206, 304, 401, 407, 408, 416, 421, 425, 428, 429, 431, 511] {
        assert!(!stored(status, "public, max-age=60"), "{status}");
    }
    let overrides = [StatusTtl { statuses: 400..=599, ttl: Duration::from_secs(3), overrides: true }];
    let rules = CacheRules::default().with_ttl(overrides);
    let ruled = |status| judge(&Asked::default(), status, &headers(&[]), times(), &rules).is_some();
    assert!(ruled(StatusCode::NOT_FOUND) && !ruled(StatusCode::TOO_MANY_REQUESTS));
    assert!(!stored(299, "max-age=60, must-understand"));
    assert!(!stored(599, "max-age=60, must-understand, no-store"));
    assert!(stored(200, "max-age=60, must-understand"));
}

#[test]
fn authorization_needs_the_origins_word() {
    let request = Asked { authorized: true, ..Asked::default() };
    for (cc, want) in [
        ("max-age=60", false),
        ("max-age=60, public", true),
        ("max-age=60, must-revalidate", true),
        ("max-age=60, proxy-revalidate", false),
        ("max-age=60, proxy-revalidate, must-revalidate", true),
        ("s-maxage=60", true),
        ("max-age=60, public, private", false),
    ] {
        assert_eq!(meta(&request, 200, &[(CC, cc)]).is_some(), want, "{cc}");
    }
}

#[test]
fn what_is_withheld_is_not_stored() {
    let fields = [
        (CC, "max-age=60, private=\"a, X-B\""),
        (CC, "no-cache=\"c\""),
        ("a", "1"),
        ("x-b", "2"),
        ("c", "3"),
        ("d", "4"),
    ];
    let stored = meta(&Asked::default(), 200, &fields).unwrap();
    let mut names: Vec<_> = stored.headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["cache-control", "d", "date"]);
    assert_eq!(stored.fresh_for(stored.received).as_secs(), 60, "the rest is as fresh as it is");
}

#[test]
fn rules_say_for_how_long() {
    let modified = "Sun, 06 Nov 1994 08:32:57 GMT";
    let rules = CacheRules::default()
        .with_heuristic(Some(Heuristic { percent: 10, max: Duration::from_secs(90) }))
        .with_max_ttl(Duration::MAX)
        .with_stale_if_error(Duration::MAX)
        .with_ttl([
            StatusTtl { statuses: 204..=204, ttl: Duration::MAX, overrides: false },
            StatusTtl { statuses: 404..=404, ttl: Duration::from_secs(7), overrides: false },
            StatusTtl { statuses: 500..=599, ttl: Duration::from_secs(3), overrides: true },
        ]);
    for (status, fields, want) in [
        // 1000 s before the date
        (200, &[("last-modified", modified)][..], Some(90)),
        (200, &[("last-modified", "Sun, 06 Nov 1994 08:47:57 GMT")], Some(10)),
        (200, &[("last-modified", modified), (CC, "max-age=5")], Some(5)),
        (200, &[("last-modified", "x")], None),
        (200, &[], None),
        (201, &[("last-modified", modified)], None),
        (201, &[("last-modified", modified), (CC, "public")], Some(90)),
        (200, &[("last-modified", modified), (CC, "private")], None),
        (404, &[], Some(7)),
        (404, &[(CC, "max-age=5")], Some(5)),
        (404, &[(CC, "no-store")], None),
        (404, &[("set-cookie", "a=1")], None),
        (503, &[], Some(3)),
        (503, &[(CC, "max-age=60")], Some(3)),
        (503, &[(CC, "private")], None),
        (403, &[], None),
        (204, &[], Some(u64::MAX)),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        let judged = judge(&Asked::default(), status, &headers(fields), times(), &rules);
        let seconds = judged.as_ref().map(|meta| meta.fresh_for(meta.received).as_secs());
        assert_eq!(seconds, want, "{status} {fields:?}");
        let kept = judged.map(|meta| meta.expires_in(meta.received, Duration::MAX));
        assert!(kept.is_none_or(|kept| kept.as_secs() >= want.unwrap()), "{status} {fields:?}");
    }
}

#[test]
fn what_may_be_given_out_stale() {
    let seconds = Duration::from_secs;
    let table: &[(&'static str, &str, u64, Use, bool)] = &[
        ("max-age=10", "", 15, Use::Stale, false),
        ("max-age=10, stale-while-revalidate=10", "", 15, Use::Revalidating(seconds(5)), false),
        ("max-age=10, stale-while-revalidate=10", "", 20, Use::Stale, false),
        ("max-age=10, stale-while-revalidate=10", "no-cache", 15, Use::Stale, false),
        ("max-age=10, stale-while-revalidate=10", "max-age=12", 15, Use::Stale, false),
        ("max-age=10, stale-while-revalidate=10", "min-fresh=1", 15, Use::Stale, false),
        ("max-age=10, stale-while-revalidate=10, must-revalidate", "", 15, Use::Stale, false),
        ("s-maxage=10, stale-while-revalidate=10", "", 15, Use::Stale, false),
        ("max-age=10, stale-if-error=10", "", 15, Use::Stale, true),
        ("max-age=10, stale-if-error=10", "", 20, Use::Stale, false),
        ("max-age=10, stale-if-error=10, proxy-revalidate", "", 15, Use::Stale, false),
        ("max-age=10, stale-if-error=10", "no-cache", 15, Use::Stale, false),
        ("max-age=10", "stale-if-error=10", 15, Use::Stale, true),
        ("max-age=10", "max-stale=5", 15, Use::Taken(seconds(5)), false),
        ("max-age=10", "max-stale=4", 15, Use::Stale, false),
        ("max-age=10", "max-stale", 100, Use::Taken(seconds(90)), false),
        ("max-age=10, must-revalidate", "max-stale", 15, Use::Stale, false),
        ("max-age=10, no-cache", "max-stale", 5, Use::Stale, false),
    ];
    for (response, request, age, want, on_error) in table {
        let stored = meta(&Asked::default(), 200, &[(CC, response), ("etag", "\"a\"")]).unwrap();
        let request = RequestDirectives::read(&headers(&[(CC, request)]));
        let now = stored.received + seconds(*age);
        assert_eq!(stored.usable(&request, now, None), *want, "{response}");
        assert_eq!(stored.usable_on_error(&request, now, None), *on_error, "{response}");
    }
    let fresh = meta(&Asked::default(), 200, &[(CC, "max-age=10")]).unwrap();
    let outdated = Some(fresh.received);
    assert_eq!(fresh.usable(&RequestDirectives::default(), fresh.received, outdated), Use::Stale, "outdated");
}

/// RFC 5861 counts from when it became stale, which a soft purge makes it at once.
#[test]
fn what_is_purged_softly_is_stale_since_then() {
    let seconds = Duration::from_secs;
    let cc = "max-age=60, stale-while-revalidate=10, stale-if-error=20";
    let stored = meta(&Asked::default(), 200, &[(CC, cc)]).unwrap();
    let request = RequestDirectives::default();
    let purged = |at: u64| Some(stored.received + seconds(at));
    for (outdated, at, want, on_error) in [
        (purged(5), 5, Use::Revalidating(seconds(0)), true),
        (purged(5), 14, Use::Revalidating(seconds(9)), true),
        (purged(5), 15, Use::Stale, true),
        (purged(5), 25, Use::Stale, false),
        // It had ended before.
        (purged(65), 66, Use::Revalidating(seconds(6)), true),
        (purged(65), 75, Use::Stale, true),
        (purged(65), 80, Use::Stale, false),
        (None, 69, Use::Revalidating(seconds(9)), true),
    ] {
        let now = stored.received + seconds(at);
        assert_eq!(stored.usable(&request, now, outdated), want, "{at}");
        assert_eq!(stored.usable_on_error(&request, now, outdated), on_error, "{at}");
    }
}

/// RFC 9111 section 4.3.5.
#[test]
fn what_a_head_says() {
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let other = "Sun, 06 Nov 1994 08:49:38 GMT";
    let (tag, modified) = (("etag", "\"a\""), ("last-modified", date));
    for (stored, head, want) in [
        (&[tag][..], &[tag][..], Compared::Same),
        (&[tag], &[tag, ("content-length", "4")], Compared::Same),
        (&[tag, modified], &[tag], Compared::Same),
        (&[tag, modified], &[tag, modified], Compared::Same),
        (&[modified], &[modified], Compared::Same),
        (&[tag], &[tag, modified], Compared::Other),
        (&[tag], &[("etag", "\"b\"")], Compared::Other),
        (&[tag], &[("etag", "W/\"a\"")], Compared::Other),
        (&[tag, modified], &[tag, ("last-modified", other)], Compared::Other),
        (&[tag], &[tag, ("content-length", "5")], Compared::Other),
        (&[tag], &[tag, ("content-length", "x")], Compared::Other),
        (&[], &[tag], Compared::Other),
        (&[], &[("content-length", "5")], Compared::Other),
        (&[("content-length", "5")], &[("content-length", "4")], Compared::Unknown),
        (&[], &[("content-length", "4")], Compared::Unknown),
        (&[tag], &[("content-length", "4")], Compared::Unknown),
        (&[tag, modified], &[], Compared::Unknown),
    ] {
        let fields = [&[(CC, "max-age=60")], stored].concat();
        let stored = meta(&Asked::default(), 200, &fields).unwrap();
        assert_eq!(stored.compare(&headers(head), 4), want, "{fields:?} {head:?}");
    }
}

#[test]
fn what_requests_ask_for() {
    let stored = meta(&Asked::default(), 200, &[(CC, "max-age=60"), ("age", "20")]).unwrap();
    for (cc, want) in [
        ("max-age=30", Use::Fresh(Duration::from_secs(40))),
        ("max-age=10", Use::Asked),
        ("min-fresh=30", Use::Fresh(Duration::from_secs(40))),
        ("min-fresh=50", Use::Asked),
        ("no-cache", Use::Asked),
        ("max-stale", Use::Fresh(Duration::from_secs(40))),
    ] {
        let request = RequestDirectives::read(&headers(&[(CC, cc)]));
        assert_eq!(stored.usable(&request, stored.received, None), want, "{cc}");
    }
    let later = stored.received + Duration::from_secs(40);
    assert_eq!(stored.usable(&RequestDirectives::default(), later, None), Use::Stale);
    assert_eq!(stored.age(later).as_secs(), 60);
}

#[test]
fn fields_of_the_connection_are_not_stored() {
    let fields = [
        (CC, "max-age=60"),
        ("connection", "x-one"),
        ("connection", "close, X-Two"),
        ("x-one", "1"),
        ("x-two", "2"),
        ("x-three", "3"),
        ("x-three", "4"),
        ("keep-alive", "timeout=5"),
        ("transfer-encoding", "chunked"),
        ("age", "0"),
        ("proxy-authorization", "x"),
    ];
    let stored = meta(&Asked::default(), 200, &fields).unwrap().headers;
    let mut names: Vec<_> = stored.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["cache-control", "date", "x-three"]);
    assert_eq!(stored.get_all("x-three").iter().count(), 2);
    assert_eq!(stored[DATE], "Sun, 06 Nov 1994 08:49:37 GMT");
}

/// What it was read with is let go of, also after a 304.
#[test]
fn fields_are_copied() {
    let head = Bytes::from(["max-age=60", "\"a\"", "", "x-value"].concat().into_bytes());
    let value = |range: std::ops::Range<usize>| HeaderValue::from_maybe_shared(head.slice(range)).unwrap();
    let mut fields = HeaderMap::new();
    fields.insert(CC, value(0..10));
    fields.insert("etag", value(10..13));
    fields.insert("x-empty", value(13..13));
    fields.append("x", value(13..20));
    let mut secret = value(13..14);
    secret.set_sensitive(true);
    fields.append("x", secret);
    let judged = |fields: &HeaderMap| {
        judge(&Asked::default(), StatusCode::OK, fields, times(), &CacheRules::default()).unwrap()
    };
    let first = judged(&fields);
    let second = judged(&first.updated(&fields).unwrap());
    drop((fields, value));
    assert!(head.is_unique());
    for meta in [first, second] {
        assert_eq!(
            (&meta.headers[CC], &meta.headers["etag"]),
            (&"max-age=60".parse().unwrap(), &"\"a\"".parse().unwrap())
        );
        assert_eq!(meta.headers["x-empty"], "");
        let x: Vec<_> =
            meta.headers.get_all("x").iter().map(|x| (x.to_str().unwrap(), x.is_sensitive())).collect();
        assert_eq!(x, [("x-value", false), ("x", true)]);
    }
}

#[test]
fn a_304_updates_all_lines_but_not_the_body_s_fields() {
    let fields = [(CC, "max-age=60"), ("etag", "\"a\""), ("content-length", "5"), ("x", "1"), ("y", "1")];
    let stored = meta(&Asked::default(), 200, &fields).unwrap();
    let not_modified =
        [(CC, "max-age=9"), ("etag", "\"a\""), ("content-length", "0"), ("x", "2"), ("x", "3")];
    let updated = stored.updated(&headers(&not_modified)).unwrap();
    assert_eq!(updated[CC], "max-age=9");
    assert_eq!(updated["content-length"], "5");
    assert_eq!(updated["y"], "1");
    assert_eq!(updated.get_all("x").iter().collect::<Vec<_>>(), ["2", "3"]);
    assert!(stored.updated(&headers(&[("etag", "\"b\"")])).is_none());
    assert!(stored.updated(&headers(&[("etag", "W/\"a\"")])).is_some());
}

proptest! {
    /// Whatever an origin says, it is never fresh for longer than allowed, and nothing panics.
    #[test]
    fn an_origin_can_say_what_it_likes(
        cc in "[ -~]{0,40}", age in "[ -~]{0,25}", expires in "[ -~]{0,32}", date in "[ -~]{0,32}",
        vary in "[ -~]{0,20}", status in 100_u16..1000,
    ) {
        let fields = [(CC, cc.as_str()), ("age", &age), ("expires", &expires), ("date", &date), ("vary", &vary)];
        if let Some(meta) = meta(&Asked::default(), status, &fields) {
            prop_assert!(meta.fresh_for(meta.received) <= CacheRules::default().max_ttl);
            let cc = cc.to_ascii_lowercase();
            let no_store = cc.split(',').any(|d| d.trim() == "no-store");
            prop_assert!(!no_store || cc.contains('"') || cc.contains("must-understand"));
        }
    }
}
