//! What a store may hold.

use http::uri::Scheme;

use crate::disk_options::DiskOptions;

/// What a store may hold. Rules say what goes into it: [`crate::CacheRules`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheOptions {
    /// The weight of all stored responses in bytes: keys, header fields and bodies with an allowance for the
    /// bookkeeping. Default 256 MiB. What is used least is dropped first. It may be passed for a moment while
    /// many responses are stored at once.
    pub max_bytes: u64,
    /// The memory of bodies that may be on their way into the store at one time, over all responses, counted as it is set aside: up to twice what came of
    /// a body, and when it is stored as much again for a moment, where it came in many small pieces. A response past it is passed on and not stored. Once a body is stored it counts in
    /// [`CacheOptions::max_bytes`] alone; one that is not, as it turned out too large, counts until all who read it along have it or are gone.
    /// Default 64 MiB; this much memory in the worst case, beside [`CacheOptions::max_bytes`]. What clients hold comes on top: of a body too large to be
    /// stored up to 256 KiB and a frame ahead of the slowest of its readers, and a stored one that was dropped meanwhile until its readers have it.
    pub max_fill_bytes: u64,
    /// How many responses with different selecting fields (`Vary`, [`crate::CacheRules::key_fields`]) are kept per key, 1 to 64; the oldest goes
    /// first. Default 16.
    pub max_variants: usize,
    /// How many stale responses are asked for anew in the background at one time, over all layers, at least 1. One past it is given out stale and asked for when the next request comes
    /// for it. Default 256: enough that no usual refresh waits, and few enough that a purge of everything does not send the origin a request for each URI at once. Each holds a
    /// request, and of its body what counts in [`CacheOptions::max_fill_bytes`].
    pub max_background: usize,
    /// The scheme of requests of which neither the connection nor the URI tells one, as in a service without
    /// `ConnInfo`. Default `None`: such requests pass by. Set it only where all requests come by this scheme:
    /// else `http` answers would be given to `https` clients.
    pub scheme: Option<Scheme>,
    /// A second tier on disk for what memory drops; it takes the feature `disk`, and [`crate::CacheLayer::open`]. Default `None`.
    pub disk: Option<DiskOptions>,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            max_bytes: 256 << 20,
            max_fill_bytes: 64 << 20,
            max_variants: 16,
            max_background: 256,
            scheme: None,
            disk: None,
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

    /// Sets [`CacheOptions::max_fill_bytes`].
    #[must_use]
    pub fn with_max_fill_bytes(mut self, max_fill_bytes: u64) -> Self {
        self.max_fill_bytes = max_fill_bytes;
        self
    }

    /// Sets [`CacheOptions::max_variants`].
    #[must_use]
    pub fn with_max_variants(mut self, max_variants: usize) -> Self {
        self.max_variants = max_variants;
        self
    }

    /// Sets [`CacheOptions::max_background`].
    #[must_use]
    pub fn with_max_background(mut self, max_background: usize) -> Self {
        self.max_background = max_background;
        self
    }

    /// Sets [`CacheOptions::scheme`].
    #[must_use]
    pub fn with_scheme(mut self, scheme: Option<Scheme>) -> Self {
        self.scheme = scheme;
        self
    }

    /// Sets [`CacheOptions::disk`].
    #[must_use]
    pub fn with_disk(mut self, disk: Option<DiskOptions>) -> Self {
        self.disk = disk;
        self
    }

    /// The values within their bounds.
    pub(crate) fn bounded(mut self) -> Self {
        self.max_variants = self.max_variants.clamp(1, 64);
        self.max_background = self.max_background.clamp(1, tokio::sync::Semaphore::MAX_PERMITS);
        self
    }
}
