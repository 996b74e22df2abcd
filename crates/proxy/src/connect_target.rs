//! Where a CONNECT leads (RFC 9110 section 9.3.6), and whether it may: the authority form, read strictly, and a list of what is
//! allowed. Pure: what a name resolves to is asked of the list by whoever resolves it, see [`ConnectRules::allows_address`].

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use ipnet::IpNet;

use crate::host::HostPort;

mod rule;

pub use rule::{ConnectRule, ConnectRuleError, MAX_PORT_RANGES};

/// The longest name in bytes, without a trailing dot (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 253;

/// The longest label of a name in bytes (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;

/// The host of a target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ConnectHost {
    /// A name in lower case, without a trailing dot.
    Name(Box<str>),
    /// An address; one that IPv6 maps from IPv4 is IPv4.
    Ip(IpAddr),
}

/// The target of a CONNECT.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ConnectTarget {
    /// The host.
    pub host: ConnectHost,
    /// The port, from 1 to 65535.
    pub port: u16,
}

/// Why an authority is no target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectTargetError {
    /// RFC 9112 section 3.2.3: `uri-host ":" port`, without user information.
    #[error("the target is no host and port")]
    Invalid,
    /// RFC 9110 section 9.3.6: there is no default port.
    #[error("the target has no port")]
    NoPort,
    /// A name that a resolver would read as an address (`127.1`, `0x7f.0.0.1`, `2130706433`), or with a label that is too long.
    #[error("the target's host is neither a name nor an address")]
    BadHost,
}

impl ConnectTarget {
    /// Reads the authority form (RFC 9112 section 3.2.3, RFC 9113 section 8.5). Both parts must be there, an IPv6 address in brackets and
    /// without a zone; the host has 254 bytes at most.
    ///
    /// # Errors
    ///
    /// For everything else.
    pub fn parse(authority: &str) -> Result<Self, ConnectTargetError> {
        let HostPort { host, port } =
            HostPort::parse(authority.as_bytes()).ok_or(ConnectTargetError::Invalid)?;
        let port = match port {
            None => return Err(ConnectTargetError::NoPort),
            // RFC 9110 section 9.3.6: a port that is empty or not valid is answered 400
            Some(0) => return Err(ConnectTargetError::Invalid),
            Some(port) => port,
        };
        Ok(Self { host: ConnectHost::parse(host).ok_or(ConnectTargetError::BadHost)?, port })
    }
}

impl ConnectHost {
    /// Of a host that [`HostPort`] has let through.
    fn parse(host: &str) -> Option<Self> {
        if let Some(inner) = host.strip_prefix('[') {
            let address: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
            return Some(Self::Ip(IpAddr::from(address).to_canonical()));
        }
        if let Ok(address) = host.parse::<Ipv4Addr>() {
            return Some(Self::Ip(address.into()));
        }
        let name = host.strip_suffix('.').unwrap_or(host);
        let well = name.len() <= MAX_NAME && name.split('.').all(|label| label.len() <= MAX_LABEL);
        (well && !ends_in_number(name)).then(|| Self::Name(name.to_ascii_lowercase().into()))
    }
}

/// Whether a resolver may take a name for an IPv4 address in one of its old spellings: the last label is a number, decimal, octal
/// or hexadecimal. No top-level domain is one (RFC 3696 section 2).
fn ends_in_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default().as_bytes();
    match last {
        [b'0', b'x' | b'X', digits @ ..] => digits.iter().all(u8::is_ascii_hexdigit),
        digits => digits.iter().all(u8::is_ascii_digit),
    }
}

impl fmt::Display for ConnectTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            ConnectHost::Name(name) => write!(f, "{name}:{}", self.port),
            ConnectHost::Ip(IpAddr::V4(address)) => write!(f, "{address}:{}", self.port),
            ConnectHost::Ip(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
        }
    }
}

/// What CONNECT may lead to. Empty by default: nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectRules(Vec<ConnectRule>);

impl ConnectRules {
    /// The most rules that there can be: all of them are looked through for each CONNECT. More are cut off.
    pub const MAX: usize = 256;

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a target is on the list, as it was written: a name by a rule for names, an address by one for addresses. What a name
    /// resolves to is not known yet, see [`ConnectRules::allows_address`].
    pub fn allows(&self, target: &ConnectTarget) -> bool {
        self.0.iter().any(|rule| rule.allows(&target.host, target.port))
    }

    /// Whether an allowed target may be connected to at this address of it. Every address will do but those by which a name could lead
    /// to what only this machine should reach, by its own doing or its DNS server's: loopback, link-local, unspecified, multicast.
    /// They take a rule of their own, for the address and the port.
    pub fn allows_address(&self, address: IpAddr, port: u16) -> bool {
        let address = address.to_canonical();
        !is_of_this_machine(address) || self.0.iter().any(|rule| rule.allows_ip(address, port))
    }
}

impl FromIterator<ConnectRule> for ConnectRules {
    fn from_iter<I: IntoIterator<Item = ConnectRule>>(rules: I) -> Self {
        Self(rules.into_iter().take(Self::MAX).collect())
    }
}

/// Addresses that mean the machine itself or its own link: RFC 6890 section 2.2, RFC 4291 sections 2.4 and 2.5.5, and what a translator
/// makes of them (RFC 6052 section 2.1).
fn is_of_this_machine(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            // 0.0.0.0/8 is this network
            address.octets()[0] == 0
                || address.is_loopback()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_broadcast()
        }
        IpAddr::V6(address) => {
            let [a, b, c, d, e, f, ..] = address.segments();
            let embedded = [a, b, c, d, e, f] == [0x64, 0xff9b, 0, 0, 0, 0] || [a, b, c, d, e, f] == [0; 6];
            let [.., w, x, y, z] = address.octets();
            address.is_loopback()
                || address.is_unspecified()
                || address.is_unicast_link_local()
                || address.is_multicast()
                || (embedded && is_of_this_machine(IpAddr::from([w, x, y, z])))
        }
    }
}

#[cfg(test)]
mod tests;
