//! From the plan's routes to the table that requests are looked up in.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use http::{HeaderValue, Method, request};
use hyper::ext::Protocol;
use portcullis_conn::{ConnInfo, ConnectProtocol};
use portcullis_listener::Limits;
use portcullis_middleware::{
    ClientIp,
    early_data::{EarlyDataLayer, EarlyPolicy},
    files::ServeFiles,
    rate_limit::{KeyPart, RouteName},
};
use portcullis_proxy::{
    Asked, Lookup, PathMatch, ProxyOptions, ReverseProxy, Router,
    mirror::Mirror,
    rewrite::{RedirectTarget, Rewrite, RewriteError},
    split::Split,
};
use portcullis_telemetry::metrics::HostPlace;
use portcullis_upstream::{Client, discovery::DnsRecords};
use tokio::task::JoinSet;

use crate::{
    PlanFault,
    access_log::route_log,
    act::{Act, Action, Actor, Insecure, Target, Targets},
    clusters::ClusterPart,
    connect::ToEndpoint,
    dispatch::{Routes, Told},
    edge::Shared,
    forward::{Extras, ToCluster},
    h3_cluster::H3Cluster,
    live::{Going, Live},
    order::UserLayer,
    plan::{
        ClusterPlan, DiscoveryPlan, EarlyPlan, ListenerPlan, Plan, RewritePlan, RouteAction, RoutePlan,
        UpstreamHost,
    },
    service::EdgeService,
    to_route::{Changes, ToRoute},
};

/// The table without what a route takes. A route is known by its number.
pub(crate) fn router(plan: &Plan) -> Result<Router<()>, PlanFault> {
    let mut builder = Router::builder();
    for route in &plan.routes {
        builder.add(route.matches.clone(), ())?;
    }
    Ok(builder.build()?)
}

/// Finds what is wrong with routes by themselves, with one another and with the clusters that they name.
pub(crate) fn check(plan: &Plan) -> Result<Router<()>, PlanFault> {
    for route in &plan.routes {
        let mirror = route.mirror.as_ref().map(|mirror| mirror.cluster.as_str());
        for name in route.action.clusters().chain(mirror) {
            let known = plan.clusters.iter().find(|cluster| cluster.name == name);
            let known = known.ok_or_else(|| PlanFault::UnknownCluster(name.to_owned()))?;
            if route.upstream_host == UpstreamHost::Endpoint && mirror != Some(name) {
                one_endpoint(name, Some(known))?;
            }
        }
        rewrite(route)?;
        match &route.action {
            RouteAction::Split { clusters } => {
                Split::new(clusters.iter().map(|(name, weight)| (*weight, name)))?;
            }
            RouteAction::Redirect { to, keep_query, .. } => {
                RedirectTarget::new(to, *keep_query, &route.matches.path)?;
            }
            _ => {}
        }
    }
    router(plan)
}

fn rewrite(route: &RoutePlan) -> Result<Option<Rewrite>, RewriteError> {
    let path = &route.matches.path;
    Ok(match &route.rewrite {
        None => None,
        Some(RewritePlan::Template(text)) => Some(Rewrite::template(text, path)?),
        Some(RewritePlan::Prefix { from, to }) => {
            let from = match (from, path) {
                (Some(from), _) => from,
                (None, PathMatch::Prefix(prefix)) => prefix,
                (None, other) => return Err(RewriteError::NotBelow(other.to_string())),
            };
            Some(Rewrite::replace_prefix(from, to, path)?)
        }
    })
}

/// The name of a cluster's one endpoint as a `Host`.
pub(crate) fn one_endpoint(name: &str, cluster: Option<&ClusterPlan>) -> Result<HeaderValue, PlanFault> {
    let fault = || PlanFault::HostOfEndpoints(name.to_owned());
    let cluster = cluster.ok_or_else(fault)?;
    let address = match (&*cluster.endpoints, &cluster.discovery) {
        ([endpoint], None) if !endpoint.address.starts_with("unix:") => endpoint.address.clone(),
        ([], Some(DiscoveryPlan::Dns { name, records: DnsRecords::Addresses { port }, .. })) => {
            format!("{}:{port}", name.trim_end_matches('.'))
        }
        _ => return Err(fault()),
    };
    // the default port of its scheme is left out (RFC 9110 section 4.2.3)
    let port = if cluster.tls.is_some() { ":443" } else { ":80" };
    HeaderValue::from_str(address.strip_suffix(port).unwrap_or(&address)).map_err(|_| fault())
}

