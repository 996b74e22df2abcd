//! What to listen on, checked as a whole.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
};

use super::{self as bind, BindError, Bound};
use crate::socket::{ListenAddr, TcpOptions, UdpOptions, UnixName, UnixOptions};

/// What a socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// A unix stream socket.
    Unix,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Unix => "unix socket",
        })
    }
}

/// The addresses to listen on, checked against each other before a socket is made.
///
/// ```
/// use portcullis_listener::{BindPlan, TcpOptions};
///
/// let plan = BindPlan::new()
///     .tcp("[::]:443".parse().unwrap(), TcpOptions::default())
///     .tcp("0.0.0.0:443".parse().unwrap(), TcpOptions::default());
/// let error = plan.check().unwrap_err();
/// assert!(error.to_string().contains("IPV6_V6ONLY"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct BindPlan {
    wanted: Vec<Wanted>,
}

#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) address: ListenAddr,
    pub(crate) only_v6: bool,
    pub(crate) shared: bool,
    pub(crate) v4_fallback: bool,
    pub(crate) tcp: Option<TcpOptions>,
    pub(crate) udp: Option<UdpOptions>,
    pub(crate) unix: UnixOptions,
}

impl BindPlan {
    /// Nothing wanted yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Wants a TCP listener. Port 0 lets the system choose. An IPv4-mapped address (`::ffff:192.0.2.1`) is taken as
    /// the IPv4 address it means.
    #[must_use]
    pub fn tcp(self, addr: SocketAddr, opts: TcpOptions) -> Self {
        self.add(addr, Some(opts), None)
    }

    /// Wants a UDP socket.
    #[must_use]
    pub fn udp(self, addr: SocketAddr, opts: UdpOptions) -> Self {
        self.add(addr, None, Some(opts))
    }

    /// Wants both on one port number. With port 0 the system chooses the TCP port, and UDP takes the same number;
    /// where that is taken, others are tried.
    #[must_use]
    pub fn tcp_and_udp(self, addr: SocketAddr, tcp: TcpOptions, udp: UdpOptions) -> Self {
        self.add(addr, Some(tcp), Some(udp))
    }

    /// Whether the address added last keeps IPv4 out (`IPV6_V6ONLY`). Default `false`: `[::]` serves IPv4 too,
    /// whatever the system's own default is. Without meaning for IPv4.
    #[must_use]
    pub fn only_v6(mut self, only_v6: bool) -> Self {
        if let Some(last) = self.wanted.last_mut() {
            last.only_v6 = only_v6;
        }
        self
    }

    /// Wants a unix stream socket, by a path or a [`UnixName`]. The file gets its mode and owner before it is to be seen
    /// under its name. One that an earlier run left behind is replaced; one that somebody listens on, or that is
    /// something else, is an error and stays.
    #[must_use]
    pub fn unix(mut self, name: impl Into<UnixName>, options: UnixOptions) -> Self {
        self.wanted.push(Wanted {
            address: name.into().into(),
            only_v6: false,
            shared: false,
            v4_fallback: false,
            tcp: None,
            udp: None,
            unix: options,
        });
        self
    }

    /// Whether other processes of the same user may have the port of the address added last as well
    /// (`SO_REUSEPORT`), as several instances of one server do. The kernel spreads connections over all of them; one that
    /// stops takes those in its queue with it, unless `sysctl net.ipv4.tcp_migrate_req` is 1. Default `false`: the port
    /// is exclusive. On Unix, for TCP and UDP.
    #[must_use]
    pub fn shared(mut self, shared: bool) -> Self {
        if let Some(last) = self.wanted.last_mut() {
            last.shared = shared;
        }
        self
    }

    /// Whether the address added last, if it is `[::]`, becomes `0.0.0.0` on a system without IPv6, which is then
    /// logged. Default `false`: that is an error.
    #[must_use]
    pub fn v4_fallback(mut self, v4_fallback: bool) -> Self {
        if let Some(last) = self.wanted.last_mut() {
            last.v4_fallback = v4_fallback;
        }
        self
    }

    fn add(mut self, address: SocketAddr, tcp: Option<TcpOptions>, udp: Option<UdpOptions>) -> Self {
        // the flow label and the scope mean nothing for a mapped address
        let address = match address.ip().to_canonical() {
            v4 @ IpAddr::V4(_) => SocketAddr::new(v4, address.port()),
            IpAddr::V6(_) => address,
        };
        self.wanted.push(Wanted {
            address: address.into(),
            only_v6: false,
            shared: false,
            v4_fallback: false,
            tcp,
            udp,
            unix: UnixOptions::default(),
        });
        self
    }

    /// Finds every pair that can't be bound together. Nothing is opened.
    ///
    /// # Errors
    /// All conflicts, each with the reason and what to do.
    pub fn check(&self) -> Result<(), PlanError> {
        let mut conflicts = Vec::new();
        for (later, second) in self.wanted.iter().enumerate() {
            for (earlier, first) in self.wanted[..later].iter().enumerate() {
                let Some(overlap) = overlap(first, second) else { continue };
                let both = [
                    (Protocol::Tcp, first.tcp.is_some() && second.tcp.is_some()),
                    (Protocol::Udp, first.udp.is_some() && second.udp.is_some()),
                    (Protocol::Unix, overlap == Overlap::SamePath),
                ];
                for (protocol, _) in both.into_iter().filter(|(_, both)| *both) {
                    conflicts.push(Conflict {
                        first: earlier,
                        second: later,
                        first_address: first.address.clone(),
                        second_address: second.address.clone(),
                        protocol,
                        overlap,
                    });
                }
            }
        }
        if conflicts.is_empty() { Ok(()) } else { Err(PlanError { conflicts }) }
    }

