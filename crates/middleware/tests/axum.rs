//! All layers at once, from an axum app that uses no other crate of ours but `conn`.

use std::{
    net::SocketAddr,
    num::NonZeroU32,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use http::{Request, StatusCode, Version};
use http_body_util::BodyExt;
use portcullis_conn::{ConnInfo, TlsInfo, Transport};
use portcullis_middleware::{
    access_log::{AccessLogLayer, AccessRecord},
    alt_svc::AltSvcLayer,
    filter::{FilterLayer, FilterRules},
    header_limits::HeaderLimitsLayer,
    health::HealthLayer,
    metrics::{RequestMetricsLayer, RequestObserver},
    rate_limit::{RateLimitLayer, RateLimitOptions, RateRule},
    redirect::RedirectToHttps,
    security_headers::{SecurityHeaders, SecurityHeadersLayer},
};
use tower::ServiceExt;

#[derive(Default)]
struct Count(AtomicU64);

impl RequestObserver for Count {
    fn on_request(&self, _: Version) {}

    fn on_response(&self, _: Version, _: StatusCode, _: Duration) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn on_end(&self, _: Version, _: bool) {}
}

fn request(target: &str, port: u16) -> Request<Body> {
    let peer = SocketAddr::from(([198, 51, 100, 7], port));
    let info = ConnInfo::new(Transport::Tcp, peer, peer).with_tls(TlsInfo::default());
    let mut request =
        Request::get(target).header("host", "a.example").body(Body::empty()).expect("a valid request");
    request.extensions_mut().insert(Arc::new(info));
    request
}

#[tokio::test]
async fn all_layers_compose_under_axum() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&lines);
    let sink = move |record: &AccessRecord| {
        let status = record.status.map_or(0, |status| status.as_u16());
        into.lock().unwrap().push(format!("{} {status} {}", record.target(), record.bytes_sent));
    };
    let count = Arc::new(Count::default());
    let rule = RateRule::new(NonZeroU32::new(2).unwrap(), Duration::from_secs(3600));
    let rate = RateLimitOptions::new(rule);
    let app = Router::new()
        .route("/", get(|| async { "hello" }))
        .layer(FilterLayer::new(FilterRules::deny_prefixes(["/admin"])))
        .layer(RateLimitLayer::new(&rate))
        .layer(HeaderLimitsLayer::default())
        .layer(HealthLayer::new())
        .layer(AltSvcLayer::new(443))
        .layer(SecurityHeadersLayer::new(&SecurityHeaders::default()))
        .layer(RequestMetricsLayer::new(Arc::clone(&count)))
        .layer(AccessLogLayer::new(Arc::new(sink)));

    let table = [("/", 200, "hello"), ("/admin/x", 404, ""), ("/", 429, ""), ("/health", 200, "ok\n")];
    for (target, status, text) in table {
        let response = app.clone().oneshot(request(target, 1000)).await.unwrap();
        assert_eq!(response.status(), status, "{target}");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        assert_eq!(response.headers()["alt-svc"], "h3=\":443\"; ma=86400");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), text);
    }
    assert_eq!(*lines.lock().unwrap(), ["/ 200 5", "/admin/x 404 0", "/ 429 0", "/health 200 3"]);
    assert_eq!(count.0.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn the_redirect_is_an_axum_fallback() {
    let app = Router::<()>::new().fallback_service(RedirectToHttps::<Body>::new(8443));
    let response = app.oneshot(request("/x?y", 1)).await.unwrap();
    assert_eq!(response.status(), 308);
    assert_eq!(response.headers()["location"], "https://a.example:8443/x?y");
}
