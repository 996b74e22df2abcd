//! One request: from its stream to the last byte of its response.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use portcullis_conn::{ConnectProtocol, Interim};
use tokio::time::{Instant, sleep_until};
use tower_service::Service;
use tracing::debug;

use crate::{
    BoxError, RecvBody,
    body::{Reader, RequestBody},
    codes,
    connection::{Active, ConnContext},
    frame::{Event, FrameReader, StreamFault},
    head::{self, RequestFields, RequestHead},
    limits::count,
    outgoing::{Outgoing, Pump, SendFault, poll_stopped},
    priority::Priority,
    qpack::decode::{SectionFault, decode},
    quic::{Quic, SendHalf},
    side::{InterimSender, Side},
    tunnel::{Finish, Handover, OnTunnel, Tunnel, broken_code},
};

/// Room for a response head and the header of its first DATA frame.
const HEAD_CAPACITY: usize = 512;

/// Why there is no head to serve.
enum NoHead {
    /// It is answered with this status.
    Answer(StatusCode),
    /// The stream is reset with this code.
    Reset(u32),
    Connection(u32, &'static str),
    /// The client gave up, or stood still.
    Gone,
}

impl From<SectionFault> for NoHead {
    fn from(fault: SectionFault) -> Self {
        match fault {
            SectionFault::Decompression => {
                Self::Connection(codes::QPACK_DECOMPRESSION_FAILED, "a head that can not be decompressed")
            }
            SectionFault::Malformed => Self::Reset(codes::MESSAGE_ERROR),
            // RFC 6585 section 5
            SectionFault::TooLarge | SectionFault::TooMany => {
                Self::Answer(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
            }
        }
    }
}

impl From<StreamFault> for NoHead {
    fn from(fault: StreamFault) -> Self {
        match fault {
            StreamFault::Reset(_) | StreamFault::Lost(_) => Self::Gone,
            StreamFault::Stream(code, _) => Self::Reset(code),
            StreamFault::Connection(code, what) => Self::Connection(code, what),
        }
    }
}

/// Serves one request stream; nothing that happens to it reaches further than the stream, unless the client broke HTTP/3.
pub(crate) async fn serve<Q, S, B>((send, recv): (Q::Send, Q::Recv), active: Active<Q>, service: S)
where
    Q: Quic,
    S: Service<Request<RecvBody>, Response = Response<B>> + Send,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body<Data = Bytes> + Send,
    B::Error: Into<BoxError>,
{
    let context = active.context();
    // until the request's head is there
    let mut frames = FrameReader::new(recv, context.options.max_frame_size, codes::REQUEST_INCOMPLETE);
    let out = Outgoing::new(send, codes::INTERNAL_ERROR);
    let head = match read_head(&mut frames, context).await {
        Ok(head) => head,
        Err(fault) => return refuse(fault, frames, out, context).await,
    };
    count(&context.counters.requests);
    frames.set_unread_code(codes::NO_ERROR);
    if let Err(fault) = respond(head, frames, out, &active, service).await {
        context.counters.stream_error(fault.code().into());
        if matches!(fault, SendFault::Gone) {
            context.cancelled();
        }
        let fault: &dyn std::error::Error = &fault;
        debug!(connection = %context.info.id, fault, "a response was not sent to its end");
    }
}

/// Reads the head, which has its time.
async fn read_head<Q: Quic>(
    frames: &mut FrameReader<Q::Recv>,
    context: &ConnContext<Q>,
) -> Result<RequestHead, NoHead> {
    let mut timer = pin!(None);
    let event = poll_fn(|cx| {
        if let Poll::Ready(event) = frames.poll_event(cx) {
            return Poll::Ready(Ok(event?));
        }
        if timer.is_none() {
            timer.set(Some(sleep_until(Instant::now() + context.options.header_timeout)));
        }
        match timer.as_mut().as_pin_mut() {
            Some(timer) => timer.poll(cx).map(|()| Err(NoHead::Gone)),
            None => Poll::Pending,
        }
    })
    .await?;
    // RFC 9114 section 8.1: the stream ended without a whole request
    let Event::Headers(section) = event else { return Err(NoHead::Gone) };
    frames.begin_body();
    let mut fields = RequestFields::new();
    decode(&section, context.bounds(), &mut fields)?;
    Ok(fields.finish(context.options.extended_connect)?)
}

/// Gives a stream up whose head is not served.
async fn refuse<Q: Quic>(
    fault: NoHead,
    mut frames: FrameReader<Q::Recv>,
    out: Outgoing<Q::Send>,
    context: &Arc<ConnContext<Q>>,
) {
    let code = match fault {
        NoHead::Answer(status) => {
            count(&context.counters.requests);
            frames.set_unread_code(codes::NO_ERROR);
            if let Err(fault) = answer(out, status, context).await {
                context.counters.stream_error(fault.code().into());
                debug!(connection = %context.info.id, %fault, "a refusal was not sent");
            }
            return;
        }
        NoHead::Reset(code) => {
            frames.set_unread_code(code);
            out.reset(code);
            code
        }
        NoHead::Connection(code, what) => {
            context.quic.close(code, what);
            code
        }
        NoHead::Gone => {
            out.reset(codes::REQUEST_INCOMPLETE);
            codes::REQUEST_INCOMPLETE
        }
    };
    context.counters.stream_error(code.into());
    context.cancelled();
}

/// Answers with a status and nothing else.
async fn answer<Q: Quic>(
    mut out: Outgoing<Q::Send>,
    status: StatusCode,
    context: &ConnContext<Q>,
) -> Result<(), SendFault> {
    let (mut parts, body) = Response::new(Empty).into_parts();
    parts.status = status;
    let mut pump = begin(BytesMut::with_capacity(HEAD_CAPACITY), &parts, &body, false, context)?;
    let mut body = pin!(body);
    let sent = poll_fn(|cx| pump.poll(cx, &mut out, body.as_mut())).await;
    end(out, sent, context)
}

fn end<Q: Quic>(
    out: Outgoing<Q::Send>,
    sent: Result<(), SendFault>,
    context: &ConnContext<Q>,
) -> Result<(), SendFault> {
    match &sent {
        Ok(()) => context.sent(out),
        Err(fault) => out.give_up(fault),
    }
    sent
}

/// What the service's answer needs to know of its request.
#[derive(Clone, Copy)]
struct Asked {
    is_head: bool,
    extended: bool,
    id: u64,
    priority: Priority,
}

async fn respond<Q, S, B>(
    head: RequestHead,
    frames: FrameReader<Q::Recv>,
    mut out: Outgoing<Q::Send>,
    active: &Active<Q>,
    service: S,
) -> Result<(), SendFault>
where
    Q: Quic,
    S: Service<Request<RecvBody>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let context = active.context();
    let asked = Asked {
        is_head: head.request.method() == Method::HEAD,
        extended: head.request.extensions().get::<ConnectProtocol>().is_some(),
        id: frames.id(),
        priority: Priority::of(head.request.headers()),
    };
    let side = Arc::new(Side::new());
    out.set_side(Arc::clone(&side));
    let (request, tunnel) = match prepare(head, frames, &side, context) {
        Ok(prepared) => prepared,
        Err(fault) => return end(out, Err(fault), context),
    };
    let mut early = Early::default();
    let mut stopped = pin!(None);
    let answered =
        call(service, request, &mut out, &side, &mut early, stopped.as_mut(), Outgoing::stopped).await;
    side.answer();
    early.take(&side);
    let (parts, body) = match answered {
        Ok(response) => response.into_parts(),
        Err(fault) => return end(out, Err(fault), context),
    };
    let tunnel = tunnel.filter(|(tunnel, _)| parts.status.is_success() && !tunnel.is_refused());
    if let Some((tunnel, frames)) = tunnel {
        out.set_drop_code(broken_code(asked.extended));
        return open_tunnel(parts, early.bytes, frames, out, tunnel, active).await;
    }
    let mut pump = match begin(early.bytes, &parts, &body, asked.is_head, context) {
        Ok(pump) => pump,
        Err(fault) => return end(out, Err(fault), context),
    };
    let mut place = Place::new(asked.updated(&parts), &side, context);
    let mut body = pin!(body);
    let sent = poll_fn(|cx| {
        if place.steps_back(cx) {
            return Poll::Pending;
        }
        if let Poll::Ready(sent) = pump.poll(cx, &mut out, body.as_mut()) {
            return Poll::Ready(sent);
        }
        place.take(cx, &out, pump.waits_for_room());
        if pump.waits_for_body() {
            ready!(poll_stopped(stopped.as_mut(), || out.stopped(), cx));
            return Poll::Ready(Err(SendFault::Gone));
        }
        Poll::Pending
    })
    .await;
    drop(place);
    end(out, sent, context)
}

impl Asked {
    /// RFC 9218 section 8: the response may say more.
    fn updated(self, parts: &http::response::Parts) -> Self {
        Self { priority: self.priority.with(&parts.headers), ..self }
    }
}

/// Waits for the service's answer and sends interim ones meanwhile.
async fn call<S, B, O, F>(
    mut service: S,
    request: Request<RecvBody>,
    out: &mut Outgoing<O>,
    side: &Side,
    early: &mut Early,
    mut stopped: Pin<&mut Option<F>>,
    watch: impl Fn(&Outgoing<O>) -> F,
) -> Result<Response<B>, SendFault>
where
    O: SendHalf,
    S: Service<Request<RecvBody>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    F: Future<Output = ()>,
{
    let mut answer = pin!(async {
        poll_fn(|cx| service.poll_ready(cx)).await?;
        service.call(request).await
    });
    poll_fn(|cx| {
        if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
            return Poll::Ready(answer.map_err(|error| SendFault::Service(error.into())));
        }
        early.send(cx, out, side)?;
        // the client may leave while the service works; dropping its future frees what it holds
        ready!(poll_stopped(stopped.as_mut(), || watch(out), cx));
        Poll::Ready(Err(SendFault::Gone))
    })
    .await
}

