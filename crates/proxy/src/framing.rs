//! Whether a message that a driver has parsed may go on. Nothing is changed here, only refused: a request that two
//! parsers could read in two ways never reaches an upstream, whichever driver or version it came by.
//!
//! What hyper 1.12 (its HTTP/1 server, `proto/h1/role.rs`) has already decided before a request gets here, and what
//! it leaves: it refuses `Transfer-Encoding` on HTTP/1.0, a last coding other than `chunked`, and differing or invalid
//! `Content-Length`; equal repetitions of `Content-Length` it folds into one; of a request with both framings it
//! drops the `Content-Length`, reads it as chunked and closes the connection after it, which RFC 9112 section 6.1
//! permits and which leaves one reading. It lets through: `gzip, chunked`, a repeated `chunked`, several, missing or
//! invalid `Host` fields, any scheme and authority, a target without a scheme (`GET example.com`), user
//! information, any method, any expectation. A `#` and what follows is cut off by `http::Uri` (under HTTP/1, 2
//! and 3), so what goes on is what was routed. All rules are checked here all the same: another driver may leave more.

use http::{HeaderMap, Method, Request, Uri, Version, header};

use crate::{
    connect_target::{ConnectTarget, ConnectTargetError},
    fault::{ClientFault, Fault, UpstreamFault},
    fields::{Seen, digits},
    host::HostPort,
};

/// Bounds on the request line, and what is refused of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FramingLimits {
    /// The longest target (authority, path and query) in bytes; a longer one is answered 414. Default 8,192: RFC 9112
    /// section 3 asks for 8,000 at least. The driver's own bound holds before it.
    pub max_target: usize,
    /// The longest method in bytes; a longer one is answered 501 (RFC 9112 section 3). Default 32: the longest registered
    /// one has 17.
    pub max_method: usize,
    /// What happens to a path with dot segments. Default [`Dots::Refuse`].
    pub dots: Dots,
}

impl Default for FramingLimits {
    fn default() -> Self {
        Self { max_target: 8192, max_method: 32, dots: Dots::Refuse }
    }
}

impl FramingLimits {
    /// Sets [`Self::max_target`].
    #[must_use]
    pub fn with_max_target(mut self, bytes: usize) -> Self {
        self.max_target = bytes;
        self
    }

    /// Sets [`Self::max_method`].
    #[must_use]
    pub fn with_max_method(mut self, bytes: usize) -> Self {
        self.max_method = bytes;
        self
    }

    /// Sets [`Self::dots`].
    #[must_use]
    pub fn with_dots(mut self, dots: Dots) -> Self {
        self.dots = dots;
        self
    }
}

/// What happens to a path with a `.` or `..` segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Dots {
    /// Answered 400. Clients resolve such segments themselves (RFC 3986 section 5.2.4); one that arrives would be routed
    /// as it is written and perhaps served as it resolves. Their encoded forms count: `%2e`, behind `%2f`, `\`, `%5c`, and
    /// before a `;`.
    #[default]
    Refuse,
    /// Forwarded as received.
    Pass,
}

/// Why a message is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FramingError {
    /// RFC 9112 section 6.1: a sign of request smuggling.
    #[error("both content-length and transfer-encoding")]
    TwoFramings,
    /// RFC 9112 section 6.3 item 5.
    #[error("content-length is repeated or no number")]
    BadContentLength,
    /// RFC 9112 section 6.1: this edge understands `chunked` and nothing else.
    #[error("transfer-encoding is not exactly chunked")]
    BadTransferEncoding,
    /// RFC 9112 section 6.1: HTTP/1.0 has no such field.
    #[error("transfer-encoding on http/1.0")]
    TransferEncodingOn10,
    /// RFC 9113 section 8.2.2, RFC 9114 section 4.2.
    #[error("a connection-specific field after http/1")]
    ConnectionField,
    /// RFC 9112 section 3.2.
    #[error("no host")]
    NoHost,
    /// RFC 9112 section 3.2.
    #[error("more than one host field")]
    ManyHosts,
    /// RFC 9112 section 3.2, RFC 9110 sections 4.2.4 (user information) and 7.2.
    #[error("the host is not valid")]
    BadHost,
    /// RFC 9113 section 8.3.1, RFC 9114 section 4.3.1.
    #[error("authority and host differ")]
    HostMismatch,
    /// RFC 9112 section 3.2: a form of target that does not go with the method.
    #[error("the target is not valid")]
    BadTarget,
    /// RFC 9110 section 4.2.
    #[error("the target's scheme is not http or https")]
    BadScheme,
    /// See [`Dots`].
    #[error("the path has dot segments")]
    DotSegments,
    /// RFC 9112 section 3.
    #[error("the target is too long")]
    TargetTooLong,
    /// RFC 9112 section 3.
    #[error("the method is too long")]
    MethodTooLong,
    /// RFC 9110 section 9.3.6: a reverse proxy opens no tunnel to where a client likes; what may be opened is [`crate::connect`]'s.
    #[error("connect is not implemented")]
    Connect,
    /// RFC 9112 section 3.2.3, RFC 9113 section 8.5: a CONNECT has a host and a port, and nothing else.
    #[error("the target of a connect is not valid")]
    ConnectTarget(#[source] ConnectTargetError),
    /// RFC 9110 section 9.3.6: a CONNECT has no content.
    #[error("a connect with content")]
    ConnectContent,
    /// RFC 9110 section 9.3.8: it would show a client's credentials to a script.
    #[error("trace is not allowed")]
    Trace,
    /// RFC 9110 section 10.1.1.
    #[error("an expectation other than 100-continue")]
    Expectation,
    /// RFC 9110 section 7.6.2.
    #[error("max-forwards is no number")]
    BadMaxForwards,
    /// RFC 9110 section 7.6.2: this edge is the last recipient.
    #[error("max-forwards is used up")]
    HopsSpent,
}

