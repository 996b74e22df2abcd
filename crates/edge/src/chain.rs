//! What the requests of a route pass: the layers of a chain, and their part of THE order.
//!
//! ```text
//! request  ->  (the route's changes to responses) -> security fields -> rate limit -> filter -> maintenance -> CORS -> CSRF
//!              -> passwords, tokens, a service that is asked -> body limit -> deadline -> compression -> cache -> request decompression
//!              -> concurrency -> layers of the program -> what the route does
//! response <-  the same way back
//! ```
//!
//! Why so: security fields stand outside of what may answer by itself, so that a 429, a 404 and a cached response carry them too. The rate limit
//! comes before work that costs, passwords above all; the filter before the cache (a denied path is never looked up). Preflights of CORS carry no credentials and are
//! answered before anybody asks for some, and a 401 tells the page that it may read it. Who may pass is settled before the cache answers, and what was authenticated
//! counts there as `Authorization` does (RFC 9111 section 3.5).
//! The cache comes before the program's own layers and the upstream. Maintenance closes a site to those who may come in at all, before they are asked who they are. A body that is too long is refused before anything is done with it, and counted as it comes, before
//! it is decompressed. A deadline is for all that is behind it. Compression is outside of the cache, which so keeps one copy for all. A place is needed only for
//! what the cache has no answer to: what is stored is answered under overload too, as is `/health`, which is outside of every chain. What a route
//! changes in responses it changes in all of them, and has the last word.
//!
//! A chain is made once for a reload and shared by workers. What it holds (buckets, counters) goes on over reloads where its plan is the same.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use http::{HeaderName, Request, Response};
use portcullis_cache::{Authorized, CacheBody, CacheBodyInner, CacheLayer, CacheRules, NotForStore};
use portcullis_middleware::{
    ClientSecure,
    concurrency::{ConcurrencyLimit, ConcurrencyStats},
    early::OwnAnswer,
    filter::{Action, FilterLayer},
    identity::Authenticated,
    rate_limit::{RateKey, RateLimitLayer, RateLimitOptions, RateRule, RateStore, RuleCounts},
    security_headers::SecurityHeadersLayer,
};
use portcullis_proxy::FieldEdits;
use tower::{
    ServiceBuilder,
    util::{MapRequestLayer, MapResponseLayer, option_layer},
};
use tower_http::map_response_body::MapResponseBodyLayer;
use tower_service::Service;

use crate::{
    Body, EdgeError,
    access_log::route_log,
    admission::{self, Admission},
    explain::Step,
    forward::ToCluster,
    interim,
    live::Going,
    parts::Parts,
    plan::{ChainPlan, FilterPlan, Plan, RoutePlan, Setting},
    service::EdgeService,
    shaping::{self, Pages, Shaping},
};

/// The layers of one chain. What is `None` costs nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    /// Changes to the fields of every response, whoever made it.
    pub(crate) response_fields: Option<Arc<FieldEdits>>,
    pub(crate) security_headers: Option<SecurityHeadersLayer>,
    pub(crate) rate_limit: Option<RateLimitLayer>,
    pub(crate) filter: Option<FilterLayer>,
    pub(crate) admission: Admission,
    pub(crate) cache: Option<CacheLayer>,
    /// Those that few have.
    pub(crate) shaping: Shaping,
}

/// The chain of the edge, and those of the routes that have something of their own.
#[derive(Debug, Default)]
pub(crate) struct Chains {
    pub(crate) default: Arc<Chain>,
    /// By the routes' numbers.
    pub(crate) routes: Vec<Arc<Chain>>,
    /// Every rate limit once.
    rates: Vec<RateLimitLayer>,
    /// Every set of places once, with whose it is.
    places: Vec<(Arc<str>, ConcurrencyLimit)>,
}

