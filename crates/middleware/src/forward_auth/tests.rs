use std::sync::Mutex;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use tower::ServiceExt;
use tower_test::mock;

use super::*;
use crate::test_support::{NotReady, conn, get, plain, secure, with_conn};

type Body = Full<Bytes>;
type Asked = mock::Mock<Request<()>, Response<Body>>;
type Asks = mock::Handle<Request<()>, Response<Body>>;

fn options() -> ForwardAuthOptions {
    ForwardAuthOptions::new(PathAndQuery::from_static("/check?x=1"))
}

/// Keeps what came through.
type Seen = Arc<Mutex<Option<Request<()>>>>;

/// The answer to a request, where the service answers the question so.
async fn ask(
    options: ForwardAuthOptions,
    request: Request<()>,
    answer: impl FnOnce(Request<()>) -> Option<Response<Body>>,
) -> (Response<Body>, Option<Request<()>>) {
    let (asked, mut asks): (Asked, Asks) = mock::pair();
    let seen = Seen::default();
    let inner = tower::service_fn({
        let seen = Arc::clone(&seen);
        move |request: Request<()>| {
            *seen.lock().unwrap() = Some(request);
            let response = Response::builder().header("set-cookie", "inner=1").body(Body::from("inner"));
            std::future::ready(Ok::<_, std::convert::Infallible>(response.unwrap()))
        }
    });
    let layer = ForwardAuthLayer::new(options, asked);
    let response = tokio::spawn(layer.layer(inner).oneshot(request));
    let (question, reply) = asks.next_request().await.unwrap();
    match answer(question) {
        Some(answer) => reply.send_response(answer),
        None => std::mem::forget(reply),
    }
    let response = response.await.unwrap().unwrap();
    let request = seen.lock().unwrap().take();
    (response, request)
}

fn answer(status: u16) -> Response<Body> {
    Response::builder().status(status).header("x-told", "1").body(Body::from("said")).unwrap()
}

#[tokio::test]
async fn what_an_answer_does() {
    for status in [200, 202, 204] {
        let (response, request) = ask(options(), get("/"), |_| Some(answer(status))).await;
        assert_eq!(response.status(), 200, "{status}");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "inner");
        let request = request.unwrap();
        assert_eq!(request.extensions().get(), Some(&Authenticated::new("", Scheme::Forward)));
    }
    for status in [401, 403, 425, 302, 303, 307] {
        let (response, request) = ask(options(), get("/"), |_| Some(answer(status))).await;
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["x-told"], "1");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "said");
        assert!(request.is_none(), "{status}");
    }
    for (status, told) in [(404, 500), (400, 500), (304, 500), (100, 500), (500, 503), (502, 503), (599, 503)]
    {
        let (response, request) = ask(options(), get("/"), |_| Some(answer(status))).await;
        assert_eq!(response.status(), told, "{status}");
        assert!(!response.headers().contains_key("x-told"));
        assert!(request.is_none(), "{status}");
    }
}

#[tokio::test]
async fn a_request_goes_to_the_service_that_was_ready() {
    use std::sync::atomic::Ordering;
    use tower::Service;
    let (asked, mut asks): (Asked, Asks) = mock::pair();
    let (inner, calls) = NotReady::<Body>::new();
    let mut service = ForwardAuthLayer::new(options(), asked).layer(inner);
    for count in 1..=3 {
        let response = service.ready().await.unwrap().call(get("/"));
        let (response, ()) = tokio::join!(response, async {
            asks.next_request().await.unwrap().1.send_response(answer(200));
        });
        assert_eq!((response.unwrap().status().as_u16(), calls.load(Ordering::Relaxed)), (200, count));
    }
}

#[tokio::test]
async fn a_client_without_an_address_is_told_of_by_none() {
    let unix = Arc::new(conn("0.0.0.0:0"));
    let mut asked = None;
    ask(options(), with_conn(get("/"), unix), |question| {
        asked = Some(question);
        Some(answer(200))
    })
    .await;
    assert!(!asked.unwrap().headers().contains_key("x-forwarded-for"));
}

#[tokio::test(start_paused = true)]
async fn no_answer_is_none() {
    let started = tokio::time::Instant::now();
    let (response, request) = ask(options(), get("/"), |_| None).await;
    assert_eq!((response.status().as_u16(), request.is_none()), (503, true));
    assert_eq!(started.elapsed().as_secs(), 5);
    // nor while the service is not even ready
    let (asked, mut asks): (Asked, Asks) = mock::pair();
    asks.allow(0);
    let inner = tower::service_fn(|_: Request<()>| {
        std::future::ready(Ok::<_, std::convert::Infallible>(answer(200)))
    });
    let layer = ForwardAuthLayer::new(options().with_timeout(Duration::from_secs(1)), asked);
    let response = layer.layer(inner).oneshot(get("/")).await.unwrap();
    assert_eq!(response.status(), 503);
    drop(asks);
    let response = layer.layer(inner).oneshot(get("/")).await.unwrap();
    assert_eq!(response.status(), 503);
}

