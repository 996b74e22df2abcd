use std::{collections::VecDeque, convert::Infallible, net::IpAddr, sync::Mutex, task::Waker};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use portcullis_conn::{TlsInfo, TlsVersion};
use tower::{ServiceExt, service_fn};

use super::*;
use crate::{
    ClientIp,
    test_support::{conn, get, ok, with_conn},
};

type Records = Arc<Mutex<Vec<AccessRecord>>>;

fn sink() -> (Records, AccessLogLayer<dyn Sink>) {
    let records = Records::default();
    let into = Arc::clone(&records);
    let sink = move |record: &AccessRecord| into.lock().unwrap().push(record.clone());
    (records, AccessLogLayer::new(Arc::new(sink)))
}

fn only(records: &Records) -> AccessRecord {
    let records = records.lock().unwrap();
    assert_eq!(records.len(), 1);
    records[0].clone()
}

/// A body of scripted frames; knows nothing of its end unless it is told to.
#[derive(Debug)]
struct Script {
    frames: VecDeque<Result<Frame<Bytes>, &'static str>>,
    knows_its_end: bool,
}

impl Script {
    fn new(chunks: &[&'static str]) -> Self {
        let frames =
            chunks.iter().map(|chunk| Ok(Frame::data(Bytes::from_static(chunk.as_bytes())))).collect();
        Self { frames, knows_its_end: false }
    }

    fn then(mut self, frame: Result<Frame<Bytes>, &'static str>) -> Self {
        self.frames.push_back(frame);
        self
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        Poll::Ready(self.get_mut().frames.pop_front())
    }

    fn is_end_stream(&self) -> bool {
        self.knows_its_end && self.frames.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(7)
    }
}

async fn answer(
    layer: &AccessLogLayer<dyn Sink>,
    request: Request<()>,
    response: Response<Script>,
) -> ResponseBody<Script, dyn Sink> {
    let mut response = Some(response);
    let inner = service_fn(move |_: Request<RequestBody<Full<Bytes>>>| {
        std::future::ready(Ok::<_, Infallible>(response.take().unwrap()))
    });
    layer.layer(inner).oneshot(request.map(|()| Full::<Bytes>::default())).await.unwrap().into_body()
}

/// A request without content, as most are.
fn bare(target: &str) -> Request<Full<Bytes>> {
    get(target).map(|()| Full::default())
}

#[tokio::test]
async fn every_field_of_the_record() {
    let (records, layer) = sink();
    let mut tls = TlsInfo::default();
    tls.version = Some(TlsVersion::Tls13);
    let info = Arc::new(conn("198.51.100.7:4000").with_tls(tls));
    let mut request = with_conn(get("https://a.example/x?y=1"), Arc::clone(&info));
    *request.method_mut() = Method::PUT;
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().insert("host", HeaderValue::from_static("b.example"));
    request.headers_mut().insert("user-agent", HeaderValue::from_static("ua/1"));
    request.headers_mut().insert("referer", HeaderValue::from_static("https://r.example/"));
    let mut response = Response::new(Script::new(&["abc", "defg"]));
    *response.status_mut() = StatusCode::CREATED;
    response.extensions_mut().insert(UpstreamName("app".into()));

    let body = answer(&layer, request, response).await;
    assert!(records.lock().unwrap().is_empty(), "recorded before the body's end");
    body.collect().await.unwrap();
    let record = only(&records);
    assert_eq!(record.method, Method::PUT);
    assert_eq!(record.target(), "/x?y=1");
    assert_eq!(record.host(), Some(&b"a.example"[..]));
    assert_eq!(record.version, Version::HTTP_2);
    assert_eq!(record.user_agent.as_ref().unwrap(), "ua/1");
    assert_eq!(record.referer.as_ref().unwrap(), "https://r.example/");
    assert_eq!(record.client_ip, Some("198.51.100.7".parse::<IpAddr>().unwrap()));
    assert_eq!(record.conn_id(), Some(info.id));
    assert_eq!(record.tls_version(), Some(TlsVersion::Tls13));
    assert_eq!(record.status, Some(StatusCode::CREATED));
    assert_eq!(record.bytes_sent, 7);
    assert_eq!(record.upstream.as_deref(), Some("app"));
    assert_eq!(record.outcome, Outcome::Complete);
    assert!(record.time_to_head.unwrap() <= record.duration);
    assert!(record.time() <= std::time::SystemTime::now());
}

#[tokio::test]
async fn outcomes() {
    let script = Script::new;
    let mut trailers = HeaderMap::new();
    trailers.insert("x", HeaderValue::from_static("y"));
    // method, status, body, how many frames are read, what is recorded
    let table = [
        (Method::GET, 200, script(&["ab", "c"]), 3, Outcome::Complete, 3),
        (Method::GET, 200, script(&["ab"]).then(Ok(Frame::trailers(trailers))), 3, Outcome::Complete, 2),
        (Method::GET, 200, script(&["ab", "c"]), 1, Outcome::Aborted, 2),
        (Method::GET, 200, script(&["ab", "c"]), 2, Outcome::Aborted, 3),
        (Method::GET, 200, script(&["ab"]), 0, Outcome::Aborted, 0),
        (Method::GET, 200, script(&["ab"]).then(Err("reset")), 2, Outcome::Failed, 2),
        (Method::GET, 200, Script { knows_its_end: true, ..script(&["ab"]) }, 1, Outcome::Complete, 2),
        (Method::GET, 200, Script { knows_its_end: true, ..script(&[]) }, 0, Outcome::Complete, 0),
        (Method::HEAD, 200, script(&[]), 0, Outcome::Complete, 0),
        (Method::GET, 304, script(&[]), 0, Outcome::Complete, 0),
        (Method::GET, 204, script(&[]), 0, Outcome::Complete, 0),
        (Method::GET, 101, script(&[]), 0, Outcome::Complete, 0),
        (Method::CONNECT, 200, script(&[]), 0, Outcome::Complete, 0),
        (Method::CONNECT, 502, script(&["x"]), 0, Outcome::Aborted, 0),
    ];
    for (method, status, body, reads, outcome, bytes) in table {
        let (records, layer) = sink();
        let mut request = get("/");
        *request.method_mut() = method.clone();
        let response = Response::builder().status(status).body(body).unwrap();
        let mut body = answer(&layer, request, response).await;
        for _ in 0..reads {
            let _ = body.frame().await;
        }
        drop(body);
        let record = only(&records);
        assert_eq!((record.outcome, record.bytes_sent), (outcome, bytes), "{method} {status} {reads}");
        assert_eq!(record.is_aborted(), outcome == Outcome::Aborted);
    }
}

#[tokio::test]
async fn no_response_is_recorded_too() {
    let (records, layer) = sink();
    let failing = service_fn(|_: Request<RequestBody<Full<Bytes>>>| {
        std::future::ready(Err::<Response<Full<Bytes>>, _>("down"))
    });
    assert!(layer.layer(failing).oneshot(bare("/")).await.is_err());
    let record = only(&records);
    assert_eq!((record.status, record.time_to_head, record.outcome), (None, None, Outcome::Failed));

    let (records, layer) = sink();
    let hanging = service_fn(|_: Request<RequestBody<Full<Bytes>>>| {
        std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>()
    });
    let mut future = Box::pin(layer.layer(hanging).oneshot(bare("/")));
    assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(future);
    let record = only(&records);
    assert_eq!((record.status, record.outcome), (None, Outcome::Aborted));
}

#[tokio::test]
async fn hints_are_those_of_the_inner_body() {
    let (_records, layer) = sink();
    let body = Script { knows_its_end: true, ..Script::new(&["ab"]) };
    let mut body = answer(&layer, get("/"), Response::new(body)).await;
    assert_eq!(body.size_hint().exact(), Some(7));
    assert!(!body.is_end_stream());
    let _ = body.frame().await;
    assert!(body.is_end_stream());
}

#[tokio::test]
async fn hosts_targets_and_believed_addresses() {
    let mut connect = Request::connect("a.example:443").body(()).unwrap();
    connect.extensions_mut().insert(ClientIp("::ffff:203.0.113.9".parse().unwrap()));
    let mut origin = get("/p");
    origin.headers_mut().insert("host", HeaderValue::from_static("b.example:81"));
    let table = [
        (connect, "a.example:443", Some("a.example:443"), Some("203.0.113.9")),
        (origin, "/p", Some("b.example:81"), None),
        (get("*"), "*", None, None),
    ];
    for (request, target, host, client) in table {
        let (records, layer) = sink();
        let inner = service_fn(|request: Request<RequestBody<Full<Bytes>>>| {
            std::future::ready(Ok::<_, Infallible>(ok(request.map(|_| ()))))
        });
        drop(layer.layer(inner).oneshot(request.map(|()| Full::default())).await.unwrap());
        let record = only(&records);
        assert_eq!(record.target(), target);
        assert_eq!(record.host(), host.map(str::as_bytes));
        assert_eq!(record.client_ip, client.map(|ip| ip.parse().unwrap()));
    }
}

/// What a service makes of a request, for tests of what is put into either.
async fn told(
    options: RecordOptions,
    request: Request<Full<Bytes>>,
    make: impl Fn(&mut Request<RequestBody<Full<Bytes>>>) -> Response<Full<Bytes>>,
) -> AccessRecord {
    let (records, layer) = sink();
    let inner = service_fn(async |mut request: Request<RequestBody<Full<Bytes>>>| {
        let response = make(&mut request);
        let _ = request.into_body().collect().await;
        Ok::<_, Infallible>(response)
    });
    let response = layer.with_options(options).layer(inner).oneshot(request).await.unwrap();
    response.into_body().collect().await.unwrap();
    only(&records)
}

fn with_headers(mut request: Request<Full<Bytes>>, headers: &[(&'static str, &str)]) -> Request<Full<Bytes>> {
    for (name, value) in headers {
        request.headers_mut().append(*name, HeaderValue::from_str(value).unwrap());
    }
    request
}

struct Known(UpstreamDetails);

impl Upstream for Known {
    fn details(&self) -> UpstreamDetails {
        self.0.clone()
    }
}

#[tokio::test]
async fn details_are_what_was_asked_for() {
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let info = Arc::new(conn("198.51.100.7:4000"));
    let all = RecordOptions::default()
        .with_details(true)
        .with_received(true)
        .with_slot(true)
        .with_request_fields([http::header::ACCEPT])
        .with_response_fields([http::header::SERVER]);
    let timings = UpstreamDetails { attempts: 2, cluster: Some("app".into()), ..UpstreamDetails::default() };
    let make = |request: &mut Request<RequestBody<Full<Bytes>>>| {
        if let Some(slot) = request.extensions().get::<LogSlot>() {
            slot.set_route(Arc::new(RouteLog::new("shop")));
            slot.set_upstream(Known(timings.clone()));
        }
        let mut response = Response::new(Full::from("abc"));
        response.headers_mut().insert("server", HeaderValue::from_static("s"));
        let status = HeaderValue::from_static("origin; hit, portcullis; fwd=uri-miss; stored");
        response.headers_mut().insert("cache-status", status);
        response.headers_mut().insert("x-request-id", HeaderValue::from_static("theirs"));
        response.extensions_mut().insert(FaultReason("connect_failed"));
        response
            .extensions_mut()
            .insert(crate::identity::Authenticated::new("ann", crate::identity::Scheme::Basic));
        response
    };
    for number in 1..3 {
        let mut request = bare("/").map(|_| Full::from("twelve bytes"));
        request.extensions_mut().insert(Arc::clone(&info));
        let request = with_headers(
            request,
            &[
                ("accept", "a/b"),
                ("accept", "c/d"),
                ("traceparent", TRACE),
                ("x-request-id", "r-1"),
                ("cookie", "a=b"),
            ],
        );
        let record = told(all.clone(), request, make).await;
        assert_eq!(record.user.as_deref(), Some("ann"));
        let details = record.details.unwrap();
        assert_eq!(details.request_id.as_ref().unwrap(), "theirs");
        assert_eq!(details.trace_id(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        assert_eq!(details.conn_request, Some(number));
        assert_eq!(details.upstream(), Some(timings.clone()));
        assert_eq!(details.fault, Some("connect_failed"));
        assert_eq!(details.cache(), Some("uri-miss"));
        assert_eq!(details.route().unwrap().name.as_ref(), "shop");
        assert_eq!(details.received(), Some(12));
        let kept: Vec<_> =
            details.request_fields.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        assert_eq!(
            kept,
            [("accept", HeaderValue::from_static("a/b")), ("accept", HeaderValue::from_static("c/d"))]
        );
        assert_eq!(details.response_fields.len(), 1);
    }
    let record = told(RecordOptions::default(), bare("/"), make).await;
    assert!(record.details.is_none() && record.user.is_some());
    let record = told(RecordOptions::default().with_details(true), bare("/"), make).await;
    let details = record.details.unwrap();
    assert_eq!(details.request_id.as_ref().unwrap(), "theirs");
    assert!(details.route().is_none() && details.received().is_none() && details.conn_request.is_none());
}

#[tokio::test]
async fn whose_id_is_logged() {
    for (given, answered, expected) in
        [(false, Some("b"), "b"), (false, None, "a"), (true, Some("b"), "a"), (true, None, "a")]
    {
        let mut request = with_headers(bare("/"), &[("x-request-id", "a")]);
        if given {
            let id = crate::request_id::RequestId::new(HeaderValue::from_static("a")).unwrap();
            request.extensions_mut().insert(id);
        }
        let make = move |_: &mut Request<RequestBody<Full<Bytes>>>| {
            let mut response = Response::new(Full::from("x"));
            if let Some(id) = answered {
                response.headers_mut().insert("x-request-id", HeaderValue::from_static(id));
            }
            response
        };
        let record = told(RecordOptions::default().with_details(true), request, make).await;
        assert_eq!(record.details.unwrap().request_id.unwrap(), expected, "{given} {answered:?}");
    }
}

#[tokio::test]
async fn traces_that_are_none() {
    for (text, expected) in [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", true),
        ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-will-be", true),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x", false),
        ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
        ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", false),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false),
        ("00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01", false),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736", false),
        ("", false),
    ] {
        let request = with_headers(bare("/"), &[("traceparent", text)]);
        let record =
            told(RecordOptions::default().with_details(true), request, |_| Response::default()).await;
        assert_eq!(record.details.unwrap().trace_id().is_some(), expected, "{text}");
    }
}

#[tokio::test]
async fn the_cache_in_a_word() {
    for (text, expected) in [
        ("portcullis; hit; ttl=4", Some("hit")),
        ("portcullis; fwd=stale; fwd-status=304", Some("stale")),
        ("portcullis", None),
        (r#"origin; hit, portcullis; key="a,b; \"hit\"; x"; fwd=miss"#, Some("miss")),
        ("origin; hit", None),
        ("portcullis; hit, other; fwd=miss", None),
    ] {
        let record = told(RecordOptions::default().with_details(true), bare("/"), |_| {
            Response::builder().header("cache-status", text).body(Full::default()).unwrap()
        });
        assert_eq!(record.await.details.unwrap().cache(), expected, "{text}");
    }
}

/// The route is known even of a request that never has a response.
#[tokio::test]
async fn what_a_route_told_stays_told() {
    let (records, layer) = sink();
    let hanging = service_fn(|request: Request<RequestBody<Full<Bytes>>>| {
        let slot = request.extensions().get::<LogSlot>().unwrap();
        slot.set_route(Arc::new(RouteLog::new("one")));
        slot.set_route(Arc::new(RouteLog::new("two")));
        slot.set_upstream(Known(UpstreamDetails { attempts: 7, ..UpstreamDetails::default() }));
        std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>()
    });
    let layer = layer.with_options(RecordOptions::default().with_slot(true));
    let mut future = Box::pin(layer.layer(hanging).oneshot(bare("/")));
    assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(future);
    let details = only(&records).details.unwrap();
    assert_eq!(details.route().unwrap().name.as_ref(), "one");
    assert_eq!(details.upstream().unwrap().attempts, 7);
}

/// Lets nobody begin until it is opened.
struct Door(Arc<tokio::sync::Semaphore>, Arc<std::sync::atomic::AtomicUsize>);

impl Sink for Door {
    fn record(&self, _: &AccessRecord) {
        self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    fn wait(&self) -> Option<Waiting> {
        let door = Arc::clone(&self.0);
        (door.available_permits() == 0).then(|| {
            Box::pin(async move {
                let _ = door.acquire().await;
            }) as Waiting
        })
    }
}

#[tokio::test]
async fn no_request_begins_before_there_is_room() {
    let (door, count) = (Arc::new(tokio::sync::Semaphore::new(0)), Arc::default());
    let layer = AccessLogLayer::new(Arc::new(Door(Arc::clone(&door), Arc::clone(&count))));
    let (mock, mut handle) =
        tower_test::mock::pair::<Request<RequestBody<Full<Bytes>>>, Response<Full<Bytes>>>();
    let mut service = tower_test::mock::Spawn::new(layer.layer(mock));
    not_ready(&mut handle, &mut service);
    door.add_permits(1);
    assert!(service.is_woken() && service.poll_ready().is_ready());
    let call = service.call(bare("/"));
    let (_, answer) = handle.next_request().await.unwrap();
    answer.send_response(Response::default());
    drop(call.await.unwrap());
    assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), 1);
}

/// Not ready, though the inner service is.
fn not_ready<S: Service<Request<Full<Bytes>>>>(
    handle: &mut tower_test::mock::Handle<Request<RequestBody<Full<Bytes>>>, Response<Full<Bytes>>>,
    service: &mut tower_test::mock::Spawn<S>,
) {
    handle.allow(1);
    for _ in 0..3 {
        assert!(service.poll_ready().is_pending());
    }
}

#[test]
fn a_sample_is_the_same_everywhere_and_has_what_matters() {
    use std::num::NonZeroU32;
    let sampling = || Sampling::new(NonZeroU32::new(10).unwrap());
    let request = |id: &str| {
        let mut request = with_headers(bare("/"), &[("x-request-id", id)]);
        let mut record = AccessRecord::begin(&mut request, &RecordOptions::default().with_details(true));
        (record.status, record.outcome) = (Some(StatusCode::OK), Outcome::Complete);
        record
    };
    let (one, other) = (sampling(), sampling());
    let kept: Vec<bool> = (0..10_000).map(|n| one.keeps(&request(&format!("id-{n}")))).collect();
    let count = kept.iter().filter(|kept| **kept).count();
    assert!((900..1100).contains(&count), "{count}");
    assert!((0..10_000).rev().all(|n| other.keeps(&request(&format!("id-{n}"))) == kept[n]));
    // without an id it is every tenth
    let mut plain = AccessRecord::begin(&mut bare("/"), &RecordOptions::default());
    (plain.status, plain.outcome) = (Some(StatusCode::OK), Outcome::Complete);
    assert_eq!((0..1000).filter(|_| one.keeps(&plain)).count(), 100);
    assert!((0..1000).all(|_| Sampling::default().keeps(&plain)));

    let always = Sampling::new(NonZeroU32::MAX)
        .with_errors_from(Some(500))
        .with_slower_than(Some(std::time::Duration::from_secs(1)));
    assert!(always.keeps(&plain), "the first of so many");
    for (status, outcome, millis, expected) in [
        (Some(200), Outcome::Complete, 1000, false),
        (Some(200), Outcome::Complete, 1001, true),
        (Some(499), Outcome::Complete, 0, false),
        (Some(503), Outcome::Complete, 0, true),
        (None, Outcome::Aborted, 0, false),
        (Some(200), Outcome::Failed, 0, true),
    ] {
        plain.status = status.map(|status| StatusCode::from_u16(status).unwrap());
        (plain.outcome, plain.duration) = (outcome, std::time::Duration::from_millis(millis));
        assert_eq!(always.keeps(&plain), expected, "{status:?} {outcome:?} {millis}");
    }
}
