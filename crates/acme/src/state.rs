//! What is known about each certificate, and what is to be done next. Nothing here waits or touches a file.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::Instant};

use crate::{
    bundle::Bundle,
    on_demand::{OnDemand, Refused},
    schedule::{self, RateBound},
    status::{CertState, CertStatus, LastError},
};

/// Names that are remembered as refused.
const MAX_REFUSED: usize = 10_000;
/// How many certificates the authority is asked about at once.
const QUESTIONS_AT_ONCE: usize = 4;

/// One certificate that is kept up.
#[derive(Debug)]
pub(crate) struct Managed {
    pub(crate) names: Vec<String>,
    pub(crate) on_demand: bool,
    /// Its place: the first one served is the default certificate.
    place: usize,
    pub(crate) served: Option<Arc<Bundle>>,
    pub(crate) busy: Busy,
    /// Nothing is tried before.
    pub(crate) not_before: Option<Instant>,
    /// A new one was issued a moment ago, and whatever clocks and suggestions say, another one is not before this.
    pub(crate) rest_until: Option<Instant>,
    /// A person asked for a new one.
    pub(crate) is_forced: bool,
    pub(crate) failures: u32,
    pub(crate) last_error: Option<LastError>,
    pub(crate) issued: u64,
    pub(crate) ari: Ari,
}

/// What is under way for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Busy {
    No,
    Issuing,
    Asking,
}

/// What the authority suggests (RFC 9773) for the certificate that is served.
#[derive(Debug, Default)]
pub(crate) struct Ari {
    /// When to ask next; `None` before the first time.
    pub(crate) ask: Option<Instant>,
    window: Option<(SystemTime, SystemTime)>,
    /// The moment drawn within the window.
    time: Option<SystemTime>,
}

impl Ari {
    /// Takes a suggestion; the moment is drawn anew only when the window is another.
    pub(crate) fn suggest(&mut self, bundle: &Bundle, window: (SystemTime, SystemTime)) {
        if self.window != Some(window) {
            let about = &bundle.about;
            self.window = Some(window);
            self.time = schedule::suggested_time(about.not_before, about.not_after, window, schedule::roll());
        }
    }
}

impl Managed {
    pub(crate) fn new(names: Vec<String>, on_demand: bool, place: usize) -> Self {
        Self {
            names,
            on_demand,
            place,
            served: None,
            busy: Busy::No,
            not_before: None,
            rest_until: None,
            is_forced: false,
            failures: 0,
            last_error: None,
            issued: 0,
            ari: Ari::default(),
        }
    }

    /// Serves this from now on.
    pub(crate) fn take(&mut self, bundle: Bundle) {
        self.served = Some(Arc::new(bundle));
        (self.is_forced, self.failures, self.not_before) = (false, 0, None);
        self.ari = Ari::default();
    }

    pub(crate) fn renewal_time(&self, fraction: f64) -> Option<SystemTime> {
        let served = self.served.as_ref()?;
        Some(self.ari.time.unwrap_or_else(|| served.renewal_time(fraction)))
    }

    /// How long until it is to be issued or renewed; nothing for one that is due.
    fn due_in(&self, fraction: f64, now: SystemTime, instant: Instant) -> Duration {
        match self.renewal_time(fraction) {
            Some(time) if !self.is_forced => {
                let rest = self.rest_until.map(|until| until.saturating_duration_since(instant));
                time.duration_since(now).unwrap_or_default().max(rest.unwrap_or_default())
            }
            _ => Duration::ZERO,
        }
    }

    fn status(&self, fraction: f64, now: SystemTime, instant: Instant) -> CertStatus {
        let waits =
            self.not_before.and_then(|at| at.checked_duration_since(instant)).filter(|wait| !wait.is_zero());
        let is_expired = self.served.as_ref().is_some_and(|served| served.is_expired(now));
        let state = match (self.busy, waits, &self.served) {
            (Busy::Issuing, ..) => CertState::Issuing,
            (_, Some(wait), _) => CertState::Waiting { until: now + wait },
            (.., None) => CertState::Missing,
            _ if is_expired => CertState::Expired,
            _ if self.due_in(fraction, now, instant).is_zero() => CertState::Due,
            _ => CertState::Valid,
        };
        CertStatus {
            names: self.names.clone(),
            on_demand: self.on_demand,
            state,
            not_after: self.served.as_ref().map(|served| served.about.not_after),
            next_renewal: self.renewal_time(fraction),
            last_error: self.last_error.clone(),
            attempts: self.failures,
            issued: self.issued,
        }
    }
}

/// Something to be done for one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    Issue(String),
    AskAri(String),
    /// The name that a client asked for.
    First(String),
}