impl Chains {
    /// `cache`: the store, if there is one.
    pub(crate) fn build(
        plan: &Plan,
        parts: &Parts,
        cache: Option<&CacheLayer>,
        store: Option<&Arc<dyn RateStore>>,
        before: Option<&Going<'_>>,
    ) -> Result<Self, EdgeError> {
        let rates = Rates {
            store,
            is_same: before.is_some_and(|before| before.live.plan.rate_store == plan.rate_store),
        };
        // all that may fail, before anything that goes on is changed
        let pages = Pages::read(plan)?;
        let known = before.map(|before| (&before.live.plan.chain, &*before.live.chains.default));
        let by_default = |store: &CacheLayer| store.with_rules(of_edge(store.rules().clone()));
        let edge = Chain { cache: cache.map(by_default), ..Chain::default() };
        let made = Made { parts, pages: &pages, rates };
        let mut default = Chain::build(&plan.chain, &made, &edge, known);
        default.cache = cache_layer(&plan.chain.cache, &edge.cache, cache, None);
        let default = Arc::new(default);
        let routes = plan.routes.iter().enumerate().map(|(number, route)| {
            let edits = &route.response_fields;
            if route.chain == ChainPlan::default()
                && edits.is_empty()
                && !(cache.is_some() && partition(route).is_some())
            {
                return Arc::clone(&default);
            }
            let known = before.and_then(|before| {
                let (place, live) = (before.place(number)?, before.live);
                Some((&live.plan.routes[place].chain, &**live.chains.routes.get(place)?))
            });
            let mut chain = Chain::build(&route.chain, &made, &default, known);
            chain.response_fields = (!edits.is_empty()).then(|| Arc::new(edits.clone()));
            chain.cache = match &route.chain.cache {
                Setting::Inherit if is_for_some(route) => None,
                setting => cache_layer(setting, &default.cache, cache, Some(route)),
            };
            Arc::new(chain)
        });
        let routes: Vec<_> = routes.collect();
        let own = plan.routes.iter().zip(&routes).filter(|(route, _)| route.chain.rate_limit.own().is_some());
        let rates = std::iter::once(&default).chain(own.map(|(_, chain)| chain));
        let rates = rates.filter_map(|chain| chain.rate_limit.clone()).collect();
        let own =
            plan.routes.iter().zip(&routes).filter(|(route, _)| route.chain.concurrency.own().is_some());
        let own = own.map(|(route, chain)| (route_log(route).name.as_ref().into(), chain));
        let places = std::iter::once((Arc::from("edge"), &default)).chain(own);
        let places = places
            .filter_map(|(name, chain)| Some((name, chain.shaping.concurrency.as_ref()?.limit().clone())));
        let places = places.collect();
        Ok(Self { default, routes, rates, places })
    }

    /// What the rules of rate limits have counted, those of the same name together. Rules have names of the plan, so there are as many as it has.
    pub(crate) fn rates(&self) -> BTreeMap<Arc<str>, RuleCounts> {
        let mut sums: BTreeMap<Arc<str>, RuleCounts> = BTreeMap::new();
        for counts in self.rates.iter().flat_map(RateLimitLayer::counts) {
            let sum = sums.entry(Arc::clone(&counts.rule)).or_default();
            sum.allowed += counts.allowed;
            sum.refused += counts.refused;
            sum.dry_run += counts.dry_run;
            sum.unavailable += counts.unavailable;
            sum.forgotten += counts.forgotten;
        }
        sums
    }

    /// How it stands with places: the edge's, and those of routes by their names, of the same name together.
    pub(crate) fn concurrency(&self) -> BTreeMap<Arc<str>, ConcurrencyStats> {
        let mut sums: BTreeMap<Arc<str>, ConcurrencyStats> = BTreeMap::new();
        for (name, limit) in &self.places {
            let (sum, stats) = (sums.entry(Arc::clone(name)).or_default(), limit.stats());
            sum.limit += stats.limit;
            sum.running += stats.running;
            sum.waiting += stats.waiting;
            sum.refused += stats.refused;
        }
        sums
    }

    /// Requests that rate limits refused.
    pub(crate) fn rate_limited(&self) -> u64 {
        self.rates.iter().map(RateLimitLayer::rejected).sum()
    }
}

/// What chains are made of beside their plans.
struct Made<'a> {
    parts: &'a Parts,
    pages: &'a Pages,
    rates: Rates<'a>,
}

/// What rate limits are made of beside their rules.
#[derive(Clone, Copy)]
struct Rates<'a> {
    store: Option<&'a Arc<dyn RateStore>>,
    /// Whether the store is the one of before.
    is_same: bool,
}

