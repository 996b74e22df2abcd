//! Where a response body ends.

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::head::parse_trailers;
use crate::ProtocolError;

/// Bytes of chunk extensions in one body. They mean nothing here (RFC 9112 section 7.1.1: ignore what is not
/// known), so a peer gets little room for them.
const MAX_EXTENSION_BYTES: u32 = 16 << 10;

/// Takes body data out of what was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decoder {
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Done,
    Length(u64),
    UntilClose,
    Chunked { state: Chunk, extensions: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    /// Before the first digit of a chunk size.
    Start,
    /// Inside a chunk size.
    Size(u64),
    /// Inside a chunk extension.
    Extension(u64),
    /// After the CR that ends the chunk-size line.
    SizeLf(u64),
    /// Inside chunk data.
    Data(u64),
    /// After chunk data.
    DataCr,
    /// After the CR that follows chunk data.
    DataLf,
    /// After the last chunk.
    Trailers,
}

/// What the decoder found.
#[derive(Debug)]
pub(crate) enum Decoded {
    Data(Bytes),
    Trailers(HeaderMap),
    /// More has to be read.
    Need,
    Done,
}

impl Decoder {
    pub(crate) fn none() -> Self {
        Self { kind: Kind::Done }
    }

    pub(crate) fn length(length: u64) -> Self {
        Self { kind: if length == 0 { Kind::Done } else { Kind::Length(length) } }
    }

    pub(crate) fn until_close() -> Self {
        Self { kind: Kind::UntilClose }
    }

    pub(crate) fn chunked() -> Self {
        Self { kind: Kind::Chunked { state: Chunk::Start, extensions: 0 } }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.kind == Kind::Done
    }

    /// What is left, where that is known.
    pub(crate) fn remaining(&self) -> Option<u64> {
        match self.kind {
            Kind::Done => Some(0),
            Kind::Length(left) => Some(left),
            Kind::UntilClose | Kind::Chunked { .. } => None,
        }
    }

    /// The end of the stream: clean only where the body ends with it. A chunked body that is cut short is an error
    /// and never passed on as whole (RFC 9112 section 8).
    pub(crate) fn eof(&mut self) -> bool {
        let clean = matches!(self.kind, Kind::Done | Kind::UntilClose);
        self.kind = Kind::Done;
        clean
    }

    pub(crate) fn decode(
        &mut self,
        buf: &mut BytesMut,
        max_trailers: usize,
    ) -> Result<Decoded, ProtocolError> {
        match &mut self.kind {
            Kind::Done => Ok(Decoded::Done),
            _ if buf.is_empty() => Ok(Decoded::Need),
            Kind::UntilClose => Ok(Decoded::Data(buf.split().freeze())),
            Kind::Length(left) => {
                let data = take(buf, left);
                if *left == 0 {
                    self.kind = Kind::Done;
                }
                Ok(Decoded::Data(data))
            }
            Kind::Chunked { state, extensions } => {
                let decoded = decode_chunk(state, extensions, buf, max_trailers)?;
                if matches!(decoded, Decoded::Trailers(_) | Decoded::Done) {
                    self.kind = Kind::Done;
                }
                Ok(decoded)
            }
        }
    }
}

fn take(buf: &mut BytesMut, left: &mut u64) -> Bytes {
    let size = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
    *left -= size as u64;
    buf.split_to(size).freeze()
}

/// RFC 9112 section 7.1, with CRLF and nothing else as line end.
fn decode_chunk(
    state: &mut Chunk,
    extensions: &mut u32,
    buf: &mut BytesMut,
    max_trailers: usize,
) -> Result<Decoded, ProtocolError> {
    loop {
        match *state {
            Chunk::Data(ref left) if *left > 0 => {
                if buf.is_empty() {
                    return Ok(Decoded::Need);
                }
                let mut left = *left;
                let data = take(buf, &mut left);
                *state = if left == 0 { Chunk::DataCr } else { Chunk::Data(left) };
                return Ok(Decoded::Data(data));
            }
            Chunk::Trailers => {
                if buf.starts_with(b"\r\n") {
                    buf.advance(2);
                    return Ok(Decoded::Done);
                }
                return Ok(match parse_trailers(buf, max_trailers)? {
                    Some(trailers) => Decoded::Trailers(trailers),
                    None => Decoded::Need,
                });
            }
            _ => {}
        }
        let Some(byte) = buf.first().copied() else { return Ok(Decoded::Need) };
        buf.advance(1);
        *state = next_state(*state, byte, extensions)?;
    }
}

