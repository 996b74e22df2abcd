//! One connection: handshake, requests, drain.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use ::h3::{
    error::ConnectionError,
    server::{self, RequestResolver},
};
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{Request, Response};
use http_body::Body;
use portcullis_conn::{Confirm, ConnInfo, EarlyData, TlsInfo, TlsVersion, Transport};
use quinn::crypto::rustls::HandshakeData;
use rustls::pki_types::CertificateDer;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tower_service::Service;
use tracing::debug;

use crate::{
    BoxError, QuicOptions, RecvBody,
    body::ServerStream,
    codes,
    endpoint::{Handshake, Pending},
    glue::{Connection, Quiet, Role, Shared, StreamCore},
    limits::{Counters, count},
    outgoing::Outgoing,
    request,
};

type H3 = server::Connection<Connection, Bytes>;

/// Read request streams that wait to be dropped together.
const BURIED_MAX: usize = 16;
/// What `QuicOptions::max_cancelled` counts in.
const CANCELLED_PERIOD: Duration = Duration::from_secs(10);
/// Cancelled requests that end a connection however long it took: `h3` keeps a few bytes for each whose head never
/// came.
const CANCELLED_EVER: u32 = 1 << 18;
/// Bounds how long requests that crossed the first GOAWAY are waited for.
const RACE_MAX: Duration = Duration::from_millis(100);
/// Bounds the wait for room on the control stream.
const GOAWAY_MAX: Duration = Duration::from_secs(1);
/// How long a peer that owes an acknowledgement may be silent during a drain, or four round trips if that is more. It
/// may hold one back for 25 ms (RFC 9000 section 18.2, max_ack_delay), so this leaves room for several losses.
const SILENCE_MIN: Duration = Duration::from_millis(500);

/// What all requests of a connection share.
pub(crate) struct ConnContext {
    pub(crate) info: Arc<ConnInfo>,
    pub(crate) options: Arc<QuicOptions>,
    pub(crate) counters: Arc<Counters>,
    active: AtomicUsize,
    /// Who waits for `active` to become 0.
    idle: AtomicWaker,
    unacked: Mutex<VecDeque<quinn::SendStream>>,
    buried: Mutex<Vec<ServerStream>>,
    cancelled: Mutex<Cancelled>,
    quinn: quinn::Connection,
}

/// Requests that the client gave up.
struct Cancelled {
    since: Instant,
    within: u32,
    ever: u32,
}

impl ConnContext {
    fn new(
        quinn: quinn::Connection,
        info: ConnInfo,
        options: Arc<QuicOptions>,
        counters: Arc<Counters>,
    ) -> Arc<Self> {
        Arc::new(Self {
            info: Arc::new(info),
            options,
            counters,
            active: AtomicUsize::new(0),
            idle: AtomicWaker::new(),
            unacked: Mutex::default(),
            buried: Mutex::default(),
            cancelled: Mutex::new(Cancelled { since: Instant::now(), within: 0, ever: 0 }),
            quinn,
        })
    }

    /// Takes a response that is written. Closing a connection drops what its peer has not acknowledged, so a drain
    /// must know what is still on its way; what has arrived is forgotten here and now.
    pub(crate) fn sent(&self, out: Outgoing) {
        let Some(stream) = out.finish() else { return };
        let mut unacked = self.unacked.lock().unwrap_or_else(PoisonError::into_inner);
        // in order, so that the oldest tell; two for one keeps it short, and the peer's stream credit, which comes
        // back by acknowledgement, bounds it
        for _ in 0..2 {
            // quinn forgets a stream once all of it is acknowledged
            if unacked.front().is_some_and(|stream| stream.priority().is_err()) {
                unacked.pop_front();
            }
        }
        unacked.push_back(stream);
    }

    /// Counts a request that the client gave up. Each costs it next to nothing and us a request; too many, and the
    /// connection is closed.
    pub(crate) fn cancelled(&self) {
        let mut cancelled = self.cancelled.lock().unwrap_or_else(PoisonError::into_inner);
        if cancelled.since.elapsed() > CANCELLED_PERIOD {
            cancelled.since = Instant::now();
            cancelled.within = 0;
        }
        cancelled.within += 1;
        cancelled.ever += 1;
        if cancelled.within > self.options.max_cancelled || cancelled.ever > CANCELLED_EVER {
            self.quinn.close(codes::var(codes::EXCESSIVE_LOAD), b"too many cancelled requests");
        }
    }

    /// Takes a request stream that was read to its end. `h3` wakes the connection's task for each one that is
    /// dropped; together they wake it once.
    pub(crate) fn bury(&self, stream: ServerStream) {
        let mut buried = self.buried.lock().unwrap_or_else(PoisonError::into_inner);
        buried.push(stream);
        if buried.len() >= BURIED_MAX {
            buried.clear();
        }
    }
}

/// A request that is being served.
pub(crate) struct Active(Arc<ConnContext>);

