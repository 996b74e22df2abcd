//! One response on its way from the origin, to be stored, with all who read it meanwhile.
//!
//! Nobody owns the way: whoever is polled and finds nothing to read polls the origin's body for all, with a waker that wakes all. So a client that is slow, or
//! goes away, holds up nobody, and no task is needed. What was read stays in memory until the end, once, since it is to be stored; every reader takes it from
//! there, and from the store's own pieces once it is stored.
//!
//! A body ends where its source says so, also one of known length that is all there: trailers may follow. Readers are not held up by a source that never says it more than
//! without a cache: who has all that `Content-Length` announced and needs no end, as HTTP/1, goes, and a body that is complete when the last one goes is stored.
//!
//! A body that turns out too large to be stored is let go of behind its slowest reader, and no more than [`WINDOW`] is read ahead of that one.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst, fence},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use parking_lot::{Mutex, MutexGuard};

pub(crate) use seat::{Seat, read_on};
pub(crate) use source::BoxError;
use source::{BodySource, Pinned};

use crate::{
    chunks::{Chunks, Whole},
    marks,
    meta::Meta,
    rules::CacheRules,
    stats::count,
    store::{Key, Shared, Stored, StoredBody, Ticket},
};

/// What is read ahead of the slowest reader of a body that is not to be stored.
pub(crate) const WINDOW: u64 = 256 << 10;

/// What a piece costs beside its bytes, so that a body in very small ones stays within the bounds too.
const PIECE: u64 = 64;

/// What came of asking the origin.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Undecided,
    /// A response that is to be stored, on its way.
    Streaming(Arc<Meta>),
    /// The origin failed, and this may be given out in place of its answer.
    Failed(Arc<Stored>),
    /// Look it up again: something was stored, or nobody knows.
    Again,
    /// The response is for one client alone. Everybody asks for himself.
    Alone,
}

/// How the body ended.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Done,
    Trailers(HeaderMap),
    Broken(Arc<dyn Error + Send + Sync>),
}

/// What is to be stored in the end.
pub(crate) struct Target {
    pub(crate) meta: Arc<Meta>,
    pub(crate) ticket: Ticket,
    /// The length that `Content-Length` announced.
    pub(crate) expected: Option<u64>,
    /// It is read to its end also for nobody.
    pub(crate) finish: bool,
}

pub(crate) struct Flight {
    shared: Arc<Shared>,
    key: Key,
    selection: Box<[u8]>,
    max_object: u64,
    keep_stale: Duration,
    source: Mutex<Option<Pinned>>,
    /// Somebody wanted the source while another had it.
    missed: AtomicBool,
    /// The source has woken since it was polled last.
    fired: AtomicBool,
    state: Mutex<State>,
}

struct State {
    outcome: Outcome,
    /// There is a body, or was.
    begun: bool,
    /// All of it is there and goes into the store. Until it is found there, this is where it is.
    storing: bool,
    /// `None` once it is stored, or is not to be any more.
    target: Option<Target>,
    chunks: Chunks,
    /// Of [`crate::CacheOptions::max_fill_bytes`], for as long as the pieces are in memory: somebody may still have to read them after the end, if they were not stored.
    reserved: u64,
    end: Option<End>,
    places: Vec<Option<Place>>,
    free: Vec<usize>,
}

/// Of a reader, or of one who waits to become one.
#[derive(Default)]
struct Place {
    waker: Option<Waker>,
    next: usize,
    /// So much of that piece it has already.
    skip: usize,
    cut: bool,
}

/// What there is for a reader.
pub(crate) enum Read {
    Data(Bytes),
    End(End),
    /// It made no progress while others waited.
    Cut,
}

/// There is no body any more, and it never ended.
#[derive(Debug, thiserror::Error)]
#[error("the response's body is gone")]
struct Lost;

/// The origin's body panicked.
#[derive(Debug, thiserror::Error)]
#[error("the response's body panicked")]
struct Panicked;

/// How far the origin's body was brought.
enum Drove {
    On,
    Pending,
}

