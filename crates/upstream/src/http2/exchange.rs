//! One request on a connection: its body out, its response's head in.

use std::{
    future::poll_fn,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture};
use http::{Extensions, Response, StatusCode, Version, response};
use http_body::Body;

use super::{
    conn::{H2Conn, H2Lease},
    head::Head,
};
use crate::{
    BoxError, ClusterOptions,
    interim::{MAX_INTERIM, pass_on},
    timer::LazyTimer,
    upload::{Piece, Upload},
};

/// A request body on its way out.
#[derive(Debug)]
pub(crate) struct H2Pump {
    send: SendStream<Bytes>,
    /// What was taken from the body and waits for room, and whether it is the last of it.
    data: Option<(Bytes, bool)>,
    ended: bool,
}

/// A response, from its head on.
#[derive(Debug)]
pub(crate) struct H2Response {
    pub(crate) head: response::Parts,
    pub(crate) recv: RecvStream,
    /// What is left to send; for an upgrade, the way to the endpoint.
    pub(crate) pump: H2Pump,
    pub(crate) timer: LazyTimer,
    pub(crate) lease: H2Lease,
}

/// Why there is no head.
#[derive(Debug)]
pub(crate) enum Failure {
    RequestBody(BoxError),
    RequestTimeout,
    WriteTimeout,
    ResponseTimeout,
    /// No place came free on the connection in time.
    Full,
    NoExtendedConnect,
    TooManyInterim,
    /// The connection had ended before.
    Gone(h2::Error),
    /// It can't be sent as it is.
    Invalid(h2::Error),
    /// The stream or its connection ended; whether it is certain that the endpoint did nothing of the request.
    Reset {
        unprocessed: bool,
        source: h2::Error,
    },
}

/// Why a body could not be sent whole.
#[derive(Debug)]
pub(crate) enum SendError {
    /// The stream is over; its response tells why.
    Stream,
    Body(BoxError),
}

impl H2Pump {
    /// Whether all of it is sent.
    pub(crate) fn is_done(&self) -> bool {
        self.ended
    }

    /// Ready when all is handed to the connection. Pending because the endpoint opens no window is told from pending because the
    /// body has no more: see [`H2Pump::awaits_endpoint`].
    pub(crate) fn poll<B>(
        &mut self,
        upload: &mut Upload<B>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), SendError>>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        while !self.ended {
            if self.send.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(SendError::Stream));
            }
            if self.data.is_some() {
                // one byte of room is enough for a piece: what does not fit waits in the connection, and no further piece is taken
                self.send.reserve_capacity(1);
                while self.send.capacity() == 0 {
                    match ready!(self.send.poll_capacity(cx)) {
                        Some(Ok(_)) => {}
                        Some(Err(_)) | None => return Poll::Ready(Err(SendError::Stream)),
                    }
                }
            }
            if let Some((data, last)) = self.data.take() {
                self.ended = last;
                self.send.send_data(data, last).map_err(|_| SendError::Stream)?;
                continue;
            }
            let sent = match ready!(upload.poll(cx)).map_err(SendError::Body)? {
                Piece::Data(data, last) => {
                    self.data = Some((data, last));
                    continue;
                }
                Piece::Trailers(trailers) => {
                    self.ended = true;
                    self.send.send_trailers(crate::h1::allowed_trailers(trailers))
                }
                Piece::End => {
                    self.ended = true;
                    self.send.send_data(Bytes::new(), true)
                }
            };
            sent.map_err(|_| SendError::Stream)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the endpoint is to blame for a pause: it opens no window.
    pub(crate) fn awaits_endpoint(&self) -> bool {
        self.data.is_some()
    }

    /// Tells the endpoint that the rest will never come.
    pub(crate) fn cancel(&mut self) {
        if !self.ended {
            self.ended = true;
            self.send.send_reset(Reason::CANCEL);
        }
    }

    pub(crate) fn into_stream(self) -> SendStream<Bytes> {
        self.send
    }
}

