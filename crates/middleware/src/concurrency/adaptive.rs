//! A limit that follows latency: the pure core, without a clock of its own.
//!
//! **What it looks at.** The time from permit to response head, as a mean over windows; each window has a minimum of samples. Beside it
//! stands a *base*: the latency of the service when nothing queues in it.
//!
//! **What it does at the end of a window.** If the mean is above `tolerance` times the base, requests queue behind us, and the limit is
//! multiplied by `tolerance * base / mean`, by a half at the least. Else, if at least half of the limit was in use, it grows by its square
//! root. Then it is held between `min` and `max`.
//!
//! **Where the base comes from.** The first window, and from then on a probe: every `probe_every` the limit is divided by twice the
//! tolerance for two windows. In the first what was queued drains; the mean of the second is the base from then on, higher or
//! lower. The division is by twice the tolerance so that a base that was taken under load comes down at every probe: at a limit that holds
//! the latency at `tolerance` times the base, half of the service's capacity is in use during a probe, and nothing queues.

use std::time::Duration;

use tokio::time::Instant;

/// How a limit follows latency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdaptiveOptions {
    /// The limit is never lower. At least 1. Default 10.
    pub min: usize,
    /// How slow the service may be, in percent of its base. At least 110. Default 200: as much waits behind us as is worked on.
    pub tolerance: u16,
    /// How long samples are taken together. Default 100 ms; it goes on until there are 10.
    pub window: Duration,
    /// How often the base is measured anew. Default 30 s.
    pub probe_every: Duration,
}

impl Default for AdaptiveOptions {
    fn default() -> Self {
        Self {
            min: 10,
            tolerance: 200,
            window: Duration::from_millis(100),
            probe_every: Duration::from_secs(30),
        }
    }
}

impl AdaptiveOptions {
    /// Sets [`AdaptiveOptions::min`].
    #[must_use]
    pub fn with_min(mut self, min: usize) -> Self {
        self.min = min;
        self
    }

    /// Sets [`AdaptiveOptions::tolerance`].
    #[must_use]
    pub fn with_tolerance(mut self, tolerance: u16) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// Sets [`AdaptiveOptions::window`].
    #[must_use]
    pub fn with_window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// Sets [`AdaptiveOptions::probe_every`].
    #[must_use]
    pub fn with_probe_every(mut self, every: Duration) -> Self {
        self.probe_every = every;
        self
    }
}

/// The fewest samples that a mean is taken of.
const SAMPLES: u32 = 10;

#[derive(Debug)]
pub(super) struct Adaptive {
    options: AdaptiveOptions,
    max: f64,
    limit: f64,
    base: Option<f64>,
    probe: Probe,
    probed: Instant,
    window: Window,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Probe {
    No,
    /// What is queued drains. The limit comes back afterwards.
    Draining {
        back: f64,
    },
    Measuring {
        back: f64,
    },
}

#[derive(Debug)]
struct Window {
    since: Instant,
    sum: f64,
    count: u32,
    most_running: usize,
}

impl Window {
    fn new(since: Instant) -> Self {
        Self { since, sum: 0.0, count: 0, most_running: 0 }
    }
}

impl Adaptive {
    /// Begins at `max`.
    pub(super) fn new(options: AdaptiveOptions, max: usize, now: Instant) -> Self {
        let max = max.max(1) as f64;
        let min = (options.min.max(1) as f64).min(max) as usize;
        let tolerance = options.tolerance.max(110);
        let options = AdaptiveOptions { min, tolerance, ..options };
        Self { options, max, limit: max, base: None, probe: Probe::No, probed: now, window: Window::new(now) }
    }

    /// Takes a sample in; the limit, if this changes it.
    pub(super) fn sample(&mut self, now: Instant, latency: Duration, running: usize) -> Option<usize> {
        let window = &mut self.window;
        window.sum += latency.as_secs_f64();
        window.count += 1;
        window.most_running = window.most_running.max(running);
        if window.count < SAMPLES || now.duration_since(window.since) < self.options.window {
            return None;
        }
        let mean = window.sum / f64::from(window.count);
        let busy = window.most_running as f64 * 2.0 >= self.limit;
        self.window = Window::new(now);
        let before = self.limit();
        self.end_of_window(now, mean, busy);
        let after = self.limit();
        (after != before).then_some(after)
    }

    fn end_of_window(&mut self, now: Instant, mean: f64, busy: bool) {
        match self.probe {
            Probe::Draining { back } => self.probe = Probe::Measuring { back },
            Probe::Measuring { back } => {
                self.base = Some(mean);
                self.limit = back;
                self.probe = Probe::No;
                self.probed = now;
            }
            Probe::No => {
                let most = self.tolerance() * *self.base.get_or_insert(mean);
                if mean > most {
                    self.limit *= (most / mean).max(0.5);
                } else if busy {
                    self.limit += self.limit.sqrt();
                }
                self.limit = self.held(self.limit);
                if now.duration_since(self.probed) >= self.options.probe_every {
                    self.probe = Probe::Draining { back: self.limit };
                    self.limit = self.held(self.limit / (2.0 * self.tolerance()));
                }
            }
        }
    }

