//! What an HTTP/2 connection's streams are doing, so that its driver can tell an idle connection, and one whose client
//! holds responses back, from one that works.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

/// A slot that no response uses.
const FREE: u32 = 0;
/// A response that waits for its service to have more.
const ASKED: u32 = 1;
/// Added to the tick at which a response began to wait for its client.
const HANDED: u32 = 2;

/// One per connection. Streams write to it without a lock; the driver looks when its timers fire.
#[derive(Debug)]
pub(crate) struct Activity {
    open: AtomicU64,
    total: AtomicU64,
    /// Counted by the driver: a clock that costs a request nothing.
    tick: AtomicU32,
    next: AtomicUsize,
    /// One for each response on its way.
    slots: Box<[AtomicU32]>,
}

impl Activity {
    /// For a connection with at most so many streams at a time.
    pub(crate) fn new(max_streams: u32) -> Self {
        // a few more: a stream may be counted out by the protocol before its task has ended. More than this share nothing
        let slots = usize::try_from(max_streams).unwrap_or(usize::MAX).min(1 << 12) + 8;
        Self {
            open: AtomicU64::new(0),
            total: AtomicU64::new(0),
            tick: AtomicU32::new(0),
            next: AtomicUsize::new(0),
            slots: (0..slots).map(|_| AtomicU32::new(FREE)).collect(),
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.open.load(Ordering::Relaxed) == 0
    }

    /// Requests so far.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Moves the clock, and says whether a response has waited for its client for a whole tick and more: its client
    /// opens no window for it (RFC 9113 section 5.2), whatever else it does.
    pub(crate) fn tick(&self) -> bool {
        let now = self.tick.fetch_add(1, Ordering::Relaxed).wrapping_add(HANDED);
        self.slots.iter().map(|slot| slot.load(Ordering::Relaxed)).any(|slot| slot >= HANDED && slot < now)
    }

    fn handed(&self) -> u32 {
        self.tick.load(Ordering::Relaxed).wrapping_add(HANDED)
    }
}

/// A stream, from its request until its response is over or it is cancelled.
pub(crate) struct Open(Arc<Activity>);

impl Open {
    pub(crate) fn new(activity: &Arc<Activity>) -> Self {
        activity.open.fetch_add(1, Ordering::Relaxed);
        activity.total.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }

    /// A tunnel on a stream of its own: it is open for longer than its response, and waits for nobody.
    pub(crate) fn tunnel(activity: &Arc<Activity>) -> Self {
        activity.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }

    /// Its response is there, and waits for the client from now on.
    pub(crate) fn respond(self) -> Responding {
        let activity = &self.0;
        let first = activity.next.fetch_add(1, Ordering::Relaxed);
        let count = activity.slots.len();
        let handed = activity.handed();
        let slot = (0..count).map(|step| first.wrapping_add(step) % count).find(|index| {
            activity.slots[*index]
                .compare_exchange(FREE, handed, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        });
        Responding { open: self, slot }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A response on its way.
pub(crate) struct Responding {
    open: Open,
    slot: Option<usize>,
}

impl Responding {
    /// The client has room: the service is asked for more.
    pub(crate) fn asked(&self) {
        self.set(ASKED);
    }

    /// The service gave more: it is the client's turn.
    pub(crate) fn handed(&self) {
        self.set(self.open.0.handed());
    }

    fn set(&self, value: u32) {
        if let Some(slot) = self.slot {
            self.open.0.slots[slot].store(value, Ordering::Relaxed);
        }
    }
}

impl Drop for Responding {
    fn drop(&mut self) {
        self.set(FREE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_that_waits_for_its_client_for_a_tick_is_seen() {
        let activity = Arc::new(Activity::new(2));
        let (one, two) = (Open::new(&activity).respond(), Open::new(&activity).respond());
        assert!(!activity.tick(), "they have only begun");
        one.asked();
        two.asked();
        assert!(!activity.tick(), "both wait for the service");
        one.handed();
        assert!(!activity.tick());
        two.asked();
        assert!(activity.tick(), "one has waited since the tick before");
        drop(one);
        assert!(!activity.tick());
        two.handed();
        two.asked();
        assert!(!activity.tick() && !activity.tick());
        assert!(!activity.is_idle());
        drop(two);
        assert!(activity.is_idle() && activity.total() == 2);
    }

    #[test]
    fn a_tunnel_keeps_its_connection() {
        let activity = Arc::new(Activity::new(1));
        let (request, tunnel) = (Open::new(&activity), Open::tunnel(&activity));
        drop(request.respond());
        assert!(!activity.is_idle() && !activity.tick() && !activity.tick());
        drop(tunnel);
        assert!(activity.is_idle() && activity.total() == 1);
    }

    #[test]
    fn slots_are_used_again_and_more_streams_than_slots_do_no_harm() {
        let activity = Arc::new(Activity::new(1));
        let many: Vec<_> = (0..20).map(|_| Open::new(&activity).respond()).collect();
        drop(many);
        let one = Open::new(&activity).respond();
        assert!(one.slot.is_some());
    }
}
