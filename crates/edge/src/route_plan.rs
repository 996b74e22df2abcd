//! What a plan says of routes.

use std::collections::HashMap;

use crate::chain_plan::{ChainPlan, Setting};
use http::{HeaderValue, StatusCode, Uri};
use portcullis_middleware::access_log::Sampling;
use portcullis_middleware::files::FileOptions;
use portcullis_proxy::{FieldEdits, PathMatch, RouteMatch, mirror::MirrorOptions};

/// One route.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoutePlan {
    /// What the access log calls it, and rate limits that count by route: to those, routes of one name are one. Default `None`: its host and path.
    pub name: Option<String>,
    /// What requests it is for.
    pub matches: RouteMatch,
    /// What to do with the request.
    pub action: RouteAction,
    /// What happens to a request in early data. Default [`EarlyPlan::ByMethod`]. Without a meaning where no listener accepts early data.
    pub early_data: EarlyPlan,
    /// What becomes of the target on its way to a cluster; `None` (the default) leaves it as it was routed.
    pub rewrite: Option<RewritePlan>,
    /// The `Host` that a cluster sees. `X-Forwarded-Host` keeps the client's. Default [`UpstreamHost::Keep`].
    pub upstream_host: UpstreamHost,
    /// Changes to the fields of the request, after all that the edge does to them by itself.
    pub request_fields: FieldEdits,
    /// Changes to the fields of every response, whoever made it: an endpoint, the cache, a layer that refused. They come last.
    pub response_fields: FieldEdits,
    /// The type of what [`RouteAction::Respond`] says. Default `None`: `text/plain; charset=utf-8`.
    pub content_type: Option<HeaderValue>,
    /// Sends copies of some requests to another cluster. Default `None`.
    pub mirror: Option<MirrorPlan>,
    /// What its requests pass on their way. Default: what [`crate::plan::Plan::chain`] says.
    pub chain: ChainPlan,
    /// Which of its requests are logged, if not those that are logged anyway: none, or a sample of its own.
    pub access_log: Setting<Sampling>,
}

/// What becomes of a target on its way to a cluster; see `portcullis_proxy::rewrite`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RewritePlan {
    /// Puts another prefix in the place of one.
    Prefix {
        /// The prefix; `None` is the path of the route, which is a prefix then.
        from: Option<String>,
        /// What stands there instead; `/` takes it away.
        to: String,
    },
    /// Puts a text with captures in the place of the path, and of the query if it has one.
    Template(String),
}

/// The `Host` that a cluster sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum UpstreamHost {
    /// The client's.
    #[default]
    Keep,
    /// The endpoint's own, as the cluster names it, without the port 80. The cluster must have one endpoint: which of several takes
    /// a request is not known when it is made ready.
    Endpoint,
    /// This one.
    Value(HeaderValue),
}

/// Where copies of requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MirrorPlan {
    /// [`crate::plan::ClusterPlan::name`].
    pub cluster: String,
    /// How many, and how large.
    pub options: MirrorOptions,
}

impl MirrorPlan {
    /// Copies of every request, with the default bounds.
    pub fn new(cluster: impl Into<String>) -> Self {
        Self { cluster: cluster.into(), options: MirrorOptions::default() }
    }
}

/// What a route does with a request that came in early data and may be a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EarlyPlan {
    /// GET, HEAD and OPTIONS go on at once, marked by `Early-Data: 1`; the rest is held until the handshake is complete.
    #[default]
    ByMethod,
    /// Every request goes on at once: its handler must stand being called twice.
    Serve,
    /// Every request is held until the handshake is complete.
    Hold,
    /// Every request is answered 425, and the client comes again.
    Refuse,
}

impl RoutePlan {
    /// [`RoutePlan::name`], or its host and path.
    pub(crate) fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| {
            let host = self.matches.host.as_deref().unwrap_or("*");
            let path = match &self.matches.path {
                PathMatch::Prefix(path)
                | PathMatch::Exact(path)
                | PathMatch::Segments(path)
                | PathMatch::Regex(path) => path.as_str(),
                _ => "",
            };
            format!("{host}{path}")
        })
    }

    /// Every path of a host, or of every host.
    pub fn new(host: Option<&str>, action: RouteAction) -> Self {
        Self::matching(RouteMatch::new(host), action)
    }

    /// The requests that match.
    pub fn matching(matches: RouteMatch, action: RouteAction) -> Self {
        Self {
            name: None,
            matches,
            action,
            early_data: EarlyPlan::default(),
            rewrite: None,
            upstream_host: UpstreamHost::default(),
            request_fields: FieldEdits::default(),
            response_fields: FieldEdits::default(),
            content_type: None,
            mirror: None,
            chain: ChainPlan::default(),
            access_log: Setting::Inherit,
        }
    }

    /// Narrows it to a path prefix, on segment borders: `/api` is `/api` and `/api/x`, not `/apix`.
    #[must_use]
    pub fn with_path(mut self, path: impl Into<String>) -> Self {
        self.matches.path = PathMatch::Prefix(path.into());
        self
    }
}

