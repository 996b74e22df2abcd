//! Which fields end at this hop, in both directions (RFC 9110 section 7.6.1).
//!
//! The functions only remove; what this edge says of itself ([`crate::forwarded`], [`crate::upgrade`]) is added after
//! them, so that a client can't name our own fields in its `Connection` and have them removed.
//!
//! Removed by name, whether `Connection` lists them or not:
//!
//! | field | direction | why |
//! |---|---|---|
//! | `Connection`, `Keep-Alive`, `Proxy-Connection`, `TE`, `Transfer-Encoding`, `Upgrade` | both | RFC 9110 section 7.6.1 |
//! | `HTTP2-Settings` | both | RFC 9113 section 3.1: the `h2c` upgrade ends here |
//! | `Proxy-Authorization` | both | RFC 9110 section 11.7.2: credentials for this hop |
//! | `Proxy-Authenticate`, `Proxy-Authentication-Info` | both | RFC 9110 sections 11.7.1 and 11.7.3: for a forward proxy's clients |
//! | `Proxy` | both | becomes `HTTP_PROXY` in a CGI's environment (CVE-2016-5385) |
//!
//! `TE: trailers` is put back when the client sent that member, since trailers do pass through here
//! (RFC 9110 sections 6.5.1 and 10.1.4). Whoever writes it in HTTP/1.1 adds `Connection: te`. `Trailer` is not
//! hop-by-hop in RFC 9110 and stays.
//!
//! Names that `Connection` lists are removed, except two kinds. `Host` and `Content-Length` are the message's own frame:
//! a client must not be able to take them away from what was checked. The fields that this edge asserts
//! (`X-Forwarded-*`, `X-Real-IP`, `Forwarded`) are left to [`crate::forwarded`], which drops a stranger's anyway; a
//! trusted proxy's must not vanish because that proxy passed on its client's `Connection` line.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::fields::{Seen, any_member, is_asserted, members};

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
static RARE: [HeaderName; 5] = [
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-authentication-info"),
    HeaderName::from_static("proxy"),
    HeaderName::from_static("http2-settings"),
];

const HOP: Seen = Seen::CONNECTION
    .or(Seen::TE)
    .or(Seen::TRANSFER_ENCODING)
    .or(Seen::UPGRADE)
    .or(Seen::OLD_HOP)
    .or(Seen::RARE_HOP);

/// Removes what must not go on to the upstream. Allocates nothing unless `Connection` lists a field of its own.
pub fn strip_request(headers: &mut HeaderMap) {
    strip_request_seen(headers, Seen::of(headers));
}

