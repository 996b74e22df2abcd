//! A stream that carries another protocol after an extended CONNECT (RFC 8441).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{conn::H2Lease, exchange::H2Response};

/// The bytes of the DATA frames of one stream, both ways.
#[derive(Debug)]
pub(crate) struct H2Upgraded {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// What came and was not yet read.
    data: Bytes,
    ended: bool,
    shut: bool,
    lease: H2Lease,
}

impl H2Upgraded {
    pub(crate) fn new(response: H2Response) -> Self {
        let H2Response { recv, pump, lease, .. } = response;
        Self { send: pump.into_stream(), recv, data: Bytes::new(), ended: false, shut: false, lease }
    }

    pub(crate) fn endpoint(&self) -> Option<&str> {
        self.lease.endpoint().map(|state| &*state.endpoint.name)
    }
}

fn broken(error: h2::Error) -> io::Error {
    match error.reason() {
        Some(Reason::NO_ERROR | Reason::CANCEL | Reason::STREAM_CLOSED) => {
            io::Error::new(io::ErrorKind::BrokenPipe, error)
        }
        _ if error.is_io() => error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()),
        _ => io::Error::new(io::ErrorKind::ConnectionReset, error),
    }
}

impl AsyncRead for H2Upgraded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.data.is_empty() {
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            match ready!(this.recv.poll_data(cx)) {
                Some(Ok(data)) => this.data = data,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => this.ended = true,
            }
        }
        let size = this.data.len().min(buf.remaining());
        buf.put_slice(&this.data[..size]);
        this.data.advance(size);
        // the endpoint may send as much again
        let _ = this.recv.flow_control().release_capacity(size);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for H2Upgraded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if this.shut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        this.send.reserve_capacity(buf.len());
        while this.send.capacity() == 0 {
            match ready!(this.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let size = this.send.capacity().min(buf.len());
        this.send.send_data(Bytes::copy_from_slice(&buf[..size]), false).map_err(broken)?;
        Poll::Ready(Ok(size))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // the connection's own task writes
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.shut {
            this.shut = true;
            // RFC 8441 section 5: the end of the stream stands for the FIN of a connection
            this.send.send_data(Bytes::new(), true).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for H2Upgraded {
    fn drop(&mut self) {
        // RFC 8441 section 5: a connection that breaks is told as CANCEL; nothing happens to a stream that is over
        if !self.shut || !self.ended {
            self.send.send_reset(Reason::CANCEL);
        }
    }
}
