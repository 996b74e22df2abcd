//! The QUIC side of HTTP/3: `h3`'s transport traits over quinn.
//!
//! Differs from a plain adapter in three ways: every byte passes the [`guard`] before `h3` may buffer it, `h3` gets
//! no more before the reader of a body has taken what it has, and the sending half of a request stream can be
//! taken out ([`StreamCore::take_send`]), so that a response is written straight into QUIC.

pub(crate) mod guard;
mod quiet;
mod recv;
mod send;

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use ::h3::{
    error::Code,
    quic::{self, ConnectionErrorIncoming, StreamErrorIncoming},
};
use bytes::Bytes;
use futures_core::Stream;
use futures_util::stream;

pub(crate) use self::quiet::Quiet;
pub(crate) use self::recv::RecvStream;
pub(crate) use self::send::{Bidi, UniSend};
use crate::codes;

type Accept<T> = Pin<Box<dyn Stream<Item = Result<T, quinn::ConnectionError>> + Send>>;
type BidiPair = (quinn::SendStream, quinn::RecvStream);

/// Which end of the connection we are; decides what frames mean and how an unread stream is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Server,
    #[cfg(feature = "client")]
    Client,
}

/// What all streams of a connection share.
pub(crate) struct Shared {
    pub(crate) quinn: quinn::Connection,
    role: Role,
    /// Bounds the payload of every frame but DATA.
    max_frame: u64,
    /// Streams a client opened through `h3`, until it asks for them by id.
    #[cfg(feature = "client")]
    opened: Mutex<Vec<Arc<StreamCore>>>,
}

impl Shared {
    pub(crate) fn new(quinn: quinn::Connection, role: Role, max_frame: u64) -> Arc<Self> {
        Arc::new(Self {
            quinn,
            role,
            max_frame,
            #[cfg(feature = "client")]
            opened: Mutex::default(),
        })
    }

    fn bidi(self: &Arc<Self>, (send, recv): BidiPair) -> Bidi {
        let core = Arc::new(StreamCore::new(send, &recv, self.role));
        Bidi::new(core.clone(), RecvStream::bidi(recv, self.clone(), core))
    }

    /// Remembers a stream for [`Shared::claim`].
    #[cfg(feature = "client")]
    fn remember(&self, core: &Arc<StreamCore>) {
        let mut opened = lock(&self.opened);
        // a request that failed before it was claimed left its stream here, alone
        if opened.len() > 32 {
            opened.retain(|core| Arc::strong_count(core) > 1);
        }
        opened.push(core.clone());
    }

    /// The stream of this id that was opened last and not claimed yet.
    #[cfg(feature = "client")]
    pub(crate) fn claim(&self, id: u64) -> Option<Arc<StreamCore>> {
        let mut opened = lock(&self.opened);
        let at = opened.iter().rposition(|core| core.id == id)?;
        Some(opened.swap_remove(at))
    }
}

/// What the driver of a request shares with the stream it handed to `h3`.
///
/// The counters are written by one side and read by the other, both in the task that reads the stream.
pub(crate) struct StreamCore {
    pub(crate) id: u64,
    send: Mutex<Option<quinn::SendStream>>,
    /// HEADERS frames handed to `h3`.
    heads: AtomicU32,
    /// DATA payload handed to `h3`, and taken back by the reader of the body.
    payload_in: AtomicU64,
    payload_out: AtomicU64,
    /// Empty DATA frames handed to `h3`, and seen by the reader of the body.
    empties_in: AtomicU32,
    empties_out: AtomicU32,
    /// The peer finished the stream and all of it was handed on.
    fin: AtomicBool,
    /// The code to give the stream up with, once something is wrong with it; 0 before.
    fault: AtomicU32,
    /// The code for `STOP_SENDING` when the stream is dropped unread.
    unread_code: AtomicU32,
}

impl StreamCore {
    fn new(send: quinn::SendStream, recv: &quinn::RecvStream, role: Role) -> Self {
        Self {
            id: recv.id().into(),
            send: Mutex::new(Some(send)),
            heads: AtomicU32::new(0),
            payload_in: AtomicU64::new(0),
            payload_out: AtomicU64::new(0),
            empties_in: AtomicU32::new(0),
            empties_out: AtomicU32::new(0),
            fin: AtomicBool::new(false),
            fault: AtomicU32::new(0),
            unread_code: AtomicU32::new(match role {
                // until the request's head is there
                Role::Server => codes::REQUEST_INCOMPLETE,
                #[cfg(feature = "client")]
                Role::Client => codes::REQUEST_CANCELLED,
            }),
        }
    }

