use proptest::prelude::*;

use super::*;

fn prefix(path: &str) -> PathMatch {
    PathMatch::Prefix(path.to_owned())
}

fn segments_of(path: &str) -> PathMatch {
    PathMatch::Segments(path.to_owned())
}

fn regex_of(path: &str) -> PathMatch {
    PathMatch::Regex(path.to_owned())
}

fn applied(rewrite: &Rewrite, target: &str) -> Result<String, TargetError> {
    rewrite.apply(&target.parse().unwrap()).map(|target| target.to_string())
}

#[test]
fn prefixes() {
    let strip = |from: &str, route: &str| Rewrite::strip_prefix(from, &prefix(route)).unwrap();
    let replace = |from: &str, to: &str| Rewrite::replace_prefix(from, to, &prefix(from)).unwrap();
    for (rewrite, from, to) in [
        (strip("/api", "/api"), "/api", "/"),
        (strip("/api", "/api"), "/api?x=%20", "/?x=%20"),
        (strip("/api", "/api"), "/api/", "/"),
        (strip("/api", "/api/v1"), "/api/v1/x?y", "/v1/x?y"),
        (strip("/api/", "/api/"), "/api/x", "/x"),
        // never a reference with a host of the client's
        (strip("/api", "/api"), "/api//evil.example/x", "/evil.example/x"),
        // as it was routed
        (strip("/api", "/api"), "/%61pi/%7e%2f", "/~%2f"),
        (strip("/", "/"), "/a/b", "/a/b"),
        (replace("/api", "/v2/"), "/api/x", "/v2/x"),
        (replace("/api", "/v2"), "/api", "/v2"),
        (replace("/", "/v2"), "/x", "/v2/x"),
        (replace("/", "/v2"), "*", "*"),
    ] {
        assert_eq!(applied(&rewrite, from).as_deref(), Ok(to), "{from}");
    }
    assert_eq!(applied(&strip("/api", "/api"), "/api/../x"), Err(TargetError::DotSegments));
    assert_eq!(applied(&strip("/api", "/api"), "/apix"), Err(TargetError::Invalid));
    for (from, route) in [("/api", prefix("/")), ("/api", prefix("/apix")), ("/a", regex_of("/a"))] {
        assert!(matches!(Rewrite::strip_prefix(from, &route), Err(RewriteError::NotBelow(_))), "{route}");
    }
    for bad in ["api", "/a/..", "/{x}", "/a b", "/a?b"] {
        assert!(
            matches!(Rewrite::replace_prefix("/", bad, &prefix("/")), Err(RewriteError::BadPath(_))),
            "{bad}"
        );
    }
}

#[test]
fn templates() {
    let users = segments_of("/users/{id}/posts/{*rest}");
    let dated = regex_of(r"/(?P<year>\d{4})/(\w+)(-x)?");
    for (route, text, from, to) in [
        (&users, "/p/{rest}/of/{id}", "/users/7/posts/a/b?q=1", "/p/a/b/of/7?q=1"),
        (&users, "/p/{*rest}?by={id}", "/users/7/posts/?q=1", "/p/?by=7"),
        (&users, "/fixed", "/users/7/posts/x?q=1", "/fixed?q=1"),
        (&users, "/{id}", "/users/%2F%41/posts/", "/%2FA"),
        (&dated, "/blog/{2}?y={year}{3}", "/2024/hello", "/blog/hello?y=2024"),
        (&dated, "{0}/all", "/2024/hello-x", "/2024/hello-x/all"),
        (&prefix("/docs"), "/v3/{rest}", "/docs/a/b", "/v3/a/b"),
        (&prefix("/docs/"), "/v3/{rest}", "/docs/", "/v3/"),
        (&prefix("/"), "/v3/{rest}", "/a", "/v3/a"),
        // what was captured stays one parameter
        (
            &prefix("/s"),
            "/search?q={rest}&role=user",
            "/s/x&role=admin",
            "/search?q=x%26role%3Dadmin&role=user",
        ),
    ] {
        // `{0}` begins with a slash, its template does not
        let made = Rewrite::template(text, route);
        if !text.starts_with('/') {
            assert!(matches!(made, Err(RewriteError::BadPath(_))));
            continue;
        }
        assert_eq!(applied(&made.unwrap(), from).as_deref(), Ok(to), "{route} {text} {from}");
    }
    for text in ["/{nope}", "/{*nope}"] {
        let error = Rewrite::template(text, &users).unwrap_err();
        assert_eq!(error.to_string(), "the path captures nothing called \"nope\"; it has: id, rest");
    }
    for text in ["/{id", "/id}", "/{{id}}"] {
        assert!(Rewrite::template(text, &users).is_err(), "{text}");
    }
    assert!(Rewrite::template("/a/../b", &users).is_err());
    assert!(Rewrite::template("/a b", &users).is_err());
}

