//! What a cache may hold and for how long.

use std::time::Duration;

use http::uri::Scheme;

/// What a cache may hold and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheOptions {
    /// The weight of all stored responses in bytes: keys, header fields and bodies with an allowance for the
    /// bookkeeping. Default 256 MiB. What is used least is dropped first. It may be passed for a moment while
    /// many responses are stored at once.
    pub max_bytes: u64,
    /// The largest body that is stored, in bytes; at most 1 GiB. Default 1 MiB.
    pub max_object_bytes: u64,
    /// The bytes of bodies that may be copied at one time, over all responses on their way. A response past it is
    /// passed on and not stored. Default 64 MiB; this much memory in the worst case, beside
    /// [`CacheOptions::max_bytes`].
    pub max_fill_bytes: u64,
    /// The longest time for which a response counts as fresh, whatever its origin says. Default 24 h: a wrong
    /// `max-age` of a year is forgotten by the next day.
    pub max_ttl: Duration,
    /// For how long a stale response that has a validator is kept, so that it can be revalidated in place of
    /// sent anew. Default 10 min.
    pub keep_stale: Duration,
    /// How many responses with different selecting fields (`Vary`) are kept per key, 1 to 64; the oldest goes
    /// first. Default 8.
    pub max_variants: usize,
    /// Whether responses get a `Cache-Status` field (RFC 9211). Default `true`.
    pub cache_status: bool,
    /// The scheme of requests of which neither the connection nor the URI tells one, as in a service without
    /// `ConnInfo`. Default `None`: such requests pass by. Set it only where all requests come by this scheme:
    /// else `http` answers would be given to `https` clients.
    pub scheme: Option<Scheme>,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            max_bytes: 256 << 20,
            max_object_bytes: 1 << 20,
            max_fill_bytes: 64 << 20,
            max_ttl: Duration::from_secs(24 * 3600),
            keep_stale: Duration::from_secs(600),
            max_variants: 8,
            cache_status: true,
            scheme: None,
        }
    }
}

impl CacheOptions {
    /// Sets [`CacheOptions::max_bytes`].
    #[must_use]
    pub fn with_max_bytes(mut self, max_bytes: u64) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// Sets [`CacheOptions::max_object_bytes`].
    #[must_use]
    pub fn with_max_object_bytes(mut self, max_object_bytes: u64) -> Self {
        self.max_object_bytes = max_object_bytes;
        self
    }

    /// Sets [`CacheOptions::max_fill_bytes`].
    #[must_use]
    pub fn with_max_fill_bytes(mut self, max_fill_bytes: u64) -> Self {
        self.max_fill_bytes = max_fill_bytes;
        self
    }

    /// Sets [`CacheOptions::max_ttl`].
    #[must_use]
    pub fn with_max_ttl(mut self, max_ttl: Duration) -> Self {
        self.max_ttl = max_ttl;
        self
    }

    /// Sets [`CacheOptions::keep_stale`].
    #[must_use]
    pub fn with_keep_stale(mut self, keep_stale: Duration) -> Self {
        self.keep_stale = keep_stale;
        self
    }

    /// Sets [`CacheOptions::max_variants`].
    #[must_use]
    pub fn with_max_variants(mut self, max_variants: usize) -> Self {
        self.max_variants = max_variants;
        self
    }

    /// Sets [`CacheOptions::cache_status`].
    #[must_use]
    pub fn with_cache_status(mut self, cache_status: bool) -> Self {
        self.cache_status = cache_status;
        self
    }

    /// Sets [`CacheOptions::scheme`].
    #[must_use]
    pub fn with_scheme(mut self, scheme: Option<Scheme>) -> Self {
        self.scheme = scheme;
        self
    }

    /// The values within their bounds.
    pub(crate) fn bounded(mut self) -> Self {
        self.max_object_bytes = self.max_object_bytes.min(1 << 30);
        self.max_variants = self.max_variants.clamp(1, 64);
        self
    }
}
