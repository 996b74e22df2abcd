//! From the plan's clusters to what all workers share of them.

use std::{collections::HashMap, io, sync::Arc};

use portcullis_upstream::{
    Cluster, Destination, Endpoint, StickyCookie,
    discovery::{self, DnsError, DnsSource, Empty, FileSource, Found, Resolve},
    health::{Checker, HealthOptions},
};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    PlanFault,
    connect::ToEndpoint,
    h3_cluster::ByHttp3,
    live::Live,
    plan::{ClusterPlan, DiscoveryPlan, Plan},
};

/// A cluster and how its endpoints are connected to.
#[derive(Clone, Debug)]
pub(crate) struct ClusterPart {
    pub(crate) cluster: Cluster,
    pub(crate) connector: ToEndpoint,
    pub(crate) http3: Option<ByHttp3>,
    pub(crate) source: Option<Source>,
    pub(crate) health: Option<(HealthOptions, ToEndpoint)>,
    pub(crate) sticky: Option<Arc<StickyCookie>>,
}

/// Where the endpoints of a cluster are found.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    File(FileSource),
    Dns(Arc<DnsSource>),
}

impl Resolve for Source {
    type Error = String;

    async fn resolve(&self) -> Result<Found, String> {
        match self {
            Self::File(source) => source.resolve().await.map_err(|error| error.to_string()),
            Self::Dns(source) => source.resolve().await.map_err(|error| error.to_string()),
        }
    }

    fn retry_after(&self, failures: u32) -> std::time::Duration {
        match self {
            Self::File(source) => source.retry_after(failures),
            Self::Dns(source) => source.retry_after(failures),
        }
    }
}

impl ClusterPart {
    /// Follows the source of its endpoints and watches over them until `stop`, where the plan says so. What does that is in the set, and here.
    pub(crate) fn watch(
        &self,
        stop: &CancellationToken,
        watching: &mut JoinSet<()>,
    ) -> Result<Vec<AbortHandle>, PlanFault> {
        let mut handles = Vec::new();
        if let Some(source) = self.source.clone() {
            let (cluster, stop) = (self.cluster.clone(), stop.clone());
            handles.push(watching.spawn(async move {
                let apply = |endpoints| cluster.replace_endpoints(endpoints);
                let follow = discovery::follow(cluster.name(), source, Empty::Keep, apply);
                let _ = stop.run_until_cancelled(follow).await;
            }));
        }
        let Some((options, connector)) = &self.health else { return Ok(handles) };
        let (cluster, connector) = (self.cluster.clone(), connector.clone());
        let connect = move |endpoint: &Endpoint| {
            let connecting = connector.clone().connect(Destination::from(endpoint));
            async move { connecting.await.map_err(io::Error::other) }
        };
        let name = Arc::clone(self.cluster.name());
        let checker = Checker::new(name, options.clone(), move || cluster.endpoints(), connect)
            .map_err(|source| PlanFault::Health { cluster: self.cluster.name().to_string(), source })?;
        let stop = stop.clone();
        handles.push(watching.spawn(async move {
            let _ = stop.run_until_cancelled(checker.run()).await;
        }));
        Ok(handles)
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
        http3(wanted)?;
        if !names.insert(&wanted.name) {
            return Err(PlanFault::DuplicateCluster(wanted.name.clone()));
        }
    }
    Ok(())
}

/// Makes all of them, but those that are as they were `before`, which go on with their pools, health and counters. Blocks while it reads the files
/// of their TLS and of their endpoints.
pub(crate) fn build(
    plan: &Plan,
    before: Option<&Live>,
) -> Result<HashMap<String, Arc<ClusterPart>>, PlanFault> {
    let known = |wanted: &ClusterPlan| {
        let before = before?;
        before.plan.clusters.contains(wanted).then(|| before.clusters.get(&wanted.name).cloned())?
    };
    plan.clusters
        .iter()
        .map(|wanted| {
            if let Some(part) = known(wanted) {
                return Ok((wanted.name.clone(), part));
            }
            let health = match &wanted.health {
                None => None,
                Some(health) => Some((health.clone(), ToEndpoint::for_checks(wanted, &health.check)?)),
            };
            let (cluster, source) = (cluster(wanted)?, source(wanted)?);
            if let Some(Source::File(file)) = &source {
                first_list(&cluster, file)?;
            }
            let part = ClusterPart {
                cluster,
                source,
                connector: ToEndpoint::new(wanted)?,
                http3: ByHttp3::new(wanted)?,
                health,
                sticky: sticky(wanted)?.map(Arc::new),
            };
            Ok((wanted.name.clone(), Arc::new(part)))
        })
        .collect()
}

/// Where its endpoints are found.
fn source(wanted: &ClusterPlan) -> Result<Option<Source>, PlanFault> {
    let fault = |source: DnsError| PlanFault::Discovery { cluster: wanted.name.clone(), source };
    Ok(match &wanted.discovery {
        None => None,
        Some(DiscoveryPlan::File { path, interval }) => {
            Some(Source::File(FileSource::new(path).with_interval(*interval)))
        }
        Some(DiscoveryPlan::Dns { name, records, options }) => {
            let source = DnsSource::new(name, *records, options.clone()).map_err(fault)?;
            Some(Source::Dns(Arc::new(source)))
        }
    })
}

/// The endpoints to begin with. A file that says nothing yet may do so later, and no request waits for that.
fn first_list(cluster: &Cluster, source: &FileSource) -> Result<(), PlanFault> {
    let endpoints = match source.read() {
        Ok(found) => found.endpoints,
        Err(error) => {
            warn!(cluster = %cluster.name(), %error, "the cluster begins without endpoints");
            Vec::new()
        }
    };
    Ok(cluster.replace_endpoints(endpoints)?)
}

/// RFC 9114 section 3.2: HTTP/3 is spoken over TLS, to an address; a unix socket is none that QUIC knows.
fn http3(wanted: &ClusterPlan) -> Result<(), PlanFault> {
    if !wanted.http3 {
        return Ok(());
    }
    if wanted.tls.is_none() {
        return Err(PlanFault::Http3WithoutTls { cluster: wanted.name.clone() });
    }
    let over = wanted.endpoints.iter().any(|endpoint| endpoint.address.starts_with("unix:"));
    if over || wanted.proxy_header.is_some() {
        return Err(PlanFault::Http3Unfit { cluster: wanted.name.clone() });
    }
    Ok(())
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
    match (&wanted.discovery, endpoints.is_empty()) {
        (None, _) => Ok(Cluster::new(wanted.name.as_str(), endpoints, options)?),
        (Some(_), true) => Ok(Cluster::discovered(wanted.name.as_str(), options)),
        (Some(_), false) => Err(PlanFault::EndpointsBesideDiscovery(wanted.name.clone())),
    }
}
