//! Request lines, line ends and field lines (RFC 9112 sections 2.2, 3 and 5).

use super::{Case, INNER, Want, case, check, read, refused};

/// What does not begin like HTTP is not answered in HTTP: the connection is closed.
fn silent(name: &str, bytes: impl AsRef<[u8]>) -> Case {
    case(name, bytes, Want::Refused(&[]))
}

fn line(line: &str) -> String {
    format!("{line}\r\nHost: a.test\r\n\r\n")
}

fn methods_and_versions() -> Vec<Case> {
    vec![
        read("an unknown method", line("BREW /x HTTP/1.1"), &[("BREW /x", "a.test", "")]),
        // RFC 9110 section 9.1: methods are case-sensitive, so this is another one and no GET
        read("a lower-case method", line("get /x HTTP/1.1"), &[("get /x", "a.test", "")]),
        read(
            "a method of signs",
            line("!#$%&'*+-.^_`|~ /x HTTP/1.1"),
            &[("!#$%&'*+-.^_`|~ /x", "a.test", "")],
        ),
        refused("a method with a slash", line("GE/T /x HTTP/1.1")),
        refused("a method with a colon", line("GET: /x HTTP/1.1")),
        refused("a method with a comma", line("GET,POST /x HTTP/1.1")),
        refused("a method with parentheses", line("GET() /x HTTP/1.1")),
        silent("a quoted method", line("\"GET\" /x HTTP/1.1")),
        refused("a method with a NUL", line("GE\0T /x HTTP/1.1")),
        refused("a method with a high byte", line("G\u{cb}T /x HTTP/1.1")),
        case(
            "a method of 33 letters",
            line(&format!("{} /x HTTP/1.1", "A".repeat(33))),
            Want::Refused(&[501]),
        ),
        case(
            "a method that never ends",
            line(&format!("{} /x HTTP/1.1", "A".repeat(70_000))),
            Want::Refused(&[400, 431, 501]),
        ),
        case("TRACE", line("TRACE /x HTTP/1.1"), Want::Answered(405)),
        silent("a space before the method", line(" GET /x HTTP/1.1")),
        refused("a tab between", line("GET\t/x HTTP/1.1")),
        refused("a tab before the version", line("GET /x\tHTTP/1.1")),
        refused("two spaces before the version", line("GET /x  HTTP/1.1")),
        refused("two spaces before the target", line("GET  /x HTTP/1.1")),
        refused("a space at the end", line("GET /x HTTP/1.1 ")),
        refused("a word at the end", line("GET /x HTTP/1.1 HTTP/1.1")),
        case("HTTP/1.2", line("GET /x HTTP/1.2"), Want::Refused(&[400, 505])),
        case("HTTP/2.0", line("GET /x HTTP/2.0"), Want::Refused(&[400, 505])),
        case("HTTP/0.9 by name", line("GET /x HTTP/0.9"), Want::Refused(&[400, 505])),
        case("HTTP/1.10", line("GET /x HTTP/1.10"), Want::Refused(&[400, 505])),
        case("HTTP/01.1", line("GET /x HTTP/01.1"), Want::Refused(&[400, 505])),
        case("HTTP/1", line("GET /x HTTP/1"), Want::Refused(&[400, 505])),
        case("HTTP/1,1", line("GET /x HTTP/1,1"), Want::Refused(&[400, 505])),
        case("a lower-case version", line("GET /x http/1.1"), Want::Refused(&[400, 505])),
        case("another protocol", line("GET /x ICY/1.1"), Want::Refused(&[400, 505])),
        refused("HTTP/0.9 with fields", line("GET /x")),
        refused("a method alone", line("GET")),
        case(
            "the HTTP/2 preface within",
            "GET / HTTP/1.1\r\nHost: a.test\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            Want::Then(vec![("GET /", "a.test", "")], &[]),
        ),
        silent("a TLS record", "\x16\x03\x01\x02\x00\x01\x00\x01\u{7c}\x03\x03\r\n\r\n"),
    ]
}

