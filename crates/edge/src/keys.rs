//! Keys for tokens that a cluster is asked for.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt as _, Limited};
use portcullis_middleware::jwt::{KeySet, Keys};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tower_service::Service as _;
use tracing::{info, warn};

use crate::{
    Body, BoxError,
    forward::ToCluster,
    plan::{JwtKeys, Plan},
    routes::one_endpoint,
};

/// Between one question and the next, whatever tokens come.
const REST: Duration = Duration::from_secs(10);
/// For one answer.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_SET: usize = 1 << 20;

/// `Host` of the question: an issuer may go by it.
pub(crate) fn host(plan: &Plan, keys: &JwtKeys) -> Option<HeaderValue> {
    let JwtKeys::Fetch { cluster, host, .. } = keys else { return None };
    let known = plan.clusters.iter().find(|known| known.name == *cluster);
    let endpoint = || one_endpoint(cluster, known).ok();
    host.clone().or_else(endpoint).or_else(|| HeaderValue::from_str(cluster).ok())
}

/// Keys, and where they come from.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) plan: JwtKeys,
    /// `Host` of the question. `None` where nothing that is known can be one.
    pub(crate) host: Option<HeaderValue>,
    pub(crate) keys: KeySet,
}

impl Fetched {
    /// Who is asked.
    pub(crate) fn cluster(&self) -> Option<&str> {
        match &self.plan {
            JwtKeys::Fetch { cluster, .. } => Some(cluster),
            _ => None,
        }
    }

    /// Keeps the keys as the cluster tells them, for ever.
    pub(crate) async fn follow(self: Arc<Self>, client: ToCluster) {
        let JwtKeys::Fetch { cluster, every, .. } = &self.plan else { return };
        let mut told = None;
        loop {
            let began = Instant::now();
            let next = match self.fetch(client.clone()).await {
                Ok(keys) => {
                    if told.take().is_some() {
                        info!(cluster, "keys for tokens can be had again");
                    }
                    self.keys.replace(keys);
                    *every
                }
                Err(error) => {
                    let error = error.to_string();
                    if told.as_ref() != Some(&error) {
                        warn!(cluster, error, "no new keys for tokens: the ones before stay");
                        told = Some(error);
                    }
                    REST
                }
            };
            tokio::select! {
                () = sleep(next) => {}
                () = self.keys.wanted() => sleep_until(began + REST).await,
            }
        }
    }

    async fn fetch(&self, mut client: ToCluster) -> Result<Keys, BoxError> {
        let JwtKeys::Fetch { target, .. } = &self.plan else {
            return Err("nothing to fetch".into());
        };
        let host = self.host.clone().ok_or("the cluster's name is no host: say which by `key_set_host`")?;
        let request = Request::get(target.clone())
            .header(header::HOST, host)
            .header(header::ACCEPT, "application/json")
            .body(Body::empty())?;
        let answer = async {
            let response = client.call(request).await?;
            if !response.status().is_success() {
                return Err(format!("the answer is {}", response.status().as_u16()).into());
            }
            let body = Limited::new(response.into_body(), MAX_SET).collect().await?;
            Ok::<_, BoxError>(body.to_bytes())
        };
        let bytes = timeout(PATIENCE, answer).await.map_err(|_| "no answer in time")??;
        Ok(Keys::from_jwks(std::str::from_utf8(&bytes)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ClusterPlan;

    #[test]
    fn an_issuer_is_asked_by_its_own_name() {
        let fetch = |host: Option<&'static str>| JwtKeys::Fetch {
            cluster: "issuer".to_owned(),
            target: "/keys".parse().unwrap(),
            host: host.map(HeaderValue::from_static),
            every: Duration::from_secs(60),
        };
        for (endpoints, said, expected) in [
            (&["auth.test:8080"][..], None, Some("auth.test:8080")),
            (&["auth.test:80"], None, Some("auth.test")),
            (&["auth.test:80"], Some("login.test"), Some("login.test")),
            // no one name of theirs: the cluster's, for want of a better one
            (&["a.test:80", "b.test:80"], None, Some("issuer")),
            (&["unix:/run/auth.sock"], None, Some("issuer")),
        ] {
            let mut plan = Plan::default();
            plan.clusters.push(ClusterPlan::new("issuer", endpoints.iter().copied()));
            let host = host(&plan, &fetch(said));
            assert_eq!(host.as_ref().map(|host| host.to_str().unwrap()), expected, "{endpoints:?} {said:?}");
        }
    }
}
