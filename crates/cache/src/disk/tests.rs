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
    let stored = fresh(body);
    stored.ticket.set(ticket).unwrap();
    stored
}

/// One without a ticket.
fn fresh(body: &'static [u8]) -> Arc<Stored> {
    let mut headers = HeaderMap::new();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
    let now = Instant::now();
    let times = Times { asked: now, received: now, wall: SystemTime::now() };
    let meta = judge(&Asked::default(), StatusCode::OK, &headers, times, &CacheRules::default()).unwrap();
    let chunks = std::iter::once(Bytes::from_static(body)).collect();
    Arc::new(Stored::new(meta, StoredBody { chunks, len: body.len() as u64 }, Duration::ZERO))
}

fn key() -> Key {
    b"https://a:443/"[..].into()
}

/// An empty directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("portcullis-cache-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }

    fn open(&self) -> Disk {
        Disk::open(&DiskOptions::new(&self.0).with_max_bytes(64 << 20)).unwrap()
    }

    fn store(&self) -> Shared {
        Shared::new(CacheOptions::default(), Some(self.open()))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Reads a record that was written at this removal.
fn record(shared: &Shared, variants: &Variants, removals: u64) -> Option<Vec<Stored>> {
    let disk = shared.disk.as_ref().unwrap();
    let record = disk.record(&key(), variants, removals, 0)?;
    disk.read(record.into(), shared.generations.now(&key()))
}

/// What was dropped before its key was forgotten is of no use, wherever it is meanwhile.
#[tokio::test]
async fn a_record_is_as_old_as_its_writing() {
    let dir = Dir::new("record");
    let shared = dir.store();
    let disk = shared.disk.as_ref().unwrap();
    let variants: Variants = [stored(shared.ticket(&key()))].into();
    let before = disk.now();
    let written = record(&shared, &variants, before).unwrap();
    shared.forget(&key());
    assert!(!shared.put_back(&key(), written), "it was being read");
    assert!(record(&shared, &variants, before).is_none(), "memory had dropped it already");
    let variants: Variants = [stored(shared.ticket(&key()))].into();
    assert!(!shared.put_back(&key(), record(&shared, &variants, before).unwrap()), "it was in the queue");
    let now = disk.now();
    assert!(shared.put_back(&key(), record(&shared, &variants, now).unwrap()));
    assert!(shared.get(&key()).is_some());
}

/// A removal that comes while a record is on its way into the queue removes it too, and what is in the queue is not given out.
#[tokio::test]
async fn what_is_in_the_queue_is_forgotten() {
    let dir = Dir::new("queue");
    let shared = dir.store();
    let disk = shared.disk.as_ref().unwrap();
    let mut queued = 0;
    for _ in 0..200 {
        let variants: Variants = [with_body(shared.ticket(&key()), &[b'x'; 100_000])].into();
        disk.put(&key(), &variants, 0);
        // Not where one before it is written at that moment: then it comes after that.
        queued += usize::from(disk.may_have(&key()));
        shared.forget(&key());
        shared.read_back(&key()).await;
        assert!(shared.get(&key()).is_none());
    }
    assert!(queued > 10);
    disk.records.storage().wait().await;
    assert!(!disk.may_have(&key()));
}

/// However many others are forgotten, a record stays; and none of it costs a request the upkeep of memory.
#[tokio::test]
async fn what_others_forget_is_no_loss() {
    let dir = Dir::new("others");
    let shared = dir.store();
    let disk = shared.disk.as_ref().unwrap();
    let variants: Variants = [stored(shared.ticket(&key()))].into();
    disk.put(&key(), &variants, 0);
    for n in 0..200_000 {
        shared.forget(format!("https://a:443/{n}").as_bytes());
        if n % 5_000 == 0 {
            shared.run_pending();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    shared.read_back(&key()).await;
    assert!(shared.get(&key()).is_some());
}

#[tokio::test]
async fn forgetting_leaves_the_upkeep_to_others() {
    let dir = Dir::new("upkeep");
    // Memory does it by itself some time after it was made.
    let done = (0..20).any(|_| {
        let shared = dir.store();
        assert!(shared.insert(&key(), shared.ticket(&key()), &fresh(b"")));
        for n in 0..100 {
            shared.forget(format!("https://a:443/{n}").as_bytes());
            shared.outrun_disk(&key());
        }
        let counted = shared.cache.entry_count();
        shared.run_pending();
        counted == 0 && shared.cache.entry_count() == 1
    });
    assert!(done);
}

#[tokio::test]
async fn removals_go_when_the_queue_was_empty() {
    let dir = Dir::new("removals");
    let shared = dir.store();
    let disk = shared.disk.as_ref().unwrap();
    shared.forget(&key());
    assert!(!disk.removals.is_empty());
    shared.run_pending();
    while !disk.removals.is_empty() {
        tokio::task::yield_now().await;
    }
}

/// As the old process's after an upgrade.
#[tokio::test]
async fn a_slot_that_nobody_uses_is_emptied() {
    let dir = Dir::new("empty");
    let old = dir.open();
    let shared = dir.store();
    let records = |slot: usize| dir.0.join(format!("slot-{slot}/records"));
    let tidy = async || {
        shared.run_pending();
        let disk = shared.disk.as_ref().unwrap();
        while disk.tidying.load(Ordering::Acquire) {
            tokio::task::yield_now().await;
        }
    };
    tidy().await;
    assert!(records(0).exists() && records(1).exists());
    drop(old);
    tidy().await;
    assert!(!records(0).exists() && records(1).exists());
}

#[tokio::test]
async fn bodies_are_kept_each_for_itself() {
    let dir = Dir::new("bodies");
    let disk = dir.open();
    let now = Ticket { generation: 0, epoch: 0, removals: 0, asked: Instant::now() };
    let bodies = [&b"one"[..], b"", b"three"];
    let variants: Variants = bodies.map(|body| with_body(now, body)).into();
    let record = Bytes::from(disk.record(b"", &variants, 0, 0).unwrap());
    let read = disk.read(record.clone(), 0).unwrap();
    assert!(record.is_unique());
    assert_eq!(read.iter().map(|stored| stored.body.chunks.concat()).collect::<Vec<_>>(), bodies);
    // What has left memory is not written, alone or with others.
    variants[0].leave();
    assert_eq!(disk.read(disk.record(b"", &variants, 0, 0).unwrap().into(), 0).unwrap().len(), 2);
    variants.iter().for_each(|stored| stored.leave());
    assert!(disk.record(b"", &variants, 0, 0).is_none());
}
