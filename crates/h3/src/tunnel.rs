//! Tunnels: what a stream becomes behind a CONNECT that was agreed to (RFC 9114 section 4.4, RFC 9220).

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};

use crate::{
    codes,
    frame::{Event, FrameReader, StreamFault},
    head,
    outgoing::Outgoing,
    quic::{Quic, SendHalf},
};

/// Bytes of one DATA frame that a write makes at most.
const FRAME_MAX: usize = 32 * 1024;
/// The header of a DATA frame.
const HEADER_MAX: usize = 9;

/// Becomes the tunnel once the response that agrees to it was written. Among the extensions of every CONNECT request; take it
/// out, answer 2xx, and wait for it (in another task: the stream comes after the response).
///
/// A service that drops it answers CONNECT like any other request. A 2xx by a service that kept it has no body: what its
/// response carries is dropped. After another status, or when the client leaves, waiting for it is an error.
#[derive(Clone)]
pub struct OnTunnel(Arc<Mutex<Option<oneshot::Receiver<Tunnel>>>>);

/// There will be no tunnel: the answer was no 2xx, the client has left, or somebody else has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no tunnel was opened")]
pub struct NoTunnel;

/// The task's end of an [`OnTunnel`].
pub(crate) struct Handover(oneshot::Sender<Tunnel>);

impl OnTunnel {
    pub(crate) fn new() -> (Self, Handover) {
        let (sender, receiver) = oneshot::channel();
        (Self(Arc::new(Mutex::new(Some(receiver)))), Handover(sender))
    }

    /// Waits for the stream. Dropped early, the stream is reset as soon as it would be handed over.
    pub async fn wait(self) -> Result<Tunnel, NoTunnel> {
        let receiver = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        receiver.ok_or(NoTunnel)?.await.map_err(|_| NoTunnel)
    }
}

impl fmt::Debug for OnTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnTunnel").finish_non_exhaustive()
    }
}

impl Handover {
    /// Whether nobody waits, or will.
    pub(crate) fn is_refused(&self) -> bool {
        self.0.is_closed()
    }

    pub(crate) fn hand_over(self, tunnel: Tunnel) {
        // one that nobody takes is reset by its drop
        let _ = self.0.send(tunnel);
    }
}

/// The bytes of a tunnel, both ways: DATA frames' payload.
///
/// A read end is the client's end of stream; `shutdown` ends ours. Dropped before that, the stream is reset with
/// `H3_CONNECT_ERROR`, or `H3_REQUEST_CANCELLED` for an extended CONNECT (RFC 9220 section 3). It holds what one packet carried
/// and was not read, and one frame of at most 32 KiB that was not taken by the client.
pub struct Tunnel(Box<dyn Duplex>);

/// What a tunnel belongs to, and keeps.
pub(crate) trait Finish<S: SendHalf>: Send + Unpin + 'static {
    /// Takes the end of a stream, which is on its way until the peer has acknowledged it.
    fn finish(&self, out: Outgoing<S>);
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Tunnel {
    /// `keep` is dropped with it.
    pub(crate) fn new<Q: Quic, K: Finish<Q::Send>>(
        mut frames: FrameReader<Q::Recv>,
        out: Outgoing<Q::Send>,
        quic: Q,
        keep: K,
    ) -> Self {
        frames.begin_tunnel();
        let (read, pending) = (Bytes::new(), [const { Bytes::new() }; 2]);
        Self(Box::new(Stream { frames, read, out: Some(out), pending, scratch: BytesMut::new(), quic, keep }))
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").finish_non_exhaustive()
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(cx)
    }
}

struct Stream<Q: Quic, K> {
    frames: FrameReader<Q::Recv>,
    /// Payload that was not read yet.
    read: Bytes,
    /// `None` after our end.
    out: Option<Outgoing<Q::Send>>,
    /// A frame, header and payload, that is not all written.
    pending: [Bytes; 2],
    scratch: BytesMut,
    quic: Q,
    keep: K,
}

impl<Q: Quic, K> Stream<Q, K> {
    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(out) = &mut self.out else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        flush(out, &mut self.pending, cx)
    }
}

fn flush<S: SendHalf>(
    out: &mut Outgoing<S>,
    pending: &mut [Bytes; 2],
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while let Some(first) = pending.iter().position(|chunk| !chunk.is_empty()) {
        let written = ready!(out.poll_write(cx, &mut pending[first..]));
        written.map_err(|fault| io::Error::new(io::ErrorKind::ConnectionReset, fault))?;
    }
    Poll::Ready(Ok(()))
}

impl<Q: Quic, K: Unpin> AsyncRead for Stream<Q, K> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.read.is_empty() {
            match ready!(this.frames.poll_event(cx)) {
                Ok(Event::Data(data)) => this.read = data,
                Ok(Event::End) => return Poll::Ready(Ok(())),
                Ok(Event::Headers(_)) => {}
                Err(fault) => {
                    if let StreamFault::Connection(code, what) = fault {
                        this.quic.close(code, what);
                    }
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, fault)));
                }
            }
        }
        let step = this.read.len().min(buf.remaining());
        buf.put_slice(&this.read[..step]);
        this.read.advance(step);
        Poll::Ready(Ok(()))
    }
}

impl<Q: Quic, K: Finish<Q::Send>> AsyncWrite for Stream<Q, K> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_pending(cx))?;
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let this = &mut *self;
        let step = buf.len().min(FRAME_MAX);
        this.scratch.reserve(HEADER_MAX + step);
        head::encode_data_header(&mut this.scratch, step as u64);
        this.scratch.extend_from_slice(&buf[..step]);
        this.pending[0] = this.scratch.split().freeze();
        // it is ours now, whether or not all of it leaves at once
        if let Poll::Ready(Err(error)) = this.poll_pending(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(step))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.is_none() {
            return Poll::Ready(Ok(()));
        }
        self.poll_pending(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.is_some() {
            ready!(self.poll_pending(cx))?;
        }
        if let Some(out) = self.out.take() {
            self.keep.finish(out);
        }
        Poll::Ready(Ok(()))
    }
}

/// The code of a tunnel that breaks.
pub(crate) fn broken_code(extended: bool) -> u32 {
    if extended { codes::REQUEST_CANCELLED } else { codes::CONNECT_ERROR }
}
