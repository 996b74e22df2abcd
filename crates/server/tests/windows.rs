//! HTTP/2's flow control (RFC 9113 section 5.2): responses that a client does not take, and those that are slow for another reason.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use portcullis_conn::FirstBytes;
use portcullis_server::{CloseReason, HttpOptions, Plain, RequestBody, ServerCounters, serve};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    task::JoinHandle,
    time::{Instant, sleep},
};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// One connection: `/whole` gets 60,000 bytes in one piece, `/late` a piece after a hundred seconds and another after as long.
fn connect(counters: &Arc<ServerCounters>) -> DuplexStream {
    let (near, far) = tokio::io::duplex(1 << 10);
    let mut conn = portcullis_testkit::conn(far);
    conn.info.first_bytes = Some(FirstBytes::Http2Preface);
    let service = tower::service_fn(|request: Request<RequestBody>| async move {
        let pause = || sleep(Duration::from_secs(100));
        let late = || stream::once(async move { pause().await }).map(|()| Ok(Frame::data("late".into())));
        let body: Body = match request.uri().path() {
            "/late" => StreamBody::new(late().chain(late())).boxed_unsync(),
            _ => Full::new(Bytes::from(vec![0; 60_000])).boxed_unsync(),
        };
        Ok::<_, Infallible>(Response::new(body))
    });
    let options = HttpOptions::default()
        .with_send_timeout(Duration::from_secs(5))
        .with_idle_timeout(Duration::from_secs(1000));
    let incoming = stream::iter([conn]).chain(stream::pending());
    tokio::spawn(serve(incoming, Plain, service, options, Arc::clone(counters), std::future::pending()));
    near
}

async fn client(io: DuplexStream, window: u32) -> (SendRequest<Full<Bytes>>, JoinHandle<hyper::Result<()>>) {
    let mut builder = Builder::new(TokioExecutor::new());
    let (send, conn) = builder.initial_stream_window_size(window).handshake(TokioIo::new(io)).await.unwrap();
    (send, tokio::spawn(conn))
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(format!("http://a{path}")).body(Full::default()).unwrap()
}

/// The protocol's driver takes a piece of any size for a window of a byte. What it holds then is no longer its service's.
#[tokio::test(start_paused = true)]
async fn a_piece_that_was_handed_over_and_is_not_taken_ends_the_connection() {
    let counters = Arc::new(ServerCounters::default());
    let (mut send, conn) = client(connect(&counters), 1000).await;
    let read = send.send_request(get("/whole")).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(read.to_bytes().len(), 60_000, "one that is read is no stall, however small its window");
    // a service that is waited for hides no other
    let late = send.send_request(get("/late")).await.unwrap();
    let unread = send.send_request(get("/whole")).await.unwrap();
    let start = Instant::now();
    let busy = tokio::spawn(async move {
        while let Ok(response) = send.send_request(get("/whole")).await {
            let _ = response.into_body().collect().await;
            sleep(Duration::from_secs(1)).await;
        }
    });
    let _ = tokio::time::timeout(Duration::from_secs(2000), conn).await.expect("its end").unwrap();
    let took = start.elapsed().as_secs_f32();
    assert!((5.0..17.0).contains(&took), "closed after {took} s");
    assert_eq!(counters.stats().closed(CloseReason::ClientStoppedReading), 1);
    drop((unread, late));
    busy.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn services_that_are_silent_keep_their_connection() {
    let counters = Arc::new(ServerCounters::default());
    let (mut send, _conn) = client(connect(&counters), 1 << 16).await;
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let response = send.send_request(get("/late")).await.unwrap();
        all.spawn(async move { response.into_body().collect().await.unwrap().to_bytes() });
    }
    for body in tokio::time::timeout(Duration::from_secs(2000), all.join_all()).await.expect("all of them") {
        assert_eq!(body, "latelate");
    }
}

/// Whose windows are open and whose line is slow may take as long as it takes.
#[tokio::test(start_paused = true)]
async fn a_slow_line_is_no_shut_window() {
    let counters = Arc::new(ServerCounters::default());
    let (mut reader, mut writer) = tokio::io::split(connect(&counters));
    let (near, far) = tokio::io::duplex(1 << 16);
    let (mut from, mut to) = tokio::io::split(far);
    tokio::spawn(async move { tokio::io::copy(&mut from, &mut writer).await });
    tokio::spawn(async move {
        let mut some = [0; 1000];
        while let Ok(count @ 1..) = reader.read(&mut some).await {
            sleep(Duration::from_millis(500)).await;
            to.write_all(&some[..count]).await.unwrap();
        }
    });
    let (mut send, _conn) = client(near, 1 << 16).await;
    let start = Instant::now();
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let response = send.send_request(get("/whole"));
        all.spawn(
            async move { response.await.unwrap().into_body().collect().await.unwrap().to_bytes().len() },
        );
    }
    let all = tokio::time::timeout(Duration::from_secs(2000), all.join_all()).await.expect("all of them");
    assert_eq!(all, [60_000; 10]);
    assert!(start.elapsed().as_secs() > 100, "{:?}", start.elapsed());
}
