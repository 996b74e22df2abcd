//! Every limit and deadline of an endpoint.

use std::time::Duration;

use crate::{ConnectionIds, EndpointError, QuicKeys, Traces, outgoing::GATHER};

/// What a handshake may have in flight out of order; a client's certificate chain fits.
pub(crate) const CRYPTO_BUFFER: usize = 16 * 1024;
/// What a frame on a control stream may have.
const CONTROL_FRAME: u64 = 16 * 1024;
/// State of a connection without anything in flight.
const IDLE: u64 = 30 * 1024;

/// Limits and deadlines of QUIC and HTTP/3.
///
/// What a connection holds at most is told by [`QuicOptions::worst_case`], 8.4 MiB with the defaults; an idle one holds some 30 KiB.
///
/// What the QUIC stack below decides alone: sending is paced always, at the rate that the congestion controller allows; packets say that they
/// understand congestion marks (ECN, RFC 9000 section 13.4) until a path proves not to carry that; several packets are taken from the kernel
/// at once (GRO) where it has them.
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
    /// Bytes of early packets kept for one connection attempt that is not taken up yet. Default 16 KiB.
    pub incoming_buffer_size: u64,
    /// The same for all attempts of an endpoint together. Default 4 MiB. At least `incoming_buffer_size`.
    pub incoming_buffer_total: u64,
    /// When a client must prove its address before we keep anything for it. Default [`Retry::UnderLoad`].
    pub retry: Retry,
    /// Running handshakes from which on [`Retry::UnderLoad`] has clients prove their address. Default `None`: a quarter of `max_incoming`. From 1 to
    /// `max_incoming`.
    pub retry_threshold: Option<usize>,
    /// How long a client may prove its address by a token that it was given there (RFC 9000 section 8.1.3), which spares it a round trip and lets its requests be
    /// early. Default 1 h: an address changes hands. At most 14 days; zero hands out none.
    pub token_lifetime: Duration,
    /// What tokens and stateless resets are made with. Default `None`: secrets that the endpoints of one [`crate::ConnLimits`] share and nobody else has.
    pub keys: Option<QuicKeys>,
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
    /// Which congestion controller says how much may be on its way. Default [`Congestion::Cubic`].
    pub congestion: Congestion,
    /// Bytes that may be on their way before a path is known (RFC 9002 section 7.2). Default `None`: 12,000 with CUBIC and NewReno, 240,000 with BBR. More answers sooner and
    /// floods a narrow path. From 2400 to 1 MiB.
    pub initial_congestion_window: Option<u64>,
    /// UDP payload bytes that every path carries: the search never goes below. Default 1200 (RFC 9000 section 14). Where a path carries less than this says, no
    /// connection comes about. From 1200 to `initial_mtu`.
    pub min_mtu: u16,
    /// UDP payload bytes that a connection begins with. Default 1200. More saves packets where paths are known; where one carries less, packets
    /// are lost until that is noticed. From `min_mtu` to `max_udp_payload`.
    pub initial_mtu: u16,
    /// Whether to look for the largest packet that fits the path (RFC 8899). Default `true`.
    pub mtu_discovery: bool,
    /// UDP payload bytes that the search may reach. Default 1452: an Ethernet frame over IPv6. From 1200 to 65527.
    pub max_udp_payload: u16,
    /// Whether several packets may be given to the kernel at once (GSO). Default `true`. Off costs a system call for each packet; some drivers want it.
    pub segmentation_offload: bool,
    /// Whether datagrams (RFC 9221) are taken and can be sent. Default `false`: they cost memory, and nobody reads them.
    pub datagrams: bool,
    /// Bytes of datagrams that may wait to be read, and as many that may wait to be sent, where there are any. The oldest are dropped then. Default
    /// 64 KiB. At least 1200.
    pub datagram_buffer: usize,
    /// Which connections are traced. Default `None`.
    pub traces: Option<Traces>,
    /// Bytes that a connection may hold at most, by [`QuicOptions::worst_case`]. Default `None`: what the other options come to.
    pub max_connection_memory: Option<u64>,
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
            incoming_buffer_total: 4 * 1024 * 1024,
            retry: Retry::default(),
            retry_threshold: None,
            token_lifetime: Duration::from_secs(3600),
            keys: None,
            max_field_section_size: 64 * 1024,
            max_fields: 100,
            max_frame_size: 64 * 1024,
            header_timeout: Duration::from_secs(10),
            send_timeout: Duration::from_secs(30),
            max_cancelled: 1000,
            extended_connect: false,
            congestion: Congestion::default(),
            initial_congestion_window: None,
            min_mtu: 1200,
            initial_mtu: 1200,
            mtu_discovery: true,
            max_udp_payload: 1452,
            segmentation_offload: true,
            datagrams: false,
            datagram_buffer: 64 * 1024,
            traces: None,
            max_connection_memory: None,
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
    /// While [`QuicOptions::retry_threshold`] handshakes are running. The default.
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
    with_incoming_buffer_total, incoming_buffer_total: u64;
    with_retry, retry: Retry;
    with_retry_threshold, retry_threshold: Option<usize>;
    with_token_lifetime, token_lifetime: Duration;
    with_keys, keys: Option<QuicKeys>;
    with_max_field_section_size, max_field_section_size: u64;
    with_max_fields, max_fields: usize;
    with_max_frame_size, max_frame_size: u64;
    with_header_timeout, header_timeout: Duration;
    with_send_timeout, send_timeout: Duration;
    with_max_cancelled, max_cancelled: u32;
    with_extended_connect, extended_connect: bool;
    with_congestion, congestion: Congestion;
    with_initial_congestion_window, initial_congestion_window: Option<u64>;
    with_min_mtu, min_mtu: u16;
    with_initial_mtu, initial_mtu: u16;
    with_mtu_discovery, mtu_discovery: bool;
    with_max_udp_payload, max_udp_payload: u16;
    with_segmentation_offload, segmentation_offload: bool;
    with_datagrams, datagrams: bool;
    with_datagram_buffer, datagram_buffer: usize;
    with_traces, traces: Option<Traces>;
    with_max_connection_memory, max_connection_memory: Option<u64>;
    with_migration, migration: bool;
    with_connection_ids, connection_ids: ConnectionIds;
}

