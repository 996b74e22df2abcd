//! Keys whose responses turned out not to be for all.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

const SLOTS: usize = 4096;

/// For so long nobody waits for another's response to such a key.
const LASTS: Duration = Duration::from_secs(30);

/// The low bits of a slot are the second of the mark, the others are the key's hash.
const SECONDS: u64 = 0xFFFF;

/// What a key's hash is marked by where its body turned out to have no room in the store. Waiting for it is of use all the same.
pub(crate) fn too_large(hash: u64) -> u64 {
    hash ^ 0x9E37_79B9_7F4A_0000
}

/// The same where requests with credentials got what is not for all: it says nothing of what others get.
pub(crate) fn of_authorized(hash: u64) -> u64 {
    hash ^ 0xC2B2_AE3D_27D4_0000
}

/// Remembers keys for which waiting is of no use, so that requests for what is not stored run side by side. Of a fixed size (32 KiB): a later key
/// takes the place of an earlier one, which costs that one a wait. Two keys of one hash are one here, which costs a request more to the origin.
pub(crate) struct Marks {
    slots: Box<[AtomicU64]>,
    start: Instant,
}

impl Default for Marks {
    fn default() -> Self {
        Self { slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(), start: Instant::now() }
    }
}

impl Marks {
    /// In the half of the seconds that can be told apart.
    fn second(&self, now: Instant) -> u64 {
        // 0 is an empty slot
        (now.saturating_duration_since(self.start).as_secs() + 1) & SECONDS
    }

    fn slot(&self, hash: u64) -> &AtomicU64 {
        // the hash's upper half: the lower 16 bits make room for the second
        let at = usize::try_from((hash >> 32) % SLOTS as u64).unwrap_or(0);
        &self.slots[at]
    }

    pub(crate) fn set(&self, hash: u64, now: Instant) {
        self.slot(hash).store((hash & !SECONDS) | self.second(now), Ordering::Relaxed);
    }

    pub(crate) fn clear(&self, hash: u64) {
        let slot = self.slot(hash);
        let found = slot.load(Ordering::Relaxed);
        if found != 0 && found & !SECONDS == hash & !SECONDS {
            slot.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn has(&self, hash: u64, now: Instant) -> bool {
        let found = self.slot(hash).load(Ordering::Relaxed);
        let age = self.second(now).wrapping_sub(found) & SECONDS;
        found != 0 && found & !SECONDS == hash & !SECONDS && age < LASTS.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_fades() {
        let marks = Marks::default();
        let now = marks.start;
        let hash = 0x1234_5678_9ABC_DEF0;
        assert!(!marks.has(hash, now));
        marks.set(hash, now);
        assert!(marks.has(hash, now) && marks.has(hash, now + LASTS - Duration::from_secs(1)));
        assert!(!marks.has(hash, now + LASTS));
        assert!(!marks.has(hash ^ (1 << 20), now), "another key");
        marks.clear(hash);
        assert!(!marks.has(hash, now));
        // The seconds run over.
        let late = now + Duration::from_secs(SECONDS);
        marks.set(hash, late);
        assert!(marks.has(hash, late + Duration::from_secs(5)));
    }
}