impl Rates<'_> {
    /// A changed rule goes on with its buckets as far as they are of the same kind.
    fn layer(
        self,
        own: &RateLimitOptions,
        before: Option<(&RateLimitOptions, &RateLimitLayer)>,
    ) -> RateLimitLayer {
        match (before, self.store) {
            (Some((old, layer)), _) if old == own && self.is_same => layer.clone(),
            (Some((_, layer)), store) => layer.changed(own, store.cloned()),
            (None, Some(store)) => RateLimitLayer::with_store(own, Arc::clone(store)),
            (None, None) => RateLimitLayer::new(own),
        }
    }
}

/// Whether not everybody who asks for the same URI comes to this route: what is stored is given to all.
fn is_for_some(route: &RoutePlan) -> bool {
    let matches = &route.matches;
    !matches.clients.is_empty() || !matches.headers.is_empty() || !matches.protocols.is_empty()
}

/// A layer over the store by these rules. The store is what holds something, so this is made anew each time.
fn cache_layer(
    setting: &Setting<CacheRules>,
    default: &Option<CacheLayer>,
    store: Option<&CacheLayer>,
    route: Option<&RoutePlan>,
) -> Option<CacheLayer> {
    match setting {
        Setting::Inherit => default.as_ref().map(|default| match route.and_then(partition) {
            None => default.clone(),
            Some(partition) => {
                let mut rules = default.rules().clone();
                rules.partition = Some(partition);
                default.with_rules(rules)
            }
        }),
        Setting::Off => None,
        Setting::Own(rules) => store.map(|store| {
            let mut rules = of_edge(rules.clone());
            if rules.partition.is_none() {
                rules.partition = route.and_then(partition);
            }
            store.with_rules(rules)
        }),
    }
}

/// What keeps a route's responses from those of routes for the same URIs: what it matches by, where that is more than host and path.
fn partition(route: &RoutePlan) -> Option<Arc<str>> {
    let matches = &route.matches;
    // the scheme of the connection, which need not be the one that a trusted proxy told and the key has
    (is_for_some(route) || !matches.query.is_empty() || matches.scheme.is_some()).then(|| {
        let mut hasher = DefaultHasher::new();
        format!("{matches:?}").hash(&mut hasher);
        format!("{:016x}", hasher.finish()).into()
    })
}

impl Chain {
    /// Without the cache. `default` is what a layer is that the plan has nothing to say about; `before` the chain in this place until now, with its plan.
    fn build(plan: &ChainPlan, made: &Made<'_>, default: &Self, before: Option<(&ChainPlan, &Self)>) -> Self {
        let Made { parts, pages, rates } = made;
        let shaping = before.map(|(plan, chain)| (plan, &chain.shaping));
        Self {
            response_fields: None,
            shaping: Shaping::build(plan, &default.shaping, shaping, pages),
            security_headers: layer(&plan.security_headers, &default.security_headers, |headers| {
                Some(SecurityHeadersLayer::new(headers))
            }),
            rate_limit: match &plan.rate_limit {
                Setting::Inherit => default.rate_limit.clone(),
                Setting::Off => None,
                Setting::Own(own) => {
                    Some(rates.layer(
                        own,
                        before.and_then(|(plan, chain)| {
                            Some((plan.rate_limit.own()?, chain.rate_limit.as_ref()?))
                        }),
                    ))
                }
            },
            filter: layer(&plan.filter, &default.filter, |own| {
                (!own.options.is_empty()).then(|| parts.filter(own))
            }),
            admission: admission(plan, parts, &default.admission),
            cache: None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        let Self { response_fields, security_headers, rate_limit, filter, admission, cache, shaping } = self;
        response_fields.is_none()
            && security_headers.is_none()
            && rate_limit.is_none()
            && filter.is_none()
            && admission.is_empty()
            && cache.is_none()
            && shaping.is_empty()
    }

    /// The same for what has no route: what routes stored is not given to those who did not come by them.
    pub(crate) fn without_cache(&self) -> Self {
        Self { cache: None, ..self.clone() }
    }

    /// The same for redirects to HTTPS, which anybody may have.
    pub(crate) fn without_admission(&self) -> Self {
        Self { admission: Admission::default(), ..self.without_cache() }
    }

    /// Puts the layers around a service, in their order. `clusters` are those of the worker.
    pub(crate) fn around<S>(&self, inside: S, clusters: impl Fn(&str) -> Option<ToCluster>) -> EdgeService
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        // layers that wrap the response's body get a `Body` around what they make of it
        let cache = self.cache.clone().map(|layer| {
            let (body, own) =
                (MapResponseBodyLayer::new(of_cache as OfCache), MapResponseLayer::new(not_for_store));
            (MapRequestLayer::new(for_cache), body, layer, own)
        });
        let removed = self.security_headers.as_ref().map_or(&[][..], SecurityHeadersLayer::removed);
        let interim = interim::edited(self.response_fields.as_ref(), removed).map(MapRequestLayer::new);
        let edits = self.response_fields.clone().map(|edits| {
            MapResponseLayer::new(move |mut response: Response<Body>| {
                edits.apply(response.headers_mut());
                response
            })
        });
        let outer = ServiceBuilder::new()
            .layer(option_layer(edits))
            .layer(option_layer(interim))
            .layer(option_layer(self.security_headers.clone()))
            .layer(option_layer(self.rate_limit.clone()))
            .layer(option_layer(self.filter.clone()));
        // one stack, where nothing stands in between
        if self.shaping.is_empty() && self.admission.is_empty() {
            return EdgeService::new(outer.layer(option_layer(cache)).service(inside));
        }
        let mut service = self.shaping.inside_cache(EdgeService::new(inside));
        if let Some(cache) = cache {
            service = EdgeService::new(ServiceBuilder::new().layer(cache).service(service));
        }
        let service = self.shaping.behind_admission(service);
        let service = self.admission.around(service, clusters);
        let service = self.shaping.before_admission(service);
        EdgeService::new(outer.service(service))
    }
}

