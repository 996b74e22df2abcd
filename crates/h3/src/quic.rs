//! What this crate asks of a QUIC implementation, and quinn's answer.
//!
//! HTTP/3 is written against these few traits, so that another implementation takes one file. Nothing is boxed: a future of
//! quinn's that does not complete takes nothing and leaves its waker behind, so it is made anew for each poll.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use quinn::VarInt;

use crate::BoxError;

/// Why a connection is no more.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Lost {
    /// The peer closed it with this code (RFC 9114 section 8.1).
    #[error("the peer closed the connection with code {0:#x}")]
    Closed(u64),
    /// Nothing was heard for too long.
    #[error("the connection timed out")]
    TimedOut,
    /// Another reason of QUIC's.
    #[error("the connection was lost")]
    Other(#[source] Arc<dyn std::error::Error + Send + Sync>),
}

/// Why nothing more can be read from a stream.
#[derive(Clone, Debug)]
pub(crate) enum ReadFault {
    /// The peer reset it with this code.
    Reset(u64),
    Lost(Lost),
}

/// A connection.
pub(crate) trait Quic: Clone + Send + Sync + Unpin + 'static {
    type Send: SendHalf;
    type Recv: RecvHalf;

    fn accept_bi(&self) -> impl Future<Output = Result<(Self::Send, Self::Recv), Lost>> + Send + '_;
    fn accept_uni(&self) -> impl Future<Output = Result<Self::Recv, Lost>> + Send + '_;
    #[cfg(feature = "client")]
    fn open_bi(&self) -> impl Future<Output = Result<(Self::Send, Self::Recv), Lost>> + Send + '_;
    fn open_uni(&self) -> impl Future<Output = Result<Self::Send, Lost>> + Send + '_;
    /// Datagrams (RFC 9221): bytes of the largest that can be sent now, if any can.
    fn max_datagram(&self) -> Option<usize>;
    fn send_datagram(&self, payload: Bytes) -> Result<(), BoxError>;
    fn read_datagram(&self) -> impl Future<Output = Result<Bytes, Lost>> + Send + '_;
    /// Closes at once with a code of the application's. Does nothing to a connection that is closed already.
    fn close(&self, code: u32, reason: &str);
    /// Why it is no more, if it is.
    #[cfg(feature = "client")]
    fn lost(&self) -> Option<Lost>;
    fn rtt(&self) -> Duration;
    /// Datagrams received from the peer.
    fn heard(&self) -> u64;
    /// Where the peer is now.
    #[cfg(feature = "client")]
    fn peer(&self) -> std::net::SocketAddr;
}

/// The half of a stream that we write.
pub(crate) trait SendHalf: Send + Sync + Unpin + 'static {
    /// Writes what fits and empties the chunks that are written: how many those are. The last may be written in part.
    /// An error says that the peer wants no more, or is gone.
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<usize, ()>>;
    /// Ends the stream. QUIC keeps what is not acknowledged. Without effect on one that was finished, reset or stopped.
    fn finish(&mut self);
    /// Whether the peer has all of it, or has given it up.
    fn is_over(&self) -> bool;
    fn reset(&mut self, code: u32);
    /// The higher, the sooner it is sent among the streams that have something to send.
    fn set_priority(&self, priority: i32);
    /// Completes when the peer has stopped the stream or has all of it, or when the connection is lost.
    fn stopped(&self) -> impl Future<Output = ()> + Send + Sync + 'static + use<Self>;
    fn id(&self) -> u64;
}

/// The half that we read.
pub(crate) trait RecvHalf: Send + Sync + Unpin + 'static {
    /// Fills chunks from the first on: how many, at least one; `None` at the end of the stream.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<Option<usize>, ReadFault>>;
    /// Asks the peer to send no more. Without effect on a stream that has ended.
    fn stop(&mut self, code: u32);
    fn id(&self) -> u64;
}

impl From<quinn::ConnectionError> for Lost {
    fn from(error: quinn::ConnectionError) -> Self {
        match error {
            quinn::ConnectionError::ApplicationClosed(close) => Self::Closed(close.error_code.into_inner()),
            quinn::ConnectionError::TimedOut => Self::TimedOut,
            other => Self::Other(Arc::new(other)),
        }
    }
}

impl Quic for quinn::Connection {
    type Send = quinn::SendStream;
    type Recv = quinn::RecvStream;

    async fn accept_bi(&self) -> Result<(Self::Send, Self::Recv), Lost> {
        Ok(quinn::Connection::accept_bi(self).await?)
    }

    async fn accept_uni(&self) -> Result<Self::Recv, Lost> {
        Ok(quinn::Connection::accept_uni(self).await?)
    }

    #[cfg(feature = "client")]
    async fn open_bi(&self) -> Result<(Self::Send, Self::Recv), Lost> {
        Ok(quinn::Connection::open_bi(self).await?)
    }

    async fn open_uni(&self) -> Result<Self::Send, Lost> {
        Ok(quinn::Connection::open_uni(self).await?)
    }

    fn max_datagram(&self) -> Option<usize> {
        self.max_datagram_size()
    }

    fn send_datagram(&self, payload: Bytes) -> Result<(), BoxError> {
        Ok(quinn::Connection::send_datagram(self, payload)?)
    }

    async fn read_datagram(&self) -> Result<Bytes, Lost> {
        Ok(quinn::Connection::read_datagram(self).await?)
    }

    fn close(&self, code: u32, reason: &str) {
        quinn::Connection::close(self, VarInt::from_u32(code), reason.as_bytes());
    }

    #[cfg(feature = "client")]
    fn lost(&self) -> Option<Lost> {
        self.close_reason().map(Into::into)
    }

    fn rtt(&self) -> Duration {
        quinn::Connection::rtt(self)
    }

    fn heard(&self) -> u64 {
        self.stats().udp_rx.datagrams
    }

    #[cfg(feature = "client")]
    fn peer(&self) -> std::net::SocketAddr {
        self.remote_address()
    }
}

impl SendHalf for quinn::SendStream {
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<usize, ()>> {
        pin!(self.write_chunks(chunks))
            .poll(cx)
            .map(|written| written.map(|written| written.chunks).map_err(|_| ()))
    }

    fn finish(&mut self) {
        let _ = quinn::SendStream::finish(self);
    }

    fn is_over(&self) -> bool {
        // quinn forgets a stream once all of it is acknowledged
        self.priority().is_err()
    }

    fn reset(&mut self, code: u32) {
        let _ = quinn::SendStream::reset(self, VarInt::from_u32(code));
    }

    fn set_priority(&self, priority: i32) {
        let _ = quinn::SendStream::set_priority(self, priority);
    }

    fn stopped(&self) -> impl Future<Output = ()> + Send + Sync + 'static + use<> {
        let stopped = quinn::SendStream::stopped(self);
        async move {
            let _ = stopped.await;
        }
    }

    fn id(&self) -> u64 {
        quinn::SendStream::id(self).into()
    }
}

impl RecvHalf for quinn::RecvStream {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<Option<usize>, ReadFault>> {
        pin!(self.read_chunks(chunks)).poll(cx).map_err(|error| match error {
            quinn::ReadError::Reset(code) => ReadFault::Reset(code.into_inner()),
            quinn::ReadError::ConnectionLost(error) => ReadFault::Lost(error.into()),
            other => ReadFault::Lost(Lost::Other(Arc::new(other))),
        })
    }

    fn stop(&mut self, code: u32) {
        let _ = quinn::RecvStream::stop(self, VarInt::from_u32(code));
    }

    fn id(&self) -> u64 {
        quinn::RecvStream::id(self).into()
    }
}
