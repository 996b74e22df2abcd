//! What a rate limit is told.

use std::{num::NonZeroU32, time::Duration};

use bytes::Bytes;
use governor::Quota;
use http::{HeaderValue, Method, StatusCode};
use ipnet::IpNet;

use super::key::RateKey;

/// Rules, and what all of them share.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateLimitOptions {
    /// The rules, at most 64; those after are left out, with an error in the log. A request has to pass all of them, in
    /// this order. One that a rule refuses takes nothing from the others: what it took from those before is put back.
    /// While that happens, for as long as it takes to ask the rest, a concurrent request can find it missing.
    pub rules: Vec<RateRule>,
    /// Whether responses tell what is left: `RateLimit-Policy` and `RateLimit` of
    /// draft-ietf-httpapi-ratelimit-headers-10, with an entry for each rule that counted the request and is no dry run. Default off: they tell
    /// strangers the rules, and cost an allocation for each response.
    pub fields: bool,
}

impl RateLimitOptions {
    /// One rule.
    pub fn new(rule: RateRule) -> Self {
        Self { rules: vec![rule], fields: false }
    }

    /// Adds a rule behind those that are there.
    #[must_use]
    pub fn with_rule(mut self, rule: RateRule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Sets [`RateLimitOptions::fields`].
    #[must_use]
    pub fn with_fields(mut self, fields: bool) -> Self {
        self.fields = fields;
        self
    }
}

/// What happens to a request that lacks what a rule counts by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnMissing {
    /// All such requests share one bucket: failing closed shows a forgotten `ConnInfo` at the first test, instead of
    /// switching the limit off.
    #[default]
    Share,
    /// The rule leaves them alone. Where a client decides what he sends, leaving it out is then a way past the rule.
    Skip,
}

/// What happens to a request when the shared store can't be asked in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnFailure {
    /// It passes, uncounted.
    Open,
    /// It is answered 503 with `Retry-After: 1`.
    Closed,
    /// It is counted in a table of this process, with the whole quota: each instance then allows what all together should.
    Local,
}

/// How often who may ask, and for how many that is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateRule {
    /// Names the rule in statistics, logs and response fields, and its buckets in a shared store. Default `default`. Letters, digits, `-`, `_` and
    /// `.`; others become `_`, and 64 are kept.
    pub name: String,
    /// How many requests may be made in [`RateRule::per`], evenly spread. There is no default: the rate depends on the
    /// application.
    pub requests: NonZeroU32,
    /// The time that [`RateRule::requests`] is counted over. Held to 1 ns ..= 30 days; a rate above one request per
    /// nanosecond is taken as that.
    pub per: Duration,
    /// How many requests may be made at once after a quiet time. Default [`RateRule::requests`]: the bucket holds one
    /// period. Held to what refills in ten years.
    pub burst: NonZeroU32,
    /// How many keys are remembered. Default 1,000,000, held to 16 ..= 268,435,456. Memory is 16 bytes per key whatever the load,
    /// 16 MB by default and 4 GiB at most, given by the system as it is first touched. Past it the key whose bucket is nearest to full
    /// among sixteen is forgotten, and starts with a full bucket when it comes back.
    pub max_keys: usize,
    /// What tells requests apart. Default the client's address.
    pub key: RateKey,
    /// What becomes of requests that lack a part of the key. Default [`OnMissing::Share`].
    pub on_missing: OnMissing,
    /// What a request takes from the bucket. Default 1; 0 is free. A request with [`Cost`] among its extensions takes that instead.
    /// One that would take more than the burst can never pass: it is refused without `Retry-After`, with a warning in the log.
    pub cost: u32,
    /// What requests by these methods take instead of [`RateRule::cost`]. Default none.
    pub method_costs: Vec<(Method, u32)>,
    /// Clients that the rule leaves alone, by address. Default none. One binary search for each request.
    pub allow: Vec<IpNet>,
    /// Whether the rule only counts and logs what it would refuse. Default off.
    pub dry_run: bool,
    /// The answer to who is refused.
    pub refusal: Refusal,
    /// Whether the buckets are those of the store that instances share ([`super::RateLimitLayer::with_store`]), and what happens
    /// without it. Default `None`: they are this process's own, as they are in a layer without a store. Rules of one name have the same buckets
    /// there, in whichever layer they stand, so they have to be alike: [`RateRule::clashes_with`].
    pub shared: Option<OnFailure>,
}

/// What a request takes, put into its extensions by a layer outside of this one. It goes before every rule's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost(pub u32);

impl RateRule {
    /// This many requests per this time from each client, and as many at once.
    pub fn new(requests: NonZeroU32, per: Duration) -> Self {
        Self {
            name: "default".to_owned(),
            requests,
            per,
            burst: requests,
            max_keys: 1_000_000,
            key: RateKey::default(),
            on_missing: OnMissing::default(),
            cost: 1,
            method_costs: Vec::new(),
            allow: Vec::new(),
            dry_run: false,
            refusal: Refusal::default(),
            shared: None,
        }
    }

    /// Sets [`RateRule::name`].
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets [`RateRule::burst`].
    #[must_use]
    pub fn with_burst(mut self, burst: NonZeroU32) -> Self {
        self.burst = burst;
        self
    }

    /// Sets [`RateRule::max_keys`].
    #[must_use]
    pub fn with_max_keys(mut self, max_keys: usize) -> Self {
        self.max_keys = max_keys;
        self
    }

