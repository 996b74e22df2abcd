use super::{options::YEAR, *};
use crate::test_support::{Body, get, ok, plain, secure, through, with_conn};
use http::header::{X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS};
use std::time::Duration;

async fn fields(options: SecurityHeaders, request: Request<()>) -> HeaderMap {
    through(&SecurityHeadersLayer::new(&options), ok, request).await.headers().clone()
}

#[tokio::test]
async fn the_preset_over_tls() {
    let headers = fields(SecurityHeaders::default(), with_conn(get("/"), secure())).await;
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert_eq!(headers["x-frame-options"], "SAMEORIGIN");
    assert_eq!(headers["referrer-policy"], "strict-origin-when-cross-origin");
    assert_eq!(headers["strict-transport-security"], "max-age=31536000");
    assert_eq!(headers.len(), 4);
}

#[tokio::test]
async fn hsts_only_where_the_connection_is_known_to_be_encrypted() {
    for request in [with_conn(get("/"), plain()), get("/")] {
        let headers = fields(SecurityHeaders::default(), request).await;
        assert!(!headers.contains_key(STRICT_TRANSPORT_SECURITY));
        assert_eq!(headers.len(), 3);
    }
}

#[tokio::test]
async fn hsts_by_the_clients_own_connection_where_that_is_told() {
    for (conn, told, expected) in
        [(plain(), true, true), (secure(), true, true), (plain(), false, false), (secure(), false, false)]
    {
        let mut request = with_conn(get("/"), conn);
        request.extensions_mut().insert(crate::ClientSecure(told));
        let headers = fields(SecurityHeaders::default(), request).await;
        assert_eq!(headers.contains_key(STRICT_TRANSPORT_SECURITY), expected, "{told}");
    }
}

#[tokio::test]
async fn hsts_forms() {
    let table = [
        (Some(Duration::ZERO), false, Some("max-age=0")),
        (Some(Duration::from_secs(60)), true, Some("max-age=60; includeSubDomains")),
        (Some(YEAR), true, Some("max-age=31536000; includeSubDomains")),
        (None, true, None),
    ];
    for (age, subdomains, expected) in table {
        let options = SecurityHeaders::default().with_hsts(age).with_hsts_include_subdomains(subdomains);
        let headers = fields(options, with_conn(get("/"), secure())).await;
        let got = headers.get(STRICT_TRANSPORT_SECURITY).map(|value| value.to_str().unwrap());
        assert_eq!(got, expected);
    }
}

