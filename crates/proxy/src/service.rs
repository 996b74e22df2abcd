//! [`ReverseProxy`]: the rules of this crate around an upstream service.

use std::{
    error::Error,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;
use portcullis_conn::ConnInfo;
use tokio::time::timeout;
use tower_service::Service;

use crate::{
    fault::{Fault, InternalFault, UpstreamFault},
    fields::Seen,
    forwarded::{self, Downstream, ForwardedOptions, Trust, Via},
    framing::{self, FramingLimits, Head},
    hop, target,
    tunnel::{BoxIo, RelayOptions, TunnelGuard, Tunnels, UpstreamTunnel},
    upgrade::{self, UpgradeProtocols, UpgradeRequest},
};

/// What a [`ReverseProxy`] allows and says.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProxyOptions {
    /// The peers whose `X-Forwarded-*` and `Forwarded` fields are believed. Default nobody's.
    pub trust: Arc<Trust>,
    /// Which fields tell the upstream of the client. Default `X-Forwarded-*`.
    pub forwarded: ForwardedOptions,
    /// The count and bound of open tunnels, to be shared by all proxies of an edge and drained at its end. Default: its own,
    /// at most 1,000.
    pub tunnels: Tunnels,
    /// The protocols that clients may upgrade to. Default `websocket`.
    pub upgrades: UpgradeProtocols,
    /// How tunnels are relayed. Default: closed after 1 h without a byte.
    pub relay: RelayOptions,
    /// Bounds on the request line, and dot segments.
    pub framing: FramingLimits,
    /// `Via` members for requests and responses. Default none, see [`crate::forwarded`].
    pub via: Option<Arc<Via>>,
}

impl Default for ProxyOptions {
    fn default() -> Self {
        Self::new(Tunnels::new(1000))
    }
}

impl ProxyOptions {
    /// The defaults, with tunnels counted here.
    pub fn new(tunnels: Tunnels) -> Self {
        Self {
            trust: Arc::default(),
            forwarded: ForwardedOptions::default(),
            tunnels,
            upgrades: UpgradeProtocols::default(),
            relay: RelayOptions::default(),
            framing: FramingLimits::default(),
            via: None,
        }
    }

    /// Sets [`Self::trust`].
    #[must_use]
    pub fn with_trust(mut self, trust: Arc<Trust>) -> Self {
        self.trust = trust;
        self
    }

    /// Sets [`Self::forwarded`].
    #[must_use]
    pub fn with_forwarded(mut self, forwarded: ForwardedOptions) -> Self {
        self.forwarded = forwarded;
        self
    }

    /// Sets [`Self::tunnels`].
    #[must_use]
    pub fn with_tunnels(mut self, tunnels: Tunnels) -> Self {
        self.tunnels = tunnels;
        self
    }

    /// Sets [`Self::upgrades`].
    #[must_use]
    pub fn with_upgrades(mut self, upgrades: UpgradeProtocols) -> Self {
        self.upgrades = upgrades;
        self
    }

    /// Sets [`Self::relay`].
    #[must_use]
    pub fn with_relay(mut self, relay: RelayOptions) -> Self {
        self.relay = relay;
        self
    }

    /// Sets [`Self::framing`].
    #[must_use]
    pub fn with_framing(mut self, framing: FramingLimits) -> Self {
        self.framing = framing;
        self
    }

    /// Sets [`Self::via`].
    #[must_use]
    pub fn with_via(mut self, via: Option<Via>) -> Self {
        self.via = via.map(Arc::new);
        self
    }
}

/// A reverse proxy in front of an upstream service.
///
/// What the upstream gets: the origin-form target alone (no scheme, no authority), exactly one `Host`, HTTP/1.1 as the version,
/// no field of another hop (an agreed upgrade's `Connection` and `Upgrade` excepted), `Content-Length` as it came and
/// `Transfer-Encoding` never: the body says how long it is, the writer frames it. `TE: trailers` and `Expect:
/// 100-continue` are passed on. The extensions stay as they are.
///
/// What the client's driver gets: the same care for the answer, and on an agreed 101 the tunnel runs in a task of
/// its own, so a Tokio runtime must be there. An upstream answers 101 with an [`UpstreamTunnel`] in the response's
/// extensions.
///
/// What is known of the client comes from the `Arc<ConnInfo>` in the request's extensions. Without one nothing that
/// the request says of its client is believed and nothing is said in its place.
///
/// The future holds the upstream's in place: nothing is boxed on the way of a request that is no upgrade.
#[derive(Clone, Debug)]
pub struct ReverseProxy<U> {
    options: Arc<ProxyOptions>,
    upstream: U,
}

