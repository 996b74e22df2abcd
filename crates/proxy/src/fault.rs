//! Who is at fault when a request is not answered by the upstream, and the one table from that to a status.

use std::{error::Error, fmt};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, Version, header};
use http_body_util::Full;

mod answer;

pub use answer::{AnswerOptions, Asker, Format, ProxyName};

type BoxError = Box<dyn Error + Send + Sync>;

/// Why a request got no answer from the upstream. Its `Display` names the fault for the log, its `source` the cause;
/// neither is ever sent to the client.
#[derive(Debug, thiserror::Error)]
#[error("{kind}")]
pub struct Fault {
    kind: Kind,
    #[source]
    source: Option<BoxError>,
}

/// Who is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The client sent what can't be forwarded.
    Client(ClientFault),
    /// The upstream could not be reached or answered badly.
    Upstream(UpstreamFault),
    /// Neither: this edge could not or would not.
    Internal(InternalFault),
}

/// What the client did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClientFault {
    /// A request that is malformed or could be read in two ways: 400, and its connection is closed.
    Malformed,
    /// Nothing is routed there: 404.
    NotFound,
    /// A method that is understood and not allowed (TRACE): 405.
    MethodNotAllowed,
    /// A method that is not implemented (CONNECT where nothing allows any): 501.
    MethodNotImplemented,
    /// A CONNECT by whom or to where it is not allowed: 403.
    ConnectNotAllowed,
    /// The request did not arrive in time: 408.
    Timeout,
    /// The body is too large: 413.
    BodyTooLarge,
    /// The request target is too long: 414.
    TargetTooLong,
    /// An expectation other than `100-continue`: 417.
    ExpectationFailed,
    /// The request is not for this connection: 421.
    Misdirected,
    /// The request came in early data and may be a replay: 425.
    TooEarly,
    /// Too many requests: 429.
    TooManyRequests,
    /// The header section is too large: 431.
    FieldsTooLarge,
    /// No failure, but an end: `Max-Forwards: 0` on OPTIONS makes this edge answer by itself, with 200.
    HopsSpent,
    /// The client closed before it was answered. Nothing can be sent; logged as 499.
    Gone,
}

/// What the upstream did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UpstreamFault {
    /// No connection could be made: 502.
    ConnectFailed,
    /// No connection was made in time: 504.
    ConnectTimeout,
    /// The answer did not begin in time: 504.
    ResponseTimeout,
    /// The connection ended before the answer was complete: 502.
    Closed,
    /// The answer was not valid HTTP, or not an answer to what was asked: 502.
    Protocol,
    /// No endpoint is there to be tried: 503.
    NoEndpoint,
    /// All endpoints are at their limits: 503.
    Overloaded,
    /// The endpoint's name could not be resolved: 502.
    Dns,
    /// The TLS handshake with the upstream failed: 502.
    TlsFailed,
    /// The upstream's certificate is not valid, or not for its name: 502.
    TlsCertificate,
    /// The TLS handshake with the upstream was not complete in time: 504.
    TlsTimeout,
    /// The answer paused for too long between two bytes: 504.
    ReadTimeout,
    /// The whole exchange took longer than it may: 504.
    TotalTimeout,
    /// No connection or place became free while the request was queued: 503.
    QueueTimeout,
    /// The upstream failed too often of late and is not asked for now: 503.
    CircuitOpen,
}

/// What this edge did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InternalFault {
    /// Something failed that should not: 500.
    Failed,
    /// The bound on open tunnels is reached: 503.
    TunnelsFull,
}

impl Fault {
    /// A fault of any kind.
    pub fn new(kind: Kind) -> Self {
        Self { kind, source: None }
    }

    /// The client's fault.
    pub fn client(fault: ClientFault) -> Self {
        Self::new(Kind::Client(fault))
    }

    /// The upstream's fault.
    pub fn upstream(fault: UpstreamFault) -> Self {
        Self::new(Kind::Upstream(fault))
    }

    /// Our own fault.
    pub fn internal(fault: InternalFault) -> Self {
        Self::new(Kind::Internal(fault))
    }

