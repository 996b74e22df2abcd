//! Which of many requests are logged.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{AccessRecord, Outcome};

/// One of so many requests, and those that are always worth a line. Default: all of them.
///
/// The choice is by the request's trace, or else its id, so that instances that see the same request choose alike; without either
/// it is every n-th. Clones count together. That wants [`super::RecordOptions::details`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Sampling {
    /// One of how many. Default 1, which is every one.
    pub one_in: NonZeroU32,
    /// Statuses from this one on are always logged; requests without a response count as 499, those that broke off as 500. Default `None`: they are
    /// as good as others.
    pub errors_from: Option<u16>,
    /// Requests that took longer are always logged. Default `None`.
    pub slower_than: Option<Duration>,
    count: Arc<AtomicU64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self::new(NonZeroU32::MIN)
    }
}

/// What was counted is no difference.
impl PartialEq for Sampling {
    fn eq(&self, other: &Self) -> bool {
        (self.one_in, self.errors_from, self.slower_than)
            == (other.one_in, other.errors_from, other.slower_than)
    }
}

impl Eq for Sampling {}

impl Sampling {
    /// One of so many.
    pub fn new(one_in: NonZeroU32) -> Self {
        Self { one_in, errors_from: None, slower_than: None, count: Arc::default() }
    }

    /// Sets [`Sampling::errors_from`].
    #[must_use]
    pub fn with_errors_from(mut self, status: Option<u16>) -> Self {
        self.errors_from = status;
        self
    }

    /// Sets [`Sampling::slower_than`].
    #[must_use]
    pub fn with_slower_than(mut self, duration: Option<Duration>) -> Self {
        self.slower_than = duration;
        self
    }

    /// Whether this one is logged.
    pub fn keeps(&self, record: &AccessRecord) -> bool {
        if self.one_in == NonZeroU32::MIN {
            return true;
        }
        let status = match (record.outcome, record.status) {
            (Outcome::Failed, _) => 500,
            (_, None) => 499,
            (_, Some(status)) => status.as_u16(),
        };
        if self.errors_from.is_some_and(|least| status >= least)
            || self.slower_than.is_some_and(|most| record.duration > most)
        {
            return true;
        }
        let id = record.details.as_ref().and_then(|details| {
            let id = details.request_id.as_ref().map(http::HeaderValue::as_bytes);
            details.trace_id().map(str::as_bytes).or(id)
        });
        let number = match id {
            Some(id) => hash(id),
            None => self.count.fetch_add(1, Ordering::Relaxed),
        };
        number % u64::from(self.one_in.get()) == 0
    }
}

/// FNV-1a with its bits mixed once more: the same on every instance. Who wants his requests in the log, or out of it, can have that by his id anyway.
fn hash(bytes: &[u8]) -> u64 {
    let mut hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ hash >> 33
}
