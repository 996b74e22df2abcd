//! Where acceptors wait: for a permit when the limit is reached, or for room while descriptors are short.
//!
//! Wakers are cloned under the lock and woken or dropped outside it: either may run code of a runtime, which may
//! drop a connection, which comes back here.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    task::{Context, Waker},
};

use super::{Inner, Limits, Reservation, Take};

/// What an acceptor waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A permit: the limit is reached.
    Permit,
    /// That a connection closes and frees what was short.
    Room,
}

/// All seats of one [`Limits`]: one for each acceptor, so few.
#[derive(Default)]
pub(crate) struct Seats {
    seats: Vec<Option<Entry>>,
    for_permit: VecDeque<usize>,
    for_room: VecDeque<usize>,
}

#[derive(Default)]
struct Entry {
    waker: Option<Waker>,
    waits: Option<Reason>,
}

impl Seats {
    fn queue(&mut self, reason: Reason) -> &mut VecDeque<usize> {
        match reason {
            Reason::Permit => &mut self.for_permit,
            Reason::Room => &mut self.for_room,
        }
    }

    fn entry(&mut self, index: usize) -> Option<&mut Entry> {
        self.seats.get_mut(index)?.as_mut()
    }

    fn call(&mut self, index: usize) -> Option<Waker> {
        let entry = self.entry(index)?;
        entry.waits = None;
        entry.waker.clone()
    }

    fn wait(&mut self, index: usize, reason: Reason) {
        let Some(entry) = self.entry(index) else { return };
        match entry.waits.replace(reason) {
            Some(before) if before == reason => return,
            Some(before) => self.queue(before).retain(|&other| other != index),
            None => {}
        }
        self.queue(reason).push_back(index);
    }

    /// Takes a seat out of its queue. True if it stood there, false if it had been called.
    fn leave(&mut self, index: usize) -> bool {
        let Some(reason) = self.entry(index).and_then(|entry| entry.waits.take()) else { return false };
        self.queue(reason).retain(|&other| other != index);
        true
    }
}

