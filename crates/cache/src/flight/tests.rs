use std::{
    collections::VecDeque,
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
    time::SystemTime,
};

use http::{HeaderValue, StatusCode, header::CACHE_CONTROL};

use super::*;
use crate::{
    meta::{Asked, Times, judge},
    options::CacheOptions,
};

/// A body of these frames; then it is pending.
struct Frames(VecDeque<Bytes>);

impl Frames {
    fn new(frames: &[&'static str]) -> Self {
        Self(frames.iter().map(|frame| Bytes::from_static(frame.as_bytes())).collect())
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.pop_front().map_or(Poll::Pending, |data| Poll::Ready(Some(Ok(Frame::data(data)))))
    }
}

/// A body of these frames, which ends.
struct Ended(Frames);

impl Body for Ended {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.is_end_stream() { Poll::Ready(None) } else { Pin::new(&mut self.0).poll_frame(cx) }
    }

    fn is_end_stream(&self) -> bool {
        self.0.0.is_empty()
    }
}

/// A body that panics after these frames.
struct Panics(Frames);

impl Body for Panics {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        assert!(!self.0.0.is_empty(), "as it is told to");
        Pin::new(&mut self.0).poll_frame(cx)
    }
}

/// Counts how often it was woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Woken {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Sky {
    shared: Arc<Shared>,
    rules: CacheRules,
}

impl Sky {
    fn new(finish: bool) -> Self {
        let shared = Arc::new(Shared::new(CacheOptions::default(), None));
        Self { shared, rules: CacheRules::default().with_finish_fetch(finish) }
    }

    fn flight(&self) -> Arc<Flight> {
        Flight::new(&self.shared, b"https://a:443/", b"", &self.rules)
    }

    fn target(&self) -> Target {
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
        let now = Instant::now();
        let times = Times { asked: now, received: now, wall: SystemTime::now() };
        let meta = judge(&Asked::default(), StatusCode::OK, &headers, times, &self.rules).unwrap();
        Target {
            meta: Arc::new(meta),
            ticket: self.shared.ticket(b"https://a:443/"),
            expected: None,
            finish: self.rules.finish_fetch,
        }
    }
}

fn read(seat: &Seat, waker: &Arc<Woken>) -> Poll<Read> {
    let waker = Waker::from(Arc::clone(waker));
    seat.poll_read(&Context::from_waker(&waker), &mut false)
}

/// Whoever leaves last closes the door behind him; whoever comes before that keeps the body.
#[test]
fn the_last_to_leave_lets_nobody_in() {
    let sky = Sky::new(false);
    let flight = sky.flight();
    let first = flight.begin(Frames::new(&["x"]), sky.target());
    let second = flight.seat().unwrap();
    drop(first);
    assert!(flight.source.lock().is_some(), "somebody is there");
    assert!(!flight.state.lock().close(&sky.shared));
    assert!(matches!(read(&second, &Arc::default()), Poll::Ready(Read::Data(_))));
    drop(second);
    assert!(flight.seat().is_none() && flight.source.lock().is_none());
    assert!(flight.state.lock().target.is_none());
}

/// It ends, and is not waited for for ever.
#[test]
fn a_body_that_is_gone_is_broken() {
    let sky = Sky::new(false);
    let flight = sky.flight();
    let seat = flight.begin(Frames::new(&["x"]), sky.target());
    flight.source.lock().take();
    assert!(matches!(read(&seat, &Arc::default()), Poll::Ready(Read::End(End::Broken(_)))));
}

/// What a runtime that shuts down drops does not begin again.
#[test]
fn a_fetch_for_nobody_is_not_begun_twice() {
    let sky = Sky::new(true);
    let flight = sky.flight();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        drop(flight.begin(Frames::new(&["x"]), sky.target()));
        assert!(flight.source.lock().is_some());
    });
    drop(runtime);
    assert!(flight.source.lock().is_none() && flight.seat().is_none());
}

/// Reads for another, as often as there is something, from within a waker: a task that is run by another thread at that moment.
struct Inline {
    seat: Mutex<Option<Seat>>,
    woken: Arc<Woken>,
    read: AtomicUsize,
}

