//! An edge, from its plan to its end.

use std::{
    fmt,
    net::SocketAddr,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use portcullis_acme::Acme;
use portcullis_cache::DiskError;
use portcullis_h3::ConnLimits;
use portcullis_listener::{
    ClientLimit, DescriptorBudget, LimitOptions, Limits, ListenAddr, ListenerLimits, ListenerStats,
};
#[cfg(unix)]
use portcullis_listener::{InheritedSocket, UnixSocketFile};
use portcullis_proxy::Tunnels;
use portcullis_server::ServerCounters;
use portcullis_tls::CertStore;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

#[cfg(unix)]
use crate::upgrade::{Before, QuicPlace, TakeOver};
use crate::{
    EdgeBuilder, EdgeError, PlanFault,
    certs::Tls,
    clusters,
    live::Live,
    observe::Telemetry,
    order::UserLayer,
    plan::{ListenerMode, ListenerPlan, PlainHttp, Plan, WithoutCertificate, Workers},
    quic::QuicEndpoints,
    reload::{ReloadCounters, ToWorkers},
    sockets::{Inherited, Sockets, Taken, bind_plan, settle_http3},
    workers,
};

/// An edge that is bound and ready to run: its sockets are open, so connections already wait in their queues.
pub struct Edge {
    pub(crate) shared: Arc<Shared>,
    pub(crate) sockets: Sockets,
    taken: Taken,
}

/// What all workers share.
pub(crate) struct Shared {
    /// As the edge was started with it. What a reload changes is in `live`.
    pub(crate) plan: Plan,
    /// The same before it was brought in line with the certificates and sockets that there are.
    pub(crate) given: Plan,
    /// What requests meet now. Workers have it in services of their own, see [`crate::reload`].
    pub(crate) live: Arc<ArcSwap<Live>>,
    pub(crate) reloads: Arc<ReloadCounters>,
    pub(crate) workers: ToWorkers,
    pub(crate) layers: Vec<UserLayer>,
    pub(crate) tls: Tls,
    pub(crate) limits: Limits,
    /// The admin service's own: an edge that is full can still be asked how it is.
    pub(crate) admin_limits: Limits,
    /// [`crate::plan::Limits::max_connections`] where a plan does not say.
    pub(crate) usual_max: usize,
    /// The part of each listener in them, in the order of [`Plan::listeners`].
    pub(crate) listener_limits: Vec<ListenerLimits>,
    pub(crate) quic_limits: ConnLimits,
    pub(crate) quic: QuicEndpoints,
    pub(crate) tunnels: Tunnels,
    pub(crate) http: Arc<ServerCounters>,
    pub(crate) telemetry: Option<Telemetry>,
    /// Cancelled when every worker serves.
    pub(crate) serving: CancellationToken,
    /// Duplicates of all sockets, until the drain begins.
    #[cfg(unix)]
    pub(crate) spare: Mutex<Option<Vec<(String, InheritedSocket)>>>,
    /// QUIC endpoints that run.
    #[cfg(unix)]
    pub(crate) quic_places: Mutex<Vec<QuicPlace>>,
    /// Processes before this one, taken by the endpoints of their sockets.
    #[cfg(unix)]
    pub(crate) before: Mutex<Vec<Before>>,
    /// Another process is about to take over, or has.
    pub(crate) upgrading: AtomicBool,
    pub(crate) handed_over: AtomicBool,
    /// Set when the drain begins: `/health` says 503 from then on.
    pub(crate) draining: Arc<AtomicBool>,
    /// Cancelled when the drain begins.
    pub(crate) stop: CancellationToken,
    /// Cancelled when the last tunnel has ended or the drain's time is over.
    pub(crate) finish: CancellationToken,
}

/// Reaches a running edge. Cheap to clone.
#[derive(Clone)]
pub struct EdgeHandle {
    pub(crate) shared: Arc<Shared>,
}

impl EdgeHandle {
    /// Opens the access log's files anew, after they were renamed to rotate them; those too that requests go on with which began before a reload. No line is
    /// lost: each goes to the old file or the new one. Nothing happens without a file.
    pub fn reopen_access_log(&self) {
        self.shared.live.load().sinks.reopen();
    }

    /// Changes [`crate::plan::Limits::max_connections`]. Open connections stay. Whether the descriptors carry them is
    /// looked at when an edge is made, not here; accepting then stops before the last of them are gone.
    pub fn set_max_connections(&self, max: usize) {
        self.shared.limits.set_max(max);
    }

    /// Stops accepting TCP and unix connections until [`EdgeHandle::resume`]: new ones wait in the kernel's queue, open ones go on. QUIC
    /// is not paused.
    pub fn pause(&self) {
        self.shared.limits.pause();
    }

    /// Ends [`EdgeHandle::pause`].
    pub fn resume(&self) {
        self.shared.limits.resume();
    }

    /// What the listeners did so far, by the address of each; QUIC is not in it.
    pub fn listeners(&self) -> Vec<(String, ListenerStats)> {
        self.shared.limits.listeners()
    }

    /// Resolves when every worker serves.
    pub async fn serving(&self) {
        self.shared.serving.cancelled().await;
    }

    /// Open TCP connections.
    pub fn open_connections(&self) -> usize {
        self.shared.limits.open()
    }
}

impl fmt::Debug for EdgeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeHandle").finish_non_exhaustive()
    }
}

