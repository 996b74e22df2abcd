//! The few facts of an X.509 certificate that a store needs: its names, its dates, issuer and subject.
//!
//! A walker over DER (ITU-T X.690) that reads forward through slices, allocates only for names and never follows a
//! length beyond what it was given. Whether the certificate is otherwise sound is webpki's business.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// `id-ce-subjectAltName`, 2.5.29.17 (RFC 5280 section 4.2.1.6).
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
/// `id-at-commonName`, 2.5.4.3 (RFC 5280 appendix A.1).
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// `dNSName [2]` and `iPAddress [7]` of GeneralName.
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;

/// Where the bytes stopped making sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DerError(&'static str);

/// What was read from one certificate.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Facts<'a> {
    /// DNS names of the subjectAltName in lower case, without those that no client could ask for.
    pub(crate) dns: Vec<String>,
    /// IP addresses of the subjectAltName.
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// The issuer's name, undecoded.
    pub(crate) issuer: &'a [u8],
    /// The subject's name, undecoded.
    pub(crate) subject: &'a [u8],
}

/// Reads the facts of a DER certificate (RFC 5280 section 4.1).
pub(crate) fn parse(der: &[u8]) -> Result<Facts<'_>, DerError> {
    let mut outer = Reader(der);
    let mut certificate = Reader(outer.expect(SEQUENCE, "no certificate sequence")?);
    let mut tbs = Reader(certificate.expect(SEQUENCE, "no tbsCertificate")?);
    tbs.skip_if(VERSION)?;
    tbs.expect(INTEGER, "no serial number")?;
    tbs.expect(SEQUENCE, "no signature algorithm")?;
    let issuer = tbs.expect(SEQUENCE, "no issuer")?;
    let mut validity = Reader(tbs.expect(SEQUENCE, "no validity")?);
    let not_before = time(validity.next()?)?;
    let not_after = time(validity.next()?)?;
    let subject = tbs.expect(SEQUENCE, "no subject")?;
    tbs.expect(SEQUENCE, "no public key")?;
    let mut facts = Facts { dns: Vec::new(), ips: Vec::new(), not_before, not_after, issuer, subject };
    while !tbs.0.is_empty() {
        let (tag, value) = tbs.next()?;
        if tag == EXTENSIONS {
            let mut list = Reader(Reader(value).expect(SEQUENCE, "no list of extensions")?);
            while !list.0.is_empty() {
                extension(list.expect(SEQUENCE, "an extension is no sequence")?, &mut facts)?;
            }
        }
    }
    Ok(facts)
}

/// The serial number of a DER certificate, with its tag and length as it stands in other structures.
pub(crate) fn serial(der: &[u8]) -> Option<&[u8]> {
    let mut certificate = Reader(Reader(der).expect(SEQUENCE, "").ok()?);
    let mut tbs = Reader(certificate.expect(SEQUENCE, "").ok()?);
    tbs.skip_if(VERSION).ok()?;
    let from = tbs.0;
    let number = tbs.expect(INTEGER, "").ok()?;
    // 20 bytes at most (RFC 5280 section 4.1.2.2), so the length is one byte
    from.get(..number.len() + 2)
}

/// The first common name of an undecoded name.
pub(crate) fn common_name(name: &[u8]) -> Option<&str> {
    let mut sets = Reader(name);
    while !sets.0.is_empty() {
        let mut set = Reader(sets.expect(SET, "").ok()?);
        while !set.0.is_empty() {
            let mut pair = Reader(set.expect(SEQUENCE, "").ok()?);
            let oid = pair.expect(OID, "").ok()?;
            let (tag, value) = pair.next().ok()?;
            if oid == COMMON_NAME && (tag == UTF8_STRING || tag == PRINTABLE_STRING) {
                return std::str::from_utf8(value).ok();
            }
        }
    }
    None
}

