//! What an HTTP/2 connection's streams are doing, so that its driver can tell an idle connection, and one whose client
//! holds responses back, from one that works.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;

/// A slot that no response uses.
const FREE: u32 = 0;
/// A response that waits for its service to have more.
const ASKED: u32 = 1;
/// Added to the tick at which a response began to wait for its client.
const HANDED: u32 = 2;

/// Resets that are remembered at most, and responses that are followed: as many as there are slots. Resets are forgotten by themselves two
/// ticks later.
const MAX_FOLLOWED: usize = 1 << 12;

/// Bytes of a response that must have been written within a tick for it not to stand still, unless it ends.
const PROGRESS: usize = 1 << 10;

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
    /// Responses on their way that have none.
    beyond: AtomicUsize,
    tunnels: AtomicUsize,
    written: Mutex<Written>,
    /// Whether the last tick found responses that nobody but the client can be waiting for.
    stuck: AtomicBool,
}

/// What the frames say.
#[derive(Debug, Default)]
struct Written {
    /// Streams whose response has begun and is not over.
    open: HashMap<u32, Progress>,
    /// Streams that the client reset with no response begun: its head may be on its way, and is the last that is heard of it.
    reset: HashMap<u32, u32>,
    /// The transport takes nothing now: whatever waits, waits for that, and another watches over it.
    is_blocked: bool,
}

#[derive(Debug)]
struct Progress {
    /// When it last went on.
    tick: u32,
    /// What was written since.
    bytes: usize,
}

impl Activity {
    /// For a connection with at most so many streams at a time.
    pub(crate) fn new(max_streams: u32) -> Self {
        // a few more: a stream may be counted out by the protocol before its task has ended. More than this share nothing
        let slots = usize::try_from(max_streams).unwrap_or(usize::MAX).min(MAX_FOLLOWED) + 8;
        Self {
            open: AtomicU64::new(0),
            total: AtomicU64::new(0),
            tick: AtomicU32::new(0),
            next: AtomicUsize::new(0),
            slots: (0..slots).map(|_| AtomicU32::new(FREE)).collect(),
            beyond: AtomicUsize::new(0),
            tunnels: AtomicUsize::new(0),
            written: Mutex::default(),
            stuck: AtomicBool::new(false),
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
    ///
    /// A response may wait in the protocol's driver after its service is done: the driver takes a piece of any size for a window of
    /// one byte. Of those nothing is left here but their frames: more of them stand still than there are services to wait for. As a service
    /// may be done in this very moment, that counts when it is so at two ticks.
    pub(crate) fn tick(&self) -> bool {
        let tick = self.tick.fetch_add(1, Ordering::Relaxed);
        let now = tick.wrapping_add(HANDED);
        let (mut asked, mut waits) = (0, false);
        for slot in self.slots.iter().map(|slot| slot.load(Ordering::Relaxed)) {
            asked += usize::from(slot == ASKED);
            waits |= slot >= HANDED && slot < now;
        }
        let may_stand = asked + self.beyond.load(Ordering::Relaxed) + self.tunnels.load(Ordering::Relaxed);
        let mut written = self.written.lock();
        written.reset.retain(|_, since| *since + 1 >= tick);
        let stand = written.open.values().filter(|progress| progress.tick < tick).count();
        let stuck = stand > may_stand && !written.is_blocked;
        let was = self.stuck.swap(stuck, Ordering::Relaxed);
        waits || (stuck && was)
    }

    /// A frame of a response that is not its last, with so many bytes; `begins` for its head.
    pub(crate) fn on_written(&self, stream: u32, begins: bool, bytes: usize) {
        let tick = self.tick.load(Ordering::Relaxed);
        let mut written = self.written.lock();
        if let Some(progress) = written.open.get_mut(&stream) {
            progress.bytes += bytes;
            if progress.bytes >= PROGRESS {
                *progress = Progress { tick, bytes: 0 };
            }
        } else if begins && written.reset.remove(&stream).is_none() && written.open.len() < MAX_FOLLOWED {
            written.open.insert(stream, Progress { tick, bytes: 0 });
        }
    }

    /// Whether the transport takes what is written.
    pub(crate) fn on_blocked(&self, is: bool) {
        self.written.lock().is_blocked = is;
    }

    /// The last frame of a response, or its reset by this side.
    pub(crate) fn on_end(&self, stream: u32) {
        self.written.lock().open.remove(&stream);
    }

    /// A reset by the client.
    pub(crate) fn on_reset(&self, stream: u32) {
        let tick = self.tick.load(Ordering::Relaxed);
        let mut written = self.written.lock();
        if written.open.remove(&stream).is_none() && written.reset.len() < MAX_FOLLOWED {
            written.reset.insert(stream, tick);
        }
    }

    fn handed(&self) -> u32 {
        self.tick.load(Ordering::Relaxed).wrapping_add(HANDED)
    }
}

/// A stream, from its request until its response is over or it is cancelled.
pub(crate) struct Open {
    activity: Arc<Activity>,
    is_tunnel: bool,
}

impl Open {
    pub(crate) fn new(activity: &Arc<Activity>) -> Self {
        activity.open.fetch_add(1, Ordering::Relaxed);
        activity.total.fetch_add(1, Ordering::Relaxed);
        Self { activity: Arc::clone(activity), is_tunnel: false }
    }

    /// A tunnel on a stream of its own: it is open for longer than its response, and waits for nobody.
    pub(crate) fn tunnel(activity: &Arc<Activity>) -> Self {
        activity.open.fetch_add(1, Ordering::Relaxed);
        activity.tunnels.fetch_add(1, Ordering::Relaxed);
        Self { activity: Arc::clone(activity), is_tunnel: true }
    }

    /// Its response is there, and waits for the client from now on.
    pub(crate) fn respond(self) -> Responding {
        let activity = &self.activity;
        let first = activity.next.fetch_add(1, Ordering::Relaxed);
        let count = activity.slots.len();
        let handed = activity.handed();
        let slot = (0..count).map(|step| first.wrapping_add(step) % count).find(|index| {
            activity.slots[*index]
                .compare_exchange(FREE, handed, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        });
        if slot.is_none() {
            activity.beyond.fetch_add(1, Ordering::Relaxed);
        }
        Responding { open: self, slot }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.activity.open.fetch_sub(1, Ordering::Relaxed);
        if self.is_tunnel {
            self.activity.tunnels.fetch_sub(1, Ordering::Relaxed);
        }
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
        self.set(self.open.activity.handed());
    }

    fn set(&self, value: u32) {
        if let Some(slot) = self.slot {
            self.open.activity.slots[slot].store(value, Ordering::Relaxed);
        }
    }
}

impl Drop for Responding {
    fn drop(&mut self) {
        self.set(FREE);
        if self.slot.is_none() {
            self.open.activity.beyond.fetch_sub(1, Ordering::Relaxed);
        }
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
    fn what_is_remembered_of_frames_has_a_bound() {
        let activity = Activity::new(1);
        for stream in 0..MAX_FOLLOWED as u32 + 10 {
            activity.on_reset(stream * 2 + 1);
            activity.on_written(stream * 2 + 2, true, 1);
        }
        let written = activity.written.lock();
        assert_eq!((written.open.len(), written.reset.len()), (MAX_FOLLOWED, MAX_FOLLOWED));
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
