//! A body on its way through an encoder or a decoder.

use std::{
    error::Error,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use async_compression::{
    Level,
    brotli::EncoderParams,
    tokio::bufread::{BrotliDecoder, BrotliEncoder, GzipDecoder, GzipEncoder, ZstdDecoder, ZstdEncoder},
    zstd::{CParameter, DParameter},
};
use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame};
use pin_project_lite::pin_project;
use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::Coding;

pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// How much is made at once, in bytes.
const CHUNK: usize = 16 << 10;

/// RFC 9659 section 3: with the coding `zstd`, 8 MiB is the largest window that a decoder has to have.
const ZSTD_WINDOW_LOG: u32 = 23;

/// 512 KiB, as nginx's module has it: an encoder holds its window twice, and text repeats itself within less.
const BROTLI_WINDOW_LOG: i32 = 19;

pin_project! {
    /// The bytes of a body; its trailers are kept for the end.
    pub(crate) struct BodyReader<B: Body> {
        #[pin]
        body: B,
        chunk: Option<B::Data>,
        trailers: Option<HeaderMap>,
        ended: bool,
        read: u64,
        failed: bool,
    }
}

impl<B: Body> BodyReader<B> {
    fn new(body: B) -> Self {
        Self { body, chunk: None, trailers: None, ended: false, read: 0, failed: false }
    }
}

impl<B> AsyncBufRead for BodyReader<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let mut this = self.project();
        while !*this.ended && !this.chunk.as_ref().is_some_and(Buf::has_remaining) {
            match ready!(this.body.as_mut().poll_frame(cx)) {
                None => *this.ended = true,
                Some(Err(error)) => {
                    (*this.ended, *this.failed) = (true, true);
                    return Poll::Ready(Err(io::Error::other(error)));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => *this.chunk = Some(data),
                    Err(frame) => *this.trailers = frame.into_trailers().ok(),
                },
            }
        }
        Poll::Ready(Ok(this.chunk.as_ref().map_or(&[], Buf::chunk)))
    }

    fn consume(self: Pin<&mut Self>, bytes: usize) {
        let this = self.project();
        *this.read += bytes as u64;
        if let Some(chunk) = this.chunk {
            chunk.advance(bytes);
        }
    }
}

impl<B> AsyncRead for BodyReader<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let bytes = ready!(self.as_mut().poll_fill_buf(cx))?;
        let bytes = &bytes[..bytes.len().min(out.remaining())];
        out.put_slice(bytes);
        let read = bytes.len();
        self.consume(read);
        Poll::Ready(Ok(()))
    }
}

/// A frame of a body that passes as it is. Data that are bytes already are not copied.
pub(crate) fn poll_plain<B>(
    body: Pin<&mut B>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BoxError>>>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    body.poll_frame(cx)
        .map_ok(|frame| frame.map_data(|mut d| d.copy_to_bytes(d.remaining())))
        .map_err(Into::into)
}

enum Coder<R> {
    ToGzip(Pin<Box<GzipEncoder<R>>>),
    ToBrotli(Pin<Box<BrotliEncoder<R>>>),
    ToZstd(Pin<Box<ZstdEncoder<R>>>),
    FromGzip(Pin<Box<GzipDecoder<R>>>),
    FromBrotli(Pin<Box<BrotliDecoder<R>>>),
    FromZstd(Pin<Box<ZstdDecoder<R>>>),
}

/// Does the same with whichever it is.
macro_rules! each {
    ($coder:expr, $it:ident => $does:expr) => {
        match $coder {
            Coder::ToGzip($it) => $does,
            Coder::ToBrotli($it) => $does,
            Coder::ToZstd($it) => $does,
            Coder::FromGzip($it) => $does,
            Coder::FromBrotli($it) => $does,
            Coder::FromZstd($it) => $does,
        }
    };
}

