//! Requests that two parsers could read in two ways. Each is refused and its connection closed, or goes on in exactly
//! one reading.

use std::sync::Arc;

use portcullis_testkit::origin::{Answer, RawOrigin};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    config::plain,
    support::{edge::Edge, raw, run},
};

/// What an attacker wants the origin to find on its own.
const INNER: &str = "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n";

enum Read {
    /// Nothing reaches the origin; the answer is one of 400 to 499 or 501, 505, or the end of the connection.
    Refused,
    /// The origin gets exactly these request lines, and a body that ends so.
    As(&'static [&'static str], &'static str),
}

struct Case {
    name: &'static str,
    bytes: String,
    read: Read,
}

fn refused(name: &'static str, bytes: impl Into<String>) -> Case {
    Case { name, bytes: bytes.into(), read: Read::Refused }
}

/// A POST with these fields, and the inner request as its body, or behind it.
fn post(fields: &str) -> String {
    format!("POST /outer HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n{INNER}")
}

fn get(fields: &str) -> String {
    format!("GET /outer HTTP/1.1\r\n{fields}\r\n")
}

fn framings() -> Vec<Case> {
    let both = "POST /outer HTTP/1.1\r\nHost: a.test\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let length = INNER.len();
    vec![
        // RFC 9112 section 6.1 permits to read it as chunked and to close: what follows is never read
        Case {
            name: "both framings",
            bytes: format!("{both}{INNER}"),
            read: Read::As(&["POST /outer HTTP/1.1"], "0\r\n\r\n"),
        },
        refused("different lengths", post(&format!("Content-Length: 0\r\nContent-Length: {length}\r\n"))),
        refused("a list of different lengths", post(&format!("Content-Length: 0, {length}\r\n"))),
        refused("a signed length", post("Content-Length: +5\r\n")),
        refused("a negative length", post("Content-Length: -1\r\n")),
        refused("a hexadecimal length", post("Content-Length: 0x5\r\n")),
        refused("an empty length", post("Content-Length: \r\n")),
        refused("a length and a letter", post("Content-Length: 5a\r\n")),
        refused("a length of 2^64", post("Content-Length: 18446744073709551616\r\n")),
        refused("space before the colon", post(&format!("Content-Length : {length}\r\n"))),
        refused("space before the colon of a coding", post("Transfer-Encoding : chunked\r\n")),
        refused("another coding", post("Transfer-Encoding: xchunked\r\n")),
        refused("chunked and then another", post("Transfer-Encoding: chunked, identity\r\n")),
        refused("chunked twice", post("Transfer-Encoding: chunked, chunked\r\n")),
        refused("two codings", post("Transfer-Encoding: gzip, chunked\r\n")),
        refused(
            "two lines of codings",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
        ),
        refused("a quoted coding", post("Transfer-Encoding: \"chunked\"\r\n")),
        refused("a vertical tab", post("Transfer-Encoding: \x0bchunked\r\n")),
        refused("a folded coding", post("Transfer-Encoding:\r\n chunked\r\n")),
        refused(
            "a coding on 1.0",
            post("Transfer-Encoding: chunked\r\n")
                .replace("/1.1\r\nHost: a.test\r\nT", "/1.0\r\nHost: a.test\r\nT"),
        ),
        refused("a NUL in a name", post("Content-Length\0: 5\r\n")),
        refused("a bare CR in a value", post("X-A: b\rContent-Length: 5\r\n")),
    ]
}

