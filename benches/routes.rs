//! Thousands of routes: that a look-up does not depend on how many there are, by hosts and by each kind of path.
//! `cargo bench -p portcullis-benches --bench routes -- 10000`; the number is a choice. Instruction counts of one kind of look-up, here of hosts
//! among 10 routes: `valgrind --tool=callgrind --toggle-collect='*lookups*'` on the binary that cargo names, with
//! `hosts few` behind it.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a program to measure with"
)]

use std::{hint::black_box, time::Instant};

use portcullis_proxy::{Asked, Lookup, PathMatch, RouteMatch, Router};

type Table = (Router<usize>, Vec<(String, String)>);

type Make = fn(usize) -> Table;

const KINDS: &[(&str, Make)] = &[
    ("hosts", |count| {
        table(count, |n| (Some(format!("h{n}.example.com")), prefix("/")), |n| (host(n), "/".to_owned()))
    }),
    ("wildcards", |count| {
        table(
            count,
            |n| (Some(format!("*.h{n}.example.com")), prefix("/api")),
            |n| (format!("www.{}", host(n)), "/api/users/1".to_owned()),
        )
    }),
    ("prefixes", |count| {
        table(
            count,
            |n| (None, prefix(&format!("/app{n}/api"))),
            |n| (host(0), format!("/app{n}/api/users/1")),
        )
    }),
    ("exact", |count| {
        table(
            count,
            |n| (None, PathMatch::Exact(format!("/app{n}/api/users"))),
            |n| (host(0), format!("/app{n}/api/users")),
        )
    }),
    ("segments", |count| {
        table(
            count,
            |n| (None, PathMatch::Segments(format!("/app{n}/users/{{id}}/posts/{{*rest}}"))),
            |n| (host(0), format!("/app{n}/users/17/posts/a")),
        )
    }),
];

fn prefix(path: &str) -> PathMatch {
    PathMatch::Prefix(path.to_owned())
}

fn host(n: usize) -> String {
    format!("h{n}.example.com")
}

fn table(
    count: usize,
    route: impl Fn(usize) -> (Option<String>, PathMatch),
    asked: impl Fn(usize) -> (String, String),
) -> Table {
    let mut builder = Router::builder();
    for n in 0..count {
        let (host, path) = route(n);
        builder.add(RouteMatch::new(host.as_deref()).with_path(path), n).unwrap();
    }
    // as long as each other, whatever the count: what is asked differs in nothing but the place
    let last = count.min(10);
    (builder.build().unwrap(), (0..last).map(|n| asked(n * (count / last))).collect())
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let count = args.iter().filter_map(|arg| arg.parse().ok()).next().unwrap_or(10_000_usize);
    let has = |word: &str| args.iter().any(|arg| arg == word);
    let chosen = KINDS.iter().any(|(kind, _)| has(kind));
    for (kind, make) in KINDS.iter().filter(|(kind, _)| !chosen || has(kind)) {
        for count in [10, count].into_iter().skip(usize::from(has("many"))).take(2 - usize::from(has("few")))
        {
            let begun = Instant::now();
            let (router, asked) = make(count);
            let made = begun.elapsed();
            let begun = Instant::now();
            lookups(&router, &asked);
            let each = begun.elapsed().as_nanos() / u128::from(LOOKUPS);
            println!("{count} routes by {kind}: made in {made:.2?}, {each} ns for each look-up");
        }
    }
}

const LOOKUPS: u32 = 200_000;

#[inline(never)]
fn lookups(router: &Router<usize>, asked: &[(String, String)]) {
    for i in 0..LOOKUPS as usize {
        let (host, path) = &asked[i % asked.len()];
        let found = router.lookup(black_box(&Asked::new(host, path)));
        assert!(matches!(black_box(found), Lookup::Found(_)));
    }
}
