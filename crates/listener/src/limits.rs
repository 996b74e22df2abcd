//! A bound on open connections, as permits that live as long as the connections do.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::accept::ErrorClass;

mod descriptors;
mod permitted;
mod seat;

use self::seat::Seats;
pub(crate) use self::seat::{Reason, Seat};
pub use self::{
    descriptors::{connections_that_fit, descriptor_limit, raise_descriptor_limit},
    permitted::Permitted,
};

/// The state word, changed by single atomic operations:
/// bit 63 closed, bits 32 to 62 open connections, bits 0 to 31 permits taken. Every open connection holds a permit;
/// an acceptor holds one for the moment between taking it and the answer of `accept`.
const CLOSED: u64 = 1 << 63;
const ONE_OPEN: u64 = 1 << 32;
const ONE_TAKEN: u64 = 1;
const TAKEN: u64 = u32::MAX as u64;
const MOST: usize = (i32::MAX) as usize;

/// How many connections may be open, shared by every listener and worker that holds a clone, and changeable while
/// they run.
///
/// Past the limit nothing is accepted: clients wait in the kernel's queue (see [`crate::TcpOptions::backlog`]) until
/// a connection closes. Taking and returning a permit are a few atomic operations, without a lock unless somebody
/// waits. An idle listener holds no permit, so a small limit serves many listeners.
#[derive(Clone)]
pub struct Limits {
    pub(crate) inner: Arc<Inner>,
}

impl Limits {
    /// At most `max` open connections (and at most 2^31-1); 0 accepts nothing until [`Limits::set_max`].
    pub fn new(max: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                state: AtomicU64::new(0),
                max: AtomicU64::new(clamp(max)),
                waiting_for_permit: AtomicUsize::new(0),
                waiting_for_room: AtomicUsize::new(0),
                seats: Mutex::new(Seats::default()),
                draining: AtomicU32::new(0),
                drained: Notify::new(),
                accepted: AtomicU64::new(0),
                connection_errors: AtomicU64::new(0),
                shortage_errors: AtomicU64::new(0),
                episodes: AtomicU64::new(0),
                paused_nanos: AtomicU64::new(0),
                episode: Mutex::new(None),
            }),
        }
    }

    /// Changes the limit. A lower one closes nothing: it holds new connections back until enough have ended.
    pub fn set_max(&self, max: usize) {
        self.inner.max.store(clamp(max), Ordering::SeqCst);
        seat::call_waiting(&self.inner, Reason::Permit);
    }

    /// The limit in force.
    pub fn max(&self) -> usize {
        self.inner.max.load(Ordering::Relaxed) as usize
    }

    /// Connections open now. What waits in the kernel's queue is not counted.
    pub fn open(&self) -> usize {
        ((self.inner.state.load(Ordering::SeqCst) & !CLOSED) / ONE_OPEN) as usize
    }

    /// A permit for a connection that came by another way than [`crate::Incoming`]; `None` when the limit is
    /// reached or [`Limits::close`] was called.
    pub fn try_acquire(&self) -> Option<Permit> {
        match self.inner.take() {
            Take::Got => Some(Reservation::of_taken(&self.inner).open()),
            Take::Full | Take::Closed => None,
        }
    }

    /// Gives no more permits, for good: every [`crate::Incoming`] ends, whether it waits for a permit, for a
    /// connection or for the end of a shortage. Open connections are left alone.
    pub fn close(&self) {
        self.inner.state.fetch_or(CLOSED, Ordering::SeqCst);
        seat::call_everybody(&self.inner);
    }

    /// Whether [`Limits::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }

    /// Resolves when no connection is open. Call [`Limits::close`] first, and when this resolves none is open nor
    /// ever will be; without it a new one may come at any time.
    pub async fn drained(&self) {
        let _waiting = Draining::new(&self.inner.draining);
        loop {
            let mut notified = std::pin::pin!(self.inner.drained.notified());
            notified.as_mut().enable();
            if self.inner.state.load(Ordering::SeqCst) & !CLOSED == 0 {
                return;
            }
            notified.await;
        }
    }

    /// What happened so far.
    pub fn stats(&self) -> ListenerStats {
        let inner = &*self.inner;
        ListenerStats {
            accepted: inner.accepted.load(Ordering::Relaxed),
            open: self.open() as u64,
            connection_errors: inner.connection_errors.load(Ordering::Relaxed),
            shortage_errors: inner.shortage_errors.load(Ordering::Relaxed),
            shortages: inner.episodes.load(Ordering::Relaxed),
            paused: Duration::from_nanos(inner.paused_nanos.load(Ordering::Relaxed)),
        }
    }
}

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limits")
            .field("open", &self.open())
            .field("max", &self.max())
            .field("closed", &self.is_closed())
            .finish()
    }
}

