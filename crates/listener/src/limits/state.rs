//! The shared state of all listeners, that of one, and the permits.

use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    client::{ClientKey, ClientRefused, Clients, Enter},
    episode::{Full, Shortage},
    options::{LimitOptions, OverClient, OverLimit},
    seat::{self, Reason, Seats},
    stats::{Counters, ListenerStats},
};

/// The state words, changed by single atomic operations:
/// bit 63 closed, bit 62 paused, bits 32 to 61 open connections, bits 0 to 31 permits taken. Every open connection
/// holds a permit; an acceptor holds one for the moment between taking it and the answer of `accept`.
const CLOSED: u64 = 1 << 63;
const PAUSED: u64 = 1 << 62;
const FLAGS: u64 = CLOSED | PAUSED;
const ONE_OPEN: u64 = 1 << 32;
const ONE_TAKEN: u64 = 1;
const TAKEN: u64 = u32::MAX as u64;
/// Fits into the bits of what is open.
const MOST: usize = (1 << 30) - 1;

pub(crate) fn clamp(max: usize) -> u64 {
    max.min(MOST) as u64
}

/// A bound and what is counted against it.
#[derive(Debug)]
struct Bound {
    state: AtomicU64,
    max: AtomicU64,
}

/// The answer of [`Bound::take`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Took {
    Got,
    Full,
    Paused,
    Closed,
}

impl Bound {
    fn new(max: usize) -> Self {
        Self { state: AtomicU64::new(0), max: AtomicU64::new(clamp(max)) }
    }

    fn take(&self) -> Took {
        let taken = self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |state| {
            let free = state & FLAGS == 0 && state & TAKEN < self.max.load(Ordering::SeqCst);
            free.then_some(state + ONE_TAKEN)
        });
        match taken {
            Ok(_) => Took::Got,
            Err(state) if state & CLOSED != 0 => Took::Closed,
            Err(state) if state & PAUSED != 0 => Took::Paused,
            Err(_) => Took::Full,
        }
    }

    fn opened(&self) {
        self.state.fetch_add(ONE_OPEN, Ordering::SeqCst);
    }

    /// Gives back a permit; of an open connection or of none. What is left.
    fn give_back(&self, open: bool) -> u64 {
        let back = if open { ONE_OPEN + ONE_TAKEN } else { ONE_TAKEN };
        self.state.fetch_sub(back, Ordering::SeqCst) - back
    }

    fn has_room(&self, state: u64) -> bool {
        state & FLAGS == 0 && state & TAKEN < self.max.load(Ordering::SeqCst)
    }

    fn open(&self) -> usize {
        ((self.state.load(Ordering::SeqCst) & !FLAGS) / ONE_OPEN) as usize
    }

    fn is(&self, flag: u64) -> bool {
        self.state.load(Ordering::SeqCst) & flag != 0
    }
}

/// What all listeners share.
pub(crate) struct Group {
    bound: Bound,
    over: AtomicU8,
    pub(crate) clients: Clients,
    /// How many seats stand in each queue, so that a release takes the lock only for somebody.
    pub(crate) waiting: [AtomicUsize; Reason::ALL.len()],
    pub(crate) seats: Mutex<Seats>,
    draining: AtomicU32,
    drained: Notify,
    closed: Notify,
    pub(crate) shortage: Shortage,
    pub(crate) full: Full,
    listeners: Mutex<Vec<Weak<Own>>>,
    /// What listeners did that are gone.
    retired: Mutex<ListenerStats>,
}

impl Group {
    pub(crate) fn new(options: LimitOptions) -> Self {
        Self {
            bound: Bound::new(options.max_connections),
            over: AtomicU8::new(options.over as u8),
            clients: Clients::new(options.per_client),
            waiting: Default::default(),
            seats: Mutex::default(),
            draining: AtomicU32::new(0),
            drained: Notify::new(),
            closed: Notify::new(),
            shortage: Shortage::default(),
            full: Full::default(),
            listeners: Mutex::default(),
            retired: Mutex::default(),
        }
    }

