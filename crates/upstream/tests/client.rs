//! The client against an origin whose every byte the test decides.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use portcullis_testkit::origin::{Answer, RawOrigin};
use portcullis_upstream::{
    Cluster, ClusterOptions, Connector, Endpoint, Error, OutlierOptions, RetryOptions, Stream, UpgradedSlot,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;
type Client = portcullis_upstream::Client<Connector>;

fn none() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn full(text: &'static str) -> Body {
    Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed_unsync()
}

/// A body that is fed by hand.
fn fed() -> (mpsc::UnboundedSender<Result<Frame<Bytes>, std::io::Error>>, Body) {
    struct Frames(mpsc::UnboundedReceiver<Result<Frame<Bytes>, std::io::Error>>);
    impl futures_core::Stream for Frames {
        type Item = Result<Frame<Bytes>, std::io::Error>;
        fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            self.0.poll_recv(cx)
        }
    }
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, StreamBody::new(Frames(receiver)).boxed_unsync())
}

fn get(path: &str) -> Request<Body> {
    Request::get(path).header("host", "t").body(none()).unwrap()
}

fn cluster(origins: &[&RawOrigin], options: ClusterOptions) -> Cluster {
    Cluster::new("test", origins.iter().map(|origin| Endpoint::from(origin.addr())).collect(), options)
        .unwrap()
}

fn client(origin: &RawOrigin) -> Client {
    cluster(&[origin], ClusterOptions::default()).client()
}

async fn text<B>(response: Response<B>) -> String
where
    B: http_body::Body<Data = Bytes, Error = Error>,
{
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let origin = RawOrigin::script(vec![
        Answer::ok("one"),
        Answer::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"),
        Answer::raw("HTTP/1.1 204 No Content\r\n\r\n"),
        Answer::ok("four"),
    ])
    .await;
    let client = client(&origin);
    assert_eq!(text(client.send(get("/1")).await.unwrap()).await, "one");
    assert_eq!(text(client.send(get("/2")).await.unwrap()).await, "two");
    assert_eq!(client.send(get("/3")).await.unwrap().status(), StatusCode::NO_CONTENT);
    assert_eq!(text(client.send(get("/4")).await.unwrap()).await, "four");
    assert_eq!((origin.connections(), client.idle_connections()), (1, 1));
    assert!(origin.received_text().starts_with("GET /1 HTTP/1.1\r\nhost: t\r\n\r\nGET /2 HTTP/1.1\r\n"));
}

#[tokio::test]
async fn what_must_not_be_used_again_is_not() {
    let answers = [
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        // bytes after the end of the response: a second answer that nobody asked for
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n",
    ];
    for answer in answers {
        let origin = RawOrigin::script(vec![Answer::raw(answer), Answer::ok("next")]).await;
        let client = client(&origin);
        assert_eq!(text(client.send(get("/")).await.unwrap()).await, "ok", "{answer}");
        assert_eq!(client.idle_connections(), 0, "{answer}");
        assert_eq!(text(client.send(get("/")).await.unwrap()).await, "next");
        assert_eq!(origin.connections(), 2);
    }
}

