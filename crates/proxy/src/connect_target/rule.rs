//! One entry of the list: hosts and ports, read from text.

use super::{ConnectHost, IpAddr, IpNet, Ipv4Addr, MAX_LABEL, MAX_NAME, RangeInclusive, ends_in_number, fmt};
use std::{net::Ipv6Addr, str::FromStr};

/// The most ports and ranges of ports that a rule can have.
pub const MAX_PORT_RANGES: usize = 16;

/// The shortest prefixes of a network that a rule can have: those of the largest private networks, `10.0.0.0/8` (RFC 1918) and `fc00::/7`
/// (RFC 4193).
const MIN_PREFIX: (u8, u8) = (8, 7);

/// Top-level domains that are nobody's in the public DNS (RFC 6761, RFC 6762, and `internal`, which ICANN has set aside): the only ones of which
/// a rule can allow every name.
const PRIVATE: [&str; 4] = ["internal", "local", "localhost", "test"];

/// Hosts and ports that CONNECT may lead to, read from text: a host, a colon, and ports.
///
/// The host is a name (`db.example.com`), every name below another (`*.example.com`, not `example.com` itself), an address (`192.0.2.1`,
/// `[2001:db8::1]`) or a network (`10.0.0.0/8`, `[fd00::/8]`). The ports are a list of numbers and ranges: `443`, `443,8443`, `5432-5439`.
///
/// There is no entry for every host or every port, so that nobody makes an open proxy by mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRule {
    host: Hosts,
    ports: Vec<RangeInclusive<u16>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hosts {
    Name(Box<str>),
    /// With the dot in front.
    Below(Box<str>),
    Net(IpNet),
}

/// Why a text is no rule, in words that say what would be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectRuleError {
    /// A host alone.
    #[error("add the ports, there is no default: \"{0}:443\"")]
    NoPorts(String),
    /// Every host.
    #[error("every host is an open proxy, which strangers find and use: name the hosts or their networks")]
    EveryHost,
    /// Every port.
    #[error("name the ports, as in \"443\", \"443,8443\" or \"8000-8099\"")]
    EveryPort,
    /// A whole top-level domain.
    #[error("every name below \"{0}\" is close to every host: name the domain, as in \"*.example.{0}\"")]
    TopLevel(String),
    /// A network that is too large.
    #[error("the network is too large: the shortest prefixes are /8 for IPv4 and /7 for IPv6")]
    TooLarge,
    /// Bits after the prefix.
    #[error("no address bits may stand after the prefix: \"{0}\"")]
    HostBits(IpNet),
    /// An IPv4 address or network in the form of IPv6.
    #[error("write an IPv4 address as one, not as IPv6")]
    Mapped,
    /// An IPv6 address without brackets.
    #[error("IPv6 stands in brackets, with its prefix: \"[2001:db8::1]:443\", \"[fd00::/8]:443\"")]
    Brackets,
    /// No host at all.
    #[error("the host is a name, \"*.\" and a name, an address or a network, without scheme, user or path")]
    BadHost,
    /// Ports that are none.
    #[error("ports are from 1 to 65535, a range goes up")]
    BadPorts,
    /// More ports than a rule can have.
    #[error("a rule has at most 16 ports and ranges: make it two rules")]
    ManyPorts,
}

impl ConnectRule {
    pub(super) fn allows(&self, host: &ConnectHost, port: u16) -> bool {
        let fits = match (&self.host, host) {
            (Hosts::Name(allowed), ConnectHost::Name(name)) => allowed == name,
            (Hosts::Below(suffix), ConnectHost::Name(name)) => {
                name.len() > suffix.len() && name.ends_with(&**suffix)
            }
            (Hosts::Net(network), ConnectHost::Ip(address)) => network.contains(address),
            _ => false,
        };
        fits && self.ports.iter().any(|ports| ports.contains(&port))
    }

    pub(super) fn allows_ip(&self, address: IpAddr, port: u16) -> bool {
        self.allows(&ConnectHost::Ip(address), port)
    }
}

impl FromStr for ConnectRule {
    type Err = ConnectRuleError;

    fn from_str(text: &str) -> Result<Self, ConnectRuleError> {
        let (host, ports) = split(text)?;
        Ok(Self { host: hosts(host)?, ports: port_list(ports)? })
    }
}

