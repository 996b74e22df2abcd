//! HTTP/1 connections that give their buffers back while they are idle.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use portcullis_server::{CloseReason, HttpOptions, Plain, RequestBody, ServerCounters, serve};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf},
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep},
};

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

struct Server {
    io: DuplexStream,
    counters: Arc<ServerCounters>,
    served: JoinHandle<()>,
    drain: Option<oneshot::Sender<()>>,
}

impl Server {
    /// One connection whose pipe holds so much; answers are as long as the request's path says, or its body.
    fn start(options: HttpOptions, pipe: usize) -> Self {
        let (io, far) = tokio::io::duplex(pipe);
        Self::over(io, far, options)
    }

    fn over(
        io: DuplexStream,
        far: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        options: HttpOptions,
    ) -> Self {
        let service = tower::service_fn(|request: Request<RequestBody>| async {
            let length = request.uri().path()[1..].parse().unwrap_or(2);
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let body = if body.is_empty() { Bytes::from(vec![b'x'; length]) } else { body };
            Ok::<_, Infallible>(Response::new(Full::new(body)))
        });
        let counters = Arc::new(ServerCounters::default());
        let (drain, drained) = oneshot::channel();
        let shutdown = async {
            let _ = drained.await;
        };
        let incoming = stream::iter([portcullis_testkit::conn(far)]).chain(stream::pending());
        let served = serve(incoming, Plain, service, options, Arc::clone(&counters), shutdown);
        Self { io, counters, served: tokio::spawn(served), drain: Some(drain) }
    }

    fn resting(&self) -> bool {
        self.counters.stats().http1_resting == 1
    }

    async fn ask(&mut self, request: &[u8]) -> String {
        self.io.write_all(request).await.unwrap();
        self.answer().await
    }

