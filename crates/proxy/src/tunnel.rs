//! What happens after an upgrade was agreed: bytes both ways until both ends are done; counted, bounded and drained.
//!
//! A tunnel outlives the exchange that opened it, so a server's graceful shutdown does not see it. [`Tunnels`] does: every
//! open tunnel holds a [`TunnelGuard`], and [`Tunnels::drain`] waits for the guards.

use std::{
    fmt,
    future::{Future, pending, poll_fn},
    io,
    mem::MaybeUninit,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// How many bytes are read at once: one TLS record (RFC 8446 section 5.1). The buffer is on the stack, so an idle tunnel holds
/// none; a direction whose writer does not keep up holds at most this much.
const CHUNK: usize = 16 * 1024;
/// How many chunks a direction moves before other tasks get their turn.
const CHUNKS_PER_POLL: usize = 16;
/// How long [`Tunnels::drain`] waits for what it has told to stop.
const ABORT_WAIT: Duration = Duration::from_secs(1);

/// The open tunnels of an edge. Clones share one count.
#[derive(Clone, Debug)]
pub struct Tunnels(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    max: AtomicUsize,
    open: AtomicUsize,
    draining: AtomicBool,
    // notified when the last one closes
    empty: Notify,
    abort: CancellationToken,
    opened: AtomicU64,
    to_upstream: AtomicU64,
    to_downstream: AtomicU64,
    life_ms: AtomicU64,
    // one for each of `LIFE_BOUNDS`, and one for what is beyond
    lives: [AtomicU64; LIFE_BOUNDS.len() + 1],
}

/// The bounds by which [`TunnelTotals::lives`] are told apart, in seconds.
pub const LIFE_BOUNDS: [u64; 6] = [1, 10, 60, 600, 3_600, 86_400];

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TunnelTotals {
    /// Tunnels that were relayed, open ones among them.
    pub opened: u64,
    /// Bytes that closed tunnels carried from clients to upstreams.
    pub to_upstream: u64,
    /// Bytes that closed tunnels carried from upstreams to clients.
    pub to_downstream: u64,
    /// Tunnels that have closed.
    pub closed: u64,
    /// How long they lived, added up.
    pub life: Duration,
    /// How many of them lived no longer than each of [`LIFE_BOUNDS`].
    pub lives: [u64; LIFE_BOUNDS.len()],
}

impl Tunnels {
    /// At most `max` at a time, those that wait for the upstream's 101 among them. An idle tunnel costs its task (about
    /// 1 KiB), its two sockets and what they buffer.
    pub fn new(max: usize) -> Self {
        Self(Arc::new(Shared {
            max: AtomicUsize::new(max),
            open: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            empty: Notify::new(),
            abort: CancellationToken::new(),
            opened: AtomicU64::new(0),
            to_upstream: AtomicU64::new(0),
            to_downstream: AtomicU64::new(0),
            life_ms: AtomicU64::new(0),
            lives: Default::default(),
        }))
    }

    /// Takes a place for one more; `None` at the bound and from the beginning of a drain on.
    pub fn try_open(&self) -> Option<TunnelGuard> {
        // counted first and looked at afterwards, so that a drain sees either the count or nobody
        let guard = TunnelGuard(self.0.clone());
        let before = self.0.open.fetch_add(1, Ordering::SeqCst);
        (before < self.0.max.load(Ordering::Relaxed) && !self.0.draining.load(Ordering::SeqCst))
            .then_some(guard)
    }

    /// Changes the bound. A lower one closes nothing: no more are opened until enough have closed.
    pub fn set_max(&self, max: usize) {
        self.0.max.store(max, Ordering::Relaxed);
    }

    /// How many are open now.
    pub fn open(&self) -> usize {
        self.0.open.load(Ordering::SeqCst)
    }

    /// Counters for metrics.
    pub fn totals(&self) -> TunnelTotals {
        let mut closed = 0;
        let mut lives = [0; LIFE_BOUNDS.len()];
        for (place, count) in self.0.lives.iter().enumerate() {
            closed += count.load(Ordering::Relaxed);
            if let Some(no_longer) = lives.get_mut(place) {
                *no_longer = closed;
            }
        }
        TunnelTotals {
            closed,
            life: Duration::from_millis(self.0.life_ms.load(Ordering::Relaxed)),
            lives,
            opened: self.0.opened.load(Ordering::Relaxed),
            to_upstream: self.0.to_upstream.load(Ordering::Relaxed),
            to_downstream: self.0.to_downstream.load(Ordering::Relaxed),
        }
    }

    /// Opens no more, waits until all are closed or `grace` is over, then aborts the rest and says how many those were.
    /// There is no way back.
    ///
    /// Those that still wait for their 101 belong to the server that drives them: they are waited for in the grace and
    /// are counted as aborted after it.
    pub async fn drain(&self, grace: Duration) -> usize {
        self.0.draining.store(true, Ordering::SeqCst);
        if timeout(grace, self.closed()).await.is_ok() {
            return 0;
        }
        let aborted = self.open();
        self.0.abort.cancel();
        // each ends at its next turn, which a busy runtime may delay
        let _ = timeout(ABORT_WAIT, self.closed()).await;
        aborted
    }

    /// Resolves when none is open.
    async fn closed(&self) {
        let mut empty = pin!(self.0.empty.notified());
        loop {
            // registered before the count is read, so that a close in between is not missed
            empty.as_mut().enable();
            if self.open() == 0 {
                return;
            }
            empty.as_mut().await;
            empty.set(self.0.empty.notified());
        }
    }
}

/// A place among the open tunnels, given back when it is dropped.
#[derive(Debug)]
pub struct TunnelGuard(Arc<Shared>);

impl TunnelGuard {
    /// Relays in this place until both ends are done, nothing has moved for too long or a drain aborts it. `downstream` is
    /// the client's side.
    pub async fn relay<A, B>(self, downstream: A, upstream: B, options: RelayOptions) -> RelayStats
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        self.0.opened.fetch_add(1, Ordering::Relaxed);
        let stats = relay_until(downstream, upstream, options, self.0.abort.cancelled()).await;
        self.0.to_upstream.fetch_add(stats.a_to_b, Ordering::Relaxed);
        self.0.to_downstream.fetch_add(stats.b_to_a, Ordering::Relaxed);
        let life = u64::try_from(stats.life.as_millis()).unwrap_or(u64::MAX);
        self.0.life_ms.fetch_add(life, Ordering::Relaxed);
        let no_longer = |bound: &u64| stats.life <= Duration::from_secs(*bound);
        let place = LIFE_BOUNDS.iter().position(no_longer).unwrap_or(LIFE_BOUNDS.len());
        self.0.lives[place].fetch_add(1, Ordering::Relaxed);
        stats
    }

    /// Resolves when a drain's grace is over.
    pub async fn aborted(&self) {
        self.0.abort.cancelled().await;
    }
}

