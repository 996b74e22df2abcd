//! A connection that left HTTP behind with 101 Switching Protocols.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Buf;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::h1::H1Conn;

/// The byte stream behind a 101 response. What the endpoint sent after its response head comes out first.
pub struct Upgraded<Io> {
    conn: Box<H1Conn<Io>>,
}

impl<Io> Upgraded<Io> {
    pub(crate) fn new(conn: Box<H1Conn<Io>>) -> Self {
        Self { conn }
    }
}

impl<Io> fmt::Debug for Upgraded<Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgraded").field("endpoint", &self.conn.endpoint.endpoint).finish_non_exhaustive()
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Upgraded<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let conn = &mut *self.get_mut().conn;
        if conn.read.is_empty() {
            return Pin::new(&mut conn.io).poll_read(cx, buf);
        }
        let size = conn.read.len().min(buf.remaining());
        buf.put_slice(&conn.read[..size]);
        conn.read.advance(size);
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Upgraded<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().conn.io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().conn.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().conn.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().conn.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.conn.io.is_write_vectored()
    }
}

/// Where a 101 response carries its byte stream: among its extensions, to be taken once.
pub struct UpgradedSlot<Io> {
    slot: Arc<Mutex<Option<Upgraded<Io>>>>,
}

impl<Io> UpgradedSlot<Io> {
    pub(crate) fn new(upgraded: Upgraded<Io>) -> Self {
        Self { slot: Arc::new(Mutex::new(Some(upgraded))) }
    }

    /// The stream, the first time.
    pub fn take(&self) -> Option<Upgraded<Io>> {
        self.slot.lock().take()
    }
}

impl<Io> Clone for UpgradedSlot<Io> {
    fn clone(&self) -> Self {
        Self { slot: Arc::clone(&self.slot) }
    }
}

impl<Io> fmt::Debug for UpgradedSlot<Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpgradedSlot").finish_non_exhaustive()
    }
}