#[tokio::test]
async fn what_the_application_set_stays_and_is_not_doubled() {
    let answer = |_| {
        let mut response = Response::new(Body::default());
        response.headers_mut().append(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        response.headers_mut().append(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=1"));
        response
    };
    let layer = SecurityHeadersLayer::new(&SecurityHeaders::default());
    let response = through(&layer, answer, with_conn(get("/"), secure())).await;
    let all = |name| response.headers().get_all(name).iter().collect::<Vec<_>>();
    assert_eq!(all(X_FRAME_OPTIONS), ["DENY"]);
    assert_eq!(all(STRICT_TRANSPORT_SECURITY), ["max-age=1"]);
    assert_eq!(all(X_CONTENT_TYPE_OPTIONS), ["nosniff"]);
}

#[tokio::test]
async fn every_field_can_be_chosen() {
    let options = SecurityHeaders::default()
        .with_nosniff(false)
        .with_frame_options(Some(FrameOptions::Deny))
        .with_referrer_policy(None)
        .with_hsts(None)
        .with_content_security_policy(Some(HeaderValue::from_static("default-src 'self'")))
        .with_permissions_policy(Some(HeaderValue::from_static("camera=()")));
    let headers = fields(options, with_conn(get("/"), secure())).await;
    assert_eq!(headers["x-frame-options"], "DENY");
    assert_eq!(headers["content-security-policy"], "default-src 'self'");
    assert_eq!(headers["permissions-policy"], "camera=()");
    assert_eq!(headers.len(), 3);
}

#[tokio::test]
async fn interim_responses_pass_untouched() {
    let answer = |_| Response::builder().status(101).body(Body::default()).unwrap();
    let layer = SecurityHeadersLayer::new(&SecurityHeaders::default());
    let response = through(&layer, answer, with_conn(get("/"), secure())).await;
    assert!(response.headers().is_empty());
}

#[tokio::test]
async fn presets_are_sound_and_say_what_they_are() {
    for (preset, expected) in
        [(SecurityHeaders::default(), 4), (SecurityHeaders::strict(), 8), (SecurityHeaders::api(), 5)]
    {
        assert_eq!(preset.check(), Ok(()));
        let headers = fields(preset, with_conn(get("/"), secure())).await;
        assert_eq!(headers.len(), expected, "{headers:?}");
        assert!(!headers.contains_key("x-xss-protection"));
    }
}

#[test]
fn what_browsers_would_pass_over() {
    let value = HeaderValue::from_static;
    let headers = SecurityHeaders::default;
    let preload = headers().with_hsts_preload(true);
    for (options, sound) in [
        (preload.clone(), false),
        (preload.clone().with_hsts_include_subdomains(true), true),
        (preload.clone().with_hsts_include_subdomains(true).with_hsts(Some(YEAR / 2)), false),
        (preload.with_hsts_include_subdomains(true).with_hsts(None), false),
        (headers().with_content_security_policy(Some(value("default-src self"))), false),
        (headers().with_content_security_policy_report_only(Some(value("default-src self"))), false),
        (headers().with_referrer_policy(Some(value("never"))), false),
        (headers().with_referrer_policy(Some(value("no-referrer, strict-origin"))), true),
        (headers().with_cross_origin_opener_policy(Some(value("same-site"))), false),
        (headers().with_cross_origin_resource_policy(Some(value("same-site"))), true),
        (headers().with_cross_origin_embedder_policy(Some(value("require-corp"))), true),
        (headers().with_cross_origin_opener_policy(Some(value("same-origin; report-to=\"x\""))), true),
        (headers().with_cross_origin_embedder_policy(Some(value("require-corp;report-to=\"x y\""))), true),
        (headers().with_cross_origin_opener_policy(Some(value("same-site; report-to=\"x\""))), false),
        (headers().with_cross_origin_opener_policy(Some(value("same-origin; report-to=x"))), false),
        (headers().with_cross_origin_opener_policy(Some(value("same-origin ;report-to=\"x\""))), false),
        (headers().with_cross_origin_opener_policy(Some(value("same-origin; report=\"x\""))), false),
        (headers().with_cross_origin_opener_policy(Some(value("same-origin; report-to=\"x\"y\""))), false),
        (headers().with_cross_origin_opener_policy(Some(value("same-origin, unsafe-none"))), false),
        (headers().with_cross_origin_resource_policy(Some(value("same-site; report-to=\"x\""))), false),
        (headers().with_permissions_policy(Some(value("camera 'none'"))), false),
        (headers().with_permissions_policy(Some(value("camera=(), usb=(self)"))), true),
    ] {
        assert_eq!(options.check().is_ok(), sound, "{options:?}");
    }
}

#[tokio::test]
async fn what_the_application_set_is_replaced_or_removed_by_choice() {
    let answer = |_| {
        let mut response = Response::new(Body::default());
        for (name, value) in
            [("x-frame-options", "DENY"), ("x-frame-options", "x"), ("server", "x/1"), ("date", "x")]
        {
            response.headers_mut().append(name, HeaderValue::from_static(value));
        }
        response
    };
    let options = SecurityHeaders::default()
        .with_replace(true)
        .with_remove(vec![http::header::SERVER])
        .with_hsts_preload(true);
    let response = through(&SecurityHeadersLayer::new(&options), answer, with_conn(get("/"), secure())).await;
    let headers = response.headers();
    assert_eq!(headers.get_all("x-frame-options").iter().collect::<Vec<_>>(), ["SAMEORIGIN"]);
    assert_eq!(headers["strict-transport-security"], "max-age=31536000; preload");
    assert!(!headers.contains_key("server") && headers.contains_key("date"));
}
