//! Version 2: binary (section 2.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{
    Addresses, Command, EncodeError, Header, Parse, ParseError, Tlv, Version,
    crc::crc32c,
    header::{next_tlv, tlv},
    v1::v6,
};

pub(crate) const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length.
const HEAD: usize = 16;
const UNIX_NAME: usize = 108;
const UNIQUE_ID: usize = 128;

const INET: u8 = 1;
const INET6: u8 = 2;
const UNIX: u8 = 3;
const STREAM: u8 = 1;
const DGRAM: u8 = 2;

fn bad(field: &'static str, at: usize) -> ParseError {
    ParseError::V2 { field, at }
}

pub(crate) fn parse(bytes: &[u8], max_len: usize) -> Result<Parse, ParseError> {
    let command = match bytes.get(12) {
        Some(0x20) => Command::Local,
        Some(0x21) => Command::Proxy,
        // the version is the upper half
        Some(byte) if byte >> 4 == 2 => return Err(bad("command", 12)),
        Some(_) => return Err(bad("version", 12)),
        None => return Ok(Parse::Incomplete { need: HEAD }),
    };
    let Some(&[family, high, low]) = bytes.get(13..HEAD).and_then(|rest| rest.first_chunk::<3>()) else {
        return Ok(Parse::Incomplete { need: HEAD });
    };
    let len = HEAD + usize::from(u16::from_be_bytes([high, low]));
    if len > max_len {
        return Err(ParseError::TooLong { len, max: max_len });
    }
    let (family, transport) = (family >> 4, family & 0x0f);
    // section 2.2: a receiver takes AF_UNSPEC and ignores the addresses, and refuses what is none of the named values;
    // of a local header it discards the whole block, the family with it
    if command == Command::Proxy && (family > UNIX || transport > DGRAM) {
        return Err(bad("family or transport", 13));
    }
    let known = matches!(family, INET | INET6 | UNIX) && matches!(transport, STREAM | DGRAM);
    let addresses_len = match family {
        INET if known => 12,
        INET6 if known => 36,
        UNIX if known => 2 * UNIX_NAME,
        _ => 0,
    };
    if command == Command::Proxy && len < HEAD + addresses_len {
        return Err(bad("length, which is less than its addresses take", 14));
    }
    let Some(whole) = bytes.get(..len) else { return Ok(Parse::Incomplete { need: len }) };
    let mut header = Header::new(Version::V2, command, Addresses::Unspec);
    if command == Command::Proxy && known {
        header.addresses = addresses(&whole[HEAD..], family, transport);
        fields(whole, HEAD + addresses_len, &mut header)?;
    } else if len >= HEAD + addresses_len
        && let Err(error) = fields(whole, HEAD + addresses_len, &mut header)
    {
        // nobody says where fields begin when the addresses are to be ignored; a sum that is wrong is wrong all the same
        if error == ParseError::Checksum {
            return Err(error);
        }
        header.tlvs.clear();
    }
    Ok(Parse::Complete { header, len })
}

/// The block is long enough: it was checked.
fn addresses(block: &[u8], family: u8, transport: u8) -> Addresses {
    let pair = |source: IpAddr, destination: IpAddr, ports: &[u8]| {
        let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
        (SocketAddr::new(source, port(0)), SocketAddr::new(destination, port(2)))
    };
    let (source, destination) = match family {
        INET => {
            let ip =
                |at: usize| IpAddr::V4(Ipv4Addr::new(block[at], block[at + 1], block[at + 2], block[at + 3]));
            pair(ip(0), ip(4), &block[8..12])
        }
        INET6 => {
            let ip = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&block[at..at + 16]);
                IpAddr::V6(Ipv6Addr::from(octets))
            };
            pair(ip(0), ip(16), &block[32..36])
        }
        _ => {
            let name = |at: usize| {
                let field = &block[at..at + UNIX_NAME];
                let len = field.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                field[..len].into()
            };
            return Addresses::Unix { source: name(0), destination: name(UNIX_NAME) };
        }
    };
    if transport == STREAM {
        Addresses::Stream { source, destination }
    } else {
        Addresses::Datagram { source, destination }
    }
}

