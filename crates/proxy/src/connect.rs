//! [`ConnectProxy`]: the rules for a CONNECT without `:protocol` (RFC 9110 section 9.3.6, RFC 9113 section 8.5) around whatever makes connections.
//!
//! Only what stands on a list is connected to, see [`crate::connect_target`]. The client gets its 2xx when the connection stands and not before;
//! what it sent until then waits in the driver's buffer, and is the tunnel's first. The tunnel itself is that of an upgrade.

use std::{
    future::ready,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Method, Request, Response};
use portcullis_conn::{ConnInfo, StreamHold};
use tokio::io::{AsyncRead, AsyncWrite};
use tower_service::Service;

use crate::{
    client_stream::{Downstream, over},
    connect_target::{ConnectRules, ConnectTarget},
    fault::{ClientFault, Fault, InternalFault},
    forwarded::{Trust, client_ip},
    framing::{self, FramingLimits, Head},
    handover::Handover,
    service::TunnelBegun,
    tunnel::{BoxIo, RelayOptions, Tunnels},
    upgrade::is_extended_connect,
};

/// Who may CONNECT, where to, and how many tunnels there may be.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectOptions {
    /// Where a tunnel may lead. Default nowhere.
    pub rules: Arc<ConnectRules>,
    /// The clients that may ask for one. Default nobody.
    pub clients: Arc<Trust>,
    /// The peers that are believed who the client is, as for [`crate::ProxyOptions::trust`]. Default nobody.
    pub trust: Arc<Trust>,
    /// The count and bound of all tunnels of an edge, to be shared with its [`crate::ReverseProxy`]s.
    pub tunnels: Tunnels,
    /// A bound for these tunnels alone, those that are being connected among them. Default 100.
    pub bound: Tunnels,
    /// How tunnels are relayed. Default: closed after 1 h without a byte.
    pub relay: RelayOptions,
    /// Bounds on the request line.
    pub framing: FramingLimits,
}

impl ConnectOptions {
    /// The defaults, with tunnels counted here.
    pub fn new(tunnels: Tunnels) -> Self {
        Self {
            rules: Arc::default(),
            clients: Arc::default(),
            trust: Arc::default(),
            tunnels,
            bound: Tunnels::new(100),
            relay: RelayOptions::default(),
            framing: FramingLimits::default(),
        }
    }

    /// Sets [`Self::rules`].
    #[must_use]
    pub fn with_rules(mut self, rules: Arc<ConnectRules>) -> Self {
        self.rules = rules;
        self
    }

    /// Sets [`Self::clients`].
    #[must_use]
    pub fn with_clients(mut self, clients: Arc<Trust>) -> Self {
        self.clients = clients;
        self
    }

    /// Sets [`Self::trust`].
    #[must_use]
    pub fn with_trust(mut self, trust: Arc<Trust>) -> Self {
        self.trust = trust;
        self
    }

    /// Sets [`Self::bound`].
    #[must_use]
    pub fn with_bound(mut self, bound: Tunnels) -> Self {
        self.bound = bound;
        self
    }

    /// Sets [`Self::relay`].
    #[must_use]
    pub fn with_relay(mut self, relay: RelayOptions) -> Self {
        self.relay = relay;
        self
    }
}

/// Why a CONNECT is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectRefused {
    /// The client is not among [`ConnectOptions::clients`].
    #[error("connect is not for this client")]
    Client,
    /// The target is not on the list.
    #[error("connect to {0} is not allowed")]
    Target(ConnectTarget),
    /// The name is on the list, and leads to nothing but addresses that are not ([`ConnectRules::allows_address`]).
    #[error("connect to {0} is not allowed: what it resolves to is no address for a name of the list")]
    Address(ConnectTarget),
}

impl From<ConnectRefused> for Fault {
    fn from(refused: ConnectRefused) -> Self {
        Fault::client(ClientFault::ConnectNotAllowed).with_source(refused)
    }
}

/// Whether a request is a CONNECT to a host and a port, and no extended one (RFC 8441 section 4).
pub fn is_connect<B>(request: &Request<B>) -> bool {
    request.method() == Method::CONNECT && !is_extended_connect(request)
}

/// Answers CONNECT by tunnels to what the connector makes of an allowed target.
///
/// The connector gets each target that is on the list, and must look at what a name resolves to by [`ConnectRules::allows_address`]. A request
/// whose driver has no stream to hand over is answered 501.
#[derive(Clone, Debug)]
pub struct ConnectProxy<C> {
    options: Arc<ConnectOptions>,
    connector: C,
}

impl<C> ConnectProxy<C> {
    /// Puts the rules in front of `connector`.
    pub fn new(options: ConnectOptions, connector: C) -> Self {
        Self { options: Arc::new(options), connector }
    }
}

/// What a checked CONNECT holds until its connection stands.
fn prepare<B>(
    options: &ConnectOptions,
    request: &mut Request<B>,
) -> Result<(ConnectTarget, Handover), Fault> {
    // a driver that has none can't do it, whatever is asked; taken out in any case, so that nobody behind finds it
    let downstream = Downstream::remove(request.extensions_mut());
    let downstream = downstream.ok_or_else(|| Fault::client(ClientFault::MethodNotImplemented))?;
    let target = framing::check_connect(Head::of(request), &options.framing)?;
    let over = over(request.version());
    let client = request
        .extensions()
        .get::<Arc<ConnInfo>>()
        .map(|info| client_ip(request.headers(), info.client_ip(), &options.trust));
    if !client.is_some_and(|client| options.clients.trusts(client)) {
        return Err(ConnectRefused::Client.into());
    }
    if !options.rules.allows(&target) {
        return Err(ConnectRefused::Target(target).into());
    }
    let hold = request.extensions_mut().remove::<StreamHold>();
    let full = || Fault::internal(InternalFault::TunnelsFull);
    let bound = options.bound.try_open().ok_or_else(full)?;
    let guard = options.tunnels.try_open().ok_or_else(full)?;
    let handover = Handover {
        downstream,
        hold,
        guard,
        bound: Some(bound),
        relay: options.relay,
        protocol: "connect".to_owned(),
        to: Some(target.to_string()),
        over,
    };
    Ok((target, handover))
}

impl<C, B> Service<Request<B>> for ConnectProxy<C>
where
    C: Service<ConnectTarget, Error = Fault>,
    C::Response: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    C::Future: Send + 'static,
{
    type Response = Response<()>;
    type Error = Fault;
    type Future = Pin<Box<dyn Future<Output = Result<Response<()>, Fault>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.connector.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let prepared = prepare(&self.options, &mut request);
        let (target, handover) = match prepared {
            Ok(prepared) => prepared,
            Err(fault) => return Box::pin(ready(Err(fault))),
        };
        let connecting = self.connector.call(target);
        Box::pin(async move {
            let upstream: BoxIo = Box::new(connecting.await?);
            // RFC 9110 section 9.3.6: neither Content-Length nor Transfer-Encoding
            let mut response = Response::new(());
            response.extensions_mut().insert(TunnelBegun::new());
            tokio::spawn(handover.run(upstream));
            Ok(response)
        })
    }
}