/// Why an answer is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// RFC 9112 section 6.3 item 5.
    #[error("content-length is repeated or no number")]
    BadContentLength,
    /// RFC 9110 section 15.2: only 101 ends an exchange, and only one that asked for it.
    #[error("an informational status as the answer")]
    Informational,
}

impl FramingError {
    /// The fault that a request with this error is.
    pub fn client_fault(&self) -> ClientFault {
        match self {
            Self::TargetTooLong => ClientFault::TargetTooLong,
            Self::MethodTooLong | Self::Connect => ClientFault::MethodNotImplemented,
            Self::Trace => ClientFault::MethodNotAllowed,
            Self::Expectation => ClientFault::ExpectationFailed,
            Self::HopsSpent => ClientFault::HopsSpent,
            _ => ClientFault::Malformed,
        }
    }
}

/// The head of a request, borrowed.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Head<'a> {
    /// The method.
    pub method: &'a Method,
    /// The target; in HTTP/2 and 3, put together from the pseudo-header fields.
    pub uri: &'a Uri,
    /// The version it came by.
    pub version: Version,
    /// The fields.
    pub headers: &'a HeaderMap,
}

impl<'a> Head<'a> {
    /// The head of a request.
    pub fn of<B>(request: &'a Request<B>) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            version: request.version(),
            headers: request.headers(),
        }
    }
}

/// Checks a request as it came from the client, before any field is removed.
pub fn check_request(head: Head<'_>, limits: &FramingLimits) -> Result<(), FramingError> {
    check_request_seen(head, Seen::of(head.headers), limits)
}

pub(crate) fn check_request_seen(
    head: Head<'_>,
    seen: Seen,
    limits: &FramingLimits,
) -> Result<(), FramingError> {
    check_method(head.method, limits)?;
    check_target(head, limits)?;
    check_host(head, seen)?;
    if head.version > Version::HTTP_11 {
        check_after_http1(head, seen)?;
    }
    check_length(head, seen)?;
    check_expect(head, seen)?;
    if seen.has(Seen::MAX_FORWARDS) && head.method == Method::OPTIONS && max_forwards(head.headers)? == 0 {
        return Err(FramingError::HopsSpent);
    }
    Ok(())
}

/// Checks a CONNECT that is no extended one, as it came from the client: its target, which must be a host and a port and nothing else
/// (RFC 9112 section 3.2.3, RFC 9113 section 8.5), and its fields, as [`check_request`] does. It has no content, and so
/// neither `Content-Length` nor `Transfer-Encoding`, whatever they say.
pub fn check_connect(head: Head<'_>, limits: &FramingLimits) -> Result<ConnectTarget, FramingError> {
    let seen = Seen::of(head.headers);
    if seen.has(Seen::CONTENT_LENGTH) || seen.has(Seen::TRANSFER_ENCODING) {
        return Err(FramingError::ConnectContent);
    }
    let authority = head.uri.authority().map_or("", |authority| authority.as_str());
    if authority.len() > limits.max_target {
        return Err(FramingError::TargetTooLong);
    }
    if head.uri.scheme().is_some() || head.uri.path_and_query().is_some() {
        return Err(FramingError::ConnectTarget(ConnectTargetError::Invalid));
    }
    let target = ConnectTarget::parse(authority).map_err(FramingError::ConnectTarget)?;
    check_host(head, seen)?;
    if head.version > Version::HTTP_11 {
        check_after_http1(head, seen)?;
    }
    check_expect(head, seen)?;
    Ok(target)
}