/// The host, an IPv6 one in its brackets, and the ports.
fn split(text: &str) -> Result<(&str, &str), ConnectRuleError> {
    if text.contains("://") || text.contains('@') {
        return Err(ConnectRuleError::BadHost);
    }
    if text == "*" {
        return Err(ConnectRuleError::EveryHost);
    }
    let end = match text.strip_prefix('[') {
        Some(inner) => inner.find(']').ok_or(ConnectRuleError::Brackets)? + 2,
        None => text.find(':').unwrap_or(text.len()),
    };
    let (host, rest) = text.split_at(end);
    match rest.strip_prefix(':') {
        None if rest.is_empty() && !host.is_empty() => Err(ConnectRuleError::NoPorts(host.to_owned())),
        None if rest.starts_with('/') => Err(ConnectRuleError::Brackets),
        None => Err(ConnectRuleError::BadHost),
        // more than one colon: an IPv6 address that begins somewhere here
        Some(ports) if ports.contains(':') => Err(ConnectRuleError::Brackets),
        Some(ports) => Ok((host, ports)),
    }
}

fn hosts(host: &str) -> Result<Hosts, ConnectRuleError> {
    if host == "*" || host == "*." {
        return Err(ConnectRuleError::EveryHost);
    }
    if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        let network = if inner.contains('/') {
            inner.parse::<IpNet>().ok()
        } else {
            inner.parse::<Ipv6Addr>().ok().map(|address| IpAddr::from(address).into())
        };
        let network = network.filter(|network| network.addr().is_ipv6()).ok_or(ConnectRuleError::BadHost)?;
        return checked(network).map(Hosts::Net);
    }
    if host.contains('/') {
        return checked(host.parse().map_err(|_| ConnectRuleError::BadHost)?).map(Hosts::Net);
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return checked(IpAddr::from(address).into()).map(Hosts::Net);
    }
    match host.strip_prefix("*.") {
        None => Ok(Hosts::Name(name(host)?.into())),
        Some(above) => {
            let above = name(above)?;
            if !above.contains('.') && !PRIVATE.contains(&above.as_str()) {
                return Err(ConnectRuleError::TopLevel(above));
            }
            Ok(Hosts::Below(format!(".{above}").into()))
        }
    }
}

fn checked(network: IpNet) -> Result<IpNet, ConnectRuleError> {
    let (least, mapped) = match network {
        IpNet::V4(_) => (MIN_PREFIX.0, false),
        IpNet::V6(network) => (MIN_PREFIX.1, network.addr().to_ipv4_mapped().is_some()),
    };
    if network.trunc() != network {
        return Err(ConnectRuleError::HostBits(network.trunc()));
    }
    if network.prefix_len() == 0 {
        return Err(ConnectRuleError::EveryHost);
    }
    if network.prefix_len() < least {
        return Err(ConnectRuleError::TooLarge);
    }
    if mapped { Err(ConnectRuleError::Mapped) } else { Ok(network) }
}

/// A name in lower case (RFC 1123 section 2.1, and the underscore that is common inside of networks).
fn name(text: &str) -> Result<String, ConnectRuleError> {
    let label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let well = text.len() <= MAX_NAME && text.split('.').all(label) && !ends_in_number(text);
    if well { Ok(text.to_ascii_lowercase()) } else { Err(ConnectRuleError::BadHost) }
}

fn port_list(text: &str) -> Result<Vec<RangeInclusive<u16>>, ConnectRuleError> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u16>().ok()).flatten().filter(|port| *port != 0)
    };
    if text.is_empty() || text == "*" {
        return Err(ConnectRuleError::EveryPort);
    }
    let mut ports = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err(ConnectRuleError::BadPorts);
        };
        if first > last {
            return Err(ConnectRuleError::BadPorts);
        }
        if ports.len() == MAX_PORT_RANGES {
            return Err(ConnectRuleError::ManyPorts);
        }
        ports.push(first..=last);
    }
    Ok(ports)
}

impl fmt::Display for ConnectRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Hosts::Name(name) => f.write_str(name)?,
            Hosts::Below(suffix) => write!(f, "*{suffix}")?,
            Hosts::Net(network) => {
                let address = network.addr();
                let whole = network.prefix_len() == network.max_prefix_len();
                let shown = if whole { address.to_string() } else { network.to_string() };
                if address.is_ipv6() { write!(f, "[{shown}]")? } else { f.write_str(&shown)? }
            }
        }
        for (at, ports) in self.ports.iter().enumerate() {
            f.write_str(if at == 0 { ":" } else { "," })?;
            match (ports.start(), ports.end()) {
                (first, last) if first == last => write!(f, "{first}")?,
                (first, last) => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}
