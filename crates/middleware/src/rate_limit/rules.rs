//! Rules at work: which bucket a request takes from, and whether it passes.

use std::{
    future::Future,
    hash::{BuildHasher, RandomState},
    num::NonZeroU32,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::HeaderValue;

use super::{
    answer,
    clock::RuleClock,
    key::{Asked, Compiled},
    local::Local,
    options::{OnFailure, OnMissing, RateLimitOptions, RateQuota, RateRule},
    store::{Bucket, RateStore, Standing, Take, Verdict},
};
use crate::cidr::CidrSet;

/// As many as there are bits in [`Judging`].
const MAX_RULES: usize = 64;

/// What is told to who is refused since the shared store is out of reach: about when it is tried again.
const CLOSED_FOR: Duration = Duration::from_secs(1);

/// The rules of a layer, as they are until they are replaced.
#[derive(Debug)]
pub(super) struct RuleSet {
    rules: Box<[Rule]>,
    /// `RateLimit-Policy`, where responses have fields.
    pub(super) policy: Option<HeaderValue>,
    store: Option<Arc<dyn RateStore>>,
}

#[derive(Debug)]
pub(super) struct Rule {
    pub(super) options: RateRule,
    pub(super) name: Arc<str>,
    key: Compiled,
    allow: CidrSet,
    pub(super) quota: RateQuota,
    local: Local<RuleClock>,
    /// Survive a change of the rule, as the buckets do.
    counts: Arc<Counts>,
    /// Answers held back now.
    pub(super) held: Arc<AtomicUsize>,
}

/// Those of a rule that are not counted in its table.
#[derive(Debug, Default)]
struct Counts {
    allowed: AtomicU64,
    refused: AtomicU64,
    dry_run: AtomicU64,
    unavailable: AtomicU64,
}

/// What a rule has counted since it was made. A changed rule goes on counting as long as it keeps its buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RuleCounts {
    /// The rule's name.
    pub rule: Arc<str>,
    /// Requests that the rule let through and that no other one refused.
    pub allowed: u64,
    /// Requests that it refused.
    pub refused: u64,
    /// Requests that it would have refused if it were not a dry run.
    pub dry_run: u64,
    /// Requests for which the shared store could not be asked in time, so that [`OnFailure`] decided.
    pub unavailable: u64,
    /// Keys that were forgotten before their bucket was full again, for want of room: with many, set
    /// [`RateRule::max_keys`] higher.
    pub forgotten: u64,
}

/// How far the judging of a request has come.
#[derive(Debug, Default)]
pub(super) struct Judging {
    /// The rule that is next.
    next: usize,
    /// Which ones took something from their own buckets, a bit for each.
    local: u64,
    /// Which ones took something from shared buckets.
    shared: u64,
    /// Whether the rule that is next was asked already and wants a new key.
    rekeyed: bool,
    /// Whether it has waited for the store in vain: then no other rule waits for it, so that a silent one holds a request up once.
    in_vain: bool,
    /// `RateLimit` so far, where responses have fields.
    pub(super) field: Option<String>,
}

impl Judging {
    /// Notes what waiting for the store came to.
    pub(super) fn waited(&mut self, verdict: Verdict) {
        self.in_vain |= verdict == Verdict::Unavailable;
    }
}

/// What comes of judging.
pub(super) enum Judgement<'a> {
    Pass,
    Refused {
        rule: &'a Rule,
        wait: Option<Duration>,
        /// Not refused for what the client did.
        unavailable: bool,
    },
    /// The next rule's store has to ask.
    Ask(Pin<Box<dyn Future<Output = Verdict> + Send>>),
}

impl RuleSet {
    /// Rules with the buckets of those before them that count the same by the same name.
    pub(super) fn new(
        options: &RateLimitOptions,
        store: Option<&Arc<dyn RateStore>>,
        before: Option<&Self>,
    ) -> Self {
        if options.rules.len() > MAX_RULES {
            tracing::error!(
                rules = options.rules.len(),
                MAX_RULES,
                "rules of the rate limit past the most are left out"
            );
        }
        let before = before.map_or(&[][..], |before| &before.rules);
        // of several that count the same each goes on with one: two with one table would both take from it
        let mut taken = 0_u64;
        let rule = |options: &RateRule| {
            let is_free = |(at, before): &(usize, &Rule)| taken >> at & 1 == 0 && before.counts_like(options);
            match before.iter().enumerate().find(is_free) {
                Some((at, before)) => {
                    taken |= 1 << at;
                    before.changed(options)
                }
                None => Rule::new(options),
            }
        };
        let rules: Box<[Rule]> = options.rules.iter().take(MAX_RULES).map(rule).collect();
        let policy = options.fields.then(|| answer::policy(&rules)).flatten();
        Self { rules, policy, store: store.cloned() }
    }

