//! Limits and deadlines of a cluster.

use std::{ops::RangeInclusive, time::Duration};

use http::StatusCode;

use crate::{BalanceOptions, OutlierOptions};

/// Limits and deadlines of a cluster. Every one is finite.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ClusterOptions {
    /// What is spoken to the endpoints. Default [`Protocol::Http1`].
    pub protocol: Protocol,
    /// Whether field names are written as `Content-Length`, for endpoints that read no other (RFC 9110 section 5.1: names have no case).
    /// Default `false`: as `content-length`. HTTP/1.1 only.
    pub title_case: bool,
    /// From the beginning of a name's resolution to a connection. Default 5 s.
    pub connect_timeout: Duration,
    /// How long a TLS handshake may take, for connectors that do one. Default 5 s. A connector of the program's own has both
    /// times together.
    pub tls_timeout: Duration,
    /// From the last byte of a request sent to a response head. Default 60 s. It is for one attempt.
    pub response_timeout: Duration,
    /// How long a response body may pause, as long as nobody waits for a slow receiver: it runs only while bytes are awaited.
    /// Default 60 s. It is no limit on the whole body.
    pub read_timeout: Duration,
    /// How long an endpoint may refuse to take more of a request. Default 60 s. Waiting for the client to send more
    /// does not count.
    pub write_timeout: Duration,
    /// How long the client may pause inside a request body before its request fails with
    /// [`crate::Error::RequestTimeout`]. Default 60 s. It is no limit on the whole body.
    pub request_timeout: Duration,
    /// From the beginning of a request to the last byte of its response, all attempts and the time in a queue among it. Default
    /// `None`: the other times are limits enough, and a total breaks long downloads.
    pub total_timeout: Option<Duration>,
    /// How long a request with `Expect: 100-continue` keeps its body back for the endpoint's word (RFC 9110 section 10.1.1).
    /// Default 1 s. HTTP/1.1 only.
    pub continue_timeout: Duration,
    /// How long a pooled connection may lie unused. Default 60 s; keep it below the endpoints' own keep-alive time,
    /// so that it is seldom they who close.
    pub idle_timeout: Duration,
    /// How old a connection may grow before it is used no more, less up to a tenth by chance so that not all end at once. Default
    /// `None`. Requests under way are not touched.
    pub max_age: Option<Duration>,
    /// Requests that one connection carries. Default `None`: as many as come.
    pub max_requests_per_connection: Option<u64>,
    /// Pooled connections kept per endpoint and per [`crate::Client`]. Default 256. Memory: up to 25 KiB each.
    pub max_idle: usize,
    /// Connections that [`crate::Client::maintain`] keeps ready for each endpoint that is available, per client. Default 0. HTTP/1.1 only.
    pub min_idle: usize,
    /// Connections, idle ones included, that may be open to one endpoint over all clients of the cluster. Past it a
    /// request that finds no idle connection waits, see [`ClusterOptions::max_pending`]. At the limit a connection that is
    /// done is closed, not pooled, unless a request of the same client waits for it. Default 4096.
    pub max_connections: usize,
    /// Requests under way, over all endpoints and clients of the cluster; past it they fail with [`crate::Error::Overloaded`]. Default
    /// 65,536.
    pub max_requests: usize,
    /// Requests that may wait for a connection at [`ClusterOptions::max_connections`], over all clients of the cluster; past it they fail
    /// with [`crate::Error::Overloaded`]. Default 1024. Memory: a request's head and what was read of its body, each.
    pub max_pending: usize,
    /// How long such a request waits before it fails with [`crate::Error::QueueTimeout`]. Default 1 s.
    pub queue_timeout: Duration,
    /// Whether a connection is used for one client's connection alone, whose addresses the connector is told and which must be among the
    /// request's extensions as [`crate::ClientAddresses`]. Default `false`. It is what a PROXY protocol header asks for.
    pub connection_per_client: bool,
    /// How requests are spread over the endpoints.
    pub balance: BalanceOptions,
    /// Whether a request's [`crate::PreferEndpoint`] is followed. Default `false`.
    pub prefer_endpoints: bool,
    /// When an endpoint whose requests fail is left out for a while.
    pub outlier: OutlierOptions,
    /// What is tried again.
    pub retry: RetryOptions,
    /// A second attempt beside a slow first one. Default `None`.
    pub hedge: Option<HedgeOptions>,
    /// Bounds of HTTP/2.
    pub http2: Http2Options,
    /// Bytes of a response head or trailer section. Default 64 KiB, and at most 100 fields; a longer one is
    /// [`crate::ProtocolError::HeadTooLarge`].
    pub max_head_bytes: usize,
}

