//! Places, and who waits for one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::Instant};

use super::{AdaptiveOptions, adaptive::Adaptive};

/// How many requests run at once, and what becomes of more.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConcurrencyOptions {
    /// How many run at once. At least 1.
    pub max: usize,
    /// How many more wait for a place, in the order in which they came; what comes beyond is refused at once. Each holds its head and what of its
    /// body was read. Default 100.
    pub queue: usize,
    /// How long one waits before it is refused. Default 1 s: who waits longer has often gone.
    pub wait: Duration,
    /// What a refused client is told to wait before it comes again (`Retry-After`, in whole seconds, rounded up). Default 1 s.
    pub retry_after: Duration,
    /// Lets the limit follow latency, between a minimum and `max`. Default `None`: it is `max`.
    pub adaptive: Option<AdaptiveOptions>,
}

impl ConcurrencyOptions {
    /// So many at once.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            queue: 100,
            wait: Duration::from_secs(1),
            retry_after: Duration::from_secs(1),
            adaptive: None,
        }
    }

    /// Sets [`ConcurrencyOptions::queue`].
    #[must_use]
    pub fn with_queue(mut self, queue: usize) -> Self {
        self.queue = queue;
        self
    }

    /// Sets [`ConcurrencyOptions::wait`].
    #[must_use]
    pub fn with_wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Sets [`ConcurrencyOptions::retry_after`].
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Duration) -> Self {
        self.retry_after = retry_after;
        self
    }

    /// Sets [`ConcurrencyOptions::adaptive`].
    #[must_use]
    pub fn with_adaptive(mut self, adaptive: Option<AdaptiveOptions>) -> Self {
        self.adaptive = adaptive;
        self
    }

    fn most(&self) -> usize {
        self.max.clamp(1, Semaphore::MAX_PERMITS)
    }
}

/// Counters of a [`ConcurrencyLimit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConcurrencyStats {
    /// How many may run at once now.
    pub limit: usize,
    /// How many run.
    pub running: usize,
    /// How many wait.
    pub waiting: usize,
    /// How many were refused since the beginning, at once or after they had waited.
    pub refused: u64,
}

/// The places of a service. Clones are the same places, for all threads.
#[derive(Clone, Debug)]
pub struct ConcurrencyLimit {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    places: Semaphore,
    /// Places to take away as they become free, since the limit went down while they were in use.
    debt: AtomicUsize,
    running: AtomicUsize,
    waiting: AtomicUsize,
    refused: AtomicU64,
    now: Mutex<Now>,
    /// Whether `adaptive` is there, told without its lock.
    is_adaptive: AtomicBool,
    adaptive: Mutex<Option<Adaptive>>,
}

#[derive(Debug)]
struct Now {
    options: ConcurrencyOptions,
    limit: usize,
}

impl ConcurrencyLimit {
    /// As the options say.
    pub fn new(options: ConcurrencyOptions) -> Self {
        let limit = options.most();
        let adaptive = adaptive(&options);
        let shared = Shared {
            places: Semaphore::new(limit),
            debt: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            now: Mutex::new(Now { options, limit }),
            is_adaptive: AtomicBool::new(adaptive.is_some()),
            adaptive: Mutex::new(adaptive),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Other options from now on. With a lower limit those that run go on, and nobody follows them until there are few enough.
    pub fn set(&self, options: ConcurrencyOptions) {
        let mut adaptive = self.shared.adaptive.lock();
        let mut now = self.shared.now.lock();
        if (options.max, &options.adaptive) != (now.options.max, &now.options.adaptive) {
            *adaptive = self::adaptive(&options);
            self.shared.is_adaptive.store(adaptive.is_some(), Ordering::Relaxed);
            self.shared.resize(&mut now, options.most());
        }
        now.options = options;
    }

    /// The counters, each read by itself.
    pub fn stats(&self) -> ConcurrencyStats {
        ConcurrencyStats {
            limit: self.shared.now.lock().limit,
            running: self.shared.running.load(Ordering::Relaxed),
            waiting: self.shared.waiting.load(Ordering::Relaxed),
            refused: self.shared.refused.load(Ordering::Relaxed),
        }
    }

    /// A place, if one is free and nobody waits for it.
    pub(super) fn try_take(&self) -> Option<Permit> {
        // whoever waits is given a place as it becomes free, so nobody who comes later finds it here
        self.shared.places.try_acquire().ok()?.forget();
        Some(self.taken())
    }

    fn taken(&self) -> Permit {
        self.shared.running.fetch_add(1, Ordering::Relaxed);
        Permit { shared: Arc::clone(&self.shared) }
    }

    /// A place in the queue, with the time that one may wait; `None` where it is full.
    pub(super) fn queue(&self) -> Option<(Waiting, Duration)> {
        let (most, wait) = {
            let now = self.shared.now.lock();
            (now.options.queue, now.options.wait)
        };
        let one_more = |waiting: usize| (waiting < most).then(|| waiting + 1);
        self.shared.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some((Waiting { shared: Arc::clone(&self.shared) }, wait))
    }

    /// Waits for a place.
    pub(super) async fn take(self) -> Option<Permit> {
        // nobody closes it
        self.shared.places.acquire().await.ok()?.forget();
        Some(self.taken())
    }

    /// Counts a refusal, and says when to come again.
    pub(super) fn refuse(&self) -> Duration {
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
        self.shared.now.lock().options.retry_after
    }
}

fn adaptive(options: &ConcurrencyOptions) -> Option<Adaptive> {
    options.adaptive.map(|adaptive| Adaptive::new(adaptive, options.most(), Instant::now()))
}

impl Shared {
    fn resize(&self, now: &mut Now, limit: usize) {
        let before = std::mem::replace(&mut now.limit, limit);
        if limit > before {
            // places that were to be taken away stay instead
            let more = limit - before;
            let kept = self.debt.fetch_update(Ordering::AcqRel, Ordering::Acquire, |debt| {
                (debt > 0).then(|| debt.saturating_sub(more))
            });
            self.places.add_permits(more - kept.map_or(0, |debt| debt.min(more)));
        } else {
            let fewer = before - limit;
            let owed = fewer - self.places.forget_permits(fewer);
            self.debt.fetch_add(owed, Ordering::AcqRel);
        }
    }

    fn free(&self) {
        self.running.fetch_sub(1, Ordering::Relaxed);
        let paid =
            self.debt.fetch_update(Ordering::AcqRel, Ordering::Acquire, |debt| debt.checked_sub(1)).is_ok();
        if !paid {
            self.places.add_permits(1);
        }
    }

    fn sample(&self, latency: Duration, given_up: bool) {
        // a sample less does no harm; waiting for the lock would
        let Some(mut adaptive) = self.adaptive.try_lock() else { return };
        let Some(inner) = adaptive.as_mut() else { return };
        if given_up && !inner.is_slow(latency) {
            return;
        }
        let running = self.running.load(Ordering::Relaxed);
        if let Some(limit) = inner.sample(Instant::now(), latency, running) {
            self.resize(&mut self.now.lock(), limit);
        }
    }
}

/// A place that is taken; free again when this is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    shared: Arc<Shared>,
}

impl Permit {
    /// When the request begins, where somebody wants to know how long it takes.
    pub(super) fn begins(&self) -> Option<Instant> {
        self.shared.is_adaptive.load(Ordering::Relaxed).then(Instant::now)
    }

