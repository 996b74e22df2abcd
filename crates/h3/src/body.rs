//! Bodies on their way in.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use ::h3::error::{Code, StreamError};
use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::{
    BodyError, codes,
    connection::ConnContext,
    glue::{Bidi, StreamCore},
};

/// A stream of `h3` that a body can be read from, at either end.
pub(crate) trait BodyStream {
    fn poll_payload(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>>;
    fn poll_trailers(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, StreamError>>;
    fn stop(&mut self, code: Code);
}

/// The request stream of a server.
pub(crate) type ServerStream = ::h3::server::RequestStream<Bidi, Bytes>;

impl BodyStream for ServerStream {
    fn poll_payload(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        // the buffer is a `Bytes` behind an opaque type: this moves it
        self.poll_recv_data(cx).map_ok(|data| data.map(|mut data| data.copy_to_bytes(data.remaining())))
    }

    fn poll_trailers(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, StreamError>> {
        self.poll_recv_trailers(cx)
    }

    fn stop(&mut self, code: Code) {
        self.stop_sending(code);
    }
}

/// Reads a body: hands its frames out and holds it against what was announced.
pub(crate) struct Reader<S> {
    pub(crate) stream: S,
    core: Arc<StreamCore>,
    announced: Option<u64>,
    left: u64,
    /// HEADERS frames before the body.
    heads: u32,
    max_fields: usize,
    in_trailers: bool,
}

impl<S: BodyStream> Reader<S> {
    pub(crate) fn new(
        stream: S,
        core: Arc<StreamCore>,
        announced: Option<u64>,
        heads: u32,
        max_fields: usize,
    ) -> Self {
        Self { stream, core, announced, left: announced.unwrap_or(0), heads, max_fields, in_trailers: false }
    }

    /// After `None` or an error the reader must not be polled again.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(match ready!(self.poll_inner(cx)) {
            Ok(frame) => frame.map(Ok),
            Err(error) => {
                if !error.is_disconnect() {
                    // RFC 9114 section 4.1.2: a malformed message is a stream error
                    self.core.fail(codes::MESSAGE_ERROR);
                    self.stream.stop(Code::H3_MESSAGE_ERROR);
                }
                Some(Err(error))
            }
        })
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, BodyError>> {
        while !self.in_trailers {
            match ready!(self.stream.poll_payload(cx)).map_err(BodyError::from_h3)? {
                Some(data) => {
                    self.core.took(data.len() as u64);
                    if self.announced.is_some() {
                        self.left =
                            self.left.checked_sub(data.len() as u64).ok_or_else(|| self.wrong_length())?;
                    }
                    return Poll::Ready(Ok(Some(Frame::data(data))));
                }
                None if self.core.took_empty() => {}
                None => self.in_trailers = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx)).map_err(BodyError::from_h3)?;
        if self.announced.is_some() && self.left > 0 {
            return Poll::Ready(Err(self.wrong_length()));
        }
        if trailers.as_ref().is_some_and(|trailers| trailers.len() > self.max_fields) {
            return Poll::Ready(Err(BodyError::TrailersTooLarge));
        }
        Poll::Ready(Ok(trailers.map(Frame::trailers)))
    }

    fn wrong_length(&self) -> BodyError {
        BodyError::Length { announced: self.announced.unwrap_or(0) }
    }

    /// Whether the next poll would report the end, and no error.
    pub(crate) fn is_end_stream(&self) -> bool {
        self.left == 0 && !self.in_trailers && self.core.at_end(self.heads)
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.announced {
            Some(_) => SizeHint::with_exact(self.left),
            None if self.is_end_stream() => SizeHint::with_exact(0),
            None => SizeHint::default(),
        }
    }
}

/// The body of a request.
///
/// It yields data as it comes, then trailers if there are any. If it ends before, or goes on after, the length that
/// `Content-Length` announced, it yields [`BodyError::Length`]. Dropping it unread asks the client to send no more of
/// it (`STOP_SENDING` with `H3_NO_ERROR`, RFC 9114 section 4.1.1).
pub struct RecvBody(Option<Box<Request>>);

struct Request {
    reader: Reader<ServerStream>,
    context: Arc<ConnContext>,
}

impl RecvBody {
    pub(crate) fn empty() -> Self {
        Self(None)
    }

    pub(crate) fn new(reader: Reader<ServerStream>, context: Arc<ConnContext>) -> Self {
        Self(Some(Box::new(Request { reader, context })))
    }
}

impl Body for RecvBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(request) = &mut self.0 else { return Poll::Ready(None) };
        let frame = ready!(request.reader.poll_frame(cx));
        match &frame {
            Some(Ok(frame)) if frame.is_data() => {}
            Some(Err(_)) => self.0 = None,
            _ => {
                if let Some(request) = self.0.take() {
                    request.context.bury(request.reader.stream);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|request| request.reader.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |request| request.reader.size_hint())
    }
}

impl std::fmt::Debug for RecvBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecvBody").field("end", &self.is_end_stream()).finish()
    }
}
