//! [`ReverseProxy`]: the rules of this crate around an upstream service.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::ext::Protocol;
use pin_project_lite::pin_project;
use portcullis_conn::{ConnInfo, ConnectProtocol, StreamHold};
use tower_service::Service;

use crate::{
    client_stream::{Downstream as ClientEnd, over},
    fault::{ClientFault, Fault, InternalFault, UpstreamFault},
    fields::Seen,
    forwarded::{self, Downstream, ForwardedOptions, Trust, Via},
    framing::{self, FramingLimits, Head},
    handover::Handover,
    hop, target,
    tunnel::{RelayOptions, TunnelGuard, Tunnels, UpstreamTunnel},
    upgrade::{self, ExtendedError, UpgradeProtocols, UpgradeRequest},
    websocket,
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
/// An extended CONNECT (RFC 8441) goes on as the `GET` with `Connection: upgrade` that HTTP/1.1 has for it, and the
/// upstream's 101 comes back as a 200; no other 2xx does, since to the client it would be a tunnel.
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
    /// What the upstream was sent, of a WebSocket.
    key: Option<HeaderValue>,
    /// Whether the client asked by an extended CONNECT.
    extended: bool,
    downstream: ClientEnd,
    /// Keeps an HTTP/2 connection from being taken for idle.
    hold: Option<StreamHold>,
    /// What the log calls the client's protocol.
    over: &'static str,
    guard: TunnelGuard,
    relay: RelayOptions,
}

/// Among the extensions of an answer behind which a tunnel begins: 101, or 2xx to a CONNECT. Such an answer to a CONNECT that
/// does not have it is an answer by somebody who knows of no tunnel.
#[derive(Clone, Copy, Debug)]
pub struct TunnelBegun(());

impl TunnelBegun {
    pub(crate) fn new() -> Self {
        Self(())
    }
}

/// Everything between the client's driver and the upstream, in the one order that is safe.
fn prepare<B>(options: &ProxyOptions, request: &mut Request<B>) -> Result<Option<Box<Pending>>, Fault> {
    // before the check: from here on it is the GET that HTTP/1.1 would have, with the fields that HTTP/2 may have
    let extended =
        if upgrade::is_extended_connect(request) { Some(note_extended(options, request)?) } else { None };
    let seen = Seen::of(request.headers());
    framing::check_request_seen(Head::of(request), seen, &options.framing)?;
    let pending = match extended {
        None if seen.has(Seen::UPGRADE) => note_upgrade(options, request)?,
        extended => extended,
    };
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
        let headers = request.headers_mut();
        pending.request.set(headers);
        if pending.extended {
            // RFC 8441 section 5: its client has none
            headers.remove(&websocket::KEY);
            if let Some(key) = &pending.key {
                headers.insert(&websocket::KEY, key.clone());
            }
        }
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
    let downstream = ClientEnd::remove(request.extensions_mut());
    let (Some(asked), Some(downstream)) = (asked, downstream) else { return Ok(None) };
    let key = if asked.is_websocket() { websocket::key(request.headers()).cloned() } else { None };
    pending(options, asked, key, downstream).map(Some)
}

/// Turns an extended CONNECT into the GET that stands for it.
fn note_extended<B>(options: &ProxyOptions, request: &mut Request<B>) -> Result<Box<Pending>, Fault> {
    let asked = upgrade::extended(request, &options.upgrades).map_err(|error| {
        let fault = match error {
            ExtendedError::Protocol => ClientFault::MethodNotImplemented,
            ExtendedError::Length => ClientFault::Malformed,
        };
        Fault::client(fault).with_source(error)
    })?;
    let extensions = request.extensions_mut();
    extensions.remove::<Protocol>();
    extensions.remove::<ConnectProtocol>();
    let (downstream, hold) = (ClientEnd::remove(extensions), extensions.remove::<StreamHold>());
    let downstream = downstream.ok_or_else(|| Fault::client(ClientFault::MethodNotImplemented))?;
    let key = asked.is_websocket().then(websocket::fresh_key);
    let mut pending = pending(options, asked, key, downstream)?;
    pending.extended = true;
    pending.hold = hold;
    pending.over = over(request.version());
    *request.method_mut() = Method::GET;
    Ok(pending)
}

fn pending(
    options: &ProxyOptions,
    request: UpgradeRequest,
    key: Option<HeaderValue>,
    downstream: ClientEnd,
) -> Result<Box<Pending>, Fault> {
    let guard = options.tunnels.try_open().ok_or_else(|| Fault::internal(InternalFault::TunnelsFull))?;
    let relay = options.relay;
    let over = over(Version::HTTP_11);
    Ok(Box::new(Pending { request, key, extended: false, downstream, hold: None, over, guard, relay }))
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
    // RFC 9110 section 7.8: without a 101 the client goes on in HTTP; the place among the tunnels is free again. After
    // a CONNECT any 2xx is a tunnel to it (section 9.3.6), and here is none.
    if pending.is_some_and(|pending| pending.extended) && response.status().is_success() {
        return Err(SwitchError::NotSwitched.into());
    }
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
    #[error("a 101 whose sec-websocket-accept does not belong to the key")]
    WrongAccept,
    #[error("a success that is no 101 to an extended connect")]
    NotSwitched,
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
    // an upstream on HTTP/2 agreed by its 200, without a key
    let keyed = response.version() < Version::HTTP_2;
    if keyed && pending.key.as_ref().is_some_and(|key| !websocket::is_accepted(response.headers(), key)) {
        return Err(SwitchError::WrongAccept.into());
    }
    let upstream = response
        .extensions_mut()
        .remove::<UpstreamTunnel>()
        .and_then(|tunnel| tunnel.take())
        .ok_or(SwitchError::NoStream)?;
    let headers = response.headers_mut();
    hop::strip_response_seen(headers, seen);
    // RFC 9110 sections 8.6 and 9.3.6: neither a 1xx nor a 2xx to a CONNECT has a length
    headers.remove(header::CONTENT_LENGTH);
    if pending.extended {
        headers.remove(&websocket::ACCEPT);
        *response.status_mut() = StatusCode::OK;
    } else {
        pending.request.set(headers);
        if !keyed && let Some(key) = &pending.key {
            headers.insert(&websocket::ACCEPT, websocket::accept(key));
        }
    }
    response.extensions_mut().insert(TunnelBegun::new());
    let Pending { request, downstream, guard, relay, hold, over, .. } = *pending;
    let protocol = request.protocol().to_str().unwrap_or_default().to_owned();
    let handover = Handover { downstream, hold, guard, bound: None, relay, protocol, to: None, over };
    tokio::spawn(handover.run(upstream));
    Ok(())
}
