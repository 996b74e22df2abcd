//! The subject of a client's certificate, as text.

/// A DER value: its tag, its content, and what comes after it. `None` where that is not what it says (X.690 section 8.1).
fn value(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [tag, first, rest @ ..] = der else { return None };
    let (len, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((*tag, content, rest))
}

fn expect(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    value(der).filter(|(found, ..)| *found == tag).map(|(_, content, rest)| (content, rest))
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;

/// Appends the subject of a certificate (RFC 5280 section 4.1.2.6) as RFC 4514 writes names: the last part first, `CN=client,O=Example`.
/// `None`, and something of it or nothing appended, where the certificate can't be read.
pub(super) fn push_subject(out: &mut Vec<u8>, certificate: &[u8]) -> Option<()> {
    let (certificate, _) = expect(certificate, SEQUENCE)?;
    let (mut rest, _) = expect(certificate, SEQUENCE)?;
    if let Some((0xa0, _, after)) = value(rest) {
        // the version
        rest = after;
    }
    // serial number, signature algorithm, issuer, validity
    for _ in 0..4 {
        rest = value(rest)?.2;
    }
    let (mut name, _) = expect(rest, SEQUENCE)?;
    let mut parts = Vec::new();
    while !name.is_empty() {
        let (part, after) = expect(name, SET)?;
        parts.push(part);
        name = after;
    }
    for (at, mut part) in parts.into_iter().rev().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        let mut first = true;
        while !part.is_empty() {
            let (pair, after) = expect(part, SEQUENCE)?;
            if !std::mem::take(&mut first) {
                out.push(b'+');
            }
            push_pair(out, pair)?;
            part = after;
        }
    }
    Some(())
}

fn push_pair(out: &mut Vec<u8>, pair: &[u8]) -> Option<()> {
    let (oid, rest) = expect(pair, OID)?;
    let (tag, text, _) = value(rest)?;
    match short_name(oid) {
        Some(name) => out.extend_from_slice(name.as_bytes()),
        None => push_oid(out, oid),
    }
    out.push(b'=');
    // UTF8String, PrintableString, T61String and IA5String are as good as text; whoever writes it escapes it again
    if matches!(tag, 0x0c | 0x13 | 0x14 | 0x16) {
        push_value(out, text);
    } else {
        out.push(b'#');
        for byte in rest {
            for nibble in [byte >> 4, byte & 15] {
                out.push(b"0123456789abcdef"[usize::from(nibble)]);
            }
        }
    }
    Some(())
}

/// RFC 4514 section 2.4: what means something in a name is escaped, and so are a space or `#` that leads, a space that trails, and NUL.
fn push_value(out: &mut Vec<u8>, text: &[u8]) {
    for (at, byte) in text.iter().enumerate() {
        let (leads, trails) = (at == 0, at + 1 == text.len());
        match byte {
            0 => {
                out.extend_from_slice(b"\\00");
                continue;
            }
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' | b'=' => out.push(b'\\'),
            b'#' if leads => out.push(b'\\'),
            b' ' if leads || trails => out.push(b'\\'),
            _ => {}
        }
        out.push(*byte);
    }
}

/// RFC 4514 section 3, and the address that certificates of people have.
fn short_name(oid: &[u8]) -> Option<&'static str> {
    Some(match oid {
        [0x55, 4, 3] => "CN",
        [0x55, 4, 5] => "serialNumber",
        [0x55, 4, 6] => "C",
        [0x55, 4, 7] => "L",
        [0x55, 4, 8] => "ST",
        [0x55, 4, 9] => "STREET",
        [0x55, 4, 10] => "O",
        [0x55, 4, 11] => "OU",
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1] => "UID",
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25] => "DC",
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1] => "emailAddress",
        _ => return None,
    })
}

/// In dots (X.690 section 8.19).
fn push_oid(out: &mut Vec<u8>, oid: &[u8]) {
    let mut number: u64 = 0;
    let mut first = true;
    for byte in oid {
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 != 0 {
            continue;
        }
        if std::mem::take(&mut first) {
            let top = (number / 40).min(2);
            super::number::push_number(out, top);
            number -= top * 40;
        }
        out.push(b'.');
        super::number::push_number(out, number);
        number = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        match content.len() {
            len @ 0..=0x7f => out.push(len as u8),
            len => out.extend([0x82, (len >> 8) as u8, len as u8]),
        }
        out.extend_from_slice(content);
        out
    }

    fn pair(oid: &[u8], tag: u8, text: &[u8]) -> Vec<u8> {
        der(SEQUENCE, &[der(OID, oid), der(tag, text)].concat())
    }

    fn certificate(name: &[Vec<u8>], version: bool) -> Vec<u8> {
        let version = if version { der(0xa0, &der(2, &[2])) } else { Vec::new() };
        let empty = der(SEQUENCE, &[]);
        let name = der(SEQUENCE, &name.concat());
        let to_sign =
            [version, der(2, &[1]), empty.clone(), empty.clone(), empty.clone(), name, empty].concat();
        der(SEQUENCE, &[der(SEQUENCE, &to_sign), der(SEQUENCE, &[])].concat())
    }

    fn subject(certificate: &[u8]) -> Option<String> {
        let mut out = Vec::new();
        push_subject(&mut out, certificate)?;
        Some(String::from_utf8_lossy(&out).into_owned())
    }

    #[test]
    fn names_as_text() {
        let org = der(SET, &pair(&[0x55, 4, 10], 0x13, b"Example, Inc."));
        let two = der(
            SET,
            &[
                pair(&[0x55, 4, 3], 0x0c, "J\u{f6}".as_bytes()),
                pair(&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1], 0x13, b"j"),
            ]
            .concat(),
        );
        let odd = der(SET, &pair(&[0x2b, 6, 1, 4, 1, 0x82, 0x37], 0x04, b"\x01"));
        for version in [false, true] {
            assert_eq!(
                subject(&certificate(&[org.clone(), two.clone()], version)).unwrap(),
                "CN=J\u{f6}+UID=j,O=Example\\, Inc."
            );
        }
        assert_eq!(subject(&certificate(&[odd], true)).unwrap(), "1.3.6.1.4.1.311=#040101");
        for (text, expected) in [
            (" a ", "CN=\\ a\\ "),
            ("  a  b  ", "CN=\\  a  b \\ "),
            (" ", "CN=\\ "),
            ("#a#", "CN=\\#a#"),
            ("a\0b", "CN=a\\00b"),
            ("", "CN="),
            ("a,b+c\"d\\e<f>g;h=i", r#"CN=a\,b\+c\"d\\e\<f\>g\;h\=i"#),
        ] {
            let name = der(SET, &pair(&[0x55, 4, 3], 0x0c, text.as_bytes()));
            assert_eq!(subject(&certificate(&[name], true)).unwrap(), expected, "{text:?}");
        }
        assert_eq!(subject(&certificate(&[], true)).unwrap(), "");
        assert_eq!(subject(b"no certificate"), None);
    }

    proptest! {
        #[test]
        fn no_certificate_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..80), at in 0_usize..120, to in any::<u8>()) {
            let _ = subject(&bytes);
            bytes = certificate(&[der(SET, &pair(&[0x55, 4, 3], 0x0c, &bytes))], true);
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = subject(&bytes);
        }
    }
}
