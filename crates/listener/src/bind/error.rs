//! Why a socket could not be made, and what a person can do about it.

use std::{fmt::Write as _, io, net::SocketAddr};

use crate::socket::UnixName;

use super::{
    holder::{self, Holder},
    plan::{PlanError, Protocol},
};

/// Why a plan could not be bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The plan contradicts itself; nothing was opened.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Several sockets of the plan were refused, at least two; its Display is one line for each.
    #[error("{}", lines(.0))]
    Several(Vec<Self>),
    /// A unix socket can't be made.
    #[error("{name} can't be opened: {why}")]
    Unix {
        /// The wanted name.
        name: UnixName,
        /// What is in the way, and what to do.
        why: String,
        /// Whether somebody else listens there.
        in_use: bool,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody has the port.
    #[error("{protocol} {address} is already in use: {}", held(holders, *lingering))]
    InUse {
        /// The protocol.
        protocol: Protocol,
        /// The wanted address.
        address: SocketAddr,
        /// Who has it, as far as it could be found; at most four.
        holders: Vec<Holder>,
        /// Connections of an earlier run in TIME_WAIT, which hold a port without a process.
        lingering: usize,
        /// What the system said.
        source: io::Error,
    },
    /// This process may not listen there.
    #[error("no permission to listen on {protocol} {address}: {}", permission(address.port()))]
    Denied {
        /// The protocol.
        protocol: Protocol,
        /// The wanted address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// This host does not have the address.
    #[error("{} is not an address of this host, so {protocol} port {} can't be opened on it: {}", address.ip(), address.port(), not_local(address))]
    NotLocal {
        /// The protocol.
        protocol: Protocol,
        /// The wanted address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The system has no such address family.
    #[error("{protocol} {address} can't be opened: {}", no_family(address))]
    NoFamily {
        /// The protocol.
        protocol: Protocol,
        /// The wanted address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Anything else.
    #[error("{protocol} {address} can't be opened: {step} failed{}", other(step, address, source))]
    Socket {
        /// The system call or option that failed.
        step: &'static str,
        /// The protocol.
        protocol: Protocol,
        /// The wanted address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

impl BindError {
    pub(crate) fn new(
        step: &'static str,
        protocol: Protocol,
        address: SocketAddr,
        source: io::Error,
    ) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => {
                let holders = holder::find(protocol, address);
                let lingering = if holders.is_empty() { holder::lingering(protocol, address) } else { 0 };
                Self::InUse { protocol, address, holders, lingering, source }
            }
            io::ErrorKind::PermissionDenied => Self::Denied { protocol, address, source },
            io::ErrorKind::AddrNotAvailable => Self::NotLocal { protocol, address, source },
            _ if is_no_family(&source) => Self::NoFamily { protocol, address, source },
            _ => Self::Socket { step, protocol, address, source },
        }
    }

    #[cfg(not(unix))]
    pub(crate) fn no_unix(name: UnixName) -> Self {
        let why = "this system has no unix sockets".to_owned();
        Self::Unix { name, why, in_use: false, source: io::ErrorKind::Unsupported.into() }
    }

    /// Whether somebody else has the port, so that another port may do.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        match self {
            Self::InUse { .. } | Self::Unix { in_use: true, .. } => true,
            Self::Several(errors) => errors.iter().all(Self::is_in_use),
            _ => false,
        }
    }

    /// Whether this process lacks a permission.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        match self {
            Self::Denied { .. } => true,
            Self::Unix { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::Several(errors) => errors.iter().any(Self::is_denied),
            _ => false,
        }
    }

    /// Who has the port, where it is in use and that could be found.
    #[must_use]
    pub fn holder(&self) -> Option<&Holder> {
        match self {
            Self::InUse { holders, .. } => holders.first(),
            Self::Several(errors) => errors.iter().find_map(Self::holder),
            _ => None,
        }
    }
}

fn is_no_family(error: &io::Error) -> bool {
    #[cfg(unix)]
    return matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EPFNOSUPPORT));
    // WSAEAFNOSUPPORT
    #[cfg(not(unix))]
    return error.raw_os_error() == Some(10047);
}

/// One line for each error, with the cause that its own text leaves out.
fn lines(errors: &[BindError]) -> String {
    let mut text = String::new();
    for (n, error) in errors.iter().enumerate() {
        let newline = if n > 0 { "\n" } else { "" };
        // writing to a string can't fail
        let _ = write!(text, "{newline}{error}");
        if let Some(source) = std::error::Error::source(error) {
            let _ = write!(text, " ({source})");
        }
    }
    text
}

fn held(holders: &[Holder], lingering: usize) -> String {
    if holders.is_empty() && lingering > 0 {
        return format!(
            "{lingering} connections of an earlier run are in TIME_WAIT: wait a minute, or listen on another port; it does \
             not happen to sockets made with SO_REUSEADDR (`reuse_address`)"
        );
    }
    if holders.is_empty() {
        return format!("held by a process that is not visible: {}; or listen on another port", see_more());
    }
    let list: Vec<String> = holders.iter().map(ToString::to_string).collect();
    let hidden = holders.iter().any(|holder| holder.pid.is_none());
    let more = if hidden { format!(" ({})", see_more()) } else { String::new() };
    format!("held by {}{more}; stop it, or listen on another port", list.join(" and "))
}