    /// Takes the sending half away from `h3`; from then on only the caller writes.
    pub(crate) fn take_send(&self) -> Option<quinn::SendStream> {
        lock(&self.send).take()
    }

    /// Notes what is wrong with the stream; the first report stays.
    pub(crate) fn fail(&self, code: u32) {
        let _ = self.fault.compare_exchange(0, code, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The code of the fault that was noted, if any.
    pub(crate) fn fault(&self) -> Option<u32> {
        Some(self.fault.load(Ordering::Relaxed)).filter(|code| *code != 0)
    }

    /// Sets the code to stop the peer with if the stream is dropped before it was read to its end.
    pub(crate) fn set_unread_code(&self, code: u32) {
        self.unread_code.store(code, Ordering::Relaxed);
    }

    /// Notes that the reader of the body took this much.
    pub(crate) fn took(&self, payload: u64) {
        self.payload_out.store(self.payload_out.load(Ordering::Relaxed) + payload, Ordering::Relaxed);
    }

    /// Asked when `h3` reports the end of a body: whether an empty DATA frame made it say so. Counts that frame.
    pub(crate) fn took_empty(&self) -> bool {
        let seen = self.empties_out.load(Ordering::Relaxed);
        let was_empty = seen != self.empties_in.load(Ordering::Relaxed);
        if was_empty {
            self.empties_out.store(seen.wrapping_add(1), Ordering::Relaxed);
        }
        was_empty
    }

    /// Whether `h3` still holds something that it can hand out without reading more.
    fn h3_is_fed(&self) -> bool {
        self.payload_in.load(Ordering::Relaxed) != self.payload_out.load(Ordering::Relaxed)
            || self.empties_in.load(Ordering::Relaxed) != self.empties_out.load(Ordering::Relaxed)
    }

    /// Whether the stream ended and nothing of it is left after the first `heads` HEADERS frames: no body, no
    /// trailers.
    pub(crate) fn at_end(&self, heads: u32) -> bool {
        self.fin.load(Ordering::Relaxed) && self.heads.load(Ordering::Relaxed) == heads && !self.h3_is_fed()
    }
}

impl Drop for StreamCore {
    fn drop(&mut self) {
        // quinn would finish the stream, which reads like a complete message
        if let Some(mut send) = self.take_send() {
            let _ = send.reset(codes::var(self.fault().unwrap_or(codes::REQUEST_CANCELLED)));
        }
    }
}

/// A QUIC connection as `h3` sees it.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    bidi: Accept<BidiPair>,
    uni: Accept<quinn::RecvStream>,
    quiet_bidi: Quiet,
    quiet_uni: Quiet,
    accepted: Option<Arc<StreamCore>>,
    opener: Opener,
}

impl Connection {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        // one box per connection and direction: quinn's futures borrow the connection and must live on while
        // they wait
        let bidi = Box::pin(stream::unfold(shared.quinn.clone(), |quinn| async move {
            let accepted = quinn.accept_bi().await;
            Some((accepted, quinn))
        }));
        let uni = Box::pin(stream::unfold(shared.quinn.clone(), |quinn| async move {
            let accepted = quinn.accept_uni().await;
            Some((accepted, quinn))
        }));
        Self {
            opener: Opener::new(shared.clone()),
            shared,
            bidi,
            uni,
            quiet_bidi: Quiet::new(),
            quiet_uni: Quiet::new(),
            accepted: None,
        }
    }

    /// The stream that [`quic::Connection::poll_accept_bidi`] gave out last.
    pub(crate) fn take_accepted(&mut self) -> Option<Arc<StreamCore>> {
        self.accepted.take()
    }
}

fn next<T>(accept: &mut Accept<T>, cx: &mut Context<'_>) -> Poll<Result<T, ConnectionErrorIncoming>> {
    Poll::Ready(match ready!(accept.as_mut().poll_next(cx)) {
        Some(accepted) => accepted.map_err(connection_error),
        None => Err(ConnectionErrorIncoming::InternalError("the accept loop ended".to_owned())),
    })
}

impl quic::Connection<Bytes> for Connection {
    type RecvStream = RecvStream;
    type OpenStreams = Opener;

