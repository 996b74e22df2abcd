//! HTTP/3 over several network paths at once (draft-ietf-quic-multipath). **Experimental**: feature `multipath`.
//!
//! Another implementation of QUIC, noq, under the same HTTP/3: both ends have to be this crate, or speak the same draft; browsers do
//! not. It is for two edges with two networks between them, where one may fail or both are wanted. The interface may change in any
//! version; steering to workers, routable connection ids, hand-over, qlog and statistics of paths are for [`crate::Endpoint`] alone.

use std::{
    fmt,
    future::Future,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use noq::{
    ClientConfig, EndpointConfig, IdleTimeout, PathId, PathStatus, ServerConfig, TokioRuntime,
    TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use portcullis_conn::{ConnInfo, TlsInfo, TlsVersion, Transport};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_service::Service;

use crate::{
    BoxError, ConnLimits, EndpointError, QuicOptions, RecvBody,
    client::{ClientError, ResponseBody, Session},
    codes,
    connection::{self, ConnContext},
    endpoint::Pending,
    limits::count,
    quic::{Lost, Quic, ReadFault, RecvHalf, SendHalf},
};

/// Paths that a connection may have at a time.
const PATHS_MAX: u32 = 8;
/// A path is told of at once after the handshake, and the peer's connection ids for it come a moment later.
const OPEN_AGAIN: Duration = Duration::from_millis(20);
const OPEN_TRIES: u32 = 100;

impl From<noq::ConnectionError> for Lost {
    fn from(error: noq::ConnectionError) -> Self {
        match error {
            noq::ConnectionError::ApplicationClosed(close) => Self::Closed(close.error_code.into_inner()),
            noq::ConnectionError::TimedOut => Self::TimedOut,
            other => Self::Other(Arc::new(other)),
        }
    }
}

impl Quic for noq::Connection {
    type Send = noq::SendStream;
    type Recv = noq::RecvStream;

    async fn accept_bi(&self) -> Result<(Self::Send, Self::Recv), Lost> {
        Ok(noq::Connection::accept_bi(self).await?)
    }

    async fn accept_uni(&self) -> Result<Self::Recv, Lost> {
        Ok(noq::Connection::accept_uni(self).await?)
    }

    async fn open_bi(&self) -> Result<(Self::Send, Self::Recv), Lost> {
        Ok(noq::Connection::open_bi(self).await?)
    }

    async fn open_uni(&self) -> Result<Self::Send, Lost> {
        Ok(noq::Connection::open_uni(self).await?)
    }

    fn max_datagram(&self) -> Option<usize> {
        self.max_datagram_size()
    }

    fn send_datagram(&self, payload: Bytes) -> Result<(), BoxError> {
        Ok(noq::Connection::send_datagram(self, payload)?)
    }

    async fn read_datagram(&self) -> Result<Bytes, Lost> {
        Ok(noq::Connection::read_datagram(self).await?)
    }

    fn close(&self, code: u32, reason: &str) {
        noq::Connection::close(self, VarInt::from_u32(code), reason.as_bytes());
    }

    fn lost(&self) -> Option<Lost> {
        self.close_reason().map(Into::into)
    }

    /// Of the slowest path: what is waited for may come by any.
    fn rtt(&self) -> Duration {
        paths(self).iter().map(|path| path.rtt).max().unwrap_or_default()
    }

    fn heard(&self) -> u64 {
        self.stats().udp_rx.datagrams
    }

    fn peer(&self) -> SocketAddr {
        remote(self)
    }
}

impl SendHalf for noq::SendStream {
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<usize, ()>> {
        let (all, mut rest) = (chunks.len(), chunks);
        let polled = pin!(self.write_many_chunks(&mut rest)).poll(cx);
        polled.map(|written| written.map(|_| all - rest.len()).map_err(|_| ()))
    }

    fn finish(&mut self) {
        let _ = noq::SendStream::finish(self);
    }

    fn is_over(&self) -> bool {
        self.priority().is_err()
    }

    fn reset(&mut self, code: u32) {
        let _ = noq::SendStream::reset(self, VarInt::from_u32(code));
    }

    fn set_priority(&self, priority: i32) {
        let _ = noq::SendStream::set_priority(self, priority);
    }

    fn stopped(&self) -> impl Future<Output = ()> + Send + Sync + 'static + use<> {
        let stopped = noq::SendStream::stopped(self);
        async move {
            let _ = stopped.await;
        }
    }

    fn id(&self) -> u64 {
        noq::SendStream::id(self).into()
    }
}

impl RecvHalf for noq::RecvStream {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<Option<usize>, ReadFault>> {
        pin!(self.read_many_chunks(chunks)).poll(cx).map_err(|error| match error {
            noq::ReadError::Reset(code) => ReadFault::Reset(code.into_inner()),
            noq::ReadError::ConnectionLost(error) => ReadFault::Lost(error.into()),
            other => ReadFault::Lost(Lost::Other(Arc::new(other))),
        })
    }

    fn stop(&mut self, code: u32) {
        let _ = noq::RecvStream::stop(self, VarInt::from_u32(code));
    }

    fn id(&self) -> u64 {
        noq::RecvStream::id(self).into()
    }
}

/// What one path has carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PathStats {
    /// Bytes sent, headers of UDP and IP not counted.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// The smoothed round trip.
    pub rtt: Duration,
}

