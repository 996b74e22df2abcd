//! What to listen on, checked as a whole.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
};

use super::{self as bind, BindError, Bound};
use crate::socket::{TcpOptions, UdpOptions};

/// A transport protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
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
    pub(crate) address: SocketAddr,
    pub(crate) only_v6: bool,
    pub(crate) tcp: Option<TcpOptions>,
    pub(crate) udp: Option<UdpOptions>,
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

    fn add(mut self, address: SocketAddr, tcp: Option<TcpOptions>, udp: Option<UdpOptions>) -> Self {
        // the flow label and the scope mean nothing for a mapped address
        let address = match address.ip().to_canonical() {
            v4 @ IpAddr::V4(_) => SocketAddr::new(v4, address.port()),
            IpAddr::V6(_) => address,
        };
        self.wanted.push(Wanted { address, only_v6: false, tcp, udp });
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
                ];
                for (protocol, _) in both.into_iter().filter(|(_, both)| *both) {
                    conflicts.push(Conflict {
                        first: earlier,
                        second: later,
                        first_address: first.address,
                        second_address: second.address,
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
    /// All sockets are non-blocking and closed on exec. If one can't be bound, those bound before are closed.
    ///
    /// # Errors
    /// The conflicts of [`BindPlan::check`], or what the system refused, with the reason and what to do.
    pub fn bind(self, group: NonZeroUsize) -> Result<Vec<Bound>, BindError> {
        self.check()?;
        bind::all(&self.wanted, group)
    }
}

/// Why two wanted addresses are in each other's way.
fn overlap(first: &Wanted, second: &Wanted) -> Option<Overlap> {
    let (a, b) = (first.address, second.address);
    if a.port() != b.port() || a.port() == 0 {
        return None;
    }
    let serves_v4 =
        |wanted: &Wanted| wanted.address.is_ipv6() && wanted.address.ip().is_unspecified() && !wanted.only_v6;
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
        _ => (serves_v4(first) || serves_v4(second)).then_some(Overlap::DualStack),
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
    pub first_address: SocketAddr,
    /// The other.
    pub second_address: SocketAddr,
    /// The protocol both want.
    pub protocol: Protocol,
    /// Why.
    pub overlap: Overlap,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, first_address: a, second_address: b, .. } = self;
        let port = a.port();
        match self.overlap {
            Overlap::Same => write!(
                f,
                "{protocol} {a} is wanted twice: a port of an address belongs to one listener. Give one of them \
                 another port, or let one listener serve both"
            ),
            Overlap::Wildcard => {
                let (all, one) = if a.ip().is_unspecified() { (a, b) } else { (b, a) };
                write!(
                    f,
                    "{protocol} {all} and {one} clash: {all} is every address of this host, {one} among them, and \
                     the kernel gives a port of an address to one listener. Leave out {one}, or name each address \
                     in place of {all}, or use another port"
                )
            }
            Overlap::DualStack => {
                let (dual, v4) = if a.is_ipv6() { (a, b) } else { (b, a) };
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