#[tokio::test]
async fn a_body_that_is_dropped_closes_its_connection() {
    let origin =
        RawOrigin::script(vec![Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc")]).await;
    let cluster = cluster(&[&origin], ClusterOptions::default());
    let client = cluster.client();
    let response = client.send(get("/")).await.unwrap();
    assert_eq!((cluster.stats().endpoints[0].busy, cluster.stats().endpoints[0].open), (1, 1));
    drop(response);
    assert_eq!(client.idle_connections(), 0);
    assert_eq!((cluster.stats().endpoints[0].busy, cluster.stats().endpoints[0].open), (0, 0));
}

#[tokio::test]
async fn a_stale_connection_is_no_error() {
    // closed by the origin after each answer, without a word about it
    let origin = RawOrigin::script(vec![Answer::ReplyThenClose(
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".into(),
    )])
    .await;
    let client = client(&origin);
    for _ in 0..20 {
        assert_eq!(text(client.send(get("/")).await.unwrap()).await, "ok");
    }
}

/// RFC 9110 section 9.2.2: what may have been done is not done twice, and what is not at hand any more can not be sent again.
#[tokio::test]
async fn on_a_stale_connection_only_what_may_be_sent_again_is() {
    let short = RetryOptions::default().with_replay_bytes(4);
    for (method, body, options, again) in [
        (Method::PUT, "hello", ClusterOptions::default(), true),
        (Method::POST, "hello", ClusterOptions::default(), false),
        (Method::POST, "", ClusterOptions::default(), false),
        (Method::PUT, "hello", ClusterOptions::default().with_retry(short), false),
    ] {
        let origin = RawOrigin::script(vec![Answer::ok("ok"), Answer::Close, Answer::ok("again")]).await;
        let cluster = cluster(&[&origin], options);
        let client = cluster.client();
        text(client.send(get("/")).await.unwrap()).await;
        let request = Request::builder().method(&method).uri("/").header("host", "t").body(full(body));
        let answer = client.send(request.unwrap()).await;
        assert_eq!(answer.is_ok(), again, "{method} {body}");
        assert!(answer.is_ok() || matches!(answer, Err(Error::Closed { .. })));
        assert_eq!((origin.requests(), cluster.stats().retries), (2 + usize::from(again), u64::from(again)));
        assert!(body.is_empty() || origin.received_text().matches(body).count() == 1 + usize::from(again));
    }
}

#[tokio::test]
async fn a_chunked_request_whose_end_was_framed_is_not_sent_again_without_it() {
    // the first answer leaves a connection that is stale by the second request
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let origin = RawOrigin::script(vec![Answer::ok("ok"), Answer::Close, Answer::raw(ok)]).await;
    let client = client(&origin);
    text(client.send(get("/")).await.unwrap()).await;
    let (sender, body) = fed();
    drop(sender);
    let put = Request::put("/").header("host", "t").body(body).unwrap();
    // an empty chunked body: refused or sent whole, never a head that promises chunks which do not come
    let _ = client.send(put).await;
    let sent = origin.received_text();
    assert_eq!(
        sent.matches("transfer-encoding: chunked").count(),
        sent.matches("\r\n\r\n0\r\n\r\n").count(),
        "{sent}"
    );
}

#[tokio::test]
async fn unasked_bytes_are_seen_even_by_a_task_without_budget() {
    let origin = RawOrigin::with(|mut conn| async move {
        let mut head = Vec::new();
        conn.read_request(&mut head).await.unwrap();
        conn.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        if conn.index() == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            conn.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nPOISON").await.unwrap();
        }
        let _ = conn.read(&mut [0; 1]).await;
    })
    .await;
    let client = client(&origin);
    text(client.send(get("/")).await.unwrap()).await;
    tokio::time::sleep(Duration::from_millis(80)).await;
    tokio::spawn(async move {
        while tokio::task::coop::has_budget_remaining() {
            tokio::task::coop::consume_budget().await;
        }
        assert_eq!(text(client.send(get("/")).await.unwrap()).await, "ok");
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_pool_does_not_keep_a_sibling_from_connecting() {
    let origin = RawOrigin::script(vec![Answer::ok("ok")]).await;
    let cluster = cluster(&[&origin], ClusterOptions::default().with_max_connections(1));
    let (one, two) = (cluster.client(), cluster.client());
    for client in [&one, &two, &one] {
        assert_eq!(text(client.send(get("/")).await.unwrap()).await, "ok");
    }
}

#[tokio::test]
async fn an_idempotent_request_goes_to_another_endpoint() {
    let (bad, good) =
        (RawOrigin::script(vec![Answer::Close]).await, RawOrigin::script(vec![Answer::ok("ok")]).await);
    let cluster = cluster(&[&bad, &good], ClusterOptions::default());
    let client = cluster.client();
    for _ in 0..10 {
        assert_eq!(text(client.send(get("/")).await.unwrap()).await, "ok");
    }
    let stats = cluster.stats();
    assert!(!stats.endpoints[0].healthy && stats.endpoints[1].healthy);
    // as many in a row as it takes
    assert_eq!((bad.requests(), stats.errors), (5, 0));
}

#[tokio::test]
async fn a_request_with_effects_is_not_sent_twice() {
    let (bad, good) =
        (RawOrigin::script(vec![Answer::Close]).await, RawOrigin::script(vec![Answer::ok("ok")]).await);
    let client = cluster(&[&bad, &good], ClusterOptions::default()).client();
    let mut failed = 0;
    for _ in 0..2 {
        let post = Request::post("/").header("host", "t").body(full("pay")).unwrap();
        failed += usize::from(matches!(client.send(post).await, Err(Error::Closed { .. })));
    }
    assert_eq!((failed, bad.requests() + good.requests()), (1, 2));
}

#[tokio::test]
async fn an_endpoint_that_is_down_costs_nothing_but_a_try() {
    let good = RawOrigin::script(vec![Answer::ok("ok")]).await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let endpoints = vec![Endpoint::from(closed), Endpoint::from(good.addr())];
    let client = Cluster::new("test", endpoints, ClusterOptions::default()).unwrap().client();
    for _ in 0..4 {
        // nothing was sent: even a POST may go elsewhere
        let post = Request::post("/").header("host", "t").body(full("pay")).unwrap();
        assert_eq!(text(client.send(post).await.unwrap()).await, "ok");
    }
    let alone =
        Cluster::new("alone", vec![Endpoint::from(closed)], ClusterOptions::default()).unwrap().client();
    let error = alone.send(get("/")).await.unwrap_err();
    assert!(error.is_connect() && !error.is_timeout(), "{error}");
}

#[tokio::test]
async fn hostile_answers_are_errors() {
    for (answer, at_head) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", true),
        ("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", true),
        ("garbage garbage garbage\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", false),
    ] {
        let origin = RawOrigin::script(vec![Answer::raw(answer)]).await;
        let client = client(&origin);
        match client.send(get("/")).await {
            Err(Error::Protocol { .. }) => assert!(at_head, "{answer}"),
            Err(other) => panic!("{answer}: {other}"),
            Ok(response) => {
                let error = response.into_body().collect().await.unwrap_err();
                assert!(!at_head && matches!(error, Error::Protocol { .. }), "{answer}: {error}");
            }
        }
        assert_eq!(client.idle_connections(), 0);
    }
    let interim = "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n".repeat(17);
    let origin = RawOrigin::script(vec![Answer::raw(interim)]).await;
    assert!(matches!(client(&origin).send(get("/")).await, Err(Error::Protocol { .. })));
}

#[tokio::test]
async fn interim_responses_are_passed_over() {
    let answer = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let origin = RawOrigin::script(vec![Answer::raw(answer)]).await;
    assert_eq!(text(client(&origin).send(get("/")).await.unwrap()).await, "ok");
}

#[tokio::test]
async fn a_cut_body_is_an_error() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        let origin = RawOrigin::script(vec![Answer::ReplyThenClose(answer.into())]).await;
        let response = client(&origin).send(get("/")).await.unwrap();
        let error = response.into_body().collect().await.unwrap_err();
        assert!(matches!(error, Error::Closed { .. }), "{error}");
    }
    let until_close = "HTTP/1.1 200 OK\r\n\r\nabc";
    let origin = RawOrigin::script(vec![Answer::ReplyThenClose(until_close.into())]).await;
    assert_eq!(text(client(&origin).send(get("/")).await.unwrap()).await, "abc");
}

#[tokio::test]
async fn request_bodies_are_framed_and_held_to_their_length() {
    let origin = RawOrigin::script(vec![Answer::ok("ok")]).await;
    let client = client(&origin);
    let (sender, body) = fed();
    sender.send(Ok(Frame::data(Bytes::from_static(b"hello")))).unwrap();
    sender.send(Ok(Frame::data(Bytes::from(vec![b'x'; 5000])))).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "1".parse().unwrap());
    trailers.insert("content-length", "1".parse().unwrap());
    sender.send(Ok(Frame::trailers(trailers))).unwrap();
    drop(sender);
    let request = Request::post("/").header("host", "t").body(body).unwrap();
    assert_eq!(text(client.send(request).await.unwrap()).await, "ok");
    let sent = origin.received_text();
    let expected = format!(
        "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n1388\r\n{}\r\n0\r\nx-sum: 1\r\n\r\n",
        "x".repeat(5000)
    );
    assert!(sent.ends_with(&expected), "{sent}");

    for (length, data) in [("3", "abcd"), ("5", "abcd")] {
        let (sender, body) = fed();
        sender.send(Ok(Frame::data(Bytes::from_static(data.as_bytes())))).unwrap();
        drop(sender);
        let request =
            Request::post("/").header("host", "t").header("content-length", length).body(body).unwrap();
        let error = client.send(request).await.unwrap_err();
        assert!(error.is_request(), "{error}");
    }
    let (sender, body) = fed();
    sender.send(Err(std::io::Error::other("client went away"))).unwrap();
    let request = Request::post("/").header("host", "t").body(body).unwrap();
    assert!(matches!(client.send(request).await.unwrap_err(), Error::RequestBody { .. }));
    assert_eq!(client.idle_connections(), 0);
}

