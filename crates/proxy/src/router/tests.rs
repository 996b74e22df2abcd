use super::*;
use proptest::prelude::*;

fn router(routes: &[(&str, &str)]) -> Router<String> {
    let mut builder = Router::builder();
    for (host, prefix) in routes {
        let host = Some(*host).filter(|host| !host.is_empty());
        let value = format!("{}{prefix}", host.unwrap_or("*"));
        builder = builder.route(host, prefix, value).unwrap();
    }
    builder.build()
}

#[test]
fn precedence() {
    let router = router(&[
        ("", "/"),
        ("", "/.well-known"),
        ("a.example.com", "/"),
        ("a.example.com", "/api"),
        ("a.example.com", "/api/"),
        ("a.example.com", "/api/v1"),
        ("a.example.com", "/api-docs"),
        ("*.example.com", "/"),
        ("*.b.example.com", "/"),
        ("only-api.example.com", "/api"),
        ("[2001:db8::1]", "/"),
    ]);
    for (host, path, found) in [
        ("a.example.com", "/", "a.example.com/"),
        ("a.example.com", "/apix", "a.example.com/"),
        ("a.example.com", "/api", "a.example.com/api"),
        ("a.example.com", "/api/", "a.example.com/api/"),
        ("a.example.com", "/api/x", "a.example.com/api/"),
        ("a.example.com", "/api/v1", "a.example.com/api/v1"),
        ("a.example.com", "/api/v1/x", "a.example.com/api/v1"),
        ("a.example.com", "/api/v10", "a.example.com/api/"),
        ("a.example.com", "/api-docs/x", "a.example.com/api-docs"),
        ("a.example.com", "/api-doc", "a.example.com/"),
        ("a.example.com", "*", "a.example.com/"),
        // RFC 9110 4.2.3: the host has no case; port and trailing dot do not count
        ("A.EXAMPLE.com:8443", "/api", "a.example.com/api"),
        ("a.example.com.", "/api", "a.example.com/api"),
        // case counts in a path
        ("a.example.com", "/API", "a.example.com/"),
        // RFC 3986 6.2.2.2
        ("a.example.com", "/%61p%69/v1", "a.example.com/api/v1"),
        ("a.example.com", "/api%2Fv1", "a.example.com/"),
        ("a.example.com", "/%", "a.example.com/"),
        ("a.example.com", "/api%2", "a.example.com/"),
        ("x.example.com", "/", "*.example.com/"),
        ("x.y.example.com", "/", "*.example.com/"),
        ("b.example.com", "/", "*.example.com/"),
        ("x.b.example.com", "/", "*.b.example.com/"),
        ("X.Y.B.example.com", "/", "*.b.example.com/"),
        ("example.com", "/", "*/"),
        ("xexample.com", "/.well-known/x", "*/.well-known"),
        // a host's own routes leave the rest to a less specific host
        ("only-api.example.com", "/x", "*.example.com/"),
        ("only-api.example.com", "/api/x", "only-api.example.com/api"),
        ("[2001:DB8:0::1]:443", "/", "[2001:db8::1]/"),
        ("", "/", "*/"),
        ("not a host", "/", "*/"),
    ] {
        assert_eq!(router.find(host, path).map(String::as_str), Some(found), "{host} {path}");
    }
}

#[test]
fn nothing_matches() {
    let router = router(&[("a.example.com", "/api"), ("*.b.example", "/")]);
    for (host, path) in [("a.example.com", "/"), ("b.example.com", "/api"), ("b.example", "/"), ("", "/api")]
    {
        assert_eq!(router.find(host, path), None, "{host} {path}");
    }
    assert_eq!(Router::<()>::builder().build().find("a", "/"), None);
}

#[test]
fn why_it_was_found() {
    let router = router(&[("*.Example.com.", "/api"), ("", "/")]);
    let found = router.explain("x.example.com", "/api/y").unwrap();
    assert_eq!((found.host, found.prefix), (HostPattern::Below("example.com"), "/api"));
    assert_eq!(found.host.to_string(), "*.example.com");
    assert_eq!(router.explain("x.example.com", "/").unwrap().host, HostPattern::Any);
    assert_eq!(router.iter().count(), 2);
}

