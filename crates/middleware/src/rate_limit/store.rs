//! Where buckets can be kept that processes share.

use std::{fmt, future::Future, num::NonZeroU32, pin::Pin, time::Duration};

use super::options::RateQuota;

/// Keeps buckets. The table of this process needs none; [`super::borrow::Borrowing`] is the one for what instances share.
///
/// A store must answer within a bound of its own: a request waits for as long as the future of [`Take::Later`] does, for each of its shared rules until
/// one comes to [`Verdict::Unavailable`]; after that such a future is dropped unpolled.
pub trait RateStore: fmt::Debug + Send + Sync {
    /// The keys of the hash that [`Bucket::key`] is made by: the same for all that share the buckets, unknown to
    /// anybody else, so that nobody can aim at another's bucket.
    fn seed(&self) -> [u64; 2];

    /// Takes this much from the bucket, whole or not at all.
    fn take(&self, bucket: &Bucket<'_>, cost: NonZeroU32) -> Take;

    /// Puts back what was taken for a request that another rule refused. May be lost: that is an error on the strict side.
    fn give_back(&self, bucket: &Bucket<'_>, cost: NonZeroU32);
}

/// Names a bucket.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Bucket<'a> {
    /// The rule, whose name is in the key already: letters, digits, `-`, `_` and `.`, at most 64.
    pub rule: &'a str,
    /// The keyed hash of what the rule counts by.
    pub key: u128,
    /// The keys that it was made by.
    pub seed: [u64; 2],
    /// Its size and how fast it fills.
    pub quota: RateQuota,
}

impl<'a> Bucket<'a> {
    /// A bucket of this rule.
    pub fn new(rule: &'a str, key: u128, seed: [u64; 2], quota: RateQuota) -> Self {
        Self { rule, key, seed, quota }
    }
}

/// A store's answer, now or later.
pub enum Take {
    /// Without waiting.
    Now(Verdict),
    /// The store has to ask. Dropping the future is harmless.
    Later(Pin<Box<dyn Future<Output = Verdict> + Send>>),
}

impl fmt::Debug for Take {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now(verdict) => f.debug_tuple("Now").field(verdict).finish(),
            Self::Later(_) => f.write_str("Later"),
        }
    }
}

/// Whether the bucket had enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// It had, and it is taken.
    Allowed(Standing),
    /// It had not, and nothing is taken.
    Refused {
        /// How long until it will have; `None` where it never will.
        wait: Option<Duration>,
        /// What it has.
        standing: Standing,
    },
    /// It can't be asked.
    Unavailable,
    /// The store's seed has changed since the key was made: to be asked again with a new one.
    Rekey,
}

/// What a bucket has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// What could be taken now. With a shared store it is an estimate.
    pub left: u32,
    /// How long until it is full.
    pub full_in: Duration,
}
