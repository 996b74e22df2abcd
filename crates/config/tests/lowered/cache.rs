//! The cache's rules, of the edge and of routes.

use http::HeaderName;
use portcullis_edge::{
    cache::{Bypass, CacheRules, Heuristic, Query, SetCookie, StatusTtl},
    plan::Setting,
};

use super::{LEAST, plan, secs};

pub(super) fn rules(rules: &CacheRules) {
    let field = |name: &'static str| HeaderName::from_static(name);
    let ttl = |statuses, ttl, overrides| StatusTtl { statuses, ttl, overrides };
    let want = CacheRules::default()
        .with_max_object_bytes(2 << 20)
        .with_max_ttl(secs(12 * 3600))
        .with_keep_stale(secs(1800))
        .with_stale_while_revalidate(secs(30))
        .with_stale_if_error(secs(3600))
        .with_heuristic(Some(Heuristic { percent: 10, max: secs(3600) }))
        .with_ttl([ttl(404..=404, secs(60), false), ttl(500..=599, secs(2), true)])
        .with_obey_request(false)
        .with_targeted([field("example-cache-control"), field("cdn-cache-control")])
        .with_set_cookie(SetCookie::Strip)
        .with_query(Query::Without(vec!["utm_*".into(), "fbclid".into()]))
        .with_sort_query(true)
        .with_key_fields([field("x-country")])
        .with_key_cookies(["theme".to_owned()])
        .with_bypass([
            Bypass::Cookie("session*".into()),
            Bypass::Field(field("x-preview")),
            Bypass::Path("/admin/".into()),
        ])
        .with_collapse_wait(secs(3))
        .with_fetch_ranges(true)
        .with_finish_fetch(true)
        .with_cache_status(false)
        .with_cache_status_key(true);
    assert_eq!(*rules, want);
}

#[test]
fn a_route_has_cache_rules_of_its_own() {
    let plan = plan(&format!(
        "{LEAST}[cache]\nmax_ttl = \"1h\"\n[[route]]\npath = \"/a\"\ncluster = \"app\"\n\
         [route.cache]\nquery_only = [\"page\"]\n[[route]]\npath = \"/b\"\ncluster = \"app\"\ncache = \"off\"\n"
    ));
    let own: Vec<_> = plan.routes.iter().map(|route| &route.chain.cache).collect();
    let rules = CacheRules::default().with_query(Query::Only(vec!["page".into()]));
    assert!(own.contains(&&Setting::Own(rules)) && own.contains(&&Setting::Off), "{own:?}");
    assert_eq!(plan.chain.cache.own().map(|rules| rules.max_ttl), Some(secs(3600)));
}

/// Nothing larger than the store is kept, and a route's own rules have the same bound.
#[test]
fn what_is_kept_is_no_larger_than_the_store() {
    let plan = plan(&format!(
        "{LEAST}[cache]\nmax_size = \"8MiB\"\nmax_fill = \"4MiB\"\n[[route]]\npath = \"/a\"\ncluster = \"app\"\n\
         [route.cache]\ncollapse = false\n"
    ));
    let route = plan.routes.iter().find_map(|route| route.chain.cache.own()).unwrap();
    let wanted = CacheRules::default().with_max_object_bytes(4 << 20);
    assert_eq!((route.collapse, plan.chain.cache.own()), (false, Some(&wanted)));
    assert_eq!(route.max_object_bytes, 4 << 20);
}