fn targets() -> Vec<Case> {
    let kept = |target: &'static str, line_: &'static str| {
        read(format!("target {target}"), line(&format!("GET {target} HTTP/1.1")), &[(line_, "a.test", "")])
    };
    let long = format!("GET /{} HTTP/1.1", "x".repeat(9000));
    vec![
        kept("/a//b/%2F/%41?x=%20&y=//;z", "GET /a//b/%2F/%41?x=%20&y=//;z"),
        kept("/?", "GET /?"),
        kept("//evil.test/x", "GET //evil.test/x"),
        kept("/%", "GET /%"),
        kept("/%zz", "GET /%zz"),
        kept("/%00", "GET /%00"),
        kept("/%0d%0aX:%20y", "GET /%0d%0aX:%20y"),
        kept("/a:80", "GET /a:80"),
        kept("/@x", "GET /@x"),
        // CVE-2023-45539: what is behind `#` is no part of a request, and nobody routes on it
        kept("/public#/../secret", "GET /public"),
        kept("/public?a#b?c", "GET /public?a"),
        case(
            "an asterisk for OPTIONS",
            line("OPTIONS * HTTP/1.1"),
            Want::Read(vec![("OPTIONS *", "a.test", "")]),
        ),
        refused("an asterisk for POST", line("POST * HTTP/1.1")),
        refused("an asterisk and more", line("OPTIONS *x HTTP/1.1")),
        refused("two asterisks", line("OPTIONS ** HTTP/1.1")),
        refused("a query alone", line("GET ?x HTTP/1.1")),
        refused("a fragment alone", line("GET #x HTTP/1.1")),
        refused("dot segments", line("GET /a/../b HTTP/1.1")),
        refused("encoded dot segments", line("GET /a/%2e%2E/b HTTP/1.1")),
        refused("dot segments behind an encoded slash", line("GET /a%2f..%2fb HTTP/1.1")),
        refused("dot segments behind a backslash", line("GET /a\\..\\b HTTP/1.1")),
        refused("dot segments and a parameter", line("GET /a/..;/b HTTP/1.1")),
        refused("a NUL", line("GET /a\0b HTTP/1.1")),
        refused("a DEL", line("GET /a\x7fb HTTP/1.1")),
        refused("a bare CR", line("GET /a\rb HTTP/1.1")),
        refused("a bare LF", line("GET /a\nb HTTP/1.1")),
        refused("an escape", line("GET /a\x1bb HTTP/1.1")),
        refused("a relative path", line("GET x/y HTTP/1.1")),
        refused("a backslash first", line("GET \\x HTTP/1.1")),
        refused("an empty target", line("GET  HTTP/1.1")),
        case("a target that is too long", line(&long), Want::Refused(&[414])),
    ]
}

fn line_ends() -> Vec<Case> {
    let one = &[("GET /outer", "a.test", "")];
    let two = &[("GET /outer", "a.test", ""), ("GET /smuggled", "a.test", "")];
    let get = |rest: &str| format!("GET /outer HTTP/1.1\r\n{rest}");
    vec![
        // RFC 9112 section 2.2: empty lines before a request line are skipped
        read("one empty line before", format!("\r\n{}", get("Host: a.test\r\n\r\n")), one),
        silent("many empty lines before", format!("{}{}", "\r\n".repeat(8), get("Host: a.test\r\n\r\n"))),
        read("an empty line between", format!("{}\r\n{INNER}", get("Host: a.test\r\n\r\n")), two),
        // a bare LF may end a line (the same section); what goes on has CRLF
        read("bare LF in one line", get("Host: a.test\nX: y\r\n\r\n"), one),
        read("bare LF at the end of the head", format!("{}{INNER}", get("Host: a.test\r\n\n")), two),
        refused("bare CR for every line", get("Host: a.test\r\n\r\n").replace("\r\n", "\r")),
        refused("bare CR in a value", get("Host: a.test\r\nX: a\rb\r\n\r\n")),
        refused("bare CR at the end of a value", get("Host: a.test\r\nX: a\r\r\n\r\n")),
        refused("bare CR in a name", get("Host: a.test\r\nX\rY: a\r\n\r\n")),
        refused("bare CR behind the colon", get("Host: a.test\r\nX:\ra\r\n\r\n")),
        refused("CR CR LF at the end of the head", get("Host: a.test\r\n\r\r\n")),
        refused("LF CR", get("Host: a.test\n\rX: y\n\r\n\r")),
        silent("a NUL before the request", format!("\0{}", get("Host: a.test\r\n\r\n"))),
        silent("a space before the request", format!(" {}", get("Host: a.test\r\n\r\n"))),
        silent("a byte-order mark", format!("\u{feff}{}", get("Host: a.test\r\n\r\n"))),
    ]
}

