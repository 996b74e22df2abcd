//! One connection and the exchange of a request for a response head on it.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use http::{StatusCode, request};
use http_body::Body;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};
use tokio_util::io::poll_read_buf;

use super::{
    Pump, PumpError,
    head::{ResponseHead, Span, parse_head},
};
use crate::{
    BoxError, ClientAddresses, ClusterOptions, ProtocolError,
    interim::{MAX_INTERIM, pass_on},
    state::{EndpointState, Life},
    timer::LazyTimer,
    upload::Upload,
};

/// What a read has room for at first, and what it may grow to inside a long body.
const READ_MIN: usize = 8 << 10;
const READ_MAX: usize = 128 << 10;

/// A connection to an endpoint. Dropping it closes it and gives its place back.
#[derive(Debug)]
pub(crate) struct H1Conn<Io> {
    pub(crate) io: Io,
    pub(crate) read: BytesMut,
    pub(crate) write: BytesMut,
    pub(crate) timer: LazyTimer,
    pub(crate) endpoint: Arc<EndpointState>,
    /// Whether it has carried a request before this one.
    pub(crate) reused: bool,
    pub(crate) idle_since: Instant,
    /// When it is used no more, and how many requests it carries until then.
    pub(crate) life: Life,
    /// The client that it is for, if it is for one alone.
    pub(crate) client: Option<ClientAddresses>,
    read_size: usize,
    /// Where the parser notes fields; kept for its room.
    spans: Vec<Span>,
    /// Whether it counts as busy at its endpoint.
    busy: bool,
}

/// Why an exchange brought no head.
#[derive(Debug)]
pub(crate) enum ExchangeError {
    RequestBody(BoxError),
    RequestTimeout,
    WriteTimeout,
    ResponseTimeout,
    /// Closed; whether any byte of a response came before.
    Closed {
        answered: bool,
        source: Option<io::Error>,
    },
    Protocol(ProtocolError),
}

impl<Io> H1Conn<Io> {
    /// The caller has taken a place at the endpoint; it comes back when this is dropped.
    pub(crate) fn new(
        io: Io,
        endpoint: Arc<EndpointState>,
        life: Life,
        client: Option<ClientAddresses>,
    ) -> Self {
        Self {
            io,
            life,
            client,
            read: BytesMut::new(),
            write: BytesMut::new(),
            timer: LazyTimer::default(),
            endpoint,
            reused: false,
            idle_since: Instant::now(),
            read_size: READ_MIN,
            spans: Vec::new(),
            busy: false,
        }
    }

    pub(crate) fn set_busy(&mut self, busy: bool) {
        if self.busy != busy {
            self.busy = busy;
            self.endpoint.count_busy(busy);
        }
    }

    /// Makes it ready for the pool: no timer, no large buffer.
    pub(crate) fn rest(&mut self) {
        self.set_busy(false);
        self.timer.clear();
        self.reused = true;
        // a buffer that has grown is a piece of a larger block, whatever it says of itself
        if self.read_size > READ_MIN || self.read.capacity() > 2 * READ_MIN {
            self.read = BytesMut::new();
        }
        if self.write.capacity() > READ_MIN {
            self.write = BytesMut::new();
        }
        self.read_size = READ_MIN;
        self.idle_since = Instant::now();
    }
}

