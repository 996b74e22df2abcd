//! A response body that carries its connection.

use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

use crate::{
    BoxError, Error,
    cluster::Ticket,
    h1::{Decoded, Decoder, H1Conn, Pump, PumpError, allowed_trailers},
    health::FailureKind,
    http2::{H2Response, SendError},
    pool::Pool,
    upload::Upload,
};

/// The body of a response. It reads from the endpoint as it is polled, and sends what is left of the request body
/// meanwhile, so that an answer may begin before the request has ended. An HTTP/1.1 connection returns to the pool with the
/// last byte; dropping the body earlier closes it, which tells the endpoint to stop. Over HTTP/2 the stream is reset.
///
/// `B` is the type of the request's body, `Io` of the byte stream.
pub struct Body<B, Io> {
    source: Source<B, Io>,
}

enum Source<B, Io> {
    Done,
    H1(H1Source<B, Io>, Decoder),
    /// Boxed, so that the common case stays small.
    H2(Box<H2Source<B>>),
}

/// Everything that is needed until the last byte of an answer over HTTP/1.1.
pub(crate) struct H1Source<B, Io> {
    pub(crate) conn: Box<H1Conn<Io>>,
    pub(crate) pool: Arc<Pool<Io>>,
    pub(crate) ticket: Ticket,
    /// What is left of the request body; boxed, so that a body may contain a body of its own type.
    pub(crate) rest: Option<Box<(Pump, Upload<B>)>>,
    pub(crate) keep_alive: bool,
    pub(crate) deadline: Option<Instant>,
}

/// The same over HTTP/2.
pub(crate) struct H2Source<B> {
    pub(crate) response: Box<H2Response>,
    pub(crate) rest: Option<Upload<B>>,
    pub(crate) left: Option<u64>,
    pub(crate) ticket: Ticket,
    pub(crate) deadline: Option<Instant>,
}

impl<B, Io> H1Source<B, Io> {
    /// The response is read to its end: the connection goes back if both sides can rely on where it stands.
    fn finish(mut self) {
        let last = self.conn.life.spend();
        if self.keep_alive && !last && self.rest.is_none() && self.conn.read.is_empty() {
            self.pool.put(self.conn);
        }
    }

    fn name(&self) -> Arc<str> {
        Arc::clone(&self.conn.endpoint.endpoint.name)
    }
}

impl<B, Io> Body<B, Io> {
    pub(crate) fn h1(source: H1Source<B, Io>, decoder: Decoder) -> Self {
        if decoder.is_done() {
            source.finish();
            return Self::empty();
        }
        Self { source: Source::H1(source, decoder) }
    }

    pub(crate) fn h2(source: H2Source<B>) -> Self {
        Self { source: Source::H2(Box::new(source)) }
    }

    pub(crate) fn empty() -> Self {
        Self { source: Source::Done }
    }

    fn finish(&mut self) {
        if let Source::H1(source, _) = mem::replace(&mut self.source, Source::Done) {
            source.finish();
        }
    }

    /// It ends in an error, which is the endpoint's fault if `theirs`.
    fn fail(&mut self, theirs: bool, error: Error) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match mem::replace(&mut self.source, Source::Done) {
            Source::Done => return Poll::Ready(None),
            Source::H1(source, _) => {
                source.ticket.shared.count_error(&error);
                if theirs {
                    source.ticket.shared.failed(&source.conn.endpoint, FailureKind::Connection);
                }
            }
            Source::H2(mut source) => {
                source.response.pump.cancel();
                source.ticket.shared.count_error(&error);
                if theirs && let Some(endpoint) = source.response.lease.endpoint() {
                    source.ticket.shared.failed(endpoint, FailureKind::Connection);
                }
            }
        }
        Poll::Ready(Some(Err(error)))
    }
}

/// Whether the time for all of a request is over.
fn is_late(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| deadline <= Instant::now())
}

/// How long more may be awaited: as long as for each piece, and not past the end of all.
fn patience(each: Duration, deadline: Option<Instant>) -> Duration {
    match deadline {
        None => each,
        Some(deadline) => each.min(deadline.saturating_duration_since(Instant::now())),
    }
}

