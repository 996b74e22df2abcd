//! The chunked coding (RFC 9112 section 7.1).

use super::{Case, INNER, Want, case, check, read};

fn chunked(body: &str) -> String {
    format!("POST /outer HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
}

fn well_formed() -> Vec<Case> {
    let two = &[("POST /outer", "a.test", "hello"), ("GET /smuggled", "a.test", "")];
    [
        ("one chunk", "5\r\nhello\r\n0\r\n\r\n"),
        ("two chunks", "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
        ("leading zeros", "0005\r\nhello\r\n000\r\n\r\n"),
        // extensions end at this hop (RFC 9112 section 7.1.1)
        ("an extension", "5;a=b\r\nhello\r\n0;c\r\n\r\n"),
        ("a quoted extension", "5;a=\"b;c\"\r\nhello\r\n0\r\n\r\n"),
        ("an empty extension", "5;\r\nhello\r\n0\r\n\r\n"),
        ("a trailer", "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"),
    ]
    .into_iter()
    .map(|(name, body)| read(name, chunked(&format!("{body}{INNER}")), two))
    .collect()
}

fn sizes() -> Vec<Case> {
    [
        ("17 digits", "10000000000000005\r\nhello"),
        ("17 digits with zeros that end in a size", "fffffffffffffffff\r\nhello"),
        ("many digits", "5555555555555555555555555555555555\r\nhello"),
        ("a plus sign", "+5\r\nhello"),
        ("a minus sign", "-5\r\nhello"),
        ("an upper-case prefix", "0X5\r\nhello"),
        ("an underscore", "0_5\r\nhello"),
        ("a leading space", " 5\r\nhello"),
        ("a leading tab", "\t5\r\nhello"),
        ("a space within", "0 5\r\nhello"),
        ("a letter behind", "5g\r\nhello"),
        ("a letter before", "g5\r\nhello"),
        ("a decimal point", "5.0\r\nhello"),
        ("a comma", "5,5\r\nhello"),
        ("quoted", "\"5\"\r\nhello"),
        ("an extension alone", ";a=b\r\nhello"),
        ("a NUL", "5\0\r\nhello"),
        ("a vertical tab", "5\x0b\r\nhello"),
        ("nothing and then a size", "\r\n5\r\nhello"),
        ("a bare LF", "5\nhello"),
        ("a bare CR", "5\rhello"),
        ("CR CR LF", "5\r\r\nhello"),
        ("LF CR", "5\n\rhello"),
    ]
    .into_iter()
    .map(|(name, chunk)| case(name, chunked(&format!("{chunk}\r\n0\r\n\r\n{INNER}")), Want::Cut))
    .collect()
}

fn data_and_extensions() -> Vec<Case> {
    let long = "x".repeat(20_000);
    [
        ("data that is longer", "3\r\nhello\r\n0\r\n\r\n".to_owned()),
        ("LF behind the data", "5\r\nhello\n0\r\n\r\n".to_owned()),
        ("CR behind the data", "5\r\nhello\r0\r\n\r\n".to_owned()),
        ("nothing behind the data", "5\r\nhello0\r\n\r\n".to_owned()),
        ("a bare LF in an extension", "5;a=\nb\r\nhello\r\n0\r\n\r\n".to_owned()),
        ("a bare CR in an extension", "5;a=\rb\r\nhello\r\n0\r\n\r\n".to_owned()),
        ("CRLF in a quoted extension", "5;a=\"\r\nhello\"\r\n0\r\n\r\n".to_owned()),
        ("LF in the last extension", format!("5\r\nhello\r\n0;\n{INNER}\r\n\r\n")),
        ("an extension that is too long", format!("5;{long}\r\nhello\r\n0\r\n\r\n")),
        ("an extension of zero that is too long", format!("5\r\nhello\r\n0;{long}\r\n\r\n")),
    ]
    .into_iter()
    .map(|(name, body)| case(name, chunked(&format!("{body}{INNER}")), Want::Cut))
    .collect()
}

fn trailers() -> Vec<Case> {
    let mut cases: Vec<_> = [
        ("a bare LF behind the last size and at the end", format!("0\n\n{INNER}")),
        ("a bare CR at the end", format!("0\r\n\r{INNER}")),
        ("a bare LF in a trailer", "0\r\nX: a\nY: b\r\n\r\n".to_owned()),
        ("a bare CR in a trailer", "0\r\nX: a\rY: b\r\n\r\n".to_owned()),
        ("a NUL in a trailer", "0\r\nX: a\0\r\n\r\n".to_owned()),
        ("a space before the colon of a trailer", "0\r\nX : a\r\n\r\n".to_owned()),
        ("a trailer without a name", "0\r\n: a\r\n\r\n".to_owned()),
        ("a trailer without a colon", "0\r\nnothing\r\n\r\n".to_owned()),
        ("a request for a trailer", format!("0\r\n{INNER}")),
        ("a folded trailer", "0\r\nX: a\r\n b\r\n\r\n".to_owned()),
        ("a trailer that is too long", format!("0\r\nX: {}\r\n\r\n", "x".repeat(70_000))),
        ("too many trailers", format!("0\r\n{}\r\n", "X: y\r\n".repeat(2_000))),
    ]
    .into_iter()
    .map(|(name, end)| case(name, chunked(&format!("5\r\nhello\r\n{end}")), Want::Cut))
    .collect();
    // hyper takes the LF for an empty trailer section and skips what is there up to the next empty line: what goes on is the
    // body alone, and nothing of what is behind is ever a request
    cases.push(read(
        "a bare LF at the end",
        chunked(&format!("5\r\nhello\r\n0\r\n\n{INNER}")),
        &[("POST /outer", "a.test", "hello")],
    ));
    // RFC 9110 section 6.5.1: framing and routing never come from trailers; such are dropped, or the request is refused
    for field in
        ["Content-Length: 5", "Transfer-Encoding: chunked", "Host: b.test", "Trailer: x", "Connection: close"]
    {
        cases.push(read(
            format!("a trailer that frames: {field}"),
            chunked(&format!("5\r\nhello\r\n0\r\n{field}\r\n\r\n{INNER}")),
            &[("POST /outer", "a.test", "hello"), ("GET /smuggled", "a.test", "")],
        ));
    }
    cases
}

#[test]
fn well_formed_bodies_go_on_without_what_ends_here() {
    check(well_formed());
}

#[test]
fn chunk_sizes() {
    check(sizes());
}

#[test]
fn chunk_data_and_extensions() {
    check(data_and_extensions());
}

#[test]
fn trailer_sections() {
    check(trailers());
}
