//! Writes field sections for responses (RFC 9204), with the static table only and without Huffman coding: nothing
//! is allocated or looked up twice, for some bytes more on the wire.

use bytes::{BufMut, BytesMut};
use http::{HeaderName, HeaderValue, StatusCode};

/// Begins a field section: no dynamic table, so both numbers of the prefix are 0 (RFC 9204 section 4.5.1).
pub(crate) fn begin(out: &mut BytesMut) {
    out.put_slice(&[0, 0]);
}

/// The status pseudo-header (RFC 9114 section 4.3.2); it must come first.
pub(crate) fn status(out: &mut BytesMut, status: StatusCode) {
    // RFC 9204 appendix A
    let index = match status.as_u16() {
        103 => 24,
        200 => 25,
        304 => 26,
        404 => 27,
        503 => 28,
        100 => 63,
        204 => 64,
        206 => 65,
        302 => 66,
        400 => 67,
        403 => 68,
        421 => 69,
        425 => 70,
        500 => 71,
        _ => {
            name_reference(out, 24);
            string(out, status.as_str().as_bytes());
            return;
        }
    };
    // an indexed field line of the static table, RFC 9204 section 4.5.2
    int(out, 0b1100_0000, 6, index);
}

/// The method of a request. Pseudo-header fields must come first.
#[cfg(feature = "client")]
pub(crate) fn method(out: &mut BytesMut, method: &http::Method) {
    let index = match method.as_str() {
        "CONNECT" => 15,
        "DELETE" => 16,
        "GET" => 17,
        "HEAD" => 18,
        "OPTIONS" => 19,
        "POST" => 20,
        "PUT" => 21,
        other => {
            name_reference(out, 15);
            return string(out, other.as_bytes());
        }
    };
    int(out, 0b1100_0000, 6, index);
}

#[cfg(feature = "client")]
pub(crate) fn scheme(out: &mut BytesMut, scheme: &str) {
    match scheme {
        "http" => int(out, 0b1100_0000, 6, 22),
        "https" => int(out, 0b1100_0000, 6, 23),
        other => {
            name_reference(out, 22);
            string(out, other.as_bytes());
        }
    }
}

#[cfg(feature = "client")]
pub(crate) fn authority(out: &mut BytesMut, authority: &str) {
    name_reference(out, 0);
    string(out, authority.as_bytes());
}

#[cfg(feature = "client")]
pub(crate) fn path(out: &mut BytesMut, path: &str) {
    if path == "/" {
        return int(out, 0b1100_0000, 6, 1);
    }
    name_reference(out, 1);
    string(out, path.as_bytes());
}

/// RFC 9220 section 3.
#[cfg(feature = "client")]
pub(crate) fn protocol(out: &mut BytesMut, protocol: &str) {
    raw_field(out, ":protocol", protocol.as_bytes());
}

/// A field line. A value that is marked sensitive is never to be put into a table, by anybody (RFC 9204 section 7.1.3).
pub(crate) fn field(out: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    let never = if value.is_sensitive() { 1 } else { 0 };
    line(out, name.as_str(), value.as_bytes(), never);
}

/// A field line; the name in lower case (RFC 9114 section 4.2).
pub(crate) fn raw_field(out: &mut BytesMut, name: &str, value: &[u8]) {
    line(out, name, value, 0);
}

fn line(out: &mut BytesMut, name: &str, value: &[u8], never: u8) {
    match static_name(name) {
        Some(index) => int(out, 0b0101_0000 | (never << 5), 4, index),
        None => {
            // a literal name, RFC 9204 section 4.5.6
            int(out, 0b0010_0000 | (never << 4), 3, name.len() as u64);
            out.put_slice(name.as_bytes());
        }
    }
    string(out, value);
}

/// The start of a literal field line whose name is in the static table, RFC 9204 section 4.5.4.
fn name_reference(out: &mut BytesMut, index: u64) {
    int(out, 0b0101_0000, 4, index);
}

/// A string literal as it is, RFC 9204 section 4.1.2.
fn string(out: &mut BytesMut, value: &[u8]) {
    int(out, 0, 7, value.len() as u64);
    out.put_slice(value);
}

/// A prefixed integer, RFC 7541 section 5.1.
fn int(out: &mut BytesMut, first: u8, prefix: u32, value: u64) {
    let max = (1u64 << prefix) - 1;
    if value < max {
        // cannot truncate: below 2^7
        out.put_u8(first | value as u8);
        return;
    }
    out.put_u8(first | max as u8);
    let mut rest = value - max;
    while rest >= 0x80 {
        out.put_u8(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

/// Where the static table (RFC 9204 appendix A) names a field that responses carry.
fn static_name(name: &str) -> Option<u64> {
    Some(match name.len() {
        3 if name == "age" => 2,
        4 => match name {
            "date" => 6,
            "etag" => 7,
            "link" => 11,
            "vary" => 59,
            _ => return None,
        },
        6 if name == "server" => 92,
        7 if name == "alt-svc" => 83,
        8 if name == "location" => 12,
        10 if name == "set-cookie" => 14,
        12 if name == "content-type" => 44,
        13 => match name {
            "last-modified" => 10,
            "accept-ranges" => 32,
            "cache-control" => 36,
            _ => return None,
        },
        14 if name == "content-length" => 4,
        15 if name == "x-frame-options" => 97,
        16 => match name {
            "content-encoding" => 42,
            "x-xss-protection" => 62,
            _ => return None,
        },
        19 => match name {
            "content-disposition" => 3,
            "timing-allow-origin" => 93,
            _ => return None,
        },
        22 if name == "x-content-type-options" => 61,
        23 if name == "content-security-policy" => 85,
        25 if name == "strict-transport-security" => 56,
        27 if name == "access-control-allow-origin" => 35,
        28 => match name {
            "access-control-allow-headers" => 33,
            "access-control-allow-methods" => 76,
            _ => return None,
        },
        29 if name == "access-control-expose-headers" => 79,
        32 if name == "access-control-allow-credentials" => 73,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
        let mut out = BytesMut::new();
        write(&mut out);
        out.to_vec()
    }

    #[test]
    fn integers_like_the_examples_of_rfc_7541_appendix_c1() {
        assert_eq!(bytes(|out| int(out, 0, 5, 10)), [0b0_1010]);
        assert_eq!(bytes(|out| int(out, 0, 5, 1337)), [0b1_1111, 0b1001_1010, 0b0000_1010]);
        assert_eq!(bytes(|out| int(out, 0, 8, 42)), [42]);
        assert_eq!(bytes(|out| int(out, 0xc0, 6, 62)), [0xfe]);
        assert_eq!(bytes(|out| int(out, 0xc0, 6, 63)), [0xff, 0]);
    }

    #[test]
    fn statuses() {
        assert_eq!(bytes(|out| status(out, StatusCode::OK)), [0xc0 | 25]);
        assert_eq!(bytes(|out| status(out, StatusCode::INTERNAL_SERVER_ERROR)), [0xff, 71 - 63]);
        assert_eq!(
            bytes(|out| status(out, StatusCode::from_u16(451).unwrap())),
            [0x5f, 24 - 15, 3, b'4', b'5', b'1']
        );
    }

    #[test]
    fn fields() {
        assert_eq!(bytes(|out| raw_field(out, "age", b"7")), [0x52, 1, b'7']);
        assert_eq!(bytes(|out| raw_field(out, "x", b"yz")), [0x21, b'x', 2, b'y', b'z']);
        let long = bytes(|out| raw_field(out, "x-abcdefgh", b""));
        assert_eq!(&long[..2], [0x27, 10 - 7]);
    }
}