/// The mirrors of a plan's routes, by their numbers. All workers count in the same ones. Those of routes that mirror as `before` go on.
pub(crate) fn mirrors(plan: &Plan, before: Option<&Going<'_>>) -> HashMap<usize, Mirror> {
    let known = |number: usize, route: &RoutePlan| {
        let before = before?;
        let (place, live) = (before.place(number)?, before.live);
        live.mirrors.get(&place).filter(|_| live.plan.routes[place].mirror == route.mirror).cloned()
    };
    let mirror = |(number, route): (usize, &RoutePlan)| {
        let mirror = route.mirror.as_ref()?;
        Some((number, known(number, route).unwrap_or_else(|| Mirror::new(mirror.options))))
    };
    plan.routes.iter().enumerate().filter_map(mirror).collect()
}

/// The clients of one worker: each cluster has one, and so a pool, of the worker's own.
#[derive(Default)]
pub(crate) struct Clients(HashMap<String, ClusterClient>);

struct ClusterClient {
    part: Arc<ClusterPart>,
    names: bool,
    client: Client<ToEndpoint>,
    forward: ToCluster,
    /// Ends when this is dropped.
    _upkeep: JoinSet<()>,
}

impl Clients {
    pub(crate) fn get(&self, name: &str) -> Option<ToCluster> {
        self.0.get(name).map(|client| client.forward.clone())
    }

    /// Keeps those whose clusters go on, makes those that are new, and lets go of the rest: idle connections are closed, and what is
    /// under way has what it needs until it ends. Upkeep runs on the runtime this is called on.
    fn follow(&mut self, shared: &Shared, live: &Live) {
        self.0.retain(|name, client| {
            let goes_on = live.clusters.get(name).is_some_and(|part| client.is_of(part, live));
            if !goes_on {
                client.client.close_idle();
            }
            goes_on
        });
        for (name, part) in &live.clusters {
            if !self.0.contains_key(name) {
                self.0.insert(name.clone(), ClusterClient::new(shared, live, part));
            }
        }
    }
}

impl ClusterClient {
    fn new(shared: &Shared, live: &Live, part: &Arc<ClusterPart>) -> Self {
        let names = needs_names(part, live);
        let client = part.cluster.client_with(part.connector.clone()).with_endpoint_names(names);
        let mut upkeep = JoinSet::new();
        upkeep.spawn({
            let client = client.clone();
            async move { client.maintain().await }
        });
        upkeep.spawn(make_room(shared.limits.clone(), client.clone()));
        let forward = match &part.http3 {
            None => ToCluster::new(client.clone(), part.cluster.name(), Extras::of(part)),
            Some(by) => {
                let client = H3Cluster::new(part.cluster.clone(), by.clone(), names);
                ToCluster::by_http3(client, part.cluster.name(), Extras::of(part))
            }
        };
        Self { part: Arc::clone(part), names, client, forward, _upkeep: upkeep }
    }

    fn is_of(&self, part: &Arc<ClusterPart>, live: &Live) -> bool {
        Arc::ptr_eq(&self.part, part) && self.names == needs_names(part, live)
    }
}

/// Whether the client of a cluster has to tell the endpoints by name.
pub(crate) fn needs_names(part: &ClusterPart, live: &Live) -> bool {
    live.log_sink.is_some() || part.sticky.is_some()
}

