//! What a worker has in its hands for a reload: the services of its listeners, its clients, and what watches over clusters.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use portcullis_tls::ReloadOptions;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tracing::error;

use crate::{
    PlanFault,
    certs::Tls,
    clusters::ClusterPart,
    dispatch::Routes,
    edge::Shared,
    followed::{self, Followed},
    keys::Fetched,
    live::Live,
    reload::Swap,
    routes::{self, Clients},
    service::Slot,
    workers::service,
};

/// One worker's.
pub(crate) struct Hands {
    shared: Arc<Shared>,
    clients: Clients,
    routes: Arc<Routes>,
    slots: Vec<Listener>,
    /// The worker that watches over clusters for all of them.
    watches: bool,
    watched: HashMap<String, Watched>,
    watching: JoinSet<()>,
    /// What follows the files of chains.
    following: Option<Following>,
    /// What asks for keys, each with who is asked.
    fetching: Vec<Fetching>,
}

/// Files that are followed until this is dropped.
struct Following {
    files: Vec<Arc<Followed>>,
    options: ReloadOptions,
    _task: JoinSet<()>,
}

/// Keys that are asked for until this is dropped.
struct Fetching {
    fetched: Arc<Fetched>,
    part: Arc<ClusterPart>,
    /// What the cluster's client is made anew for, too.
    names: bool,
    _task: JoinSet<()>,
}

fn task(work: impl Future<Output = ()> + Send + 'static) -> JoinSet<()> {
    let mut one = JoinSet::new();
    one.spawn(work);
    one
}

struct Listener {
    /// Its place in the plan.
    at: usize,
    port: u16,
    slot: Slot,
}

/// A cluster whose endpoints are looked for and looked after, until this is dropped.
struct Watched {
    part: Arc<ClusterPart>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Hands {
    /// Of a worker that begins. `watches` is for one of them.
    pub(crate) fn new(shared: &Arc<Shared>, watches: bool) -> Result<Self, PlanFault> {
        let live = shared.live.load_full();
        let mut clients = Clients::default();
        let routes = Arc::new(routes::table(shared, &live, &mut clients)?);
        let (watched, watching, following, fetching) = Default::default();
        let shared = Arc::clone(shared);
        let slots = Vec::new();
        let mut hands =
            Self { shared, clients, routes, slots, watches, watched, watching, following, fetching };
        hands.watch(&live)?;
        hands.follow_parts(&live);
        Ok(hands)
    }

    /// The service of a listener, which follows every reload.
    pub(crate) fn slot(&mut self, at: usize, port: u16) -> Slot {
        let live = self.shared.live.load_full();
        let service = service(&self.shared, &live, at, &self.routes, port);
        let slot: Slot = Arc::new(ArcSwap::from_pointee(service));
        self.slots.push(Listener { at, port, slot: Arc::clone(&slot) });
        slot
    }

    /// Takes reloads in until the drain begins. Ends before only if something that watches over a cluster panicked.
    pub(crate) async fn follow(mut self, mut swaps: mpsc::UnboundedReceiver<Swap>) {
        let stop = self.shared.stop.clone();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(swap) = swaps.recv() => self.take(swap).await,
                Some(Err(ended)) = self.watching.join_next() => {
                    if ended.is_panic() {
                        return error!(error = %ended, "what watches over a cluster panicked");
                    }
                }
            }
        }
        // what is under way needs its clients' upkeep until the last of it has ended
        let (clients, finish) = (self.clients, self.shared.finish.clone());
        tokio::spawn(async move {
            finish.cancelled().await;
            drop(clients);
        });
    }

    async fn take(&mut self, swap: Swap) {
        let Swap { live, certificates, done } = swap;
        if let Some(certificates) = certificates {
            Tls::follow_instead(&self.shared, certificates).await;
        }
        let result = self.swap(&live);
        if let Err(error) = &result {
            error!(%error, "a worker goes on with the plan before");
        }
        // nobody waits if whoever reloads was dropped
        let _ = done.send(result);
    }

    fn swap(&mut self, live: &Arc<Live>) -> Result<(), PlanFault> {
        self.watch(live)?;
        self.routes = Arc::new(routes::table(&self.shared, live, &mut self.clients)?);
        self.follow_parts(live);
        for Listener { at, port, slot } in &self.slots {
            slot.store(Arc::new(service(&self.shared, live, *at, &self.routes, *port)));
        }
        Ok(())
    }

    /// Follows the files of chains, and fetches their keys. What is as before goes on: whoever is asked for keys has his rest between
    /// two questions over reloads too, and what is wrong is told once.
    fn follow_parts(&mut self, live: &Live) {
        if !self.watches {
            return;
        }
        let (files, options) = (live.parts.files(), &live.plan.certificate_reload);
        let same = |now: &Following| {
            now.options == *options
                && now.files.len() == files.len()
                && now.files.iter().zip(files).all(|(a, b)| Arc::ptr_eq(a, b))
        };
        if !self.following.as_ref().is_some_and(same) {
            self.following = (!files.is_empty()).then(|| Following {
                files: files.to_vec(),
                options: options.clone(),
                _task: task(followed::follow(files.to_vec(), options.clone())),
            });
        }
        let mut before = std::mem::take(&mut self.fetching);
        for fetched in live.parts.fetched() {
            let Some(part) = fetched.cluster().and_then(|name| live.clusters.get(name)) else { continue };
            let names = routes::needs_names(part, live);
            let same = |old: &Fetching| {
                Arc::ptr_eq(&old.fetched, fetched) && Arc::ptr_eq(&old.part, part) && old.names == names
            };
            let known = before.iter().position(same).map(|at| before.swap_remove(at));
            let new = || {
                let client = self.clients.get(part.cluster.name())?;
                let _task = task(Arc::clone(fetched).follow(client));
                Some(Fetching { fetched: Arc::clone(fetched), part: Arc::clone(part), names, _task })
            };
            self.fetching.extend(known.or_else(new));
        }
    }

    /// Watches over the clusters that there are, and no longer over others.
    fn watch(&mut self, live: &Live) -> Result<(), PlanFault> {
        if !self.watches {
            return Ok(());
        }
        self.watched.retain(|name, watched| {
            live.clusters.get(name).is_some_and(|part| Arc::ptr_eq(part, &watched.part))
        });
        for (name, part) in &live.clusters {
            if !self.watched.contains_key(name) {
                let tasks = part.watch(&self.shared.stop, &mut self.watching)?;
                self.watched.insert(name.clone(), Watched { part: Arc::clone(part), tasks });
            }
        }
        Ok(())
    }
}
