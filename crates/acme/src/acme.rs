//! The parts together: what a program holds.

use std::{
    collections::HashSet,
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use parking_lot::Mutex;
use portcullis_tls::{Added, CertPart, CertSet, CertStore};
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

use crate::{
    answers::Answers,
    bundle::{self, Bundle},
    client::{self, Client},
    error::{AcmeError, Causes, OptionsError},
    http01::Http01Layer,
    names::{self, MAX_NAMES, base64url, certificate_id, digest_hex},
    options::{AcmeOptions, Challenge},
    seldom::Seldom,
    state::{Busy, State},
    status::{AcmeStats, CertStatus, Counters},
    storage::Storage,
};

/// Certificates from an authority, in a [`CertStore`], kept up as long as [`Acme::run`] runs. Clones are the same.
#[derive(Clone)]
pub struct Acme(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) options: AcmeOptions,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) store: Arc<CertStore>,
    part: CertPart,
    /// Held while the part is filled, so that an older set never takes the place of a newer one.
    publishing: Mutex<()>,
    pub(crate) client: Client,
    pub(crate) answers: Arc<Answers>,
    pub(crate) state: Mutex<State>,
    pub(crate) wake: Notify,
    /// One place for each order under way.
    pub(crate) orders: Semaphore,
    /// How many times [`Acme::run`] runs now: without it nobody is made to wait.
    pub(crate) running: AtomicUsize,
    /// The names by which TLS-ALPN-01 asks for the certificates of the options.
    pub(crate) alpn_names: HashSet<String>,
    pub(crate) stats: Counters,
    /// What times of bounds are counted from.
    pub(crate) since: Instant,
    pub(crate) directory_id: String,
    is_loaded: AtomicBool,
    /// Certificates of other sets of names, from before the options changed: served for the names that nothing else has.
    stop_gaps: Mutex<Vec<Bundle>>,
    pub(crate) refusals_told: Seldom,
    pub(crate) bounds_told: Seldom,
}

/// What [`Acme::load`] found.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Loaded {
    /// What is served from now on, expired certificates included.
    pub added: Vec<Added>,
    /// The names of each certificate that there is none of: [`Acme::run`] has them issued first.
    pub missing: Vec<Vec<String>>,
    /// What was stored and can't be served. It is issued anew.
    pub failed: Vec<AcmeError>,
}

impl Acme {
    /// With a certificate store, of which it fills a [part](CertStore::part), and a storage. Nothing is read yet, but
    /// the system's root certificates where the options say so.
    ///
    /// # Errors
    /// When an option is out of its bounds, or two contradict each other.
    pub fn new(
        store: &Arc<CertStore>,
        storage: Arc<dyn Storage>,
        options: AcmeOptions,
    ) -> Result<Self, AcmeError> {
        let options = checked(options)?;
        let client = Client::new(options.roots.clone())?;
        let mut state = State::new(options.on_demand.as_ref());
        for names in &options.certificates {
            state.add(certificate_id(names), names.clone(), false);
        }
        let url = options.directory.url();
        let host = url.split('/').nth(2).unwrap_or_default().replace([':', '[', ']'], "_");
        let host: String = host.chars().take(100).collect();
        Ok(Self(Arc::new(Inner {
            directory_id: format!("{host}-{}", &digest_hex(url.as_bytes())[..16]),
            part: store.part(),
            publishing: Mutex::new(()),
            client,
            answers: Arc::new(Answers::new(Arc::clone(&storage), Arc::clone(store))),
            state: Mutex::new(state),
            wake: Notify::new(),
            orders: Semaphore::new(options.orders_at_once.min(Semaphore::MAX_PERMITS)),
            running: AtomicUsize::new(0),
            alpn_names: options.certificates.iter().flatten().map(|name| names::alpn_name(name)).collect(),
            stats: Counters::default(),
            since: Instant::now(),
            store: Arc::clone(store),
            is_loaded: AtomicBool::new(false),
            stop_gaps: Mutex::default(),
            refusals_told: Seldom::default(),
            bounds_told: Seldom::default(),
            storage,
            options,
        })))
    }

