//! Places to listen on.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

/// Where something listens: an IP address and port, or a unix socket.
///
/// As text: `127.0.0.1:80`, `[::]:443`, `unix:/run/edge.sock`, `unix:@name` (Linux's abstract names).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ListenAddr {
    /// An IP address and a port.
    Ip(SocketAddr),
    /// A unix stream socket.
    Unix(UnixName),
}

/// How a unix socket is named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UnixName {
    /// By a path on disk, of at most 107 bytes on Linux and 103 on macOS.
    Path(PathBuf),
    /// By a name that is no file (Linux), of at most 107 bytes.
    Abstract(Vec<u8>),
    /// Not at all: one end of a pair, or a socket that was never bound.
    Unnamed,
}

impl ListenAddr {
    /// The IP address and port, where it has one.
    #[must_use]
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for ListenAddr {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

#[cfg(unix)]
impl UnixName {
    /// The name behind an address of the system.
    pub(crate) fn of(address: &std::os::unix::net::SocketAddr) -> Self {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Some(name) = std::os::linux::net::SocketAddrExt::as_abstract_name(address) {
            return Self::Abstract(name.to_vec());
        }
        address.as_pathname().map_or(Self::Unnamed, |path| Self::Path(path.to_owned()))
    }
}

impl From<PathBuf> for UnixName {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<&std::path::Path> for UnixName {
    fn from(path: &std::path::Path) -> Self {
        Self::Path(path.to_owned())
    }
}

impl From<UnixName> for ListenAddr {
    fn from(name: UnixName) -> Self {
        Self::Unix(name)
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(name) => name.fmt(f),
        }
    }
}

impl fmt::Display for UnixName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "unix:@{}", name.escape_ascii()),
            Self::Unnamed => f.write_str("unix:(unnamed)"),
        }
    }
}

/// A text that is no [`ListenAddr`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address to listen on: write `127.0.0.1:8080`, `[::]:443` or `unix:/path/to/socket`")]
pub struct ListenAddrError(String);

impl FromStr for ListenAddr {
    type Err = ListenAddrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ListenAddrError(text.to_owned());
        match text.strip_prefix("unix:") {
            Some(name) => match name.strip_prefix('@') {
                Some("") => Err(wrong()),
                Some(name) => Ok(Self::Unix(UnixName::Abstract(name.as_bytes().to_vec()))),
                None if name.is_empty() => Err(wrong()),
                None => Ok(Self::Unix(UnixName::Path(name.into()))),
            },
            None => text.parse().map(Self::Ip).map_err(|_| wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back() {
        for text in ["127.0.0.1:80", "[::1]:443", "unix:/run/edge.sock", "unix:edge.sock", "unix:@edge"] {
            assert_eq!(text.parse::<ListenAddr>().unwrap().to_string(), text);
        }
        for text in ["", "80", "unix:", "unix:@", "localhost:80", "/run/edge.sock"] {
            let error = text.parse::<ListenAddr>().unwrap_err().to_string();
            assert!(error.contains("127.0.0.1:8080"), "{error}");
        }
    }
}