    fn held(&self, limit: f64) -> f64 {
        limit.clamp(self.options.min as f64, self.max)
    }

    fn tolerance(&self) -> f64 {
        f64::from(self.options.tolerance) / 100.0
    }

    /// What it is now.
    pub(super) fn limit(&self) -> usize {
        self.limit as usize
    }

    /// From when on a request that is given up is a sample all the same: it would have taken longer than is tolerated.
    pub(super) fn is_slow(&self, latency: Duration) -> bool {
        self.base.is_some_and(|base| latency.as_secs_f64() > base * self.tolerance())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service that works on so many at once, each for so long; what is more waits inside of it.
    struct Behind {
        at_once: f64,
        takes: f64,
    }

    impl Behind {
        /// Runs for this long with `offered` requests that want to be there, and gives back the limits at the ends of windows.
        fn run(
            &self,
            adaptive: &mut Adaptive,
            now: &mut Instant,
            seconds: u64,
            offered: usize,
        ) -> Vec<usize> {
            let mut limits = Vec::new();
            for _ in 0..seconds * 10 {
                let running = offered.min(adaptive.limit());
                let latency = self.takes * (running as f64 / self.at_once).max(1.0);
                *now += Duration::from_millis(100);
                for _ in 0..20 {
                    adaptive.sample(*now, Duration::from_secs_f64(latency), running);
                }
                limits.push(adaptive.limit());
            }
            limits
        }
    }

    fn median(mut limits: Vec<usize>) -> usize {
        limits.sort_unstable();
        limits[limits.len() / 2]
    }

    #[test]
    fn it_finds_what_the_service_can_do_and_follows_it() {
        let mut now = Instant::now();
        let mut adaptive = Adaptive::new(AdaptiveOptions::default(), 1000, now);
        let service = Behind { at_once: 50.0, takes: 0.02 };
        // the first sight of it is when nothing is to be done
        service.run(&mut adaptive, &mut now, 1, 10);
        let found = median(service.run(&mut adaptive, &mut now, 60, 5000));
        assert!((50..=125).contains(&found), "{found}");
        // it loses half of what it can do
        let less = Behind { at_once: 25.0, takes: 0.02 };
        let found = median(less.run(&mut adaptive, &mut now, 60, 5000));
        assert!((25..=65).contains(&found), "{found}");
        // it is slower by nature: after a probe that is its base
        let slower = Behind { at_once: 50.0, takes: 0.1 };
        slower.run(&mut adaptive, &mut now, 120, 5000);
        let found = median(slower.run(&mut adaptive, &mut now, 30, 5000));
        assert!((50..=125).contains(&found), "{found}");
    }

    #[test]
    fn a_base_that_was_taken_under_load_comes_down() {
        let mut now = Instant::now();
        let mut adaptive = Adaptive::new(AdaptiveOptions::default(), 1000, now);
        let service = Behind { at_once: 50.0, takes: 0.02 };
        service.run(&mut adaptive, &mut now, 1, 5000);
        assert!(adaptive.base.unwrap() > 0.3);
        service.run(&mut adaptive, &mut now, 300, 5000);
        let found = median(service.run(&mut adaptive, &mut now, 30, 5000));
        assert!((50..=125).contains(&found), "{found}");
    }

    #[test]
    fn without_load_it_stays_and_its_bounds_hold() {
        let mut now = Instant::now();
        let options = AdaptiveOptions::default().with_min(20);
        let mut adaptive = Adaptive::new(options, 200, now);
        let service = Behind { at_once: 1.0, takes: 0.01 };
        service.run(&mut adaptive, &mut now, 1, 1);
        let limits = service.run(&mut adaptive, &mut now, 120, 5000);
        assert_eq!(limits.iter().min(), Some(&20));
        let idle = Behind { at_once: 5000.0, takes: 0.01 };
        let limits = idle.run(&mut adaptive, &mut now, 240, 5000);
        assert_eq!(limits.iter().max(), Some(&200));
        // a few requests say nothing about more
        let before = adaptive.limit();
        assert!(idle.run(&mut adaptive, &mut now, 20, 5).iter().all(|limit| *limit <= before));
    }

    #[test]
    fn bounds_that_contradict_each_other_do_no_harm() {
        let now = Instant::now();
        let options = AdaptiveOptions::default().with_min(50).with_tolerance(0);
        let adaptive = Adaptive::new(options, 5, now);
        assert_eq!((adaptive.limit(), adaptive.options.min), (5, 5));
        assert_eq!(adaptive.options.tolerance, 110);
        assert_eq!(Adaptive::new(AdaptiveOptions::default().with_min(0), 0, now).limit(), 1);
    }
}
