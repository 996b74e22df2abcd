//! `serve` over duplex streams, with the clock paused where time matters.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use portcullis_conn::{Conn, ConnInfo, FirstBytes};
use portcullis_server::{HttpOptions, Plain, RequestBody, ServerCounters, serve};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};

struct Connections(mpsc::UnboundedReceiver<Conn<DuplexStream>>);

impl futures_core::Stream for Connections {
    type Item = Conn<DuplexStream>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

/// A body that is fed by hand; without a feeder it is empty.
#[derive(Default)]
struct Fed(Option<mpsc::UnboundedReceiver<Bytes>>);

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        match &mut self.0 {
            Some(receiver) => {
                receiver.poll_recv(cx).map(|data| data.map(|data| Ok(http_body::Frame::data(data))))
            }
            None => Poll::Ready(None),
        }
    }
}

fn feed() -> (mpsc::UnboundedSender<Bytes>, Fed) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Fed(Some(receiver)))
}

/// A running server and the way to reach it.
struct Server {
    connect: mpsc::UnboundedSender<Conn<DuplexStream>>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
    counters: Arc<ServerCounters>,
}

impl Server {
    fn start<F, Fut>(options: HttpOptions, handler: F) -> Self
    where
        F: Fn(Request<RequestBody>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        Self::start_with(options, handler)
    }

    fn start_with<F, Fut, B>(options: HttpOptions, handler: F) -> Self
    where
        F: Fn(Request<RequestBody>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Response<B>> + Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<portcullis_server::BoxError>,
    {
        let handler = Arc::new(handler);
        let (connect, receiver) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let counters = Arc::new(ServerCounters::default());
        let service = tower::service_fn(move |request| {
            let response = handler(request);
            async move { Ok::<_, Infallible>(response.await) }
        });
        let shutdown = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(serve(
            Connections(receiver),
            Plain,
            service,
            options,
            Arc::clone(&counters),
            shutdown,
        ));
        Self { connect, stop: Some(stop), task, counters }
    }

    fn connect_as(&self, first_bytes: Option<FirstBytes>) -> DuplexStream {
        let (near, far) = tokio::io::duplex(64 << 10);
        let mut conn = portcullis_testkit::conn(far);
        conn.info.first_bytes = first_bytes;
        self.connect.send(conn).ok();
        near
    }

    fn connect(&self) -> DuplexStream {
        self.connect_as(None)
    }

    fn stop(&mut self) {
        drop(self.stop.take());
    }
}

fn ok(text: &'static str) -> Response<Full<Bytes>> {
    Response::new(Full::new(Bytes::from_static(text.as_bytes())))
}

async fn read_all(mut io: DuplexStream) -> String {
    let mut all = Vec::new();
    io.read_to_end(&mut all).await.unwrap();
    String::from_utf8(all).unwrap()
}

/// Reads until `end` was seen.
async fn read_to(io: &mut DuplexStream, end: &str) -> String {
    let mut seen = Vec::new();
    let mut buf = [0; 4096];
    while !seen.ends_with(end.as_bytes()) {
        let n = io.read(&mut buf).await.unwrap();
        assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buf[..n]);
    }
    String::from_utf8(seen).unwrap()
}