/// What is spoken to the endpoints of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2: by prior knowledge (RFC 9113 section 3.3) without TLS, and with TLS only if `h2` was agreed upon or nothing was said.
    Http2,
    /// HTTP/2 where [`crate::Transport::alpn`] says `h2`, else HTTP/1.1.
    ByAlpn,
}

/// What is tried again, and how often.
///
/// Tried again is a request of which nothing was done (no connection, a refused HTTP/2 stream), whatever its method; and an idempotent one
/// (RFC 9110 section 9.2.2) when its connection was closed before an answer, when the answer did not begin in time, or when it has one of
/// [`RetryOptions::statuses`]. In every case only while all that was taken of its body is at hand
/// ([`RetryOptions::replay_bytes`]): what was half sent and can't be sent again is never tried again.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RetryOptions {
    /// Endpoints tried for one request, the first included; with fewer endpoints than that, some are tried again. Default 3. At most 64.
    pub attempts: u32,
    /// Answers of an endpoint that are worth another one's. Default 502, 503 and 504. When no attempt is left the answer is passed on as it is.
    pub statuses: Vec<RangeInclusive<u16>>,
    /// Whether an attempt whose answer did not begin in [`ClusterOptions::response_timeout`] is made again. Default `true`.
    pub on_timeout: bool,
    /// Bytes of a request's body that are kept to be sent again. Default 64 KiB. They are references to what is sent, not copies; memory at
    /// worst this much for each idempotent request with a body under way.
    pub replay_bytes: usize,
    /// Retries in percent of the requests of the last seconds (5 to 10), over all clients of the cluster: more would be a load of their
    /// own on endpoints that fail. Default 20.
    pub budget_percent: u32,
    /// Retries in a second that are allowed in any case. Default 10.
    pub budget_min: u32,
    /// The pause before the second retry of a request, doubled with each further one and shortened by up to half by chance; the first
    /// comes at once. Default 25 ms, at most 1 s.
    pub backoff: Duration,
}

impl Default for RetryOptions {
    fn default() -> Self {
        Self {
            attempts: 3,
            statuses: vec![502..=504],
            on_timeout: true,
            replay_bytes: 64 << 10,
            budget_percent: 20,
            budget_min: 10,
            backoff: Duration::from_millis(25),
        }
    }
}

impl RetryOptions {
    /// Sets [`RetryOptions::statuses`].
    #[must_use]
    pub fn with_statuses(mut self, statuses: impl IntoIterator<Item = RangeInclusive<u16>>) -> Self {
        self.statuses = statuses.into_iter().collect();
        self
    }

    /// Whether an answer with this status is worth another endpoint's.
    pub fn is_retried(&self, status: StatusCode) -> bool {
        // the usual answer costs one comparison
        status.as_u16() >= 400 && self.statuses.iter().any(|range| range.contains(&status.as_u16()))
    }
}

/// A second attempt at another endpoint, beside a first one that is slow; the first answer is taken and the other attempt dropped.
///
/// For safe requests (GET, HEAD, OPTIONS) without a body. It counts against the budget of retries.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HedgeOptions {
    /// How long the first attempt may be without an answer. Choose what all but a few requests stay below.
    pub after: Duration,
}

impl HedgeOptions {
    /// After this long.
    pub fn new(after: Duration) -> Self {
        Self { after }
    }
}

