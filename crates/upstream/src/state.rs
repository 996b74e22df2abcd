//! What is known of one endpoint, shared by all clients of its cluster.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::{
    ClusterOptions, Endpoint, Policy,
    balance::{Load, stable_hash},
    health::{FailureKind, Outlier, jitter},
};

/// One endpoint's health and load.
#[derive(Debug)]
pub(crate) struct EndpointState {
    pub(crate) endpoint: Endpoint,
    /// Its place in the pools, which is another endpoint's only when nothing is left of this one.
    pub(crate) slot: usize,
    slots: Arc<Slots>,
    base: Instant,
    pub(crate) load: Load,
    pub(crate) outlier: Outlier,
    /// What stands for its name in a cookie.
    pub(crate) identity: u64,
    /// Connections open or being made.
    open: AtomicUsize,
    failures: AtomicU64,
    /// What its health checks say.
    healthy: AtomicBool,
    /// Whether it belongs to the cluster no more.
    removed: AtomicBool,
    /// Requests that wait for a place.
    waiting: AtomicUsize,
    /// A place was given back.
    pub(crate) freed: Notify,
}

/// Numbers of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndpointStats {
    /// Its name.
    pub name: Arc<str>,
    /// Whether requests go to it.
    pub healthy: bool,
    /// Requests under way.
    pub busy: usize,
    /// Connections open.
    pub open: usize,
    /// Failures to connect or to answer, and answers that count as such.
    pub failures: u64,
}

/// How long a connection is used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    retire_at: Option<Instant>,
    left: Option<u64>,
}

impl Life {
    pub(crate) fn begin(options: &ClusterOptions) -> Self {
        let retire_at = options.max_age.and_then(|age| {
            // connections that began together do not end together
            Instant::now().checked_add(jitter::at_most(age, jitter::random()))
        });
        Self { retire_at, left: options.max_requests_per_connection }
    }

    /// Counts a request, and says whether it was the last one.
    pub(crate) fn spend(&mut self) -> bool {
        match &mut self.left {
            None => false,
            Some(left) => {
                *left = left.saturating_sub(1);
                *left == 0
            }
        }
    }

    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.left == Some(0) || self.retire_at.is_some_and(|at| at <= now)
    }
}

/// Places in pools, the lowest free one first.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    inner: Mutex<(BTreeSet<usize>, usize)>,
}

impl Slots {
    fn take(&self) -> usize {
        let mut inner = self.inner.lock();
        if let Some(free) = inner.0.pop_first() {
            return free;
        }
        inner.1 += 1;
        inner.1 - 1
    }

    fn give_back(&self, slot: usize) {
        self.inner.lock().0.insert(slot);
    }
}

impl EndpointState {
    pub(crate) fn new(endpoint: Endpoint, slots: &Arc<Slots>, base: Instant) -> Self {
        let load = Load::new(endpoint.weight, Instant::now().into_std());
        let identity = stable_hash(endpoint.name.as_bytes());
        Self {
            endpoint,
            slot: slots.take(),
            slots: Arc::clone(slots),
            base,
            load,
            outlier: Outlier::new(),
            identity,
            open: AtomicUsize::new(0),
            failures: AtomicU64::new(0),
            healthy: AtomicBool::new(true),
            removed: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            freed: Notify::new(),
        }
    }

    fn since_base(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.base)
    }

    pub(crate) fn is_ejected(&self, now: Instant) -> bool {
        self.outlier.was_ejected() && self.outlier.is_ejected(self.since_base(now))
    }

    pub(crate) fn is_available(&self, now: Instant) -> bool {
        self.healthy.load(Ordering::Relaxed) && !self.is_ejected(now)
    }

    pub(crate) fn set_healthy(&self, healthy: bool) -> bool {
        let changed = self.healthy.swap(healthy, Ordering::Relaxed) != healthy;
        if changed && healthy {
            self.load.became_available(Instant::now().into_std());
        }
        changed
    }

    pub(crate) fn remove(&self) {
        self.removed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    pub(crate) fn count_busy(&self, busy: bool) {
        if busy {
            self.load.begin();
        } else {
            self.load.end();
        }
    }

    /// Takes a place for one connection, if one is free.
    pub(crate) fn take_place(&self, max: usize) -> bool {
        let taken = self.open.fetch_add(1, Ordering::Relaxed) < max;
        if !taken {
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
        taken
    }

    /// Whether requests of any client wait for a place: what is idle stands in their way.
    pub(crate) fn has_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Waits for a place until it is dropped.
    pub(crate) fn wait(&self) -> impl Drop + '_ {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(&self.waiting)
    }

    /// A request is on its way to a connection there, until it is dropped.
    pub(crate) fn approach(&self) -> impl Drop + '_ {
        struct Approaching<'a>(&'a Load);
        impl Drop for Approaching<'_> {
            fn drop(&mut self) {
                self.0.end();
            }
        }
        self.load.begin();
        Approaching(&self.load)
    }

    /// Whether all places are taken.
    pub(crate) fn is_full(&self, max: usize) -> bool {
        self.open.load(Ordering::Relaxed) >= max
    }

    pub(crate) fn release_place(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.freed.notify_one();
    }

    /// A request failed there. Returns for how long it is ejected, if it is that now; `ejected` counts the endpoints that are, and all.
    pub(crate) fn failed(
        &self,
        kind: FailureKind,
        options: &ClusterOptions,
        ejected: impl FnOnce(Instant) -> (usize, usize),
    ) -> Option<Duration> {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        if options.balance.policy == Policy::PeakEwma {
            self.load.penalise(now.into_std());
        }
        let ejected = || ejected(now);
        let time = self.outlier.on_failure(kind, self.since_base(now), &options.outlier, ejected)?;
        self.load.became_available((now + time.min(crate::FOREVER)).into_std());
        Some(time)
    }

    pub(crate) fn stats(&self) -> EndpointStats {
        EndpointStats {
            name: Arc::clone(&self.endpoint.name),
            healthy: self.is_available(Instant::now()),
            busy: self.load.busy(),
            open: self.open.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }
}

