//! The client against an HTTP/2 server whose every frame the test decides.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use portcullis_testkit::body::ScriptBody;
use portcullis_upstream::{
    Client, ClientAddresses, Cluster, ClusterOptions, Connector, Endpoint, Error, OutlierOptions, Protocol,
    RetryOptions, Stream, UpgradedSlot,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

struct Server {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

/// Serves HTTP/2 by prior knowledge. The handler is told the number of the connection and of the request on it.
async fn server<F, Fut>(max_streams: u32, handler: F) -> Server
where
    F: Fn(usize, usize, Request<RecvStream>, SendResponse<Bytes>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut all = JoinSet::new();
        loop {
            let (io, _) = listener.accept().await.unwrap();
            let number = counted.fetch_add(1, Ordering::SeqCst);
            let handler = handler.clone();
            all.spawn(async move {
                let mut conn = h2::server::Builder::new()
                    .max_concurrent_streams(max_streams)
                    .enable_connect_protocol()
                    .handshake::<_, Bytes>(io)
                    .await
                    .unwrap();
                let mut requests = JoinSet::new();
                let mut count = 0;
                while let Some(Ok((request, respond))) = conn.accept().await {
                    if request.uri().path() == "/goaway" && number == 0 {
                        conn.abrupt_shutdown(Reason::NO_ERROR);
                        continue;
                    }
                    requests.spawn(handler(number, count, request, respond));
                    count += 1;
                }
            });
        }
    });
    Server { addr, connections, _task: task }
}

fn cluster(server: &Server, options: ClusterOptions) -> Cluster {
    let options = options.with_protocol(Protocol::Http2);
    Cluster::new("test", vec![Endpoint::from(server.addr)], options).unwrap()
}

fn client(server: &Server) -> Client<Connector> {
    cluster(server, ClusterOptions::default()).client()
}

fn get(path: &str) -> Request<Body> {
    let none = Empty::new().map_err(|never| match never {});
    Request::get(path).header("host", "app.test").body(none.boxed_unsync()).unwrap()
}

fn boxed<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    body.map_err(std::io::Error::other).boxed_unsync()
}

async fn text<B: http_body::Body<Data = Bytes, Error = Error>>(response: Response<B>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn answer(respond: &mut SendResponse<Bytes>, status: u16, body: &'static str) {
    let response = Response::builder().status(status).body(()).unwrap();
    let mut send = respond.send_response(response, body.is_empty()).unwrap();
    if !body.is_empty() {
        send.send_data(Bytes::from_static(body.as_bytes()), true).unwrap();
    }
}

/// Sends everything back, trailers too, as it comes.
async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (parts, mut body) = request.into_parts();
    let mut response = Response::new(());
    response.headers_mut().insert("x-authority", parts.uri.authority().unwrap().as_str().parse().unwrap());
    let mut send = respond.send_response(response, false).unwrap();
    while let Some(Ok(data)) = body.data().await {
        body.flow_control().release_capacity(data.len()).unwrap();
        send.send_data(data, false).unwrap();
    }
    match body.trailers().await.unwrap() {
        Some(trailers) => send.send_trailers(trailers).unwrap(),
        None => send.send_data(Bytes::new(), true).unwrap(),
    }
}

#[tokio::test]
async fn requests_share_a_connection() {
    let server = server(100, |_, n, request, mut respond| async move {
        assert_eq!(
            (request.uri().to_string(), request.method()),
            ("http://app.test/a?b".to_owned(), &Method::GET)
        );
        answer(&mut respond, if n == 2 { 204 } else { 200 }, if n == 2 { "" } else { "hello" });
    })
    .await;
    let client = client(&server);
    for _ in 0..2 {
        let response = client.send(get("/a?b")).await.unwrap();
        assert_eq!(response.version(), Version::HTTP_2);
        assert_eq!(text(response).await, "hello");
    }
    assert_eq!(client.send(get("/a?b")).await.unwrap().status(), StatusCode::NO_CONTENT);
    assert_eq!((server.connections.load(Ordering::SeqCst), client.idle_connections()), (1, 1));
}

