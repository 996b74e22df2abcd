//! What follows a request on its connection (RFC 9112 section 9).

use portcullis_testkit::origin::{Answer, RawOrigin};

use super::{Case, INNER, Want, case, check, read};
use crate::{
    config::plain,
    support::{edge::Edge, raw, run},
};

const A: &str = "GET /a HTTP/1.1\r\nHost: a.test\r\n\r\n";
const B: &str = "POST /b HTTP/1.1\r\nHost: b.test\r\nContent-Length: 3\r\n\r\nabc";
const C: &str = "PUT /c HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n";
const BAD: &str = "GET /bad HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n";

fn pipelines() -> Vec<Case> {
    let first = vec![("GET /a", "a.test", "")];
    vec![
        read(
            "four kinds in order",
            format!("{A}{B}{C}{A}"),
            &[
                ("GET /a", "a.test", ""),
                ("POST /b", "b.test", "abc"),
                ("PUT /c", "a.test", "de"),
                ("GET /a", "a.test", ""),
            ],
        ),
        case("nothing behind a refused one", format!("{A}{BAD}{INNER}"), Want::Then(first.clone(), &[400])),
        case(
            "nothing behind one that is no request",
            format!("{A}nonsense\r\n\r\n{INNER}"),
            Want::Then(first.clone(), &[400]),
        ),
        case(
            "nothing behind a bad length",
            format!("{A}POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5x\r\n\r\n{INNER}"),
            Want::Then(first.clone(), &[400]),
        ),
        case(
            "nothing behind a coding on 1.0",
            format!(
                "{A}POST / HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{INNER}"
            ),
            Want::Then(first.clone(), &[400]),
        ),
        case(
            "nothing behind a request that is too long",
            format!("{A}GET /{} HTTP/1.1\r\nHost: a.test\r\n\r\n{INNER}", "x".repeat(9000)),
            Want::Then(first, &[414]),
        ),
        // RFC 9112 section 9.6: nothing after `close` is processed
        read(
            "nothing behind Connection: close",
            format!("GET /a HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n{INNER}"),
            &[("GET /a", "a.test", "")],
        ),
        read(
            "nothing behind close in a list, in any case",
            format!("GET /a HTTP/1.1\r\nHost: a.test\r\nConnection: x, CLOSE\r\n\r\n{INNER}"),
            &[("GET /a", "a.test", "")],
        ),
        read(
            "nothing behind close on a second line",
            format!(
                "GET /a HTTP/1.1\r\nHost: a.test\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n{INNER}"
            ),
            &[("GET /a", "a.test", "")],
        ),
        read(
            "nothing behind HTTP/1.0",
            format!("GET /a HTTP/1.0\r\nHost: a.test\r\n\r\n{INNER}"),
            &[("GET /a", "a.test", "")],
        ),
        // a refused one that has a body: the body is no request
        case(
            "a body behind 417 is no request",
            format!(
                "POST /a HTTP/1.1\r\nHost: a.test\r\nExpect: x\r\nContent-Length: {}\r\n\r\n{INNER}",
                INNER.len()
            ),
            Want::Answered(417),
        ),
        case(
            "a body behind 405 is no request",
            format!("TRACE /a HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n{INNER}", INNER.len()),
            Want::Answered(405),
        ),
    ]
}

/// RUSTSEC-2026-0033, CVE-2026-2833: what stands behind a request for an upgrade is a request until the origin has
/// said 101, and this origin never does.
fn upgrades() -> Vec<Case> {
    let upgrade = |fields: &str| {
        format!("GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\nUpgrade: {fields}\r\n\r\n")
    };
    let two = &[("GET /ws", "a.test", ""), ("GET /smuggled", "a.test", "")];
    vec![
        read("premature websocket", format!("{}{INNER}", upgrade("websocket")), two),
        read("premature upgrade to what is not allowed", format!("{}{INNER}", upgrade("foo")), two),
        read(
            "an upgrade with a body",
            format!(
                "GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: {}\r\n\r\n{INNER}",
                INNER.len()
            ),
            &[("GET /ws", "a.test", INNER)],
        ),
        case(
            "a frame behind a premature upgrade",
            format!("{}\u{1}\u{2}x\r\n\r\n", upgrade("websocket")),
            Want::Then(vec![("GET /ws", "a.test", "")], &[400]),
        ),
    ]
}

/// CVE-2026-2836, RUSTSEC-2026-0035: what one host was answered is not kept for another of the same path, however the
/// host is written.
#[test]
fn the_cache_key_has_the_host() {
    run(async {
        let body = |body: &str| {
            let length = body.len();
            Answer::raw(format!(
                "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: {length}\r\n\r\n{body}"
            ))
        };
        let origin =
            RawOrigin::script(vec![body("for a"), body("for b"), body("for port 81"), body("for c")]).await;
        let edge = Edge::run(&format!("[cache]\n{}", plain(origin.addr()))).await;
        let get = async |line: &str, host: &str| {
            raw::send(
                edge.http(),
                format!("GET {line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
            )
            .await
            .text
        };
        for _ in 0..2 {
            assert!(get("/x", "a.test").await.ends_with("for a"));
            assert!(get("/x", "b.test").await.ends_with("for b"));
            assert!(get("/x", "a.test:81").await.ends_with("for port 81"));
            // RFC 9112 section 3.2.2: this is a request for c, whatever the field says; and nothing to be kept
            assert!(get("http://c.test/x", "a.test").await.ends_with("for c"));
        }
        assert!(get("/x", "A.TEST").await.ends_with("for a"));
        assert_eq!(origin.requests(), 5);
    });
}

#[test]
fn pipelined_requests() {
    check(pipelines());
}

#[test]
fn bytes_behind_an_upgrade_that_is_not_agreed_to() {
    check(upgrades());
}
