//! What the second tier on disk may take, and why there is none.

use std::path::PathBuf;

/// Where the second tier is and what it may take.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskOptions {
    /// A directory that is the cache's alone; it is made if it is not there. Several stores may share it: each takes a subdirectory of its own,
    /// `slot-0` to `slot-7`, and locks it.
    pub path: PathBuf,
    /// Bytes on disk for each store, 64 MiB at least. Default 1 GiB. Records are dropped from the oldest on. For each record some 100 bytes of
    /// memory are taken beside, and up to 32 MiB for what is being written; what exceeds that is not written.
    pub max_bytes: u64,
}

impl DiskOptions {
    /// At this path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), max_bytes: 1 << 30 }
    }

    /// Sets [`DiskOptions::max_bytes`].
    #[must_use]
    pub fn with_max_bytes(mut self, max_bytes: u64) -> Self {
        self.max_bytes = max_bytes;
        self
    }
}

/// Why there is no second tier.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The feature `disk` is off.
    #[error("this was built without a cache on disk: it takes the feature `disk`")]
    NotBuilt,
    /// The directory or a file in it could not be made or locked.
    #[error("the cache's directory {} can't be used", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Eight stores use it.
    #[error("the cache's directory {} is in use by 8 others", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// The store on disk did not start.
    #[error("the cache's store on disk did not start")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
}
