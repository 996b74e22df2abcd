//! One HTTP/1 connection. hyper drives it while something happens. Once it has been idle for a while nothing of hyper is left, nor of its buffers
//! (8 KiB to read into, 8 KiB to write from, the box of a request's future): there is only the stream and who waits for its next
//! byte. With that byte hyper is back, and knows no difference from a connection that has just begun.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::Sleep,
};
use tower_service::Service;

use crate::{
    BoxError, CloseReason, HttpOptions, RequestBody,
    connection::{Driver, Ended, FOREVER, is_old},
    service::ConnService,
    state::{ConnState, ConnTimer},
    wire::Wire,
};

pub(crate) const BAD_REQUEST: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
const REQUEST_TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// What a connection waits for while nothing comes.
enum Woken {
    /// There is something to read, the end of the stream or its failure among it; or the connection is to finish.
    Work,
    /// Nothing came in time.
    Idle,
}

impl Driver {
    pub(crate) async fn http1<Io, S, B>(
        &self,
        mut io: Wire<Io>,
        mut service: ConnService<S>,
        state: &Arc<ConnState>,
    ) -> hyper::Result<()>
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let mut age = self.age();
        loop {
            // in a box, so that the task of an idle connection is not as large as that of one at work
            (io, service) = match Box::pin(self.work(io, service, state, &mut age)).await {
                Ok(rest) => rest,
                Err(over) => return over,
            };
            if let Woken::Idle = self.rest(&mut io, state, &mut age).await {
                Box::pin(last_word(io, b"", self.options().send_timeout)).await;
                return Ok(());
            }
        }
    }

    /// hyper's turn: until it is time to rest, or to the end. Nothing of it is left behind.
    async fn work<Io, S, B>(
        &self,
        io: Wire<Io>,
        service: ConnService<S>,
        state: &Arc<ConnState>,
        age: &mut Option<Pin<Box<Sleep>>>,
    ) -> Result<(Wire<Io>, ConnService<S>), hyper::Result<()>>
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let conn = builder(self.options(), state).serve_connection(TokioIo::new(io), service);
        let mut conn = conn.with_upgrades();
        let finish = http1::UpgradeableConnection::graceful_shutdown;
        let result = match self.run(Pin::new(&mut conn), finish, None, state, age).await {
            Ended::Resting => Ok(()),
            Ended::Over(result) => {
                if result.is_err()
                    && state.reason() == Some(CloseReason::HeaderTimeout)
                    && let Some(parts) = conn.into_parts()
                {
                    last_word(parts.io.into_inner(), REQUEST_TIMEOUT, self.options().send_timeout).await;
                }
                return Err(result);
            }
        };
        let Some(parts) = conn.into_parts() else { return Err(result) };
        let mut io = parts.io.into_inner();
        // a copy: what is left of a buffer keeps all of it
        io.put_back(Bytes::copy_from_slice(&parts.read_buf));
        Ok((io, parts.service))
    }

    /// Until there is something to do.
    async fn rest<Io>(&self, io: &mut Wire<Io>, state: &ConnState, age: &mut Option<Pin<Box<Sleep>>>) -> Woken
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        let _resting = self.counters().resting.enter();
        let mut drained = pin!(self.drain().notified());
        std::future::poll_fn(|cx| {
            if io.poll_begins(cx).is_ready() {
                return Poll::Ready(Woken::Work);
            }
            // registers this task; what it says is asked right behind
            let _ = drained.as_mut().poll(cx);
            if self.drain().has_begun() || is_old(age, cx) {
                return Poll::Ready(Woken::Work);
            }
            state.poll_rest(cx).map(|()| Woken::Idle)
        })
        .await
    }
}

/// One per connection, for the timer is one connection's.
fn builder(options: &HttpOptions, state: &Arc<ConnState>) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(ConnTimer(Arc::clone(state)))
        // the timer has the deadlines; without one here hyper would not ask it
        .header_read_timeout(FOREVER)
        .max_headers(options.max_headers)
        .max_header_size(options.max_header_bytes)
        .max_buf_size(options.max_read_buffer.max(options.max_header_bytes).max(8 << 10))
        .preserve_header_case(options.preserve_header_case)
        .title_case_headers(options.title_case_headers)
        .half_close(false)
        .keep_alive(true);
    builder
}

/// What the protocol's driver does not say by itself, and the end. Nobody waits for it: a failure is the client's loss.
pub(crate) async fn last_word(mut io: impl AsyncWrite + Unpin, word: &[u8], within: Duration) {
    let say = async {
        io.write_all(word).await?;
        io.shutdown().await
    };
    let _ = tokio::time::timeout(within.min(FOREVER), say).await;
}
