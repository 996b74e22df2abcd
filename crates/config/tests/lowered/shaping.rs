//! `[request_id]`, `[maintenance]`, `[body_limit]`, `[deadline]`, `[compression]`, `[request_decompression]`, `[concurrency]`, and files.

use std::path::Path;

use portcullis_edge::{
    middleware::{coding::Coding, concurrency::AdaptiveOptions},
    plan::{RouteAction, Setting, TrustIds},
};

use super::{FULL, LEAST, plan, secs};

#[test]
fn every_key() {
    let plan = plan(FULL);
    let ids = plan.request_id.unwrap();
    assert_eq!((ids.trust, ids.respond), (TrustIds::TrustedProxies, true));
    let chain = &plan.chain;
    let closed = chain.maintenance.own().unwrap();
    assert_eq!((closed.maintenance.status.as_u16(), closed.maintenance.retry_after), (503, Some(secs(1800))));
    assert_eq!(closed.maintenance.pages[0].body, "Back soon.\n");
    assert!(closed.file.as_deref().is_some_and(|file| file.ends_with("pages/closed.html")));
    assert_eq!((closed.maintenance.allow.len(), &*closed.maintenance.allow_paths[0]), (1, "/status"));
    assert_eq!(chain.body_limit, Setting::Own(20 << 20));
    let deadline = chain.deadline.own().unwrap();
    assert_eq!(
        (deadline.head, deadline.total, deadline.status.as_u16()),
        (Some(secs(30)), Some(secs(600)), 503)
    );
    let compression = chain.compression.own().unwrap();
    assert_eq!((&*compression.codings, compression.min_size), (&[Coding::Brotli, Coding::Gzip][..], 2 << 10));
    assert_eq!(compression.types, ["text/*", "application/json", "*+json", "image/svg+xml"]);
    assert_eq!((compression.gzip_level, compression.brotli_level, compression.zstd_level), (6, 5, 4));
    let requests = chain.request_decompression.own().unwrap();
    assert_eq!((requests.max_bytes, requests.max_ratio, requests.pass_others), (5 << 20, 50, true));
    assert_eq!(requests.codings, [Coding::Gzip]);
    let places = chain.concurrency.own().unwrap();
    assert_eq!(
        (places.max, places.queue, places.wait, places.retry_after),
        (2000, 500, secs(1) / 2, secs(2))
    );
    let adaptive = AdaptiveOptions::default()
        .with_min(50)
        .with_tolerance(150)
        .with_window(secs(1) / 5)
        .with_probe_every(secs(60));
    assert_eq!(places.adaptive, Some(adaptive));
    let RouteAction::Files(files) = &plan.routes[8].action else { panic!("{:?}", plan.routes[8]) };
    assert_eq!((&*files.root, files.strip_prefix.as_deref()), (Path::new("/srv/www"), Some("/static")));
    assert_eq!((&*files.index[1], files.fallback.as_deref()), ("index.htm", Some("app.html")));
    assert_eq!(files.precompressed, [Coding::Brotli, Coding::Gzip]);
    assert_eq!(files.cache_control.as_ref().unwrap(), "public, max-age=3600");
    let off = &plan.routes[7].chain;
    assert_eq!(
        (&off.maintenance, &off.deadline, &off.concurrency),
        (&Setting::Off, &Setting::Off, &Setting::Off)
    );
}

#[test]
fn hidden_files_are_served_where_that_is_asked_for() {
    for (line, wanted) in [("hidden_files = true", true), ("hidden_files = false", false), ("", false)] {
        let plan = plan(&LEAST.replacen("\ncluster = \"app\"", &format!("\nfiles = \"/srv\"\n{line}"), 1));
        let RouteAction::Files(files) = &plan.routes[0].action else { panic!("{:?}", plan.routes[0]) };
        assert_eq!(files.hidden, wanted, "{line}");
    }
}

#[test]
fn a_route_has_its_own() {
    let text =
        LEAST.replacen("cluster = \"app\"", "cluster = \"app\"\n[route.body_limit]\nmax_size = \"1B\"", 1);
    let plan = plan(&text);
    assert_eq!(
        (&plan.chain.body_limit, &plan.routes[0].chain.body_limit),
        (&Setting::Inherit, &Setting::Own(1))
    );
}
