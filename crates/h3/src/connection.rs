//! One connection: requests, control streams, drain.

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

use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use http::{Request, Response};
use http_body::Body;
use portcullis_conn::ConnInfo;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tower_service::Service;
use tracing::debug;

use crate::{
    BoxError, QuicOptions, RecvBody, codes,
    control::{self, Command, Role},
    datagram::Datagrams,
    frame::{GOAWAY, StreamFault, put_varint},
    limits::Counters,
    outgoing::Outgoing,
    priority::Priorities,
    qpack::decode::Bounds,
    quic::{Lost, Quic, SendHalf},
    quiet::Quiet,
    request,
    settings::Settings,
};

/// What `QuicOptions::max_cancelled` counts in.
const CANCELLED_PERIOD: Duration = Duration::from_secs(10);
/// Bounds how long requests that crossed the first GOAWAY are waited for.
const RACE_MAX: Duration = Duration::from_millis(100);
/// Bounds the wait for room on the control stream.
const GOAWAY_MAX: Duration = Duration::from_secs(1);
/// How long a peer that owes an acknowledgement may be silent during a drain, or four round trips if that is more. It
/// may hold one back for 25 ms (RFC 9000 section 18.2, max_ack_delay), so this leaves room for several losses.
const SILENCE_MIN: Duration = Duration::from_millis(500);
/// Beyond every request, RFC 9114 section 5.2: the end is near, but no request is refused yet.
const NO_REQUEST: u64 = (1 << 62) - 4;

/// What all requests of a connection share.
pub(crate) struct ConnContext<Q: Quic> {
    pub(crate) quic: Q,
    pub(crate) info: Arc<ConnInfo>,
    pub(crate) options: Arc<QuicOptions>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) priorities: Priorities,
    /// Where the options have them.
    pub(crate) datagrams: Option<Arc<Datagrams>>,
    active: AtomicUsize,
    /// Who waits for `active` to become 0.
    idle: AtomicWaker,
    unacked: Mutex<VecDeque<Q::Send>>,
    cancelled: Mutex<Cancelled>,
}

/// Requests that the client gave up.
struct Cancelled {
    since: Instant,
    within: u32,
}

impl<Q: Quic> ConnContext<Q> {
    pub(crate) fn new(
        quic: Q,
        info: ConnInfo,
        options: Arc<QuicOptions>,
        counters: Arc<Counters>,
    ) -> Arc<Self> {
        let datagrams = options.datagrams.then(|| Datagrams::new(quic.clone()));
        Arc::new(Self {
            quic,
            info: Arc::new(info),
            options,
            counters,
            priorities: Priorities::default(),
            datagrams,
            active: AtomicUsize::new(0),
            idle: AtomicWaker::new(),
            unacked: Mutex::default(),
            cancelled: Mutex::new(Cancelled { since: Instant::now(), within: 0 }),
        })
    }

    /// What a field section may be.
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds { size: self.options.max_field_section_size, fields: self.options.max_fields }
    }

    /// Takes a response that is written. Closing a connection drops what its peer has not acknowledged, so a drain
    /// must know what is still on its way; what has arrived is forgotten here and now.
    pub(crate) fn sent(&self, out: Outgoing<Q::Send>) {
        let Some(stream) = out.finish() else { return };
        let mut unacked = self.unacked.lock().unwrap_or_else(PoisonError::into_inner);
        // in order, so that the oldest tell; two for one keeps it short
        for _ in 0..2 {
            if unacked.front().is_some_and(SendHalf::is_over) {
                unacked.pop_front();
            }
        }
        unacked.push_back(stream);
        // one that is never acknowledged must not keep the others behind it here
        if unacked.len() > 2 * self.options.max_bidi_streams as usize {
            unacked.retain(|stream| !stream.is_over());
        }
    }

    /// Counts a request that the client gave up. Each costs it next to nothing and us a request; too many, and the
    /// connection is closed.
    pub(crate) fn cancelled(&self) {
        let mut cancelled = self.cancelled.lock().unwrap_or_else(PoisonError::into_inner);
        if cancelled.since.elapsed() > CANCELLED_PERIOD {
            *cancelled = Cancelled { since: Instant::now(), within: 0 };
        }
        cancelled.within += 1;
        if cancelled.within > self.options.max_cancelled {
            self.quic.close(codes::EXCESSIVE_LOAD, "too many cancelled requests");
        }
    }

    fn heed(&self, command: Command) {
        match command {
            Command::Priority(id, value) => self.priorities.update(id, &value),
            // nothing is pushed, and a client that goes away closes the connection itself
            Command::GoAway(_) => {}
            Command::Settings(settings) => {
                if let Some(datagrams) = &self.datagrams {
                    datagrams.set_offered(settings.datagrams);
                }
            }
        }
    }
}

