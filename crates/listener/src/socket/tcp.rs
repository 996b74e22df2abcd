//! Options of TCP sockets.

use std::time::Duration;

/// How a listening TCP socket and the connections it accepts are set up.
///
/// Each option is applied to the listening socket, read back, and told if the system made something else of it
/// ([`crate::Changed`]). On Linux the connections inherit all of them; elsewhere those of the second group are set on
/// each connection when it is accepted.
///
/// | option | Linux | macOS | Windows |
/// |---|---|---|---|
/// | `backlog` | at most `net.core.somaxconn`, told if less | at most `kern.ipc.somaxconn` | at most the provider's own bound |
/// | `reuse_address` | yes | yes | not set: there it lets a port be stolen |
/// | `recv_buffer`, `send_buffer` | at most `net.core.rmem_max` and `wmem_max`, told if less | yes | yes |
/// | `fast_open` | needs bit 2 of `net.ipv4.tcp_fastopen`, told if missing | told as not there | told as not there |
/// | `defer_accept` | yes | told as not there | told as not there |
/// | `nodelay`, `keepalive` | yes | yes | yes, retries from Windows 10 on |
/// | `user_timeout`, `notsent_lowat`, `congestion` | yes | told as not there | told as not there |
/// | `dscp` | yes | IPv4 | told as not there: a policy sets it |
///
/// Explicit congestion notification (RFC 3168) is no option of a TCP socket: on Linux `sysctl net.ipv4.tcp_ecn` turns it
/// on for the whole system (2, the default, answers clients that ask for it), and the two bits below `dscp` are the
/// kernel's. On QUIC the endpoint sets it for each packet.
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
    /// `SO_KEEPALIVE` on accepted connections. Default `None`: no probes; HTTP has its own idle timeouts.
    pub keepalive: Option<Keepalive>,
    /// `SO_RCVBUF` in bytes of the listening socket, inherited by its connections. Default `None`: the kernel
    /// tunes it by itself, which a fixed size switches off. Worst case this much for each connection.
    pub recv_buffer: Option<usize>,
    /// `SO_SNDBUF` in bytes, likewise. Default `None`: the kernel tunes it by itself.
    pub send_buffer: Option<usize>,
    /// `TCP_FASTOPEN` (RFC 7413): how many connections may be in their handshake with data in their SYN. Default
    /// `None`: off. What comes in a SYN may be a replay, so behind it belongs TLS, or requests that may be repeated.
    pub fast_open: Option<u32>,
    /// `TCP_DEFER_ACCEPT`: a connection is handed on when its first bytes are there, or after this time, in whole
    /// seconds (the kernel rounds to its retransmissions). Default `None`: at once. It spares a wake-up for each
    /// connection; a protocol in which the server speaks first must not have it, and a client that sends nothing is
    /// in no limit and no timeout meanwhile.
    pub defer_accept: Option<Duration>,
    /// `TCP_USER_TIMEOUT` (RFC 5482): how long sent data may stay unacknowledged before the connection is given up, in
    /// milliseconds. Default `None`: the kernel's own, some 15 minutes.
    pub user_timeout: Option<Duration>,
    /// `TCP_NOTSENT_LOWAT` in bytes: no more than this lies unsent in the kernel before writing waits. Default `None`: the
    /// kernel's own (`net.ipv4.tcp_notsent_lowat`), without bound. 16 KiB to 128 KiB lets HTTP/2 priorities take
    /// effect, and spares memory, for some more wake-ups.
    pub notsent_lowat: Option<u32>,
    /// `TCP_CONGESTION`: the congestion control by its name, `cubic` or `bbr`. Default `None`: the system's. One that is
    /// not there is an error that lists those that are.
    pub congestion: Option<String>,
    /// The differentiated services code point (RFC 2474), 0 to 63, in `IP_TOS` and `IPV6_TCLASS`. Default `None`: 0.
    pub dscp: Option<u8>,
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
            fast_open: None,
            defer_accept: None,
            user_timeout: None,
            notsent_lowat: None,
            congestion: None,
            dscp: None,
        }
    }
}

/// When and how often a silent connection is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Keepalive {
    /// The idle time after which the first probe is sent (`TCP_KEEPIDLE`), in whole seconds, at least one.
    pub idle: Duration,
    /// The time between probes (`TCP_KEEPINTVL`), likewise. `None` is the system's: 75 s on Linux.
    pub interval: Option<Duration>,
    /// How many unanswered probes end the connection (`TCP_KEEPCNT`), 1 to 127. `None` is the system's: 9 on Linux.
    pub retries: Option<u32>,
}

impl From<Duration> for Keepalive {
    /// The first probe after this time, the rest as the system has it.
    fn from(idle: Duration) -> Self {
        Self { idle, interval: None, retries: None }
    }
}

impl Keepalive {
    /// Sets [`Keepalive::interval`].
    #[must_use]
    pub fn with_interval(mut self, interval: Duration) -> Self {
        self.interval = Some(interval);
        self
    }

    /// Sets [`Keepalive::retries`].
    #[must_use]
    pub fn with_retries(mut self, retries: u32) -> Self {
        self.retries = Some(retries);
        self
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

    /// Sets [`TcpOptions::keepalive`]; a duration is the idle time alone.
    #[must_use]
    pub fn with_keepalive(mut self, keepalive: Option<impl Into<Keepalive>>) -> Self {
        self.keepalive = keepalive.map(Into::into);
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

    /// Sets [`TcpOptions::fast_open`].
    #[must_use]
    pub fn with_fast_open(mut self, queue: Option<u32>) -> Self {
        self.fast_open = queue;
        self
    }

    /// Sets [`TcpOptions::defer_accept`].
    #[must_use]
    pub fn with_defer_accept(mut self, defer_accept: Option<Duration>) -> Self {
        self.defer_accept = defer_accept;
        self
    }

    /// Sets [`TcpOptions::user_timeout`].
    #[must_use]
    pub fn with_user_timeout(mut self, user_timeout: Option<Duration>) -> Self {
        self.user_timeout = user_timeout;
        self
    }

    /// Sets [`TcpOptions::notsent_lowat`].
    #[must_use]
    pub fn with_notsent_lowat(mut self, bytes: Option<u32>) -> Self {
        self.notsent_lowat = bytes;
        self
    }

    /// Sets [`TcpOptions::congestion`].
    #[must_use]
    pub fn with_congestion(mut self, name: Option<impl Into<String>>) -> Self {
        self.congestion = name.map(Into::into);
        self
    }

    /// Sets [`TcpOptions::dscp`].
    #[must_use]
    pub fn with_dscp(mut self, dscp: Option<u8>) -> Self {
        self.dscp = dscp;
        self
    }
}