    /// Adds the cause, which `source()` then gives.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Who is at fault.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether something took too long, at either end.
    pub fn is_timeout(&self) -> bool {
        match self.kind {
            Kind::Client(fault) => fault == ClientFault::Timeout,
            Kind::Upstream(fault) => fault.is_timeout() || fault == UpstreamFault::QueueTimeout,
            Kind::Internal(_) => false,
        }
    }

    /// Whether an HTTP/1 connection must be closed after the answer: what follows on it can't be told apart from the
    /// refused message (RFC 9112 sections 6.1, 6.3 and 11.2).
    pub fn closes_connection(&self) -> bool {
        matches!(
            self.kind,
            Kind::Client(
                ClientFault::Malformed
                    | ClientFault::Timeout
                    | ClientFault::BodyTooLarge
                    | ClientFault::TargetTooLong
                    | ClientFault::FieldsTooLarge
                    | ClientFault::MethodNotImplemented
                    | ClientFault::ConnectNotAllowed
                    | ClientFault::Gone
            )
        )
    }

    /// The status that the client gets (RFC 9110 section 15, RFC 6585, RFC 8470). The only table of its kind.
    pub fn status(&self) -> StatusCode {
        match self.kind {
            Kind::Client(fault) => match fault {
                // a client that is gone gets nothing; 400 stands for it wherever a status is asked for
                ClientFault::Malformed | ClientFault::Gone => StatusCode::BAD_REQUEST,
                ClientFault::NotFound => StatusCode::NOT_FOUND,
                ClientFault::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
                ClientFault::MethodNotImplemented => StatusCode::NOT_IMPLEMENTED,
                ClientFault::ConnectNotAllowed => StatusCode::FORBIDDEN,
                ClientFault::Timeout => StatusCode::REQUEST_TIMEOUT,
                ClientFault::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
                ClientFault::TargetTooLong => StatusCode::URI_TOO_LONG,
                ClientFault::ExpectationFailed => StatusCode::EXPECTATION_FAILED,
                ClientFault::Misdirected => StatusCode::MISDIRECTED_REQUEST,
                ClientFault::TooEarly => StatusCode::TOO_EARLY,
                ClientFault::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
                ClientFault::FieldsTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                ClientFault::HopsSpent => StatusCode::OK,
            },
            Kind::Upstream(fault) => match fault {
                UpstreamFault::ConnectFailed
                | UpstreamFault::Dns
                | UpstreamFault::TlsFailed
                | UpstreamFault::TlsCertificate
                | UpstreamFault::Closed
                | UpstreamFault::Protocol => StatusCode::BAD_GATEWAY,
                fault if fault.is_timeout() => StatusCode::GATEWAY_TIMEOUT,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            },
            Kind::Internal(InternalFault::Failed) => StatusCode::INTERNAL_SERVER_ERROR,
            Kind::Internal(InternalFault::TunnelsFull) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The number for a log line: [`Fault::status`], or 499 for a client that went away.
    pub fn log_status(&self) -> u16 {
        match self.kind {
            Kind::Client(ClientFault::Gone) => 499,
            _ => self.status().as_u16(),
        }
    }

    /// A short stable word for a metric's label: `connect_failed`, `malformed`.
    pub fn reason(&self) -> &'static str {
        match self.kind {
            Kind::Client(fault) => fault.reason(),
            Kind::Upstream(fault) => fault.reason(),
            Kind::Internal(InternalFault::Failed) => "internal",
            Kind::Internal(InternalFault::TunnelsFull) => "tunnels_full",
        }
    }

    /// The answer for a client that speaks `version`: the status and its name as text, and nothing of the cause.
    pub fn respond(&self, version: Version) -> Response<Full<Bytes>> {
        let status = self.status();
        let body = match self.kind {
            Kind::Client(ClientFault::HopsSpent) => Bytes::new(),
            _ => Bytes::from(format!("{status}\n")),
        };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        // RFC 9110 section 15.5.6: a 405 MUST name the methods that are allowed; an OPTIONS answer does as well
        if matches!(self.kind, Kind::Client(ClientFault::MethodNotAllowed | ClientFault::HopsSpent)) {
            let allow = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
            headers.insert(header::ALLOW, allow);
        }
        // RFC 9113 section 8.2.2: there is no Connection field after HTTP/1
        if version <= Version::HTTP_11 && self.closes_connection() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl ClientFault {
    fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::MethodNotImplemented => "method_not_implemented",
            Self::ConnectNotAllowed => "connect_not_allowed",
            Self::Timeout => "request_timeout",
            Self::BodyTooLarge => "body_too_large",
            Self::TargetTooLong => "target_too_long",
            Self::ExpectationFailed => "expectation_failed",
            Self::Misdirected => "misdirected",
            Self::TooEarly => "too_early",
            Self::TooManyRequests => "too_many_requests",
            Self::FieldsTooLarge => "fields_too_large",
            Self::HopsSpent => "hops_spent",
            Self::Gone => "client_gone",
        }
    }
}

impl UpstreamFault {
    /// Whether the upstream itself took too long.
    fn is_timeout(self) -> bool {
        matches!(
            self,
            Self::ConnectTimeout
                | Self::TlsTimeout
                | Self::ResponseTimeout
                | Self::ReadTimeout
                | Self::TotalTimeout
        )
    }

