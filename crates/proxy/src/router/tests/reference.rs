//! Routes of every kind, looked up by trying all of them.

use super::*;

/// What a path says, by trying every way to read it.
fn path_matches(path: &PathMatch, asked: &str) -> bool {
    fn below(parts: &[&str], asked: &[&str]) -> bool {
        match (parts, asked) {
            ([], []) => true,
            ([rest], asked) if rest.starts_with("{*") => !asked.is_empty(),
            ([part, parts @ ..], [segment, asked @ ..]) => {
                let fits = if part.starts_with('{') { !segment.is_empty() } else { part == segment };
                fits && below(parts, asked)
            }
            _ => false,
        }
    }
    let split = |path: &'_ str| path[1..].split('/').map(str::to_owned).collect::<Vec<_>>();
    match path {
        PathMatch::Exact(path) => path == asked,
        PathMatch::Prefix(prefix) => {
            let border = format!("{}/", prefix.strip_suffix('/').unwrap_or(prefix));
            asked == prefix || asked.starts_with(&border)
        }
        PathMatch::Segments(pattern) => {
            let (parts, asked) = (split(pattern), split(asked));
            let refs = |of: &[String]| of.iter().map(|part| part.as_str().to_owned()).collect::<Vec<_>>();
            let (parts, asked) = (refs(&parts), refs(&asked));
            below(
                &parts.iter().map(String::as_str).collect::<Vec<_>>(),
                &asked.iter().map(String::as_str).collect::<Vec<_>>(),
            )
        }
        PathMatch::Regex(pattern) => crate::matcher::whole(pattern).unwrap().is_match(asked.as_bytes()),
    }
}

/// How specific a path is, as a list that compares: kinds, then segment by segment.
fn weight(path: &PathMatch) -> (u8, Vec<u8>) {
    const LITERAL: u8 = 4;
    const ANY: u8 = 3;
    const BELOW: u8 = 2;
    const HERE_OR_BELOW: u8 = 1;
    match path {
        PathMatch::Exact(_) => (2, Vec::new()),
        PathMatch::Regex(_) => (1, Vec::new()),
        PathMatch::Segments(pattern) if !pattern.contains('{') => (2, Vec::new()),
        PathMatch::Segments(pattern) => {
            let kinds = pattern[1..].split('/').map(|part| match part {
                rest if rest.starts_with("{*") => BELOW,
                any if any.starts_with('{') => ANY,
                _ => LITERAL,
            });
            let ends_here = !pattern.contains("{*");
            // one that ends where the request does is closer than a prefix that ends there
            (0, kinds.chain(ends_here.then_some(BELOW)).collect())
        }
        PathMatch::Prefix(prefix) => {
            let below = prefix[1..].strip_suffix('/').map(str::to_owned);
            let (segments, end) = match (&below, &prefix[1..]) {
                (None, "") => (String::new(), BELOW),
                (None, all) => (all.to_owned(), HERE_OR_BELOW),
                (Some(below), _) => (below.clone(), BELOW),
            };
            let count = if prefix == "/" { 0 } else { segments.split('/').count() };
            (0, std::iter::repeat_n(LITERAL, count).chain([end]).collect())
        }
    }
}

fn any_pattern() -> impl Strategy<Value = String> {
    let segment = prop_oneof![
        3 => "[xy]{0,2}".prop_map(|text| text),
        2 => Just("{}".to_owned()),
    ];
    (prop::collection::vec(segment, 1..5), any::<bool>()).prop_map(|(mut segments, rest)| {
        for (at, segment) in segments.iter_mut().enumerate() {
            if segment == "{}" {
                *segment = format!("{{p{at}}}");
            }
        }
        if rest {
            segments.push("{*rest}".to_owned());
        }
        format!("/{}", segments.join("/"))
    })
}

fn any_match() -> impl Strategy<Value = RouteMatch> {
    let path = prop_oneof![
        any_path().prop_map(PathMatch::Prefix),
        any_path().prop_map(PathMatch::Exact),
        any_pattern().prop_map(PathMatch::Segments),
        prop::sample::select(vec!["/x.*", ".*y", "/[xy]*", "/x/y?"]).prop_map(regex),
    ];
    let host = prop_oneof![
        Just(None),
        any_host().prop_map(Some),
        any_host().prop_map(|host| Some(format!("*.{host}")))
    ];
    let methods =
        prop::collection::vec(prop::sample::select(vec![Method::GET, Method::PUT, Method::POST]), 0..2);
    let value = prop_oneof![
        Just(ValueMatch::Present),
        Just(ValueMatch::Absent),
        "[ab]".prop_map(ValueMatch::Exact),
        Just(ValueMatch::Regex("a|c".to_owned())),
    ];
    let header = prop::option::weighted(0.3, value.clone());
    let query = prop::option::weighted(0.3, value);
    (host, path, methods, header, query, -1..2_i32).prop_map(
        |(host, path, methods, header, query, priority)| {
            let mut of = RouteMatch::new(host.as_deref()).with_path(path).with_priority(priority);
            of.methods = methods;
            of.headers = header.into_iter().map(|value| (HeaderName::from_static("x-v"), value)).collect();
            of.query = query.into_iter().map(|value| ("q".to_owned(), value)).collect();
            of
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn every_kind_of_route_is_found_as_by_trying_all(
        routes in prop::collection::vec(any_match(), 0..40),
        asked in prop::collection::vec(
            (any_host(), any_path(), prop::sample::select(vec![Method::GET, Method::HEAD, Method::PUT, Method::DELETE]),
             prop::option::of("[abc]"), prop::option::of("[abc]")), 1..20),
    ) {
        let mut builder = Router::builder();
        let mut added: Vec<RouteMatch> = Vec::new();
        for route in routes {
            if builder.add(route.clone(), added.len()).is_ok() {
                added.push(route);
            }
        }
        let router = builder.build().unwrap();
        for (host, path, method, header, query) in asked {
            let mut headers = HeaderMap::new();
            if let Some(header) = &header {
                headers.insert("x-v", header.parse().unwrap());
            }
            let query = query.map(|query| format!("r=1&q={query}"));
            let asked = Asked::new(&host, &path).with_method(&method).with_headers(&headers).with_query(query.as_deref());
            let by_all = added
                .iter()
                .enumerate()
                .filter(|(_, of)| path_matches(&of.path, &path))
                .filter(|(_, of)| Conditions::new(of).unwrap().is_none_or(|conditions| conditions.test(&asked).is_none()))
                .filter_map(|(number, of)| {
                    let host = match of.host.as_deref().map(|pattern| (pattern, pattern.strip_prefix("*."))) {
                        None => 0,
                        Some((_, Some(parent))) => {
                            if !host.ends_with(&format!(".{parent}")) {
                                return None;
                            }
                            1 + parent.split('.').count()
                        }
                        Some((name, None)) if name == host => usize::MAX,
                        Some(_) => return None,
                    };
                    Some((host, weight(&of.path), std::cmp::Reverse(crate::matcher::rank(of)), number))
                })
                .max();
            let found = match router.lookup(&asked) {
                Lookup::Found(found) => Some(*found.value),
                _ => None,
            };
            prop_assert_eq!(found, by_all.map(|(.., number)| number), "{} {} of {:?}", host, path, router);
            prop_assert_eq!(router.explain(&asked).route(), found);
        }
    }
}
