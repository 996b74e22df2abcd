//! The error codes of RFC 9114 section 8.1 that this crate sends by itself.

use quinn::VarInt;

pub(crate) const NO_ERROR: u32 = 0x100;
pub(crate) const INTERNAL_ERROR: u32 = 0x102;
pub(crate) const FRAME_UNEXPECTED: u32 = 0x105;
pub(crate) const FRAME_ERROR: u32 = 0x106;
pub(crate) const EXCESSIVE_LOAD: u32 = 0x107;
pub(crate) const REQUEST_REJECTED: u32 = 0x10b;
pub(crate) const REQUEST_CANCELLED: u32 = 0x10c;
pub(crate) const REQUEST_INCOMPLETE: u32 = 0x10d;
pub(crate) const MESSAGE_ERROR: u32 = 0x10e;

pub(crate) const fn var(code: u32) -> VarInt {
    VarInt::from_u32(code)
}
