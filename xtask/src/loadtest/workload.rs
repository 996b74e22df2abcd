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
}

impl Workload {
    pub(crate) const ALL: [Self; 4] = [Self::H1, Self::H1s, Self::H2, Self::H3];

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|workload| workload.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::H1 => "h1",
            Self::H1s => "h1s",
            Self::H2 => "h2",
            Self::H3 => "h3",
        }
    }

    /// Connections, and streams on each.
    pub(crate) fn shape(self) -> (usize, usize) {
        match self {
            Self::H1 | Self::H1s => (64, 1),
            Self::H2 | Self::H3 => (16, 32),
        }
    }

    pub(crate) fn scheme(self) -> &'static str {
        if self == Self::H1 { "http" } else { "https" }
    }
}
