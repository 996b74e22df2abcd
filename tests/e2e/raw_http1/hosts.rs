//! Whom a request is for: `Host`, and the authority of a target (RFC 9112 section 3.2, RFC 9110 section 7.2).

use super::{Case, Want, case, check, read, refused};

fn with_host(value: &str) -> String {
    format!("GET /outer HTTP/1.1\r\nHost: {value}\r\n\r\n")
}

fn good() -> Vec<Case> {
    let mut cases: Vec<_> = [
        "a.test:8080",
        "a.test:",
        "a.test.",
        "127.0.0.1",
        "[::1]",
        "[::1]:80",
        "[2001:DB8::1]:443",
        "A.TEST",
        "a_b.test",
        "x--y.test",
    ]
    .into_iter()
    .map(|host| read(format!("host {host}"), with_host(host), &[("GET /outer", host, "")]))
    .collect();
    cases.push(read("white space around", with_host("\t a.test \t"), &[("GET /outer", "a.test", "")]));
    cases.push(read(
        "any case of the name",
        "GET /outer HTTP/1.1\r\nhOST: a.test\r\n\r\n",
        &[("GET /outer", "a.test", "")],
    ));
    cases
}

fn bad() -> Vec<Case> {
    let mut cases: Vec<_> = [
        ("empty", ""),
        ("a port alone", ":80"),
        ("a dot", "."),
        ("two dots", "a..test"),
        ("a leading dot", ".a.test"),
        ("a port past 65535", "a.test:65536"),
        ("a port of many digits", "a.test:000080"),
        ("a signed port", "a.test:+80"),
        ("a port with a space", "a.test: 80"),
        ("two ports", "a.test:80:80"),
        ("user and password", "u:p@a.test"),
        ("an at sign before", "@a.test"),
        ("an at sign behind", "a.test@"),
        ("a query", "a.test?b"),
        ("a fragment", "a.test#b"),
        ("a backslash", "a.test\\b"),
        ("a scheme", "http://a.test"),
        ("a percent", "a%2etest"),
        ("a tab", "a\tb.test"),
        ("a quote", "\"a.test\""),
        ("a semicolon", "a.test;b"),
        ("a list with a space", "a.test, b.test"),
        ("an umlaut", "\u{e4}.test"),
        ("a NUL", "a.test\0"),
        ("a DEL", "a.test\x7f"),
        ("IPv6 without brackets", "2001:db8::1"),
        ("IPv6 without its end", "[::1"),
        ("IPv6 and a letter", "[::1]a"),
        ("IPv6 with a zone", "[fe80::1%25eth0]"),
        ("IPv6 of no address", "[::g]"),
        ("a future address", "[v1.a:b]"),
        ("empty brackets", "[]"),
        ("a name in brackets", "[a.test]"),
        ("braces", "{a}.test"),
        ("a star", "*.a.test"),
    ]
    .into_iter()
    .map(|(name, host)| refused(format!("a host: {name}"), with_host(host)))
    .collect();
    cases.push(refused("a name that is too long", with_host(&format!("{}.test", "a".repeat(300)))));
    cases.push(refused(
        "three hosts",
        "GET / HTTP/1.1\r\nHost: a.test\r\nX: y\r\nHost: a.test\r\nHost: b.test\r\n\r\n",
    ));
    cases.push(refused("two hosts, one empty", "GET / HTTP/1.1\r\nHost:\r\nHost: b.test\r\n\r\n"));
    cases.push(refused("a host with a space before the colon", "GET / HTTP/1.1\r\nHost : a.test\r\n\r\n"));
    cases.push(refused("a host that is folded", "GET / HTTP/1.1\r\nHost:\r\n a.test\r\n\r\n"));
    cases.push(refused(
        "a second host that is folded into the first",
        "GET / HTTP/1.1\r\nHost: a.test\r\n\tHost: b.test\r\n\r\n",
    ));
    cases
}

fn absolute() -> Vec<Case> {
    let get = |target: &str, host: &str| format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let mut cases = vec![
        read("the same authority", get("http://a.test/x?y", "a.test"), &[("GET /x?y", "a.test", "")]),
        read("https on a plain listener", get("https://a.test/x", "a.test"), &[("GET /x", "a.test", "")]),
        read("any case of the scheme", get("HTTP://a.test/x", "a.test"), &[("GET /x", "a.test", "")]),
        read("no path", get("http://a.test", "a.test"), &[("GET /", "a.test", "")]),
        read("no path and a query", get("http://a.test?x", "a.test"), &[("GET /?x", "a.test", "")]),
        // RFC 9112 section 3.2.2: the target wins
        read("another host", get("http://b.test:81/x", "a.test"), &[("GET /x", "b.test:81", "")]),
        read("IPv6", get("http://[::1]:81/x", "a.test"), &[("GET /x", "[::1]:81", "")]),
    ];
    for (name, target, host) in [
        ("and no Host", "http://a.test/x", None),
        ("no authority", "http:///x", Some("a.test")),
        ("a scheme and no slashes", "http:a.test/x", Some("a.test")),
        ("user information", "http://b.test@a.test/x", Some("a.test")),
        ("a backslash", "http://a.test\\@b.test/x", Some("a.test")),
        ("a bad port", "http://a.test:x/", Some("a.test")),
        ("a comma", "http://a.test,b.test/", Some("a.test")),
        ("file", "file:///etc/passwd", Some("a.test")),
        ("javascript", "javascript:alert(1)", Some("a.test")),
        ("h2", "h2://a.test/", Some("a.test")),
        ("a percent in the host", "http://a%2etest/", Some("a.test")),
    ] {
        let host = host.map_or(String::new(), |host| format!("Host: {host}\r\n"));
        cases.push(refused(format!("absolute: {name}"), format!("GET {target} HTTP/1.1\r\n{host}\r\n")));
    }
    // RFC 9112 section 3.2.2: the Host that is overruled must be a good one all the same
    cases.push(refused("absolute: and a bad host", get("http://a.test/x", "u@a.test")));
    cases.push(refused(
        "absolute: and two hosts",
        "GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n",
    ));
    cases.push(case("authority form", get("a.test:80", "a.test"), Want::Refused(&[400])));
    cases.push(case(
        "CONNECT and an origin form",
        "CONNECT /x HTTP/1.1\r\nHost: a.test\r\n\r\n",
        Want::Refused(&[400, 501]),
    ));
    cases
}

#[test]
fn good_hosts() {
    check(good());
}

#[test]
fn bad_hosts() {
    check(bad());
}

#[test]
fn absolute_targets() {
    check(absolute());
}
