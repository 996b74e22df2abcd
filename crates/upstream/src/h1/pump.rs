//! The request's way out: what is encoded and not yet written, and the body behind it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use http_body::Body;
use tokio::io::AsyncWrite;

use super::encode::{RequestFraming, encode_trailers};
use crate::{
    BoxError,
    upload::{Piece, Upload},
};

/// A body shorter than this is copied behind the head, so that both leave in one piece.
const COPY_BELOW: usize = 2048;

/// How far a request is on its way.
#[derive(Debug)]
pub(crate) struct Pump {
    chunked: bool,
    /// Data of the current frame that is not yet written.
    data: Bytes,
    /// Whether a chunk was begun: the next chunk line starts with its closing CRLF.
    in_chunk: bool,
    /// Whether the head goes out alone, and the body when the endpoint says so.
    hold: bool,
    /// Whether the connection holds back what was written to it, as one with TLS does.
    unflushed: bool,
    /// Bytes written to the connection.
    written: u64,
    ended: bool,
}

/// Why a request could not be sent whole.
#[derive(Debug)]
pub(crate) enum PumpError {
    /// The connection took no more.
    Io(io::Error),
    /// The body failed, or was longer or shorter than announced.
    Body(BoxError),
}

impl Pump {
    /// `hold` keeps the body back until [`Pump::release`].
    pub(crate) fn new(framing: RequestFraming, hold: bool) -> Self {
        let ended = framing == RequestFraming::None;
        let chunked = framing == RequestFraming::Chunked;
        Self {
            chunked,
            data: Bytes::new(),
            in_chunk: false,
            hold: hold && !ended,
            unflushed: false,
            written: 0,
            ended,
        }
    }

    /// Whether the body is kept back.
    pub(crate) fn is_held(&self) -> bool {
        self.hold
    }

    /// The body may go.
    pub(crate) fn release(&mut self) {
        self.hold = false;
    }

    /// Bytes written to the connection: with those taken from the body, what moves a deadline.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Ready when everything is written. Pending may mean that the connection takes no more or that the body has no
    /// more yet: in the second case nothing is unflushed, see [`Pump::unflushed`].
    pub(crate) fn poll<Io, B>(
        &mut self,
        upload: &mut Upload<B>,
        io: &mut Io,
        out: &mut BytesMut,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), PumpError>>
    where
        Io: AsyncWrite + Unpin,
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        loop {
            // a body that is there at once goes out together with the head
            if self.data.is_empty() && !self.ended && !self.hold && out.len() < COPY_BELOW {
                match upload.poll(cx).map_err(PumpError::Body)? {
                    Poll::Ready(piece) => {
                        self.put(out, piece);
                        continue;
                    }
                    Poll::Pending => {
                        ready!(self.poll_write(io, out, cx)).map_err(PumpError::Io)?;
                        return Poll::Pending;
                    }
                }
            }
            ready!(self.poll_write(io, out, cx)).map_err(PumpError::Io)?;
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            if self.hold {
                return Poll::Pending;
            }
        }
    }

    /// Bytes that wait for the connection. None while more of the body is awaited.
    pub(crate) fn unflushed(&self, out: &BytesMut) -> usize {
        out.len() + self.data.len() + usize::from(self.unflushed)
    }

    fn poll_write<Io>(
        &mut self,
        io: &mut Io,
        out: &mut BytesMut,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>>
    where
        Io: AsyncWrite + Unpin,
    {
        while out.len() + self.data.len() > 0 {
            let written = if self.data.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, out))?
            } else if out.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, &self.data))?
            } else {
                let slices = [IoSlice::new(out), IoSlice::new(&self.data)];
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written as u64;
            let head = written.min(out.len());
            out.advance(head);
            self.data.advance(written - head);
        }
        let flushed = Pin::new(io).poll_flush(cx);
        self.unflushed = flushed.is_pending();
        flushed
    }

    /// Encodes a piece of the body and puts it behind `out`.
    fn put(&mut self, out: &mut BytesMut, piece: Piece) {
        match piece {
            Piece::Data(data, last) => {
                if self.chunked {
                    if self.in_chunk {
                        out.extend_from_slice(b"\r\n");
                    }
                    self.in_chunk = true;
                    put_chunk_size(out, data.len());
                } else {
                    // with its last byte the body is at its end: no second look is needed
                    self.ended = last;
                }
                if data.len() < COPY_BELOW {
                    out.extend_from_slice(&data);
                } else {
                    self.data = data;
                }
            }
            Piece::Trailers(trailers) => self.end(out, Some(&trailers)),
            Piece::End => self.end(out, None),
        }
    }

    fn end(&mut self, out: &mut BytesMut, trailers: Option<&http::HeaderMap>) {
        self.ended = true;
        if !self.chunked {
            return;
        }
        out.extend_from_slice(if self.in_chunk { b"\r\n0\r\n" } else { b"0\r\n" });
        if let Some(trailers) = trailers {
            encode_trailers(out, trailers);
        }
        out.extend_from_slice(b"\r\n");
    }
}

fn put_chunk_size(out: &mut BytesMut, mut size: usize) {
    let mut digits = [0u8; 16];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[size & 15];
        size >>= 4;
        if size == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}