/// What the listeners that share one [`Limits`] did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListenerStats {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections open now.
    pub open: u64,
    /// Accept errors that belonged to one connection.
    pub connection_errors: u64,
    /// Accept errors that meant a shortage, or were not known.
    pub shortage_errors: u64,
    /// Shortage episodes begun: several errors of several listeners in a row are one episode.
    pub shortages: u64,
    /// Time that acceptors rested because of errors, summed over them; a rest counts when it ends.
    pub paused: Duration,
}

/// The right to one open connection; dropping it gives it back.
///
/// [`crate::Permitted`] keeps it beside the stream.
pub struct Permit {
    inner: Arc<Inner>,
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let before = self.inner.state.fetch_sub(ONE_OPEN + ONE_TAKEN, Ordering::SeqCst);
        self.inner.after_release(before - (ONE_OPEN + ONE_TAKEN));
        if self.inner.waiting_for_room.load(Ordering::SeqCst) > 0 {
            seat::call_one(&self.inner, Reason::Room);
        }
    }
}

/// A permit taken before the connection is there; dropping it gives it back.
pub(crate) struct Reservation<'a> {
    inner: &'a Arc<Inner>,
}

impl<'a> Reservation<'a> {
    /// Guards a permit that [`Inner::take`] gave.
    pub(crate) fn of_taken(inner: &'a Arc<Inner>) -> Self {
        Self { inner }
    }

    /// The connection is there.
    pub(crate) fn open(self) -> Permit {
        self.inner.state.fetch_add(ONE_OPEN, Ordering::SeqCst);
        let inner = Arc::clone(self.inner);
        std::mem::forget(self);
        Permit { inner }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        // No descriptor came free by this, so nobody who waits for room is called: two acceptors in a shortage
        // would otherwise wake each other for ever.
        let before = self.inner.state.fetch_sub(ONE_TAKEN, Ordering::SeqCst);
        self.inner.after_release(before - ONE_TAKEN);
    }
}

/// The answer of [`Inner::take`]; what was got must be guarded at once by [`Reservation::of_taken`].
pub(crate) enum Take {
    Got,
    Full,
    Closed,
}

/// One stretch of shortage, shared by all listeners: begun by the first error, over when the last listener that had
/// one has been without for a pause.
struct Episode {
    members: u32,
    since: Instant,
    until: Instant,
    errors: u64,
}

/// What an episode was, when it is over.
pub(crate) struct EpisodeOver {
    pub(crate) errors: u64,
    pub(crate) lasted: Duration,
}

pub(crate) struct Inner {
    state: AtomicU64,
    max: AtomicU64,
    /// How many seats stand in the two queues, so that a release takes the lock only for somebody.
    pub(crate) waiting_for_permit: AtomicUsize,
    pub(crate) waiting_for_room: AtomicUsize,
    pub(crate) seats: Mutex<Seats>,
    draining: AtomicU32,
    drained: Notify,
    accepted: AtomicU64,
    connection_errors: AtomicU64,
    shortage_errors: AtomicU64,
    episodes: AtomicU64,
    paused_nanos: AtomicU64,
    episode: Mutex<Option<Episode>>,
}

impl Inner {
    pub(crate) fn is_closed(&self) -> bool {
        self.state.load(Ordering::SeqCst) & CLOSED != 0
    }

