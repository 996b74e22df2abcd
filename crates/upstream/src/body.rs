//! A response body that carries its connection.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    BoxError, Error, ProtocolError,
    cluster::Shared,
    h1::{Decoded, Decoder, H1Conn, Pump, PumpError},
    pool::Pool,
};

/// The body of a response. It reads from the endpoint as it is polled, and sends what is left of the request body
/// meanwhile, so that an answer may begin before the request has ended. The connection returns to the pool with the
/// last byte; dropping the body earlier closes it, which tells the endpoint to stop.
///
/// `B` is the type of the request's body, `Io` of the byte stream.
pub struct Body<B, Io> {
    source: Option<Source<B, Io>>,
    decoder: Decoder,
}

/// Everything that is needed until the last byte.
pub(crate) struct Source<B, Io> {
    pub(crate) conn: Box<H1Conn<Io>>,
    pub(crate) pool: Arc<Pool<Io>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) index: usize,
    /// What is left of the request body; boxed, so that a body may contain a body of its own type.
    pub(crate) pump: Option<Box<Pump<B>>>,
    pub(crate) keep_alive: bool,
}

impl<B, Io> Source<B, Io> {
    /// The response is read to its end: the connection goes back if both sides can rely on where it stands.
    fn finish(self) {
        if self.keep_alive && self.pump.is_none() && self.conn.read.is_empty() {
            self.pool.put(self.index, self.conn);
        }
    }
}

impl<B, Io> Body<B, Io> {
    pub(crate) fn new(source: Source<B, Io>, decoder: Decoder) -> Self {
        if decoder.is_done() {
            source.finish();
            return Self { source: None, decoder };
        }
        Self { source: Some(source), decoder }
    }

    pub(crate) fn empty() -> Self {
        Self { source: None, decoder: Decoder::none() }
    }

    fn finish(&mut self) {
        if let Some(source) = self.source.take() {
            source.finish();
        }
    }

    fn fail(&mut self, error: impl FnOnce(Arc<str>) -> Error) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(source) = self.source.take() else { return Poll::Ready(None) };
        source.shared.count_error();
        Poll::Ready(Some(Err(error(Arc::clone(&source.conn.endpoint.endpoint.name)))))
    }

    fn broken(&mut self, source: ProtocolError) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.fail(|endpoint| Error::Protocol { endpoint, source })
    }
}

impl<B, Io> http_body::Body for Body<B, Io>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    Io: AsyncRead + AsyncWrite + Unpin,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        loop {
            let Some(source) = &mut this.source else { return Poll::Ready(None) };
            if let Some(pump) = &mut source.pump {
                let before = pump.progress();
                match pump.poll(&mut source.conn.io, &mut source.conn.write, cx) {
                    // an upload that moves is no silence
                    Poll::Pending if pump.progress() != before => source.conn.timer.clear(),
                    Poll::Pending => {}
                    Poll::Ready(Ok(())) => source.pump = None,
                    Poll::Ready(Err(PumpError::Io(_))) => {
                        source.pump = None;
                        source.keep_alive = false;
                    }
                    Poll::Ready(Err(PumpError::Body(source))) => {
                        return this.fail(|_| Error::RequestBody { source });
                    }
                }
            }
            match this.decoder.decode(&mut source.conn.read, source.shared.options.max_head_bytes) {
                Err(error) => return this.broken(error),
                Ok(Decoded::Data(data)) => {
                    source.conn.timer.clear();
                    if this.decoder.is_done() {
                        this.finish();
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Decoded::Trailers(trailers)) => {
                    this.finish();
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Ok(Decoded::Done) => {
                    this.finish();
                    return Poll::Ready(None);
                }
                Ok(Decoded::Need) => {}
            }
            match source.conn.poll_fill(this.decoder.remaining(), cx) {
                Poll::Ready(Ok(0)) if this.decoder.eof() => {
                    this.source = None;
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(0)) => return this.fail(|endpoint| Error::Closed { endpoint, source: None }),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => {
                    return this.fail(|endpoint| Error::Closed { endpoint, source: Some(error) });
                }
                Poll::Pending => {
                    if !source.conn.timer.is_set() {
                        source.conn.timer.set(source.shared.options.read_timeout);
                    }
                    if source.conn.timer.poll(cx).is_ready() {
                        return this.fail(|endpoint| Error::ReadTimeout { endpoint });
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.source, self.decoder.remaining()) {
            (None, _) => SizeHint::with_exact(0),
            (Some(_), Some(left)) => SizeHint::with_exact(left),
            (Some(_), None) => SizeHint::default(),
        }
    }
}

impl<B, Io> fmt::Debug for Body<B, Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("decoder", &self.decoder).finish_non_exhaustive()
    }
}
