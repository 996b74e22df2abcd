//! When a run warms up, measures and ends, and when each request of an open loop is due.

use std::time::{Duration, Instant};

/// A request of an open loop that starts later than this after its time is reported as late.
pub(crate) const LATE: Duration = Duration::from_millis(1);

/// The three moments of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// The first request.
    pub(crate) begin: Instant,
    /// From here on it counts.
    pub(crate) from: Instant,
    /// Up to here it counts; nothing starts later.
    pub(crate) until: Instant,
}

impl Clock {
    pub(crate) fn new(begin: Instant, warmup: Duration, duration: Duration) -> Self {
        let from = begin + warmup;
        Self { begin, from, until: from + duration }
    }

    pub(crate) fn measures(&self, at: Instant) -> bool {
        at >= self.from && at < self.until
    }
}

/// A fixed number of requests a second. It is arithmetic, so it costs no memory however long the run is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    begin: Instant,
    until: Instant,
    rate: f64,
}

impl Schedule {
    pub(crate) fn new(clock: &Clock, rate: f64) -> Self {
        Self { begin: clock.begin, until: clock.until, rate }
    }

    /// When request `index` (from 0) is due, or `None` behind the end.
    pub(crate) fn due(&self, index: u64) -> Option<Instant> {
        let due = self.begin + Duration::from_secs_f64(index as f64 / self.rate);
        (due < self.until).then_some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_half_open() {
        let begin = Instant::now();
        let clock = Clock::new(begin, Duration::from_secs(1), Duration::from_secs(2));
        assert!(!clock.measures(begin));
        assert!(clock.measures(begin + Duration::from_secs(1)));
        assert!(!clock.measures(begin + Duration::from_secs(3)));
    }

    #[test]
    fn the_schedule_is_even_and_ends() {
        let begin = Instant::now();
        let clock = Clock::new(begin, Duration::ZERO, Duration::from_secs(2));
        let schedule = Schedule::new(&clock, 1000.0);
        assert_eq!(schedule.due(0), Some(begin));
        assert_eq!(schedule.due(1500), Some(begin + Duration::from_millis(1500)));
        let count = (0..).take_while(|index| schedule.due(*index).is_some()).count();
        assert_eq!(count, 2000);
    }
}
