//! Version 1: a line of text (section 2.1).

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use crate::{Addresses, Command, Header, Parse, ParseError, Version};

pub(crate) const SIGNATURE: &[u8; 6] = b"PROXY ";
/// With CR and LF, as the specification counts.
const MAX_LEN: usize = 107;
/// `PROXY UNKNOWN` and CRLF.
pub(crate) const MIN_LEN: usize = 15;

/// What may still follow: the fields of a line, read as far as they go.
struct Line<'a> {
    /// Without CRLF, if it is whole.
    bytes: &'a [u8],
    at: usize,
    whole: bool,
}

fn bad(field: &'static str, at: usize) -> ParseError {
    ParseError::V1 { field, at }
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Parse, ParseError> {
    let within = &bytes[..bytes.len().min(MAX_LEN)];
    let end = within.windows(2).position(|pair| pair == b"\r\n");
    if end.is_none() && bytes.len() >= MAX_LEN {
        return Err(bad("line, which has no end within 107 bytes", MAX_LEN));
    }
    let mut line = match end {
        Some(end) => Line { bytes: &bytes[..end], at: SIGNATURE.len(), whole: true },
        // the end of the line may be half there
        None => {
            let text = bytes.strip_suffix(b"\r").unwrap_or(bytes);
            if text.len() < SIGNATURE.len() {
                return if text.len() == bytes.len() {
                    incomplete(bytes)
                } else {
                    Err(ParseError::NoSignature)
                };
            }
            Line { bytes: text, at: SIGNATURE.len(), whole: text.len() < bytes.len() }
        }
    };
    match line.read()? {
        Some(addresses) if end.is_some() => {
            let command = Command::Proxy;
            let header = Header::new(Version::V1, command, addresses);
            Ok(Parse::Complete { header, len: line.bytes.len() + 2 })
        }
        _ => incomplete(bytes),
    }
}

/// Text tells nothing of its length before its end: one byte more, or two if CR is not there.
#[allow(clippy::unnecessary_wraps, reason = "for the callers")]
fn incomplete(bytes: &[u8]) -> Result<Parse, ParseError> {
    Ok(Parse::Incomplete { need: (bytes.len() + 1).max(MIN_LEN) })
}

impl Line<'_> {
    /// `None` if the line is not whole and all right so far.
    fn read(&mut self) -> Result<Option<Addresses>, ParseError> {
        let begin = self.at;
        let Some((protocol, whole)) = self.word(|byte| byte != b' ') else { return Ok(None) };
        let protocols: [&[u8]; 3] = [b"UNKNOWN", b"TCP4", b"TCP6"];
        if !whole {
            let begins = protocols.iter().any(|known| known.starts_with(protocol));
            return if begins { Ok(None) } else { Err(bad("protocol", begin)) };
        }
        let is_v6 = match protocol {
            // the rest of the line is to be ignored, whatever it is
            b"UNKNOWN" => return Ok(self.whole.then_some(Addresses::Unspec)),
            b"TCP4" => false,
            b"TCP6" => true,
            _ => return Err(bad("protocol", begin)),
        };
        let mut ips = [IpAddr::V4(Ipv4Addr::UNSPECIFIED); 2];
        for (ip, field) in ips.iter_mut().zip(["source address", "destination address"]) {
            self.space(field)?;
            match self.address(is_v6, field)? {
                Some(found) => *ip = found,
                None => return Ok(None),
            }
        }
        let mut ports = [0; 2];
        for (port, field) in ports.iter_mut().zip(["source port", "destination port"]) {
            self.space(field)?;
            match self.port(field)? {
                Some(found) => *port = found,
                None => return Ok(None),
            }
        }
        if self.at < self.bytes.len() {
            return Err(bad("end of line", self.at));
        }
        let [source, destination] = [0, 1].map(|n| SocketAddr::new(ips[n], ports[n]));
        Ok(self.whole.then_some(Addresses::Stream { source, destination }))
    }

    /// The bytes up to the next space or the end, and whether they are all; `None` if there are none yet.
    fn word(&mut self, belongs: impl Fn(u8) -> bool) -> Option<(&[u8], bool)> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|byte| !belongs(*byte)).unwrap_or(rest.len());
        let ended = len < rest.len() || self.whole;
        self.at += len;
        (len > 0 || ended).then_some((&rest[..len], ended))
    }

    /// Exactly one space; where the bytes end before it, the next field finds nothing.
    fn space(&mut self, field: &'static str) -> Result<(), ParseError> {
        match self.bytes.get(self.at) {
            Some(b' ') => self.at += 1,
            Some(_) => return Err(bad("space", self.at)),
            None if self.whole => return Err(bad(field, self.at)),
            None => {}
        }
        Ok(())
    }

    fn address(&mut self, is_v6: bool, field: &'static str) -> Result<Option<IpAddr>, ParseError> {
        let begin = self.at;
        let is_part = |byte: u8| match byte {
            b'.' | b'0'..=b'9' => true,
            b':' | b'a'..=b'f' | b'A'..=b'F' => is_v6,
            _ => false,
        };
        let longest = if is_v6 { 45 } else { 15 };
        let Some((text, ended)) = self.word(is_part) else { return Ok(None) };
        if text.len() > longest {
            return Err(bad(field, begin));
        }
        if !ended {
            return Ok(None);
        }
        let text = std::str::from_utf8(text).map_err(|_| bad(field, begin))?;
        // std takes no leading zeros in IPv4
        let ip = if is_v6 {
            Ipv6Addr::from_str(text).map(IpAddr::V6).ok()
        } else {
            Ipv4Addr::from_str(text).map(IpAddr::V4).ok()
        };
        ip.map(Some).ok_or_else(|| bad(field, begin))
    }

    fn port(&mut self, field: &'static str) -> Result<Option<u16>, ParseError> {
        let begin = self.at;
        let Some((text, ended)) = self.word(|byte| byte.is_ascii_digit()) else { return Ok(None) };
        let canonical = text.len() <= 5 && (text.len() == 1 || !text.starts_with(b"0"));
        let port = std::str::from_utf8(text).ok().filter(|_| canonical).and_then(|text| text.parse().ok());
        match port {
            Some(port) => Ok(ended.then_some(port)),
            None if text.is_empty() && !ended => Ok(None),
            None => Err(bad(field, begin)),
        }
    }
}

