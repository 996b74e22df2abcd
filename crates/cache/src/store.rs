//! What is stored, bounded by weight and by time.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Method};
use moka::{Expiry, sync::Cache};

use crate::{
    options::CacheOptions,
    rules::Meta,
    stats::{CacheStats, Counters, count},
};

/// A stored response.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) meta: Meta,
    pub(crate) body: Bytes,
}

/// The responses of one key, the newest first.
pub(crate) type Variants = Arc<[Arc<Stored>]>;

/// Keys share these counters by hash; a collision only keeps one response from being stored.
const GENERATIONS: usize = 1024;

/// Beside keys, fields and bodies: the tables' entries, timers and allocations of one variant.
const OVERHEAD: usize = 512;

/// What all clones of a layer share.
pub(crate) struct Shared {
    cache: Cache<String, Variants>,
    pub(crate) options: CacheOptions,
    pub(crate) counters: Counters,
    filling: AtomicU64,
    hasher: RandomState,
    generations: Box<[AtomicU32]>,
}

impl Shared {
    pub(crate) fn new(options: CacheOptions) -> Self {
        let options = options.bounded();
        let cache = Cache::builder()
            .max_capacity(options.max_bytes)
            .weigher(weight)
            .expire_after(Keep { stale: options.keep_stale })
            .build();
        Self {
            cache,
            options,
            counters: Counters::default(),
            filling: AtomicU64::new(0),
            hasher: RandomState::new(),
            generations: (0..GENERATIONS).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<Variants> {
        self.cache.get(key)
    }

    /// Stores a response, unless its key was invalidated since `generation` was read.
    pub(crate) fn insert(&self, key: &str, generation: u32, stored: Stored) {
        let place = self.generation_of(key);
        let now = Instant::now();
        let max = self.options.max_variants;
        let stored = Arc::new(stored);
        if place.load(Ordering::Acquire) != generation {
            return;
        }
        let _ = self.cache.entry_by_ref(key).and_upsert_with(|old| {
            let old = old.map(moka::Entry::into_value);
            let others = old.iter().flat_map(|variants| variants.iter()).filter(|other| {
                other.meta.varies_like(&stored.meta)
                    && !other.meta.same_selection(&stored.meta)
                    && other.keep_for(self.options.keep_stale, now) > Duration::ZERO
            });
            std::iter::once(&stored).chain(others).take(max).cloned().collect()
        });
        // An invalidation counts up first and removes then: one that came between the check above and the insertion
        // may have removed before it.
        if place.load(Ordering::Acquire) != generation {
            self.cache.invalidate(key);
        }
    }

    /// Forgets a key, and keeps responses that were asked for before from being stored under it.
    pub(crate) fn invalidate(&self, key: &str) {
        self.generation_of(key).fetch_add(1, Ordering::AcqRel);
        self.cache.invalidate(key);
    }

    /// To be read before a request is forwarded.
    pub(crate) fn generation(&self, key: &str) -> u32 {
        self.generation_of(key).load(Ordering::Acquire)
    }

    fn generation_of(&self, key: &str) -> &AtomicU32 {
        let hash = self.hasher.hash_one(key) % GENERATIONS as u64;
        &self.generations[usize::try_from(hash).unwrap_or(0)]
    }

    pub(crate) fn clear(&self) {
        for generation in &self.generations {
            generation.fetch_add(1, Ordering::AcqRel);
        }
        self.cache.invalidate_all();
    }

    pub(crate) fn run_pending(&self) {
        self.cache.run_pending_tasks();
    }

    pub(crate) fn stats(&self) -> CacheStats {
        self.counters.read(self.cache.entry_count(), self.cache.weighted_size())
    }

    /// Takes so many bytes out of the budget for bodies being copied.
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

    pub(crate) fn abandon(&self) {
        count(&self.counters.abandoned);
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
    /// For how long it is of use: while fresh, and then while it can be revalidated.
    fn keep_for(&self, stale: Duration, now: Instant) -> Duration {
        let stale = if self.meta.has_validator() { stale } else { Duration::ZERO };
        self.meta.expires_in(now, stale)
    }
}

/// The variant that a request's fields select; of several the newest (RFC 9111 section 4.1).
pub(crate) fn select<'a>(variants: &'a Variants, request: &HeaderMap) -> Option<&'a Arc<Stored>> {
    variants.iter().find(|stored| stored.meta.selected_by(request))
}

/// RFC 9110 section 9.2.1.
pub(crate) fn is_safe(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE].contains(method)
}

#[allow(clippy::ptr_arg, reason = "moka gives the key as it is stored")]
fn weight(key: &String, variants: &Variants) -> u32 {
    let one = |stored: &Arc<Stored>| {
        let fields: usize =
            stored.meta.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum();
        fields + stored.meta.selection_bytes() + stored.body.len() + OVERHEAD
    };
    let all = key.len() + variants.iter().map(one).sum::<usize>();
    u32::try_from(all).unwrap_or(u32::MAX)
}

struct Keep {
    stale: Duration,
}

impl Keep {
    fn longest(&self, variants: &Variants, now: Instant) -> Option<Duration> {
        variants.iter().map(|stored| stored.keep_for(self.stale, now)).max()
    }
}

impl Expiry<String, Variants> for Keep {
    fn expire_after_create(&self, _: &String, variants: &Variants, now: Instant) -> Option<Duration> {
        self.longest(variants, now)
    }

    fn expire_after_update(
        &self,
        _: &String,
        variants: &Variants,
        now: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.longest(variants, now)
    }
}
