//! How many retries a cluster may make.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::RetryOptions;

/// How often the window moves: it looks back this long at least and twice this at most.
const STEP: Duration = Duration::from_secs(5);

/// Retries in proportion to the requests of the last seconds. It is looked at only when something is to be tried again, and costs a
/// request that succeeds nothing.
#[derive(Debug)]
pub(crate) struct Budget {
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    /// When the current step began, and the numbers then.
    began: Instant,
    requests: u64,
    retries: u64,
    /// The numbers when the step before began.
    before: (Instant, u64, u64),
    /// Retries that were allowed so far.
    allowed: u64,
}

impl Budget {
    pub(crate) fn new(now: Instant) -> Self {
        let window = Window { began: now, requests: 0, retries: 0, before: (now, 0, 0), allowed: 0 };
        Self { window: Mutex::new(window) }
    }

    /// Whether one more retry is within the budget, when there were so many requests so far.
    pub(crate) fn withdraw(&self, requests: u64, options: &RetryOptions, now: Instant) -> bool {
        let mut window = self.window.lock();
        let step = now.saturating_duration_since(window.began);
        if step >= STEP {
            // after a long quiet time what was before it says nothing
            window.before = match step >= 2 * STEP {
                true => (now, requests, window.allowed),
                false => (window.began, window.requests, window.retries),
            };
            (window.began, window.requests, window.retries) = (now, requests, window.allowed);
        }
        let (since, requests_then, retries_then) = window.before;
        let seconds = now.saturating_duration_since(since).as_secs().max(1);
        let share =
            requests.saturating_sub(requests_then).saturating_mul(u64::from(options.budget_percent)) / 100;
        let allowed = share.saturating_add(seconds.saturating_mul(u64::from(options.budget_min)));
        if window.allowed.saturating_sub(retries_then) >= allowed {
            return false;
        }
        window.allowed += 1;
        true
    }
}

/// The pause before a retry: none before the first.
pub(crate) fn pause(retry: u32, options: &RetryOptions, random: u64) -> Duration {
    const LONGEST: Duration = Duration::from_secs(1);
    let Some(doublings) = retry.checked_sub(2) else { return Duration::ZERO };
    let full = options.backoff.saturating_mul(1 << doublings.min(16)).min(LONGEST);
    // between half and all of it
    full / 2 + (full / 2).mul_f64((random % 1024) as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(budget: &Budget, requests: u64, options: &RetryOptions, now: Instant) -> u64 {
        (0..10_000).take_while(|_| budget.withdraw(requests, options, now)).count() as u64
    }

    #[tokio::test]
    async fn a_share_of_the_requests_and_a_minimum() {
        let options = RetryOptions { budget_percent: 20, budget_min: 3, ..RetryOptions::default() };
        let start = Instant::now();
        let budget = Budget::new(start);
        assert_eq!(taken(&budget, 1, &options, start), 3, "the minimum of a second");
        assert_eq!(taken(&budget, 1000, &options, start), 200);
        // the window moves on: what is long ago does not count
        let later = start + Duration::from_secs(30);
        assert_eq!(taken(&budget, 1000, &options, later), 3);
        assert_eq!(taken(&budget, 1100, &options, later + Duration::from_secs(1)), 20);
        let none = RetryOptions { budget_percent: 0, budget_min: 0, ..RetryOptions::default() };
        assert_eq!(taken(&Budget::new(start), 1000, &none, start), 0);
    }

    #[test]
    fn pauses_grow_to_a_second() {
        let options = RetryOptions::default();
        assert_eq!(pause(1, &options, 77), Duration::ZERO);
        assert_eq!(pause(2, &options, 0), options.backoff / 2);
        for (retry, most) in [(2, 25), (3, 50), (4, 100), (20, 1000), (u32::MAX, 1000)] {
            let pause = pause(retry, &options, 1023).as_millis();
            assert!(pause <= most && pause > most * 9 / 10, "{retry}: {pause}");
        }
    }
}
