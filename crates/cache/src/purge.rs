//! Forgetting on demand: by URI, by the beginning of URIs, by tag.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::{BuildHasher, Hash},
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

use crate::{
    key,
    store::{Key, Shared, Variants},
};

/// What a purge does with what it finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purge {
    /// It is forgotten.
    #[default]
    Hard,
    /// It counts as stale from now on, for as long as rules or its origin say of what is stale: it is asked for anew, with its validators where it has some, and may still be given out where stale responses may
    /// ([`crate::CacheRules::stale_while_revalidate`], [`crate::CacheRules::stale_if_error`]).
    Soft,
}

/// Why nothing was purged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PurgeError {
    /// The URI has no scheme or no plain host.
    #[error("the uri is not absolute")]
    NotAbsolute,
}

/// So many purges by prefix are remembered, and so many by tag, each in at most 48 bytes. What was asked for, or went to the disk, before the last one
/// that is not remembered any more is taken for meant.
const PREFIXES: usize = 256;
const TAGS: usize = 64 << 10;

#[derive(Debug)]
pub(crate) enum Reach {
    All,
    Prefix(Box<[u8]>),
    Tag(Box<str>),
}

impl Reach {
    fn has(&self, key: &[u8], tags: &[Box<str>]) -> bool {
        match self {
            Self::All => true,
            Self::Prefix(prefix) => key::uri(key).starts_with(prefix),
            Self::Tag(tag) => tags.contains(tag),
        }
    }
}

/// The last purges that reach more than one key, for responses on their way and on disk.
#[derive(Debug, Default)]
pub(crate) struct Purges {
    epoch: AtomicU64,
    finished: AtomicU64,
    hasher: RandomState,
    last: Mutex<Last>,
}

/// Each with its number.
#[derive(Debug, Default)]
struct Last {
    /// Of everything, or one that is not remembered.
    all: u64,
    prefixes: HashMap<Box<[u8]>, u64>,
    /// By their hashes: who has another's is purged too, and asked for anew.
    tags: HashMap<u64, u64>,
    /// Those that look at the keys now.
    running: Vec<u64>,
}

impl Purges {
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The last purge of which, and of all before it, nothing that is meant is left in memory.
    pub(crate) fn finished(&self) -> u64 {
        self.finished.load(Ordering::Acquire)
    }

    /// Its number, for [`Purges::finish`].
    fn begin(&self, reach: &Reach) -> u64 {
        let mut last = self.last.lock();
        let epoch = self.epoch.load(Ordering::Relaxed) + 1;
        let forgotten = match reach {
            Reach::All => {
                last.prefixes.clear();
                last.tags.clear();
                epoch
            }
            Reach::Prefix(prefix) => note(&mut last.prefixes, prefix.clone(), epoch, PREFIXES),
            Reach::Tag(tag) => note(&mut last.tags, self.hasher.hash_one(tag), epoch, TAGS),
        };
        last.all = last.all.max(forgotten);
        last.running.push(epoch);
        self.epoch.store(epoch, Ordering::Release);
        epoch
    }

    /// It has looked at every key.
    fn finish(&self, epoch: u64) {
        let mut last = self.last.lock();
        last.running.retain(|other| *other != epoch);
        let first = last.running.iter().min();
        let finished = first.map_or_else(|| self.epoch.load(Ordering::Relaxed), |first| first - 1);
        self.finished.store(finished, Ordering::Release);
    }

    /// Whether a purge after `epoch` means a response with this key and these tags.
    pub(crate) fn reached(&self, epoch: u64, key: &[u8], tags: &[Box<str>]) -> bool {
        if self.epoch() == epoch {
            return false;
        }
        let last = self.last.lock();
        let uri = key::uri(key);
        let after = |number: &u64| *number > epoch;
        after(&last.all)
            || tags.iter().any(|tag| last.tags.get(&self.hasher.hash_one(tag)).is_some_and(after))
            || last.prefixes.iter().any(|(prefix, number)| after(number) && uri.starts_with(prefix))
    }
}

/// Remembers a purge, in place of one that meant the same. Where there are too many the older half goes: the last of it, or 0.
fn note<K: Eq + Hash>(known: &mut HashMap<K, u64>, what: K, epoch: u64, most: usize) -> u64 {
    let mut forgotten = 0;
    if known.len() >= most && !known.contains_key(&what) {
        let mut numbers: Vec<u64> = known.values().copied().collect();
        let middle = numbers.len() / 2;
        forgotten = *numbers.select_nth_unstable(middle).1;
        known.retain(|_, number| *number > forgotten);
    }
    known.insert(what, epoch);
    forgotten
}

