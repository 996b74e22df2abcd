use super::*;

struct Side(&'static str, bool);

fn plan(protocol: Protocol, sides: [(&Side, u16); 2]) -> BindPlan {
    sides.into_iter().fold(BindPlan::new(), |plan, (Side(ip, only_v6), port)| {
        let address = SocketAddr::new(ip.parse().unwrap(), port);
        match protocol {
            Protocol::Tcp => plan.tcp(address, TcpOptions::default()),
            _ => plan.udp(address, UdpOptions::default()),
        }
        .only_v6(*only_v6)
    })
}

fn single(protocol: Protocol, side: &Side, port: u16) -> BindPlan {
    let mut plan = plan(protocol, [(side, port), (side, port)]);
    plan.wanted.truncate(1);
    plan
}

/// (one address, another, how they clash)
const TABLE: &[(Side, Side, Option<Overlap>)] = &[
    (Side("127.0.0.1", false), Side("127.0.0.1", false), Some(Overlap::Same)),
    (Side("0.0.0.0", false), Side("0.0.0.0", false), Some(Overlap::Same)),
    (Side("::", false), Side("::", false), Some(Overlap::Same)),
    (Side("::", true), Side("::", true), Some(Overlap::Same)),
    (Side("::", true), Side("::", false), Some(Overlap::Same)),
    (Side("::1", false), Side("::1", false), Some(Overlap::Same)),
    (Side("0.0.0.0", false), Side("127.0.0.1", false), Some(Overlap::Wildcard)),
    (Side("::", false), Side("::1", false), Some(Overlap::Wildcard)),
    (Side("::", true), Side("::1", false), Some(Overlap::Wildcard)),
    (Side("::", false), Side("0.0.0.0", false), Some(Overlap::DualStack)),
    (Side("::", false), Side("127.0.0.1", false), Some(Overlap::DualStack)),
    (Side("::ffff:127.0.0.1", false), Side("127.0.0.1", false), Some(Overlap::Same)),
    (Side("::ffff:127.0.0.1", false), Side("::", false), Some(Overlap::DualStack)),
    (Side("::ffff:127.0.0.1", false), Side("::", true), None),
    (Side("127.0.0.1", false), Side("127.0.0.2", false), None),
    (Side("::", true), Side("0.0.0.0", false), None),
    (Side("::", true), Side("127.0.0.1", false), None),
    (Side("::1", false), Side("127.0.0.1", false), None),
    (Side("::1", false), Side("0.0.0.0", false), None),
];

#[test]
fn every_pair_of_addresses() {
    for (a, b, expected) in TABLE {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for sides in [[(a, 443), (b, 443)], [(b, 443), (a, 443)]] {
                let found = plan(protocol, sides).check().map_err(|error| error.conflicts()[0].overlap).err();
                assert_eq!(found, *expected, "{protocol} {} {}", a.0, b.0);
            }
            assert_eq!(plan(protocol, [(a, 443), (b, 444)]).check(), Ok(()), "other ports never clash");
            assert_eq!(plan(protocol, [(a, 0), (b, 0)]).check(), Ok(()), "port 0 never clashes");
        }
    }
}

/// The table is what the kernel does, for exclusive sockets and for groups, whichever comes first.
#[cfg(target_os = "linux")]
#[test]
fn the_kernel_agrees() {
    for (a, b, expected) in TABLE {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for group in [1, 2].map(|n| NonZeroUsize::new(n).unwrap()) {
                for (first, second) in [(a, b), (b, a)] {
                    let what = format!("{protocol} {} then {} in groups of {group}", first.0, second.0);
                    let pair = || {
                        let held = single(protocol, first, 0).bind(group).unwrap();
                        let local = held[0].local_addr.clone();
                        let port = local.ip().unwrap().port();
                        (single(protocol, second, port).bind(group).map(drop), local, held)
                    };
                    if expected.is_none() {
                        // a port that is free on one address may be in TIME_WAIT on the other, left there by
                        // some client: another port will do
                        let fits = (0..20).any(|_| pair().0.is_ok());
                        assert!(fits, "{what}: {}", pair().0.unwrap_err());
                        continue;
                    }
                    let (second_bound, local, _held) = pair();
                    let error = second_bound.expect_err(&what);
                    assert!(error.is_in_use(), "{what}: {error}");
                    let BindError::InUse { holders, .. } = &error else { panic!("{what}: {error}") };
                    // another test may be in the way as well, on the other family's same port
                    let ours = |holder: &crate::Holder| {
                        holder.this_process && ListenAddr::Ip(holder.address) == local
                    };
                    assert!(holders.iter().any(ours), "{what}: {error}");
                }
            }
        }
    }
}

#[test]
fn tcp_beside_udp_is_fine_and_both_count_for_each() {
    let address: SocketAddr = "0.0.0.0:443".parse().unwrap();
    let (tcp, udp) = (TcpOptions::default(), UdpOptions::default());
    assert_eq!(BindPlan::new().tcp(address, tcp.clone()).udp(address, udp.clone()).check(), Ok(()));
    let error = BindPlan::new()
        .tcp_and_udp(address, tcp.clone(), udp.clone())
        .tcp_and_udp(address, tcp, udp)
        .check()
        .unwrap_err();
    let protocols: Vec<_> = error.conflicts().iter().map(|conflict| conflict.protocol).collect();
    assert_eq!(protocols, [Protocol::Tcp, Protocol::Udp]);
}

