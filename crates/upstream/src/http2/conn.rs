//! One connection, and the task that drives it.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Ping, PingPong,
    client::{Builder, Connection, SendRequest},
};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, Sleep},
};
use tracing::debug;

use crate::{
    ClientAddresses, ClusterOptions, ConnectError, Transport,
    state::{EndpointState, Life, Place},
};

/// Streams that are closed here and may still be spoken of by the endpoint.
const MAX_RESET_STREAMS: usize = 64;

/// RFC 9113 section 6.9.1.
const MAX_WINDOW: u32 = (1 << 31) - 1;
/// What unread DATA frames may lack of 256 bytes each, all together: 64 Ki frames of a byte, some 10 MiB of memory.
const FRAME_BUDGET: usize = 16 << 20;

/// A connection to an endpoint, as its requests see it. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct H2Conn {
    send: SendRequest<Bytes>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    place: Place,
    /// Requests under way.
    streams: AtomicUsize,
    /// It carries no more requests: it is closed or about to be.
    closed: AtomicBool,
    /// The endpoint's settings are known.
    settled: AtomicBool,
    settling: Notify,
    /// Told when the number of requests under way changes, for the driver's pings.
    busy: Notify,
    secure: bool,
    client: Option<ClientAddresses>,
    /// A request was answered on it.
    answered: AtomicBool,
    rest: Mutex<Rest>,
}

#[derive(Debug)]
struct Rest {
    life: Life,
    idle_since: Instant,
}

/// A request's place on a connection.
#[derive(Debug)]
pub(crate) struct H2Lease {
    shared: Arc<Shared>,
}

impl H2Conn {
    /// Begins HTTP/2 on a connection and drives it in a task of its own, until the endpoint closes it or nobody needs it.
    pub(crate) async fn begin<Io: Transport>(
        io: Io,
        place: Place,
        client: Option<ClientAddresses>,
        options: &ClusterOptions,
    ) -> Result<Self, ConnectError> {
        let secure = io.is_secure();
        let http2 = &options.http2;
        // those that are read slowly must not keep the others waiting
        let all = u32::try_from(http2.max_streams).unwrap_or(u32::MAX).saturating_mul(http2.stream_window);
        let connection_window = http2.connection_window.max(all).min(MAX_WINDOW);
        let (send, mut conn) = Builder::new()
            .initial_window_size(http2.stream_window)
            .initial_connection_window_size(connection_window)
            // an endpoint of a chat sends small frames, and one reader that is slow must not end it for all
            .data_frame_budget(FRAME_BUDGET)
            .max_frame_size(16 << 10)
            .max_header_list_size(u32::try_from(options.max_head_bytes).unwrap_or(u32::MAX))
            .max_send_buffer_size(http2.send_buffer)
            .max_concurrent_reset_streams(MAX_RESET_STREAMS)
            // an endpoint may open no streams: pushes are off (RFC 9113 section 8.4)
            .max_concurrent_streams(0)
            .enable_push(false)
            .initial_max_send_streams(http2.max_streams)
            .handshake(io)
            .await
            .map_err(|error| ConnectError::Io(io::Error::other(error)))?;
        let rest = Mutex::new(Rest { life: Life::begin(options), idle_since: Instant::now() });
        let shared = Arc::new(Shared {
            place,
            streams: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            settled: AtomicBool::new(false),
            settling: Notify::new(),
            busy: Notify::new(),
            secure,
            client,
            answered: AtomicBool::new(false),
            rest,
        });
        let pings = conn.ping_pong();
        tokio::spawn(drive(conn, pings, Arc::clone(&shared), http2.ping_interval, http2.ping_timeout));
        Ok(Self { send, shared })
    }

    /// Whether a further request fits on it now.
    pub(crate) fn has_room(&self, max_streams: usize) -> bool {
        self.streams() < max_streams.min(self.send.current_max_send_streams())
    }

    /// Requests under way.
    pub(crate) fn streams(&self) -> usize {
        self.shared.streams.load(Ordering::Relaxed)
    }

    /// Whether it may be given to requests of this client.
    pub(crate) fn is_for(&self, client: Option<ClientAddresses>) -> bool {
        self.shared.client == client
    }