/// Sends a request and waits for the head of its response.
pub(crate) async fn exchange<B>(
    conn: &H2Conn,
    // given back whichever way this ends
    lease: H2Lease,
    head: Head,
    upload: &mut Upload<B>,
    extensions: &Extensions,
    options: &ClusterOptions,
) -> Result<H2Response, Failure>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    if head.upgrade && !conn.has_extended_connect() {
        return Err(Failure::NoExtendedConnect);
    }
    let mut sender = conn.sender();
    let ready = poll_fn(|cx| sender.poll_ready(cx));
    match tokio::time::timeout(options.queue_timeout, ready).await {
        Ok(Ok(())) => {}
        Ok(Err(source)) => return Err(Failure::Gone(source)),
        Err(_) => return Err(Failure::Full),
    }
    let ends = upload.is_empty() && !head.upgrade;
    let (response, send) = sender.send_request(head.request, ends).map_err(|source| {
        let gone = source.is_io() || source.is_go_away();
        if gone { Failure::Gone(source) } else { Failure::Invalid(source) }
    })?;
    // it keeps the connection from ending
    drop(sender);
    // an upgrade has no body: its stream is the tunnel
    let pump = H2Pump { send, data: None, ended: ends || head.upgrade };
    let mut exchange = Exchange {
        response,
        pump,
        timer: LazyTimer::default(),
        last: None,
        interim: 0,
        sending: !ends && !head.upgrade,
    };
    let answer = poll_fn(|cx| {
        exchange.poll_interim(extensions, cx)?;
        exchange.poll(upload, options, cx)
    })
    .await?;
    conn.answered();
    let (mut head_parts, recv) = answer.into_parts();
    head_parts.version = Version::HTTP_2;
    if head.upgrade && head_parts.status == StatusCode::OK {
        // the one status of RFC 8441 that agrees, told as HTTP/1.1 does
        head_parts.status = StatusCode::SWITCHING_PROTOCOLS;
    }
    let Exchange { mut pump, mut timer, .. } = exchange;
    timer.clear();
    if head.upgrade && head_parts.status == StatusCode::SWITCHING_PROTOCOLS {
        pump.ended = false;
    } else if head.upgrade {
        // RFC 9113 section 8.5: no tunnel came of it, and nothing else is sent
        let _ = pump.send.send_data(Bytes::new(), true);
    }
    Ok(H2Response { head: head_parts, recv, pump, timer, lease })
}

struct Exchange {
    response: ResponseFuture,
    pump: H2Pump,
    timer: LazyTimer,
    /// At the last look: whether it was the endpoint that had to take more, and how much was taken from the client.
    last: Option<(bool, u64)>,
    interim: u32,
    sending: bool,
}

impl Exchange {
    /// Passes on what came ahead of the response, to who takes it. It is counted for everybody: an endpoint must not go on so for as long as a response
    /// may take.
    fn poll_interim(&mut self, to: &Extensions, cx: &mut Context<'_>) -> Result<(), Failure> {
        while let Poll::Ready(Some(Ok(head))) = self.response.poll_informational(cx) {
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                self.pump.send.send_reset(Reason::ENHANCE_YOUR_CALM);
                return Err(Failure::TooManyInterim);
            }
            pass_on(to, head.status(), head.headers());
        }
        // the end of them, or an error, is the response's to tell
        Ok(())
    }

    fn poll<B>(
        &mut self,
        upload: &mut Upload<B>,
        options: &ClusterOptions,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<RecvStream>, Failure>>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        if self.sending {
            match self.pump.poll(upload, cx) {
                Poll::Ready(Ok(())) => self.sent(options),
                Poll::Ready(Err(SendError::Body(error))) => {
                    self.pump.cancel();
                    return Poll::Ready(Err(Failure::RequestBody(error)));
                }
                // an answer may be there all the same, such as 413 before a reset; if not, the response tells why
                Poll::Ready(Err(SendError::Stream)) => self.sent(options),
                Poll::Pending => {
                    let look = Some((self.pump.awaits_endpoint(), upload.taken()));
                    if look != self.last || !self.timer.is_set() {
                        let awaits = self.pump.awaits_endpoint();
                        self.timer.set(if awaits { options.write_timeout } else { options.request_timeout });
                    }
                    self.last = look;
                }
            }
        } else if !self.timer.is_set() {
            self.timer.set(options.response_timeout);
        }
        match Pin::new(&mut self.response).poll(cx) {
            Poll::Ready(Ok(response)) => return Poll::Ready(Ok(response)),
            Poll::Ready(Err(source)) => {
                return Poll::Ready(Err(Failure::Reset { unprocessed: is_unprocessed(&source), source }));
            }
            Poll::Pending => {}
        }
        if self.timer.poll(cx).is_ready() {
            let (sending, endpoint) = (self.sending, self.pump.awaits_endpoint());
            self.pump.send.send_reset(Reason::CANCEL);
            return Poll::Ready(Err(match (sending, endpoint) {
                (true, true) => Failure::WriteTimeout,
                (true, false) => Failure::RequestTimeout,
                (false, _) => Failure::ResponseTimeout,
            }));
        }
        Poll::Pending
    }

    fn sent(&mut self, options: &ClusterOptions) {
        self.sending = false;
        self.timer.set(options.response_timeout);
    }
}

/// Whether it is certain that the endpoint did nothing: it refused the stream (RFC 9113 section 8.7), or its GOAWAY says that it had not
/// seen it (section 6.8), which h2 tells only to streams above the last one.
fn is_unprocessed(error: &h2::Error) -> bool {
    match error.reason() {
        Some(Reason::REFUSED_STREAM) => error.is_reset() && error.is_remote(),
        Some(_) => error.is_go_away() && error.is_remote(),
        None => false,
    }
}

impl H2Response {
    /// Takes the head out.
    pub(crate) fn take_head(&mut self) -> response::Parts {
        let (empty, ()) = Response::new(()).into_parts();
        mem::replace(&mut self.head, empty)
    }

    /// The endpoint's name.
    pub(crate) fn name(&self) -> Arc<str> {
        self.lease.endpoint().map_or_else(|| "".into(), |state| Arc::clone(&state.endpoint.name))
    }
}
