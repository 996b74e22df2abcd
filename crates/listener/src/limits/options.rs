//! What may be limited, and what happens past a limit.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;

/// How many connections may be open over all listeners, and for each client.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitOptions {
    /// Open connections over all listeners. Default 1000; at most 2^31-1; 0 accepts nothing until it is raised.
    pub max_connections: usize,
    /// What happens past it, and past the maximum of one listener. Default [`OverLimit::Wait`].
    pub over: OverLimit,
    /// Open connections of one client. Default `None`: no limit.
    pub per_client: Option<ClientLimit>,
}

impl Default for LimitOptions {
    fn default() -> Self {
        Self { max_connections: 1000, over: OverLimit::Wait, per_client: None }
    }
}

impl LimitOptions {
    /// Sets [`LimitOptions::max_connections`].
    #[must_use]
    pub fn with_max_connections(mut self, max: usize) -> Self {
        self.max_connections = max;
        self
    }

    /// Sets [`LimitOptions::over`].
    #[must_use]
    pub fn with_over(mut self, over: OverLimit) -> Self {
        self.over = over;
        self
    }

    /// Sets [`LimitOptions::per_client`].
    #[must_use]
    pub fn with_per_client(mut self, per_client: Option<ClientLimit>) -> Self {
        self.per_client = per_client;
        self
    }
}

/// What happens to a connection for which there is no permit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OverLimit {
    /// It is not accepted: it waits in the kernel's queue ([`crate::TcpOptions::backlog`]) until one ends. The right
    /// choice where clients rather wait than fail.
    #[default]
    Wait,
    /// It is accepted and closed at once, so that a balancer in front tries another server.
    Close,
    /// As [`OverLimit::Close`], with a reset (RST), which leaves nothing behind in this system.
    Reset,
}

/// How many connections one client may have open.
///
/// A client is an IPv4 address, or an IPv6 network of 64 bits, the least that a provider hands out. What is counted
/// takes memory only while it has a connection: at most one entry of about 40 bytes for each open connection.
/// Connections over unix sockets are not counted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientLimit {
    /// Open connections of one client over all listeners. At least 1.
    pub max: usize,
    /// How many leading bits of an IPv4 address make a client. Default 32; at most 32. IPv4-mapped addresses count as
    /// IPv4.
    pub ipv4_prefix: u8,
    /// The same of an IPv6 address. Default 64; at most 128.
    pub ipv6_prefix: u8,
    /// Addresses that are not counted: balancers and proxies, behind which are many. Default none.
    pub exempt: Vec<IpNet>,
    /// What happens to a connection past the limit. Default [`OverClient::Close`].
    pub over: OverClient,
}

impl ClientLimit {
    /// At most `max` connections of one client, at least 1; the rest as the fields say.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            max: max.max(1),
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            exempt: Vec::new(),
            over: OverClient::Close,
        }
    }

    /// Sets [`ClientLimit::ipv4_prefix`].
    #[must_use]
    pub fn with_ipv4_prefix(mut self, bits: u8) -> Self {
        self.ipv4_prefix = bits.min(32);
        self
    }

    /// Sets [`ClientLimit::ipv6_prefix`].
    #[must_use]
    pub fn with_ipv6_prefix(mut self, bits: u8) -> Self {
        self.ipv6_prefix = bits.min(128);
        self
    }

    /// Sets [`ClientLimit::exempt`].
    #[must_use]
    pub fn with_exempt(mut self, exempt: impl IntoIterator<Item = IpNet>) -> Self {
        self.exempt = exempt.into_iter().collect();
        self
    }

    /// Sets [`ClientLimit::over`].
    #[must_use]
    pub fn with_over(mut self, over: OverClient) -> Self {
        self.over = over;
        self
    }

    pub(crate) fn counts(&self, ip: IpAddr) -> bool {
        !self.exempt.iter().any(|network| network.contains(&ip))
    }
}

/// What happens to a connection of a client that has its share open already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OverClient {
    /// It is closed at once.
    #[default]
    Close,
    /// It is reset (RST) at once, which leaves nothing behind in this system.
    Reset,
    /// It is kept unread until the client closes another one, and then served; or closed when that takes too long. It
    /// holds a permit meanwhile. At most 128 wait so for each [`crate::Incoming`]; more are reset.
    Delay {
        /// How long it is kept.
        up_to: Duration,
    },
}