impl<B, Io> Body<B, Io>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    Io: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_h1(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            let Source::H1(source, decoder) = &mut self.source else { return Poll::Ready(None) };
            if is_late(source.deadline) {
                // it may be the client that does not read
                return self.fail(false, Error::TotalTimeout);
            }
            if let Some(rest) = &mut source.rest {
                let (pump, upload) = &mut **rest;
                let before = (pump.written(), upload.taken());
                match pump.poll(upload, &mut source.conn.io, &mut source.conn.write, cx) {
                    // an upload that moves is no silence
                    Poll::Pending if (pump.written(), upload.taken()) != before => source.conn.timer.clear(),
                    Poll::Pending => {}
                    Poll::Ready(Ok(())) => source.rest = None,
                    Poll::Ready(Err(PumpError::Io(_))) => {
                        source.rest = None;
                        source.keep_alive = false;
                    }
                    Poll::Ready(Err(PumpError::Body(source))) => {
                        return self.fail(false, Error::RequestBody { source });
                    }
                }
            }
            match decoder.decode(&mut source.conn.read, source.ticket.shared.options.max_head_bytes) {
                Err(error) => {
                    let error = Error::Protocol { endpoint: source.name(), source: error };
                    return self.fail(true, error);
                }
                Ok(Decoded::Data(data)) => {
                    source.conn.timer.clear();
                    if decoder.is_done() {
                        self.finish();
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Decoded::Trailers(trailers)) => {
                    self.finish();
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Ok(Decoded::Done) => {
                    self.finish();
                    return Poll::Ready(None);
                }
                Ok(Decoded::Need) => {}
            }
            match source.conn.poll_fill(decoder.remaining(), cx) {
                Poll::Ready(Ok(0)) if decoder.eof() => {
                    self.source = Source::Done;
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(0)) => {
                    let error = Error::Closed { endpoint: source.name(), source: None };
                    return self.fail(true, error);
                }
                Poll::Ready(Ok(_)) => source.conn.timer.clear(),
                Poll::Ready(Err(error)) => {
                    let error = Error::Closed { endpoint: source.name(), source: Some(error) };
                    return self.fail(true, error);
                }
                Poll::Pending => {
                    if !source.conn.timer.is_set() {
                        let each = source.ticket.shared.options.read_timeout;
                        source.conn.timer.set(patience(each, source.deadline));
                    }
                    if source.conn.timer.poll(cx).is_ready() {
                        let error = match is_late(source.deadline) {
                            true => Error::TotalTimeout,
                            false => Error::ReadTimeout { endpoint: source.name() },
                        };
                        // while the client still sends it may be its turn
                        let theirs = source.rest.is_none();
                        return self.fail(theirs, error);
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    fn poll_h2(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Source::H2(source) = &mut self.source else { return Poll::Ready(None) };
        if is_late(source.deadline) {
            return self.fail(false, Error::TotalTimeout);
        }
        let H2Response { recv, pump, timer, .. } = &mut *source.response;
        if let Some(upload) = &mut source.rest {
            let before = upload.taken();
            match pump.poll(upload, cx) {
                Poll::Pending if upload.taken() != before => timer.clear(),
                Poll::Pending => {}
                // RFC 9113 section 8.1: an endpoint may answer in full and reset what is left of the request
                Poll::Ready(Ok(()) | Err(SendError::Stream)) => source.rest = None,
                Poll::Ready(Err(SendError::Body(error))) => {
                    return self.fail(false, Error::RequestBody { source: error });
                }
            }
        }
        let error = match recv.poll_data(cx) {
            Poll::Ready(Some(Ok(data))) => {
                timer.clear();
                source.left = source.left.map(|left| left.saturating_sub(data.len() as u64));
                // it is on its way: the endpoint may send as much again
                let _ = recv.flow_control().release_capacity(data.len());
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            Poll::Ready(Some(Err(error))) => error,
            Poll::Ready(None) => match recv.poll_trailers(cx) {
                Poll::Ready(Ok(trailers)) => {
                    self.source = Source::Done;
                    let frame = trailers.map(|trailers| Ok(Frame::trailers(allowed_trailers(trailers))));
                    return Poll::Ready(frame);
                }
                Poll::Ready(Err(error)) => error,
                Poll::Pending => return self.wait_h2(cx),
            },
            Poll::Pending => return self.wait_h2(cx),
        };
        let error = Error::Reset { endpoint: source.response.name(), source: error };
        self.fail(true, error)
    }

    fn wait_h2(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Source::H2(source) = &mut self.source else { return Poll::Ready(None) };
        let timer = &mut source.response.timer;
        if !timer.is_set() {
            timer.set(patience(source.ticket.shared.options.read_timeout, source.deadline));
        }
        if timer.poll(cx).is_pending() {
            return Poll::Pending;
        }
        let error = match is_late(source.deadline) {
            true => Error::TotalTimeout,
            false => Error::ReadTimeout { endpoint: source.response.name() },
        };
        let theirs = source.rest.is_none();
        self.fail(theirs, error)
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
        match &this.source {
            Source::Done => Poll::Ready(None),
            Source::H1(..) => this.poll_h1(cx),
            Source::H2(_) => this.poll_h2(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Done => true,
            Source::H1(..) => false,
            Source::H2(source) => source.rest.is_none() && source.response.recv.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let left = match &self.source {
            Source::Done => Some(0),
            Source::H1(_, decoder) => decoder.remaining(),
            Source::H2(source) if source.response.recv.is_end_stream() => Some(0),
            Source::H2(source) => source.left,
        };
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl<B, Io> fmt::Debug for Body<B, Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field(
                "size_hint",
                &match &self.source {
                    Source::Done => Some(0),
                    Source::H1(_, decoder) => decoder.remaining(),
                    Source::H2(source) => source.left,
                },
            )
            .finish_non_exhaustive()
    }
}
