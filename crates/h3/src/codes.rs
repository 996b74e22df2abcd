//! The error codes of RFC 9114 section 8.1 and RFC 9204 section 6.

use quinn::VarInt;

/// RFC 9297 section 5.2.
pub(crate) const DATAGRAM_ERROR: u32 = 0x33;
pub(crate) const NO_ERROR: u32 = 0x100;
pub(crate) const INTERNAL_ERROR: u32 = 0x102;
pub(crate) const STREAM_CREATION_ERROR: u32 = 0x103;
pub(crate) const CLOSED_CRITICAL_STREAM: u32 = 0x104;
pub(crate) const FRAME_UNEXPECTED: u32 = 0x105;
pub(crate) const FRAME_ERROR: u32 = 0x106;
pub(crate) const EXCESSIVE_LOAD: u32 = 0x107;
pub(crate) const ID_ERROR: u32 = 0x108;
pub(crate) const SETTINGS_ERROR: u32 = 0x109;
pub(crate) const MISSING_SETTINGS: u32 = 0x10a;
pub(crate) const REQUEST_REJECTED: u32 = 0x10b;
pub(crate) const REQUEST_CANCELLED: u32 = 0x10c;
pub(crate) const REQUEST_INCOMPLETE: u32 = 0x10d;
pub(crate) const MESSAGE_ERROR: u32 = 0x10e;
pub(crate) const CONNECT_ERROR: u32 = 0x10f;
pub(crate) const QPACK_DECOMPRESSION_FAILED: u32 = 0x200;
pub(crate) const QPACK_ENCODER_STREAM_ERROR: u32 = 0x201;
pub(crate) const QPACK_DECODER_STREAM_ERROR: u32 = 0x202;

pub(crate) const fn var(code: u32) -> VarInt {
    VarInt::from_u32(code)
}

/// All of RFC 9114 section 8.1 and RFC 9204 section 6, as they are called there.
pub(crate) const NAMES: [(u32, &str); 20] = [
    (0x100, "H3_NO_ERROR"),
    (0x101, "H3_GENERAL_PROTOCOL_ERROR"),
    (0x102, "H3_INTERNAL_ERROR"),
    (0x103, "H3_STREAM_CREATION_ERROR"),
    (0x104, "H3_CLOSED_CRITICAL_STREAM"),
    (0x105, "H3_FRAME_UNEXPECTED"),
    (0x106, "H3_FRAME_ERROR"),
    (0x107, "H3_EXCESSIVE_LOAD"),
    (0x108, "H3_ID_ERROR"),
    (0x109, "H3_SETTINGS_ERROR"),
    (0x10a, "H3_MISSING_SETTINGS"),
    (0x10b, "H3_REQUEST_REJECTED"),
    (0x10c, "H3_REQUEST_CANCELLED"),
    (0x10d, "H3_REQUEST_INCOMPLETE"),
    (0x10e, "H3_MESSAGE_ERROR"),
    (0x10f, "H3_CONNECT_ERROR"),
    (0x110, "H3_VERSION_FALLBACK"),
    (0x200, "QPACK_DECOMPRESSION_FAILED"),
    (0x201, "QPACK_ENCODER_STREAM_ERROR"),
    (0x202, "QPACK_DECODER_STREAM_ERROR"),
];