fn extension(bytes: &[u8], facts: &mut Facts<'_>) -> Result<(), DerError> {
    let mut fields = Reader(bytes);
    if fields.expect(OID, "an extension has no identifier")? != SUBJECT_ALT_NAME {
        return Ok(());
    }
    fields.skip_if(BOOLEAN)?;
    let value = fields.expect(OCTET_STRING, "an extension has no value")?;
    let mut names = Reader(Reader(value).expect(SEQUENCE, "subjectAltName is no sequence")?);
    while !names.0.is_empty() {
        match names.next()? {
            (DNS_NAME, name) => facts.dns.extend(dns_name(name)),
            (IP_ADDRESS, address) => facts.ips.extend(ip_address(address)),
            _ => {}
        }
    }
    Ok(())
}

/// A DNS name as clients ask for it: lower case, at most one wildcard, which is the whole first label
/// (RFC 9525 section 6.3). `None` for what can't be asked for.
fn dns_name(bytes: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(bytes).ok()?;
    normal_name(name)
}

/// The form in which names are stored and looked up.
pub(crate) fn normal_name(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let base = name.strip_prefix("*.").unwrap_or(name);
    let label_ok = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    // RFC 1035 section 2.3.4: 255 octets on the wire are 253 characters.
    (name.len() <= 253 && base.split('.').all(label_ok)).then(|| name.to_ascii_lowercase())
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// `UTCTime` as `YYMMDDHHMMSSZ` or `GeneralizedTime` as `YYYYMMDDHHMMSSZ` (RFC 5280 section 4.1.2.5).
fn time((tag, text): (u8, &[u8])) -> Result<SystemTime, DerError> {
    const BAD: DerError = DerError("a date is not in the form that RFC 5280 asks for");
    let digits = text.strip_suffix(b"Z").ok_or(BAD)?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    let number = |part: &[u8]| part.iter().fold(0_u64, |n, digit| n * 10 + u64::from(digit - b'0'));
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let (year, rest) = digits.split_at(2);
            let year = number(year);
            // Two digits of 50 and more are the twentieth century.
            (if year >= 50 { 1900 + year } else { 2000 + year }, rest)
        }
        (GENERALIZED_TIME, 14) => (number(&digits[..4]), &digits[4..]),
        _ => return Err(BAD),
    };
    let mut parts = rest.chunks_exact(2).map(number);
    let mut part = |low: u64, high: u64| parts.next().filter(|n| (low..=high).contains(n)).ok_or(BAD);
    let (month, day) = (part(1, 12)?, part(1, 31)?);
    let (hour, minute, second) = (part(0, 23)?, part(0, 59)?, part(0, 60)?);
    let of_day = hour * 3600 + minute * 60 + second;
    let Some(days) = days_since_1970(year, month, day) else { return Ok(UNIX_EPOCH) };
    Ok(UNIX_EPOCH + Duration::from_secs(days * 86_400 + of_day))
}

/// Days from 1 January 1970 in the Gregorian calendar; `None` before it.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    const BEFORE: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let leaps_before = |year: u64| (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400;
    if year < 1970 {
        return None;
    }
    let leap = leaps_before(year + 1) > leaps_before(year);
    let before = BEFORE[usize::try_from(month - 1).ok()?] + u64::from(leap && month > 2);
    Some((year - 1970) * 365 + leaps_before(year) - leaps_before(1970) + before + day - 1)
}

