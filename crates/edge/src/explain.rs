//! What becomes of a request, told without sending one.

use std::{fmt, net::IpAddr};

use http::{Method, Uri};
use portcullis_middleware::access_log::Sampling;
use portcullis_proxy::{Asked, router::Explanation};

use crate::{
    PlanFault, chain, parts,
    plan::{ListenerMode, ListenerPlan, PlainHttp, Plan, RouteAction, RoutePlan, Setting},
    routes::router,
};

/// Why [`Plan::explain`] says nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExplainError {
    /// The routes are not sound.
    #[error("the routes are not sound")]
    Plan(#[from] PlanFault),
    /// [`Plan::paths`] refuse the path.
    #[error("the path is refused")]
    Path(#[from] portcullis_proxy::path::PathError),
    /// The URI has a host.
    #[error("the URI has no host")]
    NoHost,
}

/// What becomes of plain HTTP, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Insecure {
    Served,
    Redirected,
    Refused,
}

/// Which route a request has and why, and what it passes on its way. `Display` shows it in lines.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Explained {
    /// The routes that were looked at.
    pub route: Explanation,
    /// What the request passes, outermost first. The response passes it the other way round.
    pub steps: Vec<Step>,
    /// What is done with it at last.
    pub action: String,
}

/// One layer that a request passes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Step {
    /// What it is called.
    pub name: &'static str,
    /// Who says so.
    pub from: StepFrom,
    /// What it does, in a few words; empty where there is no more to say than its name does.
    pub what: String,
}

/// Where a layer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StepFrom {
    /// It is always there, or stands for all routes.
    Edge,
    /// The route has its own.
    Route,
    /// The route has none, though the edge has one.
    Off,
}

impl Step {
    /// One that every request passes.
    fn edge(name: &'static str, what: impl Into<String>) -> Self {
        Self { name, from: StepFrom::Edge, what: what.into() }
    }

    /// One that a route adds, and nobody else.
    pub(crate) fn of_route(name: &'static str, what: &str) -> Self {
        Self { name, from: StepFrom::Route, what: what.to_owned() }
    }

    /// One of a chain; `None` where there is none.
    pub(crate) fn of<T>(
        name: &'static str,
        default: &Setting<T>,
        route: &Setting<T>,
        what: impl FnOnce(&T) -> String,
    ) -> Option<Self> {
        let from = match route {
            Setting::Inherit => StepFrom::Edge,
            Setting::Off => {
                return default.own().map(|_| Self { name, from: StepFrom::Off, what: String::new() });
            }
            Setting::Own(_) => StepFrom::Route,
        };
        route.or(default).map(|own| Self { name, from, what: what(own) })
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.route)?;
        writeln!(f, "passes, outermost first:")?;
        for Step { name, from, what } in &self.steps {
            let from = match from {
                StepFrom::Edge => "",
                StepFrom::Route => " (the route's)",
                StepFrom::Off => " (not here: the route says \"off\")",
            };
            let colon = if what.is_empty() { "" } else { ": " };
            writeln!(f, "  {name}{from}{colon}{what}")?;
        }
        writeln!(f, "then: {}", self.action)
    }
}

impl Plan {
    /// What becomes of a request without fields: its method, an absolute URI, and the client's address if that matters.
    pub fn explain(
        &self,
        method: &Method,
        uri: &Uri,
        client: Option<IpAddr>,
    ) -> Result<Explained, ExplainError> {
        let host = uri.authority().ok_or(ExplainError::NoHost)?.as_str();
        let router = router(self)?;
        let target = uri.path_and_query().map(|target| self.paths.apply(target)).transpose()?;
        let target = target.as_deref();
        let secure = uri.scheme_str() == Some("https");
        let asked = Asked::new(host, target.map_or("/", |target| target.path()))
            .with_query(target.and_then(|target| target.query()))
            .with_method(method)
            .with_connection(client, secure);
        let route = router.explain(&asked);
        let insecure = if secure { Insecure::Served } else { self.insecure() };
        if insecure == Insecure::Refused {
            let action = "closed: no listener takes plain HTTP".to_owned();
            return Ok(Explained { route, steps: Vec::new(), action });
        }
        // what is redirected takes no route
        let redirected = insecure == Insecure::Redirected;
        let own = route.route().filter(|_| !redirected).and_then(|number| self.routes.get(number));
        let mut steps = self.before_routes(own);
        steps.extend(match redirected {
            true => chain::steps_of_redirect(self),
            false => chain::steps(self, own),
        });
        let action = match own.map(|route| &route.action) {
            _ if redirected => "redirected to HTTPS".to_owned(),
            Some(action) => describe(action),
            None => "answered by the edge".to_owned(),
        };
        Ok(Explained { route, steps, action })
    }

