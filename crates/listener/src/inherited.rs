//! Sockets that somebody else made: systemd, a parent, an older process of the same program.
//!
//! The connections in their queues are kept, which no closing and binding anew does: a restart loses nobody.

use std::{
    fmt, io,
    net::{TcpListener, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::UnixListener,
    },
    time::Duration,
};

use socket2::{Domain, SockRef, Type};

use crate::socket::{ListenAddr, UnixName};

mod handover;
mod systemd;

pub use self::{
    handover::{MOST_HANDED_OVER, receive_descriptors, receive_sockets, send_descriptors, send_sockets},
    systemd::{SystemdEnv, systemd_sockets},
};

/// A socket with the name under which it was handed over.
#[derive(Debug)]
#[non_exhaustive]
pub struct InheritedSocket {
    /// Its name; several sockets may have the same.
    pub name: String,
    /// The socket: non-blocking, and closed on exec.
    pub socket: InheritedKind,
}

/// What kind of socket it is.
#[derive(Debug)]
#[non_exhaustive]
pub enum InheritedKind {
    /// A listening TCP socket.
    Tcp(TcpListener),
    /// A UDP socket.
    Udp(UdpSocket),
    /// A listening unix stream socket.
    Unix(UnixListener),
}

/// Why sockets could not be taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InheritError {
    /// A variable of the environment is not what systemd sets.
    #[error("the environment has {variable}={value:?}, which is not what systemd sets: {why}")]
    Environment {
        /// Which.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The sockets of the environment were taken already.
    #[error("the sockets from systemd were taken already: this happens once in a process")]
    Taken,
    /// A descriptor is no socket to listen on.
    #[error("descriptor {descriptor} ({name:?}) can't be listened on: {what}")]
    NotListening {
        /// Its number.
        descriptor: i32,
        /// The name that it was given.
        name: String,
        /// What it is instead.
        what: String,
    },
    /// What came over the connection is not what [`send_sockets`] sends.
    #[error("the other process sent something else than sockets: {0}")]
    Protocol(&'static str),
    /// Too many, or with too long names.
    #[error("at most {MOST_HANDED_OVER} sockets with names of at most 255 bytes can be handed over")]
    TooMany,
    /// The other process took too long.
    #[error("the other process did not answer within {0:?}")]
    Timeout(Duration),
    /// The system refused something.
    #[error("the sockets could not be handed over")]
    Io(#[from] io::Error),
}

impl InheritError {
    /// Whether it was a deadline.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout(_))
    }
}

impl InheritedSocket {
    /// A listening TCP socket under a name.
    pub fn tcp(name: impl Into<String>, listener: TcpListener) -> Self {
        Self { name: name.into(), socket: InheritedKind::Tcp(listener) }
    }

    /// A UDP socket under a name.
    pub fn udp(name: impl Into<String>, socket: UdpSocket) -> Self {
        Self { name: name.into(), socket: InheritedKind::Udp(socket) }
    }

    /// A listening unix socket under a name.
    pub fn unix(name: impl Into<String>, listener: UnixListener) -> Self {
        Self { name: name.into(), socket: InheritedKind::Unix(listener) }
    }

    /// Takes a descriptor, if it is a socket that something can be accepted or received on.
    ///
    /// # Errors
    /// It is something else, and is closed.
    pub fn from_fd(name: impl Into<String>, fd: OwnedFd) -> Result<Self, InheritError> {
        let name = name.into();
        let descriptor = fd.as_raw_fd();
        let wrong = |what: String| InheritError::NotListening { descriptor, name: name.clone(), what };
        let socket = SockRef::from(&fd);
        let kind = socket.r#type().map_err(|error| wrong(format!("it is no socket ({error})")))?;
        // the family is that of its address
        let address = socket.local_addr().map_err(|error| wrong(format!("it has no address ({error})")))?;
        let domain = address.domain();
        let what = match (domain, kind) {
            (Domain::IPV4 | Domain::IPV6, Type::STREAM) => "TCP",
            (Domain::IPV4 | Domain::IPV6, Type::DGRAM) => "UDP",
            (Domain::UNIX, Type::STREAM) => "unix",
            _ => return Err(wrong(format!("it is a socket of {domain:?} and {kind:?}"))),
        };
        if kind == Type::STREAM && !socket.is_listener().map_err(|error| wrong(error.to_string()))? {
            return Err(wrong(format!("it is a {what} socket that does not listen")));
        }
        socket.set_nonblocking(true)?;
        socket.set_cloexec(true)?;
        let socket = match what {
            "TCP" => InheritedKind::Tcp(fd.into()),
            "UDP" => InheritedKind::Udp(fd.into()),
            _ => InheritedKind::Unix(fd.into()),
        };
        Ok(Self { name, socket })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> ListenAddr {
        let nameless = ListenAddr::Unix(UnixName::Unnamed);
        match &self.socket {
            InheritedKind::Tcp(listener) => listener.local_addr().map_or(nameless, Into::into),
            InheritedKind::Udp(socket) => socket.local_addr().map_or(nameless, Into::into),
            InheritedKind::Unix(listener) => match listener.local_addr() {
                Ok(address) => UnixName::of(&address).into(),
                Err(_) => nameless,
            },
        }
    }

    /// Another descriptor of the same socket, for another worker.
    ///
    /// # Errors
    /// What the system says.
    pub fn try_clone(&self) -> io::Result<Self> {
        let socket = match &self.socket {
            InheritedKind::Tcp(listener) => InheritedKind::Tcp(listener.try_clone()?),
            InheritedKind::Udp(socket) => InheritedKind::Udp(socket.try_clone()?),
            InheritedKind::Unix(listener) => InheritedKind::Unix(listener.try_clone()?),
        };
        Ok(Self { name: self.name.clone(), socket })
    }
}

impl AsFd for InheritedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            InheritedKind::Tcp(listener) => listener.as_fd(),
            InheritedKind::Udp(socket) => socket.as_fd(),
            InheritedKind::Unix(listener) => listener.as_fd(),
        }
    }
}

impl fmt::Display for InheritedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.local_addr())
    }
}
