use super::*;
use proptest::prelude::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn trust(networks: &[&str]) -> Trust {
    networks.iter().map(|network| network.parse::<IpNet>().unwrap()).collect()
}

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
    }
    headers
}

fn applied(fields: &[(&str, &str)], peer: &str, secure: bool, networks: &[&str]) -> HeaderMap {
    let mut headers = map(fields);
    apply(&mut headers, Downstream::new(ip(peer), secure), &trust(networks), ForwardedOptions::default());
    headers
}

#[test]
fn the_client_is_found_from_right_to_left() {
    let networks = &["10.0.0.0/8", "2001:db8:1::/48"];
    for (why, lines, peer, client) in [
        ("an untrusted peer's word is nothing", &["1.1.1.1"][..], "203.0.113.9", "203.0.113.9"),
        ("a trusted peer without chain", &[], "10.0.0.1", "10.0.0.1"),
        ("one hop", &["203.0.113.9"], "10.0.0.1", "203.0.113.9"),
        ("a spoofed head is not believed", &["1.1.1.1, 203.0.113.9"], "10.0.0.1", "203.0.113.9"),
        ("trusted hops are skipped", &["203.0.113.9, 10.0.0.3, 10.0.0.2"], "10.0.0.1", "203.0.113.9"),
        ("lines are one list", &["1.1.1.1, 203.0.113.9", "10.0.0.3", "10.0.0.2"], "10.0.0.1", "203.0.113.9"),
        ("all trusted: the first", &["10.0.0.4, 10.0.0.3"], "10.0.0.1", "10.0.0.4"),
        ("garbage ends the walk", &["1.1.1.1, unknown, 10.0.0.3"], "10.0.0.1", "10.0.0.3"),
        ("garbage at once", &["garbage"], "10.0.0.1", "10.0.0.1"),
        ("ports and brackets", &["[2001:db8:2::7]:80, 10.0.0.3:1234"], "10.0.0.1", "2001:db8:2::7"),
        ("brackets alone", &["[2001:db8:2::7]"], "2001:db8:1::1", "2001:db8:2::7"),
        ("mapped addresses are IPv4", &["203.0.113.9, ::ffff:10.0.0.3"], "::ffff:10.0.0.1", "203.0.113.9"),
        ("empty members", &["203.0.113.9,, ,10.0.0.3,"], "10.0.0.1", "203.0.113.9"),
    ] {
        let headers = map(&lines.iter().map(|line| ("x-forwarded-for", *line)).collect::<Vec<_>>());
        assert_eq!(client_ip(&headers, ip(peer), &trust(networks)), ip(client), "{why}");
    }
}

#[test]
fn a_trusted_peer_tells_the_clients_scheme() {
    let scheme = "x-forwarded-proto";
    for (fields, peer, expected) in [
        (&[(scheme, "https")][..], "10.0.0.1", Some(true)),
        (&[(scheme, " HTTPS")], "::ffff:10.0.0.1", Some(true)),
        (&[(scheme, "wss")], "10.0.0.1", Some(true)),
        (&[(scheme, "http")], "10.0.0.1", Some(false)),
        (&[(scheme, "https")], "203.0.113.9", None),
        (&[(scheme, "https, http")], "10.0.0.1", None),
        (&[(scheme, "https"), (scheme, "http")], "10.0.0.1", None),
        (&[(scheme, "ftp")], "10.0.0.1", None),
        (&[], "10.0.0.1", None),
    ] {
        let told = client_secure(&map(fields), ip(peer), &trust(&["10.0.0.0/8"]));
        assert_eq!(told, expected, "{fields:?} {peer}");
    }
}

