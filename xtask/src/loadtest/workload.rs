//! The workloads.

/// What the load generator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workload {
    /// Plain HTTP/1.1.
    H1,
    /// HTTP/1.1 over TLS.
    H1s,
    /// HTTP/2 over TLS.
    H2,
    /// HTTP/3.
    H3,
    /// HTTP/3, answers of 100 MiB.
    H3Bulk,
    /// Plain HTTP/1.1, requests with a body of 64 KiB.
    Upload,
    /// Plain HTTP/1.1, answers of 10 MiB.
    Bulk,
    /// WebSocket messages of 64 bytes over plain HTTP/1.1, each of which comes back.
    Ws,
    /// Plain HTTP/1.1, one answer of 16 KiB, over and over, from the proxy's cache.
    CacheHit,
}

/// Of [`Workload::CacheHit`].
const CACHED: u64 = 16 << 10;
/// Of [`Workload::Upload`].
const UPLOAD: u64 = 64 << 10;
/// Of [`Workload::Bulk`].
const BULK: u64 = 10 << 20;
/// Of [`Workload::H3Bulk`].
const H3_BULK: u64 = 100 << 20;

impl Workload {
    pub(crate) const ALL: [Self; 9] = [
        Self::H1,
        Self::H1s,
        Self::H2,
        Self::H3,
        Self::H3Bulk,
        Self::Upload,
        Self::Bulk,
        Self::Ws,
        Self::CacheHit,
    ];

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|workload| workload.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::H1 => "h1",
            Self::H1s => "h1s",
            Self::H2 => "h2",
            Self::H3 => "h3",
            Self::H3Bulk => "h3bulk",
            Self::Upload => "upload",
            Self::Bulk => "bulk",
            Self::Ws => "ws",
            Self::CacheHit => "cachehit",
        }
    }

    /// What the load generator calls it.
    pub(crate) fn protocol(self) -> &'static str {
        match self {
            Self::Upload | Self::Bulk | Self::CacheHit => Self::H1.name(),
            Self::H3Bulk => Self::H3.name(),
            other => other.name(),
        }
    }

    /// Connections, and streams on each.
    pub(crate) fn shape(self) -> (usize, usize) {
        match self {
            Self::H1 | Self::H1s | Self::Upload | Self::Ws | Self::CacheHit => (64, 1),
            Self::Bulk => (16, 1),
            // few, so that in a short run some come to their end
            Self::H3Bulk => (2, 1),
            Self::H2 | Self::H3 => (16, 32),
        }
    }

    pub(crate) fn is_h3(self) -> bool {
        matches!(self, Self::H3 | Self::H3Bulk)
    }

    pub(crate) fn is_plain(self) -> bool {
        matches!(self, Self::H1 | Self::Upload | Self::Bulk | Self::Ws | Self::CacheHit)
    }

    /// What is asked for, where `bytes` is how long the others' answers are.
    pub(crate) fn path(self, bytes: u64) -> String {
        match self {
            Self::Upload => "/sink".to_owned(),
            Self::Bulk => format!("/bytes/{BULK}"),
            Self::H3Bulk => format!("/bytes/{H3_BULK}"),
            Self::Ws => "/ws".to_owned(),
            Self::CacheHit => format!("/fresh/{CACHED}"),
            Self::H1 | Self::H1s | Self::H2 | Self::H3 => format!("/bytes/{bytes}"),
        }
    }

    /// The length of each request's body.
    pub(crate) fn sends(self) -> Option<u64> {
        (self == Self::Upload).then_some(UPLOAD)
    }

    /// The status of what went well: of a message, that of its tunnel.
    pub(crate) fn good(self) -> &'static str {
        if self == Self::Ws { "101" } else { "200" }
    }
}
