//! Malformed requests (RFC 9113 section 8): what an HTTP/1.1 upstream would read differently, above all.

use super::{Case, Want, case, check, headers, read, refused};
use crate::support::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, block, field, fields, frame, indexed};

const METHOD: (&str, &str) = (":method", "GET");
const SCHEME: (&str, &str) = (":scheme", "http");
const PATH: (&str, &str) = (":path", "/x");
const AUTHORITY: (&str, &str) = (":authority", "a.test");

fn get(more: &[(&str, &str)]) -> Vec<u8> {
    block("GET", "/x", more)
}

/// HEADERS, DATA, and nothing more.
fn post(more: &[(&str, &str)], body: &str) -> Vec<u8> {
    [frame(HEADERS, END_HEADERS, 1, block("POST", "/x", more)), frame(DATA, END_STREAM, 1, body)].concat()
}

/// HEADERS, DATA, and trailers.
fn trailed(trailers: Vec<u8>) -> Vec<u8> {
    [
        frame(HEADERS, END_HEADERS, 1, block("POST", "/x", &[])),
        frame(DATA, 0, 1, "abc"),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, trailers),
    ]
    .concat()
}

/// RFC 9113 section 8.3.
fn pseudo_fields() -> Vec<Case> {
    let all = [METHOD, SCHEME, PATH, AUTHORITY];
    let mut cases = vec![
        read("in another order", headers(fields(&[AUTHORITY, PATH, SCHEME, METHOD])), "GET /x", ""),
        refused("after a field", [field("x", "y"), fields(&all)].concat()),
        refused("one after a field", [fields(&all[..3]), field("x", "y"), fields(&all[3..])].concat()),
        refused("unknown", [fields(&all), field(":foo", "x")].concat()),
        refused("one of a response", [fields(&all), field(":status", "200")].concat()),
        refused(":protocol without CONNECT", [fields(&all), field(":protocol", "websocket")].concat()),
        refused("no authority and no host", fields(&all[..3])),
        refused("an upper-case one", [fields(&all[..3]), field(":Authority", "a.test")].concat()),
        refused("a colon alone", [fields(&all), field(":", "x")].concat()),
        refused("CONNECT", fields(&[(":method", "CONNECT"), (":authority", "a.test:80")])),
        refused("CONNECT with a path", block("CONNECT", "/x", &[])),
        refused(
            "extended CONNECT to a protocol that is not allowed",
            [fields(&[(":method", "CONNECT"), (":protocol", "connect-udp")]), fields(&all[1..])].concat(),
        ),
        refused("TRACE", block("TRACE", "/x", &[])),
    ];
    for at in 0..3 {
        let (name, value) = all[at];
        let without: Vec<_> = all.iter().copied().filter(|field| field.0 != name).collect();
        cases.push(refused(format!("no {name}"), fields(&without)));
        cases.push(refused(format!("{name} twice"), [fields(&all), field(name, value)].concat()));
        cases.push(refused(format!("{name} empty"), [fields(&without), field(name, "")].concat()));
    }
    cases.push(refused(":authority twice", [fields(&all), field(":authority", "b.test")].concat()));
    for method in ["GET /evil HTTP/1.1\r\nX: y\r\n\r\nGET", "GET\0", "G T", "GET\n", "G\u{e9}T"] {
        cases.push(refused(format!("method {method:?}"), block(method, "/x", &[])));
    }
    for scheme in ["ftp", "file", "http:", "http://", "h ttp", "http\r\n", "1"] {
        let block = fields(&[METHOD, (":scheme", scheme), PATH, AUTHORITY]);
        cases.push(refused(format!("scheme {scheme:?}"), block));
    }
    cases
}

