//! TCP and unix sockets as one type, for a program that decides at run time.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use portcullis_conn::ConnInfo;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

#[cfg(unix)]
use super::listen::UnixAcceptor;
use super::listen::{Listen, TcpAcceptor};
use crate::{
    sniff::{Peek, Peeked},
    socket::ListenAddr,
};

/// A listener of either kind.
#[derive(Debug)]
#[non_exhaustive]
pub enum AnyAcceptor {
    /// TCP.
    Tcp(TcpAcceptor),
    /// A unix socket.
    #[cfg(unix)]
    Unix(UnixAcceptor),
}

/// A connection of either kind.
#[derive(Debug)]
#[non_exhaustive]
pub enum AnyStream {
    /// TCP.
    Tcp(TcpStream),
    /// Over a unix socket.
    #[cfg(unix)]
    Unix(UnixStream),
}

impl From<TcpAcceptor> for AnyAcceptor {
    fn from(acceptor: TcpAcceptor) -> Self {
        Self::Tcp(acceptor)
    }
}

#[cfg(unix)]
impl From<UnixAcceptor> for AnyAcceptor {
    fn from(acceptor: UnixAcceptor) -> Self {
        Self::Unix(acceptor)
    }
}

impl Listen for AnyAcceptor {
    type Io = AnyStream;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(AnyStream, ConnInfo)>> {
        Poll::Ready(Ok(match self {
            Self::Tcp(acceptor) => {
                let (io, info) = ready!(acceptor.poll_accept(cx))?;
                (AnyStream::Tcp(io), info)
            }
            #[cfg(unix)]
            Self::Unix(acceptor) => {
                let (io, info) = ready!(acceptor.poll_accept(cx))?;
                (AnyStream::Unix(io), info)
            }
        }))
    }

    fn local_addr(&self) -> ListenAddr {
        match self {
            Self::Tcp(acceptor) => acceptor.local_addr(),
            #[cfg(unix)]
            Self::Unix(acceptor) => acceptor.local_addr(),
        }
    }

    fn reset(io: AnyStream) {
        match io {
            AnyStream::Tcp(io) => TcpAcceptor::reset(io),
            #[cfg(unix)]
            AnyStream::Unix(io) => UnixAcceptor::reset(io),
        }
    }

    fn descriptor(io: &AnyStream) -> Option<u64> {
        match io {
            AnyStream::Tcp(io) => TcpAcceptor::descriptor(io),
            #[cfg(unix)]
            AnyStream::Unix(io) => UnixAcceptor::descriptor(io),
        }
    }

    fn lowest_free_descriptor(&self) -> Option<u64> {
        match self {
            Self::Tcp(acceptor) => acceptor.lowest_free_descriptor(),
            #[cfg(unix)]
            Self::Unix(acceptor) => acceptor.lowest_free_descriptor(),
        }
    }
}

impl Peek for AnyStream {
    async fn peek(&self, buf: &mut [u8], seen: usize) -> io::Result<Peeked> {
        match self {
            Self::Tcp(io) => Peek::peek(io, buf, seen).await,
            #[cfg(unix)]
            Self::Unix(io) => Peek::peek(io, buf, seen).await,
        }
    }
}

impl AsyncRead for AnyStream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_read(cx, buf),
            #[cfg(unix)]
            Self::Unix(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for AnyStream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_write(cx, buf),
            #[cfg(unix)]
            Self::Unix(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_flush(cx),
            #[cfg(unix)]
            Self::Unix(io) => Pin::new(io).poll_flush(cx),
        }
    }

    #[inline]
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            #[cfg(unix)]
            Self::Unix(io) => Pin::new(io).poll_shutdown(cx),
        }
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            #[cfg(unix)]
            Self::Unix(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(io) => io.is_write_vectored(),
            #[cfg(unix)]
            Self::Unix(io) => io.is_write_vectored(),
        }
    }
}

#[cfg(unix)]
impl std::os::fd::AsFd for AnyStream {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Tcp(io) => io.as_fd(),
            Self::Unix(io) => io.as_fd(),
        }
    }
}
