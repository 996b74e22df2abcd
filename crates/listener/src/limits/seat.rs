//! Where acceptors wait: for a permit when a limit is reached, or for room while descriptors are short.
//!
//! Wakers are cloned under the lock and woken or dropped outside it: either may run code of a runtime, which may
//! drop a connection, which comes back here.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    task::{Context, Waker},
};

use tokio::time::Instant;

use super::{
    ListenerLimits,
    options::OverLimit,
    state::{Group, Own, Reservation, Take},
};

/// What an acceptor waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A permit: the limit of all is reached.
    Permit = 0,
    /// A permit of its own listener.
    Listener = 1,
    /// That a connection closes and frees what was short.
    Room = 2,
}

impl Reason {
    pub(crate) const ALL: [Self; 3] = [Self::Permit, Self::Listener, Self::Room];
}

/// All seats of one [`Group`]: one for each acceptor, so few.
#[derive(Default)]
pub(crate) struct Seats {
    seats: Vec<Option<Entry>>,
    queues: [VecDeque<usize>; Reason::ALL.len()],
}

struct Entry {
    own: Arc<Own>,
    waker: Option<Waker>,
    waits: Option<Reason>,
}

impl Seats {
    fn queue(&mut self, reason: Reason) -> &mut VecDeque<usize> {
        &mut self.queues[reason as usize]
    }

    fn entry(&mut self, index: usize) -> Option<&mut Entry> {
        self.seats.get_mut(index)?.as_mut()
    }

    fn call(&mut self, index: usize) -> Option<Waker> {
        let entry = self.entry(index)?;
        if entry.waits.take() == Some(Reason::Listener) {
            entry.own.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        entry.waker.clone()
    }

    fn wait(&mut self, index: usize, reason: Reason) {
        let Some(entry) = self.entry(index) else { return };
        if entry.waits == Some(reason) {
            return;
        }
        self.leave(index);
        let Some(entry) = self.entry(index) else { return };
        entry.waits = Some(reason);
        if reason == Reason::Listener {
            entry.own.waiting.fetch_add(1, Ordering::SeqCst);
        }
        self.queue(reason).push_back(index);
    }

    /// Takes a seat out of its queue. True if it stood there, false if it had been called.
    fn leave(&mut self, index: usize) -> bool {
        let Some(entry) = self.entry(index) else { return false };
        let Some(reason) = entry.waits.take() else { return false };
        if reason == Reason::Listener {
            entry.own.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        self.queue(reason).retain(|&other| other != index);
        true
    }
}

/// Wakes the acceptor that has waited longest for `reason`.
pub(crate) fn call_one(group: &Group, reason: Reason) {
    let waker = change(group, |all| {
        let index = all.queue(reason).pop_front()?;
        all.call(index)
    });
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Wakes the acceptor of this listener that has waited longest for a permit of it.
pub(crate) fn call_one_of(own: &Own) {
    let waker = change(&own.group, |all| {
        let Seats { seats, queues } = all;
        let queue = &mut queues[Reason::Listener as usize];
        let is_of = |index: &usize| {
            seats.get(*index).and_then(Option::as_ref).is_some_and(|entry| std::ptr::eq(&*entry.own, own))
        };
        let place = queue.iter().position(is_of)?;
        let index = queue.remove(place)?;
        all.call(index)
    });
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Wakes all that wait for `reason`.
pub(crate) fn call_waiting(group: &Group, reason: Reason) {
    let wakers: Vec<Waker> = change(group, |all| {
        let queue = std::mem::take(all.queue(reason));
        queue.into_iter().filter_map(|index| all.call(index)).collect()
    });
    wakers.into_iter().for_each(Waker::wake);
}

/// Wakes every acceptor, whatever it does. One that waited for room finds out for itself that it is to go on waiting.
pub(crate) fn call_everybody(group: &Group) {
    let wakers: Vec<Waker> = change(group, |all| {
        all.queues.iter_mut().for_each(VecDeque::clear);
        (0..all.seats.len()).filter_map(|index| all.call(index)).collect()
    });
    wakers.into_iter().for_each(Waker::wake);
}

/// Wakes every acceptor without calling it out of its queue.
pub(crate) fn nudge_everybody(group: &Group) {
    let wakers: Vec<Waker> = {
        let all = group.seats.lock();
        all.seats.iter().flatten().filter_map(|entry| entry.waker.clone()).collect()
    };
    wakers.into_iter().for_each(Waker::wake);
}

/// Changes the queues and shows their lengths to those who look without the lock.
fn change<T>(group: &Group, f: impl FnOnce(&mut Seats) -> T) -> T {
    let mut all = group.seats.lock();
    let result = f(&mut all);
    for (waiting, queue) in group.waiting.iter().zip(&all.queues) {
        waiting.store(queue.len(), Ordering::SeqCst);
    }
    result
}

/// One acceptor's place.
pub(crate) struct Seat {
    own: Arc<Own>,
    index: usize,
    waker: Option<Waker>,
    waits: Option<Reason>,
    /// Since when it waits for a permit.
    since: Option<Instant>,
}

/// What there is for an acceptor that wants to accept.
pub(crate) enum Reserve<'a> {
    /// A permit.
    Got(Reservation<'a>),
    /// None, and what comes is to be refused.
    Refuse(OverLimit),
    /// None; the task stands in a queue.
    Wait,
    /// None any more.
    Closed,
}

impl Seat {
    pub(crate) fn new(limits: &ListenerLimits) -> Self {
        let own = Arc::clone(&limits.own);
        let index = change(&own.group, |all| {
            let free = all.seats.iter().position(Option::is_none);
            let index = free.unwrap_or_else(|| {
                all.seats.push(None);
                all.seats.len() - 1
            });
            all.seats[index] = Some(Entry { own: Arc::clone(&own), waker: None, waits: None });
            index
        });
        Self { own, index, waker: None, waits: None, since: None }
    }

    pub(crate) fn own(&self) -> &Arc<Own> {
        &self.own
    }

    /// Remembers the task to wake. Takes the lock only when the task is another one than before.
    pub(crate) fn watch(&mut self, cx: &Context<'_>) {
        if self.waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            return;
        }
        let waker = cx.waker().clone();
        let shared = waker.clone();
        let before = {
            let mut all = self.own.group.seats.lock();
            all.entry(self.index).and_then(|entry| entry.waker.replace(shared))
        };
        drop(before);
        self.waker = Some(waker);
    }

    /// A permit, or what to do without. [`Seat::watch`] goes before.
    pub(crate) fn reserve(&mut self) -> Reserve<'_> {
        let over = self.own.group.over();
        self.reserve_with(over)
    }

    /// The same for those who can refuse nobody.
    pub(crate) fn reserve_or_wait(&mut self) -> Reserve<'_> {
        self.reserve_with(OverLimit::Wait)
    }

    fn reserve_with(&mut self, over: OverLimit) -> Reserve<'_> {
        // not `self`: what is taken borrows it, and the queue is changed meanwhile
        let own = &self.own;
        let mut taken = own.take();
        for _ in 0..Reason::ALL.len() {
            let (reason, paused) = match taken {
                Take::Full(reason) => (reason, false),
                Take::Paused(reason) => (reason, true),
                Take::Got(_) | Take::Closed => break,
            };
            if !paused {
                if over != OverLimit::Wait {
                    own.is_full(reason);
                    return Reserve::Refuse(over);
                }
                if self.since.is_none() {
                    own.is_full(reason);
                    self.since = Some(Instant::now());
                }
            }
            let was_for_permit = self.waits == Some(Reason::Permit) && reason != Reason::Permit;
            self.waits = Some(reason);
            change(&own.group, |all| all.wait(self.index, reason));
            if was_for_permit && own.group.is_waited(Reason::Permit) && own.group.has_room() {
                // called for a permit of all that its own listener does not let it take: the next one may
                call_one(&own.group, Reason::Permit);
            }
            // one may have come back before we stood in the queue
            taken = own.take();
            match taken {
                Take::Full(again) | Take::Paused(again) if again == reason => return Reserve::Wait,
                _ => {}
            }
        }
        match taken {
            Take::Got(reservation) => {
                if let Some(since) = self.since.take() {
                    own.counters.at_limit(since.elapsed());
                }
                if self.waits.take().is_some() {
                    change(&own.group, |all| all.leave(self.index));
                }
                Reserve::Got(reservation)
            }
            Take::Closed => Reserve::Closed,
            Take::Full(_) | Take::Paused(_) => {
                // what it waits for has changed with every look: it stands in a queue that may not be the right one
                if let Some(waker) = &self.waker {
                    waker.wake_by_ref();
                }
                Reserve::Wait
            }
        }
    }

