//! `[rate_limit]` and `[rate_limit_store]`.

use std::time::Duration;

use http::Method;
use portcullis_edge::{
    middleware::rate_limit::{KeyPart, OnFailure, OnMissing, RateKey, RateLimitOptions},
    plan::Setting,
};

use crate::{FULL, LEAST, plan, secs};

#[test]
fn every_key_of_a_rule() {
    let plan = plan(FULL);
    let limit = plan.chain.rate_limit.own().expect("the table is there");
    let rule = &limit.rules[0];
    assert!(limit.fields && limit.rules.len() == 1 && rule.name == "per-second" && rule.dry_run);
    let field = KeyPart::Field(http::HeaderName::from_static("x-api-key"));
    let client = KeyPart::Client { v4_prefix: 24, v6_prefix: 48 };
    assert_eq!(rule.key, RateKey::new([field, KeyPart::Host]).or(client.into()));
    assert_eq!((rule.on_missing, rule.shared), (OnMissing::Skip, Some(OnFailure::Local)));
    assert_eq!((rule.cost, &rule.method_costs[..]), (2, &[(Method::POST, 10), (Method::HEAD, 0)][..]));
    assert_eq!(rule.allow, ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().unwrap()));
    let refusal = &rule.refusal;
    assert_eq!((refusal.status.as_u16(), &refusal.body[..]), (503, &b"slower, please\n"[..]));
    assert_eq!(refusal.content_type, "text/plain");
    let tarpit = refusal.tarpit.unwrap();
    assert_eq!((tarpit.hold, tarpit.max_held), (secs(2), 100));
    let store = plan.rate_store.as_ref().unwrap();
    assert_eq!((&*store.url, &*store.prefix), ("redis://10.0.0.5:6379", "edge:rate"));
    assert_eq!(store.timeout, Duration::from_millis(20));
}

#[test]
fn fields_are_for_all_rules_if_one_says_so() {
    for (a, b, expected) in
        [("", "", false), ("fields = true", "", true), ("fields = true", "fields = false", true)]
    {
        let rule =
            |name: &str, fields: &str| format!("[[rate_limit]]\nname = \"{name}\"\nrequests = 1\n{fields}\n");
        let plan = plan(&format!("{}{}{LEAST}", rule("a", a), rule("b", b)));
        assert_eq!(plan.chain.rate_limit.own().unwrap().fields, expected, "{a} {b}");
    }
}

#[test]
fn a_rule_counts_by_route() {
    let plan = plan(&format!("[rate_limit]\nrequests = 1\nkey = [\"client\", \"route\"]\n{LEAST}"));
    let key = RateKey::new([KeyPart::CLIENT, KeyPart::Route]);
    assert_eq!(plan.chain.rate_limit.own().unwrap().rules[0].key, key);
}

/// What is refused is exactly what would be made smaller without a word.
#[test]
fn the_largest_burst_is_that_which_counts() {
    let rule = |burst: u32| {
        let text = format!(
            "[rate_limit]\nrequests = 1\nper = \"30d\"\nburst = {burst}\nshared = \"open\"\n\
             [rate_limit_store]\nurl = \"unix:///a\"\n{LEAST}"
        );
        plan(&text).chain.rate_limit.own().unwrap().rules[0].clone()
    };
    let burst = |burst: u32| rule(121).with_burst(burst.try_into().unwrap());
    assert!(rule(120).clashes_with(&rule(121)), "these differ");
    assert!(!burst(122).clashes_with(&rule(121)), "and this is the same as the largest");
}

#[test]
fn a_list_of_rules_in_both_places() {
    let rule = |name: &str, requests: u32| format!("name = \"{name}\"\nrequests = {requests}\n");
    let text = format!(
        "{LEAST}[[route.rate_limit]]\n{}[[route.rate_limit]]\n{}[[rate_limit]]\n{}key = [\"path:2\", \"cookie:sid\"]\n",
        rule("a", 1),
        rule("b", 2),
        rule("c", 3)
    );
    let plan = plan(&text);
    let rules = |setting: &Setting<RateLimitOptions>| -> Vec<_> {
        setting.own().unwrap().rules.iter().map(|rule| (rule.name.clone(), rule.requests.get())).collect()
    };
    let route = plan.routes.last().unwrap();
    assert_eq!(rules(&route.chain.rate_limit), [("a".to_owned(), 1), ("b".to_owned(), 2)]);
    assert_eq!(rules(&plan.chain.rate_limit), [("c".to_owned(), 3)]);
    let key = RateKey::new([KeyPart::Path { segments: Some(2) }, KeyPart::Cookie("sid".into())]);
    assert_eq!(plan.chain.rate_limit.own().unwrap().rules[0].key, key);
}
