//! What a cluster may take, and how long it may take.

use std::time::Duration;

/// Timeouts, pool bounds and failure handling of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterOptions {
    /// How long name resolution and the TCP handshake with one endpoint may take. Default 5 s: one lost SYN is
    /// repeated after 1 s and after 3 s, so two may be lost. When it passes, the next endpoint is tried.
    pub connect_timeout: Duration,
    /// How long an endpoint may take from the end of the request until its response head is complete. Default 60 s,
    /// as in nginx.
    pub response_timeout: Duration,
    /// How long an endpoint may pause inside a response body, while nothing more of the request goes to it either.
    /// Default 60 s. It is no limit on the whole body.
    pub read_timeout: Duration,
    /// How long an endpoint may refuse to take more of a request. Default 60 s. Waiting for the client to send more
    /// does not count.
    pub write_timeout: Duration,
    /// How long the client may pause inside a request body before its request fails with
    /// [`crate::Error::RequestTimeout`]. Default 60 s. It is no limit on the whole body.
    pub request_timeout: Duration,
    /// How long a pooled connection may lie unused. Default 60 s; keep it below the endpoints' own keep-alive time,
    /// so that it is seldom they who close.
    pub idle_timeout: Duration,
    /// Pooled connections kept per endpoint and per [`crate::Client`]. Default 256. Memory: up to 25 KiB each.
    pub max_idle: usize,
    /// Connections, idle ones included, that may be open to one endpoint over all clients of the cluster. Past it a
    /// request that finds no idle connection fails with [`crate::Error::Overloaded`]. At the limit a connection that is
    /// done is closed, not pooled. Default 4096.
    pub max_connections: usize,
    /// Failures in a row (to connect, or to answer at all) after which an endpoint is left alone for
    /// [`ClusterOptions::fail_timeout`]. Default 1, as in nginx; 0 turns it off.
    pub max_fails: u32,
    /// How long a failing endpoint is left alone. Default 10 s. When all endpoints are left alone, all are tried.
    pub fail_timeout: Duration,
    /// Endpoints tried for one request, the first included. Default 3.
    pub max_attempts: u32,
    /// Bytes of a response head or trailer section. Default 64 KiB, and at most 100 fields; a longer one is
    /// [`crate::ProtocolError::HeadTooLarge`].
    pub max_head_bytes: usize,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(60),
            read_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(60),
            max_idle: 256,
            max_connections: 4096,
            max_fails: 1,
            fail_timeout: Duration::from_secs(10),
            max_attempts: 3,
            max_head_bytes: 64 << 10,
        }
    }
}

macro_rules! with {
    ($($name:ident => $field:ident: $type:ty),* $(,)?) => {
        impl ClusterOptions {
            $(
                #[doc = concat!("Sets [`ClusterOptions::", stringify!($field), "`].")]
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
    with_connect_timeout => connect_timeout: Duration,
    with_response_timeout => response_timeout: Duration,
    with_read_timeout => read_timeout: Duration,
    with_write_timeout => write_timeout: Duration,
    with_request_timeout => request_timeout: Duration,
    with_idle_timeout => idle_timeout: Duration,
    with_max_idle => max_idle: usize,
    with_max_connections => max_connections: usize,
    with_max_fails => max_fails: u32,
    with_fail_timeout => fail_timeout: Duration,
    with_max_attempts => max_attempts: u32,
    with_max_head_bytes => max_head_bytes: usize,
}
