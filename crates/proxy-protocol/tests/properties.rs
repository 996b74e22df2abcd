//! What holds for every header, and for every heap of bytes.

use std::net::{IpAddr, SocketAddr};

use portcullis_proxy_protocol::{Addresses, Command, DEFAULT_MAX_LEN, Header, Parse, Version, parse, tlv};
use proptest::{collection::vec, prelude::*};

fn v4() -> impl Strategy<Value = SocketAddr> {
    (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(IpAddr::from(ip), port))
}

fn v6() -> impl Strategy<Value = SocketAddr> {
    (any::<[u8; 16]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(IpAddr::from(ip), port))
}

/// A name without zeros at its end, which fill its field.
fn name() -> impl Strategy<Value = Box<[u8]>> {
    vec(any::<u8>(), 0..=108).prop_map(|mut name| {
        while name.last() == Some(&0) {
            name.pop();
        }
        name.into()
    })
}

fn addresses() -> impl Strategy<Value = Addresses> {
    prop_oneof![
        Just(Addresses::Unspec),
        (v4(), v4()).prop_map(|(source, destination)| Addresses::Stream { source, destination }),
        (v6(), v6()).prop_map(|(source, destination)| Addresses::Stream { source, destination }),
        (v4(), v4()).prop_map(|(source, destination)| Addresses::Datagram { source, destination }),
        (v6(), v6()).prop_map(|(source, destination)| Addresses::Datagram { source, destination }),
        (name(), name()).prop_map(|(source, destination)| Addresses::Unix { source, destination }),
    ]
}

fn is_kept(kind: u8) -> bool {
    kind != tlv::NOOP && kind != tlv::CRC32C
}

fn header() -> impl Strategy<Value = Header> {
    let tlvs = vec((any::<u8>().prop_filter("kept", |kind| is_kept(*kind)), vec(any::<u8>(), 0..100)), 0..6);
    (addresses(), tlvs).prop_map(|(addresses, tlvs)| {
        let header = Header::new(Version::V2, Command::Proxy, addresses);
        tlvs.into_iter().fold(header, |header, (kind, value)| header.with_tlv(kind, value))
    })
}

/// Whole, and each proper beginning is incomplete and asks for what is there in the end.
fn read_in_every_way(bytes: &[u8], header: &Header) -> Result<(), TestCaseError> {
    let mut followed = bytes.to_vec();
    followed.extend_from_slice(b"\r\n\r\n\0 and more");
    let complete = Parse::Complete { header: header.clone(), len: bytes.len() };
    prop_assert_eq!(parse(bytes, DEFAULT_MAX_LEN), Ok(complete.clone()));
    prop_assert_eq!(parse(&followed, DEFAULT_MAX_LEN), Ok(complete));
    for len in 0..bytes.len() {
        match parse(&bytes[..len], DEFAULT_MAX_LEN) {
            Ok(Parse::Incomplete { need }) => {
                prop_assert!(need > len && need <= bytes.len(), "{need} of {len}");
            }
            other => prop_assert!(false, "{len} of {}: {other:?}", bytes.len()),
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn version_2_comes_back(header in header(), checksum in any::<bool>()) {
        let mut bytes = Vec::new();
        if checksum { header.encode_v2_with_checksum(&mut bytes) } else { header.encode_v2(&mut bytes) }.unwrap();
        read_in_every_way(&bytes, &header)?;
    }

    #[test]
    fn version_1_comes_back(addresses in addresses()) {
        let mut bytes = Vec::new();
        Header::new(Version::V2, Command::Proxy, addresses.clone()).encode_v1(&mut bytes);
        prop_assert!(bytes.len() <= 107);
        let kept = if matches!(addresses, Addresses::Stream { .. }) { addresses } else { Addresses::Unspec };
        read_in_every_way(&bytes, &Header::new(Version::V1, Command::Proxy, kept))?;
    }

    #[test]
    fn mixed_families_become_ipv6(source in v4(), destination in v6()) {
        let header = Header::proxy(source, destination);
        for encode in [|header: &Header, out: &mut Vec<u8>| header.encode_v1(out), |header: &Header, out: &mut Vec<u8>| header.encode_v2(out).unwrap()] {
            let mut bytes = Vec::new();
            encode(&header, &mut bytes);
            let Ok(Parse::Complete { header, .. }) = parse(&bytes, DEFAULT_MAX_LEN) else { panic!() };
            let Addresses::Stream { source: from, destination: to } = header.addresses else { panic!() };
            prop_assert!(from.is_ipv6() && from.ip().to_canonical() == source.ip() && from.port() == source.port());
            prop_assert_eq!(to, destination);
        }
    }

    #[test]
    fn garbage_is_refused_and_nothing_more(bytes in vec(any::<u8>(), 0..300)) {
        if let Ok(Parse::Complete { .. }) = parse(&bytes, DEFAULT_MAX_LEN) {
            prop_assert!(bytes.starts_with(b"PROXY ") || bytes.starts_with(b"\r\n\r\n\0\r\nQUIT\n"));
        }
    }

    /// A broken header fails, or it says something else that is a header just as well.
    #[test]
    fn a_broken_byte(header in header(), at in any::<prop::sample::Index>(), value in any::<u8>(), text in any::<bool>()) {
        let mut bytes = Vec::new();
        if text { header.encode_v1(&mut bytes); } else { header.encode_v2(&mut bytes).unwrap(); }
        let at = at.index(bytes.len());
        bytes[at] = value;
        match parse(&bytes, DEFAULT_MAX_LEN) {
            Ok(Parse::Complete { header, len }) => {
                prop_assert!(len <= bytes.len());
                let mut again = Vec::new();
                header.encode_v2(&mut again).unwrap();
                let Ok(Parse::Complete { header: same, .. }) = parse(&again, usize::MAX) else { panic!() };
                prop_assert_eq!((same.command, same.addresses, same.tlvs), (header.command, header.addresses, header.tlvs));
            }
            Ok(Parse::Incomplete { need }) => prop_assert!(need > bytes.len()),
            Err(_) => {}
        }
    }
}
