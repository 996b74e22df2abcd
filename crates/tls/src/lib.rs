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

mod acceptor;
mod cert_error;
mod config;
mod facts;
mod pair;
mod session;
mod set;
mod stats;
mod store;
mod stream;
mod x509;

pub use acceptor::{Acceptor, AcceptorOptions, Handshake};
pub use cert_error::{CertError, UnreadableReason};
pub use config::{ConfigError, ServerOptions, Versions, quic_config, tcp_config};
pub use facts::tls_info;
pub use pair::Added;
pub use set::{CertSet, Loaded};
pub use stats::{FailureReason, HandshakeError, HandshakeStats};
pub use store::{CertStore, CertSummary};
pub use stream::TlsStream;