/// Bounds of HTTP/2 connections to endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Http2Options {
    /// Requests at a time on one connection, or fewer where the endpoint allows fewer (SETTINGS_MAX_CONCURRENT_STREAMS, RFC 9113 section
    /// 6.5.2); past it another connection is made. Default 100.
    pub max_streams: usize,
    /// Bytes that an endpoint may send on a stream ahead of their being read. Default 64 KiB.
    pub stream_window: u32,
    /// The same for a whole connection, which is its worst-case memory; raised to what all of its streams may take, so that one whose client reads slowly
    /// keeps none of the others waiting. Default 1 MiB, and so 6.25 MiB with the other defaults.
    pub connection_window: u32,
    /// Bytes of requests buffered per stream. Default 64 KiB.
    pub send_buffer: usize,
    /// How often a connection with requests under way is asked whether it is still there (PING, RFC 9113 section 6.7). Default 15 s.
    pub ping_interval: Duration,
    /// How long the answer to that may take before the connection is given up. Default 10 s.
    pub ping_timeout: Duration,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            max_streams: 100,
            stream_window: 64 << 10,
            connection_window: 1 << 20,
            send_buffer: 64 << 10,
            ping_interval: Duration::from_secs(15),
            ping_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            protocol: Protocol::default(),
            title_case: false,
            connect_timeout: Duration::from_secs(5),
            tls_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(60),
            read_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(60),
            total_timeout: None,
            continue_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(60),
            max_age: None,
            max_requests_per_connection: None,
            max_idle: 256,
            min_idle: 0,
            max_connections: 4096,
            max_requests: 65_536,
            max_pending: 1024,
            queue_timeout: Duration::from_secs(1),
            connection_per_client: false,
            balance: BalanceOptions::default(),
            prefer_endpoints: false,
            outlier: OutlierOptions::default(),
            retry: RetryOptions::default(),
            hedge: None,
            http2: Http2Options::default(),
            max_head_bytes: 64 << 10,
        }
    }
}

macro_rules! with {
    ($of:ident: $($name:ident => $field:ident: $type:ty),* $(,)?) => {
        impl $of {
            $(
                #[doc = concat!("Sets [`", stringify!($of), "::", stringify!($field), "`].")]
                #[must_use]
                pub fn $name(mut self, value: $type) -> Self {
                    self.$field = value;
                    self
                }
            )*
        }
    };
}

with! {
    ClusterOptions:
    with_protocol => protocol: Protocol,
    with_title_case => title_case: bool,
    with_connect_timeout => connect_timeout: Duration,
    with_tls_timeout => tls_timeout: Duration,
    with_response_timeout => response_timeout: Duration,
    with_read_timeout => read_timeout: Duration,
    with_write_timeout => write_timeout: Duration,
    with_request_timeout => request_timeout: Duration,
    with_total_timeout => total_timeout: Option<Duration>,
    with_continue_timeout => continue_timeout: Duration,
    with_idle_timeout => idle_timeout: Duration,
    with_max_age => max_age: Option<Duration>,
    with_max_requests_per_connection => max_requests_per_connection: Option<u64>,
    with_max_idle => max_idle: usize,
    with_min_idle => min_idle: usize,
    with_max_connections => max_connections: usize,
    with_max_requests => max_requests: usize,
    with_max_pending => max_pending: usize,
    with_queue_timeout => queue_timeout: Duration,
    with_connection_per_client => connection_per_client: bool,
    with_balance => balance: BalanceOptions,
    with_prefer_endpoints => prefer_endpoints: bool,
    with_outlier => outlier: OutlierOptions,
    with_retry => retry: RetryOptions,
    with_hedge => hedge: Option<HedgeOptions>,
    with_http2 => http2: Http2Options,
    with_max_head_bytes => max_head_bytes: usize,
}

with! {
    RetryOptions:
    with_attempts => attempts: u32,
    with_on_timeout => on_timeout: bool,
    with_replay_bytes => replay_bytes: usize,
    with_budget_percent => budget_percent: u32,
    with_budget_min => budget_min: u32,
    with_backoff => backoff: Duration,
}

with! {
    Http2Options:
    with_max_streams => max_streams: usize,
    with_stream_window => stream_window: u32,
    with_connection_window => connection_window: u32,
    with_send_buffer => send_buffer: usize,
    with_ping_interval => ping_interval: Duration,
    with_ping_timeout => ping_timeout: Duration,
}
