//! What a client may not do to a connection, over loopback where the kernel's part in it matters.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use portcullis_conn::{Conn, ConnInfo, FirstBytes, Transport};
use portcullis_server::{CloseReason, HttpOptions, OnDisconnect, Plain, RequestBody, ServerCounters, serve};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::Instant,
};

/// The connection, and no end of connections: an end would be a drain.
fn one<Io>(conn: Conn<Io>) -> impl futures_core::Stream<Item = Conn<Io>> {
    stream::iter([conn]).chain(stream::pending())
}

/// Waits until a connection has ended, and says why.
async fn ended(counters: &ServerCounters) -> CloseReason {
    let look = async {
        loop {
            let stats = counters.stats();
            if let Some(reason) = CloseReason::ALL.into_iter().find(|reason| stats.closed(*reason) > 0) {
                return reason;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), look).await.expect("it ends")
}

/// Reads the body, and answers by what came of it.
async fn echo_length(request: Request<RequestBody>) -> Response<Full<Bytes>> {
    match request.into_body().collect().await {
        Ok(body) => Response::new(Full::new(body.to_bytes().len().to_string().into())),
        Err(error) => {
            assert!(error.is_timeout(), "{error}");
            let response = Response::builder().status(StatusCode::REQUEST_TIMEOUT);
            response.header("connection", "close").body(Full::default()).unwrap()
        }
    }
}

/// One connection over a pipe.
fn connect(
    options: HttpOptions,
    http2: bool,
    counters: &Arc<ServerCounters>,
) -> (DuplexStream, tokio::task::JoinHandle<()>) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let mut conn = portcullis_testkit::conn(far);
    conn.info.first_bytes = http2.then_some(FirstBytes::Http2Preface);
    let service = tower::service_fn(|request| async { Ok::<_, Infallible>(echo_length(request).await) });
    let incoming = one(conn);
    let served = serve(incoming, Plain, service, options, Arc::clone(counters), std::future::pending());
    (near, tokio::spawn(served))
}

#[tokio::test(start_paused = true)]
async fn a_body_that_trickles_is_408_and_a_slow_long_one_is_not() {
    let counters = Arc::new(ServerCounters::default());
    let (mut io, served) = connect(HttpOptions::default(), false, &counters);
    io.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 30000\r\n\r\n").await.unwrap();
    // 300 bytes per second, for longer than any window
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        io.write_all(&[b'x'; 300]).await.unwrap();
    }
    let mut answer = vec![0; 15];
    io.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 200 OK");
    drop(io);
    assert_eq!(ended(&counters).await, CloseReason::Client);
    served.abort();

    let counters = Arc::new(ServerCounters::default());
    let (io, served) = connect(HttpOptions::default(), false, &counters);
    let (mut read, mut write) = tokio::io::split(io);
    write.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 30000\r\n\r\n").await.unwrap();
    let start = Instant::now();
    let trickle = tokio::spawn(async move {
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(900)).await;
        }
    });
    let mut answer = Vec::new();
    read.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
    assert!((9..16).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert_eq!(ended(&counters).await, CloseReason::BodyTooSlow);
    trickle.abort();
    served.abort();
}

/// Back-pressure: the time in which nobody asks for the body is not the client's.
#[tokio::test(start_paused = true)]
async fn a_service_that_reads_slowly_does_not_fail_its_client() {
    let counters = Arc::new(ServerCounters::default());
    let (mut near, far) = tokio::io::duplex(1 << 10);
    let service = tower::service_fn(|request: Request<RequestBody>| async {
        let (mut body, mut length) = (request.into_body(), 0);
        while let Some(frame) = body.frame().await {
            length += frame.unwrap().data_ref().map_or(0, Bytes::len);
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(length.to_string()))))
    });
    let conn = portcullis_testkit::conn(far);
    let options = HttpOptions::default();
    tokio::spawn(serve(one(conn), Plain, service, options, counters, std::future::pending()));
    near.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 20000\r\n\r\n").await.unwrap();
    near.write_all(&[0; 20_000]).await.unwrap();
    let mut answer = vec![0; 15];
    near.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 200 OK");
}

