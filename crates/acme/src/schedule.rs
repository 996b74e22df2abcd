//! When to do what: pure functions of times and of a number drawn at random.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

/// How long to wait at least when an authority says that too much was asked of it, and not until when.
pub(crate) const RATE_LIMITED: Duration = Duration::from_secs(3600);
/// Nobody is waited for longer, whatever an authority says: a wrong clock there must not stop renewals here.
const MOST_TOLD: Duration = Duration::from_secs(7 * 86_400);
/// How often the authority is asked when to renew, if it does not say how often (RFC 9773 section 4.3.2).
pub(crate) const ARI_EVERY: Duration = Duration::from_secs(6 * 3600);
const ARI_EVERY_MIN: Duration = Duration::from_secs(60);
const ARI_EVERY_MAX: Duration = Duration::from_secs(86_400);

/// 64 bits that nobody can foretell.
pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    // without randomness no TLS would be spoken either; all that is lost here is the spread
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

/// A number from 0 up to 1, drawn at random.
pub(crate) fn roll() -> f64 {
    // 53 bits are what the type holds
    (random() >> 11) as f64 / (1_u64 << 53) as f64
}

/// When a certificate is renewed by its lifetime: when `fraction` of it is left, or up to a fiftieth of the lifetime
/// earlier, so that many certificates made together are not renewed together.
pub(crate) fn renewal_time(
    not_before: SystemTime,
    not_after: SystemTime,
    fraction: f64,
    roll: f64,
) -> SystemTime {
    let lifetime = not_after.duration_since(not_before).unwrap_or_default();
    let left = (fraction + roll / 50.0).clamp(0.0, 1.0);
    not_after - lifetime.mul_f64(left)
}

/// When a certificate is renewed by what the authority suggests: at a random moment of the window (RFC 9773 section
/// 4.2), but not after nineteen twentieths of the lifetime, whatever the window says. `None` for a window that ends
/// before it begins, which is none.
pub(crate) fn suggested_time(
    not_before: SystemTime,
    not_after: SystemTime,
    window: (SystemTime, SystemTime),
    roll: f64,
) -> Option<SystemTime> {
    let (start, end) = window;
    let length = end.duration_since(start).ok().filter(|length| !length.is_zero())?;
    let lifetime = not_after.duration_since(not_before).unwrap_or_default();
    Some((start + length.mul_f64(roll.clamp(0.0, 1.0))).min(not_after - lifetime / 20))
}

/// After how long the authority is asked for its suggestion again.
pub(crate) fn ari_interval(told: Option<Duration>) -> Duration {
    told.unwrap_or(ARI_EVERY).clamp(ARI_EVERY_MIN, ARI_EVERY_MAX)
}

/// How long to wait after so many failures in a row (1 is the first): doubling, with up to a quarter more or less, and
/// not before `told`.
pub(crate) fn backoff(
    failures: u32,
    (min, max): (Duration, Duration),
    roll: f64,
    told: Option<Duration>,
) -> Duration {
    let doublings = failures.saturating_sub(1).min(30);
    let wait = min.saturating_mul(1 << doublings).min(max).mul_f64(0.75 + roll.clamp(0.0, 1.0) / 2.0);
    // who waits as told still comes a little later than all others that were told so
    let told = told.map(|told| told.min(MOST_TOLD)).map(|told| told + wait.min(told / 10));
    wait.max(told.unwrap_or_default())
}

/// What an authority's refusal says about when to come again.
pub(crate) fn told(rate_limited: bool, retry_after: Option<SystemTime>, now: SystemTime) -> Option<Duration> {
    let said = retry_after.map(|at| at.duration_since(now).unwrap_or_default());
    match (rate_limited, said) {
        (true, None) => Some(RATE_LIMITED),
        (_, said) => said,
    }
}

/// At most so many in any stretch of time so long. Holds the times of those, and no more.
#[derive(Debug)]
pub(crate) struct RateBound {
    most: usize,
    per: Duration,
    times: VecDeque<Duration>,
}

impl RateBound {
    pub(crate) fn new(most: usize, per: Duration) -> Self {
        Self { most, per, times: VecDeque::new() }
    }

    /// Whether there is room for one more; `now` is since some moment that stays the same.
    pub(crate) fn has_room(&mut self, now: Duration) -> bool {
        while self.times.front().is_some_and(|&first| first + self.per <= now) {
            self.times.pop_front();
        }
        self.times.len() < self.most
    }