/// Interim responses that are not written yet: one batch of those that [`Side`] bounds.
#[derive(Default)]
struct Early {
    bytes: BytesMut,
    chunk: [Bytes; 1],
}

impl Early {
    /// Writes what the client takes.
    fn send<S: SendHalf>(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Outgoing<S>,
        side: &Side,
    ) -> Result<(), SendFault> {
        if !side.poll_news(cx) && self.chunk[0].is_empty() {
            return Ok(());
        }
        loop {
            if self.chunk[0].is_empty() {
                self.take(side);
                if self.bytes.is_empty() {
                    return Ok(());
                }
                self.chunk[0] = self.bytes.split().freeze();
            }
            match out.poll_write(cx, &mut self.chunk) {
                Poll::Ready(written) => drop(written?),
                Poll::Pending => return Ok(()),
            }
        }
    }

    /// Encodes what waits, behind what is not written.
    fn take(&mut self, side: &Side) {
        let rest = std::mem::take(&mut self.chunk[0]);
        let interim = side.take_interim();
        if rest.is_empty() && interim.is_empty() {
            return;
        }
        self.bytes.extend_from_slice(&rest);
        for (status, headers) in interim {
            head::encode_interim(&mut self.bytes, status, &headers);
        }
    }
}

/// The place of a response among the others, once it is long enough to stand in their way: one that is written at once
/// needs none.
struct Place<'a, Q: Quic> {
    asked: Asked,
    side: &'a Arc<Side>,
    context: &'a Arc<ConnContext<Q>>,
    place: Option<i32>,
    stepped: bool,
}

