use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Method, StatusCode, header};
use http_body_util::BodyExt as _;
use portcullis_cache::{CacheOptions, StatusTtl};
use portcullis_middleware::concurrency::{ConcurrencyLayer, ConcurrencyOptions};
use tokio::sync::Semaphore;

use super::*;
use crate::plan::CsrfPlan;

/// An origin that counts, and answers by the path; `/held` as soon as it may.
fn origin(asked: &Arc<AtomicUsize>, open: &Arc<Semaphore>) -> EdgeService {
    let (asked, open) = (Arc::clone(asked), Arc::clone(open));
    EdgeService::new(tower::service_fn(move |request: Request<Body>| {
        let number = asked.fetch_add(1, Ordering::Relaxed);
        let open = Arc::clone(&open);
        async move {
            match request.uri().path() {
                "/held" => drop(open.acquire().await.expect("it is never closed")),
                "/bad" => assert_ne!(number, 0, "the first one fails"),
                _ => tokio::task::yield_now().await,
            }
            let mut response = Response::new(Body::from(request.method().to_string()));
            let fresh = header::HeaderValue::from_static("max-age=60");
            response.headers_mut().insert(header::CACHE_CONTROL, fresh);
            Ok(response)
        }
    }))
}

async fn get(service: &EdgeService, path: &str) -> StatusCode {
    let request = Request::get(format!("http://a.test{path}")).body(Body::empty()).unwrap();
    let response = service.send(request).await.unwrap();
    let status = response.status();
    response.into_body().collect().await.unwrap();
    status
}

#[tokio::test]
async fn what_a_layer_behind_the_cache_says_is_not_the_origins_word() {
    let (asked, open) = (Arc::default(), Arc::new(Semaphore::new(0)));
    let ttl = StatusTtl { statuses: 400..=599, ttl: std::time::Duration::from_secs(60), overrides: true };
    let rules = CacheRules::default().with_ttl([ttl]);
    let shaping = Shaping {
        concurrency: Some(ConcurrencyLayer::new(ConcurrencyOptions::new(1).with_queue(0))),
        ..Shaping::default()
    };
    let cache = Some(CacheLayer::new(CacheOptions::default()).with_rules(rules));
    let chain = Chain { cache, shaping, ..Chain::default() };
    let service = chain.around(origin(&asked, &open), |_| None);
    // a panic is not stored
    assert_eq!(get(&service, "/bad").await, 500);
    assert_eq!(get(&service, "/bad").await, 200);
    let held = tokio::spawn({
        let service = service.clone();
        async move { get(&service, "/held").await }
    });
    while asked.load(Ordering::Relaxed) < 3 {
        tokio::task::yield_now().await;
    }
    // nor is it when there was no place, and nothing follows from it for the next ones
    assert_eq!(get(&service, "/cold").await, 503);
    open.add_permits(1);
    assert_eq!(held.await.unwrap(), 200);
    let (one, two, three) = (get(&service, "/cold"), get(&service, "/cold"), get(&service, "/cold"));
    let (one, two, three) = tokio::join!(one, two, three);
    assert_eq!([one, two, three], [200; 3]);
    assert_eq!(asked.load(Ordering::Relaxed), 4, "they had one answer together");
}

#[tokio::test]
async fn pages_of_other_sites_open_no_websocket_by_whichever_protocol() {
    let (asked, open) = (Arc::default(), Arc::new(Semaphore::new(0)));
    let csrf = CsrfPlan::default().with_trusted(["https://app.test"]);
    let csrf = Some(admission::csrf(&csrf).unwrap());
    let chain = Chain { admission: Admission { csrf, ..Admission::default() }, ..Chain::default() };
    let service = chain.around(origin(&asked, &open), |_| None);
    for (method, upgrade, from, status) in [
        (Method::GET, true, "https://evil.test", 403),
        (Method::GET, true, "https://app.test", 200),
        (Method::GET, true, "https://a.test", 200),
        (Method::GET, false, "https://evil.test", 200),
        // as HTTP/2 and HTTP/3 have it
        (Method::CONNECT, false, "https://evil.test", 403),
        (Method::CONNECT, false, "https://app.test", 200),
    ] {
        let request = Request::builder().method(&method).uri("https://a.test/").header("origin", from);
        let mut request = request.header("host", "a.test").body(Body::empty()).unwrap();
        if upgrade {
            request.headers_mut().insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
        }
        let response = service.send(request).await.unwrap();
        assert_eq!(response.status(), status, "{method} {upgrade} {from}");
        if status == 200 {
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, method.as_str(), "it is what it was");
        }
    }
}

#[test]
fn a_plan_is_refused_where_it_would_panic_or_break_a_message() {
    use crate::plan::{BasicAuthPlan, CorsOrigins, CorsPlan};
    use header::{HeaderName, HeaderValue};
    let listed = |origin| CorsOrigins::List(vec![HeaderValue::from_static(origin)]);
    let all = || HeaderName::from_bytes(b"*").unwrap();
    let plain = CorsPlan { origins: listed("https://a.test"), credentials: true, ..CorsPlan::default() };
    for (list, cors) in [
        ("origins", CorsPlan { origins: listed("*"), credentials: false, ..CorsPlan::default() }),
        ("methods", CorsPlan { methods: vec![Method::from_bytes(b"*").unwrap()], ..plain.clone() }),
        ("headers", CorsPlan { headers: vec![all()], ..plain.clone() }),
        ("expose", CorsPlan { expose: vec![all()], ..plain.clone() }),
    ] {
        let found = admission::check_cors(&cors);
        assert!(matches!(&found, Err(crate::PlanFault::CorsWildcard(told)) if *told == list), "{found:?}");
    }
    // without credentials it stands for all
    let open = CorsPlan { headers: vec![all()], credentials: false, ..plain };
    assert!(admission::check_cors(&open).is_ok());
    drop(admission::cors(&open));

    let mut plan = Plan::default();
    let mut basic_auth = BasicAuthPlan::new("users.txt");
    basic_auth.options = basic_auth.options.with_user_field(Some(header::CONTENT_LENGTH));
    plan.chain.basic_auth = Setting::Own(basic_auth);
    let found = crate::parts::check(&plan);
    assert!(matches!(&found, Err(crate::PlanFault::ProtectedField(name)) if name == "content-length"));
}
