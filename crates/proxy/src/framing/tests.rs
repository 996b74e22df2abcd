use super::*;
use http::StatusCode;
use proptest::prelude::*;

use FramingError as E;

fn request(method: &str, target: &str, version: Version, fields: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder().method(method).uri(target).version(version);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

fn check(request: &Request<()>) -> Result<(), FramingError> {
    check_request(Head::of(request), &FramingLimits::default())
}

type Case<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, &'a str)], Result<(), FramingError>);

fn run(version: Version, cases: &[Case<'_>]) {
    for (why, method, target, fields, expected) in cases {
        assert_eq!(check(&request(method, target, version, fields)), *expected, "{why} ({version:?})");
    }
}

const HOST: (&str, &str) = ("host", "a.example");

#[test]
fn lengths_on_http11() {
    const TE: (&str, &str) = ("transfer-encoding", "chunked");
    run(
        Version::HTTP_11,
        &[
            ("a plain GET", "GET", "/", &[HOST], Ok(())),
            ("RFC 9112 6.2", "POST", "/", &[HOST, ("content-length", "5")], Ok(())),
            ("RFC 9112 6.1", "POST", "/", &[HOST, TE], Ok(())),
            (
                "RFC 9110 10.1.4: codings have no case",
                "POST",
                "/",
                &[HOST, ("transfer-encoding", "Chunked")],
                Ok(()),
            ),
            ("RFC 9112 6.1: both", "POST", "/", &[HOST, TE, ("content-length", "5")], Err(E::TwoFramings)),
            ("both, other order", "POST", "/", &[("content-length", "5"), TE, HOST], Err(E::TwoFramings)),
            ("both, zero", "POST", "/", &[HOST, TE, ("content-length", "0")], Err(E::TwoFramings)),
            (
                "RFC 9112 6.3: differing",
                "POST",
                "/",
                &[HOST, ("content-length", "5"), ("content-length", "6")],
                Err(E::BadContentLength),
            ),
            (
                "equal lines",
                "POST",
                "/",
                &[HOST, ("content-length", "5"), ("content-length", "5")],
                Err(E::BadContentLength),
            ),
            ("a list", "POST", "/", &[HOST, ("content-length", "5, 5")], Err(E::BadContentLength)),
            ("CVE-2023-40225: empty", "POST", "/", &[HOST, ("content-length", "")], Err(E::BadContentLength)),
            ("a sign", "POST", "/", &[HOST, ("content-length", "+5")], Err(E::BadContentLength)),
            ("hex", "POST", "/", &[HOST, ("content-length", "0x5")], Err(E::BadContentLength)),
            (
                "overflow",
                "POST",
                "/",
                &[HOST, ("content-length", "18446744073709551616")],
                Err(E::BadContentLength),
            ),
        ],
    );
}

#[test]
fn codings_on_http11() {
    const TE: (&str, &str) = ("transfer-encoding", "chunked");
    run(
        Version::HTTP_11,
        &[
            (
                "gzip before",
                "POST",
                "/",
                &[HOST, ("transfer-encoding", "gzip, chunked")],
                Err(E::BadTransferEncoding),
            ),
            (
                "twice",
                "POST",
                "/",
                &[HOST, ("transfer-encoding", "chunked, chunked")],
                Err(E::BadTransferEncoding),
            ),
            ("two lines", "POST", "/", &[HOST, TE, TE], Err(E::BadTransferEncoding)),
            (
                "two lines, gzip first",
                "POST",
                "/",
                &[HOST, ("transfer-encoding", "gzip"), TE],
                Err(E::BadTransferEncoding),
            ),
            (
                "identity",
                "POST",
                "/",
                &[HOST, ("transfer-encoding", "identity")],
                Err(E::BadTransferEncoding),
            ),
            (
                "quoted",
                "POST",
                "/",
                &[HOST, ("transfer-encoding", "\"chunked\"")],
                Err(E::BadTransferEncoding),
            ),
            (
                "a parameter",
                "POST",
                "/",
                &[HOST, ("transfer-encoding", "chunked;q=1")],
                Err(E::BadTransferEncoding),
            ),
            (
                "a leading comma",
                "POST",
                "/",
                &[HOST, ("transfer-encoding", ",chunked")],
                Err(E::BadTransferEncoding),
            ),
            ("empty", "POST", "/", &[HOST, ("transfer-encoding", "")], Err(E::BadTransferEncoding)),
            ("a tab", "POST", "/", &[HOST, ("transfer-encoding", "\tchunked")], Err(E::BadTransferEncoding)),
        ],
    );
}

#[test]
fn http10() {
    run(
        Version::HTTP_10,
        &[
            ("RFC 9112 3.2: no host is needed", "GET", "/", &[], Ok(())),
            ("a host is looked at all the same", "GET", "/", &[("host", "a b")], Err(E::BadHost)),
            (
                "RFC 9112 6.1, CVE-2026-2835",
                "POST",
                "/",
                &[("transfer-encoding", "chunked")],
                Err(E::TransferEncodingOn10),
            ),
            (
                "with a length",
                "POST",
                "/",
                &[("transfer-encoding", "chunked"), ("content-length", "3")],
                Err(E::TwoFramings),
            ),
            ("a length alone", "POST", "/", &[("content-length", "3")], Ok(())),
        ],
    );
}

#[test]
fn hosts_on_http11() {
    run(
        Version::HTTP_11,
        &[
            ("RFC 9112 3.2: missing", "GET", "/", &[], Err(E::NoHost)),
            ("RFC 9112 3.2: two", "GET", "/", &[HOST, ("host", "b.example")], Err(E::ManyHosts)),
            ("two equal ones", "GET", "/", &[HOST, HOST], Err(E::ManyHosts)),
            ("empty", "GET", "/", &[("host", "")], Err(E::BadHost)),
            ("RFC 9110 4.2.4: user information", "GET", "/", &[("host", "u:p@a.example")], Err(E::BadHost)),
            ("a comma", "GET", "/", &[("host", "a.example, b.example")], Err(E::BadHost)),
            ("a comma without space", "GET", "/", &[("host", "a.example,b.example")], Err(E::BadHost)),
            ("a path", "GET", "/", &[("host", "a.example/x")], Err(E::BadHost)),
            ("a bad port", "GET", "/", &[("host", "a.example:x")], Err(E::BadHost)),
            ("a port", "GET", "/", &[("host", "a.example:8080")], Ok(())),
            ("IPv6", "GET", "/", &[("host", "[::1]:8080")], Ok(())),
            ("RFC 9112 3.2.2: absolute form", "GET", "http://a.example/x", &[HOST], Ok(())),
            ("RFC 9112 3.2.2: the absolute form wins", "GET", "http://b.example/x", &[HOST], Ok(())),
            ("absolute form without host", "GET", "http://a.example/x", &[], Err(E::NoHost)),
            ("RFC 9110 4.2.4: in the target", "GET", "http://u@a.example/x", &[HOST], Err(E::BadHost)),
            ("a comma in the target", "GET", "http://a,b/x", &[HOST], Err(E::BadHost)),
        ],
    );
}

#[test]
fn targets_and_methods_on_http11() {
    let long_method = "M".repeat(33);
    let long_target = format!("/{}", "a".repeat(8192));
    run(
        Version::HTTP_11,
        &[
            ("RFC 9112 3.2.3: authority form", "GET", "a.example", &[HOST], Err(E::BadTarget)),
            ("authority form with port", "GET", "a.example:80", &[HOST], Err(E::BadTarget)),
            ("RFC 9112 3.2.4", "OPTIONS", "*", &[HOST], Ok(())),
            ("RFC 9112 3.2.4: only OPTIONS", "GET", "*", &[HOST], Err(E::BadTarget)),
            ("RFC 9110 4.2: another scheme", "GET", "ftp://a.example/x", &[HOST], Err(E::BadScheme)),
            ("RFC 9110 4.2.3: an empty path", "GET", "http://a.example?x", &[HOST], Ok(())),
            ("RFC 9110 9.3.6", "CONNECT", "a.example:443", &[HOST], Err(E::Connect)),
            ("RFC 9110 9.3.8", "TRACE", "/", &[HOST], Err(E::Trace)),
            ("an unknown method goes on", "PURGE", "/", &[HOST], Ok(())),
            ("RFC 9112 3: method too long", &long_method, "/", &[HOST], Err(E::MethodTooLong)),
            ("RFC 9112 3: target too long", "GET", &long_target, &[HOST], Err(E::TargetTooLong)),
            ("RFC 9110 10.1.1", "PUT", "/", &[HOST, ("expect", "100-Continue")], Ok(())),
            ("RFC 9110 10.1.1: another", "PUT", "/", &[HOST, ("expect", "200-ok")], Err(E::Expectation)),
            (
                "one of two",
                "PUT",
                "/",
                &[HOST, ("expect", "100-continue"), ("expect", "x")],
                Err(E::Expectation),
            ),
            ("RFC 9110 7.6.2: ours", "OPTIONS", "/", &[HOST, ("max-forwards", "0")], Err(E::HopsSpent)),
            ("RFC 9110 7.6.2: one more", "OPTIONS", "/", &[HOST, ("max-forwards", "1")], Ok(())),
            ("RFC 9110 7.6.2: not on GET", "GET", "/", &[HOST, ("max-forwards", "0")], Ok(())),
            ("no number", "OPTIONS", "/", &[HOST, ("max-forwards", "-1")], Err(E::BadMaxForwards)),
        ],
    );
}

#[test]
fn hosts_after_http1() {
    for version in [Version::HTTP_2, Version::HTTP_3] {
        run(
            version,
            &[
                ("plain", "GET", "https://a.example/", &[], Ok(())),
                ("RFC 9113 8.3.1: an equal host", "GET", "https://a.example/", &[HOST], Ok(())),
                (
                    "equal after normalising",
                    "GET",
                    "https://a.example:443/",
                    &[("host", "A.Example")],
                    Ok(()),
                ),
                (
                    "RFC 9113 8.3.1: differs",
                    "GET",
                    "https://a.example/",
                    &[("host", "b.example")],
                    Err(E::HostMismatch),
                ),
                (
                    "differs in port",
                    "GET",
                    "https://a.example/",
                    &[("host", "a.example:8443")],
                    Err(E::HostMismatch),
                ),
                ("two hosts", "GET", "https://a.example/", &[HOST, HOST], Err(E::ManyHosts)),
                ("RFC 9113 8.3.1: user information", "GET", "https://u@a.example/", &[], Err(E::BadHost)),
                ("a comma in :authority", "GET", "https://a,b/", &[], Err(E::BadHost)),
                ("host alone", "GET", "/", &[HOST], Ok(())),
                ("neither", "GET", "/", &[], Err(E::NoHost)),
                ("RFC 9113 8.3.1: a path begins so", "GET", "https://a.example?x", &[], Err(E::BadTarget)),
            ],
        );
    }
}

#[test]
fn fields_after_http1() {
    for version in [Version::HTTP_2, Version::HTTP_3] {
        run(
            version,
            &[
                (
                    "RFC 9113 8.2.2",
                    "GET",
                    "https://a.example/",
                    &[("connection", "close")],
                    Err(E::ConnectionField),
                ),
                (
                    "RFC 9113 8.2.2",
                    "GET",
                    "https://a.example/",
                    &[("keep-alive", "5")],
                    Err(E::ConnectionField),
                ),
                (
                    "RFC 9113 8.2.2",
                    "GET",
                    "https://a.example/",
                    &[("proxy-connection", "x")],
                    Err(E::ConnectionField),
                ),
                (
                    "RFC 9113 8.2.2",
                    "POST",
                    "https://a.example/",
                    &[("transfer-encoding", "chunked")],
                    Err(E::ConnectionField),
                ),
                (
                    "RFC 9113 8.2.2",
                    "GET",
                    "https://a.example/",
                    &[("upgrade", "websocket")],
                    Err(E::ConnectionField),
                ),
                ("RFC 9113 8.2.2: te", "GET", "https://a.example/", &[("te", "trailers")], Ok(())),
                (
                    "RFC 9113 8.2.2: another te",
                    "GET",
                    "https://a.example/",
                    &[("te", "gzip")],
                    Err(E::ConnectionField),
                ),
                (
                    "differing lengths",
                    "POST",
                    "https://a.example/",
                    &[("content-length", "1"), ("content-length", "2")],
                    Err(E::BadContentLength),
                ),
                ("another scheme", "GET", "ftp://a.example/", &[], Err(E::BadScheme)),
            ],
        );
    }
}

#[test]
fn dot_segments() {
    for refused in [
        "/..",
        "/.",
        "/a/../b",
        "/a/./b",
        "/a/..",
        "/%2e%2e/b",
        "/%2E./b",
        "/.%2e",
        "/a/..%2fb",
        "/a%2f..%2fb",
        "/..%5cb",
        "/a\\..\\b",
        "/..;x=1/b",
        "/a/..;/b",
        "/%2e;/b",
    ] {
        // `http` takes a backslash for what it is not, so the function is asked directly
        assert!(has_dot_segment(refused.as_bytes()), "{refused}");
    }
    for passed in [
        "/",
        "",
        "/...",
        "/.well-known/x",
        "/a..b",
        "/a./b",
        "/..a",
        "/%2e%2ea",
        "/a%2fb",
        "/%252e%252e/",
        "/a;../b",
        "*",
    ] {
        assert!(!has_dot_segment(passed.as_bytes()), "{passed}");
    }
    let up = request("GET", "/a/../b?x=/../y", Version::HTTP_11, &[HOST]);
    assert_eq!(check(&up), Err(E::DotSegments));
    assert_eq!(check_request(Head::of(&up), &FramingLimits::default().with_dots(Dots::Pass)), Ok(()));
    assert_eq!(check(&request("GET", "/b?x=/../y", Version::HTTP_11, &[HOST])), Ok(()));
}

#[test]
fn rfc9110_9_3_6_what_a_connect_has() {
    use ConnectTargetError as T;
    const AT: &str = "a.example:443";
    const NAMED: (&str, &str) = ("host", AT);
    let (http10, http11, http2) = (Version::HTTP_10, Version::HTTP_11, Version::HTTP_2);
    let target = |error| Err(E::ConnectTarget(error));
    for (version, at, fields, expected) in [
        (http11, AT, &[NAMED][..], Ok(AT)),
        (http11, "A.example.:443", &[NAMED], Ok(AT)),
        (http10, AT, &[], Ok(AT)),
        (http2, AT, &[], Ok(AT)),
        (http2, AT, &[NAMED], Ok(AT)),
        // RFC 9112 section 3.2.2: it is the target that counts
        (http11, AT, &[HOST], Ok(AT)),
        (http2, AT, &[HOST], Err(E::HostMismatch)),
        (http11, AT, &[], Err(E::NoHost)),
        (http11, AT, &[NAMED, NAMED], Err(E::ManyHosts)),
        (http11, AT, &[("host", "u@a.example:443")], Err(E::BadHost)),
        (http11, "a.example", &[HOST], target(T::NoPort)),
        (http11, "a.example:0", &[HOST], target(T::Invalid)),
        (http11, "u@a.example:443", &[NAMED], target(T::Invalid)),
        (http11, "127.1:443", &[NAMED], target(T::BadHost)),
        (http11, "http://a.example:443/", &[NAMED], target(T::Invalid)),
        (http11, "/a.example:443", &[NAMED], target(T::Invalid)),
        (http2, "https://a.example:443/", &[], target(T::Invalid)),
        (http11, AT, &[NAMED, ("content-length", "0")], Err(E::ConnectContent)),
        (http11, AT, &[NAMED, ("content-length", "5")], Err(E::ConnectContent)),
        (http11, AT, &[NAMED, ("transfer-encoding", "chunked")], Err(E::ConnectContent)),
        (http2, AT, &[("connection", "close")], Err(E::ConnectionField)),
        (http11, AT, &[NAMED, ("expect", "100-continue")], Ok(AT)),
        (http11, AT, &[NAMED, ("expect", "a")], Err(E::Expectation)),
    ] {
        let request = request("CONNECT", at, version, fields);
        let found = check_connect(Head::of(&request), &FramingLimits::default());
        assert_eq!(
            found.map(|target| target.to_string()),
            expected.map(str::to_owned),
            "{version:?} {at} {fields:?}"
        );
    }
    let long = request("CONNECT", AT, http11, &[NAMED]);
    let limits = FramingLimits::default().with_max_target(AT.len() - 1);
    assert_eq!(check_connect(Head::of(&long), &limits), Err(E::TargetTooLong));
}

#[test]
fn statuses() {
    for (error, status) in [
        (E::TwoFramings, 400),
        (E::BadHost, 400),
        (E::HostMismatch, 400),
        (E::DotSegments, 400),
        (E::Trace, 405),
        (E::TargetTooLong, 414),
        (E::Expectation, 417),
        (E::Connect, 501),
        (E::ConnectTarget(ConnectTargetError::NoPort), 400),
        (E::ConnectContent, 400),
        (E::MethodTooLong, 501),
        (E::HopsSpent, 200),
    ] {
        assert_eq!(Fault::from(error).status().as_u16(), status, "{error:?}");
    }
    assert!(Fault::from(E::TwoFramings).closes_connection());
    for error in [AnswerError::BadContentLength, AnswerError::Informational] {
        assert_eq!(Fault::from(error).status(), 502);
    }
}

#[test]
fn rfc9110_7_6_2_hops_are_counted_on_options_only() {
    for (method, before, after) in [("OPTIONS", "7", "6"), ("GET", "7", "7"), ("OPTIONS", "0", "0")] {
        let mut headers = HeaderMap::new();
        headers.insert("max-forwards", before.parse().unwrap());
        count_hop(&method.parse().unwrap(), &mut headers);
        assert_eq!(headers["max-forwards"], after, "{method} {before}");
    }
}

#[test]
fn responses() {
    let check = |status: u16, fields: &[(&'static str, &str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        check_response(StatusCode::from_u16(status).unwrap(), &headers)
    };
    assert_eq!(check(200, &[("content-length", "5")]), Ok(()));
    assert_eq!(
        check(200, &[("content-length", "5"), ("content-length", "6")]),
        Err(AnswerError::BadContentLength)
    );
    assert_eq!(check(200, &[("content-length", "5, 5")]), Err(AnswerError::BadContentLength));
    assert_eq!(check(200, &[("content-length", "")]), Err(AnswerError::BadContentLength));
    assert_eq!(check(200, &[("content-length", "5"), ("transfer-encoding", "chunked")]), Ok(()));
    for status in [100, 101, 103, 199] {
        assert_eq!(check(status, &[]), Err(AnswerError::Informational));
    }
}

proptest! {
    // whatever passes has at most one framing, and it is one that has one reading
    #[test]
    fn what_passes_has_one_reading(
        lengths in prop::collection::vec("[0-9+, ]{0,3}", 0..3),
        codings in prop::collection::vec(
            prop::sample::select(vec!["chunked", "Chunked", "gzip", "identity", "gzip, chunked", "", "x"]), 0..3),
        version in prop::sample::select(vec![Version::HTTP_10, Version::HTTP_11, Version::HTTP_2]),
    ) {
        let mut request = Request::builder().method("POST").uri("/").version(version).header("host", "a");
        for length in &lengths {
            request = request.header("content-length", length);
        }
        for coding in &codings {
            request = request.header("transfer-encoding", *coding);
        }
        if check(&request.body(()).unwrap()).is_ok() {
            prop_assert!(lengths.len() + codings.len() <= 1);
            if let [length] = &lengths[..] {
                prop_assert!(length.parse::<u64>().is_ok() && length.bytes().all(|b| b.is_ascii_digit()));
            }
            if let [coding] = &codings[..] {
                prop_assert!(version == Version::HTTP_11 && coding.eq_ignore_ascii_case("chunked"));
            }
        }
    }
}
