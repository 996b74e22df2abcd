use std::{os::unix::fs::symlink, path::PathBuf};

use super::*;

#[test]
fn addresses_of_the_kernels_tables() {
    let v4 = |a, b, c, d| u32::from_ne_bytes([a, b, c, d]);
    for (text, expected) in [
        (format!("{:08X}:01BB", v4(127, 0, 0, 1)), "127.0.0.1:443"),
        ("00000000:0050".to_owned(), "0.0.0.0:80"),
        (format!("{}:1F90", "0".repeat(32)), "[::]:8080"),
        (format!("{}{:08X}:0001", "0".repeat(24), v4(0, 0, 0, 1)), "[::1]:1"),
        (
            format!("{:08X}{}{:08X}:0002", v4(0x20, 0x01, 0x0d, 0xb8), "0".repeat(16), v4(0, 0, 0, 7)),
            "[2001:db8::7]:2",
        ),
        (format!("{}{:08X}{:08X}:0003", "0".repeat(16), v4(0, 0, 255, 255), v4(192, 0, 2, 9)), "192.0.2.9:3"),
    ] {
        assert_eq!(parse_address(&text), Some(expected.parse().unwrap()), "{text}");
    }
    for text in ["", ":", "0000:0050", "0000000G:0050", "00000000:", "00000000:10000", "0000000\u{e9}:0050"] {
        assert_eq!(parse_address(text), None, "{text}");
    }
}

#[test]
fn rows_without_a_process_or_sense_are_skipped() {
    let head =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
    let time_wait =
        "  1: 00000000:0050 00000000:0000 06 00000000:00000000 03:00000000 00000000     0        0 0 3 00";
    let short = "  1: 00000000:0050 00000000:0000 0A";
    for row in [head, time_wait, short, "", "  1: x y z a b c d e 5"] {
        assert_eq!(parse(row), None, "{row}");
    }
}

/// A made-up `/proc`, removed at the end.
struct Proc(PathBuf);

impl Proc {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("portcullis-listener-{}-{name}", std::process::id()));
        fs::create_dir_all(root.join("net")).unwrap();
        Self(root)
    }

    fn table(&self, name: &str, rows: &[(&str, u8, u32, u64)]) {
        let mut text = "  sl  local_address rem_address st ...\n".to_owned();
        for (n, (local, state, uid, inode)) in rows.iter().enumerate() {
            text += &format!(
                "{n:4}: {local} 00000000:0000 {state:02X} 00000000:00000000 00:00000000 00000000 {uid:5} 0 {inode} 1 0\n"
            );
        }
        fs::write(self.0.join("net").join(name), text).unwrap();
    }

    fn process(&self, pid: u32, program: &str, inode: u64) {
        let own = self.0.join(pid.to_string());
        fs::create_dir_all(own.join("fd")).unwrap();
        fs::write(own.join("comm"), format!("{program}\n")).unwrap();
        symlink("/dev/null", own.join("fd/0")).unwrap();
        symlink(format!("socket:[{inode}]"), own.join("fd/3")).unwrap();
    }

    fn find(&self, protocol: Protocol, wanted: &str) -> Vec<String> {
        let passwd = self.0.join("passwd");
        fs::write(&passwd, "root:x:0:0::/root:/bin/sh\nwww-data:x:33:33::/:/bin/false\n").unwrap();
        find_in(&self.0, &passwd, protocol, wanted.parse().unwrap()).iter().map(ToString::to_string).collect()
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_family_of_processes_is_its_parent() {
    let proc = Proc::new("family");
    proc.table(
        "tcp",
        &[("00000000:01BB", 0x0a, 33, 77), ("00000000:0050", 0x0a, 0, 78), ("00000000:01BB", 1, 0, 79)],
    );
    for pid in [901, 900, 1200] {
        proc.process(pid, "nginx", 77);
    }
    assert_eq!(
        proc.find(Protocol::Tcp, "127.0.0.1:443"),
        ["nginx (pid 900, user www-data) on TCP 0.0.0.0:443 (IPv4)"],
    );
    assert!(proc.find(Protocol::Tcp, "127.0.0.1:444").is_empty());
    assert!(proc.find(Protocol::Udp, "127.0.0.1:443").is_empty());
}

#[test]
fn what_is_not_visible_still_has_a_user() {
    let proc = Proc::new("hidden");
    proc.table("udp6", &[(&format!("{}:01BB", "0".repeat(32)), 7, 4242, 5)]);
    assert_eq!(
        proc.find(Protocol::Udp, "0.0.0.0:443"),
        ["a process that is not visible (user 4242) on UDP [::]:443 (IPv6, serving IPv4 too)"],
    );
    assert_eq!(
        proc.find(Protocol::Udp, "[::1]:443"),
        ["a process that is not visible (user 4242) on UDP [::]:443 (IPv6)"],
    );
}

#[test]
fn a_connection_is_named_where_nobody_listens() {
    let proc = Proc::new("connection");
    proc.table("tcp", &[("00000000:9C40", 1, 0, 6)]);
    proc.process(31, "curl", 6);
    assert_eq!(
        proc.find(Protocol::Tcp, "0.0.0.0:40000"),
        ["curl (pid 31, user root) with a connection from TCP 0.0.0.0:40000 (IPv4)"],
    );
}

#[test]
fn the_list_is_short() {
    let proc = Proc::new("many");
    let rows: Vec<_> = (0..50).map(|n| ("00000000:01BB", 0x0a, n, u64::from(n) + 1)).collect();
    proc.table("tcp", &rows);
    assert_eq!(proc.find(Protocol::Tcp, "0.0.0.0:443").len(), MOST);
}