#[tokio::test]
async fn an_answer_may_begin_before_the_request_has_ended() {
    let origin = RawOrigin::with(|mut conn| async move {
        let mut seen = Vec::new();
        let mut buf = [0; 1024];
        conn.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        loop {
            let n = conn.read(&mut buf).await.unwrap_or(0);
            seen.extend_from_slice(&buf[..n]);
            if n == 0 || seen.ends_with(b"0\r\n\r\n") {
                break;
            }
        }
        conn.write_all(b"4\r\ndone\r\n0\r\n\r\n").await.unwrap();
        let _ = conn.read(&mut buf).await;
    })
    .await;
    let client = client(&origin);
    let (sender, body) = fed();
    let response = client.send(Request::post("/").header("host", "t").body(body).unwrap()).await.unwrap();
    for _ in 0..10 {
        sender.send(Ok(Frame::data(Bytes::from(vec![b'y'; 100_000])))).unwrap();
    }
    drop(sender);
    assert_eq!(text(response).await, "done");
    assert_eq!(client.idle_connections(), 1);
}

#[tokio::test]
async fn early_refusal_is_heard_although_the_request_can_not_be_written() {
    let origin = RawOrigin::with(|mut conn| async move {
        let mut buf = [0; 16];
        conn.read_exact(&mut buf).await.unwrap();
        conn.write_all(b"HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            .await
            .unwrap();
        // hold the door until the client has gone
        let mut sink = vec![0; 65536];
        while matches!(conn.read(&mut sink).await, Ok(n) if n > 0) {}
    })
    .await;
    let (sender, body) = fed();
    sender.send(Ok(Frame::data(Bytes::from(vec![b'z'; 1 << 20])))).unwrap();
    let client = client(&origin);
    let response = client.send(Request::post("/").header("host", "t").body(body).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    drop((response, sender));
    assert_eq!(client.idle_connections(), 0, "its request body was not sent whole");
}

#[tokio::test]
async fn timeouts_have_names() {
    let origin = RawOrigin::script(vec![Answer::Hang]).await;
    let options = ClusterOptions::default()
        .with_response_timeout(Duration::from_millis(30))
        .with_read_timeout(Duration::from_millis(30))
        .with_write_timeout(Duration::from_millis(30));
    let cluster1 = cluster(&[&origin], options.clone());
    let error = cluster1.client().send(get("/")).await.unwrap_err();
    assert!(matches!(error, Error::ResponseTimeout { .. }) && error.is_timeout(), "{error}");
    assert_eq!(cluster1.stats().endpoints[0].failures, 1);

    let origin =
        RawOrigin::script(vec![Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc")]).await;
    let response = cluster(&[&origin], options.clone()).client().send(get("/")).await.unwrap();
    let error = response.into_body().collect().await.unwrap_err();
    assert!(matches!(error, Error::ReadTimeout { .. }), "{error}");

    // an origin that reads nothing: the kernel's buffers fill up
    let origin = RawOrigin::with(|conn| async move {
        std::future::pending::<()>().await;
        drop(conn);
    })
    .await;
    let (sender, body) = fed();
    for _ in 0..64 {
        sender.send(Ok(Frame::data(Bytes::from(vec![0; 1 << 20])))).unwrap();
    }
    let request = Request::post("/").header("host", "t").body(body).unwrap();
    let error = cluster(&[&origin], options).client().send(request).await.unwrap_err();
    assert!(matches!(error, Error::WriteTimeout { .. }), "{error}");
}

#[tokio::test]
async fn a_client_that_sends_slowly_runs_into_no_upstream_timeout() {
    let origin = RawOrigin::script(vec![Answer::ok("ok")]).await;
    let options = ClusterOptions::default()
        .with_response_timeout(Duration::from_millis(40))
        .with_write_timeout(Duration::from_millis(40));
    let client = cluster(&[&origin], options).client();
    let (sender, body) = fed();
    let feed = async {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(25)).await;
            sender.send(Ok(Frame::data(Bytes::from_static(b"slow")))).unwrap();
        }
        drop(sender);
    };
    let send = client.send(Request::post("/").header("host", "t").body(body).unwrap());
    let (response, ()) = tokio::join!(send, feed);
    assert_eq!(text(response.unwrap()).await, "ok");
}

#[tokio::test]
async fn a_client_that_stops_sending_is_given_up() {
    let origin = RawOrigin::script(vec![Answer::ok("ok")]).await;
    let cluster =
        cluster(&[&origin], ClusterOptions::default().with_request_timeout(Duration::from_millis(40)));
    let client = cluster.client();
    let (sender, body) = fed();
    sender.send(Ok(Frame::data(Bytes::from_static(b"half")))).unwrap();
    let error = client.send(Request::post("/").header("host", "t").body(body).unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::RequestTimeout) && error.is_request() && error.is_timeout(), "{error}");
    // no fault of the endpoint's
    let stats = cluster.stats();
    assert!(stats.endpoints[0].healthy && stats.endpoints[0].open == 0 && stats.endpoints[0].failures == 0);
}

#[tokio::test]
async fn connections_are_bounded_and_places_come_back() {
    let origin =
        RawOrigin::script(vec![Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc")]).await;
    let options = ClusterOptions::default()
        .with_max_connections(2)
        .with_outlier(OutlierOptions::default().with_consecutive_failures(0));
    let options = options.with_queue_timeout(Duration::from_millis(20));
    let cluster = cluster(&[&origin], options);
    let client = cluster.client();
    let (one, _two) = (client.send(get("/")).await.unwrap(), client.send(get("/")).await.unwrap());
    assert!(matches!(client.send(get("/")).await.unwrap_err(), Error::QueueTimeout { .. }));
    drop(one);
    client.send(get("/")).await.unwrap();
    let pending = client.send(get("/"));
    drop(pending);
    assert_eq!(cluster.stats().endpoints[0].open, 1);
}

#[tokio::test]
async fn upgrades_hand_over_the_stream_with_what_came_early() {
    let origin = RawOrigin::with(|mut conn| async move {
        let mut head = Vec::new();
        conn.read_request(&mut head).await.unwrap();
        conn.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nhello ",
        )
        .await
        .unwrap();
        let mut buf = [0; 64];
        while let Ok(n @ 1..) = conn.read(&mut buf).await {
            conn.write_all(&buf[..n]).await.unwrap();
        }
    })
    .await;
    let cluster = cluster(&[&origin], ClusterOptions::default());
    let client = cluster.client();
    let request =
        Request::get("/").header("host", "t").header("connection", "upgrade").header("upgrade", "echo");
    let mut response = client.send(request.body(none()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let slot = response.extensions_mut().remove::<UpgradedSlot<Stream>>().unwrap();
    let mut stream = slot.take().unwrap();
    assert!(slot.take().is_none());
    stream.write_all(b"world").await.unwrap();
    let mut got = [0; 11];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"hello world");
    assert_eq!(cluster.stats().endpoints[0].busy, 1);
    drop(stream);
    assert_eq!(cluster.stats().endpoints[0].open, 0);
}

#[tokio::test]
async fn head_and_empty_answers_have_no_body() {
    let origin = RawOrigin::script(vec![
        Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n"),
        Answer::raw("HTTP/1.1 304 Not Modified\r\ncontent-length: 500\r\n\r\n"),
        Answer::ok("ok"),
    ])
    .await;
    let client = client(&origin);
    let head = Request::builder().method(Method::HEAD).uri("/").header("host", "t").body(none()).unwrap();
    let response = client.send(head).await.unwrap();
    assert_eq!(response.headers()["content-length"], "500");
    assert_eq!(text(response).await, "");
    assert_eq!(text(client.send(get("/")).await.unwrap()).await, "");
    assert_eq!(text(client.send(get("/")).await.unwrap()).await, "ok");
    assert_eq!(origin.connections(), 1);
}
