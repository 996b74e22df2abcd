use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    num::NonZeroUsize,
    os::fd::AsFd,
};

use super::*;
use crate::{BindPlan, Bound, Keepalive, sys::get_int, test_log::Log};

fn bound(address: &str, options: TcpOptions) -> Bound {
    BindPlan::new().tcp(address.parse().unwrap(), options).bind(NonZeroUsize::MIN).unwrap().remove(0)
}

fn sysctl(path: &str) -> String {
    fs::read_to_string(format!("/proc/sys/net/{path}")).unwrap().trim().to_owned()
}

fn accepted(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let port = listener.local_addr().unwrap().port();
    let client = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    client.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
    listener.set_nonblocking(false).unwrap();
    let (server, _) = listener.accept().unwrap();
    (server, client.into())
}

fn int(socket: &impl AsFd, level: i32, option: i32) -> i32 {
    get_int(socket.as_fd(), level, option).unwrap()
}

#[test]
fn accepted_connections_inherit_every_option() {
    let secs = Duration::from_secs;
    let options = TcpOptions::default()
        .with_nodelay(true)
        .with_keepalive(Some(Keepalive::from(secs(77)).with_interval(secs(11)).with_retries(4)))
        .with_recv_buffer(Some(65_536))
        .with_send_buffer(Some(32_768))
        .with_user_timeout(Some(Duration::from_millis(12_345)))
        .with_notsent_lowat(Some(20_000))
        .with_congestion(Some("reno"))
        .with_dscp(Some(46));
    for address in ["127.0.0.1:0", "[::]:0"] {
        let bound = bound(address, options.clone());
        assert_eq!(bound.changed, [], "{address}");
        let (server, _client) = accepted(&bound.tcp[0]);
        let socket = SockRef::from(&server);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), secs(77));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), secs(11));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 4);
        assert_eq!(socket.recv_buffer_size().unwrap() / 2, 65_536, "{address}");
        assert_eq!(socket.send_buffer_size().unwrap() / 2, 32_768, "{address}");
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_millis(12_345)));
        assert_eq!(int(&server, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT), 20_000);
        assert!(socket.tcp_congestion().unwrap().starts_with(b"reno"));
        // both connections are IPv4, the second one on a socket of IPv6
        assert_eq!(int(&server, libc::IPPROTO_IP, libc::IP_TOS) >> 2, 46, "{address}");
    }
}

#[test]
fn a_listener_that_exists_already_gets_them_too() {
    let listener = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(1).unwrap();
    let listener = TcpListener::from(listener);
    let options = TcpOptions::default().with_nodelay(true).with_backlog(64);
    assert_eq!(options.apply_to_listener(&listener).unwrap(), []);
    assert_eq!(crate::sys::backlog(listener.as_fd()).unwrap().0, 64);
    let (server, client) = accepted(&listener);
    assert!(SockRef::from(&server).tcp_nodelay().unwrap());
    assert!(!SockRef::from(&client).tcp_nodelay().unwrap());
    options.apply_to_connection(&client).unwrap();
    assert!(SockRef::from(&client).tcp_nodelay().unwrap());
}

#[test]
fn the_backlog_is_read_back() {
    let most: u32 = sysctl("core/somaxconn").parse().unwrap();
    let small = bound("127.0.0.1:0", TcpOptions::default().with_backlog(7));
    assert_eq!((crate::sys::backlog(small.tcp[0].as_fd()).unwrap(), small.changed.len()), ((7, 0), 0));
    let _waiting =
        TcpStream::connect_timeout(&small.local_addr.ip().unwrap(), Duration::from_secs(5)).unwrap();
    assert_eq!(crate::sys::backlog(small.tcp[0].as_fd()).unwrap(), (7, 1), "one waits");

    let log = Log::capture();
    let large = bound("127.0.0.1:0", TcpOptions::default().with_backlog(most + 1));
    let [changed] = &large.changed[..] else { panic!("{:?}", large.changed) };
    assert_eq!((changed.option, changed.got.as_str()), ("backlog", most.to_string().as_str()));
    assert!(changed.to_string().contains("net.core.somaxconn"), "{changed}");
    assert_eq!(log.lines().len(), 1, "{:?}", log.lines());
    assert!(log.lines()[0].contains("WARN") && log.lines()[0].contains("net.core.somaxconn"));
}

