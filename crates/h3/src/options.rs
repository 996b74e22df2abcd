//! Every limit and deadline of an endpoint.

use std::time::Duration;

use crate::{ConnectionIds, EndpointError};

/// Limits and deadlines of QUIC and HTTP/3.
///
/// A connection holds at most about `connection_window` (request bodies on their way in) + `send_window` (responses
/// on their way out) + `max_bidi_streams` x `max_frame_size` (request heads that are not complete), which is
/// 8.3 MiB with the defaults; an idle one holds some 30 KiB. Each response that its client does not take holds besides what is in hand, until
/// `send_timeout`: 64 KiB gathered for the next write, and one frame of the service's body.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuicOptions {
    /// Requests that a client may have open at a time on a connection (`initial_max_streams_bidi`, RFC 9000
    /// section 18.2). Default 100, the least that RFC 9114 section 6.1 advises. At least 1.
    pub max_bidi_streams: u32,
    /// Unidirectional streams that a client may have open at a time. Default 8: HTTP/3 uses 3 (control and two for
    /// QPACK, RFC 9114 section 6.2), clients add a few reserved ones. At least 3; each may hold `stream_window`.
    pub max_uni_streams: u32,
    /// Bytes of one stream that may be on their way or unread. Default 64 KiB: one upload reaches 10 Mbit/s at a
    /// round trip of 50 ms, and it takes 16 stalled uploads to fill `connection_window`. At least 1 KiB.
    pub stream_window: u32,
    /// The same for all streams of a connection together: what its unread request bodies may hold. Default 1 MiB. At
    /// least `stream_window`.
    pub connection_window: u32,
    /// Bytes of responses per connection that are written but not acknowledged. Default 1 MiB: 160 Mbit/s at a
    /// round trip of 50 ms. At least 4 KiB.
    pub send_window: u64,
    /// How long a connection may be silent before it is dropped (RFC 9000 section 10.1). Default 30 s. At least
    /// 1 s.
    pub max_idle_timeout: Duration,
    /// How often to ping a silent client so that its connection stays. Default `None`: a client that has gone is
    /// forgotten after `max_idle_timeout`.
    pub keep_alive: Option<Duration>,
    /// How long the handshake and the first HTTP/3 streams may take. Default 10 s.
    pub handshake_timeout: Duration,
    /// Handshakes that an endpoint runs at a time; past it new connections are refused. Each holds some 64 KiB until
    /// `handshake_timeout`. Default 1024. At least 1.
    pub max_incoming: usize,
    /// Bytes of early packets kept for one connection attempt that is not taken up yet. Default 16 KiB. All attempts
    /// of an endpoint together keep 4 MiB at most.
    pub incoming_buffer_size: u64,
    /// When a client must prove its address before we keep anything for it. Default [`Retry::UnderLoad`].
    pub retry: Retry,
    /// Bytes of a request's head or trailers once decompressed, counted as RFC 9114 section 4.2.2 does. Default
    /// 64 KiB. Past it the answer is 431.
    pub max_field_section_size: u64,
    /// Fields in a request's head or trailers. Default 100. Past it the answer is 431.
    pub max_fields: usize,
    /// Payload bytes of a frame other than DATA; frames are buffered whole, so each open stream can hold this much.
    /// Default 64 KiB. A longer one is refused by its header (`H3_EXCESSIVE_LOAD`). Frames on the control stream
    /// are bounded by 16 KiB as well. At least 1 KiB.
    pub max_frame_size: u64,
    /// How long a request's head may take from the moment its stream is open. Default 10 s.
    pub header_timeout: Duration,
    /// How long a response may stand still because the client takes no more of it, whatever else the client sends;
    /// after that the stream is reset. Default 30 s; it is noticed after twice that at the latest.
    pub send_timeout: Duration,
    /// Requests that a client may give up on one connection within 10 s, before their head is complete or before
    /// their response is; past it the connection is closed with `H3_EXCESSIVE_LOAD`. Default 1000: a page that is
    /// left cancels a few hundred.
    pub max_cancelled: u32,
    /// Whether extended CONNECT is offered (RFC 9220), by which browsers open WebSockets on a stream of their own. Default
    /// `false`: a browser that sees it opens every WebSocket so, and a service must know how to answer. It finds the protocol
    /// in a `portcullis_conn::ConnectProtocol` and the stream by [`crate::OnTunnel`], both among the extensions. Without the offer
    /// such a request is malformed.
    pub extended_connect: bool,
    /// Which congestion controller paces what we send. Default [`Congestion::Cubic`].
    pub congestion: Congestion,
    /// Whether to look for the largest packet that fits the path (RFC 8899). Default `true`.
    pub mtu_discovery: bool,
    /// UDP payload bytes that the search may reach. Default 1452: an Ethernet frame over IPv6. From 1200 to 65527.
    pub max_udp_payload: u16,
    /// Whether several packets may be given to the kernel at once (GSO). Default `true`.
    pub segmentation_offload: bool,
    /// Whether a client may go on from another address (RFC 9000 section 9). Default `true`: phones change networks.
    pub migration: bool,
    /// What connection ids look like. Default: 8 bytes that name the worker and no instance.
    pub connection_ids: ConnectionIds,
}

