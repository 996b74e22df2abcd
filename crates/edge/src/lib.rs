//! A whole edge server out of its parts: a typed [`Plan`](plan::Plan) becomes listeners, TLS, HTTP/1.1, HTTP/2 and HTTP/3 drivers,
//! one middleware order, routes and upstream clusters, on workers that drain when told to.
//!
//! An edge of one's own is a few lines:
//!
//! ```no_run
//! use portcullis_edge::{Edge, plan::ClusterPlan};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let app = ClusterPlan::new("app", ["127.0.0.1:3000", "127.0.0.1:3001"]);
//! let edge = Edge::builder()
//!     .https("0.0.0.0:8443".parse()?)
//!     .self_signed(["localhost"])
//!     .route("a.example.com", app)
//!     .build()?;
//! for listening in edge.listening() {
//!     println!("listening on {listening}");
//! }
//! edge.run(async {
//!     let _ = tokio::signal::ctrl_c().await;
//! })
//! .await?;
//! # Ok(())
//! # }
//! ```

mod access_log;
mod acme_plan;
mod act;
mod admission;
mod admission_plan;
mod body;
mod builder;
mod cache_page;
mod causes;
mod certificates_page;
mod certs;
mod chain;
mod chain_plan;
mod cluster_plan;
mod clusters;
mod connect;
mod connect_plan;
mod counted;
mod dispatch;
mod edge;
mod error;
mod explain;
mod followed;
mod forward;
mod h3_cluster;
mod hands;
mod interim;
mod keys;
mod live;
mod log_plan;
mod no_tunnel;
mod observe;
mod observe_cache;
mod observe_chains;
mod observe_quic;
mod order;
mod parts;
mod paths;
pub mod plan;
mod qlog;
mod quic;
mod quic_plan;
mod rate_store;
mod reload;
mod request_id_plan;
mod route_plan;
mod routes;
mod service;
mod shaping;
mod sockets;
mod tcp;
mod tls_plan;
mod to_route;
mod tunnel_to;
#[cfg(unix)]
mod upgrade;
mod workers;

pub use body::Body;
pub use builder::EdgeBuilder;
pub use edge::{Edge, EdgeHandle, Listening};
pub use error::{EdgeError, PlanFault};
pub use explain::{ExplainError, Explained, Step, StepFrom};
pub use reload::Reloaded;
pub use service::{EdgeFuture, EdgeService};
#[cfg(unix)]
pub use upgrade::{TakeOver, UpgradeError};

pub use portcullis_acme as acme;
pub use portcullis_cache as cache;
pub use portcullis_conn as conn;
pub use portcullis_h3 as h3;
pub use portcullis_listener as listener;
pub use portcullis_middleware as middleware;
pub use portcullis_proxy as proxy;
pub use portcullis_server as server;
pub use portcullis_telemetry as telemetry;
pub use portcullis_tls as tls;
pub use portcullis_upstream as upstream;

use causes::Causes;

/// Any error, boxed.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
