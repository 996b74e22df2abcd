//! From the plan's routes to the table that requests are looked up in.

use std::{sync::Arc, time::Duration};

use portcullis_listener::Limits;
use portcullis_middleware::early_data::{EarlyDataLayer, EarlyPolicy};
use portcullis_proxy::{ProxyOptions, ReverseProxy, Router, RouterBuilder, host};
use portcullis_upstream::Client;

use crate::{
    PlanFault,
    connect::ToEndpoint,
    dispatch::Target,
    edge::Shared,
    forward::ToCluster,
    plan::{EarlyPlan, ListenerPlan, Plan, RouteAction, RoutePlan},
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
    for (name, part) in &shared.clusters {
        let client =
            part.cluster.client_with(part.connector.clone()).with_endpoint_names(shared.log_sink.is_some());
        tokio::spawn({
            let client = client.clone();
            async move { client.maintain().await }
        });
        tokio::spawn(make_room(shared.limits.clone(), client.clone()));
        let per_client = part.cluster.options().connection_per_client;
        let upstream = ToCluster::new(client, per_client);
        proxies.insert(name.as_str(), ReverseProxy::new(options.clone(), upstream));
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

/// Gives descriptors back while accepting rests for want of them: idle connections to upstreams must not keep clients out.
async fn make_room(limits: Limits, client: Client<ToEndpoint>) {
    let mut before = limits.stats().paused;
    loop {
        tokio::time::sleep(LOOK_FOR_SHORTAGE).await;
        let paused = limits.stats().paused;
        if paused > before {
            client.close_idle();
        }
        before = paused;
    }
}

/// As long as a pause of accepting.
const LOOK_FOR_SHORTAGE: Duration = Duration::from_millis(500);

/// What happens to requests in early data: as their route says.
pub(crate) fn early_data(shared: &Shared, listener: &ListenerPlan) -> EarlyDataLayer {
    let layer = EarlyDataLayer::new().with_wait(listener.http.handshake_timeout);
    if shared.plan.routes.iter().all(|route| route.early_data == EarlyPlan::ByMethod) {
        return layer;
    }
    // the plan was checked: it has no route that can't be
    let Ok(routes) = build(&shared.plan, |route| Ok(route.early_data)) else { return layer };
    layer.with_policy(move |request| {
        let host = host::of_parts(request).unwrap_or_default();
        match routes.find(host, request.uri.path()).copied().unwrap_or_default() {
            EarlyPlan::ByMethod => EarlyPolicy::by_method(request),
            EarlyPlan::Serve => EarlyPolicy::Serve,
            EarlyPlan::Hold => EarlyPolicy::Hold,
            EarlyPlan::Refuse => EarlyPolicy::Refuse,
        }
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
