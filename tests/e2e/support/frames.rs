//! HTTP/2 frames made by hand (RFC 9113 section 4, RFC 7541), as no library would send them.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::timeout,
};

use super::SOON;

/// RFC 9113 section 3.4 and an empty SETTINGS frame.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// RFC 7541 section 5.1, behind a prefix of so many bits.
fn integer(first: u8, bits: u8, value: usize, out: &mut Vec<u8>) {
    let most = (1 << bits) - 1;
    if value < most {
        return out.push(first | u8::try_from(value).unwrap());
    }
    out.push(first | u8::try_from(most).unwrap());
    let mut rest = value - most;
    while rest >= 128 {
        out.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    out.push(u8::try_from(rest).unwrap());
}

fn string(bytes: &[u8], out: &mut Vec<u8>) {
    integer(0, 7, bytes.len(), out);
    out.extend(bytes);
}

/// A field without indexing and without Huffman (RFC 7541 section 6.2.2).
pub(crate) fn field(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    let mut out = vec![0];
    string(name.as_ref(), &mut out);
    string(value.as_ref(), &mut out);
    out
}

/// A field that goes into the dynamic table (RFC 7541 section 6.2.1).
pub(crate) fn indexed(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    let mut out = field(name, value);
    out[0] = 0x40;
    out
}

/// The pseudo-fields of a request, and more.
pub(crate) fn block(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "a.test")];
    fields(&pseudo).into_iter().chain(fields(more)).collect()
}

pub(crate) fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// What became of stream 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) status: Option<u16>,
    pub(crate) body: Vec<u8>,
    /// END_STREAM came.
    pub(crate) ended: bool,
    /// The code of a RST_STREAM for it.
    pub(crate) reset: Option<u32>,
    /// The code of a GOAWAY.
    pub(crate) goaway: Option<u32>,
    pub(crate) closed: bool,
}

/// Reads until stream 1 has its answer, or the connection is given up.
pub(crate) async fn outcome(io: &mut (impl AsyncRead + Unpin)) -> Outcome {
    let (mut got, mut found) = (Vec::new(), Outcome::default());
    loop {
        while let Some((kind, flags, stream, payload)) = take_frame(&mut got) {
            match (kind, stream) {
                (HEADERS, 1) => {
                    found.status = found.status.or(status(&payload));
                    found.ended |= flags & END_STREAM != 0;
                }
                (DATA, 1) => {
                    found.body.extend(payload);
                    found.ended |= flags & END_STREAM != 0;
                }
                (RST_STREAM, 1) => found.reset = Some(u32::from_be_bytes(payload[..4].try_into().unwrap())),
                (GOAWAY, _) => found.goaway = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap())),
                _ => {}
            }
        }
        // a reset may follow an early answer, and the end of the connection a GOAWAY
        let done = found.ended || found.reset.is_some();
        let patience = if done { Duration::from_millis(50) } else { SOON };
        match timeout(patience, io.read_buf(&mut got)).await {
            Ok(Ok(0) | Err(_)) => {
                found.closed = true;
                return found;
            }
            Ok(Ok(_)) => {}
            Err(_) => return found,
        }
    }
}

/// The first whole frame: type, flags, stream and payload.
pub(crate) fn take_frame(got: &mut Vec<u8>) -> Option<(u8, u8, u32, Vec<u8>)> {
    let head: [u8; 9] = got.get(..9)?.try_into().unwrap();
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    let payload = got.get(9..9 + length)?.to_vec();
    got.drain(..9 + length);
    Some((head[3], head[4], u32::from_be_bytes(head[5..9].try_into().unwrap()), payload))
}

/// The status that a field block begins with, in the forms that servers write: indexed, or a literal of three digits.
fn status(block: &[u8]) -> Option<u16> {
    // a change of the table's size may stand before it (RFC 7541 section 6.3)
    let block = if block[0] & 0xe0 == 0x20 { &block[1..] } else { block };
    match *block {
        [indexed @ 0x88..=0x8e, ..] => Some([200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)]),
        [0x08 | 0x18 | 0x48, 3, a, b, c, ..] => std::str::from_utf8(&[a, b, c]).ok()?.parse().ok(),
        [0x08 | 0x18 | 0x48, length, ref rest @ ..] if length & 0x80 != 0 => {
            digits(&rest[..usize::from(length & 0x7f)])
        }
        _ => None,
    }
}

/// Three digits in the code of RFC 7541 appendix B: five bits for 0 to 2, six for the others.
fn digits(huffman: &[u8]) -> Option<u16> {
    let bits: Vec<u8> = huffman.iter().flat_map(|b| (0..8).rev().map(move |at| b >> at & 1)).collect();
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let code = |length: usize| {
            bits.get(at..at + length).map(|bits| bits.iter().fold(0, |sum, b| sum << 1 | u16::from(*b)))
        };
        match (code(5)?, code(6)) {
            (digit @ 0..=2, _) => (number, at) = (number * 10 + digit, at + 5),
            (_, Some(digit @ 25..=31)) => (number, at) = (number * 10 + digit - 22, at + 6),
            _ => return None,
        }
    }
    Some(number)
}

#[test]
fn statuses_are_read() {
    assert_eq!(status(&[0x88]), Some(200));
    assert_eq!(status(b"\x48\x03431"), Some(431));
    // 431: 011010 011001 00001 and padding
    assert_eq!(status(&[0x48, 0x83, 0b0110_1001, 0b1001_0000, 0b1111_1111]), Some(431));
    assert_eq!(frame(DATA, END_STREAM, 1, "ab"), b"\0\0\x02\0\x01\0\0\0\x01ab");
}
