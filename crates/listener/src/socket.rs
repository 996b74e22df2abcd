//! What is set on a socket, and the names of the places it listens on.

mod address;
mod set;
mod tcp;
mod udp;
mod unix;

pub(crate) use self::set::{Set, Step, hint};
pub use self::{
    address::{ListenAddr, ListenAddrError, UnixName},
    set::{Changed, OptionError},
    tcp::{Keepalive, TcpOptions},
    udp::UdpOptions,
    unix::{UnixOptions, UnixOwner},
};
