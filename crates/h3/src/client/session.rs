//! HTTP/3 over one connection, from a client's side.

use std::{
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use portcullis_conn::ConnectProtocol;
use tokio::{
    sync::oneshot,
    task::AbortHandle,
    time::{sleep, timeout},
};

use super::{ClientError, MAX_FIELD_SECTION, SEND_TIMEOUT};

/// Interim responses to one request; with more of them the server has failed.
const MAX_INTERIM: u32 = 16;
use crate::{
    BodyError, BoxError, Tunnel,
    body::{Broken, Incoming, Reader},
    codes,
    connection::write,
    control::{self, CONTROL_STREAM, Command, Role},
    frame::{Event, FrameReader, StreamFault, put_varint},
    head::{self, ResponseFields},
    outgoing::{Outgoing, Pump, SendFault, poll_stopped},
    qpack::decode::{Bounds, SectionFault, decode},
    quic::{Lost, Quic, SendHalf},
    settings::Settings,
    tunnel::{Finish, broken_code},
};

const BOUNDS: Bounds = Bounds { size: MAX_FIELD_SECTION, fields: 1024 };
/// Room for a request's head.
const HEAD_CAPACITY: usize = 512;
/// No GOAWAY came.
const NO_GOAWAY: u64 = u64::MAX;

/// Is told of interim responses (RFC 9110 section 15.2), if it is among the extensions of a request.
#[derive(Clone)]
pub struct OnInterim(Arc<Tell>);

type Tell = dyn Fn(StatusCode, &HeaderMap) + Send + Sync;

impl OnInterim {
    /// `tell` is called in the task that waits for the response; it must not block.
    pub fn new(tell: impl Fn(StatusCode, &HeaderMap) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }
}

impl fmt::Debug for OnInterim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnInterim").finish_non_exhaustive()
    }
}

/// How long the head of a response may take, if it is among the extensions of a request: from the end of the request on, whose parts have
/// deadlines of their own; and how long the request may wait for the server's credit to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseTimeout(pub Duration);

/// A connection that speaks HTTP/3.
pub(crate) struct Session<Q: Quic> {
    quic: Q,
    goaway: Arc<AtomicU64>,
    /// Open as long as the connection is (RFC 9114 section 6.2.1).
    _control: Q::Send,
}

impl<Q: Quic> fmt::Debug for Session<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("peer", &self.quic.peer()).finish_non_exhaustive()
    }
}

impl<Q: Quic> Drop for Session<Q> {
    fn drop(&mut self) {
        self.quic.close(codes::NO_ERROR, "");
    }
}

impl<Q: Quic> Session<Q> {
    pub(crate) async fn begin(quic: Q) -> Result<Arc<Self>, Lost> {
        let mut control = quic.open_uni().await?;
        let mut bytes = BytesMut::new();
        put_varint(&mut bytes, CONTROL_STREAM);
        Settings { max_field_section_size: Some(MAX_FIELD_SECTION), ..Settings::default() }
            .encode(&mut bytes);
        write(&mut control, bytes).await;
        let goaway = Arc::new(AtomicU64::new(NO_GOAWAY));
        tokio::spawn({
            let (quic, goaway) = (quic.clone(), Arc::clone(&goaway));
            async move {
                let heed = |command| {
                    if let Command::GoAway(id) = command {
                        goaway.store(id, Ordering::Relaxed);
                    }
                    Ok(())
                };
                // ends with the connection
                if let Err(StreamFault::Connection(code, what)) =
                    control::read(&quic, Role::Client, heed).await
                {
                    quic.close(code, what);
                }
            }
        });
        Ok(Arc::new(Self { quic, goaway, _control: control }))
    }

    pub(crate) fn close(&self) {
        self.quic.close(codes::NO_ERROR, "");
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.quic.lost().is_some()
    }

    pub(crate) fn is_going_away(&self) -> bool {
        self.goaway.load(Ordering::Relaxed) != NO_GOAWAY
    }

    async fn open(&self) -> Result<(FrameReader<Q::Recv>, Outgoing<Q::Send>), ClientError> {
        if self.is_going_away() {
            return Err(ClientError::GoingAway);
        }
        let (send, recv) = self.quic.open_bi().await.map_err(ClientError::lost)?;
        let frames = FrameReader::new(recv, MAX_FIELD_SECTION, codes::REQUEST_CANCELLED);
        let out = Outgoing::new(send, codes::REQUEST_CANCELLED);
        // it may have come while this waited for credit
        if self.is_going_away() { Err(ClientError::GoingAway) } else { Ok((frames, out)) }
    }

