//! What the layers of a generation have counted. What a reload lets go of is carried on: whoever reads a counter takes it for a restart where it falls.

use std::{collections::BTreeMap, sync::Arc};

use portcullis_middleware::rate_limit::RuleCounts;

use crate::{access_log::LogSink, live::Live};

/// Sums since the start. Names are those of the plan, so there are as many as it has; one that is gone is forgotten.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counted {
    /// By the names of the rules of rate limits.
    pub(crate) rates: BTreeMap<Arc<str>, RuleCounts>,
    /// Requests that rate limits refused.
    pub(crate) rate_limited: u64,
    /// Requests that filters denied.
    pub(crate) denied: u64,
    /// Requests without a place, by whose places they are.
    pub(crate) without_place: BTreeMap<Arc<str>, u64>,
    /// Lines that the access log dropped.
    pub(crate) lines_dropped: u64,
}

impl Counted {
    /// By the layers that there are.
    fn now(live: &Live) -> Self {
        let places = live.chains.concurrency().into_iter();
        Self {
            rates: live.chains.rates(),
            rate_limited: live.chains.rate_limited(),
            denied: live.parts.denied(),
            without_place: places.map(|(name, stats)| (name, stats.refused)).collect(),
            lines_dropped: live.log_sink.as_ref().map_or(0, LogSink::dropped),
        }
    }

    /// By them and those before them.
    pub(crate) fn of(live: &Live) -> Self {
        let Self { mut rates, mut without_place, rate_limited, denied, lines_dropped } = Self::now(live);
        let gone = &live.gone;
        for (name, counts) in &mut rates {
            let before = gone.rates.get(name);
            each(counts, before, |now, before| now + before);
        }
        for (name, count) in &mut without_place {
            *count += gone.without_place.get(name).unwrap_or(&0);
        }
        Self {
            rates,
            without_place,
            rate_limited: rate_limited + gone.rate_limited,
            denied: denied + gone.denied,
            lines_dropped: lines_dropped + gone.lines_dropped,
        }
    }

    /// What of `before` a generation that takes its place does not count itself.
    pub(crate) fn gone(before: &Live, after: &Live) -> Self {
        // in this order: what is counted meanwhile by a layer that goes on is rather there twice than missing
        let Self { mut rates, mut without_place, rate_limited, denied, lines_dropped } = Self::now(after);
        let total = Self::of(before);
        for (name, counts) in &mut rates {
            each(counts, total.rates.get(name), |now, total| total.saturating_sub(now));
        }
        for (name, count) in &mut without_place {
            *count = total.without_place.get(name).unwrap_or(&0).saturating_sub(*count);
        }
        Self {
            rates,
            without_place,
            rate_limited: total.rate_limited.saturating_sub(rate_limited),
            denied: total.denied.saturating_sub(denied),
            lines_dropped: total.lines_dropped.saturating_sub(lines_dropped),
        }
    }
}