impl<U> ReverseProxy<U> {
    /// Puts the rules in front of `upstream`.
    pub fn new(options: ProxyOptions, upstream: U) -> Self {
        Self { options: Arc::new(options), upstream }
    }
}

impl<U, B, RB> Service<Request<B>> for ReverseProxy<U>
where
    U: Service<Request<B>, Response = Response<RB>, Error = Fault>,
{
    type Response = Response<RB>;
    type Error = Fault;
    type Future = ProxyFuture<U::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.upstream.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let version = request.version();
        match prepare(&self.options, &mut request) {
            Ok(pending) => ProxyFuture {
                state: State::Forward { inner: self.upstream.call(request) },
                pending,
                via: self.options.via.clone(),
                version,
            },
            Err(fault) => ProxyFuture {
                state: State::Refused { fault: Some(fault) },
                pending: None,
                via: None,
                version,
            },
        }
    }
}

/// An upgrade that waits for the upstream's 101.
struct Pending {
    request: UpgradeRequest,
    downstream: OnUpgrade,
    guard: TunnelGuard,
    relay: RelayOptions,
}

/// Everything between the client's driver and the upstream, in the one order that is safe.
fn prepare<B>(options: &ProxyOptions, request: &mut Request<B>) -> Result<Option<Box<Pending>>, Fault> {
    let seen = Seen::of(request.headers());
    framing::check_request_seen(Head::of(request), seen, &options.framing)?;
    let pending = if seen.has(Seen::UPGRADE) { note_upgrade(options, request)? } else { None };
    let downstream = request
        .extensions()
        .get::<Arc<ConnInfo>>()
        .map_or(Downstream::unknown(), |info| Downstream::from(&**info));

    if seen.has(Seen::MAX_FORWARDS) {
        let method = request.method().clone();
        framing::count_hop(&method, request.headers_mut());
    }
    // RFC 9110 section 10.1.1: an expectation on HTTP/1.0 MUST be ignored
    if seen.has(Seen::EXPECT) && request.version() == Version::HTTP_10 {
        request.headers_mut().remove(header::EXPECT);
    }
    if request.version() >= Version::HTTP_2 {
        join_cookies(request.headers_mut());
    }
    // what the client lists goes before what we say is added
    hop::strip_request_seen(request.headers_mut(), seen);
    if !seen.has(Seen::HOST) || request.uri().authority().is_some() {
        let mut uri = mem::take(request.uri_mut());
        target::set_host(request.headers_mut(), &uri, downstream.local);
        target::to_origin_form(&mut uri);
        *request.uri_mut() = uri;
    }
    forwarded::apply_seen(request.headers_mut(), seen, downstream, &options.trust, options.forwarded);
    if let Some(via) = &options.via {
        let version = request.version();
        via.append(request.headers_mut(), version);
    }
    if let Some(pending) = &pending {
        pending.request.set(request.headers_mut());
    }
    *request.version_mut() = Version::HTTP_11;
    Ok(pending)
}

/// RFC 9113 section 8.2.3 and RFC 9114 section 4.2.1: cookies may come in several fields and go on to HTTP/1.1 in one.
fn join_cookies(headers: &mut http::HeaderMap) {
    let mut lines = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (lines.next(), lines.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for line in std::iter::once(second).chain(lines) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(line.as_bytes());
    }
    // made of valid values and two valid bytes
    if let Ok(joined) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
        headers.insert(header::COOKIE, joined);
    }
}

fn note_upgrade<B>(options: &ProxyOptions, request: &mut Request<B>) -> Result<Option<Box<Pending>>, Fault> {
    let asked = upgrade::requested(request, &options.upgrades);
    // taken out in any case: an upgrade that is not forwarded must not be found by anybody behind
    let downstream = request.extensions_mut().remove::<OnUpgrade>();
    let (Some(asked), Some(downstream)) = (asked, downstream) else { return Ok(None) };
    let guard = options.tunnels.try_open().ok_or_else(|| Fault::internal(InternalFault::TunnelsFull))?;
    Ok(Some(Box::new(Pending { request: asked, downstream, guard, relay: options.relay })))
}

