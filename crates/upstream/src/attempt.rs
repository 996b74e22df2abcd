//! One attempt at one endpoint: a connection from the pool or a new one, and the exchange on it.

use std::{
    future::poll_fn,
    io,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use http::StatusCode;
use tokio::time::{Instant, timeout};
use tower_service::Service;

use crate::{
    Address, BoxError, Client, ClientAddresses, ConnectError, Destination, Error, Policy, Protocol,
    ProtocolError, Transport,
    balance::Tried,
    call::Call,
    h1::{ExchangeError, H1Conn, Pump, ResponseHead, encode_head},
    health::FailureKind,
    http2::{self, Failure, H2Conn, H2Lease, H2Response},
    pool::{Found, Pool, Speaks},
    state::{EndpointState, Life, Place},
    upload::Upload,
};

/// The head of an answer, and what is behind it.
pub(crate) enum Answer<Io> {
    H1 {
        conn: Box<H1Conn<Io>>,
        head: ResponseHead,
        pump: Option<Pump>,
    },
    /// Boxed, so that the common case stays small.
    H2(Box<H2Response>),
}

impl<Io> Answer<Io> {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::H1 { head, .. } => head.parts.status,
            Self::H2(response) => response.head.status,
        }
    }
}

/// An attempt that brought no answer.
pub(crate) struct Miss {
    pub(crate) error: Error,
    pub(crate) why: Why,
}

/// What that means for another one.
pub(crate) enum Why {
    /// No connection: nothing was sent.
    NotConnected,
    /// The endpoint says that it did nothing of it.
    Refused,
    /// A connection from the pool was closed by its endpoint before it saw the request, or while it did: an idempotent request whose body is
    /// at hand is sent to the same endpoint on a new one.
    Stale(Arc<EndpointState>),
    /// Closed before an answer.
    Unanswered,
    /// No answer in time.
    TimedOut,
    /// Nothing is to be tried again.
    Final,
}

impl Miss {
    fn new(error: Error, why: Why) -> Self {
        Self { error, why }
    }
}

/// A connection to send a request on.
enum Ready<Io> {
    H1(Box<H1Conn<Io>>),
    H2(H2Conn, H2Lease),
}

