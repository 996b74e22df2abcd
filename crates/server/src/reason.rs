//! Why connections end, as a bounded set.

/// Why a connection ended. Where several things came together the first one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum CloseReason {
    /// The client closed, or asked for it, between requests.
    Client = 1,
    /// The client broke the connection off, or the transport failed.
    Aborted,
    /// It left HTTP by an upgrade or a CONNECT on HTTP/1.
    Upgraded,
    /// [`HttpOptions::first_request_timeout`](crate::HttpOptions::first_request_timeout).
    FirstRequestTimeout,
    /// [`HttpOptions::header_timeout`](crate::HttpOptions::header_timeout).
    HeaderTimeout,
    /// [`HttpOptions::idle_timeout`](crate::HttpOptions::idle_timeout), or a PING that was not answered.
    Idle,
    /// [`HttpOptions::min_body_rate`](crate::HttpOptions::min_body_rate).
    BodyTooSlow,
    /// [`HttpOptions::send_timeout`](crate::HttpOptions::send_timeout) or
    /// [`HttpOptions::min_send_rate`](crate::HttpOptions::min_send_rate).
    ClientStoppedReading,
    /// HTTP/2: past a bound on frames, streams or fields (ENHANCE_YOUR_CALM).
    Flood,
    /// What came is not valid HTTP, or larger than may be.
    ProtocolError,
    /// The service failed or panicked.
    ServiceError,
    /// [`HttpOptions::max_age`](crate::HttpOptions::max_age).
    MaxAge,
    /// [`HttpOptions::max_requests`](crate::HttpOptions::max_requests).
    MaxRequests,
    /// A drain.
    Drained,
}

impl CloseReason {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Client,
        Self::Aborted,
        Self::Upgraded,
        Self::FirstRequestTimeout,
        Self::HeaderTimeout,
        Self::Idle,
        Self::BodyTooSlow,
        Self::ClientStoppedReading,
        Self::Flood,
        Self::ProtocolError,
        Self::ServiceError,
        Self::MaxAge,
        Self::MaxRequests,
        Self::Drained,
    ];

    /// A short stable word, for a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Aborted => "aborted",
            Self::Upgraded => "upgraded",
            Self::FirstRequestTimeout => "first_request_timeout",
            Self::HeaderTimeout => "header_timeout",
            Self::Idle => "idle",
            Self::BodyTooSlow => "body_too_slow",
            Self::ClientStoppedReading => "client_stopped_reading",
            Self::Flood => "flood",
            Self::ProtocolError => "protocol_error",
            Self::ServiceError => "service_error",
            Self::MaxAge => "max_age",
            Self::MaxRequests => "max_requests",
            Self::Drained => "drained",
        }
    }

    /// Its place in [`Self::ALL`].
    pub(crate) fn index(self) -> usize {
        usize::from(self as u8 - 1)
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_places_agree() {
        for (place, reason) in CloseReason::ALL.into_iter().enumerate() {
            assert_eq!((reason.index(), CloseReason::from_code(reason as u8)), (place, Some(reason)));
        }
        assert_eq!(CloseReason::from_code(0), None);
        assert_eq!(CloseReason::from_code(15), None);
    }
}
