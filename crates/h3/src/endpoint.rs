//! The endpoint: one UDP socket, its configuration, and the loop that takes connections.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use quinn::{
    EndpointConfig, IdleTimeout, MtuDiscoveryConfig, Runtime as _, ServerConfig, TokioRuntime,
    TransportConfig, ValidationTokenConfig, VarInt, congestion, crypto::rustls::QuicServerConfig,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_service::Service;
use tracing::{debug, warn};

#[cfg(unix)]
use crate::HandOver;
use crate::{
    BoxError, Congestion, ConnLimits, EndpointError, QuicOptions, QuicSocket, RecvBody, Retry, WorkerId,
    cid::WorkerIds,
    codes, handshake,
    limits::{ClientHold, Counters, Permit, count},
};

/// Early packets that all connection attempts of an endpoint may hold together before they are taken up.
const INCOMING_BUFFER_TOTAL: u64 = 4 * 1024 * 1024;
/// What a handshake may have in flight out of order; a client's certificate chain fits.
const CRYPTO_BUFFER: usize = 16 * 1024;
/// How long the last packets may take to leave after everything is served.
const CLOSE_TIME: Duration = Duration::from_millis(300);
/// How long a client may prove its address by a token that it was given there, which spares it a round trip and lets its requests be early. An
/// address changes hands, so not for long.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// A UDP socket that speaks HTTP/3.
#[derive(Debug)]
pub struct Endpoint {
    quinn: quinn::Endpoint,
    options: Arc<QuicOptions>,
    limits: ConnLimits,
    counters: Arc<Counters>,
    local_addr: SocketAddr,
    early_data: bool,
    #[cfg(unix)]
    hand_over: Option<HandOver>,
}

/// A connection attempt that was let in, on its way to its task.
pub(crate) struct Handshake {
    pub(crate) incoming: quinn::Incoming,
    pub(crate) options: Arc<QuicOptions>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) local_port: u16,
    pub(crate) permit: Permit,
    /// What the client's connection holds, if its address was proven before the handshake.
    pub(crate) hold: Option<ClientHold>,
    pub(crate) pending: Pending,
    /// Whether requests are served before the handshake is complete.
    pub(crate) early: bool,
}

