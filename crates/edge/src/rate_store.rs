//! The store that instances share their rates in.

use std::{fmt, sync::Arc, time::Duration};

use portcullis_middleware::rate_limit::RateStore;

use crate::{EdgeError, PlanFault, plan::Plan};

/// Valkey or Redis, for the rules that ask for it. Built with the feature `redis`; without it a plan that has one is refused.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateStorePlan {
    /// `redis://[user:password@]host[:port][/database]`, or `unix:///path`. There is no TLS.
    pub url: String,
    /// What keys begin with. Default `portcullis:rate`. Instances with the same share their buckets.
    pub prefix: String,
    /// How long a request waits for the store. Default 50 ms.
    pub timeout: Duration,
}

impl RateStorePlan {
    /// The store at this address.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), prefix: "portcullis:rate".to_owned(), timeout: Duration::from_millis(50) }
    }

    /// Sets [`RateStorePlan::prefix`].
    #[must_use]
    pub fn with_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets [`RateStorePlan::timeout`].
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

impl fmt::Debug for RateStorePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // the URL may hold a password
        let (prefix, timeout) = (&self.prefix, &self.timeout);
        f.debug_struct("RateStorePlan")
            .field("prefix", prefix)
            .field("timeout", timeout)
            .finish_non_exhaustive()
    }
}

/// Rules that share buckets need a store, and a store needs to be one.
pub(crate) fn check(plan: &Plan) -> Result<(), EdgeError> {
    if let Some(store) = &plan.rate_store {
        open(store)?;
        return Ok(());
    }
    let chains = std::iter::once(&plan.chain).chain(plan.routes.iter().map(|route| &route.chain));
    let rules = chains.filter_map(|chain| chain.rate_limit.own()).flat_map(|limit| &limit.rules);
    match rules.into_iter().find(|rule| rule.shared.is_some()) {
        Some(rule) => Err(PlanFault::NoRateStore(rule.name.clone()).into()),
        None => Ok(()),
    }
}

/// Connects with the first request that asks for it.
#[cfg(feature = "redis")]
pub(crate) fn open(plan: &RateStorePlan) -> Result<Arc<dyn RateStore>, EdgeError> {
    use portcullis_middleware::rate_limit::{
        borrow::{BorrowOptions, Borrowing},
        redis::{RedisLender, RedisOptions},
    };

    let options =
        RedisOptions::new(plan.url.as_str()).with_prefix(plan.prefix.as_str()).with_timeout(plan.timeout);
    let lender = RedisLender::open(&options).map_err(|error| EdgeError::RateStore(error.into()))?;
    Ok(Arc::new(Borrowing::new(lender, BorrowOptions::default().with_timeout(plan.timeout))))
}

#[cfg(not(feature = "redis"))]
pub(crate) fn open(_: &RateStorePlan) -> Result<Arc<dyn RateStore>, EdgeError> {
    Err(EdgeError::RateStore("this program was built without the feature `redis`".into()))
}
