//! Options of the accept loop.

use std::time::Duration;

/// How the accept loop behaves when the system runs short.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AcceptOptions {
    /// How long accepting rests after an error that means a shortage ([`crate::ErrorClass::Shortage`]), unless a
    /// connection closes earlier. Default 500 ms: long enough to cost nothing, short enough that a client in the
    /// kernel's queue hardly notices. At least 1 ms. An episode counts as over when this long passed without such an error.
    pub pause: Duration,
    /// Descriptors that accepting leaves free for the work on connections that are open already: upstreams, files,
    /// name look-ups. When no more than these are left, accepting pauses as in a shortage, although the system would
    /// still give one. Default 32, and never more than a quarter of the soft limit (`ulimit -n`); 0 leaves none. It
    /// costs no system call while there is room. On Unix; elsewhere it has no meaning.
    pub headroom: u32,
    /// Connections accepted in a row without giving way to other tasks. Default 64; at least 1. tokio's own budget
    /// (128 operations of one poll of a task) bounds it besides.
    pub batch: u32,
}

impl Default for AcceptOptions {
    fn default() -> Self {
        Self { pause: Duration::from_millis(500), headroom: 32, batch: 64 }
    }
}

impl AcceptOptions {
    /// Sets [`AcceptOptions::pause`].
    #[must_use]
    pub fn with_pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// Sets [`AcceptOptions::headroom`].
    #[must_use]
    pub fn with_headroom(mut self, descriptors: u32) -> Self {
        self.headroom = descriptors;
        self
    }

    /// Sets [`AcceptOptions::batch`].
    #[must_use]
    pub fn with_batch(mut self, connections: u32) -> Self {
        self.batch = connections;
        self
    }
}
