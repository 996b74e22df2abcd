//! One client for three protocols.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header, request};
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};

use super::tls;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    H1,
    H2,
    H3,
}

impl Protocol {
    pub(crate) const ALL: [Self; 3] = [Self::H1, Self::H2, Self::H3];

    pub(crate) fn alpn(self) -> &'static str {
        match self {
            Self::H1 => "http/1.1",
            Self::H2 => "h2",
            Self::H3 => "h3",
        }
    }
}

enum Inner {
    H1(http1::SendRequest<Body>),
    H2(http2::SendRequest<Body>),
    H3(portcullis_h3::client::Connection),
}

/// One connection.
pub(crate) struct Client {
    inner: Inner,
    /// What its requests have as authority or `Host`.
    pub(crate) authority: String,
}

impl Client {
    /// Connects with TLS; any certificate will do.
    pub(crate) async fn connect(protocol: Protocol, addr: SocketAddr, host: &str) -> Self {
        let config = tls::config(None, &[protocol.alpn()]);
        Box::pin(Self::try_connect(protocol, addr, host, config)).await.expect("a connection")
    }

    pub(crate) async fn try_connect(
        protocol: Protocol,
        addr: SocketAddr,
        host: &str,
        config: Arc<ClientConfig>,
    ) -> Result<Self, BoxError> {
        let authority = format!("{host}:{}", addr.port());
        if protocol == Protocol::H3 {
            let connecting = Box::pin(portcullis_h3::client::Connection::connect(addr, host, config));
            let connection = connecting.await?;
            return Ok(Self { inner: Inner::H3(connection), authority });
        }
        let io = tls::try_connect(addr, host, config).await?;
        let agreed = io.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        assert_eq!(agreed.as_deref(), Some(protocol.alpn().as_bytes()), "the protocol that was asked for");
        let inner = match protocol {
            Protocol::H2 => Inner::H2(h2(io).await?),
            _ => Inner::H1(h1(io).await?),
        };
        Ok(Self { inner, authority })
    }

    /// HTTP/1.1 without TLS.
    pub(crate) async fn plain(addr: SocketAddr, host: &str) -> Self {
        let io = tokio::net::TcpStream::connect(addr).await.unwrap();
        io.set_nodelay(true).unwrap();
        Self { inner: Inner::H1(h1(io).await.unwrap()), authority: host.to_owned() }
    }

    /// HTTP/2 by prior knowledge, without TLS.
    pub(crate) async fn plain_h2(addr: SocketAddr, host: &str) -> Self {
        let io = tokio::net::TcpStream::connect(addr).await.unwrap();
        io.set_nodelay(true).unwrap();
        Self { inner: Inner::H2(h2(io).await.unwrap()), authority: host.to_owned() }
    }

    /// Begins a request as this connection's protocol wants it.
    pub(crate) fn request(&self, method: Method, path: &str) -> request::Builder {
        match self.inner {
            Inner::H1(_) => Request::builder().method(method).uri(path).header(header::HOST, &self.authority),
            _ => Request::builder().method(method).uri(format!("https://{}{path}", self.authority)),
        }
    }

    /// Sends it and waits for the response's head.
    pub(crate) async fn send(&mut self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        Ok(match &mut self.inner {
            Inner::H1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?.map(|body| body.map_err(Into::into).boxed_unsync())
            }
            Inner::H2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?.map(|body| body.map_err(Into::into).boxed_unsync())
            }
            Inner::H3(connection) => {
                connection.send(request).await?.map(|body| body.map_err(Into::into).boxed_unsync())
            }
        })
    }

    /// A request and its whole response.
    pub(crate) async fn try_fetch(&mut self, request: Request<Body>) -> Result<Reply, BoxError> {
        Reply::read(self.send(request).await?).await
    }

    pub(crate) async fn fetch(&mut self, request: Request<Body>) -> Reply {
        self.try_fetch(request).await.expect("a whole response")
    }

    pub(crate) async fn get(&mut self, path: &str) -> Reply {
        let request = self.request(Method::GET, path).body(empty()).unwrap();
        self.fetch(request).await
    }
}

async fn h1(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> hyper::Result<http1::SendRequest<Body>> {
    let (sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

async fn h2(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> hyper::Result<http2::SendRequest<Body>> {
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(1 << 20)
        .handshake(TokioIo::new(io))
        .await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// A whole response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Reply {
    pub(crate) async fn read(response: Response<Body>) -> Result<Self, BoxError> {
        let (parts, body) = response.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned();
        let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        Ok(Self { status: parts.status, headers: parts.headers, body, trailers })
    }

    /// A field's value; empty if it is not there, and the first if there are several.
    pub(crate) fn field(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}
