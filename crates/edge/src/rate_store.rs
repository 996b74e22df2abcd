//! The store that instances share their rates in.

use std::sync::Arc;

use portcullis_middleware::rate_limit::{RateRule, RateStore, redis::RedisOptions};

use crate::{EdgeError, PlanFault, plan::Plan};

/// Rules that share buckets need a store, a store needs to be one, and rules that share the same buckets have to be alike.
pub(crate) fn check(plan: &Plan) -> Result<(), EdgeError> {
    if let Some(store) = &plan.rate_store {
        look_at(store)?;
    } else if let Some(rule) = shared(plan).next() {
        return Err(PlanFault::NoRateStore(rule.name.clone()).into());
    }
    // those of one name are alike if each is like the first
    let mut first: Vec<&RateRule> = Vec::new();
    for rule in shared(plan) {
        if first.iter().any(|known| known.clashes_with(rule)) {
            return Err(PlanFault::RatesClash(rule.name.clone()).into());
        }
        if first.iter().all(|known| known.name != rule.name) {
            first.push(rule);
        }
    }
    Ok(())
}

/// The rules that share their buckets.
fn shared(plan: &Plan) -> impl Iterator<Item = &RateRule> {
    plan.rate_rules().filter(|rule| rule.shared.is_some())
}

/// Connects with the first request that asks for it.
#[cfg(feature = "redis")]
pub(crate) fn open(options: &RedisOptions) -> Result<Arc<dyn RateStore>, EdgeError> {
    let store = portcullis_middleware::rate_limit::redis::store(options);
    Ok(Arc::new(store.map_err(|error| EdgeError::RateStore(error.into()))?))
}

#[cfg(feature = "redis")]
fn look_at(options: &RedisOptions) -> Result<(), EdgeError> {
    let lender = portcullis_middleware::rate_limit::redis::RedisLender::open(options);
    lender.map(drop).map_err(|error| EdgeError::RateStore(error.into()))
}

#[cfg(not(feature = "redis"))]
pub(crate) fn open(_: &RedisOptions) -> Result<Arc<dyn RateStore>, EdgeError> {
    Err(EdgeError::RateStore("this program was built without the feature `redis`".into()))
}

#[cfg(not(feature = "redis"))]
fn look_at(options: &RedisOptions) -> Result<(), EdgeError> {
    open(options).map(drop)
}