fn next_state(state: Chunk, byte: u8, extensions: &mut u32) -> Result<Chunk, ProtocolError> {
    let digit = char::from(byte).to_digit(16).map(u64::from);
    Ok(match (state, byte) {
        (Chunk::Start, _) => Chunk::Size(digit.ok_or(ProtocolError::Chunk)?),
        (Chunk::Size(size), b'\r') => Chunk::SizeLf(size),
        (Chunk::Size(size), b';') => Chunk::Extension(size),
        (Chunk::Size(size), _) => {
            let digit = digit.ok_or(ProtocolError::Chunk)?;
            // four bits must be free at the top: a size of 2^64 and more is an attack
            Chunk::Size(if size >> 60 == 0 { size << 4 | digit } else { return Err(ProtocolError::Chunk) })
        }
        (Chunk::Extension(size), b'\r') => Chunk::SizeLf(size),
        (Chunk::Extension(_), b'\n' | 0) => return Err(ProtocolError::Chunk),
        (Chunk::Extension(size), _) => {
            *extensions += 1;
            if *extensions > MAX_EXTENSION_BYTES {
                return Err(ProtocolError::Chunk);
            }
            Chunk::Extension(size)
        }
        (Chunk::SizeLf(0), b'\n') => Chunk::Trailers,
        (Chunk::SizeLf(size), b'\n') => Chunk::Data(size),
        (Chunk::DataCr, b'\r') => Chunk::DataLf,
        (Chunk::DataLf, b'\n') => Chunk::Start,
        (Chunk::SizeLf(_) | Chunk::DataCr | Chunk::DataLf | Chunk::Data(_) | Chunk::Trailers, _) => {
            return Err(ProtocolError::Chunk);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The data, the trailers and what was left over.
    type Whole = (Vec<u8>, Option<HeaderMap>, Vec<u8>);

    /// Feeds `input` in pieces of `step`.
    fn run(mut decoder: Decoder, input: &[u8], step: usize) -> Result<Whole, ProtocolError> {
        let (mut data, mut trailers, mut buf) = (Vec::new(), None, BytesMut::new());
        let mut pieces = input.chunks(step.max(1));
        loop {
            match decoder.decode(&mut buf, 1024)? {
                Decoded::Data(bytes) => data.extend_from_slice(&bytes),
                Decoded::Trailers(map) => trailers = Some(map),
                Decoded::Done => break,
                Decoded::Need => match pieces.next() {
                    Some(piece) => buf.extend_from_slice(piece),
                    None => {
                        if !decoder.eof() {
                            return Err(ProtocolError::Chunk);
                        }
                        break;
                    }
                },
            }
        }
        let mut rest = buf.to_vec();
        pieces.for_each(|piece| rest.extend_from_slice(piece));
        Ok((data, trailers, rest))
    }

    #[test]
    fn good_chunks() {
        for (text, data) in [
            ("0\r\n\r\n", ""),
            ("3\r\nabc\r\n0\r\n\r\n", "abc"),
            ("3;x=y\r\nabc\r\n000a\r\n0123456789\r\n0;last\r\n\r\n", "abc0123456789"),
            ("A\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
        ] {
            for step in 1..text.len() {
                let (got, trailers, rest) =
                    run(Decoder::chunked(), format!("{text}NEXT").as_bytes(), step).unwrap();
                assert_eq!(
                    (got.as_slice(), trailers.is_none(), rest.as_slice()),
                    (data.as_bytes(), true, &b"NEXT"[..])
                );
            }
        }
        let (data, trailers, _) =
            run(Decoder::chunked(), b"1\r\nx\r\n0\r\ngrpc-status: 0\r\n\r\n", 2).unwrap();
        assert_eq!((data, trailers.unwrap()["grpc-status"].to_str().unwrap()), (b"x".to_vec(), "0"));
    }

    #[test]
    fn bad_chunks() {
        for text in [
            "\r\n",
            "g\r\n",
            "-1\r\n",
            "3\nabc\r\n",
            "3\r\nabcd\r\n0\r\n\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "0x3\r\nabc\r\n",
            " 3\r\nabc\r\n",
            "3 \r\nabc\r\n",
            "10000000000000000\r\n",
            "fffffffffffffffff\r\n",
            "3;\nabc\r\n0\r\n\r\n",
            "3\r\nabc\r\n",
            "3\r\nab",
            "0\r\n",
            "0\r\na b: c\r\n\r\n",
        ] {
            assert!(run(Decoder::chunked(), text.as_bytes(), 64).is_err(), "{text:?}");
        }
        let extension = format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(20_000));
        assert!(run(Decoder::chunked(), extension.as_bytes(), 1000).is_err());
    }

    #[test]
    fn a_cut_body_is_an_error() {
        assert!(run(Decoder::length(4), b"abc", 8).is_err());
        assert_eq!(run(Decoder::length(3), b"abcd", 8).unwrap().2, b"d");
        assert_eq!(run(Decoder::until_close(), b"abc", 2).unwrap().0, b"abc");
    }

    proptest! {
        #[test]
        fn what_was_chunked_comes_back(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..8), step in 1usize..20) {
            let mut text = Vec::new();
            for part in &parts {
                text.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
                text.extend_from_slice(part);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\n\r\n");
            let (data, _, rest) = run(Decoder::chunked(), &text, step).unwrap();
            prop_assert_eq!(data, parts.concat());
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn garbage_never_panics(input in prop::collection::vec(any::<u8>(), 0..200), step in 1usize..20) {
            let _ = run(Decoder::chunked(), &input, step);
        }
    }
}