    fn poll_accept_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<RecvStream, ConnectionErrorIncoming>> {
        let Self { quiet_uni, uni, shared, .. } = self;
        let recv = ready!(quiet_uni.poll(cx, |cx| next(uni, cx)))?;
        Poll::Ready(Ok(RecvStream::uni(recv, shared.clone())))
    }

    fn poll_accept_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bidi, ConnectionErrorIncoming>> {
        let Self { quiet_bidi, bidi, .. } = self;
        let pair = ready!(quiet_bidi.poll(cx, |cx| next(bidi, cx)))?;
        let stream = self.shared.bidi(pair);
        self.accepted = Some(stream.core().clone());
        Poll::Ready(Ok(stream))
    }

    fn opener(&self) -> Opener {
        self.opener.clone()
    }
}

impl quic::OpenStreams<Bytes> for Connection {
    type BidiStream = Bidi;
    type SendStream = UniSend;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bidi, StreamErrorIncoming>> {
        self.opener.poll_open_bidi(cx)
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<UniSend, StreamErrorIncoming>> {
        self.opener.poll_open_send(cx)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.opener.close(code, reason);
    }
}

type Opening<T> = Pin<Box<dyn Future<Output = Result<T, quinn::ConnectionError>> + Send + Sync>>;

/// Opens streams.
pub(crate) struct Opener {
    shared: Arc<Shared>,
    bidi: Option<Opening<BidiPair>>,
    uni: Option<Opening<quinn::SendStream>>,
}

impl Opener {
    fn new(shared: Arc<Shared>) -> Self {
        Self { shared, bidi: None, uni: None }
    }
}

impl Clone for Opener {
    fn clone(&self) -> Self {
        Self::new(self.shared.clone())
    }
}

/// Polls an opening that waits, or begins one; boxed only if it has to wait for the peer's credit.
fn open<T, F>(
    waiting: &mut Option<Opening<T>>,
    cx: &mut Context<'_>,
    begin: impl FnOnce() -> F,
    begin_boxed: impl FnOnce() -> Opening<T>,
) -> Poll<Result<T, StreamErrorIncoming>>
where
    F: Future<Output = Result<T, quinn::ConnectionError>>,
{
    if waiting.is_none()
        && let Poll::Ready(opened) = std::pin::pin!(begin()).poll(cx)
    {
        return Poll::Ready(opened.map_err(lost));
    }
    let opened = ready!(waiting.get_or_insert_with(begin_boxed).as_mut().poll(cx));
    *waiting = None;
    Poll::Ready(opened.map_err(lost))
}

impl quic::OpenStreams<Bytes> for Opener {
    type BidiStream = Bidi;
    type SendStream = UniSend;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bidi, StreamErrorIncoming>> {
        let Self { shared, bidi, .. } = self;
        let begin_boxed = || {
            let quinn = shared.quinn.clone();
            Box::pin(async move { quinn.open_bi().await }) as _
        };
        let pair = ready!(open(bidi, cx, || shared.quinn.open_bi(), begin_boxed))?;
        let stream = shared.bidi(pair);
        #[cfg(feature = "client")]
        shared.remember(stream.core());
        Poll::Ready(Ok(stream))
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<UniSend, StreamErrorIncoming>> {
        let Self { shared, uni, .. } = self;
        let begin_boxed = || {
            let quinn = shared.quinn.clone();
            Box::pin(async move { quinn.open_uni().await }) as _
        };
        let send = ready!(open(uni, cx, || shared.quinn.open_uni(), begin_boxed))?;
        Poll::Ready(Ok(UniSend::new(send)))
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        let code = quinn::VarInt::from_u64(code.value()).unwrap_or(codes::var(codes::INTERNAL_ERROR));
        self.shared.quinn.close(code, reason);
    }
}

fn connection_error(error: quinn::ConnectionError) -> ConnectionErrorIncoming {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => {
            ConnectionErrorIncoming::ApplicationClose { error_code: close.error_code.into_inner() }
        }
        quinn::ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        other => ConnectionErrorIncoming::Undefined(Arc::new(other)),
    }
}

fn lost(error: quinn::ConnectionError) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error: connection_error(error) }
}

fn stream_id(id: u64) -> quic::StreamId {
    quic::StreamId::try_from(id).expect("QUIC counts streams below 2^62 (RFC 9000 section 2.1)")
}

/// None of our critical sections can panic half-way, so a poisoned lock still guards sound data.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
