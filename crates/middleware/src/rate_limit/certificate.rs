//! The subject of a certificate, as the bytes that stand in it.
//!
//! The certificate was verified before it came here; all that is done is to step over the fields in front of the subject
//! (RFC 5280 section 4.1): nothing is interpreted, so nothing can be understood in two ways.

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
/// `[0]`, which holds the version (RFC 5280 section 4.1.2.1).
const VERSION: u8 = 0xa0;

/// The subject's name in DER, with its tag and length; `None` where the certificate is not one.
pub(super) fn subject(der: &[u8]) -> Option<&[u8]> {
    let (certificate, _) = element(der, SEQUENCE)?;
    let (mut rest, _) = element(certificate, SEQUENCE)?;
    if rest.first() == Some(&VERSION) {
        rest = element(rest, VERSION)?.1;
    }
    // serial number, signature algorithm, issuer, validity
    for tag in [INTEGER, SEQUENCE, SEQUENCE, SEQUENCE] {
        rest = element(rest, tag)?.1;
    }
    let after = element(rest, SEQUENCE)?.1;
    Some(&rest[..rest.len() - after.len()])
}

/// The content of the element that begins here, if it has this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], mut rest) = der.split_first_chunk::<2>()?;
    if found != tag {
        return None;
    }
    let mut length = usize::from(first);
    if first >= 0x80 {
        // the long form: so many bytes of length follow
        let (bytes, after) =
            rest.split_at_checked(usize::from(first & 0x7f)).filter(|(n, _)| n.len() <= 4)?;
        length = bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        rest = after;
    }
    rest.split_at_checked(length)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// As much of a certificate as stands in front of the key.
    pub(in super::super) fn certificate(serial: u8, common_name: &str, versioned: bool) -> Vec<u8> {
        let mut tbs = if versioned { vec![VERSION, 3, 2, 1, 2] } else { Vec::new() };
        tbs.extend([INTEGER, 1, serial, SEQUENCE, 0, SEQUENCE, 2, 5, 0, SEQUENCE, 0]);
        tbs.extend(wrap(SEQUENCE, common_name.as_bytes()));
        wrap(SEQUENCE, &wrap(SEQUENCE, &tbs))
    }

    fn wrap(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        match u8::try_from(content.len()) {
            Ok(short @ ..0x80) => out.push(short),
            _ => {
                let length = u16::try_from(content.len()).unwrap();
                out.push(0x82);
                out.extend(length.to_be_bytes());
            }
        }
        out.extend(content);
        out
    }

    #[test]
    fn the_subject_is_found_and_nothing_else() {
        for versioned in [true, false] {
            for name in ["", "client", &"long".repeat(100)] {
                let der = certificate(9, name, versioned);
                assert_eq!(subject(&der).unwrap(), wrap(SEQUENCE, name.as_bytes()), "{name}");
            }
        }
    }

    #[test]
    fn what_is_cut_or_absurd_has_none() {
        let der = certificate(9, &"long".repeat(100), true);
        for length in 0..der.len() {
            assert_eq!(subject(&der[..length]), None, "{length}");
        }
        for bad in
            [&[0x30, 0x89, 1, 1, 1, 1, 1, 1, 1, 1, 1][..], &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], &[0x31, 0]]
        {
            assert_eq!(subject(bad), None);
        }
    }
}
