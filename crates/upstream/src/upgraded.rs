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

use crate::{h1::H1Conn, http2::H2Upgraded};

/// The byte stream behind a 101 response. What the endpoint sent after its response head comes out first. Over HTTP/2 it is a stream of its own
/// (RFC 8441), and the 101 stands for the endpoint's 200.
pub struct Upgraded<Io> {
    kind: Kind<Io>,
}

enum Kind<Io> {
    H1(Box<H1Conn<Io>>),
    H2(Box<H2Upgraded>),
}

impl<Io> Upgraded<Io> {
    pub(crate) fn h1(conn: Box<H1Conn<Io>>) -> Self {
        Self { kind: Kind::H1(conn) }
    }

    pub(crate) fn h2(stream: H2Upgraded) -> Self {
        Self { kind: Kind::H2(Box::new(stream)) }
    }
}

impl<Io> fmt::Debug for Upgraded<Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoint = match &self.kind {
            Kind::H1(conn) => Some(&*conn.endpoint.endpoint.name),
            Kind::H2(stream) => stream.endpoint(),
        };
        f.debug_struct("Upgraded").field("endpoint", &endpoint).finish_non_exhaustive()
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Upgraded<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let conn = match &mut self.get_mut().kind {
            Kind::H1(conn) => conn,
            Kind::H2(stream) => return Pin::new(&mut **stream).poll_read(cx, buf),
        };
        if conn.read.is_empty() {
            return Pin::new(&mut conn.io).poll_read(cx, buf);
        }
        let size = conn.read.len().min(buf.remaining());
        buf.put_slice(&conn.read[..size]);
        conn.read.advance(size);
        Poll::Ready(Ok(()))
    }
}

macro_rules! each {
    ($self:expr, $io:ident => $call:expr) => {
        match &mut $self.get_mut().kind {
            Kind::H1(conn) => {
                let $io = Pin::new(&mut conn.io);
                $call
            }
            Kind::H2(stream) => {
                let $io = Pin::new(&mut **stream);
                $call
            }
        }
    };
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Upgraded<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, io => io.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => io.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.kind {
            Kind::H1(conn) => conn.io.is_write_vectored(),
            Kind::H2(stream) => stream.is_write_vectored(),
        }
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