#[test]
fn all_conflicts_are_listed_with_reason_and_fix() {
    let tcp = TcpOptions::default();
    let plan = BindPlan::new()
        .tcp("[::]:443".parse().unwrap(), tcp.clone())
        .tcp("0.0.0.0:443".parse().unwrap(), tcp.clone())
        .tcp("127.0.0.1:80".parse().unwrap(), tcp.clone())
        .tcp("127.0.0.1:80".parse().unwrap(), tcp.clone())
        .tcp("0.0.0.0:80".parse().unwrap(), tcp);
    let error = plan.check().unwrap_err();
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().collect();
    let expected: [&[&str]; 4] = [
        &["[::]:443 and 0.0.0.0:443 clash", "IPV6_V6ONLY", "only-v6", "Leave out 0.0.0.0:443"],
        &["127.0.0.1:80 is wanted twice", "another port", "one listener serve both"],
        &["0.0.0.0:80 and 127.0.0.1:80 clash", "every address"],
        &["0.0.0.0:80 and 127.0.0.1:80 clash"],
    ];
    assert_eq!(lines.len(), expected.len(), "{text}");
    for (line, parts) in lines.iter().zip(expected) {
        for part in parts {
            assert!(line.contains(part), "{part} is missing in {line}");
        }
    }
    let places: Vec<_> = error.conflicts().iter().map(|conflict| (conflict.first, conflict.second)).collect();
    assert_eq!(places, [(0, 1), (2, 3), (2, 4), (3, 4)]);
    assert!(matches!(plan.bind(NonZeroUsize::MIN), Err(BindError::Plan(same)) if same == error));
}

#[test]
fn link_local_addresses_on_two_interfaces_are_two() {
    let scoped = |scope| {
        let ip = "fe80::1".parse().unwrap();
        SocketAddr::V6(std::net::SocketAddrV6::new(ip, 443, 0, scope))
    };
    let check = |a, b| {
        BindPlan::new().tcp(scoped(a), TcpOptions::default()).tcp(scoped(b), TcpOptions::default()).check()
    };
    assert!(check(1, 2).is_ok());
    assert!(check(1, 1).is_err() && check(0, 1).is_err());
}

/// Each kind of conflict with its message; and bound one after the other, the second is refused by the system, with the
/// process named that holds the first.
#[cfg(target_os = "linux")]
#[test]
fn each_conflict_has_its_message_and_the_system_refuses_it() {
    let dir = std::env::temp_dir().join(format!("portcullis-conflicts-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("a.sock");
    let tcp = |ip: &'static str| {
        move |plan: BindPlan, port| {
            plan.tcp(SocketAddr::new(ip.parse().unwrap(), port), TcpOptions::default())
        }
    };
    let udp = |ip: &'static str| {
        move |plan: BindPlan, port| {
            plan.udp(SocketAddr::new(ip.parse().unwrap(), port), UdpOptions::default())
        }
    };
    let unix =
        |path: std::path::PathBuf| move |plan: BindPlan, _| plan.unix(path.clone(), UnixOptions::default());
    type Add = Box<dyn Fn(BindPlan, u16) -> BindPlan>;
    let table: [(Add, Add, &[&str]); 8] = [
        (Box::new(tcp("127.0.0.1")), Box::new(tcp("127.0.0.1")), &["TCP 127.0.0.1:443 is wanted twice"]),
        (
            Box::new(move |plan, port| tcp("127.0.0.1")(plan, port).shared(true)),
            Box::new(tcp("127.0.0.1")),
            &["is wanted twice"],
        ),
        (Box::new(udp("::1")), Box::new(udp("::1")), &["UDP [::1]:443 is wanted twice"]),
        (
            Box::new(tcp("0.0.0.0")),
            Box::new(tcp("127.0.0.1")),
            &["0.0.0.0:443 and 127.0.0.1:443 clash", "every address of this host", "Leave out 127.0.0.1:443"],
        ),
        (
            Box::new(tcp("::")),
            Box::new(tcp("0.0.0.0")),
            &["[::]:443 and 0.0.0.0:443 clash", "without IPV6_V6ONLY the kernel lets", "set only-v6"],
        ),
        (Box::new(udp("::")), Box::new(udp("127.0.0.1")), &["UDP [::]:443 and 127.0.0.1:443 clash"]),
        (Box::new(tcp("::")), Box::new(tcp("::1")), &["[::]:443 and [::1]:443 clash", "name each address"]),
        (
            Box::new(unix(path.clone())),
            Box::new(unix(path)),
            &["a.sock is wanted twice: a path names one socket", "another path"],
        ),
    ];
    let pid = std::process::id().to_string();
    for (first, second, message) in table {
        let text = second(first(BindPlan::new(), 443), 443).check().unwrap_err().to_string();
        for part in message {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        let held = first(BindPlan::new(), 0).bind(NonZeroUsize::MIN).unwrap();
        let port = held[0].local_addr.ip().map_or(0, |ip| ip.port());
        let error = second(BindPlan::new(), port).bind(NonZeroUsize::MIN).unwrap_err();
        assert!(error.is_in_use(), "{text}: {error}");
        assert!(error.to_string().contains("already in use") && error.to_string().contains(&pid), "{error}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}