#[tokio::test]
async fn http1_with_the_facts_of_the_connection() {
    let server = Server::start(HttpOptions::default(), |request| async move {
        let info = request.extensions().get::<Arc<ConnInfo>>().cloned();
        assert!(info.is_some_and(|info| !info.is_secure()));
        ok("hi")
    });
    let mut io = server.connect();
    io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(read_to(&mut io, "hi").await.starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!((server.counters.stats().http1_open, server.counters.stats().http2_open), (1, 0));
}

#[tokio::test]
async fn http2_by_its_preface() {
    let server = Server::start(HttpOptions::default(), |request| async move {
        assert_eq!(request.version(), http::Version::HTTP_2);
        ok("hi")
    });
    let io = server.connect_as(Some(FirstBytes::Http2Preface));
    let (mut send, conn) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
    tokio::spawn(conn);
    let request = Request::get("http://a/").body(Full::<Bytes>::default()).unwrap();
    let response = send.send_request(request).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hi");
    assert_eq!(server.counters.stats().http2_total, 1);
}

#[tokio::test(start_paused = true)]
async fn a_head_has_a_deadline_and_so_has_the_wait_for_the_next() {
    let options = HttpOptions::default()
        .with_header_timeout(Duration::from_secs(7))
        .with_first_request_timeout(Duration::from_secs(7))
        .with_idle_timeout(Duration::from_secs(7));
    let server = Server::start(options, |_| async { ok("hi") });
    for begin in ["", "GET / HT", "GET / HTTP/1.1\r\nhost: a\r\n\r\n"] {
        let mut io = server.connect();
        io.write_all(begin.as_bytes()).await.unwrap();
        let start = Instant::now();
        read_all(io).await;
        let took = start.elapsed().as_secs_f32();
        assert!((6.9..8.0).contains(&took), "{begin:?} was closed after {took} s");
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_that_trickle_do_not_move_the_deadline() {
    let options = HttpOptions::default()
        .with_header_timeout(Duration::from_secs(7))
        .with_first_request_timeout(Duration::from_secs(7))
        .with_idle_timeout(Duration::from_secs(7));
    let server = Server::start(options, |_| async { ok("hi") });
    let mut io = server.connect();
    let start = Instant::now();
    io.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if io.write_all(b"a: b\r\n").await.is_err() {
            break;
        }
    }
    // the deadline, and the time in which it is heard out
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_idle_http2_connection_is_let_go() {
    let options = HttpOptions::default()
        .with_header_timeout(Duration::from_secs(7))
        .with_first_request_timeout(Duration::from_secs(7))
        .with_idle_timeout(Duration::from_secs(7));
    let server = Server::start(options, |_| async { ok("hi") });
    let io = server.connect_as(Some(FirstBytes::Http2Preface));
    let (mut send, conn) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
    let conn = tokio::spawn(conn);
    let request = Request::get("http://a/").body(Full::<Bytes>::default()).unwrap();
    send.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    let start = Instant::now();
    conn.await.unwrap().unwrap();
    let took = start.elapsed().as_secs_f32();
    assert!((7.0..15.0).contains(&took), "closed after {took} s");
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_is_no_idle_connection() {
    let options = HttpOptions::default()
        .with_header_timeout(Duration::from_secs(7))
        .with_first_request_timeout(Duration::from_secs(7))
        .with_idle_timeout(Duration::from_secs(7));
    let (sender, body) = feed();
    let body = std::sync::Mutex::new(Some(body));
    let server = Server::start_with(options, move |_| {
        let body = body.lock().unwrap().take().unwrap_or_default();
        async move { Response::new(body) }
    });
    let io = server.connect_as(Some(FirstBytes::Http2Preface));
    let (mut send, conn) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
    tokio::spawn(conn);
    let get = || Request::get("http://a/").body(Full::<Bytes>::default()).unwrap();
    let streaming = send.send_request(get()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(send.send_request(get()).await.unwrap().status(), StatusCode::OK);
    sender.send(Bytes::from_static(b"end")).unwrap();
    drop(sender);
    assert_eq!(streaming.into_body().collect().await.unwrap().to_bytes(), "end");
}

/// RFC 9113 section 5.2: flow control is the client's to open; a window that stays shut would hold a response, and
/// what stands behind it, for ever. PINGs are answered all the while.
#[tokio::test(start_paused = true)]
async fn a_window_that_stays_shut_ends_the_connection() {
    let options = HttpOptions::default().with_send_timeout(Duration::from_secs(5));
    let server = Server::start_with(options, |_| async {
        // in pieces: a single one would be its driver's to hold (tests/windows.rs)
        let (sender, body) = feed();
        (0..20).for_each(|_| sender.send(Bytes::from(vec![0; 10_000])).unwrap());
        Response::new(body)
    });
    let io = server.connect_as(Some(FirstBytes::Http2Preface));
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut send, conn) =
        builder.initial_stream_window_size(1000).handshake(TokioIo::new(io)).await.unwrap();
    let conn = tokio::spawn(conn);
    let request = || Request::get("http://a/").body(Full::<Bytes>::default()).unwrap();
    // one that is read is no stall, however small its window
    let read = send.send_request(request()).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(read.len(), 200_000);
    let unread = send.send_request(request()).await.unwrap();
    let start = Instant::now();
    let _ = conn.await.unwrap();
    let took = start.elapsed().as_secs_f32();
    assert!((4.9..11.0).contains(&took), "closed after {took} s");
    drop(unread);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_speaks_http2_is_let_go() {
    let options = HttpOptions::default()
        .with_header_timeout(Duration::from_secs(7))
        .with_first_request_timeout(Duration::from_secs(7))
        .with_idle_timeout(Duration::from_secs(7));
    let mut server = Server::start(options, |_| async { ok("hi") });
    let start = Instant::now();
    // one that is agreed on HTTP/2 and says nothing, or stops inside the preface
    for begin in ["", "PRI * HT"] {
        let mut io = server.connect_as(Some(FirstBytes::Http2Preface));
        io.write_all(begin.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        io.read_to_end(&mut all).await.unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    // and neither holds a drain
    let _silent = server.connect_as(Some(FirstBytes::Http2Preface));
    tokio::task::yield_now().await;
    let start = Instant::now();
    server.stop();
    server.task.await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_handshake_has_a_deadline() {
    #[derive(Clone)]
    struct Stuck;
    impl tower_service::Service<Conn<DuplexStream>> for Stuck {
        type Response = Conn<DuplexStream>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Conn<DuplexStream>, Infallible>> + Send>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, conn: Conn<DuplexStream>) -> Self::Future {
            Box::pin(async move {
                std::future::pending::<()>().await;
                Ok(conn)
            })
        }
    }
    let (connect, receiver) = mpsc::unbounded_channel();
    let counters = Arc::new(ServerCounters::default());
    let service = tower::service_fn(|_: Request<RequestBody>| async { Ok::<_, Infallible>(ok("hi")) });
    let options = HttpOptions::default().with_handshake_timeout(Duration::from_secs(3));
    let server = tokio::spawn(serve(
        Connections(receiver),
        Stuck,
        service,
        options,
        Arc::clone(&counters),
        std::future::pending(),
    ));
    let (near, far) = tokio::io::duplex(1024);
    connect.send(portcullis_testkit::conn(far)).ok().unwrap();
    let start = Instant::now();
    assert_eq!(read_all(near).await, "");
    assert!((2.0..4.0).contains(&start.elapsed().as_secs_f32()));
    assert_eq!(counters.stats().handshake_timeouts, 1);
    // the stream of connections ends: so does serve, without any shutdown
    drop(connect);
    server.await.unwrap();
}

#[tokio::test]
async fn too_many_fields_or_bytes_are_431() {
    let server = Server::start(HttpOptions::default(), |_| async { ok("hi") });
    for head in [
        format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "a: b\r\n".repeat(101)),
        format!("GET / HTTP/1.1\r\nhost: a\r\nb: {}\r\n\r\n", "x".repeat(65 << 10)),
    ] {
        let mut io = server.connect();
        let (mut read, mut write) = tokio::io::split(&mut io);
        let mut answer = Vec::new();
        let (_, _) = tokio::join!(write.write_all(head.as_bytes()), read.read_to_end(&mut answer));
        assert!(answer.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test]
async fn http2_settings_are_ours() {
    let server = Server::start(HttpOptions::default(), |_| async { ok("hi") });
    let mut io = server.connect_as(Some(FirstBytes::Http2Preface));
    io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut head = [0; 9];
    io.read_exact(&mut head).await.unwrap();
    assert_eq!(head[3], 4, "the first frame is SETTINGS");
    let mut payload = vec![0; usize::from(head[2])];
    io.read_exact(&mut payload).await.unwrap();
    let settings: Vec<(u16, u32)> = payload
        .chunks(6)
        .map(|s| (u16::from_be_bytes([s[0], s[1]]), u32::from_be_bytes([s[2], s[3], s[4], s[5]])))
        .collect();
    assert!(settings.contains(&(3, 100)), "MAX_CONCURRENT_STREAMS in {settings:?}");
    assert!(settings.contains(&(6, 64 << 10)), "MAX_HEADER_LIST_SIZE in {settings:?}");
    let window = settings.iter().find(|(id, _)| *id == 4).map_or(65_535, |(_, value)| *value);
    assert!(window <= 64 << 10, "INITIAL_WINDOW_SIZE in {settings:?}");
}

#[tokio::test]
async fn a_panic_ends_its_connection_only() {
    let mut server = Server::start(HttpOptions::default(), |request| async move {
        assert_ne!(request.uri().path(), "/panic");
        ok("hi")
    });
    let mut bad = server.connect();
    bad.write_all(b"GET /panic HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert_eq!(read_all(bad).await, "");
    let mut good = server.connect();
    good.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    read_to(&mut good, "hi").await;
    server.stop();
    server.task.await.unwrap();
}

#[tokio::test]
async fn a_drain_closes_the_idle_and_waits_for_the_busy() {
    let gate = Arc::new(tokio::sync::Notify::new());
    let entered = Arc::new(tokio::sync::Notify::new());
    let mut server = Server::start(HttpOptions::default(), {
        let (gate, entered) = (Arc::clone(&gate), Arc::clone(&entered));
        move |request: Request<RequestBody>| {
            let (gate, entered) = (Arc::clone(&gate), Arc::clone(&entered));
            async move {
                if request.uri().path() == "/slow" {
                    entered.notify_one();
                    gate.notified().await;
                }
                ok("hi")
            }
        }
    });
    let fresh = server.connect();
    let mut idle = server.connect();
    idle.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    read_to(&mut idle, "hi").await;
    let mut busy = server.connect();
    busy.write_all(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    entered.notified().await;
    let io = server.connect_as(Some(FirstBytes::Http2Preface));
    let (mut send, conn) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
    let h2 = tokio::spawn(conn);
    let slow = send.send_request(Request::get("http://a/slow").body(Full::<Bytes>::default()).unwrap());
    let slow = tokio::spawn(slow);
    entered.notified().await;

    server.stop();
    assert_eq!(read_all(fresh).await, "");
    assert_eq!(read_all(idle).await, "");
    assert!(!server.task.is_finished());
    gate.notify_waiters();
    let answer = read_all(busy).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("hi"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    let response = slow.await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hi");
    h2.await.unwrap().unwrap();
    server.task.await.unwrap();
    assert_eq!(server.counters.stats().http1_open, 0);
}

#[tokio::test]
async fn an_upgraded_connection_is_no_longer_ours() {
    let mut server = Server::start(HttpOptions::default(), |mut request| async move {
        tokio::spawn(async move {
            let mut io = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
            let mut buf = [0; 64];
            while let Ok(n @ 1..) = io.read(&mut buf).await {
                io.write_all(&buf[..n]).await.unwrap();
            }
        });
        Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("connection", "upgrade")
            .header("upgrade", "echo")
            .body(Full::default())
            .unwrap()
    });
    let mut io = server.connect();
    io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await.unwrap();
    read_to(&mut io, "\r\n\r\n").await;
    io.write_all(b"ping").await.unwrap();
    read_to(&mut io, "ping").await;
    server.stop();
    server.task.await.unwrap();
    io.write_all(b"still here").await.unwrap();
    read_to(&mut io, "still here").await;
}

#[tokio::test]
async fn dropping_serve_aborts_what_it_drives() {
    let server = Server::start(HttpOptions::default(), |_| async {
        std::future::pending::<()>().await;
        ok("never")
    });
    let mut io = server.connect();
    io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    tokio::task::yield_now().await;
    server.task.abort();
    assert_eq!(read_all(io).await, "");
}

#[tokio::test]
async fn an_axum_router_serves_as_it_is() {
    let app: axum::Router = axum::Router::new().route("/hello", axum::routing::get(|| async { "hello" }));
    let (connect, receiver) = mpsc::unbounded_channel();
    let server = tokio::spawn(serve(
        Connections(receiver),
        Plain,
        app,
        HttpOptions::default(),
        Arc::default(),
        std::future::pending(),
    ));
    let (mut near, far) = tokio::io::duplex(4096);
    connect.send(portcullis_testkit::conn(far)).ok().unwrap();
    near.write_all(b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(read_to(&mut near, "hello").await.starts_with("HTTP/1.1 200 OK"));
    drop((connect, near));
    server.await.unwrap();
}
