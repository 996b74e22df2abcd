//! Bodies on their way out: framed and written straight into QUIC, in as few writes as there can be.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::Body;
use tokio::time::{Instant, Sleep};

use crate::{BoxError, codes, head, quic::SendHalf, side::Side};

/// Pieces that one write may take; a body frame is two, its header and its data.
const QUEUE: usize = 8;
/// Bytes to gather before writing, so that a body which is always ready does not run ahead of the network.
pub(crate) const GATHER: usize = 64 * 1024;
/// What the encoder gets for the headers of DATA frames at a time.
const SCRATCH: usize = 256;

/// Why a message was not sent to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendFault {
    /// The peer does not want it, or has gone.
    #[error("the peer does not want it or has gone")]
    Gone,
    /// The message is malformed, RFC 9114 section 4.1.2.
    #[error("the request is malformed")]
    Malformed,
    /// The service or its body failed.
    #[error("the service failed")]
    Service(#[source] BoxError),
    /// The body is not as long as its head says.
    #[error("the body is not as long as its head says")]
    Length,
    /// The peer took nothing for too long.
    #[error("the peer took nothing for too long")]
    Stalled,
}

impl SendFault {
    pub(crate) fn code(&self) -> u32 {
        match self {
            Self::Gone => codes::REQUEST_CANCELLED,
            Self::Malformed => codes::MESSAGE_ERROR,
            Self::Service(_) | Self::Length => codes::INTERNAL_ERROR,
            Self::Stalled => codes::EXCESSIVE_LOAD,
        }
    }
}

/// The sending half of a request stream. Dropped before it is finished, it resets the stream: QUIC would finish
/// it, and half a message would read like a whole one.
pub(crate) struct Outgoing<S: SendHalf> {
    stream: Option<S>,
    side: Option<Arc<Side>>,
    drop_code: u32,
}

impl<S: SendHalf> Outgoing<S> {
    pub(crate) fn new(stream: S, drop_code: u32) -> Self {
        Self { stream: Some(stream), side: None, drop_code }
    }

    /// A fault that is noted there is the code of a reset.
    pub(crate) fn set_side(&mut self, side: Arc<Side>) {
        self.side = Some(side);
    }

    /// The code of a reset where none was noted.
    pub(crate) fn set_drop_code(&mut self, code: u32) {
        self.drop_code = code;
    }

    /// Resets the stream, with the code of a fault that was noted before if there is one.
    pub(crate) fn reset(mut self, code: u32) {
        self.drop_code = code;
    }

    /// Resets the stream for this reason.
    pub(crate) fn give_up(self, fault: &SendFault) {
        let code = fault.code();
        self.reset(code);
    }

    /// Ends the message; what comes back is sending on until the peer has acknowledged it.
    pub(crate) fn finish(mut self) -> Option<S> {
        let mut stream = self.stream.take()?;
        stream.finish();
        Some(stream)
    }

    pub(crate) fn set_priority(&self, priority: i32) {
        if let Some(stream) = &self.stream {
            stream.set_priority(priority);
        }
    }

    /// Completes when the peer has stopped the stream or the connection is lost.
    pub(crate) fn stopped(&self) -> impl Future<Output = ()> + Send + 'static + use<S> {
        let stopped = self.stream.as_ref().map(SendHalf::stopped);
        async move {
            if let Some(stopped) = stopped {
                stopped.await;
            }
        }
    }

    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<usize, SendFault>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(Err(SendFault::Gone)) };
        stream.poll_write(cx, chunks).map_err(|()| SendFault::Gone)
    }
}

impl<S: SendHalf> Drop for Outgoing<S> {
    fn drop(&mut self) {
        if let Some(mut stream) = self.stream.take() {
            let noted = self.side.as_ref().and_then(|side| side.fault());
            stream.reset(noted.unwrap_or(self.drop_code));
        }
    }
}

/// Polls whether the peer has stopped the stream, which costs a registration in quinn the first time.
pub(crate) fn poll_stopped<F: Future<Output = ()>>(
    mut slot: Pin<&mut Option<F>>,
    begin: impl FnOnce() -> F,
    cx: &mut Context<'_>,
) -> Poll<()> {
    if slot.is_none() {
        slot.set(Some(begin()));
    }
    match slot.as_pin_mut() {
        Some(stopped) => stopped.poll(cx),
        None => Poll::Pending,
    }
}