pub(crate) fn strip_request_seen(headers: &mut HeaderMap, seen: Seen) {
    if !seen.has(HOP) {
        return;
    }
    // before anything is removed: `Connection: te` is how HTTP/1.1 sends TE (RFC 9110 section 10.1.4)
    let trailers = seen.has(Seen::TE) && any_member(headers, &header::TE, b"trailers");
    strip(headers, seen);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes what the client's `Connection` lists, and leaves of it what is about the connection alone: for the outside of everything that adds fields to a request, or
/// stores what comes of it by them. A field that is added later can't be listed away any more, and one that the upstream will not see selects nothing before it.
/// What [`strip_request`] removes by name stays for it.
pub fn end_nominations(headers: &mut HeaderMap) {
    if !headers.get_all(header::CONNECTION).iter().flat_map(members).any(is_nomination) {
        return;
    }
    strip_nominated(headers);
    let lines: Vec<HeaderValue> = headers.get_all(header::CONNECTION).iter().cloned().collect();
    headers.remove(header::CONNECTION);
    for member in lines.iter().flat_map(members).filter(|member| !is_nomination(member)) {
        if let Ok(member) = HeaderValue::from_bytes(member) {
            headers.append(header::CONNECTION, member);
        }
    }
}

/// Removes what must not go back to the client, from a final answer as from a 101.
///
/// An answer with both `Transfer-Encoding` and `Content-Length` loses both: the first ends at this hop and
/// overrides the second (RFC 9112 section 6.3 item 3).
pub fn strip_response(headers: &mut HeaderMap) {
    strip_response_seen(headers, Seen::of(headers));
}

pub(crate) fn strip_response_seen(headers: &mut HeaderMap, seen: Seen) {
    if !seen.has(HOP) {
        return;
    }
    if seen.has(Seen::TRANSFER_ENCODING) && seen.has(Seen::CONTENT_LENGTH) {
        headers.remove(header::CONTENT_LENGTH);
    }
    strip(headers, seen);
}

fn strip(headers: &mut HeaderMap, seen: Seen) {
    if seen.has(Seen::CONNECTION) {
        strip_nominated(headers);
        headers.remove(header::CONNECTION);
    }
    if seen.has(Seen::OLD_HOP) {
        headers.remove(&KEEP_ALIVE);
        headers.remove(&PROXY_CONNECTION);
    }
    if seen.has(Seen::UPGRADE) {
        headers.remove(header::UPGRADE);
    }
    if seen.has(Seen::TE) {
        headers.remove(header::TE);
    }
    if seen.has(Seen::TRANSFER_ENCODING) {
        headers.remove(header::TRANSFER_ENCODING);
    }
    if seen.has(Seen::RARE_HOP) {
        for name in &RARE {
            headers.remove(name);
        }
    }
}

/// Removes every field that any `Connection` line lists. All lines count: `HeaderMap::get` would show the first only.
fn strip_nominated(headers: &mut HeaderMap) {
    if !headers.get_all(header::CONNECTION).iter().flat_map(members).any(is_nomination) {
        return;
    }
    let lines: Vec<HeaderValue> = headers.get_all(header::CONNECTION).iter().cloned().collect();
    for member in lines.iter().flat_map(members).filter(|member| is_nomination(member)) {
        let mut lower = [0; LONGEST];
        let Some(lower) = lower.get_mut(..member.len()) else {
            // longer than any name of ours; asserted names are short, so it is nobody's but the client's
            remove(headers, member);
            continue;
        };
        lower.copy_from_slice(member);
        lower.make_ascii_lowercase();
        if !is_asserted(lower) && !matches!(&*lower, b"host" | b"content-length" | b"early-data") {
            remove(headers, lower);
        }
    }
}

/// Longer than this no asserted name is recognised in a nomination; `X-Forwarded-` with 52 more bytes still is.
const LONGEST: usize = 64;

fn remove(headers: &mut HeaderMap, name: &[u8]) {
    // what is no valid name can't be in the map
    if let Ok(name) = std::str::from_utf8(name) {
        headers.remove(name);
    }
}

/// The members that name no further field, or one that is removed by name anyway.
fn is_nomination(member: &[u8]) -> bool {
    const KNOWN: [&[u8]; 8] = [
        b"keep-alive",
        b"close",
        b"upgrade",
        b"te",
        b"connection",
        b"proxy-connection",
        b"transfer-encoding",
        b"http2-settings",
    ];
    !KNOWN.iter().any(|known| member.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn nominations_end() {
        let mut headers = map(&[
            ("connection", "Upgrade, X-User, close"),
            ("connection", "x-lang, Host, X-Forwarded-For"),
            ("upgrade", "websocket"),
            ("x-user", "root"),
            ("x-lang", "fr"),
            ("host", "a"),
            ("x-forwarded-for", "1.2.3.4"),
        ]);
        end_nominations(&mut headers);
        assert_eq!(
            names(&headers),
            ["connection", "connection", "host", "upgrade", "x-forwarded-for"]
                .as_slice()
                .iter()
                .copied()
                .collect::<std::collections::BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
        );
        let left: Vec<_> = headers.get_all("connection").iter().collect();
        assert_eq!(left, ["Upgrade", "close"]);
        headers.insert("x-user", "alice".parse().unwrap());
        strip_request(&mut headers);
        assert_eq!(headers["x-user"], "alice", "added later, and there to stay");
    }

    #[test]
    fn requests() {
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);
        let cases: &[Case<'_>] = &[
            (
                "RFC 9110 7.6.1: the fixed names",
                &[
                    ("connection", "close"),
                    ("keep-alive", "timeout=5"),
                    ("proxy-connection", "keep-alive"),
                    ("te", "gzip"),
                    ("transfer-encoding", "chunked"),
                    ("upgrade", "h2c"),
                    ("accept", "*/*"),
                ],
                &["accept"],
            ),
            (
                "RFC 9110 7.6.1: the listed names, in any case",
                &[("connection", "X-One, x-TWO"), ("x-one", "1"), ("x-two", "2"), ("x-three", "3")],
                &["x-three"],
            ),
            (
                "RFC 9110 5.3: every Connection line counts",
                &[
                    ("connection", "close"),
                    ("connection", "x-one"),
                    ("connection", "keep-alive, x-two"),
                    ("x-one", "1"),
                    ("x-two", "2"),
                ],
                &[],
            ),
            (
                "all lines of a listed name go",
                &[("connection", "x-one"), ("x-one", "1"), ("x-one", "2")],
                &[],
            ),
            (
                "RFC 8470 5.1, RFC 9110 7.2 and 8.6: what a client may not take away by listing it",
                &[
                    ("connection", "early-data, Host, content-length, x-one"),
                    ("early-data", "1"),
                    ("host", "a"),
                    ("content-length", "0"),
                    ("x-one", "1"),
                ],
                &["content-length", "early-data", "host"],
            ),
            ("RFC 9110 5.6.1.2: empty members", &[("connection", ", ,x-one,,"), ("x-one", "1")], &[]),
            (
                "RFC 9110 10.1.4: TE listed and trailers kept",
                &[("connection", "TE"), ("te", "trailers")],
                &["te"],
            ),
            (
                "RFC 9113 3.1: HTTP2-Settings",
                &[
                    ("connection", "Upgrade, HTTP2-Settings"),
                    ("upgrade", "h2c"),
                    ("http2-settings", "AAMAAABk"),
                ],
                &[],
            ),
            ("HTTP2-Settings that is not listed", &[("http2-settings", "AAMAAABk")], &[]),
            ("RFC 9110 11.7.2: credentials for this hop", &[("proxy-authorization", "Basic eDp5")], &[]),
            ("CVE-2016-5385", &[("proxy", "http://evil.example")], &[]),
            ("RFC 9110 6.6.2: Trailer is end-to-end", &[("trailer", "grpc-status")], &["trailer"]),
            (
                "the frame is not the client's to remove",
                &[("connection", "host, content-length"), ("host", "a"), ("content-length", "3")],
                &["content-length", "host"],
            ),
            (
                "asserted names are left to `forwarded`",
                &[
                    ("connection", "X-Forwarded-For, x_real_ip, Forwarded"),
                    ("x-forwarded-for", "1.2.3.4"),
                    ("forwarded", "for=1.2.3.4"),
                ],
                &["forwarded", "x-forwarded-for"],
            ),
            ("a client may do without its own fields", &[("connection", "cookie"), ("cookie", "a=b")], &[]),
            ("a name that can't be one", &[("connection", "a b, \"x\", x-one"), ("x-one", "1")], &[]),
        ];
        for (why, lines, left) in cases {
            let mut headers = map(lines);
            strip_request(&mut headers);
            assert_eq!(names(&headers), *left, "{why}");
        }
    }

    #[test]
    fn te_keeps_exactly_trailers() {
        for (lines, kept) in [
            (&["trailers"][..], true),
            (&["Trailers"], true),
            (&["gzip;q=0.5, trailers"], true),
            (&["gzip", "deflate, trailers"], true),
            (&["gzip"], false),
            (&["x-trailers"], false),
            (&[""], false),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("te", line.parse().unwrap());
            }
            strip_request(&mut headers);
            let left: Vec<_> = headers.get_all("te").iter().collect();
            assert_eq!(left, if kept { vec!["trailers"] } else { vec![] }, "{lines:?}");
        }
    }

    #[test]
    fn responses() {
        let mut headers = map(&[
            ("connection", "close, X-Secret"),
            ("connection", "x-more"),
            ("x-secret", "1"),
            ("x-more", "1"),
            ("keep-alive", "timeout=5"),
            ("upgrade", "h2c"),
            ("te", "trailers"),
            ("proxy-authenticate", "Basic"),
            ("proxy-authentication-info", "x"),
            ("date", "x"),
            ("server", "x"),
            ("trailer", "x"),
        ]);
        strip_response(&mut headers);
        assert_eq!(names(&headers), ["date", "server", "trailer"]);
    }

    #[test]
    fn rfc9112_6_3_transfer_encoding_overrides_content_length_in_a_response() {
        let mut headers = map(&[("transfer-encoding", "chunked"), ("content-length", "5")]);
        strip_response(&mut headers);
        assert!(headers.is_empty());
        let mut headers = map(&[("content-length", "5"), ("connection", "content-length")]);
        strip_response(&mut headers);
        assert_eq!(names(&headers), ["content-length"]);
    }

    #[test]
    fn a_very_long_nomination_is_removed_too() {
        let long = "x".repeat(300);
        let mut headers = map(&[("connection", &long), (&long, "1"), ("accept", "*/*")]);
        strip_request(&mut headers);
        assert_eq!(names(&headers), ["accept"]);
    }

    fn name() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-cA-C][a-c_-]{0,3}",
            prop::sample::select(vec![
                "connection",
                "TE",
                "keep-alive",
                "upgrade",
                "transfer-encoding",
                "X-Forwarded-For",
                "host",
                "Content-Length",
                "x_real_ip",
                "proxy-authorization",
            ])
            .prop_map(str::to_owned),
        ]
    }

    proptest! {
        #[test]
        fn no_nominated_field_survives(
            fields in prop::collection::vec((name(), "[a-z, ]{0,10}"), 0..12),
            lists in prop::collection::vec(prop::collection::vec(name(), 0..4), 0..4),
            response: bool,
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in &fields {
                headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
            }
            for list in &lists {
                headers.append("connection", list.join(" ,").parse().unwrap());
            }
            let before = headers.clone();
            let strip = if response { strip_response } else { strip_request };
            strip(&mut headers);
            for nominated in lists.iter().flatten().map(|name| name.to_ascii_lowercase()) {
                let ours = nominated == "host" || nominated == "content-length" || nominated == "te"
                    || is_asserted(nominated.as_bytes());
                prop_assert!(ours || !headers.contains_key(&nominated), "{nominated}");
            }
            for fixed in ["connection", "keep-alive", "upgrade", "transfer-encoding", "proxy-authorization"] {
                prop_assert!(!headers.contains_key(fixed));
            }
            // nothing is made up, and doing it again changes nothing
            for name in headers.keys() {
                prop_assert!(before.contains_key(name));
            }
            let once = headers.clone();
            strip(&mut headers);
            prop_assert_eq!(once, headers);
        }

        #[test]
        fn what_nobody_nominated_stays(fields in prop::collection::vec(("[d-g]{1,4}", "[a-z]{0,4}"), 0..8)) {
            let mut headers = HeaderMap::new();
            for (name, value) in &fields {
                headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
            }
            let before = headers.clone();
            headers.insert("connection", "keep-alive, x-other".parse().unwrap());
            strip_request(&mut headers);
            prop_assert_eq!(before, headers);
        }
    }
}