impl Active {
    fn begin(context: &Arc<ConnContext>) -> Self {
        context.active.fetch_add(1, Ordering::SeqCst);
        Self(context.clone())
    }

    pub(crate) fn context(&self) -> &Arc<ConnContext> {
        &self.0
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if self.0.active.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.wake();
        }
    }
}

/// Runs a connection from its first packet to its close.
pub(crate) async fn run<S, B>(handshake: Handshake, service: S, drain: CancellationToken)
where
    S: Service<Request<RecvBody>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let Handshake { incoming, options, counters, local_port, permit, mut hold, pending, early } = handshake;
    let begun = tokio::time::Instant::now();
    let started = tokio::time::timeout(options.handshake_timeout, async {
        let (quinn, unconfirmed) = shake_hands(incoming.accept()?, early).await?;
        let shared = Shared::new(quinn.clone(), Role::Server, options.max_frame_size);
        let mut builder = server::builder();
        // RFC 9114 section 7.2.8: reserved frames and streams are a courtesy that costs each client a stream
        builder.send_grease(false).max_field_section_size(options.max_field_section_size);
        let h3: H3 = builder.build(Connection::new(shared)).await?;
        Ok::<_, BoxError>((quinn, h3, unconfirmed))
    })
    .await;
    let (quinn, h3, unconfirmed) = match started {
        Ok(Ok(started)) => started,
        Ok(Err(error)) => {
            count(&counters.handshake_failures);
            debug!(error, "a QUIC handshake failed");
            return;
        }
        Err(_) => {
            count(&counters.handshake_failures);
            debug!("a QUIC handshake took too long");
            return;
        }
    };
    let early = unconfirmed.map(|unconfirmed| {
        let (early, confirm) = EarlyData::new();
        let deadline = begun + options.handshake_timeout;
        tokio::spawn(confirm_handshake(quinn.clone(), unconfirmed, confirm, deadline, pending));
        early
    });
    // the address is proven now
    if hold.is_none() {
        match permit.limits().admit(quinn.remote_address().ip()) {
            Ok(admitted) => hold = admitted,
            Err(_) => {
                count(&counters.refused);
                quinn.close(codes::var(codes::EXCESSIVE_LOAD), b"too many connections of this client");
                return;
            }
        }
    }
    count(&counters.accepted);
    let info = describe(&quinn, local_port, early);
    let context = ConnContext::new(quinn.clone(), info, options, counters);
    let spawn_request = {
        let context = context.clone();
        move |resolver, core| {
            let (active, service) = (Active::begin(&context), service.clone());
            tokio::spawn(request::serve(resolver, core, active, service));
        }
    };
    serve(h3, &quinn, &context, spawn_request, &drain).await;
    // RFC 9114 section 5.2: a connection that is done is closed with H3_NO_ERROR; after an error this does nothing
    quinn.close(codes::var(codes::NO_ERROR), b"");
    drop((hold, permit));
}

/// Takes requests until the connection is lost or, on drain, served.
async fn serve(
    mut h3: H3,
    quinn: &quinn::Connection,
    context: &Arc<ConnContext>,
    spawn_request: impl Fn(RequestResolver<Connection, Bytes>, Arc<StreamCore>),
    drain: &CancellationToken,
) {
    let mut drained = pin!(drain.cancelled());
    let mut state = Drain { phase: Phase::Open, quiet: Quiet::new(), last: None, refuse_from: u64::MAX };
    loop {
        let event = {
            let mut accept = pin!(h3.accept());
            let (state, drained) = (&mut state, &mut drained);
            poll_fn(move |cx| {
                if let Poll::Ready(event) = state.poll(cx, context, drained.as_mut()) {
                    return Poll::Ready(event);
                }
                if matches!(state.phase, Phase::PeerDone) {
                    return Poll::Pending;
                }
                accept.as_mut().poll(cx).map(Event::Accepted)
            })
            .await
        };
        match event {
            Event::Accepted(Ok(Some(resolver))) => {
                let Some(core) = h3.inner.conn.take_accepted() else { continue };
                if core.id >= state.refuse_from {
                    // RFC 9114 section 5.2: beyond the GOAWAY; the client may safely try elsewhere
                    core.fail(codes::REQUEST_REJECTED);
                    continue;
                }
                state.last = Some(core.id);
                spawn_request(resolver, core);
            }
            // the client said GOAWAY and has no request left that `h3` knows of; wait for their responses
            Event::Accepted(Ok(None)) => state.phase = Phase::PeerDone,
            Event::Accepted(Err(error)) => {
                log_lost(context, &error);
                return;
            }
            Event::DrainBegins => {
                // first say that the end is near and let requests come that are on their way
                goaway(&mut h3, usize::MAX >> 3).await;
                state.refuse_from = if state.last.is_some() { u64::MAX } else { 0 };
                let race = (quinn.rtt() * 2).clamp(Duration::from_millis(1), RACE_MAX);
                state.phase = Phase::Announced(Box::pin(tokio::time::sleep(race)));
            }
            Event::RaceOver => {
                // then say which was the last
                goaway(&mut h3, 1).await;
                state.refuse_from = state.last.map_or(0, |last| last + 4);
                state.phase = Phase::Final;
            }
            Event::Served => break,
        }
    }
    let unacked = std::mem::take(&mut *context.unacked.lock().unwrap_or_else(PoisonError::into_inner));
    let arrived = async {
        for stream in unacked {
            // ends when the peer has all of it, does not want it, or the connection is lost
            let _ = stream.stopped().await;
        }
    };
    tokio::select! {
        () = arrived => {}
        () = silence(quinn) => {}
    }
}

