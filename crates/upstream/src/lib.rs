//! Upstream clusters: a set of endpoints that answer for one another, as a `tower` service.
//!
//! A [`Cluster`] knows its endpoints and how well each of them does; a [`Client`] made from it holds a pool of
//! connections and sends requests. A program makes one client per runtime (thread-per-core) or one for all of them
//! (work-stealing): the health of the endpoints is shared either way.
//!
//! HTTP/1.1 is spoken by a codec of this crate that is driven from the request's own task: there is no task per
//! connection, no channel and no second wake-up. A response [`Body`] therefore carries its connection, and gives it
//! back to the pool with the last byte. HTTP/2 ([`Protocol`]) is the `h2` crate's, one task for each connection, and as many connections as the
//! endpoint's limit of streams makes necessary.
//!
//! What is tried again, and only this, is in [`RetryOptions`]; how long each part may take in [`ClusterOptions`]. An endpoint that fails
//! is left alone for a while; what watches over endpoints from outside says so by an [`EndpointHandle`].
//!
//! ```no_run
//! # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
//! use portcullis_upstream::{Cluster, ClusterOptions, Endpoint};
//!
//! let endpoints = ["127.0.0.1:3000", "127.0.0.1:3001"].map(|e| e.parse::<Endpoint>());
//! let cluster = Cluster::new("app", endpoints.into_iter().collect::<Result<Vec<_>, _>>()?, ClusterOptions::default())?;
//! let client = cluster.client();
//! let request = http::Request::get("/").header("host", "app.test").body(http_body_util::Empty::new())?;
//! let response = client.send(request).await?;
//! println!("{}", response.status());
//! # Ok(())
//! # }
//! ```

mod attempt;
mod balance;
mod body;
mod call;
mod client;
mod cluster;
mod connect;
pub mod discovery;
mod error;
mod h1;
pub mod health;
mod http2;
mod interim;
mod options;
mod pool;
mod retry;
mod state;
mod stream;
mod timer;
mod trip;
mod turn;
mod upgraded;
mod upload;

#[cfg(feature = "bench")]
#[doc(hidden)]
pub use balance::bench;
pub use balance::{BalanceOptions, HashKey, Policy};
#[cfg(feature = "sticky")]
pub use balance::{StickyCookie, StickyError};
pub use body::Body;
pub use client::{Client, ClientFuture, ClientIp, EndpointName, PreferEndpoint};
pub use cluster::{Cluster, ClusterError, ClusterStats, EndpointHandle};
pub use connect::{Address, ClientAddresses, ConnectError, Destination, Endpoint, InvalidEndpoint};
pub use error::{Error, ProtocolError};
pub use health::OutlierOptions;
pub use options::{ClusterOptions, HedgeOptions, Http2Options, Protocol, RetryOptions};
pub use state::EndpointStats;
pub use stream::{Connector, Stream, Transport};
pub use trip::{Spell, Trip};
pub use turn::{Picked, Turn};
pub use upgraded::{Upgraded, UpgradedSlot};

/// A time longer than this is this: far enough away, and no overflow.
pub(crate) const FOREVER: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 3600);

/// Any error, boxed.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
