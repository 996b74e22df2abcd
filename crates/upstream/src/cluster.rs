//! The endpoints of a cluster and how well each of them does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{Client, ClusterOptions, Endpoint, TcpConnector};

/// Endpoints that answer for one another. Cheap to clone; clones share everything.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) name: Arc<str>,
    pub(crate) options: ClusterOptions,
    pub(crate) endpoints: Vec<Arc<EndpointState>>,
    next: AtomicUsize,
    requests: AtomicU64,
    retries: AtomicU64,
    errors: AtomicU64,
}

/// One endpoint's health and load, shared by all clients.
#[derive(Debug)]
pub(crate) struct EndpointState {
    pub(crate) endpoint: Endpoint,
    base: Instant,
    /// Failures in a row.
    fails: AtomicU32,
    /// Milliseconds after `base` until which it is left alone.
    down_until: AtomicU64,
    /// Requests under way.
    busy: AtomicUsize,
    /// Connections open or being made.
    open: AtomicUsize,
    failures: AtomicU64,
}

/// A cluster that can not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// No endpoint was given.
    #[error("cluster `{0}` has no endpoints")]
    Empty(String),
    /// The same endpoint was given twice.
    #[error("cluster `{cluster}` names endpoint {endpoint} twice")]
    Duplicate {
        /// The cluster.
        cluster: String,
        /// The endpoint.
        endpoint: String,
    },
}

impl Cluster {
    /// A cluster of these endpoints.
    pub fn new(
        name: impl Into<Arc<str>>,
        endpoints: Vec<Endpoint>,
        options: ClusterOptions,
    ) -> Result<Self, ClusterError> {
        let name = name.into();
        if endpoints.is_empty() {
            return Err(ClusterError::Empty(name.to_string()));
        }
        if let Some((_, twice)) = endpoints
            .iter()
            .enumerate()
            .find(|(at, one)| endpoints[..*at].iter().any(|other| other.name == one.name))
        {
            return Err(ClusterError::Duplicate { cluster: name.to_string(), endpoint: twice.to_string() });
        }
        let base = Instant::now();
        let endpoints =
            endpoints.into_iter().map(|endpoint| Arc::new(EndpointState::new(endpoint, base))).collect();
        Ok(Self {
            shared: Arc::new(Shared {
                name,
                options,
                endpoints,
                next: AtomicUsize::new(0),
                requests: AtomicU64::new(0),
                retries: AtomicU64::new(0),
                errors: AtomicU64::new(0),
            }),
        })
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.shared.name
    }

    /// A client over TCP with a pool of its own. Make one per runtime.
    pub fn client(&self) -> Client<TcpConnector> {
        self.client_with(TcpConnector)
    }

    /// A client with another way to connect: a `tower` service from [`crate::Address`] to a byte stream.
    pub fn client_with<C>(&self, connector: C) -> Client<C>
    where
        C: tower_service::Service<crate::Address>,
    {
        Client::new(self.clone(), connector)
    }

    /// What happened so far, and what is going on.
    pub fn stats(&self) -> ClusterStats {
        ClusterStats {
            requests: self.shared.requests.load(Ordering::Relaxed),
            retries: self.shared.retries.load(Ordering::Relaxed),
            errors: self.shared.errors.load(Ordering::Relaxed),
            endpoints: self.shared.endpoints.iter().map(|endpoint| endpoint.stats()).collect(),
        }
    }
}

/// Numbers of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterStats {
    /// Requests taken.
    pub requests: u64,
    /// Attempts beyond each request's first.
    pub retries: u64,
    /// Requests that ended in an error.
    pub errors: u64,
    /// Its endpoints, in their order.
    pub endpoints: Vec<EndpointStats>,
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
    /// Failures to connect or to answer.
    pub failures: u64,
}

impl Shared {
    pub(crate) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// The endpoint for the next attempt: the next two healthy ones in turn, and of them the one with fewer requests
    /// under way. Endpoints in `tried` (a bit each) come only when nothing else is left. When all are left alone,
    /// all are candidates: an answer from a doubtful endpoint is better than none.
    pub(crate) fn pick(&self, tried: u64) -> usize {
        let count = self.endpoints.len();
        if count == 1 {
            return 0;
        }
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let now = self.endpoints[0].now();
        let rotation = || (0..count).map(|step| first.wrapping_add(step) % count);
        let untried = |index: &usize| tried & bit(*index) == 0;
        let mut healthy = rotation().filter(untried).filter(|index| self.endpoints[*index].is_healthy(now));
        match (healthy.next(), healthy.next()) {
            (Some(a), Some(b)) => {
                if self.endpoints[b].busy() < self.endpoints[a].busy() {
                    b
                } else {
                    a
                }
            }
            (Some(a), None) => a,
            (None, _) => rotation().find(untried).unwrap_or(first % count),
        }
    }
}