impl Drop for TunnelGuard {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.empty.notify_waiters();
        }
    }
}

/// How a tunnel is relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayOptions {
    /// How long nothing may move in either direction before the tunnel is closed. Default 1 h: long enough for a quiet
    /// WebSocket whose ends send no pings, short enough that one whose client is gone without a word gives its place
    /// back. Bound: a year.
    pub idle_timeout: Duration,
}

impl Default for RelayOptions {
    fn default() -> Self {
        Self { idle_timeout: Duration::from_secs(3600) }
    }
}

impl RelayOptions {
    /// Sets [`Self::idle_timeout`].
    #[must_use]
    pub fn with_idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
        self
    }
}

/// What a relay did.
#[derive(Debug)]
#[non_exhaustive]
pub struct RelayStats {
    /// Bytes that were written to `b`.
    pub a_to_b: u64,
    /// Bytes that were written to `a`.
    pub b_to_a: u64,
    /// How long it took.
    pub life: Duration,
    /// How it ended.
    pub end: RelayEnd,
}

/// How a relay ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum RelayEnd {
    /// Both ends closed, and all that they sent was passed on.
    Finished,
    /// Nothing moved for [`RelayOptions::idle_timeout`].
    Idle,
    /// A drain's grace was over.
    Aborted,
    /// One end failed; both were dropped.
    Failed(io::Error),
}

impl RelayEnd {
    /// A short stable word: `finished`, `idle`, `aborted`, `failed`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Idle => "idle",
            Self::Aborted => "aborted",
            Self::Failed(_) => "failed",
        }
    }
}

/// Copies bytes both ways until both ends have closed. When one end closes its side, what it sent is flushed and the
/// other's side is shut down; the opposite direction goes on.
pub async fn relay<A, B>(a: A, b: B, options: RelayOptions) -> RelayStats
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    relay_until(a, b, options, pending()).await
}