impl Header {
    /// Appends the header in version 1: the addresses of TCP, and `UNKNOWN` for all else. Fields are left out.
    pub fn encode_v1(&self, out: &mut Vec<u8>) {
        let (Command::Proxy, Addresses::Stream { source, destination }) = (self.command, &self.addresses)
        else {
            out.extend_from_slice(b"PROXY UNKNOWN\r\n");
            return;
        };
        let (from, to) = (source.ip(), destination.ip());
        let ports = (source.port(), destination.port());
        // writing to a vector can't fail
        let _ = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                write!(out, "PROXY TCP4 {from} {to} {} {}\r\n", ports.0, ports.1)
            }
            _ => {
                let (from, to) = (v6(from), v6(to));
                write!(out, "PROXY TCP6 {from} {to} {} {}\r\n", ports.0, ports.1)
            }
        };
    }
}

/// One family for both: an IPv4 address among others is given as the mapped one.
pub(crate) fn v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(text: &str) -> (Addresses, usize) {
        match crate::parse(text.as_bytes(), crate::DEFAULT_MAX_LEN) {
            Ok(Parse::Complete { header, len }) => {
                assert_eq!((header.version, header.command), (Version::V1, Command::Proxy));
                (header.addresses, len)
            }
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn what_is_right() {
        let stream = |source: &str, destination: &str| Addresses::Stream {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        };
        for (text, addresses) in [
            (
                "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n",
                stream("192.0.2.1:56324", "198.51.100.1:443"),
            ),
            ("PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n", stream("0.0.0.0:0", "255.255.255.255:65535")),
            ("PROXY TCP6 2001:db8::1 ::1 1 2\r\n", stream("[2001:db8::1]:1", "[::1]:2")),
            (
                "PROXY TCP6 ::ffff:192.0.2.1 2001:DB8::A 1 2\r\n",
                stream("[::ffff:192.0.2.1]:1", "[2001:db8::a]:2"),
            ),
            ("PROXY UNKNOWN\r\n", Addresses::Unspec),
            ("PROXY UNKNOWN whatever comes here, \u{e9} and \r too\r\n", Addresses::Unspec),
        ] {
            assert_eq!(complete(text), (addresses.clone(), text.len()));
            assert_eq!(complete(&format!("{text}GET / HTTP/1.1\r\n\r\n")), (addresses, text.len()));
        }
        let longest = "PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535";
        let longest = format!("{longest:<105}\r\n");
        assert_eq!(complete(&longest).1, 107);
    }

    #[test]
    fn what_is_wrong() {
        for (text, field) in [
            ("PROXY tcp4 192.0.2.1 198.51.100.1 1 2\r\n", "protocol"),
            ("PROXY TCP5", "protocol"),
            ("PROXY  TCP4", "protocol"),
            ("PROXY TCP4X", "protocol"),
            ("PROXY UNKNOWNS", "protocol"),
            ("PROXY \r\n", "protocol"),
            ("PROXY TCP4\r\n", "source address"),
            ("PROXY TCP4  192.0.2.1", "source address"),
            ("PROXY TCP4 192.0.2.01 198.51.100.1 1 2\r\n", "source address"),
            ("PROXY TCP4 192.0.2.256 198.51.100.1 1 2\r\n", "source address"),
            ("PROXY TCP4 192.0.2 198.51.100.1 1 2\r\n", "source address"),
            ("PROXY TCP4 ::1 ::1 1 2\r\n", "source address"),
            ("PROXY TCP4 192.0.2.1:80", "space"),
            ("PROXY TCP4 192.0.2.1\t", "space"),
            ("PROXY TCP4 1111111111111111", "source address"),
            ("PROXY TCP6 192.0.2.1 ::1 1 2\r\n", "source address"),
            ("PROXY TCP6 ::1 fe80::1%eth0 1 2\r\n", "space"),
            ("PROXY TCP6 ::1 12345::1 1 2\r\n", "destination address"),
            ("PROXY TCP4 192.0.2.1 198.51.100.1\r\n", "source port"),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 01 2\r\n", "source port"),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 65536 2\r\n", "source port"),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 -1 2\r\n", "source port"),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 1 \r\n", "destination port"),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 1 2 \r\n", "end of line"),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 1 2 3\r\n", "end of line"),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 1 2\n", "end of line"),
        ] {
            match crate::parse(text.as_bytes(), crate::DEFAULT_MAX_LEN) {
                Err(ParseError::V1 { field: found, at }) => {
                    assert_eq!(found, field, "{text:?} at {at}");
                    assert!(at <= text.len());
                }
                other => panic!("{text:?}: {other:?}"),
            }
        }
        let endless = format!("PROXY UNKNOWN {:<94}", "");
        assert!(matches!(parse(endless.as_bytes()), Err(ParseError::V1 { at: 107, .. })));
        for other in ["PRoXY ", "GET / HTTP/1.1", "\x16\x03", "X", "PROX\r"] {
            assert_eq!(crate::parse(other.as_bytes(), 4096), Err(ParseError::NoSignature), "{other:?}");
        }
    }
}