fn chunks() -> Vec<Case> {
    let chunked = |body: &str| {
        format!("POST /outer HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n{body}{INNER}")
    };
    [
        ("a size past 64 bits", "10000000000000000\r\n"),
        ("a size of all ones and more", "fffffffffffffffff0\r\n"),
        ("a size with a prefix", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("a negative size", "-1\r\n"),
        ("no size", "\r\n"),
        ("a size that lies", "3\r\nhello\r\n0\r\n\r\n"),
        ("a bare LF behind the size", "5\nhello\r\n0\r\n\r\n"),
        ("a bare LF in an extension", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        ("a bare CR behind the data", "5\r\nhello\rX0\r\n\r\n"),
    ]
    .map(|(name, body)| refused(name, chunked(body)))
    .into()
}

fn hosts_and_targets() -> Vec<Case> {
    let host = "Host: a.test\r\n";
    vec![
        refused("no host", get("X: y\r\n")),
        refused("two hosts", get("Host: a.test\r\nHost: b.test\r\n")),
        refused("the same host twice", get("Host: a.test\r\nHost: a.test\r\n")),
        refused("a host with a path", get("Host: a.test/b\r\n")),
        refused("a host with user information", get("Host: u@a.test\r\n")),
        refused("a host with a comma", get("Host: a.test,b.test\r\n")),
        refused("a host with a space", get("Host: a.test b.test\r\n")),
        refused("a host with a bad port", get("Host: a.test:80x\r\n")),
        refused("an empty name", get(&format!("{host}: x\r\n"))),
        refused("a space in a name", get(&format!("{host}X A: x\r\n"))),
        refused("no colon", get(&format!("{host}nothing\r\n"))),
        refused("a folded line", get(&format!("{host}X-A: b\r\n c\r\n"))),
        refused("a first line that is folded", format!("GET /outer HTTP/1.1\r\n X: y\r\n{host}\r\n")),
        refused("CONNECT", "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n"),
        refused("TRACE", format!("TRACE / HTTP/1.1\r\n{host}\r\n")),
        refused("a relative target", format!("GET outer HTTP/1.1\r\n{host}\r\n")),
        refused("a target of another scheme", format!("GET ftp://a.test/ HTTP/1.1\r\n{host}\r\n")),
        refused("user information in the target", format!("GET http://u:p@a.test/ HTTP/1.1\r\n{host}\r\n")),
        refused("a space in the target", format!("GET /a b HTTP/1.1\r\n{host}\r\n")),
        refused("a control in the target", format!("GET /a\x01b HTTP/1.1\r\n{host}\r\n")),
        refused("an asterisk for GET", format!("GET * HTTP/1.1\r\n{host}\r\n")),
        refused("another version", format!("GET / HTTP/1.2\r\n{host}\r\n").replace("1.2", "3.7")),
        refused("no version", "GET /\r\n\r\n"),
        refused("no method", format!(" / HTTP/1.1\r\n{host}\r\n")),
        // RFC 9112 section 3.2.2: the target's authority is the host, whatever the field says
        Case {
            name: "an absolute target and another host",
            bytes: format!("GET http://a.test/outer HTTP/1.1\r\nHost: b.test\r\n\r\n{INNER}"),
            read: Read::As(&["GET /outer HTTP/1.1", "GET /smuggled HTTP/1.1"], "\r\n\r\n"),
        },
        // what stands behind it was never part of a request (RFC 9110 section 4.2.5)
        Case {
            name: "a fragment",
            bytes: format!("GET /outer#/../secret HTTP/1.1\r\n{host}\r\n"),
            read: Read::As(&["GET /outer HTTP/1.1"], "\r\n\r\n"),
        },
        // RFC 9112 section 2.2: a recipient may take a bare LF for a line's end; nobody behind sees one
        Case {
            name: "bare LF",
            bytes: "GET /outer HTTP/1.1\nHost: a.test\nX-A: b\n\n".to_owned(),
            read: Read::As(&["GET /outer HTTP/1.1"], "\r\n\r\n"),
        },
        Case {
            name: "equal lengths",
            bytes: format!(
                "POST /outer HTTP/1.1\r\n{host}Content-Length: 3\r\nContent-Length: 3\r\n\r\na\r\n{INNER}"
            ),
            read: Read::As(&["POST /outer HTTP/1.1", "GET /smuggled HTTP/1.1"], "\r\n\r\n"),
        },
    ]
}

#[test]
fn framing_is_read_in_one_way() {
    run(check(framings()));
}

#[test]
fn chunks_are_read_in_one_way() {
    run(check(chunks()));
}

#[test]
fn hosts_and_targets_are_read_in_one_way() {
    run(check(hosts_and_targets()));
}

/// Sends every case to an origin of its own, a few at a time: each waits for silence.
async fn check(cases: Vec<Case>) {
    let places = Arc::new(Semaphore::new(6));
    let mut tests = JoinSet::new();
    for case in cases {
        let place = Arc::clone(&places).acquire_owned().await.unwrap();
        tests.spawn(async move { (one(case).await, place).0 });
    }
    let wrong: Vec<_> = tests.join_all().await.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// What is wrong with the outcome.
async fn one(case: Case) -> Option<String> {
    let origin = RawOrigin::script(vec![Answer::ok("ok")]).await;
    let edge = Edge::run(&plain(origin.addr())).await;
    let answered = raw::send(edge.http(), &case.bytes).await;
    let sent = origin.received_text();
    let lines: Vec<_> = sent.lines().filter(|line| line.ends_with(" HTTP/1.1")).collect();
    let statuses = answered.statuses();
    let well = match case.read {
        Read::Refused => {
            let refusal = match statuses[..] {
                [status] => matches!(status, 400..=499 | 501 | 505),
                [] => answered.closed,
                _ => false,
            };
            // a chunked body is found out on its way: its head may have gone, its end may not
            let cut =
                sent.is_empty() || (lines == ["POST /outer HTTP/1.1"] && !sent.contains("\r\n0\r\n\r\n"));
            refusal && cut && !sent.contains("smuggled") && (answered.closed || statuses == [405])
        }
        Read::As(expected, end) => {
            lines == expected
                && sent.ends_with(end)
                && statuses.iter().all(|s| *s == 200)
                && !statuses.is_empty()
        }
    };
    (!well).then(|| format!("{}: {answered:?}; the origin got {sent:?}", case.name))
}
