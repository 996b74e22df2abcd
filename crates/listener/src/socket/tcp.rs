//! Options of TCP sockets.

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
