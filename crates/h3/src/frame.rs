//! Frames (RFC 9114 section 7), read as they come.
//!
//! A frame's length is checked before a byte of it is kept: HEADERS are collected up to a bound, the payload of DATA goes on
//! as it arrives, what is unknown is skipped. So a stream holds one head at most, whatever the peer announces.

use std::{
    mem,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    codes,
    quic::{Lost, ReadFault, RecvHalf},
};

pub(crate) const DATA: u64 = 0x00;
pub(crate) const HEADERS: u64 = 0x01;
pub(crate) const CANCEL_PUSH: u64 = 0x03;
pub(crate) const SETTINGS: u64 = 0x04;
pub(crate) const PUSH_PROMISE: u64 = 0x05;
pub(crate) const GOAWAY: u64 = 0x07;
pub(crate) const MAX_PUSH_ID: u64 = 0x0d;
/// RFC 9218 section 7.2.
pub(crate) const PRIORITY_UPDATE_REQUEST: u64 = 0xf_0700;
pub(crate) const PRIORITY_UPDATE_PUSH: u64 = 0xf_0701;
/// A stream signal of WebTransport: it has no length, so it can't be skipped.
const WEBTRANSPORT: u64 = 0x41;

/// Chunks taken from QUIC under one lock; a chunk is what one packet carried.
const BATCH: usize = 8;
/// Two integers of 8 bytes at most (RFC 9000 section 16).
const HEADER_MAX: usize = 16;
/// Frames without payload (empty DATA, unknown types) that may follow each other on a request stream before some payload must
/// come. Padding and grease stay far below.
const IDLE_FRAMES_MAX: u32 = 256;

/// A variable-length integer and its length, RFC 9000 section 16.
pub(crate) fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let length = 1 << (first >> 6);
    let rest = bytes.get(1..length)?;
    let value = rest.iter().fold(u64::from(first & 0x3f), |value, byte| (value << 8) | u64::from(*byte));
    Some((value, length))
}

/// Writes one in its shortest form; what has more than 62 bits is cut.
pub(crate) fn put_varint(out: &mut BytesMut, value: u64) {
    // the casts keep all bits
    match value {
        0..0x40 => out.put_u8(value as u8),
        0x40..0x4000 => out.put_u16(value as u16 | 0x4000),
        0x4000..0x4000_0000 => out.put_u32(value as u32 | 0x8000_0000),
        _ => out.put_u64(value | 0xc000_0000_0000_0000),
    }
}

/// Frames that only the control stream has, or HTTP/2 (RFC 9114 sections 7.2.3 to 7.2.8).
pub(crate) fn is_never_on_requests(frame: u64) -> bool {
    matches!(frame, 0x02..=0x04 | 0x06..=0x09 | MAX_PUSH_ID | PRIORITY_UPDATE_REQUEST | PRIORITY_UPDATE_PUSH)
}

