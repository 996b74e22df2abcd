//! Shares of requests among several takers.
//!
//! No dice: of every run of as many requests as the weights sum up to each taker gets exactly its weight, and they are
//! spread over the run, so that a share of one in a hundred is every hundredth request and not a streak.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// The largest sum of weights.
pub const MAX_WEIGHT: u32 = 1_000_000;

/// Why there is no split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// Somebody must take the requests.
    #[error("the weights sum up to 0")]
    NoWeight,
    /// More than [`MAX_WEIGHT`].
    #[error("the weights sum up to more than {MAX_WEIGHT}")]
    TooHeavy,
}

/// Takers with weights. Clones share one count.
#[derive(Clone, Debug)]
pub struct Split<T> {
    // each with the sum of the weights up to and with its own
    takers: Vec<(u32, T)>,
    turns: Turns,
}

impl<T> Split<T> {
    /// Each taker with its weight. One of weight 0 gets nothing.
    pub fn new(takers: impl IntoIterator<Item = (u32, T)>) -> Result<Self, SplitError> {
        let mut sum = 0_u32;
        let mut summed = Vec::new();
        for (weight, taker) in takers.into_iter().filter(|(weight, _)| *weight > 0) {
            sum = sum.checked_add(weight).filter(|sum| *sum <= MAX_WEIGHT).ok_or(SplitError::TooHeavy)?;
            summed.push((sum, taker));
        }
        if sum == 0 {
            return Err(SplitError::NoWeight);
        }
        Ok(Self { takers: summed, turns: Turns::new(sum) })
    }

    /// Whose turn it is.
    pub fn next(&self) -> &T {
        let turn = self.turns.next();
        let at = self.takers.partition_point(|(upto, _)| *upto <= turn);
        &self.takers[at].1
    }
}

/// Every number below a bound once in a run of as many, far from the one before it.
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    of: u64,
    stride: u64,
    count: Arc<AtomicU64>,
}

impl Turns {
    pub(crate) fn new(of: u32) -> Self {
        let of = u64::from(of.max(1));
        // the golden section spreads best; it reaches every number where it shares no divisor with the bound
        let mut stride = (of * 618 / 1000).max(1);
        while gcd(stride, of) != 1 {
            stride += 1;
        }
        Self { of, stride, count: Arc::default() }
    }

    pub(crate) fn next(&self) -> u32 {
        let count = self.count.fetch_add(1, Ordering::Relaxed) % self.of;
        u32::try_from(count * self.stride % self.of).expect("it is below a bound of 32 bits")
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_split() {
        assert_eq!(Split::<()>::new([]).unwrap_err(), SplitError::NoWeight);
        assert_eq!(Split::new([(0, ())]).unwrap_err(), SplitError::NoWeight);
        assert_eq!(Split::new([(MAX_WEIGHT, ()), (1, ())]).unwrap_err(), SplitError::TooHeavy);
        assert_eq!(Split::new([(u32::MAX, ())]).unwrap_err(), SplitError::TooHeavy);
    }

    #[test]
    fn a_small_share_is_spread_out() {
        let split = Split::new([(90, 'a'), (10, 'b')]).unwrap();
        let b: Vec<_> = (0..1000).filter(|_| *split.next() == 'b').collect();
        assert_eq!(b.len(), 100);
        // never none in 20, where 2 are due
        assert!(b.windows(2).all(|pair| pair[1] - pair[0] <= 20), "{b:?}");
    }

    #[test]
    fn clones_share_a_count() {
        let split = Split::new([(1, 'a'), (1, 'b')]).unwrap();
        assert_ne!(split.next(), split.clone().next());
    }

    proptest! {
        #[test]
        fn every_run_is_exact(weights in prop::collection::vec(0_u32..40, 1..6), skipped in 0_u32..200) {
            let sum: u32 = weights.iter().sum();
            prop_assume!(sum > 0);
            let split = Split::new(weights.iter().copied().zip(0..)).unwrap();
            for _ in 0..skipped {
                split.next();
            }
            let mut got = vec![0; weights.len()];
            for _ in 0..sum {
                got[*split.next()] += 1;
            }
            prop_assert_eq!(got, weights);
        }
    }
}
