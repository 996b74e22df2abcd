//! The service around a mock upstream: what each side gets to see.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, Version};
use portcullis_conn::{ConnInfo, TlsInfo, Transport};
use portcullis_proxy::{
    ClientFault, Fault, FramingError, Kind, ProxyOptions, ReverseProxy, Trust, Tunnels, UpstreamFault,
    UpstreamTunnel, forwarded::Via,
};
use proptest::prelude::*;
use tower::ServiceExt as _;

const CLIENT: &str = "203.0.113.9:50000";

fn request(method: &str, target: &str, version: Version, fields: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder().method(method).uri(target).version(version);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

fn from_client<B>(mut request: Request<B>, peer: &str) -> Request<B> {
    let local: SocketAddr = "192.0.2.2:443".parse().unwrap();
    let info = ConnInfo::new(Transport::Tcp, peer.parse().unwrap(), local).with_tls(TlsInfo::default());
    request.extensions_mut().insert(Arc::new(info));
    request
}

/// Sends a request through a proxy and gives what the upstream saw and what came back.
async fn forward(
    options: ProxyOptions,
    request: Request<()>,
    answer: Result<Response<()>, Fault>,
) -> (Option<Request<()>>, Result<Response<()>, Fault>) {
    let seen = Arc::new(Mutex::new(None));
    let answer = Arc::new(Mutex::new(Some(answer)));
    let upstream = tower::service_fn({
        let seen = seen.clone();
        move |request: Request<()>| {
            *seen.lock().unwrap() = Some(request);
            std::future::ready(answer.lock().unwrap().take().unwrap())
        }
    });
    let result = ReverseProxy::new(options, upstream).oneshot(request).await;
    let seen = seen.lock().unwrap().take();
    (seen, result)
}

async fn forwarded(options: ProxyOptions, request: Request<()>) -> Request<()> {
    forward(options, request, Ok(Response::new(()))).await.0.expect("it is forwarded")
}

fn sorted(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut fields: Vec<_> =
        headers.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect();
    fields.sort();
    fields
}

#[track_caller]
fn assert_fields(headers: &HeaderMap, expected: &[(&str, &str)]) {
    let mut expected: Vec<_> =
        expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    expected.sort();
    assert_eq!(sorted(headers), expected);
}

#[tokio::test]
async fn an_ordinary_request() {
    let plain = request(
        "GET",
        "/a%20b?c=d",
        Version::HTTP_11,
        &[
            ("host", "a.example:8443"),
            ("user-agent", "test"),
            ("connection", "keep-alive"),
            ("accept", "*/*"),
        ],
    );
    let seen = forwarded(ProxyOptions::default(), from_client(plain, CLIENT)).await;
    assert_eq!((seen.method(), seen.version()), (&Method::GET, Version::HTTP_11));
    assert_eq!(seen.uri().to_string(), "/a%20b?c=d");
    assert_fields(
        seen.headers(),
        &[
            ("host", "a.example:8443"),
            ("user-agent", "test"),
            ("accept", "*/*"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-real-ip", "203.0.113.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "a.example:8443"),
        ],
    );
    assert!(seen.extensions().get::<Arc<ConnInfo>>().is_some());
}

#[tokio::test]
async fn rfc9113_8_3_1_http2_and_3_get_a_host() {
    for version in [Version::HTTP_2, Version::HTTP_3] {
        let plain = request("GET", "https://a.example/x?y", version, &[("te", "trailers")]);
        let seen = forwarded(ProxyOptions::default(), from_client(plain, CLIENT)).await;
        assert_eq!(seen.uri().to_string(), "/x?y");
        assert_eq!(seen.version(), Version::HTTP_11);
        assert_fields(
            seen.headers(),
            &[
                ("host", "a.example"),
                ("te", "trailers"),
                ("x-forwarded-for", "203.0.113.9"),
                ("x-real-ip", "203.0.113.9"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "a.example"),
            ],
        );
    }
}

#[tokio::test]
async fn rfc9112_3_2_2_the_absolute_form_wins_over_host() {
    let absolute = request("GET", "http://b.example/x", Version::HTTP_11, &[("host", "a.example")]);
    let seen = forwarded(ProxyOptions::default(), absolute).await;
    assert_eq!(seen.headers().get_all("host").iter().collect::<Vec<_>>(), ["b.example"]);
    assert_eq!(seen.headers()["x-forwarded-host"], "b.example");
    assert_eq!(seen.uri().to_string(), "/x");
}

#[tokio::test]
async fn http10_without_host_gets_the_address_it_connected_to() {
    let old =
        request("PUT", "/x", Version::HTTP_10, &[("expect", "100-continue"), ("connection", "keep-alive")]);
    let seen = forwarded(ProxyOptions::default(), from_client(old, CLIENT)).await;
    assert_eq!(seen.headers()["host"], "192.0.2.2:443");
    assert_eq!(seen.version(), Version::HTTP_11);
    // RFC 9110 10.1.1
    assert!(!seen.headers().contains_key("expect"));
}

#[tokio::test]
async fn a_client_can_not_remove_what_the_edge_says() {
    // Traefik CVE-2024-45410 and its kin
    let plain = request(
        "GET",
        "/",
        Version::HTTP_11,
        &[
            ("host", "a.example"),
            ("connection", "X-Forwarded-For, x-real-ip"),
            ("connection", "x-forwarded-host, X-Forwarded-Proto, host, x_forwarded_for, x-mine"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x_forwarded_for", "1.1.1.1"),
            ("x-mine", "1"),
        ],
    );
    let seen = forwarded(ProxyOptions::default(), from_client(plain, CLIENT)).await;
    assert_fields(
        seen.headers(),
        &[
            ("host", "a.example"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-real-ip", "203.0.113.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "a.example"),
        ],
    );
}

#[tokio::test]
async fn a_trusted_proxy_is_believed_even_if_it_relays_its_clients_connection_line() {
    let options = ProxyOptions::default().with_trust(Arc::new(Trust::new(["10.0.0.0/8".parse().unwrap()])));
    let plain = request(
        "GET",
        "/",
        Version::HTTP_11,
        &[("host", "a.example"), ("connection", "x-forwarded-for"), ("x-forwarded-for", "203.0.113.9")],
    );
    let seen = forwarded(options, from_client(plain, "10.0.0.1:1")).await;
    assert_eq!(seen.headers()["x-forwarded-for"], "203.0.113.9, 10.0.0.1");
    assert_eq!(seen.headers()["x-real-ip"], "203.0.113.9");
}

#[tokio::test]
async fn without_connection_facts_nothing_is_believed() {
    let plain = request("GET", "/", Version::HTTP_11, &[("host", "a"), ("x-forwarded-for", "1.1.1.1")]);
    let seen = forwarded(ProxyOptions::default(), plain).await;
    assert_fields(seen.headers(), &[("host", "a"), ("x-forwarded-proto", "http"), ("x-forwarded-host", "a")]);
}

#[tokio::test]
async fn the_body_frames_itself() {
    let chunked = request("POST", "/", Version::HTTP_11, &[("host", "a"), ("transfer-encoding", "chunked")]);
    let seen = forwarded(ProxyOptions::default(), chunked).await;
    assert!(!seen.headers().contains_key("transfer-encoding"));
    let sized = request("POST", "/", Version::HTTP_11, &[("host", "a"), ("content-length", "3")]);
    let seen = forwarded(ProxyOptions::default(), sized).await;
    assert_eq!(seen.headers()["content-length"], "3");
}

#[tokio::test]
async fn rfc9110_7_6_2_max_forwards() {
    let fields = |hops| [("host", "a"), ("max-forwards", hops)];
    let seen =
        forwarded(ProxyOptions::default(), request("OPTIONS", "*", Version::HTTP_11, &fields("3"))).await;
    assert_eq!(seen.headers()["max-forwards"], "2");
    assert_eq!(seen.uri().to_string(), "*");
    let last = request("OPTIONS", "*", Version::HTTP_11, &fields("0"));
    let (seen, result) = forward(ProxyOptions::default(), last, Ok(Response::new(()))).await;
    assert!(seen.is_none());
    let answer = result.unwrap_err().respond(Version::HTTP_11);
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(answer.headers().contains_key("allow"));
}

#[tokio::test]
async fn what_is_refused_never_reaches_the_upstream() {
    for (method, target, fields, fault) in [
        ("GET", "/", &[][..], ClientFault::Malformed),
        ("GET", "/", &[("host", "a"), ("host", "a")], ClientFault::Malformed),
        (
            "POST",
            "/",
            &[("host", "a"), ("content-length", "1"), ("transfer-encoding", "chunked")],
            ClientFault::Malformed,
        ),
        ("GET", "/a/%2e%2e/b", &[("host", "a")], ClientFault::Malformed),
        ("CONNECT", "a:443", &[("host", "a")], ClientFault::MethodNotImplemented),
        ("TRACE", "/", &[("host", "a")], ClientFault::MethodNotAllowed),
        ("GET", "/", &[("host", "a"), ("expect", "x")], ClientFault::ExpectationFailed),
    ] {
        let refused = request(method, target, Version::HTTP_11, fields);
        let (seen, result) = forward(ProxyOptions::default(), refused, Ok(Response::new(()))).await;
        assert!(seen.is_none(), "{method} {target}");
        let error = result.unwrap_err();
        assert_eq!(error.kind(), Kind::Client(fault), "{method} {target}");
        let source = std::error::Error::source(&error).unwrap();
        assert!(source.downcast_ref::<FramingError>().is_some());
    }
}

async fn answered(version: Version, answer: Response<()>) -> Result<Response<()>, Fault> {
    let target = if version == Version::HTTP_2 { "https://a/" } else { "/" };
    let plain = request("GET", target, version, &[("host", "a")]);
    forward(ProxyOptions::default(), plain, Ok(answer)).await.1
}

fn answer(status: u16, fields: &[(&str, &str)]) -> Response<()> {
    let mut answer = Response::builder().status(status);
    for (name, value) in fields {
        answer = answer.header(*name, *value);
    }
    answer.body(()).unwrap()
}

#[tokio::test]
async fn an_ordinary_answer() {
    for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
        let response = answered(
            version,
            answer(
                200,
                &[
                    ("connection", "close, X-Internal"),
                    ("connection", "x-more"),
                    ("x-internal", "1"),
                    ("x-more", "1"),
                    ("keep-alive", "timeout=5"),
                    ("transfer-encoding", "chunked"),
                    ("upgrade", "h2c"),
                    ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
                    ("server", "origin"),
                    ("set-cookie", "a=1"),
                    ("set-cookie", "b=2"),
                ],
            ),
        )
        .await
        .unwrap();
        assert_fields(
            response.headers(),
            &[
                ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
                ("server", "origin"),
                ("set-cookie", "a=1"),
                ("set-cookie", "b=2"),
            ],
        );
    }
}

#[tokio::test]
async fn bad_answers_are_502() {
    for (why, bad) in [
        ("a 101 that nobody asked for", answer(101, &[("connection", "upgrade"), ("upgrade", "websocket")])),
        ("RFC 9110 15.2: 1xx is no answer", answer(103, &[])),
        ("RFC 9112 6.3: differing lengths", answer(200, &[("content-length", "1"), ("content-length", "2")])),
        ("a length that is no number", answer(200, &[("content-length", "1x")])),
    ] {
        let fault = answered(Version::HTTP_11, bad).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Upstream(UpstreamFault::Protocol), "{why}");
        assert_eq!(fault.status(), 502, "{why}");
    }
}

