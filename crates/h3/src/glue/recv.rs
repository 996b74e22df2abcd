//! The receiving side.

use std::{
    mem,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use ::h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId};
use bytes::{Bytes, BytesMut};

use super::{
    Quiet, Role, Shared, StreamCore,
    guard::{FrameGuard, Refusal},
    lost, send, stream_id,
};
use crate::codes;

/// Chunks taken from QUIC under one lock; a chunk is what one packet carried.
const BATCH: usize = 8;
/// Bounds a frame on the control stream: settings and priorities are short.
const CONTROL_FRAME_MAX: u64 = 16 * 1024;

/// A stream we read; see the module above for what it does on the way. In a box, because `h3` moves its streams many
/// times from task to task and state to state.
pub(crate) struct RecvStream(Box<Reading>);

struct Reading {
    quinn: quinn::RecvStream,
    shared: Arc<Shared>,
    /// `None` on a unidirectional stream.
    core: Option<Arc<StreamCore>>,
    guard: FrameGuard,
    /// Read from QUIC, not yet past the guard.
    batch: [Bytes; BATCH],
    taken: usize,
    filled: usize,
    /// The beginning of a frame that is not complete.
    held: BytesMut,
    /// Whether nothing has been read yet.
    fresh: bool,
    eof: bool,
    /// An error that must wait until what came before it is handed on.
    error: Option<quinn::ReadError>,
    closed: bool,
    /// For a stream that is polled whenever its connection is.
    quiet: Option<Quiet>,
}

impl RecvStream {
    pub(super) fn bidi(quinn: quinn::RecvStream, shared: Arc<Shared>, core: Arc<StreamCore>) -> Self {
        let guard = match shared.role {
            Role::Server => FrameGuard::request(shared.max_frame),
            #[cfg(feature = "client")]
            Role::Client => FrameGuard::response(shared.max_frame),
        };
        Self(Box::new(Reading::new(quinn, shared, Some(core), guard, None)))
    }

    pub(super) fn uni(quinn: quinn::RecvStream, shared: Arc<Shared>) -> Self {
        let guard = FrameGuard::unidirectional(shared.max_frame.min(CONTROL_FRAME_MAX));
        Self(Box::new(Reading::new(quinn, shared, None, guard, Some(Quiet::new()))))
    }
}

impl Reading {
    fn new(
        quinn: quinn::RecvStream,
        shared: Arc<Shared>,
        core: Option<Arc<StreamCore>>,
        guard: FrameGuard,
        quiet: Option<Quiet>,
    ) -> Self {
        Self {
            quinn,
            shared,
            core,
            guard,
            batch: [const { Bytes::new() }; BATCH],
            taken: 0,
            filled: 0,
            held: BytesMut::new(),
            fresh: true,
            eof: false,
            error: None,
            closed: false,
            quiet,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        // `h3` reads ahead each time it hands something out; keep it from piling up what its reader has not
        // asked for. It makes progress without more, so nobody has to be woken.
        if self.core.as_ref().is_some_and(|core| core.h3_is_fed()) {
            return Poll::Pending;
        }
        loop {
            if self.taken < self.filled {
                let chunk = mem::take(&mut self.batch[self.taken]);
                self.taken += 1;
                match self.check(chunk) {
                    Ok(Some(bytes)) => return Poll::Ready(Ok(Some(bytes))),
                    Ok(None) => continue,
                    Err(refusal) => return Poll::Ready(Err(self.refuse(refusal))),
                }
            }
            if let Some(error) = self.error.take() {
                self.closed = true;
                return Poll::Ready(Err(read_error(error)));
            }
            if self.eof {
                return Poll::Ready(self.end());
            }
            ready!(self.poll_fill(cx));
        }
    }

    /// Takes what QUIC has; ready when there is a chunk, the end or an error.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        (self.taken, self.filled) = (0, 0);
        ready!(self.poll_read(cx));
        // whether the stream ends here tells a request without a body from one whose body is on its way; quinn
        // knows, but says so only when asked once more
        if mem::take(&mut self.fresh) && self.quiet.is_none() && self.filled < BATCH && !self.eof {
            let _ = self.poll_read(cx);
        }
        Poll::Ready(())
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // made anew for each poll: a read that does not complete takes nothing, and quinn keeps the waker
        let read = pin!(self.quinn.read_chunks(&mut self.batch[self.filled..]));
        match ready!(read.poll(cx)) {
            Ok(Some(chunks)) => self.filled += chunks,
            Ok(None) => self.eof = true,
            Err(error) => self.error = Some(error),
        }
        Poll::Ready(())
    }

