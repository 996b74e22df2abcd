//! An edge in code.

use std::{net::SocketAddr, sync::Arc};

#[cfg(unix)]
use std::sync::{Mutex, PoisonError};

#[cfg(unix)]
use portcullis_listener::InheritedSocket;

use portcullis_tls::CertStore;
use tower_layer::Layer;

#[cfg(unix)]
use crate::TakeOver;

use crate::{
    Edge, EdgeError, EdgeService,
    order::UserLayer,
    plan::{
        AcmePlan, AdminPlan, CertificateSource, ClusterPlan, ListenerMode, ListenerPlan, PlainHttp, Plan,
        RouteAction, RoutePlan, Workers,
    },
};

/// Fills in a [`Plan`] step by step. What it has no method for is reached by [`EdgeBuilder::plan`].
#[derive(Clone, Default)]
pub struct EdgeBuilder {
    plan: Plan,
    layers: Vec<UserLayer>,
    #[cfg(unix)]
    inherited: Arc<Mutex<Vec<InheritedSocket>>>,
    #[cfg(unix)]
    taken: Arc<Mutex<Option<TakeOver>>>,
    hands_over: bool,
}

impl EdgeBuilder {
    /// Begins with a plan that is filled in already.
    pub fn from_plan(plan: Plan) -> Self {
        Self { plan, ..Self::default() }
    }

    /// Listens for HTTPS, with HTTP/3 on the UDP port of the same number; plain HTTP is redirected.
    #[must_use]
    pub fn https(self, address: SocketAddr) -> Self {
        self.listener(ListenerPlan::new(
            address,
            ListenerMode::Https { http3: true, plain_http: PlainHttp::Redirect },
        ))
    }

    /// Listens for plain HTTP.
    #[must_use]
    pub fn http(self, address: SocketAddr) -> Self {
        self.listener(ListenerPlan::new(address, ListenerMode::Http))
    }

    /// Listens as planned.
    #[must_use]
    pub fn listener(mut self, listener: ListenerPlan) -> Self {
        self.plan.listeners.push(listener);
        self
    }

    /// Serves the certificates of this store, which the program fills and replaces as it likes.
    #[must_use]
    pub fn tls(mut self, store: Arc<CertStore>) -> Self {
        self.plan.cert_store = Some(store);
        self
    }

    /// Takes certificates from a source.
    #[must_use]
    pub fn certificate(mut self, source: CertificateSource) -> Self {
        self.plan.certificates.push(source);
        self
    }

    /// Has certificates issued by ACME, and kept up.
    #[must_use]
    pub fn acme(mut self, acme: AcmePlan) -> Self {
        self.plan.acme = Some(acme);
        self
    }

    /// Makes a certificate for these names, for local use.
    #[must_use]
    pub fn self_signed(self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let names = names.into_iter().map(Into::into).collect();
        self.certificate(CertificateSource::SelfSigned { names })
    }

    /// Forwards requests for a host to a cluster; the host `*` is every host. A cluster of a name that is there already is
    /// that one.
    #[must_use]
    pub fn route(mut self, host: &str, cluster: ClusterPlan) -> Self {
        let host = (host != "*").then_some(host);
        let action = RouteAction::Forward { cluster: cluster.name.clone() };
        self.plan.routes.push(RoutePlan::new(host, action));
        if self.plan.clusters.iter().all(|known| known.name != cluster.name) {
            self.plan.clusters.push(cluster);
        }
        self
    }

    /// Serves `/metrics` and `/health` in plain HTTP.
    #[must_use]
    pub fn admin(mut self, address: SocketAddr) -> Self {
        self.plan.admin = Some(AdminPlan::new(address));
        self
    }

    /// How the work is spread over the cores.
    #[must_use]
    pub fn workers(mut self, workers: Workers) -> Self {
        self.plan.workers = workers;
        self
    }

    /// A layer of the program's own, around the routes and inside the edge's middleware. The first one given sees a
    /// request first.
    #[must_use]
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<EdgeService> + Send + Sync + 'static,
        L::Service: tower_service::Service<
                http::Request<crate::Body>,
                Response = http::Response<crate::Body>,
                Error = std::convert::Infallible,
                Future: Send,
            > + Clone
            + Send
            + Sync
            + 'static,
    {
        self.layers.push(Arc::new(move |service| EdgeService::new(layer.layer(service))));
        self
    }

    /// Sockets that systemd or another process handed over, for the listeners that name them
    /// ([`crate::plan::ListenOn::Inherited`]). Clones of this builder share them: the first that builds has them.
    #[cfg(unix)]
    #[must_use]
    pub fn inherit(self, sockets: impl IntoIterator<Item = InheritedSocket>) -> Self {
        // nothing panics while it is held
        self.inherited.lock().unwrap_or_else(PoisonError::into_inner).extend(sockets);
        self
    }

    /// Keeps what it takes to hand all sockets over to another process while this one serves ([`crate::EdgeHandle::hand_over`]): a duplicate of each. Default: it
    /// does not.
    #[must_use]
    pub fn hand_over(mut self) -> Self {
        self.hands_over = true;
        self
    }

    /// Takes the sockets of the process before this one, for listeners of the same address; others are made. [`Edge::run`] then tells that
    /// process when this one serves. The number of sockets of a group stays as it was: where there are fewer workers than that, some have
    /// several; where there are more, some share.
    #[cfg(unix)]
    #[must_use]
    pub fn take_over(self, taken: TakeOver) -> Self {
        // nothing panics while it is held
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = Some(taken);
        self
    }

    /// Changes the plan by hand.
    #[must_use]
    pub fn plan(mut self, change: impl FnOnce(&mut Plan)) -> Self {
        change(&mut self.plan);
        self
    }

    /// Checks the plan, loads certificates and binds the sockets; see [`Edge::new`].
    pub fn build(self) -> Result<Edge, EdgeError> {
        #[cfg(unix)]
        let inherited = std::mem::take(&mut *self.inherited.lock().unwrap_or_else(PoisonError::into_inner));
        #[cfg(not(unix))]
        let inherited = ();
        #[cfg(unix)]
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner).take();
        #[cfg(not(unix))]
        let taken = ();
        Edge::with_layers(self.plan, self.layers, inherited, taken, self.hands_over)
    }
}

impl std::fmt::Debug for EdgeBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EdgeBuilder").field("plan", &self.plan).finish_non_exhaustive()
    }
}