#[tokio::test]
async fn rfc9110_15_5_22_a_426_keeps_its_upgrade_on_http11() {
    let needs = || answer(426, &[("connection", "upgrade, x-a"), ("upgrade", "websocket"), ("x-a", "1")]);
    let http11 = answered(Version::HTTP_11, needs()).await.unwrap();
    assert_fields(http11.headers(), &[("connection", "upgrade"), ("upgrade", "websocket")]);
    let http2 = answered(Version::HTTP_2, needs()).await.unwrap();
    assert_fields(http2.headers(), &[]);
}

#[tokio::test]
async fn a_fault_of_the_upstream_passes_through() {
    let plain = request("GET", "/", Version::HTTP_11, &[("host", "a")]);
    let fault = Fault::upstream(UpstreamFault::ConnectTimeout);
    let (_, result) = forward(ProxyOptions::default(), plain, Err(fault)).await;
    assert_eq!(result.unwrap_err().status(), 504);
}

#[tokio::test]
async fn rfc9110_7_6_3_via_when_asked_for() {
    let options = ProxyOptions::default().with_via(Some(Via::new("edge").unwrap()));
    let plain = request("GET", "https://a/", Version::HTTP_2, &[]);
    let (seen, result) = forward(options, plain, Ok(Response::new(()))).await;
    assert_eq!(seen.unwrap().headers()["via"], "2 edge");
    assert_eq!(result.unwrap().headers()["via"], "1.1 edge");
}

