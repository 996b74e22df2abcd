//! From the plan's clusters to what all workers share of them.

use std::collections::HashMap;

use portcullis_upstream::Cluster;

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
}

/// Finds what contradicts itself; reads nothing.
pub(crate) fn check(plan: &Plan) -> Result<(), PlanFault> {
    let mut names = std::collections::HashSet::new();
    for wanted in &plan.clusters {
        cluster(wanted)?;
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
            let part = ClusterPart { cluster: cluster(wanted)?, connector: ToEndpoint::new(wanted)? };
            Ok((wanted.name.clone(), part))
        })
        .collect()
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
    Ok(Cluster::new(wanted.name.as_str(), endpoints, options)?)
}
