//! The two fields of a WebSocket's opening handshake that one end must answer for (RFC 6455 section 4.2.2): where only
//! one side of this edge speaks HTTP/1.1, the edge makes them up for that side (RFC 8441 section 5 has none).

use std::hash::{BuildHasher, Hasher, RandomState};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha1::{Digest, Sha1};

pub(crate) static KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
pub(crate) static ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// RFC 6455 section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The one key of a request. Whether it is a good one is for the server to say that reads it.
pub(crate) fn key(headers: &HeaderMap) -> Option<&HeaderValue> {
    only(headers, &KEY)
}

/// A key that nobody has seen before: 128 bits of two hashes under keys that the system's randomness made.
pub(crate) fn fresh_key() -> HeaderValue {
    let half = || RandomState::new().build_hasher().finish().to_ne_bytes();
    let mut nonce = [0; 16];
    nonce[..8].copy_from_slice(&half());
    nonce[8..].copy_from_slice(&half());
    value(&nonce)
}

/// What a server that has understood the key answers (RFC 6455 section 4.2.2 item 5.4).
pub(crate) fn accept(key: &HeaderValue) -> HeaderValue {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes().trim_ascii());
    hash.update(GUID);
    value(&hash.finalize())
}

/// Whether an answer has that, once (RFC 6455 section 4.1, item 4 of what a client checks).
pub(crate) fn is_accepted(headers: &HeaderMap, key: &HeaderValue) -> bool {
    only(headers, &ACCEPT).is_some_and(|found| found.as_bytes().trim_ascii() == accept(key).as_bytes())
}

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next();
    first.filter(|_| lines.next().is_none())
}

fn value(bytes: &[u8]) -> HeaderValue {
    HeaderValue::try_from(STANDARD.encode(bytes)).expect("the letters of base64 make a field value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc6455_1_3_the_example() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        for (lines, accepted) in [
            (&["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="][..], true),
            (&["S3pPLMBiTxaQ9kYGzzhZRbK+xOo="], false),
            (&["s3pPLMBiTxaQ9kYGzzhZRbK+xOo"], false),
            (&["s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="], false),
            (&[""], false),
            (&[], false),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(&ACCEPT, HeaderValue::from_static(line));
            }
            assert_eq!(is_accepted(&headers, &key), accepted, "{lines:?}");
        }
    }

    #[test]
    fn rfc6455_4_1_a_fresh_key_has_16_bytes_and_is_another_each_time() {
        let (one, two) = (fresh_key(), fresh_key());
        assert_ne!(one, two);
        assert_eq!(STANDARD.decode(one.as_bytes()).unwrap().len(), 16);
    }
}
