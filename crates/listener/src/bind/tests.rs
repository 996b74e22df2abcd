use std::{
    io::{self, BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use socket2::SockRef;

use super::*;
use crate::BindPlan;

fn group(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

fn tcp(address: &str) -> BindPlan {
    BindPlan::new().tcp(address.parse().unwrap(), TcpOptions::default())
}

fn udp(address: &str) -> BindPlan {
    BindPlan::new().udp(address.parse().unwrap(), UdpOptions::default())
}

/// Succeeds after a port was closed: another test that starts a process just then holds a copy of the descriptor
/// until that process is executed.
fn soon(mut bind: impl FnMut() -> Result<Vec<Bound>, BindError>) {
    let give_up = std::time::Instant::now() + Duration::from_secs(10);
    while let Err(error) = bind() {
        assert!(error.is_in_use() && std::time::Instant::now() < give_up, "{error}");
        std::thread::yield_now();
    }
}

#[test]
fn a_group_shares_one_port_in_the_plans_order() {
    let bound = BindPlan::new()
        .tcp("127.0.0.1:0".parse().unwrap(), TcpOptions::default())
        .tcp_and_udp("[::1]:0".parse().unwrap(), TcpOptions::default(), UdpOptions::default())
        .udp("127.0.0.1:0".parse().unwrap(), UdpOptions::default())
        .bind(group(3))
        .unwrap();
    let counts: Vec<_> = bound.iter().map(|bound| (bound.tcp.len(), bound.udp.len())).collect();
    assert_eq!(counts, [(3, 0), (3, 3), (0, 3)]);
    for bound in &bound {
        let local_addr = bound.local_addr.ip().unwrap();
        assert_ne!(local_addr.port(), 0);
        for listener in &bound.tcp {
            assert_eq!(listener.local_addr().unwrap(), local_addr);
            assert!(SockRef::from(listener).nonblocking().unwrap());
        }
        for socket in &bound.udp {
            assert_eq!(socket.local_addr().unwrap(), local_addr);
            assert!(SockRef::from(socket).nonblocking().unwrap());
        }
    }
    assert!(bound[1].local_addr.ip().unwrap().is_ipv6());
}

#[test]
fn v6_only_is_set_either_way() {
    for only_v6 in [false, true] {
        let bound = tcp("[::]:0").only_v6(only_v6).bind(group(1)).unwrap();
        assert_eq!(SockRef::from(&bound[0].tcp[0]).only_v6().unwrap(), only_v6);
        let bound = udp("[::]:0").only_v6(only_v6).bind(group(1)).unwrap();
        assert_eq!(SockRef::from(&bound[0].udp[0]).only_v6().unwrap(), only_v6);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn sockets_close_on_exec() {
    use std::os::fd::AsRawFd;

    let bound = tcp("127.0.0.1:0").bind(group(2)).unwrap();
    for listener in &bound[0].tcp {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", listener.as_raw_fd())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        assert_ne!(i32::from_str_radix(flags.trim(), 8).unwrap() & libc::O_CLOEXEC, 0, "{info}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_group_does_not_join_a_stranger_who_shares_the_port() {
    for (kind, plan) in [(Type::STREAM, tcp as fn(&str) -> BindPlan), (Type::DGRAM, udp)] {
        let stranger = Socket::new(Domain::IPV4, kind, None).unwrap();
        stranger.set_reuse_port(true).unwrap();
        stranger.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        if kind == Type::STREAM {
            stranger.listen(1).unwrap();
        }
        let address = stranger.local_addr().unwrap().as_socket().unwrap().to_string();
        assert!(plan(&address).bind(group(2)).unwrap_err().is_in_use());
        assert!(plan(&address).bind(group(1)).unwrap_err().is_in_use());
        drop(stranger);
        soon(|| plan(&address).bind(group(2)));
    }
}

#[test]
fn a_restart_does_not_wait_for_old_connections() {
    let bound = tcp("127.0.0.1:0").bind(group(1)).unwrap();
    let address = bound[0].local_addr.ip().unwrap();
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    client.connect(&address.into()).unwrap();
    bound[0].tcp[0].set_nonblocking(false).unwrap();
    let (server, _) = bound[0].tcp[0].accept().unwrap();
    // closed first on this side, which therefore keeps TIME_WAIT
    drop(server);
    assert_eq!(client.recv(&mut [std::mem::MaybeUninit::uninit(); 1]).unwrap(), 0);
    drop((client, bound));
    soon(|| tcp(&address.to_string()).bind(group(1)));
    let strict = TcpOptions::default().with_reuse_address(false);
    let error = BindPlan::new().tcp(address, strict).bind(group(1)).unwrap_err();
    assert!(error.is_in_use(), "{error}");
}

#[test]
fn buffers_are_what_was_asked_for() {
    let options = TcpOptions::default().with_recv_buffer(Some(64 << 10)).with_send_buffer(Some(32 << 10));
    let bound = BindPlan::new().tcp("127.0.0.1:0".parse().unwrap(), options).bind(group(1)).unwrap();
    let socket = SockRef::from(&bound[0].tcp[0]);
    assert_eq!(socket.recv_buffer_size().unwrap() / 2, 64 << 10);
    assert_eq!(socket.send_buffer_size().unwrap() / 2, 32 << 10);
}

#[cfg(target_os = "linux")]
#[test]
fn smaller_udp_buffers_are_told_once_with_the_sysctl() {
    let log = crate::test_log::Log::capture();
    let options = UdpOptions::default().with_recv_buffer(1 << 30).with_send_buffer(1 << 29);
    BindPlan::new().udp("127.0.0.1:0".parse().unwrap(), options).bind(group(3)).unwrap();
    let text = log.lines().join("\n");
    assert_eq!(text.matches("net.core.rmem_max=1073741824").count(), 1, "{text}");
    assert_eq!(text.matches("net.core.wmem_max=536870912").count(), 1, "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[cfg(target_os = "linux")]
#[test]
fn datagrams_go_where_the_connection_id_says() {
    const GROUP: usize = 4;
    // the last byte wraps around
    const VALUES: [u8; 6] = [2, 0, 3, 1, 250, 255];
    let by = |byte| UdpOptions::default().with_steer_by_cid_byte(Some(byte));
    for (byte, options) in [(3, UdpOptions::default()), (0, by(0)), (17, by(17))] {
        let bound = BindPlan::new().udp("127.0.0.1:0".parse().unwrap(), options).bind(group(GROUP)).unwrap();
        let clients: Vec<_> =
            (0..5).map(|_| udp("127.0.0.1:0").bind(group(1)).unwrap().remove(0).udp.remove(0)).collect();
        for client in &clients {
            for value in VALUES {
                let mut short = [0x40; 40];
                short[1 + byte] = value;
                client.send_to(&short, bound[0].local_addr.ip().unwrap()).unwrap();
                let mut long = [0xc0; 1200];
                long[5] = 20;
                long[6 + byte] = value;
                client.send_to(&long, bound[0].local_addr.ip().unwrap()).unwrap();
            }
            client.send_to(&[0x40], bound[0].local_addr.ip().unwrap()).unwrap();
        }
        for (n, socket) in bound[0].udp.iter().enumerate() {
            let expected =
                VALUES.iter().filter(|value| usize::from(**value) % GROUP == n).count() * 2 * clients.len();
            let too_short = if n == 0 { clients.len() } else { 0 };
            socket.set_nonblocking(false).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let mut buf = [0; 1500];
            for _ in 0..expected + too_short {
                let len = socket.recv(&mut buf).unwrap();
                let value = match len {
                    1 => 0,
                    40 => buf[1 + byte],
                    _ => buf[6 + byte],
                };
                assert_eq!(usize::from(value) % GROUP, n);
            }
            socket.set_nonblocking(true).unwrap();
            assert_eq!(socket.recv(&mut buf).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }
}

/// The id that a client makes up need not have the byte. What follows it is of no use: it differs from packet to packet.
#[cfg(target_os = "linux")]
#[test]
fn all_first_packets_of_a_client_go_to_one_socket() {
    let options = UdpOptions::default().with_steer_by_cid_byte(Some(17));
    let bound = BindPlan::new().udp("127.0.0.1:0".parse().unwrap(), options).bind(group(4)).unwrap();
    let client = udp("127.0.0.1:0").bind(group(1)).unwrap().remove(0).udp.remove(0);
    for after in 0..16 {
        let mut long = [after; 1200];
        (long[0], long[5], long[9]) = (0xc0, 8, 2);
        client.send_to(&long, bound[0].local_addr.ip().unwrap()).unwrap();
    }
    let socket = &bound[0].udp[2];
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut buf = [0; 1500];
    for _ in 0..16 {
        assert_eq!(socket.recv(&mut buf).unwrap(), 1200);
    }
}

#[test]
fn an_address_of_somebody_else() {
    // TEST-NET-1 of RFC 5737: nobody's
    let error = tcp("192.0.2.1:0").bind(group(1)).unwrap_err();
    assert!(matches!(error, BindError::NotLocal { .. }), "{error:?}");
    assert!(error.to_string().contains("192.0.2.1 is not an address of this host"), "{error}");
}

/// This test program once more, running one of the ignored "tests" below as a helper.
struct Helper {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Helper {
    fn start(role: &str, change: impl FnOnce(&mut Command)) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--ignored", "--exact", role, "--nocapture"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        change(&mut command);
        let mut child = command.spawn()?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Ok(Self { child, stdin, stdout })
    }

    /// The rest of the line that begins with this word.
    fn answer(&mut self, word: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "the helper said no {word}");
            if let Some(rest) = line.split_once(word) {
                return rest.1.trim().to_owned();
            }
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // the end of its input ends it
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "a helper process of other tests"]
fn holds_a_port() {
    let bound = BindPlan::new()
        .tcp_and_udp("0.0.0.0:0".parse().unwrap(), TcpOptions::default(), UdpOptions::default())
        .bind(group(2))
        .unwrap();
    println!("\nHELD {}", bound[0].local_addr.ip().unwrap().port());
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
#[ignore = "a helper process of other tests"]
fn tries_a_port() {
    let mut address = String::new();
    io::stdin().read_line(&mut address).unwrap();
    match tcp(address.trim()).bind(group(1)) {
        Ok(_) => println!("\nTRIED fine"),
        Err(error) => println!("\nTRIED {error}"),
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_holder_of_a_port_is_named() {
    let mut helper = Helper::start("bind::tests::holds_a_port", |_| {}).unwrap();
    let pid = helper.child.id();
    let port: u16 = helper.answer("HELD ").parse().unwrap();
    let program = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    for plan in [tcp, udp] {
        for address in ["127.0.0.1", "[::]"] {
            let error = plan(&format!("{address}:{port}")).bind(group(2)).unwrap_err();
            let holder = error.holder().unwrap();
            assert_eq!((holder.pid, holder.program.as_deref()), (Some(pid), Some(program.trim())), "{error}");
            assert_eq!(holder.address, SocketAddr::from(([0, 0, 0, 0], port)));
            let text = error.to_string();
            let line = format!("held by {} (pid {pid}, user {}) on ", program.trim(), holder.user);
            assert!(text.contains(&line) && text.contains("0.0.0.0") && text.contains("(IPv4)"), "{text}");
            assert!(text.contains("listen on another port"), "{text}");
        }
    }
}

/// What a process without privileges is told; `None` where none can be started (only root can).
#[cfg(target_os = "linux")]
fn as_nobody(address: &str) -> Option<String> {
    use std::os::unix::process::CommandExt;

    let mut helper = Helper::start("bind::tests::tries_a_port", |command| {
        command.uid(65534).gid(65534);
    })
    .ok()?;
    writeln!(helper.stdin.as_mut()?, "{address}").unwrap();
    Some(helper.answer("TRIED "))
}

#[cfg(target_os = "linux")]
#[test]
fn without_privileges_the_way_out_is_named() {
    let held = tcp("127.0.0.1:0").bind(group(1)).unwrap();
    let Some(text) = as_nobody(&held[0].local_addr.to_string()) else { return };
    for part in
        ["is already in use", "a process that is not visible (user ", "run as root to see it", "another port"]
    {
        assert!(text.contains(part), "{part} is missing in {text}");
    }

    let first_free = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if first_free.trim().parse::<u16>().unwrap() > 1 {
        let text = as_nobody("127.0.0.1:1").unwrap();
        for part in
            ["no permission", "root", "setcap cap_net_bind_service=+ep /", "ip_unprivileged_port_start=1"]
        {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_shared_port_is_shared_with_those_who_share() {
    for (protocol, plan) in [("tcp", tcp as fn(&str) -> BindPlan), ("udp", udp)] {
        for n in [1, 2] {
            let first = plan("127.0.0.1:0").shared(true).bind(group(n)).unwrap();
            let address = first[0].local_addr.to_string();
            let second = plan(&address).shared(true).bind(group(n)).unwrap();
            assert_eq!(second[0].local_addr, first[0].local_addr, "{protocol}");
            let error = plan(&address).bind(group(n)).unwrap_err();
            assert!(error.is_in_use() && error.holder().is_some_and(|holder| holder.this_process), "{error}");
        }
        let exclusive = plan("127.0.0.1:0").bind(group(1)).unwrap();
        let error = plan(&exclusive[0].local_addr.to_string()).shared(true).bind(group(1)).unwrap_err();
        assert!(error.is_in_use(), "{protocol}: {error}");
    }
}

#[test]
fn all_that_was_refused_is_told() {
    let held = tcp("127.0.0.1:0").bind(group(1)).unwrap();
    let held_address = held[0].local_addr.ip().unwrap();
    let plan = BindPlan::new()
        .tcp("127.0.0.1:0".parse().unwrap(), TcpOptions::default())
        .tcp(held_address, TcpOptions::default())
        .udp("192.0.2.1:1".parse().unwrap(), UdpOptions::default());
    let error = plan.bind(group(1)).unwrap_err();
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(
        lines[0].contains(&format!("TCP {held_address} is already in use: held by this process")),
        "{text}"
    );
    assert!(lines[1].contains("192.0.2.1 is not an address of this host"), "{text}");
    assert!(!error.is_in_use() && error.holder().is_some());
}

#[test]
fn a_system_without_ipv6_falls_back_only_if_asked() {
    let address: SocketAddr = "[::]:0".parse().unwrap();
    let no_family =
        |code| BindError::new("socket", Protocol::Tcp, address, io::Error::from_raw_os_error(code));
    for code in [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL] {
        assert!(falls_back(address, &no_family(code)));
        assert!(!falls_back("[::1]:0".parse().unwrap(), &no_family(code)), "one address is not all of them");
        assert!(!falls_back("0.0.0.0:0".parse().unwrap(), &no_family(code)));
    }
    assert!(!falls_back(address, &no_family(libc::EACCES)));
    assert!(no_family(libc::EAFNOSUPPORT).to_string().contains("v4_fallback"));
    // where there is IPv6, nothing is different
    let has_v6 = BindPlan::new().tcp(address, TcpOptions::default()).bind(group(1)).is_ok();
    let bound = BindPlan::new().tcp(address, TcpOptions::default()).v4_fallback(true).bind(group(1)).unwrap();
    assert_eq!(bound[0].local_addr.ip().unwrap().is_ipv6(), has_v6);
}

#[cfg(target_os = "linux")]
#[test]
fn connections_that_linger_are_told_from_a_holder() {
    let options = TcpOptions::default().with_reuse_address(false);
    let bound = BindPlan::new().tcp("127.0.0.1:0".parse().unwrap(), options.clone()).bind(group(1)).unwrap();
    let address = bound[0].local_addr.ip().unwrap();
    let client = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
    bound[0].tcp[0].set_nonblocking(false).unwrap();
    let (server, _) = bound[0].tcp[0].accept().unwrap();
    // who closes first has the TIME_WAIT
    drop((server, bound));
    assert_eq!((&client).read(&mut [0]).unwrap(), 0);
    drop(client);
    let give_up = std::time::Instant::now() + Duration::from_secs(10);
    while holder::lingering(Protocol::Tcp, address) == 0 {
        assert!(std::time::Instant::now() < give_up, "the connection lingers");
        std::thread::yield_now();
    }
    let error = BindPlan::new().tcp(address, options).bind(group(1)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("1 connections of an earlier run are in TIME_WAIT") && text.contains("SO_REUSEADDR"),
        "{text}"
    );
}
