//! HTTP/1.1 towards an endpoint, driven by whoever holds the connection.

mod conn;
mod decode;
mod encode;
mod head;
mod pump;
mod trailers;

pub(crate) use conn::{ExchangeError, H1Conn};
pub(crate) use decode::{Decoded, Decoder};
pub(crate) use encode::{RequestFraming, encode_head, framing_of};
pub(crate) use head::ResponseHead;
pub(crate) use pump::{Pump, PumpError};