/// Each count of a rule, by what it is and what the other one is.
fn each(counts: &mut RuleCounts, other: Option<&RuleCounts>, of: impl Fn(u64, u64) -> u64) {
    let nothing = RuleCounts::default();
    let other = other.unwrap_or(&nothing);
    counts.allowed = of(counts.allowed, other.allowed);
    counts.refused = of(counts.refused, other.refused);
    counts.dry_run = of(counts.dry_run, other.dry_run);
    counts.unavailable = of(counts.unavailable, other.unavailable);
    counts.forgotten = of(counts.forgotten, other.forgotten);
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, time::Duration};

    use http::Request;
    use portcullis_middleware::{
        concurrency::ConcurrencyOptions,
        filter::FilterOptions,
        rate_limit::{RateLimitOptions, RateRule},
    };
    use portcullis_proxy::Tunnels;

    use super::*;
    use crate::{
        Body, EdgeService,
        plan::{Plan, RouteAction, RoutePlan, Setting},
    };

    #[tokio::test]
    async fn no_counter_falls_when_a_layer_goes() {
        let tunnels = Tunnels::new(1);
        let rule = RateRule::new(NonZeroU32::MIN, Duration::from_secs(3600)).with_name("all");
        let mut plan = Plan::default();
        plan.chain.filter = Setting::Own(FilterOptions::default().with_deny(["/no"]).into());
        plan.chain.rate_limit = Setting::Own(RateLimitOptions::new(rule));
        plan.chain.concurrency = Setting::Own(ConcurrencyOptions::new(1));
        let respond = RouteAction::Respond { status: http::StatusCode::OK, body: String::new() };
        let mut own = RoutePlan::new(None, respond);
        own.name = Some("own".to_owned());
        own.chain.rate_limit = plan.chain.rate_limit.clone();
        own.chain.concurrency = plan.chain.concurrency.clone();
        plan.routes.push(own);
        let first = Live::build(plan.clone(), &tunnels, None).unwrap();
        let places = first.chains.concurrency();
        assert!(places.keys().map(|name| &**name).eq(["edge", "own"]));
        for chain in [&first.chains.default, &first.chains.routes[0]] {
            let service = chain.around(
                EdgeService::new(tower::service_fn(|_| async { Ok(http::Response::new(Body::empty())) })),
                |_| None,
            );
            for _ in 0..3 {
                service.send(Request::get("/no").body(Body::empty()).unwrap()).await.unwrap();
            }
        }
        let numbers = |live: &Live| {
            let counted = Counted::of(live);
            let rule = counted.rates.get("all").cloned().unwrap_or_default();
            (counted.denied, counted.rate_limited, rule.allowed, rule.refused)
        };
        let before = numbers(&first);
        assert_eq!(before, (2, 4, 2, 4));
        // the route's own go, the edge's filter too; then everything but a new rule of the name
        plan.routes.clear();
        plan.chain.filter = Setting::Inherit;
        let mut second = Live::build(plan.clone(), &tunnels, Some(&first)).unwrap();
        second.gone = Counted::gone(&first, &second);
        assert_eq!(numbers(&second), before);
        let rule = RateRule::new(NonZeroU32::MIN, Duration::from_secs(60)).with_name("all");
        plan.chain.rate_limit = Setting::Own(RateLimitOptions::new(rule));
        let mut third = Live::build(plan.clone(), &tunnels, Some(&second)).unwrap();
        third.gone = Counted::gone(&second, &third);
        assert_eq!(numbers(&third), before);
        // names that are gone are forgotten, sums are not
        plan.chain.rate_limit = Setting::Inherit;
        let mut fourth = Live::build(plan, &tunnels, Some(&third)).unwrap();
        fourth.gone = Counted::gone(&third, &fourth);
        assert_eq!(numbers(&fourth), (2, 4, 0, 0));
        assert!(fourth.gone.rates.is_empty());
    }

    #[tokio::test]
    async fn what_a_place_refused_stays_counted_while_its_name_is_there() {
        let tunnels = Tunnels::new(1);
        let mut plan = Plan::default();
        for host in ["a.test", "b.test"] {
            let respond = RouteAction::Respond { status: http::StatusCode::OK, body: String::new() };
            let mut route = RoutePlan::new(Some(host), respond);
            route.name = Some("own".to_owned());
            route.chain.concurrency = Setting::Own(ConcurrencyOptions::new(1).with_queue(0));
            plan.routes.push(route);
        }
        let first = Live::build(plan.clone(), &tunnels, None).unwrap();
        for chain in &first.chains.routes {
            let service = chain.around(
                EdgeService::new(tower::service_fn(|_| {
                    std::future::pending::<Result<http::Response<Body>, std::convert::Infallible>>()
                })),
                |_| None,
            );
            let held = tokio::spawn(service.send(Request::get("/").body(Body::empty()).unwrap()));
            tokio::task::yield_now().await;
            let refused = service.send(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
            assert_eq!(refused.status(), 503);
            held.abort();
        }
        let refused = |live: &Live| Counted::of(live).without_place;
        assert_eq!(refused(&first), BTreeMap::from([("own".into(), 2)]));
        // one of the two goes, and then the name
        plan.routes.pop();
        let mut second = Live::build(plan.clone(), &tunnels, Some(&first)).unwrap();
        second.gone = Counted::gone(&first, &second);
        assert_eq!(refused(&second), refused(&first));
        plan.routes.clear();
        let mut third = Live::build(plan, &tunnels, Some(&second)).unwrap();
        third.gone = Counted::gone(&second, &third);
        assert!(refused(&third).is_empty());
    }
}