/// One address that an edge listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listening {
    /// The address, with the port that the system chose if none was asked for.
    pub address: ListenAddr,
    /// What is spoken there.
    pub mode: ListenerMode,
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = &self.address;
        match &self.mode {
            ListenerMode::Https { http3: true, .. } => {
                write!(f, "https://{address} (HTTP/1.1, HTTP/2, HTTP/3)")
            }
            ListenerMode::Https { http3: false, .. } => write!(f, "https://{address} (HTTP/1.1, HTTP/2)"),
            ListenerMode::Http => write!(f, "http://{address} (HTTP/1.1, HTTP/2 by prior knowledge)"),
            ListenerMode::RedirectToHttps { port } => {
                write!(f, "http://{address} (redirects to HTTPS on port {port})")
            }
        }
    }
}

impl Edge {
    /// Begins an edge in code; see [`EdgeBuilder`].
    pub fn builder() -> EdgeBuilder {
        EdgeBuilder::default()
    }

    /// Checks the plan, loads its certificates and binds its sockets. Blocks while it reads files: call it before
    /// the work begins, or from `spawn_blocking`.
    pub fn new(plan: Plan) -> Result<Self, EdgeError> {
        Self::with_layers(plan, Vec::new(), Inherited::default(), Taken::default(), false)
    }

    pub(crate) fn with_layers(
        mut plan: Plan,
        layers: Vec<UserLayer>,
        inherited: Inherited,
        mut taken: Taken,
        hands_over: bool,
    ) -> Result<Self, EdgeError> {
        plan.check()?;
        let given = plan.clone();
        let mut tls = Tls::load(&mut plan)?;
        settle_http3(&mut plan, &inherited, &taken);
        #[cfg(unix)]
        if let Some(taken) = &taken {
            plan.quic.generation = taken.generation();
        }
        let quic_keys = crate::quic_plan::settle(&mut plan)?;
        tls.follow_quic(quic_keys);
        // before descriptors are counted: sockets are some of them
        let sockets = Sockets::bind(&plan, inherited, &mut taken)?;
        #[cfg(unix)]
        let spare = hands_over.then(|| sockets.spare(&plan)).transpose().map_err(EdgeError::Inherited)?;
        #[cfg(not(unix))]
        let _ = hands_over;
        let mut shared = Shared::new(plan, given, layers, tls, &sockets)?;
        #[cfg(unix)]
        {
            shared.spare = Mutex::new(spare);
            taken.iter_mut().for_each(TakeOver::close_rest);
        }
        if let Some(telemetry) = &shared.telemetry {
            telemetry.bind_parts(&shared).map_err(EdgeError::Metrics)?;
        }
        Ok(Self { shared: Arc::new(shared), sockets, taken })
    }