/// The table of one worker, which goes by its own `clients`.
pub(crate) fn table(shared: &Shared, live: &Live, clients: &mut Clients) -> Result<Routes, PlanFault> {
    clients.follow(shared, live);
    let clusters: HashMap<&str, ToCluster> =
        clients.0.iter().map(|(name, client)| (name.as_str(), client.forward.clone())).collect();
    let options = ProxyOptions::new(shared.tunnels.clone())
        .with_trust(Arc::clone(&live.trust))
        .with_forwarded(live.plan.forwarded)
        .with_via(live.plan.via.clone())
        .with_upgrades(live.plan.upgrades.protocols.clone())
        .with_relay(live.plan.upgrades.relay);
    let plain = |(name, cluster): (&&'_ str, &ToCluster)| {
        let upstream = ToRoute::new(cluster.clone(), Changes::default());
        ((*name).to_owned(), ReverseProxy::new(options.clone(), upstream))
    };
    let plain = clusters.iter().map(plain).collect();
    let worker = Worker { live, clusters, plain, options };
    let targets = live.plan.routes.iter().enumerate();
    let targets = targets.map(|(number, route)| worker.target(number, route)).collect::<Result<_, _>>()?;
    let targets = Arc::new(Targets {
        // a clone of its own: what regular expressions remember is not shared with other workers
        router: live.router.clone(),
        targets,
        connect: live.connect.clone(),
        errors: Arc::new(live.plan.errors.clone()),
    });
    let by_name = |name: &str| worker.clusters.get(name).cloned();
    let chains = live.chains.routes.iter().enumerate();
    let chains = chains.map(|(number, chain)| {
        let actor = |act| Actor { targets: Arc::clone(&targets), act };
        // layers of the program may change what is asked for
        match (&*shared.layers, chain.is_empty()) {
            ([], true) => None,
            ([], false) => Some(chain.around(actor(Act::Route(number)), by_name)),
            (layers, _) => {
                Some(chain.around(with_layers(layers, actor(Act::LookUp(Insecure::Route))), by_name))
            }
        }
    });
    let chains = chains.collect();
    let preflights = live.chains.routes.iter().map(|chain| chain.admission.cors.is_some()).collect();
    let asked = live.chains.default.admission.forward_auth.as_ref().and_then(|plan| by_name(&plan.cluster));
    let by_route = counts_by_route(&live.plan);
    let told = live.plan.routes.iter().map(|route| Told {
        name: by_route.then(|| RouteName(route.label().into())),
        log: live.log_sink.as_ref().filter(|log| log.wants_slot()).map(|_| route_log(route)),
        host: route.matches.host.as_deref().map_or(HostPlace::OTHER, |host| live.hosts.place(host)),
    });
    let (told, hosts) = (told.collect(), Arc::clone(&live.hosts));
    Ok(Routes { targets, chains, preflights, told, hosts, asked })
}

/// Whether a rule counts by route, so that requests have to be told theirs.
fn counts_by_route(plan: &Plan) -> bool {
    plan.rate_rules().any(|rule| rule.key.alternatives().flatten().any(|part| *part == KeyPart::Route))
}

/// The program's own layers around a service. The first one given is the outermost, as in tower's `ServiceBuilder`.
pub(crate) fn with_layers(layers: &[UserLayer], inside: Actor) -> EdgeService {
    layers.iter().rev().fold(EdgeService::new(inside), |service, layer| layer(service))
}

struct Worker<'s> {
    live: &'s Live,
    clusters: HashMap<&'s str, ToCluster>,
    /// What routes that change nothing have in common, by the clusters' names.
    plain: HashMap<String, ReverseProxy<ToRoute>>,
    options: ProxyOptions,
}

impl Worker<'_> {
    fn cluster(&self, name: &str) -> Result<ToCluster, PlanFault> {
        self.clusters.get(name).cloned().ok_or_else(|| PlanFault::UnknownCluster(name.to_owned()))
    }

    fn proxy(
        &self,
        number: usize,
        route: &RoutePlan,
        cluster: &str,
    ) -> Result<ReverseProxy<ToRoute>, PlanFault> {
        let host = match &route.upstream_host {
            UpstreamHost::Keep => None,
            UpstreamHost::Value(host) => Some(host.clone()),
            UpstreamHost::Endpoint => {
                let known = self.live.plan.clusters.iter().find(|known| known.name == cluster);
                Some(one_endpoint(cluster, known)?)
            }
        };
        let mirror = match (&route.mirror, self.live.mirrors.get(&number)) {
            (Some(plan), Some(mirror)) => Some((mirror.clone(), self.cluster(&plan.cluster)?)),
            _ => None,
        };
        let changes =
            Changes { rewrite: rewrite(route)?, host, request: route.request_fields.clone(), mirror };
        if changes.is_empty()
            && let Some(plain) = self.plain.get(cluster)
        {
            return Ok(plain.clone());
        }
        let upstream = ToRoute::new(self.cluster(cluster)?, changes);
        Ok(ReverseProxy::new(self.options.clone(), upstream))
    }

    fn target(&self, number: usize, route: &RoutePlan) -> Result<Target, PlanFault> {
        Ok(match &route.action {
            RouteAction::Forward { cluster } => Target::Forward(self.proxy(number, route, cluster)?),
            RouteAction::Split { clusters } => {
                let shares = clusters
                    .iter()
                    .map(|(name, weight)| Ok((*weight, self.proxy(number, route, name)?)))
                    .collect::<Result<Vec<_>, PlanFault>>()?;
                Target::Split(Split::new(shares)?)
            }
            RouteAction::Redirect { to, status, keep_query } => {
                let to = RedirectTarget::new(to, *keep_query, &route.matches.path)?;
                Target::Answer(Action::Redirect { to, status: *status })
            }
            RouteAction::Respond { status, body } => {
                let text = HeaderValue::from_static("text/plain; charset=utf-8");
                let content_type = route.content_type.clone().unwrap_or(text);
                let body = body.clone().into();
                Target::Answer(Action::Respond { status: *status, content_type, body })
            }
            RouteAction::Files(options) => Target::Files(ServeFiles::new(options.clone())),
        })
    }
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