/// With `early`, ready as soon as the client's hello is understood: requests may come with it.
async fn shake_hands(
    mut connecting: quinn::Connecting,
    early: bool,
) -> Result<(quinn::Connection, Option<quinn::ZeroRttAccepted>), quinn::ConnectionError> {
    if !early {
        return Ok((connecting.await?, None));
    }
    connecting.handshake_data().await?;
    match connecting.into_0rtt() {
        Ok((quinn, unconfirmed)) => Ok((quinn, Some(unconfirmed))),
        Err(connecting) => Ok((connecting.await?, None)),
    }
}

/// Tells of the end of a handshake; one that does not end in time closes the connection.
async fn confirm_handshake(
    quinn: quinn::Connection,
    unconfirmed: quinn::ZeroRttAccepted,
    confirm: Confirm,
    deadline: tokio::time::Instant,
    _pending: Pending,
) {
    match tokio::time::timeout_at(deadline, unconfirmed).await {
        // what it resolves to means something to clients only; it does so too when the connection is lost
        Ok(_) if quinn.close_reason().is_none() => confirm.confirm(),
        Ok(_) => {}
        Err(_) => quinn.close(codes::var(codes::NO_ERROR), b"the handshake took too long"),
    }
}

/// Ends once nothing has come from the peer for a while: it went away without a word and will acknowledge nothing.
async fn silence(quinn: &quinn::Connection) {
    let mut heard = quinn.stats().udp_rx.datagrams;
    loop {
        tokio::time::sleep((quinn.rtt() * 4).max(SILENCE_MIN)).await;
        let now = quinn.stats().udp_rx.datagrams;
        if now == heard {
            return;
        }
        heard = now;
    }
}

async fn goaway(h3: &mut H3, max_requests: usize) {
    // an error closes the connection, and `accept` reports it
    let _ = tokio::time::timeout(GOAWAY_MAX, h3.shutdown(max_requests)).await;
}

fn log_lost(context: &ConnContext, error: &ConnectionError) {
    if !error.is_h3_no_error() && !matches!(error, ConnectionError::Timeout { .. }) {
        debug!(connection = %context.info.id, %error, "a connection was lost");
    }
}

enum Event {
    Accepted(Result<Option<RequestResolver<Connection, Bytes>>, ConnectionError>),
    DrainBegins,
    RaceOver,
    Served,
}

enum Phase {
    Open,
    /// The client was told that the end is near.
    Announced(Pin<Box<Sleep>>),
    /// The client was told which request was the last.
    Final,
    /// The client asked for no more.
    PeerDone,
}

struct Drain {
    phase: Phase,
    quiet: Quiet,
    /// The id of the last request stream that was taken.
    last: Option<u64>,
    /// Request streams from this id on are refused.
    refuse_from: u64,
}

impl Drain {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        context: &ConnContext,
        drained: Pin<&mut impl Future<Output = ()>>,
    ) -> Poll<Event> {
        match &mut self.phase {
            Phase::Open => self.quiet.poll(cx, |cx| drained.poll(cx)).map(|()| Event::DrainBegins),
            Phase::Announced(race) => race.as_mut().poll(cx).map(|()| Event::RaceOver),
            Phase::Final | Phase::PeerDone => {
                // registered before the count is read: the last request either counts or wakes
                context.idle.register(cx.waker());
                match context.active.load(Ordering::SeqCst) {
                    0 => Poll::Ready(Event::Served),
                    _ => Poll::Pending,
                }
            }
        }
    }
}

fn describe(quinn: &quinn::Connection, local_port: u16, early: Option<EarlyData>) -> ConnInfo {
    let peer = quinn.remote_address();
    // where the system does not tell which of our addresses was used, the unspecified one stands for it
    let local_ip = quinn.local_ip().unwrap_or(match peer {
        std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    });
    let mut tls = TlsInfo::default();
    tls.early_data = early;
    // QUIC has no other (RFC 9001 section 4.2)
    tls.version = Some(TlsVersion::Tls13);
    if let Some(data) = quinn.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok()) {
        tls.server_name = data.server_name;
        tls.alpn = data.protocol;
    }
    if let Some(chain) =
        quinn.peer_identity().and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok())
    {
        tls.peer_chain = *chain;
    }
    ConnInfo::new(Transport::Quic, peer, (local_ip, local_port).into()).with_tls(tls)
}
