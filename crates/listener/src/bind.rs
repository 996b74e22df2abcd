//! Making the sockets of a plan.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    num::NonZeroUsize,
};

use socket2::{Domain, Socket, Type};
use tracing::warn;

use crate::socket::{TcpOptions, UdpOptions};

mod error;
mod holder;
mod plan;

use self::plan::Wanted;
pub use self::{
    error::BindError,
    holder::Holder,
    plan::{BindPlan, Conflict, Overlap, PlanError, Protocol},
};

/// How many port numbers the system may choose for TCP until UDP gets the same one.
const TRIES_FOR_BOTH: usize = 16;

/// `SO_REUSEPORT` that spreads load is Linux's; elsewhere a group is duplicates of one socket.
const SHARES_PORTS: bool = cfg!(any(target_os = "linux", target_os = "android"));

/// The sockets of one wanted address.
#[derive(Debug)]
#[non_exhaustive]
pub struct Bound {
    /// The address, with the port that the system chose if it was asked to.
    pub local_addr: SocketAddr,
    /// The TCP listeners: as many as the group, or none if TCP is not wanted here.
    pub tcp: Vec<TcpListener>,
    /// The UDP sockets, likewise. Their order is that of the steering program
    /// ([`UdpOptions::steer_by_cid_byte`]); closing one of a live group renumbers the others.
    pub udp: Vec<UdpSocket>,
}

/// What was said once already while a plan is bound.
#[derive(Default)]
struct Said {
    recv_buffer: bool,
    send_buffer: bool,
}

pub(crate) fn all(wanted: &[Wanted], group: NonZeroUsize) -> Result<Vec<Bound>, BindError> {
    let mut said = Said::default();
    wanted.iter().map(|wanted| one(wanted, group.get(), &mut said)).collect()
}

fn one(wanted: &Wanted, group: usize, said: &mut Said) -> Result<Bound, BindError> {
    let system_chooses_both = wanted.address.port() == 0 && wanted.tcp.is_some() && wanted.udp.is_some();
    let mut tries_left = if system_chooses_both { TRIES_FOR_BOTH } else { 1 };
    loop {
        tries_left -= 1;
        match attempt(wanted, group, said) {
            Err(error) if tries_left > 0 && error.is_in_use() => {}
            answered => return answered,
        }
    }
}

fn attempt(wanted: &Wanted, group: usize, said: &mut Said) -> Result<Bound, BindError> {
    let mut address = wanted.address;
    let mut bound = Bound { local_addr: address, tcp: Vec::new(), udp: Vec::new() };
    if let Some(options) = &wanted.tcp {
        let make = |address, shared| tcp_socket(address, wanted.only_v6, options, shared);
        bound.tcp = group_of(&mut address, group, Protocol::Tcp, make)?.into_iter().map(Into::into).collect();
    }
    if let Some(options) = &wanted.udp {
        let make = |address, shared| udp_socket(address, wanted.only_v6, options, shared, said);
        bound.udp = group_of(&mut address, group, Protocol::Udp, make)?.into_iter().map(Into::into).collect();
        if let (Some(byte), [first, _, ..]) = (options.steer_by_cid_byte, bound.udp.as_slice()) {
            steer(first, byte, group, address);
        }
    }
    bound.local_addr = address;
    Ok(bound)
}

