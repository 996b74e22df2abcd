//! Chance for times, so that many instances do not act in step. Nothing here is secret.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::FOREVER;

/// A number that other processes, and other calls, do not get.
pub(crate) fn random() -> u64 {
    static KEYS: OnceLock<RandomState> = OnceLock::new();
    static CALLS: AtomicU64 = AtomicU64::new(0);
    KEYS.get_or_init(RandomState::new).hash_one(CALLS.fetch_add(1, Ordering::Relaxed))
}

/// A tenth to either side: from 0.9 to 1.1 times `time`, of which no more counts than a year.
pub(crate) fn around(time: Duration, random: u64) -> Duration {
    time.min(FOREVER).mul_f64(0.9 + 0.2 * fraction(random))
}

/// Up to a tenth less: from 0.9 to 1 times `time`, so that an upper bound holds.
pub(crate) fn at_most(time: Duration, random: u64) -> Duration {
    time - (time / 10).mul_f64(fraction(random))
}

/// Anything from nothing to `time`, of which no more counts than a year.
pub(crate) fn below(time: Duration, random: u64) -> Duration {
    time.min(FOREVER).mul_f64(fraction(random)).min(time)
}

/// From 0 to 1, 1 left out.
#[allow(clippy::cast_precision_loss)] // 53 bits are what an f64 holds
fn fraction(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold_at_both_ends() {
        let time = Duration::from_secs(10);
        assert_eq!(around(time, 0), Duration::from_secs(9));
        assert!(around(time, u64::MAX) <= Duration::from_secs(11));
        assert_eq!(at_most(time, 0), time);
        assert!(at_most(time, u64::MAX) >= Duration::from_secs(9));
        assert_eq!(at_most(Duration::MAX, 0), Duration::MAX);
        assert_eq!(below(time, 0), Duration::ZERO);
        assert!(below(time, u64::MAX) <= time);
        let now = std::time::Instant::now();
        for most in [around(Duration::MAX, u64::MAX), below(Duration::MAX, u64::MAX)] {
            assert!(now.checked_add(most).is_some());
        }
    }

    #[test]
    fn calls_differ() {
        let numbers: std::collections::HashSet<_> = (0..100).map(|_| random()).collect();
        assert_eq!(numbers.len(), 100);
    }
}