fn paths() -> Vec<Case> {
    let mut cases: Vec<_> = [
        "x",
        "*",
        "?x",
        "http://b.test/x",
        "//b.test\r\n",
        "/a b",
        "/a\rb",
        "/a\nb",
        "/a\r\nHost: b.test\r\n",
        "/a\0b",
        "/a\x7fb",
        "/a HTTP/1.1\r\nHost: b.test\r\n\r\nGET /b",
        "/a/../b",
        "/a/%2e%2e/b",
        "/\t",
        " /x",
        "/x ",
        "a.test:80",
    ]
    .into_iter()
    .map(|path| refused(format!("path {path:?}"), block("GET", path, &[])))
    .collect();
    cases.push(refused("a path that is too long", block("GET", &format!("/{}", "x".repeat(9000)), &[])));
    cases.push(read("an asterisk for OPTIONS", headers(block("OPTIONS", "*", &[])), "OPTIONS *", ""));
    cases.push(read(
        "bytes as they came",
        headers(block("GET", "//a/%2F;b?c=//%20", &[])),
        "GET //a/%2F;b?c=//%20",
        "",
    ));
    cases.push(read("a fragment alone", headers(block("GET", "#x", &[])), "GET /", ""));
    // CVE-2023-45539: what is behind `#` is no part of a request
    cases.push(read("a fragment", headers(block("GET", "/x#/../secret", &[])), "GET /x", ""));
    cases
}

/// RFC 9113 section 8.3.1: one authority, and `Host` may not say another.
fn authorities() -> Vec<Case> {
    let with = |authority: &str, more: &[(&str, &str)]| {
        [fields(&[METHOD, SCHEME, PATH, (":authority", authority)]), fields(more)].concat()
    };
    let host = |name: &str, block: Vec<u8>, host: &'static str| {
        let want = Want::Read { line: "GET /x", host, body: "", with: &[], without: &[] };
        case(name, headers(block), want)
    };
    let mut cases: Vec<_> = [
        "",
        "a.test,b.test",
        "a.test, b.test",
        "u@a.test",
        "u:p@a.test",
        "a test",
        "a.test/x",
        "a.test?x",
        "a.test#x",
        "a.test:x",
        "a.test:99999",
        "a.test\r\nX: y",
        "a.test\0",
        "[::1",
        "::1",
        "a..test",
        "a.test\\b.test",
        "*",
        "%61.test",
    ]
    .into_iter()
    .map(|authority| refused(format!("authority {authority:?}"), with(authority, &[])))
    .collect();
    cases.extend([
        refused("another host", with("a.test", &[("host", "b.test")])),
        refused("another port", with("a.test", &[("host", "a.test:81")])),
        refused("two hosts", with("a.test", &[("host", "a.test"), ("host", "a.test")])),
        refused("a host with a comma", with("a.test", &[("host", "a.test,b.test")])),
        refused("an empty host", with("a.test", &[("host", "")])),
        refused(
            "two hosts and no authority",
            fields(&[METHOD, SCHEME, PATH, ("host", "a.test"), ("host", "b.test")]),
        ),
        refused("a bad host and no authority", fields(&[METHOD, SCHEME, PATH, ("host", "u@a.test")])),
        host("the same host", with("a.test", &[("host", "a.test")]), "a.test"),
        host("the default port", with("a.test", &[("host", "A.test:80")]), "a.test"),
        host("a host alone", fields(&[METHOD, SCHEME, PATH, ("host", "b.test")]), "b.test"),
        host("IPv6", with("[::1]:81", &[]), "[::1]:81"),
    ]);
    cases
}

