//! The endpoints of a cluster, and what all its clients share.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use http::StatusCode;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use tracing::{info, warn};

use crate::{
    BalanceOptions, Client, ClusterOptions, Connector, Destination, Endpoint, EndpointStats, Error,
    balance::{Ask, Endpoints, Load, Member, Table, Tried},
    health::{FailureKind, Target},
    retry::Budget,
    state::{EndpointState, Slots},
};

/// Endpoints that answer for one another. Cheap to clone; clones share everything.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) name: Arc<str>,
    pub(crate) options: ClusterOptions,
    set: ArcSwap<Set>,
    /// Held while the set is replaced.
    replacing: Mutex<()>,
    slots: Arc<Slots>,
    base: Instant,
    budget: Budget,
    /// Told when endpoints were removed.
    pub(crate) changed: Notify,
    /// Whether there was ever a list of endpoints, and who is told of the first.
    listed: AtomicBool,
    first_list: Notify,
    active: AtomicUsize,
    pending: AtomicUsize,
    requests: AtomicU64,
    retries: AtomicU64,
    hedges: AtomicU64,
    errors: AtomicU64,
    overloads: AtomicU64,
    ejections: AtomicU64,
}

/// The endpoints at one time.
#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) endpoints: Vec<Arc<EndpointState>>,
    /// Where each is, by what stands for it in a cookie.
    by_identity: HashMap<u64, usize>,
    table: Table,
}

impl Endpoints for Set {
    fn load(&self, index: usize) -> &Load {
        &self.endpoints[index].load
    }

    fn is_available(&self, index: usize, now: std::time::Instant) -> bool {
        self.endpoints[index].is_available(now.into())
    }
}

impl Set {
    fn new(endpoints: Vec<Arc<EndpointState>>, options: &BalanceOptions) -> Self {
        let member = |state: &Arc<EndpointState>| Member {
            name: Arc::clone(&state.endpoint.name),
            weight: state.endpoint.weight,
            priority: state.endpoint.priority,
            zone: state.endpoint.zone.clone(),
        };
        let table = Table::new(options, &endpoints.iter().map(member).collect::<Vec<_>>());
        let by_identity =
            endpoints.iter().enumerate().map(|(index, state)| (state.identity, index)).collect();
        Self { endpoints, by_identity, table }
    }

    fn pick(&self, wish: &Wish, tried: &Tried) -> Option<usize> {
        if let Some(identity) = wish.identity
            && let Some(&index) = self.by_identity.get(&identity)
            && !tried.contains(index)
            && self.endpoints[index].is_available(Instant::now())
        {
            return Some(index);
        }
        if self.endpoints.len() == 1 {
            return Some(0);
        }
        self.table.pick(self, Instant::now().into_std(), &Ask { hash: wish.hash, tried })
    }
}

