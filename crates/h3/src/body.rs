//! Bodies on their way in.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::{
    BodyError, codes,
    connection::ConnContext,
    frame::{Event, FrameReader, StreamFault},
    head::TrailerFields,
    qpack::decode::{Bounds, SectionFault, decode},
    quic::{Quic, RecvHalf},
};

/// Reads a body: hands its frames out and holds it against what was announced.
pub(crate) struct Reader<R: RecvHalf> {
    pub(crate) frames: FrameReader<R>,
    announced: Option<u64>,
    left: u64,
    bounds: Bounds,
}

/// What a body that can't go on means for its stream and its connection.
pub(crate) enum Broken {
    /// The stream is given up with this code.
    Stream(u32),
    Connection(u32, &'static str),
    /// The peer gave up.
    Peer,
}

/// A frame of a body, or why there is none and what that means.
type ReadFrame = Result<Frame<Bytes>, (BodyError, Broken)>;

impl<R: RecvHalf> Reader<R> {
    pub(crate) fn new(frames: FrameReader<R>, announced: Option<u64>, bounds: Bounds) -> Self {
        Self { frames, announced, left: announced.unwrap_or(0), bounds }
    }

    /// After `None` or an error the reader must not be polled again.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<ReadFrame>> {
        let event = match ready!(self.frames.poll_event(cx)) {
            Ok(event) => event,
            Err(fault) => return Poll::Ready(Some(Err(broken(fault)))),
        };
        Poll::Ready(match event {
            Event::Data(data) => {
                if self.announced.is_some() {
                    match self.left.checked_sub(data.len() as u64) {
                        Some(left) => self.left = left,
                        None => return Poll::Ready(Some(Err(self.malformed()))),
                    }
                }
                Some(Ok(Frame::data(data)))
            }
            // RFC 9114 section 4.1.2
            Event::Headers(_) | Event::End if self.announced.is_some() && self.left > 0 => {
                Some(Err(self.malformed()))
            }
            Event::Headers(section) => {
                let mut fields = TrailerFields::default();
                Some(match decode(&section, self.bounds, &mut fields) {
                    Ok(()) => Ok(Frame::trailers(fields.0)),
                    Err(fault) => {
                        self.frames.stop(codes::MESSAGE_ERROR);
                        Err(bad_trailers(fault))
                    }
                })
            }
            Event::End => None,
        })
    }

    fn malformed(&mut self) -> (BodyError, Broken) {
        self.frames.stop(codes::MESSAGE_ERROR);
        let error = BodyError::Length { announced: self.announced.unwrap_or(0) };
        (error, Broken::Stream(codes::MESSAGE_ERROR))
    }

    /// Whether the next poll would report the end, and no error.
    pub(crate) fn is_end_stream(&self) -> bool {
        self.left == 0 && self.frames.at_end()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.announced {
            Some(_) => SizeHint::with_exact(self.left),
            None if self.is_end_stream() => SizeHint::with_exact(0),
            None => SizeHint::default(),
        }
    }
}

fn broken(fault: StreamFault) -> (BodyError, Broken) {
    match fault {
        StreamFault::Reset(code) => (BodyError::Reset { code }, Broken::Peer),
        StreamFault::Lost(lost) => (BodyError::Disconnected(lost.into()), Broken::Peer),
        StreamFault::Stream(code, what) => (BodyError::Protocol(what.into()), Broken::Stream(code)),
        StreamFault::Connection(code, what) => {
            (BodyError::Protocol(what.into()), Broken::Connection(code, what))
        }
    }
}

fn bad_trailers(fault: SectionFault) -> (BodyError, Broken) {
    match fault {
        SectionFault::TooLarge | SectionFault::TooMany => {
            (BodyError::TrailersTooLarge, Broken::Stream(codes::MESSAGE_ERROR))
        }
        SectionFault::Malformed => (BodyError::Protocol(fault.into()), Broken::Stream(codes::MESSAGE_ERROR)),
        SectionFault::Decompression => (
            BodyError::Protocol(fault.into()),
            Broken::Connection(codes::QPACK_DECOMPRESSION_FAILED, "trailers that can not be decompressed"),
        ),
    }
}

/// The body of a request.
///
/// It yields data as it comes, then trailers if there are any. If it ends before, or goes on after, the length that
/// `Content-Length` announced, it yields [`BodyError::Length`]. Dropping it unread asks the client to send no more of
/// it (`STOP_SENDING` with `H3_NO_ERROR`, RFC 9114 section 4.1.1). A client that waits for a `100 Continue` gets it when the
/// body is first polled (RFC 9110 section 10.1.1).
pub struct RecvBody(Option<Box<dyn Incoming>>);

/// A body of any implementation of QUIC.
pub(crate) trait Incoming: Send + Sync {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>>;
    fn is_end_stream(&self) -> bool;
    fn size_hint(&self) -> SizeHint;
}

/// The body of a request to a server.
pub(crate) struct RequestBody<Q: Quic> {
    pub(crate) reader: Reader<Q::Recv>,
    pub(crate) context: Arc<ConnContext<Q>>,
    pub(crate) side: Arc<crate::side::Side>,
    /// The client waits to be asked for it.
    pub(crate) expected: bool,
}

impl<Q: Quic> Incoming for RequestBody<Q> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if std::mem::take(&mut self.expected) {
            self.side.send_continue();
        }
        let frame = ready!(self.reader.poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            frame.map_err(|(error, broken)| {
                match broken {
                    Broken::Stream(code) => self.side.fail(code),
                    Broken::Connection(code, what) => {
                        self.side.fail(code);
                        self.context.quic.close(code, what);
                    }
                    Broken::Peer => {}
                }
                error
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.reader.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.reader.size_hint()
    }
}

impl RecvBody {
    pub(crate) fn empty() -> Self {
        Self(None)
    }

    pub(crate) fn new<Q: Quic>(body: RequestBody<Q>) -> Self {
        Self(Some(Box::new(body)))
    }
}

impl Body for RecvBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let frame = ready!(body.poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.0 = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |body| body.size_hint())
    }
}

impl std::fmt::Debug for RecvBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecvBody").field("end", &self.is_end_stream()).finish()
    }
}