/// RFC 9113 sections 8.2.1 and 8.2.2.
fn regular_fields() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, value) in [
        ("X-Upper", "y"),
        ("hOst", "a.test"),
        ("", "y"),
        ("x y", "z"),
        ("x:y", "z"),
        ("x\r\ny", "z"),
        ("x\0", "z"),
        ("x\u{e9}", "z"),
        ("x\x7f", "z"),
        ("x", "a\rb"),
        ("x", "a\nb"),
        ("x", "a\r\nTransfer-Encoding: chunked"),
        ("x", "a\0b"),
        ("x", "a\x7fb"),
        ("x", "a\x01b"),
        ("x\r\ntransfer-encoding: chunked\r\ny", "z"),
        ("connection", "close"),
        ("connection", "x-a"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "close"),
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("te", "trailers, gzip"),
        ("te", ""),
        ("expect", "x"),
        ("max-forwards", "x"),
    ] {
        let method = if name == "max-forwards" { "OPTIONS" } else { "GET" };
        cases.push(refused(format!("{name:?}: {value:?}"), block(method, "/x", &[(name, value)])));
    }
    let kept = |name: &str, more: &[(&str, &str)], with, without| {
        case(name, headers(get(more)), Want::Read { line: "GET /x", host: "a.test", body: "", with, without })
    };
    cases.extend([
        kept("te: trailers", &[("te", "trailers")], &["te: trailers"][..], &[][..]),
        kept(
            "cookies are joined",
            &[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")],
            &["cookie: a=1; b=2"],
            &[],
        ),
        kept(
            "asserted fields",
            &[
                ("x-forwarded-for", "6.6.6.6"),
                ("forwarded", "for=6.6.6.6"),
                ("x_forwarded_for", "6.6.6.6"),
                ("content_length", "5"),
                ("proxy", "x"),
            ],
            &["x-forwarded-for: 127.0.0.1"],
            &["forwarded", "x_forwarded_for", "content_length", "proxy"],
        ),
        kept("a value of many bytes", &[("x", "a\u{e9}\tb \"c\"")], &["x: a\u{e9}\tb \"c\""], &[]),
    ]);
    cases
}

/// RFC 9113 section 8.1.1; CVE-2026-90678: the length that is announced and the bytes that come.
fn lengths() -> Vec<Case> {
    let cl = |length| [("content-length", length)];
    let mut cases = vec![
        read("a length that is true", post(&cl("3"), "abc"), "POST /x", "abc"),
        read("leading zeros", post(&cl("003"), "abc"), "POST /x", "abc"),
        read("no length", post(&[], "abc"), "POST /x", "abc"),
        read("no length and no body", headers(block("POST", "/x", &[])), "POST /x", ""),
        read("a length of 0 and no body", headers(block("POST", "/x", &cl("0"))), "POST /x", ""),
        case("more than announced", post(&cl("2"), "abc"), Want::Cut),
        case("less than announced", post(&cl("4"), "abc"), Want::Cut),
        case(
            "some where none was announced",
            post(&cl("0"), "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"),
            Want::Cut,
        ),
        refused("announced and no body at all", block("POST", "/x", &cl("5"))),
        case("two lengths", post(&[("content-length", "3"), ("content-length", "4")], "abc"), Want::Cut),
        case(
            "two lengths that are equal",
            post(&[("content-length", "3"), ("content-length", "3")], "abc"),
            Want::Cut,
        ),
    ];
    for length in ["", "x", "-3", "+3", "3 ", " 3", "3,3", "0x3", "18446744073709551619", "3\r\n"] {
        cases.push(case(format!("a length of {length:?}"), post(&cl(length), "abc"), Want::Cut));
    }
    let split = [
        frame(HEADERS, END_HEADERS, 1, block("POST", "/x", &cl("6"))),
        frame(DATA, 0, 1, "abc"),
        frame(DATA, 0, 1, ""),
        frame(DATA, END_STREAM, 1, "def"),
    ];
    cases.push(read("a length over frames", split.concat(), "POST /x", "abcdef"));
    let reset = [
        frame(HEADERS, END_HEADERS, 1, block("POST", "/x", &[])),
        frame(DATA, 0, 1, "abc"),
        frame(3, 0, 1, 8_u32.to_be_bytes()),
        // so that there is something to wait for
        frame(7, 0, 0, [0; 8]),
    ];
    // Envoy CVE-2026-48743, HAProxy CVE-2026-90678: a body that is reset has no end upstream either
    cases.push(case("a body that is reset", reset.concat(), Want::Cut));
    cases
}