impl<Io> Drop for H1Conn<Io> {
    fn drop(&mut self) {
        self.set_busy(false);
        self.endpoint.release_place();
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> H1Conn<Io> {
    /// Whether an idle connection can carry a request: the peer has neither closed it nor said anything unasked.
    /// With a runtime's sockets this is a look at known readiness and seldom a system call.
    pub(crate) fn is_alive(&mut self) -> bool {
        let mut byte = [0u8; 1];
        let mut buf = tokio::io::ReadBuf::new(&mut byte);
        let look = std::future::poll_fn(|cx| Pin::new(&mut self.io).poll_read(cx, &mut buf));
        // a task that has used up its budget would be told "pending" without a look at the socket
        let look = std::pin::pin!(tokio::task::coop::unconstrained(look));
        look.poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// Reads once. Ready(0) is the end of the stream.
    pub(crate) fn poll_fill(&mut self, want: Option<u64>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let most = want.map_or(self.read_size, |want| {
            self.read_size.min(usize::try_from(want).unwrap_or(usize::MAX)).max(READ_MIN)
        });
        if self.read.capacity() - self.read.len() < most / 2 {
            self.read.reserve(most);
        }
        let room = self.read.capacity() - self.read.len();
        let result = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read);
        if let Poll::Ready(Ok(n)) = result
            && n == room
        {
            self.read_size = (self.read_size * 2).min(READ_MAX);
        }
        result
    }

    /// Sends what `write` and the pump hold, and reads until a final response head is there. Says with it whether
    /// everything was sent by then; if not, the pump has more to do.
    pub(crate) async fn exchange<B>(
        &mut self,
        pump: &mut Pump,
        upload: &mut Upload<B>,
        request: &request::Parts,
        options: &ClusterOptions,
    ) -> Result<(ResponseHead, bool), ExchangeError>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        let mut state = Exchange { sent: false, broken: None, last: None, interim: 0, answered: false };
        let head = std::future::poll_fn(|cx| state.poll(self, pump, upload, request, options, cx)).await?;
        Ok((head, state.sent))
    }
}

/// What has to be remembered between two polls of an exchange.
struct Exchange {
    /// Everything is written.
    sent: bool,
    /// Writing failed; an answer may still be there to read, such as 413 before a close.
    broken: Option<io::Error>,
    /// At the last look: whether it was the client that had to send, and how far it all was.
    last: Option<(bool, (u64, u64))>,
    interim: u32,
    answered: bool,
}

impl Exchange {
    fn poll<Io, B>(
        &mut self,
        conn: &mut H1Conn<Io>,
        pump: &mut Pump,
        upload: &mut Upload<B>,
        request: &request::Parts,
        options: &ClusterOptions,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, ExchangeError>>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        if !self.sent && self.broken.is_none() {
            self.poll_send(conn, pump, upload, options, cx)?;
        }
        loop {
            match conn.poll_fill(None, cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(self.closed(None))),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.closed(Some(error)))),
                Poll::Ready(Ok(_)) => self.answered = true,
            }
            while let Some(head) =
                parse_head(&mut conn.read, &mut conn.spans, &request.method, options.max_head_bytes)
                    .map_err(ExchangeError::Protocol)?
            {
                if !head.parts.status.is_informational()
                    || head.parts.status == StatusCode::SWITCHING_PROTOCOLS
                {
                    conn.timer.clear();
                    return Poll::Ready(Ok(head));
                }
                self.interim += 1;
                if self.interim > MAX_INTERIM {
                    return Poll::Ready(Err(ExchangeError::Protocol(ProtocolError::TooManyInterim)));
                }
                pass_on(&request.extensions, head.parts.status, &head.parts.headers);
                if pump.is_held() && head.parts.status == StatusCode::CONTINUE {
                    pump.release();
                    self.poll_send(conn, pump, upload, options, cx)?;
                }
            }
        }
        if conn.timer.poll(cx).is_ready() {
            if pump.is_held() && self.broken.is_none() && pump.unflushed(&conn.write) == 0 {
                // RFC 9110 section 10.1.1: a client must not wait for ever for a word that an old server never says
                pump.release();
                self.poll_send(conn, pump, upload, options, cx)?;
                // it was set anew just now
                let _ = conn.timer.poll(cx);
                return Poll::Pending;
            }
            let sending = !self.sent && self.broken.is_none();
            return Poll::Ready(Err(match self.last {
                Some((true, _)) if sending => ExchangeError::RequestTimeout,
                _ if sending => ExchangeError::WriteTimeout,
                _ => ExchangeError::ResponseTimeout,
            }));
        }
        Poll::Pending
    }

    fn poll_send<Io, B>(
        &mut self,
        conn: &mut H1Conn<Io>,
        pump: &mut Pump,
        upload: &mut Upload<B>,
        options: &ClusterOptions,
        cx: &mut Context<'_>,
    ) -> Result<(), ExchangeError>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        match pump.poll(upload, &mut conn.io, &mut conn.write, cx) {
            Poll::Ready(Ok(())) => {
                self.sent = true;
                conn.timer.set(options.response_timeout);
            }
            Poll::Ready(Err(PumpError::Io(error))) => {
                self.broken = Some(error);
                conn.timer.set(options.response_timeout);
            }
            Poll::Ready(Err(PumpError::Body(error))) => return Err(ExchangeError::RequestBody(error)),
            Poll::Pending => {
                // the deadline moves with every byte that the client sends or the endpoint takes
                let awaiting_client = pump.unflushed(&conn.write) == 0;
                let look = Some((awaiting_client, (upload.taken(), pump.written())));
                if look != self.last || !conn.timer.is_set() {
                    let timeout = match awaiting_client {
                        true if pump.is_held() => options.continue_timeout,
                        true => options.request_timeout,
                        false => options.write_timeout,
                    };
                    conn.timer.set(timeout);
                }
                self.last = look;
            }
        }
        Ok(())
    }

    fn closed(&mut self, source: Option<io::Error>) -> ExchangeError {
        ExchangeError::Closed { answered: self.answered, source: source.or_else(|| self.broken.take()) }
    }
}
