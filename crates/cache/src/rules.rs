//! What is stored of the responses that pass one layer, and how it is used.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName};

use crate::vary::cookies;

/// What is stored of the responses that pass one layer, and how it is used. Layers over one store may have rules of their own:
/// [`crate::CacheLayer::with_rules`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheRules {
    /// A part of the key beside the URI: layers share what is stored only where this is equal. Default `None`. Give each of two routes one that are told apart by more than
    /// host and path, since what one origin said is no answer of the other's. Purging reaches all partitions.
    pub partition: Option<Arc<str>>,
    /// The largest body that is stored, in bytes; at most 1 GiB. Default 16 MiB.
    pub max_object_bytes: u64,
    /// The longest time for which a response counts as fresh, whatever its origin says. Default 24 h: a wrong
    /// `max-age` of a year is forgotten by the next day.
    pub max_ttl: Duration,
    /// How long responses count as fresh by their status, where their origin says nothing or is not to be heeded; the first that names the status. Default none. Also
    /// what makes a 404 or a 503 of an origin stay for some seconds (negative caching). What is `private`, `no-store`, for one client or with a cookie stays out all the same.
    pub ttl: Vec<StatusTtl>,
    /// Freshness of responses that have a `Last-Modified` and nothing else, guessed from how long they were not modified (RFC 9111 section 4.2.2). Default `None`: nothing is stored
    /// that its origin did not speak of.
    pub heuristic: Option<Heuristic>,
    /// For how long a stale response that has a validator is kept, so that it can be revalidated in place of
    /// sent anew. Default 10 min.
    pub keep_stale: Duration,
    /// For how long past its freshness a response is still given out, while it is asked for anew in the background (RFC 5861 section 3), where its origin says nothing of it. Default 0: never.
    /// An origin's own `stale-while-revalidate` counts in any case, and its `must-revalidate`, `proxy-revalidate`, `s-maxage` and `no-cache` forbid it.
    pub stale_while_revalidate: Duration,
    /// For how long past its freshness a response is still given out where the origin fails or answers 500, 502, 503 or 504 (RFC 5861 section 4), where its origin says nothing of it. Default 0:
    /// never. The same forbids it.
    pub stale_if_error: Duration,
    /// Whether the directives of requests count: `max-age`, `max-stale`, `min-fresh`, `no-cache`, `no-store`, `only-if-cached`, and `Pragma`. Default `true`. A cache that shields its origin
    /// from its clients ignores them (RFC 9111 section 5.2.1 leaves the choice).
    pub obey_request: bool,
    /// Fields that are heeded in place of `Cache-Control` and `Expires`, the first that a response has (RFC 9213). Default `CDN-Cache-Control`.
    pub targeted: Vec<HeaderName>,
    /// What becomes of responses with `Set-Cookie`. Default [`SetCookie::Refuse`].
    pub set_cookie: SetCookie,
    /// Which part of the query is in the key. Default all of it. What is left out must not change what the origin answers: it is still sent on.
    pub query: Query,
    /// Whether the order of the query's parameters is of no account. Default `false`. Values of one name stay in their order.
    pub sort_query: bool,
    /// Request fields that tell responses apart as if `Vary` named them. Default none.
    pub key_fields: Vec<HeaderName>,
    /// Cookies that tell responses apart, by name. Default none. A request in which it is not clear whether there is one, as with space before its `=`, is neither
    /// answered from the store nor stored.
    pub key_cookies: Vec<String>,
    /// Request fields that somebody between the cache and the origin writes, as `X-Forwarded-For`, or a route's edits. Default none. A response that varies by one of them is not stored, as with
    /// `Vary: *`: the origin chose it by what the cache does not see.
    pub written_behind: Vec<HeaderName>,
    /// Requests that pass by: neither answered from the store nor stored. Default none.
    pub bypass: Vec<Bypass>,
    /// Whether requests for one thing that is not stored wait for the first of them and take their answer from its response as it comes. Default `true`. Requests with
    /// `Authorization` never do.
    pub collapse: bool,
    /// For how long a request waits for the head of another's response before it goes on its own. Default 5 s. Also how long a reader may make no progress while others wait for it, which they
    /// do only for bodies that turn out too large to be stored.
    pub collapse_wait: Duration,
    /// Whether a request for a range of what is not stored is sent on as one for the whole, which is stored, and of which the client gets its range as it comes. It is
    /// read to its end for that, as by [`CacheRules::finish_fetch`]. Where the whole turned out to be nothing to be stored, as too large or private, ranges of it are passed on for 30 s: each would cost
    /// a whole. Default `false`: all are passed on.
    pub fetch_ranges: bool,
    /// Whether a response that is to be stored is read to its end when its last reader has gone. Default `false`: it is let go of. Needs a tokio runtime.
    pub finish_fetch: bool,
    /// Whether responses get a `Cache-Status` field (RFC 9211). Default `true`.
    pub cache_status: bool,
    /// Whether that field has the key in it. Default `false`.
    pub cache_status_key: bool,
}

/// For how long responses of some statuses count as fresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusTtl {
    /// Which.
    pub statuses: RangeInclusive<u16>,
    /// How long; [`CacheRules::max_ttl`] bounds it.
    pub ttl: Duration,
    /// Whether it counts also where the origin says another time.
    pub overrides: bool,
}

/// How freshness is guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heuristic {
    /// So many hundredths of the time since the last modification; 10 is usual.
    pub percent: u8,
    /// No longer than this.
    pub max: Duration,
}

impl Default for Heuristic {
    /// A tenth, at most a day.
    fn default() -> Self {
        Self { percent: 10, max: Duration::from_secs(24 * 3600) }
    }
}