    /// Where it listens, in the plan's order.
    pub fn listening(&self) -> Vec<Listening> {
        let mode = |place: usize| self.shared.plan.listeners[place].mode.clone();
        self.sockets
            .listeners
            .iter()
            .map(|group| Listening { address: group.bound.local_addr.clone(), mode: mode(group.place) })
            .collect()
    }

    /// Where the admin service listens, if there is one.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.sockets.admin.as_ref().and_then(|bound| bound.local_addr.ip())
    }

    /// The certificate store, if a listener speaks TLS.
    pub fn cert_store(&self) -> Option<&Arc<CertStore>> {
        self.shared.tls.store.as_ref()
    }

    /// What has certificates issued, if ACME does.
    pub fn acme(&self) -> Option<&Acme> {
        self.shared.tls.acme.as_ref()
    }

    /// For what is done to an edge while it runs.
    pub fn handle(&self) -> EdgeHandle {
        EdgeHandle { shared: Arc::clone(&self.shared) }
    }

    /// Serves until `shutdown` resolves or a worker fails; then drains: no new connections, `Connection: close` and GOAWAY,
    /// requests in flight run to their end and tunnels get their grace, all within [`Plan::drain_timeout`].
    ///
    /// The workers have runtimes and threads of their own; the future only waits for them and may be awaited on any
    /// runtime. If it is dropped they drain just the same.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), EdgeError> {
        let Self { shared, mut sockets, taken } = self;
        // they remove the files of unix sockets when the drain begins
        #[cfg(unix)]
        let unix_files: Vec<_> =
            sockets.listeners.iter_mut().filter_map(|group| group.bound.unix_file.take()).collect();
        let drain_timeout = shared.plan.drain_timeout;
        let stop_on_drop = shared.stop.clone().drop_guard();
        let mut taken = Predecessor::prepare(&shared, taken).await?;
        let (mut workers, tell) = workers::start(&shared, sockets)?;
        *shared.workers.lock().await = tell;
        let served = async {
            if workers.ready().await {
                shared.serving.cancel();
                taken.ready().await?;
            }
            Ok::<_, EdgeError>(workers.any_ended().await)
        };
        let early = tokio::select! {
            () = shutdown => None,
            result = served => result.unwrap_or_else(|error| Some(Err(error))),
        };
        let handed_over = shared.handed_over.load(Ordering::SeqCst);
        shared.draining.store(true, Ordering::SeqCst);
        let drain_delay = shared.live.load().plan.drain_delay;
        // another process serves already: nobody is to notice
        if early.is_none() && !drain_delay.is_zero() && !handed_over {
            info!(delay = ?drain_delay, "no longer healthy; serving on until the drain begins");
            tokio::time::sleep(drain_delay).await;
        }
        if early.is_none() && handed_over {
            // those who were let in a moment ago shall not be told to go before they have asked for anything
            tokio::time::sleep(SETTLE).await;
        }
        info!(deadline = ?drain_timeout, "draining");
        drop(stop_on_drop);
        #[cfg(unix)]
        {
            *shared.spare.lock().unwrap_or_else(PoisonError::into_inner) = None;
            if handed_over {
                unix_files.into_iter().for_each(UnixSocketFile::keep);
            }
        }
        shared.tunnels.drain(drain_timeout).await;
        shared.finish.cancel();
        let rest = match tokio::time::timeout(drain_timeout.saturating_add(STUCK), workers.all_ended()).await
        {
            Ok(rest) => rest,
            Err(_) => Err(EdgeError::WorkerStuck),
        };
        // the last requests are over
        let sinks = Arc::clone(&shared.live.load().sinks);
        sinks.end().await;
        info!("drained");
        early.unwrap_or(rest)
    }
}

/// The process before this one, which waits for word.
#[cfg(unix)]
struct Predecessor(Option<tokio::net::UnixStream>);