/// Reads tag, length, value from the front of a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(u8, &'a [u8]), DerError> {
        const SHORT: DerError = DerError("a value is cut short");
        let (&tag, rest) = self.0.split_first().ok_or(SHORT)?;
        if tag & 0x1f == 0x1f {
            return Err(DerError("a tag of more than one octet"));
        }
        let (&first, mut rest) = rest.split_first().ok_or(SHORT)?;
        let mut len = usize::from(first);
        if first >= 0x80 {
            let octets = usize::from(first & 0x7f);
            // 0x80 is the indefinite form, which DER forbids; four octets are past any certificate.
            if octets == 0 || octets > 4 {
                return Err(DerError("a length in a form that DER forbids"));
            }
            let (bytes, tail) = rest.split_at_checked(octets).ok_or(SHORT)?;
            len = bytes.iter().fold(0, |n, byte| (n << 8) | usize::from(*byte));
            rest = tail;
        }
        let (value, rest) = rest.split_at_checked(len).ok_or(SHORT)?;
        self.0 = rest;
        Ok((tag, value))
    }

    fn expect(&mut self, tag: u8, otherwise: &'static str) -> Result<&'a [u8], DerError> {
        match self.next()? {
            (found, value) if found == tag => Ok(value),
            _ => Err(DerError(otherwise)),
        }
    }

    fn skip_if(&mut self, tag: u8) -> Result<(), DerError> {
        if self.0.first() == Some(&tag) {
            self.next()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_testkit::certs::TestCa;
    use proptest::prelude::*;

    #[test]
    fn names_and_dates_of_a_made_certificate() {
        let ca = TestCa::new();
        let leaf =
            ca.issue_with(&["A.example.com", "*.b.example.com", "192.0.2.9", "2001:db8::9"], |params| {
                params.not_before = rcgen::date_time_ymd(2024, 2, 29);
                params.not_after = rcgen::date_time_ymd(2100, 3, 1);
            });
        let der = leaf.der();
        let facts = parse(&der).unwrap();
        assert_eq!(facts.dns, ["a.example.com", "*.b.example.com"]);
        assert_eq!(
            facts.ips,
            ["192.0.2.9".parse::<IpAddr>().unwrap(), "2001:db8::9".parse::<IpAddr>().unwrap()]
        );
        // From `date -u -d 2024-02-29 +%s` and `date -u -d 2100-03-01 +%s`.
        assert_eq!(facts.not_before, UNIX_EPOCH + Duration::from_secs(1_709_164_800));
        assert_eq!(facts.not_after, UNIX_EPOCH + Duration::from_secs(4_107_542_400));
        let ca_der = ca.der();
        assert_eq!(facts.issuer, parse(&ca_der).unwrap().subject);
        assert_eq!(common_name(facts.issuer), Some("portcullis test CA"));
    }

    #[test]
    fn times() {
        let secs = |tag, text: &str| {
            time((tag, text.as_bytes())).map(|t| t.duration_since(UNIX_EPOCH).unwrap().as_secs())
        };
        assert_eq!(secs(UTC_TIME, "700101000000Z"), Ok(0));
        assert_eq!(secs(UTC_TIME, "491231235959Z"), Ok(2_524_607_999));
        assert_eq!(secs(UTC_TIME, "500101000000Z"), Ok(0), "1950 is clamped to the epoch");
        assert_eq!(secs(GENERALIZED_TIME, "20000229120000Z"), Ok(951_825_600));
        assert_eq!(secs(GENERALIZED_TIME, "99991231235959Z"), Ok(253_402_300_799));
        for bad in
            ["", "Z", "700101000000", "70010100000Z", "701301000000Z", "700100000000Z", "70x101000000Z"]
        {
            assert!(secs(UTC_TIME, bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_that_no_client_asks_for() {
        for (name, want) in [
            ("A.Example.COM", Some("a.example.com")),
            ("a.example.com.", Some("a.example.com")),
            ("*.example.com", Some("*.example.com")),
            ("_x.example.com", Some("_x.example.com")),
            ("localhost", Some("localhost")),
            ("*", None),
            ("a.*.com", None),
            ("f*.example.com", None),
            ("*.*.example.com", None),
            ("a..b", None),
            ("", None),
            (".", None),
            ("a b", None),
            ("a/b.example.com", None),
        ] {
            assert_eq!(normal_name(name).as_deref(), want, "{name:?}");
        }
        assert_eq!(normal_name(&"a".repeat(64)), None);
        assert_eq!(normal_name(&["a"; 127].join(".")).map(|n| n.len()), Some(253));
        assert_eq!(normal_name(&["a"; 128].join(".")), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
            let _ = common_name(&bytes);
            let _ = time((UTC_TIME, &bytes));
        }

        #[test]
        fn a_damaged_certificate_is_survived(at in 0_usize..400, byte in any::<u8>(), keep in 0_usize..700) {
            static DER: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
            let der = DER.get_or_init(|| TestCa::new().issue(&["a.example.com", "192.0.2.9"]).der().to_vec());
            let mut damaged = der.clone();
            let at = at % damaged.len();
            damaged[at] = byte;
            damaged.truncate(keep);
            let parsed = parse(&damaged);
            prop_assert!(keep >= der.len() || parsed.is_err() || at < 4, "a cut certificate was accepted");
        }
    }
}
