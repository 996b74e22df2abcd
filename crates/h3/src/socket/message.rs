//! What goes before datagrams that are passed on: what the system said of them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use quinn::udp::{EcnCodepoint, RecvMeta};

/// Bytes of a head.
pub(super) const HEAD: usize = 48;
const VERSION: u8 = 1;
const V4: u8 = 1;
const HAS_LOCAL: u8 = 2;

/// version, flags, ECN, nothing, stride (4), port (2), nothing (2), scope (4), address (16), local address (16)
pub(super) fn encode(meta: &RecvMeta) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[0] = VERSION;
    head[2] = meta.ecn.map_or(0, |ecn| ecn as u8);
    head[4..8].copy_from_slice(&u32::try_from(meta.stride).unwrap_or(u32::MAX).to_be_bytes());
    head[8..10].copy_from_slice(&meta.addr.port().to_be_bytes());
    if let SocketAddr::V6(v6) = meta.addr {
        head[12..16].copy_from_slice(&v6.scope_id().to_be_bytes());
    } else {
        head[1] |= V4;
    }
    head[16..32].copy_from_slice(&bytes(meta.addr.ip()));
    if let Some(local) = meta.dst_ip {
        head[1] |= HAS_LOCAL;
        head[32..48].copy_from_slice(&bytes(local));
        // mapped addresses stay what they were: IPv4 ones are marked by their own first bytes
        head[3] = u8::from(local.is_ipv4());
    }
    head
}

/// `None` for what another version sent, or nobody.
pub(super) fn decode(head: &[u8; HEAD], len: usize) -> Option<RecvMeta> {
    if head[0] != VERSION {
        return None;
    }
    let address: [u8; 16] = head[16..32].try_into().ok()?;
    let local: [u8; 16] = head[32..48].try_into().ok()?;
    let port = u16::from_be_bytes([head[8], head[9]]);
    let scope = u32::from_be_bytes([head[12], head[13], head[14], head[15]]);
    Some(RecvMeta {
        addr: match ip(address, head[1] & V4 != 0)? {
            IpAddr::V4(v4) => SocketAddr::from((v4, port)),
            IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, scope).into(),
        },
        dst_ip: if head[1] & HAS_LOCAL != 0 { Some(ip(local, head[3] != 0)?) } else { None },
        ecn: EcnCodepoint::from_bits(head[2]),
        stride: usize::try_from(u32::from_be_bytes([head[4], head[5], head[6], head[7]])).ok()?.max(1),
        len,
    })
}

fn bytes(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn ip(bytes: [u8; 16], v4: bool) -> Option<IpAddr> {
    let v6 = Ipv6Addr::from(bytes);
    if v4 { v6.to_ipv4_mapped().map(IpAddr::V4) } else { Some(IpAddr::V6(v6)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_comes_back() {
        let addresses = ["192.0.2.1:7", "[2001:db8::1]:443", "[::ffff:192.0.2.1]:1", "[fe80::1%3]:9"];
        let locals = [None, Some("198.51.100.2"), Some("2001:db8::2"), Some("::ffff:192.0.2.9")];
        let ecns = [None, Some(EcnCodepoint::Ect0), Some(EcnCodepoint::Ect1), Some(EcnCodepoint::Ce)];
        for ((addr, local), ecn) in addresses.into_iter().zip(locals).zip(ecns) {
            let mut meta = RecvMeta::default();
            (meta.addr, meta.dst_ip) = (addr.parse().unwrap(), local.map(|local| local.parse().unwrap()));
            (meta.ecn, meta.stride, meta.len) = (ecn, 1452, 4000);
            let back = decode(&encode(&meta), 4000).unwrap();
            assert_eq!(format!("{back:?}"), format!("{meta:?}"));
        }
        let mut other = encode(&RecvMeta::default());
        other[0] = 9;
        assert!(decode(&other, 1).is_none());
    }
}
