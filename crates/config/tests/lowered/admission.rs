//! Who may pass: whole plans, by values that are not the defaults.

use http::{HeaderName, HeaderValue, Method};
use portcullis_edge::{
    middleware::{
        basic_auth::BasicAuthOptions,
        filter::FieldPattern,
        forward_auth::ForwardAuthOptions,
        jwt::{Algorithm, JwtOptions},
    },
    plan::{BasicAuthPlan, CorsOrigins, CorsPlan, CsrfPlan, ForwardAuthPlan, JwtKeys, JwtPlan, Setting},
};

use super::{FULL, LEAST, plan, secs};

fn field(name: &'static str) -> HeaderName {
    HeaderName::from_static(name)
}

#[test]
fn every_key() {
    let chain = plan(FULL).chain;
    let mut cors = CorsPlan::default();
    cors.origins = CorsOrigins::List(vec![HeaderValue::from_static("https://app.example.com")]);
    cors.methods = vec![Method::PUT, Method::DELETE];
    cors.headers = vec![field("content-type")];
    cors.expose = vec![field("etag")];
    cors.credentials = true;
    cors.max_age = Some(secs(3600));
    assert_eq!(chain.cors, Setting::Own(cors));
    let csrf = CsrfPlan::default().with_trusted(["https://app.example.com"]);
    assert_eq!(chain.csrf, Setting::Own(csrf));

    let mut basic_auth = BasicAuthPlan::new("users.txt");
    basic_auth.options = BasicAuthOptions::default()
        .with_realm("the staff's part")
        .with_strip(false)
        .with_user_field(Some(field("x-user")))
        .with_max_hashing(4)
        .with_max_waiting(32)
        .with_remember(1000)
        .with_remember_for(secs(600));
    assert_eq!(chain.basic_auth, Setting::Own(basic_auth));

    let mut options = JwtOptions::default()
        .with_issuer("https://issuer.example.com")
        .with_audience("www.example.com")
        .with_leeway(secs(10))
        .with_required("jti")
        .with_scope("read")
        .with_cookie(Some("session".into()))
        .with_strip(true)
        .with_user_claim("email")
        .with_realm("api");
    options.algorithms = vec![Algorithm::Rs256, Algorithm::Es256];
    options.claims = vec![("sub".into(), field("x-token-user")), ("roles".into(), field("x-token-roles"))];
    let keys = JwtKeys::Fetch {
        cluster: "api".into(),
        target: "/.well-known/jwks.json".parse().unwrap(),
        host: Some(HeaderValue::from_static("issuer.example.com")),
        every: secs(600),
    };
    let mut found = chain.jwt.own().expect("the table is there").clone();
    // a table has no order
    found.options.claims.sort_by(|a, b| a.0.cmp(&b.0));
    options.claims.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(found, JwtPlan::new(options, keys));

    let options = ForwardAuthOptions::new("/verify".parse().unwrap())
        .with_host(Some(HeaderValue::from_static("auth.example.com")))
        .with_timeout(secs(2))
        .with_request_field(field("x-auth-user"))
        .with_response_field(field("set-cookie"))
        .with_user_field(Some(field("x-auth-user")));
    assert_eq!(chain.forward_auth, Setting::Own(ForwardAuthPlan::new("web", options)));
}

/// Filters search, up to 4096 bytes; what routes match as a whole is shorter.
#[test]
fn expressions_of_filters_have_the_bounds_of_filters() {
    let long = "a".repeat(4096);
    let headers = format!("headers = {{ \"x-a\" = {{ regex = \"{long}\" }} }}");
    let plan = plan(&format!("[[filter.rule]]\naction = \"deny\"\n{headers}\n{LEAST}"));
    let rule = &plan.chain.filter.own().unwrap().options.rules[0];
    assert_eq!(rule.fields, [(field("x-a"), FieldPattern::Regex(long))]);
}

#[test]
fn keys_of_tokens_come_from_one_of_four_places() {
    for (key, algorithm, wanted) in [
        ("secret = \"k\"", "HS256", JwtKeys::Secret("k".into())),
        ("public_keys = \"k\"", "ES384", JwtKeys::Pem("k".into())),
        ("key_set = \"k\"", "EdDSA", JwtKeys::Set("k".into())),
        (
            "key_set_path = \"/k\"\nkey_set_cluster = \"app\"",
            "PS512",
            JwtKeys::Fetch {
                cluster: "app".into(),
                target: "/k".parse().unwrap(),
                host: None,
                every: secs(300),
            },
        ),
    ] {
        let plan = plan(&format!("{LEAST}[jwt]\nalgorithms = [\"{algorithm}\"]\n{key}\n"));
        let mut options = JwtOptions::default();
        options.algorithms = vec![algorithm.parse().unwrap()];
        assert_eq!(plan.chain.jwt, Setting::Own(JwtPlan::new(options, wanted)), "{key}");
    }
}
