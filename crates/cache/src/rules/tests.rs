use super::*;
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

fn meta(request: &Selecting, status: u16, fields: &[(&'static str, &str)]) -> Option<Meta> {
    let status = StatusCode::from_u16(status).unwrap();
    judge(request, status, &headers(fields), times(), &CacheOptions::default())
}

/// Seconds of freshness left at reception; `None` where nothing is stored.
fn fresh(fields: &[(&'static str, &str)]) -> Option<u64> {
    meta(&Selecting::default(), 200, fields).map(|meta| meta.fresh_for(meta.received).as_secs())
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
        &[(CC, "PRIVATE=\"x\"")],
        &[("vary", "*")],
        &[("vary", "accept"), ("vary", "*")],
        &[("vary", "accept, *")],
        &[("vary", "not a name")],
        &[("vary", "a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q")],
        &[("set-cookie", "id=1")],
        &[("content-range", "bytes 0-1/2")],
    ] {
        assert_eq!(with(more), None, "{more:?}");
    }
}

#[test]
fn a_public_response_is_stored_without_its_cookie() {
    let request = Selecting::default();
    let meta = meta(&request, 200, &[(CC, "public, max-age=60"), ("set-cookie", "id=1")]).unwrap();
    assert!(!meta.headers.contains_key(SET_COOKIE));
}

#[test]
fn statuses() {
    let stored = |status, cc: &'static str| meta(&Selecting::default(), status, &[(CC, cc)]).is_some();
    for status in [200, 203, 204, 301, 302, 308, 404, 410, 500, 503, 599] {
        assert!(stored(status, "max-age=60"), "{status}");
    }
    for status in [101, 206, 304, 401, 407, 416, 421] {
        assert!(!stored(status, "max-age=60"), "{status}");
    }
    assert!(!stored(299, "max-age=60, must-understand"));
    assert!(stored(200, "max-age=60, must-understand"));
}

#[test]
fn authorization_needs_the_origins_word() {
    let request = Selecting { authorized: true, ..Selecting::default() };
    for (cc, want) in [
        ("max-age=60", false),
        ("max-age=60, public", true),
        ("max-age=60, must-revalidate", true),
        ("s-maxage=60", true),
        ("max-age=60, public, private", false),
    ] {
        assert_eq!(meta(&request, 200, &[(CC, cc)]).is_some(), want, "{cc}");
    }
}

#[test]
fn selection_looks_at_every_line_and_value() {
    let fields = |fields: &[(&'static str, &str)]| Selecting {
        fields: headers(fields).iter().map(|(n, v)| (n.clone(), v.clone())).collect(),
        authorized: false,
    };
    let response = [(CC, "max-age=60"), ("vary", "Accept-Language"), ("vary", "X-A, accept-language")];
    let request = [("accept-language", "de"), ("accept-language", "en"), ("user-agent", "x")];
    let stored = meta(&fields(&request), 200, &response).unwrap();
    for (request, want) in [
        (&request[..], true),
        (&[("accept-language", "de"), ("accept-language", "en")], true),
        (&[("accept-language", "en"), ("accept-language", "de")], false),
        (&[("accept-language", "de")], false),
        (&[("accept-language", "de"), ("accept-language", "en"), ("x-a", "1")], false),
        (&[], false),
    ] {
        assert_eq!(stored.selected_by(&headers(request)), want, "{request:?}");
    }
    let plain = meta(&Selecting::default(), 200, &[(CC, "max-age=60")]).unwrap();
    assert!(plain.selected_by(&headers(&request)) && !plain.same_selection(&stored));
}

#[test]
fn what_requests_ask_for() {
    let stored = meta(&Selecting::default(), 200, &[(CC, "max-age=60"), ("age", "20")]).unwrap();
    for (cc, want) in [
        ("max-age=30", Use::Fresh(Duration::from_secs(40))),
        ("max-age=10", Use::Asked),
        ("min-fresh=30", Use::Fresh(Duration::from_secs(40))),
        ("min-fresh=50", Use::Asked),
        ("no-cache", Use::Asked),
        ("max-stale", Use::Fresh(Duration::from_secs(40))),
    ] {
        let request = RequestDirectives::read(&headers(&[(CC, cc)]));
        assert_eq!(stored.usable(&request, stored.received), want, "{cc}");
    }
    let later = stored.received + Duration::from_secs(40);
    assert_eq!(stored.usable(&RequestDirectives::default(), later), Use::Stale);
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
    ];
    let stored = meta(&Selecting::default(), 200, &fields).unwrap().headers;
    let mut names: Vec<_> = stored.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["cache-control", "date", "x-three"]);
    assert_eq!(stored.get_all("x-three").iter().count(), 2);
    assert_eq!(stored[DATE], "Sun, 06 Nov 1994 08:49:37 GMT");
}

#[test]
fn a_304_updates_all_lines_but_not_the_body_s_fields() {
    let fields = [(CC, "max-age=60"), ("etag", "\"a\""), ("content-length", "5"), ("x", "1"), ("y", "1")];
    let stored = meta(&Selecting::default(), 200, &fields).unwrap();
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
        if let Some(meta) = meta(&Selecting::default(), status, &fields) {
            prop_assert!(meta.fresh_for(meta.received) <= CacheOptions::default().max_ttl);
            prop_assert!(!cc.to_ascii_lowercase().split(',').any(|d| d.trim() == "no-store") || cc.contains('"'));
        }
    }
}
