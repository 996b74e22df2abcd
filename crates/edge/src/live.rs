//! What a reload makes anew: everything that a request meets and no connection holds.

use std::{collections::HashMap, sync::Arc};

use portcullis_cache::CacheLayer;
use portcullis_middleware::rate_limit::RateStore;
use portcullis_proxy::{ConnectProxy, Router, Trust, Tunnels, mirror::Mirror};
use portcullis_telemetry::metrics::HostRequests;

use crate::{
    EdgeError,
    access_log::{LogSink, Sinks},
    chain::Chains,
    clusters::{self, ClusterPart},
    counted::Counted,
    parts::Parts,
    plan::Plan,
    rate_store,
    route_plan::places,
    routes,
    tunnel_to::{self, ToTarget},
};

/// The generation that another one takes the place of.
pub(crate) struct Going<'l> {
    pub(crate) live: &'l Live,
    /// For each route of the plan that comes, its place in the one that goes.
    places: Vec<Option<usize>>,
}

impl<'l> Going<'l> {
    fn new(live: &'l Live, plan: &Plan) -> Self {
        Self { live, places: places(&live.plan.routes, &plan.routes) }
    }

    /// Where the route of this number was.
    pub(crate) fn place(&self, number: usize) -> Option<usize> {
        *self.places.get(number)?
    }
}

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
    /// It, and those before it.
    pub(crate) sinks: Arc<Sinks>,
    pub(crate) hosts: Arc<HostRequests>,
    /// The store that chains share.
    pub(crate) cache: Option<CacheLayer>,
    /// The store that rate limits share with other instances.
    pub(crate) rate_store: Option<Arc<dyn RateStore>>,
    pub(crate) chains: Chains,
    /// What chains share among them.
    pub(crate) parts: Parts,
    /// What layers counted that are there no more.
    pub(crate) gone: Counted,
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
        let sinks = before.map_or_else(Arc::default, |before| Arc::clone(&before.sinks));
        let log_sink = match same(|a, b| a.access_log == b.access_log) {
            Some(before) => before.log_sink.as_ref().map(|sink| sink.for_plan(&plan)),
            None => sinks.open(&plan).map_err(EdgeError::AccessLog)?,
        };
        let cache = match same(|a, b| a.cache == b.cache) {
            Some(before) => before.cache.clone(),
            None => plan.cache.clone().map(CacheLayer::open).transpose().map_err(EdgeError::Cache)?,
        };
        let parts = Parts::build(&plan, before.map(|before| &before.parts))?;
        let rate_store = match same(|a, b| a.rate_store == b.rate_store) {
            Some(before) => before.rate_store.clone(),
            None => plan.rate_store.as_ref().map(rate_store::open).transpose()?,
        };
        let going = before.map(|before| Going::new(before, &plan));
        let hosts = plan.routes.iter().filter_map(|route| route.matches.host.as_deref());
        let hosts = HostRequests::new(hosts, before.map(|before| &*before.hosts));
        Ok(Self {
            hosts: Arc::new(hosts),
            clusters: clusters::build(&plan, before)?,
            router: routes::router(&plan)?,
            mirrors: routes::mirrors(&plan, going.as_ref()),
            chains: Chains::build(&plan, &parts, cache.as_ref(), rate_store.as_ref(), going.as_ref())?,
            parts,
            gone: Counted::default(),
            trust,
            connect,
            log_sink,
            sinks,
            cache,
            rate_store,
            plan,
        })
    }
}