    /// Serves what the storage has, without any request to the authority: a start never waits for it. Blocks on files,
    /// a few for each certificate; within a runtime, call it in `spawn_blocking`. Where it was not called,
    /// [`Acme::run`] begins with it.
    ///
    /// An expired certificate is served, with a warning; one that can't be read is told of, left where it is until a
    /// new one takes its place, and counted as missing.
    ///
    /// # Errors
    /// When the storage can't be read.
    pub fn load(&self) -> Result<Loaded, AcmeError> {
        self.0.load()
    }

    /// How it stands with each certificate, those of the options first.
    pub fn status(&self) -> Vec<CertStatus> {
        self.0.state.lock().status(self.0.options.renew_before)
    }

    /// The counters.
    pub fn stats(&self) -> AcmeStats {
        self.0.stats.read()
    }

    /// Has the certificate of this name issued anew as soon as [`Acme::run`] gets to it, whatever its lifetime: after
    /// its key became known to others, for instance. It does not end a wait after failures. `false` when no
    /// certificate here has the name.
    pub fn renew(&self, name: &str) -> bool {
        let Ok(name) = names::normal(name) else { return false };
        let is_known = {
            let mut state = self.0.state.lock();
            let id = state.by_name.get(&name).cloned();
            id.and_then(|id| state.certs.get_mut(&id)).map(|managed| managed.is_forced = true).is_some()
        };
        self.0.wake.notify_one();
        is_known
    }

    /// The key in the storage of the certificate that has this name, for a person who looks for it; `None` when no
    /// certificate here has the name.
    pub fn storage_key(&self, name: &str) -> Option<String> {
        let name = names::normal(name).ok()?;
        let id = self.0.state.lock().by_name.get(&name).cloned()?;
        Some(self.0.certificate_key(&id))
    }

    /// Changes the account's key (RFC 8555 section 7.3.5), for all instances on this storage; makes an account where
    /// there is none.
    ///
    /// The new key is known to this process alone between the authority's consent and the storing of it. A mark is
    /// stored before, so a process that dies there loses the account and nothing else: the next order finds out and
    /// makes a new account. Orders under way in other instances may fail once.
    ///
    /// # Errors
    /// When the authority refuses or can't be reached, or the storage fails. Needs a tokio runtime; dropping the
    /// future has the effect of dying at that point.
    pub async fn roll_key(&self) -> Result<(), AcmeError> {
        self.0.roll_key().await
    }

    /// A tower layer that answers HTTP-01 challenges, for the service on port 80.
    pub fn http01(&self) -> Http01Layer {
        let is_used = matches!(self.0.options.challenge, Challenge::Http01);
        Http01Layer::new(Arc::clone(&self.0.answers), is_used)
    }
}

impl fmt::Debug for Acme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acme")
            .field("directory", &self.0.options.directory.url())
            .field("challenge", &self.0.options.challenge)
            .finish_non_exhaustive()
    }
}

impl Inner {
    pub(crate) fn certificate_key(&self, id: &str) -> String {
        format!("certificates/{}/{id}", self.directory_id)
    }

