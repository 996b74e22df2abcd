//! What the tests of several crates need: certificates made on the spot, streams that misbehave in a repeatable
//! way, origin servers on loopback that say exactly what a test wrote down, and a guard around spawned processes.
//!
//! A dev-dependency only; never published. Helpers panic where a test could not go on anyway.

pub mod body;
pub mod certs;
pub mod dns;
pub mod io;
pub mod mmdb;
pub mod origin;
pub mod pebble;
pub mod ports;
pub mod process;

use std::net::SocketAddr;

pub use mmdb::country_database;
use portcullis_conn::{Conn, ConnInfo, Transport};

/// A connection around any stream, from `192.0.2.1:50000` (documentation addresses, RFC 5737) to port 443.
pub fn conn<Io>(io: Io) -> Conn<Io> {
    let peer = SocketAddr::from(([192, 0, 2, 1], 50_000));
    let local = SocketAddr::from(([192, 0, 2, 2], 443));
    Conn::new(io, ConnInfo::new(Transport::Tcp, peer, local))
}