/// What is to be written, and how far the body has come.
pub(crate) struct Pump {
    queue: [Bytes; QUEUE],
    next: usize,
    len: usize,
    gathered: usize,
    scratch: BytesMut,
    /// What the head announced and the body has not given yet.
    left: Option<u64>,
    body_ended: bool,
    body_pending: bool,
    stall: Stall,
}

impl Pump {
    /// Begins with what `head` holds; `announced` is the length the body must have.
    pub(crate) fn new(head: BytesMut, announced: Option<u64>, stall_timeout: Duration) -> Self {
        Self {
            queue: [const { Bytes::new() }; QUEUE],
            next: 0,
            len: 0,
            gathered: 0,
            scratch: head,
            left: announced,
            body_ended: false,
            body_pending: false,
            stall: Stall { timeout: stall_timeout, timer: None, progress: false },
        }
    }

    /// There is no body.
    pub(crate) fn end_body(&mut self) {
        self.body_ended = true;
        self.left = None;
    }

    /// Whether the last poll waits for the body, and not for the peer alone: then nobody else notices that the
    /// peer has gone.
    pub(crate) fn waits_for_body(&self) -> bool {
        self.body_pending
    }

    /// Whether something is at hand that the peer has not taken.
    pub(crate) fn waits_for_room(&self) -> bool {
        self.next < self.len
    }

    /// Ready when all of the body is written.
    pub(crate) fn poll<S, B>(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Outgoing<S>,
        mut body: Pin<&mut B>,
    ) -> Poll<Result<(), SendFault>>
    where
        S: SendHalf,
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        loop {
            self.gather(cx, body.as_mut())?;
            while self.next < self.len {
                match out.poll_write(cx, &mut self.queue[self.next..self.len]) {
                    Poll::Ready(written) => {
                        self.next += written?;
                        self.stall.progress = true;
                    }
                    Poll::Pending => {
                        ready!(self.stall.poll(cx));
                        return Poll::Ready(Err(SendFault::Stalled));
                    }
                }
            }
            (self.next, self.len, self.gathered) = (0, 0, 0);
            if self.body_ended {
                return Poll::Ready(Ok(()));
            }
            if self.body_pending {
                self.stall.rest();
                return Poll::Pending;
            }
        }
    }

    /// Takes from the body what it has, up to what one write should hold.
    fn gather<B>(&mut self, cx: &mut Context<'_>, mut body: Pin<&mut B>) -> Result<(), SendFault>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        self.body_pending = false;
        while !self.body_ended && self.len + 2 <= QUEUE && self.gathered < GATHER {
            let frame = match body.as_mut().poll_frame(cx) {
                Poll::Pending => {
                    self.body_pending = true;
                    break;
                }
                Poll::Ready(None) => {
                    self.body_ended = true;
                    break;
                }
                Poll::Ready(Some(frame)) => frame.map_err(|error| SendFault::Service(error.into()))?,
            };
            match frame.into_data() {
                Ok(data) => {
                    self.push_data(data)?;
                    self.body_ended = body.is_end_stream();
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        head::encode_trailers(&mut self.scratch, &trailers);
                        self.body_ended = true;
                    }
                }
            }
        }
        self.flush_scratch();
        if self.body_ended && self.left.is_some_and(|left| left > 0) {
            return Err(SendFault::Length);
        }
        Ok(())
    }

    fn push_data(&mut self, data: Bytes) -> Result<(), SendFault> {
        let length = data.len() as u64;
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(length).ok_or(SendFault::Length)?;
        }
        if data.is_empty() {
            return Ok(());
        }
        // behind the head, if that is still here: then both go in one piece
        self.scratch.reserve(SCRATCH);
        head::encode_data_header(&mut self.scratch, length);
        self.flush_scratch();
        self.gathered += data.len();
        self.queue[self.len] = data;
        self.len += 1;
        Ok(())
    }

    fn flush_scratch(&mut self) {
        if !self.scratch.is_empty() {
            self.queue[self.len] = self.scratch.split().freeze();
            self.len += 1;
        }
    }
}

/// Notices that nothing has been written for a while, with a timer that runs only while writes wait.
struct Stall {
    timeout: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    progress: bool,
}

impl Stall {
    /// Ready when a whole period has passed without progress.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timeout = self.timeout;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if !mem::take(&mut self.progress) {
                return Poll::Ready(());
            }
            timer.as_mut().reset(Instant::now() + timeout);
        }
    }

    /// The peer is not the one to wait for.
    fn rest(&mut self) {
        self.timer = None;
        self.progress = true;
    }
}