    /// Does something with the storage on a thread that may block.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&dyn Storage) -> Result<T, AcmeError> + Send + 'static,
    ) -> Result<T, AcmeError> {
        let storage = Arc::clone(&self.storage);
        let done = tokio::task::spawn_blocking(move || work(&*storage));
        done.await.unwrap_or(Err(AcmeError::Cut))
    }

    /// Reads a stored certificate, if there is one. Blocks.
    pub(crate) fn stored(&self, id: &str) -> Result<Option<Bundle>, AcmeError> {
        self.stored_other_than(id, None)
    }

    /// `None` also for the one with this digest, which is not read any further.
    fn stored_other_than(&self, id: &str, known: Option<&str>) -> Result<Option<Bundle>, AcmeError> {
        let key = self.certificate_key(id);
        let Some(bytes) = self.storage.load(&key)? else { return Ok(None) };
        if known.is_some_and(|known| known == digest_hex(&bytes)) {
            return Ok(None);
        }
        bundle::read(&bytes, &format!("the storage's {key}")).map(Some)
    }

    /// Serves what is known now. Blocks for a moment: with 10,000 certificates a tenth of a second.
    pub(crate) fn publish(&self) {
        let _one_at_a_time = self.publishing.lock();
        let mut set = CertSet::new();
        let mut stop_gaps = self.stop_gaps.lock();
        let served = {
            let state = self.state.lock();
            let served = state.served();
            let has = |name: &String| served.iter().any(|bundle| bundle.meta.names.contains(name));
            // as long as one of its names has nothing else
            let is_needed = |name: &String| state.by_name.contains_key(name) && !has(name);
            stop_gaps.retain(|gap| gap.meta.names.iter().any(is_needed));
            served
        };
        // the later one wins a name, which is what is meant for it
        for bundle in stop_gaps.iter().chain(served.iter().map(|bundle| &**bundle)) {
            bundle.add_to(&mut set);
        }
        drop(stop_gaps);
        self.part.replace(set);
    }

    /// Takes a certificate and serves it.
    pub(crate) async fn serve(self: &Arc<Self>, id: &str, bundle: Bundle) {
        if let Some(managed) = self.state.lock().certs.get_mut(id) {
            managed.take(bundle);
        }
        let inner = Arc::clone(self);
        // a panic there would be told by the runtime
        let _ = tokio::task::spawn_blocking(move || inner.publish()).await;
    }

    pub(crate) fn is_loaded(&self) -> bool {
        self.is_loaded.load(Ordering::Acquire)
    }

    pub(crate) fn load(&self) -> Result<Loaded, AcmeError> {
        if let Some(exposed) = self.storage.exposed() {
            tracing::warn!("{exposed}");
        }
        let now = SystemTime::now();
        self.answers.sweep_storage(now);
        let mut loaded = Loaded::default();
        let wanted: Vec<_> = {
            let state = self.state.lock();
            state.certs.iter().map(|(id, managed)| (id.clone(), managed.names.clone())).collect()
        };
        for (id, names) in wanted {
            match self.stored(&id) {
                Ok(Some(bundle)) => self.take_loaded(&id, bundle, now, &mut loaded),
                Ok(None) => loaded.missing.push(names),
                // one bad file keeps nobody else's certificate from being served
                Err(error) => {
                    tracing::warn!(error = %Causes(&error), "a stored certificate is issued anew");
                    loaded.missing.push(names);
                    loaded.failed.push(error);
                }
            }
        }
        let is_storage = |error: &AcmeError| matches!(error, AcmeError::Storage(_));
        if loaded.added.is_empty()
            && loaded.failed.len() == loaded.missing.len()
            && loaded.failed.iter().all(is_storage)
            && let Some(error) = loaded.failed.pop()
        {
            // not one could be looked at: it is the storage, and what is in it must not be taken for missing
            return Err(error);
        }
        self.load_stop_gaps(now, &mut loaded);
        self.load_on_demand(now, &mut loaded)?;
        self.publish();
        self.is_loaded.store(true, Ordering::Release);
        Ok(loaded)
    }

    /// For names without a certificate: one of another set of names that has them, as it was issued before names were added or removed.
    fn load_stop_gaps(&self, now: SystemTime, loaded: &mut Loaded) {
        if loaded.missing.is_empty() {
            return;
        }
        let prefix = format!("certificates/{}", self.directory_id);
        let Ok(keys) = self.storage.list(&prefix) else { return };
        for key in keys {
            let id = &key[prefix.len() + 1..];
            if self.state.lock().certs.contains_key(id) {
                continue;
            }
            let Ok(Some(bundle)) = self.stored(id) else { continue };
            let mut missing = loaded.missing.iter().flatten();
            if !bundle.is_expired(now) && missing.any(|name| bundle.meta.names.contains(name)) {
                let names = bundle.meta.names.join(", ");
                tracing::info!(
                    names,
                    "an earlier certificate is served until the one for the new names is there"
                );
                loaded.added.push(bundle.about.clone());
                self.stop_gaps.lock().push(bundle);
            }
        }
    }

    /// What clients asked for before this start.
    fn load_on_demand(&self, now: SystemTime, loaded: &mut Loaded) -> Result<(), AcmeError> {
        let Some(on_demand) = &self.options.on_demand else { return Ok(()) };
        let prefix = format!("certificates/{}", self.directory_id);
        for key in self.storage.list(&prefix)? {
            let id = &key[prefix.len() + 1..];
            let is_room = {
                let state = self.state.lock();
                state.on_demand < on_demand.max_names && !state.certs.contains_key(id)
            };
            // another one's that can't be read is told of when somebody asks for the name
            if is_room
                && let Ok(Some(bundle)) = self.stored(id)
                && bundle.meta.on_demand
                && let [name] = &bundle.meta.names[..]
                && !self.state.lock().by_name.contains_key(name)
                // it has one from elsewhere by now
                && !self.store.knows(name)
            {
                self.state.lock().add(id.to_owned(), vec![name.clone()], true);
                self.take_loaded(id, bundle, now, loaded);
            }
        }
        Ok(())
    }

    fn take_loaded(&self, id: &str, bundle: Bundle, now: SystemTime, loaded: &mut Loaded) {
        if bundle.is_expired(now) {
            let names = bundle.meta.names.join(", ");
            tracing::warn!(
                names,
                "the stored certificate has expired: it is served until there is a new one"
            );
        }
        loaded.added.push(bundle.about.clone());
        if let Some(managed) = self.state.lock().certs.get_mut(id) {
            managed.take(bundle);
        }
    }

    /// Takes over what other instances stored. Blocks.
    pub(crate) fn look(&self) {
        let known: Vec<_> = {
            let state = self.state.lock();
            let idle = state.certs.iter().filter(|(_, managed)| managed.busy == Busy::No);
            let digest = |(id, managed): (&String, &crate::state::Managed)| {
                (id.clone(), managed.served.as_ref().map(|served| served.digest.clone()))
            };
            idle.map(digest).collect()
        };
        let mut changed = 0;
        for (id, digest) in known {
            let stored = match self.stored_other_than(&id, digest.as_deref()) {
                Ok(Some(stored)) => stored,
                Ok(None) => continue,
                Err(error) => {
                    tracing::debug!(error = %Causes(&error), "a stored certificate is left alone");
                    continue;
                }
            };
            let mut state = self.state.lock();
            if let Some(managed) = state.certs.get_mut(&id)
                && managed.busy == Busy::No
                && managed.served.as_ref().is_none_or(|served| served.is_older(&stored))
            {
                log_updated(&stored.about);
                managed.take(stored);
                changed += 1;
            }
        }
        if changed > 0 {
            self.publish();
            self.stats.adopted.fetch_add(changed, Ordering::Relaxed);
        }
    }
}

