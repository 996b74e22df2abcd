//! The certificate store: which certificate answers for which name, changed while connections run.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, SystemTime},
};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::{
    cert_error::CertError,
    compress,
    pair::{Added, Pair},
    server_tls::asks_for_challenge,
    set::{CertSet, Loaded},
};
use content::{Content, Entry, OWN};

mod content;

/// At most one log line about unknown names in so many milliseconds; the others are counted in it.
const LOG_EVERY_MS: u64 = 1000;

/// Certificates by name.
///
/// A look-up is two hash look-ups however many certificates there are: the exact name, then the wildcard of its
/// parent, one label deep (RFC 9525 section 6.3). Readers never wait; a change builds the new content beside the
/// old and swaps it, and a handshake under way goes on with what it found.
///
/// A name may have one certificate of each kind of key: a client gets the ECDSA one, or else Ed25519, or else RSA, whichever is the
/// first that it can verify.
///
/// A client that sends no name (it connects by IP address) gets the first certificate that has an IP address, or
/// else the default, which is the first one added. A client that asks for a name nobody has gets the default too,
/// or in a [strict](CertStore::with_strict) store nothing: the handshake ends in an alert. Unknown names are
/// counted, and logged once a second at most.
///
/// Whoever keeps certificates of his own here, and replaces them together, takes a [`CertPart`].
///
/// Memory: a P-256 chain of two takes about 6 KiB.
pub struct CertStore {
    content: ArcSwap<Content>,
    /// Held while content is built from the content before.
    change: Mutex<()>,
    next_part: AtomicU64,
    strict: bool,
    unknown: UnknownNames,
    challenges: Challenges,
}

/// What is known about one certificate of the store.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CertSummary {
    /// Its DNS names.
    pub names: Vec<String>,
    /// Its IP addresses.
    pub addresses: Vec<IpAddr>,
    /// Until when it is valid.
    pub not_after: SystemTime,
    /// SHA-256 over it, in hexadecimal.
    pub fingerprint: String,
    /// How many full handshakes asked for it. A certificate that takes another's place, name for name, goes on
    /// from that one's count.
    pub resolutions: u64,
}

/// One owner's certificates in a [`CertStore`], replaced together without touching anybody else's. Where two owners have the same name and
/// kind of key, the part that was made later wins. Dropping it leaves the certificates where they are. A clone is the same part.
#[derive(Clone, Debug)]
pub struct CertPart {
    store: Arc<CertStore>,
    id: u64,
}

impl CertPart {
    /// Puts a set in place of what this part had, in one step: no handshake sees a part of it.
    pub fn replace(&self, set: CertSet) {
        self.replace_pairs(set.pairs);
    }

    pub(crate) fn replace_pairs(&self, pairs: Vec<Pair>) {
        self.store.change(|content| content.set_part(self.id, pairs));
    }
}

/// Answers to TLS-ALPN-01 challenges (RFC 8737): certificates for those who come to validate a name, and for nobody else.
#[derive(Debug, Default)]
pub struct Challenges(RwLock<HashMap<Box<str>, Arc<CertifiedKey>>>);

impl Challenges {
    /// Shows this certificate to who asks for the name's challenge.
    pub fn insert(&self, name: &str, key: Arc<CertifiedKey>) {
        self.0.write().insert(name.to_ascii_lowercase().into(), key);
    }

    /// Forgets the name's challenge.
    pub fn remove(&self, name: &str) {
        self.0.write().remove(name.to_ascii_lowercase().as_str());
    }

    pub(crate) fn get(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        self.0.read().get(name?.to_ascii_lowercase().as_str()).cloned()
    }
}

impl CertStore {
    /// An empty store that answers unknown names with the default certificate.
    pub fn new() -> Self {
        Self {
            content: ArcSwap::default(),
            change: Mutex::new(()),
            next_part: AtomicU64::new(OWN + 1),
            strict: false,
            unknown: UnknownNames::new(),
            challenges: Challenges::default(),
        }
    }

    /// Whether unknown names are refused in place of answered with the default certificate. Default `false`.
    #[must_use]
    pub fn with_strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// A part of the store for one owner; empty, and so without effect, until it is filled.
    pub fn part(self: &Arc<Self>) -> CertPart {
        CertPart { id: self.next_part.fetch_add(1, Ordering::Relaxed), store: Arc::clone(self) }
    }

    /// Answers to challenges.
    pub fn challenges(&self) -> &Challenges {
        &self.challenges
    }

    /// Adds a chain (leaf first) and its key from PEM text. Names that another certificate with the same kind of key had
    /// are now this one's.
    ///
    /// # Errors
    /// As [`CertSet::add_pem`]; the store is then as it was.
    pub fn add_pem(&self, cert_pem: &[u8], key_pem: &[u8]) -> Result<Added, CertError> {
        self.add_with(|set| set.add_pem(cert_pem, key_pem))
    }

    /// Adds a chain and its key from two files.
    ///
    /// # Errors
    /// As [`CertSet::load_files`]; the store is then as it was.
    pub fn load_files(&self, cert: &Path, key: &Path) -> Result<Added, CertError> {
        self.add_with(|set| set.load_files(cert, key))
    }

    /// Adds the pairs of a directory.
    ///
    /// # Errors
    /// As [`CertSet::load_directory`]; the store is then as it was.
    pub fn load_directory(&self, directory: &Path) -> Result<Loaded, CertError> {
        self.add_with(|set| set.load_directory(directory))
    }

    /// Makes and adds a certificate for local use.
    ///
    /// # Errors
    /// As [`CertSet::add_self_signed`]; the store is then as it was.
    pub fn add_self_signed(&self, names: &[String]) -> Result<Added, CertError> {
        self.add_with(|set| set.add_self_signed(names))
    }