#[test]
fn a_group_tells_a_change_once() {
    let log = Log::capture();
    let most: usize = sysctl("core/rmem_max").parse().unwrap();
    let wanted = most * 2;
    let options = TcpOptions::default().with_recv_buffer(Some(wanted));
    let bound = BindPlan::new()
        .tcp("127.0.0.1:0".parse().unwrap(), options.clone())
        .tcp("127.0.0.1:0".parse().unwrap(), options)
        .bind(NonZeroUsize::new(3).unwrap())
        .unwrap();
    for bound in &bound {
        let [changed] = &bound.changed[..] else { panic!("{:?}", bound.changed) };
        assert_eq!(
            changed.to_string(),
            format!(
                "SO_RCVBUF is {most}, not {wanted}: `sysctl -w net.core.rmem_max={wanted}` lets the kernel give more"
            )
        );
    }
    assert_eq!(log.lines().len(), 1, "{:?}", log.lines());
}

#[test]
fn fast_open_and_defer_accept() {
    let options =
        TcpOptions::default().with_fast_open(Some(33)).with_defer_accept(Some(Duration::from_secs(3)));
    let bound = bound("127.0.0.1:0", options);
    assert_eq!(int(&bound.tcp[0], libc::IPPROTO_TCP, libc::TCP_FASTOPEN), 33);
    assert!(int(&bound.tcp[0], libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT) >= 3);
    let for_servers = sysctl("ipv4/tcp_fastopen").parse::<u32>().unwrap() & 2 != 0;
    let told: Vec<_> = bound.changed.iter().map(|changed| changed.option).collect();
    assert_eq!(told, if for_servers { vec![] } else { vec!["TCP_FASTOPEN"] });
    assert!(bound.changed.iter().all(|changed| changed.to_string().contains("net.ipv4.tcp_fastopen=")));

    // a client that says nothing is not there yet
    let listener = &bound.tcp[0];
    let mut client =
        TcpStream::connect_timeout(&bound.local_addr.ip().unwrap(), Duration::from_secs(5)).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    io::Write::write_all(&mut client, b"x").unwrap();
    listener.set_nonblocking(false).unwrap();
    listener.accept().unwrap();
}

#[test]
fn a_congestion_control_that_is_not_there() {
    let options = TcpOptions::default().with_congestion(Some("no_such_thing"));
    let plan = BindPlan::new().tcp("127.0.0.1:0".parse().unwrap(), options.clone());
    let error = plan.bind(NonZeroUsize::MIN).unwrap_err().to_string();
    for part in ["TCP_CONGESTION failed", "this kernel has", "reno"] {
        assert!(error.contains(part), "{part} is missing in {error}");
    }
    let listener = bound("127.0.0.1:0", TcpOptions::default()).tcp.remove(0);
    let error = options.apply_to_listener(&listener).unwrap_err();
    assert_eq!(error.option, "TCP_CONGESTION");
    assert!(error.to_string().contains("refused TCP_CONGESTION: this kernel has"), "{error}");
}

#[test]
fn datagrams_are_not_fragmented() {
    for (address, dont_fragment) in [("127.0.0.1:0", true), ("[::]:0", true), ("127.0.0.1:0", false)] {
        let options = UdpOptions::default().with_dont_fragment(dont_fragment);
        let bound =
            BindPlan::new().udp(address.parse().unwrap(), options).bind(NonZeroUsize::MIN).unwrap().remove(0);
        let v4 = int(&bound.udp[0], libc::IPPROTO_IP, libc::IP_MTU_DISCOVER);
        assert_eq!(v4 == libc::IP_PMTUDISC_PROBE, dont_fragment, "{address}");
        if address.starts_with('[') {
            let v6 = int(&bound.udp[0], libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER);
            assert_eq!(v6, libc::IPV6_PMTUDISC_PROBE);
        }
    }
}