impl<'a, Q: Quic> Place<'a, Q> {
    fn new(asked: Asked, side: &'a Arc<Side>, context: &'a Arc<ConnContext<Q>>) -> Self {
        Self { asked, side, context, place: None, stepped: false }
    }

    /// Whether those before it have their turn first, which this is woken behind. It steps back once each time, so one that
    /// they leave no room is kept waiting, and one that is held up by its own client keeps nobody.
    fn steps_back(&mut self, cx: &mut Context<'_>) -> bool {
        self.stepped =
            !self.stepped && self.place.is_some_and(|place| self.context.priorities.is_behind(place));
        if self.stepped {
            cx.waker().wake_by_ref();
        }
        self.stepped
    }

    /// The response is not all written; `waits` for room, or else for its body.
    fn take(&mut self, cx: &mut Context<'_>, out: &Outgoing<Q::Send>, waits: bool) {
        self.side.set_waits(waits);
        if self.place.is_none() {
            let place = self.context.priorities.enter(self.asked.id, self.asked.priority, self.side);
            out.set_priority(place);
            self.place = Some(place);
        }
        if self.side.poll_news(cx)
            && let Some(place) = self.side.take_priority()
        {
            out.set_priority(place);
            self.place = Some(place);
        }
    }
}

impl<Q: Quic> Drop for Place<'_, Q> {
    fn drop(&mut self) {
        if self.place.is_some() {
            self.context.priorities.leave(self.asked.id);
        }
    }
}

