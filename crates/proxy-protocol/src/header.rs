//! What a header says.

use std::net::SocketAddr;

/// The versions of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// A line of text, section 2.1.
    V1,
    /// Binary, section 2.2.
    V2,
}

/// On whose behalf the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// The proxy's own, for a health check say: the connection's real addresses count.
    Local,
    /// A client's.
    Proxy,
}

/// The addresses of the client's connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Addresses {
    /// Not said, or of a kind that is not known here: the connection's real addresses count.
    Unspec,
    /// TCP.
    Stream {
        /// The client's.
        source: SocketAddr,
        /// What it connected to.
        destination: SocketAddr,
    },
    /// UDP.
    Datagram {
        /// The client's.
        source: SocketAddr,
        /// What it sent to.
        destination: SocketAddr,
    },
    /// A unix socket, stream or datagram; the names without the zeros that fill their field.
    Unix {
        /// The client's.
        source: Box<[u8]>,
        /// What it connected to.
        destination: Box<[u8]>,
    },
}

/// The types of fields that the specification names (section 2.2.1 and following).
pub mod tlv {
    /// The protocol agreed by ALPN.
    pub const ALPN: u8 = 0x01;
    /// The host name that the client asked for, as SNI has it.
    pub const AUTHORITY: u8 = 0x02;
    /// A checksum over the whole header.
    pub const CRC32C: u8 = 0x03;
    /// Nothing: filling.
    pub const NOOP: u8 = 0x04;
    /// An id of the connection, at most 128 bytes.
    pub const UNIQUE_ID: u8 = 0x05;
    /// What TLS agreed, with fields of its own.
    pub const SSL: u8 = 0x20;
    /// Within [`SSL`]: the version.
    pub const SSL_VERSION: u8 = 0x21;
    /// Within [`SSL`]: the common name of the client's certificate.
    pub const SSL_CN: u8 = 0x22;
    /// Within [`SSL`]: the cipher.
    pub const SSL_CIPHER: u8 = 0x23;
    /// Within [`SSL`]: the algorithm of the certificate's signature.
    pub const SSL_SIG_ALG: u8 = 0x24;
    /// Within [`SSL`]: that of its key.
    pub const SSL_KEY_ALG: u8 = 0x25;
    /// The name of a network namespace.
    pub const NETNS: u8 = 0x30;
}

/// A field of a version 2 header.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tlv {
    /// Its type; [`tlv`] has those that are known.
    pub kind: u8,
    /// Its value.
    pub value: Box<[u8]>,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Header {
    /// The version it came in.
    pub version: Version,
    /// On whose behalf the connection is.
    pub command: Command,
    /// The client's addresses.
    pub addresses: Addresses,
    /// The fields of version 2 in their order, without filling and checksum.
    pub tlvs: Vec<Tlv>,
}

/// What TLS between the client and the proxy agreed ([`tlv::SSL`]).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ssl<'a> {
    /// Bit 0: the client spoke TLS; bit 1: it showed a certificate on this connection; bit 2: in this session.
    pub client: u8,
    /// Whether it showed a certificate that was verified.
    pub verified: bool,
    /// The version, as `TLSv1.3`.
    pub version: Option<&'a [u8]>,
    /// The common name of its certificate.
    pub common_name: Option<&'a [u8]>,
    /// The cipher.
    pub cipher: Option<&'a [u8]>,
}

impl Header {
    /// A TCP connection of a client.
    #[must_use]
    pub fn proxy(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::new(Version::V2, Command::Proxy, Addresses::Stream { source, destination })
    }

    /// A connection of the proxy's own.
    #[must_use]
    pub fn local() -> Self {
        Self::new(Version::V2, Command::Local, Addresses::Unspec)
    }

    /// A header without fields.
    #[must_use]
    pub fn new(version: Version, command: Command, addresses: Addresses) -> Self {
        Self { version, command, addresses, tlvs: Vec::new() }
    }

    /// Adds a field. Version 1 leaves fields out; version 2 leaves out filling and checksums, which it makes by itself
    /// ([`Header::encode_v2_with_checksum`]).
    #[must_use]
    pub fn with_tlv(mut self, kind: u8, value: impl Into<Box<[u8]>>) -> Self {
        self.tlvs.push(Tlv { kind, value: value.into() });
        self
    }

    /// The value of the first field of this type.
    #[must_use]
    pub fn tlv(&self, kind: u8) -> Option<&[u8]> {
        self.tlvs.iter().find(|tlv| tlv.kind == kind).map(|tlv| &*tlv.value)
    }

    /// The protocol agreed by ALPN.
    #[must_use]
    pub fn alpn(&self) -> Option<&[u8]> {
        self.tlv(tlv::ALPN)
    }

    /// The host name that the client asked for.
    #[must_use]
    pub fn authority(&self) -> Option<&[u8]> {
        self.tlv(tlv::AUTHORITY)
    }

    /// The id of the connection.
    #[must_use]
    pub fn unique_id(&self) -> Option<&[u8]> {
        self.tlv(tlv::UNIQUE_ID)
    }

    /// The name of a network namespace.
    #[must_use]
    pub fn netns(&self) -> Option<&[u8]> {
        self.tlv(tlv::NETNS)
    }

    /// What TLS agreed; `None` also if the field is malformed.
    #[must_use]
    pub fn ssl(&self) -> Option<Ssl<'_>> {
        // pp2_tlv_ssl: client, one byte; verify, four, zero if the certificate was shown and verified; then fields
        let (head, mut rest) = self.tlv(tlv::SSL)?.split_at_checked(5)?;
        let client = head[0];
        let mut ssl = Ssl {
            client,
            verified: client & 0x06 != 0 && head[1..] == [0; 4],
            version: None,
            common_name: None,
            cipher: None,
        };
        while let Some((kind, value, after)) = next_tlv(rest) {
            let place = match kind {
                tlv::SSL_VERSION => &mut ssl.version,
                tlv::SSL_CN => &mut ssl.common_name,
                tlv::SSL_CIPHER => &mut ssl.cipher,
                _ => &mut None,
            };
            place.get_or_insert(value);
            rest = after;
        }
        rest.is_empty().then_some(ssl)
    }
}

/// Type, value and what is behind them; `None` if it is not whole.
pub(crate) fn next_tlv(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (head, rest) = bytes.split_at_checked(3)?;
    let len = usize::from(u16::from_be_bytes([head[1], head[2]]));
    let (value, rest) = rest.split_at_checked(len)?;
    Some((head[0], value, rest))
}

/// Why a header can't be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// Its fields are longer than version 2 can say: 65,535 bytes each and in all.
    #[error("a PROXY protocol header holds at most 65535 bytes of addresses and fields")]
    TooLong,
    /// An id of the connection has more than 128 bytes.
    #[error("the unique id of a connection has at most 128 bytes")]
    UniqueId,
    /// A name of a unix socket has more than 108 bytes.
    #[error("the name of a unix socket has more than 108 bytes")]
    UnixName,
}