#[tokio::test]
async fn the_question() {
    let mut request = with_conn(get("/a%20b?q=1"), secure());
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_11;
    for (name, value) in [
        ("host", "a.test:8443"),
        ("cookie", "session=1"),
        ("cookie", "b=2"),
        ("authorization", "Bearer x"),
        ("content-length", "5"),
        ("content_length", "5"),
        ("content-type", "text/plain"),
        ("connection", "keep-alive, X-Secret"),
        ("x-secret", "1"),
        ("upgrade", "websocket"),
        ("if-none-match", "\"a\""),
        ("range", "bytes=0-1"),
        ("x-original-uri", "/public"),
        ("X_Original_URI", "/public"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-method", "GET"),
        ("forwarded", "for=127.0.0.1"),
        ("accept", "text/html"),
    ] {
        request.headers_mut().append(HeaderName::try_from(name).unwrap(), HeaderValue::from_static(value));
    }
    let mut asked = None;
    ask(options(), request, |question| {
        asked = Some(question);
        Some(answer(200))
    })
    .await;
    let question = asked.unwrap();
    assert_eq!(question.method(), http::Method::GET);
    assert_eq!(question.uri(), "https://a.test:8443/check?x=1");
    assert!(question.extensions().get::<Arc<portcullis_conn::ConnInfo>>().is_some());
    let mut fields: Vec<_> = question
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    fields.sort();
    let expected = [
        "accept: text/html",
        "authorization: Bearer x",
        "cookie: session=1; b=2",
        "host: a.test:8443",
        "x-forwarded-for: 198.51.100.7",
        "x-forwarded-host: a.test:8443",
        "x-forwarded-method: POST",
        "x-forwarded-proto: https",
        "x-forwarded-uri: /a%20b?q=1",
        "x-original-method: POST",
        "x-original-uri: /a%20b?q=1",
    ];
    assert_eq!(fields, expected);
}

#[tokio::test]
async fn a_scheme_that_is_told_by_who_is_trusted() {
    for (conn, told, expected) in [
        (plain(), None, "http"),
        (plain(), Some(true), "https"),
        (secure(), Some(false), "http"),
        (secure(), None, "https"),
    ] {
        let mut request = with_conn(get("/"), conn);
        if let Some(told) = told {
            request.extensions_mut().insert(crate::ClientSecure(told));
        }
        let mut asked = None;
        ask(options(), request, |question| {
            asked = Some(question);
            Some(answer(200))
        })
        .await;
        let question = asked.unwrap();
        assert_eq!(question.headers()["x-forwarded-proto"], expected);
        assert_eq!(question.extensions().get(), told.map(crate::ClientSecure).as_ref());
    }
}

#[tokio::test]
async fn a_host_of_its_own() {
    let options = options().with_host(Some(HeaderValue::from_static("auth.test")));
    let mut asked = None;
    let request = with_conn(get("http://a.test/"), plain());
    ask(options, request, |question| {
        asked = Some(question);
        Some(answer(200))
    })
    .await;
    let question = asked.unwrap();
    assert_eq!(question.uri(), "http://auth.test/check?x=1");
    assert_eq!(question.headers()["host"], "auth.test");
    assert_eq!(question.headers()["x-forwarded-host"], "a.test");
}

#[tokio::test]
async fn fields_of_the_answer_go_on_and_the_clients_do_not() {
    let field = HeaderName::from_static;
    let options = options()
        .with_request_field(field("x-user"))
        .with_request_field(field("x-groups"))
        .with_response_field(field("set-cookie"))
        .with_user_field(Some(field("x-user")));
    let mut request = get("/");
    for name in ["x-user", "X_User", "x-groups", "x_groups", "x-other"] {
        request.headers_mut().append(HeaderName::try_from(name).unwrap(), HeaderValue::from_static("root"));
    }
    let (response, request) = ask(options, request, |_| {
        let answer = Response::builder().header("x-user", "alice").header("x-told", "1");
        Some(answer.header("set-cookie", "a=1").header("set-cookie", "b=2").body(Body::default()).unwrap())
    })
    .await;
    let request = request.unwrap();
    let fields: Vec<_> =
        request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    assert_eq!(fields.len(), 2);
    assert!(fields.contains(&("x-user", "alice")) && fields.contains(&("x-other", "root")));
    let cookies: Vec<_> = response.headers().get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["inner=1", "a=1", "b=2"]);
    assert_eq!(response.extensions().get(), Some(&Authenticated::new("alice", Scheme::Forward)));
}