    /// Takes the room of one, if there is any.
    pub(crate) fn take(&mut self, now: Duration) -> bool {
        let has_room = self.has_room(now);
        if has_room {
            self.times.push_back(now);
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn at(days: f64) -> SystemTime {
        SystemTime::UNIX_EPOCH + DAY.mul_f64(days)
    }

    fn days(time: SystemTime) -> f64 {
        time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64() / DAY.as_secs_f64()
    }

    #[test]
    fn renewals_by_lifetime() {
        for (from, to, fraction, roll, want) in [
            (0.0, 90.0, 1.0 / 3.0, 0.0, 60.0),
            (0.0, 90.0, 1.0 / 3.0, 1.0, 58.2),
            (100.0, 106.0, 1.0 / 3.0, 0.0, 104.0),
            (0.0, 90.0, 0.95, 1.0, 2.7),
            (0.0, 90.0, 0.05, 0.0, 85.5),
            // one that ends before it begins is due at its end
            (90.0, 80.0, 0.5, 0.5, 80.0),
        ] {
            let got = days(renewal_time(at(from), at(to), fraction, roll));
            assert!((got - want).abs() < 0.001, "{from}..{to} at {fraction}: {got}, not {want}");
        }
    }

    #[test]
    fn renewals_by_suggestion() {
        for (start, end, roll, want) in [
            (50.0, 60.0, 0.0, Some(50.0)),
            (50.0, 60.0, 0.5, Some(55.0)),
            (-0.0, 1.0, 0.0, Some(0.0)),
            (80.0, 120.0, 1.0, Some(85.5)),
            (60.0, 60.0, 0.5, None),
            (60.0, 50.0, 0.5, None),
        ] {
            let got = suggested_time(at(0.0), at(90.0), (at(start), at(end)), roll).map(days);
            assert_eq!(got.map(|d| (d * 100.0).round()), want.map(|d| d * 100.0), "{start}..{end}");
        }
    }

    #[test]
    fn how_often_to_ask() {
        for (told, want) in [
            (None, 21_600),
            (Some(0), 60),
            (Some(3600), 3600),
            (Some(86_401), 86_400),
            (Some(u64::MAX), 86_400),
        ] {
            assert_eq!(ari_interval(told.map(Duration::from_secs)).as_secs(), want);
        }
    }

    #[test]
    fn waits_double() {
        let bounds = (Duration::from_secs(60), Duration::from_secs(21_600));
        for (failures, want) in
            [(0, 60), (1, 60), (2, 120), (3, 240), (9, 15_360), (10, 21_600), (u32::MAX, 21_600)]
        {
            assert_eq!(backoff(failures, bounds, 0.5, None).as_secs(), want, "{failures}");
        }
        let told = Some(Duration::from_secs(7200));
        let wait = backoff(1, bounds, 0.5, told);
        assert!(wait >= Duration::from_secs(7200) && wait <= Duration::from_secs(7920), "{wait:?}");
        assert!(backoff(1, bounds, 0.5, Some(Duration::MAX)) < MOST_TOLD + DAY);
    }

    #[test]
    fn what_a_refusal_says() {
        let now = at(10.0);
        let hour = Some(Duration::from_secs(3600));
        assert_eq!(told(false, None, now), None);
        assert_eq!(told(true, None, now), hour);
        assert_eq!(told(true, Some(now + DAY), now), Some(DAY));
        assert_eq!(told(false, Some(now + DAY), now), Some(DAY));
        assert_eq!(told(true, Some(now - DAY), now), Some(Duration::ZERO));
    }

    #[test]
    fn a_bound_in_rate() {
        let s = Duration::from_secs;
        let mut bound = RateBound::new(2, s(10));
        assert!(bound.take(s(0)) && bound.take(s(1)) && !bound.take(s(9)));
        assert!(bound.has_room(s(10)) && bound.take(s(10)), "the first is out of the stretch");
        assert!(!bound.take(s(10)) && bound.take(s(11)));
        assert!(!RateBound::new(0, s(1)).take(s(5)));
    }

    proptest! {
        #[test]
        fn a_wait_stays_within_its_bounds(
            failures: u32, min in 1_u64..100_000, more in 0_u64..1_000_000, roll in 0.0..1.0,
        ) {
            let (min, max) = (Duration::from_millis(min), Duration::from_millis(min + more));
            let wait = backoff(failures, (min, max), roll, None);
            prop_assert!(wait >= min.mul_f64(0.749) && wait <= max.mul_f64(1.251));
        }

        #[test]
        fn a_renewal_is_within_the_lifetime(
            start in 0.0..1000.0, length in 0.01..1000.0, fraction in 0.05..0.95, roll in 0.0..1.0,
        ) {
            let (from, to) = (at(start), at(start + length));
            let time = renewal_time(from, to, fraction, roll);
            prop_assert!(time >= from && time < to);
        }

        #[test]
        fn a_suggestion_never_outlives_the_certificate(
            start in 0.0..2000.0, length in 0.0..2000.0, roll in 0.0..1.0,
        ) {
            let window = (at(start), at(start + length));
            if let Some(time) = suggested_time(at(100.0), at(190.0), window, roll) {
                prop_assert!(time < at(190.0));
            }
        }

        #[test]
        fn no_stretch_has_more(gaps in prop::collection::vec(0_u64..8, 1..60), most in 1_usize..5) {
            let mut bound = RateBound::new(most, Duration::from_secs(10));
            let (mut now, mut taken) = (0, Vec::new());
            for gap in gaps {
                now += gap;
                if bound.take(Duration::from_secs(now)) {
                    taken.push(now);
                }
                prop_assert!(taken.iter().filter(|&&t| t + 10 > now).count() <= most);
            }
        }

        #[test]
        fn a_roll_is_from_0_up_to_1(_ in 0..100) {
            prop_assert!((0.0..1.0).contains(&roll()));
        }
    }
}