    /// Asks the rules in order, from where `judging` is.
    pub(super) fn judge(&self, asked: &Asked<'_>, judging: &mut Judging) -> Judgement<'_> {
        let asks_standing = self.policy.is_some();
        while let Some(rule) = self.rules.get(judging.next) {
            let Some(cost) = rule.cost(asked) else {
                judging.next += 1;
                continue;
            };
            let take = match self.store_of(rule) {
                None => rule.local_key(asked).map(|key| Take::Now(rule.local.take(key, cost, asks_standing))),
                Some(store) => rule.in_store(asked, store, |bucket| store.take(bucket, cost)),
            };
            let verdict = match take {
                // the way that most requests go
                Some(Take::Now(Verdict::Allowed(_))) if !asks_standing && rule.options.shared.is_none() => {
                    judging.local |= 1 << judging.next;
                    judging.next += 1;
                    continue;
                }
                Some(Take::Now(verdict)) => verdict,
                // it is asked all the same: what it has lent already is good, and who comes next may profit
                Some(Take::Later(_)) if judging.in_vain => Verdict::Unavailable,
                Some(Take::Later(answer)) => return Judgement::Ask(answer),
                // a part of the key is missing, and the rule doesn't mind
                None => {
                    judging.next += 1;
                    continue;
                }
            };
            if let Some(refused) = self.settle(asked, judging, verdict) {
                return refused;
            }
        }
        Judgement::Pass
    }

    /// Takes the verdict of the rule that is next.
    #[cold]
    pub(super) fn settle(
        &self,
        asked: &Asked<'_>,
        judging: &mut Judging,
        verdict: Verdict,
    ) -> Option<Judgement<'_>> {
        let rule = self.rules.get(judging.next)?;
        let Some(cost) = rule.cost(asked) else {
            judging.next += 1;
            return None;
        };
        if verdict == Verdict::Rekey && !judging.rekeyed {
            judging.rekeyed = true;
            return None;
        }
        judging.rekeyed = false;
        let mut shared = self.store_of(rule).is_some();
        let verdict = match verdict {
            Verdict::Rekey | Verdict::Unavailable => {
                shared = false;
                rule.without_store(asked, cost)
            }
            verdict => verdict,
        };
        let bit = 1 << judging.next;
        match verdict {
            Verdict::Allowed(standing) if shared => {
                rule.counts.allowed.fetch_add(1, Ordering::Relaxed);
                judging.shared |= bit;
                self.tell(rule, judging, standing);
            }
            Verdict::Allowed(standing) => {
                judging.local |= bit;
                self.tell(rule, judging, standing);
            }
            Verdict::Refused { wait, standing } => {
                if let Some(refused) = self.refuse(asked, judging, rule, wait, standing) {
                    return Some(refused);
                }
            }
            // the store is out of reach, and the rule has said what then
            Verdict::Unavailable | Verdict::Rekey => {
                if rule.options.shared == Some(OnFailure::Closed) && !rule.options.dry_run {
                    self.give_back(asked, judging);
                    return Some(Judgement::Refused { rule, wait: Some(CLOSED_FOR), unavailable: true });
                }
            }
        }
        judging.next += 1;
        None
    }

