//! The endpoint: one UDP socket, its configuration, and the loop that takes connections.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, PoisonError, RwLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use quinn::{ServerConfig, TokioRuntime, VarInt};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_service::Service;
use tracing::{debug, warn};

#[cfg(unix)]
use crate::HandOver;
use crate::{
    BoxError, ConnLimits, EndpointError, QuicKeys, QuicOptions, QuicSocket, RecvBody, WorkerId, codes,
    handshake,
    limits::{ClientHold, Counters, Permit, count},
    transport, watch,
};

/// How long the last packets may take to leave after everything is served.
const CLOSE_TIME: Duration = Duration::from_millis(300);
/// A UDP socket that speaks HTTP/3.
#[derive(Debug)]
pub struct Endpoint {
    quinn: quinn::Endpoint,
    live: Arc<Live>,
    limits: ConnLimits,
    counters: Arc<Counters>,
    local_addr: SocketAddr,
    early_data: bool,
    #[cfg(unix)]
    hand_over: Option<HandOver>,
}

/// What can be changed of an endpoint that serves.
struct Live {
    quinn: quinn::Endpoint,
    tls: Arc<rustls::ServerConfig>,
    keys: QuicKeys,
    limits: ConnLimits,
    counters: Arc<Counters>,
    /// Changed together.
    current: RwLock<Current>,
}

/// What new connections get.
#[derive(Clone)]
struct Current {
    options: Arc<QuicOptions>,
    /// What `options` came to.
    server: Arc<ServerConfig>,
}

impl Live {
    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("options", &self.current().options).finish_non_exhaustive()
    }
}

/// Changes an endpoint while it serves, from any thread. Does not keep it alive.
#[derive(Clone, Debug)]
pub struct EndpointHandle(Weak<Live>);

impl EndpointHandle {
    /// The options in force; `None` once the endpoint has ended.
    pub fn options(&self) -> Option<Arc<QuicOptions>> {
        self.0.upgrade().map(|live| live.current().options)
    }

    /// Has new connections begin with other options; `false` if the endpoint has ended. Open ones get what QUIC lets change: the limits on streams,
    /// a lower one once enough streams have ended, and the windows of the connection, the one for receiving as credit that was given is used up.
    /// What belongs to the endpoint stays as it is: connection ids, keys, and the largest packet that is taken.
    ///
    /// # Errors
    ///
    /// As [`QuicOptions::check`]; nothing is changed then.
    pub fn set_options(&self, options: &QuicOptions) -> Result<bool, EndpointError> {
        let Some(live) = self.0.upgrade() else { return options.check().map(|()| false) };
        let server = transport::server_config(live.tls.clone(), options, live.keys.clone(), &live.limits)?;
        let before = live.current().options;
        let mut options = options.clone();
        options.connection_ids = before.connection_ids.clone();
        options.keys = before.keys.clone();
        live.quinn.set_server_config(Some(server.clone()));
        live.counters.paths.each(|quinn| {
            quinn.set_max_concurrent_bi_streams(VarInt::from_u32(options.max_bidi_streams));
            quinn.set_max_concurrent_uni_streams(VarInt::from_u32(options.max_uni_streams));
            quinn.set_receive_window(VarInt::from_u32(options.connection_window));
            quinn.set_send_window(options.send_window);
        });
        let current = Current { options: Arc::new(options), server: Arc::new(server) };
        *live.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        Ok(true)
    }
}

/// A connection attempt that was let in, on its way to its task.
pub(crate) struct Handshake {
    pub(crate) incoming: quinn::Incoming,
    pub(crate) options: Arc<QuicOptions>,
    /// Its own configuration, if it is traced.
    pub(crate) traced: Option<Arc<ServerConfig>>,
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

impl Pending {
    /// Counts it until this is dropped.
    pub(crate) fn begin(running: &Arc<AtomicUsize>) -> Self {
        running.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(running))
    }
}

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
        let early_data = tls.max_early_data_size != 0;
        let keys = match &options.keys {
            Some(keys) => keys.clone(),
            None => limits.keys().map_err(EndpointError::Keys)?,
        };
        let server = transport::server_config(tls.clone(), options, keys.clone(), &limits)?;
        let config = transport::endpoint_config(&tls, options, worker, keys.clone())?;
        let socket: QuicSocket = socket.into();
        #[cfg(unix)]
        let hand_over = socket.known_hand_over();
        let socket = socket.open(worker, &options.connection_ids).map_err(EndpointError::Socket)?;
        let runtime = Arc::new(TokioRuntime);
        let quinn = quinn::Endpoint::new_with_abstract_socket(config, Some(server.clone()), socket, runtime)
            .map_err(EndpointError::Socket)?;
        let local_addr = quinn.local_addr().map_err(EndpointError::Socket)?;
        let counters = limits.register();
        let current = Current { options: Arc::new(options.clone()), server: Arc::new(server) };
        let current = RwLock::new(current);
        let (of, with) = (quinn.clone(), counters.clone());
        let live = Live { quinn: of, tls, keys, limits: limits.clone(), counters: with, current };
        Ok(Self {
            quinn,
            live: Arc::new(live),
            limits,
            counters,
            local_addr,
            early_data,
            #[cfg(unix)]
            hand_over,
        })
    }

    /// For what is changed while it serves.
    pub fn handle(&self) -> EndpointHandle {
        EndpointHandle(Arc::downgrade(&self.live))
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
        let mut watching = pin!(watch::look_at_all(&self.counters));
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                () = &mut watching => {}
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
        let Current { options, server } = self.live.current();
        let must_prove = options.must_prove(running);
        if must_prove && !incoming.remote_address_validated() && incoming.may_retry() {
            count(&self.counters.retried);
            // fails only where `may_retry` is false
            let _ = incoming.retry();
            return None;
        }
        let permit = if running < options.max_incoming { self.limits.acquire() } else { None };
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
        if self.early_data {
            count(if proven { &self.counters.early_allowed } else { &self.counters.early_unproven });
        }
        let traced = options.traces.as_ref().and_then(|traces| {
            let config = traces.config(&incoming, &server, &options);
            config.inspect_err(|error| warn!(%error, "a connection is not traced")).ok().flatten()
        });
        Some(Handshake {
            hold,
            // RFC 9000 section 8.1: else the address is only claimed
            early: self.early_data && proven,
            incoming,
            options,
            traced,
            counters: self.counters.clone(),
            local_port: self.local_addr.port(),
            permit,
            pending: Pending::begin(pending),
        })
    }
}

struct CloseOnDrop(quinn::Endpoint);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close(codes::var(codes::NO_ERROR), b"");
    }
}
