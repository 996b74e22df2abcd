//! Making the sockets of a plan.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    num::NonZeroUsize,
};

use socket2::{Domain, Socket, Type};
use tracing::{info, warn};

use crate::socket::{Changed, ListenAddr, Set, Step, TcpOptions, UdpOptions};

mod error;
mod holder;
mod plan;
#[cfg(unix)]
mod unix;

use self::plan::Wanted;
#[cfg(unix)]
pub use self::unix::UnixSocketFile;
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
    pub local_addr: ListenAddr,
    /// The TCP listeners: as many as the group, or none if TCP is not wanted here.
    pub tcp: Vec<TcpListener>,
    /// The UDP sockets, likewise. Their order is that of the steering program
    /// ([`UdpOptions::steer_by_cid_byte`]); closing one of a live group renumbers the others.
    pub udp: Vec<UdpSocket>,
    /// The unix listeners, likewise: duplicates of one socket.
    #[cfg(unix)]
    pub unix: Vec<std::os::unix::net::UnixListener>,
    /// Whether the system brings each datagram to the socket that the connection id names, as [`UdpOptions::steer_by_cid_byte`] wants. `false` where
    /// a socket stands alone.
    pub steered: bool,
    /// Removes the unix socket's file when it is dropped, so it is to be kept as long as the listeners.
    #[cfg(unix)]
    pub unix_file: Option<UnixSocketFile>,
    /// Options that the system made something else of; each is logged once for the whole plan.
    pub changed: Vec<Changed>,
}

pub(crate) fn all(wanted: &[Wanted], group: NonZeroUsize) -> Result<Vec<Bound>, BindError> {
    let (mut made, mut errors) = (Vec::new(), Vec::new());
    for wanted in wanted {
        match one(wanted, group.get()) {
            Ok(bound) => made.push(bound),
            Err(error) => errors.push(error),
        }
    }
    match errors.len() {
        0 => {}
        1 => return Err(errors.remove(0)),
        _ => return Err(BindError::Several(errors)),
    }
    tell(&made);
    Ok(made)
}

/// Each change once, however many sockets it is true for.
fn tell(made: &[Bound]) {
    let mut told: Vec<&Changed> = Vec::new();
    for bound in made {
        for changed in &bound.changed {
            if !told.contains(&changed) {
                told.push(changed);
                warn!(
                    listener = %bound.local_addr,
                    option = changed.option,
                    wanted = changed.wanted,
                    given = changed.got,
                    hint = changed.hint,
                    "a socket option is not as wanted"
                );
            }
        }
    }
}

fn one(wanted: &Wanted, group: usize) -> Result<Bound, BindError> {
    let address = match &wanted.address {
        ListenAddr::Ip(address) => *address,
        #[cfg(unix)]
        ListenAddr::Unix(name) => return unix::bind(name, &wanted.unix, group),
        #[cfg(not(unix))]
        ListenAddr::Unix(name) => return Err(BindError::no_unix(name.clone())),
    };
    match with_one_port(wanted, address, group) {
        Err(error) if wanted.v4_fallback && falls_back(address, &error) => {
            let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            info!(%address, instead = %v4, "this system has no IPv6: listening on IPv4 alone");
            with_one_port(wanted, v4, group)
        }
        answered => answered,
    }
}

/// EAFNOSUPPORT where the kernel has no IPv6, EADDRNOTAVAIL where it is turned off by sysctl.
fn falls_back(address: SocketAddr, error: &BindError) -> bool {
    address.is_ipv6()
        && address.ip().is_unspecified()
        && matches!(error, BindError::NoFamily { .. } | BindError::NotLocal { .. })
}

fn with_one_port(wanted: &Wanted, address: SocketAddr, group: usize) -> Result<Bound, BindError> {
    let system_chooses_both = address.port() == 0 && wanted.tcp.is_some() && wanted.udp.is_some();
    let mut tries_left = if system_chooses_both { TRIES_FOR_BOTH } else { 1 };
    loop {
        tries_left -= 1;
        match attempt(wanted, address, group) {
            Err(error) if tries_left > 0 && error.is_in_use() => {}
            answered => return answered,
        }
    }
}

