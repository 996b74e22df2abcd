//! Log lines that strangers can cause: one a second, with a count of those that were left out.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<(Option<Instant>, u64)>);

impl Seldom {
    /// How many lines were left out before this one, if it is time for one; `None` is not.
    pub(crate) fn now(&self) -> Option<u64> {
        let mut last = self.0.lock();
        let now = Instant::now();
        if last.0.is_some_and(|at| now.saturating_duration_since(at) < EVERY) {
            last.1 += 1;
            return None;
        }
        let others = last.1;
        *last = (Some(now), 0);
        Some(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_a_second_and_the_others_are_counted() {
        let seldom = Seldom::default();
        assert_eq!([seldom.now(), seldom.now(), seldom.now()], [Some(0), None, None]);
        tokio::time::advance(EVERY).await;
        assert_eq!([seldom.now(), seldom.now()], [Some(2), None]);
        tokio::time::advance(EVERY).await;
        assert_eq!(seldom.now(), Some(1));
    }
}