/// In the words of certificates that come from files.
pub(crate) fn log_updated(about: &Added) {
    let days = about.not_after.duration_since(SystemTime::now()).unwrap_or_default().as_secs() / 86_400;
    for domain in &about.names {
        tracing::info!(
            domain,
            valid_for_days = days,
            fingerprint = about.fingerprint,
            "updated certificate for domain"
        );
    }
    if about.names.is_empty() {
        let addresses = &about.addresses;
        tracing::info!(?addresses, valid_for_days = days, "updated certificate for addresses");
    }
}

/// Options in one form, or why not.
pub(crate) fn checked(mut options: AcmeOptions) -> Result<AcmeOptions, OptionsError> {
    client::check_url(options.directory.url(), "the directory of a certificate authority", &["https"])?;
    if let Some(external) = &options.external_account
        && base64url(&external.hmac_key).is_none()
    {
        return Err(OptionsError::HmacKey);
    }
    for contact in &mut options.contacts {
        if !contact.contains(':') {
            *contact = format!("mailto:{contact}");
        }
    }
    let is_dns = matches!(options.challenge, Challenge::Dns01(_));
    let mut all = HashSet::new();
    for (position, names) in (1..).zip(&mut options.certificates) {
        let count = names.len();
        if count > MAX_NAMES {
            return Err(OptionsError::TooManyNames { position, count, limit: MAX_NAMES });
        }
        if names.is_empty() {
            return Err(OptionsError::NoNames { position });
        }
        for given in names {
            let name = names::normal(given)?;
            if name.starts_with("*.") && !is_dns {
                return Err(OptionsError::Wildcard { name });
            }
            if is_dns && name.parse::<IpAddr>().is_ok() {
                return Err(OptionsError::Address { name });
            }
            if !all.insert(name.clone()) {
                return Err(OptionsError::NameTwice { name });
            }
            *given = name;
        }
    }
    options.orders_at_once = options.orders_at_once.max(1);
    Ok(options.clone().with_retry(options.retry_min, options.retry_max).with_poll(options.poll))
}

#[cfg(test)]
mod tests;
