//! A shared HTTP cache (RFC 9111) as a tower layer over moka.
//!
//! It stores what an origin says may be stored, answers from it without asking, and asks whether it is still right
//! once it is stale. It never holds a body back: what streams to the client is copied on the way, and stored only
//! if it ended as it should.
//!
//! What makes it safe in front of many users:
//! - a key is scheme, host, port, path and query, never less; a request for which one of them is missing or
//!   ambiguous passes by;
//! - requests with a body, a range, an upgrade or a field that changes what is asked for pass by;
//! - nothing is stored without explicit freshness; nothing private, partial, cut short or with a cookie;
//! - memory is bounded: by [`CacheOptions::max_bytes`] for what is stored and [`CacheOptions::max_fill_bytes`]
//!   for what is being copied.
//!
//! The scheme is that of the connection, from the `Arc<portcullis_conn::ConnInfo>` in the request's extensions, or
//! of an absolute URI, or [`CacheOptions::scheme`].
//!
//! ```
//! use portcullis_cache::{CacheLayer, CacheOptions};
//!
//! let layer = CacheLayer::new(CacheOptions::default().with_max_bytes(64 << 20));
//! // Keep `layer.clone()`: its `run_pending` belongs into a timer, its `stats` into the metrics.
//! ```
//!
//! There is no clock task in here: call [`CacheLayer::run_pending`] now and then, or expired entries stay in memory
//! (never served) while no request comes.

mod body;
mod conditional;
mod directives;
mod fill;
mod forward;
mod key;
mod options;
mod request;
mod rules;
mod service;
mod stats;
mod store;

pub use body::CacheBody;
pub use options::CacheOptions;
pub use request::BypassCache;
pub use service::{Cache, CacheLayer, ResponseFuture};
pub use stats::CacheStats;
