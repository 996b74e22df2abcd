//! What a reload makes anew: everything that a request meets and no connection holds.

use std::{collections::HashMap, sync::Arc};

use portcullis_cache::CacheLayer;
use portcullis_middleware::{
    filter::FilterLayer, rate_limit::RateLimitLayer, security_headers::SecurityHeadersLayer,
};
use portcullis_proxy::{ConnectProxy, Router, Trust, Tunnels, mirror::Mirror};

use crate::{
    EdgeError,
    access_log::LogSink,
    clusters::{self, ClusterPart},
    plan::Plan,
    routes,
    tunnel_to::{self, ToTarget},
};

/// One generation of it. A request that runs holds what it needs of the one that it began with, and that is let go of with the last of them.
pub(crate) struct Live {
    /// As it is carried out: what stays until the next start is as it was at this one.
    pub(crate) plan: Plan,
    pub(crate) clusters: HashMap<String, Arc<ClusterPart>>,
    pub(crate) trust: Arc<Trust>,
    /// What answers CONNECT, where the plan has it.
    pub(crate) connect: Option<ConnectProxy<ToTarget>>,
    /// The routes, by their numbers in the plan.
    pub(crate) router: Router<()>,
    pub(crate) mirrors: HashMap<usize, Mirror>,
    pub(crate) log_sink: Option<LogSink>,
    pub(crate) rate_limit: Option<RateLimitLayer>,
    pub(crate) filter: Option<FilterLayer>,
    pub(crate) security_headers: Option<SecurityHeadersLayer>,
    pub(crate) cache: Option<CacheLayer>,
}

impl Live {
    /// Parts whose plans are as `before` go on with what they hold: pools, health, buckets, what is stored. Blocks while it reads files.
    pub(crate) fn build(plan: Plan, tunnels: &Tunnels, before: Option<&Self>) -> Result<Self, EdgeError> {
        let same = |is: fn(&Plan, &Plan) -> bool| before.filter(|before| is(&before.plan, &plan));
        let trust = match same(|a, b| a.trusted_proxies == b.trusted_proxies) {
            Some(before) => Arc::clone(&before.trust),
            None => Arc::new(Trust::new(plan.trusted_proxies.iter().copied())),
        };
        let connect = match same(|a, b| a.connect == b.connect && a.trusted_proxies == b.trusted_proxies) {
            Some(before) => before.connect.clone(),
            None => plan.connect.as_ref().map(|connect| tunnel_to::proxy(connect, &trust, tunnels)),
        };
        let log_sink = match same(|a, b| a.access_log == b.access_log) {
            Some(before) => before.log_sink.clone(),
            None => LogSink::open(&plan.access_log).map_err(EdgeError::AccessLog)?,
        };
        let rate_limit = match same(|a, b| a.rate_limit == b.rate_limit) {
            Some(before) => before.rate_limit.clone(),
            None => plan.rate_limit.as_ref().map(RateLimitLayer::new),
        };
        let cache = match same(|a, b| a.cache == b.cache) {
            Some(before) => before.cache.clone(),
            None => plan.cache.clone().map(CacheLayer::new),
        };
        Ok(Self {
            clusters: clusters::build(&plan, before)?,
            router: routes::router(&plan)?,
            mirrors: routes::mirrors(&plan, before),
            filter: (!plan.filter.is_empty()).then(|| FilterLayer::new(plan.filter.clone())),
            security_headers: plan.security_headers.as_ref().map(SecurityHeadersLayer::new),
            trust,
            connect,
            log_sink,
            rate_limit,
            cache,
            plan,
        })
    }
}