/// RFC 9112 section 9.6: a socket that is closed with bytes unread resets, and the reset takes the answer along.
#[tokio::test]
async fn a_client_that_sends_megabytes_behind_a_bad_head_reads_the_400() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    for round in 0..20 {
        let counters = Arc::new(ServerCounters::default());
        let client = async {
            let mut io = TcpStream::connect(addr).await.unwrap();
            let head = b"GET / HTTP/1.1\r\nbad head\r\n\r\n";
            io.write_all(head).await.unwrap();
            // more than the buffers between hold: it is still sending when the answer is there
            for _ in 0..128 {
                io.write_all(&[b'x'; 1 << 16]).await.unwrap();
            }
            io.shutdown().await.unwrap();
            let mut answer = Vec::new();
            io.read_to_end(&mut answer).await.map(|_| answer)
        };
        let server = async {
            let (io, peer) = listener.accept().await.unwrap();
            let conn = Conn::new(io, ConnInfo::new(Transport::Tcp, peer, addr));
            let service =
                tower::service_fn(|request| async { Ok::<_, Infallible>(echo_length(request).await) });
            let options = HttpOptions::default();
            let counters = Arc::clone(&counters);
            serve(one(conn), Plain, service, options, counters, std::future::pending()).await;
        };
        let answer =
            tokio::select! { answer = client => answer, () = server => unreachable!("it has no end") };
        let answer = answer.unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test]
