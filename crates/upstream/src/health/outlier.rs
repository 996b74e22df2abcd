//! Outlier ejection: an endpoint whose requests fail in a row is left out for a while.
//!
//! The state of an endpoint is a few atomics. A good answer costs loads only, so long as nothing went wrong before it.
//! Times are counted from a moment that the caller keeps, the same one for all calls.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use super::jitter;

/// When an endpoint is ejected, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutlierOptions {
    /// Failures of the connection in a row that eject: it could not be made, it was reset, or no answer came in time.
    /// 0 is off. Default 5.
    pub consecutive_failures: u32,
    /// Answers in a row with 502, 503 or 504 that eject. 0 is off. Default 5.
    pub consecutive_gateway: u32,
    /// Answers in a row with any status from 500 to 599 that eject. 0 is off, and the default: a request that an
    /// application can not bear is the fault of the endpoint's program, which the other endpoints run too.
    pub consecutive_5xx: u32,
    /// How long the first ejection lasts; each further one lasts twice as long as the one before. Less up to a tenth
    /// by chance, so that endpoints do not return in step. Default 10 s.
    pub base_ejection: Duration,
    /// The most that an ejection lasts. Default 300 s.
    pub max_ejection: Duration,
    /// How long an endpoint is back for one of its earlier ejections to be forgotten. Default 60 s.
    pub forget_after: Duration,
    /// The most endpoints of a cluster that are ejected at once, in percent and rounded down, but one at least if this
    /// is not 0. One endpoint always stays, whatever this says. Default 50.
    pub max_ejected_percent: u8,
}

impl Default for OutlierOptions {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            consecutive_gateway: 5,
            consecutive_5xx: 0,
            base_ejection: Duration::from_secs(10),
            max_ejection: Duration::from_secs(300),
            forget_after: Duration::from_secs(60),
            max_ejected_percent: 50,
        }
    }
}

impl OutlierOptions {
    /// Sets [`OutlierOptions::consecutive_failures`].
    #[must_use]
    pub fn with_consecutive_failures(mut self, count: u32) -> Self {
        self.consecutive_failures = count;
        self
    }

    /// Sets [`OutlierOptions::consecutive_gateway`].
    #[must_use]
    pub fn with_consecutive_gateway(mut self, count: u32) -> Self {
        self.consecutive_gateway = count;
        self
    }

    /// Sets [`OutlierOptions::consecutive_5xx`].
    #[must_use]
    pub fn with_consecutive_5xx(mut self, count: u32) -> Self {
        self.consecutive_5xx = count;
        self
    }

    /// Sets [`OutlierOptions::base_ejection`].
    #[must_use]
    pub fn with_base_ejection(mut self, time: Duration) -> Self {
        self.base_ejection = time;
        self
    }

    /// Sets [`OutlierOptions::max_ejection`].
    #[must_use]
    pub fn with_max_ejection(mut self, time: Duration) -> Self {
        self.max_ejection = time;
        self
    }

    /// Sets [`OutlierOptions::forget_after`].
    #[must_use]
    pub fn with_forget_after(mut self, time: Duration) -> Self {
        self.forget_after = time;
        self
    }

    /// Sets [`OutlierOptions::max_ejected_percent`].
    #[must_use]
    pub fn with_max_ejected_percent(mut self, percent: u8) -> Self {
        self.max_ejected_percent = percent;
        self
    }

    /// How many of `total` endpoints may be ejected at once.
    pub fn max_ejected(&self, total: usize) -> usize {
        let percent = usize::from(self.max_ejected_percent.min(100));
        if percent == 0 {
            return 0;
        }
        // without overflow for any number of endpoints
        let share = total / 100 * percent + total % 100 * percent / 100;
        share.max(1).min(total.saturating_sub(1))
    }

    /// How long the ejection after `earlier` ones lasts.
    fn ejection(&self, earlier: u32, random: u64) -> Duration {
        let factor = 1_u32.checked_shl(earlier).unwrap_or(u32::MAX);
        let time = self.base_ejection.saturating_mul(factor).min(self.max_ejection);
        jitter::at_most(time, random)
    }

