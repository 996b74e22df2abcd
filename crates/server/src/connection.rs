//! One connection, from its handshake to its end.

use std::{
    error::Error as StdError,
    hash::{BuildHasher, Hasher, RandomState},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use portcullis_conn::{Conn, ConnId, ConnInfo, FirstBytes};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Sleep, error::Elapsed},
};
use tower_service::Service;
use tracing::debug;

use crate::{
    BoxError, CloseReason, HttpOptions, RequestBody,
    activity::Activity,
    drain::Drain,
    frames::FrameGuard,
    http1::{BAD_REQUEST, last_word},
    idle::Idle,
    service::ConnService,
    state::ConnState,
    stats::{ServerCounters, count},
    wire::Wire,
};

/// How long an HTTP/2 client without open streams may take to answer a GOAWAY.
const FINISH_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for a client that has sent no request yet: it may be on its way, or there may be no client at all.
const FINISH_UNUSED: Duration = Duration::from_millis(250);
/// A timeout longer than this is this: far enough away, and no overflow.
pub(crate) const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// What became of a connection.
pub(crate) enum Ended<E> {
    Over(Result<(), E>),
    /// HTTP/1: it has been idle for a while, and all that was written is out.
    Resting,
}

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
        S: Service<Request<RequestBody>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        // in boxes: what comes and goes is not to make the task large for as long as it lives
        let Some(conn) = Box::pin(self.shake_hands(conn, handshake)).await else { return };
        let id = conn.info.id;
        let info = Arc::new(conn.info);
        let state = Arc::new(ConnState::new(&self.options));
        let http2 = speaks_http2(&info) && (self.options.h2c || info.tls.is_some());
        let activity = http2.then(|| Arc::new(Activity::new(self.options.h2_max_streams)));
        let frames = activity.clone().map(|activity| {
            FrameGuard::new(self.options.h2_max_resets, self.options.h2_max_control_frames, activity)
        });
        let io = Wire::new(conn.io, &self.options, Arc::clone(&state), frames);
        let service = ConnService {
            service,
            info: Arc::clone(&info),
            activity: activity.clone(),
            state: Arc::clone(&state),
            max_requests: self.options.max_requests,
            on_disconnect: self.options.on_disconnect,
            counters: Arc::clone(&self.counters),
        };
        let result = if let Some(activity) = activity {
            let _open = self.counters.http2.enter();
            let conn = self.http2.serve_connection(TokioIo::new(io), service);
            let idle = Idle::new(activity, &self.options);
            let finish = http2::Connection::graceful_shutdown;
            match self.run(Box::pin(conn).as_mut(), finish, Some(idle), &state, &mut self.age()).await {
                Ended::Over(result) => result,
                // that is HTTP/1's
                Ended::Resting => Ok(()),
            }
        } else {
            let _open = self.counters.http1.enter();
            if info.tls.is_none() && info.first_bytes == Some(FirstBytes::Http2Preface) {
                debug!(conn = %id, "HTTP/2 by prior knowledge is off here");
                self.counters.on_closed(CloseReason::ProtocolError);
                return Box::pin(last_word(io, BAD_REQUEST, self.options.send_timeout)).await;
            }
            self.http1(io, service, &state).await
        };
        let reason = state.reason().or_else(|| result.as_ref().err().map(reason_of));
        let reason = reason.unwrap_or(CloseReason::Client);
        self.counters.on_closed(reason);
        if let Err(error) = result {
            count(&self.counters.connection_errors);
            debug!(conn = %id, reason = reason.as_str(), %error, "connection ended in an error");
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

    pub(crate) fn options(&self) -> &HttpOptions {
        &self.options
    }

    pub(crate) fn counters(&self) -> &ServerCounters {
        &self.counters
    }

    pub(crate) fn drain(&self) -> &Drain {
        &self.drain
    }

    /// The timer of a connection that begins now.
    pub(crate) fn age(&self) -> Option<Pin<Box<Sleep>>> {
        self.options.max_age.map(|age| Box::pin(tokio::time::sleep(with_jitter(age))))
    }

    /// Polls the connection to its end, or until it is time for it to rest; once the drain begins, or it is old enough, or an HTTP/2 connection has been idle
    /// for long, it is told to finish. An HTTP/2 connection that is idle and does not finish, for its client says
    /// nothing, is dropped.
    ///
    /// To finish is, in HTTP/1, to close at once if no request is in flight, and else to say `Connection: close` and
    /// close after it; in HTTP/2, two GOAWAYs (RFC 9113 section 6.8): one that names no last stream, and a PING; when that
    /// is answered, one that does, so that a request on its way is served and not lost.
    pub(crate) async fn run<C, E>(
        &self,
        mut conn: Pin<&mut C>,
        finish: fn(Pin<&mut C>),
        mut idle: Option<Idle>,
        state: &ConnState,
        age: &mut Option<Pin<Box<Sleep>>>,
    ) -> Ended<E>
    where
        C: Future<Output = Result<(), E>>,
    {
        let mut drained = pin!(self.drain.notified());
        let mut listening = false;
        let mut finishing = false;
        std::future::poll_fn(|cx| {
            loop {
                if let Poll::Ready(result) = conn.as_mut().poll(cx) {
                    return Poll::Ready(Ended::Over(result));
                }
                if idle.as_mut().is_some_and(|idle| idle.poll_stalled(cx).is_ready()) {
                    // its streams can't be reset from here; a client like this does not get to keep its connection
                    state.close_for(CloseReason::ClientStoppedReading);
                    return Poll::Ready(Ended::Over(Ok(())));
                }
                if finishing {
                    return match &mut idle {
                        Some(idle) => idle.poll(cx).map(|()| Ended::Over(Ok(()))),
                        None => Poll::Pending,
                    };
                }
                if !listening {
                    listening = true;
                    // registers this task; what it says is asked below
                    let _ = drained.as_mut().poll(cx);
                }
                let is_idle = idle.as_mut().is_some_and(|idle| idle.poll(cx).is_ready());
                let is_unused = idle.as_ref().is_some_and(Idle::is_unused);
                if is_idle {
                    state.close_for(if is_unused {
                        CloseReason::FirstRequestTimeout
                    } else {
                        CloseReason::Idle
                    });
                }
                if is_idle && is_unused {
                    // it may not even have begun to speak HTTP/2: there is nobody to say goodbye to
                    return Poll::Ready(Ended::Over(Ok(())));
                }
                if self.drain.has_begun() {
                    state.finish_for(CloseReason::Drained);
                }
                if is_old(age, cx) {
                    state.finish_for(CloseReason::MaxAge);
                }
                if !is_idle && !state.must_finish() {
                    return if state.may_rest() { Poll::Ready(Ended::Resting) } else { Poll::Pending };
                }
                finishing = true;
                finish(conn.as_mut());
                if let Some(idle) = &mut idle {
                    idle.restart(if is_unused { FINISH_UNUSED } else { FINISH_TIMEOUT });
                }
            }
        })
        .await
    }
}

