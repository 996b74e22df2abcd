//! What the requests of a route pass on their way to what the route does.

use std::path::PathBuf;

use portcullis_cache::CacheRules;
use portcullis_middleware::{
    compression::CompressionOptions, concurrency::ConcurrencyOptions, deadline::DeadlineOptions,
    maintenance::Maintenance, rate_limit::RateLimitOptions,
    request_decompression::RequestDecompressionOptions, security_headers::SecurityHeaders,
};

use crate::admission_plan::{BasicAuthPlan, CorsPlan, CsrfPlan, FilterPlan, ForwardAuthPlan, JwtPlan};

/// A chain of layers: of the edge where it stands in [`crate::plan::Plan::chain`], of one route in [`crate::plan::RoutePlan::chain`]. Their order
/// is the edge's, see `portcullis explain`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChainPlan {
    /// Response security fields.
    pub security_headers: Setting<SecurityHeaders>,
    /// How many requests are let through.
    pub rate_limit: Setting<RateLimitOptions>,
    /// Ordered rules: which requests go on.
    pub filter: Setting<FilterPlan>,
    /// What pages of other origins may do.
    pub cors: Setting<CorsPlan>,
    /// Whether requests that pages of other sites had sent are kept out.
    pub csrf: Setting<CsrfPlan>,
    /// Names and passwords. Where a chain has several ways to authenticate, a request has to pass each.
    pub basic_auth: Setting<BasicAuthPlan>,
    /// Signed tokens.
    pub jwt: Setting<JwtPlan>,
    /// A service that says who may pass.
    pub forward_auth: Setting<ForwardAuthPlan>,
    /// How responses are put into [`crate::plan::Plan::cache`] and taken from it, where there is one. For the edge itself nothing said is the rules' defaults. What is stored goes on over a
    /// reload that changes rules. Routes that match by a request's fields, its client or its protocol have a part in it only by rules of their own, and then in a partition of their own.
    pub cache: Setting<CacheRules>,
    /// Closes the site for all but those who are let in.
    pub maintenance: Setting<MaintenancePlan>,
    /// The most bytes of a request's body, as they come. Past it 413, before reading on where the length is told.
    pub body_limit: Setting<u64>,
    /// When a request must be answered.
    pub deadline: Setting<DeadlineOptions>,
    /// Compresses responses.
    pub compression: Setting<CompressionOptions>,
    /// Decompresses request bodies.
    pub request_decompression: Setting<RequestDecompressionOptions>,
    /// How many requests run at once, counted over all workers. The edge's is one for all routes that have none of their own. A reload with other options goes on
    /// with who is inside.
    pub concurrency: Setting<ConcurrencyOptions>,
}

/// A site that is closed for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MaintenancePlan {
    /// What is said, and who is let in.
    pub maintenance: Maintenance,
    /// A file whose content is another page, before those of [`Maintenance::pages`]: HTML, JSON or text by its ending, 1 MiB at most. It is read at the start and at each
    /// reload. Default `None`.
    pub file: Option<PathBuf>,
}

impl MaintenancePlan {
    /// These, without a file.
    pub fn new(maintenance: Maintenance) -> Self {
        Self { maintenance, file: None }
    }

    /// Sets [`MaintenancePlan::file`].
    #[must_use]
    pub fn with_file(mut self, file: Option<PathBuf>) -> Self {
        self.file = file;
        self
    }
}

/// One layer of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Setting<T> {
    /// As the edge has it. For the edge itself: none.
    #[default]
    Inherit,
    /// None.
    Off,
    /// This one. What it counts and keeps is its own: a route's rate limit knows nothing of the edge's.
    Own(T),
}

impl<T> Setting<T> {
    /// What stands here itself.
    pub fn own(&self) -> Option<&T> {
        match self {
            Self::Own(own) => Some(own),
            Self::Inherit | Self::Off => None,
        }
    }

    /// What holds for a route with this setting, below an edge with that one.
    pub fn or<'a>(&'a self, default: &'a Self) -> Option<&'a T> {
        match self {
            Self::Inherit => default.own(),
            Self::Off => None,
            Self::Own(own) => Some(own),
        }
    }

    /// Whether it says nothing.
    pub fn is_inherit(&self) -> bool {
        matches!(self, Self::Inherit)
    }
}

impl<T> From<T> for Setting<T> {
    fn from(own: T) -> Self {
        Self::Own(own)
    }
}
