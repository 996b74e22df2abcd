//! Where connections come from.

use std::{
    io,
    net::SocketAddr,
    task::{Context, Poll, ready},
};

use portcullis_conn::{ConnInfo, Transport};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};
use tracing::debug;

#[cfg(unix)]
use crate::socket::UnixName;
use crate::socket::{ListenAddr, TcpOptions};

/// Something that [`crate::Incoming`] accepts connections from: TCP and unix sockets here, anything else in a
/// program that implements it.
pub trait Listen {
    /// What is accepted.
    type Io;

    /// The next connection, with its facts. An error does not end the listener: [`crate::classify`] says what follows.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Io, ConnInfo)>>;

    /// Where it listens, for logs.
    fn local_addr(&self) -> ListenAddr;

    /// Closes a connection so that the other end sees an error and this system remembers nothing. By default it is
    /// just dropped.
    fn reset(io: Self::Io)
    where
        Self: Sized,
    {
        drop(io);
    }

    /// The number of a connection's descriptor, where it has one: the kernel gives the lowest that is free, so it shows
    /// how many are open.
    fn descriptor(io: &Self::Io) -> Option<u64>
    where
        Self: Sized,
    {
        let _ = io;
        None
    }

    /// The lowest number that a new descriptor would get, found out by making one; `None` if none can be made or it
    /// is not known.
    fn lowest_free_descriptor(&self) -> Option<u64> {
        None
    }
}

/// TCP connections.
#[derive(Debug)]
pub struct TcpAcceptor {
    listener: TcpListener,
    local: SocketAddr,
    options: TcpOptions,
    /// Whether options have to be set on each connection, where the listener could not pass them on.
    each: bool,
}

impl TcpAcceptor {
    /// Accepts from `listener`; `options` give what is set on the connections. On Linux that happens once, on the
    /// listener, whose connections inherit it.
    pub fn new(listener: TcpListener, options: &TcpOptions) -> Self {
        // an address is only missing where the socket is no longer one
        let local = listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
        let inherited = cfg!(any(target_os = "linux", target_os = "android"))
            && options.apply_to_connection(&listener).is_ok();
        Self { listener, local, options: options.clone(), each: !inherited }
    }

    /// Our address on a connection. Only a listener on every address has to ask.
    fn local_of(&self, io: &TcpStream) -> SocketAddr {
        if self.local.ip().is_unspecified() { io.local_addr().unwrap_or(self.local) } else { self.local }
    }
}

impl Listen for TcpAcceptor {
    type Io = TcpStream;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, ConnInfo)>> {
        let (io, peer) = ready!(self.listener.poll_accept(cx))?;
        if self.each
            && let Err(error) = self.options.apply_to_connection(&io)
        {
            // the connection works without: it may also be gone already
            debug!(%error, %peer, "could not set the options of an accepted connection");
        }
        let info = ConnInfo::new(Transport::Tcp, peer, self.local_of(&io));
        Poll::Ready(Ok((io, info)))
    }

    fn local_addr(&self) -> ListenAddr {
        self.local.into()
    }

    fn reset(io: TcpStream) {
        // SO_LINGER of zero: close sends RST and leaves no TIME_WAIT (tcp(7)); without, it is closed all the same
        let _ = SockRef::from(&io).set_linger(Some(std::time::Duration::ZERO));
    }

    #[cfg(unix)]
    fn descriptor(io: &TcpStream) -> Option<u64> {
        number(io)
    }

    #[cfg(unix)]
    fn lowest_free_descriptor(&self) -> Option<u64> {
        lowest_free(&self.listener)
    }
}

#[cfg(unix)]
fn number(socket: &impl std::os::fd::AsRawFd) -> Option<u64> {
    u64::try_from(socket.as_raw_fd()).ok()
}

/// Duplicates a descriptor for the number that the duplicate gets.
#[cfg(unix)]
fn lowest_free(socket: &impl std::os::fd::AsFd) -> Option<u64> {
    rustix::io::fcntl_dupfd_cloexec(socket, 0).ok().and_then(|duplicate| number(&duplicate))
}

/// Connections over a unix socket. Their [`ConnInfo::peer`] is the unspecified address.
#[cfg(unix)]
#[derive(Debug)]
pub struct UnixAcceptor {
    listener: UnixListener,
    local: ListenAddr,
}

#[cfg(unix)]
impl UnixAcceptor {
    /// Accepts from `listener`.
    pub fn new(listener: UnixListener) -> Self {
        let local = listener.local_addr().map_or(UnixName::Unnamed, |address| UnixName::of(&address.into()));
        Self { listener, local: local.into() }
    }
}

#[cfg(unix)]
impl Listen for UnixAcceptor {
    type Io = UnixStream;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(UnixStream, ConnInfo)>> {
        let (io, _) = ready!(self.listener.poll_accept(cx))?;
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        Poll::Ready(Ok((io, ConnInfo::new(Transport::Unix, nowhere, nowhere))))
    }

    fn local_addr(&self) -> ListenAddr {
        self.local.clone()
    }

    fn descriptor(io: &UnixStream) -> Option<u64> {
        number(io)
    }

    fn lowest_free_descriptor(&self) -> Option<u64> {
        lowest_free(&self.listener)
    }
}