impl Flight {
    pub(crate) fn new(shared: &Arc<Shared>, key: &[u8], selection: &[u8], rules: &CacheRules) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::clone(shared),
            key: key.into(),
            selection: selection.into(),
            max_object: rules.max_object_bytes,
            keep_stale: rules.keep_stale,
            source: Mutex::new(None),
            missed: AtomicBool::new(false),
            fired: AtomicBool::new(false),
            state: Mutex::new(State {
                outcome: Outcome::Undecided,
                begun: false,
                storing: false,
                target: None,
                chunks: Chunks::default(),
                reserved: 0,
                end: None,
                places: Vec::new(),
                free: Vec::new(),
            }),
        })
    }

    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    pub(crate) fn selection(&self) -> &[u8] {
        &self.selection
    }

    pub(crate) fn is_undecided(&self) -> bool {
        matches!(self.state.lock().outcome, Outcome::Undecided)
    }

    /// A seat at the beginning; `None` when that is gone.
    pub(crate) fn seat(self: &Arc<Self>) -> Option<Seat> {
        self.seat_at(Instant::now())
    }

    fn seat_at(self: &Arc<Self>, now: Instant) -> Option<Seat> {
        let mut state = self.state.lock();
        let open = match state.outcome {
            Outcome::Undecided => true,
            // It may have become stale on its way.
            Outcome::Streaming(ref meta) => (state.target.is_some() || state.storing) && meta.is_fresh(now),
            _ => false,
        };
        open.then(|| Seat::take(self, &mut state))
    }

    /// Tells those that wait, and lets nobody in any more.
    pub(crate) fn tell(self: &Arc<Self>, outcome: Outcome) {
        let wakers = {
            let mut state = self.state.lock();
            state.outcome = outcome;
            state.wakers(None)
        };
        self.shared.flights.remove(self);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The head is there and is to be stored: lets those that wait read along, if the response may be used again as it is. Else it was made for the
    /// first alone, and the others ask for themselves. The seat is the first's.
    pub(crate) fn begin<B>(self: &Arc<Self>, body: B, target: Target) -> Seat
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        // Nobody may ever poll a body without a frame.
        let ended = body.is_end_stream();
        if !ended {
            *self.source.lock() = Some(Box::pin(BodySource { body }));
        }
        let joinable = target.meta.is_fresh(Instant::now());
        let (seat, stored, wakers) = {
            let mut state = self.state.lock();
            state.begun = true;
            state.outcome =
                if joinable { Outcome::Streaming(Arc::clone(&target.meta)) } else { Outcome::Alone };
            state.chunks.expect(target.expected);
            state.target = Some(target);
            let seat = Seat::take(self, &mut state);
            // In one step with the beginning: whoever finds neither a source nor an end takes the body for lost.
            let stored = ended.then(|| self.finish(&mut state, End::Done));
            (seat, stored, state.wakers(None))
        };
        if !joinable {
            self.shared.flights.remove(self);
        }
        if let Some(stored) = stored {
            self.settle(stored);
        }
        wakers.into_iter().for_each(Waker::wake);
        seat
    }

    /// Brings the origin's body on, for all. Who does looks again himself: he is not woken.
    fn drive(self: &Arc<Self>, driver: usize) -> Drove {
        let Some(source) = self.try_source() else { return Drove::Pending };
        let mut guard = Guard { flight: self, source, polling: false };
        let Some(body) = guard.source.as_mut() else {
            let mut state = self.state.lock();
            // Every way to an end sets it with the source still locked, so nobody will any more.
            if state.end.is_none() {
                state.end = Some(End::Broken(Arc::new(Lost)));
                let wakers = state.wakers(Some(driver));
                drop(state);
                drop(guard);
                wakers.into_iter().for_each(Waker::wake);
            }
            return Drove::On;
        };
        let waker = Waker::from(Arc::clone(self));
        let mut cx = Context::from_waker(&waker);
        self.fired.store(false, SeqCst);
        guard.polling = true;
        let Poll::Ready(frame) = body.as_mut().poll_next(&mut cx) else {
            guard.polling = false;
            drop(guard);
            // It wakes all that are there when it fires; who came after it did is told here.
            fence(SeqCst);
            if self.missed.load(SeqCst) && self.fired.load(SeqCst) {
                self.wake_missed(driver);
            }
            return Drove::Pending;
        };
        let mut end = self.take_frame(frame, driver);
        if end.is_none() && body.is_end() {
            end = Some(End::Done);
        } else if end.is_none()
            && self.state.lock().chunks.is_complete()
            && let Poll::Ready(frame) = body.as_mut().poll_next(&mut cx)
        {
            // Who knows the length does not read on, so nobody would see an end that is there.
            end = self.take_frame(frame, driver);
        }
        guard.polling = false;
        if let Some(end) = end {
            let (stored, wakers) = {
                let mut state = self.state.lock();
                (self.finish(&mut state, end), state.wakers(Some(driver)))
            };
            let body = guard.source.take();
            drop(guard);
            self.settle(stored);
            wakers.into_iter().for_each(Waker::wake);
            drop(body);
            return Drove::On;
        }
        drop(guard);
        fence(SeqCst);
        self.wake_missed(driver);
        Drove::On
    }

    /// The source, if nobody has it. Else whoever has it wakes this one when he leaves without waiting for more: his own task may not come again.
    fn try_source(&self) -> Option<MutexGuard<'_, Option<Pinned>>> {
        self.source.try_lock().or_else(|| {
            self.missed.store(true, SeqCst);
            fence(SeqCst);
            // He may have left before he could see that. With the fences, one of the two sees the other.
            self.source.try_lock()
        })
    }

    fn wake_missed(self: &Arc<Self>, driver: usize) {
        if self.missed.swap(false, SeqCst) {
            let wakers = self.state.lock().wakers(Some(driver));
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    fn take_frame(
        self: &Arc<Self>,
        frame: Option<Result<Frame<Bytes>, BoxError>>,
        driver: usize,
    ) -> Option<End> {
        match frame {
            None => Some(End::Done),
            Some(Err(error)) => Some(End::Broken(error.into())),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.take_in(data, driver);
                    None
                }
                Err(frame) => frame.into_trailers().ok().map(End::Trailers),
            },
        }
    }

    fn take_in(self: &Arc<Self>, data: Bytes, driver: usize) {
        if data.is_empty() {
            return;
        }
        let (outgrown, wakers) = {
            let mut state = self.state.lock();
            let outgrown = state.outgrows(data.len(), self);
            if outgrown {
                state.let_go(&self.shared);
            }
            if state.target.is_some() {
                state.chunks.copy(&data);
            } else {
                let readers = state.places.iter().flatten().filter(|place| !place.cut).count();
                state.chunks.pass(data, readers);
            }
            (outgrown, state.wakers(Some(driver)))
        };
        if outgrown {
            self.shared.flights.remove(self);
            // Of a body that is not stored the next may well have a part alone.
            self.shared.marks.set(marks::too_large(self.shared.hash(&self.key)), Instant::now());
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Notes the end; what is to be stored, if the body ended as it should (RFC 9111 section 3.3).
    fn finish(&self, state: &mut State, end: End) -> Option<(Target, Whole)> {
        let len = state.chunks.len();
        let whole = matches!(end, End::Done);
        state.end = Some(end);
        let target = state.target.take()?;
        if whole && target.expected.is_none_or(|expected| expected == len) {
            state.storing = true;
            return Some((target, state.chunks.whole()));
        }
        count(&self.shared.counters.abandoned);
        state.count_readers();
        state.give_back(&self.shared);
        None
    }

    /// Stores it after the end.
    fn settle(self: &Arc<Self>, stored: Option<(Target, Whole)>) {
        if let Some((target, whole)) = stored {
            self.store(target, whole);
        }
        // After it is stored, so that there is no moment with neither.
        self.shared.flights.remove(self);
    }

    /// The copy is made while nothing is locked, and counts until the store has it. From there on it counts in the store, for those who read on too.
    fn store(&self, Target { meta, ticket, .. }: Target, mut whole: Whole) {
        let mut copied = whole.copied();
        let mut has_room = self.shared.reserve(copied);
        if !has_room {
            whole.copy_less();
            copied = whole.copied();
            has_room = self.shared.reserve(copied);
        }
        let stored =
            has_room.then(|| Arc::new(Stored::new(Meta::clone(&meta), whole.regrouped(), self.keep_stale)));
        if stored.is_none() {
            count(&self.shared.counters.abandoned);
        }
        let stored = stored.filter(|stored| self.shared.insert(&self.key, ticket, stored));
        let mut freed = if has_room { copied } else { 0 };
        let mut state = self.state.lock();
        let replaced = stored.map(|stored| {
            count(&self.shared.counters.stored);
            freed += std::mem::take(&mut state.reserved);
            state.read_from(&stored.body)
        });
        if replaced.is_none() {
            state.storing = false;
            state.count_readers();
            state.give_back(&self.shared);
        }
        drop(state);
        // First the memory, then the room.
        drop(replaced);
        self.shared.release(freed);
    }

    /// Nobody reads any more, and nobody can join: see [`State::close`].
    fn abandon(self: &Arc<Self>) {
        self.shared.flights.remove(self);
        let body = self.source.lock().take();
        drop(body);
    }
}

/// Who polls the origin's body. Where it panics it is broken for all: the others would wait for ever for somebody to bring it on.
struct Guard<'a> {
    flight: &'a Arc<Flight>,
    source: MutexGuard<'a, Option<Pinned>>,
    polling: bool,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !self.polling {
            return;
        }
        let body = self.source.take();
        let (stored, wakers) = {
            let mut state = self.flight.state.lock();
            (self.flight.finish(&mut state, End::Broken(Arc::new(Panicked))), state.wakers(None))
        };
        self.flight.settle(stored);
        wakers.into_iter().for_each(Waker::wake);
        drop(body);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let reserved = std::mem::take(&mut self.state.get_mut().reserved);
        self.shared.release(reserved);
    }
}