async fn a_connection_ends_after_its_last_request_and_says_so() {
    let counters = Arc::new(ServerCounters::default());
    let (mut io, served) = connect(HttpOptions::default().with_max_requests(2), false, &counters);
    io.write_all(&b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(3)).await.unwrap();
    let mut answers = String::new();
    io.read_to_string(&mut answers).await.unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
    assert_eq!(answers.matches("connection: close").count(), 1, "{answers}");
    drop(io);
    assert_eq!(ended(&counters).await, CloseReason::MaxRequests);
    served.abort();
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_is_let_go_with_jitter() {
    let counters = Arc::new(ServerCounters::default());
    let options = HttpOptions::default().with_max_age(Some(Duration::from_secs(20)));
    let (mut io, served) = connect(options, false, &counters);
    let start = Instant::now();
    io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    io.read_to_end(&mut Vec::new()).await.unwrap();
    assert!((18.0..22.1).contains(&start.elapsed().as_secs_f32()), "{:?}", start.elapsed());
    assert_eq!(ended(&counters).await, CloseReason::MaxAge);
    served.abort();
}

#[tokio::test]
async fn http2_by_prior_knowledge_is_a_choice() {
    let counters = Arc::new(ServerCounters::default());
    let (mut io, served) = connect(HttpOptions::default().with_h2c(false), true, &counters);
    io.write_all(PREFACE).await.unwrap();
    io.shutdown().await.unwrap();
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(ended(&counters).await, CloseReason::ProtocolError);
    served.abort();
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `GET https://a/` or, with bit 0 unset in `flags`, the same with a body to come (RFC 7541 appendix A).
fn get(flags: u8, stream: u32) -> Vec<u8> {
    frame(1, flags, stream, b"\x82\x87\x84\x41\x01a")
}

/// RFC 9113 section 10.5: each of these costs its sender little. The flood ends the connection, and is counted.
#[tokio::test]
async fn http2_floods_end_their_connection() {
    let resets = |stream: u32| [get(5, stream), frame(3, 0, stream, &[0, 0, 0, 8])].concat();
    let empty = |stream: u32| if stream == 1 { get(4, 1) } else { frame(0, 0, 1, b"") };
    // CVE-2025-8671: an increment of nothing is an error for which a side may reset a stream; here it ends the connection
    let made = |stream: u32| [get(4, stream), frame(8, 0, stream, &[0; 4])].concat();
    let continued = |stream: u32| if stream == 1 { frame(1, 0, 1, b"\x82") } else { frame(9, 0, 1, b"") };
    // each field is one byte on the wire, an index into the table that the first one filled
    let bomb = |stream: u32| {
        let mut block = b"\x82\x87\x84\x41\x01a\x40\x01b\x7f\xa1\x1e".to_vec();
        block.extend([b'x'; 4000]);
        block.extend([0xbe; 2000]);
        frame(1, 5, stream, &block)
    };
    type Flood<'a> = &'a dyn Fn(u32) -> Vec<u8>;
    let floods: [(&str, Flood<'_>, CloseReason); 7] = [
        ("rapid reset (CVE-2023-44487)", &resets, CloseReason::Flood),
        ("empty DATA (RUSTSEC-2026-0258)", &empty, CloseReason::Flood),
        ("MadeYouReset", &made, CloseReason::ProtocolError),
        ("empty CONTINUATION (RUSTSEC-2024-0332)", &continued, CloseReason::Flood),
        ("PING", &|_| frame(6, 0, 0, &[0; 8]), CloseReason::Flood),
        ("SETTINGS", &|_| frame(4, 0, 0, b""), CloseReason::Flood),
        ("header bomb", &bomb, CloseReason::Flood),
    ];
    for (name, flood, expected) in floods {
        let counters = Arc::new(ServerCounters::default());
        let (io, served) = connect(HttpOptions::default(), true, &counters);
        let (mut read, mut write) = tokio::io::split(io);
        let reading = tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
        let sent = AtomicUsize::new(0);
        let send = async {
            write.write_all(PREFACE).await?;
            for stream in (1..60_000).step_by(2) {
                write.write_all(&flood(stream)).await?;
                sent.fetch_add(1, Ordering::Relaxed);
            }
            std::future::pending::<std::io::Result<()>>().await
        };
        let reason = async {
            tokio::select! {
                _ = send => ended(&counters).await,
                reason = ended(&counters) => reason,
            }
        };
        let reason = tokio::time::timeout(Duration::from_secs(20), reason).await;
        let reason = reason.unwrap_or_else(|_| panic!("{name} went on for {sent:?}"));
        assert_eq!(reason, expected, "{name} after {sent:?}");
        reading.abort();
        served.abort();
    }
}

#[tokio::test]
async fn a_request_may_outlive_its_client() {
    for finish in [false, true] {
        let (entered, gate) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let done = Arc::new(Notify::new());
        let service = tower::service_fn({
            let (entered, gate, done) = (Arc::clone(&entered), Arc::clone(&gate), Arc::clone(&done));
            move |_: Request<RequestBody>| {
                let (entered, gate, done) = (Arc::clone(&entered), Arc::clone(&gate), Arc::clone(&done));
                async move {
                    entered.notify_one();
                    gate.notified().await;
                    done.notify_one();
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"late"))))
                }
            }
        });
        let on_disconnect = match finish {
            true => OnDisconnect::Finish { max: 1, within: Duration::from_secs(10) },
            false => OnDisconnect::Cancel,
        };
        let options = HttpOptions::default().with_on_disconnect(on_disconnect);
        let (mut near, far) = tokio::io::duplex(1 << 10);
        let incoming = one(portcullis_testkit::conn(far));
        let served = serve(incoming, Plain, service, options, Arc::default(), std::future::pending());
        let served = tokio::spawn(served);
        near.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        entered.notified().await;
        drop(near);
        // the connection's end is seen by its task
        tokio::time::sleep(Duration::from_millis(50)).await;
        gate.notify_one();
        let ended = tokio::time::timeout(Duration::from_millis(200), done.notified()).await;
        assert_eq!(ended.is_ok(), finish);
        served.abort();
    }
}