#[cfg(unix)]
impl Predecessor {
    async fn prepare(shared: &Shared, taken: Taken) -> Result<Self, EdgeError> {
        let Some(taken) = taken else { return Ok(Self(None)) };
        let (stream, before) = taken.prepared().await?;
        *shared.before.lock().unwrap_or_else(PoisonError::into_inner) = before;
        Ok(Self(Some(stream)))
    }

    async fn ready(&mut self) -> Result<(), EdgeError> {
        match self.0.take() {
            Some(stream) => Ok(crate::upgrade::ready(stream).await?),
            None => Ok(()),
        }
    }
}

#[cfg(not(unix))]
struct Predecessor;

#[cfg(not(unix))]
impl Predecessor {
    async fn prepare(_: &Shared, (): Taken) -> Result<Self, EdgeError> {
        Ok(Self)
    }

    async fn ready(&mut self) -> Result<(), EdgeError> {
        Ok(())
    }
}

impl Shared {
    fn new(
        plan: Plan,
        given: Plan,
        layers: Vec<UserLayer>,
        tls: Tls,
        sockets: &Sockets,
    ) -> Result<Self, EdgeError> {
        let tunnels = Tunnels::new(plan.limits.max_tunnels);
        let live = Live::build(plan.clone(), &tunnels, None)?;
        let telemetry = plan.admin.is_some().then(Telemetry::new);
        let max = max_connections(&plan)?;
        let limits = Limits::with_options(limit_options(&plan, max));
        let part = |(place, listener): (usize, &ListenerPlan)| {
            limits.listener(sockets.name(place, listener), listener.max_connections)
        };
        let listener_limits = plan.listeners.iter().enumerate().map(part).collect();
        Ok(Self {
            tls,
            live: Arc::new(ArcSwap::from_pointee(live)),
            reloads: Arc::default(),
            workers: ToWorkers::default(),
            listener_limits,
            quic_limits: quic_limits(&plan, &limits),
            quic: QuicEndpoints::new(plan.listeners.len()),
            limits,
            admin_limits: Limits::new(ADMIN_CONNECTIONS),
            usual_max: plan.limits.max_connections.map_or(max, |_| MAX_CONNECTIONS),
            tunnels,
            http: Arc::new(ServerCounters::default()),
            serving: CancellationToken::new(),
            #[cfg(unix)]
            spare: Mutex::default(),
            #[cfg(unix)]
            quic_places: Mutex::default(),
            #[cfg(unix)]
            before: Mutex::default(),
            upgrading: AtomicBool::new(false),
            handed_over: AtomicBool::new(false),
            draining: Arc::new(AtomicBool::new(false)),
            stop: CancellationToken::new(),
            finish: CancellationToken::new(),
            telemetry,
            layers,
            plan,
            given,
        })
    }
}

impl Plan {
    /// Finds what contradicts itself, without opening anything.
    pub fn check(&self) -> Result<(), EdgeError> {
        if self.listeners.is_empty() {
            return Err(PlanFault::NoListener.into());
        }
        let has_certificates =
            self.cert_store.is_some() || !self.certificates.is_empty() || self.acme.is_some();
        for listener in &self.listeners {
            let needs_one = listener.tls.without_certificate == WithoutCertificate::Fail;
            if matches!(listener.mode, ListenerMode::Https { .. }) && needs_one && !has_certificates {
                return Err(PlanFault::NoCertificate(listener.address.clone()).into());
            }
        }
        for listener in &self.listeners {
            let serves_plain = listener.tls.without_certificate != WithoutCertificate::Fail
                || matches!(listener.mode, ListenerMode::Https { plain_http: PlainHttp::Serve, .. });
            let is_https = matches!(listener.mode, ListenerMode::Https { .. });
            if is_https && serves_plain && listener.tls.asks_for_certificates() {
                return Err(PlanFault::PlainBesideClientAuth(listener.address.clone()).into());
            }
        }
        if matches!(self.workers, Workers::PerCore(_)) && self.worker_count().get() > MAX_WORKERS {
            return Err(PlanFault::TooManyWorkers(self.worker_count().get()).into());
        }
        if let Some(acme) = &self.acme {
            acme.check().map_err(|error| EdgeError::Acme(error.into()))?;
        }
        clusters::check(self)?;
        crate::routes::check(self)?;
        crate::parts::check(self)?;
        crate::rate_store::check(self)?;
        if !cfg!(feature = "disk-cache") && self.cache.as_ref().is_some_and(|cache| cache.disk.is_some()) {
            return Err(EdgeError::Cache(DiskError::NotBuilt));
        }
        bind_plan(self, &[]).check().map_err(EdgeError::Listeners)
    }

