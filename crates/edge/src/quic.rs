//! The QUIC endpoints of an edge: what is changed of them while they serve, and whether HTTP/3 is offered.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use portcullis_h3::{EndpointError, EndpointHandle, QuicOptions};

use crate::{EdgeError, EdgeHandle, edge::Shared, plan::ListenerPlan};

/// All of them, one of each listener and worker.
#[derive(Debug, Default)]
pub(crate) struct QuicEndpoints {
    /// With the listener's place in the plan.
    endpoints: Mutex<Vec<(usize, EndpointHandle)>>,
    /// Whether a listener offers HTTP/3 by `Alt-Svc`; by its place.
    offers: Vec<Arc<AtomicBool>>,
}

/// HTTP/3 is offered until this is dropped.
pub(crate) struct Offer(Arc<AtomicBool>);

impl Offer {
    /// New connections are no longer taken.
    pub(crate) fn end(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.end();
    }
}

impl QuicEndpoints {
    pub(crate) fn new(listeners: usize) -> Self {
        Self { endpoints: Mutex::default(), offers: (0..listeners).map(|_| Arc::default()).collect() }
    }

    /// The switch of a listener's `Alt-Svc`: on from when an endpoint serves until one no longer takes connections.
    pub(crate) fn switch(&self, listener: usize) -> Arc<AtomicBool> {
        self.offers[listener].clone()
    }

    /// An endpoint begins to serve.
    pub(crate) fn begin(&self, listener: usize, endpoint: EndpointHandle) -> Offer {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner).push((listener, endpoint));
        let offer = self.switch(listener);
        offer.store(true, Ordering::Relaxed);
        Offer(offer)
    }

    fn of(&self, listener: usize) -> Vec<EndpointHandle> {
        let endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        endpoints.iter().filter(|(of, _)| *of == listener).map(|(_, endpoint)| endpoint.clone()).collect()
    }

    /// Gives all endpoints of a listener other options; whether any serves.
    pub(crate) fn set_options(&self, listener: usize, options: &QuicOptions) -> Result<bool, EndpointError> {
        let mut any = false;
        for endpoint in self.of(listener) {
            any |= endpoint.set_options(options)?;
        }
        Ok(any)
    }
}

impl EdgeHandle {
    /// Changes [`crate::plan::Limits::max_quic_connections`]. A lower one closes nothing: new ones are refused until enough have ended.
    pub fn set_max_quic_connections(&self, max: usize) {
        self.shared.quic_limits.set_max(max);
    }

    /// Open QUIC connections, handshakes included.
    pub fn open_quic_connections(&self) -> usize {
        self.shared.quic_limits.open()
    }

    /// What a listener, by its place in the plan, gives new QUIC connections; `None` where it has no HTTP/3 or does not run.
    pub fn quic_options(&self, listener: usize) -> Option<Arc<QuicOptions>> {
        self.shared.quic.of(listener).first()?.options()
    }

    /// Changes that on all workers, and of open connections what QUIC lets change; see [`EndpointHandle::set_options`]. `false` where the listener has no
    /// HTTP/3 or does not run. A reload puts the plan's options back.
    ///
    /// # Errors
    ///
    /// An option is out of bounds; nothing is changed then.
    pub fn set_quic_options(&self, listener: usize, options: &QuicOptions) -> Result<bool, EdgeError> {
        let address = || {
            self.shared.plan.listeners.get(listener).map_or_else(String::new, |plan| plan.address.to_string())
        };
        let set = self.shared.quic.set_options(listener, options);
        set.map_err(|source| EdgeError::Quic { address: address(), source })
    }
}

/// The listener's, with extended CONNECT where there is anything to ask for by it.
pub(crate) fn options(shared: &Shared, plan: &ListenerPlan) -> QuicOptions {
    let offered = plan.quic.extended_connect || shared.plan.upgrades.over_http2();
    plan.quic.clone().with_extended_connect(offered)
}