/// For each route its place among those of `before` that it goes on as, each for one: that of its name, or else that of what it matches,
/// or of its host and path, as long as there is one such.
pub(crate) fn places(before: &[RoutePlan], now: &[RoutePlan]) -> Vec<Option<usize>> {
    type Key = fn(&RoutePlan) -> Option<String>;
    let keys: [Key; 4] = [
        |route| Some(format!("{:?} {:?}", route.name.as_ref()?, route.matches)),
        |route| route.name.clone(),
        |route| Some(format!("{:?}", route.matches)),
        |route| Some(format!("{:?} {:?}", route.matches.host, route.matches.path)),
    ];
    let (mut places, mut taken) = (vec![None; now.len()], vec![false; before.len()]);
    for key in keys {
        // without a place where there are several
        let mut known: HashMap<String, Option<usize>> = HashMap::new();
        for (at, route) in before.iter().enumerate().filter(|(at, _)| !taken[*at]) {
            if let Some(key) = key(route) {
                known.entry(key).and_modify(|at| *at = None).or_insert(Some(at));
            }
        }
        for (place, route) in places.iter_mut().zip(now).filter(|(place, _)| place.is_none()) {
            *place = key(route).and_then(|key| known.remove(&key).flatten());
            if let Some(at) = *place {
                taken[at] = true;
            }
        }
    }
    places
}

/// What a route does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RouteAction {
    /// Forwards to the cluster of this name.
    Forward {
        /// [`crate::plan::ClusterPlan::name`].
        cluster: String,
    },
    /// Forwards to several clusters, each with its share.
    Split {
        /// Names and weights. A weight of 0 gets nothing.
        clusters: Vec<(String, u32)>,
    },
    /// Redirects to this URI, path and query appended when the URI has none. Its path may have captures of the route's path in
    /// it, see `portcullis_proxy::rewrite`.
    Redirect {
        /// The target.
        to: Uri,
        /// 301, 302, 307 or 308.
        status: StatusCode,
        /// Whether the request's query is kept; `None` keeps it where the path is kept.
        keep_query: Option<bool>,
    },
    /// Answers by itself.
    Respond {
        /// The status.
        status: StatusCode,
        /// The body, sent as [`RoutePlan::content_type`].
        body: String,
    },
    /// Serves a directory.
    Files(FileOptions),
}

impl RouteAction {
    /// The clusters that requests may go to.
    pub fn clusters(&self) -> impl Iterator<Item = &str> {
        let (one, several) = match self {
            Self::Forward { cluster } => (Some(cluster.as_str()), [].as_slice()),
            Self::Split { clusters } => (None, clusters.as_slice()),
            _ => (None, [].as_slice()),
        };
        one.into_iter().chain(several.iter().map(|(name, _)| name.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(name: &str, host: &str, path: &str) -> RoutePlan {
        let action = RouteAction::Respond { status: StatusCode::OK, body: String::new() };
        let mut route = RoutePlan::new(Some(host), action).with_path(path);
        route.name = (!name.is_empty()).then(|| name.to_owned());
        route
    }

    #[test]
    fn routes_go_on_by_name_by_what_they_match_and_by_host_and_path() {
        let with_method = |mut route: RoutePlan| {
            route.matches.methods = vec![http::Method::POST];
            route
        };
        let (a, b, c) = (route("", "a.test", "/a"), route("b", "a.test", "/b"), route("", "c.test", "/"));
        let before = [a.clone(), b.clone(), c.clone()];
        let renamed = route("b", "b.test", "/");
        let new = route("new", "x.test", "/");
        for (now, expected) in [
            (vec![c, a.clone(), b], vec![Some(2), Some(0), Some(1)]),
            // other conditions: it is still the one of its host and path
            (vec![with_method(a.clone())], vec![Some(0)]),
            (vec![with_method(a.clone()), a], vec![None, Some(0)]),
            (vec![new, renamed.clone()], vec![None, Some(1)]),
            // what has its name comes before what has its place
            (vec![route("", "a.test", "/b"), renamed], vec![None, Some(1)]),
            (vec![], vec![]),
        ] {
            assert_eq!(places(&before, &now), expected, "{now:?}");
        }
        // two of one name: by what they match as well, or neither
        let twins = [route("t", "a.test", "/"), route("t", "b.test", "/")];
        assert_eq!(places(&twins, &[twins[1].clone(), twins[0].clone()]), [Some(1), Some(0)]);
        assert_eq!(places(&twins, &[route("t", "c.test", "/")]), [None]);
    }
}
