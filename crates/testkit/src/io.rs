//! A stream that gives and takes a few bytes at a time and is now and then not ready.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// At most one byte per call, not ready on every third: the hardest stream that still makes progress.
pub fn short_writes<Io>(inner: Io) -> ShortIo<Io> {
    ShortIo::new(inner, 1, 3)
}

pin_project! {
    /// Passes at most `max` bytes per call and answers every `pend_every`-th call with `Pending` (after waking the
    /// task), counted over reads and writes together, so that a run repeats exactly.
    #[derive(Debug)]
    pub struct ShortIo<Io> {
        #[pin]
        inner: Io,
        max: usize,
        pend_every: u32,
        calls: u32,
    }
}

impl<Io> ShortIo<Io> {
    /// Wraps a stream. `max` of 0 counts as 1; `pend_every` of 0 never pends by itself, 1 is taken as 2.
    pub fn new(inner: Io, max: usize, pend_every: u32) -> Self {
        let pend_every = if pend_every == 1 { 2 } else { pend_every };
        Self { inner, max: max.max(1), pend_every, calls: 0 }
    }

    /// The stream inside.
    pub fn into_inner(self) -> Io {
        self.inner
    }
}

fn turn(calls: &mut u32, pend_every: u32, cx: &Context<'_>) -> Poll<()> {
    *calls = calls.wrapping_add(1);
    if pend_every != 0 && (*calls).is_multiple_of(pend_every) {
        cx.waker().wake_by_ref();
        return Poll::Pending;
    }
    Poll::Ready(())
}

impl<Io: AsyncRead> AsyncRead for ShortIo<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        ready!(turn(this.calls, *this.pend_every, cx));
        let mut scratch = vec![0; buf.remaining().min(*this.max)];
        let mut part = ReadBuf::new(&mut scratch);
        ready!(this.inner.poll_read(cx, &mut part))?;
        buf.put_slice(part.filled());
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite> AsyncWrite for ShortIo<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.project();
        ready!(turn(this.calls, *this.pend_every, cx));
        this.inner.poll_write(cx, &buf[..buf.len().min(*this.max)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
        self.poll_write(cx, first)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().inner.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn everything_passes_in_the_end() {
        let (a, b) = tokio::io::duplex(4);
        let (mut a, mut b) = (short_writes(a), short_writes(b));
        let write = tokio::spawn(async move {
            a.write_all(b"hello, world").await.unwrap();
            a.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.unwrap();
        write.await.unwrap();
        assert_eq!(got, b"hello, world");
    }

    #[tokio::test]
    async fn one_call_moves_one_byte() {
        let (a, _b) = tokio::io::duplex(64);
        assert_eq!(ShortIo::new(a, 1, 0).write(b"abc").await.unwrap(), 1);
    }
}
