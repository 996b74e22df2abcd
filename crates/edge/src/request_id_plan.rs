//! What a plan says of requests' ids.

use std::sync::Arc;

use portcullis_middleware::request_id::{RequestIdLayer, TrustId};
use portcullis_proxy::Trust;

/// Every request has an id: in the field `X-Request-Id` on its way to a cluster, in the extensions for layers of the program and the log, and in
/// answers to what failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestIdPlan {
    /// Whose ids are taken over, where they are a token of at most 128 bytes. Default [`TrustIds::TrustedProxies`].
    pub trust: TrustIds,
    /// Whether every response carries the id too. Default `false`.
    pub respond: bool,
}

/// Whose ids are taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrustIds {
    /// Those of [`crate::plan::Plan::trusted_proxies`]. Without any, nobody's.
    #[default]
    TrustedProxies,
    /// Nobody's.
    Nobody,
    /// Everybody's.
    Everybody,
}

impl RequestIdPlan {
    /// Sets [`RequestIdPlan::trust`].
    #[must_use]
    pub fn with_trust(mut self, trust: TrustIds) -> Self {
        self.trust = trust;
        self
    }

    /// Sets [`RequestIdPlan::respond`].
    #[must_use]
    pub fn with_respond(mut self, respond: bool) -> Self {
        self.respond = respond;
        self
    }

    pub(crate) fn layer(self, proxies: &Arc<Trust>) -> RequestIdLayer {
        let layer = RequestIdLayer::new().with_response(self.respond);
        match self.trust {
            TrustIds::Nobody => layer,
            TrustIds::Everybody => layer.with_trust(TrustId::Everybody),
            TrustIds::TrustedProxies => {
                let proxies = Arc::clone(proxies);
                layer.with_trusted_peers(move |peer| proxies.trusts(peer))
            }
        }
    }
}
