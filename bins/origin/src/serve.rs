//! A thread of the origin: its socket, its runtime, its connections.

use std::{
    convert::Infallible,
    fmt::Write as _,
    future::{Ready, ready},
    io,
    net::SocketAddr,
    time::Duration,
};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{
    body::{Body, Incoming},
    server::conn::http1,
    service::Service,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::{body::OriginBody, routes::Route, websocket};

const BACKLOG: i32 = 4096;
/// Between accepts while the process is short of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listening socket that others of this process share the port with.
pub(crate) fn bind(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Serves one socket on the calling thread, for ever.
pub(crate) fn thread(socket: std::net::TcpListener) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(async move { accept(TcpListener::from_std(socket)?).await })
}

async fn accept(listener: TcpListener) -> io::Result<()> {
    let mut http = http1::Builder::new();
    // No timer, so no header timeout either: a proxy's idle connections stay until the proxy closes them, and
    // a timer per request would be paid on every one. Nothing but a load run talks to this program.
    http.header_read_timeout(None).pipeline_flush(true);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let connection = http.serve_connection(TokioIo::new(stream), Origin).with_upgrades();
        tokio::task::spawn_local(async move {
            // a client that goes away in the middle is none of the origin's business
            let _ = connection.await;
        });
    }
}

#[derive(Clone, Copy)]
struct Origin;

/// The common answers are ready at once; only those that wait for something pay for a boxed future.
pub(crate) enum Answer {
    Now(Ready<Result<Response<OriginBody>, Infallible>>),
    Later(std::pin::Pin<Box<dyn Future<Output = Response<OriginBody>>>>),
}

impl Future for Answer {
    type Output = Result<Response<OriginBody>, Infallible>;

    fn poll(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        match self.get_mut() {
            Self::Now(ready) => std::pin::Pin::new(ready).poll(cx),
            Self::Later(future) => future.as_mut().poll(cx).map(Ok),
        }
    }
}

impl Service<Request<Incoming>> for Origin {
    type Response = Response<OriginBody>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let now = |response| Answer::Now(ready(Ok(response)));
        match Route::of(request.uri().path()) {
            Route::Bytes(len) => now(binary(OriginBody::filler(len))),
            Route::Fresh(len) => now(fresh(binary(OriginBody::filler(len)))),
            Route::Chunked(len) => now(binary(OriginBody::unannounced(len))),
            Route::Slow(wait) => Answer::Later(Box::pin(async move {
                tokio::time::sleep(wait).await;
                binary(OriginBody::filler(crate::routes::DEFAULT_LEN))
            })),
            Route::Headers => now(text(StatusCode::OK, printed(&request))),
            Route::Echo => now(echo(request)),
            Route::Sink if matches!(*request.method(), Method::POST | Method::PUT) => {
                Answer::Later(Box::pin(sink(request.into_body())))
            }
            Route::Sink => now(method_not_allowed()),
            Route::WebSocket => now(websocket::upgrade(request)),
            Route::Unknown => now(text(StatusCode::NOT_FOUND, "not found\n".to_owned())),
        }
    }
}

fn binary(body: OriginBody) -> Response<OriginBody> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response
}

fn fresh(mut response: Response<OriginBody>) -> Response<OriginBody> {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=3600"));
    response
}

fn text(status: StatusCode, body: String) -> Response<OriginBody> {
    let mut response = Response::new(OriginBody::full(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn method_not_allowed() -> Response<OriginBody> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "POST or PUT\n".to_owned());
    // RFC 9110 section 15.5.6: a 405 names the methods that are allowed
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST, PUT"));
    response
}

fn echo(request: Request<Incoming>) -> Response<OriginBody> {
    let (parts, body) = request.into_parts();
    let mut response = binary(OriginBody::Echo(body));
    if let Some(kind) = parts.headers.get(header::CONTENT_TYPE) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
    }
    response
}

