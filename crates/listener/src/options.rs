//! Plain options of sockets and of the accept loop.

use std::time::Duration;

/// How a listening TCP socket and the connections it accepts are set up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpOptions {
    /// Connections whose handshake is complete and that wait to be accepted, per socket. Default 1024; the kernel
    /// caps it at `net.core.somaxconn` (4096 on today's Linux). It is where clients wait when a limit is reached
    /// or descriptors are short; about 1 KiB of kernel memory for each.
    pub backlog: u32,
    /// `SO_REUSEADDR`: bind although connections of an earlier run linger in TIME_WAIT. Default `true`, since
    /// without it a restart fails for up to a minute. It never lets two listeners share a port on Unix. Not
    /// applied on Windows, where the option of that name lets a port be stolen and TIME_WAIT does not block.
    pub reuse_address: bool,
    /// `TCP_NODELAY` on accepted connections: small writes leave at once. Default `true`, since a server that
    /// writes whole responses only loses by Nagle's algorithm (40 ms against a delayed acknowledgement).
    pub nodelay: bool,
    /// `SO_KEEPALIVE` on accepted connections: the idle time after which the first probe is sent, at least one
    /// second, in whole seconds. Default `None`: no probes; HTTP has its own idle timeouts.
    pub keepalive: Option<Duration>,
    /// `SO_RCVBUF` in bytes of the listening socket, inherited by its connections. Default `None`: the kernel
    /// tunes it by itself, which a fixed size switches off. Worst case this much for each connection.
    pub recv_buffer: Option<usize>,
    /// `SO_SNDBUF` in bytes, likewise. Default `None`: the kernel tunes it by itself.
    pub send_buffer: Option<usize>,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            backlog: 1024,
            reuse_address: true,
            nodelay: true,
            keepalive: None,
            recv_buffer: None,
            send_buffer: None,
        }
    }
}

impl TcpOptions {
    /// Sets [`TcpOptions::backlog`].
    #[must_use]
    pub fn with_backlog(mut self, backlog: u32) -> Self {
        self.backlog = backlog;
        self
    }

    /// Sets [`TcpOptions::reuse_address`].
    #[must_use]
    pub fn with_reuse_address(mut self, reuse_address: bool) -> Self {
        self.reuse_address = reuse_address;
        self
    }

    /// Sets [`TcpOptions::nodelay`].
    #[must_use]
    pub fn with_nodelay(mut self, nodelay: bool) -> Self {
        self.nodelay = nodelay;
        self
    }

    /// Sets [`TcpOptions::keepalive`].
    #[must_use]
    pub fn with_keepalive(mut self, keepalive: Option<Duration>) -> Self {
        self.keepalive = keepalive;
        self
    }

    /// Sets [`TcpOptions::recv_buffer`].
    #[must_use]
    pub fn with_recv_buffer(mut self, recv_buffer: Option<usize>) -> Self {
        self.recv_buffer = recv_buffer;
        self
    }

    /// Sets [`TcpOptions::send_buffer`].
    #[must_use]
    pub fn with_send_buffer(mut self, send_buffer: Option<usize>) -> Self {
        self.send_buffer = send_buffer;
        self
    }
}

/// How a UDP socket is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UdpOptions {
    /// `SO_RCVBUF` in bytes, per socket. Default 1 MiB: a busy QUIC endpoint loses datagrams with the kernel's
    /// usual 208 KiB. When the kernel gives less, one warning names `net.core.rmem_max`.
    pub recv_buffer: usize,
    /// `SO_SNDBUF` in bytes, per socket. Default 1 MiB. When the kernel gives less, one warning names
    /// `net.core.wmem_max`.
    pub send_buffer: usize,
    /// In a group of several sockets on Linux, the byte of a QUIC destination connection id (counted from 0) that
    /// chooses the socket: its value modulo the size of the group, in the group's order. Default `Some(3)`.
    /// At most 19, as ids have at most 20 bytes (RFC 9000 section 17.2). `None` leaves the choice to the kernel's
    /// hash of addresses, which loses a connection whose client moves to another address. Without meaning where
    /// a socket stands alone, and on other systems.
    pub steer_by_cid_byte: Option<u8>,
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self { recv_buffer: 1 << 20, send_buffer: 1 << 20, steer_by_cid_byte: Some(3) }
    }
}

impl UdpOptions {
    /// Sets [`UdpOptions::recv_buffer`].
    #[must_use]
    pub fn with_recv_buffer(mut self, recv_buffer: usize) -> Self {
        self.recv_buffer = recv_buffer;
        self
    }

    /// Sets [`UdpOptions::send_buffer`].
    #[must_use]
    pub fn with_send_buffer(mut self, send_buffer: usize) -> Self {
        self.send_buffer = send_buffer;
        self
    }

    /// Sets [`UdpOptions::steer_by_cid_byte`].
    #[must_use]
    pub fn with_steer_by_cid_byte(mut self, steer_by_cid_byte: Option<u8>) -> Self {
        self.steer_by_cid_byte = steer_by_cid_byte;
        self
    }
}

/// How the accept loop behaves when the system runs short.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AcceptOptions {
    /// How long accepting rests after an error that means a shortage ([`crate::ErrorClass::Shortage`]), unless a
    /// connection closes earlier. Default 500 ms: long enough to cost nothing, short enough that a client in the
    /// kernel's queue hardly notices. At least 1 ms. An episode counts as over when this long passed without such an error.
    pub pause: Duration,
}

impl Default for AcceptOptions {
    fn default() -> Self {
        Self { pause: Duration::from_millis(500) }
    }
}

impl AcceptOptions {
    /// Sets [`AcceptOptions::pause`].
    #[must_use]
    pub fn with_pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }
}
