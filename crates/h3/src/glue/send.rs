//! The sending side.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use ::h3::quic::{self, StreamErrorIncoming, StreamId, WriteBuf};
use bytes::{BufMut, Bytes, BytesMut};

use super::{RecvStream, StreamCore, lock, lost, stream_id};
use crate::codes;

/// A unidirectional stream of ours: control and QPACK.
pub(crate) struct UniSend {
    stream: quinn::SendStream,
    pending: BytesMut,
}

impl UniSend {
    pub(super) fn new(stream: quinn::SendStream) -> Self {
        Self { stream, pending: BytesMut::new() }
    }
}

/// Writes all of `pending`.
fn poll_flush(
    stream: &mut quinn::SendStream,
    pending: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<Result<(), StreamErrorIncoming>> {
    while !pending.is_empty() {
        let written = ready!(pin!(stream.write(pending)).poll(cx)).map_err(write_error)?;
        let _ = pending.split_to(written);
    }
    Poll::Ready(Ok(()))
}

fn write_error(error: quinn::WriteError) -> StreamErrorIncoming {
    match error {
        quinn::WriteError::Stopped(code) => {
            StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() }
        }
        quinn::WriteError::ConnectionLost(error) => lost(error),
        other => StreamErrorIncoming::Unknown(other.into()),
    }
}

impl quic::SendStream<Bytes> for UniSend {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        poll_flush(&mut self.stream, &mut self.pending, cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.pending.put(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        ready!(self.poll_ready(cx))?;
        // an error here says that the stream was finished or reset before
        let _ = self.stream.finish();
        Poll::Ready(Ok(()))
    }

    fn reset(&mut self, code: u64) {
        let _ = self.stream.reset(var(code));
    }

    fn send_id(&self) -> StreamId {
        stream_id(self.stream.id().into())
    }
}

/// A request stream. `h3` writes little to it: a client's request head, a server's answer to a head that is too
/// large; bodies go past it, see [`StreamCore::take_send`].
pub(crate) struct Bidi {
    core: Arc<StreamCore>,
    recv: RecvStream,
    pending: BytesMut,
}

impl Bidi {
    pub(super) fn new(core: Arc<StreamCore>, recv: RecvStream) -> Self {
        Self { core, recv, pending: BytesMut::new() }
    }

    pub(super) fn core(&self) -> &Arc<StreamCore> {
        &self.core
    }
}

fn taken() -> StreamErrorIncoming {
    StreamErrorIncoming::Unknown("the sending half is driven elsewhere".into())
}

impl quic::SendStream<Bytes> for Bidi {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        match &mut *lock(&self.core.send) {
            Some(stream) => poll_flush(stream, &mut self.pending, cx),
            None => Poll::Ready(Err(taken())),
        }
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.pending.put(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        ready!(self.poll_ready(cx))?;
        if let Some(stream) = &mut *lock(&self.core.send) {
            let _ = stream.finish();
        }
        Poll::Ready(Ok(()))
    }

    fn reset(&mut self, code: u64) {
        if let Some(stream) = &mut *lock(&self.core.send) {
            let _ = stream.reset(var(code));
        }
    }

    fn send_id(&self) -> StreamId {
        stream_id(self.core.id)
    }
}

impl quic::RecvStream for Bidi {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.recv.poll_data(cx)
    }

    fn stop_sending(&mut self, code: u64) {
        self.recv.stop_sending(code);
    }

    fn recv_id(&self) -> StreamId {
        stream_id(self.core.id)
    }
}

pub(super) fn var(code: u64) -> quinn::VarInt {
    quinn::VarInt::from_u64(code).unwrap_or(codes::var(codes::INTERNAL_ERROR))
}
