//! Rules against requests.

use http::HeaderName;
use portcullis_conn::{ConnInfo, EarlyData, TlsInfo, Transport};

use super::*;
use crate::{
    ClientIp,
    test_support::{conn, get, ok, through, with_conn},
};

fn rules(options: &FilterOptions) -> FilterRules {
    FilterRules::compile(options, &FilterSets::default()).unwrap()
}

pub(super) fn only(rule: Rule) -> FilterRules {
    rules(&FilterOptions::default().with_rule(rule))
}

/// Everything is denied but what this rule allows.
pub(super) fn allowing(rule: Rule) -> FilterRules {
    let options = FilterOptions::default().with_rule(rule).with_default(Action::Deny(StatusCode::FORBIDDEN));
    rules(&options)
}

pub(super) fn passes(rules: &FilterRules, request: &Request<()>) -> bool {
    rules.decide(request).0 == Action::Allow
}

fn patterns() -> [(PathPattern, &'static str); 5] {
    [
        (PathPattern::Exact("/secret/x".to_owned()), "/secret/x"),
        (PathPattern::Prefix("/secret".to_owned()), "/secret/x"),
        (PathPattern::Glob("/secret/*".to_owned()), "/secret/x"),
        (PathPattern::Glob("/**/x".to_owned()), "/secret/x"),
        (PathPattern::Regex("^/secret/x$".to_owned()), "/secret/x"),
    ]
}

/// Spellings of `/secret/x` by which one server or another comes to it.
const SPELLINGS: [&str; 24] = [
    "/secret/x",
    "/secret/x/",
    "//secret//x",
    "/./secret/./x",
    "/y/../secret/x",
    "/%73ecret/x",
    "/%2573ecret/x",
    "/secret%2fx",
    "/secret%2Fx",
    "/secret%252fx",
    "/y/%2e%2e/secret/x",
    "/y/..%2fsecret/x",
    "/y/%252e%252e/secret/x",
    "/secret\\x",
    "/secret%5cx",
    "/secret;v=1/x;w=2",
    "/secret/x%00.png",
    "/y/..;/secret/x",
    "/;%2fy/%2fsecret/x",
    "/y;%2fz/..%2fsecret/x",
    "/%3b%252fy/%252fsecret%252fx",
    "/secret\\..;\\..\\x",
    "/secret/y\\../..;/x",
    "/y%2fz/..%3b/secret/x",
];

#[test]
fn no_spelling_slips_past_a_rule_that_denies() {
    for (pattern, _) in patterns() {
        let rules = only(Rule::deny(StatusCode::FORBIDDEN).with_path(pattern.clone()));
        for path in SPELLINGS {
            // http takes a backslash in a path, as clients send it
            let uri = format!("http://a{path}");
            assert!(!passes(&rules, &get(&uri)), "{pattern:?} {path}");
        }
        assert!(passes(&rules, &get("/secre/y")), "{pattern:?}");
        assert!(passes(&rules, &get("/?/secret/x")), "{pattern:?}");
    }
}

#[test]
fn a_rule_that_allows_wants_every_reading() {
    for (pattern, path) in patterns() {
        let rules = allowing(Rule::allow().with_path(pattern.clone()));
        assert!(passes(&rules, &get(path)), "{pattern:?}");
    }
    let public = allowing(Rule::allow().with_path(PathPattern::Prefix("/public".to_owned())));
    for path in
        ["/public", "/public/", "/public/a", "/public/a%20b", "/public/%C3%A9", "/public/.well-known/a"]
    {
        assert!(passes(&public, &get(path)), "{path}");
    }
    for path in [
        "/publicity",
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public/..%2fadmin",
        "/public/%252e%252e%252fadmin",
        "/public\\..\\admin",
        "/public/..;/admin",
        "/public/y;%2fz/..%2f..%2fadmin",
        "/public/y;%2fz/%252e%252e/%252e%252e/admin",
        "/public/%3b%252fy/..%252fadmin",
        "/public/..\\admin/..;/public",
        "/public/%2f/..%3b/..%3b/admin",
        "/%70ublic/a",
        "/x/../public/a",
        "/public%2fa",
        "/public%00/a",
        "/",
        "*",
    ] {
        let request = if path == "*" { get("*") } else { get(&format!("http://a{path}")) };
        assert!(!passes(&public, &request), "{path}");
    }
    let written = allowing(Rule::allow().with_path(PathPattern::Exact("/a%20b".to_owned())));
    assert!(passes(&written, &get("/a%20b")) && !passes(&written, &get("/a%2520b")));
}

#[test]
fn a_long_path_that_is_odd_is_on_the_strict_side() {
    const MOST: usize = 8 << 10;
    let long = |odd: &str, length: usize| format!("/public{odd}/{}", "a".repeat(length - odd.len() - 8));
    for pattern in [
        PathPattern::Exact("/other".to_owned()),
        PathPattern::Prefix("/other".to_owned()),
        PathPattern::Glob("/other/**".to_owned()),
        PathPattern::Regex("^/other".to_owned()),
    ] {
        let deny = only(Rule::deny(StatusCode::FORBIDDEN).with_path(pattern.clone()));
        let prefix = FilterRules::deny_prefixes(["/other"]);
        for (odd, length, passes) in
            [("", MOST + 1, true), ("/%20", MOST, true), ("/%20", MOST + 1, false), (";", MOST + 1, false)]
        {
            let path = long(odd, length);
            assert_eq!(path.len(), length);
            assert_eq!(self::passes(&deny, &get(&path)), passes, "{pattern:?} {odd} {length}");
            assert_eq!(!prefix.denies(&path), passes, "{odd} {length}");
        }
    }
    for pattern in [PathPattern::Prefix("/public".to_owned()), PathPattern::Regex("^/public".to_owned())] {
        let allow = allowing(Rule::allow().with_path(pattern.clone()));
        for (odd, length, passes) in
            [("", MOST + 1, true), ("/%20", MOST, true), ("/%20", MOST + 1, false), (";", MOST + 1, false)]
        {
            assert_eq!(self::passes(&allow, &get(&long(odd, length))), passes, "{pattern:?} {odd} {length}");
        }
    }
    // what asks for no path is asked as ever
    let rules = only(Rule::deny(StatusCode::FORBIDDEN).with_method(http::Method::POST));
    assert!(passes(&rules, &get(&long(";", MOST + 1))));
}

#[test]
fn globs_and_regexes() {
    let glob = |text: &str| PathPattern::Glob(text.to_owned());
    let regex = |text: &str| PathPattern::Regex(text.to_owned());
    let table = [
        (glob("/*.php"), "/a.php", true),
        (glob("/*.php"), "/a/b.php", false),
        (glob("/**/*.php"), "/a/b.php", true),
        (glob("/a?/{x,y}"), "/ab/y", true),
        (glob("/a?/{x,y}"), "/ab/z", false),
        (glob("/api"), "/api/x", false),
        (glob("/api/**"), "/api%2f%0ax", true),
        (glob("/**/*.php"), "/a%2f%0a/b.php", true),
        (glob("/a?b"), "/a%0ab", true),
        (regex(r"\.php$"), "/a/b.php", true),
        (regex(r"\.php$"), "/a/b.php/", true),
        (regex(r"\.php$"), "/a/b.php.txt", false),
        (regex(r"(?i)^/admin"), "/AdMin/x", true),
        (regex(r"^/admin"), "/AdMin/x", false),
    ];
    for (pattern, path, matches) in table {
        let rules = only(Rule::deny(StatusCode::FORBIDDEN).with_path(pattern.clone()));
        assert_eq!(!passes(&rules, &get(path)), matches, "{pattern:?} {path}");
    }
}

#[test]
fn the_first_that_matches_decides() {
    let options = FilterOptions::default()
        .with_deny(["/.git"])
        .with_rule(Rule::allow().with_path(PathPattern::Prefix("/admin/login".to_owned())))
        .with_rule(Rule::deny(StatusCode::FORBIDDEN).with_path(PathPattern::Prefix("/admin".to_owned())))
        .with_rule(Rule::new(Action::Close).with_method(http::Method::TRACE))
        .with_default(Action::Deny(StatusCode::IM_A_TEAPOT));
    let rules = rules(&options);
    let teapot = Action::Deny(StatusCode::IM_A_TEAPOT);
    for (method, path, decision) in [
        ("GET", "/.git/config", (Action::Deny(StatusCode::NOT_FOUND), Some(0))),
        ("GET", "/admin/login", (Action::Allow, Some(1))),
        ("GET", "/admin/x", (Action::Deny(StatusCode::FORBIDDEN), Some(2))),
        ("TRACE", "/admin/x", (Action::Deny(StatusCode::FORBIDDEN), Some(2))),
        ("TRACE", "/", (Action::Close, Some(3))),
        ("GET", "/", (teapot, None)),
    ] {
        let request = Request::builder().method(method).uri(path).body(()).unwrap();
        assert_eq!(rules.decide(&request), decision, "{method} {path}");
    }
}

#[test]
fn hosts() {
    let deny = only(
        Rule::deny(StatusCode::FORBIDDEN)
            .with_host("a.test")
            .with_host("*.b.test")
            .with_host("[2001:db8::1]"),
    );
    let allow =
        allowing(Rule::allow().with_host("a.test").with_host("*.b.test").with_host("[2001:DB8:0::1]"));
    for (uri, field, is) in [
        ("/", Some("a.test"), true),
        ("/", Some("A.Test:8080"), true),
        ("/", Some("a.test."), true),
        ("http://a.test/", None, true),
        ("/", Some("x.b.test"), true),
        ("/", Some("x.y.b.test:1"), true),
        ("/", Some("b.test"), false),
        ("/", Some("xa.test"), false),
        ("/", Some("a.test.evil"), false),
        ("/", Some("[2001:db8::1]"), true),
        ("/", Some("[2001:0DB8:0::1]:80"), true),
        ("http://[2001:db8:0:0:0:0:0:1]/", None, true),
        ("/", Some("[2001:db8::2]"), false),
        ("/", Some("[::1]:80"), false),
        ("/", None, false),
    ] {
        let mut request = get(uri);
        if let Some(field) = field {
            request.headers_mut().insert("host", field.parse().unwrap());
        }
        assert_eq!(!passes(&deny, &request), is, "{uri} {field:?}");
        assert_eq!(passes(&allow, &request), is, "{uri} {field:?}");
    }
    // two names: denied for one, allowed for neither
    let mut request = get("http://a.test/");
    request.headers_mut().insert("host", "other.test".parse().unwrap());
    assert!(!passes(&deny, &request) && !passes(&allow, &request));
}

#[test]
fn fields_and_queries() {
    let name = HeaderName::from_static("user-agent");
    let table: [(FieldPattern, &[&str], bool, bool); 9] = [
        (FieldPattern::Present, &["x"], true, true),
        (FieldPattern::Present, &[], false, false),
        (FieldPattern::Absent, &[], true, true),
        (FieldPattern::Absent, &["x"], false, false),
        (FieldPattern::Equals("x".to_owned()), &["x"], true, true),
        (FieldPattern::Equals("x".to_owned()), &["x", "y"], true, false),
        (FieldPattern::Regex("(?i)bot".to_owned()), &["GoodBot/1"], true, true),
        (FieldPattern::Regex("(?i)bot".to_owned()), &["curl"], false, false),
        (FieldPattern::Regex("bot".to_owned()), &[], false, false),
    ];
    for (pattern, lines, denied, allowed) in table {
        let mut request = get("/");
        for line in lines {
            request.headers_mut().append(&name, line.parse().unwrap());
        }
        let deny = only(Rule::deny(StatusCode::FORBIDDEN).with_field(name.clone(), pattern.clone()));
        let allow = allowing(Rule::allow().with_field(name.clone(), pattern.clone()));
        assert_eq!(!passes(&deny, &request), denied, "{pattern:?} {lines:?}");
        assert_eq!(passes(&allow, &request), allowed, "{pattern:?} {lines:?}");
    }
    let deny = only(Rule::deny(StatusCode::FORBIDDEN).with_query("union select"));
    for query in ["a=union select", "a=union+select", "a=union%20select", "a=%75nion%2520select"] {
        let uri = format!("/?{}", query.replace(' ', "%20"));
        assert!(!passes(&deny, &get(&uri)), "{query}");
    }
    assert!(passes(&deny, &get("/?a=union")) && passes(&deny, &get("/union%20select")));
    let allow = allowing(Rule::allow().with_query("^key=1$"));
    assert!(passes(&allow, &get("/?key=1")));
    assert!(!passes(&allow, &get("/?ke%79=1")) && !passes(&allow, &get("/")));
}

#[test]
fn clients_of_sets_that_are_replaced() {
    let set = ClientSet::new(CidrSet::parse("203.0.113.0/24").unwrap());
    let sets = FilterSets::default().with_clients("bad", set.clone());
    let rule =
        Rule::deny(StatusCode::FORBIDDEN).with_client("192.0.2.0/24".parse().unwrap()).with_client_set("bad");
    let options = FilterOptions::default().with_rule(rule);
    let rules = FilterRules::compile(&options, &sets).unwrap();
    let from = |peer: &str| with_conn(get("/"), Arc::new(conn(peer)));
    assert!(!passes(&rules, &from("192.0.2.7:1")) && !passes(&rules, &from("203.0.113.9:1")));
    assert!(passes(&rules, &from("198.51.100.7:1")) && passes(&rules, &get("/")));
    set.replace(CidrSet::parse("198.51.100.0/24").unwrap());
    assert!(!passes(&rules, &from("198.51.100.7:1")) && passes(&rules, &from("203.0.113.9:1")));
    let mut believed = from("198.51.100.7:1");
    believed.extensions_mut().insert(ClientIp("203.0.113.9".parse().unwrap()));
    assert!(passes(&rules, &believed));
    let missing = FilterRules::compile(&options, &FilterSets::default()).unwrap_err();
    assert_eq!(missing.to_string(), "rule 1: there is no set of clients `bad`");
}

#[test]
fn a_client_in_a_hurry_is_known_by_its_address() {
    let network = "198.51.100.0/24".parse().unwrap();
    let allow = allowing(Rule::allow().with_client(network));
    let deny = only(Rule::deny(StatusCode::FORBIDDEN).with_client(network));
    let peer = "198.51.100.7:1".parse().unwrap();
    for transport in [Transport::Quic, Transport::Tcp] {
        // whoever hands out requests before the handshake is complete has seen to it that the address is proven
        let (early, _confirm) = EarlyData::new();
        let mut tls = TlsInfo::default();
        tls.early_data = Some(early);
        let info = Arc::new(ConnInfo::new(transport, peer, peer).with_tls(tls));
        let request = with_conn(get("/"), info);
        assert!(passes(&allow, &request) && !passes(&deny, &request), "{transport:?}");
    }
}

#[cfg(feature = "country")]
#[test]
fn countries_of_a_database() {
    let database = portcullis_testkit::country_database(&[("192.0.2.0/24", "DE"), ("2001:db8::/32", "fr")]);
    let countries = Countries::new(CountryDatabase::parse(database).unwrap());
    let sets = FilterSets::default().with_countries(countries.clone());
    let code = |text| CountryCode::new(text).unwrap();
    let rule = Rule::deny(StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS).with_country(code("de"));
    let options = FilterOptions::default().with_rule(rule.with_country(code("FR")));
    let rules = FilterRules::compile(&options, &sets).unwrap();
    let from = |peer: &str| with_conn(get("/"), Arc::new(conn(peer)));
    assert!(!passes(&rules, &from("192.0.2.1:1")) && !passes(&rules, &from("[2001:db8::1]:1")));
    assert!(passes(&rules, &from("192.0.3.1:1")) && passes(&rules, &get("/")));
    let other = portcullis_testkit::country_database(&[("192.0.2.0/24", "CH")]);
    countries.replace(CountryDatabase::parse(other).unwrap());
    assert!(passes(&rules, &from("192.0.2.1:1")));
    let error = CountryDatabase::parse(b"nothing".to_vec()).unwrap_err();
    assert!(error.to_string().starts_with("it is no country database: "), "{error}");
    assert!(matches!(
        FilterRules::compile(&options, &FilterSets::default()),
        Err(FilterError::NoCountries { rule: 1 })
    ));
    assert_eq!(CountryCode::new("D1"), None);
    assert_eq!(CountryCode::new("DEU"), None);
}

#[test]
fn patterns_are_bounded() {
    let with = |path| {
        FilterRules::compile(
            &FilterOptions::default().with_rule(Rule::allow().with_path(path)),
            &FilterSets::default(),
        )
    };
    assert!(matches!(with(PathPattern::Regex("(".to_owned())), Err(FilterError::Regex { rule: 1, .. })));
    let large = PathPattern::Regex("(a{100}){1000}".to_owned());
    assert!(matches!(with(large), Err(FilterError::Regex { .. })));
    assert!(matches!(with(PathPattern::Glob("[".to_owned())), Err(FilterError::Glob { rule: 1, .. })));
    assert!(matches!(with(PathPattern::Regex("a".repeat(5000))), Err(FilterError::TooLong { rule: 1 })));
}

#[tokio::test]
async fn the_answers() {
    for (action, status) in [
        (Action::Deny(StatusCode::NOT_FOUND), 404),
        (Action::Deny(StatusCode::FORBIDDEN), 403),
        (Action::Close, 403),
        (Action::Allow, 200),
    ] {
        let layer = FilterLayer::new(only(Rule::new(action)));
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let mut request = get("/");
            *request.version_mut() = version;
            let response = through(&layer, ok, request).await;
            assert_eq!(response.status(), status);
            let closes = action == Action::Close && version == Version::HTTP_11;
            assert_eq!(response.headers().contains_key(CONNECTION), closes, "{action:?} {version:?}");
        }
        assert_eq!(layer.denied(), if status == 200 { 0 } else { 2 });
    }
}

proptest::proptest! {
    #[test]
    fn odd_and_plain_agree(path in "(/[a-c]{1,2}){0,4}", prefix in "(/[a-c]{1,2}){1,3}") {
        // a detour makes all readings be looked at, and none of them is elsewhere
        let rules = only(Rule::deny(StatusCode::FORBIDDEN).with_path(PathPattern::Prefix(prefix)));
        let plain = passes(&rules, &get(&format!("http://h{path}/z")));
        let odd = passes(&rules, &get(&format!("http://h{path}/%7A")));
        proptest::prop_assert_eq!(plain, odd);
    }
}

/// RFC 8441, RFC 9220: what is routed and forwarded as a GET is one to a rule, too.
#[test]
fn an_extended_connect_is_a_get() {
    let rules = only(Rule::deny(StatusCode::FORBIDDEN).with_method(http::Method::GET));
    let mut request = get("/ws");
    *request.method_mut() = http::Method::CONNECT;
    assert!(passes(&rules, &request), "a tunnel is none");
    request.extensions_mut().insert(portcullis_conn::ConnectProtocol::new("websocket"));
    assert!(!passes(&rules, &request));
}