impl<Q: Quic> Finish<Q::Send> for Active<Q> {
    fn finish(&self, out: Outgoing<Q::Send>) {
        self.context().sent(out);
    }
}

/// A tunnel that waits for its answer, and what is to be read from it.
type Opening<R> = (Handover, FrameReader<R>);

/// What the service gets, and the tunnel that it may agree to.
type Prepared<R> = (Request<RecvBody>, Option<Opening<R>>);

/// Makes the request that the service gets.
fn prepare<Q: Quic>(
    head: RequestHead,
    mut frames: FrameReader<Q::Recv>,
    side: &Arc<Side>,
    context: &Arc<ConnContext<Q>>,
) -> Result<Prepared<Q::Recv>, SendFault> {
    let RequestHead { mut request, length, expects_continue } = head;
    let extensions = request.extensions_mut();
    extensions.insert(context.info.clone());
    extensions.insert(InterimSender::new(Arc::clone(side)));
    // a stream has one request, so there is nothing to tell apart
    extensions.insert(Interim::new(Arc::clone(side) as _, 0));
    if let Some(datagrams) = &context.datagrams {
        extensions.insert(datagrams.of_stream(frames.id()));
    }
    if request.method() == Method::CONNECT {
        // RFC 9110 section 9.3.6: it has no content, so it has no length
        if length.is_some_and(|length| length > 0) {
            frames.set_unread_code(codes::MESSAGE_ERROR);
            return Err(SendFault::Malformed);
        }
        let (on_tunnel, handover) = OnTunnel::new();
        request.extensions_mut().insert(on_tunnel);
        return Ok((request.map(|()| RecvBody::empty()), Some((handover, frames))));
    }
    let body = if frames.at_end() {
        // the stream ended with the head
        if length.is_some_and(|length| length > 0) {
            return Err(SendFault::Malformed);
        }
        RecvBody::empty()
    } else {
        RecvBody::new(RequestBody {
            reader: Reader::new(frames, length, context.bounds()),
            context: Arc::clone(context),
            side: Arc::clone(side),
            expected: expects_continue,
        })
    };
    Ok((request.map(|()| body), None))
}

/// Writes the answer that agrees to a tunnel and hands the stream over.
async fn open_tunnel<Q: Quic>(
    mut parts: http::response::Parts,
    mut early: BytesMut,
    frames: FrameReader<Q::Recv>,
    mut out: Outgoing<Q::Send>,
    handover: Handover,
    active: &Active<Q>,
) -> Result<(), SendFault> {
    let context = active.context();
    // RFC 9110 section 9.3.6: neither of the fields that would say how long it is
    parts.headers.remove(http::header::CONTENT_LENGTH);
    head::encode_response(&mut early, &parts, None);
    let mut pump = Pump::new(early, None, context.options.send_timeout);
    pump.end_body();
    let mut none = pin!(Empty);
    let sent = poll_fn(|cx| pump.poll(cx, &mut out, none.as_mut())).await;
    if let Err(fault) = sent {
        return end(out, Err(fault), context);
    }
    handover.hand_over(Tunnel::new::<Q, _>(frames, out, context.quic.clone(), active.clone()));
    Ok(())
}

/// Encodes the head of the response and decides about its body.
fn begin<Q: Quic, B: Body>(
    early: BytesMut,
    parts: &http::response::Parts,
    body: &B,
    is_head: bool,
    context: &ConnContext<Q>,
) -> Result<Pump, SendFault> {
    if parts.status.is_informational() {
        // RFC 9114 section 4.5: there is no 101, and an interim response is not the last one
        return Err(SendFault::Service("a service answered with an interim status".into()));
    }
    let is_bodiless = is_head || head::is_bodiless(parts.status);
    let announced = head::content_length(&parts.headers)
        .map_err(|()| SendFault::Service("a service answered with a malformed content-length".into()))?;
    // the length is worth announcing if the body knows it
    let exact = if is_bodiless { None } else { body.size_hint().exact() };
    let mut out = early;
    out.reserve(HEAD_CAPACITY);
    head::encode_response(&mut out, parts, exact);
    let mut pump = Pump::new(out, announced, context.options.send_timeout);
    if is_bodiless || (body.is_end_stream() && announced.unwrap_or(0) == 0) {
        pump.end_body();
    }
    Ok(pump)
}

/// A body that is not there.
struct Empty;

impl Body for Empty {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(0)
    }
}