/// What a request wishes of a pick.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wish {
    /// The hash of what a hashing policy goes by.
    pub(crate) hash: Option<u64>,
    /// The endpoint that it was at before.
    pub(crate) identity: Option<u64>,
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
    ///
    /// # Errors
    /// Without endpoints, and when one is there twice.
    pub fn new(
        name: impl Into<Arc<str>>,
        endpoints: Vec<Endpoint>,
        options: ClusterOptions,
    ) -> Result<Self, ClusterError> {
        let cluster = Self::discovered(name, options);
        if endpoints.is_empty() {
            return Err(ClusterError::Empty(cluster.name().to_string()));
        }
        cluster.replace_endpoints(endpoints)?;
        Ok(cluster)
    }

    /// A cluster whose endpoints come later, by [`Cluster::replace_endpoints`]. Until then requests wait for them, as many as
    /// [`ClusterOptions::max_pending`] and each for [`ClusterOptions::queue_timeout`]; then they fail with [`Error::NoEndpoint`].
    pub fn discovered(name: impl Into<Arc<str>>, options: ClusterOptions) -> Self {
        let base = Instant::now();
        Self {
            shared: Arc::new(Shared {
                name: name.into(),
                set: ArcSwap::from_pointee(Set::new(Vec::new(), &options.balance)),
                options,
                replacing: Mutex::new(()),
                slots: Arc::default(),
                base,
                budget: Budget::new(base),
                changed: Notify::new(),
                listed: AtomicBool::new(false),
                first_list: Notify::new(),
                active: AtomicUsize::new(0),
                pending: AtomicUsize::new(0),
                requests: AtomicU64::new(0),
                retries: AtomicU64::new(0),
                hedges: AtomicU64::new(0),
                errors: AtomicU64::new(0),
                overloads: AtomicU64::new(0),
                ejections: AtomicU64::new(0),
            }),
        }
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.shared.name
    }

    /// Its options.
    pub fn options(&self) -> &ClusterOptions {
        &self.shared.options
    }

    /// Makes these its endpoints. Those that stay keep their connections and what is known of them; of those that go, requests under way run to
    /// their end and idle connections are closed. An empty list is allowed.
    ///
    /// # Errors
    /// When an endpoint is there twice: nothing changes then.
    pub fn replace_endpoints(&self, endpoints: Vec<Endpoint>) -> Result<(), ClusterError> {
        let shared = &self.shared;
        let mut seen = HashSet::new();
        if let Some(twice) = endpoints.iter().find(|endpoint| !seen.insert(&*endpoint.name)) {
            let endpoint = twice.to_string();
            return Err(ClusterError::Duplicate { cluster: shared.name.to_string(), endpoint });
        }
        let _one = shared.replacing.lock();
        let before = shared.set.load_full();
        let known: HashMap<&str, &Arc<EndpointState>> =
            before.endpoints.iter().map(|state| (&*state.endpoint.name, state)).collect();
        let after: Vec<_> = endpoints
            .into_iter()
            .map(|endpoint| match known.get(&*endpoint.name) {
                Some(state) if state.endpoint == endpoint => Arc::clone(state),
                _ => {
                    let state = EndpointState::new(endpoint, &shared.slots, shared.base);
                    // one that joins others starts slowly
                    if !before.endpoints.is_empty() {
                        state.load.became_available(Instant::now().into_std());
                    }
                    Arc::new(state)
                }
            })
            .collect();
        let stay: HashSet<_> = after.iter().map(Arc::as_ptr).collect();
        let gone: Vec<_> =
            before.endpoints.iter().filter(|state| !stay.contains(&Arc::as_ptr(state))).cloned().collect();
        shared.set.store(Arc::new(Set::new(after, &shared.options.balance)));
        if !shared.listed.swap(true, Ordering::AcqRel) {
            shared.first_list.notify_waiters();
        }
        for state in &gone {
            state.remove();
            info!(cluster = %shared.name, endpoint = %state.endpoint, "endpoint removed");
        }
        if !gone.is_empty() {
            shared.changed.notify_waiters();
        }
        Ok(())
    }

    /// Its endpoints now.
    pub fn endpoints(&self) -> Vec<EndpointHandle> {
        let handle = |state: &Arc<EndpointState>| EndpointHandle {
            state: Arc::clone(state),
            cluster: Arc::clone(&self.shared.name),
        };
        self.shared.set.load().endpoints.iter().map(handle).collect()
    }

    /// A client over TCP and unix sockets with a pool of its own. Make one per runtime.
    pub fn client(&self) -> Client<Connector> {
        self.client_with(Connector::default().with_timeout(self.shared.options.connect_timeout))
    }

    /// A client with another way to connect: a `tower` service from [`Destination`] to a [`crate::Transport`].
    pub fn client_with<C>(&self, connector: C) -> Client<C>
    where
        C: tower_service::Service<Destination>,
    {
        Client::new(self.clone(), connector)
    }

    /// What happened so far, and what is going on.
    pub fn stats(&self) -> ClusterStats {
        let shared = &self.shared;
        ClusterStats {
            requests: shared.requests.load(Ordering::Relaxed),
            active: shared.active.load(Ordering::Relaxed),
            pending: shared.pending.load(Ordering::Relaxed),
            retries: shared.retries.load(Ordering::Relaxed),
            hedges: shared.hedges.load(Ordering::Relaxed),
            errors: shared.errors.load(Ordering::Relaxed),
            overloads: shared.overloads.load(Ordering::Relaxed),
            ejections: shared.ejections.load(Ordering::Relaxed),
            panics: shared.set.load().table.panics(),
            endpoints: shared.set.load().endpoints.iter().map(|endpoint| endpoint.stats()).collect(),
        }
    }
}

/// An endpoint of a cluster, for who watches over it.
#[derive(Clone)]
pub struct EndpointHandle {
    state: Arc<EndpointState>,
    cluster: Arc<str>,
}

impl EndpointHandle {
    /// What it is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.state.endpoint
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &Arc<str> {
        &self.cluster
    }

    /// Says whether it is fit for requests, as an active health check found. Returns whether that is news. Default `true`.
    pub fn set_healthy(&self, healthy: bool) -> bool {
        self.state.set_healthy(healthy)
    }

    /// Whether it belongs to the cluster no more.
    pub fn is_removed(&self) -> bool {
        self.state.is_removed()
    }

    /// Its numbers.
    pub fn stats(&self) -> EndpointStats {
        self.state.stats()
    }
}

impl Target for EndpointHandle {
    fn endpoint(&self) -> &Endpoint {
        Self::endpoint(self)
    }

    fn set_healthy(&self, healthy: bool) -> bool {
        Self::set_healthy(self, healthy)
    }

