//! TLS for servers: a [`CertStore`] whose content is swapped while connections run, rustls configurations made
//! from plain options ([`tcp_config`], [`quic_config`]), and an [`Acceptor`] that gives every handshake a deadline
//! and says why one failed.
//!
//! ```
//! use std::sync::Arc;
//! use portcullis_tls::{Acceptor, AcceptorOptions, CertStore, ServerOptions, tcp_config};
//!
//! let store = Arc::new(CertStore::new());
//! store.add_self_signed(&["localhost".to_owned()])?;
//! let config = tcp_config(Arc::clone(&store), &ServerOptions::default())?;
//! let acceptor = Acceptor::new(config, AcceptorOptions::default());
//! // `acceptor` is a tower service from `Conn<Io>` to `Conn<TlsStream<Io>>`.
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! To change certificates, change the store's content and keep the configuration: a new configuration would forget
//! every session that clients could resume.
//!
//! This crate binds no socket, speaks no HTTP and installs no process-wide provider. It reads files only where a
//! path is given to it.

pub mod ca;
pub mod client;

mod acceptor;
mod cert_error;
mod client_auth;
mod compress;
mod config;
mod facts;
mod pair;
mod reload;
mod server_tls;
mod session;
mod set;
mod stats;
mod store;
mod stream;
mod tickets;
mod watch;
mod x509;

pub use acceptor::{Acceptor, AcceptorOptions, AskedName, Handshake, NameHook};
pub use cert_error::{CertError, UnreadableReason};
pub use client_auth::{ClientAuth, ClientCaError, ClientCas};
pub use config::{
    ConfigError, HostPolicy, Resumption, ServerOptions, UnknownNames, Versions, ZeroRtt, quic_config,
    tcp_config,
};
pub use facts::tls_info;
pub use pair::Added;
pub use reload::{CertReloader, CertSource, ReloadOptions, Reloaded};
pub use server_tls::ServerTls;
pub use set::{CertSet, Loaded};
pub use stats::{FailureReason, HandshakeError, HandshakeStats};
pub use store::{CertPart, CertStore, CertSummary, Challenges};
pub use stream::TlsStream;
pub use tickets::{TicketKeyError, TicketKeys};
pub use watch::Watch;

/// The ALPN name of who comes to see the answer to a TLS-ALPN-01 challenge (RFC 8737 section 3).
pub const ACME_TLS_ALPN: &[u8] = b"acme-tls/1";