    /// Checks the plan and binds it, in its order, `group` sockets for each wanted address and protocol.
    ///
    /// A group of one is exclusive. A larger one shares the port among its sockets (`SO_REUSEPORT` on Linux, where
    /// the kernel spreads connections over them; duplicates of one socket elsewhere), so that each worker has its
    /// own. Before the group is bound, an exclusive socket is bound in its place and closed again, since a group by
    /// itself would silently join another program of the same user that shares the port. Between the two, for
    /// microseconds, such a program could still come in; and a client that connects just then is reset.
    ///
    /// All sockets are non-blocking and closed on exec. If some can't be bound, those that could are closed again.
    ///
    /// # Errors
    /// The conflicts of [`BindPlan::check`], or all that the system refused, with the reason and what to do.
    pub fn bind(self, group: NonZeroUsize) -> Result<Vec<Bound>, BindError> {
        self.check()?;
        bind::all(&self.wanted, group)
    }
}

/// Why two wanted addresses are in each other's way.
fn overlap(first: &Wanted, second: &Wanted) -> Option<Overlap> {
    let (a, b) = match (&first.address, &second.address) {
        (ListenAddr::Ip(a), ListenAddr::Ip(b)) => (*a, *b),
        (ListenAddr::Unix(a), ListenAddr::Unix(b)) => return (a == b).then_some(Overlap::SamePath),
        _ => return None,
    };
    if a.port() != b.port() || a.port() == 0 {
        return None;
    }
    let serves_v4 =
        |ip: SocketAddr, wanted: &Wanted| ip.is_ipv6() && ip.ip().is_unspecified() && !wanted.only_v6;
    match (a, b) {
        (SocketAddr::V6(x), SocketAddr::V6(y)) if x.ip() == y.ip() => {
            // the same link-local address on two interfaces is two addresses
            let apart = x.scope_id() != y.scope_id() && x.scope_id() != 0 && y.scope_id() != 0;
            (!apart).then_some(Overlap::Same)
        }
        (SocketAddr::V4(x), SocketAddr::V4(y)) if x.ip() == y.ip() => Some(Overlap::Same),
        _ if a.is_ipv4() == b.is_ipv4() => {
            (a.ip().is_unspecified() || b.ip().is_unspecified()).then_some(Overlap::Wildcard)
        }
        _ => (serves_v4(a, first) || serves_v4(b, second)).then_some(Overlap::DualStack),
    }
}

/// How two addresses overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Overlap {
    /// They are the same.
    Same,
    /// One is every address of the family (`0.0.0.0` or `[::]`), the other one of them.
    Wildcard,
    /// One is `[::]` without `IPV6_V6ONLY`, which takes IPv4 too, the other is an IPv4 address.
    DualStack,
    /// They are the same unix socket.
    SamePath,
}

/// Two wanted addresses that can't be bound together.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Conflict {
    /// Place in the plan of the one added first, from 0.
    pub first: usize,
    /// Place in the plan of the other.
    pub second: usize,
    /// The address added first.
    pub first_address: ListenAddr,
    /// The other.
    pub second_address: ListenAddr,
    /// The protocol both want.
    pub protocol: Protocol,
    /// Why.
    pub overlap: Overlap,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, first_address: a, second_address: b, .. } = self;
        let is_all = |address: &ListenAddr| address.ip().is_some_and(|ip| ip.ip().is_unspecified());
        let is_v6 = |address: &ListenAddr| address.ip().is_some_and(|ip| ip.is_ipv6());
        match self.overlap {
            Overlap::SamePath => write!(
                f,
                "{a} is wanted twice: a path names one socket. Give one of them another path, or let one listener serve \
                 both"
            ),
            Overlap::Same => write!(
                f,
                "{protocol} {a} is wanted twice: a port of an address belongs to one listener. Give one of them \
                 another port, or let one listener serve both"
            ),
            Overlap::Wildcard => {
                let (all, one) = if is_all(a) { (a, b) } else { (b, a) };
                write!(
                    f,
                    "{protocol} {all} and {one} clash: {all} is every address of this host, {one} among them, and \
                     the kernel gives a port of an address to one listener. Leave out {one}, or name each address \
                     in place of {all}, or use another port"
                )
            }
            Overlap::DualStack => {
                let (dual, v4) = if is_v6(a) { (a, b) } else { (b, a) };
                let port = v4.ip().map_or(0, |ip| ip.port());
                write!(
                    f,
                    "{protocol} {dual} and {v4} clash: without IPV6_V6ONLY the kernel lets [::] take the port for \
                     IPv4 as well. Leave out {v4} ({dual} serves IPv4 clients too), or set only-v6 for {dual}, or \
                     use a port other than {port} for one of them"
                )
            }
        }
    }
}

/// A plan that contradicts itself; its Display is one line for each conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanError {
    conflicts: Vec<Conflict>,
}

impl PlanError {
    /// All conflicts, in the plan's order; at least one.
    #[must_use]
    pub fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, conflict) in self.conflicts.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            conflict.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for PlanError {}

#[cfg(test)]
mod tests;