/// What becomes of a response with `Set-Cookie`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SetCookie {
    /// It is not stored, unless it says `public`: then without the cookie.
    #[default]
    Refuse,
    /// It is stored without the cookie.
    Strip,
    /// It is stored as it is, and every client gets the cookie (what RFC 9111 section 7.3 has a cache do that is not told otherwise). Only for cookies that are the same for everybody.
    Keep,
}

/// Which part of a query is in the key. A `*` at the end of a name stands for any rest; names are compared as they are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Query {
    /// All of it.
    #[default]
    All,
    /// None of it.
    Nothing,
    /// All parameters but these.
    Without(Vec<String>),
    /// These parameters.
    Only(Vec<String>),
}

/// Requests that pass by.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bypass {
    /// Those with any cookie.
    Cookies,
    /// Those with a cookie of this name; a `*` at the end stands for any rest.
    Cookie(String),
    /// Those with this field.
    Field(HeaderName),
    /// Those whose path begins so. Compared as it is written in the request.
    Path(String),
}

impl Bypass {
    pub(crate) fn matches(&self, path: &str, headers: &HeaderMap) -> bool {
        match self {
            Self::Cookies => headers.contains_key(http::header::COOKIE),
            Self::Cookie(pattern) => {
                let is = |name: &[u8]| match pattern.strip_suffix('*') {
                    Some(start) => name.starts_with(start.as_bytes()),
                    None => name == pattern.as_bytes(),
                };
                cookies(headers).any(|(name, _)| is(name.trim_ascii()))
            }
            Self::Field(name) => headers.contains_key(name),
            Self::Path(start) => path.starts_with(start.as_str()),
        }
    }
}

impl Default for CacheRules {
    fn default() -> Self {
        Self {
            partition: None,
            max_object_bytes: 16 << 20,
            max_ttl: Duration::from_secs(24 * 3600),
            ttl: Vec::new(),
            heuristic: None,
            keep_stale: Duration::from_secs(600),
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            obey_request: true,
            targeted: vec![HeaderName::from_static("cdn-cache-control")],
            set_cookie: SetCookie::default(),
            query: Query::default(),
            sort_query: false,
            key_fields: Vec::new(),
            key_cookies: Vec::new(),
            written_behind: Vec::new(),
            bypass: Vec::new(),
            collapse: true,
            collapse_wait: Duration::from_secs(5),
            fetch_ranges: false,
            finish_fetch: false,
            cache_status: true,
            cache_status_key: false,
        }
    }
}

macro_rules! setters {
    ($($name:ident $with:ident $kind:ty),+ $(,)?) => {
        impl CacheRules {
            $(
                #[doc = concat!("Sets [`CacheRules::", stringify!($name), "`].")]
                #[must_use]
                pub fn $with(mut self, $name: $kind) -> Self {
                    self.$name = $name;
                    self
                }
            )+
        }
    };
}

setters! {
    partition with_partition Option<Arc<str>>,
    max_object_bytes with_max_object_bytes u64,
    max_ttl with_max_ttl Duration,
    heuristic with_heuristic Option<Heuristic>,
    keep_stale with_keep_stale Duration,
    stale_while_revalidate with_stale_while_revalidate Duration,
    stale_if_error with_stale_if_error Duration,
    obey_request with_obey_request bool,
    set_cookie with_set_cookie SetCookie,
    query with_query Query,
    sort_query with_sort_query bool,
    collapse with_collapse bool,
    collapse_wait with_collapse_wait Duration,
    fetch_ranges with_fetch_ranges bool,
    finish_fetch with_finish_fetch bool,
    cache_status with_cache_status bool,
    cache_status_key with_cache_status_key bool,
}

impl CacheRules {
    /// Adds to [`CacheRules::ttl`].
    #[must_use]
    pub fn with_ttl(mut self, ttl: impl IntoIterator<Item = StatusTtl>) -> Self {
        self.ttl.extend(ttl);
        self
    }

    /// Sets [`CacheRules::targeted`].
    #[must_use]
    pub fn with_targeted(mut self, targeted: impl IntoIterator<Item = HeaderName>) -> Self {
        self.targeted = targeted.into_iter().collect();
        self
    }

    /// Sets [`CacheRules::key_fields`].
    #[must_use]
    pub fn with_key_fields(mut self, key_fields: impl IntoIterator<Item = HeaderName>) -> Self {
        self.key_fields = key_fields.into_iter().collect();
        self
    }

    /// Sets [`CacheRules::key_cookies`].
    #[must_use]
    pub fn with_key_cookies(mut self, key_cookies: impl IntoIterator<Item = String>) -> Self {
        self.key_cookies = key_cookies.into_iter().collect();
        self
    }

    /// Sets [`CacheRules::written_behind`].
    #[must_use]
    pub fn with_written_behind(mut self, written_behind: impl IntoIterator<Item = HeaderName>) -> Self {
        self.written_behind = written_behind.into_iter().collect();
        self
    }

    /// Adds to [`CacheRules::bypass`].
    #[must_use]
    pub fn with_bypass(mut self, bypass: impl IntoIterator<Item = Bypass>) -> Self {
        self.bypass.extend(bypass);
        self
    }

    /// The values within their bounds.
    pub(crate) fn bounded(mut self) -> Self {
        self.max_object_bytes = self.max_object_bytes.min(1 << 30);
        self
    }

    pub(crate) fn ttl_of(&self, status: http::StatusCode) -> Option<&StatusTtl> {
        self.ttl.iter().find(|ttl| ttl.statuses.contains(&status.as_u16()))
    }
}