    /// Adds all of a set in one step. For many certificates this is the way: every change builds the tables anew.
    pub fn add_all(&self, set: CertSet) {
        self.change(|content| content.add(set.pairs));
    }

    /// Replaces everything by a set in one step: no handshake sees a part of it. The [parts](CertStore::part) of others are emptied as well.
    pub fn replace_all(&self, set: CertSet) {
        self.change(|content| {
            content.parts.clear();
            content.add(set.pairs);
        });
    }

    /// Replaces, in one step, what the names of this set had, whatever the kind of key, by the set.
    pub fn replace_names(&self, set: CertSet) {
        self.change(|content| {
            for pair in &set.pairs {
                for name in &pair.about.names {
                    content.remove(name);
                }
            }
            content.add(set.pairs);
        });
    }

    /// Takes the certificates of this name out, with all their names. `false` when there is none. What a [`crate::CertReloader`] keeps is back with
    /// the next change of its files.
    pub fn remove(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        self.change(|content| content.remove(&name))
    }

    /// The certificate for a name, or for a client that gave none. Counts nothing and logs nothing.
    pub fn lookup(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let content = self.content.load();
        content.pick(name, self.strict).0.map(|slot| Arc::clone(&slot.first().key))
    }

    /// Whether there is a certificate for a name, be it by a wildcard.
    pub fn knows(&self, name: &str) -> bool {
        self.content.load().pick(Some(name), true).1
    }

    /// All names, sorted, wildcards as `*.example.com`.
    pub fn names(&self) -> Vec<String> {
        let content = self.content.load();
        let exact = content.exact.keys().map(|name| name.to_string());
        let mut names: Vec<_> =
            exact.chain(content.wildcard.keys().map(|parent| format!("*.{parent}"))).collect();
        names.sort_unstable();
        names
    }

    /// The certificates, in the order of adding, for metrics and for a person.
    pub fn certificates(&self) -> Vec<CertSummary> {
        let summary = |entry: &Arc<Entry>| CertSummary {
            names: entry.about.names.clone(),
            addresses: entry.about.addresses.clone(),
            not_after: entry.about.not_after,
            fingerprint: entry.about.fingerprint.clone(),
            resolutions: entry.resolutions.load(Ordering::Relaxed),
        };
        self.content.load().all().map(summary).collect()
    }

    /// When the next certificate expires; `None` without any.
    pub fn next_expiry(&self) -> Option<SystemTime> {
        self.content.load().all().map(|entry| entry.about.not_after).min()
    }

    /// How many certificates there are.
    pub fn len(&self) -> usize {
        self.content.load().all().count()
    }

    /// Whether there is none, so that every handshake fails.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many clients asked for a name that no certificate has, or found the store empty.
    pub fn unknown_names(&self) -> u64 {
        self.unknown.count.load(Ordering::Relaxed)
    }

    fn add_with<T>(&self, fill: impl FnOnce(&mut CertSet) -> Result<T, CertError>) -> Result<T, CertError> {
        let mut set = CertSet::new();
        let outcome = fill(&mut set)?;
        self.add_all(set);
        Ok(outcome)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Content) -> T) -> T {
        let _guard = self.change.lock();
        let mut content = Content::of_parts(self.content.load().parts.clone());
        let outcome = change(&mut content);
        content.settle();
        compress::make_room(content.all().count());
        self.content.store(Arc::new(content));
        outcome
    }

    /// What a client gets.
    pub(crate) fn answer(&self, hello: &ClientHello<'_>, strict: bool) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name();
        if asks_for_challenge(hello) {
            return self.challenges.get(name);
        }
        let strict = strict || self.strict;
        let content = self.content.load();
        let (slot, known) = content.pick(name, strict);
        if !known {
            self.unknown.saw(name, strict);
        }
        slot.map(|slot| {
            let entry = slot.choose(hello.signature_schemes());
            entry.resolutions.fetch_add(1, Ordering::Relaxed);
            Arc::clone(&entry.key)
        })
    }
}

impl Default for CertStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for CertStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertStore")
            .field("certificates", &self.len())
            .field("strict", &self.strict)
            .finish_non_exhaustive()
    }
}

impl ResolvesServerCert for CertStore {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.answer(&hello, false)
    }
}

/// Counts unknown names and logs them, bounded in rate.
#[derive(Debug)]
struct UnknownNames {
    count: AtomicU64,
    /// The count when the last line was logged.
    logged: AtomicU64,
    /// When, in milliseconds since `since`, plus one; 0 is never.
    logged_at: AtomicU64,
    since: Instant,
}

impl UnknownNames {
    fn new() -> Self {
        Self {
            count: AtomicU64::new(0),
            logged: AtomicU64::new(0),
            logged_at: AtomicU64::new(0),
            since: Instant::now(),
        }
    }

    fn saw(&self, name: Option<&str>, strict: bool) {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let now = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let last = self.logged_at.load(Ordering::Relaxed);
        if last != 0 && now.saturating_sub(last) < LOG_EVERY_MS {
            return;
        }
        if self.logged_at.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let others = count.saturating_sub(self.logged.swap(count, Ordering::Relaxed)).saturating_sub(1);
            // The name was checked by rustls to be a DNS name: at most 253 plain characters.
            let name = name.unwrap_or("(none)");
            let answer = if strict { "refused" } else { "default certificate" };
            tracing::warn!(name, answer, others, "a client asked for a name that no certificate has");
        }
    }
}

#[cfg(test)]
mod tests;