/// What is wrong with a stream that is read.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum StreamFault {
    /// The peer reset it.
    #[error("the peer reset the stream with code {0:#x}")]
    Reset(u64),
    /// The connection is gone.
    #[error(transparent)]
    Lost(Lost),
    /// The stream alone is given up, with this code.
    #[error("{1}")]
    Stream(u32, &'static str),
    /// The connection has to be closed, with this code.
    #[error("{1}")]
    Connection(u32, &'static str),
}

impl From<ReadFault> for StreamFault {
    fn from(fault: ReadFault) -> Self {
        match fault {
            ReadFault::Reset(code) => Self::Reset(code),
            ReadFault::Lost(lost) => Self::Lost(lost),
        }
    }
}

const UNEXPECTED: StreamFault =
    StreamFault::Connection(codes::FRAME_UNEXPECTED, "a frame stood where it must not");

/// What a request stream brings.
#[derive(Debug)]
pub(crate) enum Event {
    /// A field section: a head, or trailers.
    Headers(Bytes),
    /// Some payload, not empty.
    Data(Bytes),
    /// The end, between frames.
    End,
}

/// How far a message has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its head, or interim ones, are to come.
    Head,
    Body,
    /// The trailers are there.
    Trailed,
    /// There is nothing but payload: a tunnel.
    Tunnel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Payload {
    Data,
    Headers,
    Skipped,
}

/// Where in its frames a stream stands; fed chunk by chunk.
#[derive(Debug)]
pub(crate) struct Parser {
    stage: Stage,
    max_frame: u64,
    /// Of the current frame's payload.
    left: u64,
    payload: Payload,
    header: [u8; HEADER_MAX],
    have: usize,
    idle: u32,
    /// The beginning of a HEADERS frame that is not complete.
    held: BytesMut,
}

impl Parser {
    pub(crate) fn new(max_frame: u64) -> Self {
        Self {
            stage: Stage::Head,
            max_frame,
            left: 0,
            payload: Payload::Skipped,
            header: [0; HEADER_MAX],
            have: 0,
            idle: 0,
            held: BytesMut::new(),
        }
    }

    /// Whether the stream may end here: not inside a frame.
    pub(crate) fn at_boundary(&self) -> bool {
        self.left == 0 && self.have == 0
    }

    /// Takes from `chunk` up to the next event; without one all of it is taken.
    pub(crate) fn next(&mut self, chunk: &mut Bytes) -> Result<Option<Event>, StreamFault> {
        while !chunk.is_empty() {
            if self.left == 0 {
                if self.read_header(chunk)? && self.left == 0 && self.payload == Payload::Headers {
                    return Ok(Some(Event::Headers(Bytes::new())));
                }
                continue;
            }
            // cannot truncate: at most what is there
            let step = self.left.min(chunk.len() as u64) as usize;
            self.left -= step as u64;
            match self.payload {
                Payload::Skipped => chunk.advance(step),
                Payload::Data => {
                    self.idle = 0;
                    return Ok(Some(Event::Data(chunk.split_to(step))));
                }
                Payload::Headers if self.left == 0 && self.held.is_empty() => {
                    return Ok(Some(Event::Headers(chunk.split_to(step))));
                }
                // copied, so that a peer which sends a head byte by byte does not make us keep a packet for each
                Payload::Headers => {
                    self.held.extend_from_slice(&chunk[..step]);
                    chunk.advance(step);
                    if self.left == 0 {
                        return Ok(Some(Event::Headers(mem::take(&mut self.held).freeze())));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Whether a frame header was completed; else all of `chunk` was the beginning of one.
    fn read_header(&mut self, chunk: &mut Bytes) -> Result<bool, StreamFault> {
        if self.have == 0
            && let Some((frame, length, used)) = frame_header(chunk)
        {
            chunk.advance(used);
            self.begin(frame, length)?;
            return Ok(true);
        }
        while !chunk.is_empty() {
            self.header[self.have] = chunk.get_u8();
            self.have += 1;
            if let Some((frame, length, _)) = frame_header(&self.header[..self.have]) {
                self.have = 0;
                self.begin(frame, length)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn begin(&mut self, frame: u64, length: u64) -> Result<(), StreamFault> {
        self.left = length;
        self.payload = match frame {
            DATA => Payload::Data,
            HEADERS => Payload::Headers,
            _ => Payload::Skipped,
        };
        // RFC 9114 section 4.1: HEADERS, DATA, and HEADERS once more; section 4.4: nothing but DATA in a tunnel
        match (frame, self.stage) {
            (DATA, Stage::Body | Stage::Tunnel) | (HEADERS, Stage::Head) => {}
            (HEADERS, Stage::Body) => self.stage = Stage::Trailed,
            (DATA | HEADERS, _) => return Err(UNEXPECTED),
            // we never allowed a push (section 7.2.5)
            (PUSH_PROMISE, _) => {
                return Err(StreamFault::Connection(codes::ID_ERROR, "a push that was not allowed"));
            }
            (WEBTRANSPORT, _) => return Err(UNEXPECTED),
            (other, _) if is_never_on_requests(other) => return Err(UNEXPECTED),
            _ => {}
        }
        if frame != DATA && length > self.max_frame {
            return Err(StreamFault::Stream(codes::EXCESSIVE_LOAD, "a frame was longer than allowed"));
        }
        if frame != HEADERS && (frame != DATA || length == 0) {
            self.idle += 1;
            if self.idle > IDLE_FRAMES_MAX {
                return Err(StreamFault::Stream(codes::EXCESSIVE_LOAD, "too many frames without payload"));
            }
        }
        Ok(())
    }
}

/// The two integers of a frame header and their length.
fn frame_header(bytes: &[u8]) -> Option<(u64, u64, usize)> {
    let (frame, used) = varint(bytes)?;
    if frame == WEBTRANSPORT {
        return Some((frame, 0, used));
    }
    let (length, more) = varint(&bytes[used..])?;
    Some((frame, length, used + more))
}

/// Reads a request stream. Dropped before its end, it asks the peer to stop.
#[derive(Debug)]
pub(crate) struct FrameReader<R: RecvHalf> {
    recv: R,
    parser: Parser,
    batch: [Bytes; BATCH],
    at: usize,
    filled: usize,
    eof: bool,
    /// Nothing more is read: the end, a fault or a stop.
    closed: bool,
    fresh: bool,
    /// A fault that must wait until what came before it is handed on.
    fault: Option<ReadFault>,
    unread_code: u32,
}

impl<R: RecvHalf> FrameReader<R> {
    /// `max_frame` bounds the payload of every frame but DATA; `unread_code` is given when the reader is dropped early.
    pub(crate) fn new(recv: R, max_frame: u64, unread_code: u32) -> Self {
        Self {
            recv,
            parser: Parser::new(max_frame),
            batch: [const { Bytes::new() }; BATCH],
            at: 0,
            filled: 0,
            eof: false,
            closed: false,
            fresh: true,
            fault: None,
            unread_code,
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.recv.id()
    }

    /// The head that came last was the message's own: the body begins.
    pub(crate) fn begin_body(&mut self) {
        self.parser.stage = Stage::Body;
    }

    /// From here on there is nothing but payload.
    pub(crate) fn begin_tunnel(&mut self) {
        self.parser.stage = Stage::Tunnel;
    }

    pub(crate) fn set_unread_code(&mut self, code: u32) {
        self.unread_code = code;
    }

    /// Asks the peer to stop, and reads nothing more.
    pub(crate) fn stop(&mut self, code: u32) {
        if !mem::replace(&mut self.closed, true) && !self.eof {
            self.recv.stop(code);
        }
    }

    /// Whether the end is known to be all that is left.
    pub(crate) fn at_end(&self) -> bool {
        self.eof && self.at == self.filled && self.parser.at_boundary()
    }

    /// After the end or a fault there is nothing but ends.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, StreamFault>> {
        if self.closed {
            return Poll::Ready(Ok(Event::End));
        }
        loop {
            while self.at < self.filled {
                let chunk = &mut self.batch[self.at];
                let event = self.parser.next(chunk);
                if chunk.is_empty() {
                    self.at += 1;
                }
                match event {
                    Ok(None) => {}
                    Ok(Some(event)) => return Poll::Ready(Ok(event)),
                    Err(fault) => return Poll::Ready(Err(self.refuse(fault))),
                }
            }
            if let Some(fault) = self.fault.take() {
                self.closed = true;
                return Poll::Ready(Err(fault.into()));
            }
            if self.eof {
                self.closed = true;
                // RFC 9114 section 7.1
                return Poll::Ready(if self.parser.at_boundary() {
                    Ok(Event::End)
                } else {
                    Err(StreamFault::Connection(codes::FRAME_ERROR, "a stream ended inside a frame"))
                });
            }
            ready!(self.poll_fill(cx));
        }
    }

    /// Takes what QUIC has; ready when there is something, the end or a fault.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        (self.at, self.filled) = (0, 0);
        ready!(self.poll_read(cx));
        // whether the stream ends here tells a request without a body from one whose body is on its way; QUIC knows, but says
        // so only when asked once more
        if mem::take(&mut self.fresh) && self.filled < BATCH && !self.eof && self.fault.is_none() {
            let _ = self.poll_read(cx);
        }
        Poll::Ready(())
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match ready!(self.recv.poll_read(cx, &mut self.batch[self.filled..])) {
            Ok(Some(chunks)) => self.filled += chunks,
            Ok(None) => self.eof = true,
            Err(fault) => self.fault = Some(fault),
        }
        Poll::Ready(())
    }

    fn refuse(&mut self, fault: StreamFault) -> StreamFault {
        if let StreamFault::Stream(code, _) = fault {
            self.stop(code);
        }
        self.closed = true;
        fault
    }
}

impl<R: RecvHalf> Drop for FrameReader<R> {
    fn drop(&mut self) {
        // left to itself QUIC would stop the stream with code 0, which HTTP/3 does not know
        let code = self.unread_code;
        self.stop(code);
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
