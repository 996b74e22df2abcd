//! The record, and the guard that hands it over exactly once.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{HOST, REFERER, USER_AGENT},
};
use portcullis_conn::{ConnId, ConnInfo, TlsVersion};

use crate::identity::Authenticated;

use super::{Details, RecordOptions, Sink, UpstreamName};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The whole response was handed to the protocol driver.
    Complete,
    /// The response, or the wait for it, was given up: the client went away or a deadline passed.
    Aborted,
    /// The service failed, or the response body did on its way.
    Failed,
}

/// What is known of a request when it is over. Values that the client chose are as it sent them: whoever writes them
/// somewhere escapes them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AccessRecord {
    /// The request's method.
    pub method: Method,
    /// The request's target, as the service got it.
    pub uri: Uri,
    /// The protocol the request came by.
    pub version: Version,
    /// The Host field.
    pub host: Option<HeaderValue>,
    /// The User-Agent field.
    pub user_agent: Option<HeaderValue>,
    /// The Referer field.
    pub referer: Option<HeaderValue>,
    /// The client: [`crate::ClientIp`], or else the connection's peer. `None` without either, and for peers on unix sockets, which have no address.
    pub client_ip: Option<IpAddr>,
    /// The connection.
    pub conn: Option<Arc<ConnInfo>>,
    /// The response's status; `None` if there was no response.
    pub status: Option<StatusCode>,
    /// How many bytes of response content were handed to the protocol driver, before any coding of the transfer.
    pub bytes_sent: u64,
    /// When the request came to this layer.
    pub started_at: Instant,
    /// From there until the response's head was ready; `None` if there was no response.
    pub time_to_head: Option<Duration>,
    /// From there until the response was over.
    pub duration: Duration,
    /// Who made the response: [`super::UpstreamName`].
    pub upstream: Option<Arc<str>>,
    /// Who the client is, by the name that [`crate::identity::Authenticated`] has among the response's extensions.
    pub user: Option<Arc<str>>,
    /// How it ended.
    pub outcome: Outcome,
    /// What [`RecordOptions`] ask for; `None` where they ask for nothing.
    pub details: Option<Box<Details>>,
}

impl AccessRecord {
    /// The target as in a request line: path and query, or the authority of a CONNECT.
    pub fn target(&self) -> &str {
        match (self.uri.path_and_query(), self.uri.authority()) {
            (Some(target), _) => target.as_str(),
            (None, Some(authority)) => authority.as_str(),
            (None, None) => "",
        }
    }

    /// The host that was asked for: the target's authority, else the Host field.
    pub fn host(&self) -> Option<&[u8]> {
        match self.uri.authority() {
            Some(authority) => Some(authority.as_str().as_bytes()),
            None => self.host.as_ref().map(HeaderValue::as_bytes),
        }
    }

    /// The connection's name in logs.
    pub fn conn_id(&self) -> Option<ConnId> {
        self.conn.as_ref().map(|conn| conn.id)
    }

    /// The connection's TLS version.
    pub fn tls_version(&self) -> Option<TlsVersion> {
        self.conn.as_ref()?.tls.as_ref()?.version
    }

    /// Whether the response was given up.
    pub fn is_aborted(&self) -> bool {
        self.outcome == Outcome::Aborted
    }

    /// When the request came, by the wall clock; to be asked while it is being recorded.
    pub fn time(&self) -> SystemTime {
        let now = SystemTime::now();
        now.checked_sub(self.duration).unwrap_or(now)
    }

    pub(super) fn begin<B: http_body::Body>(request: &mut Request<B>, options: &RecordOptions) -> Self {
        let details = Details::begin(request, options);
        let headers = request.headers();
        let extensions = request.extensions();
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            host: headers.get(HOST).cloned(),
            user_agent: headers.get(USER_AGENT).cloned(),
            referer: headers.get(REFERER).cloned(),
            client_ip: crate::client_ip(extensions),
            conn: crate::conn_info(extensions).cloned(),
            status: None,
            bytes_sent: 0,
            started_at: Instant::now(),
            time_to_head: None,
            duration: Duration::ZERO,
            upstream: None,
            user: None,
            outcome: Outcome::Aborted,
            details,
        }
    }
}

/// A record on its way; handed over when this is dropped. Until somebody says otherwise the request counts as aborted.
pub(super) struct Pending<K: Sink + ?Sized> {
    record: AccessRecord,
    to: Arc<To<K>>,
}

/// Where records go, and what they are to know.
#[derive(Debug)]
pub(super) struct To<K: ?Sized> {
    pub(super) options: RecordOptions,
    pub(super) sink: Arc<K>,
}

impl<K: Sink + ?Sized> Pending<K> {
    pub(super) fn new(record: AccessRecord, to: Arc<To<K>>) -> Self {
        Self { record, to }
    }

    pub(super) fn head<B>(&mut self, response: &Response<B>) {
        let (status, extensions) = (response.status(), response.extensions());
        self.record.status = Some(status);
        self.record.time_to_head = Some(self.record.started_at.elapsed());
        self.record.upstream = extensions.get::<UpstreamName>().map(|UpstreamName(name)| Arc::clone(name));
        let user = extensions.get::<Authenticated>().filter(|known| !known.user.is_empty());
        self.record.user = user.map(|known| Arc::clone(&known.user));
        if let Some(details) = &mut self.record.details {
            details.head(response, &self.to.options);
        }
        if self.has_no_content(status) {
            self.complete();
        }
    }

    /// RFC 9110 section 6.4.1: these responses have no content, so nobody asks their body for any. The stream after a 101
    /// or a successful CONNECT isn't the response's.
    fn has_no_content(&self, status: StatusCode) -> bool {
        self.record.method == Method::HEAD
            || (self.record.method == Method::CONNECT && status.is_success())
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    }

    pub(super) fn sent(&mut self, bytes: u64) {
        self.record.bytes_sent += bytes;
    }

    pub(super) fn complete(&mut self) {
        self.record.outcome = Outcome::Complete;
    }

    pub(super) fn fail(&mut self) {
        self.record.outcome = Outcome::Failed;
    }
}

impl<K: Sink + ?Sized> Drop for Pending<K> {
    fn drop(&mut self) {
        self.record.duration = self.record.started_at.elapsed();
        self.to.sink.record(&self.record);
    }
}