/// A request that is being served, or a tunnel that it became.
pub(crate) struct Active<Q: Quic>(Arc<ConnContext<Q>>);

impl<Q: Quic> Active<Q> {
    fn begin(context: &Arc<ConnContext<Q>>) -> Self {
        context.active.fetch_add(1, Ordering::SeqCst);
        Self(context.clone())
    }

    pub(crate) fn context(&self) -> &Arc<ConnContext<Q>> {
        &self.0
    }
}

impl<Q: Quic> Clone for Active<Q> {
    fn clone(&self) -> Self {
        Self::begin(&self.0)
    }
}

impl<Q: Quic> Drop for Active<Q> {
    fn drop(&mut self) {
        if self.0.active.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.wake();
        }
    }
}

/// Opens our control stream and says what we are. The streams of QPACK are not opened: they would carry nothing (RFC 9204
/// section 4.2).
pub(crate) async fn open_control<Q: Quic>(quic: &Q, options: &QuicOptions) -> Result<Q::Send, Lost> {
    let mut control = quic.open_uni().await?;
    let settings = Settings {
        max_field_section_size: Some(options.max_field_section_size),
        connect_protocol: options.extended_connect,
        datagrams: options.datagrams,
    };
    let mut bytes = BytesMut::new();
    put_varint(&mut bytes, control::CONTROL_STREAM);
    settings.encode(&mut bytes);
    write(&mut control, bytes).await;
    Ok(control)
}

/// Writes all, unless the peer or the connection is gone, which others notice.
pub(crate) async fn write<S: SendHalf>(stream: &mut S, bytes: BytesMut) {
    let mut chunk = [bytes.freeze()];
    while !chunk[0].is_empty() {
        if poll_fn(|cx| stream.poll_write(cx, &mut chunk)).await.is_err() {
            return;
        }
    }
}

/// Runs a connection whose handshake is done, or done enough, to its close.
pub(crate) async fn drive<Q, S, B>(
    control: Q::Send,
    context: Arc<ConnContext<Q>>,
    service: S,
    drain: &CancellationToken,
) where
    Q: Quic,
    S: Service<Request<RecvBody>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let spawn_request = {
        let context = Arc::clone(&context);
        move |stream| {
            tokio::spawn(request::serve(stream, Active::begin(&context), service.clone()));
        }
    };
    let listening = async {
        let heed = |command| {
            context.heed(command);
            Ok(())
        };
        let datagrams = async {
            match &context.datagrams {
                Some(datagrams) => datagrams.read(&context.quic).await,
                None => Ok(()),
            }
        };
        let close = |ended| {
            if let Err(StreamFault::Connection(code, what)) = ended {
                context.quic.close(code, what);
            }
        };
        tokio::join!(async { close(control::read(&context.quic, Role::Server, heed).await) }, async {
            close(datagrams.await);
        },);
        std::future::pending::<()>().await;
    };
    let mut listening = pin!(listening);
    serve(control, &context, spawn_request, drain, listening.as_mut()).await;
    // RFC 9114 section 5.2: a connection that is done is closed with H3_NO_ERROR; after an error this does nothing
    context.quic.close(codes::NO_ERROR, "");
    if let Some(datagrams) = &context.datagrams {
        datagrams.end();
    }
}