#[tokio::test]
async fn an_upgrade_without_a_driver_that_can_is_a_plain_request() {
    // no `OnUpgrade` in the extensions, as with a driver that does not offer upgrades
    let tunnels = Tunnels::new(1);
    let asks = request(
        "GET",
        "/",
        Version::HTTP_11,
        &[("host", "a"), ("connection", "upgrade"), ("upgrade", "websocket")],
    );
    let mut switched = answer(101, &[("upgrade", "websocket")]);
    switched.extensions_mut().insert(UpstreamTunnel::new(tokio::io::duplex(1).0));
    let (seen, result) = forward(ProxyOptions::new(tunnels.clone()), asks, Ok(switched)).await;
    let seen = seen.unwrap();
    assert!(!seen.headers().contains_key("upgrade") && !seen.headers().contains_key("connection"));
    assert_eq!(result.unwrap_err().kind(), Kind::Upstream(UpstreamFault::Protocol));
    assert_eq!(tunnels.open(), 0);
}

proptest! {
    // the invariant behind the tables: from a stranger, nothing that it says of itself or of this hop goes on
    #[test]
    fn nothing_of_a_stranger_survives(
        fields in prop::collection::vec(
            ("(x[_-]forwarded[_-](for|host|proto|user)|x[_-]real[_-]ip|forwarded|te|keep-alive|proxy-connection|x-[ab])",
             "[a-z0-9., ]{0,12}"),
            0..8),
        lists in prop::collection::vec("(x-a|X-B|x-forwarded-for|X-Real-IP|host|te|close|,| ){0,4}", 0..3),
    ) {
        let mut plain = Request::builder().uri("/").header("host", "a.example");
        for (name, value) in &fields {
            plain = plain.header(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.trim());
        }
        for list in &lists {
            plain = plain.header("connection", list.trim());
        }
        let plain = from_client(plain.body(()).unwrap(), CLIENT);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let seen = runtime.block_on(forwarded(ProxyOptions::default(), plain));
        let headers = seen.headers();
        let ip = CLIENT.parse::<SocketAddr>().unwrap().ip();
        for ours in ["x-forwarded-for", "x-real-ip"] {
            let values: Vec<_> = headers.get_all(ours).iter().map(|value| value.to_str().unwrap().parse()).collect();
            prop_assert_eq!(values, vec![Ok::<IpAddr, _>(ip)], "{}", ours);
        }
        prop_assert_eq!(&headers["host"], "a.example");
        for name in headers.keys().map(HeaderName::as_str) {
            let known = ["host", "te", "x-a", "x-b", "x-forwarded-for", "x-real-ip", "x-forwarded-proto", "x-forwarded-host"];
            prop_assert!(known.contains(&name), "{}", name);
            let listed = lists.iter().flat_map(|list| list.split(',')).any(|member| member.trim().eq_ignore_ascii_case(name));
            prop_assert!(!(listed && name.starts_with("x-") && name.len() == 3), "{}", name);
        }
        prop_assert!(headers.get_all("te").iter().all(|te| te == "trailers"));
    }
}
