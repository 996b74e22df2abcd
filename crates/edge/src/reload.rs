//! Another plan for an edge that runs.
//!
//! Two things are swapped: the content of the certificate store, and the service that a listener's connections share. A request begins with the
//! service of its moment and keeps it, so none that runs notices; no connection is closed and none is told anything.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use portcullis_h3::QuicOptions;
use portcullis_tls::CertReloader;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use crate::{
    EdgeError, EdgeHandle, PlanFault,
    counted::Counted,
    edge::{Shared, client_limit},
    live::Live,
    plan::{ListenerPlan, Plan},
    quic,
};

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reloaded {
    /// What is different now, by the names of the parts.
    pub changed: Vec<String>,
    /// What the plan has otherwise than the edge was started with and what stays as it is until the next start or upgrade.
    pub deferred: Vec<String>,
}

/// How often the plan was changed. Cheap to read.
#[derive(Debug, Default)]
pub(crate) struct ReloadCounters {
    ok: AtomicU64,
    failed: AtomicU64,
    /// Milliseconds since 1970; 0 is never.
    last: AtomicU64,
}

impl ReloadCounters {
    pub(crate) fn ok(&self) -> u64 {
        self.ok.load(Ordering::Relaxed)
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    pub(crate) fn last(&self) -> Option<SystemTime> {
        let last = self.last.load(Ordering::Relaxed);
        (last > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(last))
    }

    fn succeeded(&self) {
        self.ok.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.last.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Told to a worker, which takes it in on its own thread.
pub(crate) struct Swap {
    pub(crate) live: Arc<Live>,
    /// For the worker that follows the files of certificates.
    pub(crate) certificates: Option<CertReloader>,
    pub(crate) done: oneshot::Sender<Result<(), PlanFault>>,
}

impl EdgeHandle {
    /// Carries out another plan. Requests that begin from then on meet its routes, clusters, filters, limits and layers; requests, streams and
    /// tunnels that run go on as they began, and no connection is closed. Clusters and what is stored go on where
    /// [`crate::plan::ClusterPlan`] and [`Plan::cache`] are the same; others begin anew, and what they take the place of ends with its last request. Rates
    /// go on where the name, key and [`portcullis_middleware::rate_limit::RateRule::max_keys`] of a rule are the same, and places of requests that run under other
    /// options too. A route is the one of before by its name, or else by what it matches, or by its host and path.
    /// Layers of the program's own are put around the new routes.
    ///
    /// Listeners, their sockets and protocol options, QUIC and its logs, whether anything is offered over HTTP/2 by extended CONNECT, workers, ACME, the admin address and the drain's time stay as they are until the next start or upgrade: what of them
    /// is different is logged by name, and in [`Reloaded::deferred`]. [`crate::plan::Limits::max_connections`] of `None` is 1000 here, or
    /// what the descriptors carried at the start.
    ///
    /// # Errors
    /// The plan has a mistake, or a file that it names can't be read, or the edge drains. It goes on then as if nothing had happened.
    pub async fn reload(&self, plan: Plan) -> Result<Reloaded, EdgeError> {
        let result = self.try_reload(plan).await;
        match &result {
            Ok(reloaded) => {
                self.shared.reloads.succeeded();
                for deferred in &reloaded.deferred {
                    warn!(what = deferred, "takes effect at the next start or upgrade");
                }
                let changed = reloaded.changed.join(", ");
                info!(changed = if changed.is_empty() { "nothing" } else { &changed }, "reloaded");
            }
            Err(_) => self.count_failed_reload(),
        }
        result
    }

    /// Counts a reload for which there was not even a plan: its file had mistakes.
    pub fn count_failed_reload(&self) {
        self.shared.reloads.failed.fetch_add(1, Ordering::Relaxed);
    }

    async fn try_reload(&self, plan: Plan) -> Result<Reloaded, EdgeError> {
        // one after the other
        let workers = self.shared.workers.lock().await;
        if self.shared.stop.is_cancelled() || workers.is_empty() {
            return Err(EdgeError::NotRunning);
        }
        let shared = Arc::clone(&self.shared);
        let read = tokio::task::spawn_blocking(move || read(&shared, plan));
        let (mut live, certificates, reloaded) = read.await.map_err(|_| EdgeError::WorkerPanicked)??;
        if self.shared.stop.is_cancelled() || workers.is_empty() {
            return Err(EdgeError::NotRunning);
        }
        // as late as can be: the generation before counts until then
        live.gone = Counted::gone(&self.shared.live.load(), &live);
        let live = Arc::new(live);
        self.shared.live.store(Arc::clone(&live));
        let (mut waiting, mut certificates) = (Vec::new(), certificates);
        for worker in workers.iter() {
            let (done, ended) = oneshot::channel();
            let swap = Swap { live: Arc::clone(&live), certificates: certificates.take(), done };
            if worker.send(swap).is_ok() {
                waiting.push(ended);
            }
        }
        for ended in waiting {
            // one that ends meanwhile serves nobody
            if let Ok(result) = ended.await {
                result?;
            }
        }
        set_limits(&self.shared, &live.plan);
        for (place, listener) in live.plan.listeners.iter().enumerate() {
            // checked when the plan was read
            self.set_quic_options(place, &quic::options(&self.shared, listener))?;
        }
        Ok(reloaded)
    }
}

/// The way to each worker, in their order.
pub(crate) type ToWorkers = tokio::sync::Mutex<Vec<mpsc::UnboundedSender<Swap>>>;

/// Everything that may fail. Blocks while it reads files.
fn read(shared: &Shared, mut plan: Plan) -> Result<(Live, Option<CertReloader>, Reloaded), EdgeError> {
    plan.check()?;
    let before = shared.live.load_full();
    let deferred = settle(shared, &mut plan);
    for listener in &plan.listeners {
        let wrong = |source| EdgeError::Quic { address: listener.address.to_string(), source };
        listener.quic.check().map_err(wrong)?;
    }
    let certificates = if plan.certificates == before.plan.certificates {
        None
    } else {
        shared.tls.reloader(plan.certificates.clone())?
    };
    let reloaded = Reloaded { changed: changed(&before.plan, &plan), deferred };
    let live = Live::build(plan, &shared.tunnels, Some(&before))?;
    Ok((live, certificates, reloaded))
}

fn set_limits(shared: &Shared, plan: &Plan) {
    let max = plan.limits.max_connections.unwrap_or(shared.usual_max);
    if shared.limits.max() != max {
        shared.limits.set_max(max);
    }
    shared.limits.set_over(plan.limits.over);
    let per_client = client_limit(plan);
    if shared.limits.per_client() != per_client {
        shared.limits.set_per_client(per_client);
    }
    shared.quic_limits.set_max(plan.limits.max_quic_connections);
    shared.tunnels.set_max(plan.limits.max_tunnels);
    for (limits, listener) in shared.listener_limits.iter().zip(&plan.listeners) {
        if limits.max() != listener.max_connections {
            limits.set_max(listener.max_connections);
        }
    }
}

/// Puts what can't be changed while the edge runs back to what it runs with. Gives the names of what was different.
fn settle(shared: &Shared, plan: &mut Plan) -> Vec<String> {
    let (given, running) = (&shared.given, &shared.plan);
    let mut deferred = listeners(shared, plan);
    let mut defer = |differs: bool, name: &str| {
        if differs {
            deferred.push(name.to_owned());
        }
    };
    defer(plan.workers != given.workers, "workers");
    defer(plan.certificate_reload != given.certificate_reload, "certificate_reload");
    defer(format!("{:?}", plan.acme) != format!("{:?}", given.acme), "acme");
    defer(plan.admin != given.admin, "admin");
    defer(plan.quic != given.quic, "quic");
    defer(plan.drain_timeout != given.drain_timeout, "drain_timeout");
    defer(plan.limits.headroom != given.limits.headroom, "limits.headroom");
    let other_store = plan
        .cert_store
        .as_ref()
        .is_some_and(|store| !shared.tls.store.as_ref().is_some_and(|own| Arc::ptr_eq(own, store)));
    defer(other_store, "cert_store");
    defer(plan.certificates != given.certificates && !shared.tls.follows_files(), "certificates");
    defer(plan.upgrades.over_http2() != given.upgrades.over_http2(), "upgrades over HTTP/2");
    if !shared.tls.follows_files() {
        plan.certificates.clone_from(&running.certificates);
    }
    plan.workers = running.workers;
    plan.certificate_reload = running.certificate_reload.clone();
    plan.acme.clone_from(&running.acme);
    plan.admin.clone_from(&running.admin);
    plan.quic.clone_from(&running.quic);
    plan.drain_timeout = running.drain_timeout;
    plan.limits.headroom = running.limits.headroom;
    plan.cert_store.clone_from(&running.cert_store);
    plan.give_back = running.give_back;
    deferred
}

/// The listeners that there are, with what of them can be changed.
fn listeners(shared: &Shared, plan: &mut Plan) -> Vec<String> {
    let mut deferred = Vec::new();
    let mut wanted: Vec<Option<ListenerPlan>> =
        std::mem::take(&mut plan.listeners).into_iter().map(Some).collect();
    for (given, running) in shared.given.listeners.iter().zip(&shared.plan.listeners) {
        let mut running = running.clone();
        let same = |wanted: &&mut Option<ListenerPlan>| {
            wanted.as_ref().is_some_and(|wanted| wanted.address == given.address)
        };
        match wanted.iter_mut().find(same).and_then(Option::take) {
            Some(wanted) => {
                let differs = differences(given, &wanted);
                if !differs.is_empty() {
                    deferred.push(format!("listener {}: {}", given.address, differs.join(", ")));
                }
                running.max_connections = wanted.max_connections;
                let own = running.quic.clone();
                running.quic = wanted
                    .quic
                    .with_connection_ids(own.connection_ids)
                    .with_keys(own.keys)
                    .with_traces(own.traces)
                    .with_max_udp_payload(own.max_udp_payload);
            }
            None => deferred.push(format!("listener {}: it is gone, and goes on until then", given.address)),
        }
        plan.listeners.push(running);
    }
    deferred.extend(wanted.iter().flatten().map(|new| format!("listener {}: it is new", new.address)));
    deferred
}

fn differences(given: &ListenerPlan, wanted: &ListenerPlan) -> Vec<&'static str> {
    [
        ("mode", given.mode != wanted.mode),
        ("only_v6", given.only_v6 != wanted.only_v6),
        ("shared", given.shared != wanted.shared),
        ("v4_fallback", given.v4_fallback != wanted.v4_fallback),
        ("proxy_protocol", given.proxy_protocol != wanted.proxy_protocol),
        ("unix", given.unix != wanted.unix),
        ("tls", given.tls != wanted.tls),
        ("tcp", given.tcp != wanted.tcp),
        ("udp", given.udp != wanted.udp),
        ("http", given.http != wanted.http),
        // the rest of it is carried out
        ("quic.max_udp_payload", given.quic.max_udp_payload != wanted.quic.max_udp_payload),
    ]
    .into_iter()
    .filter_map(|(name, differs)| differs.then_some(name))
    .collect()
}

/// What is different from before, by name.
fn changed(before: &Plan, plan: &Plan) -> Vec<String> {
    let parts = [
        ("routes", before.routes != plan.routes),
        ("paths", before.paths != plan.paths),
        ("certificates", before.certificates != plan.certificates),
        ("access_log", before.access_log != plan.access_log),
        ("trusted_proxies", before.trusted_proxies != plan.trusted_proxies),
        ("forwarded", before.forwarded != plan.forwarded || before.via != plan.via),
        ("upgrades", before.upgrades != plan.upgrades),
        ("connect", before.connect != plan.connect),
        ("errors", before.errors != plan.errors),
        ("limits", before.limits != plan.limits || max_connections(before) != max_connections(plan)),
        ("listeners' quic", quic_of(before) != quic_of(plan)),
        ("drain_delay", before.drain_delay != plan.drain_delay),
        ("health_path", before.health_path != plan.health_path),
        ("request_id", before.request_id != plan.request_id),
        ("maintenance", before.chain.maintenance != plan.chain.maintenance),
        ("body_limit", before.chain.body_limit != plan.chain.body_limit),
        ("deadline", before.chain.deadline != plan.chain.deadline),
        ("compression", before.chain.compression != plan.chain.compression),
        ("request_decompression", before.chain.request_decompression != plan.chain.request_decompression),
        ("concurrency", before.chain.concurrency != plan.chain.concurrency),
        ("security_headers", before.chain.security_headers != plan.chain.security_headers),
        ("rate_limit", before.chain.rate_limit != plan.chain.rate_limit),
        ("rate_limit_store", before.rate_store != plan.rate_store),
        ("filter", before.chain.filter != plan.chain.filter),
        ("cors", before.chain.cors != plan.chain.cors),
        ("csrf", before.chain.csrf != plan.chain.csrf),
        ("basic_auth", before.chain.basic_auth != plan.chain.basic_auth),
        ("jwt", before.chain.jwt != plan.chain.jwt),
        ("forward_auth", before.chain.forward_auth != plan.chain.forward_auth),
        ("cache", before.cache != plan.cache || before.chain.cache != plan.chain.cache),
    ];
    let mut changed: Vec<String> =
        parts.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name.to_owned()).collect();
    for cluster in &plan.clusters {
        match before.clusters.iter().find(|known| known.name == cluster.name) {
            None => changed.push(format!("cluster {} (new)", cluster.name)),
            Some(known) if known != cluster => changed.push(format!("cluster {}", cluster.name)),
            Some(_) => {}
        }
    }
    let gone = before.clusters.iter().filter(|known| plan.clusters.iter().all(|now| now.name != known.name));
    changed.extend(gone.map(|known| format!("cluster {} (gone)", known.name)));
    changed
}

fn max_connections(plan: &Plan) -> Vec<Option<usize>> {
    plan.listeners.iter().map(|listener| listener.max_connections).collect()
}

fn quic_of(plan: &Plan) -> Vec<&QuicOptions> {
    plan.listeners.iter().map(|listener| &listener.quic).collect()
}