pub(crate) fn is_old(age: &mut Option<Pin<Box<Sleep>>>, cx: &mut std::task::Context<'_>) -> bool {
    age.as_mut().is_some_and(|age| age.as_mut().poll(cx).is_ready())
}

/// Up to a tenth more or less.
fn with_jitter(age: Duration) -> Duration {
    // keyed anew for every call, from a random seed of the process
    let chance = RandomState::new().build_hasher().finish() % 2001;
    let thousandths = u32::try_from(chance).unwrap_or_default();
    (age.min(FOREVER) / 10_000).saturating_mul(9_000 + thousandths)
}

/// What an error of hyper's says of why the connection ended.
fn reason_of(error: &hyper::Error) -> CloseReason {
    if let Some(error) = h2_error(error) {
        return match error.reason() {
            // by this side: what the client says of itself is an end like any other
            Some(h2::Reason::ENHANCE_YOUR_CALM) if !error.is_remote() => CloseReason::Flood,
            Some(_) if !error.is_remote() => CloseReason::ProtocolError,
            Some(h2::Reason::NO_ERROR) => CloseReason::Client,
            _ => CloseReason::Aborted,
        };
    }
    if error.is_parse() || error.is_parse_too_large() {
        CloseReason::ProtocolError
    } else if error.is_timeout() {
        CloseReason::Idle
    } else if error.is_user() {
        CloseReason::ServiceError
    } else {
        CloseReason::Aborted
    }
}

fn h2_error(error: &hyper::Error) -> Option<&h2::Error> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return Some(error);
        }
        cause = error.source();
    }
    None
}

/// By ALPN (RFC 9113 section 3.2) under TLS; by the preface (section 3.3) without.
fn speaks_http2(info: &ConnInfo) -> bool {
    match &info.tls {
        Some(tls) => tls.alpn.as_deref() == Some(b"h2"),
        None => info.first_bytes == Some(FirstBytes::Http2Preface),
    }
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
        .keep_alive_timeout(options.h2_ping_timeout)
        // RFC 9113 section 6.5.2: what both sides begin with
        .header_table_size(4096);
    if options.h2_extended_connect {
        builder.enable_connect_protocol();
    }
    builder
}
