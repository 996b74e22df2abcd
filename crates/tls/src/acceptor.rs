//! The server's side of a handshake, as a tower service with a deadline.

use std::{
    fmt,
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use portcullis_conn::{Conn, EarlyData};
use rustls::{
    ServerConfig, ServerConnection,
    server::{Accepted, AcceptedAlert, ClientHello},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::Semaphore,
    time::Instant,
};
use tokio_rustls::LazyConfigAcceptor;
use tower_service::Service;

use crate::{
    ACME_TLS_ALPN,
    facts::tls_info,
    server_tls::{ServerTls, asks_for_challenge},
    stats::{HandshakeError, HandshakeStats},
    stream::{Blocking, TlsStream},
};

/// What a client asked for, as a [`NameHook`] sees it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct AskedName<'a> {
    /// The server name (SNI, RFC 6066 section 3), in lower case; rustls has checked that it is a DNS name.
    pub name: &'a str,
    /// Whether the client came only to see the answer to an ACME challenge (RFC 8737).
    pub challenge: bool,
}

/// What is asked before a handshake goes on, by the name that the client wants: `None` lets it go on at once, a future
/// makes it wait; see [`AcceptorOptions::with_name_hook`].
pub type NameHook =
    Arc<dyn Fn(AskedName<'_>) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> + Send + Sync>;

/// How handshakes are accepted.
#[derive(Clone)]
#[non_exhaustive]
pub struct AcceptorOptions {
    /// How long a handshake may take, from the call to the client's Finished, also where requests in early data are served before. Default 10 s: several round trips
    /// of a bad mobile link, and short enough that a client which sends nothing holds its connection no longer.
    /// A handshake under way takes about 20 KiB.
    pub handshake_timeout: Duration,
    /// How many handshakes may do their arithmetic (about 0.15 ms each) before everything else that is ready on the
    /// runtime gets its turn, over all clones of the acceptor (but see [`Acceptor::with_own_line`]); at least 1. Default 4: a flood of handshakes then delays
    /// other work by under a millisecond, and waits in line itself. Who waits is bounded by the connections that are
    /// open and by the deadline.
    pub handshakes_at_once: usize,
    /// See [`AcceptorOptions::with_name_hook`].
    pub name_hook: Option<NameHook>,
}

impl Default for AcceptorOptions {
    fn default() -> Self {
        Self { handshake_timeout: Duration::from_secs(10), handshakes_at_once: 4, name_hook: None }
    }
}

impl AcceptorOptions {
    /// Sets [`AcceptorOptions::handshake_timeout`].
    #[must_use]
    pub fn with_handshake_timeout(mut self, handshake_timeout: Duration) -> Self {
        self.handshake_timeout = handshake_timeout;
        self
    }

    /// Sets [`AcceptorOptions::handshakes_at_once`].
    #[must_use]
    pub fn with_handshakes_at_once(mut self, handshakes_at_once: usize) -> Self {
        self.handshakes_at_once = handshakes_at_once.max(1);
        self
    }

    /// Waits for this before a client that asks for a name is answered, within the deadline: time to have a certificate
    /// issued on demand, or to fetch the answer to a challenge that another instance began. It is asked in every handshake
    /// with a name, so it must give `None` at once for those that are known.
    #[must_use]
    pub fn with_name_hook(mut self, hook: NameHook) -> Self {
        self.name_hook = Some(hook);
        self
    }
}

impl fmt::Debug for AcceptorOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcceptorOptions")
            .field("handshake_timeout", &self.handshake_timeout)
            .field("handshakes_at_once", &self.handshakes_at_once)
            .field("name_hook", &self.name_hook.is_some())
            .finish()
    }
}

/// Which configuration answers.
#[derive(Clone, Debug)]
enum Configs {
    One(Arc<ServerConfig>),
    ByName(ServerTls),
}

/// Turns a connection into an encrypted one and fills in what was agreed. Clones share their counters and their line.
///
/// Run it in the connection's own task: in an accept loop one slow client would hold up all others. Where the
/// configuration accepts early data, the connection is handed out with it, before the handshake is complete:
/// [`portcullis_conn::ConnInfo::is_early`] tells. Dropping the future closes the connection.
#[derive(Clone)]
pub struct Acceptor {
    configs: Configs,
    options: AcceptorOptions,
    stats: Arc<HandshakeStats>,
    line: Arc<Semaphore>,
}

impl Acceptor {
    /// An acceptor for a configuration, as [`crate::tcp_config`] makes it or of the caller's own.
    pub fn new(config: Arc<ServerConfig>, options: AcceptorOptions) -> Self {
        Self::with(Configs::One(config), options)
    }

    /// An acceptor for configurations by the name that the client asks for.
    pub(crate) fn by_name(tls: ServerTls, options: AcceptorOptions) -> Self {
        Self::with(Configs::ByName(tls), options)
    }