    /// How many of `earlier` ejections count still, `back` after the last one's end.
    fn remembered(&self, earlier: u32, back: Duration) -> u32 {
        let step = millis(self.forget_after);
        // with no time at all every one of them is forgotten
        let forgotten = millis(back).checked_div(step).unwrap_or(u64::MAX);
        earlier.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX))
    }
}

/// How a request failed at an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureKind {
    /// No connection, a reset, or no answer in time.
    Connection,
    /// An answer with 502, 503 or 504.
    Gateway,
    /// An answer with another status from 500 to 599.
    Server,
}

impl FailureKind {
    /// What an answer's status says against the endpoint, if anything.
    pub fn of_status(status: http::StatusCode) -> Option<Self> {
        match status.as_u16() {
            502..=504 => Some(Self::Gateway),
            500..=599 => Some(Self::Server),
            _ => None,
        }
    }
}

/// What is known of one endpoint. Shared by reference between threads.
#[derive(Debug, Default)]
pub struct Outlier {
    /// In a row, each.
    connection: AtomicU32,
    gateway: AtomicU32,
    server: AtomicU32,
    /// Ejections that are not forgotten at the time of the last one.
    ejections: AtomicU32,
    /// When the last ejection ends, in milliseconds; 0 if there never was one.
    until: AtomicU64,
}

impl Outlier {
    /// An endpoint of which nothing is known.
    pub fn new() -> Self {
        Self::default()
    }

    /// It answered, and with a status that says nothing against it.
    pub fn on_success(&self) {
        clear(&self.connection);
        clear(&self.gateway);
        clear(&self.server);
    }

    /// A request failed. If that ejects the endpoint now, returns for how long. `ejected` is asked when a limit is
    /// reached: how many endpoints of the cluster are ejected at `now`, and how many it has. Where two threads eject
    /// two endpoints in the same moment, each may not have seen the other's; the caller's pick must bear that.
    ///
    /// An answer breaks a row of failures of the connection, whatever its status; a failure of the connection breaks
    /// no row of answers.
    pub fn on_failure(
        &self,
        kind: FailureKind,
        now: Duration,
        options: &OutlierOptions,
        ejected: impl FnOnce() -> (usize, usize),
    ) -> Option<Duration> {
        let is_due = match kind {
            FailureKind::Connection => count(&self.connection, options.consecutive_failures),
            FailureKind::Gateway => {
                clear(&self.connection);
                // both are counted, whichever is reached first
                count(&self.gateway, options.consecutive_gateway)
                    | count(&self.server, options.consecutive_5xx)
            }
            FailureKind::Server => {
                clear(&self.connection);
                clear(&self.gateway);
                count(&self.server, options.consecutive_5xx)
            }
        };
        if is_due { self.eject(now, options, ejected) } else { None }
    }

    /// Ejects the endpoint, if it is not ejected and as many of the cluster's may be; see [`Outlier::on_failure`].
    pub fn eject(
        &self,
        now: Duration,
        options: &OutlierOptions,
        ejected: impl FnOnce() -> (usize, usize),
    ) -> Option<Duration> {
        let before = self.until.load(Ordering::Acquire);
        if before > millis(now) {
            return None;
        }
        let (already, total) = ejected();
        if already >= options.max_ejected(total) {
            return None;
        }
        let back = now.saturating_sub(Duration::from_millis(before));
        let earlier = options.remembered(self.ejections.load(Ordering::Relaxed), back);
        let time = options.ejection(earlier, jitter::random());
        let until = millis(now.saturating_add(time)).max(1);
        // another thread's ejection is as good as this one's
        self.until.compare_exchange(before, until, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        self.ejections.store(earlier.saturating_add(1), Ordering::Relaxed);
        self.on_success();
        Some(time)
    }

    /// Whether it was ever ejected. If not, the time need not be looked up for [`Outlier::is_ejected`].
    pub fn was_ejected(&self) -> bool {
        self.until.load(Ordering::Relaxed) != 0
    }

    /// Whether it is ejected at this time.
    pub fn is_ejected(&self, now: Duration) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        until != 0 && until > millis(now)
    }

