//! `Content-Length` and `Transfer-Encoding`, alone and together (RFC 9112 sections 6.1 to 6.3).

use super::{Case, INNER, Want, case, check, read, refused};

fn post(fields: &str, body: &str) -> String {
    format!("POST /outer HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n{body}")
}

/// Both framings, in every order and spelling: nothing but the coding may count, and what is behind is not read
/// (RFC 9112 section 6.1: the connection is closed).
fn both() -> Vec<Case> {
    let chunked = format!("3\r\nabc\r\n0\r\n\r\n{INNER}");
    let one = &[("POST /outer", "a.test", "abc")];
    vec![
        read("CL.TE", post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", &chunked), one),
        read("TE.CL", post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", &chunked), one),
        read("TE.CL 0", post("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", &chunked), one),
        read(
            "CL.TE.CL, which differ",
            post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n", &chunked),
            one,
        ),
        refused(
            "CL of two, and TE",
            post("Content-Length: 5, 6\r\nTransfer-Encoding: chunked\r\n", &chunked),
        ),
        refused(
            "CL that is none, and TE",
            post("Content-Length: x\r\nTransfer-Encoding: chunked\r\n", &chunked),
        ),
        refused(
            "TE that is unknown, and CL",
            post("Transfer-Encoding: cow\r\nContent-Length: 5\r\n", &chunked),
        ),
        refused(
            "TE identity, and CL",
            post("Transfer-Encoding: identity\r\nContent-Length: 5\r\n", &chunked),
        ),
        refused("empty TE, and CL", post("Transfer-Encoding:\r\nContent-Length: 5\r\n", &chunked)),
        refused(
            "TE on a line with a space before, and CL",
            post("Content-Length: 5\r\n Transfer-Encoding: chunked\r\n", &chunked),
        ),
        refused(
            "TE behind a bare CR, and CL",
            post("Content-Length: 5\r\nX: a\rTransfer-Encoding: chunked\r\n", &chunked),
        ),
    ]
}

fn lengths() -> Vec<Case> {
    let mut cases = vec![
        read("a length of 0", post("Content-Length: 0\r\n", ""), &[("POST /outer", "a.test", "")]),
        read("leading zeros", post("Content-Length: 003\r\n", "abc"), &[("POST /outer", "a.test", "abc")]),
        read(
            "white space around",
            post("Content-Length:\t 3 \t\r\n", "abc"),
            &[("POST /outer", "a.test", "abc")],
        ),
        read("any case", post("cOnTeNt-LeNgTh: 3\r\n", "abc"), &[("POST /outer", "a.test", "abc")]),
        read(
            "a GET with a length",
            format!("GET /outer HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc{INNER}"),
            &[("GET /outer", "a.test", "abc"), ("GET /smuggled", "a.test", "")],
        ),
        // RFC 9112 section 6.3 item 7: no framing, no body
        read(
            "a POST without framing",
            post("", INNER),
            &[("POST /outer", "a.test", ""), ("GET /smuggled", "a.test", "")],
        ),
        // RFC 9110 section 5.1: another name is another field; and yet no backend may find it and take it for the length
        read(
            "an underscore",
            post("Content_Length: 41\r\n", INNER),
            &[("POST /outer", "a.test", ""), ("GET /smuggled", "a.test", "")],
        ),
        read(
            "an underscore in a coding",
            post("Transfer_Encoding: chunked\r\n", INNER),
            &[("POST /outer", "a.test", ""), ("GET /smuggled", "a.test", "")],
        ),
    ];
    for (name, value) in [
        ("a list of equal ones and a third", "3, 3, 4"),
        ("a decimal point", "3.0"),
        ("an exponent", "3e0"),
        ("digits with an underscore", "1_0"),
        ("digits with a space", "1 0"),
        ("digits with a tab", "1\t0"),
        ("a quoted number", "\"3\""),
        ("a semicolon", "3;4"),
        ("a leading comma", ",3"),
        ("a trailing comma", "3,"),
        ("a form feed", "\x0c3"),
        ("a NUL", "3\0"),
        ("past 64 bits, much", "99999999999999999999999999999999999999"),
        ("of 2^64 and 3", "18446744073709551619"),
        ("octal", "0o3"),
        ("two signs", "--3"),
        ("an arabic digit", "\u{663}"),
    ] {
        cases
            .push(refused(format!("a length: {name}"), post(&format!("Content-Length: {value}\r\n"), "abc")));
    }
    cases
}

fn codings() -> Vec<Case> {
    let chunked = format!("3\r\nabc\r\n0\r\n\r\n{INNER}");
    let two = &[("POST /outer", "a.test", "abc"), ("GET /smuggled", "a.test", "")];
    let mut cases = vec![
        read("any case of the name", post("tRANSFER-eNCODING: chunked\r\n", &chunked), two),
        read("any case of the value", post("Transfer-Encoding: ChUnKeD\r\n", &chunked), two),
        read("white space around the coding", post("Transfer-Encoding: \t chunked \t\r\n", &chunked), two),
    ];
    for (name, lines) in [
        ("with a parameter", "Transfer-Encoding: chunked;q=1\r\n"),
        ("with a leading comma", "Transfer-Encoding: , chunked\r\n"),
        ("with a trailing comma", "Transfer-Encoding: chunked,\r\n"),
        ("identity", "Transfer-Encoding: identity\r\n"),
        ("identity, chunked", "Transfer-Encoding: identity, chunked\r\n"),
        ("on two lines", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        ("x on a line before", "Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n"),
        ("empty", "Transfer-Encoding: \r\n"),
        ("a form feed", "Transfer-Encoding: \x0cchunked\r\n"),
        ("a control behind", "Transfer-Encoding: chunked\x1f\r\n"),
        ("a NUL behind", "Transfer-Encoding: chunked\0\r\n"),
        ("a no-break space", "Transfer-Encoding: \u{a0}chunked\r\n"),
        ("a kelvin sign", "Transfer-Encoding: chun\u{212a}ed\r\n"),
        ("in single quotes", "Transfer-Encoding: 'chunked'\r\n"),
        ("cut short", "Transfer-Encoding: chunke\r\n"),
        ("a tab before the colon", "Transfer-Encoding\t: chunked\r\n"),
        ("a NUL in the name", "Transfer-\0Encoding: chunked\r\n"),
        ("a semicolon for the colon", "Transfer-Encoding; chunked\r\n"),
        ("gzip alone", "Transfer-Encoding: gzip\r\n"),
    ] {
        cases.push(refused(format!("a coding: {name}"), post(lines, &chunked)));
    }
    cases
}

/// RUSTSEC-2026-0034, CVE-2026-2835: what an HTTP/1.0 request with a coding means, nobody knows (RFC 9112 section 6.1).
fn http10() -> Vec<Case> {
    let old = |fields: &str, body: &str| post(fields, body).replacen("HTTP/1.1", "HTTP/1.0", 1);
    vec![
        refused(
            "a coding on 1.0 and keep-alive",
            old("Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n", "0\r\n\r\n"),
        ),
        refused(
            "a coding and a length on 1.0",
            old("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", "abc"),
        ),
        refused("identity on 1.0", old("Transfer-Encoding: identity\r\nContent-Length: 3\r\n", "abc")),
        // RFC 9112 section 9.3: it closes, so what is behind is nothing
        read(
            "a length on 1.0",
            old("Content-Length: 3\r\n", &format!("abc{INNER}")),
            &[("POST /outer", "a.test", "abc")],
        ),
        // no length and no coding: no body, not one up to the end of the connection
        read("no length on 1.0", old("", "abc"), &[("POST /outer", "a.test", "")]),
        case("a bad length on 1.0", old("Content-Length: 3x\r\n", "abc"), Want::Refused(&[400])),
    ]
}

#[test]
fn both_framings() {
    check(both());
}

#[test]
fn content_lengths() {
    check(lengths());
}

#[test]
fn transfer_codings() {
    check(codings());
}

#[test]
fn http10_with_a_transfer_coding_is_refused() {
    check(http10());
}