/// From the response's head on the two may talk by turns, and a stream of messages does so from its beginning.
#[tokio::test(start_paused = true)]
async fn a_client_that_may_be_silent_is_not_too_slow() {
    // the body comes to its end after a minute of silence
    for (field, at_once) in [("x-a: b", true), ("content-type: application/grpc+proto", false)] {
        let (told, hears) = tokio::sync::oneshot::channel();
        let told = Arc::new(std::sync::Mutex::new(Some(told)));
        let service = tower::service_fn(move |request: Request<RequestBody>| {
            let told = Arc::clone(&told);
            async move {
                let read = async move {
                    let body = request.into_body().collect().await.map(|body| body.to_bytes());
                    let _ = told.lock().unwrap().take().unwrap().send(body);
                };
                match at_once {
                    true => drop(tokio::spawn(read)),
                    false => read.await,
                }
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
            }
        });
        let (mut near, far) = tokio::io::duplex(1 << 10);
        let incoming = one(portcullis_testkit::conn(far));
        let options = HttpOptions::default();
        let served = serve(incoming, Plain, service, options, Arc::default(), std::future::pending());
        let served = tokio::spawn(served);
        let head = format!("POST / HTTP/1.1\r\nhost: a\r\n{field}\r\ncontent-length: 4\r\n\r\nab");
        near.write_all(head.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        near.write_all(b"cd").await.unwrap();
        assert_eq!(hears.await.unwrap().unwrap(), "abcd", "{field}");
        served.abort();
    }
}

/// RFC 9113 section 5.2.1: bodies that nobody reads may hold all that a connection's client may send.
#[tokio::test(start_paused = true)]
async fn a_client_is_not_too_slow_whose_window_others_may_hold() {
    for (held, slow) in [(1, true), (2, false)] {
        let service = tower::service_fn(|request: Request<RequestBody>| async move {
            if request.uri().path() == "/held" {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(echo_length(request).await)
        });
        let (near, far) = tokio::io::duplex(1 << 16);
        let mut conn = portcullis_testkit::conn(far);
        conn.info.first_bytes = Some(FirstBytes::Http2Preface);
        let options =
            HttpOptions::default().with_h2_stream_window(65_535).with_h2_connection_window(2 * 65_535);
        let served = serve(one(conn), Plain, service, options, Arc::default(), std::future::pending());
        let served = tokio::spawn(served);
        let (mut client, conn) = h2::client::handshake(near).await.unwrap();
        let driven = tokio::spawn(conn);
        let post = |path: &str| Request::post(format!("http://a{path}")).body(()).unwrap();
        let mut all = Vec::new();
        for _ in 0..held {
            all.push(client.send_request(post("/held"), false).unwrap());
        }
        let (answer, mut send) = client.send_request(post("/"), false).unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let sent = send.send_data(Bytes::from_static(b"abc"), true);
        let status = answer.await.map(|answer| answer.status());
        match slow {
            true => assert_eq!(status.unwrap(), StatusCode::REQUEST_TIMEOUT),
            false => assert_eq!((sent.is_ok(), status.unwrap()), (true, StatusCode::OK)),
        }
        driven.abort();
        served.abort();
    }
}

#[tokio::test]
async fn no_more_requests_outlive_their_clients_than_may() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let entered = Arc::new(AtomicUsize::new(0));
    let done = Arc::new(AtomicUsize::new(0));
    let service = tower::service_fn({
        let (gate, entered, done) = (Arc::clone(&gate), Arc::clone(&entered), Arc::clone(&done));
        move |_: Request<RequestBody>| {
            let (gate, entered, done) = (Arc::clone(&gate), Arc::clone(&entered), Arc::clone(&done));
            async move {
                entered.fetch_add(1, Ordering::SeqCst);
                gate.acquire().await.unwrap().forget();
                done.fetch_add(1, Ordering::SeqCst);
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"late"))))
            }
        }
    });
    let finish = OnDisconnect::Finish { max: 2, within: Duration::from_secs(10) };
    let options = HttpOptions::default().with_on_disconnect(finish);
    let (nears, fars): (Vec<_>, Vec<_>) = (0..5).map(|_| tokio::io::duplex(1 << 10)).unzip();
    let incoming = stream::iter(fars.into_iter().map(portcullis_testkit::conn)).chain(stream::pending());
    let served = serve(incoming, Plain, service, options, Arc::default(), std::future::pending());
    let served = tokio::spawn(served);
    let mut clients = nears;
    for near in &mut clients {
        near.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    }
    while entered.load(Ordering::SeqCst) < 5 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(clients);
    tokio::time::sleep(Duration::from_millis(50)).await;
    gate.add_permits(5);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(done.load(Ordering::SeqCst), 2);
    served.abort();
}

/// RFC 9113 section 8.1.1: a response to HEAD has no DATA, whatever body the service gives.
#[tokio::test]
async fn a_head_over_http2_has_no_content() {
    let counters = Arc::new(ServerCounters::default());
    let (io, served) = connect(HttpOptions::default(), true, &counters);
    let (mut client, conn) = h2::client::handshake(io).await.unwrap();
    let driven = tokio::spawn(conn);
    for (method, empty) in [("HEAD", true), ("GET", false)] {
        let request = http::Request::builder().method(method).uri("http://a/").body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        let mut response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        let data = response.body_mut().data().await;
        assert_eq!(data.is_none(), empty, "{method}");
    }
    driven.abort();
    served.abort();
}