/// What went wrong in which step.
type Step<T> = Result<T, (&'static str, io::Error)>;

trait InStep<T> {
    fn in_step(self, step: &'static str) -> Step<T>;
}

impl<T> InStep<T> for io::Result<T> {
    fn in_step(self, step: &'static str) -> Step<T> {
        self.map_err(|error| (step, error))
    }
}

/// Binds a group and puts the port that the system chose into `address`.
fn group_of(
    address: &mut SocketAddr,
    group: usize,
    protocol: Protocol,
    mut make: impl FnMut(SocketAddr, bool) -> Step<Socket>,
) -> Result<Vec<Socket>, BindError> {
    let wanted = *address;
    let mut make_group = || -> Step<Vec<Socket>> {
        let shared = group > 1 && SHARES_PORTS;
        if shared && wanted.port() != 0 {
            // proof that nobody else has the port; a port that the system chooses is nobody's
            drop(make(wanted, false)?);
        }
        let first = make(wanted, shared)?;
        let bound = first.local_addr().in_step("getsockname")?.as_socket().unwrap_or(wanted);
        address.set_port(bound.port());
        let mut sockets = vec![first];
        while sockets.len() < group {
            let next = if shared { make(*address, true)? } else { sockets[0].try_clone().in_step("dup")? };
            sockets.push(next);
        }
        Ok(sockets)
    };
    let made = make_group();
    made.map_err(|(step, error)| BindError::new(step, protocol, *address, error))
}

fn tcp_socket(address: SocketAddr, only_v6: bool, options: &TcpOptions, shared: bool) -> Step<Socket> {
    let socket = socket(address, only_v6, Type::STREAM, shared)?;
    if cfg!(unix) && options.reuse_address {
        socket.set_reuse_address(true).in_step("SO_REUSEADDR")?;
    }
    if let Some(size) = options.recv_buffer {
        socket.set_recv_buffer_size(size).in_step("SO_RCVBUF")?;
    }
    if let Some(size) = options.send_buffer {
        socket.set_send_buffer_size(size).in_step("SO_SNDBUF")?;
    }
    socket.bind(&address.into()).in_step("bind")?;
    socket.listen(options.backlog.try_into().unwrap_or(i32::MAX)).in_step("listen")?;
    Ok(socket)
}

/// Without `SO_REUSEADDR`, which for UDP lets another socket take the port over.
fn udp_socket(
    address: SocketAddr,
    only_v6: bool,
    options: &UdpOptions,
    shared: bool,
    said: &mut Said,
) -> Step<Socket> {
    let socket = socket(address, only_v6, Type::DGRAM, shared)?;
    socket.set_recv_buffer_size(options.recv_buffer).in_step("SO_RCVBUF")?;
    socket.set_send_buffer_size(options.send_buffer).in_step("SO_SNDBUF")?;
    if let Ok(given) = socket.recv_buffer_size() {
        tell_if_less(given, options.recv_buffer, "net.core.rmem_max", &mut said.recv_buffer);
    }
    if let Ok(given) = socket.send_buffer_size() {
        tell_if_less(given, options.send_buffer, "net.core.wmem_max", &mut said.send_buffer);
    }
    socket.bind(&address.into()).in_step("bind")?;
    Ok(socket)
}

fn socket(address: SocketAddr, only_v6: bool, kind: Type, shared: bool) -> Step<Socket> {
    // close-on-exec is socket2's doing
    let socket = Socket::new(Domain::for_address(address), kind, None).in_step("socket")?;
    socket.set_nonblocking(true).in_step("O_NONBLOCK")?;
    if address.is_ipv6() {
        // explicitly and before bind: the default is a sysctl on Linux and differs between systems
        socket.set_only_v6(only_v6).in_step("IPV6_V6ONLY")?;
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if shared {
        socket.set_reuse_port(true).in_step("SO_REUSEPORT")?;
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = shared;
    Ok(socket)
}

/// Linux reports twice what it was asked for: half is its own bookkeeping.
fn usable(given: usize) -> usize {
    if cfg!(any(target_os = "linux", target_os = "android")) { given / 2 } else { given }
}

fn tell_if_less(given: usize, wanted: usize, sysctl: &str, said: &mut bool) {
    let given = usable(given);
    if given < wanted && !std::mem::replace(said, true) {
        warn!(
            wanted,
            given,
            hint = %format_args!("`sysctl -w {sysctl}={wanted}` lets the kernel give more"),
            "the UDP socket buffer is smaller than wanted, datagrams may be lost under load"
        );
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn steer(first: &UdpSocket, byte: u8, group: usize, address: SocketAddr) {
    use std::os::fd::AsFd;

    let byte = byte.min(19);
    let group = u32::try_from(group).unwrap_or(u32::MAX);
    if let Err(error) = crate::sys::steer_by_cid_byte(first.as_fd(), byte, group) {
        warn!(
            %error,
            %address,
            "datagrams can't be steered by connection id: a QUIC client whose address changes may lose its connection"
        );
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn steer(_: &UdpSocket, _: u8, _: usize, _: SocketAddr) {}

#[cfg(test)]
mod tests;
