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
use crate::BoxError;

/// A body shorter than this is copied behind the head, so that both leave in one piece.
const COPY_BELOW: usize = 2048;

/// A request body on its way.
#[derive(Debug)]
pub(crate) struct Pump<B> {
    body: B,
    framing: RequestFraming,
    /// Data of the current frame that is not yet written.
    data: Bytes,
    /// Whether a chunk was begun: the next chunk line starts with its closing CRLF.
    in_chunk: bool,
    /// Whether anything was taken from the body: then the request can't be sent again.
    started: bool,
    /// Bytes taken from the body, and bytes written to the connection.
    progress: (u64, u64),
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

impl<B> Pump<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    pub(crate) fn new(body: B, framing: RequestFraming) -> Self {
        let ended = framing == RequestFraming::None;
        Self { body, framing, data: Bytes::new(), in_chunk: false, started: false, progress: (0, 0), ended }
    }

    pub(crate) fn started(&self) -> bool {
        self.started
    }

    /// Bytes taken from the body, and bytes written to the connection: what moves a deadline.
    pub(crate) fn progress(&self) -> (u64, u64) {
        self.progress
    }

    /// Ready when everything is written. Pending may mean that the connection takes no more or that the body has no
    /// more yet: in the second case nothing is unflushed, see [`Pump::unflushed`].
    pub(crate) fn poll<Io>(
        &mut self,
        io: &mut Io,
        out: &mut BytesMut,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), PumpError>>
    where
        Io: AsyncWrite + Unpin,
    {
        loop {
            // a body that is there at once goes out together with the head
            if self.data.is_empty() && !self.ended && out.len() < COPY_BELOW {
                match self.poll_body(out, cx)? {
                    Poll::Ready(()) => continue,
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
        }
    }

    /// Bytes that wait for the connection. None while more of the body is awaited.
    pub(crate) fn unflushed(&self, out: &BytesMut) -> usize {
        out.len() + self.data.len()
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
        while self.unflushed(out) > 0 {
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
            self.progress.1 += written as u64;
            let head = written.min(out.len());
            out.advance(head);
            self.data.advance(written - head);
        }
        Pin::new(io).poll_flush(cx)
    }

    /// Takes one frame of the body, encodes it and puts it behind `out`.
    fn poll_body(&mut self, out: &mut BytesMut, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        let polled = ready!(Pin::new(&mut self.body).poll_frame(cx));
        // its end counts too: the framing that says so is not written a second time
        self.started = true;
        let frame = match polled {
            None => return Poll::Ready(self.end(out, None)),
            Some(Err(error)) => return Poll::Ready(Err(PumpError::Body(error.into()))),
            Some(Ok(frame)) => frame,
        };
        let data = match frame.into_data() {
            Ok(data) if data.is_empty() => return Poll::Ready(Ok(())),
            Ok(data) => data,
            Err(frame) => {
                return Poll::Ready(match frame.into_trailers() {
                    Ok(trailers) => self.end(out, Some(&trailers)),
                    Err(_) => Ok(()),
                });
            }
        };
        self.progress.0 += data.len() as u64;
        match &mut self.framing {
            RequestFraming::None => return Poll::Ready(Err(length_error("it was announced without a body"))),
            RequestFraming::Length(left) => match left.checked_sub(data.len() as u64) {
                Some(rest) => *left = rest,
                None => return Poll::Ready(Err(length_error("its body is longer than its Content-Length"))),
            },
            RequestFraming::Chunked => {
                if self.in_chunk {
                    out.extend_from_slice(b"\r\n");
                }
                self.in_chunk = true;
                put_chunk_size(out, data.len());
            }
        }
        if data.len() < COPY_BELOW {
            out.extend_from_slice(&data);
        } else {
            self.data = data;
        }
        // with its last byte the body is at its end: no second look is needed
        if self.framing == RequestFraming::Length(0) {
            self.ended = true;
        }
        Poll::Ready(Ok(()))
    }

    fn end(&mut self, out: &mut BytesMut, trailers: Option<&http::HeaderMap>) -> Result<(), PumpError> {
        self.ended = true;
        match self.framing {
            RequestFraming::None | RequestFraming::Length(0) => Ok(()),
            RequestFraming::Length(_) => Err(length_error("its body is shorter than its Content-Length")),
            RequestFraming::Chunked => {
                out.extend_from_slice(if self.in_chunk { b"\r\n0\r\n" } else { b"0\r\n" });
                if let Some(trailers) = trailers {
                    encode_trailers(out, trailers);
                }
                out.extend_from_slice(b"\r\n");
                Ok(())
            }
        }
    }
}

fn length_error(reason: &'static str) -> PumpError {
    PumpError::Body(reason.into())
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