    /// Takes a permit if one is free.
    pub(crate) fn take(&self) -> Take {
        let taken = self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |state| {
            let free = state & CLOSED == 0 && state & TAKEN < self.max.load(Ordering::SeqCst);
            free.then_some(state + ONE_TAKEN)
        });
        match taken {
            Ok(_) => Take::Got,
            Err(state) if state & CLOSED != 0 => Take::Closed,
            Err(_) => Take::Full,
        }
    }

    fn after_release(&self, now: u64) {
        if self.waiting_for_permit.load(Ordering::SeqCst) > 0 && now & TAKEN < self.max.load(Ordering::SeqCst)
        {
            seat::call_one(self, Reason::Permit);
        }
        if now & !CLOSED == 0 && self.draining.load(Ordering::SeqCst) > 0 {
            self.drained.notify_waiters();
        }
    }

    pub(crate) fn count_accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_error(&self, class: ErrorClass) {
        let counter = match class {
            ErrorClass::Connection => &self.connection_errors,
            ErrorClass::Shortage => &self.shortage_errors,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_pause(&self, rested: Duration) {
        let nanos = u64::try_from(rested.as_nanos()).unwrap_or(u64::MAX);
        self.paused_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Notes a shortage error. `joins` is whether this listener had none in the episode that runs. True when it
    /// begins a new one, which is to be told.
    pub(crate) fn shortage_error(&self, joins: bool) -> bool {
        let now = Instant::now();
        let mut episode = self.episode.lock();
        match &mut *episode {
            Some(running) => {
                running.errors += 1;
                running.members += u32::from(joins);
                running.until = now;
                false
            }
            None => {
                *episode = Some(Episode { members: 1, since: now, until: now, errors: 1 });
                self.episodes.fetch_add(1, Ordering::Relaxed);
                true
            }
        }
    }

    /// A pause within an episode ended.
    pub(crate) fn shortage_lasted_until(&self, until: Instant) {
        if let Some(running) = &mut *self.episode.lock() {
            running.until = running.until.max(until);
        }
    }

    /// A listener leaves the episode; the last one ends it, which is to be told.
    pub(crate) fn leave_shortage(&self) -> Option<EpisodeOver> {
        let mut episode = self.episode.lock();
        let running = episode.as_mut()?;
        running.members -= 1;
        if running.members > 0 {
            return None;
        }
        let running = episode.take()?;
        Some(EpisodeOver { errors: running.errors, lasted: running.until - running.since })
    }
}

/// Counts those who wait for the drain, so that a release notifies only then.
struct Draining<'a>(&'a AtomicU32);

impl<'a> Draining<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Draining<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn clamp(max: usize) -> u64 {
    max.min(MOST) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_counted_and_returned() {
        let limits = Limits::new(2);
        let first = limits.try_acquire().unwrap();
        let second = limits.try_acquire().unwrap();
        assert_eq!((limits.open(), limits.max()), (2, 2));
        assert!(limits.try_acquire().is_none());
        limits.set_max(3);
        let third = limits.try_acquire().unwrap();
        limits.set_max(1);
        drop((first, second));
        assert!(limits.try_acquire().is_none(), "one is open and one is allowed");
        drop(third);
        assert!(limits.try_acquire().is_some());
        assert_eq!(limits.open(), 0);
    }

    #[test]
    fn a_reservation_is_not_an_open_connection() {
        let limits = Limits::new(1);
        assert!(matches!(limits.inner.take(), Take::Got));
        let reservation = Reservation::of_taken(&limits.inner);
        assert_eq!(limits.open(), 0);
        assert!(limits.try_acquire().is_none());
        drop(reservation);
        assert!(limits.try_acquire().is_some());
    }

    #[test]
    fn closed_is_for_good() {
        let limits = Limits::new(5);
        let kept = limits.try_acquire().unwrap();
        limits.close();
        assert!(limits.is_closed() && limits.try_acquire().is_none());
        assert_eq!(limits.open(), 1);
        drop(kept);
        limits.set_max(10);
        assert!(limits.try_acquire().is_none());
        assert_eq!(limits.open(), 0);
    }

    #[tokio::test]
    async fn drained_waits_for_the_last() {
        let limits = Limits::new(5);
        limits.drained().await;
        let (a, b) = (limits.try_acquire().unwrap(), limits.try_acquire().unwrap());
        limits.close();
        let mut drained = tokio_test::task::spawn(limits.drained());
        tokio_test::assert_pending!(drained.poll());
        drop(a);
        tokio_test::assert_pending!(drained.poll());
        drop(b);
        assert!(drained.is_woken());
        tokio_test::assert_ready!(drained.poll());
    }

    #[test]
    fn never_above_the_limit_from_many_threads() {
        let limits = Limits::new(7);
        let above = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        let permit = limits.try_acquire();
                        if limits.open() > 7 {
                            above.fetch_add(1, Ordering::Relaxed);
                        }
                        drop(permit);
                    }
                });
            }
        });
        assert_eq!(above.into_inner(), 0);
        assert_eq!(limits.open(), 0);
    }
}
