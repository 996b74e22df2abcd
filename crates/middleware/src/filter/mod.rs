//! Hides paths: whatever lies under a denied prefix is answered 404 with no body, as if it weren't there.
//!
//! A prefix is compared on segment borders with the path in normal form (`path.rs`), so that percent encodings, dot
//! segments and repeated slashes don't slip past. Where servers are known to disagree about what a path means, it is
//! denied if any of their readings is. Letter case is kept: a service that ignores case needs its prefixes
//! denied in each spelling, or better its own check.
//!
//! The request that passes is handed on as it came; this layer decides and doesn't rewrite.

mod path;

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response, StatusCode};
use tower_layer::Layer;
use tower_service::Service;

use self::path::Prefixes;

/// Which paths are denied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterRules {
    prefixes: Arc<Prefixes>,
}

impl FilterRules {
    /// Denies everything at and under these prefixes: `/admin` denies `/admin`, `/admin/` and `/admin/x`, not
    /// `/administrator`. A prefix is normalised as paths are, a leading slash is added and trailing ones are dropped;
    /// `/` denies everything, and so does an empty prefix. Every prefix costs its length in memory, and a request's cost does not depend on how
    /// many there are.
    pub fn deny_prefixes(prefixes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut set = Prefixes::default();
        for prefix in prefixes {
            set.insert(&prefix.into());
        }
        Self { prefixes: Arc::new(set) }
    }

    /// Whether nothing is denied.
    pub fn is_empty(&self) -> bool {
        self.prefixes.is_empty()
    }

    /// Whether this path, without its query, is denied.
    pub fn denies(&self, path: &str) -> bool {
        !self.is_empty() && self.prefixes.cover(path)
    }
}

/// Answers denied paths 404 (RFC 9110 section 15.5.5: also where a server doesn't want to say that there is something).
#[derive(Clone, Debug)]
pub struct FilterLayer {
    rules: FilterRules,
}

impl FilterLayer {
    /// A layer that denies by these rules.
    pub fn new(rules: FilterRules) -> Self {
        Self { rules }
    }
}

impl<S> Layer<S> for FilterLayer {
    type Service = Filter<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Filter { inner, rules: self.rules.clone() }
    }
}

/// The service of [`FilterLayer`].
#[derive(Clone, Debug)]
pub struct Filter<S> {
    inner: S,
    rules: FilterRules,
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
        if self.rules.denies(request.uri().path()) {
            tracing::debug!(path = request.uri().path(), "path denied by the filter");
            let mut response = Response::new(ResBody::default());
            *response.status_mut() = StatusCode::NOT_FOUND;
            return ResponseFuture::answered(response);
        }
        ResponseFuture::inner(self.inner.call(request))
    }
}

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
