//! Sockets that say why they could not be made, and an accept loop that outlives descriptor exhaustion.
//!
//! For any tokio program, alone or together:
//!
//! - [`BindPlan`]: every wanted address (TCP, UDP, unix) is checked against the others before a socket is made, and
//!   when the system refuses one the error says who holds the port, or which permission is missing, and what to do. Each
//!   option is read back, and told if the kernel made something else of it.
//! - [`Incoming`]: a stream of accepted connections that never ends by a passing error. Errors of one connection are
//!   skipped; a shortage of descriptors or memory pauses the loop, says so once, and ends early when a connection
//!   closes. Some descriptors are left for the work on open connections.
//! - [`Limits`]: bounds on open connections, of all, of a listener and of a client, changeable while running; and the
//!   handle that pauses, resumes and drains all listeners and says what they did. The permit is taken before accept and
//!   lives inside the stream ([`Permitted`]), so it can't leak and survives an upgrade; what is past the limit waits in
//!   the kernel's queue, or is refused.
//! - [`IncomingExt`]: the same three things as adapters over any stream of accepted sockets.
//! - `InheritedSocket`: sockets from systemd, a parent or an older process, with their queues.
//! - [`read_proxy_header`] and [`sniff`]: who the client behind a proxy is, and which protocol it speaks, by looking at the
//!   first bytes without taking more than is theirs. Nothing here knows TLS or HTTP: it only tells them apart.
//!
//! ```no_run
//! use futures_util::StreamExt;
//! use portcullis_listener::{Incoming, Limits};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let mut incoming = Incoming::bind("[::]:8080".parse()?, Limits::new(1000))?;
//! while let Some(conn) = incoming.next().await {
//!     // the permit is inside of `conn.io`
//!     tokio::spawn(async move { drop(conn) });
//! }
//! # Ok(()) }
//! ```
//!
//! With the feature `axum`, `axum::serve(incoming, app)` gets all of it.
//!
//! This crate reads `/proc` and `/etc/passwd` to explain a bind that failed, to name a socket's owner and to count its own
//! descriptors; nothing else.

mod accept;
mod bind;
#[cfg(unix)]
mod inherited;
mod limits;
mod proxy_protocol;
mod sniff;
mod socket;
mod sys;
#[cfg(test)]
mod test_log;

#[cfg(feature = "axum")]
pub use self::accept::ClientAddr;
#[cfg(unix)]
pub use self::{
    accept::UnixAcceptor,
    bind::UnixSocketFile,
    inherited::{
        InheritError, InheritedKind, InheritedSocket, MOST_HANDED_OVER, SystemdEnv, receive_descriptors,
        receive_sockets, send_descriptors, send_sockets, systemd_sockets,
    },
};
pub use self::{
    accept::{
        AcceptOptions, AnyAcceptor, AnyStream, Backpressure, ErrorClass, HandleErrors, Incoming, IncomingExt,
        Listen, LogWarnings, TcpAcceptor, classify, error_hint,
    },
    bind::{BindError, BindPlan, Bound, Conflict, Holder, Overlap, PlanError, Protocol},
    limits::{
        ClientGuard, ClientLimit, ClientRefused, DescriptorBudget, DrainTimeout, ErrorCounts, LimitOptions,
        Limits, ListenerLimits, ListenerStats, OverClient, OverLimit, Permit, Permitted, Refused,
        TooManyConnections, descriptor_limit, open_descriptors, raise_descriptor_limit,
    },
    proxy_protocol::{Presence, ProxyProtocolError, ProxyProtocolOptions, read_proxy_header},
    sniff::{Peek, Peeked, SniffError, sniff},
    socket::{
        Changed, Keepalive, ListenAddr, ListenAddrError, OptionError, TcpOptions, UdpOptions, UnixName,
        UnixOptions, UnixOwner,
    },
};
