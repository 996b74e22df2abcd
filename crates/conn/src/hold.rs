//! What keeps a connection from being taken for idle.

use std::{any::Any, fmt, sync::Arc};

/// Counts as an open stream of its connection until the last clone is dropped. A driver whose streams outlive the exchange that
/// opened them (CONNECT in HTTP/2, RFC 9113 section 8.5) puts it among the extensions of the request; whoever takes the
/// stream over keeps it as long.
#[derive(Clone)]
pub struct StreamHold(#[allow(dead_code, reason = "it is there to be dropped")] Arc<dyn Any + Send + Sync>);

impl StreamHold {
    /// Holds what counts it.
    pub fn new(count: impl Any + Send + Sync) -> Self {
        Self(Arc::new(count))
    }
}

impl fmt::Debug for StreamHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamHold").finish_non_exhaustive()
    }
}
