//! What the clients ask for: an HTTP/1.1 origin with a body that tells every byte's place.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};

use crate::support::{
    client::{Body, full},
    origin::Origin,
};

/// Byte N of a body is N modulo this, which is no power of two, so that no shift goes unseen.
const PERIOD: usize = 251;
/// As often as it is in one block.
const TIMES: usize = 257;

/// One block and one period more, so that a slice of a block's length begins anywhere in the first period.
fn block() -> Bytes {
    (0..=u8::MAX).take(PERIOD).cycle().take(PERIOD * (TIMES + 1)).collect::<Vec<u8>>().into()
}

/// Where in the block the pattern goes on.
fn place(offset: u64) -> usize {
    usize::try_from(offset % PERIOD as u64).unwrap()
}

/// Compares what comes piece by piece.
pub(crate) struct Check {
    block: Bytes,
    pub(crate) length: u64,
    pub(crate) good: bool,
}

impl Check {
    pub(crate) fn new() -> Self {
        Self { block: block(), length: 0, good: true }
    }

    pub(crate) fn take(&mut self, data: &[u8]) {
        for piece in data.chunks(PERIOD * TIMES) {
            self.good &= self.block[place(self.length)..].starts_with(piece);
            self.length += piece.len() as u64;
        }
    }
}

/// The first so many bytes of the pattern.
pub(crate) struct Pattern {
    block: Bytes,
    sent: u64,
    length: u64,
}

impl Pattern {
    pub(crate) fn new(length: u64) -> Self {
        Self { block: block(), sent: 0, length }
    }
}

impl Iterator for Pattern {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let left = usize::try_from(self.length - self.sent).unwrap();
        let size = left.min(PERIOD * TIMES);
        let begin = place(self.sent);
        self.sent += size as u64;
        (size > 0).then(|| self.block.slice(begin..begin + size))
    }
}

impl http_body::Body for Pattern {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.next().map(|data| Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length - self.sent)
    }
}

/// What a page sent to `/results`, and whether it is done.
type Results = (Option<String>, bool);

/// The origin, and what a page tells it.
pub(crate) struct Interop {
    origin: Origin,
    pub(crate) results: watch::Receiver<Results>,
}

impl Interop {
    pub(crate) async fn start() -> Self {
        let (sender, results) = watch::channel((None, false));
        let sender = Arc::new(sender);
        let origin = Origin::start(move |request| answer(request, Arc::clone(&sender))).await;
        Self { origin, results }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.origin.addr()
    }
}

async fn answer(mut request: Request<Incoming>, results: Arc<watch::Sender<Results>>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let html = |text: &'static str| {
        let mut response = Response::new(full(text));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
        response
    };
    match path.as_str() {
        "/text" => Response::new(full("a page")),
        "/page" => html(include_str!("page.html")),
        "/echo" => echo(request).await,
        "/ws" => websocket(&mut request),
        "/early" => {
            let told = request.headers().get("early-data").map(|value| value.to_str().unwrap().to_owned());
            Response::new(full(told.unwrap_or_else(|| "no".to_owned())))
        }
        "/slow" => {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Response::new(full("late"))
        }
        // the head at once, the rest a second later
        "/late" => {
            let frames = futures_util::stream::once(async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(Frame::data(Bytes::from_static(b"late")))
            });
            Response::new(StreamBody::new(frames).boxed_unsync())
        }
        "/sink" => {
            let (mut check, mut body) = (Check::new(), request.into_body());
            while let Some(frame) = body.frame().await {
                let Ok(frame) = frame else { return Response::new(full("cut")) };
                frame.data_ref().into_iter().for_each(|data| check.take(data));
            }
            Response::new(full(format!("{} {}", check.length, if check.good { "good" } else { "bad" })))
        }
        "/results" => {
            let said = request.into_body().collect().await.unwrap().to_bytes();
            results.send_modify(|results| results.0 = Some(String::from_utf8_lossy(&said).into_owned()));
            Response::new(full("thanks"))
        }
        "/done" => {
            results.send_modify(|results| results.1 = true);
            Response::new(full("bye"))
        }
        other => match other.strip_prefix("/bytes/").and_then(|length| length.parse().ok()) {
            Some(length) => {
                Response::new(Pattern::new(length).map_err(|never| match never {}).boxed_unsync())
            }
            None => {
                let mut response = Response::new(full("nothing here"));
                *response.status_mut() = StatusCode::NOT_FOUND;
                response
            }
        },
    }
}

/// What came, trailers among it.
async fn echo(request: Request<Incoming>) -> Response<Body> {
    let body = request.into_body().collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_else(HeaderMap::new);
    // of no announced length: only chunks can have trailers behind them
    let frames = [Ok(Frame::data(body.to_bytes())), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync());
    response.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-sum"));
    response
}

/// Sends messages back.
fn websocket(request: &mut Request<Incoming>) -> Response<Body> {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).expect("a WebSocket's key").as_bytes();
    let accept = derive_accept_key(key);
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let io = TokioIo::new(upgrade.await.expect("the upgrade"));
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                break;
            }
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept)
        .body(full(""))
        .unwrap()
}
