//! HTTP/3 (RFC 9114) for any [tower](tower_service) `Service`.
//!
//! An [`Endpoint`] is one UDP socket. It gives each request, as an `http::Request` with a streaming [`RecvBody`], to
//! a service and sends the response back: the same service that an HTTP/1 and HTTP/2 server drives. Every limit is
//! an explicit option ([`QuicOptions`]), nothing a client can grow is without a bound, and a frame's length is
//! checked before the frame is buffered.
//!
//! ```no_run
//! # use std::{convert::Infallible, sync::Arc, time::Duration};
//! # use portcullis_h3::{ConnLimits, Endpoint, QuicOptions, RecvBody, WorkerId};
//! # async fn run(
//! #     socket: std::net::UdpSocket,
//! #     tls: Arc<rustls::ServerConfig>,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! let endpoint =
//!     Endpoint::new(socket, tls, &QuicOptions::default(), WorkerId::new(0), ConnLimits::new(1000))?;
//! let hello = tower::service_fn(|_: http::Request<RecvBody>| async {
//!     Ok::<_, Infallible>(http::Response::new(http_body_util::Full::<bytes::Bytes>::from("hello")))
//! });
//! let shutdown = async { tokio::signal::ctrl_c().await.unwrap_or(()) };
//! endpoint.serve(hello, shutdown, Duration::from_secs(10)).await;
//! # Ok(())
//! # }
//! ```
//!
//! The types of the QUIC and HTTP/3 implementations below do not appear in the public API.

mod batch;
mod body;
mod cid;
#[cfg(feature = "client")]
pub mod client;
mod codes;
mod connection;
mod control;
mod datagram;
mod endpoint;
mod error;
mod frame;
mod handshake;
mod head;
mod keys;
mod limits;
#[cfg(feature = "multipath")]
pub mod multipath;
mod options;
mod outgoing;
mod priority;
mod qpack;
mod quic;
mod quiet;
mod request;
mod settings;
mod side;
mod socket;
mod traces;
mod transport;
mod tunnel;
mod watch;

#[cfg(unix)]
pub use self::socket::{HandOver, MAX_PREDECESSORS, Predecessor};
pub use self::{
    body::RecvBody,
    cid::{CidError, CidKey, ConnectionIds, Decoded, RoutableIds, WorkerId},
    datagram::{DatagramError, HttpDatagrams},
    endpoint::{Endpoint, EndpointHandle},
    error::{BodyError, BoxError, EndpointError},
    keys::{QuicKeyError, QuicKeys},
    limits::{ClientHold, ConnLimits, QuicStats},
    options::{Congestion, QuicOptions, Retry},
    side::{InterimError, InterimSender},
    socket::{QuicSocket, Siblings},
    traces::{TraceWriter, Traces},
    tunnel::{NoTunnel, OnTunnel, Tunnel},
    watch::Distribution,
};