    /// Queues the task.
    pub(crate) fn wait(&mut self, reason: Reason) {
        self.waits = Some(reason);
        change(&self.own.group, |all| all.wait(self.index, reason));
    }

    /// Whether the task was called out of the queue since [`Seat::wait`].
    pub(crate) fn called(&mut self) -> bool {
        if self.waits.is_none() {
            return false;
        }
        let mut all = self.own.group.seats.lock();
        all.entry(self.index).is_none_or(|entry| entry.waits.is_none())
    }

    /// Leaves the queue, if it stands in one.
    pub(crate) fn leave(&mut self) {
        if self.waits.take().is_some() {
            change(&self.own.group, |all| all.leave(self.index));
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let (entry, stood) = change(&self.own.group, |all| {
            let stood = all.leave(self.index);
            (all.seats[self.index].take(), stood)
        });
        drop(entry);
        // called, but gone before it could answer: the next one is called in its place
        match (self.waits, stood) {
            (Some(Reason::Listener), false) => call_one_of(&self.own),
            (Some(reason), false) => call_one(&self.own.group, reason),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Limits;

    fn seat(limits: &Limits) -> tokio_test::task::Spawn<Seat> {
        tokio_test::task::spawn(Seat::new(&limits.into()))
    }

    /// Polls the seat as an acceptor would: true if a permit was there.
    fn poll(seat: &mut tokio_test::task::Spawn<Seat>) -> bool {
        seat.enter(|cx, mut seat| {
            seat.watch(cx);
            matches!(seat.reserve(), Reserve::Got(_))
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
            drop(Seat::new(&limits.clone().into()));
        }
        assert_eq!(limits.own.group.seats.lock().seats.len(), 1);
    }
}