/// A handshake that is running.
pub(crate) struct Pending(Arc<AtomicUsize>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Endpoint {
    /// Makes an endpoint of a bound socket; must be called inside the tokio runtime that is to drive it.
    ///
    /// `tls` must offer `h3` by ALPN and speak TLS 1.3. Where it accepts early data (`max_early_data_size` of `u32::MAX`), requests in it are
    /// served before the handshake is complete, and `ConnInfo::is_early` says so; but only for clients that prove by a token that they had
    /// their address within the last hour, so that a stranger can't have requests count for an address of his choice. Every connection id that the
    /// endpoint issues names `worker`, where [`QuicOptions::connection_ids`] says. `limits` bounds the connections of all endpoints that share it.
    pub fn new(
        socket: impl Into<QuicSocket>,
        tls: Arc<rustls::ServerConfig>,
        options: &QuicOptions,
        worker: WorkerId,
        limits: ConnLimits,
    ) -> Result<Self, EndpointError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(EndpointError::NoRuntime);
        }
        let provider = tls.crypto_provider().clone();
        let early_data = tls.max_early_data_size != 0;
        let mut server = server_config(tls, options)?;
        if let Some((key, log)) = limits.tokens().get() {
            let mut tokens = ValidationTokenConfig::default();
            tokens.log(log);
            tokens.lifetime(TOKEN_LIFETIME);
            server.token_key(key).validation_token_config(tokens);
        }
        let mut config = EndpointConfig::default();
        let ids = options.connection_ids.clone();
        config.cid_generator(move || Box::new(WorkerIds::new(worker, ids.clone(), provider.clone())));
        config.max_udp_payload_size(options.max_udp_payload.max(1472)).map_err(|_| {
            EndpointError::Option { option: "max_udp_payload", reason: "what a datagram can carry" }
        })?;
        let socket: QuicSocket = socket.into();
        #[cfg(unix)]
        let hand_over = socket.known_hand_over();
        let socket = socket.open(worker, &options.connection_ids).map_err(EndpointError::Socket)?;
        let runtime = Arc::new(TokioRuntime);
        let quinn = quinn::Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime)
            .map_err(EndpointError::Socket)?;
        let local_addr = quinn.local_addr().map_err(EndpointError::Socket)?;
        let counters = limits.register();
        Ok(Self {
            quinn,
            options: Arc::new(options.clone()),
            limits,
            counters,
            local_addr,
            early_data,
            #[cfg(unix)]
            hand_over,
        })
    }

    /// The address the socket is bound to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local_addr)
    }

    /// Serves requests until `shutdown` completes, then drains: new connections are refused, each open one is told
    /// (GOAWAY, RFC 9114 section 5.2) and closed with its last response; what is left after `grace` is aborted.
    /// Returns when all is done.
    ///
    /// A request carries an `Arc<ConnInfo>` in its extensions. Its future is dropped when the client gives it up.
    pub async fn serve<S, B>(self, service: S, shutdown: impl Future<Output = ()>, grace: Duration)
    where
        S: Service<Request<RecvBody>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        // also if this future is dropped: then nothing drains, and everything ends at once
        let _close = CloseOnDrop(self.quinn.clone());
        let (drain, tasks) = (CancellationToken::new(), TaskTracker::new());
        let pending = Arc::new(AtomicUsize::new(0));
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                incoming = self.quinn.accept() => match incoming {
                    Some(incoming) => {
                        if let Some(handshake) = self.admit(incoming, &pending) {
                            tasks.spawn(handshake::run(handshake, service.clone(), drain.clone()));
                        }
                    }
                    None => {
                        warn!(address = %self.local_addr, "a QUIC endpoint has stopped by itself");
                        break;
                    }
                },
            }
        }
        drain.cancel();
        tasks.close();
        let (this, of) = (&self, &tasks);
        let admit = move |incoming| {
            if let Some(handshake) = this.admit(incoming, &pending) {
                of.spawn(handshake::run(handshake, service.clone(), drain.clone()));
            }
        };
        self.drain(&tasks, grace, admit).await;
    }

    async fn drain(&self, tasks: &TaskTracker, grace: Duration, mut admit: impl FnMut(quinn::Incoming)) {
        let mut served = pin!(tokio::time::timeout(grace, tasks.wait()));
        let in_time = loop {
            tokio::select! {
                biased;
                served = &mut served => break served.is_ok(),
                // what another process hands on comes for us: an answer to our own Retry, say. It is told to go when it is through
                Some(incoming) = self.quinn.accept() => if self.is_given() {
                    admit(incoming);
                } else {
                    count(&self.counters.refused);
                    incoming.refuse();
                }
            }
        };
        if !in_time {
            debug!(address = %self.local_addr, "the drain of a QUIC endpoint took too long");
        }
        self.quinn.close(codes::var(codes::NO_ERROR), b"");
        // RFC 9000 section 10.2: a closing connection answers for a while; its first packet has left long before
        let _ = tokio::time::timeout(CLOSE_TIME, async {
            tasks.wait().await;
            self.quinn.wait_idle().await;
        })
        .await;
    }

    /// Whether another process reads the socket.
    fn is_given(&self) -> bool {
        #[cfg(unix)]
        return self.hand_over.as_ref().is_some_and(HandOver::is_given);
        #[cfg(not(unix))]
        return false;
    }

    /// Decides about a connection attempt before it costs anything.
    fn admit(&self, incoming: quinn::Incoming, pending: &Arc<AtomicUsize>) -> Option<Handshake> {
        let running = pending.load(Ordering::Relaxed);
        let must_prove = match self.options.retry {
            Retry::Never => false,
            Retry::UnderLoad => running >= self.options.max_incoming.div_ceil(4),
            Retry::Always => true,
        };
        if must_prove && !incoming.remote_address_validated() && incoming.may_retry() {
            count(&self.counters.retried);
            // fails only where `may_retry` is false
            let _ = incoming.retry();
            return None;
        }
        let permit = if running < self.options.max_incoming { self.limits.acquire() } else { None };
        let Some(permit) = permit else {
            count(&self.counters.refused);
            incoming.refuse();
            return None;
        };
        let proven = incoming.remote_address_validated();
        let hold = if proven {
            match self.limits.admit(incoming.remote_address().ip()) {
                Ok(hold) => hold,
                Err(_) => {
                    count(&self.counters.refused);
                    incoming.refuse();
                    return None;
                }
            }
        } else {
            None
        };
        pending.fetch_add(1, Ordering::Relaxed);
        Some(Handshake {
            hold,
            // RFC 9000 section 8.1: else the address is only claimed
            early: self.early_data && proven,
            incoming,
            options: self.options.clone(),
            counters: self.counters.clone(),
            local_port: self.local_addr.port(),
            permit,
            pending: Pending(pending.clone()),
        })
    }
}