    pub(crate) fn set_max(&self, max: usize) {
        self.bound.max.store(clamp(max), Ordering::SeqCst);
        seat::call_waiting(self, Reason::Permit);
    }

    pub(crate) fn max(&self) -> usize {
        self.bound.max.load(Ordering::SeqCst) as usize
    }

    pub(crate) fn set_over(&self, over: OverLimit) {
        self.over.store(over as u8, Ordering::SeqCst);
        seat::call_waiting(self, Reason::Permit);
        seat::call_waiting(self, Reason::Listener);
    }

    pub(crate) fn over(&self) -> OverLimit {
        match self.over.load(Ordering::Relaxed) {
            over if over == OverLimit::Close as u8 => OverLimit::Close,
            over if over == OverLimit::Reset as u8 => OverLimit::Reset,
            _ => OverLimit::Wait,
        }
    }

    pub(crate) fn open(&self) -> usize {
        self.bound.open()
    }

    pub(crate) fn pause(&self) {
        self.bound.state.fetch_or(PAUSED, Ordering::SeqCst);
    }

    pub(crate) fn resume(&self) {
        self.bound.state.fetch_and(!PAUSED, Ordering::SeqCst);
        seat::call_waiting(self, Reason::Permit);
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.bound.is(PAUSED)
    }

    pub(crate) fn close(&self) {
        self.bound.state.fetch_or(CLOSED, Ordering::SeqCst);
        seat::call_everybody(self);
        self.closed.notify_waiters();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.bound.is(CLOSED)
    }

    pub(crate) async fn closed(&self) {
        let mut notified = std::pin::pin!(self.closed.notified());
        notified.as_mut().enable();
        if !self.is_closed() {
            notified.await;
        }
    }

    pub(crate) async fn drained(&self) {
        let _waiting = Draining::new(&self.draining);
        loop {
            let mut notified = std::pin::pin!(self.drained.notified());
            notified.as_mut().enable();
            if self.is_empty(self.bound.state.load(Ordering::SeqCst)) {
                return;
            }
            notified.await;
        }
    }

    fn is_empty(&self, state: u64) -> bool {
        state & !FLAGS == 0
    }

    /// Whether somebody who waits for a permit of the group could have one now.
    pub(crate) fn has_room(&self) -> bool {
        self.bound.has_room(self.bound.state.load(Ordering::SeqCst))
    }

    fn after_release(&self, now: u64) {
        if self.is_waited(Reason::Permit) && self.bound.has_room(now) {
            seat::call_one(self, Reason::Permit);
        }
        if self.is_empty(now) && self.draining.load(Ordering::SeqCst) > 0 {
            self.drained.notify_waiters();
        }
    }

    pub(crate) fn is_waited(&self, reason: Reason) -> bool {
        self.waiting[reason as usize].load(Ordering::SeqCst) > 0
    }

    /// A client has one connection less: those kept back look again.
    fn client_left(&self) {
        self.clients.told.fetch_add(1, Ordering::SeqCst);
        self.clients.freed.notify_waiters();
        seat::nudge_everybody(self);
    }

    pub(crate) fn set_per_client(&self, limit: Option<super::options::ClientLimit>) {
        self.clients.set(limit);
        if self.clients.delayed.load(Ordering::SeqCst) > 0 {
            self.client_left();
        }
    }

    pub(crate) fn stats(&self) -> ListenerStats {
        // held until the sum is made: what one of them did is not yet among what the others left
        let living = self.living();
        let mut sum = *self.retired.lock();
        for own in &living {
            sum.add(&own.counters.read());
        }
        sum.open = self.open() as u64;
        sum
    }

