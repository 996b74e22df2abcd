//! The message rules of a reverse proxy, as pure functions, and one tower service that applies them.
//!
//! What each module decides, and how it differs from its neighbour:
//!
//! - [`framing`]: whether a request (or an answer) may be forwarded at all; it changes nothing.
//! - [`hop`]: which fields end at this hop (RFC 9110 section 7.6.1).
//! - [`forwarded`]: who the client is, and the fields that tell the upstream.
//! - [`target`]: the request target and the `Host` that the upstream sees.
//! - [`host`]: what a host name is and when two are the same.
//! - [`path`]: the one form of a path, and what an edge makes of paths before anything looks at them.
//! - [`matcher`]: what a route asks of a request.
//! - [`router`]: which of many routes a request belongs to, and why.
//! - [`rewrite`]: what a route makes of the target, with captures.
//! - [`edits`]: fields that a route sets, adds and removes.
//! - [`split`]: shares of requests among several.
//! - [`mirror`]: a copy of some requests to another place.
//! - [`upgrade`]: whether a request asks for another protocol, and whether the upstream agreed.
//! - [`connect_target`]: where a CONNECT leads, and the list of what it may lead to.
//! - [`connect`]: [`ConnectProxy`], which opens a tunnel to what that list allows.
//! - [`tunnel`]: what happens after it agreed: bytes both ways, counted, bounded and drained.
//! - [`fault`]: who is at fault, and the one table from fault to status.
//! - [`service`]: [`ReverseProxy`], which does all of it around any upstream service.
//!
//! Nothing here holds a connection, reads a file or knows where a request goes: the upstream is a
//! `tower_service::Service<http::Request<B>>`, and what is known about the client's connection is the
//! `Arc<portcullis_conn::ConnInfo>` in the request's extensions.
//!
//! ```
//! use std::convert::Infallible;
//! use http::{Request, Response};
//! use portcullis_proxy::{Fault, ProxyOptions, ReverseProxy, Tunnels};
//! use tower::ServiceExt;
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! // whatever sends a request: a pooled client, a router over several, a mock
//! let upstream = tower::service_fn(|request: Request<()>| async move {
//!     assert_eq!(request.headers()["host"], "a.example.com");
//!     assert!(!request.headers().contains_key("connection"));
//!     Ok::<_, Fault>(Response::new("hello"))
//! });
//! let proxy = ReverseProxy::new(ProxyOptions::new(Tunnels::new(100)), upstream);
//! let request = Request::get("/").header("host", "a.example.com").header("connection", "close").body(()).unwrap();
//! assert_eq!(proxy.oneshot(request).await.unwrap().into_body(), "hello");
//! # });
//! ```

mod client_stream;
pub mod connect;
pub mod connect_target;
pub mod edits;
pub mod fault;
mod fields;
pub mod forwarded;
pub mod framing;
mod handover;
pub mod hop;
pub mod host;
pub mod matcher;
pub mod mirror;
pub mod path;
pub mod rewrite;
pub mod router;
pub mod service;
pub mod split;
pub mod target;
pub mod tunnel;
pub mod upgrade;
mod websocket;

pub use client_stream::ClientStream;
pub use connect::{ConnectOptions, ConnectProxy, ConnectRefused, is_connect};
pub use connect_target::{
    ConnectHost, ConnectRule, ConnectRuleError, ConnectRules, ConnectTarget, ConnectTargetError,
};
pub use edits::{EditError, FieldEdits};
pub use fault::{
    AnswerOptions, Asker, ClientFault, Fault, Format, InternalFault, Kind, ProxyName, UpstreamFault,
};
pub use forwarded::{Downstream, ForwardedOptions, ForwardedStyle, Trust, Via, client_ip, client_secure};
pub use framing::{AnswerError, Dots, FramingError, FramingLimits};
pub use matcher::{Asked, PathMatch, RouteMatch, ValueMatch};
pub use path::{EncodedSlash, PathRules};
pub use router::{Lookup, RouteError, Router, RouterBuilder};
pub use service::{ProxyFuture, ProxyOptions, ReverseProxy, TunnelBegun};
pub use tunnel::{
    LIFE_BOUNDS, RelayEnd, RelayOptions, RelayStats, TunnelGuard, TunnelTotals, Tunnels, UpstreamTunnel,
    relay,
};
pub use upgrade::{ProtocolError, UpgradeProtocols, UpgradeRequest, is_extended_connect};