#[test]
fn a_stranger_says_nothing_about_itself() {
    let headers = applied(
        &[
            ("host", "a.example"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2"),
            ("x-real-ip", "1.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil.example"),
            ("x-forwarded-port", "1"),
            ("x-forwarded-user", "root"),
            ("forwarded", "for=1.1.1.1"),
            ("x_forwarded_for", "1.1.1.1"),
            ("x-forwarded_proto", "https"),
            ("x_real_ip", "1.1.1.1"),
            ("accept", "*/*"),
        ],
        "203.0.113.9",
        false,
        &["10.0.0.0/8"],
    );
    let expected = map(&[
        ("host", "a.example"),
        ("accept", "*/*"),
        ("x-forwarded-for", "203.0.113.9"),
        ("x-real-ip", "203.0.113.9"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "a.example"),
    ]);
    assert_eq!(headers, expected);
}

#[test]
fn a_trusted_peer_is_believed_and_appended() {
    let headers = applied(
        &[
            ("host", "inner.example"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-for", "10.0.0.2"),
            ("x-real-ip", "6.6.6.6"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "a.example"),
            ("x-forwarded-port", "443"),
            ("forwarded", "for=203.0.113.9"),
            ("x_forwarded_for", "1.1.1.1"),
        ],
        "10.0.0.1",
        false,
        &["10.0.0.0/8"],
    );
    let expected = map(&[
        ("host", "inner.example"),
        ("x-forwarded-for", "203.0.113.9, 10.0.0.2, 10.0.0.1"),
        ("x-real-ip", "203.0.113.9"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "a.example"),
        ("x-forwarded-port", "443"),
        ("forwarded", "for=203.0.113.9"),
    ]);
    assert_eq!(headers, expected);
}

#[test]
fn a_trusted_peer_that_says_nothing_or_two_things() {
    let headers = applied(&[("host", "a")], "10.0.0.1", true, &["10.0.0.0/8"]);
    let expected = [
        ("host", "a"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x-real-ip", "10.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "a"),
    ];
    assert_eq!(headers, map(&expected));
    let twice = [("host", "a"), ("x-forwarded-proto", "http"), ("x-forwarded-proto", "http")];
    assert_eq!(applied(&twice, "10.0.0.1", true, &["10.0.0.0/8"]), map(&expected));
}

#[test]
fn a_peer_without_address_is_not_written() {
    let unix = "0.0.0.0";
    let headers = applied(&[("host", "a"), ("x-forwarded-for", "1.1.1.1")], unix, false, &[]);
    assert!(!headers.contains_key("x-forwarded-for") && !headers.contains_key("x-real-ip"));
    let headers = applied(&[("host", "a"), ("x-forwarded-for", "1.1.1.1")], unix, false, &["0.0.0.0/32"]);
    assert_eq!(headers["x-forwarded-for"], "1.1.1.1");
    assert_eq!(headers["x-real-ip"], "1.1.1.1");
}

#[test]
fn http10_without_host_gets_no_forwarded_host() {
    let headers = applied(&[("host", "")], "203.0.113.9", false, &[]);
    assert!(!headers.contains_key("x-forwarded-host"));
}

#[test]
fn facts_of_a_connection() {
    let peer = "203.0.113.9:1".parse().unwrap();
    let local = "192.0.2.1:443".parse().unwrap();
    let tcp = Downstream::from(&ConnInfo::new(Transport::Tcp, peer, local));
    assert_eq!((tcp.peer, tcp.local, tcp.secure), (ip("203.0.113.9"), Some(local), false));
    assert!(Downstream::from(&ConnInfo::new(Transport::Quic, peer, local)).secure);
    let tls = ConnInfo::new(Transport::Tcp, peer, local).with_tls(portcullis_conn::TlsInfo::default());
    assert!(Downstream::from(&tls).secure);
}

#[test]
fn rfc9110_7_6_3_via() {
    let via = Via::new("edge-1").unwrap();
    let mut headers = map(&[("via", "1.0 fred")]);
    via.append(&mut headers, Version::HTTP_11);
    via.append(&mut headers, Version::HTTP_2);
    assert_eq!(headers.get_all("via").iter().collect::<Vec<_>>(), ["1.0 fred", "1.1 edge-1", "2 edge-1"]);
    for bad in ["", "a b", "a,b", "a(b)", "a\n"] {
        assert!(Via::new(bad).is_err(), "{bad:?}");
    }
}

fn styled(fields: &[(&str, &str)], peer: &str, local: &str, style: ForwardedStyle, port: bool) -> HeaderMap {
    let mut headers = map(fields);
    let downstream = Downstream { local: local.parse().ok(), ..Downstream::new(ip(peer), true) };
    let options = ForwardedOptions::default().with_style(style).with_port(port);
    apply(&mut headers, downstream, &trust(&["10.0.0.0/8"]), options);
    headers
}

#[test]
fn rfc7239_elements() {
    for (why, host, peer, local, element) in [
        (
            "section 4",
            "a.example",
            "203.0.113.9",
            "192.0.2.1:443",
            r#"for=203.0.113.9;by=192.0.2.1;host="a.example";proto=https"#,
        ),
        (
            "section 6.1: IPv6 in brackets and quotes",
            "[::1]:8443",
            "2001:db8::7",
            "[2001:db8::1]:443",
            r#"for="[2001:db8::7]";by="[2001:db8::1]";host="[::1]:8443";proto=https"#,
        ),
        ("section 6.2: no address", "a", "0.0.0.0", "", r#"for=unknown;host="a";proto=https"#),
        ("section 5.3: no host", "", "::ffff:1.2.3.4", "", "for=1.2.3.4;proto=https"),
        ("quotes are escaped", r#"a"\"#, "1.2.3.4", "", r#"for=1.2.3.4;host="a\"\\";proto=https"#),
    ] {
        let headers = styled(&[("host", host)], peer, local, ForwardedStyle::Forwarded, true);
        assert_eq!(headers["forwarded"], element, "{why}");
        assert_eq!(headers.len(), 2, "{why}: {headers:?}");
    }
}

#[test]
fn styles_and_trust() {
    let told = [
        ("x-forwarded-for", "1.1.1.1"),
        ("x-real-ip", "1.1.1.1"),
        ("x-forwarded-user", "root"),
        ("x_forwarded_for", "1.1.1.1"),
        ("forwarded", "for=1.1.1.1"),
        ("x-forwarded-port", "1"),
    ];
    let lines = |headers: &HeaderMap, name: &str| {
        headers.get_all(name).iter().map(|line| line.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (ours, theirs) = ("for=203.0.113.9;proto=https", "for=10.0.0.1;proto=https");
    for (style, peer, forwarded, x_for, port) in [
        (ForwardedStyle::XForwarded, "203.0.113.9", &[][..], Some("203.0.113.9"), None),
        (ForwardedStyle::XForwarded, "10.0.0.1", &["for=1.1.1.1"], Some("1.1.1.1, 10.0.0.1"), Some("1")),
        (ForwardedStyle::Forwarded, "203.0.113.9", &[ours], None, None),
        (ForwardedStyle::Forwarded, "10.0.0.1", &["for=1.1.1.1", theirs], None, None),
        (ForwardedStyle::Both, "203.0.113.9", &[ours], Some("203.0.113.9"), None),
        (ForwardedStyle::Both, "10.0.0.1", &["for=1.1.1.1", theirs], Some("1.1.1.1, 10.0.0.1"), Some("1")),
        (ForwardedStyle::None, "203.0.113.9", &[], None, None),
        (ForwardedStyle::None, "10.0.0.1", &[], None, None),
    ] {
        let headers = styled(&told, peer, "", style, false);
        assert_eq!(lines(&headers, "forwarded"), forwarded, "{style:?} {peer}");
        assert_eq!(lines(&headers, "x-forwarded-for"), Vec::from_iter(x_for), "{style:?} {peer}");
        assert_eq!(lines(&headers, "x-forwarded-port"), Vec::from_iter(port), "{style:?} {peer}");
        assert_eq!(headers.contains_key("x-real-ip"), x_for.is_some(), "{style:?} {peer}");
        assert!(!headers.contains_key("x_forwarded_for"), "{style:?} {peer}");
    }
    let port = |peer| {
        styled(&told, peer, "192.0.2.1:8443", ForwardedStyle::XForwarded, true)["x-forwarded-port"].clone()
    };
    assert_eq!([port("203.0.113.9"), port("10.0.0.1")], ["8443", "1"]);
}

#[test]
fn a_string_without_its_end_is_dropped() {
    for (line, kept) in
        [(r#"for="[::1]""#, true), (r#"for="a\""#, false), (r#"for=""#, false), (r#"for="\"""#, true)]
    {
        let headers = styled(&[("forwarded", line)], "10.0.0.1", "", ForwardedStyle::Forwarded, false);
        assert_eq!(headers.get_all("forwarded").iter().count(), 1 + usize::from(kept), "{line}");
    }
}

proptest! {
    #[test]
    fn addresses_are_written_as_the_standard_library_writes_them(v4: u32, v6: u128) {
        let v4 = IpAddr::V4(v4.into());
        let v6 = IpAddr::V6(v6.into());
        prop_assert_eq!(ip_value(v4), v4.to_string());
        prop_assert_eq!(ip_value(v6), v6.to_string());
    }

    #[test]
    fn a_strangers_fields_change_nothing(
        fields in prop::collection::vec(
            ("x[_-]forwarded[_-](for|proto|host|port|user)|x[_-]real[_-]ip|forwarded", "[0-9a-f.,:; ]{0,20}"), 0..6),
        peer: u32,
    ) {
        let peer = IpAddr::V4((peer | 1).into());
        let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.trim())).collect();
        let mut said = map(&fields);
        said.insert("host", HeaderValue::from_static("a"));
        let mut silent = map(&[("host", "a")]);
        let trust = trust(&["240.0.0.0/32"]);
        apply(&mut said, Downstream::new(peer, true), &trust, ForwardedOptions::default());
        apply(&mut silent, Downstream::new(peer, true), &trust, ForwardedOptions::default());
        prop_assert_eq!(said, silent);
    }

    #[test]
    fn the_peer_is_always_last_and_the_chain_before_it_kept(
        lines in prop::collection::vec("[0-9a-f.:]{1,12}(, [0-9a-f.:]{1,12}){0,2}", 0..4),
        peer: u32,
    ) {
        let peer = IpAddr::V4((peer | 1).into());
        let mut headers = HeaderMap::new();
        for line in &lines {
            headers.append("x-forwarded-for", line.parse().unwrap());
        }
        apply(&mut headers, Downstream::new(peer, false), &trust(&["0.0.0.0/0"]), ForwardedOptions::default());
        let mut expected = lines;
        expected.push(peer.to_string());
        prop_assert_eq!(headers.get_all("x-forwarded-for").iter().count(), 1);
        prop_assert_eq!(&headers["x-forwarded-for"], &expected.join(", "));
    }

    #[test]
    fn a_client_in_front_of_trusted_hops_can_not_move_itself(
        spoofed in "[0-9a-z.:, ]{0,30}",
        hops in prop::collection::vec(1_u8..255, 0..5),
    ) {
        // what an honest chain of proxies in 10/8 makes of a client that spoofs
        let mut chain = vec![spoofed.trim().to_owned(), "203.0.113.9".to_owned()];
        chain.extend(hops.iter().map(|hop| format!("10.0.0.{hop}")));
        let headers = map(&[("x-forwarded-for", &chain.join(", "))]);
        let client = client_ip(&headers, ip("10.9.9.9"), &trust(&["10.0.0.0/8"]));
        prop_assert_eq!(client, ip("203.0.113.9"));
    }
}
