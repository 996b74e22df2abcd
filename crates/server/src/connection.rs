//! One connection, from its handshake to its end.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use portcullis_conn::{Conn, ConnId, ConnInfo, FirstBytes};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, error::Elapsed},
};
use tower_service::Service;
use tracing::debug;

use crate::{
    BoxError, HttpOptions,
    activity::Activity,
    drain::Drain,
    service::ConnService,
    stall::Stall,
    stats::{ServerCounters, count},
    timer::ConnTimer,
};

/// How long an HTTP/2 client without open streams may take to answer a GOAWAY.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for a client that has sent no request yet: it may be on its way, or there may be no client at all.
const FINISH_UNUSED: Duration = Duration::from_millis(250);
/// A timeout longer than this is this: far enough away, and no overflow.
pub(crate) const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// What all connections of one call of `serve` share.
#[derive(Debug)]
pub(crate) struct Driver {
    options: HttpOptions,
    counters: Arc<ServerCounters>,
    drain: Arc<Drain>,
    http2: http2::Builder<TokioExecutor>,
}

impl Driver {
    pub(crate) fn new(options: HttpOptions, counters: Arc<ServerCounters>, drain: Arc<Drain>) -> Self {
        let http2 = http2_builder(&options);
        Self { options, counters, drain, http2 }
    }

    pub(crate) async fn drive<Io, H, Io2, S, B>(&self, conn: Conn<Io>, handshake: H, service: S)
    where
        H: Service<Conn<Io>, Response = Conn<Io2>>,
        H::Error: Into<BoxError>,
        Io2: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let Some(conn) = self.shake_hands(conn, handshake).await else { return };
        let id = conn.info.id;
        let info = Arc::new(conn.info);
        let io = TokioIo::new(Stall::new(conn.io, self.options.send_timeout));
        let http2 = speaks_http2(&info);
        let result = if http2 {
            let _open = self.counters.http2.enter();
            let activity = Arc::new(Activity::new(self.options.h2_max_streams));
            let service = ConnService { service, info, activity: Some(Arc::clone(&activity)) };
            let conn = self.http2.serve_connection(io, service);
            let idle = Idle::new(activity, self.options.header_timeout, self.options.send_timeout);
            self.run(pin!(conn), http2::Connection::graceful_shutdown, Some(idle)).await
        } else {
            let _open = self.counters.http1.enter();
            let service = ConnService { service, info, activity: None };
            let conn = http1_builder(&self.options).serve_connection(io, service).with_upgrades();
            self.run(pin!(conn), http1::UpgradeableConnection::graceful_shutdown, None).await
        };
        if let Err(error) = result {
            count(&self.counters.connection_errors);
            debug!(conn = %id, %error, "connection ended in an error");
        }
    }

    /// `None` when it failed, took too long, or the drain began meanwhile: nothing is lost by then.
    async fn shake_hands<Io, H, Io2>(&self, conn: Conn<Io>, mut handshake: H) -> Option<Conn<Io2>>
    where
        H: Service<Conn<Io>, Response = Conn<Io2>>,
        H::Error: Into<BoxError>,
    {
        let id = conn.info.id;
        let spent = conn.info.accepted_at.elapsed();
        let left = self.options.handshake_timeout.min(FOREVER).saturating_sub(spent);
        let shake = async {
            std::future::poll_fn(|cx| handshake.poll_ready(cx)).await?;
            handshake.call(conn).await
        };
        let shake = tokio::time::timeout(left, shake);
        let drained = self.drain.notified();
        if self.drain.has_begun() {
            // it was in the socket's queue: it gets its chance
            return self.shaken(id, shake.await);
        }
        tokio::select! {
            biased;
            result = shake => self.shaken(id, result),
            () = drained => None,
        }
    }

    fn shaken<C, E: Into<BoxError>>(&self, id: ConnId, result: Result<Result<C, E>, Elapsed>) -> Option<C> {
        match result {
            Ok(Ok(conn)) => Some(conn),
            Ok(Err(error)) => {
                count(&self.counters.handshake_failures);
                debug!(conn = %id, error = %error.into(), "handshake failed");
                None
            }
            Err(_) => {
                count(&self.counters.handshake_timeouts);
                debug!(conn = %id, "handshake took too long");
                None
            }
        }
    }

    /// Polls the connection to its end; once the drain begins, or an HTTP/2 connection has been idle for long, it is
    /// told to finish. An HTTP/2 connection that is idle and does not finish, for its client says nothing, is dropped.
    async fn run<C, E>(
        &self,
        mut conn: Pin<&mut C>,
        finish: fn(Pin<&mut C>),
        mut idle: Option<Idle>,
    ) -> Result<(), E>
    where
        C: Future<Output = Result<(), E>>,
    {
        let mut drained = pin!(self.drain.notified());
        let mut listening = false;
        let mut finishing = false;
        std::future::poll_fn(|cx| {
            loop {
                if let Poll::Ready(result) = conn.as_mut().poll(cx) {
                    return Poll::Ready(result);
                }
                if idle.as_mut().is_some_and(|idle| idle.poll_stalled(cx).is_ready()) {
                    // its streams can't be reset from here; a client like this does not get to keep its connection
                    return Poll::Ready(Ok(()));
                }
                if finishing {
                    return match &mut idle {
                        Some(idle) => idle.poll(cx).map(|()| Ok(())),
                        None => Poll::Pending,
                    };
                }
                if !listening {
                    listening = true;
                    // registers this task; what it says is asked below
                    let _ = drained.as_mut().poll(cx);
                }
                let is_idle = idle.as_mut().is_some_and(|idle| idle.poll(cx).is_ready());
                if is_idle && idle.as_ref().is_some_and(Idle::is_unused) {
                    // it may not even have begun to speak HTTP/2: there is nobody to say goodbye to
                    return Poll::Ready(Ok(()));
                }
                if !is_idle && !self.drain.has_begun() {
                    return Poll::Pending;
                }
                finishing = true;
                finish(conn.as_mut());
                if let Some(idle) = &mut idle {
                    idle.restart(if idle.is_unused() { FINISH_UNUSED } else { FINISH_TIMEOUT });
                }
            }
        })
        .await
    }
}