    /// What the listeners that do the most for it do with plain HTTP.
    fn insecure(&self) -> Insecure {
        let of = |listener: &ListenerPlan| match listener.mode {
            ListenerMode::Http | ListenerMode::Https { plain_http: PlainHttp::Serve, .. } => Insecure::Served,
            ListenerMode::Https { plain_http: PlainHttp::Refuse, .. } => Insecure::Refused,
            ListenerMode::Https { .. } | ListenerMode::RedirectToHttps { .. } => Insecure::Redirected,
        };
        self.listeners.iter().map(of).min().unwrap_or(Insecure::Served)
    }

    fn log_step(&self, own: Option<&RoutePlan>) -> Option<Step> {
        let logs: Vec<_> = self.access_log.iter().map(|log| log.sampling.clone()).collect();
        let edge = if logs.is_empty() { return None } else { Setting::Own(logs) };
        let route = match own.map_or(&Setting::Inherit, |route| &route.access_log) {
            Setting::Inherit => Setting::Inherit,
            Setting::Off => Setting::Off,
            Setting::Own(sampling) => Setting::Own(vec![sampling.clone()]),
        };
        let in_words = |sampling: &Sampling| match sampling.one_in.get() {
            1 => "every request".to_owned(),
            many => format!("one of {many} requests"),
        };
        Step::of("access log", &edge, &route, |logs| match logs.iter().all(|log| log.one_in.get() == 1) {
            true => String::new(),
            false => logs.iter().map(in_words).collect::<Vec<_>>().join(", "),
        })
    }

    /// What stands before the routes are looked at, in the order of `order.rs`.
    fn before_routes(&self, own: Option<&RoutePlan>) -> Vec<Step> {
        let when = |there: bool, step: Step| there.then_some(step);
        let any = |is: fn(&ListenerPlan) -> bool| self.listeners.iter().any(is);
        let proxies = format!("told by {} networks of proxies", self.trusted_proxies.len());
        let identity = parts::identity_names(self).into_iter().map(|name| name.as_str()).collect::<Vec<_>>();
        let identity = match identity.is_empty() {
            true => String::new(),
            false => format!("what clients send as {} is taken away", identity.join(", ")),
        };
        [
            when(
                self.request_id.is_some(),
                Step::edge("request id", "X-Request-Id, for upstreams and the log"),
            ),
            when(!self.trusted_proxies.is_empty(), Step::edge("client address", proxies)),
            when(self.admin.is_some(), Step::edge("metrics", "")),
            self.log_step(own),
            Some(Step::edge("tunnels", "501 where a CONNECT is answered 2xx and none begins")),
            Some(Step::edge("field count", "431 for a request with too many")),
            when(any(ListenerPlan::has_http3), Step::edge("Alt-Svc", "tells of HTTP/3 where there is")),
            when(
                any(ListenerPlan::has_host_policies),
                Step::edge("misdirected", "421 for a host that the connection was not made for"),
            ),
            when(self.acme.is_some(), Step::edge("ACME challenges", "")),
            self.health_path.as_ref().map(|path| Step::edge("health", format!("answers {path}"))),
            when(!self.paths.is_empty(), Step::edge("paths", "brought into one form")),
            when(
                any(ListenerPlan::takes_early_data),
                Step::edge("early data", "holds back what must not be replayed"),
            ),
            when(!identity.is_empty(), Step::edge("identity fields", identity)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn describe(action: &RouteAction) -> String {
    match action {
        RouteAction::Forward { cluster } => format!("forwarded to the cluster {cluster}"),
        RouteAction::Split { clusters } => {
            let names: Vec<_> =
                clusters.iter().map(|(name, weight)| format!("{name} (weight {weight})")).collect();
            format!("forwarded to one of the clusters {}", names.join(", "))
        }
        RouteAction::Redirect { to, status, .. } => format!("redirected ({}) to {to}", status.as_u16()),
        RouteAction::Respond { status, .. } => format!("answered {}", status.as_u16()),
        RouteAction::Files(options) => format!("served from {}", options.root.display()),
    }
}
