//! Addresses that a rule leaves alone.

use std::net::IpAddr;

use ipnet::IpNet;

/// Networks as ranges that neither overlap nor touch, in order: one binary search for each question.
#[derive(Clone, Debug, Default)]
pub(super) struct Networks {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl Networks {
    pub(super) fn new(networks: &[IpNet]) -> Self {
        let mut v4 = Vec::new();
        let mut v6 = Vec::new();
        for network in networks {
            match crate::unmapped(*network) {
                IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits())),
            }
        }
        Self { v4: merged(v4), v6: merged(v6) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => is_within(&self.v4, v4.to_bits()),
            IpAddr::V6(v6) => is_within(&self.v6, v6.to_bits()),
        }
    }
}

fn is_within<T: Ord + Copy>(ranges: &[(T, T)], address: T) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= address);
    after > 0 && address <= ranges[after - 1].1
}

fn merged<T: Ord + Copy>(mut ranges: Vec<(T, T)>) -> Box<[(T, T)]> {
    ranges.sort_unstable();
    let mut out: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match out.last_mut() {
            Some((_, end)) if first <= *end => *end = last.max(*end),
            _ => out.push((first, last)),
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_neighbours() {
        let nets = ["192.0.2.0/24", "192.0.2.128/25", "10.0.0.1/32", "2001:db8::/32", "0.0.0.0/32"];
        let networks = Networks::new(&nets.map(|net| net.parse().unwrap()));
        assert_eq!(networks.v4.len(), 3, "a network inside of another is merged with it");
        let table = [
            ("192.0.2.0", true),
            ("192.0.2.255", true),
            ("192.0.1.255", false),
            ("192.0.3.0", false),
            ("10.0.0.1", true),
            ("10.0.0.2", false),
            ("0.0.0.0", true),
            ("0.0.0.1", false),
            ("2001:db8:ffff::1", true),
            ("2001:db9::", false),
            ("::", false),
        ];
        for (address, inside) in table {
            assert_eq!(networks.contains(address.parse().unwrap()), inside, "{address}");
        }
        assert!(Networks::new(&[]).is_empty() && !Networks::new(&[]).contains("::1".parse().unwrap()));
        let all = Networks::new(&["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()]);
        assert!(all.contains("255.255.255.255".parse().unwrap()) && all.contains("ffff::".parse().unwrap()));
    }
}