/// What the connection says of a request, for those routes that ask: who the client is, as trusted proxies tell, and whether it
/// came encrypted.
pub(crate) fn connection(extensions: &http::Extensions) -> (Option<IpAddr>, bool) {
    let info = extensions.get::<Arc<ConnInfo>>();
    let told = extensions.get::<ClientIp>().map(|ClientIp(ip)| *ip);
    (told.or_else(|| info.map(|info| info.client_ip())), info.is_some_and(|info| info.is_secure()))
}

/// What happens to requests in early data: as their route says.
pub(crate) fn early_data(live: &Live, listener: &ListenerPlan) -> EarlyDataLayer {
    let layer = EarlyDataLayer::new().with_wait(listener.http.handshake_timeout);
    if live.plan.routes.iter().all(|route| route.early_data == EarlyPlan::ByMethod) {
        return layer;
    }
    let routes = live.router.clone();
    let plans: Vec<EarlyPlan> = live.plan.routes.iter().map(|route| route.early_data).collect();
    let connects = live.connect.is_some();
    layer.with_policy(move |request: &request::Parts| early_policy(&routes, &plans, connects, request))
}

/// `connects`: whether CONNECT is answered beside the routes. A tunnel is never opened by what may be a replay, whatever they say.
fn early_policy(
    routes: &Router<()>,
    plans: &[EarlyPlan],
    connects: bool,
    request: &request::Parts,
) -> EarlyPolicy {
    let extended = request.extensions.get::<Protocol>().is_some()
        || request.extensions.get::<ConnectProtocol>().is_some();
    if connects && request.method == Method::CONNECT && !extended {
        return EarlyPolicy::by_method(request);
    }
    let (client, secure) = connection(&request.extensions);
    let asked = Asked::of_parts(request).with_connection(client, secure);
    let plan = match routes.lookup(&asked) {
        Lookup::Found(found) => plans.get(found.number).copied().unwrap_or_default(),
        _ => EarlyPlan::default(),
    };
    match plan {
        EarlyPlan::ByMethod => EarlyPolicy::by_method(request),
        EarlyPlan::Serve => EarlyPolicy::Serve,
        EarlyPlan::Hold => EarlyPolicy::Hold,
        EarlyPlan::Refuse => EarlyPolicy::Refuse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_tunnel_is_opened_by_what_may_be_a_replay() {
        let mut plan = Plan::default();
        let respond = RouteAction::Respond { status: http::StatusCode::OK, body: String::new() };
        plan.routes.push(RoutePlan::new(None, respond));
        let routes = router(&plan).unwrap();
        for (method, uri, connects, expected) in [
            ("GET", "/", true, EarlyPolicy::Serve),
            ("CONNECT", "a.test:443", true, EarlyPolicy::Hold),
            // the route's affair, which answers 501
            ("CONNECT", "a.test:443", false, EarlyPolicy::Serve),
        ] {
            let (request, ()) =
                http::Request::builder().method(method).uri(uri).body(()).unwrap().into_parts();
            let found = early_policy(&routes, &[EarlyPlan::Serve], connects, &request);
            assert_eq!(found, expected, "{method} {uri} {connects}");
        }
    }
}
