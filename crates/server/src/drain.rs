//! Tells connections that the end has come.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Notify, futures::Notified};

/// One for all connections of a call of `serve`. Asking costs an atomic load, so that a connection may ask at every
/// poll; the wake-up comes from a [`Notified`] that is polled once.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    begun: AtomicBool,
    notify: Notify,
}

impl Drain {
    pub(crate) fn begin(&self) {
        self.begun.store(true, Ordering::SeqCst);
        self.notify.notify_waiters();
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::SeqCst)
    }

    /// Poll it once, and ask [`Drain::has_begun`] after that, to miss nothing.
    pub(crate) fn notified(&self) -> Notified<'_> {
        self.notify.notified()
    }
}
