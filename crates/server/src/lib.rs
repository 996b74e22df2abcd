//! Drives HTTP/1.1 and HTTP/2 over any stream of connections with any `tower` service.
//!
//! [`serve`] takes connections from a `Stream`, gives each a task of its own, and in that task: lets a handshake (TLS,
//! a PROXY header, or none: [`Plain`]) turn it into the connection that carries HTTP, picks the protocol by ALPN or by
//! the first bytes that a listener saw, and drives hyper with every bound and deadline of [`HttpOptions`] set. Requests
//! carry an `Arc<`[`ConnInfo`](portcullis_conn::ConnInfo)`>` among their extensions, and a [`RequestBody`] that fails if its client
//! is too slow. Upgrades work on HTTP/1.1, and extended CONNECT (RFC 8441) on HTTP/2. Why each connection ended is counted, by
//! [`CloseReason`].
//!
//! Shutdown is an argument. When it resolves no more connections are taken, HTTP/2 clients get a GOAWAY, HTTP/1.1
//! responses a `Connection: close`, idle connections close; `serve` returns when the last one has ended. Connections
//! that left HTTP behind by an upgrade are no longer its own. Dropping the future of `serve` aborts what it still drives, so
//! a deadline is `tokio::time::timeout` around it.

mod activity;
mod body;
mod connection;
mod drain;
mod frames;
mod http1;
mod idle;
mod interim;
mod options;
mod reason;
mod service;
mod state;
mod stats;
mod wire;

use std::{convert::Infallible, future::Ready, pin::pin, sync::Arc, task::Poll};

use bytes::Bytes;
use futures_core::Stream;
use http::{Request, Response};
use portcullis_conn::Conn;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::{JoinError, JoinSet},
};
use tower_service::Service;

pub use body::{BodyError, RequestBody};
pub use options::{HttpOptions, OnDisconnect};
pub use reason::CloseReason;
pub use stats::{ServerCounters, ServerStats};

use connection::Driver;
use drain::Drain;

/// Connections taken from the queue at most when the drain begins.
const MAX_QUEUED: usize = 4096;

/// Any error, boxed.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The handshake of a plain connection: none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl<Io> Service<Conn<Io>> for Plain {
    type Response = Conn<Io>;
    type Error = Infallible;
    type Future = Ready<Result<Conn<Io>, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, conn: Conn<Io>) -> Self::Future {
        std::future::ready(Ok(conn))
    }
}

/// Serves every connection of `incoming` until `shutdown` resolves or the stream ends, and then until the last
/// connection has ended. `counters` is where it counts what it does; share one between several calls to add them up.
///
/// A connection that fails, in its handshake or later, ends alone; so does one whose service panics. An error of the service
/// closes its connection (HTTP/1.1) or resets its stream (HTTP/2): answer with a response instead.
pub async fn serve<L, Io, H, Io2, S, B>(
    incoming: L,
    handshake: H,
    service: S,
    options: HttpOptions,
    counters: Arc<ServerCounters>,
    shutdown: impl Future<Output = ()>,
) where
    L: Stream<Item = Conn<Io>>,
    Io: Send + 'static,
    H: Service<Conn<Io>, Response = Conn<Io2>> + Clone + Send + 'static,
    H::Error: Into<BoxError> + Send,
    H::Future: Send,
    Io2: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let drain = Arc::new(Drain::default());
    let driver = Arc::new(Driver::new(options, Arc::clone(&counters), Arc::clone(&drain)));
    let mut tasks = JoinSet::new();
    {
        let mut incoming = pin!(incoming);
        let mut shutdown = pin!(shutdown);
        loop {
            let next = std::future::poll_fn(|cx| {
                if shutdown.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                // a finished task is let go of at once, and a panic in it ends here
                while let Poll::Ready(Some(ended)) = tasks.poll_join_next(cx) {
                    report(&counters, ended);
                }
                incoming.as_mut().poll_next(cx)
            });
            let Some(conn) = next.await else { break };
            let (driver, handshake, service) = (Arc::clone(&driver), handshake.clone(), service.clone());
            tasks.spawn(async move { driver.drive(conn, handshake, service).await });
        }
        // those that wait in the socket's queue would be reset with it: they are let in, and served if they hurry
        let mut gave_way = false;
        for _ in 0..MAX_QUEUED {
            let next = std::future::poll_fn(|cx| Poll::Ready(incoming.as_mut().poll_next(cx))).await;
            let conn = match next {
                Poll::Ready(Some(conn)) => conn,
                // it may only have given way to others, after so many
                Poll::Pending if !gave_way => {
                    gave_way = true;
                    tokio::task::yield_now().await;
                    continue;
                }
                _ => break,
            };
            gave_way = false;
            let (driver, handshake, service) = (Arc::clone(&driver), handshake.clone(), service.clone());
            tasks.spawn(async move { driver.drive(conn, handshake, service).await });
        }
        // the stream is dropped here: what it waits with, a listening socket or a permit, is free
    }
    drain.begin();
    while let Some(ended) = tasks.join_next().await {
        report(&counters, ended);
    }
}

/// A panic of the service ends its connection; it is a defect, and must not go unseen.
fn report(counters: &ServerCounters, ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        stats::count(&counters.connection_errors);
        counters.on_closed(CloseReason::ServiceError);
        tracing::error!(%error, "a connection ended in a panic");
    }
}
