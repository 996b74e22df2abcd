use http::{HeaderMap, HeaderName, Version};
use proptest::prelude::*;

use super::*;
use crate::matcher::{PathMatch, Protocol, Scheme, ValueMatch};

mod reference;

fn router(routes: &[(&str, &str)]) -> Router<String> {
    let mut builder = Router::builder();
    for (host, prefix) in routes {
        let host = Some(*host).filter(|host| !host.is_empty());
        let value = format!("{}{prefix}", host.unwrap_or("*"));
        builder = builder.route(host, prefix, value).unwrap();
    }
    builder.build().unwrap()
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
    assert_eq!(Router::<()>::builder().build().unwrap().find("a", "/"), None);
}

#[test]
fn why_it_was_found() {
    let router = router(&[("*.Example.com.", "/api"), ("", "/")]);
    let Lookup::Found(found) = router.lookup(&Asked::new("x.example.com", "/api/y")) else {
        panic!("a route")
    };
    assert_eq!(found.to_string(), "host *.example.com, prefix /api");
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
        assert_eq!(error, RouteError::BadPath(prefix.to_owned()));
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
        assert!(matches!(error, RouteError::Ambiguous { .. }), "{error}");
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
        let router = builder.build().unwrap();
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

fn exact(path: &str) -> PathMatch {
    PathMatch::Exact(path.to_owned())
}

fn prefix(path: &str) -> PathMatch {
    PathMatch::Prefix(path.to_owned())
}

fn pattern(path: &str) -> PathMatch {
    PathMatch::Segments(path.to_owned())
}

fn regex(path: &str) -> PathMatch {
    PathMatch::Regex(path.to_owned())
}

fn on(path: PathMatch) -> RouteMatch {
    RouteMatch::default().with_path(path)
}

fn of(routes: Vec<RouteMatch>) -> Router<usize> {
    let mut builder = Router::builder();
    for (number, route) in routes.into_iter().enumerate() {
        builder.add(route, number).unwrap();
    }
    builder.build().unwrap()
}

#[test]
fn kinds_of_paths_and_which_goes_first() {
    let paths = [
        prefix("/"),
        exact("/users/me"),
        pattern("/users/{id}"),
        pattern("/users/{id}/posts/{*rest}"),
        prefix("/users"),
        pattern("/users/{id}/posts/latest"),
        pattern("/{any}/{other}/x"),
        regex(r"/files/.*\.php"),
        prefix("/files"),
        exact("/files/a.php"),
        pattern("/literal/only"),
        pattern("/{*rest}"),
    ];
    // `/{*rest}` and the prefix `/` are the same path
    let mut builder = Router::builder();
    for (number, path) in paths.iter().enumerate() {
        let added = builder.add(on(path.clone()), number);
        assert_eq!(added.is_err(), number == 11, "{path}: {added:?}");
    }
    let router = builder.build().unwrap();
    for (path, found) in [
        ("/", 0),
        ("/users", 4),
        ("/users/", 4),
        ("/users/me", 1),
        ("/users/%6de", 1),
        ("/users/you", 2),
        ("/users/you/", 4),
        ("/users/you/x", 4),
        ("/users/you/posts/", 3),
        ("/users/you/posts", 4),
        ("/users/you/posts/1/2", 3),
        ("/users/you/posts/latest", 5),
        ("/users//posts/1", 4),
        ("/a/b/x", 6),
        ("/a//x", 0),
        ("/files/x.php", 7),
        ("/files/a.php", 9),
        ("/files/x.phpx", 8),
        ("/files/x/y.php", 7),
        ("/literal/only", 10),
        ("/literal/only/", 0),
    ] {
        assert_eq!(router.find("h", path), Some(&found), "{path}");
    }
}

#[test]
fn patterns_that_are_none() {
    for path in [
        pattern("users/{id}"),
        pattern("/{id}/{id}"),
        pattern("/{*rest}/x"),
        pattern("/a{id}"),
        pattern("/{}"),
        pattern("/{a b}"),
        pattern("/{1}"),
        pattern("/}"),
        pattern("/{a}/../b"),
        exact("a"),
        exact("/a?b"),
    ] {
        let error = Router::builder().add(on(path.clone()), ()).unwrap_err();
        assert!(matches!(error, RouteError::BadPath(_)), "{path}: {error}");
    }
    for path in ["(", "a)|(?:b", &"a".repeat(2000), r"\w{1000}{1000}", "(?x)a#"] {
        let error = Router::builder().add(on(regex(path)), ()).unwrap_err();
        assert!(matches!(error, RouteError::BadRegex { .. }), "{path}: {error}");
    }
    let deep = "/a".repeat(MAX_DEPTH + 1);
    assert!(matches!(Router::builder().add(on(prefix(&deep)), ()), Err(RouteError::TooDeep(_))));
}

#[test]
fn conditions_lead_to_the_next_route_and_methods_to_405() {
    let header = |value: ValueMatch| on(prefix("/api")).with_header(HeaderName::from_static("x-v"), value);
    let router = of(vec![
        on(prefix("/api")).with_method(Method::POST),
        on(prefix("/api/only-get")).with_method(Method::GET),
        header(ValueMatch::Exact("2".to_owned())),
        header(ValueMatch::Exact("3".to_owned())).with_method(Method::PUT),
        on(exact("/put")).with_method(Method::PUT),
        on(exact("/put")).with_method(Method::DELETE),
    ]);
    let (mut two, mut three) = (HeaderMap::new(), HeaderMap::new());
    two.insert("x-v", "2".parse().unwrap());
    three.insert("x-v", "3".parse().unwrap());
    let ask = |path: &str, method: &Method, headers: &HeaderMap| match router
        .lookup(&Asked::new("h", path).with_method(method).with_headers(headers))
    {
        Lookup::Found(found) => found.number.to_string(),
        Lookup::MethodNotAllowed(methods) => methods.iter().map(Method::as_str).collect::<Vec<_>>().join(","),
        Lookup::NotFound => "-".to_owned(),
    };
    let none = HeaderMap::new();
    assert_eq!(ask("/api/x", &Method::POST, &none), "0");
    assert_eq!(ask("/api/x", &Method::GET, &none), "POST");
    assert_eq!(ask("/api/x", &Method::GET, &two), "2");
    // a method goes before fields
    assert_eq!(ask("/api/x", &Method::POST, &two), "0");
    assert_eq!(ask("/api/x", &Method::PUT, &three), "3");
    assert_eq!(ask("/api/only-get", &Method::HEAD, &none), "1");
    // a less specific path takes what the more specific one does not
    assert_eq!(ask("/api/only-get", &Method::POST, &none), "0");
    assert_eq!(ask("/api/only-get", &Method::DELETE, &none), "GET,HEAD,POST");
    assert_eq!(ask("/put", &Method::GET, &none), "PUT,DELETE");
    assert_eq!(ask("/other", &Method::GET, &none), "-");
}

#[test]
fn equal_routes_need_a_priority_unless_they_exclude_each_other() {
    let name = HeaderName::from_static("x");
    let is = |value: &str| ValueMatch::Exact(value.to_owned());
    let base = || on(prefix("/a"));
    let net = |text: &str| text.parse().unwrap();
    let allowed = [
        (base().with_method(Method::GET), base().with_method(Method::PUT)),
        (base().with_header(name.clone(), is("1")), base().with_header(name.clone(), is("2"))),
        (base().with_header(name.clone(), ValueMatch::Absent), base().with_header(name.clone(), is("2"))),
        (base().with_query("q", ValueMatch::Regex("[a-z]+".to_owned())), base().with_query("q", is("2"))),
        (base().with_client(net("10.0.0.0/8")), base().with_client(net("11.0.0.0/8"))),
        (base().with_protocol(Protocol::Http1), base().with_protocol(Protocol::Http2)),
        (base().with_scheme(Some(Scheme::Http)), base().with_scheme(Some(Scheme::Https))),
        (base(), base().with_priority(1)),
        (base(), base().with_method(Method::GET)),
        (on(regex("/a.*")), on(regex("/b.*")).with_priority(-1)),
        (on(prefix("/a")), on(prefix("/a/"))),
    ];
    for (one, other) in allowed {
        let mut builder = Router::builder();
        builder.add(one, ()).unwrap();
        builder.add(other, ()).unwrap();
    }
    let refused = [
        (base(), base()),
        (base().with_method(Method::GET), base().with_method(Method::HEAD)),
        (base().with_method(Method::GET), base().with_method(Method::PUT).with_method(Method::GET)),
        (base().with_header(name.clone(), is("1")), base().with_header(name, ValueMatch::Present)),
        (base().with_query("q", is("1")), base().with_query("r", is("1"))),
        (base().with_client(net("10.0.0.0/8")), base().with_client(net("10.1.0.0/16"))),
        (on(regex("/a.*")), on(regex("/b.*"))),
        (on(pattern("/a/{x}")), on(pattern("/a/{y}"))),
        (on(prefix("/a/")), on(pattern("/a/{*y}"))),
        (on(exact("/a")), on(pattern("/a"))),
    ];
    for (one, other) in refused {
        let mut builder = Router::builder();
        builder.add(on(prefix("/elsewhere")), ()).unwrap();
        builder.add(one, ()).unwrap();
        let error = builder.add(other, ()).unwrap_err();
        assert!(matches!(error, RouteError::Ambiguous { other: 1, .. }), "{error}");
    }
}

#[test]
fn connections_and_versions() {
    let router = of(vec![
        on(prefix("/")).with_client("10.0.0.0/8".parse().unwrap()),
        on(prefix("/")).with_protocol(Protocol::Http3).with_priority(1),
        on(prefix("/")).with_scheme(Some(Scheme::Https)).with_priority(2),
        on(prefix("/")),
    ]);
    assert!(router.looks_at_connection());
    let ask = |client: Option<&str>, secure, version| {
        let client = client.map(|client| client.parse().unwrap());
        let asked = Asked::new("h", "/").with_version(version).with_connection(client, secure);
        match router.lookup(&asked) {
            Lookup::Found(found) => found.number,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ask(None, false, Version::HTTP_11), 3);
    assert_eq!(ask(Some("10.1.1.1"), false, Version::HTTP_2), 0);
    assert_eq!(ask(Some("::ffff:10.1.1.1"), false, Version::HTTP_2), 0);
    assert_eq!(ask(Some("10.1.1.1"), false, Version::HTTP_3), 1);
    assert_eq!(ask(Some("10.1.1.1"), true, Version::HTTP_3), 2);
}

#[test]
fn an_explanation_names_what_was_passed_over() {
    let router = of(vec![
        RouteMatch::new(Some("a.example")).with_path(exact("/x")).with_method(Method::POST),
        RouteMatch::new(Some("a.example")).with_path(prefix("/")).with_scheme(Some(Scheme::Https)),
        RouteMatch::new(None).with_path(prefix("/x")),
    ]);
    let explained = router.explain(&Asked::new("A.example:80", "/x"));
    assert_eq!(explained.route(), Some(2));
    let text = explained.to_string();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].contains("not route 1") && lines[0].contains("the method is another"), "{text}");
    assert!(lines[1].contains("not route 2") && lines[1].contains("the scheme is another"), "{text}");
    assert!(lines[2].starts_with("route 3 (host *, prefix /x)"), "{text}");
    let explained = router.explain(&Asked::new("b.example", "/y"));
    assert_eq!((explained.route(), explained.to_string().as_str()), (None, "no route: 404\n"));
}

/// GHSA-class: a host's case counts for nothing, with two routes as with many.
#[test]
fn cases_of_hosts_at_any_number_of_routes() {
    for count in [2, 99, 101, 5000] {
        let mut builder = Router::builder();
        for n in 0..count {
            builder = builder.route(Some(&format!("Host-{n}.Example.com")), "/", n).unwrap();
        }
        let router = builder.build().unwrap();
        for host in
            ["host-1.example.com", "HOST-1.EXAMPLE.COM", "hOsT-1.eXample.com:443", "Host-1.example.com."]
        {
            assert_eq!(router.find(host, "/"), Some(&1), "{host} of {count}");
        }
    }
}