    pub(crate) fn worker_count(&self) -> NonZeroUsize {
        workers::count(self.workers)
    }
}

/// Connections where nothing else is said and descriptors carry them.
const MAX_CONNECTIONS: usize = 1000;

/// Connections to the admin service.
const ADMIN_CONNECTIONS: usize = 64;

/// How long a process whose sockets were handed over goes on before it drains: time for handshakes and first requests of those who were let in last. No shorter
/// than the next one passes first packets of QUIC on.
const SETTLE: Duration = Duration::from_secs(1);

/// Descriptors that a worker's runtime, its UDP sockets and its timers take.
const PER_WORKER: u64 = 8;

fn limit_options(plan: &Plan, max: usize) -> LimitOptions {
    LimitOptions::default()
        .with_max_connections(max)
        .with_over(plan.limits.over)
        .with_per_client(client_limit(plan))
}

pub(crate) fn client_limit(plan: &Plan) -> Option<ClientLimit> {
    plan.limits.per_client.clone().map(|mut limit| {
        // behind a proxy are many; those that say who they are are counted one by one
        limit.exempt.extend(&plan.trusted_proxies);
        let spoken = plan.listeners.iter().filter_map(|listener| listener.proxy_protocol.as_ref());
        limit.exempt.extend(spoken.flat_map(|proxy| &proxy.trusted));
        limit
    })
}

/// A client has one share of connections, whether over TCP or QUIC. Asked also where it has no bound: a reload may set one.
fn quic_limits(plan: &Plan, limits: &Limits) -> ConnLimits {
    let limits = limits.clone();
    ConnLimits::with_admission(plan.limits.max_quic_connections, move |client| {
        let guard = limits.count_client(client).ok()?;
        Some(Box::new(guard))
    })
}

/// As many as were asked for, if the descriptors carry them; else as many as they carry, within reason.
fn max_connections(plan: &Plan) -> Result<usize, EdgeError> {
    let wanted = plan.limits.max_connections;
    // a system without such a limit
    let Ok(budget) = DescriptorBudget::measure() else { return Ok(wanted.unwrap_or(MAX_CONNECTIONS)) };
    let workers = plan.worker_count().get() as u64;
    let budget = budget.with_reserve(u64::from(plan.limits.headroom) + PER_WORKER * workers);
    if let Some(max) = wanted {
        return budget.check(max).map(|()| max).map_err(EdgeError::Descriptors);
    }
    budget.check(1).map_err(EdgeError::Descriptors)?;
    let fit = budget.connections();
    if fit < MAX_CONNECTIONS {
        let why = budget.check(MAX_CONNECTIONS).err().map(|error| error.to_string());
        warn!(max_connections = fit, why, "fewer connections than usual are let in");
    }
    Ok(fit.min(MAX_CONNECTIONS))
}

impl fmt::Debug for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edge").field("listening", &self.listening()).finish_non_exhaustive()
    }
}

/// How long after the drain's deadline a worker may take to end. One that takes longer is held up by a service that blocks
/// its thread.
const STUCK: Duration = Duration::from_secs(2);

/// A worker's index is a byte of the connection ids it issues.
const MAX_WORKERS: usize = 255;

/// How often shared caches tidy up.
pub(crate) const TIDY_EVERY: Duration = Duration::from_secs(1);
