//! What happens before a handshake goes on: names on demand, and answers of other instances.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use portcullis_tls::{AskedName, NameHook};
use tokio::sync::watch;

use crate::{
    acme::{Acme, Inner},
    error::Causes,
    names::{self, certificate_id},
    options::Challenge,
    run::{Done, Stop},
    state::Busy,
    status::count,
};

/// How long a policy may take.
const ASK: Duration = Duration::from_secs(5);
/// How often the storage is looked at for a name that another instance is having issued, and how many times.
const ELSEWHERE_EVERY: Duration = Duration::from_millis(250);
const ELSEWHERE_TIMES: usize = 240;

type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Acme {
    /// What the acceptor of TLS connections asks before a handshake goes on, for
    /// [`portcullis_tls::AcceptorOptions::with_name_hook`]. Needed for TLS-ALPN-01 where several instances share a
    /// storage, and for names on demand; harmless elsewhere. It gives `None` at once for names that have a
    /// certificate.
    ///
    /// Its futures need a tokio runtime of any kind. They begin nothing that is theirs: dropping one ends the waiting
    /// and not the order.
    pub fn name_hook(&self) -> NameHook {
        let inner = Arc::clone(&self.0);
        Arc::new(
            move |asked: AskedName<'_>| {
                if asked.challenge { inner.challenge(asked.name) } else { inner.on_demand(asked.name) }
            },
        )
    }
}

/// A name that clients wait for; when it is dropped they go on.
struct PendingGuard<'a> {
    inner: &'a Inner,
    name: &'a str,
}

impl Drop for PendingGuard<'_> {
    fn drop(&mut self) {
        self.inner.state.lock().pending.remove(self.name);
    }
}

impl Inner {
    /// Somebody wants to see the answer to a challenge.
    fn challenge(&self, name: &str) -> Option<Wait> {
        let is_ours = || {
            self.alpn_names.contains(name)
                || self.options.on_demand.is_some() && names::on_demand(name).is_some()
        };
        let is_looked_for = matches!(self.options.challenge, Challenge::TlsAlpn01)
            && !self.answers.is_settled(name)
            && is_ours();
        is_looked_for.then(|| -> Wait { Box::pin(Arc::clone(&self.answers).fetch_alpn(name.to_owned())) })
    }

    /// Somebody wants a certificate.
    fn on_demand(&self, asked: &str) -> Option<Wait> {
        let on_demand = self.options.on_demand.as_ref()?;
        if self.store.knows(asked) || self.running.load(Ordering::Acquire) == 0 {
            return None;
        }
        let name = names::on_demand(asked)?;
        let mut state = self.state.lock();
        let mut told = if let Some(pending) = state.pending.get(&name) {
            pending.subscribe()
        } else {
            // one that is known and not pending failed a moment ago, or is one of the options'
            if state.by_name.contains_key(&name) || state.refused.has(&name, self.since.elapsed()) {
                return None;
            }
            if state.pending.len() >= on_demand.max_pending {
                count(&self.stats.on_demand_over_bound);
                return None;
            }
            let (tell, told) = watch::channel(());
            state.pending.insert(name.clone(), tell);
            state.queue.push_back(name);
            self.wake.notify_one();
            told
        };
        drop(state);
        let wait = on_demand.wait;
        Some(Box::pin(async move {
            // the sender says nothing and is dropped in the end
            let _ = tokio::time::timeout(wait, told.changed()).await;
        }))
    }

    /// What a policy says about a name.
    pub(crate) async fn ask(&self, name: &str) -> bool {
        let Some(on_demand) = &self.options.on_demand else { return true };
        tokio::time::timeout(ASK, on_demand.ask.allows(name)).await.unwrap_or(false)
    }

    /// A name that was asked for: from the storage, or issued if the policy and the bounds allow it.
    pub(crate) async fn first(self: &Arc<Self>, name: &str, stop: &mut Stop) {
        let _pending = PendingGuard { inner: self, name };
        let id = certificate_id(&[name.to_owned()]);
        if self.first_stored(&id, name).await || !self.has_room() {
            return;
        }
        count(&self.stats.on_demand_asked);
        let allowed = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            allowed = self.ask(name) => allowed,
        };
        if !allowed {
            count(&self.stats.on_demand_refused);
            if let Some(others) = self.refusals_told.now() {
                tracing::info!(
                    name,
                    others,
                    "no certificate is issued for a name that a client asked for: the policy refuses it"
                );
            }
            self.refuse(name);
            return;
        }
        if !self.begin(&id, name) {
            return;
        }
        for _ in 0..ELSEWHERE_TIMES {
            match self.issue(&id, stop).await {
                Done::Elsewhere => tokio::time::sleep(ELSEWHERE_EVERY).await,
                Done::Served => return,
                Done::Failed => break,
            }
            if *stop.borrow() {
                break;
            }
            if let Some(managed) = self.state.lock().certs.get_mut(&id) {
                managed.busy = Busy::Issuing;
            }
        }
        // asked for again, it is a new name
        let mut state = self.state.lock();
        let not_before = state.certs.get(&id).and_then(|managed| managed.not_before);
        let wait = not_before.map(|at| at.saturating_duration_since(tokio::time::Instant::now()));
        state.remove(&id);
        state.refused.insert_failed(name, self.since.elapsed(), wait.unwrap_or_default());
    }

    /// Serves a certificate that the storage has: of an earlier start, or another instance's.
    async fn first_stored(self: &Arc<Self>, id: &str, name: &str) -> bool {
        let (inner, wanted) = (Arc::clone(self), id.to_owned());
        let bundle = match self.blocking(move |_| inner.stored(&wanted)).await {
            Ok(Some(bundle)) if bundle.meta.on_demand && bundle.meta.names == [name] => bundle,
            Ok(_) => return false,
            Err(error) => {
                tracing::warn!(name, error = %Causes(&error), "a stored certificate is left alone");
                return false;
            }
        };
        {
            let mut state = self.state.lock();
            let most = self.options.on_demand.as_ref().map_or(0, |on_demand| on_demand.max_names);
            if state.on_demand >= most {
                return false;
            }
            state.add(id.to_owned(), vec![name.to_owned()], true);
        }
        self.serve(id, bundle).await;
        true
    }

    /// Whether a name may be asked about: if it could not have a certificate anyway, the policy is left alone.
    fn has_room(&self) -> bool {
        let Some(on_demand) = &self.options.on_demand else { return false };
        let mut state = self.state.lock();
        let has_room = state.on_demand < on_demand.max_names && state.bound.has_room(self.since.elapsed());
        if !has_room {
            count(&self.stats.on_demand_over_bound);
        }
        has_room
    }

    /// Counts a name that was allowed, if there is still room.
    fn begin(&self, id: &str, name: &str) -> bool {
        let Some(on_demand) = &self.options.on_demand else { return false };
        let mut state = self.state.lock();
        let has_room = state.on_demand < on_demand.max_names && state.bound.take(self.since.elapsed());
        if has_room {
            state.add(id.to_owned(), vec![name.to_owned()], true).busy = Busy::Issuing;
        } else {
            count(&self.stats.on_demand_over_bound);
            if let Some(others) = self.bounds_told.now() {
                tracing::warn!(
                    name,
                    others,
                    "no certificate is issued on demand: as many as allowed were begun already"
                );
            }
        }
        has_room
    }

    fn refuse(&self, name: &str) {
        self.state.lock().refused.insert(name, self.since.elapsed());
    }
}

#[cfg(test)]
mod tests;
