//! What is stored, bounded by weight and by time.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Method};
use moka::{Expiry, notification::RemovalCause, sync::Cache};
use tokio::sync::Semaphore;

use crate::{
    disk::Disk,
    flights::Flights,
    marks::Marks,
    meta::Meta,
    options::CacheOptions,
    purge::Purges,
    stats::{CacheStats, Counters, count},
    vary::selection,
};

/// What a response is known by, shared by all who hold it.
pub(crate) type Key = Arc<[u8]>;

/// A stored response.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) meta: Meta,
    pub(crate) body: StoredBody,
    /// See [`crate::CacheRules::keep_stale`].
    pub(crate) keep_stale: Duration,
    /// [`OUTDATED`] and [`GONE`]; it only ever grows.
    state: AtomicU8,
    /// When a soft purge marked it first.
    outdated: OnceLock<Instant>,
    /// What it was stored by, for when it leaves memory.
    pub(crate) ticket: OnceLock<Ticket>,
}

/// A soft purge has marked it: it counts as stale.
const OUTDATED: u8 = 1;

/// It was forgotten. Who is about to store a list with it among others may put it back, as moka lets go of a key while its value is being computed anew: it is
/// not selected there.
const GONE: u8 = 2;

/// A body in the pieces in which it is given out.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoredBody {
    pub(crate) chunks: Arc<[Bytes]>,
    pub(crate) len: u64,
}

/// The responses of one key, the newest first. All have the same selectors.
pub(crate) type Variants = Arc<[Arc<Stored>]>;

/// Keys share these counters by hash. A collision keeps one response from being stored, or from coming back from the disk: with 256 KiB of them that is seldom, also where
/// hundreds of unsafe requests come while a response is on its way. What is on the disk stays there: it is told apart by whole hashes.
const GENERATIONS: usize = 64 << 10;

/// Beside keys, fields and bodies: the tables' entries, timers and allocations of one variant.
const OVERHEAD: usize = 512;

/// What was valid when a request was forwarded. What its response is stored by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    pub(crate) generation: u32,
    pub(crate) epoch: u64,
    /// The last removal that the disk has noted.
    #[cfg_attr(not(feature = "disk"), expect(dead_code, reason = "it is the disk's"))]
    pub(crate) removals: u64,
    /// When the request was begun: of two responses the one that was asked for later is the newer one, whichever ends first.
    pub(crate) asked: Instant,
}

/// What all clones of a layer share.
pub(crate) struct Shared {
    pub(crate) cache: Cache<Key, Variants>,
    /// Where what memory drops goes.
    pub(crate) disk: Option<Arc<Disk>>,
    pub(crate) options: CacheOptions,
    pub(crate) counters: Arc<Counters>,
    pub(crate) purges: Arc<Purges>,
    pub(crate) flights: Flights,
    pub(crate) marks: Marks,
    /// [`CacheOptions::max_background`]
    pub(crate) background: Arc<Semaphore>,
    filling: AtomicU64,
    pub(crate) generations: Generations,
    /// What happens while a list is being made.
    #[cfg(test)]
    pub(crate) meanwhile: tests::Meanwhile,
}

/// How often each key was invalidated, or one that shares its counter.
pub(crate) struct Generations {
    hasher: RandomState,
    counters: Box<[AtomicU32]>,
}

impl Generations {
    fn new() -> Self {
        Self { hasher: RandomState::new(), counters: (0..GENERATIONS).map(|_| AtomicU32::new(0)).collect() }
    }

    fn of(&self, key: &[u8]) -> &AtomicU32 {
        let hash = self.hasher.hash_one(key) % self.counters.len() as u64;
        &self.counters[usize::try_from(hash).unwrap_or(0)]
    }

    pub(crate) fn now(&self, key: &[u8]) -> u32 {
        self.of(key).load(Ordering::Acquire)
    }

    pub(crate) fn pass(&self, key: &[u8]) {
        self.of(key).fetch_add(1, Ordering::AcqRel);
    }
}

