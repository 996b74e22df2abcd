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
    let inner = service_fn(move |_| std::future::ready(Ok::<_, Infallible>(response.take().unwrap())));
    layer.layer(inner).oneshot(request).await.unwrap().into_body()
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
    let failing = service_fn(|_: Request<()>| std::future::ready(Err::<Response<Full<Bytes>>, _>("down")));
    assert!(layer.layer(failing).oneshot(get("/")).await.is_err());
    let record = only(&records);
    assert_eq!((record.status, record.time_to_head, record.outcome), (None, None, Outcome::Failed));

    let (records, layer) = sink();
    let hanging =
        service_fn(|_: Request<()>| std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>());
    let mut future = Box::pin(layer.layer(hanging).oneshot(get("/")));
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
        let inner = service_fn(|request: Request<()>| std::future::ready(Ok::<_, Infallible>(ok(request))));
        drop(layer.layer(inner).oneshot(request).await.unwrap());
        let record = only(&records);
        assert_eq!(record.target(), target);
        assert_eq!(record.host(), host.map(str::as_bytes));
        assert_eq!(record.client_ip, client.map(|ip| ip.parse().unwrap()));
    }
}