impl Shared {
    /// Purges one key, with all its variants.
    pub(crate) fn purge_key(&self, key: &[u8], how: Purge) -> bool {
        let found = match how {
            Purge::Hard => self.forget(key),
            Purge::Soft => {
                self.outrun(key);
                let found = self.get(key).inspect(mark).is_some();
                self.outrun_disk(key);
                found
            }
        };
        self.counters.purged.fetch_add(u64::from(found), Ordering::Relaxed);
        found
    }

    /// Looks at every key. What is on its way when it begins is not stored; what is asked for after it ended is new.
    pub(crate) fn purge(&self, reach: &Reach, how: Purge) -> u64 {
        let matches = |key: &Key, variants: &Variants| match reach {
            Reach::Tag(tag) => variants.iter().any(|stored| stored.meta.tags.contains(tag)),
            reach => reach.has(key, &[]),
        };
        // First the responses on their way, then what is there: nothing slips in between.
        let epoch = self.purges.begin(reach);
        match reach {
            Reach::Prefix(_) => self.flights.forget_those(|key| reach.has(key, &[])),
            // What tags they will have nobody knows.
            Reach::All | Reach::Tag(_) => self.flights.forget_those(|_| true),
        }
        let mut purged = 0;
        for (key, variants) in &self.cache {
            if matches(&key, &variants) {
                match how {
                    Purge::Hard => {
                        variants.iter().for_each(|stored| stored.leave());
                        self.remove(&key);
                    }
                    Purge::Soft => mark(&variants),
                }
                purged += 1;
            }
        }
        if self.disk.is_some() {
            // What memory was dropping meanwhile was not looked at: it is written as of before.
            self.cache.run_pending_tasks();
        }
        self.purges.finish(epoch);
        self.counters.purged.fetch_add(purged, Ordering::Relaxed);
        purged
    }
}

fn mark(variants: &Variants) {
    variants.iter().for_each(|stored| stored.outdate());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_before_a_purge_is_reached() {
        let purges = Purges::default();
        let start = purges.epoch();
        let key = b"https://a:443/x/y\0p";
        assert!(!purges.reached(start, key, &[]));
        purges.begin(&Reach::Prefix(b"https://a:443/x/"[..].into()));
        assert!(purges.reached(start, key, &[]) && !purges.reached(purges.epoch(), key, &[]));
        assert!(!purges.reached(start, b"https://a:443/z", &[]));
        let after = purges.epoch();
        purges.begin(&Reach::Tag("t".into()));
        assert!(purges.reached(after, key, &["t".into()]) && !purges.reached(after, key, &["u".into()]));
        let after = purges.epoch();
        let other = |n: usize| Reach::Prefix(format!("https://b:443/{n}").into_bytes().into());
        let far = b"https://a:443/z";
        for n in 0..2 * PREFIXES {
            // The same is remembered once, however often it comes.
            purges.begin(&other(n % PREFIXES / 2));
            purges.begin(&Reach::Tag(n.to_string().into()));
        }
        assert!(!purges.reached(start, far, &[]) && purges.reached(start, key, &[]));
        assert!(!purges.reached(after, far, &["t".into()]) && purges.reached(after, far, &["1".into()]));
        for n in 0..PREFIXES {
            purges.begin(&other(n));
        }
        assert!(purges.reached(start, far, &[]), "what is not remembered is taken for reached");
        assert!(!purges.reached(purges.epoch() - 1, far, &[]));
        purges.begin(&Reach::All);
        assert!(purges.reached(purges.epoch() - 1, far, &[]));
    }

    #[test]
    fn tags_are_remembered_within_bounds() {
        let purges = Purges::default();
        for n in 0..=TAGS {
            purges.begin(&Reach::Tag(n.to_string().into()));
        }
        assert_eq!(purges.last.lock().tags.len(), TAGS / 2);
        let last = purges.epoch();
        assert!(purges.reached(0, b"x", &[]) && !purges.reached(last - 100, b"x", &["0".into()]));
        assert!(purges.reached(last - 100, b"x", &[(TAGS - 1).to_string().into()]));
    }

    #[test]
    fn purges_are_finished_in_their_order() {
        let purges = Purges::default();
        let [first, second, third] = [(); 3].map(|()| purges.begin(&Reach::All));
        for (ends, finished) in [(second, first - 1), (first, second), (third, third)] {
            purges.finish(ends);
            assert_eq!(purges.finished(), finished);
        }
    }
}
