//! Certificates by ACME (RFC 8555): issued, renewed and shared between instances, into a [`portcullis_tls::CertStore`]
//! that serves them while connections run.
//!
//! ```no_run
//! use std::sync::Arc;
//! use portcullis_acme::{Acme, AcmeOptions, Directory, DirStorage};
//! use portcullis_tls::{AcceptorOptions, CertStore, ServerOptions, ServerTls};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let store = Arc::new(CertStore::new());
//! let options = AcmeOptions::new(Directory::LetsEncryptStaging)
//!     .with_contacts(["admin@example.com"])
//!     .with_certificate(["example.com", "www.example.com"]);
//! let acme = Acme::new(&store, Arc::new(DirStorage::new("/var/lib/portcullis/acme")), options)?;
//!
//! // what an earlier start had issued is served at once, whether the authority is up or not
//! let first = acme.clone();
//! tokio::task::spawn_blocking(move || first.load()).await??;
//!
//! // what the authority has to see comes in by the acceptor, or with HTTP-01 by the router on port 80
//! let tls = ServerTls::new(store, &ServerOptions::default())?;
//! let acceptor = tls.acceptor(AcceptorOptions::default().with_name_hook(acme.name_hook()));
//! let plain: axum::Router = axum::Router::new().layer(acme.http01());
//!
//! // issues what is missing and renews what is due, until it is told to end
//! let shutdown = async { std::future::pending().await };
//! acme.run(shutdown).await;
//! # drop((acceptor, plain));
//! # Ok(())
//! # }
//! ```
//!
//! # How it behaves
//!
//! - A start waits for nobody: [`Acme::load`] serves what the storage has, and [`Acme::run`] does the rest. While the
//!   authority is down, or refuses, what is there is served on, an expired certificate included; attempts go on at
//!   growing distances, as [`AcmeOptions::retry_min`] says, and never before the authority wants them.
//! - A certificate is renewed when a third of its lifetime is left, or when the authority suggests it (RFC 9773). The
//!   old one is served until the new one is stored.
//! - Instances that share a [`Storage`] take turns: one holds the certificate's lock and has it issued, the others
//!   find it in the storage. An answer to a challenge is in the storage before the authority is told, so it may come
//!   to any of them.
//! - Everything is kept by the authority's URL: what was issued for a trial is never served in earnest.
//! - What strangers can make grow, by the names they ask for or the tokens they invent, has a bound; see [`OnDemand`]
//!   and [`Http01`].
//!
//! The storage has private keys in it, in the clear. This crate reads no other file and no environment, binds no
//! socket and installs nothing that is process-wide. It needs a tokio runtime of any kind, with time and IO enabled.

mod account;
mod acme;
mod answers;
mod bundle;
mod client;
mod dns;
mod error;
mod hook;
mod http01;
mod names;
mod on_demand;
mod options;
mod order;
mod run;
mod schedule;
mod seldom;
mod state;
mod status;
mod storage;

pub use acme::{Acme, Loaded};
pub use dns::{BoxFuture, DnsError, DnsHook, ExecHook};
pub use error::{AcmeError, BoxError, OptionsError};
pub use http01::{Http01, Http01Layer, Http01Service, ResponseFuture};
pub use on_demand::{AskPolicy, HttpAsk, OnDemand};
pub use options::{AcmeOptions, Challenge, Directory, ExternalAccount, KeyKind};
pub use status::{AcmeStats, CertState, CertStatus, LastError};
pub use storage::{DirStorage, LockGuard, MemoryStorage, Storage, StorageError};