#[test]
fn refused_routes() {
    for host in
        ["a b", "a.example:80", "*.*.example", "a.*.example", "*a.example", "*.", "", "*.[::1]", "a/b"]
    {
        let error = Router::builder().route(Some(host), "/", ()).unwrap_err();
        assert_eq!(error, RouteError::BadHost(host.to_owned()));
    }
    for prefix in ["", "api", "*", "/a?b", "/a#b", "/a/../b", "/a/%2e%2e", "/./"] {
        let error = Router::builder().route(None, prefix, ()).unwrap_err();
        assert_eq!(error, RouteError::BadPrefix(prefix.to_owned()));
    }
}

#[test]
fn duplicates_are_errors_in_every_spelling() {
    for (first, second) in [
        ((None, "/a"), (Some("*"), "/a")),
        ((Some("a.example"), "/"), (Some("A.Example."), "/")),
        ((Some("*.a.example"), "/x"), (Some("*.A.example"), "/%78")),
        ((Some("::1"), "/"), (Some("[0:0::1]"), "/")),
    ] {
        let builder = Router::builder().route(first.0, first.1, ()).unwrap();
        let error = builder.route(second.0, second.1, ()).unwrap_err();
        assert!(matches!(error, RouteError::Duplicate { .. }), "{error}");
    }
    let both = Router::builder().route(None, "/a", ()).unwrap().route(None, "/a/", ());
    assert!(both.is_ok());
}

/// The definition: of all routes that match, the most specific host, then the longest prefix.
fn reference<'r>(routes: &'r [(String, String)], host: &str, path: &str) -> Option<&'r (String, String)> {
    let host = host.to_ascii_lowercase();
    let specificity = |pattern: &str| -> Option<usize> {
        if pattern == "*" {
            return Some(0);
        }
        match pattern.strip_prefix("*.") {
            Some(parent) => host.ends_with(&format!(".{parent}")).then(|| 1 + parent.split('.').count()),
            None => (host == pattern).then_some(usize::MAX),
        }
    };
    let matches = |prefix: &str| {
        path == prefix || path.starts_with(&format!("{}/", prefix.strip_suffix('/').unwrap_or(prefix)))
    };
    routes
        .iter()
        .filter(|(_, prefix)| matches(prefix))
        .filter_map(|route| Some((specificity(&route.0)?, route.1.len(), route)))
        .max_by_key(|(host, prefix, _)| (*host, *prefix))
        .map(|(_, _, route)| route)
}

fn any_host() -> impl Strategy<Value = String> {
    prop::collection::vec("[ab]", 1..5).prop_map(|labels| labels.join("."))
}

fn any_path() -> impl Strategy<Value = String> {
    prop::collection::vec("[xy-]{0,2}", 1..5).prop_map(|segments| format!("/{}", segments.join("/")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn the_fast_path_is_the_linear_one(
        routes in prop::collection::btree_set(
            (prop_oneof![Just("*".to_owned()), any_host(), any_host().prop_map(|host| format!("*.{host}"))], any_path()),
            0..40),
        asked in prop::collection::vec((any_host(), any_path(), any::<bool>()), 1..20),
    ) {
        let routes: Vec<_> = routes.into_iter().collect();
        let mut builder = Router::builder();
        for route in &routes {
            builder = builder.route(Some(&route.0), &route.1, route).unwrap();
        }
        let router = builder.build();
        for (host, path, upper) in asked {
            let host = if upper { host.to_ascii_uppercase() } else { host };
            prop_assert_eq!(router.find(&host, &path).copied(), reference(&routes, &host, &path), "{} {}", host, path);
        }
    }

    #[test]
    fn encoding_unreserved_characters_changes_nothing(path in any_path(), which: u64) {
        let router = router(&[("", "/"), ("", "/x"), ("", "/x/y"), ("", "/xy"), ("", "/x-")]);
        let encoded: String = path
            .bytes()
            .enumerate()
            .map(|(i, b)| if b != b'/' && which >> (i % 64) & 1 == 1 { format!("%{b:02x}") } else { char::from(b).to_string() })
            .collect();
        prop_assert_eq!(router.find("h", &encoded), router.find("h", &path));
    }

    #[test]
    fn any_text_is_looked_up_without_panic(host in ".{0,20}", path in ".{0,20}") {
        let router = router(&[("", "/"), ("a.b", "/x"), ("*.b", "/")]);
        prop_assert!(router.find(&host, &path).is_some());
    }
}
