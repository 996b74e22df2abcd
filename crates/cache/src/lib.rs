//! A shared HTTP cache (RFC 9111) as a tower layer over moka.
//!
//! It stores what an origin says may be stored, answers from it without asking, and asks whether it is still right
//! once it is stale. It never holds a body back: what streams to the client is copied on the way, and stored only
//! if it ended as it should.
//!
//! What makes it safe in front of many users:
//! - a key is scheme, host, port, path and query, never less but by choice; a request for which one of them is missing or
//!   ambiguous passes by;
//! - requests with a body, an upgrade or a field that changes what is asked for pass by;
//! - nothing is stored without explicit freshness but by choice; nothing private, partial, cut short or with a cookie;
//! - memory is bounded: by [`CacheOptions::max_bytes`] for what is stored and [`CacheOptions::max_fill_bytes`]
//!   for what is on its way into the store.
//!
//! Requests for one thing that is not stored are one request to the origin ([`CacheRules::collapse`]): the others read along, as it comes, from one copy in memory. Whoever is polled
//! brings the origin's body on, for all, so a client that is slow or goes away holds up nobody.
//!
//! [`CacheOptions`] say what the store may hold, [`CacheRules`] what a layer puts in and takes out; layers with rules of their own may share a store. The store is purged by URI, by the beginning
//! of URIs and by tag ([`CacheLayer::purge`]).
//!
//! The scheme is what [`ClientSecure`] tells, or that of the connection, from the `Arc<portcullis_conn::ConnInfo>` in the request's extensions, or
//! of an absolute URI, or [`CacheOptions::scheme`].
//!
//! ```
//! use portcullis_cache::{CacheLayer, CacheOptions};
//!
//! let layer = CacheLayer::new(CacheOptions::default().with_max_bytes(64 << 20));
//! // Keep `layer.clone()`: its `run_pending` belongs into a timer, its `stats` into the metrics.
//! ```
//!
//! With the feature `disk` (Rust 1.91) what memory drops may go to a second tier on disk: [`CacheOptions::disk`].
//!
//! There is no clock task in here: call [`CacheLayer::run_pending`] now and then, or expired entries stay in memory
//! (never served) while no request comes.

mod answer;
mod background;
mod body;
mod buf;
mod chunks;
mod complete;
mod conditional;
mod date;
mod decide;
mod directives;
#[cfg(feature = "disk")]
mod disk;
#[cfg(not(feature = "disk"))]
#[path = "no_disk.rs"]
mod disk;
mod disk_options;
mod family;
mod flight;
mod flights;
mod follow;
mod key;
mod layer;
mod marks;
mod meta;
mod options;
mod purge;
mod query;
mod range;
mod request;
mod rules;
mod service;
mod stats;
mod status;
mod store;
mod tags;
mod targeted;
mod vary;

pub use body::{CacheBody, CacheBodyError, CacheBodyInner};
pub use disk_options::{DiskError, DiskOptions};
pub use layer::CacheLayer;
pub use options::CacheOptions;
pub use purge::{Purge, PurgeError};
pub use request::{Authorized, BypassCache, ClientSecure, InBackground, NotForStore};
pub use rules::{Bypass, CacheRules, Heuristic, Query, SetCookie, StatusTtl};
pub use service::{Cache, ResponseFuture};
pub use stats::CacheStats;
