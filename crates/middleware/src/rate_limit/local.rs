//! Buckets of this process: governor's algorithm over our table.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use governor::{
    NotUntil, RateLimiter,
    clock::{Clock, Reference},
    middleware::{StateInformationMiddleware, StateSnapshot},
    nanos::Nanos,
    state::StateStore,
};

use super::{
    options::RateQuota,
    store::{Standing, Verdict},
    table::{Probe, Table, TableCounts},
};

/// A rule's buckets. Generic over the clock, so that tests can set it.
#[derive(Debug)]
pub(super) struct Local<C: Clock> {
    limiter: RateLimiter<Probe, Since, C, StateInformationMiddleware>,
    table: Arc<Table>,
    /// What the table's times count from.
    epoch: C::Instant,
    quota: RateQuota,
}

/// A limiter counts from when it was made, the table from when the first one was.
#[derive(Debug)]
struct Since {
    table: Arc<Table>,
    offset: u64,
}

impl StateStore for Since {
    type Key = Probe;

    fn measure_and_replace<T, F, E>(&self, probe: &Probe, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.table.measure_and_replace(probe, |time| {
            let (outcome, next) = f(time.map(|time| time.saturating_sub(Nanos::new(self.offset))))?;
            Ok((outcome, Nanos::new(next.as_u64().saturating_add(self.offset))))
        })
    }
}

impl<C: Clock + Clone> Local<C> {
    pub(super) fn new(quota: RateQuota, max_keys: usize, clock: C) -> Self {
        let epoch = clock.now();
        Self::over(Arc::new(Table::new(max_keys)), epoch, quota, clock)
    }

    /// The same buckets by another quota: each stays as full as it is.
    pub(super) fn changed(&self, quota: RateQuota) -> Self {
        let clock = self.limiter.clock().clone();
        let now = clock.now().duration_since(self.epoch).as_u64();
        self.table.rescale(now, self.quota.fills_in_nanos(), quota.fills_in_nanos());
        Self::over(Arc::clone(&self.table), self.epoch, quota, clock)
    }

    fn over(table: Arc<Table>, epoch: C::Instant, quota: RateQuota, clock: C) -> Self {
        let offset = clock.now().duration_since(epoch).as_u64();
        let since = Since { table: Arc::clone(&table), offset };
        Self { limiter: RateLimiter::new(quota.governor(), since, clock), table, epoch, quota }
    }
}

impl<C: Clock> Local<C> {
    /// Takes from a bucket. Where nobody asks, what it has left is not worked out, which takes two divisions.
    #[inline]
    pub(super) fn take(&self, key: u64, cost: NonZeroU32, asks_standing: bool) -> Verdict {
        // before governor multiplies it
        if cost > self.quota.burst {
            return Verdict::Refused { wait: None, standing: Standing::default() };
        }
        let probe = self.probe(key, cost);
        if cost.get() == 1 {
            return self.verdict(self.limiter.check_key(&probe), key, cost, asks_standing);
        }
        match self.limiter.check_key_n(&probe, cost) {
            Ok(outcome) => self.verdict(outcome, key, cost, asks_standing),
            Err(_) => Verdict::Refused { wait: None, standing: Standing::default() },
        }
    }

    pub(super) fn give_back(&self, key: u64, cost: NonZeroU32) {
        self.table.give_back(self.probe(key, cost));
    }

    pub(super) fn counts(&self) -> TableCounts {
        self.table.counts()
    }

    fn probe(&self, key: u64, cost: NonZeroU32) -> Probe {
        Probe { key, weight: self.quota.each_nanos().saturating_mul(u64::from(cost.get())) }
    }

    #[inline]
    fn verdict(
        &self,
        outcome: Result<StateSnapshot, NotUntil<C::Instant>>,
        key: u64,
        cost: NonZeroU32,
        asks_standing: bool,
    ) -> Verdict {
        match outcome {
            Ok(_) if !asks_standing => Verdict::Allowed(Standing::default()),
            Ok(snapshot) => Verdict::Allowed(standing(self.quota, snapshot.remaining_burst_capacity())),
            Err(until) => {
                let now = self.limiter.clock().now();
                let mut wait = until.wait_time_from(now);
                // Emptier than empty: while a reload changes a rule, workers that still go by the slower one before it write
                // its times into this table, and by this rule a request's debt could then last for hours.
                let longest = self.quota.each.saturating_mul(cost.get());
                if wait > longest {
                    let now = now.duration_since(self.epoch).as_u64();
                    self.table.hold_to(key, now.saturating_add(self.quota.fills_in_nanos()));
                    wait = longest;
                }
                // what it waits for is what is missing
                let missing = u32::try_from(wait.as_nanos().div_ceil(self.quota.each.as_nanos()));
                let left = cost.get().saturating_sub(missing.unwrap_or(u32::MAX));
                Verdict::Refused { wait: Some(wait), standing: standing(self.quota, left) }
            }
        }
    }
}

