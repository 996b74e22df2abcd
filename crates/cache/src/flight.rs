//! One response on its way from the origin, to be stored, with all who read it meanwhile.
//!
//! Nobody owns the way: whoever is polled and finds nothing to read polls the origin's body for all, with a waker that wakes all. So a client that is slow, or
//! goes away, holds up nobody, and no task is needed. What was read stays in memory until the end, once, since it is to be stored; every reader takes it from
//! there.
//!
//! A body that turns out too large to be stored is let go of behind its slowest reader, and no more than [`WINDOW`] is read ahead of that one.

use std::{
    error::Error,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use parking_lot::Mutex;
use pin_project_lite::pin_project;

use crate::{
    chunks::Chunks,
    meta::Meta,
    rules::CacheRules,
    stats::count,
    store::{Key, Shared, Stored, Ticket},
};

/// What is read ahead of the slowest reader of a body that is not to be stored.
pub(crate) const WINDOW: u64 = 256 << 10;

/// What a piece costs beside its bytes, so that a body in very small ones stays within the bounds too.
const PIECE: u64 = 64;

pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// The origin's body.
pub(crate) trait Source: Send {
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>>;
    fn is_end(&self) -> bool;
}

pin_project! {
    pub(crate) struct BodySource<B> {
        #[pin]
        pub(crate) body: B,
    }
}

impl<B> Source for BodySource<B>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<BoxError>,
{
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.project().body.poll_frame(cx).map_err(Into::into)
    }

    fn is_end(&self) -> bool {
        self.body.is_end_stream()
    }
}

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
}

pub(crate) struct Flight {
    shared: Arc<Shared>,
    key: Key,
    selection: Box<[u8]>,
    max_object: u64,
    keep_stale: Duration,
    finish: bool,
    source: Mutex<Option<Pin<Box<dyn Source>>>>,
    state: Mutex<State>,
}

struct State {
    outcome: Outcome,
    /// There is a body, or was.
    begun: bool,
    /// `None` once it is stored, or is not to be any more.
    target: Option<Target>,
    chunks: Chunks,
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
    cut: bool,
}