/// RFC 9110 section 10.1.1; on HTTP/1.0 a 100-continue is ignored, not refused.
fn check_expect(head: Head<'_>, seen: Seen) -> Result<(), FramingError> {
    let continues = |value: &header::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if seen.has(Seen::EXPECT) && !head.headers.get_all(header::EXPECT).iter().all(continues) {
        return Err(FramingError::Expectation);
    }
    Ok(())
}

fn check_method(method: &Method, limits: &FramingLimits) -> Result<(), FramingError> {
    match *method {
        Method::CONNECT => Err(FramingError::Connect),
        Method::TRACE => Err(FramingError::Trace),
        _ if method.as_str().len() > limits.max_method => Err(FramingError::MethodTooLong),
        _ => Ok(()),
    }
}

fn check_target(head: Head<'_>, limits: &FramingLimits) -> Result<(), FramingError> {
    let path_and_query = head.uri.path_and_query().map_or("", |target| target.as_str());
    let authority = head.uri.authority().map_or(0, |authority| authority.as_str().len());
    if path_and_query.len() + authority > limits.max_target {
        return Err(FramingError::TargetTooLong);
    }
    match head.uri.scheme_str() {
        Some("http" | "https") => {}
        Some(_) => return Err(FramingError::BadScheme),
        // RFC 9112 section 3.2.3: the authority form is for CONNECT. (HTTP/2 without :scheme does not get here.)
        None if authority != 0 && head.version <= Version::HTTP_11 => return Err(FramingError::BadTarget),
        None => {}
    }
    match path_and_query.as_bytes() {
        // RFC 9112 section 3.2.4, RFC 9113 section 8.3.1
        b"*" if head.method == Method::OPTIONS => Ok(()),
        [b'/', ..] => Ok(()),
        // an absolute form may have an empty path before its query (RFC 9110 section 4.2.3); `:path` begins with a slash
        // (RFC 9113 section 8.3.1)
        [] | [b'?', ..] if head.uri.scheme().is_some() && head.version <= Version::HTTP_11 => Ok(()),
        _ => Err(FramingError::BadTarget),
    }?;
    if limits.dots == Dots::Refuse && has_dot_segment(head.uri.path().as_bytes()) {
        return Err(FramingError::DotSegments);
    }
    Ok(())
}

/// Whether some segment is `.` or `..` in any spelling that a server behind may resolve.
pub(crate) fn has_dot_segment(path: &[u8]) -> bool {
    // how many dots the segment has so far; `None` once it has anything else
    let mut dots = Some(0_u32);
    let mut rest = path;
    while let [first, tail @ ..] = rest {
        let (byte, tail) = match (first, tail) {
            (b'%', [b'2', b'e' | b'E', tail @ ..]) => (b'.', tail),
            (b'%', [b'2', b'f' | b'F', tail @ ..]) | (b'%', [b'5', b'c' | b'C', tail @ ..]) => (b'/', tail),
            (b'\\', tail) => (b'/', tail),
            (byte, tail) => (*byte, tail),
        };
        rest = tail;
        match byte {
            b'.' => dots = dots.map(|dots| dots + 1),
            b'/' | b';' if matches!(dots, Some(1 | 2)) => return true,
            b'/' => dots = Some(0),
            _ => dots = None,
        }
    }
    matches!(dots, Some(1 | 2))
}

fn check_host(head: Head<'_>, seen: Seen) -> Result<(), FramingError> {
    let mut host = None;
    if seen.has(Seen::HOST) {
        let mut lines = head.headers.get_all(header::HOST).iter();
        let value = lines.next().ok_or(FramingError::NoHost)?;
        if lines.next().is_some() {
            return Err(FramingError::ManyHosts);
        }
        host = Some(HostPort::parse(value.as_bytes()).ok_or(FramingError::BadHost)?);
    }
    let Some(authority) = head.uri.authority() else {
        // RFC 9112 section 3.2: HTTP/1.1 needs one. RFC 9113 section 8.3.1: `Host` may stand for :authority.
        return match host {
            None if head.version != Version::HTTP_10 => Err(FramingError::NoHost),
            _ => Ok(()),
        };
    };
    // this refuses user information as well (RFC 9110 section 4.2.4, RFC 9113 section 8.3.1)
    let authority = HostPort::parse(authority.as_str().as_bytes()).ok_or(FramingError::BadHost)?;
    match host {
        // RFC 9112 section 3.2: HTTP/1.1 sends `Host` even with an absolute form
        None if head.version == Version::HTTP_11 => Err(FramingError::NoHost),
        // RFC 9112 section 3.2.2: in HTTP/1 the absolute form wins, see `target`
        Some(host) if head.version > Version::HTTP_11 && !authority.same(&host, head.uri.scheme_str()) => {
            Err(FramingError::HostMismatch)
        }
        _ => Ok(()),
    }
}