impl Shared {
    pub(crate) fn new(options: CacheOptions, disk: Option<Disk>) -> Self {
        let options = options.bounded();
        let most_asked = options.max_background;
        let disk = disk.map(Arc::new);
        let below = disk.clone();
        let counters = Arc::new(Counters::default());
        let evicted = Arc::clone(&counters);
        let purges = Arc::new(Purges::default());
        let walked = Arc::clone(&purges);
        let cache = Cache::builder()
            .max_capacity(options.max_bytes)
            .weigher(weight)
            .expire_after(Keep)
            .eviction_listener(move |key: Arc<Key>, variants, cause| {
                if cause == RemovalCause::Size {
                    count(&evicted.evicted);
                    if let Some(below) = &below {
                        // What is dropped is valid now: what was purged before is not there.
                        below.put(&key, &variants, walked.finished());
                    }
                }
            })
            .build();
        Self {
            cache,
            disk,
            options,
            counters,
            purges,
            flights: Flights::default(),
            marks: Marks::default(),
            background: Arc::new(Semaphore::new(most_asked)),
            filling: AtomicU64::new(0),
            generations: Generations::new(),
            #[cfg(test)]
            meanwhile: tests::Meanwhile::default(),
        }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Variants> {
        self.cache.get(key)
    }

    /// Stores a response, unless its key was invalidated since `ticket` was taken, or what is there was asked for later (RFC 9111 section 4: the most recent is used). Whether it did.
    pub(crate) fn insert(&self, key: &Key, ticket: Ticket, stored: &Arc<Stored>) -> bool {
        self.insert_over(key, ticket, stored, ticket.asked)
    }

    /// Stores a response with the body of `old`, of which the origin said that it is still right. Not over one that was asked for later than the body was, nor where `old` was forgotten.
    pub(crate) fn refresh(&self, key: &Key, ticket: Ticket, stored: &Arc<Stored>, old: &Stored) -> bool {
        let asked = old.ticket.get().map_or(ticket.asked, |of_old| of_old.asked);
        !old.is_gone() && self.insert_over(key, ticket, stored, asked)
    }

    /// Not over what was asked for after `asked`.
    fn insert_over(&self, key: &Key, ticket: Ticket, stored: &Arc<Stored>, asked: Instant) -> bool {
        use moka::ops::compute::{CompResult, Op};
        let now = Instant::now();
        if !self.is_valid(key, ticket, &stored.meta) {
            return false;
        }
        // nobody has it yet: nothing else can have set it
        let _ = stored.ticket.set(ticket);
        let before = self.in_memory(key);
        let result = self.cache.entry(Arc::clone(key)).and_compute_with(|old| {
            let old = old.map(moka::Entry::into_value);
            let others = old.as_deref().unwrap_or_default();
            if others.iter().any(|other| other.is_newer_than(asked, &stored.meta)) {
                return Op::Nop;
            }
            if let Some(disk) = &self.disk {
                disk.forget_older(key);
            }
            let variants = self.list(key, stored, others, now);
            #[cfg(test)]
            self.meanwhile.run(self);
            Op::Put(variants)
        });
        let (CompResult::Inserted(entry) | CompResult::ReplacedWith(entry)) = result else { return false };
        // An invalidation counts up first and removes then: one that came between the check above and the insertion
        // may have removed before it.
        let valid = self.is_valid(key, ticket, &stored.meta);
        if !valid {
            stored.leave();
            self.forget_invalid(key);
        } else if let Some((_, others)) = entry.value().split_first() {
            self.leave_missed(key, before, others);
        }
        valid
    }

    /// A response and those beside it that have a place still.
    fn list(&self, key: &[u8], stored: &Arc<Stored>, others: &[Arc<Stored>], now: Instant) -> Variants {
        // More than this would be dropped at once, or weigh more than a weight can tell.
        let room = usize::try_from(self.options.max_bytes.min(u32::MAX.into())).unwrap_or(usize::MAX);
        let others = others.iter().filter(|other| {
            other.meta.selectors == stored.meta.selectors
                && other.meta.selection != stored.meta.selection
                && other.keep_for(now) > Duration::ZERO
                && !other.is_gone()
        });
        let mut sum = key.len().saturating_add(stored.weight());
        let others = others.take_while(|other| {
            sum = sum.saturating_add(other.weight());
            sum <= room
        });
        std::iter::once(stored).chain(others).take(self.options.max_variants).cloned().collect()
    }

    /// Keeps responses that were asked for before from being stored under a key, or given to who asks from now on.
    pub(crate) fn outrun(&self, key: &[u8]) {
        self.generations.pass(key);
        self.flights.forget(key);
    }

    /// Forgets a key, with what is on its way. Whether there was something.
    pub(crate) fn forget(&self, key: &[u8]) -> bool {
        self.outrun(key);
        self.forget_invalid(key)
    }

    /// Takes a key out of memory. Whether there was something.
    pub(crate) fn remove(&self, key: &[u8]) -> bool {
        let removed = self.cache.remove(key);
        removed.inspect(|variants| variants.iter().for_each(|stored| stored.leave())).is_some()
    }

    /// Forgets what was stored, also where it is on its way between memory and disk. Whether it was in memory.
    pub(crate) fn forget_invalid(&self, key: &[u8]) -> bool {
        // First it can't come back, then it goes.
        self.note_removal(key);
        let found = self.remove(key);
        if let Some(disk) = &self.disk {
            disk.forget(key);
        }
        found
    }

    /// Forgets what is on disk of a key, also where memory is just dropping it: what it writes is of before.
    pub(crate) fn outrun_disk(&self, key: &[u8]) {
        self.note_removal(key);
        if let Some(disk) = &self.disk {
            disk.forget(key);
        }
    }

    fn note_removal(&self, key: &[u8]) {
        // Once in thousands, where no timer does it.
        if self.disk.as_ref().is_some_and(|disk| disk.note(key)) {
            self.run_pending();
        }
    }

    /// Forgets one of the responses of a key, as far as it is still there.
    pub(crate) fn forget_variant(&self, key: &Key, stored: &Arc<Stored>) {
        use moka::ops::compute::{CompResult, Op};
        stored.leave();
        let before = self.in_memory(key);
        let result = self.cache.entry(Arc::clone(key)).and_compute_with(|old| {
            let Some(old) = old.map(moka::Entry::into_value) else { return Op::Nop };
            let rest: Variants = old.iter().filter(|other| !other.is_gone()).cloned().collect();
            #[cfg(test)]
            self.meanwhile.run(self);
            match rest.len() {
                0 => Op::Remove,
                len if len == old.len() => Op::Nop,
                _ => Op::Put(rest),
            }
        });
        if let CompResult::ReplacedWith(entry) = result {
            self.leave_missed(key, before, entry.value());
        }
    }

    /// Memory may have dropped a list while the next one was made of it: a purge in between did not find what was in it. `before` is of before.
    fn leave_missed(&self, key: &[u8], before: Ticket, variants: &[Arc<Stored>]) {
        let passed = self.generations.now(key) != before.generation;
        for stored in variants.iter().filter(|stored| !stored.is_outdated()) {
            let epoch = stored.ticket.get().map_or(0, |ticket| ticket.epoch).max(before.epoch);
            if passed || self.purges.reached(epoch, key, &stored.meta.tags) {
                stored.leave();
            }
        }
    }

    /// To be taken before a request is forwarded.
    pub(crate) fn ticket(&self, key: &[u8]) -> Ticket {
        self.ticket_of(key, self.purges.epoch())
    }

    fn ticket_of(&self, key: &[u8], epoch: u64) -> Ticket {
        let removals = self.disk.as_ref().map_or(0, |disk| disk.now());
        Ticket { generation: self.generations.now(key), epoch, removals, asked: Instant::now() }
    }

    /// What all in memory was found valid by at least.
    fn in_memory(&self, key: &[u8]) -> Ticket {
        self.ticket_of(key, self.purges.finished())
    }

    pub(crate) fn is_valid(&self, key: &[u8], ticket: Ticket, meta: &Meta) -> bool {
        self.generations.now(key) == ticket.generation && !self.purges.reached(ticket.epoch, key, &meta.tags)
    }

    pub(crate) fn hash(&self, key: &[u8]) -> u64 {
        self.generations.hasher.hash_one(key)
    }

    pub(crate) fn run_pending(&self) {
        // What memory was dropping before that is in the disk's queue then.
        let noted = self.disk.as_ref().map(|disk| disk.now());
        self.cache.run_pending_tasks();
        if let Some((disk, noted)) = self.disk.as_ref().zip(noted) {
            disk.tidy(noted);
        }
    }

    pub(crate) fn stats(&self) -> CacheStats {
        let filling = self.filling.load(Ordering::Relaxed);
        let disk = self.disk.as_ref().map(|disk| disk.counts()).unwrap_or_default();
        self.counters.read(self.cache.entry_count(), self.cache.weighted_size(), filling, disk)
    }

    /// Takes so many bytes out of the budget for bodies on their way.
    pub(crate) fn reserve(&self, bytes: u64) -> bool {
        let before = self.filling.fetch_add(bytes, Ordering::Relaxed);
        let fits = before.saturating_add(bytes) <= self.options.max_fill_bytes;
        if !fits {
            self.release(bytes);
        }
        fits
    }

    pub(crate) fn release(&self, bytes: u64) {
        self.filling.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("options", &self.options)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Stored {
    pub(crate) fn new(meta: Meta, body: StoredBody, keep_stale: Duration) -> Self {
        Self {
            meta,
            body,
            keep_stale,
            state: AtomicU8::new(0),
            outdated: OnceLock::new(),
            ticket: OnceLock::new(),
        }
    }

    /// It counts as stale from now on.
    pub(crate) fn outdate(&self) {
        self.outdated.get_or_init(Instant::now);
        self.state.fetch_max(OUTDATED, Ordering::AcqRel);
    }

    pub(crate) fn is_outdated(&self) -> bool {
        self.state.load(Ordering::Acquire) >= OUTDATED
    }

    /// Since when it counts as stale, where it does so by a purge.
    pub(crate) fn outdated_at(&self) -> Option<Instant> {
        self.is_outdated().then(|| self.outdated.get().copied().unwrap_or_else(Instant::now))
    }

    /// Whether it stands where one with this `meta` would, and was asked for after `asked`. One with other selectors would take the place of all.
    fn is_newer_than(&self, asked: Instant, meta: &Meta) -> bool {
        let same = self.meta.selectors != meta.selectors || self.meta.selection == meta.selection;
        same && !self.is_gone() && self.ticket.get().is_some_and(|own| own.asked > asked)
    }

    /// It is forgotten.
    pub(crate) fn leave(&self) {
        self.state.store(GONE, Ordering::Release);
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.state.load(Ordering::Acquire) == GONE
    }

    /// For how long it is of use: while fresh, and then while it can be revalidated or given out stale.
    pub(crate) fn keep_for(&self, now: Instant) -> Duration {
        self.meta.expires_in(now, self.keep_stale)
    }

    fn weight(&self) -> usize {
        let fields: usize =
            self.meta.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum();
        let pieces = self.body.chunks.len() * size_of::<Bytes>() * 2;
        let body = usize::try_from(self.body.len).unwrap_or(usize::MAX);
        (fields + self.meta.selection_bytes() + pieces + OVERHEAD).saturating_add(body)
    }
}

/// The variant that a request's fields select (RFC 9111 section 4.1).
pub(crate) fn select<'a>(variants: &'a Variants, request: &HeaderMap) -> Option<&'a Arc<Stored>> {
    let first = variants.first()?;
    if first.meta.selectors.is_empty() {
        return Some(first).filter(|first| !first.is_gone());
    }
    let values = selection(&first.meta.selectors, request)?;
    variants.iter().find(|stored| *stored.meta.selection == *values.as_slice() && !stored.is_gone())
}

/// RFC 9110 section 9.2.1.
pub(crate) fn is_safe(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE].contains(method)
}

fn weight(key: &Key, variants: &Variants) -> u32 {
    let all = variants.iter().map(|stored| stored.weight()).fold(key.len(), usize::saturating_add);
    u32::try_from(all).unwrap_or(u32::MAX)
}

struct Keep;

fn longest(variants: &Variants, now: Instant) -> Option<Duration> {
    variants.iter().map(|stored| stored.keep_for(now)).max()
}

impl Expiry<Key, Variants> for Keep {
    fn expire_after_create(&self, _: &Key, variants: &Variants, now: Instant) -> Option<Duration> {
        longest(variants, now)
    }

    fn expire_after_update(
        &self,
        _: &Key,
        variants: &Variants,
        now: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        longest(variants, now)
    }
}

#[cfg(test)]
mod tests;