fn attempt(wanted: &Wanted, mut address: SocketAddr, group: usize) -> Result<Bound, BindError> {
    let mut bound = Bound::none(address.into());
    if let Some(options) = &wanted.tcp {
        let changed = &mut bound.changed;
        let make = |address, shared| tcp_socket(address, wanted.only_v6, options, shared, changed);
        let sockets = group_of(&mut address, group, wanted.shared, Protocol::Tcp, make)?;
        bound.tcp = sockets.into_iter().map(Into::into).collect();
    }
    if let Some(options) = &wanted.udp {
        let changed = &mut bound.changed;
        let make = |address, shared| udp_socket(address, wanted.only_v6, options, shared, changed);
        let sockets = group_of(&mut address, group, wanted.shared, Protocol::Udp, make)?;
        bound.udp = sockets.into_iter().map(Into::into).collect();
        if let (Some(byte), [first, _, ..]) = (options.steer_by_cid_byte, bound.udp.as_slice()) {
            bound.steered = steer(first, byte, group, address);
        }
    }
    bound.local_addr = address.into();
    Ok(bound)
}

impl Bound {
    fn none(local_addr: ListenAddr) -> Self {
        Self {
            local_addr,
            tcp: Vec::new(),
            udp: Vec::new(),
            steered: false,
            #[cfg(unix)]
            unix: Vec::new(),
            #[cfg(unix)]
            unix_file: None,
            changed: Vec::new(),
        }
    }
}

#[cfg(unix)]
impl Bound {
    /// Sockets of one address that the process before this one had, as groups in its order. `tcp` is applied to TCP listeners, `udp` steers a group of UDP
    /// sockets anew; else they stay as they were made.
    ///
    /// # Errors
    /// There is none to accept from, or what the system says.
    pub fn taken_over(
        sockets: Vec<crate::InheritedSocket>,
        tcp: &TcpOptions,
        udp: &UdpOptions,
    ) -> std::io::Result<Self> {
        use crate::InheritedKind;

        let first = sockets.iter().find(|socket| !matches!(socket.socket, InheritedKind::Udp(_)));
        let first = first.ok_or(std::io::ErrorKind::NotFound)?.local_addr();
        let mut bound = Self::none(first);
        for socket in sockets {
            match socket.socket {
                InheritedKind::Udp(socket) => bound.udp.push(socket),
                InheritedKind::Tcp(listener) => {
                    let changed = tcp.apply_to_listener(&listener).map_err(|error| error.source)?;
                    note(&mut bound.changed, changed);
                    bound.tcp.push(listener);
                }
                InheritedKind::Unix(listener) => bound.unix.push(listener),
            }
        }
        if let (Some(byte), [first, _, ..], Some(address)) =
            (udp.steer_by_cid_byte, bound.udp.as_slice(), bound.local_addr.ip())
        {
            bound.steered = steer(first, byte, bound.udp.len(), address);
        }
        Ok(bound)
    }

    /// Sockets that were handed over, as groups of duplicates: one [`Bound`] for each listening socket. A UDP socket
    /// goes with the TCP listener of its port, or with the first; it is not duplicated, as only one may read from it.
    /// `options` are applied to TCP listeners, and told where the system made something else of them.
    ///
    /// # Errors
    /// What the system says.
    pub fn from_inherited(
        sockets: Vec<crate::InheritedSocket>,
        group: NonZeroUsize,
        options: &TcpOptions,
    ) -> std::io::Result<Vec<Self>> {
        use crate::InheritedKind;

        let (mut all, mut udp): (Vec<Self>, Vec<UdpSocket>) = Default::default();
        for socket in sockets {
            let mut bound = Self::none(socket.local_addr());
            match socket.socket {
                InheritedKind::Udp(socket) => {
                    udp.push(socket);
                    continue;
                }
                InheritedKind::Tcp(listener) => {
                    bound.changed = options.apply_to_listener(&listener).map_err(|error| error.source)?;
                    for _ in 1..group.get() {
                        bound.tcp.push(listener.try_clone()?);
                    }
                    bound.tcp.push(listener);
                }
                InheritedKind::Unix(listener) => {
                    for _ in 1..group.get() {
                        bound.unix.push(listener.try_clone()?);
                    }
                    bound.unix.push(listener);
                }
            }
            all.push(bound);
        }
        let port = |address: &ListenAddr| address.ip().map(|ip| ip.port());
        for socket in udp {
            let own = socket.local_addr()?.port();
            let place = all.iter().position(|bound| port(&bound.local_addr) == Some(own)).unwrap_or(0);
            if let Some(bound) = all.get_mut(place).filter(|bound| bound.udp.is_empty()) {
                bound.udp.push(socket);
            }
        }
        tell(&all);
        Ok(all)
    }
}