/// Clusters of more than 64 endpoints remember tried ones modulo 64: at worst an untried one is passed over.
pub(crate) fn bit(index: usize) -> u64 {
    1 << (index & 63)
}

impl EndpointState {
    fn new(endpoint: Endpoint, base: Instant) -> Self {
        Self {
            endpoint,
            base,
            fails: AtomicU32::new(0),
            down_until: AtomicU64::new(0),
            busy: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            failures: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_healthy(&self, now: u64) -> bool {
        self.down_until.load(Ordering::Relaxed) <= now
    }

    pub(crate) fn busy(&self) -> usize {
        self.busy.load(Ordering::Relaxed)
    }

    pub(crate) fn count_busy(&self, busy: bool) {
        if busy {
            self.busy.fetch_add(1, Ordering::Relaxed);
        } else {
            self.busy.fetch_sub(1, Ordering::Relaxed);
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

    /// Whether all places are taken.
    pub(crate) fn is_full(&self, max: usize) -> bool {
        self.open.load(Ordering::Relaxed) >= max
    }

    pub(crate) fn release_place(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// It answered.
    pub(crate) fn succeeded(&self) {
        // a load first: the line stays shared between cores while all is well
        if self.fails.load(Ordering::Relaxed) != 0 {
            self.fails.store(0, Ordering::Relaxed);
            self.down_until.store(0, Ordering::Relaxed);
        }
    }

    /// It could not be reached or did not answer. Returns whether it is now left alone that was not before.
    pub(crate) fn failed(&self, max_fails: u32, fail_timeout: Duration) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed);
        if max_fails == 0 {
            return false;
        }
        let fails = self.fails.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if fails < max_fails {
            return false;
        }
        let now = self.now();
        let was_healthy = self.is_healthy(now);
        let pause = u64::try_from(fail_timeout.as_millis()).unwrap_or(u64::MAX);
        self.down_until.store(now.saturating_add(pause), Ordering::Relaxed);
        was_healthy
    }

    fn stats(&self) -> EndpointStats {
        EndpointStats {
            name: Arc::clone(&self.endpoint.name),
            healthy: self.is_healthy(self.now()),
            busy: self.busy(),
            open: self.open.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(count: usize) -> Cluster {
        let endpoints = (0..count).map(|n| format!("10.0.0.{}:80", n + 1).parse().unwrap()).collect();
        Cluster::new("test", endpoints, ClusterOptions::default()).unwrap()
    }

    #[test]
    fn contradictions_are_refused() {
        assert_eq!(
            Cluster::new("a", vec![], ClusterOptions::default()).unwrap_err(),
            ClusterError::Empty("a".to_owned())
        );
        let one: Endpoint = "10.0.0.1:80".parse().unwrap();
        assert!(Cluster::new("a", vec![one.clone(), one], ClusterOptions::default()).is_err());
    }

    #[test]
    fn an_idle_cluster_is_used_in_turn() {
        let cluster = cluster(3);
        let mut counts = [0; 3];
        for _ in 0..300 {
            counts[cluster.shared.pick(0)] += 1;
        }
        assert_eq!(counts, [100, 100, 100]);
    }

    #[test]
    fn the_busier_of_two_is_passed_over() {
        let cluster = cluster(2);
        cluster.shared.endpoints[0].count_busy(true);
        assert!((0..10).all(|_| cluster.shared.pick(0) == 1));
    }

    #[test]
    fn a_failing_endpoint_is_left_alone_and_returns() {
        let cluster = cluster(2);
        let state = &cluster.shared.endpoints[0];
        assert!(state.failed(1, Duration::from_secs(100)));
        assert!(!state.failed(1, Duration::from_secs(100)));
        assert!((0..10).all(|_| cluster.shared.pick(0) == 1));
        assert!(!cluster.stats().endpoints[0].healthy);
        // tried and alone: the doubtful one gets its chance
        assert_eq!(cluster.shared.pick(bit(1)), 0);
        state.succeeded();
        assert!((0..10).any(|_| cluster.shared.pick(0) == 0));
    }

    #[test]
    fn failures_in_a_row_count() {
        let cluster = cluster(2);
        let state = &cluster.shared.endpoints[0];
        for _ in 0..5 {
            assert!(!state.failed(2, Duration::from_secs(9)));
            state.succeeded();
        }
        assert!(!state.failed(0, Duration::from_secs(9)));
    }

    #[test]
    fn places_are_bounded() {
        let cluster = cluster(1);
        let state = &cluster.shared.endpoints[0];
        assert!(state.take_place(1));
        assert!(!state.take_place(1));
        state.release_place();
        assert!(state.take_place(1));
    }
}