/// Wakes the acceptor that has waited longest for `reason`.
pub(crate) fn call_one(inner: &Inner, reason: Reason) {
    let waker = change(inner, |all| {
        let index = all.queue(reason).pop_front()?;
        all.call(index)
    });
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Wakes all that wait for `reason`.
pub(crate) fn call_waiting(inner: &Inner, reason: Reason) {
    let wakers: Vec<Waker> = change(inner, |all| {
        let queue = std::mem::take(all.queue(reason));
        queue.into_iter().filter_map(|index| all.call(index)).collect()
    });
    wakers.into_iter().for_each(Waker::wake);
}

/// Wakes every acceptor, whatever it does.
pub(crate) fn call_everybody(inner: &Inner) {
    let wakers: Vec<Waker> = change(inner, |all| {
        all.for_permit.clear();
        all.for_room.clear();
        (0..all.seats.len()).filter_map(|index| all.call(index)).collect()
    });
    wakers.into_iter().for_each(Waker::wake);
}

/// Changes the queues and shows their lengths to those who look without the lock.
fn change<T>(inner: &Inner, f: impl FnOnce(&mut Seats) -> T) -> T {
    let mut all = inner.seats.lock();
    let result = f(&mut all);
    inner.waiting_for_permit.store(all.for_permit.len(), Ordering::SeqCst);
    inner.waiting_for_room.store(all.for_room.len(), Ordering::SeqCst);
    result
}

/// One acceptor's place.
pub(crate) struct Seat {
    limits: Limits,
    index: usize,
    waker: Option<Waker>,
    waits: Option<Reason>,
}

impl Seat {
    pub(crate) fn new(limits: Limits) -> Self {
        let index = change(&limits.inner, |all| {
            let free = all.seats.iter().position(Option::is_none);
            let index = free.unwrap_or_else(|| {
                all.seats.push(None);
                all.seats.len() - 1
            });
            all.seats[index] = Some(Entry::default());
            index
        });
        Self { limits, index, waker: None, waits: None }
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.limits.inner
    }

    /// Remembers the task to wake. Takes the lock only when the task is another one than before.
    pub(crate) fn watch(&mut self, cx: &Context<'_>) {
        if self.waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            return;
        }
        let waker = cx.waker().clone();
        let shared = waker.clone();
        let before = {
            let mut all = self.limits.inner.seats.lock();
            all.entry(self.index).and_then(|entry| entry.waker.replace(shared))
        };
        drop(before);
        self.waker = Some(waker);
    }

    /// A permit; or `None` when the limits are closed, or the limit is reached and the task stands in the queue.
    /// [`Seat::watch`] goes before.
    pub(crate) fn reserve(&mut self) -> Option<Reservation<'_>> {
        let mut taken = self.inner().take();
        if matches!(taken, Take::Full) {
            self.wait(Reason::Permit);
            // one may have come back before we stood in the queue
            taken = self.inner().take();
        }
        match taken {
            Take::Got => {
                let reservation = Reservation::of_taken(&self.limits.inner);
                if self.waits.take().is_some() {
                    change(&self.limits.inner, |all| all.leave(self.index));
                }
                Some(reservation)
            }
            Take::Full | Take::Closed => None,
        }
    }

    /// Queues the task.
    pub(crate) fn wait(&mut self, reason: Reason) {
        self.waits = Some(reason);
        change(&self.limits.inner, |all| all.wait(self.index, reason));
    }

    /// Whether the task was called out of the queue since [`Seat::wait`].
    pub(crate) fn called(&mut self) -> bool {
        if self.waits.is_none() {
            return false;
        }
        let mut all = self.limits.inner.seats.lock();
        all.entry(self.index).is_none_or(|entry| entry.waits.is_none())
    }

    /// Leaves the queue, if it stands in one.
    pub(crate) fn leave(&mut self) {
        if self.waits.take().is_some() {
            change(&self.limits.inner, |all| all.leave(self.index));
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let (entry, stood) = change(&self.limits.inner, |all| {
            let stood = all.leave(self.index);
            (all.seats[self.index].take(), stood)
        });
        drop(entry);
        // called, but gone before it could answer: the next one is called in its place
        if let (Some(reason), false) = (self.waits, stood) {
            call_one(&self.limits.inner, reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat(limits: &Limits) -> tokio_test::task::Spawn<Seat> {
        tokio_test::task::spawn(Seat::new(limits.clone()))
    }

    /// Polls the seat as an acceptor would: true if a permit was there.
    fn poll(seat: &mut tokio_test::task::Spawn<Seat>) -> bool {
        seat.enter(|cx, mut seat| {
            seat.watch(cx);
            seat.reserve().is_some()
        })
    }

    #[test]
    fn a_returned_permit_calls_one_in_order() {
        let limits = Limits::new(1);
        let held = limits.try_acquire().unwrap();
        let (mut first, mut second) = (seat(&limits), seat(&limits));
        assert!(!poll(&mut first) && !poll(&mut second));
        drop(held);
        assert!(first.is_woken() && !second.is_woken());
        // the first has no use for it and gives it back, which calls the second
        assert!(poll(&mut first));
        assert!(second.is_woken());
        assert!(poll(&mut second));
    }

    #[test]
    fn one_that_was_called_and_left_passes_the_call_on() {
        let limits = Limits::new(1);
        let held = limits.try_acquire().unwrap();
        let (mut first, mut second) = (seat(&limits), seat(&limits));
        assert!(!poll(&mut first) && !poll(&mut second));
        drop(held);
        drop(first);
        assert!(second.is_woken());
    }

    #[test]
    fn a_higher_limit_calls_and_a_lower_one_holds_back() {
        let limits = Limits::new(0);
        let mut waiting = seat(&limits);
        assert!(!poll(&mut waiting));
        limits.set_max(1);
        assert!(waiting.is_woken() && poll(&mut waiting));

        let held = limits.try_acquire().unwrap();
        let other = {
            limits.set_max(2);
            limits.try_acquire().unwrap()
        };
        limits.set_max(1);
        assert!(!poll(&mut waiting));
        drop(held);
        assert!(!poll(&mut waiting), "one is open and one is allowed");
        drop(other);
        assert!(poll(&mut waiting));
    }

    #[test]
    fn close_calls_everybody() {
        let limits = Limits::new(1);
        let _held = limits.try_acquire().unwrap();
        let (mut queued, mut idle) = (seat(&limits), seat(&limits));
        assert!(!poll(&mut queued));
        idle.enter(|cx, mut seat| seat.watch(cx));
        limits.close();
        assert!(queued.is_woken() && idle.is_woken());
        assert!(!poll(&mut queued));
    }

    #[test]
    fn only_a_closed_connection_calls_those_who_wait_for_room() {
        let limits = Limits::new(5);
        let held = limits.try_acquire().unwrap();
        let (mut short, mut other) = (seat(&limits), seat(&limits));
        short.enter(|cx, mut seat| {
            seat.watch(cx);
            seat.wait(Reason::Room);
        });
        assert!(poll(&mut other), "taken and given back");
        assert!(!short.is_woken());
        drop(held);
        assert!(short.is_woken());
        assert!(short.enter(|_, mut seat| seat.called()));
    }

    #[test]
    fn seats_are_used_again() {
        let limits = Limits::new(1);
        for _ in 0..100 {
            drop(Seat::new(limits.clone()));
        }
        assert_eq!(limits.inner.seats.lock().seats.len(), 1);
    }
}