impl Wake for Flight {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.fired.store(true, SeqCst);
        let wakers = self.state.lock().wakers(None);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl State {
    fn take_place(&mut self) -> usize {
        let place = Some(Place { next: self.chunks.first(), ..Place::default() });
        match self.free.pop() {
            Some(at) => {
                self.places[at] = place;
                at
            }
            None => {
                self.places.push(place);
                self.places.len() - 1
            }
        }
    }

    /// Of all but the one who looks again himself.
    fn wakers(&mut self, but: Option<usize>) -> Vec<Waker> {
        let others = self.places.iter_mut().enumerate().filter(|(at, _)| Some(*at) != but);
        others.filter_map(|(_, place)| place.as_mut()?.waker.take()).collect()
    }

    /// Whether the body has no room in the store with so much more of it. Room is taken for what is set aside, not for what is in it.
    fn outgrows(&mut self, more: usize, flight: &Flight) -> bool {
        let Some(target) = &self.target else { return false };
        let max = target.expected.unwrap_or(u64::MAX).min(flight.max_object);
        if self.chunks.len() + more as u64 > max {
            return true;
        }
        let (blocks, pieces) = self.chunks.cost(more);
        let room = blocks + pieces * PIECE;
        if !flight.shared.reserve(room) {
            return true;
        }
        self.reserved += room;
        false
    }

    /// It is not to be stored any more: keeps only what somebody has still to read.
    fn let_go(&mut self, shared: &Shared) {
        if self.target.take().is_some() {
            count(&shared.counters.abandoned);
        }
        if self.end.is_none() {
            self.count_readers();
        }
        self.give_back(shared);
    }

    /// From now on a piece goes when all have it.
    fn count_readers(&mut self) {
        let places = self.places.iter().flatten().filter(|place| !place.cut).map(|place| place.next);
        self.chunks.count_readers(places);
    }

    /// From now on all read on in the pieces of the store. What they were in until now.
    fn read_from(&mut self, body: &StoredBody) -> Chunks {
        let before = std::mem::replace(&mut self.chunks, Chunks::stored(body));
        let (old, new) = (before.starts(), self.chunks.starts());
        for place in self.places.iter_mut().flatten() {
            let at = old.get(place.next).map_or(body.len, |start| start + place.skip as u64);
            place.next = new.partition_point(|start| *start <= at).saturating_sub(1);
            let skip = at - new.get(place.next).copied().unwrap_or(at);
            place.skip = usize::try_from(skip).unwrap_or(0);
        }
        before
    }

    /// Gives back what was reserved for pieces that are gone.
    fn give_back(&mut self, shared: &Shared) {
        let held = if self.places.iter().all(Option::is_none) {
            // Nobody can come any more where this is called for nobody.
            0
        } else {
            self.chunks.held() + PIECE * self.chunks.pieces()
        };
        let gone = self.reserved.saturating_sub(held);
        self.reserved -= gone;
        shared.release(gone);
    }

    /// Keeps everybody out, where nobody is in. In one step with the look at the places: who joined in between would wait for a body that is gone.
    fn close(&mut self, shared: &Shared) -> bool {
        let empty = self.places.iter().all(Option::is_none);
        if empty {
            self.outcome = Outcome::Again;
            self.let_go(shared);
        }
        empty
    }

    /// Whether only that is kept which somebody has still to read.
    fn is_windowed(&self) -> bool {
        self.target.is_none() && !self.storing
    }
}

mod seat;
mod source;

#[cfg(test)]
mod tests;
