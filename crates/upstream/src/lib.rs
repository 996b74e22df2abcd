//! Upstream clusters: a set of endpoints that answer for one another, as a `tower` service.
//!
//! A [`Cluster`] knows its endpoints and how well each of them does; a [`Client`] made from it holds a pool of
//! connections and sends requests. A program makes one client per runtime (thread-per-core) or one for all of them
//! (work-stealing): the health of the endpoints is shared either way.
//!
//! HTTP/1.1 is spoken by a codec of this crate that is driven from the request's own task: there is no task per
//! connection, no channel and no second wake-up. A response [`Body`] therefore carries its connection, and gives it
//! back to the pool with the last byte.
//!
//! What is retried, and only this: a connection that could not be made; and a request whose connection was closed
//! before the first byte of an answer, if the method is idempotent (RFC 9110 section 9.2.2) and none of its body had
//! been taken. Everything else is the caller's to decide.
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

mod body;
mod client;
mod cluster;
mod connect;
pub mod discovery;
mod error;
mod h1;
pub mod health;
mod options;
mod pool;
mod timer;
mod upgraded;

pub use body::Body;
pub use client::{Client, ClientFuture, EndpointName};
pub use cluster::{Cluster, ClusterError, ClusterStats, EndpointStats};
pub use connect::{Address, Endpoint, InvalidEndpoint, TcpConnector};
pub use error::{Error, ProtocolError};
pub use options::ClusterOptions;
pub use upgraded::{Upgraded, UpgradedSlot};

/// Any error, boxed.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
