//! Bounds and deadlines of HTTP/1.1 and HTTP/2.

use std::time::Duration;

/// Bounds and deadlines. Every one is set on hyper explicitly; none is left to a default of another crate.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpOptions {
    /// From accepting a connection to the end of its handshake. Default 10 s. It is over and above any deadline of the
    /// handshake itself.
    pub handshake_timeout: Duration,
    /// From the end of the handshake to the first byte of the first request; over HTTP/2 to the first stream, whatever else
    /// comes before it. Default 30 s: browsers open connections ahead of their use.
    pub first_request_timeout: Duration,
    /// HTTP/1.1: from the first byte of a head until it is complete; past it the answer is 408 and the connection is closed. Default
    /// 30 s. (HTTP/2 sends a head in one go: a client that stops within one answers no PING either.)
    pub header_timeout: Duration,
    /// How long a connection is kept without a request. Default 60 s. Over HTTP/2, where it is looked at when a timer
    /// fires and not at every request, it may be up to twice as long.
    pub idle_timeout: Duration,
    /// HTTP/1: how long a connection is idle before it gives its buffers back, to get new ones with its next byte. Default 1 s: a connection in use
    /// never does. Memory of an idle connection: about 2 KiB and what its transport keeps then, 16 KiB and a request's future before.
    pub release_after: Duration,
    /// How long a client may take nothing of what is written to it before its connection is closed; over HTTP/2 also how
    /// long it may keep the window of one response shut (up to twice this, or three times once the service has given all of it). Default 30 s. It holds for upgraded
    /// connections too.
    pub send_timeout: Duration,
    /// Bytes per second that a client must take at least, over the time in which something waited to be written to it; looked at
    /// once that adds up to [`Self::send_timeout`], and anew from there. Default 256; 0 is no minimum. A client that takes
    /// a byte now and then is no better than one that takes none. It holds for upgraded connections too.
    pub min_send_rate: u32,
    /// Bytes per second of a request's body that a client must send at least, over the time in which the body was waited for;
    /// looked at once that adds up to [`Self::body_grace`], and anew from there. So a long upload is no slow one, and what the
    /// service does between its reads does not count. Past it the body fails with [`BodyError::TooSlow`](crate::BodyError::TooSlow)
    /// and the connection ends after the answer. Default 256: a tenth of the slowest modem. 0 is no minimum.
    pub min_body_rate: u32,
    /// The time of [`Self::min_body_rate`]. Default 10 s. A client that sends nothing at all fails after this and up to an eighth
    /// more.
    pub body_grace: Duration,
    /// The age at which a connection is told to finish: `Connection: close`, GOAWAY. Each gets up to a tenth more or less, by
    /// chance, so that many that came together do not come back together. Default `None`: as old as they like. With it
    /// clients spread over new endpoints of whatever balances in front.
    pub max_age: Option<Duration>,
    /// Requests after which a connection is told to finish. Default 0, which is no bound: nothing here grows with them, and a client that
    /// does not expect the end of its connection may count it as a failure.
    pub max_requests: u64,
    /// How long a client that is still sending when its connection is closed is read from (16 MiB at most), so that
    /// the last answer is not lost to a reset. Default 2 s. 0 closes at once.
    pub linger: Duration,
    /// What becomes of a request whose client goes away. Default [`OnDisconnect::Cancel`].
    pub on_disconnect: OnDisconnect,
    /// HTTP/1.1: fields in a head; one with more is answered 431. Default 100.
    pub max_headers: usize,
    /// Bytes of a head: HTTP/1.1's request line and fields, HTTP/2's decoded field list (RFC 9113 section 6.5.2,
    /// SETTINGS_MAX_HEADER_LIST_SIZE). Default 64 KiB.
    pub max_header_bytes: usize,
    /// HTTP/1.1: bytes of the read buffer of a connection, at least 8 KiB. It grows to this only while a body comes in
    /// fast. Default 128 KiB.
    pub max_read_buffer: usize,
    /// HTTP/1.1: remember the case of request field names. It reaches only a `hyper` client that keeps it too: hyper has no
    /// public way to read it, so another client, ours among them, writes lower case. Default `false`: it costs memory
    /// per request, and names have no case (RFC 9110 section 5.1).
    pub preserve_header_case: bool,
    /// HTTP/1.1: write the field names of responses as `Content-Length`, for clients that read no other. Default `false`: as
    /// `content-length`.
    pub title_case_headers: bool,
    /// HTTP/2 without TLS, by prior knowledge (RFC 9113 section 3.3). Default `true`. Without, its preface is answered 400.
    /// HTTP/2 by ALPN is the TLS side's choice.
    pub h2c: bool,
    /// HTTP/2: offer extended CONNECT (RFC 8441, SETTINGS_ENABLE_CONNECT_PROTOCOL), by which browsers open WebSockets.
    /// Default `false`: browsers that see it open every WebSocket so, and a service must know how to answer. It finds the protocol as a [`hyper::ext::Protocol`] among the extensions.
    pub h2_extended_connect: bool,
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
    /// HTTP/2: streams that a client may reset in ten seconds, whatever became of them before; past it the connection is
    /// closed. Default 1,000: a browser that leaves a page resets all of its streams at once, and not ten times a second.
    pub h2_max_resets: u32,
    /// HTTP/2: frames that cost work and carry nothing (PING, SETTINGS, PRIORITY, unknown and empty ones) in ten seconds; past
    /// it the connection is closed. Default 10,000: libraries that measure the path send a PING per round trip.
    pub h2_max_control_frames: u32,
    /// HTTP/2: a PING after this much silence. Default 30 s.
    pub h2_ping_interval: Duration,
    /// HTTP/2: how long its answer may take before the connection is given up. Default 10 s.
    pub h2_ping_timeout: Duration,
}

