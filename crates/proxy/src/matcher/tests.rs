use super::*;

fn conditions(of: &RouteMatch) -> Box<Conditions> {
    Conditions::new(of).unwrap().unwrap()
}

fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    lines.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
}

#[test]
fn no_conditions_are_none() {
    assert!(Conditions::new(&RouteMatch::default()).unwrap().is_none());
    assert!(Conditions::new(&RouteMatch::new(Some("a")).with_priority(3)).unwrap().is_none());
}

#[test]
fn fields() {
    let name = || HeaderName::from_static("x-v");
    let regex = |text: &str| ValueMatch::Regex(text.to_owned());
    for (value, lines, held) in [
        (ValueMatch::Present, vec![], false),
        (ValueMatch::Present, vec![("x-v", "")], true),
        (ValueMatch::Absent, vec![], true),
        (ValueMatch::Absent, vec![("x-v", "")], false),
        (ValueMatch::Exact("a".to_owned()), vec![("x-v", "a")], true),
        (ValueMatch::Exact("a".to_owned()), vec![("x-v", "A")], false),
        // RFC 9110 5.2: several lines are one value
        (ValueMatch::Exact("a".to_owned()), vec![("x-v", "a"), ("x-v", "b")], false),
        (ValueMatch::Exact("a, b".to_owned()), vec![("x-v", "a"), ("x-v", "b")], true),
        (regex("[0-9]+"), vec![("x-v", "12")], true),
        // the whole value
        (regex("[0-9]+"), vec![("x-v", "12a")], false),
        (regex("a|b"), vec![("x-v", "ab")], false),
        (regex("[0-9]+"), vec![], false),
    ] {
        let of = RouteMatch::default().with_header(name(), value.clone());
        let headers = headers(&lines);
        let missed = conditions(&of).test(&Asked::new("h", "/").with_headers(&headers));
        assert_eq!(missed, (!held).then(|| Miss::Header(name())), "{value:?} {lines:?}");
    }
}

#[test]
fn parameters() {
    let exact = |text: &str| ValueMatch::Exact(text.to_owned());
    for (name, value, query, held) in [
        ("q", ValueMatch::Present, Some("q"), true),
        ("q", ValueMatch::Present, Some("a=1&q=2"), true),
        ("q", ValueMatch::Present, Some("Q=2"), false),
        ("q", ValueMatch::Present, None, false),
        ("q", ValueMatch::Absent, Some("p=q"), true),
        ("q", exact("1"), Some("q=1&q=2"), true),
        ("q", exact("2"), Some("q=1&q=2"), false),
        ("q", exact("a b"), Some("q=a+b"), true),
        ("q", exact("a b"), Some("%71=a%20b"), true),
        ("q", exact("%zz"), Some("q=%zz"), true),
        ("q", exact(""), Some("q"), true),
        ("q", ValueMatch::Regex("[a-z]{2,3}".to_owned()), Some("q=abcd"), false),
    ] {
        let of = RouteMatch::default().with_query(name, value.clone());
        let missed = conditions(&of).test(&Asked::new("h", "/").with_query(query));
        assert_eq!(missed, (!held).then(|| Miss::Query(name.to_owned())), "{value:?} {query:?}");
    }
}

#[test]
fn the_method_is_missed_last() {
    let of = RouteMatch::default().with_method(Method::GET).with_query("q", ValueMatch::Present);
    let asked = Asked::new("h", "/").with_method(&Method::PUT);
    assert_eq!(conditions(&of).test(&asked), Some(Miss::Query("q".to_owned())));
    assert_eq!(conditions(&of).test(&asked.with_query(Some("q"))), Some(Miss::Method));
    assert_eq!(conditions(&of).test(&asked.with_query(Some("q")).with_method(&Method::HEAD)), None);
}

#[test]
fn a_client_that_is_not_known_is_in_no_network() {
    let of = RouteMatch::default().with_client("0.0.0.0/0".parse().unwrap());
    let asked = Asked::new("h", "/");
    assert_eq!(conditions(&of).test(&asked), Some(Miss::Client));
    let v6 = Some("2001:db8::1".parse().unwrap());
    assert_eq!(conditions(&of).test(&asked.with_connection(v6, true)), Some(Miss::Client));
    let mapped = Some("::ffff:192.0.2.1".parse().unwrap());
    assert_eq!(conditions(&of).test(&asked.with_connection(mapped, true)), None);
}
