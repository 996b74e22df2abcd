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
}

impl Default for AcceptOptions {
    fn default() -> Self {
        Self { pause: Duration::from_millis(500) }
    }
}

impl AcceptOptions {
    /// Sets [`AcceptOptions::pause`].
    #[must_use]
    pub fn with_pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }
}
