//! A second tier on disk, for what memory has no room for any more (feature `disk`).
//!
//! It is more of the same cache and no archive: it is empty whenever a store is made. What memory drops for want of room is written; what is asked
//! for again moves back. A purge reaches it by what is remembered of purges: a response of before one that means it is not given out.

use std::{
    fs::{File, TryLockError},
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use foyer::{
    BlockEngineConfig, DeviceBuilder as _, FsDeviceBuilder, HybridCache, HybridCacheBuilder,
    HybridCachePolicy, RecoverMode, Spawner,
};

use crate::{
    disk_options::{DiskError, DiskOptions},
    layer::Core,
    meta::{
        Meta,
        record::{Reader, put_u64},
    },
    store::{Key, Shared, Stored, StoredBody, Ticket, Variants},
};

use removals::Removals;

/// Stores at one path at one time: during an upgrade or a reload there are two.
const SLOTS: usize = 8;
/// What is written at once, and the longest record.
const BLOCK: usize = 16 << 20;
const LONGEST: usize = 8 << 20;
const THREADS: usize = 2;

pub(crate) struct Disk {
    records: HybridCache<Vec<u8>, Bytes>,
    /// What times in records count from.
    start: Instant,
    written: AtomicU64,
    hits: AtomicU64,
    removals: Arc<Removals>,
    /// Somebody waits for the queue.
    tidying: Arc<AtomicBool>,
    /// Of the disk's own threads.
    handle: tokio::runtime::Handle,
    path: PathBuf,
    /// Held until the end: the slot is this store's.
    _lock: File,
}

impl Disk {
    /// Makes an empty tier. It blocks for as long as the disk takes to make a file or two.
    pub(crate) fn open(options: &DiskOptions) -> Result<Self, DiskError> {
        let (dir, lock) = take_slot(&options.path)?;
        let capacity = usize::try_from(options.max_bytes.max(64 << 20)).unwrap_or(usize::MAX);
        let store = |error: foyer::Error| DiskError::Store(error.into());
        // threads of its own: no request's thread waits for a disk
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("cache-disk")
            .enable_all()
            .build()
            .map_err(|error| DiskError::Store(error.into()))?;
        let handle = runtime.handle().clone();
        let device = FsDeviceBuilder::new(dir).with_capacity(capacity).build().map_err(store)?;
        let build = HybridCacheBuilder::new()
            .with_policy(HybridCachePolicy::WriteOnInsertion)
            // memory is the other tier's: here it is for what is being written
            .memory(1)
            .storage()
            .with_engine_config(BlockEngineConfig::new(device).with_block_size(BLOCK))
            .with_recover_mode(RecoverMode::None)
            .with_spawner(Spawner::from(runtime))
            .build();
        // the caller may be on a runtime, where nothing may block on another one
        let built = std::thread::scope(|scope| scope.spawn(|| handle.block_on(build)).join());
        let records = built.map_err(|_| DiskError::Store("it panicked".into()))?.map_err(store)?;
        Ok(Self {
            records,
            start: Instant::now(),
            written: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            removals: Arc::default(),
            tidying: Arc::default(),
            handle,
            path: options.path.clone(),
            _lock: lock,
        })
    }

    /// Writes what memory drops, behind the caller's back, if there is room to wait for it. `epoch` is the last purge that has looked at all that was in
    /// memory: what is dropped was valid until now, however many purges meant others since it was stored.
    pub(crate) fn put(&self, key: &[u8], variants: &Variants, epoch: u64) {
        let now = self.now();
        if let Some(record) = self.record(key, variants, now, epoch) {
            self.written.fetch_add(1, Ordering::Relaxed);
            self.records.storage_writer(key.to_vec()).insert(record.into());
            // A removal is noted first and done then: one that came meanwhile may have been done before there was the record.
            if self.removals.has(key, now) {
                self.records.remove(key);
            }
        }
    }

    pub(crate) fn may_have(&self, key: &[u8]) -> bool {
        self.records.storage().may_contains(key)
    }

    /// Removes what is there; what is in the queue behind another of its key may come still.
    pub(crate) fn forget_older(&self, key: &[u8]) {
        if self.may_have(key) {
            self.records.remove(key);
        }
    }

    /// The number of the last removal.
    pub(crate) fn now(&self) -> u64 {
        self.removals.now()
    }

    /// From now on no record of before is given out for a key. Whether it is time for [`Disk::tidy`].
    pub(crate) fn note(&self, key: &[u8]) -> bool {
        self.removals.note(key)
    }

    /// Removes what is there and in the queue, after [`Disk::note`].
    pub(crate) fn forget(&self, key: &[u8]) {
        self.records.remove(key);
    }

    /// Lets go of the removals up to this one, which are not needed when the queue has been empty, and of what others left behind. All that memory dropped before `noted` is
    /// in the queue.
    pub(crate) fn tidy(&self, noted: u64) {
        if self.tidying.swap(true, Ordering::AcqRel) {
            return;
        }
        let (store, removals) = (self.records.storage().clone(), Arc::clone(&self.removals));
        let (tidying, path) = (Arc::clone(&self.tidying), self.path.clone());
        self.handle.spawn(async move {
            if !removals.is_empty() {
                store.wait().await;
                removals.forget_until(noted);
            }
            // It may take long to unlink what is large.
            let _ = tokio::task::spawn_blocking(move || empty_slots(&path)).await;
            tidying.store(false, Ordering::Release);
        });
    }

    /// Nothing waits to be written any more.
    pub(crate) async fn written(&self) {
        self.records.storage().wait().await;
    }

    /// Records written and found, since the start.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.written.load(Ordering::Relaxed), self.hits.load(Ordering::Relaxed))
    }
}

