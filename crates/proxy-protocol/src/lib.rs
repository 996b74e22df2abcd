//! The PROXY protocol, versions 1 and 2: a strict parser and an encoder, without IO.
//!
//! A proxy that forwards TCP connections puts a header in front of each, with the addresses of the client's own
//! connection. [`parse`] reads it from the bytes that are there and says when more are needed; [`Header::encode_v1`] and
//! [`Header::encode_v2`] write it. The specification is HAProxy's `doc/proxy-protocol.txt`; the sections named here are
//! its.
//!
//! ```
//! use portcullis_proxy_protocol::{Addresses, DEFAULT_MAX_LEN, Header, Parse, parse, tlv};
//!
//! let client = "192.0.2.1:56324".parse().unwrap();
//! let site = "198.51.100.1:443".parse().unwrap();
//! let mut bytes = Vec::new();
//! Header::proxy(client, site).with_tlv(tlv::AUTHORITY, *b"example.com").encode_v2(&mut bytes).unwrap();
//! bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
//!
//! let Parse::Complete { header, len } = parse(&bytes, DEFAULT_MAX_LEN).unwrap() else { panic!() };
//! assert_eq!(header.addresses, Addresses::Stream { source: client, destination: site });
//! assert_eq!(header.authority(), Some(&b"example.com"[..]));
//! assert!(bytes[len..].starts_with(b"GET "));
//! ```
//!
//! Who may send such a header is not decided here: believe it only from addresses that are known proxies, and require
//! it from those (section 2: a receiver must not guess).

mod crc;
mod header;
mod v1;
mod v2;

pub use header::{Addresses, Command, EncodeError, Header, Ssl, Tlv, Version, tlv};

/// Enough for every header that is sent in practice, client certificates among them.
pub const DEFAULT_MAX_LEN: usize = 4096;

/// What the bytes hold so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parse {
    /// The beginning of a header.
    Incomplete {
        /// It takes at least so many bytes in all, more than there were.
        need: usize,
    },
    /// A whole header.
    Complete {
        /// What it says.
        header: Header,
        /// How many of the bytes it takes; what follows is the connection's.
        len: usize,
    },
}

/// Why the bytes are no header, and can't become one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// They begin with no signature of either version.
    #[error("no PROXY protocol header: the first bytes are neither `PROXY ` nor the signature of version 2")]
    NoSignature,
    /// A version 1 header breaks the grammar.
    #[error("a PROXY protocol header of version 1 has a bad {field} at byte {at}")]
    V1 {
        /// What is wrong.
        field: &'static str,
        /// Where.
        at: usize,
    },
    /// A version 2 header breaks the rules.
    #[error("a PROXY protocol header of version 2 has a bad {field} at byte {at}")]
    V2 {
        /// What is wrong.
        field: &'static str,
        /// Where.
        at: usize,
    },
    /// It is longer than is accepted.
    #[error("a PROXY protocol header has {len} bytes, more than the {max} that are accepted")]
    TooLong {
        /// How long it is.
        len: usize,
        /// How long it may be.
        max: usize,
    },
    /// Its checksum is not that of its bytes (section 2.2.3).
    #[error("the checksum of a PROXY protocol header is not that of its bytes")]
    Checksum,
}

/// Reads a header from the beginning of `bytes`. One of version 2 that is longer than `max_len` is an error as soon as
/// its length is known; one of version 1 has at most 107 bytes by itself. Every proper beginning of a header is
/// [`Parse::Incomplete`].
///
/// # Errors
/// The bytes can't become a header, whatever follows.
pub fn parse(bytes: &[u8], max_len: usize) -> Result<Parse, ParseError> {
    if bytes.is_empty() {
        Ok(Parse::Incomplete { need: v1::MIN_LEN })
    } else if begins_like(bytes, v2::SIGNATURE) {
        v2::parse(bytes, max_len)
    } else if begins_like(bytes, v1::SIGNATURE) {
        v1::parse(bytes)
    } else {
        Err(ParseError::NoSignature)
    }
}

/// Whether one is the beginning of the other.
fn begins_like(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.iter().zip(signature).all(|(a, b)| a == b)
}