/// By ALPN (RFC 9113 section 3.2) under TLS; by the preface (section 3.3) without.
fn speaks_http2(info: &ConnInfo) -> bool {
    match &info.tls {
        Some(tls) => tls.alpn.as_deref() == Some(b"h2"),
        None => info.first_bytes == Some(FirstBytes::Http2Preface),
    }
}

/// One per connection, for the timer is one connection's.
fn http1_builder(options: &HttpOptions) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(ConnTimer::default())
        .header_read_timeout(options.header_timeout.min(FOREVER))
        .max_headers(options.max_headers)
        .max_header_size(options.max_header_bytes)
        .max_buf_size(options.max_read_buffer.max(options.max_header_bytes).max(8 << 10))
        .preserve_header_case(options.preserve_header_case)
        .half_close(false)
        .keep_alive(true);
    builder
}

fn http2_builder(options: &HttpOptions) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(options.h2_max_streams)
        .initial_stream_window_size(options.h2_stream_window)
        .initial_connection_window_size(options.h2_connection_window)
        .adaptive_window(false)
        .max_frame_size(16 << 10)
        .max_header_list_size(u32::try_from(options.max_header_bytes).unwrap_or(u32::MAX))
        .max_send_buf_size(options.h2_send_buffer)
        .max_pending_accept_reset_streams(options.h2_max_pending_resets)
        .max_local_error_reset_streams(options.h2_max_local_resets)
        .keep_alive_interval(options.h2_ping_interval)
        .keep_alive_timeout(options.h2_ping_timeout);
    builder
}

/// Ready once a connection has had no open stream for a whole timeout. It looks when the timer fires and not at
/// every request, so it may take up to twice the timeout.
struct Idle {
    activity: Arc<Activity>,
    timeout: Duration,
    seen: u64,
    sleep: Pin<Box<Sleep>>,
    send_timeout: Duration,
    send_tick: Pin<Box<Sleep>>,
}

impl Idle {
    fn new(activity: Arc<Activity>, timeout: Duration, send_timeout: Duration) -> Self {
        let (timeout, send_timeout) = (timeout.min(FOREVER), send_timeout.min(FOREVER));
        Self {
            activity,
            timeout,
            seen: 0,
            sleep: Box::pin(tokio::time::sleep(timeout)),
            send_timeout,
            send_tick: Box::pin(tokio::time::sleep(send_timeout)),
        }
    }

    /// Ready once a response has waited for its client for `send_timeout`, or for up to twice that.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.send_tick.as_mut().poll(cx).is_ready() {
            if self.activity.tick() {
                return Poll::Ready(());
            }
            self.send_tick.as_mut().reset(Instant::now() + self.send_timeout);
        }
        Poll::Pending
    }

    /// Whether no request has come yet.
    fn is_unused(&self) -> bool {
        self.activity.total() == 0
    }

    fn restart(&mut self, timeout: Duration) {
        self.timeout = timeout;
        self.seen = self.activity.total();
        self.sleep.as_mut().reset(Instant::now() + timeout);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.sleep.as_mut().poll(cx).is_ready() {
            let total = self.activity.total();
            if self.activity.is_idle() && total == self.seen {
                return Poll::Ready(());
            }
            self.seen = total;
            self.sleep.as_mut().reset(Instant::now() + self.timeout);
        }
        Poll::Pending
    }
}
