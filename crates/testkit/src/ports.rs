//! Port numbers for programs that are started as processes and can't report the port they got.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

/// A loopback port that was free for TCP and UDP a moment ago. Another process may take it before the caller's
/// does: bind port 0 wherever the test can learn the outcome, and use this for spawned binaries only.
pub fn free_tcp_udp_port() -> u16 {
    for _ in 0..100 {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free TCP port");
        let port = tcp.local_addr().expect("a bound socket has an address").port();
        #[allow(
            clippy::disallowed_methods,
            reason = "only asks whether the number is free; nothing is served"
        )]
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port number was free for both TCP and UDP in 100 tries");
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_port_can_be_bound_afterwards() {
        let port = super::free_tcp_udp_port();
        assert_ne!(port, 0);
        assert!(std::net::TcpListener::bind(("127.0.0.1", port)).is_ok());
    }
}