    /// Ends an ejection and forgets all, for an endpoint that is known to be well.
    pub fn reset(&self) {
        self.on_success();
        self.ejections.store(0, Ordering::Relaxed);
        self.until.store(0, Ordering::Release);
    }
}

/// Adds one, and says whether the limit is reached.
fn count(row: &AtomicU32, limit: u32) -> bool {
    // a row that nobody counts is not written to
    limit != 0
        && row
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_add(1)))
            .unwrap_or_default()
            >= limit - 1
}

fn clear(row: &AtomicU32) {
    // a load first: the line stays shared between cores while all is well
    if row.load(Ordering::Relaxed) != 0 {
        row.store(0, Ordering::Relaxed);
    }
}

fn millis(time: Duration) -> u64 {
    time.as_secs().saturating_mul(1000).saturating_add(u64::from(time.subsec_millis()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{FailureKind::*, *};

    const ALONE: fn() -> (usize, usize) = || (0, 4);

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Whether these events eject: `.` a good answer, `c` connection, `g` gateway, `s` another 5xx.
    fn ejects_at(events: &str, options: &OutlierOptions) -> Option<usize> {
        let outlier = Outlier::new();
        events.chars().position(|event| {
            let kind = match event {
                'c' => Connection,
                'g' => Gateway,
                's' => Server,
                _ => {
                    outlier.on_success();
                    return false;
                }
            };
            outlier.on_failure(kind, secs(1), options, ALONE).is_some()
        })
    }

    #[test]
    fn rows_and_what_breaks_them() {
        let options = OutlierOptions::default()
            .with_consecutive_failures(3)
            .with_consecutive_gateway(4)
            .with_consecutive_5xx(6);
        for (events, at) in [
            ("cc", None),
            ("ccc", Some(2)),
            ("cc.cc.cc", None),
            ("cc.ccc", Some(5)),
            ("ccgcc", None),
            ("ccscc", None),
            ("gggg", Some(3)),
            ("ggcgcg", Some(5)),
            ("ggsgg", None),
            ("ggg.ggg", None),
            ("ssssss", Some(5)),
            ("gsgsgs", Some(5)),
            ("sssss.s", None),
        ] {
            assert_eq!(ejects_at(events, &options), at, "{events}");
        }
    }

    #[test]
    fn zero_is_off() {
        let options = OutlierOptions::default();
        assert_eq!(ejects_at(&"s".repeat(1000), &options), None);
        let off = options.with_consecutive_failures(0).with_consecutive_gateway(0);
        assert_eq!(ejects_at(&"cgs".repeat(1000), &off), None);
    }

    #[test]
    fn statuses() {
        for (status, kind) in [
            (200, None),
            (404, None),
            (499, None),
            (500, Some(Server)),
            (501, Some(Server)),
            (502, Some(Gateway)),
            (503, Some(Gateway)),
            (504, Some(Gateway)),
            (505, Some(Server)),
            (599, Some(Server)),
            (600, None),
        ] {
            assert_eq!(FailureKind::of_status(http::StatusCode::from_u16(status).unwrap()), kind, "{status}");
        }
    }

    #[test]
    fn how_many_may_be_out() {
        for (percent, total, most) in [
            (50, 0, 0),
            (50, 1, 0),
            (50, 2, 1),
            (50, 3, 1),
            (50, 4, 2),
            (50, 5, 2),
            (10, 3, 1),
            (10, 30, 3),
            (0, 30, 0),
            (100, 1, 0),
            (100, 2, 1),
            (100, 30, 29),
            (255, 30, 29),
        ] {
            let options = OutlierOptions::default().with_max_ejected_percent(percent);
            assert_eq!(options.max_ejected(total), most, "{percent} % of {total}");
        }
    }

    #[test]
    fn times_double_up_to_the_most() {
        let options = OutlierOptions::default();
        for (earlier, time) in [(0, 10), (1, 20), (2, 40), (4, 160), (5, 300), (6, 300), (400, 300)] {
            assert_eq!(options.ejection(earlier, 0), secs(time));
            let least = options.ejection(earlier, u64::MAX);
            assert!(least >= secs(time).mul_f64(0.899) && least < secs(time), "{least:?}");
        }
    }

    #[test]
    fn ejections_are_forgotten_one_by_one() {
        let options = OutlierOptions::default();
        for (earlier, back, left) in
            [(3, 0, 3), (3, 59, 3), (3, 60, 2), (3, 120, 1), (3, 180, 0), (3, 999, 0)]
        {
            assert_eq!(options.remembered(earlier, secs(back)), left);
        }
        assert_eq!(options.with_forget_after(Duration::ZERO).remembered(3, secs(0)), 0);
    }

    #[test]
    fn it_returns_after_its_time_and_grows_when_it_fails_again() {
        let options = OutlierOptions::default().with_consecutive_failures(1);
        let outlier = Outlier::new();
        assert!(!outlier.was_ejected());
        let first = outlier.on_failure(Connection, Duration::ZERO, &options, ALONE).unwrap();
        assert!(outlier.was_ejected());
        assert!(outlier.is_ejected(first - Duration::from_millis(2)));
        assert!(!outlier.is_ejected(first));
        let second = outlier.on_failure(Connection, first, &options, ALONE).unwrap();
        assert!(second >= secs(18), "{second:?}");
        // long after, the row begins anew
        let third = outlier.on_failure(Connection, secs(1000), &options, ALONE).unwrap();
        assert!(third <= secs(10), "{third:?}");
    }

    #[test]
    fn what_was_under_way_does_not_eject_again() {
        let options = OutlierOptions::default().with_consecutive_failures(2);
        let outlier = Outlier::new();
        assert_eq!(outlier.on_failure(Connection, secs(1), &options, ALONE), None);
        assert!(outlier.on_failure(Connection, secs(1), &options, ALONE).is_some());
        for _ in 0..10 {
            assert_eq!(outlier.on_failure(Connection, secs(2), &options, || panic!("asked")), None);
        }
        outlier.reset();
        assert!(!outlier.is_ejected(secs(2)));
        assert_eq!(outlier.on_failure(Connection, secs(2), &options, ALONE), None);
    }

    #[test]
    fn a_bound_that_is_reached_only_delays() {
        let options = OutlierOptions::default().with_consecutive_failures(2);
        let outlier = Outlier::new();
        for _ in 0..5 {
            assert_eq!(outlier.on_failure(Connection, secs(1), &options, || (2, 4)), None);
        }
        assert!(!outlier.is_ejected(secs(1)));
        assert!(outlier.on_failure(Connection, secs(1), &options, || (1, 4)).is_some());
    }

    #[test]
    fn threads_eject_once() {
        let options = OutlierOptions::default().with_consecutive_failures(1);
        let outlier = Outlier::new();
        let ejections: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..1000)
                            .filter(|_| outlier.on_failure(Connection, secs(1), &options, ALONE).is_some())
                            .count()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(ejections, 1);
    }

    proptest! {
        #[test]
        fn no_cluster_is_ejected_whole(
            percent: u8,
            count in 1_usize..12,
            events in proptest::collection::vec((0_usize..12, 0_u64..5000, 0_u8..4), 1..300),
        ) {
            let options = OutlierOptions::default()
                .with_consecutive_failures(2)
                .with_consecutive_5xx(3)
                .with_max_ejected_percent(percent);
            let endpoints: Vec<_> = (0..count).map(|_| Outlier::new()).collect();
            let mut now = Duration::ZERO;
            for (index, step, event) in events {
                now += Duration::from_millis(step);
                let endpoint = &endpoints[index % count];
                let kind = [Connection, Gateway, Server].get(usize::from(event)).copied();
                let out = || (endpoints.iter().filter(|e| e.is_ejected(now)).count(), count);
                let was_out = endpoint.is_ejected(now);
                match kind {
                    None => endpoint.on_success(),
                    Some(kind) => if let Some(time) = endpoint.on_failure(kind, now, &options, out) {
                        prop_assert!(!was_out);
                        prop_assert!(time <= options.max_ejection);
                        prop_assert!(time >= options.base_ejection.mul_f64(0.899));
                    },
                }
                prop_assert!(out().0 <= options.max_ejected(count));
                prop_assert!(out().0 < count);
            }
            now += options.max_ejection;
            prop_assert!(endpoints.iter().all(|e| !e.is_ejected(now)));
        }
    }
}