/// The fields behind the addresses, up to the very end.
fn fields(whole: &[u8], begin: usize, header: &mut Header) -> Result<(), ParseError> {
    let mut rest = &whole[begin..];
    let mut checked = false;
    while !rest.is_empty() {
        let at = whole.len() - rest.len();
        let Some((kind, value, after)) = next_tlv(rest) else { return Err(bad("field", at)) };
        match kind {
            tlv::NOOP => {}
            // each sum is a look at all bytes: one is enough
            tlv::CRC32C if checked => return Err(bad("second checksum", at)),
            tlv::CRC32C => {
                checked = true;
                let Ok(sum) = value.try_into().map(u32::from_be_bytes) else {
                    return Err(bad("checksum", at));
                };
                let place = at + 3..at + 7;
                let zeroed =
                    whole.iter().enumerate().map(|(n, byte)| if place.contains(&n) { 0 } else { *byte });
                if crc32c(zeroed) != sum {
                    return Err(ParseError::Checksum);
                }
            }
            tlv::UNIQUE_ID if value.len() > UNIQUE_ID => return Err(bad("unique id", at)),
            _ => header.tlvs.push(Tlv { kind, value: value.into() }),
        }
        rest = after;
    }
    Ok(())
}

impl Header {
    /// Appends the header in version 2.
    ///
    /// # Errors
    /// It is longer than the version can say; nothing is appended then.
    pub fn encode_v2(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        self.encode(out, false)
    }

    /// The same with a checksum at its end.
    ///
    /// # Errors
    /// As [`Header::encode_v2`].
    pub fn encode_v2_with_checksum(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        self.encode(out, true)
    }

    fn encode(&self, out: &mut Vec<u8>, checksum: bool) -> Result<(), EncodeError> {
        let command = match self.command {
            Command::Local => 0x20,
            Command::Proxy => 0x21,
        };
        let mut bytes = SIGNATURE.to_vec();
        bytes.push(command);
        self.encode_addresses(&mut bytes)?;
        // filling and sums are made here, where they are wanted
        let kept = self.tlvs.iter().filter(|tlv| !matches!(tlv.kind, tlv::NOOP | tlv::CRC32C));
        for Tlv { kind, value } in kept {
            if *kind == tlv::UNIQUE_ID && value.len() > UNIQUE_ID {
                return Err(EncodeError::UniqueId);
            }
            let len = u16::try_from(value.len()).map_err(|_| EncodeError::TooLong)?;
            bytes.push(*kind);
            bytes.extend_from_slice(&len.to_be_bytes());
            bytes.extend_from_slice(value);
        }
        if checksum {
            bytes.extend_from_slice(&[tlv::CRC32C, 0, 4, 0, 0, 0, 0]);
        }
        let len = u16::try_from(bytes.len() - HEAD).map_err(|_| EncodeError::TooLong)?;
        bytes[14..HEAD].copy_from_slice(&len.to_be_bytes());
        if checksum {
            let sum = crc32c(bytes.iter().copied()).to_be_bytes();
            let at = bytes.len() - 4;
            bytes[at..].copy_from_slice(&sum);
        }
        out.append(&mut bytes);
        Ok(())
    }

    /// Family and transport, room for the length, and the addresses.
    fn encode_addresses(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let (source, destination, transport) = match &self.addresses {
            Addresses::Stream { source, destination } => (source, destination, STREAM),
            Addresses::Datagram { source, destination } => (source, destination, DGRAM),
            Addresses::Unspec => {
                out.extend_from_slice(&[0, 0, 0]);
                return Ok(());
            }
            Addresses::Unix { source, destination } => {
                out.extend_from_slice(&[UNIX << 4 | STREAM, 0, 0]);
                for name in [source, destination] {
                    let filling = UNIX_NAME.checked_sub(name.len()).ok_or(EncodeError::UnixName)?;
                    out.extend_from_slice(name);
                    out.resize(out.len() + filling, 0);
                }
                return Ok(());
            }
        };
        match (source.ip(), destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                out.extend_from_slice(&[INET << 4 | transport, 0, 0]);
                out.extend_from_slice(&from.octets());
                out.extend_from_slice(&to.octets());
            }
            (from, to) => {
                out.extend_from_slice(&[INET6 << 4 | transport, 0, 0]);
                out.extend_from_slice(&v6(from).octets());
                out.extend_from_slice(&v6(to).octets());
            }
        }
        out.extend_from_slice(&source.port().to_be_bytes());
        out.extend_from_slice(&destination.port().to_be_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DEFAULT_MAX_LEN, parse as parse_any};