    fn is_removed(&self) -> bool {
        Self::is_removed(self)
    }
}

impl fmt::Debug for EndpointHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EndpointHandle").field(&self.state.endpoint.name).finish()
    }
}

/// Numbers of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterStats {
    /// Requests taken.
    pub requests: u64,
    /// Requests under way, until the last byte of their response.
    pub active: usize,
    /// Requests that wait for a connection.
    pub pending: usize,
    /// Attempts beyond each request's first.
    pub retries: u64,
    /// Attempts beside a first one that was slow; [`ClusterStats::retries`] does not count them.
    pub hedges: u64,
    /// Requests that ended in an error.
    pub errors: u64,
    /// Those of them that a limit ended.
    pub overloads: u64,
    /// Times that an endpoint was left alone because its requests failed.
    pub ejections: u64,
    /// Picks that did not look at who is available, since too few endpoints were.
    pub panics: u64,
    /// Its endpoints, in their order.
    pub endpoints: Vec<EndpointStats>,
}

impl Shared {
    /// Picks an endpoint and does something with it while it is at hand.
    pub(crate) fn with_pick<T>(
        &self,
        wish: &Wish,
        tried: &Tried,
        then: impl FnOnce(usize, &Arc<EndpointState>) -> T,
    ) -> Option<T> {
        let set = self.set.load();
        let index = set.pick(wish, tried)?;
        Some(then(index, &set.endpoints[index]))
    }

    /// Whether some available endpoint was not tried.
    pub(crate) fn has_untried(&self, tried: &Tried) -> bool {
        let now = Instant::now();
        let set = self.set.load();
        set.endpoints
            .iter()
            .enumerate()
            .any(|(index, state)| !tried.contains(index) && state.is_available(now))
    }

    pub(crate) fn endpoint_count(&self) -> usize {
        self.set.load().endpoints.len()
    }

    pub(crate) fn for_each_endpoint(&self, each: impl FnMut(&Arc<EndpointState>)) {
        self.set.load().endpoints.iter().for_each(each);
    }

    pub(crate) fn count_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether one more attempt is within the budget.
    pub(crate) fn may_retry(&self) -> bool {
        let requests = self.requests.load(Ordering::Relaxed);
        self.budget.withdraw(requests, &self.options.retry, Instant::now())
    }

    pub(crate) fn count_hedge(&self) {
        self.hedges.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_error(&self, error: &Error) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        if error.is_overload() {
            self.overloads.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An endpoint answered.
    pub(crate) fn answered(&self, state: &EndpointState, status: StatusCode) {
        match FailureKind::of_status(status) {
            None => state.outlier.on_success(),
            Some(kind) => self.failed(state, kind),
        }
    }

    /// An endpoint did not do what was asked of it.
    pub(crate) fn failed(&self, state: &EndpointState, kind: FailureKind) {
        let count = |now| {
            let set = self.set.load();
            (set.endpoints.iter().filter(|state| state.is_ejected(now)).count(), set.endpoints.len())
        };
        if let Some(time) = state.failed(kind, &self.options, count) {
            self.ejections.fetch_add(1, Ordering::Relaxed);
            warn!(cluster = %self.name, endpoint = %state.endpoint, ?time, "endpoint failed and is left alone for a while");
        }
    }

    /// Waits until there is a list of endpoints, be it an empty one.
    pub(crate) async fn first_list(&self) -> Result<(), Error> {
        if self.listed.load(Ordering::Acquire) {
            return Ok(());
        }
        let waiting = self.wait();
        if waiting.is_none() {
            return Err(Error::Overloaded { limit: "waiting requests" });
        }
        let told = self.first_list.notified();
        // a future that was not polled yet hears of what happens from its making on
        if self.listed.load(Ordering::Acquire) {
            return Ok(());
        }
        let queue_timeout = self.options.queue_timeout.min(crate::FOREVER);
        tokio::time::timeout(queue_timeout, told).await.map_err(|_| Error::NoEndpoint)
    }

    /// A place among those that wait for a connection.
    pub(crate) fn wait(&self) -> Option<impl Drop + '_> {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let waiting = Waiting(&self.pending);
        (self.pending.fetch_add(1, Ordering::Relaxed) < self.options.max_pending).then_some(waiting)
    }
}

/// A request under way.
pub(crate) struct Ticket {
    pub(crate) shared: Arc<Shared>,
}

impl Ticket {
    pub(crate) fn take(shared: &Arc<Shared>) -> Result<Self, Error> {
        shared.requests.fetch_add(1, Ordering::Relaxed);
        let ticket = Self { shared: Arc::clone(shared) };
        if shared.active.fetch_add(1, Ordering::Relaxed) >= shared.options.max_requests {
            return Err(Error::Overloaded { limit: "requests at a time" });
        }
        Ok(ticket)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared.active.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
