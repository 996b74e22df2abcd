//! What can go wrong where a caller sees it.

use std::{error::Error as StdError, io};

/// Any error that may cross threads.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Why an endpoint could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// The TLS configuration cannot serve QUIC: TLS 1.3 or a cipher suite for QUIC is missing.
    #[error("the TLS configuration does not fit QUIC")]
    Tls(#[source] BoxError),
    /// The TLS configuration does not offer `h3` by ALPN (RFC 9114 section 3.1).
    #[error("the TLS configuration does not offer the protocol h3")]
    Alpn,
    /// The TLS configuration bounds early data, which QUIC does by flow control alone (RFC 9001 section 4.6.1).
    #[error("the TLS configuration bounds early data: set max_early_data_size to u32::MAX, or to 0 for none")]
    EarlyData,
    /// An option is outside its bounds.
    #[error("option {option} is out of bounds: {reason}")]
    Option {
        /// The field of `QuicOptions`.
        option: &'static str,
        /// What it must be.
        reason: &'static str,
    },
    /// A connection may hold more than it is to.
    #[error("a connection may hold {worst} bytes, more than the {max} that it may: lower {option} first")]
    Memory {
        /// By `QuicOptions::worst_case`.
        worst: u64,
        /// `QuicOptions::max_connection_memory`.
        max: u64,
        /// The field of `QuicOptions` that bounds the largest part.
        option: &'static str,
    },
    /// There are no keys for tokens.
    #[error("no keys for address tokens could be made")]
    Keys(#[source] crate::QuicKeyError),
    /// There is no tokio runtime to run on.
    #[error("an endpoint must be made inside a tokio runtime")]
    NoRuntime,
    /// The socket could not be set up.
    #[error("the UDP socket cannot be used")]
    Socket(#[source] io::Error),
}

/// Why a body could not be read to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// The peer gave the stream up.
    #[error("the peer reset the stream with code {code:#x}")]
    Reset {
        /// The code it gave, RFC 9114 section 8.1.
        code: u64,
    },
    /// The connection is gone.
    #[error("the connection was lost")]
    Disconnected(#[source] BoxError),
    /// The body is longer or shorter than its `Content-Length` (RFC 9114 section 4.1.2).
    #[error("the body does not have the {announced} bytes that were announced")]
    Length {
        /// The announced length.
        announced: u64,
    },
    /// The trailers have more fields, or larger ones, than allowed.
    #[error("the trailers are too large")]
    TrailersTooLarge,
    /// The peer broke HTTP/3.
    #[error("the stream is not valid HTTP/3")]
    Protocol(#[source] BoxError),
}

impl BodyError {
    /// Whether the peer gave up, by a reset or by leaving, as opposed to having sent something wrong.
    pub fn is_disconnect(&self) -> bool {
        matches!(self, Self::Reset { .. } | Self::Disconnected(_))
    }
}