fn admission(plan: &ChainPlan, parts: &Parts, default: &Admission) -> Admission {
    Admission {
        cors: layer(&plan.cors, &default.cors, |own| Some(admission::cors(own))),
        csrf: layer(&plan.csrf, &default.csrf, |own| {
            Some(admission::csrf(own).expect("the plan was checked before anything was made of it"))
        }),
        basic_auth: layer(&plan.basic_auth, &default.basic_auth, |own| Some(parts.basic_auth(own))),
        jwt: layer(&plan.jwt, &default.jwt, |own| Some(parts.jwt(own))),
        forward_auth: layer(&plan.forward_auth, &default.forward_auth, |own| Some(own.clone())),
    }
}

/// What the cache can't see by itself. RFC 9111 section 3.5 holds for whoever was authenticated, with or without `Authorization`, and the origin
/// answers by the scheme that a trusted proxy told.
fn for_cache(mut request: Request<Body>) -> Request<Body> {
    if request.extensions().get::<Authenticated>().is_some() {
        request.extensions_mut().insert(Authorized);
    }
    if let Some(ClientSecure(secure)) = request.extensions().get().copied() {
        request.extensions_mut().insert(portcullis_cache::ClientSecure(secure));
    }
    request
}

/// With what the proxy tells clusters of the client, by fields that the cache does not see: what varies by them is not for all who ask alike.
/// The scheme and the host that it tells are in every key.
fn of_edge(mut rules: CacheRules) -> CacheRules {
    let told = ["forwarded", "x-forwarded-for", "x-forwarded-port", "x-real-ip"];
    rules.written_behind.extend(told.map(HeaderName::from_static));
    rules
}

/// What a layer inside of the cache said by itself is not the origin's word: it is neither stored nor does it tell that what was asked for can't be.
fn not_for_store(mut response: Response<Body>) -> Response<Body> {
    if response.extensions().get::<OwnAnswer>().is_some() {
        response.extensions_mut().insert(NotForStore);
    }
    response
}

type OfCache = fn(CacheBody<Body>) -> Body;

/// What passes stays as it is, and what is stored in one piece needs no box.
fn of_cache(body: CacheBody<Body>) -> Body {
    match body.into_inner() {
        CacheBodyInner::Passed(body) => body,
        CacheBodyInner::Bytes(data) => data.into(),
        CacheBodyInner::Other(body) => Body::new(body),
    }
}