pin_project! {
    /// The answer to come, or the fault.
    #[must_use = "futures do nothing unless polled"]
    pub struct ProxyFuture<F> {
        #[pin]
        state: State<F>,
        pending: Option<Box<Pending>>,
        via: Option<Arc<Via>>,
        version: Version,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        Forward { #[pin] inner: F },
        Refused { fault: Option<Fault> },
    }
}

impl<F, RB> Future for ProxyFuture<F>
where
    F: Future<Output = Result<Response<RB>, Fault>>,
{
    type Output = Result<Response<RB>, Fault>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = match this.state.project() {
            StateProj::Forward { inner } => ready!(inner.poll(cx))?,
            StateProj::Refused { fault } => {
                return Poll::Ready(Err(fault.take().expect("a future is not polled after it is ready")));
            }
        };
        finish(&mut response, this.pending.take(), *this.version)?;
        if let Some(via) = this.via {
            let version = response.version();
            via.append(response.headers_mut(), version);
        }
        // the client's driver writes its own version
        *response.version_mut() = Version::HTTP_11;
        Poll::Ready(Ok(response))
    }
}

/// Everything between the upstream and the client's driver.
fn finish<RB>(
    response: &mut Response<RB>,
    pending: Option<Box<Pending>>,
    downstream: Version,
) -> Result<(), Fault> {
    let seen = Seen::of(response.headers());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return switch(response, seen, pending);
    }
    // RFC 9110 section 7.8: without a 101 the client goes on in HTTP; the place among the tunnels is free again
    drop(pending);
    framing::check_response_seen(response.status(), response.headers(), seen)?;
    // RFC 9110 section 15.5.22: a 426 MUST name a protocol, so this one Upgrade is told to the next hop
    let wanted = (response.status() == StatusCode::UPGRADE_REQUIRED && downstream == Version::HTTP_11)
        .then(|| response.headers().get(header::UPGRADE).cloned())
        .flatten();
    let headers = response.headers_mut();
    hop::strip_response_seen(headers, seen);
    if let Some(wanted) = wanted {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, wanted);
    }
    Ok(())
}

/// Why a 101 opens no tunnel.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum SwitchError {
    #[error("a 101 to a request that asked for no upgrade")]
    Unasked,
    #[error("a 101 to another protocol than was asked for")]
    OtherProtocol,
    #[error("a 101 without the stream behind it")]
    NoStream,
}

impl From<SwitchError> for Fault {
    fn from(error: SwitchError) -> Self {
        Fault::upstream(UpstreamFault::Protocol).with_source(error)
    }
}

/// The one place where a tunnel begins: a 101, to a client that asked, in the protocol that it asked for.
fn switch<RB>(response: &mut Response<RB>, seen: Seen, pending: Option<Box<Pending>>) -> Result<(), Fault> {
    let pending = pending.ok_or(SwitchError::Unasked)?;
    if !pending.request.is_agreed(response.headers()) {
        return Err(SwitchError::OtherProtocol.into());
    }
    let upstream = response
        .extensions_mut()
        .remove::<UpstreamTunnel>()
        .and_then(|tunnel| tunnel.take())
        .ok_or(SwitchError::NoStream)?;
    let headers = response.headers_mut();
    hop::strip_response_seen(headers, seen);
    // RFC 9110 section 8.6: a 1xx has no length
    headers.remove(header::CONTENT_LENGTH);
    pending.request.set(headers);
    tokio::spawn(run_tunnel(*pending, upstream));
    Ok(())
}

async fn run_tunnel(pending: Pending, upstream: BoxIo) {
    let Pending { request, downstream, guard, relay } = pending;
    // the driver hands the client's stream over when it has written the 101
    let downstream = tokio::select! {
        downstream = timeout(relay.idle_timeout, downstream) => downstream,
        () = guard.aborted() => return,
    };
    let downstream = match downstream {
        Ok(Ok(downstream)) => TokioIo::new(downstream),
        Ok(Err(error)) => {
            tracing::debug!(error = &error as &dyn Error, "the client went away before its tunnel began");
            return;
        }
        Err(_) => {
            tracing::debug!("the client's connection was not handed over in time");
            return;
        }
    };
    let stats = guard.relay(downstream, upstream, relay).await;
    tracing::debug!(
        protocol = ?request.protocol(),
        to_upstream = stats.a_to_b,
        to_downstream = stats.b_to_a,
        end = ?stats.end,
        "tunnel closed"
    );
}