impl Drop for EndpointState {
    fn drop(&mut self) {
        self.slots.give_back(self.slot);
    }
}

/// A place at an endpoint that is given back unless it is kept.
#[derive(Debug)]
pub(crate) struct Place(Option<Arc<EndpointState>>);

impl Place {
    /// Of a place that was taken.
    pub(crate) fn taken(state: Arc<EndpointState>) -> Self {
        Self(Some(state))
    }

    /// Whoever calls gives it back by itself.
    pub(crate) fn keep(mut self) -> Arc<EndpointState> {
        self.0.take().expect("it is taken out here alone, and `self` is gone after it")
    }

    pub(crate) fn endpoint(&self) -> Option<&Arc<EndpointState>> {
        self.0.as_ref()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(state) = &self.0 {
            state.release_place();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OutlierOptions;

    fn state() -> EndpointState {
        EndpointState::new("10.0.0.1:80".parse().unwrap(), &Arc::default(), Instant::now())
    }

    #[tokio::test]
    async fn a_failing_endpoint_is_left_alone_and_returns() {
        let state = state();
        let options = ClusterOptions::default().with_outlier(
            OutlierOptions::default()
                .with_consecutive_failures(2)
                .with_base_ejection(Duration::from_secs(100)),
        );
        let failed = || state.failed(FailureKind::Connection, &options, |_| (0, 2));
        assert!(failed().is_none());
        let time = failed().unwrap();
        assert!(failed().is_none(), "it is ejected already");
        assert!(!state.is_available(Instant::now()) && !state.stats().healthy);
        assert!(state.is_available(Instant::now() + time));
        state.outlier.reset();
        assert!(state.is_available(Instant::now()));
        assert!(state.set_healthy(false) && !state.set_healthy(false));
        assert!(!state.is_available(Instant::now()));
    }

    #[test]
    fn places_are_bounded() {
        let state = Arc::new(state());
        assert!(state.take_place(1) && !state.take_place(1) && state.is_full(1));
        drop(Place::taken(Arc::clone(&state)));
        assert!(state.take_place(1));
        let _ = Place::taken(Arc::clone(&state)).keep();
        assert!(state.is_full(1));
    }

    #[test]
    fn slots_are_used_again() {
        let slots = Arc::new(Slots::default());
        let new = |name: &str| EndpointState::new(name.parse().unwrap(), &slots, Instant::now());
        let (a, b, c) = (new("a:1"), new("b:1"), new("c:1"));
        assert_eq!((a.slot, b.slot, c.slot), (0, 1, 2));
        drop(b);
        assert_eq!(new("d:1").slot, 1);
        drop((a, c));
    }

    #[tokio::test(start_paused = true)]
    async fn a_life_ends_by_age_or_by_use() {
        let options = ClusterOptions::default().with_max_age(Some(Duration::from_secs(100)));
        let life = Life::begin(&options);
        assert!(!life.is_over(Instant::now() + Duration::from_secs(89)));
        assert!(life.is_over(Instant::now() + Duration::from_secs(100)));
        let mut life = Life::begin(&ClusterOptions::default().with_max_requests_per_connection(Some(2)));
        assert!(!life.spend() && life.spend() && life.is_over(Instant::now()));
        assert!(
            !Life::begin(&ClusterOptions::default()).is_over(Instant::now() + Duration::from_secs(1 << 30))
        );
    }
}
