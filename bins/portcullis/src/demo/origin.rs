//! The demo origin: an ordinary HTTP/1.1 application on a loopback port, as an edge would find one.

use std::{
    convert::Infallible,
    fmt::Write as _,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    thread,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};
use tracing::debug;

/// Connections at once; the edge in front keeps far fewer.
const MAX_CONNECTIONS: usize = 4096;
/// The longest `/slow/MILLISECONDS`.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// Starts it on a thread of its own, until the process ends; returns where it listens.
pub(super) fn start() -> io::Result<SocketAddr> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    thread::Builder::new()
        .name("demo-origin".to_owned())
        .spawn(move || runtime.block_on(accept(listener)))?;
    Ok(address)
}

async fn accept(listener: TcpListener) {
    let limit = std::sync::Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = limit.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!(%error, "the demo origin could not accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        tokio::spawn(async move {
            let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(request).await) });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(75)).max_headers(128);
            let result = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
            if let Err(error) = result {
                debug!(%error, "a connection to the demo origin failed");
            }
            drop(permit);
        });
    }
}

async fn answer(request: Request<Incoming>) -> Response<Demo> {
    let path = request.uri().path().to_owned();
    let mut segments = path.trim_start_matches('/').splitn(2, '/');
    match (segments.next().unwrap_or_default(), segments.next()) {
        ("", None) if wants_html(request.headers()) => page(),
        ("", None) | ("headers", None) => text(describe(&request)),
        ("bytes", Some(count)) => match count.parse() {
            Ok(left) => Response::new(Demo::Zeros { left }),
            Err(_) => refuse(StatusCode::BAD_REQUEST, "after /bytes/ comes a number of bytes\n"),
        },
        ("upload", None) => upload(request).await,
        ("slow", Some(delay)) => slow(delay).await,
        ("ws", None) => websocket(request),
        _ => {
            refuse(StatusCode::NOT_FOUND, "there is /, /headers, /bytes/N, /upload, /slow/MS and /ws here\n")
        }
    }
}

fn wants_html(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|a| a.contains("text/html"))
}

/// The request as it arrived here.
fn describe(request: &Request<Incoming>) -> String {
    let mut text = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
    for (name, value) in request.headers() {
        // writing to a String never fails
        let _ = writeln!(text, "{name}: {}", String::from_utf8_lossy(value.as_bytes()));
    }
    text
}

async fn upload(request: Request<Incoming>) -> Response<Demo> {
    if !matches!(*request.method(), Method::POST | Method::PUT) {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "POST or PUT something here\n");
    }
    let mut body = request.into_body();
    let mut count = 0u64;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => count += frame.data_ref().map_or(0, |data| data.len() as u64),
            Err(_) => return refuse(StatusCode::BAD_REQUEST, "the body was cut short\n"),
        }
    }
    text(format!("received {count} bytes\n"))
}

async fn slow(delay: &str) -> Response<Demo> {
    let Ok(delay) = delay.parse().map(Duration::from_millis) else {
        return refuse(StatusCode::BAD_REQUEST, "after /slow/ comes a number of milliseconds\n");
    };
    tokio::time::sleep(delay.min(MAX_DELAY)).await;
    text("done\n".to_owned())
}

/// RFC 6455 section 4.2.
fn websocket(mut request: Request<Incoming>) -> Response<Demo> {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        return refuse(StatusCode::UPGRADE_REQUIRED, "this is for WebSocket\n");
    };
    let accept = derive_accept_key(key.as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(io) = upgrade.await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                return;
            }
        }
    });
    let mut response = refuse(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

fn page() -> Response<Demo> {
    let mut response = text(include_str!("page.html").to_owned());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}

fn text(text: String) -> Response<Demo> {
    let mut response = Response::new(Demo::Once(Some(text.into())));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn refuse(status: StatusCode, why: &'static str) -> Response<Demo> {
    let mut response = text(why.to_owned());
    *response.status_mut() = status;
    response
}

/// A body: a text, or many zeros that are nowhere in memory at once.
enum Demo {
    Once(Option<Bytes>),
    Zeros { left: u64 },
}

impl http_body::Body for Demo {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        Poll::Ready(match self.get_mut() {
            Self::Once(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Self::Zeros { left: 0 } => None,
            Self::Zeros { left } => {
                let size = usize::try_from(*left).unwrap_or(usize::MAX).min(ZEROS.len());
                *left -= size as u64;
                Some(Ok(Frame::data(Bytes::from_static(&ZEROS[..size]))))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.size_hint().exact() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Once(bytes) => bytes.as_ref().map_or(0, |bytes| bytes.len() as u64),
            Self::Zeros { left } => *left,
        })
    }
}
