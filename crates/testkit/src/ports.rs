//! Port numbers for programs that are started as processes and can't report the port they got.

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    sync::atomic::{AtomicU32, Ordering},
};

/// The numbers that are looked at. Below those that systems give to sockets by themselves (32768 and up on Linux, RFC 6056 section 3.2
/// elsewhere): there thousands of a load's connections would take such a number before its program does.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// A loopback port that was free for TCP and UDP a moment ago, and that this process gives away once. Another process may take it before the
/// caller's does: bind port 0 wherever the test can learn the outcome, and use this for spawned binaries only.
pub fn free_tcp_udp_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let count = u32::from(RANGE.end - RANGE.start);
    for _ in 0..count {
        // test programs that run side by side begin at places of their own
        let place =
            std::process::id().wrapping_mul(997).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % count;
        let port = RANGE.start + u16::try_from(place).expect("it is less than the number of ports");
        #[allow(
            clippy::disallowed_methods,
            reason = "only asks whether the number is free; nothing is served"
        )]
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, port));
        if udp.is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port number is free for both TCP and UDP");
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