    fn bytes(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend_from_slice(&[command, family]);
        bytes.extend_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    fn header(bytes: &[u8]) -> Header {
        match parse_any(bytes, DEFAULT_MAX_LEN) {
            Ok(Parse::Complete { header, len }) if len == bytes.len() => header,
            other => panic!("{other:?}"),
        }
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 0x01, 0xbb];

    #[test]
    fn what_is_right() {
        let client: SocketAddr = "192.0.2.1:56324".parse().unwrap();
        let site: SocketAddr = "198.51.100.1:443".parse().unwrap();
        let tcp = header(&bytes(0x21, 0x11, &V4));
        assert_eq!(tcp, Header::proxy(client, site));
        let udp = header(&bytes(0x21, 0x12, &V4));
        assert_eq!(udp.addresses, Addresses::Datagram { source: client, destination: site });
        let mut names = vec![0; 216];
        names[..6].copy_from_slice(b"/a.soc");
        names[108..112].copy_from_slice(b"\0abc");
        let unix = header(&bytes(0x21, 0x31, &names));
        let expected = Addresses::Unix { source: b"/a.soc"[..].into(), destination: b"\0abc"[..].into() };
        assert_eq!(unix.addresses, expected);
        // a health check of the proxy, with and without addresses
        for payload in [&V4[..], &[]] {
            let local = header(&bytes(0x20, 0x11, payload));
            assert_eq!((local.command, local.addresses), (Command::Local, Addresses::Unspec));
        }
        // unspecified: the addresses are ignored, whatever they are
        for family in [0x00, 0x01, 0x02, 0x10, 0x20] {
            for payload in [&[][..], &[7; 99]] {
                let other = header(&bytes(0x21, family, payload));
                assert_eq!(
                    (other.command, other.addresses),
                    (Command::Proxy, Addresses::Unspec),
                    "{family:x}"
                );
            }
        }
        // a local one is taken whatever its block is
        for family in [0x00, 0x11, 0x21, 0x13, 0x41, 0xff] {
            for payload in [&[][..], &[7; 5], &V4, &[7; 99]] {
                let local = header(&bytes(0x20, family, payload));
                assert_eq!(
                    (local.command, local.addresses),
                    (Command::Local, Addresses::Unspec),
                    "{family:x}"
                );
            }
        }
    }

    #[test]
    fn fields_are_kept_in_order() {
        let ssl = b"\x01\0\0\0\0\x21\0\x07TLSv1.3\x23\0\x03AES\x22\0\x02me";
        let mut payload = V4.to_vec();
        payload.extend_from_slice(b"\x01\0\x02h2\x04\0\x03\0\0\0\x02\0\x05a.com\xea\0\0\x20\0\x1a");
        payload.extend_from_slice(ssl);
        let header = header(&bytes(0x21, 0x11, &payload));
        let kinds: Vec<_> = header.tlvs.iter().map(|tlv| tlv.kind).collect();
        assert_eq!(kinds, [1, 2, 0xea, 0x20], "filling is left out");
        assert_eq!((header.alpn(), header.authority()), (Some(&b"h2"[..]), Some(&b"a.com"[..])));
        assert_eq!((header.tlv(0xea), header.netns(), header.unique_id()), (Some(&b""[..]), None, None));
        let ssl = header.ssl().unwrap();
        assert_eq!((ssl.client, ssl.verified), (1, false), "it showed no certificate");
        assert_eq!(ssl.version, Some(&b"TLSv1.3"[..]));
        assert_eq!((ssl.cipher, ssl.common_name), (Some(&b"AES"[..]), Some(&b"me"[..])));
        for (bytes, verified) in
            [(&b"\x03\0\0\0\0"[..], Some(true)), (b"\x03\0\0\0\x01", Some(false)), (b"\x01\0", None)]
        {
            let header = Header::local().with_tlv(tlv::SSL, bytes);
            assert_eq!(header.ssl().map(|ssl| ssl.verified), verified);
        }
        assert_eq!(Header::local().with_tlv(tlv::SSL, *b"\x01\0\0\0\0\x21\0\xffx").ssl(), None);
    }

    #[test]
    fn what_is_wrong() {
        let with = |tlv: &[u8]| bytes(0x21, 0x11, &[&V4[..], tlv].concat());
        let long = [&[tlv::UNIQUE_ID, 0, 129][..], &[0; 129]].concat();
        for (bytes, field, place) in [
            (bytes(0x11, 0x11, &V4), "version", 12),
            (bytes(0x31, 0x11, &V4), "version", 12),
            (bytes(0x22, 0x11, &V4), "command", 12),
            (bytes(0x21, 0x11, &V4[..11]), "length, which is less than its addresses take", 14),
            (bytes(0x21, 0x21, &[0; 35]), "length, which is less than its addresses take", 14),
            (bytes(0x21, 0x31, &[0; 215]), "length, which is less than its addresses take", 14),
            (with(&[1]), "field", 28),
            (with(&[1, 0, 5, 1]), "field", 28),
            (with(&[4, 0, 0, 9, 9]), "field", 31),
            (with(&[3, 0, 3, 1, 2, 3]), "checksum", 28),
            (with(&long), "unique id", 28),
            (with(&[4, 0, 0, 1, 0, 9]), "field", 31),
            (bytes(0x21, 0x41, &V4), "family or transport", 13),
            (bytes(0x21, 0x13, &V4), "family or transport", 13),
            (bytes(0x21, 0xf0, &[]), "family or transport", 13),
        ] {
            assert_eq!(parse_any(&bytes, DEFAULT_MAX_LEN), Err(bad(field, place)));
        }
        // the length is enough to refuse it
        let announced = bytes(0x21, 0x11, &[0; 85]);
        assert_eq!(parse_any(&announced[..16], 100), Err(ParseError::TooLong { len: 101, max: 100 }));
        assert_eq!(parse_any(&announced[..16], 101), Ok(Parse::Incomplete { need: 101 }));
        assert_eq!(parse_any(b"\r\n\r\n\0\r\nQUIX", 4096), Err(ParseError::NoSignature));
    }

    #[test]
    fn a_checksum_is_checked() {
        let header =
            Header::proxy("[::1]:1".parse().unwrap(), "[::1]:2".parse().unwrap()).with_tlv(1, *b"h2");
        let mut bytes = Vec::new();
        header.encode_v2_with_checksum(&mut bytes).unwrap();
        assert_eq!(parse_any(&bytes, 4096), Ok(Parse::Complete { header: header.clone(), len: bytes.len() }));
        // a sum of the caller's is left out
        let mut again = Vec::new();
        let with_sum = header.with_tlv(tlv::CRC32C, *b"\0\0\0\0");
        with_sum.encode_v2_with_checksum(&mut again).unwrap();
        assert_eq!(again, bytes);
        // a second one is refused
        let mut twice = bytes.clone();
        twice.extend_from_slice(&bytes[bytes.len() - 7..]);
        twice[15] += 7;
        assert!(parse_any(&twice, 4096).is_err());
        for at in 16..bytes.len() - 7 {
            let mut broken = bytes.clone();
            broken[at] ^= 1;
            assert!(parse_any(&broken, 4096).is_err(), "{at}");
        }
    }

    #[test]
    fn what_can_not_be_written() {
        let mut out = b"before".to_vec();
        let long = Header::local().with_tlv(1, vec![0; 65_536]);
        assert_eq!(long.encode_v2(&mut out), Err(EncodeError::TooLong));
        let many = Header::local().with_tlv(1, vec![0; 40_000]).with_tlv(2, vec![0; 40_000]);
        assert_eq!(many.encode_v2(&mut out), Err(EncodeError::TooLong));
        let id = Header::local().with_tlv(tlv::UNIQUE_ID, vec![0; 129]);
        assert_eq!(id.encode_v2(&mut out), Err(EncodeError::UniqueId));
        let names = Addresses::Unix { source: vec![1; 109].into(), destination: Box::default() };
        let names = Header::new(Version::V2, Command::Proxy, names);
        assert_eq!(names.encode_v2(&mut out), Err(EncodeError::UnixName));
        assert_eq!(out, b"before");
    }
}
