//! Why handshakes fail, and how many did.

use std::{
    fmt, io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use rustls::{Error as TlsError, InvalidMessage};

/// Why a handshake failed, for metrics: a closed list with stable names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureReason {
    /// The deadline passed.
    Timeout,
    /// The client went away in the middle.
    Closed,
    /// The client does not speak TLS: plain HTTP on a TLS port, most often.
    NotTls,
    /// No certificate for the name that the client asked for.
    UnknownName,
    /// No version, cipher suite, group or application protocol in common.
    Incompatible,
    /// The client sent a fatal alert: most often it does not trust the certificate.
    Alert,
    /// The client's certificate was missing or not accepted.
    ClientCertificate,
    /// The client broke the protocol.
    Protocol,
    /// The connection failed below TLS.
    Io,
    /// It is our fault: no randomness, no clock, a configuration that can't work.
    Internal,
}

impl FailureReason {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Timeout,
        Self::Closed,
        Self::NotTls,
        Self::UnknownName,
        Self::Incompatible,
        Self::Alert,
        Self::ClientCertificate,
        Self::Protocol,
        Self::Io,
        Self::Internal,
    ];

    /// The name for a metric's label: `timeout`, `closed`, `not_tls` and so on.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::NotTls => "not_tls",
            Self::UnknownName => "unknown_name",
            Self::Incompatible => "incompatible",
            Self::Alert => "alert",
            Self::ClientCertificate => "client_certificate",
            Self::Protocol => "protocol",
            Self::Io => "io",
            Self::Internal => "internal",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Timeout => "it was not complete in time",
            Self::Closed => "the client closed the connection",
            Self::NotTls => "the client does not speak TLS",
            Self::UnknownName => "no certificate for the requested name",
            Self::Incompatible => "no protocol version, suite, group or application protocol in common",
            Self::Alert => "the client refused",
            Self::ClientCertificate => "the client's certificate is missing or not accepted",
            Self::Protocol => "the client broke the protocol",
            Self::Io => "the connection failed",
            Self::Internal => "it could not be served",
        }
    }

    /// Sorts what tokio-rustls reports.
    pub(crate) fn of(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
            Some(tls) => Self::of_tls(tls),
            None => match error.kind() {
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe => Self::Closed,
                io::ErrorKind::TimedOut => Self::Timeout,
                _ => Self::Io,
            },
        }
    }

    fn of_tls(error: &TlsError) -> Self {
        match error {
            // What a first byte other than 0x16 and a plain-text request turn into.
            TlsError::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) => Self::NotTls,
            TlsError::PeerIncompatible(_) | TlsError::NoApplicationProtocol => Self::Incompatible,
            TlsError::AlertReceived(_) => Self::Alert,
            TlsError::NoCertificatesPresented | TlsError::InvalidCertificate(_) => Self::ClientCertificate,
            // rustls has no variant of its own for a resolver that found nothing.
            TlsError::General(text) if text.starts_with("no server certificate") => Self::UnknownName,
            TlsError::General(_)
            | TlsError::FailedToGetCurrentTime
            | TlsError::FailedToGetRandomBytes
            | TlsError::BadMaxFragmentSize
            | TlsError::EncryptError
            | TlsError::InconsistentKeys(_)
            | TlsError::Other(_) => Self::Internal,
            _ => Self::Protocol,
        }
    }
}

impl fmt::Display for FailureReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// A handshake that failed.
#[derive(Debug, thiserror::Error)]
#[error("the TLS handshake failed: {reason}")]
pub struct HandshakeError {
    reason: FailureReason,
    #[source]
    source: Option<io::Error>,
}

impl HandshakeError {
    pub(crate) fn timeout() -> Self {
        Self { reason: FailureReason::Timeout, source: None }
    }

    /// Why.
    pub fn reason(&self) -> FailureReason {
        self.reason
    }

    /// Whether the deadline passed.
    pub fn is_timeout(&self) -> bool {
        self.reason == FailureReason::Timeout
    }

    /// Whether the client just went away: not worth a line in a log.
    pub fn is_closed(&self) -> bool {
        self.reason == FailureReason::Closed
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        Self { reason: FailureReason::of(&error), source: Some(error) }
    }
}

/// Counters of an acceptor and its clones, from the start of the process.
#[derive(Debug, Default)]
pub struct HandshakeStats {
    completed: AtomicU64,
    resumed: AtomicU64,
    nanos: AtomicU64,
    failed: [AtomicU64; FailureReason::ALL.len()],
}

impl HandshakeStats {
    /// Handshakes that were completed, resumed ones among them.
    pub fn completed(&self) -> u64 {
        self.completed.load(Ordering::Relaxed)
    }

    /// Completed handshakes that resumed a session.
    pub fn resumed(&self) -> u64 {
        self.resumed.load(Ordering::Relaxed)
    }

    /// Handshakes that failed for this reason.
    pub fn failed(&self, reason: FailureReason) -> u64 {
        self.failed[reason as usize].load(Ordering::Relaxed)
    }

    /// The time that completed handshakes took, added up, waiting for the client included.
    pub fn total_time(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }

    pub(crate) fn complete(&self, resumed: bool, took: Duration) {
        self.completed.fetch_add(1, Ordering::Relaxed);
        self.resumed.fetch_add(u64::from(resumed), Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(0), Ordering::Relaxed);
    }

    pub(crate) fn fail(&self, reason: FailureReason) {
        self.failed[reason as usize].fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_place_and_name() {
        let mut names = std::collections::HashSet::new();
        for (index, reason) in FailureReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            assert!(names.insert(reason.as_str()));
        }
    }

    #[test]
    fn io_errors_are_sorted() {
        for (kind, want) in [
            (io::ErrorKind::UnexpectedEof, FailureReason::Closed),
            (io::ErrorKind::ConnectionReset, FailureReason::Closed),
            (io::ErrorKind::TimedOut, FailureReason::Timeout),
            (io::ErrorKind::PermissionDenied, FailureReason::Io),
        ] {
            assert_eq!(HandshakeError::from(io::Error::from(kind)).reason(), want);
        }
    }
}