    fn living(&self) -> Vec<Arc<Own>> {
        self.listeners.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// The listeners that have a name.
    pub(crate) fn named(&self) -> Vec<(String, ListenerStats)> {
        let named = self.living().into_iter().filter_map(|own| Some((own.name.clone()?, own.stats())));
        named.collect()
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

/// What the sockets of one listener share.
pub(crate) struct Own {
    pub(crate) group: Arc<Group>,
    pub(crate) name: Option<String>,
    bound: Bound,
    /// How many seats of it stand in the queue for its own permits.
    pub(crate) waiting: AtomicUsize,
    pub(crate) counters: Counters,
    /// Its own maximum is reached.
    full: Full,
}

impl Own {
    pub(crate) fn new(group: &Arc<Group>, name: Option<String>, max: Option<usize>) -> Arc<Self> {
        let own = Arc::new(Self {
            group: Arc::clone(group),
            name,
            bound: Bound::new(max.unwrap_or(MOST)),
            waiting: AtomicUsize::new(0),
            counters: Counters::default(),
            full: Full::default(),
        });
        let mut listeners = group.listeners.lock();
        // as many as are alive: those that are gone make room
        listeners.retain(|known| known.strong_count() > 0);
        listeners.push(Arc::downgrade(&own));
        drop(listeners);
        own
    }

    pub(crate) fn set_max(&self, max: Option<usize>) {
        self.bound.max.store(clamp(max.unwrap_or(MOST)), Ordering::SeqCst);
        seat::call_waiting(&self.group, Reason::Listener);
    }

    pub(crate) fn max(&self) -> Option<usize> {
        let max = self.bound.max.load(Ordering::SeqCst) as usize;
        (max < MOST).then_some(max)
    }

    pub(crate) fn open(&self) -> usize {
        self.bound.open()
    }

    pub(crate) fn pause(&self) {
        self.bound.state.fetch_or(PAUSED, Ordering::SeqCst);
    }

    pub(crate) fn resume(&self) {
        self.bound.state.fetch_and(!PAUSED, Ordering::SeqCst);
        seat::call_waiting(&self.group, Reason::Listener);
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.bound.is(PAUSED)
    }

    pub(crate) fn stats(&self) -> ListenerStats {
        ListenerStats { open: self.open() as u64, ..self.counters.read() }
    }

    /// Takes a permit of the listener and of the group.
    pub(crate) fn take(self: &Arc<Self>) -> Take<'_> {
        if self.group.is_closed() {
            return Take::Closed;
        }
        match self.bound.take() {
            Took::Got => {}
            Took::Full => return Take::Full(Reason::Listener),
            Took::Paused | Took::Closed => return Take::Paused(Reason::Listener),
        }
        match self.group.bound.take() {
            Took::Got => return Take::Got(Reservation { own: self }),
            Took::Full => self.give_own_back(false),
            Took::Paused => {
                self.give_own_back(false);
                return Take::Paused(Reason::Permit);
            }
            Took::Closed => {
                self.give_own_back(false);
                return Take::Closed;
            }
        }
        Take::Full(Reason::Permit)
    }

    fn give_own_back(&self, open: bool) {
        let now = self.bound.give_back(open);
        if self.waiting.load(Ordering::SeqCst) > 0 && self.bound.has_room(now) {
            seat::call_one_of(self);
        }
    }

    fn give_back(&self, open: bool) {
        self.give_own_back(open);
        let now = self.group.bound.give_back(open);
        self.group.after_release(now);
    }

    fn called(&self) -> &str {
        self.name.as_deref().unwrap_or("a listener")
    }

    /// Somebody has to wait for a permit, or is refused.
    pub(crate) fn is_full(&self, why: Reason) {
        let over = self.group.over();
        let begins = if why == Reason::Permit {
            self.group.full.reached(ALL, self.group.max(), over)
        } else {
            self.full.reached(self.called(), self.max().unwrap_or(MOST), over)
        };
        if begins {
            self.counters.limit_reached();
        }
    }

    /// Somebody got one.
    pub(crate) fn is_not_full(&self) {
        self.group.full.accepted(ALL);
        self.full.accepted(self.called());
    }
}

/// Whose limit it is, in the log.
const ALL: &str = "all listeners";

impl Drop for Own {
    fn drop(&mut self) {
        self.group.retired.lock().add(&self.counters.read());
    }
}

/// The answer of [`Own::take`].
pub(crate) enum Take<'a> {
    Got(Reservation<'a>),
    /// The bound to wait for is reached.
    Full(Reason),
    /// Accepting is paused, there.
    Paused(Reason),
    Closed,
}

/// A permit taken before the connection is there; dropping it gives it back.
pub(crate) struct Reservation<'a> {
    own: &'a Arc<Own>,
}

impl Reservation<'_> {
    /// The connection is there.
    pub(crate) fn open(self) -> Permit {
        self.own.bound.opened();
        self.own.group.bound.opened();
        let own = Arc::clone(self.own);
        std::mem::forget(self);
        Permit { own, client: None }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        // No descriptor came free by this, so nobody who waits for room is called: two acceptors in a shortage
        // would otherwise wake each other for ever.
        self.own.give_back(false);
    }
}