async fn relay_until<A, B>(
    mut a: A,
    mut b: B,
    options: RelayOptions,
    stop: impl Future<Output = ()>,
) -> RelayStats
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    let idle = options.idle_timeout.min(YEAR);
    let (mut up, mut down) = (Direction::default(), Direction::default());
    let began_at = Instant::now();
    let mut moved_at = began_at;
    // armed once; what moves only notes the time, and the timer is set again when it fires early
    let mut timer = pin!(sleep_until(moved_at + idle));
    let mut stop = pin!(stop);
    let end = poll_fn(|cx| {
        let before = up.written + down.written;
        let results = (up.poll(cx, &mut a, &mut b), down.poll(cx, &mut b, &mut a));
        match results {
            (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => {
                return Poll::Ready(RelayEnd::Failed(error));
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(RelayEnd::Finished),
            _ => {}
        }
        if stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(RelayEnd::Aborted);
        }
        if up.written + down.written != before {
            moved_at = Instant::now();
        }
        while timer.as_mut().poll(cx).is_ready() {
            if moved_at + idle <= Instant::now() {
                return Poll::Ready(RelayEnd::Idle);
            }
            timer.as_mut().reset(moved_at + idle);
        }
        Poll::Pending
    })
    .await;
    RelayStats { a_to_b: up.written, b_to_a: down.written, life: began_at.elapsed(), end }
}

/// One direction of a relay.
#[derive(Default)]
struct Direction {
    // what was read and could not be written yet; empty while the writer keeps up
    held: Vec<u8>,
    // how much of it is written
    held_written: usize,
    written: u64,
    unflushed: bool,
    phase: Phase,
}

#[derive(Clone, Copy, Default)]
enum Phase {
    #[default]
    Copy,
    Shutdown,
    Done,
}

impl Direction {
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if let Phase::Copy = self.phase {
            ready!(self.poll_copy(cx, reader, writer))?;
            self.phase = Phase::Shutdown;
        }
        if let Phase::Shutdown = self.phase {
            // a shutdown flushes first, by tokio's contract
            ready!(Pin::new(writer).poll_shutdown(cx))?;
            self.phase = Phase::Done;
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when the reader is at its end and all is written.
    fn poll_copy<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut stack = [MaybeUninit::<u8>::uninit(); CHUNK];
        for _ in 0..CHUNKS_PER_POLL {
            ready!(self.poll_write_held(cx, writer))?;
            let mut chunk = ReadBuf::uninit(&mut stack);
            if Pin::new(&mut *reader).poll_read(cx, &mut chunk)?.is_pending() {
                if self.unflushed {
                    ready!(Pin::new(writer).poll_flush(cx))?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
            let mut rest = chunk.filled();
            if rest.is_empty() {
                return Poll::Ready(Ok(()));
            }
            while !rest.is_empty() {
                match self.poll_write(cx, writer, rest)? {
                    Poll::Ready(n) => rest = &rest[n..],
                    Poll::Pending => {
                        self.held = rest.to_vec();
                        return Poll::Pending;
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_write_held<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
    ) -> Poll<io::Result<()>> {
        if self.held.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let held = std::mem::take(&mut self.held);
        while self.held_written < held.len() {
            match self.poll_write(cx, writer, &held[self.held_written..])? {
                Poll::Ready(n) => self.held_written += n,
                Poll::Pending => {
                    self.held = held;
                    return Poll::Pending;
                }
            }
        }
        self.held_written = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(writer).poll_write(cx, bytes))?;
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.unflushed = true;
        self.written += n as u64;
        Poll::Ready(Ok(n))
    }
}

pub(crate) trait Io: AsyncRead + AsyncWrite {}

impl<T: AsyncRead + AsyncWrite> Io for T {}

pub(crate) type BoxIo = Box<dyn Io + Send + Unpin>;

/// The upstream's side of a tunnel. Whoever sends requests puts it into the extensions of a 101 response; it yields first
/// whatever the upstream sent right behind its 101.
#[derive(Clone)]
pub struct UpstreamTunnel(Arc<Mutex<Option<BoxIo>>>);

impl UpstreamTunnel {
    /// Wraps the stream.
    pub fn new(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(io)))))
    }

    /// The stream, once.
    pub(crate) fn take(&self) -> Option<BoxIo> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for UpstreamTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamTunnel").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
