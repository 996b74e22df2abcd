//! The encrypted stream.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose bytes are encrypted on the `Io` below. Writes are gathered into records; flush when the other
/// end is waited for.
#[derive(Debug)]
pub struct TlsStream<Io>(tokio_rustls::server::TlsStream<Io>);

impl<Io> TlsStream<Io> {
    pub(crate) fn new(inner: tokio_rustls::server::TlsStream<Io>) -> Self {
        Self(inner)
    }

    /// The stream below.
    pub fn get_ref(&self) -> &Io {
        self.0.get_ref().0
    }

    /// The stream below. Reading from it or writing to it breaks the encryption; setting socket options does not.
    pub fn get_mut(&mut self) -> &mut Io {
        self.0.get_mut().0
    }

    /// The state of the protocol.
    pub fn connection(&self) -> &rustls::ServerConnection {
        self.0.get_ref().1
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
