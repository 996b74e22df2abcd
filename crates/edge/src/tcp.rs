//! From an accepted TCP connection to the one that carries HTTP.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use portcullis_conn::{Conn, FirstBytes};
use portcullis_listener::{
    AnyAcceptor, AnyStream, ClientRefused, Listen as _, Permitted, ProxyProtocolOptions, read_proxy_header,
    sniff,
};
use portcullis_tls::{Acceptor, TlsStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_service::Service;

use crate::{BoxError, plan::PlainHttp};

/// What a listener makes of a new connection: reads what a proxy in front says of it, looks at its first bytes, and lets
/// TLS in.
#[derive(Clone, Debug)]
pub(crate) struct Handshake {
    /// `None` on a plain listener.
    pub(crate) tls: Option<Acceptor>,
    /// What happens to plain HTTP where TLS is spoken.
    pub(crate) plain_http: PlainHttp,
    /// Time for the first bytes.
    pub(crate) timeout: Duration,
    /// The proxies that put a header before each connection, if there are any.
    pub(crate) proxy_protocol: Option<Arc<ProxyProtocolOptions>>,
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

impl Service<Conn<Permitted<AnyStream>>> for Handshake {
    type Response = Conn<EdgeIo>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Conn<EdgeIo>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut conn: Conn<Permitted<AnyStream>>) -> Self::Future {
        let Self { tls, plain_http, timeout, proxy_protocol } = self.clone();
        Box::pin(async move {
            if let Some(options) = proxy_protocol {
                conn = behind_proxy(conn, &options).await?;
            }
            let first = sniff(&mut conn, timeout).await?;
            match (first, tls) {
                (FirstBytes::Tls, Some(mut acceptor)) => {
                    let conn = acceptor.call(conn).await?;
                    Ok(conn.map(|io| EdgeIo::Tls(Box::new(io))))
                }
                (FirstBytes::Http1 | FirstBytes::Http2Preface, None) => Ok(conn.map(EdgeIo::Plain)),
                (FirstBytes::Http1 | FirstBytes::Http2Preface, Some(_)) => match (plain_http, first) {
                    // where they are not to be served the routes are out of reach: such requests are redirected, see
                    // `dispatch`
                    (PlainHttp::Serve, _) | (PlainHttp::Redirect, FirstBytes::Http1) => {
                        Ok(conn.map(EdgeIo::Plain))
                    }
                    _ => Err(HandshakeRefused::PlainHttp.into()),
                },
                _ => Err(HandshakeRefused::Unknown.into()),
            }
        })
    }
}

/// A connection that may come through a proxy which says so: the client is counted once it is known.
async fn behind_proxy(
    mut conn: Conn<Permitted<AnyStream>>,
    options: &ProxyProtocolOptions,
) -> Result<Conn<Permitted<AnyStream>>, BoxError> {
    read_proxy_header(&mut conn, options).await?;
    if conn.info.proxied.is_some()
        && let Err(refused) = conn.io.count_client(conn.info.client_ip()).await
    {
        if let ClientRefused { reset: true, .. } = refused {
            let (io, _permit) = conn.io.into_parts();
            AnyAcceptor::reset(io);
        }
        return Err(refused.into());
    }
    Ok(conn)
}

/// The byte stream under HTTP/1 and 2, with its permit inside.
#[derive(Debug)]
pub(crate) enum EdgeIo {
    Plain(Permitted<AnyStream>),
    Tls(Box<TlsStream<Permitted<AnyStream>>>),
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