impl Default for QuicOptions {
    fn default() -> Self {
        Self {
            max_bidi_streams: 100,
            max_uni_streams: 8,
            stream_window: 64 * 1024,
            connection_window: 1024 * 1024,
            send_window: 1024 * 1024,
            max_idle_timeout: Duration::from_secs(30),
            keep_alive: None,
            handshake_timeout: Duration::from_secs(10),
            max_incoming: 1024,
            incoming_buffer_size: 16 * 1024,
            retry: Retry::default(),
            max_field_section_size: 64 * 1024,
            max_fields: 100,
            max_frame_size: 64 * 1024,
            header_timeout: Duration::from_secs(10),
            send_timeout: Duration::from_secs(30),
            max_cancelled: 1000,
            extended_connect: false,
            congestion: Congestion::default(),
            mtu_discovery: true,
            max_udp_payload: 1452,
            segmentation_offload: true,
            migration: true,
            connection_ids: ConnectionIds::default(),
        }
    }
}

/// When a client must prove its address with a Retry (RFC 9000 section 8.1.2), which costs it a round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Retry {
    /// Never.
    Never,
    /// While a quarter of `max_incoming` handshakes are running. The default.
    #[default]
    UnderLoad,
    /// Always.
    Always,
}

/// A congestion controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Congestion {
    /// CUBIC (RFC 9438). The default.
    #[default]
    Cubic,
    /// NewReno (RFC 9002 section 7).
    NewReno,
    /// BBR, version 1; experimental in the QUIC stack below.
    Bbr,
}

macro_rules! setters {
    ($($name:ident, $field:ident: $type:ty;)*) => {
        impl QuicOptions {
            $(
                #[doc = concat!("Sets [`QuicOptions::", stringify!($field), "`].")]
                #[must_use]
                pub fn $name(mut self, value: $type) -> Self {
                    self.$field = value;
                    self
                }
            )*
        }
    };
}

setters! {
    with_max_bidi_streams, max_bidi_streams: u32;
    with_max_uni_streams, max_uni_streams: u32;
    with_stream_window, stream_window: u32;
    with_connection_window, connection_window: u32;
    with_send_window, send_window: u64;
    with_max_idle_timeout, max_idle_timeout: Duration;
    with_keep_alive, keep_alive: Option<Duration>;
    with_handshake_timeout, handshake_timeout: Duration;
    with_max_incoming, max_incoming: usize;
    with_incoming_buffer_size, incoming_buffer_size: u64;
    with_retry, retry: Retry;
    with_max_field_section_size, max_field_section_size: u64;
    with_max_fields, max_fields: usize;
    with_max_frame_size, max_frame_size: u64;
    with_header_timeout, header_timeout: Duration;
    with_send_timeout, send_timeout: Duration;
    with_max_cancelled, max_cancelled: u32;
    with_extended_connect, extended_connect: bool;
    with_congestion, congestion: Congestion;
    with_mtu_discovery, mtu_discovery: bool;
    with_max_udp_payload, max_udp_payload: u16;
    with_segmentation_offload, segmentation_offload: bool;
    with_migration, migration: bool;
    with_connection_ids, connection_ids: ConnectionIds;
}

impl QuicOptions {
    /// Finds the first option that is out of bounds.
    pub fn check(&self) -> Result<(), EndpointError> {
        let int_max = quinn::VarInt::MAX.into_inner();
        let rules = [
            (self.max_bidi_streams >= 1, "max_bidi_streams", "at least 1"),
            (self.max_uni_streams >= 3, "max_uni_streams", "at least 3: HTTP/3 uses that many"),
            (self.stream_window >= 1024, "stream_window", "at least 1 KiB"),
            (self.connection_window >= self.stream_window, "connection_window", "at least stream_window"),
            (self.send_window >= 4096, "send_window", "at least 4 KiB"),
            (self.max_idle_timeout >= Duration::from_secs(1), "max_idle_timeout", "at least 1 s"),
            (self.max_idle_timeout <= Duration::from_secs(86_400), "max_idle_timeout", "at most a day"),
            (self.keep_alive.is_none_or(|every| !every.is_zero()), "keep_alive", "more than nothing"),
            (self.max_incoming >= 1, "max_incoming", "at least 1"),
            (self.max_field_section_size >= 1024, "max_field_section_size", "at least 1 KiB"),
            (self.max_field_section_size <= int_max, "max_field_section_size", "less than 2^62"),
            (self.max_frame_size >= 1024, "max_frame_size", "at least 1 KiB"),
            (!self.send_timeout.is_zero(), "send_timeout", "more than nothing"),
            (self.max_udp_payload >= 1200, "max_udp_payload", "at least 1200 (RFC 9000 section 14.1)"),
            (self.max_udp_payload <= 65_527, "max_udp_payload", "at most 65527"),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            Some((_, option, reason)) => Err(EndpointError::Option { option, reason }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_hold() {
        QuicOptions::default().check().unwrap();
    }

    #[test]
    fn the_first_broken_rule_is_named() {
        let bad = QuicOptions::default().with_max_uni_streams(2).with_max_incoming(0);
        let error = bad.check().unwrap_err();
        assert!(matches!(error, EndpointError::Option { option: "max_uni_streams", .. }), "{error}");
        assert_eq!(
            error.to_string(),
            "option max_uni_streams is out of bounds: at least 3: HTTP/3 uses that many"
        );
    }
}
