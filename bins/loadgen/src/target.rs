//! Where the requests go, and whether they may.

use std::{
    fmt,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
};

use http::Uri;

use crate::cli::Resolve;

/// A host and port, and its addresses.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The host without brackets.
    pub(crate) host: String,
    /// Never empty.
    pub(crate) addresses: Vec<SocketAddr>,
}

/// Why a target is not used.
#[derive(Debug)]
pub(crate) enum TargetError {
    NoHost,
    Resolve { host: String, error: std::io::Error },
    Nothing { host: String },
    NotLoopback { host: String, ip: IpAddr },
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHost => write!(f, "the URL names no host"),
            Self::Resolve { host, error } => write!(f, "`{host}` does not resolve: {error}"),
            Self::Nothing { host } => write!(f, "`{host}` has no address"),
            Self::NotLoopback { host, ip } => write!(
                f,
                "`{host}` is {ip}, which is not a loopback address: load goes to this machine only, unless you own \
                 the target and say so with --i-own-this-host"
            ),
        }
    }
}

impl std::error::Error for TargetError {}

/// Finds the addresses and refuses those that are not loopback unless `own_host`.
pub(crate) fn find(uri: &Uri, resolve: &[Resolve], own_host: bool) -> Result<Target, TargetError> {
    let host = uri.host().ok_or(TargetError::NoHost)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).to_owned();
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
    let given: Vec<SocketAddr> = resolve
        .iter()
        .filter(|entry| entry.port == port && entry.host.eq_ignore_ascii_case(&host))
        .map(|entry| SocketAddr::new(entry.ip, port))
        .collect();
    let addresses = if given.is_empty() {
        match (host.as_str(), port).to_socket_addrs() {
            Ok(addresses) => addresses.collect(),
            Err(error) => return Err(TargetError::Resolve { host, error }),
        }
    } else {
        given
    };
    if addresses.is_empty() {
        return Err(TargetError::Nothing { host });
    }
    if !own_host && let Some(far) = addresses.iter().find(|address| !is_loopback(address.ip())) {
        return Err(TargetError::NotLoopback { host, ip: far.ip() });
    }
    Ok(Target { host, addresses })
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn loopback_is_allowed() {
        for url in
            ["http://127.0.0.1:8080/", "https://[::1]/", "http://127.255.0.9/", "http://[::ffff:127.0.0.1]/"]
        {
            assert!(find(&uri(url), &[], false).is_ok(), "{url}");
        }
        let target = find(&uri("https://[::1]/"), &[], false).unwrap();
        assert_eq!(target.host, "::1");
        assert_eq!(target.addresses, [SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 443))]);
    }

    #[test]
    fn anything_else_is_refused_unless_owned() {
        for url in ["http://192.0.2.1/", "https://[2001:db8::1]:444/", "http://0.0.0.0/", "http://[::]/"] {
            let error = find(&uri(url), &[], false).unwrap_err();
            assert!(matches!(error, TargetError::NotLoopback { .. }), "{url}");
            assert!(error.to_string().contains("--i-own-this-host"), "{url}");
            assert!(find(&uri(url), &[], true).is_ok(), "{url}");
        }
    }

    #[test]
    fn resolve_wins_and_is_checked_as_well() {
        let entry = |ip: &str| Resolve { host: "a.example".to_owned(), port: 443, ip: ip.parse().unwrap() };
        let near = find(&uri("https://A.example/"), &[entry("127.0.0.2")], false).unwrap();
        assert_eq!(near.addresses, [SocketAddr::from(([127, 0, 0, 2], 443))]);
        assert!(find(&uri("https://a.example/"), &[entry("192.0.2.1")], false).is_err());
    }
}