    fn reason(self) -> &'static str {
        match self {
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::ResponseTimeout => "response_timeout",
            Self::Closed => "upstream_closed",
            Self::Protocol => "upstream_protocol",
            Self::NoEndpoint => "no_endpoint",
            Self::Overloaded => "overloaded",
            Self::Dns => "dns",
            Self::TlsFailed => "upstream_tls_failed",
            Self::TlsCertificate => "upstream_tls_certificate",
            Self::TlsTimeout => "upstream_tls_timeout",
            Self::ReadTimeout => "read_timeout",
            Self::TotalTimeout => "total_timeout",
            Self::QueueTimeout => "queue_timeout",
            Self::CircuitOpen => "circuit_open",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client(fault) => match fault {
                ClientFault::Malformed => "the request is malformed",
                ClientFault::NotFound => "no route matches the request",
                ClientFault::MethodNotAllowed => "the method is not allowed",
                ClientFault::MethodNotImplemented => "the method is not implemented",
                ClientFault::ConnectNotAllowed => "the tunnel is not allowed",
                ClientFault::Timeout => "the request did not arrive in time",
                ClientFault::BodyTooLarge => "the request body is too large",
                ClientFault::TargetTooLong => "the request target is too long",
                ClientFault::ExpectationFailed => "the expectation can't be met",
                ClientFault::Misdirected => "the request came over the wrong connection",
                ClientFault::TooEarly => "the request came in early data",
                ClientFault::TooManyRequests => "the client sent too many requests",
                ClientFault::FieldsTooLarge => "the header section is too large",
                ClientFault::HopsSpent => "the request may be forwarded no further",
                ClientFault::Gone => "the client closed before it was answered",
            },
            Self::Upstream(fault) => match fault {
                UpstreamFault::ConnectFailed => "no connection to the upstream could be made",
                UpstreamFault::ConnectTimeout => "no connection to the upstream was made in time",
                UpstreamFault::ResponseTimeout => "the upstream did not answer in time",
                UpstreamFault::Closed => "the upstream closed before its answer was complete",
                UpstreamFault::Protocol => "the upstream's answer breaks the protocol",
                UpstreamFault::NoEndpoint => "no upstream endpoint is available",
                UpstreamFault::Overloaded => "the upstream is at its limits",
                UpstreamFault::Dns => "the upstream's name could not be resolved",
                UpstreamFault::TlsFailed => "the upstream's tls handshake failed",
                UpstreamFault::TlsCertificate => "the upstream's certificate is not valid",
                UpstreamFault::TlsTimeout => "the upstream's tls handshake took too long",
                UpstreamFault::ReadTimeout => "the upstream paused for too long inside its answer",
                UpstreamFault::TotalTimeout => "the exchange with the upstream took too long",
                UpstreamFault::QueueTimeout => "no place at the upstream became free in time",
                UpstreamFault::CircuitOpen => "the upstream is not asked for now",
            },
            Self::Internal(InternalFault::Failed) => "the edge failed",
            Self::Internal(InternalFault::TunnelsFull) => "too many tunnels are open",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Body;

    #[test]
    fn the_table() {
        use ClientFault as C;
        use UpstreamFault as U;
        for (kind, status) in [
            (Kind::Client(C::Malformed), 400),
            (Kind::Client(C::NotFound), 404),
            (Kind::Client(C::ConnectNotAllowed), 403),
            (Kind::Client(C::MethodNotAllowed), 405),
            (Kind::Client(C::Timeout), 408),
            (Kind::Client(C::BodyTooLarge), 413),
            (Kind::Client(C::TargetTooLong), 414),
            (Kind::Client(C::ExpectationFailed), 417),
            (Kind::Client(C::Misdirected), 421),
            (Kind::Client(C::TooEarly), 425),
            (Kind::Client(C::TooManyRequests), 429),
            (Kind::Client(C::FieldsTooLarge), 431),
            (Kind::Client(C::MethodNotImplemented), 501),
            (Kind::Upstream(U::ConnectFailed), 502),
            (Kind::Upstream(U::Closed), 502),
            (Kind::Upstream(U::Protocol), 502),
            (Kind::Upstream(U::NoEndpoint), 503),
            (Kind::Upstream(U::Overloaded), 503),
            (Kind::Upstream(U::ConnectTimeout), 504),
            (Kind::Upstream(U::Dns), 502),
            (Kind::Upstream(U::TlsFailed), 502),
            (Kind::Upstream(U::TlsCertificate), 502),
            (Kind::Upstream(U::TlsTimeout), 504),
            (Kind::Upstream(U::ReadTimeout), 504),
            (Kind::Upstream(U::TotalTimeout), 504),
            (Kind::Upstream(U::QueueTimeout), 503),
            (Kind::Upstream(U::CircuitOpen), 503),
            (Kind::Upstream(U::ResponseTimeout), 504),
            (Kind::Internal(InternalFault::Failed), 500),
            (Kind::Internal(InternalFault::TunnelsFull), 503),
        ] {
            assert_eq!(Fault::new(kind).status().as_u16(), status, "{kind:?}");
            assert_eq!(Fault::new(kind).log_status(), status, "{kind:?}");
        }
    }

    #[test]
    fn a_client_that_is_gone_is_499_in_the_log_only() {
        let gone = Fault::client(ClientFault::Gone);
        assert_eq!(gone.log_status(), 499);
        assert_ne!(gone.status().as_u16(), 499);
    }

    #[test]
    fn the_cause_is_in_the_source_and_not_in_the_answer() {
        let fault = Fault::upstream(UpstreamFault::ConnectFailed).with_source("10.1.2.3:80 refused");
        assert_eq!(fault.source().unwrap().to_string(), "10.1.2.3:80 refused");
        let response = fault.respond(Version::HTTP_11);
        assert_eq!(response.body().size_hint().exact(), Some("502 Bad Gateway\n".len() as u64));
        assert!(!format!("{response:?}").contains("10.1.2.3"));
    }

    #[test]
    fn a_malformed_request_closes_http1_and_no_connection_field_leaves_on_http2() {
        let fault = Fault::client(ClientFault::Malformed);
        assert_eq!(fault.respond(Version::HTTP_11).headers()["connection"], "close");
        assert_eq!(fault.respond(Version::HTTP_10).headers()["connection"], "close");
        assert!(!fault.respond(Version::HTTP_2).headers().contains_key("connection"));
        let bad_gateway = Fault::upstream(UpstreamFault::Closed);
        assert!(!bad_gateway.respond(Version::HTTP_11).headers().contains_key("connection"));
    }

    #[test]
    fn rfc9110_15_5_6_405_names_methods() {
        let response = Fault::client(ClientFault::MethodNotAllowed).respond(Version::HTTP_11);
        assert!(response.headers()["allow"].to_str().unwrap().contains("GET"));
    }

    #[test]
    fn timeouts() {
        assert!(Fault::upstream(UpstreamFault::ConnectTimeout).is_timeout());
        assert!(!Fault::upstream(UpstreamFault::Closed).is_timeout());
    }
}