fn paths(quic: &noq::Connection) -> Vec<PathStats> {
    // ids are given in their order and not used again
    (0..PATHS_MAX * 4)
        .filter_map(|id| quic.path_stats(PathId::from(id)))
        .map(|stats| PathStats { sent: stats.udp_tx.bytes, received: stats.udp_rx.bytes, rtt: stats.rtt })
        .collect()
}

/// Where the peer is on its first path that is open.
fn remote(quic: &noq::Connection) -> SocketAddr {
    (0..PATHS_MAX * 4)
        .filter_map(|id| quic.path(PathId::from(id))?.remote_address().ok())
        .next()
        .unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, 0).into())
}

fn transport(options: &QuicOptions) -> Result<TransportConfig, EndpointError> {
    options.check()?;
    let idle = IdleTimeout::try_from(options.max_idle_timeout)
        .map_err(|_| EndpointError::Option { option: "max_idle_timeout", reason: "less than 2^62 ms" })?;
    let datagrams = options.datagrams.then_some(options.datagram_buffer);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(options.max_bidi_streams))
        .max_concurrent_uni_streams(VarInt::from_u32(options.max_uni_streams))
        .stream_receive_window(VarInt::from_u32(options.stream_window))
        .receive_window(VarInt::from_u32(options.connection_window))
        .send_window(options.send_window)
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(options.keep_alive)
        .datagram_receive_buffer_size(datagrams)
        .datagram_send_buffer_size(datagrams.unwrap_or(0))
        .max_concurrent_multipath_paths(PATHS_MAX);
    Ok(transport)
}

/// A UDP socket that speaks HTTP/3 with clients that may have several paths to it.
#[derive(Debug)]
pub struct Endpoint {
    noq: noq::Endpoint,
    options: Arc<QuicOptions>,
    limits: ConnLimits,
    local_addr: SocketAddr,
}

