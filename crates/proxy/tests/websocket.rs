//! Upgrades around a mock upstream, by HTTP/1.1 and by extended CONNECT: what the upstream gets, and which answers are a tunnel.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::sync::{Arc, Mutex};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{Method, Request, Response, Version};
use hyper::ext::Protocol;
use portcullis_proxy::{
    ClientFault, Fault, Kind, ProxyOptions, ReverseProxy, TunnelBegun, Tunnels, UpgradeProtocols,
    UpstreamFault, UpstreamTunnel,
};
use sha1::{Digest, Sha1};
use tower::ServiceExt as _;

fn accept(key: &str) -> String {
    STANDARD.encode(Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11")))
}

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// An upgrade by HTTP/1.1.
fn one(protocol: &str, fields: &[(&str, &str)]) -> Request<()> {
    let ask = Request::get("/chat").header("host", "a.test").header("connection", "upgrade, x-hop");
    with(ask.header("upgrade", protocol).header("x-hop", "1"), fields)
}

/// An upgrade by HTTP/2.
fn two(protocol: &'static str, fields: &[(&str, &str)]) -> Request<()> {
    let ask = Request::connect("https://a.test/chat?x").version(Version::HTTP_2);
    with(ask.extension(Protocol::from_static(protocol)), fields)
}

fn with(mut request: http::request::Builder, fields: &[(&str, &str)]) -> Request<()> {
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let mut request = request.body(()).unwrap();
    // as a driver that can, whose client goes away at once
    let upgrade = hyper::upgrade::on(&mut request);
    request.extensions_mut().insert(upgrade);
    request
}

/// What the upstream got, and what the client gets. The answer is made from the key.
async fn exchange(
    options: ProxyOptions,
    request: Request<()>,
    answer: impl Fn(&str) -> Response<()>,
) -> (Option<Request<()>>, Result<Response<()>, Fault>) {
    let seen = Arc::new(Mutex::new(None));
    let upstream = tower::service_fn(|request: Request<()>| {
        let key = request.headers().get("sec-websocket-key");
        let answer = answer(key.map_or("", |key| key.to_str().unwrap()));
        *seen.lock().unwrap() = Some(request);
        std::future::ready(Ok::<_, Fault>(answer))
    });
    let result = ReverseProxy::new(options, upstream).oneshot(request).await;
    let seen = seen.lock().unwrap().take();
    (seen, result)
}

/// An answer with a stream behind it.
fn switched(version: Version, fields: &[(&str, &str)]) -> Response<()> {
    let mut answer = Response::builder().status(101).version(version);
    for (name, value) in fields {
        answer = answer.header(*name, *value);
    }
    answer.extension(UpstreamTunnel::new(tokio::io::duplex(1).0)).body(()).unwrap()
}

#[tokio::test]
async fn rfc8441_4_an_extended_connect_is_a_get_to_the_upstream() {
    let mut keys = Vec::new();
    for _ in 0..2 {
        let fields =
            [("sec-websocket-version", "13"), ("sec-websocket-key", "the client's"), ("origin", "o")];
        let answer = |key: &str| {
            let fields = [
                ("connection", "upgrade, x-hop"),
                ("upgrade", "websocket"),
                ("x-hop", "1"),
                ("content-length", "0"),
                ("sec-websocket-protocol", "chat"),
                ("sec-websocket-accept", &accept(key)),
            ];
            switched(Version::HTTP_11, &fields)
        };
        let (seen, result) = exchange(ProxyOptions::default(), two("websocket", &fields), answer).await;
        let seen = seen.unwrap();
        assert_eq!((seen.method(), seen.version()), (&Method::GET, Version::HTTP_11));
        assert_eq!(seen.uri(), "/chat?x");
        for (name, value) in [
            ("host", "a.test"),
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("origin", "o"),
        ] {
            assert_eq!(seen.headers().get_all(name).iter().collect::<Vec<_>>(), [value], "{name}");
        }
        assert!(seen.extensions().get::<Protocol>().is_none());
        keys.push(seen.headers()["sec-websocket-key"].clone());
        assert_eq!(seen.headers().get_all("sec-websocket-key").iter().count(), 1);
        let response = result.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.extensions().get::<TunnelBegun>().is_some());
        let names: Vec<_> = response.headers().keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["sec-websocket-protocol"]);
    }
    assert_ne!(keys[0], keys[1]);
    assert_eq!(STANDARD.decode(keys[0].as_bytes()).unwrap().len(), 16);
}

