//! From the plan's clusters to what all workers share of them.

use std::{collections::HashMap, io, sync::Arc};

use portcullis_upstream::{
    Cluster, Destination, Endpoint, StickyCookie,
    health::{Checker, HealthOptions},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    PlanFault,
    connect::ToEndpoint,
    plan::{ClusterPlan, Plan},
};

/// A cluster and how its endpoints are connected to.
#[derive(Clone, Debug)]
pub(crate) struct ClusterPart {
    pub(crate) cluster: Cluster,
    pub(crate) connector: ToEndpoint,
    pub(crate) health: Option<(HealthOptions, ToEndpoint)>,
    pub(crate) sticky: Option<Arc<StickyCookie>>,
}

impl ClusterPart {
    /// Watches over its endpoints until `stop`, where the plan says so.
    pub(crate) fn watch(&self, stop: &CancellationToken, serving: &mut JoinSet<()>) -> Result<(), PlanFault> {
        let Some((options, connector)) = &self.health else { return Ok(()) };
        let (cluster, connector) = (self.cluster.clone(), connector.clone());
        let connect = move |endpoint: &Endpoint| {
            let connecting = connector.clone().connect(Destination::from(endpoint));
            async move { connecting.await.map_err(io::Error::other) }
        };
        let name = Arc::clone(self.cluster.name());
        let checker = Checker::new(name, options.clone(), move || cluster.endpoints(), connect)
            .map_err(|source| PlanFault::Health { cluster: self.cluster.name().to_string(), source })?;
        let stop = stop.clone();
        serving.spawn(async move {
            let _ = stop.run_until_cancelled(checker.run()).await;
        });
        Ok(())
    }
}

/// Finds what contradicts itself; reads nothing.
pub(crate) fn check(plan: &Plan) -> Result<(), PlanFault> {
    let mut names = std::collections::HashSet::new();
    for wanted in &plan.clusters {
        cluster(wanted)?;
        if let Some(health) = &wanted.health {
            health.validate().map_err(|source| PlanFault::Health { cluster: wanted.name.clone(), source })?;
        }
        sticky(wanted)?;
        if !names.insert(&wanted.name) {
            return Err(PlanFault::DuplicateCluster(wanted.name.clone()));
        }
    }
    Ok(())
}

/// Makes all of them. Blocks while it reads the files of their TLS.
pub(crate) fn build(plan: &Plan) -> Result<HashMap<String, ClusterPart>, PlanFault> {
    plan.clusters
        .iter()
        .map(|wanted| {
            let health = match &wanted.health {
                None => None,
                Some(health) => Some((health.clone(), ToEndpoint::for_checks(wanted, &health.check)?)),
            };
            let part = ClusterPart {
                cluster: cluster(wanted)?,
                connector: ToEndpoint::new(wanted)?,
                health,
                sticky: sticky(wanted)?.map(Arc::new),
            };
            Ok((wanted.name.clone(), part))
        })
        .collect()
}

fn sticky(wanted: &ClusterPlan) -> Result<Option<StickyCookie>, PlanFault> {
    let Some(plan) = &wanted.sticky else { return Ok(None) };
    StickyCookie::new(plan.name.as_deref(), plan.key.as_ref(), plan.secure, plan.max_age)
        .map(Some)
        .map_err(|source| PlanFault::Sticky { cluster: wanted.name.clone(), source })
}

fn cluster(wanted: &ClusterPlan) -> Result<Cluster, PlanFault> {
    let endpoints = wanted
        .endpoints
        .iter()
        .map(|endpoint| endpoint.endpoint())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| PlanFault::Endpoint { cluster: wanted.name.clone(), source })?;
    let mut options = wanted.options.clone();
    // a header names one client, and the connection behind it is for no other
    options.connection_per_client |= wanted.proxy_header.is_some();
    options.prefer_endpoints |= wanted.sticky.is_some();
    Ok(Cluster::new(wanted.name.as_str(), endpoints, options)?)
}