/// A subdirectory that nobody uses, and what keeps it so.
fn take_slot(path: &Path) -> Result<(PathBuf, File), DiskError> {
    let failed = |source| DiskError::Directory { path: path.to_owned(), source };
    for slot in 0..SLOTS {
        let dir = path.join(format!("slot-{slot}"));
        std::fs::create_dir_all(&dir).map_err(failed)?;
        let lock = File::create(dir.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {
                let records = dir.join("records");
                // of a process that is gone: nothing of it is used
                match std::fs::remove_dir_all(&records) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
                    _ => return Ok((records, lock)),
                }
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
    Err(DiskError::Busy { path: path.to_owned() })
}

/// Empties the slots that nobody uses, as after an upgrade: what was purged since may be there.
fn empty_slots(path: &Path) {
    for slot in 0..SLOTS {
        let dir = path.join(format!("slot-{slot}"));
        let records = dir.join("records");
        // Who takes the slot meanwhile takes another one. What can't be done now is tried again.
        if records.exists()
            && let Ok(lock) = File::open(dir.join("lock"))
            && lock.try_lock().is_ok()
        {
            let _ = std::fs::remove_dir_all(&records);
        }
    }
}

/// Records: for each response its ticket, what is known of it and its body.
impl Disk {
    /// `None` where nothing of it is worth a write.
    fn record(&self, key: &[u8], variants: &Variants, now: u64, epoch: u64) -> Option<Vec<u8>> {
        let kept = variants.iter().filter_map(|stored| Some((stored, stored.ticket.get()?)));
        // Memory may have dropped it before it could be marked.
        let is_valid = |stored: &Stored, ticket: &Ticket| {
            !stored.is_outdated() && !self.removals.has(key, ticket.removals)
        };
        let kept: Vec<_> = kept.filter(|(stored, ticket)| is_valid(stored, ticket)).collect();
        let bodies: u64 = kept.iter().map(|(stored, _)| stored.body.len).sum();
        let length = usize::try_from(bodies).ok().filter(|bodies| *bodies < LONGEST && !kept.is_empty())?;
        let mut record = Vec::with_capacity(length + 1024 * kept.len());
        for (stored, ticket) in kept {
            put_u64(&mut record, now);
            put_u64(&mut record, ticket.epoch.max(epoch));
            let asked = ticket.asked.saturating_duration_since(self.start).as_nanos();
            put_u64(&mut record, u64::try_from(asked).unwrap_or(u64::MAX));
            stored.meta.write(self.start, &mut record);
            put_u64(&mut record, stored.keep_stale.as_secs());
            put_u64(&mut record, stored.body.len);
            for chunk in &*stored.body.chunks {
                record.extend_from_slice(chunk);
            }
        }
        (record.len() <= LONGEST).then_some(record)
    }

    /// `generation` is the key's, of before it was read.
    fn read(&self, record: Bytes, generation: u32) -> Option<Vec<Stored>> {
        let mut input = Reader(record);
        let mut all = Vec::new();
        while !input.0.is_empty() {
            let (removals, epoch) = (input.u64()?, input.u64()?);
            let asked = self.start.checked_add(Duration::from_nanos(input.u64()?))?;
            let ticket = Ticket { generation, epoch, removals, asked };
            let meta = Meta::read(self.start, &mut input)?;
            let keep_stale = Duration::from_secs(input.u64()?);
            let len = input.u64()?;
            let body = input.take(len)?;
            let chunks: Arc<[Bytes]> = std::iter::once(body).filter(|body| !body.is_empty()).collect();
            let stored = Stored::new(meta, StoredBody { chunks, len }, keep_stale);
            stored.ticket.set(ticket).ok()?;
            all.push(stored);
        }
        if all.len() > 1 {
            // Each is forgotten by itself, and would keep the others' bodies with its own.
            for chunk in all.iter_mut().filter_map(|stored| Arc::get_mut(&mut stored.body.chunks)).flatten() {
                *chunk = Bytes::copy_from_slice(chunk);
            }
        }
        Some(all)
    }
}

/// Until what is on disk is back in memory, or it is clear that it won't come.
pub(crate) type Load = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A disk that takes longer than this is no faster than asking again.
const PATIENCE: Duration = Duration::from_secs(1);

impl Core {
    /// What has to be waited for before this key is looked up; `None` where memory knows all.
    pub(crate) fn load(self: &Arc<Self>, key: &[u8]) -> Option<Load> {
        let disk = self.shared.disk.as_ref()?;
        // what is in memory is not on disk as a rule, so that a hit looks into memory once
        if !disk.may_have(key) || self.shared.cache.contains_key(key) {
            return None;
        }
        let (core, key) = (Arc::clone(self), Key::from(key));
        Some(Box::pin(async move { core.shared.read_back(&key).await }))
    }
}

impl Shared {
    /// Puts back what was on disk, as far as no purge meant it, unless there is something newer. Whether it did.
    fn put_back(&self, key: &Key, stored: Vec<Stored>) -> bool {
        let now = Instant::now();
        let is_valid = |stored: &Stored| {
            let ticket = stored.ticket.get();
            let removed = |since| self.disk.as_ref().is_some_and(|disk| disk.removals.has(key, since));
            ticket
                .is_some_and(|ticket| self.is_valid(key, *ticket, &stored.meta) && !removed(ticket.removals))
        };
        let kept =
            stored.into_iter().filter(|stored| is_valid(stored) && stored.keep_for(now) > Duration::ZERO);
        let variants: Variants = kept.map(Arc::new).collect();
        if variants.is_empty() {
            return false;
        }
        let entry = self.cache.entry(Arc::clone(key)).or_insert(variants);
        let fresh = entry.is_fresh();
        // as at an insertion: a purge that came in between may have looked before
        if fresh && !entry.value().iter().all(|stored| is_valid(stored)) {
            self.forget_invalid(key);
            return false;
        }
        fresh
    }

    async fn read_back(&self, key: &Key) {
        let Some(disk) = &self.disk else { return };
        let before = self.ticket(key);
        let found = tokio::time::timeout(PATIENCE, disk.records.get(&**key)).await;
        let Ok(Ok(Some(entry))) = found else { return };
        // It is in memory now, or of no use. First, as memory may have no place for it and write it anew at once.
        disk.records.remove(&**key);
        if let Some(variants) = disk.read(entry.value().clone(), before.generation)
            && self.put_back(key, variants)
        {
            disk.hits.fetch_add(1, Ordering::Relaxed);
        }
    }
}

mod removals;

#[cfg(test)]
mod tests;
