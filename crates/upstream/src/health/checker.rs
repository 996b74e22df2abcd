//! The checks of a cluster's endpoints, one after the other and side by side.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
    convert::Infallible,
    error::Error as _,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::{Id, JoinSet},
    time::{Instant, sleep_until, timeout},
};
use tracing::{debug, info, warn};

use super::{CheckError, HealthOptions, InitialHealth, InvalidHealthOptions, jitter, probe, rows::Rows};
use crate::Endpoint;

/// How soon endpoints are noticed that came or went.
const LOOK: Duration = Duration::from_secs(1);

/// An endpoint of a cluster, as a checker sees it.
pub trait Target: Send + 'static {
    /// The endpoint.
    fn endpoint(&self) -> &Endpoint;

    /// Says whether requests should go to it. Returns whether that was not so before.
    fn set_healthy(&self, healthy: bool) -> bool;

    /// Whether the cluster has it no longer.
    fn is_removed(&self) -> bool;
}

/// Checks the endpoints of one cluster. Endpoints that come and go are noticed within a second.
pub struct Checker<T, C> {
    cluster: Arc<str>,
    options: Arc<HealthOptions>,
    targets: T,
    connect: C,
    counters: Arc<HealthCounters>,
}

/// What checks of a cluster found so far.
#[derive(Debug, Default)]
pub struct HealthCounters {
    passed: AtomicU64,
    failed: AtomicU64,
    became_healthy: AtomicU64,
    became_unhealthy: AtomicU64,
}

impl HealthCounters {
    /// Checks that passed.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// Checks that failed.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Endpoints that became healthy.
    pub fn became_healthy(&self) -> u64 {
        self.became_healthy.load(Ordering::Relaxed)
    }

    /// Endpoints that became unhealthy.
    pub fn became_unhealthy(&self) -> u64 {
        self.became_unhealthy.load(Ordering::Relaxed)
    }
}

struct Watched<H> {
    target: H,
    rows: Rows,
}

/// The endpoints under watch, each with a number of its own: one that comes back under its name is another one.
struct Watch<H> {
    next: u64,
    by_number: HashMap<u64, Watched<H>>,
    by_name: HashMap<Arc<str>, u64>,
    /// Numbers by the time of their next check; those of endpoints that are gone are passed over.
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    /// Checks under way.
    running: HashMap<Id, u64>,
}

impl<T, C> std::fmt::Debug for Checker<T, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checker").field("cluster", &self.cluster).field("options", &self.options).finish()
    }
}