impl QuicOptions {
    /// Finds the first option that is out of bounds.
    pub fn check(&self) -> Result<(), EndpointError> {
        let (int_max, mib, days) = (quinn::VarInt::MAX.into_inner(), 1 << 20, 14 * 86_400);
        let threshold = self.retry_threshold.unwrap_or(1);
        let window = self.initial_congestion_window.unwrap_or(2400);
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
            (
                self.incoming_buffer_total >= self.incoming_buffer_size,
                "incoming_buffer_total",
                "at least incoming_buffer_size",
            ),
            ((1..=self.max_incoming).contains(&threshold), "retry_threshold", "from 1 to max_incoming"),
            (self.token_lifetime <= Duration::from_secs(days), "token_lifetime", "at most 14 days"),
            (self.max_field_section_size >= 1024, "max_field_section_size", "at least 1 KiB"),
            (self.max_field_section_size <= int_max, "max_field_section_size", "less than 2^62"),
            (self.max_frame_size >= 1024, "max_frame_size", "at least 1 KiB"),
            (!self.send_timeout.is_zero(), "send_timeout", "more than nothing"),
            ((2400..=mib).contains(&window), "initial_congestion_window", "from 2400 to 1 MiB"),
            (self.min_mtu >= 1200, "min_mtu", "at least 1200 (RFC 9000 section 14)"),
            (self.initial_mtu >= self.min_mtu, "initial_mtu", "at least min_mtu"),
            (self.max_udp_payload >= 1200, "max_udp_payload", "at least 1200 (RFC 9000 section 14.1)"),
            (self.initial_mtu <= self.max_udp_payload, "initial_mtu", "at most max_udp_payload"),
            (self.max_udp_payload <= 65_527, "max_udp_payload", "at most 65527"),
            (self.datagram_buffer >= 1200, "datagram_buffer", "at least 1200"),
        ];
        if let Some((_, option, reason)) = rules.into_iter().find(|(holds, ..)| !holds) {
            return Err(EndpointError::Option { option, reason });
        }
        match self.max_connection_memory {
            Some(max) if self.worst_case() > max => {
                Err(EndpointError::Memory { worst: self.worst_case(), max, option: self.largest() })
            }
            _ => Ok(()),
        }
    }

    /// Bytes that a connection holds at most: what is unread and unacknowledged, of every stream a frame that is not complete or what is gathered of its
    /// response, the handshake, datagrams, and its own state. One frame of a service's body for each response that its client does not take is not in it:
    /// how large those are is the service's choice.
    pub fn worst_case(&self) -> u64 {
        let parts = self.parts().into_iter().map(|(_, bytes)| bytes);
        parts.fold(IDLE + CRYPTO_BUFFER as u64, u64::saturating_add)
    }

    /// What of it which option bounds.
    fn parts(&self) -> [(&'static str, u64); 5] {
        let (bidi, uni) = (u64::from(self.max_bidi_streams), u64::from(self.max_uni_streams));
        // a head is there as a frame or as its fields, never both whole; and once it is answered, what is gathered of the response
        let head = self.max_frame_size.max(self.max_field_section_size).max(GATHER as u64);
        let datagrams = if self.datagrams { 2 * self.datagram_buffer as u64 } else { 0 };
        [
            ("max_bidi_streams", bidi.saturating_mul(head)),
            ("connection_window", self.connection_window.into()),
            ("send_window", self.send_window),
            ("max_uni_streams", uni * CONTROL_FRAME),
            ("datagram_buffer", datagrams),
        ]
    }

    /// The option that bounds most of it.
    fn largest(&self) -> &'static str {
        self.parts().into_iter().max_by_key(|(_, bytes)| *bytes).map_or("", |(option, _)| option)
    }

    /// Whether a client must prove its address while so many handshakes are running.
    pub(crate) fn must_prove(&self, running: usize) -> bool {
        match self.retry {
            Retry::Never => false,
            Retry::UnderLoad => running >= self.retry_threshold.unwrap_or(self.max_incoming.div_ceil(4)),
            Retry::Always => true,
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

    #[test]
    fn the_worst_case_is_held_against_the_ceiling() {
        let options = QuicOptions::default();
        // 1 MiB each way, 100 heads of 64 KiB, 8 frames of 16 KiB, 16 KiB for the handshake, 30 KiB
        assert_eq!(options.worst_case(), (2 << 20) + 100 * (64 << 10) + 8 * (16 << 10) + (46 << 10));
        let most = options.worst_case();
        options.clone().with_max_connection_memory(Some(most)).check().unwrap();
        let error = options.with_datagrams(true).with_max_connection_memory(Some(most)).check().unwrap_err();
        assert_eq!(
            error.to_string(),
            "a connection may hold 8960000 bytes, more than the 8828928 that it may: lower max_bidi_streams first"
        );
        let wide =
            QuicOptions::default().with_send_window(64 << 20).with_max_connection_memory(Some(1 << 20));
        assert!(wide.check().unwrap_err().to_string().ends_with("lower send_window first"));
    }

    #[test]
    fn sizes_of_packets_rise_from_floor_to_ceiling() {
        let option = |options: QuicOptions| match options.check().unwrap_err() {
            EndpointError::Option { option, .. } => option,
            other => panic!("{other}"),
        };
        let options = QuicOptions::default;
        assert_eq!(option(options().with_min_mtu(1199)), "min_mtu");
        assert_eq!(option(options().with_min_mtu(1300)), "initial_mtu");
        assert_eq!(option(options().with_initial_mtu(1453)), "initial_mtu");
        options().with_min_mtu(1300).with_initial_mtu(1400).check().unwrap();
    }

    #[test]
    fn addresses_are_asked_for_from_the_threshold_on() {
        let options = QuicOptions::default().with_max_incoming(10);
        assert!(!options.must_prove(2) && options.must_prove(3));
        let options = options.with_retry_threshold(Some(5));
        assert!(!options.must_prove(4) && options.must_prove(5));
        assert!(options.clone().with_retry(Retry::Always).must_prove(0));
        assert!(!options.clone().with_retry(Retry::Never).must_prove(100));
        assert!(options.with_retry_threshold(Some(11)).check().is_err());
    }
}
