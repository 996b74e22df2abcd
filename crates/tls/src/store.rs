//! The certificate store: which certificate answers for which name, changed while connections run.

use std::{
    collections::{HashMap, HashSet},
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
use parking_lot::Mutex;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::{
    cert_error::CertError,
    pair::{Added, Pair},
    set::{CertSet, Loaded},
};

/// At most one log line about unknown names in so many milliseconds; the others are counted in it.
const LOG_EVERY_MS: u64 = 1000;

/// Certificates by name.
///
/// A look-up is two hash look-ups however many certificates there are: the exact name, then the wildcard of its
/// parent, one label deep (RFC 9525 section 6.3). Readers never wait; a change builds the new content beside the
/// old and swaps it, and a handshake under way goes on with what it found.
///
/// A client that sends no name (it connects by IP address) gets the first certificate that has an IP address, or
/// else the default, which is the first one added. A client that asks for a name nobody has gets the default too,
/// or in a [strict](CertStore::with_strict) store nothing: the handshake ends in an alert. Unknown names are
/// counted, and logged once a second at most.
///
/// Memory: a P-256 chain of two takes about 4 KiB.
pub struct CertStore {
    content: ArcSwap<Content>,
    /// Held while content is built from the content before.
    change: Mutex<()>,
    strict: bool,
    unknown: UnknownNames,
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

#[derive(Debug)]
struct Entry {
    key: Arc<CertifiedKey>,
    about: Added,
    resolutions: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Content {
    exact: HashMap<Box<str>, Arc<Entry>>,
    /// By parent: `*.example.com` stands under `example.com`.
    wildcard: HashMap<Box<str>, Arc<Entry>>,
    /// In the order of adding; those of which no name is left are gone.
    all: Vec<Arc<Entry>>,
    /// The answer to a client without a name.
    nameless: Option<Arc<Entry>>,
}

impl CertStore {
    /// An empty store that answers unknown names with the default certificate.
    pub fn new() -> Self {
        Self {
            content: ArcSwap::default(),
            change: Mutex::new(()),
            strict: false,
            unknown: UnknownNames::new(),
        }
    }

    /// Whether unknown names are refused in place of answered with the default certificate. Default `false`.
    #[must_use]
    pub fn with_strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Adds a chain (leaf first) and its key from PEM text. Names that another certificate had are now this one's.
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

    /// Adds all of a set in one step. For many certificates this is the way: every change copies the tables.
    pub fn add_all(&self, set: CertSet) {
        let _guard = self.change.lock();
        let before = self.content.load_full();
        self.content.store(Arc::new(before.with(set.pairs, &before)));
    }

    /// Replaces everything by a set in one step: no handshake sees a part of it.
    pub fn replace_all(&self, set: CertSet) {
        let _guard = self.change.lock();
        let before = self.content.load_full();
        self.content.store(Arc::new(Content::default().with(set.pairs, &before)));
    }

    /// Takes the certificate of this name out, with all its names. `false` when there is none.
    pub fn remove(&self, name: &str) -> bool {
        let _guard = self.change.lock();
        let before = self.content.load_full();
        let name = name.to_ascii_lowercase();
        let Some(gone) = before.stored_under(&name) else { return false };
        let keep = |map: &HashMap<Box<str>, Arc<Entry>>| {
            map.iter()
                .filter(|(_, entry)| !Arc::ptr_eq(entry, gone))
                .map(|(name, entry)| (name.clone(), Arc::clone(entry)))
                .collect()
        };
        let mut content = Content {
            exact: keep(&before.exact),
            wildcard: keep(&before.wildcard),
            all: before.all.iter().filter(|entry| !Arc::ptr_eq(entry, gone)).cloned().collect(),
            nameless: None,
        };
        content.settle();
        self.content.store(Arc::new(content));
        true
    }

    /// The certificate for a name, or for a client that gave none. Counts nothing and logs nothing.
    pub fn lookup(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let content = self.content.load();
        content.pick(name, self.strict).0.map(|entry| Arc::clone(&entry.key))
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
        self.content.load().all.iter().map(summary).collect()
    }

    /// How many certificates there are.
    pub fn len(&self) -> usize {
        self.content.load().all.len()
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
        let name = hello.server_name();
        let content = self.content.load();
        let (entry, known) = content.pick(name, self.strict);
        if !known {
            self.unknown.saw(name, self.strict);
        }
        entry.map(|entry| {
            entry.resolutions.fetch_add(1, Ordering::Relaxed);
            Arc::clone(&entry.key)
        })
    }
}

impl Content {
    /// The entry for a name, and whether the name was known.
    fn pick(&self, name: Option<&str>, strict: bool) -> (Option<&Arc<Entry>>, bool) {
        let Some(name) = name else { return (self.nameless.as_ref(), self.nameless.is_some()) };
        let lower;
        let mut name = name.strip_suffix('.').unwrap_or(name);
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            lower = name.to_ascii_lowercase();
            name = &lower;
        }
        if let Some(entry) = self.exact.get(name) {
            return (Some(entry), true);
        }
        let parent = name.split_once('.').filter(|(label, _)| !label.is_empty());
        if let Some(entry) = parent.and_then(|(_, parent)| self.wildcard.get(parent)) {
            return (Some(entry), true);
        }
        (if strict { None } else { self.all.first() }, false)
    }

    /// This content with more pairs; counts are taken over from `before`.
    fn with(&self, pairs: Vec<Pair>, before: &Self) -> Self {
        let mut content = Self {
            exact: self.exact.clone(),
            wildcard: self.wildcard.clone(),
            all: self.all.clone(),
            nameless: None,
        };
        for Pair { key, about } in pairs {
            let same = about.names.first().and_then(|name| before.stored_under(name));
            let resolutions = same.map(|entry| Arc::clone(&entry.resolutions)).unwrap_or_default();
            let entry = Arc::new(Entry { key, about, resolutions });
            for name in &entry.about.names {
                match name.strip_prefix("*.") {
                    Some(parent) => content.wildcard.insert(parent.into(), Arc::clone(&entry)),
                    None => content.exact.insert(name.as_str().into(), Arc::clone(&entry)),
                };
            }
            content.all.push(entry);
        }
        content.settle();
        content
    }

    /// The entry that a name of a certificate, wildcard or not, stands for.
    fn stored_under(&self, name: &str) -> Option<&Arc<Entry>> {
        match name.strip_prefix("*.") {
            Some(parent) => self.wildcard.get(parent),
            None => self.exact.get(name),
        }
    }

    /// Drops entries all of whose names went to later ones, and finds the answer for clients without a name. A
    /// replaced default keeps its place: the certificate that took over its first name moves there.
    fn settle(&mut self) {
        let reachable: HashSet<*const Entry> =
            self.exact.values().chain(self.wildcard.values()).map(Arc::as_ptr).collect();
        if let Some(first) = self.all.first().cloned()
            && !reachable.contains(&Arc::as_ptr(&first))
            && let Some(heir) = first.about.names.first().and_then(|name| self.stored_under(name)).cloned()
        {
            self.all.retain(|entry| !Arc::ptr_eq(entry, &heir));
            self.all.insert(0, heir);
        }
        // Of certificates for addresses alone only the latest can be asked for.
        let addressed = self.all.iter().rfind(|entry| entry.about.names.is_empty()).map(Arc::as_ptr);
        self.all.retain(|entry| {
            let entry = Arc::as_ptr(entry);
            reachable.contains(&entry) || addressed == Some(entry)
        });
        let by_address = self.all.iter().find(|entry| !entry.about.addresses.is_empty());
        self.nameless = by_address.or(self.all.first()).cloned();
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