impl<C> Client<C>
where
    C: Service<Destination> + Clone,
    C::Response: Transport,
    C::Error: Into<ConnectError>,
{
    /// Picks an endpoint, or takes `same` on a new connection, and sends the request there.
    pub(crate) async fn attempt<B>(
        &self,
        call: &Call<'_>,
        upload: &mut Upload<B>,
        tried: &Tried,
        same: Option<Arc<EndpointState>>,
    ) -> Result<Answer<C::Response>, Miss>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        let found = match &same {
            Some(state) => {
                call.begin(state);
                Some((self.pool.find(state, true, call.client), Some(Arc::clone(state))))
            }
            None => self.shared.with_pick(&call.wish, tried, |index, state| {
                call.begin(state);
                call.picked.store(index, Ordering::Relaxed);
                let found = self.pool.find(state, false, call.client);
                // a connection knows its endpoint
                let state = matches!(found, Found::Connect(_) | Found::Wait(_)).then(|| Arc::clone(state));
                (found, state)
            }),
        };
        let Some((found, state)) = found else { return Err(Miss::new(Error::NoEndpoint, Why::Final)) };
        let ready = match (found, state) {
            (Found::H1(conn), _) => Ready::H1(conn),
            (Found::H2(conn, lease), _) => Ready::H2(conn, lease),
            (found, Some(state)) => {
                // it counts from here on: an endpoint that takes no connections is no idle one
                let _approaching = state.approach();
                Box::pin(self.ready(&state, found, call, same.is_some())).await?
            }
            (_, None) => return Err(Miss::new(Error::NoEndpoint, Why::Final)),
        };
        match ready {
            Ready::H1(conn) => self.over_h1(conn, call, upload).await,
            Ready::H2(conn, lease) => Box::pin(self.over_h2(conn, lease, call, upload)).await,
        }
    }

    /// Makes a connection, or waits for one that is being made.
    async fn ready(
        &self,
        state: &Arc<EndpointState>,
        mut found: Found<C::Response>,
        call: &Call<'_>,
        fresh: bool,
    ) -> Result<Ready<C::Response>, Miss> {
        let until = Instant::now() + self.connect_limit();
        loop {
            let connecting = match found {
                Found::H1(conn) => return Ok(Ready::H1(conn)),
                Found::H2(conn, lease) => return Ok(Ready::H2(conn, lease)),
                Found::Connect(gate) => return self.connect(state, gate, call).await,
                Found::Wait(connecting) => connecting,
            };
            let waiting = call.waiting();
            let waited = tokio::time::timeout_at(until, connecting).await;
            drop(waiting);
            if waited.is_err() {
                let endpoint = Arc::clone(&state.endpoint.name);
                return Err(Miss::new(Error::ConnectTimeout { endpoint }, Why::NotConnected));
            }
            found = self.pool.find(state, fresh, call.client);
        }
    }

    /// Now, where somebody wants to know how long it takes.
    fn began(&self) -> Option<std::time::Instant> {
        (self.shared.options.balance.policy == Policy::PeakEwma).then(std::time::Instant::now)
    }

    fn connect_limit(&self) -> std::time::Duration {
        let options = &self.shared.options;
        options.connect_timeout.saturating_add(options.tls_timeout).min(crate::FOREVER)
    }

    async fn connect(
        &self,
        state: &Arc<EndpointState>,
        gate: bool,
        call: &Call<'_>,
    ) -> Result<Ready<C::Response>, Miss> {
        let options = &self.shared.options;
        let gate = gate.then(|| Gate { pool: &self.pool, slot: state.slot });
        if !state.take_place(options.max_connections) {
            // an idle one of another client's, or of another protocol, stands in the way
            self.pool.evict(state.slot);
            if !state.take_place(options.max_connections) {
                let waiting = call.waiting();
                let queued = self.queue(state, call.client).await;
                drop(waiting);
                if let Some(ready) = queued? {
                    return Ok(ready);
                }
            }
        }
        // from here on the place comes back with the guard, or with the connection that it becomes part of
        let place = Place::taken(Arc::clone(state));
        let connecting = call.connecting();
        let dialled = self.dial(state, call.client).await;
        drop(connecting);
        let io = dialled?;
        let http2 = match (options.protocol, io.alpn()) {
            (Protocol::Http1, _) => false,
            (Protocol::ByAlpn, alpn) => alpn == Some(b"h2"),
            (Protocol::Http2, None | Some(b"h2")) => true,
            (Protocol::Http2, Some(_)) => {
                let endpoint = Arc::clone(&state.endpoint.name);
                self.shared.failed(state, FailureKind::Connection);
                let error = Error::Protocol { endpoint, source: ProtocolError::Alpn };
                return Err(Miss::new(error, Why::NotConnected));
            }
        };
        if !http2 {
            if let Some(gate) = gate {
                gate.open(Speaks::Http1, None);
            }
            let life = Life::begin(options);
            return Ok(Ready::H1(Box::new(H1Conn::new(io, place.keep(), life, call.client))));
        }
        let conn = H2Conn::begin(io, place, call.client, options)
            .await
            .map_err(|error| self.not_connected(state, error))?;
        match timeout(self.connect_limit(), conn.settled()).await {
            Ok(true) => {}
            Ok(false) => {
                let closed = io::Error::new(io::ErrorKind::ConnectionAborted, "HTTP/2 did not begin");
                return Err(self.not_connected(state, ConnectError::Io(closed)));
            }
            Err(_) => return Err(self.not_connected(state, ConnectError::Timeout)),
        }
        let lease = conn.lease();
        match gate {
            Some(gate) => gate.open(Speaks::Http2, Some(conn.clone())),
            None => self.pool.connected(state.slot, Some(Speaks::Http2), Some(conn.clone())),
        }
        Ok(Ready::H2(conn, lease))
    }

    /// One connection for the pool.
    pub(crate) async fn spare(&self, state: &Arc<EndpointState>) -> Result<Box<H1Conn<C::Response>>, Miss> {
        let options = &self.shared.options;
        if !state.take_place(options.max_connections) {
            return Err(Miss::new(Error::Overloaded { limit: "connections" }, Why::Final));
        }
        let place = Place::taken(Arc::clone(state));
        let io = self.dial(state, None).await?;
        Ok(Box::new(H1Conn::new(io, place.keep(), Life::begin(options), None)))
    }

    async fn dial(
        &self,
        state: &Arc<EndpointState>,
        client: Option<ClientAddresses>,
    ) -> Result<C::Response, Miss> {
        let mut connector = self.connector.clone();
        let destination = Destination { client, ..Destination::from(&state.endpoint) };
        let connect = async {
            poll_fn(|cx| connector.poll_ready(cx)).await?;
            connector.call(destination).await
        };
        match timeout(self.connect_limit(), connect).await {
            Ok(Ok(io)) => Ok(io),
            Ok(Err(error)) => Err(self.not_connected(state, error.into())),
            Err(_) => Err(self.not_connected(state, ConnectError::Timeout)),
        }
    }

    fn not_connected(&self, state: &Arc<EndpointState>, error: ConnectError) -> Miss {
        self.shared.failed(state, FailureKind::Connection);
        let endpoint = Arc::clone(&state.endpoint.name);
        let error = match error {
            ConnectError::Resolve(source) => Error::Resolve { endpoint, source },
            ConnectError::Io(source) => Error::Connect { endpoint, source },
            error @ ConnectError::NotAllowed => {
                let source = io::Error::new(io::ErrorKind::PermissionDenied, error);
                Error::Connect { endpoint, source }
            }
            ConnectError::Timeout => Error::ConnectTimeout { endpoint },
            ConnectError::Tls(source) => Error::Tls { endpoint, source },
            ConnectError::TlsTimeout => Error::TlsTimeout { endpoint },
        };
        Miss::new(error, Why::NotConnected)
    }

    /// Waits for a connection of another request, or for a place to make one in.
    async fn queue(
        &self,
        state: &Arc<EndpointState>,
        client: Option<ClientAddresses>,
    ) -> Result<Option<Ready<C::Response>>, Miss> {
        let options = &self.shared.options;
        let Some(_waiting) = self.shared.wait() else {
            return Err(Miss::new(Error::Overloaded { limit: "waiting requests" }, Why::NotConnected));
        };
        let _wanted = state.wait();
        // a connection that is another client's is of no use
        let mut handed = client.is_none().then(|| self.pool.wait(state.slot));
        let free = async {
            loop {
                // registered before the look, so that no place that comes free in between is missed
                let mut freed = std::pin::pin!(state.freed.notified());
                freed.as_mut().enable();
                if state.take_place(options.max_connections) {
                    return None;
                }
                if let Some((conn, lease)) = self.pool.find_http2(state.slot, client) {
                    return Some(Ready::H2(conn, lease));
                }
                tokio::select! {
                    biased;
                    conn = async {
                        match &mut handed {
                            Some(handed) => handed.await.ok(),
                            None => std::future::pending().await,
                        }
                    } => match conn {
                        Some(conn) => return Some(Ready::H1(conn)),
                        None => handed = None,
                    },
                    () = freed => {}
                }
            }
        };
        timeout(options.queue_timeout, free).await.map_err(|_| {
            let endpoint = Arc::clone(&state.endpoint.name);
            Miss::new(Error::QueueTimeout { endpoint }, Why::NotConnected)
        })
    }

    async fn over_h1<B>(
        &self,
        mut conn: Box<H1Conn<C::Response>>,
        call: &Call<'_>,
        upload: &mut Upload<B>,
    ) -> Result<Answer<C::Response>, Miss>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        conn.set_busy(true);
        encode_head(
            &mut conn.write,
            call.parts,
            call.framing,
            authority(&conn.endpoint),
            self.shared.options.title_case,
        )
        .map_err(|error| Miss::new(error, Why::Final))?;
        let mut pump = Pump::new(call.framing, call.expects);
        let (began, sends) = (self.began(), call.now());
        let exchanged = conn.exchange(&mut pump, upload, call.parts, &self.shared.options).await;
        let error = match exchanged {
            Ok((head, sent)) => {
                observe(&conn.endpoint, began);
                call.answered(sends);
                self.shared.answered(&conn.endpoint, head.parts.status);
                return Ok(Answer::H1 { conn, head, pump: (!sent).then_some(pump) });
            }
            Err(error) => error,
        };
        let endpoint = Arc::clone(&conn.endpoint.endpoint.name);
        let (why, error) = match error {
            ExchangeError::RequestBody(source) => (Why::Final, Error::RequestBody { source }),
            ExchangeError::RequestTimeout => (Why::Final, Error::RequestTimeout),
            ExchangeError::Closed { answered: false, source } => {
                let stale = conn.reused && call.idempotent && upload.can_rewind();
                let why = if stale { Why::Stale(Arc::clone(&conn.endpoint)) } else { Why::Unanswered };
                // a connection that was closed while it lay in the pool says nothing of its endpoint
                if !conn.reused {
                    self.shared.failed(&conn.endpoint, FailureKind::Connection);
                }
                return Err(Miss::new(Error::Closed { endpoint, source }, why));
            }
            ExchangeError::Closed { answered: true, source } => {
                (Why::Final, Error::Closed { endpoint, source })
            }
            ExchangeError::WriteTimeout => (Why::TimedOut, Error::WriteTimeout { endpoint }),
            ExchangeError::ResponseTimeout => (Why::TimedOut, Error::ResponseTimeout { endpoint }),
            ExchangeError::Protocol(source) => (Why::Final, Error::Protocol { endpoint, source }),
        };
        if !error.is_request() {
            self.shared.failed(&conn.endpoint, FailureKind::Connection);
        }
        Err(Miss::new(error, why))
    }

    async fn over_h2<B>(
        &self,
        conn: H2Conn,
        lease: H2Lease,
        call: &Call<'_>,
        upload: &mut Upload<B>,
    ) -> Result<Answer<C::Response>, Miss>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        let state = lease.endpoint().map(Arc::clone);
        let endpoint = state.as_ref().map_or_else(|| "".into(), |state| Arc::clone(&state.endpoint.name));
        let authority = state.as_ref().map_or("", |state| authority(state));
        let head = http2::head_of(call.parts, conn.is_secure(), authority)
            .map_err(|error| Miss::new(error, Why::Final))?;
        let (began, sends, reused) = (self.began(), call.now(), conn.has_answered());
        let error =
            match http2::exchange(&conn, lease, head, upload, &call.parts.extensions, &self.shared.options)
                .await
            {
                Ok(response) => {
                    call.answered(sends);
                    if let Some(state) = &state {
                        observe(state, began);
                        self.shared.answered(state, response.head.status);
                    }
                    return Ok(Answer::H2(Box::new(response)));
                }
                Err(error) => error,
            };
        let (why, error) = match error {
            Failure::RequestBody(source) => (Why::Final, Error::RequestBody { source }),
            Failure::RequestTimeout => (Why::Final, Error::RequestTimeout),
            Failure::WriteTimeout => (Why::TimedOut, Error::WriteTimeout { endpoint }),
            Failure::ResponseTimeout => (Why::TimedOut, Error::ResponseTimeout { endpoint }),
            Failure::Full => (Why::NotConnected, Error::QueueTimeout { endpoint }),
            Failure::TooManyInterim => {
                let source = ProtocolError::TooManyInterim;
                (Why::Final, Error::Protocol { endpoint, source })
            }
            Failure::NoExtendedConnect => (Why::Final, Error::NoExtendedConnect { endpoint }),
            Failure::Gone(source) => {
                // nothing of it was sent: that a connection lay here which had ended says nothing of the endpoint
                conn.give_up();
                let why = match &state {
                    Some(state) if upload.can_rewind() => Why::Stale(Arc::clone(state)),
                    _ => Why::Refused,
                };
                (why, Error::Reset { endpoint, source })
            }
            Failure::Invalid(source) => (Why::Final, Error::Reset { endpoint, source }),
            Failure::Reset { unprocessed, source } => {
                // the stream is one thing, the connection another: no request is put on one that has ended
                let ended = source.is_io() || source.is_go_away();
                if ended {
                    conn.give_up();
                }
                let stale = ended && reused && call.idempotent && upload.can_rewind();
                let why = match &state {
                    _ if unprocessed => Why::Refused,
                    Some(state) if stale => Why::Stale(Arc::clone(state)),
                    _ => Why::Unanswered,
                };
                (why, Error::Reset { endpoint, source })
            }
        };
        // as over HTTP/1: who breaks the protocol has failed, though nothing is tried again
        let broken = matches!(error, Error::Protocol { .. });
        let theirs = !error.is_request()
            && !error.is_overload()
            && (broken || !matches!(why, Why::Refused | Why::Stale(_) | Why::Final));
        if theirs && let Some(state) = &state {
            self.shared.failed(state, FailureKind::Connection);
        }
        Err(Miss::new(error, why))
    }
}

fn observe(state: &EndpointState, began: Option<std::time::Instant>) {
    if let Some(began) = began {
        let now = std::time::Instant::now();
        state.load.observe(now, now.saturating_duration_since(began));
    }
}

/// What stands for the host where nothing else does. A unix socket has no name that a `Host` could have.
fn authority(state: &EndpointState) -> &str {
    match state.endpoint.address {
        Address::Unix(_) => "localhost",
        _ => &state.endpoint.name,
    }
}

/// Keeps others from making the same connection, until it is made or given up.
struct Gate<'a, Io> {
    pool: &'a Pool<Io>,
    slot: usize,
}

impl<Io> Gate<'_, Io> {
    fn open(self, speaks: Speaks, conn: Option<H2Conn>) {
        self.pool.connected(self.slot, Some(speaks), conn);
        std::mem::forget(self);
    }
}

impl<Io> Drop for Gate<'_, Io> {
    fn drop(&mut self) {
        self.pool.connected(self.slot, None, None);
    }
}