trait InStep<T> {
    fn in_step(self, step: &'static str) -> Step<T>;
}

impl<T> InStep<T> for std::io::Result<T> {
    fn in_step(self, step: &'static str) -> Step<T> {
        self.map_err(|error| (step, error))
    }
}

/// Binds a group and puts the port that the system chose into `address`.
fn group_of(
    address: &mut SocketAddr,
    group: usize,
    with_others: bool,
    protocol: Protocol,
    mut make: impl FnMut(SocketAddr, bool) -> Step<Socket>,
) -> Result<Vec<Socket>, BindError> {
    let wanted = *address;
    let mut make_group = || -> Step<Vec<Socket>> {
        let in_group = group > 1 && SHARES_PORTS;
        let shared = in_group || with_others && cfg!(unix);
        if in_group && !with_others && wanted.port() != 0 {
            // proof that nobody else has the port; a port that the system chooses is nobody's
            drop(make(wanted, false)?);
        }
        let first = make(wanted, shared)?;
        let bound = first.local_addr().in_step("getsockname")?.as_socket().unwrap_or(wanted);
        address.set_port(bound.port());
        let mut sockets = vec![first];
        while sockets.len() < group {
            let next =
                if in_group { make(*address, true)? } else { sockets[0].try_clone().in_step("dup")? };
            sockets.push(next);
        }
        Ok(sockets)
    };
    let made = make_group();
    made.map_err(|(step, error)| BindError::new(step, protocol, *address, error))
}

fn note(all: &mut Vec<Changed>, changed: Vec<Changed>) {
    for changed in changed {
        if !all.contains(&changed) {
            all.push(changed);
        }
    }
}

fn tcp_socket(
    address: SocketAddr,
    only_v6: bool,
    options: &TcpOptions,
    shared: bool,
    changed: &mut Vec<Changed>,
) -> Step<Socket> {
    let socket = socket(address, only_v6, Type::STREAM, shared)?;
    let mut set = Set::on(&socket);
    set.tcp_listener(options)?;
    socket.bind(&address.into()).in_step("bind")?;
    // on Linux connections inherit it; elsewhere each is set anew when it is accepted
    set.tcp_connection(options)?;
    socket.listen(options.backlog.try_into().unwrap_or(i32::MAX)).in_step("listen")?;
    set.backlog(options.backlog);
    note(changed, set.changed);
    Ok(socket)
}

/// Without `SO_REUSEADDR`, which for UDP lets another socket take the port over.
fn udp_socket(
    address: SocketAddr,
    only_v6: bool,
    options: &UdpOptions,
    shared: bool,
    changed: &mut Vec<Changed>,
) -> Step<Socket> {
    let socket = socket(address, only_v6, Type::DGRAM, shared)?;
    let mut set = Set::on(&socket);
    set.udp(options)?;
    note(changed, set.changed);
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
    #[cfg(unix)]
    if shared {
        socket.set_reuse_port(true).in_step("SO_REUSEPORT")?;
    }
    #[cfg(not(unix))]
    let _ = shared;
    Ok(socket)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn steer(first: &UdpSocket, byte: u8, group: usize, address: SocketAddr) -> bool {
    use std::os::fd::AsFd;

    let byte = byte.min(19);
    let group = u32::try_from(group).unwrap_or(u32::MAX);
    let steered = crate::sys::steer_by_cid_byte(first.as_fd(), byte, group);
    if let Err(error) = &steered {
        info!(%error, %address, "the system can't steer datagrams by connection id: it is done by hand, which costs more");
    }
    steered.is_ok()
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn steer(_: &UdpSocket, _: u8, _: usize, _: SocketAddr) -> bool {
    false
}

#[cfg(test)]
mod tests;