/// The right to one open connection; dropping it gives it back.
///
/// [`crate::Permitted`] keeps it beside the stream.
pub struct Permit {
    own: Arc<Own>,
    client: Option<ClientKey>,
}

impl Permit {
    /// Counts the connection as one of this client's from now on, in place of the one it was counted for before, if
    /// any: for a connection of a proxy whose header names the true client
    /// ([`crate::read_proxy_header`]).
    ///
    /// Under [`OverClient::Delay`] it waits until the client has room; dropping the future then leaves the permit as
    /// it was.
    ///
    /// # Errors
    /// The client has its share; the permit is as it was, and the connection is to be closed, or reset if the error
    /// says so. Without a limit per client, and for exempt addresses, there is none.
    pub async fn count_client(&mut self, ip: IpAddr) -> Result<(), ClientRefused> {
        let clients = &self.own.group.clients;
        let limit = match clients.enter(ip) {
            Enter::In(key) => {
                self.rekey(key);
                return Ok(());
            }
            Enter::Full(limit) => limit,
        };
        let OverClient::Delay { up_to } = limit.over else {
            self.own.counters.refused_over_client();
            return Err(limit.refused(ip));
        };
        self.own.counters.delayed();
        let group = Arc::clone(&self.own.group);
        let entered = {
            let _waiting = Delaying::new(&group.clients.delayed);
            let wait = async {
                loop {
                    let mut freed = std::pin::pin!(group.clients.freed.notified());
                    freed.as_mut().enable();
                    if let Enter::In(key) = group.clients.enter(ip) {
                        return key;
                    }
                    freed.await;
                }
            };
            tokio::time::timeout(up_to, wait).await
        };
        match entered {
            Ok(key) => {
                self.rekey(key);
                Ok(())
            }
            Err(_) => {
                self.own.counters.refused_over_client();
                Err(limit.refused(ip))
            }
        }
    }

    pub(crate) fn rekey(&mut self, key: Option<ClientKey>) {
        if let Some(old) = std::mem::replace(&mut self.client, key) {
            self.leave(old);
        }
    }

    fn leave(&self, key: ClientKey) {
        if self.own.group.clients.leave(key) {
            self.own.group.client_left();
        }
    }
}

/// A connection that is counted for its client and for nothing else; dropping it ends that.
pub struct ClientGuard {
    own: Arc<Own>,
    client: Option<ClientKey>,
}

impl ClientGuard {
    pub(crate) fn new(own: &Arc<Own>, client: Option<ClientKey>) -> Self {
        Self { own: Arc::clone(own), client }
    }
}

impl fmt::Debug for ClientGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientGuard")
    }
}

impl Drop for ClientGuard {
    fn drop(&mut self) {
        if let Some(key) = self.client.take()
            && self.own.group.clients.leave(key)
        {
            self.own.group.client_left();
        }
    }
}

/// One connection that is kept back.
pub(crate) struct Delaying<'a>(&'a AtomicUsize);

impl<'a> Delaying<'a> {
    pub(crate) fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Delaying<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(key) = self.client.take() {
            self.leave(key);
        }
        self.own.give_back(true);
        if self.own.group.is_waited(Reason::Room) {
            seat::call_one(&self.own.group, Reason::Room);
        }
    }
}
