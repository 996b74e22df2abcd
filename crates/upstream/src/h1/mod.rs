//! HTTP/1.1 towards an endpoint, driven by whoever holds the connection.

mod conn;
mod decode;
mod encode;
mod head;
mod pump;
mod trailers;

pub(crate) use conn::{ExchangeError, H1Conn};
pub(crate) use decode::{Decoded, Decoder};
pub(crate) use encode::{RequestFraming, encode_head, framing_of, parse_length};
pub(crate) use head::ResponseHead;
pub(crate) use pump::{Pump, PumpError};
pub(crate) use trailers::allowed as allowed_trailers;
