//! Why handshakes fail, and how many did.

use std::{
    fmt, io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use rustls::{ContentType, Error as TlsError, InvalidMessage};

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
    /// No failure: the client came only to see the answer to an ACME challenge (RFC 8737), and has. Counted apart.
    AcmeChallenge,
}

impl FailureReason {
    /// All that are failures.
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
            Self::AcmeChallenge => "acme_challenge",
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
            Self::AcmeChallenge => "the client came to see an ACME challenge's answer",
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
            TlsError::AlertReceived(_)
            | TlsError::InappropriateMessage { got_type: ContentType::Alert, .. } => Self::Alert,
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

    pub(crate) fn challenge() -> Self {
        Self { reason: FailureReason::AcmeChallenge, source: None }
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

    /// Whether nothing failed: the connection was for an ACME challenge's answer, which was given.
    pub fn is_challenge(&self) -> bool {
        self.reason == FailureReason::AcmeChallenge
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        Self { reason: FailureReason::of(&error), source: Some(error) }
    }
}

/// Upper bounds of the handshake times that are counted apart, in seconds: from a resumption on the same machine to the default deadline.
const BOUNDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Counters of an acceptor and its clones, from the start of the process.
#[derive(Debug, Default)]
pub struct HandshakeStats {
    completed: AtomicU64,
    resumed: AtomicU64,
    early: AtomicU64,
    challenges: AtomicU64,
    nanos: AtomicU64,
    buckets: [AtomicU64; BOUNDS.len()],
    failed: [AtomicU64; FailureReason::ALL.len()],
}

impl HandshakeStats {
    /// Handshakes that were completed, resumed ones among them, and those with early data that is served before.
    pub fn completed(&self) -> u64 {
        self.completed.load(Ordering::Relaxed)
    }

    /// Completed handshakes that resumed a session.
    pub fn resumed(&self) -> u64 {
        self.resumed.load(Ordering::Relaxed)
    }

    /// Handshakes in which early data was accepted.
    pub fn early(&self) -> u64 {
        self.early.load(Ordering::Relaxed)
    }

    /// Handshakes that showed the answer to an ACME challenge.
    pub fn challenges(&self) -> u64 {
        self.challenges.load(Ordering::Relaxed)
    }

    /// Handshakes that failed for this reason.
    pub fn failed(&self, reason: FailureReason) -> u64 {
        self.failed.get(reason as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// The time that completed handshakes took, added up, waiting for the client included.
    pub fn total_time(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }

    /// How many completed handshakes took no longer than so many seconds, for a histogram: bounds and counts rise.
    pub fn times(&self) -> impl Iterator<Item = (f64, u64)> {
        let mut sum = 0;
        BOUNDS.into_iter().zip(&self.buckets).map(move |(bound, count)| {
            sum += count.load(Ordering::Relaxed);
            (bound, sum)
        })
    }

    pub(crate) fn complete(&self, resumed: bool, early: bool, took: Duration) {
        self.completed.fetch_add(1, Ordering::Relaxed);
        self.resumed.fetch_add(u64::from(resumed), Ordering::Relaxed);
        self.early.fetch_add(u64::from(early), Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(0), Ordering::Relaxed);
        let place = BOUNDS.iter().position(|bound| took.as_secs_f64() <= *bound);
        if let Some(bucket) = place.and_then(|place| self.buckets.get(place)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn fail(&self, reason: FailureReason) {
        match self.failed.get(reason as usize) {
            Some(count) => count.fetch_add(1, Ordering::Relaxed),
            None => self.challenges.fetch_add(1, Ordering::Relaxed),
        };
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
    fn times_add_up() {
        let stats = HandshakeStats::default();
        for millis in [1, 3, 3, 700, 20_000] {
            stats.complete(millis == 1, false, Duration::from_millis(millis));
        }
        stats.fail(FailureReason::AcmeChallenge);
        let at = |bound: f64| stats.times().find(|(found, _)| *found == bound).unwrap().1;
        assert_eq!((at(0.001), at(0.0025), at(0.005), at(0.5), at(1.0), at(10.0)), (1, 1, 3, 3, 4, 4));
        assert_eq!((stats.completed(), stats.resumed(), stats.challenges()), (5, 1, 1));
        assert_eq!(stats.total_time(), Duration::from_millis(20_707));
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
