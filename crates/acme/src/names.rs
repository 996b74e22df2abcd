//! Names that certificates are asked for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::OptionsError;

/// Names in one certificate: what public authorities allow.
pub(crate) const MAX_NAMES: usize = 100;

/// A name in the form in which it is asked for: lower case, without a dot at its end; or an IP address.
///
/// # Errors
/// When it is neither a DNS name of at least two labels, nor a wildcard of one, nor an IP address.
pub(crate) fn normal(given: &str) -> Result<String, OptionsError> {
    let bad = |reason| OptionsError::Name { name: given.to_owned(), reason };
    if let Ok(address) = given.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    if !given.is_ascii() {
        return Err(bad("it has letters outside ASCII: give it in punycode (xn--...)"));
    }
    let name = given.strip_suffix('.').unwrap_or(given).to_ascii_lowercase();
    let plain = name.strip_prefix("*.").unwrap_or(&name);
    match plain_fault(plain) {
        None => Ok(name),
        Some(reason) => Err(bad(reason)),
    }
}

/// A name that a client asked for, if a certificate may be issued on demand for it: a DNS name of at least two labels,
/// no wildcard, no address.
pub(crate) fn on_demand(asked: &str) -> Option<String> {
    let name = asked.strip_suffix('.').unwrap_or(asked).to_ascii_lowercase();
    let is_address = name.parse::<IpAddr>().is_ok();
    (!is_address && plain_fault(&name).is_none()).then_some(name)
}

/// RFC 1035 section 2.3.1, with digits in front as RFC 1123 section 2.1 allows; no underscores, which public
/// authorities refuse.
fn plain_fault(name: &str) -> Option<&'static str> {
    if name.len() > 253 {
        return Some("it is longer than 253 characters");
    }
    let mut labels = 0;
    for label in name.split('.') {
        labels += 1;
        if label.is_empty() || label.len() > 63 {
            return Some("a label is empty or longer than 63 characters");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Some("a label begins or ends with a hyphen");
        }
        if !label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            return Some("a label has a character that is no letter, digit or hyphen");
        }
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    if labels < 2 {
        Some("it has one label only, for which no public authority issues")
    } else if last.bytes().all(|b| b.is_ascii_digit()) {
        Some("its last label is a number")
    } else {
        None
    }
}

/// The name that who validates by TLS-ALPN-01 asks for: the DNS name, or for an address its reverse name
/// (RFC 8738 section 6).
pub(crate) fn alpn_name(name: &str) -> String {
    match name.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => reverse_v4(address),
        Ok(IpAddr::V6(address)) => reverse_v6(address),
        Err(_) => name.to_owned(),
    }
}

fn reverse_v4(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("{d}.{c}.{b}.{a}.in-addr.arpa")
}

fn reverse_v6(address: Ipv6Addr) -> String {
    let mut name = String::with_capacity(72);
    for byte in address.octets().iter().rev() {
        for digit in [byte & 15, byte >> 4] {
            name.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
            name.push('.');
        }
    }
    name + "ip6.arpa"
}

/// The name of the TXT record for DNS-01 (RFC 8555 section 8.4); a wildcard is proved at its parent.
pub(crate) fn dns_record(name: &str) -> String {
    format!("_acme-challenge.{}", name.strip_prefix("*.").unwrap_or(name))
}

/// What a certificate is kept by: one of its names, to be recognised, and a digest over all, whatever their order.
pub(crate) fn certificate_id(names: &[String]) -> String {
    let mut sorted: Vec<&str> = names.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let first = sorted.first().copied().unwrap_or_default();
    let shown: String = first.chars().take(100).map(|c| if c == '*' || c == ':' { '_' } else { c }).collect();
    format!("{shown}-{}", &digest_hex(sorted.join("\n").as_bytes())[..16])
}

/// SHA-256 in hexadecimal.
pub(crate) fn digest_hex(bytes: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // writing to a String can't fail
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Bytes from hexadecimal.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Bytes from base64url (RFC 4648 section 5), padded or not; ordinary base64 is taken too, since some authorities hand
/// it out.
pub(crate) fn base64url(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    if text.is_empty() || text.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut held) = (0_u32, 0);
    for byte in text.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' | b'+' => 62,
            b'_' | b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            // the mask leaves one byte
            bytes.push(u8::try_from(bits >> held & 0xff).unwrap_or_default());
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_brought_into_one_form() {
        for (given, want) in [
            ("Example.COM.", Some("example.com")),
            ("*.Example.com", Some("*.example.com")),
            ("192.0.2.1", Some("192.0.2.1")),
            ("2001:DB8::1", Some("2001:db8::1")),
            ("xn--bcher-kva.example", Some("xn--bcher-kva.example")),
            ("bücher.example", None),
            ("localhost", None),
            ("*", None),
            ("*.com", None),
            ("a.*.example.com", None),
            ("a..example.com", None),
            ("-a.example.com", None),
            ("a_b.example.com", None),
            ("a/b.example.com", None),
            ("../x.example", None),
            ("1.2.3", None),
            ("", None),
        ] {
            assert_eq!(normal(given).ok().as_deref(), want, "{given}");
        }
    }

    #[test]
    fn what_clients_may_ask_for() {
        for (asked, want) in [
            ("A.example.com", Some("a.example.com")),
            ("a.example.com.", Some("a.example.com")),
            ("localhost", None),
            ("*.example.com", None),
            ("192.0.2.1", None),
            ("1.0.0.127.in-addr.arpa", Some("1.0.0.127.in-addr.arpa")),
        ] {
            assert_eq!(on_demand(asked).as_deref(), want, "{asked}");
        }
    }

    #[test]
    fn reverse_names() {
        assert_eq!(alpn_name("192.0.2.1"), "1.2.0.192.in-addr.arpa");
        let v6 = alpn_name("2001:db8::1");
        assert!(v6.starts_with("1.0.0.0.") && v6.ends_with(".8.b.d.0.1.0.0.2.ip6.arpa"), "{v6}");
        assert_eq!(alpn_name("a.example"), "a.example");
        assert_eq!(dns_record("*.a.example"), "_acme-challenge.a.example");
    }

    #[test]
    fn an_id_knows_no_order() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let id = certificate_id(&names(&["a.example", "b.example"]));
        assert!(id.starts_with("a.example-"));
        assert_eq!(id, certificate_id(&names(&["b.example", "a.example"])));
        assert_ne!(id, certificate_id(&names(&["a.example"])));
        assert!(certificate_id(&names(&["*.a.example"])).starts_with("_.a.example-"));
    }

    #[test]
    fn texts_to_bytes() {
        assert_eq!(base64url("Zm9v").unwrap(), b"foo");
        assert_eq!(base64url("Zm8=").unwrap(), b"fo");
        assert_eq!(base64url("_-8").unwrap(), [0xff, 0xef]);
        assert_eq!(base64url("/+8").unwrap(), [0xff, 0xef]);
        assert!(base64url("Zm9*").is_none() && base64url("").is_none() && base64url("Zm9vZ").is_none());
        assert_eq!(unhex("00ff").unwrap(), [0, 255]);
        assert!(unhex("0").is_none() && unhex("zz").is_none());
        assert_eq!(hex(&[1, 0xab]), "01ab");
    }
}
