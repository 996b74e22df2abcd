//! Options of UDP sockets.

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
    /// Datagrams leave with the bit "don't fragment" and the kernel's own idea of the path's MTU is not applied, so that
    /// the search for it is the endpoint's (RFC 9000 section 14, RFC 8899): `IP_MTU_DISCOVER` and `IPV6_MTU_DISCOVER` on
    /// Linux. Default `true`. Elsewhere a QUIC endpoint sets it by itself, and so it does with segmentation offload (GSO
    /// and GRO), which is no option here.
    pub dont_fragment: bool,
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self { recv_buffer: 1 << 20, send_buffer: 1 << 20, steer_by_cid_byte: Some(3), dont_fragment: true }
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

    /// Sets [`UdpOptions::dont_fragment`].
    #[must_use]
    pub fn with_dont_fragment(mut self, dont_fragment: bool) -> Self {
        self.dont_fragment = dont_fragment;
        self
    }
}
