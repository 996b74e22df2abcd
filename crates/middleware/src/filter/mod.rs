//! Who may pass: ordered rules by path, method, host, fields, query, network and country; and paths that are hidden.
//!
//! Whatever lies under a denied prefix is answered 404 with no body, as if it weren't there. Then the rules are asked in their order
//! ([`rule`](Rule)), and the first that matches decides.
//!
//! **Paths** are read before they are compared. A prefix is compared on segment borders with the path in normal form (`path.rs`), so that percent
//! encodings, dot segments and repeated slashes don't slip past. Where servers are known to disagree about what a path means, all their readings
//! are made: a rule that denies matches if any reading does, a rule that allows only if every reading does. So whichever of them the service behind
//! has, a request is never let through by a rule that it would not have matched, nor past one that it would have.
//! There are up to 50 readings, so a path that has more than one and is longer than 8 KiB is not read: it counts as denied wherever a path is, and as allowed nowhere.
//! Letter case is kept: a service that ignores case needs its paths denied in each spelling, or `(?i)`, or better its own check.
//!
//! **Clients** are known by [`crate::ClientIp`] where somebody put one into the request's extensions, else by the peer of
//! [`portcullis_conn::ConnInfo`].
//!
//! **Content from elsewhere**, large sets of networks and databases, is behind handles ([`ClientSet`], `Countries`) that can be replaced while it
//! is in use. Nothing is read here: who has the files parses their text and replaces.
//!
//! The request that passes is handed on as it came; this layer decides and doesn't rewrite. What passes by plain path and prefixes alone costs no
//! allocation.

mod compiled;
#[cfg(feature = "country")]
mod country;
mod path;
mod rule;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response, StatusCode, Version, header::CONNECTION};
use tower_layer::Layer;
use tower_service::Service;

#[cfg(feature = "country")]
pub use self::country::{Countries, CountryDatabase, CountryError};
pub use self::{
    compiled::{FilterError, FilterSets},
    rule::{Action, CountryCode, FieldPattern, FilterOptions, PathPattern, Rule},
};
pub use crate::cidr::{CidrSet, ClientSet, InvalidNetwork};
pub(crate) use path::AllowedPaths;

use self::{
    compiled::{Compiled, Facts},
    path::{Prefixes, Readings},
};

/// Rules made ready. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct FilterRules {
    prefixes: Arc<Prefixes>,
    rules: Option<Arc<[Compiled]>>,
    default: Action,
}

impl FilterRules {
    /// Denies everything at and under these prefixes: `/admin` denies `/admin`, `/admin/` and `/admin/x`, not
    /// `/administrator`. A prefix is read as paths are (`/a%20b` denies `/a b` to servers that decode), a leading slash is added and trailing ones are dropped;
    /// `/` denies everything, and so does an empty prefix. A path longer than 8 KiB that servers may read in different ways is under each prefix. Every prefix costs its length in memory, and a request's cost does not depend on how
    /// many there are.
    pub fn deny_prefixes(prefixes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut set = Prefixes::default();
        for prefix in prefixes {
            set.insert(&prefix.into());
        }
        Self { prefixes: Arc::new(set), ..Self::default() }
    }

    /// Makes rules ready, with the sets that they name.
    ///
    /// # Errors
    /// When a pattern is wrong or too large, or something that a rule names is not there.
    pub fn compile(options: &FilterOptions, sets: &FilterSets) -> Result<Self, FilterError> {
        let rules = compiled::compile(&options.rules, sets)?;
        let prefixes = Self::deny_prefixes(options.deny.iter().map(String::as_str)).prefixes;
        Ok(Self { prefixes, rules: (!rules.is_empty()).then_some(rules), default: options.default })
    }

    /// Whether everything passes.
    pub fn is_empty(&self) -> bool {
        self.prefixes.is_empty() && self.rules.is_none() && self.default == Action::Allow
    }

    /// Whether this path, without its query, is under a denied prefix.
    pub fn denies(&self, path: &str) -> bool {
        !self.prefixes.is_empty() && self.prefixes.cover(&Readings::of(path.as_bytes()))
    }

    /// What happens to a request, and which rule says so, from 1; 0 is a denied prefix, `None` that no rule matches.
    pub fn decide<B>(&self, request: &Request<B>) -> (Action, Option<usize>) {
        // the path is read once, for the prefixes and all rules
        let facts = Facts::of(request);
        if !self.prefixes.is_empty() && self.prefixes.cover(facts.path()) {
            return (Action::Deny(StatusCode::NOT_FOUND), Some(0));
        }
        let mut rules = self.rules.iter().flat_map(|rules| rules.iter().enumerate());
        let first = rules.find(|(_, rule)| rule.matches(&facts));
        first.map_or((self.default, None), |(at, rule)| (rule.action, Some(at + 1)))
    }
}

/// Lets pass or answers, by [`FilterRules`]. Denied prefixes are answered 404 (RFC 9110 section 15.5.5: also where a server doesn't want to say
/// that there is something).
#[derive(Clone, Debug)]
pub struct FilterLayer {
    rules: FilterRules,
    denied: Arc<AtomicU64>,
}

impl FilterLayer {
    /// A layer that decides by these rules.
    pub fn new(rules: FilterRules) -> Self {
        Self { rules, denied: Arc::default() }
    }

    /// How many requests were denied so far.
    pub fn denied(&self) -> u64 {
        self.denied.load(Ordering::Relaxed)
    }
}

impl<S> Layer<S> for FilterLayer {
    type Service = Filter<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Filter { inner, rules: self.rules.clone(), denied: Arc::clone(&self.denied) }
    }
}

/// The service of [`FilterLayer`].
#[derive(Clone, Debug)]
pub struct Filter<S> {
    inner: S,
    rules: FilterRules,
    denied: Arc<AtomicU64>,
}

/// The future of [`Filter`].
pub type ResponseFuture<F, B> = crate::early::EarlyFuture<F, B>;

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Filter<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (action, rule) = self.rules.decide(&request);
        if action != Action::Allow {
            self.denied.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(path = request.uri().path(), rule, "request denied by the filter");
            return ResponseFuture::answered(refusal(action, request.version()));
        }
        ResponseFuture::inner(self.inner.call(request))
    }
}

fn refusal<B: Default>(action: Action, version: Version) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = match action {
        Action::Deny(status) => status,
        _ => StatusCode::FORBIDDEN,
    };
    if action == Action::Close && version <= Version::HTTP_11 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod rule_tests;

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::test_support::{get, ok, through};

    #[tokio::test]
    async fn denied_is_404_without_a_body_and_the_rest_passes() {
        let layer = FilterLayer::new(FilterRules::deny_prefixes(["/admin"]));
        let table = [
            ("/admin?x=1", 404),
            ("https://example.com/%61dmin/users", 404),
            ("/administrator", 200),
            ("/?path=/admin", 200),
        ];
        for (target, status) in table {
            let response = through(&layer, ok, get(target)).await;
            assert_eq!(response.status(), status, "{target}");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body.is_empty(), status == 404, "{target}");
        }
    }

    #[test]
    fn empty_rules_deny_nothing() {
        for rules in [FilterRules::default(), FilterRules::deny_prefixes(Vec::<String>::new())] {
            assert!(rules.is_empty());
            assert!(!rules.denies("/"));
        }
        assert!(!FilterRules::deny_prefixes(["/a"]).is_empty());
    }
}
