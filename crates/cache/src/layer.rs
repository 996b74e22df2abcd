//! The layer, and what all its services share.

use std::sync::Arc;

use http::{HeaderMap, Uri};
use tower_layer::Layer;

use crate::{
    disk::Disk,
    disk_options::DiskError,
    family::{Family, Form},
    key::{self, Secure},
    options::CacheOptions,
    purge::{Purge, PurgeError, Reach},
    rules::CacheRules,
    service::Cache,
    stats::CacheStats,
    store::Shared,
};

/// One layer's rules over a store.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) shared: Arc<Shared>,
    pub(crate) rules: CacheRules,
    /// What the rules make keys of. That it is held tells the family that there is a layer with it.
    pub(crate) form: Arc<Form>,
    /// Of all layers over this store.
    pub(crate) family: Arc<Family>,
}

/// Puts a [`Cache`] around a service. All services it makes, and those of its clones, share what is stored. They run on a tokio runtime with its timer
/// (`enable_time`), or on none.
#[derive(Clone, Debug)]
pub struct CacheLayer {
    core: Arc<Core>,
}

impl CacheLayer {
    /// An empty store in memory alone, with rules as they are by default.
    pub fn new(options: CacheOptions) -> Self {
        Self::over(Arc::new(Shared::new(options, None)), CacheRules::default(), Arc::default())
    }

    /// An empty store, with the second tier that [`CacheOptions::disk`] asks for: what memory drops for want of room is written there, and moves
    /// back when it is asked for; bodies of up to 8 MiB, and nothing that a purge marked stale. Blocks while the directory is made ready, and
    /// starts two threads.
    pub fn open(options: CacheOptions) -> Result<Self, DiskError> {
        let disk = options.disk.as_ref().map(Disk::open).transpose()?;
        Ok(Self::over(Arc::new(Shared::new(options, disk)), CacheRules::default(), Arc::default()))
    }

    /// Another layer over the same store, with rules of its own. What was stored by other rules is used by these, as far as the key and the partition are the same, so that rules can be changed
    /// while a store goes on.
    #[must_use]
    pub fn with_rules(&self, rules: CacheRules) -> Self {
        Self::over(Arc::clone(&self.core.shared), rules, Arc::clone(&self.core.family))
    }

    fn over(shared: Arc<Shared>, rules: CacheRules, family: Arc<Family>) -> Self {
        let rules = rules.bounded();
        let form = family.form(&rules);
        Self { core: Arc::new(Core { shared, rules, form, family }) }
    }

    /// The rules.
    pub fn rules(&self) -> &CacheRules {
        &self.core.rules
    }

    /// What the store may hold.
    pub fn options(&self) -> &CacheOptions {
        &self.core.shared.options
    }

    /// Drops what has expired or is too much. Requests do a part of it as they come; call it from a timer, every
    /// few seconds, for the time when none do.
    pub fn run_pending(&self) {
        self.core.shared.run_pending();
    }

    /// Waits until what memory has dropped by now is on the disk, where there is a second tier. For tests and measurements: while a response
    /// of a key is being written, another one that was dropped after it may not be found, and its origin is asked again. Cancel it at any time.
    pub async fn wait_for_disk(&self) {
        self.core.shared.run_pending();
        if let Some(disk) = &self.core.shared.disk {
            disk.written().await;
        }
    }

    /// The counters, of all layers over the store.
    pub fn stats(&self) -> CacheStats {
        self.core.shared.stats()
    }

    /// Purges what is stored for an absolute URI, all variants, under the keys that it has in each layer over this store, and had in those that are gone: of what these made keys of,
    /// [`CacheRules::partition`] and [`CacheRules::query`], the last 16 kinds are remembered, and what was stored by one before them is not used any more. The number of keys that were found.
    /// Costs a look-up for each kind. Once it returns, nothing that was asked for before is given out.
    pub fn purge(&self, uri: &Uri, how: Purge) -> Result<u64, PurgeError> {
        let mut keys = Vec::new();
        for form in self.core.family.forms() {
            let key = key::of(Secure::default(), None, uri, &HeaderMap::new(), &form);
            let key = key.ok_or(PurgeError::NotAbsolute)?;
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let found = keys.iter().filter(|key| self.core.shared.purge_key(key.as_slice(), how)).count();
        Ok(found as u64)
    }

    /// Purges everything whose URI begins with this absolute one, its query included, by bytes: `https://a.example.com/img/` has `https://a.example.com/img/x.png?y`. Looks at every key,
    /// about 100 ns for each: on a large store call it where that may block. Responses on their way are not stored if they are meant. The number of keys that were found.
    pub fn purge_prefix(&self, uri: &Uri, how: Purge) -> Result<u64, PurgeError> {
        let prefix = key::prefix(uri).ok_or(PurgeError::NotAbsolute)?;
        Ok(self.core.shared.purge(&Reach::Prefix(prefix), how))
    }

    /// Purges everything that came with this tag in `Cache-Tag` or `Surrogate-Key`. Costs what [`CacheLayer::purge_prefix`] costs.
    pub fn purge_tag(&self, tag: &str, how: Purge) -> u64 {
        self.core.shared.purge(&Reach::Tag(tag.into()), how)
    }

    /// Purges everything, of all layers.
    pub fn purge_all(&self, how: Purge) -> u64 {
        self.core.shared.purge(&Reach::All, how)
    }

    /// Forgets everything, of all layers.
    pub fn clear(&self) {
        self.purge_all(Purge::Hard);
    }
}

impl<S> Layer<S> for CacheLayer {
    type Service = Cache<S>;

    fn layer(&self, inner: S) -> Cache<S> {
        Cache::new(inner, Arc::clone(&self.core))
    }
}