    pub(crate) async fn send<B>(
        self: &Arc<Self>,
        request: Request<B>,
    ) -> Result<Response<ResponseBody>, ClientError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        let limit = parts.extensions.get::<ResponseTimeout>().map(|limit| limit.0);
        let opened = match limit {
            None => self.open().await,
            Some(limit) => timeout(limit, self.open()).await.unwrap_or(Err(ClientError::Timeout)),
        };
        let (mut frames, out) = opened?;
        let announced = head::content_length(&parts.headers)
            .map_err(|()| ClientError::Protocol("the content-length of the request is malformed".into()))?;
        let exact = if body.is_end_stream() { None } else { body.size_hint().exact() };
        let mut bytes = BytesMut::with_capacity(HEAD_CAPACITY);
        head::encode_request(&mut bytes, &parts, exact);
        let pump = Pump::new(bytes, announced, SEND_TIMEOUT);
        let (mut upload, mut sent) = Upload::begin(pump, out, body, self).await;
        let failed_or_late = async {
            match (&mut sent).await {
                Ok(Some(fault)) => return ClientError::RequestBody(fault),
                Ok(None) => {}
                // it was let go of; its response tells
                Err(_) => std::future::pending().await,
            }
            match limit {
                None => std::future::pending().await,
                Some(limit) => sleep(limit).await,
            }
            ClientError::Timeout
        };
        let head = tokio::select! {
            biased;
            head = self.head(&mut frames, &parts) => head,
            error = failed_or_late => Err(error),
        };
        // what the server says of half a request is not what went wrong
        let (response, length) = head.map_err(|error| match sent.try_recv() {
            Ok(Some(fault)) => ClientError::RequestBody(fault),
            _ => error,
        })?;
        let is_bodiless = parts.method == Method::HEAD || head::is_bodiless(response.status());
        let length = length.filter(|_| !is_bodiless);
        let body = ClientBody { reader: Reader::new(frames, length, BOUNDS), session: Arc::clone(self) };
        let mut body = ResponseBody { body: Some(Box::new(body)), upload: upload.take() };
        body.release_at_end();
        Ok(response.map(|()| body))
    }

    pub(crate) async fn open_tunnel(
        self: &Arc<Self>,
        request: Request<()>,
    ) -> Result<(Response<ResponseBody>, Option<Tunnel>), ClientError> {
        let (mut frames, mut out) = self.open().await?;
        let (mut parts, ()) = request.into_parts();
        parts.method = Method::CONNECT;
        let extended = parts.extensions.get::<ConnectProtocol>().is_some();
        let mut bytes = BytesMut::with_capacity(HEAD_CAPACITY);
        head::encode_request(&mut bytes, &parts, None);
        let mut chunk = [bytes.freeze()];
        while !chunk[0].is_empty() {
            // an error is the server's: it has said why, or will
            if poll_fn(|cx| out.poll_write(cx, &mut chunk)).await.is_err() {
                break;
            }
        }
        let (response, length) = self.head(&mut frames, &parts).await?;
        if response.status().is_success() {
            out.set_drop_code(broken_code(extended));
            let tunnel = Tunnel::new::<Q, _>(frames, out, self.quic.clone(), Arc::clone(self));
            return Ok((response.map(|()| ResponseBody::empty()), Some(tunnel)));
        }
        drop(out.finish());
        let body = ClientBody { reader: Reader::new(frames, length, BOUNDS), session: Arc::clone(self) };
        Ok((response.map(|()| ResponseBody { body: Some(Box::new(body)), upload: None }), None))
    }

    /// Waits for the head that is none of an interim response, of which there may be a few before it.
    async fn head(
        &self,
        frames: &mut FrameReader<Q::Recv>,
        parts: &http::request::Parts,
    ) -> Result<(Response<()>, Option<u64>), ClientError> {
        let mut interim = 0;
        loop {
            let section = match poll_fn(|cx| frames.poll_event(cx)).await {
                Ok(Event::Headers(section)) => section,
                Ok(_) => return Err(ClientError::Protocol("the stream ended without a response".into())),
                Err(fault) => return Err(self.failed(fault)),
            };
            let mut fields = ResponseFields::default();
            let head = decode(&section, BOUNDS, &mut fields).and_then(|()| fields.finish());
            let (response, length) = head.map_err(|fault| {
                match fault {
                    SectionFault::Decompression => {
                        self.quic
                            .close(codes::QPACK_DECOMPRESSION_FAILED, "a head that can not be decompressed");
                    }
                    _ => frames.stop(codes::MESSAGE_ERROR),
                }
                ClientError::Protocol(fault.into())
            })?;
            // RFC 9110 section 15.2
            if !response.status().is_informational() {
                frames.begin_body();
                return Ok((response, length));
            }
            interim += 1;
            if interim > MAX_INTERIM {
                frames.stop(codes::EXCESSIVE_LOAD);
                return Err(ClientError::Protocol("too many interim responses".into()));
            }
            if let Some(OnInterim(tell)) = parts.extensions.get::<OnInterim>() {
                tell(response.status(), response.headers());
            }
        }
    }

    fn failed(&self, fault: StreamFault) -> ClientError {
        match fault {
            StreamFault::Reset(code) => ClientError::Reset { code },
            StreamFault::Lost(lost) => ClientError::lost(lost),
            StreamFault::Stream(_, what) => ClientError::Protocol(what.into()),
            StreamFault::Connection(code, what) => {
                self.quic.close(code, what);
                ClientError::Protocol(what.into())
            }
        }
    }
}

