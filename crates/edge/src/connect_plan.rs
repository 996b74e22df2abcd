//! The plan of CONNECT: where tunnels may lead, and for whom.

use std::time::Duration;

use ipnet::IpNet;
use portcullis_proxy::{ConnectRules, RelayOptions};

/// Tunnels by CONNECT (RFC 9110 section 9.3.6), over HTTP/1 and HTTP/2, to what a list allows.
///
/// Who is in `clients` reaches what is in `allow` from this edge's own address, past every rule for requests: keep both short.
/// `Proxy-Authorization` is not looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectPlan {
    /// Where tunnels may lead; anything else is answered 403. A name that resolves to loopback, link-local, unspecified or multicast
    /// addresses leads there only if an entry for addresses allows it too.
    pub allow: ConnectRules,
    /// Who may ask for them, by the address that the connection or a trusted proxy tells; others are answered 403. None at all is nobody.
    pub clients: Vec<IpNet>,
    /// From the beginning of a name's resolution to the connection; past it the answer is 504. Default 5 s, as for clusters.
    pub connect_timeout: Duration,
    /// How the tunnels are relayed. Default: closed after 1 h without a byte.
    pub relay: RelayOptions,
    /// Open tunnels, those that are being connected among them, within [`crate::plan::Limits::max_tunnels`]; past it the answer is 503. Default
    /// 100. Each takes two sockets and some 1 KiB, and up to 32 KiB while an end does not keep up.
    pub max_tunnels: usize,
}

impl ConnectPlan {
    /// With the default bounds.
    pub fn new(allow: ConnectRules, clients: impl IntoIterator<Item = IpNet>) -> Self {
        Self {
            allow,
            clients: clients.into_iter().collect(),
            connect_timeout: Duration::from_secs(5),
            relay: RelayOptions::default(),
            max_tunnels: 100,
        }
    }
}