/// What is to be done now, and when to look again.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) jobs: Vec<Job>,
    pub(crate) next: Option<Duration>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) certs: BTreeMap<String, Managed>,
    /// The certificate of each name.
    pub(crate) by_name: HashMap<String, String>,
    next_place: usize,
    /// Names that clients wait for; dropping the sender tells them. Bounded by [`OnDemand::max_pending`].
    pub(crate) pending: HashMap<String, watch::Sender<()>>,
    /// Of `pending`, those of which nothing was begun.
    pub(crate) queue: VecDeque<String>,
    pub(crate) refused: Refused,
    pub(crate) bound: RateBound,
    pub(crate) on_demand: usize,
    /// Until then nothing is ordered.
    pub(crate) hold: Option<Instant>,
}

impl State {
    pub(crate) fn new(on_demand: Option<&OnDemand>) -> Self {
        let (keep, most, per) =
            on_demand.map_or_else(Default::default, |on| (on.refused_for, on.max_issued, on.per));
        Self {
            certs: BTreeMap::new(),
            by_name: HashMap::new(),
            next_place: 0,
            pending: HashMap::new(),
            queue: VecDeque::new(),
            refused: Refused::new(MAX_REFUSED, keep),
            bound: RateBound::new(most, per),
            on_demand: 0,
            hold: None,
        }
    }

    pub(crate) fn add(&mut self, id: String, names: Vec<String>, on_demand: bool) -> &mut Managed {
        for name in &names {
            self.by_name.insert(name.clone(), id.clone());
        }
        self.on_demand += usize::from(on_demand);
        self.next_place += 1;
        self.certs.entry(id).or_insert(Managed::new(names, on_demand, self.next_place))
    }

    pub(crate) fn remove(&mut self, id: &str) {
        if let Some(managed) = self.certs.remove(id) {
            self.on_demand -= usize::from(managed.on_demand);
            for name in &managed.names {
                self.by_name.remove(name);
            }
        }
    }

    /// What is served, the default one first.
    pub(crate) fn served(&self) -> Vec<Arc<Bundle>> {
        let mut managed: Vec<_> = self.certs.values().collect();
        managed.sort_by_key(|managed| managed.place);
        managed.into_iter().filter_map(|managed| managed.served.clone()).collect()
    }

    pub(crate) fn status(&self, fraction: f64) -> Vec<CertStatus> {
        let (now, instant) = (SystemTime::now(), Instant::now());
        let mut managed: Vec<_> = self.certs.values().collect();
        managed.sort_by_key(|managed| managed.place);
        managed.into_iter().map(|managed| managed.status(fraction, now, instant)).collect()
    }

