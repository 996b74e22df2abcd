//! Who the client is: a stranger's word changes nothing, nobody beyond a distrusted hop is named, and what is written can be read.
#![no_main]

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use portcullis_proxy::{Downstream, ForwardedOptions, ForwardedStyle, Trust, client_ip, forwarded::apply};

const NAMES: [&str; 8] = [
    "x-forwarded-for",
    "forwarded",
    "x-real-ip",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x_forwarded_for",
    "x-forwarded-user",
];

// a byte of choices; then lines, of which the first byte says the name and the rest is the value
fuzz_target!(|bytes: &[u8]| {
    let Some((choice, rest)) = bytes.split_first() else { return };
    let style = match choice & 3 {
        0 => ForwardedStyle::XForwarded,
        1 => ForwardedStyle::Forwarded,
        2 => ForwardedStyle::Both,
        _ => ForwardedStyle::None,
    };
    let trusted = choice & 4 != 0;
    let peer: IpAddr = match (trusted, choice & 8 != 0) {
        (true, false) => IpAddr::from([10, 0, 0, 1]),
        (true, true) => "2001:db8:1::1".parse().expect("an address"),
        (false, false) => IpAddr::from([203, 0, 113, 9]),
        (false, true) => "2001:db8:2::1".parse().expect("an address"),
    };
    let trust = ["10.0.0.0/8", "2001:db8:1::/48"].map(|network| network.parse().expect("a network"));
    let trust = Trust::new(trust);
    let mut downstream = Downstream::new(peer, choice & 16 != 0);
    downstream.local = (choice & 32 != 0).then(|| "[2001:db8::5]:443".parse().expect("an address"));
    let options = ForwardedOptions::default().with_style(style).with_port(choice & 64 != 0);

    let mut said = HeaderMap::new();
    said.insert("host", HeaderValue::from_static("a.example:8443"));
    let mut silent = said.clone();
    for line in rest.split(|byte| *byte == b'\n').take(64) {
        let Some((name, value)) = line.split_first() else { continue };
        let Ok(value) = HeaderValue::from_bytes(value) else { continue };
        said.append(HeaderName::from_static(NAMES[usize::from(name % 8)]), value);
    }
    check_client(&said, peer, &trust);
    apply(&mut said, downstream, &trust, options);
    apply(&mut silent, downstream, &trust, options);
    if !trusted {
        assert_eq!(said, silent);
    }
    if style == ForwardedStyle::None {
        assert_eq!(said.len(), 1, "{said:?}");
    }
    if matches!(style, ForwardedStyle::XForwarded | ForwardedStyle::Both) {
        let chain = said["x-forwarded-for"].as_bytes();
        assert!(chain.ends_with(peer.to_string().as_bytes()), "{said:?}");
        // the next hop, which trusts us, finds whom we found, or us
        check_client(&said, "10.9.9.9".parse().expect("an address"), &trust);
    }
    if matches!(style, ForwardedStyle::Forwarded | ForwardedStyle::Both) {
        let ours = silent["forwarded"].as_bytes();
        // the list as one line, as a recipient may join it
        let joined: Vec<_> = said.get_all("forwarded").iter().map(HeaderValue::as_bytes).collect();
        let joined = joined.join(&b", "[..]);
        let last = elements(&joined).pop().expect("one at least");
        assert_eq!(last, ours, "{said:?}");
        let node = if peer.is_ipv6() { format!("for=\"[{peer}]\"") } else { format!("for={peer}") };
        assert!(ours.starts_with(node.as_bytes()));
    }
});

/// The client is the peer or a hop of the chain, and whoever handed it on is trusted.
fn check_client(headers: &HeaderMap, peer: IpAddr, trust: &Trust) {
    let client = client_ip(headers, peer, trust);
    if client == peer {
        return;
    }
    assert!(trust.trusts(peer));
    let chain: Vec<String> = headers
        .get_all("x-forwarded-for")
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(|member| String::from_utf8_lossy(member.trim_ascii()).into_owned())
        .filter(|member| !member.is_empty())
        .collect();
    for member in chain.iter().rev() {
        let bare = member.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(member);
        let address = bare.parse().ok().or_else(|| Some(member.parse::<std::net::SocketAddr>().ok()?.ip()));
        let address: IpAddr =
            address.map(|address: IpAddr| address.to_canonical()).expect("a hop on the way");
        if address == client {
            return;
        }
        assert!(trust.trusts(address), "{address} handed on {client}");
    }
    panic!("{client} is not in {chain:?}");
}

/// The elements of a list, without looking into quoted strings (RFC 7239 section 4).
fn elements(list: &[u8]) -> Vec<&[u8]> {
    let (mut found, mut begin, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, byte) in list.iter().enumerate() {
        if escaped {
            escaped = false;
        } else if quoted && *byte == b'\\' {
            escaped = true;
        } else if *byte == b'"' {
            quoted = !quoted;
        } else if *byte == b',' && !quoted {
            found.push(list[begin..at].trim_ascii());
            begin = at + 1;
        }
    }
    assert!(!quoted, "a string without its end");
    found.push(list[begin..].trim_ascii());
    found
}
