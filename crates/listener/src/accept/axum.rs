//! `axum::serve(incoming, app)`.

use std::{future::poll_fn, io, net::SocketAddr, pin::Pin};

use axum::{extract::connect_info::Connected, serve::IncomingStream};
use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Incoming, Listen};
use crate::{limits::Permitted, socket::ListenAddr};

/// Takes every property of [`Incoming`] into `axum::serve`. The client's address is the `remote_addr` of axum's
/// `IncomingStream`, and an extractor `ConnectInfo<ClientAddr>` for an app that is made by
/// `into_make_service_with_connect_info::<ClientAddr>()`.
///
/// `axum::serve` knows no listener that ends: after [`crate::Limits::close`] nothing is accepted any more, and
/// `.with_graceful_shutdown(...)` with [`crate::Limits::closed`] ends it.
impl<L> axum::serve::Listener for Incoming<L>
where
    L: Listen + Unpin + Send + 'static,
    L::Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Io = Permitted<L::Io>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await {
            Some(conn) => (conn.io, conn.info.peer),
            None => std::future::pending().await,
        }
    }

    /// The unspecified address for a unix socket.
    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(match Incoming::local_addr(self) {
            ListenAddr::Ip(address) => address,
            ListenAddr::Unix(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
        })
    }
}

/// The address of the client, for axum's `ConnectInfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddr(pub SocketAddr);

impl<L> Connected<IncomingStream<'_, Incoming<L>>> for ClientAddr
where
    L: Listen + Unpin + Send + 'static,
    L::Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn connect_info(stream: IncomingStream<'_, Incoming<L>>) -> Self {
        Self(*stream.remote_addr())
    }
}