impl<Q: Quic> Finish<Q::Send> for Arc<Session<Q>> {
    fn finish(&self, out: Outgoing<Q::Send>) {
        // the connection stays until the end has arrived
        if let Some(stream) = out.finish() {
            let session = Arc::clone(self);
            tokio::spawn(async move {
                stream.stopped().await;
                drop(session);
            });
        }
    }
}

/// Sends a request; what went wrong with its body is given back.
async fn send_body<S, B>(mut pump: Pump, mut out: Outgoing<S>, body: B) -> Option<BoxError>
where
    S: SendHalf,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let (mut body, mut stopped) = (pin!(body), pin!(None));
    let sent = poll_fn(|cx| {
        if let Poll::Ready(sent) = pump.poll(cx, &mut out, body.as_mut()) {
            return Poll::Ready(Some(sent));
        }
        if pump.waits_for_body() {
            return poll_stopped(stopped.as_mut(), || out.stopped(), cx).map(|()| None);
        }
        Poll::Pending
    })
    .await;
    match sent {
        Some(Ok(())) => drop(out.finish()),
        // the server has what it needs, or is gone
        None => out.reset(codes::NO_ERROR),
        Some(Err(fault)) => {
            out.give_up(&fault);
            return match fault {
                SendFault::Service(source) => Some(source),
                SendFault::Length => Some(fault.into()),
                _ => None,
            };
        }
    }
    None
}

/// A request under way; dropped, it is cancelled.
struct Upload(Option<AbortHandle>);

impl Upload {
    /// Sends the head, and the body in a task of its own if there is one; the receiver is told of the end.
    async fn begin<Q, B>(
        mut pump: Pump,
        out: Outgoing<Q::Send>,
        body: B,
        session: &Arc<Session<Q>>,
    ) -> (Option<Self>, oneshot::Receiver<Option<BoxError>>)
    where
        Q: Quic,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (sent, told) = oneshot::channel();
        if body.is_end_stream() {
            pump.end_body();
            let _ = sent.send(send_body(pump, out, body).await);
            return (None, told);
        }
        // it may go on behind the response, and the connection with it
        let session = Arc::clone(session);
        let task = tokio::spawn(async move {
            let _ = sent.send(send_body(pump, out, body).await);
            drop(session);
        });
        (Some(Self(Some(task.abort_handle()))), told)
    }

    /// Lets it go on by itself.
    fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

struct ClientBody<Q: Quic> {
    reader: Reader<Q::Recv>,
    session: Arc<Session<Q>>,
}

impl<Q: Quic> Incoming for ClientBody<Q> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.reader.poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            frame.map_err(|(error, broken)| {
                if let Broken::Connection(code, what) = broken {
                    self.session.quic.close(code, what);
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

/// The body of a response. Dropped before its end, it cancels the request.
pub struct ResponseBody {
    body: Option<Box<dyn Incoming>>,
    upload: Option<Upload>,
}

impl ResponseBody {
    fn empty() -> Self {
        Self { body: None, upload: None }
    }

    /// The response is complete; the rest of the request may still be of use to the server.
    fn release_at_end(&mut self) {
        if self.body.as_ref().is_some_and(|body| body.is_end_stream())
            && let Some(upload) = self.upload.take()
        {
            upload.release();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(body.poll_frame(cx));
        match &frame {
            // nobody may ask once more
            Some(Ok(frame)) if frame.is_data() => self.release_at_end(),
            Some(Err(_)) => self.body = None,
            _ => {
                self.body = None;
                if let Some(upload) = self.upload.take() {
                    upload.release();
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), |body| body.size_hint())
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("end", &self.is_end_stream()).finish()
    }
}
