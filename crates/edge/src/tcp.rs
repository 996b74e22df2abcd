//! From an accepted TCP connection to the one that carries HTTP.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use portcullis_conn::{Conn, FirstBytes};
use portcullis_listener::{Permitted, sniff};
use portcullis_tls::{Acceptor, TlsStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tower_service::Service;

use crate::{BoxError, plan::PlainHttp};

/// What a listener makes of a new connection: looks at its first bytes, and lets TLS in.
#[derive(Clone, Debug)]
pub(crate) struct Handshake {
    /// `None` on a plain listener.
    pub(crate) tls: Option<Acceptor>,
    /// What happens to plain HTTP where TLS is spoken.
    pub(crate) plain_http: PlainHttp,
    /// Time for the first bytes.
    pub(crate) timeout: Duration,
}

/// A connection that was closed for what it began with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum HandshakeRefused {
    #[error("plain HTTP on a TLS port")]
    PlainHttp,
    #[error("the first bytes are neither TLS nor HTTP")]
    Unknown,
}

impl Service<Conn<Permitted<TcpStream>>> for Handshake {
    type Response = Conn<EdgeIo>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Conn<EdgeIo>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut conn: Conn<Permitted<TcpStream>>) -> Self::Future {
        let Self { tls, plain_http, timeout } = self.clone();
        Box::pin(async move {
            let first = sniff(&mut conn, timeout).await?;
            match (first, tls) {
                (FirstBytes::Tls, Some(mut acceptor)) => {
                    let conn = acceptor.call(conn).await?;
                    Ok(conn.map(|io| EdgeIo::Tls(Box::new(io))))
                }
                (FirstBytes::Http1, Some(_)) if plain_http == PlainHttp::Refuse => {
                    Err(HandshakeRefused::PlainHttp.into())
                }
                // without TLS on a TLS port the routes are out of reach: such requests are redirected, see `order`
                (FirstBytes::Http1, _) | (FirstBytes::Http2Preface, None) => Ok(conn.map(EdgeIo::Plain)),
                (FirstBytes::Http2Preface, Some(_)) => Err(HandshakeRefused::PlainHttp.into()),
                _ => Err(HandshakeRefused::Unknown.into()),
            }
        })
    }
}

/// The byte stream under HTTP/1 and 2, with its permit inside.
#[derive(Debug)]
pub(crate) enum EdgeIo {
    Plain(Permitted<TcpStream>),
    Tls(Box<TlsStream<Permitted<TcpStream>>>),
}

impl AsyncRead for EdgeIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for EdgeIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }
}