/// What becomes of a request whose client goes away before the end of its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnDisconnect {
    /// The service's future is dropped, or its response body is.
    #[default]
    Cancel,
    /// It goes on in a task of its own, and its response is thrown away. A request whose own body was cut short fails all the
    /// same. Costs two boxes per request.
    Finish {
        /// At most so many at a time for one call of [`serve`](crate::serve); the others are dropped.
        max: usize,
        /// At most this long from the disconnect on.
        within: Duration,
    },
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            first_request_timeout: Duration::from_secs(30),
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            release_after: Duration::from_secs(1),
            send_timeout: Duration::from_secs(30),
            min_send_rate: 256,
            min_body_rate: 256,
            body_grace: Duration::from_secs(10),
            max_age: None,
            max_requests: 0,
            linger: Duration::from_secs(2),
            on_disconnect: OnDisconnect::Cancel,
            max_headers: 100,
            max_header_bytes: 64 << 10,
            max_read_buffer: 128 << 10,
            preserve_header_case: false,
            title_case_headers: false,
            h2c: true,
            h2_extended_connect: false,
            h2_max_streams: 100,
            h2_stream_window: 64 << 10,
            h2_connection_window: 1 << 20,
            h2_send_buffer: 64 << 10,
            h2_max_pending_resets: 20,
            h2_max_local_resets: 64,
            h2_max_resets: 1000,
            h2_max_control_frames: 10_000,
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
    with_first_request_timeout => first_request_timeout: Duration,
    with_idle_timeout => idle_timeout: Duration,
    with_release_after => release_after: Duration,
    with_send_timeout => send_timeout: Duration,
    with_min_send_rate => min_send_rate: u32,
    with_min_body_rate => min_body_rate: u32,
    with_body_grace => body_grace: Duration,
    with_max_age => max_age: Option<Duration>,
    with_max_requests => max_requests: u64,
    with_linger => linger: Duration,
    with_on_disconnect => on_disconnect: OnDisconnect,
    with_title_case_headers => title_case_headers: bool,
    with_h2c => h2c: bool,
    with_h2_extended_connect => h2_extended_connect: bool,
    with_h2_max_resets => h2_max_resets: u32,
    with_h2_max_control_frames => h2_max_control_frames: u32,
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
