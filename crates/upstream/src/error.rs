//! What can go wrong between a request and its response.

use std::{io, sync::Arc};

use crate::BoxError;

/// Why a request got no response, or a response body ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The cluster has no endpoints.
    #[error("the cluster has no endpoint")]
    NoEndpoint,
    /// A limit of the cluster is reached.
    #[error("the cluster has reached its limit of {limit}")]
    Overloaded {
        /// Which one.
        limit: &'static str,
    },
    /// No connection was free in time, see [`crate::ClusterOptions::queue_timeout`].
    #[error("no connection to endpoint {endpoint} was free in time")]
    QueueTimeout {
        /// The endpoint.
        endpoint: Arc<str>,
    },
    /// The endpoint's name has no address.
    #[error("could not resolve endpoint {endpoint}")]
    Resolve {
        /// The endpoint.
        endpoint: Arc<str>,
        /// What the system said.
        source: io::Error,
    },
    /// No connection could be made.
    #[error("could not connect to endpoint {endpoint}")]
    Connect {
        /// The endpoint tried last.
        endpoint: Arc<str>,
        /// What the system said.
        source: io::Error,
    },
    /// No connection was made in time.
    #[error("connecting to endpoint {endpoint} took too long")]
    ConnectTimeout {
        /// The endpoint tried last.
        endpoint: Arc<str>,
    },
    /// The TLS handshake failed.
    #[error("the TLS handshake with endpoint {endpoint} failed")]
    Tls {
        /// The endpoint.
        endpoint: Arc<str>,
        /// Why.
        source: BoxError,
    },
    /// The TLS handshake was not over in time.
    #[error("the TLS handshake with endpoint {endpoint} took too long")]
    TlsTimeout {
        /// The endpoint.
        endpoint: Arc<str>,
    },
    /// The request was not over in time, see [`crate::ClusterOptions::total_timeout`].
    #[error("the request was not over in time")]
    TotalTimeout,
    /// The endpoint reset the request's stream (RFC 9113 section 6.4), or closed the HTTP/2 connection under it.
    #[error("endpoint {endpoint} reset the request")]
    Reset {
        /// The endpoint.
        endpoint: Arc<str>,
        /// How.
        source: h2::Error,
    },
    /// The endpoint speaks HTTP/2 without extended CONNECT (RFC 8441), which an upgrade needs.
    #[error("endpoint {endpoint} does not support upgrades over HTTP/2")]
    NoExtendedConnect {
        /// The endpoint.
        endpoint: Arc<str>,
    },
    /// The response head did not come in time.
    #[error("endpoint {endpoint} took too long to answer")]
    ResponseTimeout {
        /// The endpoint.
        endpoint: Arc<str>,
    },
    /// The response body paused for too long.
    #[error("endpoint {endpoint} paused for too long inside a response body")]
    ReadTimeout {
        /// The endpoint.
        endpoint: Arc<str>,
    },
    /// The endpoint took no more of the request for too long.
    #[error("endpoint {endpoint} took too long to read the request")]
    WriteTimeout {
        /// The endpoint.
        endpoint: Arc<str>,
    },
    /// The connection was closed before the response was complete.
    #[error("endpoint {endpoint} closed the connection before its response was complete")]
    Closed {
        /// The endpoint.
        endpoint: Arc<str>,
        /// What the system said, if it was not a plain end of stream.
        source: Option<io::Error>,
    },
    /// The endpoint did not speak HTTP as it should.
    #[error("endpoint {endpoint} broke the protocol")]
    Protocol {
        /// The endpoint.
        endpoint: Arc<str>,
        /// How.
        source: ProtocolError,
    },
    /// The request's body failed or did not have the length it announced: the fault is on the downstream side.
    #[error("the request body failed")]
    RequestBody {
        /// What the body said.
        source: BoxError,
    },
    /// The request's body paused for too long: the fault is on the downstream side.
    #[error("the request body paused for too long")]
    RequestTimeout,
    /// The request can not be written.
    #[error("the request can not be sent: {reason}")]
    InvalidRequest {
        /// Why.
        reason: &'static str,
    },
}

impl Error {
    /// Whether time ran out.
    pub fn is_timeout(&self) -> bool {
        matches!(
            self,
            Self::ConnectTimeout { .. }
                | Self::TlsTimeout { .. }
                | Self::QueueTimeout { .. }
                | Self::TotalTimeout
                | Self::ResponseTimeout { .. }
                | Self::ReadTimeout { .. }
                | Self::WriteTimeout { .. }
                | Self::RequestTimeout
        )
    }

    /// Whether no connection could be made, so that nothing was sent.
    pub fn is_connect(&self) -> bool {
        matches!(
            self,
            Self::Resolve { .. }
                | Self::Connect { .. }
                | Self::ConnectTimeout { .. }
                | Self::Tls { .. }
                | Self::TlsTimeout { .. }
        )
    }

    /// Whether a limit of the cluster ended it, so that nothing was sent.
    pub fn is_overload(&self) -> bool {
        matches!(self, Self::Overloaded { .. } | Self::QueueTimeout { .. })
    }

    /// Whether the request, not the endpoint, is at fault.
    pub fn is_request(&self) -> bool {
        matches!(self, Self::RequestBody { .. } | Self::RequestTimeout | Self::InvalidRequest { .. })
    }
}

/// How a response broke the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The head could not be parsed.
    #[error("malformed response head: {0}")]
    Head(httparse::Error),
    /// The head or the trailer section is longer than allowed, or has more than 100 fields.
    #[error("the response head or trailer section is too large")]
    HeadTooLarge,
    /// A Content-Length that is no number, or several that differ (RFC 9112 section 6.3).
    #[error("invalid Content-Length")]
    ContentLength,
    /// A Transfer-Encoding other than exactly `chunked`, or one beside a Content-Length or on HTTP/1.0
    /// (RFC 9112 sections 6.1 and 6.3).
    #[error("invalid Transfer-Encoding")]
    TransferEncoding,
    /// A chunk that breaks RFC 9112 section 7.1.
    #[error("malformed chunk")]
    Chunk,
    /// A malformed trailer section.
    #[error("malformed trailer section")]
    Trailer,
    /// TLS agreed upon another protocol than the cluster speaks.
    #[error("the endpoint agreed upon another protocol than HTTP/2")]
    Alpn,
    /// 101 Switching Protocols to a request that did not ask for it (RFC 9110 section 15.2.2).
    #[error("101 Switching Protocols without a request for it")]
    UnexpectedUpgrade,
    /// More interim responses (1xx) than 16.
    #[error("too many interim responses")]
    TooManyInterim,
}
