//! An HTTP/3 client over the same layer as the server.
//!
//! It trusts the server more than the server trusts its clients: windows are large and a response's head may have
//! any number of fields up to the size limit.

mod session;

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use quinn::{ClientConfig, IdleTimeout, TransportConfig, VarInt, crypto::rustls::QuicClientConfig};

pub(crate) use self::session::Session;
pub use self::session::{OnInterim, ResponseBody, ResponseTimeout};
use crate::{BoxError, Tunnel, quic::Lost};

/// Bytes of one response that may be on their way or unread.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// The same for a connection, and what it may have sent unacknowledged.
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
const IDLE_TIMEOUT: VarInt = VarInt::from_u32(30_000);
/// Bounds a response's head and trailers, before and after decompression.
const MAX_FIELD_SECTION: u64 = 256 * 1024;
/// How long a request body may stand still because the server takes no more of it.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a request failed, or a connection could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The local socket could not be made.
    #[error("the UDP socket cannot be used")]
    Socket(#[source] io::Error),
    /// The TLS configuration does not fit QUIC, or the server name is none.
    #[error("the TLS configuration or the server name does not fit")]
    Tls(#[source] BoxError),
    /// There is no connection, or there is none any more.
    #[error("the connection failed")]
    Connection(#[source] BoxError),
    /// The server is closing the connection and took no notice of the request.
    #[error("the server takes no more requests on this connection")]
    GoingAway,
    /// The server reset the request's stream.
    #[error("the server reset the request with code {code:#x}")]
    Reset {
        /// The code it gave, RFC 9114 section 8.1.
        code: u64,
    },
    /// The body of the request failed, or is not as long as its head says. The server is not to blame.
    #[error("the body of the request failed")]
    RequestBody(#[source] BoxError),
    /// The response did not begin in the time of a [`ResponseTimeout`].
    #[error("the response did not begin in time")]
    Timeout,
    /// The response is not valid HTTP/3.
    #[error("the response is not valid HTTP/3")]
    Protocol(#[source] BoxError),
}

impl ClientError {
    fn lost(lost: Lost) -> Self {
        Self::Connection(lost.into())
    }
}

/// A UDP socket that connections share.
#[derive(Clone)]
pub struct Client {
    quinn: quinn::Endpoint,
    /// What servers gave, to prove this address the next time.
    tokens: Arc<quinn::TokenMemoryCache>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("quinn", &self.quinn).finish_non_exhaustive()
    }
}

impl Client {
    /// Binds a socket; port 0 lets the system choose. Must be called inside a tokio runtime.
    pub fn new(bind: SocketAddr) -> Result<Self, ClientError> {
        let quinn = quinn::Endpoint::client(bind).map_err(ClientError::Socket)?;
        Ok(Self { quinn, tokens: Arc::new(quinn::TokenMemoryCache::default()) })
    }

    /// Connects. `server_name` is what the certificate must be good for. `h3` is offered by ALPN whatever the
    /// configuration says.
    pub async fn connect(
        &self,
        addr: SocketAddr,
        server_name: &str,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<Connection, ClientError> {
        let connecting = self.begin(addr, server_name, tls)?;
        let quinn = connecting.await.map_err(|error| ClientError::Connection(error.into()))?;
        self.speak(quinn).await
    }

    /// Connects, and where the server was met before and allows early data does not wait for its answer: requests go
    /// out with the first packet (RFC 9001 section 4.6). Give the same `tls`, which must enable early data, each time.
    pub async fn connect_early(
        &self,
        addr: SocketAddr,
        server_name: &str,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<Connection, ClientError> {
        match self.begin(addr, server_name, tls)?.into_0rtt() {
            Ok((quinn, _accepted)) => self.speak(quinn).await,
            Err(connecting) => {
                let quinn = connecting.await.map_err(|error| ClientError::Connection(error.into()))?;
                self.speak(quinn).await
            }
        }
    }

    fn begin(
        &self,
        addr: SocketAddr,
        server_name: &str,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<quinn::Connecting, ClientError> {
        let mut config = client_config(tls)?;
        config.token_store(self.tokens.clone());
        self.quinn.connect_with(config, addr, server_name).map_err(|error| ClientError::Tls(error.into()))
    }

    async fn speak(&self, quinn: quinn::Connection) -> Result<Connection, ClientError> {
        let session = Session::begin(quinn).await.map_err(ClientError::lost)?;
        Ok(Connection { session, _client: self.clone() })
    }

    /// Waits until the last packets of closed connections have left.
    pub async fn wait_idle(&self) {
        self.quinn.wait_idle().await;
    }
}

/// A connection; clones share it. It closes when the last of them and of their response bodies is dropped.
#[derive(Clone)]
pub struct Connection {
    session: Arc<Session<quinn::Connection>>,
    _client: Client,
}

impl Connection {
    /// Connects from a socket of its own.
    pub async fn connect(
        addr: SocketAddr,
        server_name: &str,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<Self, ClientError> {
        let bind = match addr {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        Client::new(bind)?.connect(addr, server_name, tls).await
    }

    /// Sends a request, whose URI must name scheme and authority, and waits for the head of its response. The body
    /// is sent meanwhile and after; interim responses are skipped, except that one with an [`OnInterim`] among the request's
    /// extensions is told of them. Waits for the server's credit where as many requests are open as it takes.
    pub async fn send<B>(&self, request: Request<B>) -> Result<Response<ResponseBody>, ClientError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.session.send(request).await
    }

    /// Asks for a tunnel: CONNECT, with a `portcullis_conn::ConnectProtocol` among its extensions an extended one (RFC 9220).
    /// Behind a 2xx there is the tunnel, behind any other status a body.
    pub async fn open_tunnel(
        &self,
        request: Request<()>,
    ) -> Result<(Response<ResponseBody>, Option<Tunnel>), ClientError> {
        self.session.open_tunnel(request).await
    }

    /// Closes the connection with `H3_NO_ERROR`; what is under way fails.
    pub fn close(&self) {
        self.session.close();
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.session.is_closed()
    }

    /// Whether it takes requests: it is there, and the server has not said GOAWAY.
    pub fn is_ready(&self) -> bool {
        !self.session.is_closed() && !self.session.is_going_away()
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("session", &self.session).finish()
    }
}

fn client_config(mut tls: Arc<rustls::ClientConfig>) -> Result<ClientConfig, ClientError> {
    if tls.alpn_protocols != [b"h3"] {
        // RFC 9114 section 3.1
        Arc::make_mut(&mut tls).alpn_protocols = vec![b"h3".to_vec()];
    }
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| ClientError::Tls(error.into()))?;
    let mut transport = TransportConfig::default();
    transport
        // a server opens no requests; its unidirectional streams are control and two for QPACK, and reserved ones
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(8))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .max_idle_timeout(Some(IdleTimeout::from(IDLE_TIMEOUT)))
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0);
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    Ok(config)
}
