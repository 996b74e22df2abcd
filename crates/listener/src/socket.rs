//! What is set on a socket, and the names of the places it listens on.

mod address;
mod tcp;
mod udp;

pub use self::{
    address::{ListenAddr, ListenAddrError, UnixName},
    tcp::TcpOptions,
    udp::UdpOptions,
};
