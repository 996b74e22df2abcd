//! Sockets that say why they could not be made, and an accept loop that outlives descriptor exhaustion.
//!
//! Three things that stand alone or together, for any tokio program:
//!
//! - [`BindPlan`]: every wanted address is checked against the others before a socket is made, and when the system
//!   refuses one the error says who holds the port, or which permission is missing, and what to do.
//! - [`Incoming`]: a stream of accepted connections that never ends by an accept error. Errors of one connection
//!   are skipped; a shortage of descriptors or memory pauses the loop, says so once, and ends early when a
//!   connection closes.
//! - [`Limits`]: a bound on open connections, shared by every listener and changeable while running. The permit is
//!   taken before accept and lives inside the stream ([`Permitted`]), so it can't leak and survives an upgrade;
//!   what is past the limit waits in the kernel's queue.
//!
//! ```no_run
//! use std::num::NonZeroUsize;
//! use portcullis_listener::{AcceptOptions, BindPlan, Incoming, Limits, TcpOptions};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let options = TcpOptions::default();
//! let mut bound = BindPlan::new().tcp("[::]:8080".parse()?, options.clone()).bind(NonZeroUsize::MIN)?;
//! let limits = Limits::new(1000);
//! for listener in bound.remove(0).tcp {
//!     let listener = tokio::net::TcpListener::from_std(listener)?;
//!     let incoming = Incoming::new(listener, &limits, AcceptOptions::default(), &options);
//!     // `incoming` is a `futures_core::Stream` of connections
//! #   drop(incoming);
//! }
//! # Ok(()) }
//! ```
//!
//! [`sniff`] looks at the first bytes of a connection without taking them. Nothing here knows TLS or HTTP: it only
//! tells them apart.
//!
//! This crate reads `/proc` and `/etc/passwd`, and only to explain a bind that failed.

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
        InheritError, InheritedKind, InheritedSocket, MOST_HANDED_OVER, SystemdEnv, receive_sockets,
        send_sockets, systemd_sockets,
    },
};
pub use self::{
    accept::{
        AcceptOptions, AnyAcceptor, AnyStream, Backpressure, ErrorClass, HandleErrors, Incoming, IncomingExt,
        Listen, LogWarnings, TcpAcceptor, classify, error_hint,
    },
    bind::{BindError, BindPlan, Bound, Conflict, Holder, Overlap, PlanError, Protocol},
    limits::{
        ClientLimit, ClientRefused, DescriptorBudget, DrainTimeout, ErrorCounts, LimitOptions, Limits,
        ListenerLimits, ListenerStats, OverClient, OverLimit, Permit, Permitted, Refused, TooManyConnections,
        descriptor_limit, open_descriptors, raise_descriptor_limit,
    },
    proxy_protocol::{Presence, ProxyProtocolError, ProxyProtocolOptions, read_proxy_header},
    sniff::{Peek, Peeked, SniffError, sniff},
    socket::{
        Changed, Keepalive, ListenAddr, ListenAddrError, OptionError, TcpOptions, UdpOptions, UnixName,
        UnixOptions, UnixOwner,
    },
};