#[tokio::test]
async fn bodies_and_trailers_go_both_ways() {
    let server = server(100, |_, _, request, respond| echo(request, respond)).await;
    let client = client(&server);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    trailers.insert("content-length", "9".parse().unwrap());
    let body = ScriptBody::new().data("ab").pend().data("cd").trailers(trailers);
    let request = Request::post("/").header("host", "app.test").body(boxed(body)).unwrap();
    let response = client.send(request).await.unwrap();
    assert_eq!(response.headers()["x-authority"], "app.test");
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap().len(), 1, "no trailer frames a message");
    assert_eq!(collected.to_bytes(), "abcd");
    // far more than every window
    let big = Bytes::from(vec![b'x'; 5 << 20]);
    let request = Request::put("/").header("host", "app.test").body(boxed(Full::new(big.clone()))).unwrap();
    let response = client.send(request).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), big);
}

#[tokio::test]
async fn past_the_endpoints_limit_of_streams_another_connection_is_made() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let held = Arc::clone(&gate);
    let server = server(3, move |_, _, _, mut respond| {
        let held = Arc::clone(&held);
        async move {
            held.acquire().await.unwrap().forget();
            answer(&mut respond, 200, "ok");
        }
    })
    .await;
    let client = client(&server);
    // the endpoint's settings are known after a first exchange
    gate.add_permits(1);
    assert_eq!(text(client.send(get("/")).await.unwrap()).await, "ok");
    let mut all = JoinSet::new();
    for _ in 0..10 {
        let client = client.clone();
        all.spawn(async move { text(client.send(get("/")).await.unwrap()).await });
    }
    while server.connections.load(Ordering::SeqCst) < 4 {
        tokio::task::yield_now().await;
    }
    gate.add_permits(100);
    assert_eq!(all.join_all().await, ["ok"; 10]);
    assert_eq!(server.connections.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn at_the_limit_of_connections_requests_wait_for_a_stream() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let held = Arc::clone(&gate);
    let server = server(2, move |_, _, _, mut respond| {
        let held = Arc::clone(&held);
        async move {
            held.acquire().await.unwrap().forget();
            answer(&mut respond, 200, "ok");
        }
    })
    .await;
    let options =
        ClusterOptions::default().with_max_connections(1).with_queue_timeout(Duration::from_secs(5));
    let client = cluster(&server, options).client();
    let mut all = JoinSet::new();
    for _ in 0..7 {
        let client = client.clone();
        all.spawn(async move { text(client.send(get("/")).await.unwrap()).await });
    }
    for _ in 0..7 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        gate.add_permits(1);
    }
    assert_eq!(all.join_all().await, ["ok"; 7]);
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_the_endpoint_did_not_do_is_sent_again_whatever_it_is() {
    let server = server(100, |_, n, request, mut respond| async move {
        match n {
            0 => respond.send_reset(Reason::REFUSED_STREAM),
            _ => echo(request, respond).await,
        }
    })
    .await;
    let cluster = cluster(&server, ClusterOptions::default());
    let client = cluster.client();
    let post =
        |path| Request::post(path).header("host", "app.test").body(boxed(Full::new(Bytes::from("abc"))));
    assert_eq!(text(client.send(post("/").unwrap()).await.unwrap()).await, "abc");
    assert_eq!(cluster.stats().retries, 1);
    // a connection that ends under an idempotent request is none of the endpoint's failures, and another one is made
    assert!(client.send(get("/goaway")).await.unwrap().status().is_success());
    assert_eq!((cluster.stats().retries, server.connections.load(Ordering::SeqCst)), (3, 2));
    assert!(cluster.stats().endpoints[0].healthy && cluster.stats().endpoints[0].busy == 0);
}

#[tokio::test]
async fn what_it_may_have_done_is_not_if_it_is_not_idempotent() {
    let server = server(100, |_, n, _, mut respond| async move {
        if n % 2 == 0 {
            respond.send_reset(Reason::INTERNAL_ERROR);
        } else {
            answer(&mut respond, 200, "ok");
        }
    })
    .await;
    let cluster = cluster(
        &server,
        ClusterOptions::default().with_outlier(OutlierOptions::default().with_consecutive_failures(0)),
    );
    let client = cluster.client();
    let request = Request::post("/").header("host", "a").body(boxed(Full::new(Bytes::from("abc")))).unwrap();
    assert!(matches!(client.send(request).await, Err(Error::Reset { .. })));
    assert_eq!(cluster.stats().retries, 0);
}