    /// Takes out what is to be done now: names that clients wait for, certificates that are due as long as no more
    /// than `orders` are under way, and questions about the others.
    pub(crate) fn plan(&mut self, fraction: f64, orders: usize, now: SystemTime, instant: Instant) -> Plan {
        let under_way = |kind| self.certs.values().filter(|managed| managed.busy == kind).count();
        let orders = orders.saturating_sub(under_way(Busy::Issuing));
        let mut questions = QUESTIONS_AT_ONCE.saturating_sub(under_way(Busy::Asking));
        let mut plan = Plan { jobs: self.queue.drain(..).map(Job::First).collect(), next: None };
        let mut due_now = Vec::new();
        let held = self.hold.map_or(Duration::ZERO, |until| until.saturating_duration_since(instant));
        let mut wake = |at: Duration| plan.next = Some(plan.next.map_or(at, |next: Duration| next.min(at)));
        for (id, managed) in &mut self.certs {
            if managed.busy != Busy::No {
                continue;
            }
            if let Some(wait) = managed.not_before.and_then(|at| at.checked_duration_since(instant))
                && !wait.is_zero()
            {
                wake(wait);
                continue;
            }
            let due = managed.due_in(fraction, now, instant);
            if !due.is_zero() {
                wake(due);
                let ask = managed.ari.ask.map_or(Duration::ZERO, |at| at.saturating_duration_since(instant));
                if ask.is_zero() && questions > 0 {
                    questions -= 1;
                    managed.busy = Busy::Asking;
                    plan.jobs.push(Job::AskAri(id.clone()));
                } else if !ask.is_zero() {
                    wake(ask);
                }
            } else if !held.is_zero() {
                wake(held);
            } else if orders > 0 {
                due_now.push((
                    managed.served.as_ref().map(|served| served.about.not_after),
                    id,
                    &mut managed.busy,
                ));
            }
        }
        // who has none comes first, and then who is without the soonest
        due_now.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        for (_, id, busy) in due_now.into_iter().take(orders) {
            *busy = Busy::Issuing;
            plan.jobs.push(Job::Issue(id.clone()));
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::{read, tests::stored};
    use portcullis_testkit::certs::TestCa;

    const THIRD: f64 = 1.0 / 3.0;
    const HOUR: Duration = Duration::from_secs(3600);

    fn bundle(name: &str) -> Bundle {
        read(&stored(&TestCa::new().issue(&[name]), &[name]), "a test").unwrap()
    }

    fn state(names: &[&str]) -> State {
        let mut state = State::new(None);
        for name in names {
            state.add((*name).to_owned(), vec![(*name).to_owned()], false);
        }
        state
    }

    #[test]
    fn what_is_missing_is_ordered_within_the_bound() {
        let (now, instant) = (SystemTime::now(), Instant::now());
        let mut state = state(&["a.example", "b.example", "c.example"]);
        let plan = state.plan(THIRD, 2, now, instant);
        assert_eq!(plan.jobs, [Job::Issue("a.example".to_owned()), Job::Issue("b.example".to_owned())]);
        assert!(state.plan(THIRD, 2, now, instant).jobs.is_empty(), "two are under way");
        state.certs.get_mut("a.example").unwrap().busy = Busy::No;
        let plan = state.plan(THIRD, 3, now, instant);
        assert_eq!(plan.jobs.len(), 2, "what is under way is not begun again");
    }

    #[test]
    fn a_failure_is_waited_out() {
        let (now, instant) = (SystemTime::now(), Instant::now());
        let mut state = state(&["a.example"]);
        state.certs.get_mut("a.example").unwrap().not_before = Some(instant + HOUR);
        let plan = state.plan(THIRD, 4, now, instant);
        assert!(plan.jobs.is_empty());
        assert_eq!(plan.next, Some(HOUR));
        assert!(matches!(state.status(THIRD)[0].state, CertState::Waiting { .. }));
        assert_eq!(state.plan(THIRD, 4, now, instant + HOUR).jobs.len(), 1);
    }

    #[test]
    fn a_valid_one_is_asked_about_and_renewed_in_time() {
        let instant = Instant::now();
        let mut state = state(&["a.example"]);
        let managed = state.certs.get_mut("a.example").unwrap();
        managed.take(bundle("a.example"));
        let due = managed.renewal_time(THIRD).unwrap();
        let before = due - HOUR;
        assert_eq!(state.plan(THIRD, 4, before, instant).jobs, [Job::AskAri("a.example".to_owned())]);
        let managed = state.certs.get_mut("a.example").unwrap();
        (managed.busy, managed.ari.ask) = (Busy::No, Some(instant + 2 * HOUR));
        let plan = state.plan(THIRD, 4, before, instant);
        assert!(plan.jobs.is_empty() && plan.next == Some(HOUR), "{plan:?}");
        assert_eq!(state.plan(THIRD, 4, due, instant).jobs, [Job::Issue("a.example".to_owned())]);
    }

    #[test]
    fn nothing_is_ordered_while_the_account_is_held_and_who_has_none_comes_first() {
        let (now, instant) = (SystemTime::now(), Instant::now());
        let mut state = state(&["a.example", "b.example"]);
        let managed = state.certs.get_mut("a.example").unwrap();
        managed.take(bundle("a.example"));
        managed.is_forced = true;
        state.hold = Some(instant + HOUR);
        let plan = state.plan(THIRD, 1, now, instant);
        assert_eq!((plan.jobs.len(), plan.next), (0, Some(HOUR)));
        let jobs = state.plan(THIRD, 1, now, instant + HOUR).jobs;
        assert_eq!(jobs, [Job::Issue("b.example".to_owned())]);
    }

    #[test]
    fn a_suggestion_goes_before_the_lifetime_and_is_drawn_once() {
        let now = SystemTime::now();
        let mut managed = Managed::new(vec!["a.example".to_owned()], false, 0);
        managed.take(bundle("a.example"));
        let served = Arc::clone(managed.served.as_ref().unwrap());
        let window = (now + HOUR, now + 1000 * HOUR);
        managed.ari.suggest(&served, window);
        let first = managed.renewal_time(THIRD).unwrap();
        assert!(first >= window.0 && first <= window.1);
        for _ in 0..20 {
            managed.ari.suggest(&served, window);
            assert_eq!(managed.renewal_time(THIRD), Some(first));
        }
        managed.ari.suggest(&served, (now - 2 * HOUR, now - HOUR));
        let instant = Instant::now();
        assert!(managed.due_in(THIRD, now, instant).is_zero(), "a window that is over means at once");
        managed.rest_until = Some(instant + HOUR);
        assert_eq!(managed.due_in(THIRD, now, instant), HOUR, "but not for one of a moment ago");
        managed.is_forced = true;
        assert!(managed.due_in(THIRD, now, instant).is_zero(), "unless a person says so");
        managed.take(bundle("a.example"));
        assert!(!managed.due_in(THIRD, now, instant).is_zero(), "another certificate, another suggestion");
    }

    #[test]
    fn names_go_with_their_certificate() {
        let mut state = State::new(None);
        state.add("x".to_owned(), vec!["a.example".to_owned(), "b.example".to_owned()], true);
        assert_eq!((state.by_name.len(), state.on_demand), (2, 1));
        state.remove("x");
        state.remove("x");
        assert_eq!((state.by_name.len(), state.on_demand, state.certs.len()), (0, 0, 0));
    }
}