    /// Whether it is to be let go of: it carries no more requests, or has grown too old.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.shared.closed.load(Ordering::Relaxed) || self.shared.rest.lock().life.is_over(now)
    }

    /// Whether its endpoint belongs to the cluster no more.
    pub(crate) fn is_removed(&self) -> bool {
        self.shared.place.endpoint().is_some_and(|state| state.is_removed())
    }

    /// Whether nobody has used it for so long.
    pub(crate) fn is_idle_for(&self, time: Duration, now: Instant) -> bool {
        self.streams() == 0 && now.saturating_duration_since(self.shared.rest.lock().idle_since) >= time
    }

    /// Takes a place for a request.
    pub(crate) fn lease(&self) -> H2Lease {
        let _ = self.shared.rest.lock().life.spend();
        if self.shared.streams.fetch_add(1, Ordering::Relaxed) == 0 {
            self.shared.busy.notify_one();
        }
        if let Some(endpoint) = self.shared.place.endpoint() {
            endpoint.count_busy(true);
        }
        H2Lease { shared: Arc::clone(&self.shared) }
    }

    /// Whether a request was answered on it.
    pub(crate) fn has_answered(&self) -> bool {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// A request was.
    pub(crate) fn answered(&self) {
        self.shared.answered.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_secure(&self) -> bool {
        self.shared.secure
    }

    /// Waits for the endpoint's settings: before, it is not known how many requests it takes at a time. `false` if the connection
    /// ended meanwhile.
    pub(crate) async fn settled(&self) -> bool {
        let mut settling = std::pin::pin!(self.shared.settling.notified());
        settling.as_mut().enable();
        if !self.shared.settled.load(Ordering::Acquire) {
            settling.await;
        }
        !self.shared.closed.load(Ordering::Relaxed)
    }

    /// Whether extended CONNECT may be sent (RFC 8441 section 3).
    pub(crate) fn has_extended_connect(&self) -> bool {
        self.send.is_extended_connect_protocol_enabled()
    }

    /// For sending on it.
    pub(crate) fn sender(&self) -> SendRequest<Bytes> {
        self.send.clone()
    }

    /// It carries no more requests.
    pub(crate) fn give_up(&self) {
        self.shared.closed.store(true, Ordering::Relaxed);
    }
}

impl H2Lease {
    /// The endpoint at the other end.
    pub(crate) fn endpoint(&self) -> Option<&Arc<EndpointState>> {
        self.shared.place.endpoint()
    }
}

impl Drop for H2Lease {
    fn drop(&mut self) {
        if let Some(endpoint) = self.shared.place.endpoint() {
            endpoint.count_busy(false);
        }
        if self.shared.streams.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.shared.rest.lock().idle_since = Instant::now();
        }
        // somebody may wait for a place on it
        if let Some(endpoint) = self.shared.place.endpoint() {
            endpoint.freed.notify_one();
        }
    }
}

/// Where the driver is with its pings.
enum Pulse {
    /// Nothing is under way that could wait in vain.
    Resting,
    /// The next one is due.
    Due(Pin<Box<Sleep>>),
    /// The answer to one is awaited.
    Sent(Pin<Box<Sleep>>),
}

async fn drive<Io: Transport>(
    mut conn: Connection<Io, Bytes>,
    pings: Option<PingPong>,
    shared: Arc<Shared>,
    interval: Duration,
    timeout: Duration,
) {
    let Some(mut pings) = pings else { return };
    // its answer comes behind the endpoint's settings, which are the first frame that it may send (RFC 9113 section 3.4)
    let mut pulse = match pings.send_ping(Ping::opaque()) {
        Ok(()) => Pulse::Sent(Box::pin(tokio::time::sleep(timeout))),
        Err(_) => Pulse::Resting,
    };
    let ended = {
        let mut busy = std::pin::pin!(shared.busy.notified());
        poll_fn(|cx| {
            if let Poll::Ready(ended) = Pin::new(&mut conn).poll(cx) {
                return Poll::Ready(ended.map_err(|error| error.to_string()));
            }
            loop {
                match &mut pulse {
                    Pulse::Resting => {
                        if shared.streams.load(Ordering::Relaxed) == 0 && busy.as_mut().poll(cx).is_pending()
                        {
                            return Poll::Pending;
                        }
                        busy.set(shared.busy.notified());
                        pulse = Pulse::Due(Box::pin(tokio::time::sleep(interval)));
                    }
                    Pulse::Due(at) => {
                        if at.as_mut().poll(cx).is_pending() {
                            return Poll::Pending;
                        }
                        pulse = match shared.streams.load(Ordering::Relaxed) {
                            0 => Pulse::Resting,
                            _ => match pings.send_ping(Ping::opaque()) {
                                Ok(()) => Pulse::Sent(Box::pin(tokio::time::sleep(timeout))),
                                Err(_) => Pulse::Resting,
                            },
                        };
                        // the connection has a frame to write
                        if let Poll::Ready(ended) = Pin::new(&mut conn).poll(cx) {
                            return Poll::Ready(ended.map_err(|error| error.to_string()));
                        }
                    }
                    Pulse::Sent(until) => {
                        match pings.poll_pong(cx) {
                            Poll::Ready(Ok(_)) => {
                                shared.settled.store(true, Ordering::Release);
                                shared.settling.notify_waiters();
                                pulse = Pulse::Due(Box::pin(tokio::time::sleep(interval)));
                                continue;
                            }
                            Poll::Ready(Err(error)) => return Poll::Ready(Err(error.to_string())),
                            Poll::Pending => {}
                        }
                        if until.as_mut().poll(cx).is_ready() {
                            return Poll::Ready(Err("it did not answer a ping".to_owned()));
                        }
                        return Poll::Pending;
                    }
                }
            }
        })
        .await
    };
    shared.closed.store(true, Ordering::Relaxed);
    shared.settled.store(true, Ordering::Release);
    shared.settling.notify_waiters();
    if let Err(error) = ended {
        let endpoint = shared.place.endpoint().map(|state| state.endpoint.to_string());
        debug!(endpoint, error, "HTTP/2 connection ended");
    }
}