/// What a server does with a request.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// 200 without content.
    Answer,
    /// GOAWAY, which says that it has not seen it (RFC 9113 section 6.8).
    GoAway,
    /// The connection ends without a word.
    Cut,
}

/// Does these one by one with the requests that come, over all connections.
async fn acts(acts: &'static [Act]) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let (counted, done) = (Arc::clone(&connections), Arc::new(AtomicUsize::new(0)));
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut all = JoinSet::new();
        loop {
            let (io, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let done = Arc::clone(&done);
            // whoever is there may go at any time
            all.spawn(async move { act(io, acts, &done).await.unwrap_or_default() });
        }
    });
    Server { addr, connections, _task: task }
}

async fn act(mut io: tokio::net::TcpStream, acts: &[Act], done: &AtomicUsize) -> std::io::Result<()> {
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    const SETTINGS_ACK: &[u8] = &[0, 0, 0, 4, 1, 0, 0, 0, 0];
    const GOAWAY: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut preface = [0; 24];
    io.read_exact(&mut preface).await?;
    io.write_all(SETTINGS).await?;
    loop {
        let mut head = [0; 9];
        io.read_exact(&mut head).await?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        io.read_exact(&mut payload).await?;
        match (head[3], head[4] & 1) {
            (4, 0) => io.write_all(SETTINGS_ACK).await?,
            (6, 0) => io.write_all(&[&[0, 0, 8, 6, 1, 0, 0, 0, 0], &payload[..]].concat()).await?,
            (1, _) => match acts[done.fetch_add(1, Ordering::SeqCst)] {
                // `:status: 200` is number 8 of RFC 7541 appendix A
                Act::Answer => io.write_all(&[&[0, 0, 1, 1, 5], &head[5..], &[0x88]].concat()).await?,
                Act::GoAway => io.write_all(GOAWAY).await?,
                Act::Cut => return Ok(()),
            },
            _ => {}
        }
    }
}

