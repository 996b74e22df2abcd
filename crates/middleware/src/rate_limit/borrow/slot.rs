//! One bucket's portion, and what is known about the bucket. Times are nanoseconds.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use super::{Lent, Question};
use crate::rate_limit::{local::standing, options::RateQuota, store::Verdict};

/// For how long a portion is good.
const LAPSE: u64 = 1_000_000_000;
/// What a portion is to last for.
const HORIZON: u64 = 100_000_000;

#[derive(Debug, Default)]
pub(super) struct Slot {
    /// 0 where it is free: no keyed hash of 128 bits ever is.
    key: u128,
    /// What was lent and refused by another quota says nothing of this one: a rule that has changed has another slot, and the one before lapses.
    quota: Option<RateQuota>,
    /// What is left of the portion.
    portion: u32,
    /// How much the last portion was, for when to ask for the next.
    last: u32,
    /// Until when it is good.
    lapses: u64,
    /// Until when the bucket has less than `denied`.
    empty_until: u64,
    denied: u32,
    /// What was asked for since the last answer, and when that was.
    asked: u32,
    since: u64,
    used: u64,
    /// What the bucket had left at the last answer.
    left: u32,
    pub(super) question: Option<Arc<Question>>,
}

/// What follows from asking a slot.
pub(super) enum Next {
    Verdict(Verdict),
    /// This, and another portion is due.
    Refill(Verdict),
    /// It takes an answer of the lender.
    Empty,
}

impl Slot {
    /// The bucket's slot, or the one that has been idle for longest; `None` where all have a question on its way.
    pub(super) fn of(set: &mut [Self], key: u128, quota: RateQuota) -> Option<&mut Self> {
        if let Some(at) = set.iter().position(|slot| slot.is_of(key, quota)) {
            return set.get_mut(at);
        }
        let idle = set.iter_mut().filter(|slot| slot.question.is_none()).min_by_key(|slot| slot.used)?;
        *idle = Self { key, quota: Some(quota), ..Self::default() };
        Some(idle)
    }

    pub(super) fn is_of(&self, key: u128, quota: RateQuota) -> bool {
        self.key == key && self.quota == Some(quota)
    }

    pub(super) fn take(&mut self, now: u64, cost: u32, quota: RateQuota) -> Next {
        self.used = now;
        self.asked = self.asked.saturating_add(cost);
        if now >= self.lapses {
            self.portion = 0;
        }
        if let Some(rest) = self.portion.checked_sub(cost) {
            self.portion = rest;
            let verdict =
                Verdict::Allowed(standing(quota, self.left.saturating_add(rest).min(quota.burst.get())));
            // a bucket that gave less than was wanted has nothing to ask for
            let is_low = rest <= self.last / 2 && self.last > 1 && now >= self.empty_until;
            return if is_low { Next::Refill(verdict) } else { Next::Verdict(verdict) };
        }
        if now < self.empty_until && cost >= self.denied {
            let wait = Some(Duration::from_nanos(self.empty_until - now));
            return Next::Verdict(Verdict::Refused { wait, standing: standing(quota, self.portion) });
        }
        Next::Empty
    }

    /// How much to ask for: as much as is used in [`HORIZON`], a tenth of the burst at most.
    pub(super) fn wants(&self, now: u64, need: NonZeroU32, quota: RateQuota) -> NonZeroU32 {
        let time = now.saturating_sub(self.since).max(1);
        // a slot that was idle tells nothing by its average
        let used = if self.since == 0 || time > LAPSE {
            self.asked.min(1)
        } else {
            let used = u64::from(self.asked).saturating_mul(HORIZON) / time;
            u32::try_from(used).unwrap_or(u32::MAX)
        };
        let most = (quota.burst.get() / 10).max(need.get());
        NonZeroU32::new(used.clamp(need.get(), most)).unwrap_or(need)
    }

    /// Takes an answer.
    pub(super) fn put(&mut self, now: u64, need: NonZeroU32, lent: Lent) {
        self.asked = 0;
        self.since = now;
        self.left = lent.left;
        if lent.granted == 0 {
            let wait = u64::try_from(lent.wait.as_nanos()).unwrap_or(u64::MAX);
            self.empty_until = now.saturating_add(wait);
            self.denied = need.get();
            return;
        }
        self.portion = self.portion.saturating_add(lent.granted);
        self.last = self.portion;
        self.lapses = now.saturating_add(LAPSE);
    }

    pub(super) fn give_back(&mut self, cost: u32) {
        self.portion = self.portion.saturating_add(cost);
    }
}

// what `BorrowOptions::max_buckets` says
const _: () = assert!(size_of::<Slot>() <= 128);
