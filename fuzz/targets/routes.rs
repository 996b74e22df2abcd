//! The router: never panics, whatever routes it is given, and finds what trying every route finds.
#![no_main]

use std::str;

use libfuzzer_sys::fuzz_target;
use portcullis_proxy::{Asked, Lookup, PathMatch, PathRules, RouteMatch, Router, path::decode_unreserved};

// lines: `p/prefix`, `e/exact` and `s/segments` are routes, a host before the slash; the last line is the path that is asked for
fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let mut lines: Vec<&str> = text.lines().take(64).collect();
    let Some(path) = lines.pop() else { return };
    let mut builder = Router::builder();
    let mut added = Vec::new();
    for line in lines {
        let Some((kind, rest)) = line.split_at_checked(1) else { continue };
        let Some((host, path)) = rest.split_once('/') else { continue };
        let path = format!("/{path}");
        let path = match kind {
            "p" => PathMatch::Prefix(path),
            "e" => PathMatch::Exact(path),
            "s" => PathMatch::Segments(path),
            _ => continue,
        };
        let route = RouteMatch::new((!host.is_empty()).then_some(host)).with_path(path);
        if builder.add(route.clone(), added.len()).is_ok() {
            added.push(route);
        }
    }
    let router = builder.build().expect("no regular expressions");
    let asked = Asked::new("a.b.example", path);
    let found = match router.lookup(&asked) {
        Lookup::Found(found) => Some(*found.value),
        _ => None,
    };
    assert_eq!(router.explain(&asked).route(), found);
    let matching = |route: &RouteMatch| {
        let one = Router::builder();
        let mut one = one;
        one.add(route.clone(), ()).expect("it was added before");
        one.build().expect("no regular expressions").find("a.b.example", path).is_some()
            && matches_slowly(&route.path, path)
    };
    match found {
        // the one that is found matches, and it is found whenever one does
        Some(number) => assert!(matching(&added[number]), "{:?} {path:?}", added[number]),
        None => assert!(!added.iter().any(matching), "{added:?} {path:?}"),
    }
    // the same in the other order
    let mut builder = Router::builder();
    for (number, route) in added.iter().enumerate().rev() {
        builder.add(route.clone(), number).expect("it was added before");
    }
    let other = builder.build().expect("no regular expressions");
    assert_eq!(other.find("A.B.Example.", path).copied(), found);
    // a normal form is routed as itself
    if let Ok(target) = path.parse() {
        let rules = PathRules::default().with_normalise(true).with_merge_slashes(true);
        if let Ok(once) = rules.apply(&target) {
            assert_eq!(*rules.apply(&once).expect("it is in normal form"), *once);
        }
    }
});

fn matches_slowly(path: &PathMatch, asked: &str) -> bool {
    let asked = decode_unreserved(asked);
    let asked = if asked.starts_with('/') { &*asked } else { "/" };
    match path {
        PathMatch::Exact(path) => decode_unreserved(path) == asked,
        PathMatch::Prefix(prefix) => {
            let prefix = decode_unreserved(prefix);
            let border = format!("{}/", prefix.strip_suffix('/').unwrap_or(&prefix));
            asked == prefix || asked.starts_with(&border)
        }
        PathMatch::Segments(pattern) => {
            let pattern = decode_unreserved(pattern);
            let (mut parts, mut segments) = (pattern.split('/'), asked.split('/'));
            loop {
                match (parts.next(), segments.next()) {
                    (None, None) => return true,
                    (Some(rest), Some(_)) if rest.starts_with("{*") => return true,
                    (Some(any), Some(segment)) if any.starts_with('{') && !segment.is_empty() => {}
                    (Some(literal), Some(segment)) if literal == segment => {}
                    _ => return false,
                }
            }
        }
        _ => false,
    }
}