/// RFC 9113 section 8.7, RFC 9110 section 9.2.2.
#[tokio::test]
async fn a_connection_that_ends_takes_only_what_may_not_be_sent_again() {
    use Act::{Answer, Cut, GoAway};
    let short = ClusterOptions::default().with_retry(RetryOptions::default().with_replay_bytes(2));
    let cases: [(&'static [Act], Method, ClusterOptions, bool); 6] = [
        (&[GoAway, Answer], Method::POST, ClusterOptions::default(), true),
        (&[GoAway, Answer], Method::POST, short.clone(), false),
        (&[Answer, GoAway, Answer], Method::POST, ClusterOptions::default(), true),
        (&[Cut, Answer], Method::POST, ClusterOptions::default(), false),
        (&[Answer, Cut, Answer], Method::POST, ClusterOptions::default(), false),
        (&[Answer, Cut, Answer], Method::PUT, ClusterOptions::default(), true),
    ];
    for (script, method, options, again) in cases {
        let server = acts(script).await;
        let cluster = cluster(&server, options);
        let client = cluster.client();
        if matches!(script[0], Answer) {
            client.send(get("/")).await.unwrap();
        }
        let request = Request::builder().method(&method).uri("/").header("host", "a");
        let answer = client.send(request.body(boxed(Full::new(Bytes::from("abc")))).unwrap()).await;
        assert_eq!(answer.is_ok(), again, "{method} {script:?}: {:?}", answer.err());
        let connections = server.connections.load(Ordering::SeqCst);
        let expected = (1 + usize::from(again), u64::from(again));
        assert_eq!((connections, cluster.stats().retries), expected, "{method} {script:?}");
    }
}

#[tokio::test]
async fn a_connection_is_one_clients_where_it_must_be() {
    let server = server(100, |_, _, _, mut respond| async move { answer(&mut respond, 200, "ok") }).await;
    let client = cluster(&server, ClusterOptions::default().with_connection_per_client(true)).client();
    for port in [1, 2, 1, 2, 1] {
        let mut request = get("/");
        let local = ([127, 0, 0, 1], 80).into();
        request.extensions_mut().insert(ClientAddresses { peer: ([192, 0, 2, 1], port).into(), local });
        assert_eq!(text(client.send(request).await.unwrap()).await, "ok");
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn responses_that_nobody_reads_keep_no_other_one_waiting() {
    // more than a stream's window
    const LONG: usize = 200 << 10;
    let server = server(100, |_, _, _, mut respond| async move {
        let mut send = respond.send_response(Response::new(()), false).unwrap();
        send.send_data(Bytes::from(vec![b'x'; LONG]), true).unwrap();
    })
    .await;
    let mut options = ClusterOptions::default();
    options.http2.max_streams = 4;
    options.http2.connection_window = options.http2.stream_window;
    let client = cluster(&server, options).client();
    let mut unread = Vec::new();
    for _ in 0..3 {
        unread.push(client.send(get("/")).await.unwrap());
    }
    let read = async { text(client.send(get("/")).await.unwrap()).await.len() };
    let read = tokio::time::timeout(Duration::from_secs(5), read).await;
    assert_eq!(read.expect("it has a window of its own"), LONG);
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn small_frames_that_nobody_reads_yet_end_no_connection() {
    const FRAMES: usize = 60_000;
    let server = server(100, |_, n, _, mut respond| async move {
        if n > 0 {
            return answer(&mut respond, 200, "ok");
        }
        let mut send = respond.send_response(Response::new(()), false).unwrap();
        for n in 1..=FRAMES {
            send.send_data(Bytes::from_static(b"x"), n == FRAMES).unwrap();
        }
    })
    .await;
    let client = client(&server);
    let response = client.send(get("/")).await.unwrap();
    assert_eq!(text(client.send(get("/")).await.unwrap()).await, "ok");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(text(response).await.len(), FRAMES);
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_body_that_is_cut_short_is_an_error() {
    let server = server(100, |_, n, _, mut respond| async move {
        let mut send = respond.send_response(Response::new(()), false).unwrap();
        send.send_data(Bytes::from_static(b"half"), false).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        send.send_reset(if n == 0 { Reason::INTERNAL_ERROR } else { Reason::NO_ERROR });
    })
    .await;
    let client = client(&server);
    for _ in 0..2 {
        let response = client.send(get("/")).await.unwrap();
        assert!(matches!(response.into_body().collect().await, Err(Error::Reset { .. })));
    }
}

#[tokio::test]
async fn times_are_kept() {
    let server = server(100, |_, _, request, mut respond| async move {
        if request.uri().path() == "/pause" {
            let _send = respond.send_response(Response::new(()), false).unwrap();
            std::future::pending::<()>().await;
        }
        std::future::pending::<()>().await;
    })
    .await;
    let short = Duration::from_millis(30);
    let options = ClusterOptions::default()
        .with_response_timeout(short)
        .with_read_timeout(short)
        .with_request_timeout(short);
    let cluster = cluster(&server, options);
    let client = cluster.client();
    assert!(matches!(client.send(get("/")).await, Err(Error::ResponseTimeout { .. })));
    let response = client.send(get("/pause")).await.unwrap();
    assert!(matches!(response.into_body().collect().await, Err(Error::ReadTimeout { .. })));
    let slow =
        Request::post("/").header("host", "a").body(boxed(ScriptBody::new().data("x").hang())).unwrap();
    assert!(matches!(client.send(slow).await, Err(Error::RequestTimeout)));
    assert_eq!(cluster.stats().endpoints[0].busy, 0);
}

#[tokio::test]
async fn rfc8441_an_upgrade_is_an_extended_connect() {
    let server = server(100, |_, n, request, mut respond| async move {
        assert_eq!(request.method(), Method::CONNECT);
        assert_eq!(request.extensions().get::<h2::ext::Protocol>().unwrap().as_str(), "websocket");
        if n == 1 {
            return answer(&mut respond, 403, "no");
        }
        echo(request, respond).await;
    })
    .await;
    let client = client(&server);
    let upgrade = || {
        let request = Request::get("/chat").header("host", "a.test").header("connection", "upgrade");
        request.header("upgrade", "websocket").body(boxed(Empty::<Bytes>::new())).unwrap()
    };
    let mut response = client.send(upgrade()).await.unwrap();
    assert_eq!((response.status(), response.version()), (StatusCode::SWITCHING_PROTOCOLS, Version::HTTP_2));
    assert_eq!(response.headers()["upgrade"], "websocket");
    let slot = response.extensions_mut().remove::<UpgradedSlot<Stream>>().unwrap();
    let mut stream = slot.take().unwrap();
    let sent = vec![b'w'; 1 << 20];
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let mut got = Vec::new();
    let (wrote, read) = tokio::join!(
        async {
            write.write_all(&sent).await?;
            // the end of one direction is not that of the other
            write.shutdown().await
        },
        read.read_to_end(&mut got)
    );
    wrote.unwrap();
    read.unwrap();
    assert_eq!(got, sent);
    let refused = client.send(upgrade()).await.unwrap();
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert_eq!(text(refused).await, "no");
}

#[tokio::test]
async fn an_endpoint_without_extended_connect_is_asked_for_none() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let _server = tokio::spawn(async move {
        let (io, _) = listener.accept().await.unwrap();
        let mut conn = h2::server::handshake(io).await.unwrap();
        assert!(!matches!(conn.accept().await, Some(Ok(_))), "a request");
    });
    let options = ClusterOptions::default().with_protocol(Protocol::Http2);
    let client = Cluster::new("test", vec![Endpoint::from(addr)], options).unwrap().client();
    let request =
        Request::get("/").header("host", "a").header("connection", "upgrade").header("upgrade", "websocket");
    let error = client.send(request.body(boxed(Empty::<Bytes>::new())).unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::NoExtendedConnect { .. }), "{error}");
}

#[tokio::test]
async fn a_connection_that_answers_no_ping_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let _server = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            // open, and silent
            held.push(listener.accept().await.unwrap());
        }
    });
    let mut options = ClusterOptions::default()
        .with_protocol(Protocol::Http2)
        .with_outlier(OutlierOptions::default().with_consecutive_failures(0));
    options.http2.ping_timeout = Duration::from_millis(30);
    let cluster = Cluster::new("test", vec![Endpoint::from(addr)], options).unwrap();
    let error = cluster.client().send(get("/")).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error:?}");
}