/// RFC 9113 section 8.1.
fn trailers() -> Vec<Case> {
    let kept =
        |name: &str, trailers: &[(&str, &str)]| read(name, trailed(fields(trailers)), "POST /x", "abc");
    let mut cases = vec![
        kept("plain ones", &[("x-sum", "1")]),
        kept("none", &[]),
        // RFC 9110 section 6.5.1: they are dropped
        kept("a length", &[("content-length", "5")]),
        kept("a host", &[("host", "b.test")]),
        // the h2 crate drops them where section 8.1 has the request malformed; nobody behind sees one
        kept("a path", &[(":path", "/y")]),
        kept("a status", &[(":status", "200")]),
    ];
    for (name, value) in [("X-Sum", "1"), ("", "1"), ("x", "a\r\nb: c"), ("x", "a\0"), ("x y", "z")] {
        cases.push(case(format!("trailer {name:?}: {value:?}"), trailed(field(name, value)), Want::Cut));
    }
    for (name, value) in [("transfer-encoding", "chunked"), ("connection", "close"), ("te", "gzip")] {
        // malformed (section 8.2.2), or without them
        cases.push(case(format!("trailer {name:?}: {value:?}"), trailed(field(name, value)), Want::Cut));
    }
    let open = [
        frame(HEADERS, END_HEADERS, 1, block("POST", "/x", &[])),
        frame(DATA, 0, 1, "abc"),
        frame(HEADERS, END_HEADERS, 1, field("x-sum", "1")),
        frame(DATA, END_STREAM, 1, "GET /smuggled"),
    ];
    cases.push(case("trailers that are no end", open.concat(), Want::Cut));
    cases
}

/// CVE-2026-105297 and its kin: little on the wire and much in memory.
fn bombs() -> Vec<Case> {
    let many = |count: usize| -> Vec<u8> { (0..count).flat_map(|_| field("x", "y")).collect() };
    let over = |block: Vec<u8>| -> Vec<u8> {
        let mut frames = Vec::new();
        let last = block.len().div_ceil(16_384) - 1;
        for (at, part) in block.chunks(16_384).enumerate() {
            let end = if at == last { END_HEADERS } else { 0 };
            frames.extend(if at == 0 {
                frame(HEADERS, end | END_STREAM, 1, part)
            } else {
                frame(9, end, 1, part)
            });
        }
        frames
    };
    let big = "x".repeat(4000);
    // one field in the table, and a byte for each time that it is meant (index 62)
    let referenced = [get(&[]), indexed("x-bomb", &big), vec![0x80 | 62; 4000]].concat();
    let cookies: Vec<u8> = (0..5000).flat_map(|_| vec![0x0f, 0x11, 0]).collect();
    vec![
        refused("too many fields", [get(&[]), many(101)].concat()),
        case("far too many fields", over([get(&[]), many(10_000)].concat()), Want::Refused),
        case(
            "a field that is too long",
            over([get(&[]), field("x", "y".repeat(70_000))].concat()),
            Want::Refused,
        ),
        case(
            "a name that is too long",
            over([get(&[]), field("y".repeat(70_000), "x")].concat()),
            Want::Refused,
        ),
        case("one field that is meant 4000 times", over(referenced), Want::Refused),
        case("empty cookies", over([get(&[]), cookies].concat()), Want::Refused),
        // what is dropped counts as well
        case(
            "hosts",
            over([get(&[]), (0..3000).flat_map(|_| field("host", "a.test")).collect()].concat()),
            Want::Refused,
        ),
    ]
}

#[test]
fn pseudo_header_fields() {
    check(pseudo_fields());
}

#[test]
fn paths_in_every_form() {
    check(paths());
}

#[test]
fn authority_and_host() {
    check(authorities());
}

#[test]
fn field_names_and_values() {
    check(regular_fields());
}

#[test]
fn content_length_and_data() {
    check(lengths());
}

#[test]
fn trailer_sections() {
    check(trailers());
}

#[test]
fn header_bombs() {
    check(bombs());
}
