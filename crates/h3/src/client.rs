//! A small HTTP/3 client over the same glue as the server: for tests, load generation and probes.
//!
//! It trusts the server more than the server trusts its clients: windows are large and a response's head may have
//! any number of fields up to the size limit.

use std::{
    future::poll_fn,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use ::h3::error::{Code, ConnectionError, StreamError};
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use quinn::{ClientConfig, IdleTimeout, TransportConfig, VarInt, crypto::rustls::QuicClientConfig};
use tokio::task::AbortHandle;

use crate::{
    BodyError, BoxError,
    body::{BodyStream, Reader},
    codes,
    glue::{self, Bidi, Opener, Role, Shared},
    head,
    outgoing::{Outgoing, Pump, poll_stopped},
};

type ClientStream = ::h3::client::RequestStream<Bidi, Bytes>;
type SendRequest = ::h3::client::SendRequest<Opener, Bytes>;

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
    /// The response is not valid HTTP/3.
    #[error("the response is not valid HTTP/3")]
    Protocol(#[source] BoxError),
}

impl ClientError {
    fn from_h3(error: StreamError) -> Self {
        match error {
            StreamError::RemoteTerminate { code, .. } => Self::Reset { code: code.value() },
            StreamError::RemoteClosing { .. } => Self::GoingAway,
            StreamError::ConnectionError { 0: error, .. } => Self::Connection(error.into()),
            other => Self::Protocol(other.into()),
        }
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
        let shared = Shared::new(quinn, Role::Client, MAX_FIELD_SECTION);
        let (mut driver, send) = ::h3::client::builder()
            .send_grease(false)
            .max_field_section_size(MAX_FIELD_SECTION)
            .build(glue::Connection::new(shared.clone()))
            .await
            .map_err(|error| ClientError::Connection(error.into()))?;
        // reads the control stream and ends with the connection
        tokio::spawn(async move {
            let error: ConnectionError = poll_fn(|cx| driver.poll_close(cx)).await;
            tracing::trace!(%error, "a connection has ended");
        });
        Ok(Connection(Arc::new(Inner { send, shared, _client: self.clone() })))
    }

    /// Waits until the last packets of closed connections have left.
    pub async fn wait_idle(&self) {
        self.quinn.wait_idle().await;
    }
}

/// A connection; clones share it. It closes when the last of them and of their response bodies is dropped.
#[derive(Clone)]
pub struct Connection(Arc<Inner>);

struct Inner {
    send: SendRequest,
    shared: Arc<Shared>,
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
    /// is sent meanwhile and after; interim responses are skipped.
    pub async fn send<B>(&self, request: Request<B>) -> Result<Response<ResponseBody>, ClientError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        let is_head = parts.method == Method::HEAD;
        let announced = head::content_length(&parts.headers).ok().flatten();
        // the sender counts its clones; the connection's own keeps it open
        let mut stream = self
            .0
            .send
            .clone()
            .send_request(Request::from_parts(parts, ()))
            .await
            .map_err(ClientError::from_h3)?;
        let core = self
            .0
            .shared
            .claim(::h3::quic::StreamId::into_inner(stream.id()))
            .ok_or_else(|| ClientError::Protocol("the stream of the request is lost".into()))?;
        let out = Outgoing::take(&core, codes::REQUEST_CANCELLED)
            .ok_or_else(|| ClientError::Protocol("the stream of the request is taken".into()))?;
        let upload = if body.is_end_stream() {
            drop(out.finish());
            None
        } else {
            Some(Upload(Some(tokio::spawn(send_body(out, body, announced)).abort_handle())))
        };
        let mut heads = 0;
        let response = loop {
            heads += 1;
            let response = stream.recv_response().await.map_err(ClientError::from_h3)?;
            // RFC 9110 section 15.2
            if !response.status().is_informational() {
                break response;
            }
        };
        let announced = if is_head || head::is_bodiless(response.status()) {
            None
        } else {
            head::content_length(response.headers())
                .map_err(|()| ClientError::Protocol("the content-length is malformed".into()))?
        };
        let reader = Reader::new(stream, core, announced, heads, usize::MAX);
        Ok(response.map(|()| ResponseBody { reader: Some(reader), upload, connection: self.clone() }))
    }

    /// Closes the connection with `H3_NO_ERROR`; what is under way fails.
    pub fn close(&self) {
        self.0.shared.quinn.close(codes::var(codes::NO_ERROR), b"");
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.0.shared.quinn.close_reason().is_some()
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("peer", &self.0.shared.quinn.remote_address()).finish()
    }
}

async fn send_body<B>(mut out: Outgoing, body: B, announced: Option<u64>)
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut pump = Pump::new(BytesMut::new(), announced, SEND_TIMEOUT);
    let (mut body, mut stopped) = (pin!(body), pin!(None));
    let sent = poll_fn(|cx| {
        if let Poll::Ready(sent) = pump.poll(cx, &mut out, body.as_mut()) {
            return Poll::Ready(Some(sent));
        }
        if pump.waits_for_body() {
            return poll_stopped(stopped.as_mut(), || out.stopped(), cx).map(|()| None);
        }
        Poll::Pending
    })
    .await;
    match sent {
        Some(Ok(())) => drop(out.finish()),
        // the server has what it needs, or is gone
        None => out.reset(codes::NO_ERROR),
        Some(Err(fault)) => out.give_up(&fault),
    }
}

/// A request body under way; dropped, it is cancelled.
struct Upload(Option<AbortHandle>);

impl Upload {
    /// Lets it go on by itself.
    fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

impl BodyStream for ClientStream {
    fn poll_payload(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        self.poll_recv_data(cx).map_ok(|data| data.map(|mut data| data.copy_to_bytes(data.remaining())))
    }

    fn poll_trailers(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, StreamError>> {
        self.poll_recv_trailers(cx)
    }

    fn stop(&mut self, code: Code) {
        self.stop_sending(code);
    }
}

/// The body of a response. Dropped before its end, it cancels the request.
pub struct ResponseBody {
    reader: Option<Reader<ClientStream>>,
    upload: Option<Upload>,
    connection: Connection,
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(reader) = &mut self.reader else { return Poll::Ready(None) };
        let frame = ready!(reader.poll_frame(cx));
        match &frame {
            Some(Ok(frame)) if frame.is_data() => {}
            Some(Err(_)) => self.reader = None,
            _ => {
                self.reader = None;
                // the response is complete; the rest of the request may still be of use to the server
                if let Some(upload) = self.upload.take() {
                    upload.release();
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.reader.as_ref().is_none_or(Reader::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.reader.as_ref().map_or_else(|| SizeHint::with_exact(0), Reader::size_hint)
    }
}

impl std::fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseBody").field("connection", &self.connection).finish()
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