impl<R: AsyncBufRead> Coder<R> {
    fn encoder(reader: R, coding: Coding, level: i32) -> Self {
        let precise = Level::Precise(level);
        match coding {
            Coding::Gzip => Self::ToGzip(Box::pin(GzipEncoder::with_quality(reader, precise))),
            Coding::Brotli => {
                let params = EncoderParams::default().quality(precise).window_size(BROTLI_WINDOW_LOG);
                Self::ToBrotli(Box::pin(BrotliEncoder::with_params(reader, params)))
            }
            Coding::Zstd if level >= 17 => {
                // from this level on the window would be larger than what every decoder has to have
                let window = [CParameter::window_log(ZSTD_WINDOW_LOG)];
                Self::ToZstd(Box::pin(ZstdEncoder::with_quality_and_params(reader, precise, &window)))
            }
            Coding::Zstd => Self::ToZstd(Box::pin(ZstdEncoder::with_quality(reader, precise))),
        }
    }

    fn decoder(reader: R, coding: Coding) -> Self {
        match coding {
            Coding::Gzip => {
                // RFC 1952 section 2.2: a file is a series of members
                let mut decoder = GzipDecoder::new(reader);
                decoder.multiple_members(true);
                Self::FromGzip(Box::pin(decoder))
            }
            Coding::Brotli => Self::FromBrotli(Box::pin(BrotliDecoder::new(reader))),
            Coding::Zstd => {
                let window = [DParameter::window_log_max(ZSTD_WINDOW_LOG)];
                let mut decoder = ZstdDecoder::with_params(reader, &window);
                decoder.multiple_members(true);
                Self::FromZstd(Box::pin(decoder))
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, out: &mut BytesMut) -> Poll<io::Result<usize>> {
        each!(self, coder => poll_read_buf(coder.as_mut(), cx, out))
    }

    fn reader(&mut self) -> Pin<&mut R> {
        each!(self, coder => coder.as_mut().get_pin_mut())
    }
}

/// What went wrong with a [`Coded`] body.
pub(crate) enum CodedError {
    /// The body that is read failed.
    Body(BoxError),
    /// Its bytes are none of the coding.
    Coding(io::Error),
}

/// A body that is read through a coder.
pub(crate) struct Coded<B: Body> {
    coder: Coder<BodyReader<B>>,
    out: BytesMut,
    state: State,
}

enum State {
    Coding,
    /// The coder has ended; the body must have too.
    Rest,
    Done,
}

impl<B> Coded<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    pub(crate) fn encode(body: B, coding: Coding, level: i32) -> Self {
        Self::of(Coder::encoder(BodyReader::new(body), coding, level))
    }

    pub(crate) fn decode(body: B, coding: Coding) -> Self {
        Self::of(Coder::decoder(BodyReader::new(body), coding))
    }

    fn of(coder: Coder<BodyReader<B>>) -> Self {
        Self { coder, out: BytesMut::new(), state: State::Coding }
    }

    /// How many bytes of the body the coder has taken.
    pub(crate) fn taken(&mut self) -> u64 {
        self.coder.reader().read
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    fn fails(&mut self, error: io::Error) -> CodedError {
        self.state = State::Done;
        if self.coder.reader().failed {
            return CodedError::Body(match error.into_inner() {
                Some(inner) => inner,
                None => "the body failed".into(),
            });
        }
        CodedError::Coding(error)
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CodedError>>> {
        loop {
            match self.state {
                State::Done => return Poll::Ready(None),
                State::Coding => {
                    self.out.reserve(CHUNK);
                    match ready!(self.coder.poll_read(cx, &mut self.out)) {
                        Ok(0) => self.state = State::Rest,
                        Ok(_) => return Poll::Ready(Some(Ok(Frame::data(self.out.split().freeze())))),
                        Err(error) => return Poll::Ready(Some(Err(self.fails(error)))),
                    }
                }
                State::Rest => match ready!(self.coder.reader().poll_fill_buf(cx)).map(<[u8]>::is_empty) {
                    Ok(true) => {
                        self.state = State::Done;
                        let trailers = self.coder.reader().project().trailers.take();
                        return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                    }
                    Ok(false) => {
                        let error =
                            io::Error::new(io::ErrorKind::InvalidData, "bytes after the end of the coding");
                        return Poll::Ready(Some(Err(self.fails(error))));
                    }
                    Err(error) => return Poll::Ready(Some(Err(self.fails(error)))),
                },
            }
        }
    }
}