/// What a bucket has that could give this much.
pub(super) fn standing(quota: RateQuota, left: u32) -> Standing {
    let full_in = quota.each.saturating_mul(quota.burst.get().saturating_sub(left));
    Standing { left, full_in: full_in.min(Duration::from_secs(u64::from(u32::MAX))) }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;
    use crate::rate_limit::RateRule;

    const SECOND: Duration = Duration::from_secs(1);

    fn n(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).unwrap()
    }

    fn local(rule: &RateRule, clock: &FakeRelativeClock) -> Local<FakeRelativeClock> {
        Local::new(rule.quota(), rule.max_keys, clock.clone())
    }

    fn wait(verdict: Verdict) -> Option<Duration> {
        match verdict {
            Verdict::Refused { wait, .. } => wait,
            other => panic!("{other:?}"),
        }
    }

    fn is_allowed(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Allowed(_))
    }

    #[test]
    fn burst_then_refill_by_the_clock() {
        let clock = FakeRelativeClock::default();
        let limiter = local(&RateRule::new(n(2), SECOND).with_burst(n(3)), &clock);
        for left in [2, 1, 0] {
            let full_in = SECOND / 2 * (3 - left);
            assert_eq!(limiter.take(9, n(1), true), Verdict::Allowed(Standing { left, full_in }));
        }
        assert_eq!(wait(limiter.take(9, n(1), true)), Some(SECOND / 2));
        clock.advance(SECOND / 4);
        assert_eq!(wait(limiter.take(9, n(1), true)), Some(SECOND / 4));
        clock.advance(SECOND / 4);
        assert!(is_allowed(limiter.take(9, n(1), true)));
        assert!(!is_allowed(limiter.take(9, n(1), true)));
        // quiet for long: the bucket is full again, and no fuller
        clock.advance(SECOND * 100);
        for _ in 0..3 {
            assert!(is_allowed(limiter.take(9, n(1), true)));
        }
        assert!(!is_allowed(limiter.take(9, n(1), true)));
        assert_eq!(limiter.counts().taken, 7);
    }

    #[test]
    fn costs_and_what_can_never_be() {
        let clock = FakeRelativeClock::default();
        let limiter = local(&RateRule::new(n(10), SECOND), &clock);
        assert_eq!(
            limiter.take(1, n(7), true),
            Verdict::Allowed(Standing { left: 3, full_in: SECOND * 7 / 10 })
        );
        let standing = Standing { left: 3, full_in: SECOND * 7 / 10 };
        assert_eq!(limiter.take(1, n(5), true), Verdict::Refused { wait: Some(SECOND / 5), standing });
        assert!(is_allowed(limiter.take(1, n(3), true)));
        assert_eq!(wait(limiter.take(1, n(11), true)), None);
        limiter.give_back(1, n(7));
        assert!(is_allowed(limiter.take(1, n(7), true)) && !is_allowed(limiter.take(1, n(1), true)));
    }

    #[test]
    fn a_changed_quota_keeps_the_buckets() {
        let clock = FakeRelativeClock::default();
        clock.advance(SECOND * 1000);
        let day = local(&RateRule::new(n(100), SECOND * 86_400), &clock);
        for _ in 0..100 {
            assert!(is_allowed(day.take(1, n(1), true)));
        }
        assert!(is_allowed(day.take(2, n(50), true)));
        clock.advance(SECOND);
        let second = day.changed(RateRule::new(n(10), SECOND).quota());
        // who had nothing left has nothing, and waits no longer than the new rule makes him; who had half has half
        let waits = wait(second.take(1, n(1), true)).unwrap();
        assert!(waits <= SECOND / 10, "{waits:?}");
        assert!(is_allowed(second.take(2, n(5), true)) && !is_allowed(second.take(2, n(1), true)));
        assert!(is_allowed(second.take(3, n(10), true)));
        clock.advance(SECOND);
        assert!(is_allowed(second.take(1, n(10), true)));
        let again = second.changed(RateRule::new(n(10), SECOND * 60).quota());
        assert!(wait(again.take(1, n(1), true)).unwrap() > SECOND * 5);
    }

    #[test]
    fn a_layer_that_goes_on_by_a_slower_rule_locks_nobody_out() {
        let clock = FakeRelativeClock::default();
        clock.advance(SECOND * 1000);
        let day = local(&RateRule::new(n(100), SECOND * 86_400), &clock);
        let second = day.changed(RateRule::new(n(10), SECOND).quota());
        // a worker that has not heard of the change
        assert!(is_allowed(day.take(1, n(1), true)) && is_allowed(day.take(2, n(1), true)));
        assert_eq!(
            wait(second.take(1, n(1), true)),
            Some(SECOND / 10),
            "as one that is empty, and no longer"
        );
        assert_eq!(wait(second.take(2, n(5), true)), Some(SECOND / 2), "as long as what it costs takes");
        clock.advance(SECOND / 10);
        assert!(is_allowed(second.take(1, n(1), true)) && !is_allowed(second.take(1, n(1), true)));
        clock.advance(SECOND);
        assert!(is_allowed(second.take(2, n(10), true)));
    }

    #[test]
    fn absurd_rates_neither_panic_nor_stop_counting() {
        let table = [
            RateRule::new(n(u32::MAX), Duration::ZERO),
            RateRule::new(n(1), Duration::MAX),
            RateRule::new(n(1), Duration::MAX).with_burst(NonZeroU32::MAX),
            RateRule::new(n(u32::MAX), Duration::from_nanos(1)).with_max_keys(0),
        ];
        for rule in &table {
            let limiter = local(rule, &FakeRelativeClock::default());
            for cost in [1, 2, 1000, u32::MAX].map(n) {
                for _ in 0..1000 {
                    let _ = limiter.take(0, cost, true);
                }
                limiter.give_back(0, cost);
            }
            let _ = limiter.changed(table[0].quota()).take(0, n(u32::MAX), true);
            assert!(is_allowed(limiter.take(1, n(1), true)));
        }
    }
}