fn see_more() -> &'static str {
    if holder::sees_all() {
        "it is in another container or pid namespace, or it is gone again"
    } else {
        "run as root to see it"
    }
}

/// The first port that needs no privilege.
fn first_free_port() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024)
}

fn permission(port: u16) -> String {
    let first_free = first_free_port();
    if port >= first_free {
        return "a security policy forbids it (SELinux, AppArmor, seccomp or the container's rules)"
            .to_owned();
    }
    if !cfg!(target_os = "linux") {
        return format!("ports below {first_free} need root: run as root, or use a higher port");
    }
    let program = std::env::current_exe();
    let program = program.as_ref().map_or_else(|_| "/path/to/program".into(), |path| path.to_string_lossy());
    format!(
        "ports below {first_free} need a privilege. Run as root, or `sudo setcap cap_net_bind_service=+ep {program}`, \
         or `sudo sysctl net.ipv4.ip_unprivileged_port_start={port}`, or use port {first_free} or above"
    )
}

fn not_local(address: &SocketAddr) -> String {
    let (all, nonlocal) = match address {
        SocketAddr::V4(_) => ("0.0.0.0", "net.ipv4.ip_nonlocal_bind=1"),
        SocketAddr::V6(_) => ("[::]", "net.ipv6.ip_nonlocal_bind=1"),
    };
    let disabled = if address.is_ipv6() { " (IPv6 may be disabled)" } else { "" };
    format!(
        "use one that `ip address` shows{disabled}, or {all} for all of them, or `sysctl {nonlocal}` for an address \
         that comes later"
    )
}

fn no_family(address: &SocketAddr) -> String {
    match address {
        SocketAddr::V6(_) => format!(
            "this system has no IPv6; listen on 0.0.0.0:{} instead, or let [::] fall back to it (`v4_fallback`)",
            address.port()
        ),
        SocketAddr::V4(_) => format!("this system has no IPv4; listen on [::]:{} instead", address.port()),
    }
}

fn other(step: &str, address: &SocketAddr, source: &io::Error) -> String {
    if let Some(hint) = crate::socket::hint(step) {
        return format!("; {hint}");
    }
    let without_scope =
        matches!(address, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0);
    if without_scope && source.kind() == io::ErrorKind::InvalidInput {
        return "; a link-local address needs its interface, as in [fe80::1%2]".to_owned();
    }
    crate::error_hint(source).map_or_else(String::new, |hint| format!("; {hint}"))
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[cfg(unix)]
    fn refused(code: i32, address: &str) -> BindError {
        BindError::new("bind", Protocol::Tcp, address.parse().unwrap(), io::Error::from_raw_os_error(code))
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn each_refusal_says_what_to_do() {
        let closed = first_free_port().saturating_sub(1);
        let low = refused(libc::EACCES, &format!("0.0.0.0:{closed}"));
        let policy = refused(libc::EACCES, "0.0.0.0:50000");
        let table: [(&BindError, &[&str]); 7] = [
            (&policy, &["no permission", "SELinux"]),
            (
                &refused(libc::EADDRNOTAVAIL, "192.0.2.1:80"),
                &["192.0.2.1 is not an address", "ip address", "0.0.0.0"],
            ),
            (
                &refused(libc::EADDRNOTAVAIL, "[2001:db8::1]:80"),
                &["not an address", "[::]", "IPv6 may be disabled"],
            ),
            (&refused(libc::EAFNOSUPPORT, "[::]:443"), &["no IPv6", "0.0.0.0:443"]),
            (&refused(libc::EINVAL, "[fe80::1]:443"), &["bind failed", "link-local"]),
            (&refused(libc::EMFILE, "0.0.0.0:443"), &["bind failed", "ulimit -n"]),
            (&refused(libc::EIO, "0.0.0.0:443"), &["TCP 0.0.0.0:443 can't be opened: bind failed"]),
        ];
        for (error, parts) in table {
            let text = error.to_string();
            for part in parts {
                assert!(text.contains(part), "{part} is missing in {text}");
            }
            assert!(error.source().is_some_and(|source| source.is::<io::Error>()), "{text}");
            assert!(!error.is_in_use() && error.holder().is_none());
        }
        if closed > 0 {
            let text = low.to_string();
            for part in ["run as root", "setcap cap_net_bind_service=+ep", "ip_unprivileged_port_start"] {
                assert!(text.to_lowercase().contains(part), "{part} is missing in {text}");
            }
        }
        assert!(low.is_denied());
    }

    #[test]
    fn a_holder_nobody_can_see() {
        let address = "127.0.0.1:443".parse().unwrap();
        let source = io::ErrorKind::AddrInUse.into();
        let error =
            BindError::InUse { protocol: Protocol::Udp, address, holders: Vec::new(), lingering: 0, source };
        let text = error.to_string();
        assert!(
            text.starts_with("UDP 127.0.0.1:443 is already in use: held by a process that is not visible"),
            "{text}"
        );
        assert!(text.contains("another port"), "{text}");
    }
}
