//! One request: from its stream to the last byte of its response.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use ::h3::{error::StreamError, server::RequestResolver};
use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tower_service::Service;
use tracing::debug;

use crate::{
    BoxError, RecvBody,
    body::{Reader, ServerStream},
    codes,
    connection::{Active, ConnContext},
    glue::{Connection, StreamCore},
    head::{self, HeadFault},
    limits::count,
    outgoing::{Outgoing, Pump, SendFault, poll_stopped},
};

/// Room for a response head and the header of its first DATA frame.
const HEAD_CAPACITY: usize = 512;

/// Serves one request stream; nothing that happens to it reaches further than the stream.
pub(crate) async fn serve<S, B>(
    resolver: RequestResolver<Connection, Bytes>,
    core: Arc<StreamCore>,
    active: Active,
    service: S,
) where
    S: Service<Request<RecvBody>, Response = Response<B>> + Send,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body<Data = Bytes> + Send,
    B::Error: Into<BoxError>,
{
    let context = active.context();
    let Some((request, out)) = resolve(resolver, &core, context).await else {
        count(&context.counters.stream_errors);
        context.cancelled();
        return;
    };
    count(&context.counters.requests);
    core.set_unread_code(codes::NO_ERROR);
    if let Err(fault) = respond(request, out, core, context, service).await {
        count(&context.counters.stream_errors);
        if matches!(fault, SendFault::Gone) {
            context.cancelled();
        }
        let fault: &dyn std::error::Error = &fault;
        debug!(connection = %context.info.id, fault, "a response was not sent to its end");
    }
}

/// Reads the head. On failure the stream has been answered or reset.
async fn resolve(
    resolver: RequestResolver<Connection, Bytes>,
    core: &Arc<StreamCore>,
    context: &ConnContext,
) -> Option<((Request<()>, ServerStream), Outgoing)> {
    let resolved = tokio::time::timeout(context.options.header_timeout, resolver.resolve_request()).await;
    // from here on nothing but us writes to the stream
    let out = Outgoing::take(core, codes::INTERNAL_ERROR)?;
    match resolved {
        Ok(Ok(resolved)) => return Some((resolved, out)),
        Ok(Err(StreamError::HeaderTooBig { .. })) => {
            core.set_unread_code(codes::NO_ERROR);
            if let Err(fault) = answer(out, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, context).await {
                debug!(connection = %context.info.id, %fault, "a refusal was not sent");
            }
        }
        // RFC 9114 section 8.1: the stream ended, or stood still, without a whole request; if `h3` has reset it
        // with a better code already, that stays
        Ok(Err(_)) | Err(_) => out.reset(codes::REQUEST_INCOMPLETE),
    }
    None
}

/// Answers with a status and nothing else.
async fn answer(mut out: Outgoing, status: StatusCode, context: &ConnContext) -> Result<(), SendFault> {
    let (mut parts, body) = Response::new(Empty).into_parts();
    parts.status = status;
    let mut pump = begin(&parts, &body, false, context)?;
    let mut body = pin!(body);
    let sent = poll_fn(|cx| pump.poll(cx, &mut out, body.as_mut())).await;
    end(out, sent, context)
}

fn end(out: Outgoing, sent: Result<(), SendFault>, context: &ConnContext) -> Result<(), SendFault> {
    match &sent {
        Ok(()) => context.sent(out),
        Err(fault) => out.give_up(fault),
    }
    sent
}

async fn respond<S, B>(
    (request, stream): (Request<()>, ServerStream),
    mut out: Outgoing,
    core: Arc<StreamCore>,
    context: &Arc<ConnContext>,
    mut service: S,
) -> Result<(), SendFault>
where
    S: Service<Request<RecvBody>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let request = match prepare(request, stream, &core, context) {
        Ok(request) => request,
        // RFC 6585 section 5
        Err(HeadFault::TooManyFields) => {
            return answer(out, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, context).await;
        }
        Err(HeadFault::Malformed) => return end(out, Err(SendFault::Malformed), context),
    };
    let is_head = request.method() == Method::HEAD;
    let mut stopped = pin!(None);

    let answered = {
        let mut answer = pin!(async {
            poll_fn(|cx| service.poll_ready(cx)).await?;
            service.call(request).await
        });
        poll_fn(|cx| {
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                return Poll::Ready(answer.map_err(|error| SendFault::Service(error.into())));
            }
            // the client may leave while the service works; dropping its future frees what it holds
            ready!(poll_stopped(stopped.as_mut(), || out.stopped(), cx));
            Poll::Ready(Err(SendFault::Gone))
        })
        .await
    };
    let sent = match answered {
        Ok(response) => {
            let (parts, body) = response.into_parts();
            let mut pump = begin(&parts, &body, is_head, context)?;
            let mut body = pin!(body);
            poll_fn(|cx| {
                if let Poll::Ready(sent) = pump.poll(cx, &mut out, body.as_mut()) {
                    return Poll::Ready(sent);
                }
                if pump.waits_for_body() {
                    ready!(poll_stopped(stopped.as_mut(), || out.stopped(), cx));
                    return Poll::Ready(Err(SendFault::Gone));
                }
                Poll::Pending
            })
            .await
        }
        Err(fault) => Err(fault),
    };
    end(out, sent, context)
}

/// Makes the request that the service gets.
fn prepare(
    request: Request<()>,
    stream: ServerStream,
    core: &Arc<StreamCore>,
    context: &Arc<ConnContext>,
) -> Result<Request<RecvBody>, HeadFault> {
    let announced = head::check(&request, context.options.max_fields).inspect_err(|fault| {
        if *fault == HeadFault::Malformed {
            core.set_unread_code(codes::MESSAGE_ERROR);
        }
    })?;
    let body = if core.at_end(1) {
        // the stream ended with the head
        context.bury(stream);
        if announced.is_some_and(|length| length > 0) {
            return Err(HeadFault::Malformed);
        }
        RecvBody::empty()
    } else {
        let reader = Reader::new(stream, core.clone(), announced, 1, context.options.max_fields);
        RecvBody::new(reader, context.clone())
    };
    let mut request = request.map(|()| body);
    request.extensions_mut().insert(context.info.clone());
    Ok(request)
}

/// Encodes the head of the response and decides about its body.
fn begin<B: Body>(
    parts: &http::response::Parts,
    body: &B,
    is_head: bool,
    context: &ConnContext,
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
    let mut out = BytesMut::with_capacity(HEAD_CAPACITY);
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