#[test]
fn what_a_template_makes_is_looked_at() {
    let any = regex_of("/(.*)");
    let rewrite = |text: &str| Rewrite::template(text, &any).unwrap();
    assert_eq!(applied(&rewrite("/a/{1}"), "/../b"), Err(TargetError::DotSegments));
    assert_eq!(applied(&rewrite("/a/.{1}"), "/.%2fb"), Err(TargetError::DotSegments));
    // never longer than the bound, however often a capture is named
    let long = format!("/{}", "x".repeat(4000));
    assert_eq!(applied(&rewrite("/{1}{1}{1}"), &long).map(|made| made.len()), Ok(12_001));
    assert_eq!(applied(&rewrite("/{1}{1}{1}{1}{1}"), &long), Err(TargetError::TooLong));
}

#[test]
fn redirects() {
    let to = |uri: &str, keep_query, route: &PathMatch| {
        RedirectTarget::new(&uri.parse().unwrap(), keep_query, route).unwrap()
    };
    let all = prefix("/");
    let user = segments_of("/u/{id}");
    for (target, from, location) in [
        (to("https://b.example", None, &all), "/x?y", "https://b.example/x?y"),
        (to("https://b.example", Some(false), &all), "/x?y", "https://b.example/x"),
        (to("https://b.example:8443/", None, &all), "*", "https://b.example:8443/"),
        (to("https://b.example?z=1", None, &all), "/x?y", "https://b.example/?z=1"),
        (to("http://b.example/new", None, &all), "/x?y", "http://b.example/new"),
        (to("http://b.example/new", Some(true), &all), "/x?y", "http://b.example/new?y"),
        (to("http://b.example/new?z", Some(true), &all), "/x?y", "http://b.example/new?z&y"),
        (to("https://b.example/user/{id}", None, &user), "/u/%37?y", "https://b.example/user/7"),
        (to("https://b.example/{rest}", None, &all), "//evil.example/", "https://b.example//evil.example/"),
    ] {
        assert_eq!(target.location(&from.parse().unwrap()).unwrap(), location, "{from}");
    }
}

proptest! {
    #[test]
    fn what_is_made_is_a_target_below_the_new_prefix(
        path in "(/|\\.|%2e|%2F|%5c|%|a|~|;|%00|[!-~]){0,24}", query in prop::option::of("[!-\"$-~]{0,8}"),
    ) {
        let target = format!("/api/{path}{}", query.map(|query| format!("?{query}")).unwrap_or_default());
        let Ok(target) = target.parse::<PathAndQuery>() else { return Ok(()) };
        let rewrites = [
            Rewrite::replace_prefix("/api", "/v2", &prefix("/api")).unwrap(),
            Rewrite::template("/v2/{rest}", &segments_of("/api/{*rest}")).unwrap(),
            Rewrite::template("/v2/{1}", &regex_of("/api/(.*)")).unwrap(),
        ];
        let mut made = rewrites.iter().map(|rewrite| rewrite.apply(&target));
        let first = made.next().unwrap();
        if let Ok(first) = &first {
            prop_assert!(first.path().starts_with("/v2/"), "{}", first);
            prop_assert!(!has_dots(first.path()));
            prop_assert!(!first.as_str().bytes().any(|b| b <= b' ' || b == 0x7f));
            prop_assert_eq!(first.query(), target.query());
        }
        // three ways to say the same; a capture may itself hold a `?` never
        for other in made {
            prop_assert_eq!(&other, &first);
        }
    }
}