/// The way of [`Chain::without_admission`] in words.
pub(crate) fn steps_of_redirect(plan: &Plan) -> Vec<Step> {
    let mut plan = plan.clone();
    plan.cache = None;
    plan.chain = ChainPlan {
        cors: Setting::Off,
        csrf: Setting::Off,
        basic_auth: Setting::Off,
        jwt: Setting::Off,
        forward_auth: Setting::Off,
        ..plan.chain
    };
    steps(&plan, None)
}

/// The same order in words, for a route with this chain of its own.
pub(crate) fn steps(plan: &Plan, route: Option<&RoutePlan>) -> Vec<Step> {
    let edits = route.filter(|route| !route.response_fields.is_empty());
    let edits = edits.map(|_| Step::of_route("response fields", "changed in whatever answer"));
    let inherits = ChainPlan::default();
    let no_cache = route.is_none_or(|route| route.chain.cache.is_inherit() && is_for_some(route));
    let (edge, route) = (&plan.chain, route.map_or(&inherits, |route| &route.chain));
    let cache = match (&plan.cache, &edge.cache) {
        (None, _) => Setting::Off,
        _ if no_cache => Setting::Off,
        (Some(_), Setting::Inherit) => Setting::Own(CacheRules::default()),
        (Some(_), setting) => setting.clone(),
    };
    let outer = [
        edits,
        Step::of("security fields", &edge.security_headers, &route.security_headers, |_| String::new()),
        Step::of("rate limit", &edge.rate_limit, &route.rate_limit, rate_limit),
        Step::of("filter", &some(&edge.filter), &some(&route.filter), filter_in_words),
    ];
    let cache = Step::of("cache", &cache, &route.cache, cache_in_words);
    outer
        .into_iter()
        .chain([shaping::step_before_admission(edge, route)])
        .chain(admission::steps(edge, route))
        .chain(shaping::steps_outside_cache(edge, route))
        .chain([cache])
        .chain(shaping::steps_inside_cache(edge, route))
        .flatten()
        .collect()
}

fn rate_limit(limit: &RateLimitOptions) -> String {
    let rule = |rule: &RateRule| {
        let whose = if rule.key == RateKey::default() { "of a client" } else { "by its key" };
        let past = format!("past {} in {:?} {whose}", rule.requests, rule.per);
        match rule.dry_run {
            true => format!("a dry run counts {past}"),
            false => format!("{} {past}", rule.refusal.status.as_u16()),
        }
    };
    limit.rules.iter().map(rule).collect::<Vec<_>>().join(", ")
}

fn cache_in_words(rules: &CacheRules) -> String {
    let mut words = Vec::new();
    if rules.heuristic.is_some() {
        words.push("freshness is guessed where the origin says nothing".to_owned());
    }
    if !rules.bypass.is_empty() {
        words.push("some requests pass by".to_owned());
    }
    for (time, what) in [
        (rules.stale_while_revalidate, "while it is asked for anew"),
        (rules.stale_if_error, "when the origin fails"),
    ] {
        if !time.is_zero() {
            words.push(format!("stale for {time:?} {what}"));
        }
    }
    words.join(", ")
}

/// A filter that says nothing is none.
fn some(filter: &Setting<FilterPlan>) -> Setting<FilterPlan> {
    match filter {
        Setting::Own(own) if own.options.is_empty() => Setting::Off,
        other => other.clone(),
    }
}

fn filter_in_words(own: &FilterPlan) -> String {
    let hides = (!own.options.deny.is_empty()).then(|| "404 for denied paths".to_owned());
    let rules = (!own.options.rules.is_empty()).then(|| format!("{} rules", own.options.rules.len()));
    let rest = match own.options.default {
        Action::Deny(status) => Some(format!("{} for the rest", status.as_u16())),
        Action::Close => Some("403 and the connection's end for the rest".to_owned()),
        _ => None,
    };
    hides.into_iter().chain(rules).chain(rest).collect::<Vec<_>>().join(", ")
}

/// One layer: the default's, none, or one of its own.
pub(crate) fn layer<T, L: Clone>(
    setting: &Setting<T>,
    default: &Option<L>,
    make: impl FnOnce(&T) -> Option<L>,
) -> Option<L> {
    match setting {
        Setting::Inherit => default.clone(),
        Setting::Off => None,
        Setting::Own(own) => make(own),
    }
}

#[cfg(test)]
mod tests;
