//! How often who may ask: past the rate a request is answered 429 with `Retry-After`.
//!
//! ```
//! # use std::{num::NonZeroU32, time::Duration};
//! # use portcullis_middleware::rate_limit::{RateLimitLayer, RateLimitOptions, RateRule};
//! // a hundred a second from each client, and ten thousand a day
//! let n = |n| NonZeroU32::new(n).unwrap();
//! let second = RateRule::new(n(100), Duration::from_secs(1)).with_name("second");
//! let day = RateRule::new(n(10_000), Duration::from_secs(86_400)).with_name("day");
//! let layer = RateLimitLayer::new(&RateLimitOptions::new(second).with_rule(day));
//! ```
//!
//! The generic cell rate algorithm, a token bucket in one number per client, by the `governor` crate, over a
//! table of fixed size (`table.rs`). tower's `RateLimitLayer` has one bucket for everybody and makes callers wait;
//! this one has a bucket per client, or per whatever [`RateKey`] says, and refuses.
//!
//! The client is [`crate::ClientIp`] where somebody put one into the request's extensions, else the peer of
//! [`portcullis_conn::ConnInfo`]. All addresses of one IPv6 /64 are one client, since a /64 is the least that a
//! network hands to one customer (RFC 6177). Requests without any address, and those from unix sockets, share one
//! bucket unless [`OnMissing`] says otherwise.
//!
//! Instances can share buckets: [`borrow`] lends each of them portions of a bucket that another program keeps, with the feature
//! `redis` one that speaks the protocol of Valkey and Redis ([`redis`]).

pub mod borrow;
pub mod redis;

mod answer;
mod certificate;
mod clock;
mod future;
mod key;
mod local;
mod options;
mod path;
mod rules;
mod store;
mod table;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use self::{
    answer::Fields,
    key::Asked,
    rules::{Judgement, Judging, RuleSet},
};
pub use self::{
    future::ResponseFuture,
    key::{KeyPart, RateKey, RouteName},
    options::{Cost, OnFailure, OnMissing, RateLimitOptions, RateQuota, RateRule, Refusal, Tarpit},
    rules::RuleCounts,
    store::{Bucket, RateStore, Standing, Take, Verdict},
};

/// Limits the requests by rules. Every clone, and every service made from one, counts in the same buckets.
#[derive(Clone)]
pub struct RateLimitLayer {
    shared: Arc<Shared>,
}

struct Shared {
    rules: ArcSwap<RuleSet>,
    store: Option<Arc<dyn RateStore>>,
}

impl RateLimitLayer {
    /// A layer with full buckets, all of them this process's own.
    pub fn new(options: &RateLimitOptions) -> Self {
        Self::build(options, None)
    }

    /// A layer whose rules with [`RateRule::shared`] take from this store.
    pub fn with_store(options: &RateLimitOptions, store: Arc<dyn RateStore>) -> Self {
        Self::build(options, Some(store))
    }

    fn build(options: &RateLimitOptions, store: Option<Arc<dyn RateStore>>) -> Self {
        let rules = ArcSwap::from_pointee(RuleSet::new(options, store.as_ref(), None));
        Self { shared: Arc::new(Shared { rules, store }) }
    }

    /// Changes the rules, from the next request on. A rule goes on with the buckets of the one of the same name, key and number of
    /// keys, each as full as it was, even where rate and burst are others; any other begins with full buckets. Of several such rules the
    /// first goes on with the first's. A shared bucket keeps what is missing of it instead, as the time in which that comes back by the old rate, and no
    /// more than a whole bucket of the new one. Takes a pass over each table that goes on, some milliseconds for a million keys.
    pub fn replace(&self, options: &RateLimitOptions) {
        let before = self.shared.rules.load_full();
        self.shared.rules.store(Arc::new(RuleSet::new(options, self.shared.store.as_ref(), Some(&before))));
    }

    /// A layer with other rules and another store, that goes on with the buckets as [`RateLimitLayer::replace`] does. This one stays
    /// as it is, over the same buckets.
    #[must_use]
    pub fn changed(&self, options: &RateLimitOptions, store: Option<Arc<dyn RateStore>>) -> Self {
        let before = self.shared.rules.load();
        let rules = ArcSwap::from_pointee(RuleSet::new(options, store.as_ref(), Some(&before)));
        Self { shared: Arc::new(Shared { rules, store }) }
    }

    /// How many requests the rules have refused so far, all together.
    pub fn rejected(&self) -> u64 {
        self.shared.rules.load().rejected()
    }

    /// What the rules have counted so far, in their order. Looks at each shard of each table.
    pub fn counts(&self) -> Vec<RuleCounts> {
        self.shared.rules.load().counts().collect()
    }
}

impl fmt::Debug for RateLimitLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitLayer").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit { inner, layer: self.clone() }
    }
}

/// The service of [`RateLimitLayer`]. Its `poll_ready` is that of the service inside; a request that waits for a shared store
/// keeps the service that was ready, and leaves a clone of it in its place.
#[derive(Clone, Debug)]
pub struct RateLimit<S> {
    inner: S,
    layer: RateLimitLayer,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for RateLimit<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    ResBody: From<Bytes>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqBody, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let rules = self.layer.shared.rules.load();
        let mut judging = Judging::default();
        match rules.judge(&Asked::of(&request), &mut judging) {
            Judgement::Pass => {
                let fields = Fields::new(rules.policy.as_ref(), judging.field);
                ResponseFuture::called(self.inner.call(request), fields)
            }
            Judgement::Refused { rule, wait, unavailable } => {
                let fields = Fields::new(rules.policy.as_ref(), judging.field);
                ResponseFuture::refused(rule, wait, unavailable, fields)
            }
            Judgement::Ask(answer) => {
                let clone = self.inner.clone();
                let ready = std::mem::replace(&mut self.inner, clone);
                ResponseFuture::asking(answer, request, ready, Arc::clone(&rules), judging)
            }
        }
    }
}