    /// A rule has refused; `None` where it only would have.
    fn refuse<'a>(
        &self,
        asked: &Asked<'_>,
        judging: &mut Judging,
        rule: &'a Rule,
        wait: Option<Duration>,
        standing: Standing,
    ) -> Option<Judgement<'a>> {
        if wait.is_none() {
            tracing::debug!(rule = &*rule.name, "a request costs more than the rate limit's burst");
        }
        let client = asked.client();
        if rule.options.dry_run {
            tracing::debug!(rule = &*rule.name, ?client, ?wait, "the rate limit would refuse a request");
            rule.counts.dry_run.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        tracing::debug!(rule = &*rule.name, ?client, ?wait, "request refused by the rate limit");
        rule.counts.refused.fetch_add(1, Ordering::Relaxed);
        self.give_back(asked, judging);
        // what the others have was told before they got it back
        judging.field = None;
        self.tell(rule, judging, standing);
        Some(Judgement::Refused { rule, wait, unavailable: false })
    }

    fn tell(&self, rule: &Rule, judging: &mut Judging, standing: Standing) {
        if self.policy.is_some() && !rule.options.dry_run {
            answer::add_standing(judging.field.get_or_insert_default(), &rule.name, standing);
        }
    }

    /// Puts back what the rules before took.
    fn give_back(&self, asked: &Asked<'_>, judging: &Judging) {
        for (index, rule) in self.rules.iter().enumerate().take(judging.next) {
            let Some(cost) = rule.cost(asked) else { continue };
            if judging.local >> index & 1 == 1 {
                if let Some(key) = rule.local_key(asked) {
                    rule.local.give_back(key, cost);
                }
            } else if judging.shared >> index & 1 == 1 {
                rule.counts.allowed.fetch_sub(1, Ordering::Relaxed);
                if let Some(store) = self.store_of(rule) {
                    rule.in_store(asked, store, |bucket| store.give_back(bucket, cost));
                }
            }
        }
    }

    #[inline]
    fn store_of(&self, rule: &Rule) -> Option<&dyn RateStore> {
        self.store.as_deref().filter(|_| rule.options.shared.is_some())
    }

    pub(super) fn rejected(&self) -> u64 {
        self.rules.iter().map(|rule| rule.counts.refused.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn counts(&self) -> impl Iterator<Item = RuleCounts> {
        self.rules.iter().map(Rule::counts)
    }
}

impl Rule {
    fn new(options: &RateRule) -> Self {
        // keys of SipHash out of a hash that the system has seeded
        let random = RandomState::new();
        let seed = [random.hash_one(0), random.hash_one(1)];
        let local = Local::new(options.quota(), options.max_keys, RuleClock::default());
        Self::with(options, Compiled::new(&options.key, seed), local, Arc::default())
    }

    fn with(options: &RateRule, key: Compiled, local: Local<RuleClock>, counts: Arc<Counts>) -> Self {
        Self {
            name: options.plain_name().into(),
            quota: options.quota(),
            key,
            allow: options.allow.iter().copied().collect(),
            local,
            counts,
            held: Arc::default(),
            options: options.clone(),
        }
    }

    /// Whether a rule with these options can go on with this one's buckets.
    fn counts_like(&self, options: &RateRule) -> bool {
        let now = &self.options;
        (&now.name, &now.key, now.max_keys) == (&options.name, &options.key, options.max_keys)
    }

    fn changed(&self, options: &RateRule) -> Self {
        let local = self.local.changed(options.quota());
        let key = Compiled::new(&options.key, self.key.seed());
        let mut rule = Self::with(options, key, local, Arc::clone(&self.counts));
        rule.held = Arc::clone(&self.held);
        rule
    }

    /// What a request takes; `None` where the rule leaves it alone.
    #[inline]
    fn cost(&self, asked: &Asked<'_>) -> Option<NonZeroU32> {
        let options = &self.options;
        if !self.allow.is_empty() && asked.client().is_some_and(|ip| self.allow.contains(ip)) {
            return None;
        }
        if let Some(cost) = asked.cost {
            return NonZeroU32::new(cost);
        }
        let by_method = options.method_costs.iter().find(|(method, _)| method == asked.method);
        NonZeroU32::new(by_method.map_or(options.cost, |(_, cost)| *cost))
    }

    #[inline]
    fn local_key(&self, asked: &Asked<'_>) -> Option<u64> {
        self.key.local(asked).or_else(|| self.shares().then(Compiled::local_missing))
    }

    fn in_store<T>(
        &self,
        asked: &Asked<'_>,
        store: &dyn RateStore,
        ask: impl FnOnce(&Bucket<'_>) -> T,
    ) -> Option<T> {
        let seed = store.seed();
        let missing = || self.shares().then(|| Compiled::shared_missing(seed, &self.name));
        let key = self.key.shared(asked, seed, &self.name).or_else(missing)?;
        Some(ask(&Bucket::new(&self.name, key, seed, self.quota)))
    }

    fn shares(&self) -> bool {
        self.options.on_missing == OnMissing::Share
    }

    fn without_store(&self, asked: &Asked<'_>, cost: NonZeroU32) -> Verdict {
        self.counts.unavailable.fetch_add(1, Ordering::Relaxed);
        match self.local_key(asked) {
            Some(key) if self.options.shared == Some(OnFailure::Local) => self.local.take(key, cost, true),
            _ => Verdict::Unavailable,
        }
    }

    fn counts(&self) -> RuleCounts {
        let table = self.local.counts();
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        RuleCounts {
            rule: Arc::clone(&self.name),
            allowed: table.taken + read(&self.counts.allowed),
            refused: read(&self.counts.refused),
            dry_run: read(&self.counts.dry_run),
            unavailable: read(&self.counts.unavailable),
            forgotten: table.forgotten,
        }
    }
}