fn field_lines() -> Vec<Case> {
    let field = |field: &str| format!("GET /outer HTTP/1.1\r\nHost: a.test\r\n{field}\r\n\r\n");
    let fields = |name: &str, line: &str, with: &'static [&'static str]| {
        case(name, field(line), Want::Fields { with, without: &[] })
    };
    let high = b"GET /outer HTTP/1.1\r\nHost: a.test\r\nX-H: a\xff\xe4\x80b\r\n\r\n";
    let mut cases = vec![
        fields("an empty value", "X-E:", &["X-E: "]),
        fields("no space behind the colon", "X-E:y", &["X-E: y"]),
        fields("tabs within", "X-E: a\tb", &["X-E: a\tb"]),
        fields("a colon in the value", "X-E: a:b: c", &["X-E: a:b: c"]),
        fields("every sign in a name", "!#$%&'*+-.^_`|~09aZ: y", &["!#$%&'*+-.^_`|~09aZ: y"]),
        fields("lines stay lines, in order", "X-E: 1\r\nX-E: 2", &["X-E: 1", "X-E: 2"]),
        case(
            "high bytes in a value",
            high,
            Want::Fields { with: &["X-H: a\u{fffd}\u{fffd}b"], without: &[] },
        ),
        case(
            "a field that is too long",
            field(&format!("X-L: {}", "x".repeat(70_000))),
            Want::Refused(&[431]),
        ),
        case(
            "a name that is too long",
            field(&format!("{}: y", "x".repeat(70_000))),
            Want::Refused(&[400, 431]),
        ),
        case("too many fields", field(&"X-M: y\r\n".repeat(101)), Want::Answered(431)),
        case("far too many fields", field(&"X-M: y\r\n".repeat(2000)), Want::Refused(&[431])),
    ];
    for (name, line) in [
        ("obs-fold with a tab", "X: a\r\n\tb"),
        ("obs-fold of nothing", "X: a\r\n "),
        ("obs-fold that looks like a field", "X: a\r\n Content-Length: 5"),
        ("a tab before the colon", "X\t: a"),
        ("a tab before the name", "\tX: a"),
        ("a name with a space", "X Y: a"),
        ("a name with a NUL", "X\0: a"),
        ("a name with a high byte", "X\u{e4}: a"),
        ("a name with a slash", "X/Y: a"),
        ("a name with parentheses", "X(Y): a"),
        ("a name with an at sign", "X@Y: a"),
        ("a quoted name", "\"X\": a"),
        ("a name with a comma", "X,Y: a"),
        ("a pseudo-field", ":path: /x"),
        ("a NUL in a value", "X: a\0b"),
        ("an escape in a value", "X: a\x1bb"),
        ("a bell in a value", "X: a\x07b"),
        ("a DEL in a value", "X: a\x7fb"),
        ("a backspace in a value", "X: a\x08b"),
        ("a vertical tab in a value", "X: a\x0bb"),
        ("a form feed in a value", "X: a\x0cb"),
        ("a line of spaces", "   "),
        ("a line of a colon", ":"),
    ] {
        cases.push(refused(name, field(line)));
    }
    cases
}

#[test]
fn methods_versions_and_request_lines() {
    check(methods_and_versions());
}

#[test]
fn request_targets() {
    check(targets());
}

#[test]
fn ends_of_lines() {
    check(line_ends());
}

#[test]
fn lines_of_fields() {
    check(field_lines());
}