#[tokio::test]
async fn what_answers_are_a_tunnel() {
    const H1: Version = Version::HTTP_11;
    const H2: Version = Version::HTTP_2;
    let (right, wrong) = (Some(true), Some(false));
    // the upstream's version, its `Upgrade`, its accept, what a client of HTTP/1.1 and one of HTTP/2 get
    for (version, status, upgrade, accepts, of_one, of_two) in [
        (H1, 101, "websocket", right, 101, 200),
        (H1, 101, "WebSocket", right, 101, 200),
        (H1, 101, "websocket", wrong, 502, 502),
        (H1, 101, "websocket", None, 502, 502),
        (H1, 101, "h2c", right, 502, 502),
        (H1, 101, "websocket, h2c", right, 502, 502),
        (H1, 101, "", right, 502, 502),
        // it has no key, and what it says of one is its own
        (H2, 101, "websocket", None, 101, 200),
        (H2, 101, "websocket", wrong, 101, 200),
        (H2, 101, "irc", None, 502, 502),
        (H1, 200, "websocket", right, 200, 502),
        (H1, 204, "", None, 204, 502),
        (H2, 200, "", None, 200, 502),
        (H1, 302, "", None, 302, 302),
        (H1, 403, "websocket", right, 403, 403),
        (H1, 426, "websocket", None, 426, 426),
        (H1, 500, "", None, 500, 500),
    ] {
        let case = format!("{version:?} {status} {upgrade:?} {accepts:?}");
        let answer = |key: &str| {
            let accept = accept(if accepts == wrong { "another" } else { key });
            let mut fields = vec![("upgrade", upgrade), ("connection", "upgrade")];
            fields.extend(accepts.map(|_| ("sec-websocket-accept", &*accept)));
            let mut answer = switched(version, &fields);
            *answer.status_mut() = http::StatusCode::from_u16(status).unwrap();
            answer
        };
        for (is_one, expected) in [(true, of_one), (false, of_two)] {
            let tunnels = Tunnels::new(1);
            let request =
                if is_one { one("websocket", &[("sec-websocket-key", KEY)]) } else { two("websocket", &[]) };
            let result = exchange(ProxyOptions::new(tunnels.clone()), request, answer).await.1;
            match result {
                Ok(response) => {
                    assert_eq!(response.status(), expected, "{case}");
                    let begun = response.extensions().get::<TunnelBegun>().is_some();
                    assert_eq!(begun, status == 101, "{case}");
                    let headers = response.headers();
                    if begun && is_one {
                        assert_eq!(headers["sec-websocket-accept"], accept(KEY), "{case}");
                        assert_eq!(
                            (&headers["connection"], &headers["upgrade"]),
                            (&"upgrade".parse().unwrap(), &"websocket".parse().unwrap())
                        );
                    } else if begun {
                        assert!(headers.is_empty(), "{case}: {headers:?}");
                    }
                }
                Err(fault) => {
                    assert_eq!(fault.kind(), Kind::Upstream(UpstreamFault::Protocol), "{case}");
                    assert_eq!(fault.status(), expected, "{case}");
                }
            }
            // the mock's client has gone away: no place is held
            tokio::task::yield_now().await;
            assert_eq!(tunnels.open(), 0, "{case}");
        }
    }
}

#[tokio::test]
async fn what_never_reaches_the_upstream() {
    let mut no_driver = two("websocket", &[]);
    no_driver.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
    let plain = with(Request::connect("a.test:443").version(Version::HTTP_2), &[]);
    let mut no_path = two("websocket", &[]);
    *no_path.uri_mut() = "a.test".parse().unwrap();
    let mut dots = two("websocket", &[]);
    *dots.uri_mut() = "https://a.test/a/../b".parse().unwrap();
    for (what, request, fault) in [
        ("another protocol", two("connect-udp", &[]), ClientFault::MethodNotImplemented),
        ("h2c", two("h2c", &[]), ClientFault::MethodNotImplemented),
        ("a driver that can not", no_driver, ClientFault::MethodNotImplemented),
        ("a plain CONNECT", plain, ClientFault::MethodNotImplemented),
        ("a length", two("websocket", &[("content-length", "1")]), ClientFault::Malformed),
        ("Connection", two("websocket", &[("connection", "upgrade")]), ClientFault::Malformed),
        ("Upgrade", two("websocket", &[("upgrade", "websocket")]), ClientFault::Malformed),
        ("another host", two("websocket", &[("host", "b.test")]), ClientFault::Malformed),
        ("no path", no_path, ClientFault::Malformed),
        ("dot segments", dots, ClientFault::Malformed),
    ] {
        let tunnels = Tunnels::new(1);
        let answer = |_: &str| switched(Version::HTTP_2, &[("upgrade", "websocket")]);
        let (seen, result) = exchange(ProxyOptions::new(tunnels.clone()), request, answer).await;
        assert!(seen.is_none(), "{what}");
        assert_eq!(result.unwrap_err().kind(), Kind::Client(fault), "{what}");
        assert_eq!(tunnels.open(), 0, "{what}");
    }
}

#[tokio::test]
async fn other_protocols_have_no_key() {
    let upgrades = UpgradeProtocols::none().allow("connect-udp").unwrap();
    let options = ProxyOptions::default().with_upgrades(upgrades);
    let answer = |key: &str| {
        assert_eq!(key, "");
        switched(Version::HTTP_11, &[("upgrade", "connect-udp"), ("connection", "upgrade")])
    };
    for (request, status) in [(one("connect-udp", &[]), 101), (two("connect-udp", &[]), 200)] {
        let (seen, result) = exchange(options.clone(), request, answer).await;
        assert_eq!(seen.unwrap().headers()["upgrade"], "connect-udp");
        assert_eq!(result.unwrap().status(), status);
    }
    let (seen, result) = exchange(options, two("websocket", &[]), answer).await;
    assert!(seen.is_none());
    assert_eq!(result.unwrap_err().status(), 501);
}
