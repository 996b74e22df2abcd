//! Hosts as layers compare them.

use std::net::Ipv6Addr;

/// The host that an authority names, read as leniently as servers may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host<'a> {
    /// In whichever case it came.
    Name(&'a [u8]),
    /// Of an IP literal, so that all its spellings are one (RFC 5952 section 1).
    Address(Ipv6Addr),
}

impl<'a> Host<'a> {
    /// `None` where there is none. User information has no place in a request's target, and what is behind it is the host that servers see; it, a port and
    /// the dots at the end (RFC 1034 section 3.1) are no part of it.
    pub(crate) fn of(authority: &'a [u8]) -> Option<Self> {
        let host = authority.rsplit(|byte| *byte == b'@').next().unwrap_or_default();
        if let Some(address) = address(host) {
            return Some(Self::Address(address));
        }
        let end = match host.iter().position(|byte| *byte == b']') {
            Some(bracket) => bracket + 1,
            None => host.iter().position(|byte| *byte == b':').unwrap_or(host.len()),
        };
        let dots = host[..end].iter().rev().take_while(|byte| **byte == b'.').count();
        let name = &host[..end - dots];
        (!name.is_empty()).then_some(Self::Name(name))
    }
}

/// RFC 3986 section 3.2.2: what stands in brackets at the beginning.
fn address(host: &[u8]) -> Option<Ipv6Addr> {
    let literal = host.strip_prefix(b"[")?;
    let end = literal.iter().position(|byte| *byte == b']')?;
    std::str::from_utf8(&literal[..end]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_authorities() {
        let name = |name: &'static str| Some(Host::Name(name.as_bytes()));
        let address = |text: &str| Some(Host::Address(text.parse().unwrap()));
        for (authority, host) in [
            ("a.example", name("a.example")),
            ("a.example.:80", name("a.example")),
            ("a.example..", name("a.example")),
            ("A.example:", name("A.example")),
            ("u:p@a.example:80", name("a.example")),
            ("", None),
            (":80", None),
            (".", None),
            ("[::1]", address("::1")),
            ("[2001:0DB8:0::1]:443", address("2001:db8::1")),
            ("u@[2001:db8:0:0:0:0:0:1]", address("2001:db8::1")),
            ("[::ffff:192.0.2.1]", address("::ffff:192.0.2.1")),
            ("[::1%25eth0]", name("[::1%25eth0]")),
            ("[v1.x]:80", name("[v1.x]")),
            ("[::1", name("[")),
        ] {
            assert_eq!(Host::of(authority.as_bytes()), host, "{authority}");
        }
    }
}
