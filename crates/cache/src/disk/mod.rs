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
        atomic::{AtomicU64, Ordering},
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
            _lock: lock,
        })
    }

    /// Writes what memory drops, behind the caller's back, if there is room to wait for it. `now` has the key's generation and the last purge that has looked at all that was in
    /// memory: what is dropped was valid until now, whatever happened to others with the same counter, and however many purges meant others, since it was stored.
    pub(crate) fn put(&self, key: &[u8], variants: &Variants, now: Ticket) {
        if let Some(record) = self.record(variants, now) {
            self.written.fetch_add(1, Ordering::Relaxed);
            self.records.storage_writer(key.to_vec()).insert(record.into());
        }
    }

    pub(crate) fn may_have(&self, key: &[u8]) -> bool {
        self.records.storage().may_contains(key)
    }

    pub(crate) fn forget(&self, key: &[u8]) {
        if self.may_have(key) {
            self.records.remove(key);
        }
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

/// Records: for each response its ticket, what is known of it and its body.
impl Disk {
    /// `None` where nothing of it is worth a write.
    fn record(&self, variants: &Variants, now: Ticket) -> Option<Vec<u8>> {
        let kept = variants.iter().filter_map(|stored| Some((stored, stored.ticket.get()?)));
        let kept: Vec<_> = kept.filter(|(stored, _)| !stored.is_outdated()).collect();
        let bodies: u64 = kept.iter().map(|(stored, _)| stored.body.len).sum();
        let length = usize::try_from(bodies).ok().filter(|bodies| *bodies < LONGEST && !kept.is_empty())?;
        let mut record = Vec::with_capacity(length + 1024 * kept.len());
        for (stored, ticket) in kept {
            put_u64(&mut record, now.generation.into());
            put_u64(&mut record, ticket.epoch.max(now.epoch));
            stored.meta.write(self.start, &mut record);
            put_u64(&mut record, stored.keep_stale.as_secs());
            put_u64(&mut record, stored.body.len);
            for chunk in &*stored.body.chunks {
                record.extend_from_slice(chunk);
            }
        }
        (record.len() <= LONGEST).then_some(record)
    }

    fn read(&self, record: Bytes) -> Option<Vec<Stored>> {
        let mut input = Reader(record);
        let mut all = Vec::new();
        while !input.0.is_empty() {
            let ticket = Ticket { generation: u32::try_from(input.u64()?).ok()?, epoch: input.u64()? };
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
            ticket.is_some_and(|ticket| self.is_valid(key, *ticket, &stored.meta))
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
        let found = tokio::time::timeout(PATIENCE, disk.records.get(&**key)).await;
        let Ok(Ok(Some(entry))) = found else { return };
        if let Some(variants) = disk.read(entry.value().clone())
            && self.put_back(key, variants)
        {
            disk.hits.fetch_add(1, Ordering::Relaxed);
        }
        // it is in memory now, or of no use
        disk.records.remove(&**key);
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use http::{HeaderMap, HeaderValue, StatusCode, header::CACHE_CONTROL};

    use super::*;
    use crate::{
        meta::{Asked, Times, judge},
        options::CacheOptions,
        rules::CacheRules,
    };

    fn stored(ticket: Ticket) -> Arc<Stored> {
        with_body(ticket, b"")
    }

    fn with_body(ticket: Ticket, body: &'static [u8]) -> Arc<Stored> {
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
        let now = Instant::now();
        let times = Times { asked: now, received: now, wall: SystemTime::now() };
        let meta = judge(&Asked::default(), StatusCode::OK, &headers, times, &CacheRules::default()).unwrap();
        let chunks = std::iter::once(Bytes::from_static(body)).collect();
        let stored = Stored::new(meta, StoredBody { chunks, len: body.len() as u64 }, Duration::ZERO);
        stored.ticket.set(ticket).unwrap();
        Arc::new(stored)
    }

    /// What was stored before another key with the same counter was invalidated, and dropped after that, is of use; what was dropped before its own was is not.
    #[tokio::test]
    async fn a_record_is_as_old_as_its_writing() {
        let dir = std::env::temp_dir().join(format!("portcullis-cache-{}-record", std::process::id()));
        let disk = Disk::open(&DiskOptions::new(&dir).with_max_bytes(64 << 20)).unwrap();
        let shared = Shared::new(CacheOptions::default(), Some(disk));
        let disk = shared.disk.as_ref().unwrap();
        let key: Key = b"https://a:443/"[..].into();
        let variants: Variants = [stored(shared.ticket(&key))].into();
        shared.generations.pass(&key);
        let record = |generation| {
            let now = Ticket { generation, epoch: 0 };
            disk.read(disk.record(&variants, now).unwrap().into()).unwrap()
        };
        let (now, before) = (shared.generations.now(&key), shared.generations.now(&key) - 1);
        assert!(!shared.put_back(&key, record(before)));
        assert!(shared.put_back(&key, record(now)) && shared.get(&key).is_some());
        // What is being dropped while its key is forgotten has the generation of before or of in between.
        shared.outrun(&key);
        let between = shared.generations.now(&key);
        shared.forget(&key);
        assert!(!shared.put_back(&key, record(between)) && shared.get(&key).is_none());
        let _ = std::fs::remove_dir_all(&dir);
    }

    #[tokio::test]
    async fn bodies_are_kept_each_for_itself() {
        let dir = std::env::temp_dir().join(format!("portcullis-cache-{}-bodies", std::process::id()));
        let disk = Disk::open(&DiskOptions::new(&dir).with_max_bytes(64 << 20)).unwrap();
        let now = Ticket { generation: 0, epoch: 0 };
        let bodies = [&b"one"[..], b"", b"three"];
        let variants: Variants = bodies.map(|body| with_body(now, body)).into();
        let record = Bytes::from(disk.record(&variants, now).unwrap());
        let read = disk.read(record.clone()).unwrap();
        assert!(record.is_unique());
        assert_eq!(read.iter().map(|stored| stored.body.chunks.concat()).collect::<Vec<_>>(), bodies);
        // What has left memory is not written, alone or with others.
        variants[0].leave();
        assert_eq!(disk.read(disk.record(&variants, now).unwrap().into()).unwrap().len(), 2);
        variants.iter().for_each(|stored| stored.leave());
        assert!(disk.record(&variants, now).is_none());
        let _ = std::fs::remove_dir_all(&dir);
    }
}
