//! Who may pass, as it is written down.

use std::{path::PathBuf, time::Duration};

use http::{HeaderName, HeaderValue, Method, uri::PathAndQuery};
use portcullis_middleware::{
    basic_auth::BasicAuthOptions, filter::FilterOptions, forward_auth::ForwardAuthOptions, jwt::JwtOptions,
};

/// Ordered rules. Files are read at the start and at a reload, and followed; one that can't be used is told, and what was read before stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FilterPlan {
    /// The rules. The sets of clients that they name are files with a network on each line, by their paths; each has 64 MiB at most, and is read once
    /// however many rules name it.
    pub options: FilterOptions,
    /// The database of countries, an MMDB file of 1 GiB at most, which is held in memory. Needed where a rule asks for countries.
    pub countries: Option<PathBuf>,
}

impl From<FilterOptions> for FilterPlan {
    fn from(options: FilterOptions) -> Self {
        Self { options, countries: None }
    }
}

/// Names and passwords.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BasicAuthPlan {
    /// How they are asked for.
    pub options: BasicAuthOptions,
    /// The file of users, as [`portcullis_middleware::basic_auth::Users::parse`] reads it, of 32 MiB at most. Followed as those of a filter.
    pub users: PathBuf,
}

impl BasicAuthPlan {
    /// With the usual options.
    pub fn new(users: impl Into<PathBuf>) -> Self {
        Self { options: BasicAuthOptions::default(), users: users.into() }
    }
}

/// Signed tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JwtPlan {
    /// What they must be.
    pub options: JwtOptions,
    /// What they are checked with.
    pub keys: JwtKeys,
}

impl JwtPlan {
    /// With these keys.
    pub fn new(options: JwtOptions, keys: JwtKeys) -> Self {
        Self { options, keys }
    }
}

/// Where the keys for tokens come from. Files have 1 MiB at most and are followed as those of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JwtKeys {
    /// A file with a secret: its bytes, without a newline at the end.
    Secret(PathBuf),
    /// Public keys in PEM.
    Pem(PathBuf),
    /// A set of public keys in JSON.
    Set(PathBuf),
    /// A set that a cluster is asked for: soon after the start, again and again, and when a token names a key that is not known, but not
    /// more often than every ten seconds. Until the first answer tokens are answered 503; one that can't be used leaves the set as it is. An
    /// answer has 1 MiB at most.
    Fetch {
        /// Who is asked.
        cluster: String,
        /// What for.
        target: PathAndQuery,
        /// `Host` of the question. `None`: the name of the cluster's endpoint where it has one, else the cluster's own, which an issuer that goes by its host won't know.
        host: Option<HeaderValue>,
        /// How often.
        every: Duration,
    },
}

/// A service that says who may pass.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForwardAuthPlan {
    /// What is asked.
    pub options: ForwardAuthOptions,
    /// Who is asked. Its own limits hold for it as for any cluster.
    pub cluster: String,
}

impl ForwardAuthPlan {
    /// Asks this cluster.
    pub fn new(cluster: impl Into<String>, options: ForwardAuthOptions) -> Self {
        Self { options, cluster: cluster.into() }
    }
}

/// What pages of other origins may do (CORS, the Fetch standard section 3.2). It tells browsers what they may let pages do; it keeps nobody out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CorsPlan {
    /// Whose pages. Default: nobody's.
    pub origins: CorsOrigins,
    /// With which methods, beside GET, HEAD and POST of simple forms. Default empty.
    pub methods: Vec<Method>,
    /// With which fields of their own. Default empty.
    pub headers: Vec<HeaderName>,
    /// Which fields of a response they may read. Default empty.
    pub expose: Vec<HeaderName>,
    /// Whether with the user's cookies and passwords. Default `false`. Not for any origin.
    pub credentials: bool,
    /// How long a browser may remember the answer. Default `None`: as it likes, some seconds.
    pub max_age: Option<Duration>,
}

impl Default for CorsPlan {
    fn default() -> Self {
        Self {
            origins: CorsOrigins::List(Vec::new()),
            methods: Vec::new(),
            headers: Vec::new(),
            expose: Vec::new(),
            credentials: false,
            max_age: None,
        }
    }
}

/// Origins.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CorsOrigins {
    /// Any.
    Any,
    /// These, as browsers send them: `https://app.example.com`.
    List(Vec<HeaderValue>),
}

/// Keeps out what pages of other sites make browsers send: a request that is neither GET, HEAD nor OPTIONS, and of which `Sec-Fetch-Site` or
/// `Origin` say that it comes from elsewhere, is answered 403; so is the handshake of a WebSocket, which is a GET over HTTP/1.1. What has neither field is no browser's, and passes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CsrfPlan {
    /// Origins that are no strangers: `https://app.example.com`. Default empty.
    pub trusted: Vec<String>,
}

impl CsrfPlan {
    /// Sets [`CsrfPlan::trusted`].
    #[must_use]
    pub fn with_trusted(mut self, origins: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.trusted = origins.into_iter().map(Into::into).collect();
        self
    }
}
