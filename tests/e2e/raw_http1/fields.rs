//! Fields with a meaning for this hop: `Connection` and what it names, `TE`, `Expect`, `Upgrade`, and what a client may
//! not say of itself.

use super::{Case, Want, case, check};

fn request(lines: &str) -> String {
    format!("GET /outer HTTP/1.1\r\nHost: a.test\r\n{lines}\r\n")
}

fn fields(name: &str, lines: &str, with: &'static [&'static str], without: &'static [&'static str]) -> Case {
    case(name, request(lines), Want::Fields { with, without })
}

/// CVE-2024-45410: a client that names a field in `Connection` may not take away what the proxy says, nor what frames.
fn nominated() -> Vec<Case> {
    vec![
        fields(
            "X-Forwarded-For",
            "Connection: X-Forwarded-For\r\nX-Forwarded-For: 6.6.6.6\r\n",
            &["x-forwarded-for: 127.0.0.1"],
            &["connection"],
        ),
        fields(
            "every asserted field",
            "Connection: close, X-Forwarded-Host, x-forwarded-proto, X-Real-Ip, Forwarded\r\n",
            &[
                "x-forwarded-for: 127.0.0.1",
                "x-forwarded-proto: http",
                "x-forwarded-host: a.test",
                "x-real-ip: 127.0.0.1",
            ],
            &["connection", "forwarded"],
        ),
        fields("Host", "Connection: Host\r\n", &["host: a.test"], &["connection"]),
        fields(
            "Content-Length",
            "Connection: Content-Length\r\nContent-Length: 0\r\n",
            &["content-length: 0"],
            &["connection"],
        ),
        fields("Cookie", "Connection: cookie\r\nCookie: a=b\r\n", &[], &["cookie", "connection"]),
        fields("itself", "Connection: connection\r\n", &[], &["connection"]),
        fields(
            "in any case, over two lines",
            "Connection: x-A\r\nCONNECTION: ,X-b,\r\nX-a: 1\r\nx-B: 2\r\nX-C: 3\r\n",
            &["X-C: 3"],
            &["x-a", "x-b", "connection"],
        ),
        fields(
            "quoted names and others that are none",
            "Connection: \"x-a\", x a, (x)\r\nX-A: 1\r\n",
            &["X-A: 1"],
            &["connection"],
        ),
        fields("Via", "Connection: Via\r\nVia: 1.1 x\r\n", &[], &["via", "connection"]),
        fields("Date", "Connection: Date\r\nDate: x\r\n", &[], &["date"]),
        fields(
            "Keep-Alive and others that are not named",
            "Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy: x\r\nProxy-Authorization: Basic eDp5\r\n",
            &[],
            &["keep-alive", "proxy-connection", "proxy", "proxy-authorization"],
        ),
    ]
}

/// CVE-2026-35051: what a backend takes for the proxy's word, in any spelling, is never the client's.
fn asserted() -> Vec<Case> {
    vec![
        fields(
            "spoofed",
            "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n",
            &[
                "x-forwarded-for: 127.0.0.1",
                "x-forwarded-proto: http",
                "x-forwarded-host: a.test",
                "x-real-ip: 127.0.0.1",
            ],
            &["forwarded"],
        ),
        fields(
            "underscores",
            "X_Forwarded_For: 6.6.6.6\r\nX-Forwarded_Proto: https\r\nX_REAL_IP: 6.6.6.6\r\nX_Forwarded_User: root\r\n",
            &["x-forwarded-for: 127.0.0.1"],
            &["x_forwarded_for", "x-forwarded_proto", "x_real_ip", "x_forwarded_user"],
        ),
        fields(
            "the rest of the family",
            "X-Forwarded-User: root\r\nX-Forwarded-Prefix: /x\r\nX-Forwarded-Ssl: on\r\nX-Forwarded-Port: 1\r\nX-Forwarded-Server: x\r\nX-Forwarded-Client-Cert: x\r\n",
            &[],
            &[
                "x-forwarded-user",
                "x-forwarded-prefix",
                "x-forwarded-ssl",
                "x-forwarded-server",
                "x-forwarded-client-cert",
            ],
        ),
        fields(
            "on two lines",
            "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\n",
            &["x-forwarded-for: 127.0.0.1"],
            &[],
        ),
    ]
}

