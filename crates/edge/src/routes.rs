//! From the plan's routes to the table that requests are looked up in.

use std::sync::Arc;

use portcullis_proxy::{ProxyOptions, ReverseProxy, Router, RouterBuilder};

use crate::{
    PlanFault,
    dispatch::Target,
    edge::Shared,
    forward::ToCluster,
    plan::{Plan, RouteAction, RoutePlan},
};

/// The table without what a route takes, for checking.
pub(crate) fn builder(plan: &Plan, known: impl Fn(&str) -> bool) -> Result<Router<()>, PlanFault> {
    build(plan, |route| match &route.action {
        RouteAction::Forward { cluster } if !known(cluster) => {
            Err(PlanFault::UnknownCluster(cluster.clone()))
        }
        _ => Ok(()),
    })
}

/// The table of one worker: each cluster gets a client, and so a pool, of the worker's own. The clients' upkeep runs
/// on the runtime this is called on, until it ends.
pub(crate) fn table(shared: &Shared) -> Result<Router<Target>, PlanFault> {
    let mut proxies = std::collections::HashMap::new();
    let options = ProxyOptions::new(shared.tunnels.clone()).with_trust(Arc::clone(&shared.trust));
    for (name, cluster) in &shared.clusters {
        let client = cluster.client().with_endpoint_names(shared.log_sink.is_some());
        tokio::spawn({
            let client = client.clone();
            async move { client.maintain().await }
        });
        proxies.insert(name.as_str(), ReverseProxy::new(options.clone(), ToCluster::new(client)));
    }
    build(&shared.plan, |route| {
        Ok(match &route.action {
            RouteAction::Forward { cluster } => Target::Forward(
                proxies
                    .get(cluster.as_str())
                    .cloned()
                    .ok_or_else(|| PlanFault::UnknownCluster(cluster.clone()))?,
            ),
            RouteAction::Redirect { to, status } => Target::Redirect { to: to.clone(), status: *status },
            RouteAction::Respond { status, body } => {
                Target::Respond { status: *status, body: body.as_str().into() }
            }
        })
    })
}

fn build<T>(
    plan: &Plan,
    mut target: impl FnMut(&RoutePlan) -> Result<T, PlanFault>,
) -> Result<Router<T>, PlanFault> {
    let mut builder: RouterBuilder<T> = Router::builder();
    for route in &plan.routes {
        let target = target(route)?;
        builder = builder.route(route.host.as_deref(), &route.path, target)?;
    }
    Ok(builder.build())
}