#[derive(Default)]
struct Hints(std::sync::Mutex<Vec<(u16, usize)>>);

impl portcullis_conn::InterimSink for Hints {
    fn send(&self, _: u64, status: u16, fields: &mut dyn Iterator<Item = (&str, &[u8])>) -> bool {
        self.0.lock().unwrap().push((status, fields.count()));
        true
    }
}

#[tokio::test]
async fn interim_responses_are_passed_on_and_not_without_end() {
    let server = server(100, |_, _, request, mut respond| async move {
        let hints = || Response::builder().status(103).header("link", "</a>").body(()).unwrap();
        let count = if request.uri().path() == "/many" { 40 } else { 2 };
        for _ in 0..count {
            // the client may have had enough
            let _ = respond.send_informational(hints());
        }
        if count == 2 {
            answer(&mut respond, 200, "ok");
        }
    })
    .await;
    let cluster = cluster(&server, ClusterOptions::default());
    let client = cluster.client();
    let failures = || cluster.endpoints()[0].stats().failures;
    let seen = Arc::new(Hints::default());
    let mut request = get("/");
    request.extensions_mut().insert(portcullis_conn::Interim::new(Arc::clone(&seen) as _, 1));
    assert_eq!(text(client.send(request).await.unwrap()).await, "ok");
    assert_eq!(*seen.0.lock().unwrap(), [(103, 1), (103, 1)]);
    let mut request = get("/many");
    request.extensions_mut().insert(portcullis_conn::Interim::new(Arc::clone(&seen) as _, 2));
    // whether or not somebody takes them
    for request in [request, get("/many")] {
        let error = client.send(request).await.unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
    }
    assert_eq!(seen.0.lock().unwrap().len(), 2 + 16);
    assert_eq!(failures(), 2, "the endpoint has failed");
    // nobody asks for them: they are skipped
    assert_eq!(text(client.send(get("/")).await.unwrap()).await, "ok");
}
