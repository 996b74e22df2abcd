//! SIGTERM at any moment of responses on their way, many times over: none is cut.

use std::{env, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use http::{Method, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::task::JoinSet;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

use crate::{
    config::secure,
    support::{
        SOON,
        client::{Body, Client, Protocol, empty},
        edge::Edge,
        origin::Origin,
        run, tls, within,
    },
};

pub(crate) const PIECES: usize = 20;
pub(crate) const PIECE: usize = 10_000;

/// Pieces with pauses between them.
pub(crate) fn slow() -> Body {
    let pieces = stream::unfold(0, |n| async move {
        if n == PIECES {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        let piece = vec![b'a' + u8::try_from(n).unwrap(); PIECE];
        Some((Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(piece))), n + 1))
    });
    StreamBody::new(pieces).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) async fn origin() -> Origin {
    Origin::start(|mut request| async move {
        let mut response = Response::new(slow());
        let Some(key) = request.headers().get("sec-websocket-key") else { return response };
        let accept = derive_accept_key(key.as_bytes());
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let io = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
            let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
            while let Some(Ok(message)) = socket.next().await {
                if !message.is_close() && socket.send(message).await.is_err() {
                    return;
                }
            }
        });
        *response.body_mut() = empty();
        *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert("connection", "upgrade".parse().unwrap());
        headers.insert("upgrade", "websocket".parse().unwrap());
        headers.insert("sec-websocket-accept", accept.parse().unwrap());
        response
    })
    .await
}

/// A download of each protocol, some at once on the connection of HTTP/2, and messages over a WebSocket, with SIGTERM after `pause`.
async fn once(origin: &Origin, pause: Duration) {
    let mut edge = Edge::run(&secure(origin.addr())).await;
    let mut all = JoinSet::new();
    for protocol in [Protocol::H1, Protocol::H1, Protocol::H2, Protocol::H2, Protocol::H3] {
        let mut client = Client::connect(protocol, edge.https(), "localhost").await;
        all.spawn(async move {
            let request = client.request(Method::GET, "/slow").body(empty()).unwrap();
            let reply =
                client.try_fetch(request).await.unwrap_or_else(|error| panic!("{protocol:?}: {error:?}"));
            let whole =
                reply.status == 200 && reply.body.len() == PIECES * PIECE && reply.body.ends_with('t');
            assert!(whole, "{protocol:?}: {} with {} bytes", reply.status, reply.body.len());
        });
    }
    let io = tls::connect(edge.https(), "localhost", &["http/1.1"]).await;
    let (mut socket, _) = tokio_tungstenite::client_async("wss://localhost/ws", io).await.unwrap();
    all.spawn(async move {
        for n in 0..20_usize {
            let text = n.to_string().repeat(1000);
            socket.send(Message::text(text.clone())).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
            let back = within(SOON, "the echo", socket.next()).await.unwrap().unwrap();
            assert_eq!(back, Message::text(text));
        }
        let _ = socket.close(None).await;
    });
    tokio::time::sleep(pause).await;
    edge.terminate();
    while let Some(ended) = all.join_next().await {
        ended.unwrap();
    }
    let (status, _) = edge.ended(SOON).await;
    assert!(status.success(), "{status}");
}

/// 25 times, or as often as `PORTCULLIS_E2E_DRAINS` says.
#[test]
fn many_drains_cut_nothing() {
    let times = env::var("PORTCULLIS_E2E_DRAINS").ok().and_then(|times| times.parse().ok()).unwrap_or(25_u32);
    // a run has its limit of time
    for begin in (0..times).step_by(25) {
        run(async move {
            let origin = origin().await;
            for n in begin..times.min(begin + 25) {
                // from before the first byte to behind the last
                once(&origin, Duration::from_micros(u64::from(n * 7919 % 60_000))).await;
            }
        });
    }
    println!("{times} drains with 6 exchanges on their way each: none was cut");
}