/// Takes requests until the connection is lost or, on drain, served.
async fn serve<Q: Quic>(
    mut control: Q::Send,
    context: &Arc<ConnContext<Q>>,
    spawn_request: impl Fn((Q::Send, Q::Recv)),
    drain: &CancellationToken,
    mut listening: Pin<&mut impl Future<Output = ()>>,
) {
    let quic = &context.quic;
    let mut drained = pin!(drain.cancelled());
    let mut accept = pin!(quic.accept_bi());
    let mut state = Drain { phase: Phase::Open, quiet: Quiet::new(), last: None, refuse_from: u64::MAX };
    let quiet = Quiet::new();
    loop {
        let event = poll_fn(|cx| {
            if let Poll::Ready(event) = state.poll(cx, context, drained.as_mut()) {
                return Poll::Ready(event);
            }
            let _ = quiet.poll(cx, |cx| listening.as_mut().poll(cx));
            accept.as_mut().poll(cx).map(Event::Accepted)
        })
        .await;
        match event {
            Event::Accepted(Ok(stream)) => {
                accept.set(quic.accept_bi());
                let id = stream.0.id();
                if id >= state.refuse_from {
                    reject(stream);
                    continue;
                }
                state.last = Some(id);
                spawn_request(stream);
            }
            Event::Accepted(Err(lost)) => {
                log_lost(context, &lost);
                return;
            }
            Event::DrainBegins => {
                // first say that the end is near and let requests come that are on their way
                goaway(&mut control, NO_REQUEST).await;
                state.refuse_from = if state.last.is_some() { u64::MAX } else { 0 };
                let race = (quic.rtt() * 2).clamp(Duration::from_millis(1), RACE_MAX);
                state.phase = Phase::Announced(Box::pin(tokio::time::sleep(race)));
            }
            Event::RaceOver => {
                // then say which was the last
                state.refuse_from = state.last.map_or(0, |last| last + 4);
                goaway(&mut control, state.refuse_from).await;
                state.phase = Phase::Final;
            }
            Event::Served => break,
        }
    }
    let unacked = std::mem::take(&mut *context.unacked.lock().unwrap_or_else(PoisonError::into_inner));
    let arrived = async {
        for stream in unacked {
            // ends when the peer has all of it, does not want it, or the connection is lost
            stream.stopped().await;
        }
    };
    tokio::select! {
        () = arrived => {}
        () = silence(quic) => {}
    }
}

/// RFC 9114 section 5.2: beyond the GOAWAY; the client may safely try elsewhere.
fn reject<S: SendHalf, R: crate::quic::RecvHalf>((mut send, mut recv): (S, R)) {
    recv.stop(codes::REQUEST_REJECTED);
    send.reset(codes::REQUEST_REJECTED);
}

/// Ends once nothing has come from the peer for a while: it went away without a word and will acknowledge nothing.
async fn silence<Q: Quic>(quic: &Q) {
    let mut heard = quic.heard();
    loop {
        tokio::time::sleep((quic.rtt() * 4).max(SILENCE_MIN)).await;
        let now = quic.heard();
        if now == heard {
            return;
        }
        heard = now;
    }
}

async fn goaway<S: SendHalf>(control: &mut S, id: u64) {
    let mut bytes = BytesMut::new();
    put_varint(&mut bytes, GOAWAY);
    // an id has 8 bytes at most
    let mut payload = BytesMut::new();
    put_varint(&mut payload, id);
    put_varint(&mut bytes, payload.len() as u64);
    bytes.extend_from_slice(&payload);
    let _ = tokio::time::timeout(GOAWAY_MAX, write(control, bytes)).await;
}

fn log_lost<Q: Quic>(context: &ConnContext<Q>, lost: &Lost) {
    if !matches!(lost, Lost::TimedOut)
        && !matches!(lost, Lost::Closed(code) if *code == u64::from(codes::NO_ERROR))
    {
        debug!(connection = %context.info.id, error = lost as &dyn std::error::Error, "a connection was lost");
    }
}

enum Event<T> {
    Accepted(Result<T, Lost>),
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
    fn poll<Q: Quic, T>(
        &mut self,
        cx: &mut Context<'_>,
        context: &ConnContext<Q>,
        drained: Pin<&mut impl Future<Output = ()>>,
    ) -> Poll<Event<T>> {
        match &mut self.phase {
            Phase::Open => self.quiet.poll(cx, |cx| drained.poll(cx)).map(|()| Event::DrainBegins),
            Phase::Announced(race) => race.as_mut().poll(cx).map(|()| Event::RaceOver),
            Phase::Final => {
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