impl<T, C, H, F, Io> Checker<T, C>
where
    T: Fn() -> Vec<H>,
    H: Target,
    C: Fn(&Endpoint) -> F,
    F: Future<Output = io::Result<Io>> + Send + 'static,
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// A checker of the cluster of this name. `targets` is asked for its endpoints again and again, `connect` for
    /// a connection for each check, within the check's timeout.
    pub fn new(
        cluster: impl Into<Arc<str>>,
        options: HealthOptions,
        targets: T,
        connect: C,
    ) -> Result<Self, InvalidHealthOptions> {
        options.validate()?;
        Ok(Self {
            cluster: cluster.into(),
            options: Arc::new(options),
            targets,
            connect,
            counters: Arc::new(HealthCounters::default()),
        })
    }

    /// What its checks find.
    pub fn counters(&self) -> Arc<HealthCounters> {
        Arc::clone(&self.counters)
    }

    /// Checks for ever; dropping the future ends all that is under way.
    pub async fn run(self) -> Infallible {
        let mut watch = Watch {
            next: 0,
            by_number: HashMap::new(),
            by_name: HashMap::new(),
            due: BinaryHeap::new(),
            running: HashMap::new(),
        };
        let mut checks = JoinSet::new();
        let mut look = Instant::now();
        loop {
            let now = Instant::now();
            if look <= now {
                self.look(&mut watch, now);
                look = now + LOOK;
            }
            let wake = self.start(&mut watch, &mut checks, now).map_or(look, |due| due.min(look));
            tokio::select! {
                Some(done) = checks.join_next_with_id(), if !checks.is_empty() => {
                    let (id, result) = match done {
                        Ok((id, result)) => (id, result),
                        Err(error) => (error.id(), Err(CheckError::Panic)),
                    };
                    if let Some(number) = watch.running.remove(&id) {
                        self.finish(&mut watch, number, &result);
                    }
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Notices endpoints that came and that went.
    fn look(&self, watch: &mut Watch<H>, now: Instant) {
        let mut present = HashSet::new();
        for target in (self.targets)() {
            if target.is_removed() {
                continue;
            }
            let known = watch.by_name.get(target.endpoint().name()).copied();
            let same = known.filter(|n| watch.by_number.get(n).is_some_and(|w| !w.target.is_removed()));
            present.insert(same.unwrap_or_else(|| self.add(watch, target, now)));
        }
        watch.by_number.retain(|number, _| present.contains(number));
        watch.by_name.retain(|_, number| present.contains(number));
        watch.due.retain(|Reverse((_, number))| present.contains(number));
    }

    fn add(&self, watch: &mut Watch<H>, target: H, now: Instant) -> u64 {
        let number = watch.next;
        watch.next += 1;
        let first = match self.options.initial {
            InitialHealth::Healthy => now + jitter::below(self.options.interval, jitter::random()),
            InitialHealth::Unhealthy => now,
        };
        target.set_healthy(self.options.initial == InitialHealth::Healthy);
        watch.by_name.insert(target.endpoint().name().into(), number);
        watch.by_number.insert(number, Watched { target, rows: Rows::new(self.options.initial) });
        watch.due.push(Reverse((first, number)));
        number
    }

    /// Starts what is due and has a place. Returns when the next one is due, if a place is free for it.
    fn start(
        &self,
        watch: &mut Watch<H>,
        checks: &mut JoinSet<Result<(), CheckError>>,
        now: Instant,
    ) -> Option<Instant> {
        while checks.len() < self.options.max_concurrent.max(1) {
            let Reverse((due, number)) = *watch.due.peek()?;
            if due > now {
                return Some(due);
            }
            watch.due.pop();
            let Some(watched) = watch.by_number.get(&number) else { continue };
            let endpoint = watched.target.endpoint().clone();
            let (options, connection) = (Arc::clone(&self.options), (self.connect)(&endpoint));
            let check = checks.spawn(async move {
                let check = async {
                    let io = connection.await.map_err(CheckError::Connect)?;
                    probe::run(&options.check, &endpoint, io).await
                };
                timeout(options.timeout, check).await.unwrap_or(Err(CheckError::Timeout))
            });
            watch.running.insert(check.id(), number);
        }
        None
    }

    fn finish(&self, watch: &mut Watch<H>, number: u64, result: &Result<(), CheckError>) {
        let Some(watched) = watch.by_number.get_mut(&number) else { return };
        if watched.target.is_removed() {
            return;
        }
        let counter = if result.is_ok() { &self.counters.passed } else { &self.counters.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        let (cluster, endpoint) = (&*self.cluster, watched.target.endpoint().name());
        let why = result.as_ref().err().map(reason).unwrap_or_default();
        match watched.rows.take(result.is_ok(), &self.options) {
            Some(true) => {
                self.counters.became_healthy.fetch_add(1, Ordering::Relaxed);
                watched.target.set_healthy(true);
                info!(cluster, endpoint, "the endpoint passes its health checks again: it gets requests");
            }
            Some(false) => {
                self.counters.became_unhealthy.fetch_add(1, Ordering::Relaxed);
                watched.target.set_healthy(false);
                warn!(cluster, endpoint, why, "the endpoint fails its health checks: it gets no requests");
            }
            None if result.is_err() => debug!(cluster, endpoint, why, "a health check failed"),
            None => {}
        }
        let interval = match self.options.unhealthy_interval {
            Some(interval) if !watched.rows.is_healthy() => interval,
            _ => self.options.interval,
        };
        let next = Instant::now() + jitter::around(interval, jitter::random());
        watch.due.push(Reverse((next, number)));
    }
}

/// An error and its causes in one line.
fn reason(error: &CheckError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
#[path = "checker/tests.rs"]
mod tests;
