//! One pass over a header section that notes which of the fields with rules of their own are there, so that each
//! rule looks up only what is present. On an ordinary GET this is all that the rules cost in lookups.

use http::{HeaderMap, HeaderValue, header};

/// Which fields are present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen(u32);

impl Seen {
    pub(crate) const CONNECTION: Self = Self(1);
    pub(crate) const HOST: Self = Self(1 << 1);
    pub(crate) const CONTENT_LENGTH: Self = Self(1 << 2);
    pub(crate) const TRANSFER_ENCODING: Self = Self(1 << 3);
    pub(crate) const TE: Self = Self(1 << 4);
    pub(crate) const UPGRADE: Self = Self(1 << 5);
    pub(crate) const EXPECT: Self = Self(1 << 6);
    pub(crate) const MAX_FORWARDS: Self = Self(1 << 7);
    /// `Keep-Alive` or `Proxy-Connection`.
    pub(crate) const OLD_HOP: Self = Self(1 << 8);
    /// `Proxy-Authorization`, `Proxy-Authenticate`, `Proxy-Authentication-Info`, `Proxy`, `HTTP2-Settings`.
    pub(crate) const RARE_HOP: Self = Self(1 << 9);
    pub(crate) const X_FORWARDED_FOR: Self = Self(1 << 10);
    pub(crate) const X_FORWARDED_PROTO: Self = Self(1 << 11);
    pub(crate) const X_FORWARDED_HOST: Self = Self(1 << 12);
    /// Any other `X-Forwarded-*`.
    pub(crate) const X_FORWARDED_OTHER: Self = Self(1 << 13);
    pub(crate) const X_REAL_IP: Self = Self(1 << 14);
    pub(crate) const FORWARDED: Self = Self(1 << 15);
    /// An asserted name written with `_` for `-`, or `Content-Length` or `Transfer-Encoding` so: to a backend that reads one for
    /// the other the message would have another end.
    pub(crate) const UNDERSCORED: Self = Self(1 << 16);
    /// Some field has more than one line.
    pub(crate) const REPEATED: Self = Self(1 << 17);

    pub(crate) fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut seen = 0;
        for name in headers.keys() {
            seen |= classify(name.as_str().as_bytes()).0;
        }
        if headers.len() != headers.keys_len() {
            seen |= Self::REPEATED.0;
        }
        Self(seen)
    }
}

/// Every name that this crate asserts begins with one of these, so that one test finds them all: `X-Forwarded-…` as a
/// whole family (`-For`, `-User`, `-Ssl`, `-Prefix`: what a backend behind a proxy tends to believe).
const FAMILY: &[u8] = b"x-forwarded-";

// Names in a `HeaderMap` are lower case already (RFC 9110 section 5.1: names are case-insensitive).
fn classify(name: &[u8]) -> Seen {
    match (name.len(), name) {
        (2, b"te") => Seen::TE,
        (4, b"host") => Seen::HOST,
        (5, b"proxy") => Seen::RARE_HOP,
        (6, b"expect") => Seen::EXPECT,
        (7, b"upgrade") => Seen::UPGRADE,
        (9, b"forwarded") => Seen::FORWARDED,
        (9, b"x-real-ip") => Seen::X_REAL_IP,
        (9, _) if dashed_eq(name, b"x-real-ip") => Seen::UNDERSCORED,
        (10, b"connection") => Seen::CONNECTION,
        (10, b"keep-alive") => Seen::OLD_HOP,
        (12, b"max-forwards") => Seen::MAX_FORWARDS,
        (14, b"content-length") => Seen::CONTENT_LENGTH,
        (14, b"http2-settings") => Seen::RARE_HOP,
        (14, _) if dashed_eq(name, b"content-length") => Seen::UNDERSCORED,
        (15, b"x-forwarded-for") => Seen::X_FORWARDED_FOR,
        (16, b"x-forwarded-host") => Seen::X_FORWARDED_HOST,
        (16, b"proxy-connection") => Seen::OLD_HOP,
        (17, b"x-forwarded-proto") => Seen::X_FORWARDED_PROTO,
        (17, b"transfer-encoding") => Seen::TRANSFER_ENCODING,
        (17, _) if dashed_eq(name, b"transfer-encoding") => Seen::UNDERSCORED,
        (18, b"proxy-authenticate") | (19, b"proxy-authorization") | (25, b"proxy-authentication-info") => {
            Seen::RARE_HOP
        }
        (13.., [b'x', ..]) if dashed_eq(&name[..FAMILY.len()], FAMILY) => {
            if name.contains(&b'_') {
                Seen::UNDERSCORED
            } else {
                Seen::X_FORWARDED_OTHER
            }
        }
        _ => Seen(0),
    }
}

/// Whether `name` is `dashed` when `_` is read as `-`, as CGI and its descendants do (THREAT class: identity fields).
fn dashed_eq(name: &[u8], dashed: &[u8]) -> bool {
    name.len() == dashed.len() && name.iter().zip(dashed).all(|(&a, &b)| a == b || (a == b'_' && b == b'-'))
}

/// Whether a name is one that this edge asserts, or a spelling of one that a backend may take for it.
pub(crate) fn is_asserted(name: &[u8]) -> bool {
    const ASSERTED: Seen = Seen::X_FORWARDED_FOR
        .or(Seen::X_FORWARDED_PROTO)
        .or(Seen::X_FORWARDED_HOST)
        .or(Seen::X_FORWARDED_OTHER)
        .or(Seen::X_REAL_IP)
        .or(Seen::FORWARDED)
        .or(Seen::UNDERSCORED);
    classify(name).has(ASSERTED)
}

/// Whether a name is an asserted one in its `_` spelling.
pub(crate) fn is_underscored(name: &[u8]) -> bool {
    classify(name) == Seen::UNDERSCORED
}

/// The members of a comma-separated list (RFC 9110 section 5.6.1), white space trimmed, empty ones skipped.
pub(crate) fn members(value: &HeaderValue) -> impl DoubleEndedIterator<Item = &[u8]> {
    value.as_bytes().split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// Whether any line of a list field has this member, in any case.
pub(crate) fn any_member(headers: &HeaderMap, name: &header::HeaderName, member: &[u8]) -> bool {
    headers.get_all(name).iter().flat_map(members).any(|found| found.eq_ignore_ascii_case(member))
}

/// The value of a decimal field: digits only, no sign, no list, no overflow.
pub(crate) fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |sum, &b| match b {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_asserted_names() {
        for name in [
            "x_forwarded_for",
            "x-forwarded_for",
            "x_real_ip",
            "x-real_ip",
            "x_forwarded_user",
            "content_length",
            "transfer_encoding",
        ] {
            assert!(is_underscored(name.as_bytes()), "{name}");
            assert!(is_asserted(name.as_bytes()), "{name}");
        }
        for name in ["x-forwarded-for", "x-forwarded-user", "forwarded", "x-real-ip"] {
            assert!(is_asserted(name.as_bytes()) && !is_underscored(name.as_bytes()), "{name}");
        }
        for name in [
            "content-length",
            "transfer-encoding",
            "x-forwarded",
            "x-real-ips",
            "user_agent",
            "x_custom_id",
            "xx-forwarded-for",
        ] {
            assert!(!is_asserted(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(digits(b"0"), Some(0));
        assert_eq!(digits(b"18446744073709551615"), Some(u64::MAX));
        for bad in ["", "+1", "-1", "1 ", "1,1", "0x1", "18446744073709551616"] {
            assert_eq!(digits(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
