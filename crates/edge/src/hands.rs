//! What a worker has in its hands for a reload: the services of its listeners, its clients, and what watches over clusters.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
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
    followed,
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
    /// What follows the files and keys of chains. Ends when this is dropped.
    following: JoinSet<()>,
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
        let (watched, watching, following) = Default::default();
        let shared = Arc::clone(shared);
        let slots = Vec::new();
        let mut hands = Self { shared, clients, routes, slots, watches, watched, watching, following };
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

    /// Follows the files of chains, and fetches their keys.
    fn follow_parts(&mut self, live: &Live) {
        if !self.watches {
            return;
        }
        self.following = JoinSet::new();
        let files = live.parts.files();
        if !files.is_empty() {
            self.following.spawn(followed::follow(files.to_vec(), live.plan.certificate_reload.clone()));
        }
        for fetched in live.parts.fetched() {
            if let Some(client) = fetched.cluster().and_then(|name| self.clients.get(name)) {
                self.following.spawn(Arc::clone(fetched).follow(client));
            }
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