impl Wake for Inline {
    fn wake(self: Arc<Self>) {
        if let Some(seat) = self.seat.lock().as_ref() {
            while read(seat, &self.woken).is_ready() {
                self.read.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

/// One reads what another has just brought and wants more, while that one still has the source and then does not come again.
#[test]
fn who_finds_the_source_taken_is_woken() {
    let sky = Sky::new(false);
    let flight = sky.flight();
    let first = flight.begin(Frames::new(&["x", "y"]), sky.target());
    let other = Arc::new(Inline { seat: Mutex::new(None), woken: Arc::default(), read: AtomicUsize::new(0) });
    let second = flight.seat().unwrap();
    {
        let mut state = flight.state.lock();
        let place = state.places.iter_mut().flatten().last().unwrap();
        place.waker = Some(Waker::from(Arc::clone(&other)));
    }
    *other.seat.lock() = Some(second);
    assert!(matches!(read(&first, &Arc::default()), Poll::Ready(Read::Data(_))));
    assert_eq!(other.read.load(Ordering::SeqCst), 1, "it had the piece, and wanted the next");
    assert_eq!(other.woken.count(), 1, "and is told that it can bring it itself");
    let seat = other.seat.lock().take().unwrap();
    assert!(matches!(read(&seat, &other.woken), Poll::Ready(Read::Data(_))));
}

/// The body woke one reader, who goes away instead of reading.
#[test]
fn who_leaves_passes_his_turn_on() {
    let sky = Sky::new(false);
    let flight = sky.flight();
    let first = flight.begin(Frames::new(&[]), sky.target());
    let (one, other) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
    assert!(read(&first, &one).is_pending());
    flight.wake_by_ref();
    let second = flight.seat().unwrap();
    assert!(read(&second, &other).is_pending());
    assert_eq!((one.count(), other.count()), (1, 0));
    drop(first);
    assert_eq!(other.count(), 1);
    // Who still waits to be woken had no turn.
    let third = flight.seat().unwrap();
    assert!(read(&second, &other).is_pending() && read(&third, &one).is_pending());
    drop(third);
    assert_eq!(other.count(), 1);
}

/// What is still in memory counts: after the body was let go of until the slowest has read it, after the end until all are gone.
#[test]
fn what_a_slow_reader_holds_stays_reserved() {
    let mut sky = Sky::new(false);
    sky.rules = sky.rules.with_max_object_bytes(25);
    let filling = || sky.shared.stats().filling;
    let waker = Arc::default();
    let piece = "0123456789";
    let flight = sky.flight();
    let fast = flight.begin(Frames::new(&[piece, piece, piece, piece]), sky.target());
    let slow = flight.seat().unwrap();
    assert!(read(&fast, &waker).is_ready() && read(&fast, &waker).is_ready());
    assert_eq!(filling(), 2 * (10 + PIECE));
    assert!(read(&fast, &waker).is_ready() && flight.seat().is_none(), "it is too large");
    assert_eq!(filling(), 2 * (10 + PIECE), "the slow one has still to read that");
    for left in [2, 1, 0] {
        assert!(read(&slow, &waker).is_ready());
        assert_eq!(filling(), left.min(2) * (10 + PIECE));
    }
    drop((slow, fast));
    assert_eq!(filling(), 0);

    // What ended and is not stored stays reserved until the slowest has it, piece by piece.
    let flight = sky.flight();
    let target = Target { expected: Some(21), ..sky.target() };
    let fast = flight.begin(Ended(Frames::new(&[piece, piece])), target);
    let slow = flight.seat().unwrap();
    while matches!(read(&fast, &waker), Poll::Ready(Read::Data(_))) {}
    assert!(flight.state.lock().end.is_some() && flight.seat().is_none());
    for left in [2, 1, 0] {
        assert_eq!(filling(), left * (10 + PIECE));
        assert_eq!(matches!(read(&slow, &waker), Poll::Ready(Read::Data(_))), left > 0);
    }
}

/// Where it was not stored after all, what slow readers have still to read counts on; where it was, it counts in the store.
#[test]
fn what_is_stored_counts_there() {
    for valid in [true, false] {
        let sky = Sky::new(false);
        let filling = || sky.shared.stats().filling;
        let waker = Arc::default();
        let flight = sky.flight();
        let fast = flight.begin(Ended(Frames::new(&["01", "234", "5"])), sky.target());
        let (slow, half) = (flight.seat().unwrap(), flight.seat().unwrap());
        assert!(read(&half, &waker).is_ready());
        if !valid {
            sky.shared.forget(b"https://a:443/");
        }
        while matches!(read(&fast, &waker), Poll::Ready(Read::Data(_))) {}
        drop(fast);
        assert_eq!((sky.shared.stats().stored == 1, filling() == 0), (valid, valid));
        for (seat, want) in [(half, "2345"), (slow, "012345")] {
            let mut got = Vec::new();
            while let Poll::Ready(Read::Data(data)) = read(&seat, &waker) {
                got.extend_from_slice(&data);
            }
            assert_eq!(got, want.as_bytes());
            assert!(matches!(read(&seat, &waker), Poll::Ready(Read::End(End::Done))) && seat.is_at_end());
        }
        assert_eq!(filling(), 0);
    }
}

/// The copy that is stored counts while it is made, and is as small as there is room for.
#[test]
fn the_copy_counts() {
    // Of the last block, of three bytes, two are free.
    let room = 1 + 2 + 3 + 3 * PIECE;
    for (more, pieces) in [(4, Some(1)), (3, Some(3)), (1, Some(3)), (0, None)] {
        let mut sky = Sky::new(false);
        let options = CacheOptions::default().with_max_fill_bytes(room + more);
        sky.shared = Arc::new(Shared::new(options, None));
        let waker = Arc::default();
        let flight = sky.flight();
        let seat = flight.begin(Ended(Frames::new(&["a", "bc", "d"])), sky.target());
        for want in ["a", "bc", "d"] {
            assert!(matches!(read(&seat, &waker), Poll::Ready(Read::Data(data)) if data == want));
        }
        assert!(matches!(read(&seat, &waker), Poll::Ready(Read::End(End::Done))));
        let stored = sky.shared.get(flight.key());
        assert_eq!(stored.map(|variants| variants[0].body.chunks.len()), pieces, "{more}");
        let (stats, stored) = (sky.shared.stats(), u64::from(pieces.is_some()));
        assert_eq!((stats.stored, stats.abandoned, stats.filling), (stored, 1 - stored, 0));
    }
}

/// Nobody waits for a body that panicked.
#[test]
fn a_body_that_panics_is_broken_for_all() {
    let sky = Sky::new(false);
    let flight = sky.flight();
    let first = flight.begin(Panics(Frames::new(&["x"])), sky.target());
    let (second, woken) = (flight.seat().unwrap(), Arc::new(Woken::default()));
    assert!(read(&second, &woken).is_ready());
    // He waits while another brings it on.
    second.register(&mut flight.state.lock(), &Context::from_waker(&Waker::from(Arc::clone(&woken))));
    assert!(read(&first, &Arc::default()).is_ready());
    let panics = || read(&first, &Arc::default());
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
    assert_eq!(woken.count(), 1);
    for seat in [&first, &second] {
        assert!(matches!(read(seat, &woken), Poll::Ready(Read::End(End::Broken(_)))));
    }
    assert!(flight.seat().is_none() && flight.source.lock().is_none());
    drop((first, second));
    let stats = sky.shared.stats();
    assert_eq!((stats.stored, stats.abandoned, stats.filling), (0, 1, 0));
}

/// A reader that has what it came for is not woken for it.
#[test]
fn who_brings_a_piece_is_not_woken_for_it() {
    let sky = Sky::new(false);
    let flight = sky.flight();
    let (one, other) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
    let first = flight.begin(Ended(Frames::new(&["x", "y", "z"])), sky.target());
    for _ in 0..2 {
        assert!(matches!(read(&first, &one), Poll::Ready(Read::Data(_))));
    }
    let second = flight.seat().unwrap();
    second.register(&mut flight.state.lock(), &Context::from_waker(&Waker::from(Arc::clone(&other))));
    while matches!(read(&first, &one), Poll::Ready(Read::Data(_))) {}
    assert_eq!((one.count(), other.count()), (0, 1));
}

/// Between the end and the store there is no moment with neither.
#[test]
fn who_comes_while_it_is_stored_joins() {
    let sky = Sky::new(false);
    let flight = sky.flight();
    let _first = flight.begin(Frames::new(&[]), sky.target());
    let stored = flight.finish(&mut flight.state.lock(), End::Done);
    assert!(stored.is_some() && flight.seat().is_some());
    // What is not stored is not joined.
    let flight = sky.flight();
    let _first = flight.begin(Frames::new(&[]), Target { expected: Some(1), ..sky.target() });
    assert!(flight.finish(&mut flight.state.lock(), End::Done).is_none() && flight.seat().is_none());
}

/// A piece of a byte sets aside no more than it needs, whatever is announced, and what it sets aside counts.
#[test]
fn what_is_set_aside_counts() {
    let sky = Sky::new(false);
    let filling = || sky.shared.stats().filling;
    let waker = Arc::default();
    for expected in [None, Some(1_000_000)] {
        let flight = sky.flight();
        let seat = flight.begin(Frames::new(&["x", "0123456789", "y"]), Target { expected, ..sky.target() });
        for (memory, pieces) in [(1, 1), (11, 2), (22, 3)] {
            assert!(read(&seat, &waker).is_ready());
            assert_eq!(filling(), memory + pieces * PIECE, "{expected:?}");
        }
        drop(seat);
        assert_eq!(filling(), 0);
    }
}

/// Where there is no room for the block that a piece would need, none is made.
#[test]
fn what_finds_no_room_sets_nothing_aside() {
    let mut sky = Sky::new(false);
    let options = CacheOptions::default().with_max_fill_bytes(1000);
    sky.shared = Arc::new(Shared::new(options, None));
    let flight = sky.flight();
    let big = "x".repeat(900);
    let frames = Frames(VecDeque::from([Bytes::from(big), Bytes::from_static(b"y")]));
    let seat = flight.begin(frames, Target { expected: Some(10_000), ..sky.target() });
    assert!(read(&seat, &Arc::default()).is_ready() && flight.seat().is_some());
    assert!(read(&seat, &Arc::default()).is_ready() && flight.seat().is_none());
    assert!(sky.shared.stats().filling <= 1000 && flight.state.lock().chunks.held() <= 901);
}

/// Notes whether the flight's state was locked when it was woken.
struct Looks {
    flight: Arc<Flight>,
    woken: Woken,
    locked: AtomicBool,
}

impl Wake for Looks {
    fn wake(self: Arc<Self>) {
        self.woken.0.fetch_add(1, Ordering::SeqCst);
        self.locked.fetch_or(self.flight.state.is_locked(), Ordering::SeqCst);
    }
}

/// The slowest made room in the window: who waited for it is woken when nothing is locked, since he may read at once.
#[test]
fn who_waits_for_room_is_woken_outside_the_lock() {
    let mut sky = Sky::new(false);
    sky.rules = sky.rules.with_max_object_bytes(1);
    let flight = sky.flight();
    let frames = Frames((0..10).map(|_| Bytes::from(vec![b'x'; 64 << 10])).collect());
    let fast = flight.begin(frames, sky.target());
    let slow = flight.seat().unwrap();
    let looks = Arc::new(Looks {
        flight: Arc::clone(&flight),
        woken: Woken::default(),
        locked: AtomicBool::new(false),
    });
    let waker = Waker::from(Arc::clone(&looks));
    let mut blocked = false;
    while fast.poll_read(&Context::from_waker(&waker), &mut blocked).is_ready() {}
    assert!(blocked);
    let before = looks.woken.count();
    assert!(read(&slow, &Arc::default()).is_ready());
    assert_eq!(looks.woken.count(), before + 1);
    assert!(!looks.locked.load(Ordering::SeqCst));
}

/// Once it is stale nobody joins any more, though it is still on its way.
#[test]
fn nobody_joins_what_became_stale() {
    let sky = Sky::new(false);
    let flight = sky.flight();
    let begun = Instant::now();
    let _first = flight.begin(Frames::new(&["x"]), sky.target());
    assert!(flight.seat_at(begun + Duration::from_secs(59)).is_some());
    assert!(flight.seat_at(Instant::now() + Duration::from_secs(60)).is_none());
}
