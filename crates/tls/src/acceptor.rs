//! The server's side of a handshake, as a tower service with a deadline.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use portcullis_conn::{Conn, ConnInfo};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep},
};
use tokio_rustls::{Accept, TlsAcceptor};
use tower_service::Service;

use crate::{
    facts::tls_info,
    stats::{HandshakeError, HandshakeStats},
    stream::TlsStream,
};

/// How handshakes are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AcceptorOptions {
    /// How long a handshake may take, from the call to the client's Finished. Default 10 s: several round trips
    /// of a bad mobile link, and short enough that a client which sends nothing holds its connection no longer.
    /// A handshake under way takes about 20 KiB.
    pub handshake_timeout: Duration,
}

impl Default for AcceptorOptions {
    fn default() -> Self {
        Self { handshake_timeout: Duration::from_secs(10) }
    }
}

impl AcceptorOptions {
    /// Sets [`AcceptorOptions::handshake_timeout`].
    #[must_use]
    pub fn with_handshake_timeout(mut self, handshake_timeout: Duration) -> Self {
        self.handshake_timeout = handshake_timeout;
        self
    }
}

/// Turns a connection into an encrypted one and fills in what was agreed. Clones share their counters.
///
/// Run it in the connection's own task: in an accept loop one slow client would hold up all others.
#[derive(Clone)]
pub struct Acceptor {
    tls: TlsAcceptor,
    options: AcceptorOptions,
    stats: Arc<HandshakeStats>,
}

impl Acceptor {
    /// An acceptor for a configuration, as [`crate::tcp_config`] makes it or of the caller's own.
    pub fn new(config: Arc<ServerConfig>, options: AcceptorOptions) -> Self {
        Self { tls: config.into(), options, stats: Arc::default() }
    }

    /// The counters.
    pub fn stats(&self) -> &Arc<HandshakeStats> {
        &self.stats
    }

    /// Begins a handshake; its time runs from now.
    pub fn accept<Io>(&self, conn: Conn<Io>) -> Handshake<Io>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        let started = Instant::now();
        Handshake {
            accept: self.tls.accept(conn.io),
            info: Some(conn.info),
            started,
            deadline: tokio::time::sleep(self.options.handshake_timeout),
            stats: Arc::clone(&self.stats),
        }
    }
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor")
            .field("options", &self.options)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl<Io> Service<Conn<Io>> for Acceptor
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Response = Conn<TlsStream<Io>>;
    type Error = HandshakeError;
    type Future = Handshake<Io>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), HandshakeError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, conn: Conn<Io>) -> Handshake<Io> {
        self.accept(conn)
    }
}

pin_project! {
    /// A handshake under way; dropping it closes the connection.
    #[must_use = "nothing happens unless it is polled"]
    pub struct Handshake<Io> {
        accept: Accept<Io>,
        info: Option<ConnInfo>,
        started: Instant,
        #[pin]
        deadline: Sleep,
        stats: Arc<HandshakeStats>,
    }
}

impl<Io> std::fmt::Debug for Handshake<Io> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshake").field("info", &self.info).finish_non_exhaustive()
    }
}

impl<Io> Future for Handshake<Io>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    type Output = Result<Conn<TlsStream<Io>>, HandshakeError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let outcome = match Pin::new(this.accept).poll(cx) {
            Poll::Ready(outcome) => outcome.map_err(HandshakeError::from),
            Poll::Pending if this.deadline.poll(cx).is_ready() => Err(HandshakeError::timeout()),
            Poll::Pending => return Poll::Pending,
        };
        Poll::Ready(match outcome {
            Ok(io) => {
                let tls = tls_info(io.get_ref().1);
                this.stats.complete(tls.resumed, this.started.elapsed());
                let info = this.info.take().expect("a future is not polled again once it was ready");
                Ok(Conn::new(TlsStream::new(io), info.with_tls(tls)))
            }
            Err(error) => {
                this.stats.fail(error.reason());
                Err(error)
            }
        })
    }
}