impl Endpoint {
    /// Makes an endpoint of a bound socket; must be called inside the tokio runtime that is to drive it. Of `options` what the module's
    /// documentation does not leave out. Early data is not accepted.
    pub fn new(
        socket: UdpSocket,
        tls: Arc<rustls::ServerConfig>,
        options: &QuicOptions,
        limits: ConnLimits,
    ) -> Result<Self, EndpointError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(EndpointError::NoRuntime);
        }
        if !tls.alpn_protocols.iter().any(|protocol| protocol == b"h3") {
            return Err(EndpointError::Alpn);
        }
        if tls.max_early_data_size != 0 {
            return Err(EndpointError::EarlyData);
        }
        let crypto = QuicServerConfig::try_from(tls).map_err(|error| EndpointError::Tls(error.into()))?;
        let mut server = ServerConfig::with_crypto(Arc::new(crypto));
        server
            .transport_config(Arc::new(transport(options)?))
            .max_incoming(options.max_incoming)
            .incoming_buffer_size(options.incoming_buffer_size)
            .incoming_buffer_size_total(options.incoming_buffer_total);
        let noq = noq::Endpoint::new(EndpointConfig::default(), Some(server), socket, Arc::new(TokioRuntime))
            .map_err(EndpointError::Socket)?;
        let local_addr = noq.local_addr().map_err(EndpointError::Socket)?;
        Ok(Self { noq, options: Arc::new(options.clone()), limits, local_addr })
    }

    /// The address the socket is bound to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local_addr)
    }

    /// Serves requests until `shutdown` completes, then drains for at most `grace`, like [`crate::Endpoint::serve`].
    pub async fn serve<S, B>(self, service: S, shutdown: impl Future<Output = ()>, grace: Duration)
    where
        S: Service<Request<RecvBody>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (drain, tasks) = (CancellationToken::new(), TaskTracker::new());
        let counters = self.limits.register();
        let pending = Arc::new(AtomicUsize::new(0));
        let mut shutdown = pin!(shutdown);
        loop {
            let incoming = tokio::select! {
                biased;
                () = &mut shutdown => break,
                incoming = self.noq.accept() => match incoming {
                    Some(incoming) => incoming,
                    None => break,
                },
            };
            let running = pending.load(Ordering::Relaxed);
            if self.options.must_prove(running)
                && !incoming.remote_address_validated()
                && incoming.may_retry()
            {
                count(&counters.retried);
                // fails only where `may_retry` is false
                let _ = incoming.retry();
                continue;
            }
            let permit = if running < self.options.max_incoming { self.limits.acquire() } else { None };
            let Some(permit) = permit else {
                count(&counters.refused);
                incoming.refuse();
                continue;
            };
            let (options, counters, drain) = (Arc::clone(&self.options), counters.clone(), drain.clone());
            let (service, local) = (service.clone(), self.local_addr);
            let pending = Pending::begin(&pending);
            tasks.spawn(async move {
                let started = tokio::time::timeout(options.handshake_timeout, async {
                    let quic = incoming.accept()?.await?;
                    let control = connection::open_control(&quic, &options).await?;
                    Ok::<_, BoxError>((quic, control))
                });
                let Ok(Ok((quic, control))) = started.await else {
                    count(&counters.handshake_failures);
                    return;
                };
                drop(pending);
                // the address is proven now
                let Ok(hold) = permit.limits().admit(remote(&quic).ip()) else {
                    count(&counters.refused);
                    Quic::close(&quic, codes::EXCESSIVE_LOAD, "too many connections of this client");
                    return;
                };
                count(&counters.accepted);
                let mut tls = TlsInfo::default();
                tls.version = Some(TlsVersion::Tls13);
                tls.alpn = Some(b"h3".to_vec());
                let info = ConnInfo::new(Transport::Quic, remote(&quic), local).with_tls(tls);
                let context = ConnContext::new(quic, info, options, counters);
                connection::drive(control, context, service, &drain).await;
                drop((hold, permit));
            });
        }
        drain.cancel();
        tasks.close();
        let _ = tokio::time::timeout(grace, tasks.wait()).await;
        self.noq.close(VarInt::from_u32(codes::NO_ERROR), b"");
    }
}

/// A client's connection; clones share it. It closes when the last of them and of their response bodies is dropped.
#[derive(Clone)]
pub struct Connection {
    session: Arc<Session<noq::Connection>>,
    noq: noq::Connection,
    _endpoint: noq::Endpoint,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("session", &self.session).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects from a socket of its own, by one path; see [`Connection::open_path`].
    pub async fn connect(
        addr: SocketAddr,
        server_name: &str,
        mut tls: Arc<rustls::ClientConfig>,
    ) -> Result<Self, ClientError> {
        let bind: SocketAddr = match addr {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        if tls.alpn_protocols != [b"h3"] {
            Arc::make_mut(&mut tls).alpn_protocols = vec![b"h3".to_vec()];
        }
        let crypto = QuicClientConfig::try_from(tls).map_err(|error| ClientError::Tls(error.into()))?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        let options = QuicOptions::default().with_stream_window(1 << 20).with_connection_window(8 << 20);
        config
            .transport_config(Arc::new(transport(&options).map_err(|error| ClientError::Tls(error.into()))?));
        let endpoint = noq::Endpoint::client(bind).map_err(ClientError::Socket)?;
        let connecting = endpoint
            .connect_with(config, addr, server_name)
            .map_err(|error| ClientError::Tls(error.into()))?;
        let noq = connecting.await.map_err(|error| ClientError::Connection(error.into()))?;
        let session =
            Session::begin(noq.clone()).await.map_err(|error| ClientError::Connection(error.into()))?;
        Ok(Self { session, noq, _endpoint: endpoint })
    }

    /// Opens one more path, to another address of the server; it is used beside the first, or in its place. Cancelled, the path may be open all
    /// the same.
    pub async fn open_path(&self, to: SocketAddr) -> Result<(), ClientError> {
        let mut last = None;
        for _ in 0..OPEN_TRIES {
            match self.noq.open_path(to, PathStatus::Available).await {
                Ok(_) => return Ok(()),
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(OPEN_AGAIN).await;
        }
        Err(ClientError::Connection(last.map_or_else(|| "no path was tried".into(), Into::into)))
    }

    /// What each path has carried, in the order of their opening.
    pub fn paths(&self) -> Vec<PathStats> {
        paths(&self.noq)
    }

    /// Sends a request; like [`crate::client::Connection::send`].
    pub async fn send<B>(&self, request: Request<B>) -> Result<Response<ResponseBody>, ClientError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.session.send(request).await
    }
}