struct CloseOnDrop(quinn::Endpoint);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close(codes::var(codes::NO_ERROR), b"");
    }
}

/// The one place where the configuration of a server comes from: one that is put together elsewhere would fall back
/// to the QUIC stack's defaults, which bound little.
fn server_config(
    tls: Arc<rustls::ServerConfig>,
    options: &QuicOptions,
) -> Result<ServerConfig, EndpointError> {
    options.check()?;
    if !tls.alpn_protocols.iter().any(|protocol| protocol == b"h3") {
        return Err(EndpointError::Alpn);
    }
    // RFC 9001 section 4.6.1
    if !matches!(tls.max_early_data_size, 0 | u32::MAX) {
        return Err(EndpointError::EarlyData);
    }
    // quinn makes a session like this for each connection and takes for granted that it can
    rustls::quic::ServerConnection::new(tls.clone(), rustls::quic::Version::V1, Vec::new())
        .map_err(|error| EndpointError::Tls(error.into()))?;
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| EndpointError::Tls(error.into()))?;

    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    server
        .transport_config(Arc::new(transport_config(options)?))
        .migration(options.migration)
        .max_incoming(options.max_incoming)
        .incoming_buffer_size(options.incoming_buffer_size)
        .incoming_buffer_size_total(INCOMING_BUFFER_TOTAL);
    Ok(server)
}

fn transport_config(options: &QuicOptions) -> Result<TransportConfig, EndpointError> {
    let idle = IdleTimeout::try_from(options.max_idle_timeout)
        .map_err(|_| EndpointError::Option { option: "max_idle_timeout", reason: "less than 2^62 ms" })?;
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(options.max_bidi_streams))
        .max_concurrent_uni_streams(VarInt::from_u32(options.max_uni_streams))
        .stream_receive_window(VarInt::from_u32(options.stream_window))
        .receive_window(VarInt::from_u32(options.connection_window))
        .send_window(options.send_window)
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(options.keep_alive)
        .crypto_buffer_size(CRYPTO_BUFFER)
        // no datagrams (RFC 9221): nobody reads them
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0)
        .enable_segmentation_offload(options.segmentation_offload)
        .mtu_discovery_config(options.mtu_discovery.then(|| {
            let mut discovery = MtuDiscoveryConfig::default();
            discovery.upper_bound(options.max_udp_payload);
            discovery
        }))
        .congestion_controller_factory(match options.congestion {
            Congestion::Cubic => Arc::new(congestion::CubicConfig::default()),
            Congestion::NewReno => Arc::new(congestion::NewRenoConfig::default()),
            Congestion::Bbr => Arc::new(congestion::BbrConfig::default()),
        });
    Ok(transport)
}
