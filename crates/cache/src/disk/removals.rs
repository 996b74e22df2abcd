//! Which keys were forgotten lately, for records that were being written or read meanwhile.
//!
//! What is on the disk goes when its key is forgotten. What was on its way there may be given out from the queue still, or come after it: each record has the number of the last
//! removal before it was written, and is of no use where there was a later one of its key. A removal is remembered until the queue has been empty since.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

/// So many are remembered, in at most 32 bytes each. Where there are more the disk is stuck, and all that was written before is taken for removed.
const MOST: usize = 64 << 10;

/// After each so many it is time to let some go.
const CROWD: usize = 8 << 10;

#[derive(Debug, Default)]
pub(super) struct Removals {
    hasher: RandomState,
    now: AtomicU64,
    last: Mutex<Last>,
}

/// Each with its number.
#[derive(Debug, Default)]
struct Last {
    /// Of everything.
    all: u64,
    /// By whole hashes: nobody's record is lost by another's removal.
    keys: HashMap<u64, u64>,
}

impl Removals {
    pub(super) fn now(&self) -> u64 {
        self.now.load(Ordering::Acquire)
    }

    /// Whether it is time to let some go.
    pub(super) fn note(&self, key: &[u8]) -> bool {
        let hash = self.hasher.hash_one(key);
        let mut last = self.last.lock();
        let now = self.now() + 1;
        if last.keys.len() >= MOST {
            last.keys.clear();
            last.all = now;
        }
        last.keys.insert(hash, now);
        self.now.store(now, Ordering::Release);
        last.keys.len().is_multiple_of(CROWD)
    }

    /// Whether a key was removed after `since`.
    pub(super) fn has(&self, key: &[u8], since: u64) -> bool {
        if self.now() == since {
            return false;
        }
        let last = self.last.lock();
        last.all > since || last.keys.get(&self.hasher.hash_one(key)).is_some_and(|number| *number > since)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.last.lock().keys.is_empty()
    }

    /// Nothing of before this one is on its way any more.
    pub(super) fn forget_until(&self, noted: u64) {
        let mut last = self.last.lock();
        last.keys.retain(|_, number| *number > noted);
        // After a flood the room goes too.
        let len = last.keys.len();
        last.keys.shrink_to(len.max(CROWD));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> Vec<u8> {
        format!("https://a:443/{n}").into_bytes()
    }

    #[test]
    fn who_was_removed_since() {
        let removals = Removals::default();
        let before = removals.now();
        removals.note(&key(1));
        let between = removals.now();
        removals.note(&key(2));
        assert!(removals.has(&key(1), before) && removals.has(&key(2), before));
        assert!(!removals.has(&key(1), between) && removals.has(&key(2), between));
        removals.forget_until(between);
        assert!(!removals.has(&key(1), before) && removals.has(&key(2), before));
        removals.forget_until(removals.now());
        assert!(removals.is_empty());
    }

    /// Nobody else's record is lost by them, as long as somebody lets them go now and then.
    #[test]
    fn removals_are_of_their_own_keys_alone() {
        let removals = Removals::default();
        let before = removals.now();
        for n in 1..4 * MOST {
            if removals.note(&key(n)) {
                removals.forget_until(removals.now());
            }
        }
        assert!(!removals.has(&key(0), before) && removals.last.lock().keys.capacity() < 4 * CROWD);
        // Else they stay within their bound, and all of before is taken for removed.
        for n in 1..2 * MOST {
            removals.note(&key(n));
        }
        assert!(removals.has(&key(0), before) && removals.last.lock().keys.len() <= MOST);
        assert!(!removals.has(&key(0), removals.now()));
    }
}