    /// Passes a chunk through the guard; `None` if all of it is held back.
    fn check(&mut self, mut chunk: Bytes) -> Result<Option<Bytes>, Refusal> {
        let keep = self.guard.feed(&chunk)?;
        let tail = chunk.split_off(keep);
        let out = if keep == 0 {
            None
        } else if self.held.is_empty() {
            Some(chunk)
        } else {
            self.held.extend_from_slice(&chunk);
            Some(self.held.split().freeze())
        };
        // copied, so that a peer which sends a frame byte by byte does not make us keep a packet for each
        self.held.extend_from_slice(&tail);
        if let Some(core) = &self.core {
            core.heads.store(self.guard.heads, Ordering::Relaxed);
            core.payload_in.store(self.guard.payload, Ordering::Relaxed);
            core.empties_in.store(self.guard.empties, Ordering::Relaxed);
            if self.eof && self.taken == self.filled && self.guard.at_boundary() {
                core.fin.store(true, Ordering::Relaxed);
            }
        }
        Ok(out)
    }

    fn end(&mut self) -> Result<Option<Bytes>, StreamErrorIncoming> {
        self.closed = true;
        if self.guard.at_boundary() {
            if let Some(core) = &self.core {
                core.fin.store(true, Ordering::Relaxed);
            }
            return Ok(None);
        }
        // RFC 9114 section 7.1: a stream that ends inside a frame is a connection error
        self.note(codes::FRAME_ERROR);
        Err(self.close(codes::FRAME_ERROR, "a stream ended inside a frame"))
    }

    fn refuse(&mut self, refusal: Refusal) -> StreamErrorIncoming {
        self.closed = true;
        match (refusal, self.core.is_some()) {
            (Refusal::Excessive, true) => {
                self.note(codes::EXCESSIVE_LOAD);
                let _ = self.quinn.stop(codes::var(codes::EXCESSIVE_LOAD));
                StreamErrorIncoming::Unknown("a frame was longer than allowed".into())
            }
            (Refusal::Excessive, false) => {
                self.close(codes::EXCESSIVE_LOAD, "a frame on the control stream was longer than allowed")
            }
            // RFC 9114 section 4.1: an invalid sequence of frames is a connection error
            (Refusal::Unexpected, _) => {
                self.note(codes::FRAME_UNEXPECTED);
                self.close(codes::FRAME_UNEXPECTED, "a frame stood where it must not")
            }
        }
    }

    fn note(&self, code: u32) {
        if let Some(core) = &self.core {
            core.fail(code);
        }
    }

    fn close(&self, code: u32, reason: &'static str) -> StreamErrorIncoming {
        self.shared.quinn.close(codes::var(code), reason.as_bytes());
        let error: Box<dyn std::error::Error + Send + Sync> = reason.into();
        StreamErrorIncoming::ConnectionErrorIncoming {
            connection_error: ConnectionErrorIncoming::Undefined(error.into()),
        }
    }
}

fn read_error(error: quinn::ReadError) -> StreamErrorIncoming {
    match error {
        quinn::ReadError::Reset(code) => {
            StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() }
        }
        quinn::ReadError::ConnectionLost(error) => lost(error),
        other => StreamErrorIncoming::Unknown(other.into()),
    }
}

impl quic::RecvStream for RecvStream {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        let reading = &mut *self.0;
        if reading.closed {
            return Poll::Ready(Err(StreamErrorIncoming::Unknown("the stream is closed".into())));
        }
        match reading.quiet.take() {
            None => reading.poll_next(cx),
            Some(quiet) => {
                let polled = quiet.poll(cx, |cx| reading.poll_next(cx));
                reading.quiet = Some(quiet);
                polled
            }
        }
    }

    fn stop_sending(&mut self, code: u64) {
        // an error here says that there is nothing left to stop
        let _ = self.0.quinn.stop(send::var(code));
        self.0.closed = true;
    }

    fn recv_id(&self) -> StreamId {
        stream_id(self.0.quinn.id().into())
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let Some(core) = &self.core else { return };
        if !self.closed && !self.eof {
            // quinn would stop the stream with code 0, which HTTP/3 does not know
            let code = core.fault().unwrap_or(core.unread_code.load(Ordering::Relaxed));
            let _ = self.quinn.stop(codes::var(code));
        }
    }
}
