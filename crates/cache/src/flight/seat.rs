//! A place in a flight.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Buf;

use super::{Drove, End, Flight, Outcome, Read, State, Target, WINDOW};
use crate::chunks::Whole;

/// A place among those who wait for a response and then read it.
pub(crate) struct Seat {
    flight: Arc<Flight>,
    place: usize,
    /// It reads on where there is no client any more.
    nobody: bool,
}

impl Seat {
    /// At the beginning of what is kept.
    pub(super) fn take(flight: &Arc<Flight>, state: &mut State) -> Self {
        Self { flight: Arc::clone(flight), place: state.take_place(), nobody: false }
    }

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

    pub(super) fn register(&self, state: &mut State, cx: &Context<'_>) {
        if let Some(Some(place)) = state.places.get_mut(self.place)
            && !place.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            place.waker = Some(cx.waker().clone());
        }
    }

    /// The next piece. `blocked` tells whether it is a slower reader that is waited for.
    pub(crate) fn poll_read(&self, cx: &Context<'_>, blocked: &mut bool) -> Poll<Read> {
        loop {
            let (data, wakers) = {
                let mut state = self.flight.state.lock();
                let state = &mut *state;
                *blocked = false;
                let Some(Some(place)) = state.places.get_mut(self.place) else {
                    return Poll::Ready(Read::Cut);
                };
                if place.cut {
                    return Poll::Ready(Read::Cut);
                }
                if let Some(mut data) = state.chunks.get(place.next) {
                    data.advance(std::mem::take(&mut place.skip));
                    place.next += 1;
                    let at = place.next - 1;
                    let freed = state.is_windowed() && state.chunks.was_read(at);
                    let wakers = if freed { state.wakers(Some(self.place)) } else { Vec::new() };
                    if freed {
                        state.give_back(&self.flight.shared);
                    }
                    (Some(data), wakers)
                } else {
                    if let Some(end) = &state.end {
                        return Poll::Ready(Read::End(end.clone()));
                    }
                    self.register(state, cx);
                    if state.is_windowed() && state.chunks.kept() >= WINDOW {
                        *blocked = true;
                        return Poll::Pending;
                    }
                    (None, Vec::new())
                }
            };
            // Who is woken may want the same lock.
            wakers.into_iter().for_each(Waker::wake);
            if let Some(data) = data {
                return Poll::Ready(Read::Data(data));
            }
            if matches!(self.flight.drive(self.place), Drove::Pending) {
                return Poll::Pending;
            }
        }
    }

    /// Ends those whom all others wait for.
    pub(crate) fn cut_slowest(&self) {
        let wakers = {
            let mut state = self.flight.state.lock();
            let state = &mut *state;
            if !state.is_windowed() || state.end.is_some() {
                return;
            }
            let first = state.chunks.first();
            for (at, place) in state.places.iter_mut().enumerate() {
                if let Some(place) = place.as_mut().filter(|place| place.next == first && at != self.place) {
                    place.cut = true;
                    state.chunks.left(place.next);
                }
            }
            state.give_back(&self.flight.shared);
            state.wakers(Some(self.place))
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

/// What becomes of a flight whose last reader is gone.
enum After {
    Nothing,
    Finish(Seat, tokio::runtime::Handle),
    Store(Option<(Target, Whole)>),
    Abandon,
}

impl Seat {
    /// What becomes of the flight after this seat, decided in one step with leaving it.
    fn after(&self, state: &mut State) -> After {
        let flight = &self.flight;
        if !state.begun || state.end.is_some() || state.free.len() < state.places.len() {
            return After::Nothing;
        }
        // RFC 9111 section 3.3: all that was announced came. Only the end did not, or trailers, and nobody waits for these.
        if state.target.is_some() && state.chunks.is_complete() {
            return After::Store(flight.finish(state, End::Done));
        }
        // Where a runtime shuts down, what it is given is dropped at once: only once.
        let wanted = !self.nobody && state.target.as_ref().is_some_and(|target| target.finish);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if wanted => {
                let mut seat = Self::take(flight, state);
                seat.nobody = true;
                After::Finish(seat, runtime)
            }
            _ if state.close(&flight.shared) => After::Abandon,
            _ => After::Nothing,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let (after, wakers) = {
            let mut state = self.flight.state.lock();
            let state = &mut *state;
            let mut wakers = Vec::new();
            if let Some(place) = state.places.get_mut(self.place).and_then(Option::take) {
                state.free.push(self.place);
                let freed = state.is_windowed() && !place.cut && state.chunks.left(place.next);
                // It may have been the one that was woken to bring the body on.
                let woken = state.begun && state.end.is_none() && place.waker.is_none();
                if freed || woken {
                    wakers = state.wakers(None);
                }
            }
            let after = self.after(state);
            if state.begun && state.is_windowed() {
                state.give_back(&self.flight.shared);
            }
            (after, wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
        match after {
            After::Nothing => {}
            After::Finish(seat, runtime) => {
                runtime.spawn(read_on(seat));
            }
            After::Store(stored) => {
                self.flight.settle(stored);
                self.flight.abandon();
            }
            After::Abandon => self.flight.abandon(),
        }
    }
}

/// Reads a body for nobody, so that it is stored; ends as soon as all of it is there, or it is not to be.
pub(crate) async fn read_on(seat: Seat) {
    let mut blocked = false;
    loop {
        let read = std::future::poll_fn(|cx| seat.poll_read(cx, &mut blocked)).await;
        let state = seat.flight.state.lock();
        // Where all is there nobody waits for trailers: it is stored when this seat is left.
        if !matches!(read, Read::Data(_)) || state.target.is_none() || state.chunks.is_complete() {
            return;
        }
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seat({})", self.place)
    }
}