    async fn answer(&mut self) -> String {
        let mut answer = Vec::new();
        loop {
            assert_ne!(
                self.io.read_buf(&mut answer).await.unwrap(),
                0,
                "{}",
                String::from_utf8_lossy(&answer)
            );
            let text = String::from_utf8_lossy(&answer);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
                if body.len() == length.parse::<usize>().unwrap() {
                    return text.into_owned();
                }
            }
        }
    }

    async fn closed(&mut self) -> (String, CloseReason) {
        let mut rest = String::new();
        self.io.read_to_string(&mut rest).await.unwrap();
        loop {
            let stats = self.counters.stats();
            if let Some(reason) = CloseReason::ALL.into_iter().find(|reason| stats.closed(*reason) > 0) {
                assert_eq!(stats.http1_resting, 0);
                return (rest, reason);
            }
            sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_after_a_rest_is_served_like_what_came_before() {
    let mut server = Server::start(HttpOptions::default(), 1 << 16);
    sleep(Duration::from_millis(1500)).await;
    assert!(server.resting(), "also before the first request");
    assert!(server.ask(GET).await.ends_with("\r\n\r\nxx"));
    for pause in [0, 900, 1100, 5000, 59_000] {
        sleep(Duration::from_millis(pause)).await;
        assert_eq!(server.resting(), pause > 1000, "{pause}");
        assert!(server.ask(GET).await.ends_with("\r\n\r\nxx"));
        assert!(!server.resting());
    }
    // a head in pieces, a body, and a head that is larger than what is read ahead
    sleep(Duration::from_secs(2)).await;
    for piece in [&b"P"[..], b"OST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r", b"\nhel"] {
        server.io.write_all(piece).await.unwrap();
        sleep(Duration::from_secs(2)).await;
        assert!(!server.resting(), "a request has begun");
    }
    assert!(server.ask(b"lo").await.ends_with("\r\n\r\nhello"));
    sleep(Duration::from_secs(2)).await;
    assert!(server.resting());
    let long = format!("GET /3 HTTP/1.1\r\nhost: a\r\nx-long: {}\r\n\r\n", "y".repeat(5000));
    assert!(server.ask(long.as_bytes()).await.ends_with("\r\n\r\nxxx"));
    // two at once, of which the second is still there when the first is done
    sleep(Duration::from_secs(2)).await;
    server.io.write_all(&[GET, GET].concat()).await.unwrap();
    let mut both = Vec::new();
    while both.windows(2).filter(|pair| pair == b"xx").count() < 2 {
        assert_ne!(server.io.read_buf(&mut both).await.unwrap(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn it_ends_when_it_would_have_ended() {
    let mut server = Server::start(HttpOptions::default(), 1 << 16);
    let start = Instant::now();
    let (rest, reason) = server.closed().await;
    assert_eq!((&*rest, reason), ("", CloseReason::FirstRequestTimeout));
    assert_eq!(start.elapsed().as_secs(), 30);

    let mut server = Server::start(HttpOptions::default(), 1 << 16);
    sleep(Duration::from_secs(3)).await;
    server.ask(GET).await;
    let start = Instant::now();
    let (rest, reason) = server.closed().await;
    assert_eq!((&*rest, reason), ("", CloseReason::Idle));
    assert_eq!(start.elapsed().as_secs(), 60);
    assert_eq!(server.counters.stats().connection_errors, 0, "that is no error");

    // a head that begins has its own deadline, and its answer
    let mut server = Server::start(HttpOptions::default(), 1 << 16);
    server.ask(GET).await;
    sleep(Duration::from_secs(50)).await;
    server.io.write_all(b"GE").await.unwrap();
    let start = Instant::now();
    let (rest, reason) = server.closed().await;
    assert!(rest.starts_with("HTTP/1.1 408 "), "{rest}");
    // and the time in which the client is heard out
    assert!((30..=32).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert_eq!(reason, CloseReason::HeaderTimeout);

    let options = HttpOptions::default().with_max_age(Some(Duration::from_secs(20)));
    let mut server = Server::start(options, 1 << 16);
    server.ask(GET).await;
    let start = Instant::now();
    let (_, reason) = server.closed().await;
    assert_eq!(reason, CloseReason::MaxAge);
    assert!((18..=22).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_and_a_drain_are_seen_at_once() {
    for drain in [false, true] {
        let mut server = Server::start(HttpOptions::default(), 1 << 16);
        server.ask(GET).await;
        sleep(Duration::from_secs(5)).await;
        assert!(server.resting());
        let start = Instant::now();
        let expected = if drain {
            server.drain.take().unwrap().send(()).unwrap();
            CloseReason::Drained
        } else {
            server.io.shutdown().await.unwrap();
            CloseReason::Client
        };
        let (rest, reason) = server.closed().await;
        assert_eq!((&*rest, reason), ("", expected));
        assert!(start.elapsed() < Duration::from_millis(10), "{:?}", start.elapsed());
        if drain {
            server.served.await.unwrap();
        }
    }
}

/// A request that is in the pipe when the drain begins is served (RFC 9112 section 9.6).
#[tokio::test(start_paused = true)]
async fn a_request_that_meets_the_drain_is_served() {
    let mut server = Server::start(HttpOptions::default(), 1 << 16);
    server.ask(GET).await;
    sleep(Duration::from_secs(5)).await;
    server.io.write_all(GET).await.unwrap();
    server.drain.take().unwrap().send(()).unwrap();
    let (rest, reason) = server.closed().await;
    assert!(rest.ends_with("\r\n\r\nxx"), "{rest}");
    assert_eq!(reason, CloseReason::Drained);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_its_client_has_not_taken_keeps_it_awake() {
    let options = HttpOptions::default().with_min_send_rate(0);
    let mut server = Server::start(options, 100);
    server.io.write_all(b"GET /5000 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    sleep(Duration::from_secs(10)).await;
    assert!(!server.resting());
    let answer = server.answer().await;
    assert!(answer.ends_with(&"x".repeat(5000)));
    sleep(Duration::from_secs(10)).await;
    assert!(server.resting());
    assert!(server.ask(GET).await.ends_with("\r\n\r\nxx"));
}

/// What of a next request came with the one before is not lost, and has the deadline of a head.
#[tokio::test(start_paused = true)]
async fn a_part_of_the_next_request_is_kept() {
    for rest in ["T / HTTP/1.1\r\nhost: a\r\n\r\n", ""] {
        let mut server = Server::start(HttpOptions::default(), 1 << 16);
        assert!(server.ask(&[GET, b"GE"].concat()).await.ends_with("\r\n\r\nxx"));
        let start = Instant::now();
        sleep(Duration::from_secs(5)).await;
        server.io.write_all(rest.as_bytes()).await.unwrap();
        if rest.is_empty() {
            let (rest, reason) = server.closed().await;
            assert!(rest.starts_with("HTTP/1.1 408 "), "{rest}");
            assert_eq!(reason, CloseReason::HeaderTimeout);
            assert!(start.elapsed() < Duration::from_secs(35), "{:?}", start.elapsed());
        } else {
            assert!(server.answer().await.ends_with("\r\n\r\nxx"));
        }
    }
}

/// Counts how much its reader had room for, at the last read.
struct Room(DuplexStream, Arc<AtomicUsize>);

impl AsyncRead for Room {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.1.store(buf.remaining(), Ordering::SeqCst);
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Room {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn while_it_rests_there_is_no_buffer_to_read_into() {
    let (io, far) = tokio::io::duplex(1 << 16);
    let room = Arc::new(AtomicUsize::new(0));
    let mut server = Server::over(io, Room(far, Arc::clone(&room)), HttpOptions::default());
    server.ask(GET).await;
    sleep(Duration::from_millis(500)).await;
    assert!(room.load(Ordering::SeqCst) >= 4096);
    sleep(Duration::from_secs(1)).await;
    assert!(room.load(Ordering::SeqCst) <= 512, "{room:?}");
}
