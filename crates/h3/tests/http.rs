//! What a well-behaved client sees.

#![allow(clippy::unwrap_used, clippy::large_futures, reason = "a test may panic")]

mod common;

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use common::{Server, get, request, service, soon};
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version};
use http_body::Body;
use http_body_util::{BodyExt, Full, StreamBody};
use portcullis_conn::{ConnInfo, TlsVersion, Transport};
use portcullis_h3::{BodyError, QuicOptions, RecvBody, client::ClientError};
use portcullis_testkit::body::ScriptBody;

fn trailers(name: &'static str, value: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static(name), HeaderValue::from_static(value))])
}

/// Answers 404 but for `/hello`, with what it learned about the request in fields.
async fn site(request: http::Request<RecvBody>) -> Response<ScriptBody> {
    let info = request.extensions().get::<Arc<ConnInfo>>().unwrap().clone();
    let tls = info.tls.clone().unwrap();
    assert_eq!((info.transport, tls.version), (Transport::Quic, Some(TlsVersion::Tls13)));
    assert_eq!((tls.server_name.as_deref(), info.alpn()), (Some("localhost"), Some(&b"h3"[..])));
    assert_eq!(request.version(), Version::HTTP_3);
    assert!(request.body().is_end_stream(), "a GET has no body");
    assert_eq!(request.body().size_hint().exact(), Some(0));
    match request.uri().path() {
        "/hello" => Response::builder()
            .header("x-method", request.method().as_str())
            .header("x-peer", info.peer.to_string())
            .header("connection", "keep-alive")
            .header("keep-alive", "timeout=5")
            .body(ScriptBody::new().data("hello").with_exact_size(5))
            .unwrap(),
        "/empty" => Response::builder().status(204).body(ScriptBody::new().data("never sent")).unwrap(),
        _ => Response::builder().status(404).body(ScriptBody::new()).unwrap(),
    }
}