    /// Sets [`RateRule::key`].
    #[must_use]
    pub fn with_key(mut self, key: impl Into<RateKey>) -> Self {
        self.key = key.into();
        self
    }

    /// Sets [`RateRule::on_missing`].
    #[must_use]
    pub fn with_on_missing(mut self, on_missing: OnMissing) -> Self {
        self.on_missing = on_missing;
        self
    }

    /// Sets [`RateRule::cost`].
    #[must_use]
    pub fn with_cost(mut self, cost: u32) -> Self {
        self.cost = cost;
        self
    }

    /// Adds to [`RateRule::method_costs`].
    #[must_use]
    pub fn with_method_cost(mut self, method: Method, cost: u32) -> Self {
        self.method_costs.push((method, cost));
        self
    }

    /// Sets [`RateRule::allow`].
    #[must_use]
    pub fn with_allow(mut self, allow: impl IntoIterator<Item = IpNet>) -> Self {
        self.allow = allow.into_iter().collect();
        self
    }

    /// Sets [`RateRule::dry_run`].
    #[must_use]
    pub fn with_dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Sets [`RateRule::refusal`].
    #[must_use]
    pub fn with_refusal(mut self, refusal: Refusal) -> Self {
        self.refusal = refusal;
        self
    }

    /// Sets [`RateRule::shared`].
    #[must_use]
    pub fn with_shared(mut self, on_failure: OnFailure) -> Self {
        self.shared = Some(on_failure);
        self
    }

    /// Whether this rule and another one would take from the same shared buckets, but each by its own key or quota, so that one refuses for what
    /// the other allows.
    pub fn clashes_with(&self, other: &Self) -> bool {
        self.shared.is_some()
            && other.shared.is_some()
            && (&self.key, self.quota()) != (&other.key, other.quota())
            && self.plain_name() == other.plain_name()
    }

    pub(super) fn quota(&self) -> RateQuota {
        const MAX_PERIOD: Duration = Duration::from_secs(30 * 24 * 60 * 60);
        const MAX_REFILL_NANOS: u128 = 10 * 365 * 24 * 60 * 60 * 1_000_000_000;
        let nanos = self.per.min(MAX_PERIOD).as_nanos() / u128::from(self.requests.get());
        // 30 days fit into 64 bits of nanoseconds
        let each = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX).max(1));
        // the algorithm keeps burst * each in 64 bits of nanoseconds beside the time since start
        let most = u32::try_from(MAX_REFILL_NANOS / each.as_nanos()).unwrap_or(u32::MAX);
        RateQuota { each, burst: self.burst.min(NonZeroU32::new(most).unwrap_or(NonZeroU32::MIN)) }
    }

    pub(super) fn plain_name(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
        self.name.chars().take(64).map(plain).collect()
    }
}

/// A bucket's size and how fast it fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateQuota {
    /// The time in which one more may be taken. Never zero.
    pub each: Duration,
    /// How much a full bucket holds. Times `each` it is ten years at most.
    pub burst: NonZeroU32,
}

impl RateQuota {
    /// The time that an empty bucket takes to fill.
    pub fn fills_in(&self) -> Duration {
        self.each.saturating_mul(self.burst.get())
    }

    pub(super) fn each_nanos(&self) -> u64 {
        u64::try_from(self.each.as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn fills_in_nanos(&self) -> u64 {
        u64::try_from(self.fills_in().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn governor(&self) -> Quota {
        Quota::with_period(self.each).expect("a period of at least 1 ns").allow_burst(self.burst)
    }
}

/// The answer to a request that a rule refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The status, 400 to 599; anything else is taken as the default, 429 (RFC 6585 section 4). Any but 429 comes with
    /// `Cache-Control: no-store`.
    pub status: StatusCode,
    /// The body. Default empty.
    pub body: Bytes,
    /// The body's `Content-Type`, left out where the body is empty. Default `text/plain; charset=utf-8`.
    pub content_type: HeaderValue,
    /// Whether the answer is held back for a while. Default no.
    pub tarpit: Option<Tarpit>,
}

impl Default for Refusal {
    fn default() -> Self {
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            body: Bytes::new(),
            content_type: HeaderValue::from_static("text/plain; charset=utf-8"),
            tarpit: None,
        }
    }
}

impl Refusal {
    /// Sets [`Refusal::status`].
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// Sets [`Refusal::body`] and its type.
    #[must_use]
    pub fn with_body(mut self, content_type: HeaderValue, body: impl Into<Bytes>) -> Self {
        self.content_type = content_type;
        self.body = body.into();
        self
    }

    /// Sets [`Refusal::tarpit`].
    #[must_use]
    pub fn with_tarpit(mut self, tarpit: Tarpit) -> Self {
        self.tarpit = Some(tarpit);
        self
    }
}

/// Holds an answer back, so that a client which waits for it before it asks again asks less often. The request is let go
/// of meanwhile, but its connection and stream are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tarpit {
    /// For how long. Held to a minute. A drain waits for it.
    pub hold: Duration,
    /// How many answers are held back at once. Default 1,000; more are sent at once. Each takes some hundred bytes here, and what
    /// its connection takes.
    pub max_held: usize,
}

impl Tarpit {
    /// Holds a thousand answers at most, each for this long.
    pub fn new(hold: Duration) -> Self {
        Self { hold, max_held: 1000 }
    }

    /// Sets [`Tarpit::max_held`].
    #[must_use]
    pub fn with_max_held(mut self, max_held: usize) -> Self {
        self.max_held = max_held;
        self
    }
}