fn check_after_http1(head: Head<'_>, seen: Seen) -> Result<(), FramingError> {
    const CONNECTION: Seen = Seen::CONNECTION.or(Seen::OLD_HOP).or(Seen::TRANSFER_ENCODING).or(Seen::UPGRADE);
    let te_is_trailers =
        || head.headers.get_all(header::TE).iter().all(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    if seen.has(CONNECTION) || (seen.has(Seen::TE) && !te_is_trailers()) {
        return Err(FramingError::ConnectionField);
    }
    Ok(())
}

fn check_length(head: Head<'_>, seen: Seen) -> Result<(), FramingError> {
    if seen.has(Seen::TRANSFER_ENCODING) {
        if seen.has(Seen::CONTENT_LENGTH) {
            return Err(FramingError::TwoFramings);
        }
        if head.version < Version::HTTP_11 {
            return Err(FramingError::TransferEncodingOn10);
        }
        let mut lines = head.headers.get_all(header::TRANSFER_ENCODING).iter();
        let chunked = lines.next().is_some_and(|line| line.as_bytes().eq_ignore_ascii_case(b"chunked"));
        if !chunked || lines.next().is_some() {
            return Err(FramingError::BadTransferEncoding);
        }
    } else if seen.has(Seen::CONTENT_LENGTH) {
        let mut lines = head.headers.get_all(header::CONTENT_LENGTH).iter();
        let number = lines.next().and_then(|line| digits(line.as_bytes()));
        if number.is_none() || lines.next().is_some() {
            return Err(FramingError::BadContentLength);
        }
    }
    Ok(())
}

fn max_forwards(headers: &HeaderMap) -> Result<u64, FramingError> {
    let mut lines = headers.get_all(header::MAX_FORWARDS).iter();
    match (lines.next().and_then(|line| digits(line.as_bytes())), lines.next()) {
        (Some(hops), None) => Ok(hops),
        _ => Err(FramingError::BadMaxForwards),
    }
}

/// Takes one off the `Max-Forwards` of an OPTIONS request (RFC 9110 section 7.6.2). Other methods keep theirs as it is.
pub fn count_hop(method: &Method, headers: &mut HeaderMap) {
    if method == Method::OPTIONS
        && let Ok(hops @ 1..) = max_forwards(headers)
    {
        headers.insert(header::MAX_FORWARDS, (hops - 1).into());
    }
}

/// Checks an answer as it came from the upstream, before any field is removed. A 101 that was asked for is not this
/// function's to judge, see [`crate::upgrade`].
///
/// A repeated `Content-Length` is refused even when the lines are equal, which RFC 9112 section 6.3 item 5 leaves open.
pub fn check_response(status: http::StatusCode, headers: &HeaderMap) -> Result<(), AnswerError> {
    check_response_seen(status, headers, Seen::of(headers))
}

pub(crate) fn check_response_seen(
    status: http::StatusCode,
    headers: &HeaderMap,
    seen: Seen,
) -> Result<(), AnswerError> {
    if status.is_informational() {
        return Err(AnswerError::Informational);
    }
    // RFC 9112 section 6.3 items 3 and 5: next to Transfer-Encoding it does not count, otherwise it must be one number
    if seen.has(Seen::CONTENT_LENGTH) && !seen.has(Seen::TRANSFER_ENCODING) {
        let mut lines = headers.get_all(header::CONTENT_LENGTH).iter();
        let number = lines.next().and_then(|line| digits(line.as_bytes()));
        if number.is_none() || lines.next().is_some() {
            return Err(AnswerError::BadContentLength);
        }
    }
    Ok(())
}

impl From<FramingError> for Fault {
    fn from(error: FramingError) -> Self {
        Fault::client(error.client_fault()).with_source(error)
    }
}

impl From<AnswerError> for Fault {
    fn from(error: AnswerError) -> Self {
        Fault::upstream(UpstreamFault::Protocol).with_source(error)
    }
}

#[cfg(test)]
mod tests;