fn end_to_end() -> Vec<Case> {
    vec![
        fields(
            "ranges",
            "Range: bytes=0-4,6-\r\nIf-Range: \"x\"\r\n",
            &["Range: bytes=0-4,6-", "If-Range: \"x\""],
            &[],
        ),
        fields(
            "conditions",
            "If-Match: *\r\nIf-None-Match: W/\"a\", \"b\"\r\nIf-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\nIf-Unmodified-Since: x\r\n",
            &[
                "If-Match: *",
                "If-None-Match: W/\"a\", \"b\"",
                "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT",
                "If-Unmodified-Since: x",
            ],
            &[],
        ),
        fields(
            "cookies on two lines",
            "Cookie: a=1\r\nCookie: b=2\r\n",
            &["Cookie: a=1", "Cookie: b=2"],
            &[],
        ),
        fields(
            "negotiation and others",
            "Accept-Encoding: br;q=0.5, gzip\r\nCache-Control: no-store\r\nPragma: no-cache\r\nPriority: u=1\r\nTrailer: X\r\nVia: 1.1 x\r\nAuthorization: Basic x\r\nOrigin: null\r\nSec-Fetch-Mode: cors\r\n",
            &[
                "Accept-Encoding: br;q=0.5, gzip",
                "Cache-Control: no-store",
                "Pragma: no-cache",
                "Priority: u=1",
                "Trailer: X",
                "Via: 1.1 x",
                "Authorization: Basic x",
                "Origin: null",
            ],
            &[],
        ),
        fields("TE trailers", "TE: trailers\r\nConnection: TE\r\n", &["te: trailers"], &[]),
        fields("TE trailers with a weight", "TE: trailers;q=0.5\r\n", &[], &["te"]),
        fields("TE others", "TE: gzip, chunked\r\n", &[], &["te"]),
        fields("TE empty", "TE:\r\n", &[], &["te"]),
        fields("Max-Forwards on GET is nobody's business", "Max-Forwards: 0\r\n", &["Max-Forwards: 0"], &[]),
        fields("an upgrade without its option", "Upgrade: websocket\r\n", &[], &["upgrade"]),
        fields(
            "h2c",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
            &[],
            &["upgrade", "http2-settings", "connection"],
        ),
        fields(
            "upgrades to TLS and to HTTP",
            "Connection: Upgrade\r\nUpgrade: TLS/1.0, HTTP/2.0\r\n",
            &[],
            &["upgrade", "connection"],
        ),
    ]
}

fn expectations_and_hops() -> Vec<Case> {
    let options = |fields: &str| format!("OPTIONS /outer HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n");
    let with = |line: &'static [&'static str]| Want::Fields { with: line, without: &[] };
    let mut cases = vec![
        // RFC 9110 section 10.1.1: on 1.0 it is ignored
        case(
            "an expectation on 1.0",
            "GET /outer HTTP/1.0\r\nHost: a.test\r\nExpect: 100-continue\r\n\r\n",
            Want::Fields { with: &[], without: &["expect"] },
        ),
        case("Max-Forwards is counted", options("Max-Forwards: 10\r\n"), with(&["max-forwards: 9"])),
        case("the last Max-Forwards", options("Max-Forwards: 1\r\n"), with(&["max-forwards: 0"])),
        case("a spent Max-Forwards", options("Max-Forwards: 0\r\n"), Want::Answered(200)),
    ];
    for (name, value) in [
        ("a word", "x"),
        ("a sign", "-1"),
        ("a list", "1, 2"),
        ("two lines", "1\r\nMax-Forwards: 1"),
        ("nothing", ""),
    ] {
        cases.push(case(
            format!("Max-Forwards: {name}"),
            options(&format!("Max-Forwards: {value}\r\n")),
            Want::Refused(&[400]),
        ));
    }
    for (name, value) in [
        ("another", "200-ok"),
        ("two", "100-continue, x"),
        ("with a parameter", "100-continue;x"),
        ("empty", ""),
        ("two lines", "100-continue\r\nExpect: x"),
    ] {
        cases.push(case(
            format!("Expect: {name}"),
            request(&format!("Expect: {value}\r\n")),
            Want::Answered(417),
        ));
    }
    cases
}

#[test]
fn fields_that_connection_names() {
    check(nominated());
}

#[test]
fn fields_that_are_ours_to_say() {
    check(asserted());
}

#[test]
fn fields_that_pass_and_fields_that_end_here() {
    check(end_to_end());
}

#[test]
fn expectations_and_max_forwards() {
    check(expectations_and_hops());
}