    /// How long the response took, or for how long it was waited in vain.
    pub(super) fn sample(&self, latency: Duration, given_up: bool) {
        self.shared.sample(latency, given_up);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shared.free();
    }
}

/// Somebody who waits; counted until this is dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    shared: Arc<Shared>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(limit: &ConcurrencyLimit) -> Vec<Permit> {
        std::iter::from_fn(|| limit.try_take()).collect()
    }

    #[test]
    fn the_limit_changes_while_places_are_taken() {
        let limit = ConcurrencyLimit::new(ConcurrencyOptions::new(4));
        let mut permits = taken(&limit);
        assert_eq!(permits.len(), 4);
        limit.set(ConcurrencyOptions::new(2));
        permits.pop();
        permits.pop();
        // two were given back for good
        assert!(limit.try_take().is_none());
        permits.pop();
        permits.extend(limit.try_take());
        assert_eq!((permits.len(), limit.stats().running, limit.stats().limit), (2, 2, 2));
        limit.set(ConcurrencyOptions::new(1));
        limit.set(ConcurrencyOptions::new(3));
        permits.extend(taken(&limit));
        assert_eq!(permits.len(), 3);
        drop(permits);
        assert_eq!(taken(&limit).len(), 3);
        assert_eq!(limit.stats().running, 0);
    }

    #[test]
    fn any_order_of_changes_ends_with_the_limit() {
        use proptest::prelude::*;
        let steps = proptest::collection::vec((0..3_u8, 1..6_usize), 0..60);
        proptest!(|(steps in steps)| {
            let limit = ConcurrencyLimit::new(ConcurrencyOptions::new(3));
            let (mut held, mut max) = (Vec::new(), 3);
            for (what, n) in steps {
                match what {
                    0 => held.extend(limit.try_take()),
                    1 => { held.pop(); }
                    _ => { limit.set(ConcurrencyOptions::new(n)); max = n; }
                }
            }
            drop(held);
            prop_assert_eq!(taken(&limit).len(), max);
        });
    }

    #[test]
    fn nobody_looks_at_the_clock_for_a_limit_that_stays() {
        let plain = || ConcurrencyOptions::new(2);
        let limit = ConcurrencyLimit::new(plain());
        let permit = limit.try_take().unwrap();
        assert_eq!(permit.begins(), None);
        limit.set(plain().with_adaptive(Some(AdaptiveOptions::default())));
        assert!(permit.begins().is_some());
        limit.set(plain());
        assert_eq!(permit.begins(), None);
        let adaptive = ConcurrencyLimit::new(plain().with_adaptive(Some(AdaptiveOptions::default())));
        assert!(adaptive.try_take().unwrap().begins().is_some());
    }

    #[test]
    fn the_queue_is_bounded() {
        let limit = ConcurrencyLimit::new(ConcurrencyOptions::new(1).with_queue(2));
        let one = limit.queue();
        let two = limit.queue();
        assert!(limit.queue().is_none());
        assert_eq!(limit.stats().waiting, 2);
        drop((one, two));
        assert_eq!(limit.stats().waiting, 0);
        limit.set(ConcurrencyOptions::new(1).with_queue(0));
        assert!(limit.queue().is_none());
    }
}