#[tokio::test]
async fn get_head_and_misses() {
    let server = Server::start(QuicOptions::default(), service(site)).await;
    let connection = server.connect().await;

    let response = soon(connection.send(get("/hello"))).await.unwrap();
    assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_3));
    assert_eq!(response.headers()["content-length"], "5");
    assert!(response.headers().contains_key("date"));
    assert!(response.headers()["x-peer"].to_str().unwrap().starts_with("127.0.0.1:"));
    for gone in ["connection", "keep-alive"] {
        assert!(!response.headers().contains_key(gone), "{gone}");
    }
    assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes(), "hello");

    let head = request("HEAD", "/hello", http_body_util::Empty::<Bytes>::new());
    let response = soon(connection.send(head)).await.unwrap();
    assert_eq!(response.headers()["x-method"], "HEAD");
    assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes(), "");

    let response = soon(connection.send(get("/empty"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    assert!(!response.headers().contains_key("content-length"));
    assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes(), "");

    let response = soon(connection.send(get("/nothing"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    let stats = server.limits.stats();
    assert_eq!((stats.accepted, stats.open, stats.requests, stats.stream_errors), (1, 1, 4, 0));
}

#[tokio::test]
async fn many_requests_on_one_connection() {
    let server = Server::start(QuicOptions::default().with_max_bidi_streams(10), service(site)).await;
    let connection = server.connect().await;
    let mut tasks = tokio::task::JoinSet::new();
    // far more than the stream limit: the credit has to come back
    for _ in 0..300 {
        let connection = connection.clone();
        tasks.spawn(async move {
            let response = connection.send(get("/hello")).await.unwrap();
            response.into_body().collect().await.unwrap().to_bytes()
        });
    }
    let bodies = soon(tasks.join_all()).await;
    assert!(bodies.len() == 300 && bodies.iter().all(|body| body == "hello"));
    assert_eq!(server.limits.stats().requests, 300);
}

/// A body that comes back byte for byte, without being collected in between.
#[derive(Clone)]
struct Echo;

impl tower::Service<http::Request<RecvBody>> for Echo {
    type Response = Response<RecvBody>;
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<RecvBody>) -> Self::Future {
        std::future::ready(Ok(Response::new(request.into_body())))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_mebibytes_there_and_back_with_trailers() {
    const CHUNK: usize = 40_000;
    const TOTAL: usize = 10 << 20;
    let server = Server::start(QuicOptions::default(), Echo).await;
    let connection = server.connect().await;
    let pattern: Bytes = (0..CHUNK).map(|i| (i % 251) as u8).collect();

    let chunks = (0..TOTAL.div_ceil(CHUNK)).map({
        let pattern = pattern.clone();
        move |i| pattern.slice(..CHUNK.min(TOTAL - i * CHUNK))
    });
    let frames = chunks
        .map(http_body::Frame::data)
        .chain([http_body::Frame::trailers(trailers("x-sum", "42"))])
        .map(Ok::<_, std::io::Error>);
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let response = soon(connection.send(request("POST", "/", body))).await.unwrap();
    let mut body = response.into_body();
    let mut received = 0;
    let mut last = None;
    while let Some(frame) = soon(body.frame()).await {
        match frame.unwrap().into_data() {
            Ok(data) => {
                for byte in data {
                    assert_eq!(byte, pattern[received % CHUNK]);
                    received += 1;
                }
            }
            Err(frame) => last = frame.into_trailers().ok(),
        }
    }
    assert_eq!(received, TOTAL);
    assert_eq!(last.unwrap(), trailers("x-sum", "42"));
    assert!(body.is_end_stream());
}

#[tokio::test]
async fn uploads_are_read_whole_and_measured() {
    let server = Server::start(
        QuicOptions::default(),
        service(|request| async move {
            let announced = request.body().size_hint().exact();
            assert!(!request.body().is_end_stream());
            let body = request.into_body().collect().await.unwrap();
            let (end, body) = (body.trailers().cloned(), body.to_bytes());
            let mut response = Response::new(ScriptBody::new().data(format!("{}", body.len())));
            response.headers_mut().extend(end.unwrap_or_default());
            if announced.is_some() {
                assert_eq!(announced, Some(body.len() as u64));
            }
            response
        }),
    )
    .await;
    let connection = server.connect().await;

    let mut post = request("POST", "/", Full::new(Bytes::from(vec![1; 300_000])));
    post.headers_mut().insert("content-length", HeaderValue::from_static("300000"));
    let response = soon(connection.send(post)).await.unwrap();
    assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes(), "300000");

    let body =
        ScriptBody::new().data("").data("abc").data("").pend().data("de").trailers(trailers("x-t", "y"));
    let response = soon(connection.send(request("POST", "/", body))).await.unwrap();
    assert_eq!(response.headers()["x-t"], "y");
    assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes(), "5");
}

#[tokio::test]
async fn trailers_of_a_response() {
    let server = Server::start(
        QuicOptions::default(),
        service(|_| async { Response::new(ScriptBody::new().data("x").trailers(trailers("x-end", "1"))) }),
    )
    .await;
    let connection = server.connect().await;
    let response = soon(connection.send(get("/"))).await.unwrap();
    let body = soon(response.into_body().collect()).await.unwrap();
    assert_eq!(body.trailers(), Some(&trailers("x-end", "1")));
}

#[tokio::test]
async fn too_many_fields_are_431() {
    let server = Server::start(QuicOptions::default().with_max_fields(20), service(site)).await;
    let connection = server.connect().await;
    let mut many = get("/hello");
    for i in 0..21 {
        many.headers_mut()
            .insert(http::HeaderName::try_from(format!("x-{i}")).unwrap(), "v".parse().unwrap());
    }
    let response = soon(connection.send(many)).await.unwrap();
    assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    // the connection goes on
    assert_eq!(soon(connection.send(get("/hello"))).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn large_fields_are_431() {
    let options = QuicOptions::default().with_max_field_section_size(1024);
    let server = Server::start(options, service(site)).await;
    let raw = server.raw().await;
    let (mut send, mut recv) = raw.open_bi().await.unwrap();
    // one field of 2000 bytes behind a valid head: x-a
    let mut block = raw_block();
    block.extend_from_slice(&[0x23, b'x', b'-', b'a', 0x7f, 0xd1, 0x0e]);
    block.extend_from_slice(&[b'v'; 2000]);
    send.write_all(&common::frame(0x01, &block)).await.unwrap();
    send.finish().unwrap();
    let answer = soon(recv.read_to_end(4096)).await.unwrap();
    // HEADERS of 431, and a connection that goes on
    assert_eq!(answer[0], 0x01);
    let (mut send, mut recv) = raw.open_bi().await.unwrap();
    send.write_all(&common::raw_head(None)).await.unwrap();
    send.finish().unwrap();
    assert_ne!(soon(recv.read_to_end(4096)).await.unwrap(), answer);
}

fn raw_block() -> Vec<u8> {
    common::raw_head(None)[3..].to_vec()
}

#[tokio::test]
async fn a_failing_body_resets_the_stream() {
    let server = Server::start(
        QuicOptions::default(),
        service(|_| async { Response::new(ScriptBody::new().data("begin").pend().fail()) }),
    )
    .await;
    let connection = server.connect().await;
    // H3_INTERNAL_ERROR; a reset may overtake the head
    match soon(connection.send(get("/"))).await {
        Ok(response) => {
            let error = soon(response.into_body().collect()).await.unwrap_err();
            assert!(matches!(error, BodyError::Reset { code: 0x102 }), "{error:?}");
        }
        Err(error) => assert!(matches!(error, ClientError::Reset { code: 0x102 }), "{error:?}"),
    }
    common::until(|| server.limits.stats().stream_errors == 1).await;
}

#[tokio::test]
async fn a_body_that_breaks_its_word_resets_the_stream() {
    let server = Server::start(
        QuicOptions::default(),
        service(|request| async move {
            let body = match request.uri().path() {
                "/short" => ScriptBody::new().data("12"),
                _ => ScriptBody::new().data("12").pend().data("345"),
            };
            Response::builder().header("content-length", "4").body(body).unwrap()
        }),
    )
    .await;
    let connection = server.connect().await;
    for path in ["/short", "/long"] {
        let failed =
            soon(async { connection.send(get(path)).await?.into_body().collect().await.map_err(Box::from) })
                .await
                .map_err(|error: Box<dyn std::error::Error>| error.to_string());
        assert!(failed.unwrap_err().contains("0x102"), "{path}");
    }
}

#[tokio::test]
async fn errors_and_panics_stay_in_their_stream() {
    let failing = tower::service_fn(|request: http::Request<RecvBody>| async move {
        match request.uri().path() {
            "/error" => Err("it broke"),
            "/panic" => panic!("on purpose"),
            "/interim" => Ok(Response::builder().status(103).body(ScriptBody::new()).unwrap()),
            _ => Ok(Response::new(ScriptBody::new().data("fine"))),
        }
    });
    let server = Server::start(QuicOptions::default(), failing).await;
    let connection = server.connect().await;
    for path in ["/error", "/panic", "/interim"] {
        let error = soon(connection.send(get(path))).await.unwrap_err();
        assert!(matches!(error, ClientError::Reset { code: 0x102 }), "{path}: {error:?}");
        let response = soon(connection.send(get("/"))).await.unwrap();
        assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes(), "fine");
    }
}

#[tokio::test]
async fn an_early_answer_stops_the_upload() {
    let server = Server::start(
        QuicOptions::default(),
        service(|_| async { Response::builder().status(413).body(ScriptBody::new()).unwrap() }),
    )
    .await;
    let raw = server.raw().await;
    let (mut send, mut recv) = raw.open_bi().await.unwrap();
    send.write_all(&[common::raw_head(Some("100000")), common::frame(0, b"begin")].concat()).await.unwrap();
    // H3_NO_ERROR
    assert_eq!(soon(send.stopped()).await.unwrap(), Some(quinn::VarInt::from_u32(0x100)));
    let answer = soon(recv.read_to_end(4096)).await.unwrap();
    assert_eq!(answer[0], 0x01);
}

#[tokio::test]
async fn leaving_cancels_the_service() {
    struct Gone(Arc<Mutex<Vec<&'static str>>>, &'static str);
    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.lock().unwrap().push(self.1);
        }
    }
    let gone = Arc::new(Mutex::new(Vec::new()));
    let entered = Arc::new(tokio::sync::Semaphore::new(0));
    let server = Server::start(QuicOptions::default(), {
        let (gone, entered) = (gone.clone(), entered.clone());
        service(move |request| {
            let (gone, entered) = (gone.clone(), entered.clone());
            async move {
                entered.add_permits(1);
                if request.uri().path() == "/body" {
                    let held = Gone(gone, "body");
                    let frames = futures_util::stream::once(async move {
                        let _held = held;
                        std::future::pending::<Result<http_body::Frame<Bytes>, std::io::Error>>().await
                    });
                    // a future inside the service's own, as a proxy's upstream request is
                    let mut body = Box::pin(StreamBody::new(frames));
                    let _ = body.frame().await;
                    unreachable!();
                }
                let _held = Gone(gone, if request.uri().path() == "/conn" { "conn" } else { "service" });
                std::future::pending().await
            }
        })
    })
    .await;
    let connection = server.connect().await;
    for path in ["/service", "/body"] {
        let request = tokio::spawn({
            let connection = connection.clone();
            async move { connection.send(get(path)).await.map(drop) }
        });
        soon(entered.acquire()).await.unwrap().forget();
        request.abort();
        common::until(|| gone.lock().unwrap().last() == Some(&&path[1..])).await;
    }
    // and when the whole connection goes
    let request = tokio::spawn({
        let connection = connection.clone();
        async move { connection.send(get("/conn")).await.map(drop) }
    });
    soon(entered.acquire()).await.unwrap().forget();
    connection.close();
    common::until(|| gone.lock().unwrap().last() == Some(&"conn")).await;
    assert!(soon(request).await.unwrap().is_err());
}

#[tokio::test]
async fn a_response_body_is_dropped_when_the_client_stops() {
    struct Hang(Arc<tokio::sync::Notify>);
    impl Drop for Hang {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    impl Body for Hang {
        type Data = Bytes;
        type Error = std::io::Error;
        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
            std::task::Poll::Pending
        }
    }
    let dropped = Arc::new(tokio::sync::Notify::new());
    let hanging = tower::service_fn({
        let dropped = dropped.clone();
        move |_: http::Request<RecvBody>| {
            let body = Hang(dropped.clone());
            async move { Ok::<_, std::convert::Infallible>(Response::new(body)) }
        }
    });
    let server = Server::start(QuicOptions::default(), hanging).await;
    let connection = server.connect().await;
    let response = soon(connection.send(get("/"))).await.unwrap();
    drop(response);
    soon(dropped.notified()).await;
}

#[tokio::test]
async fn a_stream_past_the_limit_has_to_wait() {
    let server = Server::start(
        QuicOptions::default().with_max_bidi_streams(2),
        service(|_| std::future::pending::<Response<ScriptBody>>()),
    )
    .await;
    let raw = server.raw().await;
    let (one, _two) = (soon(raw.open_bi()).await.unwrap(), soon(raw.open_bi()).await.unwrap());
    let third = tokio::time::timeout(std::time::Duration::from_millis(100), raw.open_bi()).await;
    assert!(third.is_err(), "a third stream was let in beside two");
    drop(one);
}