async fn sink(mut body: Incoming) -> Response<OriginBody> {
    let mut count = 0_u64;
    while let Some(frame) = next_frame(&mut body).await {
        match frame {
            Ok(frame) => count += frame.data_ref().map_or(0, |data| data.len() as u64),
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("after {count} bytes: {error}\n")),
        }
    }
    text(StatusCode::OK, format!("{count}\n"))
}

async fn next_frame(body: &mut Incoming) -> Option<Result<hyper::body::Frame<bytes::Bytes>, hyper::Error>> {
    std::future::poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx)).await
}

/// The request line and fields, one to a line, as the origin received them.
fn printed<B>(request: &Request<B>) -> String {
    let mut out = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
    for (name, value) in request.headers() {
        let _ = writeln!(out, "{name}: {}", String::from_utf8_lossy(value.as_bytes()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// One exchange over memory; returns the raw answer.
    async fn exchange(request: &str) -> String {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let connection =
            http1::Builder::new().header_read_timeout(None).serve_connection(TokioIo::new(server), Origin);
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let (served, read) = tokio::join!(connection, client.read_to_end(&mut answer));
        served.unwrap();
        read.unwrap();
        String::from_utf8(answer).unwrap()
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nhost: o\r\nconnection: close\r\nx-a: 1\r\nx-a: 2\r\n\r\n")
    }

    fn body(answer: &str) -> &str {
        answer.split_once("\r\n\r\n").unwrap().1
    }

    #[tokio::test]
    async fn bytes_announce_their_length() {
        for (path, len) in [("/", 1024), ("/bytes/0", 0), ("/bytes/7", 7), ("/bytes/200000", 200_000)] {
            let answer = exchange(&get(path)).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{path}");
            assert!(answer.contains(&format!("content-length: {len}\r\n")), "{path}");
            assert_eq!(body(&answer).len(), len, "{path}");
        }
    }

    #[tokio::test]
    async fn fresh_bytes_may_be_kept() {
        assert!(exchange(&get("/fresh/7")).await.contains("cache-control: max-age=3600\r\n"));
        assert!(!exchange(&get("/bytes/7")).await.contains("cache-control"));
    }

    #[tokio::test]
    async fn chunked_does_not() {
        let answer = exchange(&get("/chunked/70000")).await;
        assert!(answer.contains("transfer-encoding: chunked\r\n"));
        assert!(!answer.contains("content-length"));
        // one full piece, one rest, the end
        assert!(body(&answer).starts_with("10000\r\n"));
        assert!(body(&answer).contains("\r\n1170\r\n"));
        assert!(body(&answer).ends_with("\r\n0\r\n\r\n"));
    }

    #[tokio::test]
    async fn headers_prints_every_line() {
        let answer = exchange(&get("/headers?q=1")).await;
        assert!(body(&answer).starts_with("GET /headers?q=1 HTTP/1.1\n"), "{answer}");
        assert!(body(&answer).contains("x-a: 1\nx-a: 2\n"), "{answer}");
    }

    #[tokio::test]
    async fn sink_counts_and_echo_echoes() {
        let post = |path: &str| {
            format!("POST {path} HTTP/1.1\r\nhost: o\r\nconnection: close\r\ncontent-length: 5\r\n\r\nabcde")
        };
        assert_eq!(body(&exchange(&post("/sink")).await), "5\n");
        assert_eq!(body(&exchange(&post("/echo")).await), "abcde");
        assert!(exchange(&get("/sink")).await.starts_with("HTTP/1.1 405 "));
        assert!(exchange(&get("/other")).await.starts_with("HTTP/1.1 404 "));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_waits() {
        let begin = tokio::time::Instant::now();
        let answer = exchange(&get("/slow/300")).await;
        assert!(answer.starts_with("HTTP/1.1 200 "));
        assert!(begin.elapsed() >= Duration::from_millis(300));
    }

    #[test]
    fn sockets_share_a_port() {
        let first = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let second = bind(first.local_addr().unwrap()).unwrap();
        assert_eq!(first.local_addr().unwrap(), second.local_addr().unwrap());
    }
}
