//! Bounds and deadlines of HTTP/1.1 and HTTP/2.

use std::time::Duration;

/// Bounds and deadlines. Every one is set on hyper explicitly; none is left to a default of another crate.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpOptions {
    /// From accepting a connection to the end of its handshake. Default 10 s. It is over and above any deadline of the
    /// handshake itself.
    pub handshake_timeout: Duration,
    /// HTTP/1.1: from the moment that a request is awaited until its head is complete, so it is both the time for a
    /// head and the keep-alive time between requests. HTTP/2: how long a connection without open streams is kept.
    /// Default 30 s.
    pub header_timeout: Duration,
    /// How long a client may take nothing of what is written to it before its connection is closed; over HTTP/2 also how
    /// long it may keep the window of one response shut (up to twice this). Default 30 s. It holds for upgraded
    /// connections too.
    pub send_timeout: Duration,
    /// HTTP/1.1: fields in a head; one with more is answered 431. Default 100.
    pub max_headers: usize,
    /// Bytes of a head: HTTP/1.1's request line and fields, HTTP/2's decoded field list (RFC 9113 section 6.5.2,
    /// SETTINGS_MAX_HEADER_LIST_SIZE). Default 64 KiB.
    pub max_header_bytes: usize,
    /// HTTP/1.1: bytes of the read buffer of a connection, at least 8 KiB. It grows to this only while a body comes in
    /// fast. Default 128 KiB.
    pub max_read_buffer: usize,
    /// HTTP/1.1: remember the case of request field names, for a client of hyper further on that keeps it too.
    /// Default `false`: it costs memory per request, and names have no case (RFC 9110 section 5.1).
    pub preserve_header_case: bool,
    /// HTTP/2: streams a client may have open (SETTINGS_MAX_CONCURRENT_STREAMS). Default 100.
    pub h2_max_streams: u32,
    /// HTTP/2: bytes a client may send on a stream ahead of their being read (SETTINGS_INITIAL_WINDOW_SIZE). Default
    /// 64 KiB. Memory: at most the connection's window.
    pub h2_stream_window: u32,
    /// HTTP/2: the same for a whole connection. Default 1 MiB. Memory: this much per connection at worst.
    pub h2_connection_window: u32,
    /// HTTP/2: response bytes buffered per stream. Default 64 KiB.
    pub h2_send_buffer: usize,
    /// HTTP/2: streams the client may have reset before they were taken up (rapid reset, CVE-2023-44487); past it the
    /// connection is closed with ENHANCE_YOUR_CALM. Default 20.
    pub h2_max_pending_resets: usize,
    /// HTTP/2: streams that the client may have made this side reset (MadeYouReset, CVE-2025-8671) before the
    /// connection is closed. Default 64.
    pub h2_max_local_resets: usize,
    /// HTTP/2: a PING after this much silence. Default 30 s.
    pub h2_ping_interval: Duration,
    /// HTTP/2: how long its answer may take before the connection is given up. Default 10 s.
    pub h2_ping_timeout: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(30),
            send_timeout: Duration::from_secs(30),
            max_headers: 100,
            max_header_bytes: 64 << 10,
            max_read_buffer: 128 << 10,
            preserve_header_case: false,
            h2_max_streams: 100,
            h2_stream_window: 64 << 10,
            h2_connection_window: 1 << 20,
            h2_send_buffer: 64 << 10,
            h2_max_pending_resets: 20,
            h2_max_local_resets: 64,
            h2_ping_interval: Duration::from_secs(30),
            h2_ping_timeout: Duration::from_secs(10),
        }
    }
}

macro_rules! with {
    ($($name:ident => $field:ident: $type:ty),* $(,)?) => {
        impl HttpOptions {
            $(
                #[doc = concat!("Sets [`HttpOptions::", stringify!($field), "`].")]
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
    with_handshake_timeout => handshake_timeout: Duration,
    with_header_timeout => header_timeout: Duration,
    with_send_timeout => send_timeout: Duration,
    with_max_headers => max_headers: usize,
    with_max_header_bytes => max_header_bytes: usize,
    with_max_read_buffer => max_read_buffer: usize,
    with_preserve_header_case => preserve_header_case: bool,
    with_h2_max_streams => h2_max_streams: u32,
    with_h2_stream_window => h2_stream_window: u32,
    with_h2_connection_window => h2_connection_window: u32,
    with_h2_send_buffer => h2_send_buffer: usize,
    with_h2_max_pending_resets => h2_max_pending_resets: usize,
    with_h2_max_local_resets => h2_max_local_resets: usize,
    with_h2_ping_interval => h2_ping_interval: Duration,
    with_h2_ping_timeout => h2_ping_timeout: Duration,
}