    fn with(configs: Configs, options: AcceptorOptions) -> Self {
        Self { configs, stats: Arc::default(), line: line(&options), options }
    }

    /// The same with a line of its own, for another thread that runs a runtime of its own: who waits there waits for what is done there. The counters
    /// are shared.
    #[must_use]
    pub fn with_own_line(&self) -> Self {
        let options = self.options.clone();
        Self { configs: self.configs.clone(), stats: Arc::clone(&self.stats), line: line(&options), options }
    }

    /// The counters.
    pub fn stats(&self) -> &Arc<HandshakeStats> {
        &self.stats
    }

    /// Shakes hands; the time runs from the first poll.
    ///
    /// # Errors
    /// When the deadline passes or the handshake fails, and when the client came only to see the answer to an ACME
    /// challenge. The connection is closed, after an alert where there is one to send.
    pub async fn accept<Io>(self, conn: Conn<Io>) -> Result<Conn<TlsStream<Io>>, HandshakeError>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        let started = Instant::now();
        let deadline = started + self.options.handshake_timeout;
        let Conn { io, info } = conn;
        let shake = tokio::time::timeout_at(deadline, self.shake(io, deadline));
        let outcome = shake.await.unwrap_or_else(|_| Err(HandshakeError::timeout()));
        match outcome {
            Ok((stream, early)) => {
                let mut tls = tls_info(stream.connection());
                tls.early_data = early;
                self.stats.complete(tls.resumed, tls.early_data.is_some(), started.elapsed());
                Ok(Conn::new(stream, info.with_tls(tls)))
            }
            Err(error) => {
                self.stats.fail(error.reason());
                Err(error)
            }
        }
    }

    async fn shake<Io>(
        &self,
        io: Io,
        deadline: Instant,
    ) -> Result<(TlsStream<Io>, Option<EarlyData>), HandshakeError>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), io).await?;
        let (accepted, mut io) = (start.accepted, start.io);
        if let Some(hook) = &self.options.name_hook
            && let Some(wait) = asked(hook, &accepted.client_hello())
        {
            wait.await;
        }
        let (config, challenge) = match &self.configs {
            Configs::One(config) => (Arc::clone(config), false),
            Configs::ByName(tls) => tls.config_for(&accepted.client_hello()),
        };
        let conn = match self.answer(accepted, config).await {
            Ok(conn) => conn,
            Err((error, mut alert)) => {
                send_alert(&mut io, &mut alert).await;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error).into());
            }
        };
        let mut stream = TlsStream::new(io, conn);
        let is_early = poll_fn(|cx| stream.poll_handshake(cx)).await?;
        if is_early {
            let (early, confirm) = EarlyData::new();
            stream.begin_early(confirm, deadline);
            return Ok((stream, Some(early)));
        }
        if challenge || stream.connection_mut().alpn_protocol() == Some(ACME_TLS_ALPN) {
            // RFC 8737 section 3: seen is all it had to be. Who asked for it first and for something else in a second hello was let in without
            // any policy, and goes as well.
            let _ = stream.shutdown().await;
            return Err(HandshakeError::challenge());
        }
        Ok((stream, None))
    }

    /// The arithmetic of a handshake. A place in the line is given back only when all others that were ready have had
    /// their turn.
    async fn answer(
        &self,
        accepted: Accepted,
        config: Arc<ServerConfig>,
    ) -> Result<ServerConnection, (rustls::Error, AcceptedAlert)> {
        // the line is never closed
        let _place = self.line.acquire().await;
        let conn = accepted.into_connection(config);
        tokio::task::yield_now().await;
        conn
    }
}

fn line(options: &AcceptorOptions) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(options.handshakes_at_once.clamp(1, Semaphore::MAX_PERMITS)))
}

fn asked(hook: &NameHook, hello: &ClientHello<'_>) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
    let challenge = asks_for_challenge(hello);
    hello.server_name().and_then(|name| hook(AskedName { name, challenge }))
}

async fn send_alert<Io: AsyncWrite + Unpin>(io: &mut Io, alert: &mut AcceptedAlert) {
    // a client that does not read it does not need it
    poll_fn(|cx| {
        loop {
            match alert.write(&mut Blocking { io, cx }) {
                Ok(n) if n > 0 => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                _ => return Poll::Ready(()),
            }
        }
    })
    .await;
    let _ = io.flush().await;
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor")
            .field("options", &self.options)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

/// The future of [`Acceptor`] as a service.
pub type Handshake<Io> = Pin<Box<dyn Future<Output = Result<Conn<TlsStream<Io>>, HandshakeError>> + Send>>;

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
        Box::pin(self.clone().accept(conn))
    }
}
