//! Slow clients of HTTP/1.1, and heads that are too large.

use std::time::Duration;

use super::{Flood, Reads, withstands};

#[test]
fn slow_heads() {
    withstands(Flood {
        name: "slow heads",
        keys: "header_timeout = \"500ms\"\nfirst_request_timeout = \"500ms\"\n",
        connections: 150,
        sends: |_, turn| {
            let head = b"GET / HTTP/1.1\r\nHost: a.test\r\nX-Slow: ";
            vec![head.get(turn as usize).copied().unwrap_or(b'x')]
        },
        pace: Duration::from_millis(50),
        reads: Reads::All,
        reason: "header_timeout",
        closed: 300,
    });
}

#[test]
fn slow_bodies() {
    withstands(Flood {
        name: "slow bodies",
        keys: "body_grace = \"1s\"\n",
        connections: 100,
        sends: |_, turn| match turn {
            0 => b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000\r\n\r\n".to_vec(),
            _ => b"0123456789".to_vec(),
        },
        pace: Duration::from_millis(100),
        reads: Reads::All,
        reason: "body_too_slow",
        closed: 100,
    });
}

#[test]
fn slow_readers() {
    withstands(Flood {
        name: "slow readers",
        keys: "send_timeout = \"500ms\"\n[listener.tcp]\nsend_buffer = \"64KiB\"\n",
        connections: 60,
        sends: |_, turn| match turn {
            0 => b"GET /bytes/1000000 HTTP/1.1\r\nHost: a.test\r\n\r\n".to_vec(),
            _ => Vec::new(),
        },
        pace: Duration::from_millis(20),
        reads: Reads::Trickle,
        reason: "client_stopped_reading",
        closed: 60,
    });
}

#[test]
fn large_heads() {
    withstands(Flood {
        name: "large heads",
        keys: "",
        connections: 8,
        sends: |number, turn| match (turn, number % 2) {
            (0, 0) => {
                let field = "x".repeat(100 << 10);
                format!("GET / HTTP/1.1\r\nHost: a.test\r\nX-Long: {field}\r\n\r\n").into_bytes()
            }
            (0, _) => {
                let fields = "X: y\r\n".repeat(5000);
                format!("GET / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n").into_bytes()
            }
            _ => Vec::new(),
        },
        pace: Duration::from_millis(20),
        reads: Reads::All,
        reason: "protocol_error",
        closed: 100,
    });
}