/// What there is for a reader.
pub(crate) enum Read {
    Data(Bytes),
    End(End),
    /// It made no progress while others waited.
    Cut,
}

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
            finish: rules.finish_fetch,
            source: Mutex::new(None),
            state: Mutex::new(State {
                outcome: Outcome::Undecided,
                begun: false,
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
        let mut state = self.state.lock();
        let open = match state.outcome {
            Outcome::Undecided => true,
            // It may have become stale on its way.
            Outcome::Streaming(ref meta) => state.target.is_some() && meta.is_fresh(Instant::now()),
            _ => false,
        };
        open.then(|| Seat { flight: Arc::clone(self), place: state.take_place() })
    }

    /// Tells those that wait, and lets nobody in any more.
    pub(crate) fn tell(self: &Arc<Self>, outcome: Outcome) {
        let wakers = {
            let mut state = self.state.lock();
            state.outcome = outcome;
            state.wakers()
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
        let (seat, wakers) = {
            let mut state = self.state.lock();
            state.begun = true;
            state.outcome =
                if joinable { Outcome::Streaming(Arc::clone(&target.meta)) } else { Outcome::Alone };
            state.chunks.expect(target.expected);
            state.target = Some(target);
            let seat = Seat { flight: Arc::clone(self), place: state.take_place() };
            (seat, state.wakers())
        };
        if !joinable {
            self.shared.flights.remove(self);
        }
        if ended {
            self.end(End::Done);
        }
        wakers.into_iter().for_each(Waker::wake);
        seat
    }

    /// Brings the origin's body on, for all.
    fn drive(self: &Arc<Self>) -> Drove {
        // Who has it now wakes all others when he has something.
        let Some(mut source) = self.source.try_lock() else { return Drove::Pending };
        let Some(body) = source.as_mut() else { return Drove::On };
        let waker = Waker::from(Arc::clone(self));
        let mut cx = Context::from_waker(&waker);
        let Poll::Ready(frame) = body.as_mut().poll_next(&mut cx) else { return Drove::Pending };
        let mut end = self.take_frame(frame);
        if end.is_none() && body.is_end() {
            end = Some(End::Done);
        } else if end.is_none() && self.is_complete() {
            // Who knows the length does not read on, so nobody would see the end.
            end = match body.as_mut().poll_next(&mut cx) {
                Poll::Ready(frame) => self.take_frame(frame),
                Poll::Pending => Some(End::Done),
            };
        }
        if let Some(end) = end {
            let body = source.take();
            drop(source);
            self.end(end);
            drop(body);
        }
        Drove::On
    }

    fn take_frame(self: &Arc<Self>, frame: Option<Result<Frame<Bytes>, BoxError>>) -> Option<End> {
        match frame {
            None => Some(End::Done),
            Some(Err(error)) => Some(End::Broken(error.into())),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.take_in(data);
                    None
                }
                Err(frame) => frame.into_trailers().ok().map(End::Trailers),
            },
        }
    }

    /// Whether there is as much as was announced.
    fn is_complete(&self) -> bool {
        let state = self.state.lock();
        state.chunks.expected() == Some(state.chunks.len())
    }

    fn take_in(self: &Arc<Self>, data: Bytes) {
        if data.is_empty() {
            return;
        }
        let (outgrown, wakers) = {
            let mut state = self.state.lock();
            let outgrown = state.outgrows(data.len() as u64, self);
            if outgrown {
                state.let_go(&self.shared);
            }
            if state.target.is_some() {
                state.chunks.copy(&data);
            } else {
                let readers = state.places.iter().flatten().filter(|place| !place.cut).count();
                state.chunks.pass(data, readers);
            }
            (outgrown, state.wakers())
        };
        if outgrown {
            self.shared.flights.remove(self);
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Stores the response, if the body ended as it should (RFC 9111 section 3.3).
    fn end(self: &Arc<Self>, end: End) {
        let (stored, wakers) = {
            let mut state = self.state.lock();
            let len = state.chunks.len();
            let target = state.target.take();
            let whole = matches!(end, End::Done);
            let target = target.filter(|target| {
                let complete = whole && target.expected.is_none_or(|expected| expected == len);
                if !complete {
                    count(&self.shared.counters.abandoned);
                }
                complete
            });
            state.end = Some(end);
            let stored = target.map(|target| (target, state.chunks.whole()));
            self.shared.release(std::mem::take(&mut state.reserved));
            (stored, state.wakers())
        };
        if let Some((Target { meta, ticket, .. }, body)) = stored {
            let stored = Arc::new(Stored::new(Meta::clone(&meta), body, self.keep_stale));
            if self.shared.insert(&self.key, ticket, &stored) {
                count(&self.shared.counters.stored);
            }
        }
        // After it is stored, so that there is no moment with neither.
        self.shared.flights.remove(self);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Nobody reads any more.
    fn abandon(self: &Arc<Self>) {
        self.shared.flights.remove(self);
        {
            let mut state = self.state.lock();
            state.outcome = Outcome::Again;
            state.let_go(&self.shared);
        }
        let body = self.source.lock().take();
        drop(body);
    }
}

impl Wake for Flight {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let wakers = self.state.lock().wakers();
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

    fn wakers(&mut self) -> Vec<Waker> {
        self.places.iter_mut().flatten().filter_map(|place| place.waker.take()).collect()
    }

    /// Whether the body has no room in the store with so much more of it.
    fn outgrows(&mut self, more: u64, flight: &Flight) -> bool {
        let Some(target) = &self.target else { return false };
        let max = target.expected.unwrap_or(u64::MAX).min(flight.max_object);
        if self.chunks.len() + more > max || !flight.shared.reserve(more + PIECE) {
            return true;
        }
        self.reserved += more + PIECE;
        false
    }

    /// It is not to be stored any more: keeps only what somebody has still to read.
    fn let_go(&mut self, shared: &Shared) {
        if self.target.take().is_some() {
            count(&shared.counters.abandoned);
        }
        shared.release(std::mem::take(&mut self.reserved));
        if self.end.is_none() {
            let places = self.places.iter().flatten().filter(|place| !place.cut).map(|place| place.next);
            self.chunks.count_readers(places);
        }
    }

    fn is_windowed(&self) -> bool {
        self.target.is_none() && self.end.is_none()
    }
}

/// A place among those who wait for a response and then read it.
pub(crate) struct Seat {
    flight: Arc<Flight>,
    place: usize,
}

impl Seat {
    /// What came of it.
    pub(crate) fn poll_outcome(&self, cx: &Context<'_>) -> Poll<Outcome> {
        let mut state = self.flight.state.lock();
        match (&state.outcome, &state.end) {
            (Outcome::Undecided, _) => {
                self.register(&mut state, cx);
                Poll::Pending
            }
            // It came to nothing before anything of it was read.
            (Outcome::Streaming(_), Some(End::Broken(_) | End::Trailers(_))) => Poll::Ready(Outcome::Again),
            (outcome, _) => Poll::Ready(outcome.clone()),
        }
    }

    /// How long the whole is, where somebody said.
    pub(crate) fn expected(&self) -> Option<u64> {
        self.flight.state.lock().chunks.expected()
    }

    fn register(&self, state: &mut State, cx: &Context<'_>) {
        if let Some(Some(place)) = state.places.get_mut(self.place)
            && !place.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            place.waker = Some(cx.waker().clone());
        }
    }

    /// The next piece. `blocked` tells whether it is a slower reader that is waited for.
    pub(crate) fn poll_read(&self, cx: &Context<'_>, blocked: &mut bool) -> Poll<Read> {
        loop {
            {
                let mut state = self.flight.state.lock();
                let state = &mut *state;
                *blocked = false;
                let Some(Some(place)) = state.places.get_mut(self.place) else {
                    return Poll::Ready(Read::Cut);
                };
                if place.cut {
                    return Poll::Ready(Read::Cut);
                }
                if let Some(data) = state.chunks.get(place.next) {
                    place.next += 1;
                    let at = place.next - 1;
                    let freed = state.is_windowed() && state.chunks.was_read(at);
                    let wakers = if freed { state.wakers() } else { Vec::new() };
                    wakers.into_iter().for_each(Waker::wake);
                    return Poll::Ready(Read::Data(data));
                }
                if let Some(end) = &state.end {
                    return Poll::Ready(Read::End(end.clone()));
                }
                self.register(state, cx);
                if state.is_windowed() && state.chunks.kept() >= WINDOW {
                    *blocked = true;
                    return Poll::Pending;
                }
            }
            if matches!(self.flight.drive(), Drove::Pending) {
                return Poll::Pending;
            }
        }
    }

    /// Ends those whom all others wait for.
    pub(crate) fn cut_slowest(&self) {
        let wakers = {
            let mut state = self.flight.state.lock();
            let state = &mut *state;
            if !state.is_windowed() {
                return;
            }
            let first = state.chunks.first();
            for (at, place) in state.places.iter_mut().enumerate() {
                if let Some(place) = place.as_mut().filter(|place| place.next == first && at != self.place) {
                    place.cut = true;
                    state.chunks.left(place.next);
                }
            }
            state.wakers()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether there is nothing left to read.
    pub(crate) fn is_at_end(&self) -> bool {
        let state = self.flight.state.lock();
        let next = state.places.get(self.place).and_then(Option::as_ref).map_or(0, |place| place.next);
        matches!(state.end, Some(End::Done)) && state.chunks.get(next).is_none()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let (last, wakers) = {
            let mut state = self.flight.state.lock();
            let state = &mut *state;
            let mut wakers = Vec::new();
            if let Some(place) = state.places.get_mut(self.place).and_then(Option::take) {
                state.free.push(self.place);
                if state.is_windowed() && !place.cut && state.chunks.left(place.next) {
                    wakers = state.wakers();
                }
            }
            let streaming = state.begun && state.end.is_none();
            (streaming && state.free.len() == state.places.len(), wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
        if !last {
            return;
        }
        let wanted = self.flight.finish && self.flight.state.lock().target.is_some();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if wanted => {
                let place = self.flight.state.lock().take_place();
                runtime.spawn(read_on(Seat { flight: Arc::clone(&self.flight), place }));
            }
            _ => self.flight.abandon(),
        }
    }
}

/// Reads a body to its end for nobody, so that it is stored; ends as soon as it is not to be.
async fn read_on(seat: Seat) {
    let mut blocked = false;
    loop {
        let read = std::future::poll_fn(|cx| seat.poll_read(cx, &mut blocked)).await;
        if !matches!(read, Read::Data(_)) || seat.flight.state.lock().target.is_none() {
            return;
        }
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seat({})", self.place)
    }
}
