//! Sends requests to a cluster.

use std::{
    fmt,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, request};
use tokio::time::{Instant, sleep, timeout_at};
use tower_service::Service;
use tracing::debug;

use crate::{
    Body, BoxError, Cluster, ConnectError, Connector, Destination, Error, Protocol, ProtocolError, Transport,
    Upgraded, UpgradedSlot,
    attempt::{Answer, Miss, Why},
    balance::Tried,
    body::{H1Source, H2Source},
    call::Call,
    cluster::{Shared, Ticket},
    h1::{H1Conn, Pump, RequestFraming, ResponseHead, framing_of},
    health::jitter,
    http2::{H2Response, H2Upgraded},
    pool::Pool,
    retry::pause,
    state::EndpointState,
    trip::Trip,
    upload::Upload,
};

/// Sends requests to a [`Cluster`] over a pool of connections. Cheap to clone; clones share the pool.
pub struct Client<C: Service<Destination> = Connector> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Arc<Pool<C::Response>>,
    pub(crate) connector: C,
    name_endpoints: bool,
}

/// The endpoint that answered, among a response's extensions; see [`Client::with_endpoint_names`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointName(pub Arc<str>);

/// The client's address for a policy that hashes it, among a request's extensions, where it is another than the connection's own
/// (`Arc<`[`ConnInfo`](portcullis_conn::ConnInfo)`>` there): behind a proxy that is trusted to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientIp(pub std::net::IpAddr);

/// The endpoint that a request belongs to, among its extensions, by the 64-bit hash of its name that a sticky cookie carries. It is followed while the endpoint is
/// available, where [`crate::ClusterOptions::prefer_endpoints`] allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreferEndpoint(pub u64);

/// The future of [`Client`] as a service.
pub type ClientFuture<B, Io> = Pin<Box<dyn Future<Output = Result<Response<Body<B, Io>>, Error>> + Send>>;

impl<C: Service<Destination>> Client<C> {
    pub(crate) fn new(cluster: Cluster, connector: C) -> Self {
        let shared = cluster.shared;
        let pool = Pool::new(&shared.options);
        Self { pool: Arc::new(pool), connector, name_endpoints: false, shared }
    }

    /// Whether responses carry the [`EndpointName`] that answered. Default `false`: it costs an allocation.
    #[must_use]
    pub fn with_endpoint_names(mut self, yes: bool) -> Self {
        self.name_endpoints = yes;
        self
    }

    /// Connections that lie in the pool, those of HTTP/2 that are in use among them.
    pub fn idle_connections(&self) -> usize {
        self.pool.len()
    }

    /// Closes the idle connections of this client's pool: when descriptors are short, what is idle is the first to go. Requests under way are not
    /// touched.
    pub fn close_idle(&self) {
        self.pool.clear();
    }
}

impl<C> Client<C>
where
    C: Service<Destination> + Clone,
    C::Response: Transport,
    C::Error: Into<ConnectError>,
{
    /// Closes pooled connections as they grow too old, are closed by their endpoints or lose their endpoint, and keeps
    /// [`crate::ClusterOptions::min_idle`] of them ready. Never ends: spawn it on the
    /// client's runtime, or leave it out and let the pool be looked at only when it is used.
    pub async fn maintain(&self) {
        let options = &self.shared.options;
        let every = (options.idle_timeout / 4).clamp(Duration::from_secs(1), Duration::from_secs(15));
        loop {
            let changed = self.shared.changed.notified();
            self.pool.sweep();
            if options.min_idle > 0 && options.protocol == Protocol::Http1 && !options.connection_per_client {
                self.prewarm().await;
            }
            tokio::select! {
                () = sleep(every) => {}
                () = changed => {}
            }
        }
    }

    async fn prewarm(&self) {
        let mut short = Vec::new();
        let now = Instant::now();
        self.shared.for_each_endpoint(|state| {
            let missing = self.shared.options.min_idle.saturating_sub(self.pool.idle(state.slot));
            if missing > 0 && state.is_available(now) {
                short.push((Arc::clone(state), missing));
            }
        });
        for (state, missing) in short {
            for _ in 0..missing {
                // an endpoint that can't be connected to is left to those that have a request for it
                let Ok(conn) = self.spare(&state).await else { break };
                self.pool.put(conn);
            }
        }
    }

    /// Sends a request and waits for the response's head. Dropping the future closes the connection in use, or resets the stream.
    ///
    /// # Errors
    /// What the last attempt came to.
    pub async fn send<B>(&self, request: Request<B>) -> Result<Response<Body<B, C::Response>>, Error>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        let result = match Ticket::take(&self.shared) {
            Err(error) => Err(error),
            Ok(ticket) => match self.shared.options.total_timeout {
                None => self.run(request, ticket, None).await,
                Some(total) => {
                    let deadline = Instant::now() + total.min(crate::FOREVER);
                    let run = Box::pin(self.run(request, ticket, Some(deadline)));
                    timeout_at(deadline, run).await.unwrap_or(Err(Error::TotalTimeout))
                }
            },
        };
        if let Err(error) = &result {
            self.shared.count_error(error);
        }
        result
    }

    async fn run<B>(
        &self,
        request: Request<B>,
        ticket: Ticket,
        deadline: Option<Instant>,
    ) -> Result<Response<Body<B, C::Response>>, Error>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        let waiting = parts.extensions.get::<Arc<Trip>>().map(|trip| trip.waiting());
        self.shared.first_list().await?;
        drop(waiting);
        let framing = framing_of(&parts.headers, &body)?;
        let options = &self.shared.options;
        let call = Call::new(&parts, framing, options);
        // over HTTP/1.1 nothing but an idempotent request can be sent again once its body has begun
        let keep = if call.idempotent || options.protocol != Protocol::Http1 {
            options.retry.replay_bytes
        } else {
            0
        };
        let mut upload = Upload::new(body, framing, keep);
        let answer = match &options.hedge {
            Some(hedge) if framing == RequestFraming::None && is_safe(&parts.method) => {
                Box::pin(self.hedged(&call, hedge.after)).await?
            }
            _ => self.tries(&call, &mut upload, Tried::default()).await?,
        };
        // moved only where there is something left to send
        match answer {
            Answer::H1 { conn, head, pump } => {
                let rest = pump.map(|pump| Box::new((pump, upload)));
                self.respond_h1(conn, head, &parts, H1Rest { rest, ticket, deadline })
            }
            Answer::H2(response) => {
                let rest = (!response.pump.is_done()).then_some(upload);
                Ok(self.respond_h2(response, &parts, H2Rest { rest, ticket, deadline }))
            }
        }
    }

    /// Attempts until one is good enough or there is no other to be made.
    async fn tries<B>(
        &self,
        call: &Call<'_>,
        upload: &mut Upload<B>,
        mut tried: Tried,
    ) -> Result<Answer<C::Response>, Error>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        let mut retries = 0;
        let (mut same, mut stale) = (None, false);
        loop {
            let miss = match self.attempt(call, upload, &tried, same.take()).await {
                Ok(answer) => {
                    let retried = call.idempotent && self.shared.options.retry.is_retried(answer.status());
                    if !retried || !upload.can_rewind() {
                        return Ok(answer);
                    }
                    tried.insert(call.picked.load(Ordering::Relaxed));
                    if !self.shared.has_untried(&tried) || !self.may_retry(retries) {
                        return Ok(answer);
                    }
                    debug!(status = answer.status().as_u16(), "trying another endpoint");
                    None
                }
                Err(miss) => Some(miss),
            };
            match miss {
                // a stale connection says nothing of its endpoint: a new one to the same is no attempt at another
                Some(Miss { why: Why::Stale(state), .. }) if !stale => {
                    stale = true;
                    same = Some(state);
                }
                Some(Miss { why, error }) => {
                    tried.insert(call.picked.load(Ordering::Relaxed));
                    if !self.is_worth_another(&why, call, upload, &tried) || !self.may_retry(retries) {
                        return Err(error);
                    }
                    debug!(%error, "trying another endpoint");
                }
                None => {}
            }
            upload.rewind();
            self.shared.count_retry();
            if same.is_none() {
                retries += 1;
                let pause = pause(retries, &self.shared.options.retry, jitter::random());
                if !pause.is_zero() {
                    sleep(pause).await;
                }
            }
        }
    }

    fn is_worth_another<B>(&self, why: &Why, call: &Call<'_>, upload: &Upload<B>, tried: &Tried) -> bool
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        if !upload.can_rewind() {
            return false;
        }
        let others = tried.len() < self.shared.endpoint_count();
        match why {
            // the endpoint is there and asks for another try, on another connection if need be
            Why::Refused => true,
            Why::NotConnected => others,
            Why::Unanswered | Why::Stale(_) => others && call.idempotent,
            Why::TimedOut => others && call.idempotent && self.shared.options.retry.on_timeout,
            Why::Final => false,
        }
    }

    fn may_retry(&self, retries: u32) -> bool {
        retries + 1 < self.shared.options.retry.attempts && self.shared.may_retry()
    }

    /// One line of attempts, and another beside it if that is slow.
    async fn hedged(&self, call: &Call<'_>, after: Duration) -> Result<Answer<C::Response>, Error> {
        let (mut one, mut other) = (no_upload(), no_upload());
        let mut first = pin!(self.tries(call, &mut one, Tried::default()));
        tokio::select! {
            biased;
            ended = first.as_mut() => return ended,
            () = sleep(after) => {}
        }
        let mut tried = Tried::default();
        tried.insert(call.picked.load(Ordering::Relaxed));
        if !self.shared.has_untried(&tried) || !self.shared.may_retry() {
            return first.await;
        }
        self.shared.count_hedge();
        let beside = Call::beside(call);
        let mut second = pin!(self.tries(&beside, &mut other, tried));
        tokio::select! {
            ended = first.as_mut() => match ended {
                Ok(answer) => Ok(answer),
                Err(_) => second.await,
            },
            ended = second.as_mut() => match ended {
                Ok(answer) => Ok(answer),
                Err(_) => first.await,
            },
        }
    }

    fn respond_h1<B>(
        &self,
        conn: Box<H1Conn<C::Response>>,
        head: ResponseHead,
        request: &request::Parts,
        rest: H1Rest<B>,
    ) -> Result<Response<Body<B, C::Response>>, Error>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        let ResponseHead { parts, decoder, keep_alive } = head;
        let switching = parts.status == StatusCode::SWITCHING_PROTOCOLS;
        // RFC 9110 section 15.2.2: the server switches to what the client asked for, and not unasked
        // nor before it has the whole request, or what is left of that would be taken for the new protocol
        if switching && (rest.rest.is_some() || !request.headers.contains_key(header::UPGRADE)) {
            let endpoint = Arc::clone(&conn.endpoint.endpoint.name);
            return Err(Error::Protocol { endpoint, source: ProtocolError::UnexpectedUpgrade });
        }
        let name = self.name_of(&conn.endpoint);
        let mut response = if switching {
            let mut response = Response::from_parts(parts, Body::empty());
            response.extensions_mut().insert(UpgradedSlot::new(Upgraded::h1(conn)));
            response
        } else {
            let H1Rest { rest, ticket, deadline } = rest;
            let pool = Arc::clone(&self.pool);
            let source = H1Source { conn, pool, ticket, rest, keep_alive, deadline };
            Response::from_parts(parts, Body::h1(source, decoder))
        };
        if let Some(name) = name {
            response.extensions_mut().insert(name);
        }
        Ok(response)
    }

    fn respond_h2<B>(
        &self,
        mut answer: Box<H2Response>,
        request: &request::Parts,
        rest: H2Rest<B>,
    ) -> Response<Body<B, C::Response>> {
        let mut parts = answer.take_head();
        let length = parts.headers.get(header::CONTENT_LENGTH);
        // RFC 9110 section 6.4.1: these have a length and no content
        let bodiless = request.method == Method::HEAD
            || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let left = match bodiless {
            true => Some(0),
            false => length.and_then(|length| crate::h1::parse_length(length.as_bytes())),
        };
        if let Some(name) = answer.lease.endpoint().and_then(|state| self.name_of(state)) {
            parts.extensions.insert(name);
        }
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            parts.version = Version::HTTP_2;
            if let Some(protocol) = request.headers.get(header::UPGRADE) {
                parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                parts.headers.insert(header::UPGRADE, protocol.clone());
            }
            parts.extensions.insert(UpgradedSlot::<C::Response>::new(Upgraded::h2(H2Upgraded::new(*answer))));
            return Response::from_parts(parts, Body::empty());
        }
        if answer.pump.is_done() && answer.recv.is_end_stream() {
            return Response::from_parts(parts, Body::empty());
        }
        let H2Rest { rest, ticket, deadline } = rest;
        Response::from_parts(parts, Body::h2(H2Source { response: answer, rest, left, ticket, deadline }))
    }

    fn name_of(&self, state: &EndpointState) -> Option<EndpointName> {
        self.name_endpoints.then(|| EndpointName(Arc::clone(&state.endpoint.name)))
    }
}

/// What goes on behind a response's head over HTTP/1.1.
struct H1Rest<B> {
    rest: Option<Box<(Pump, Upload<B>)>>,
    ticket: Ticket,
    deadline: Option<Instant>,
}

/// The same over HTTP/2.
struct H2Rest<B> {
    rest: Option<Upload<B>>,
    ticket: Ticket,
    deadline: Option<Instant>,
}

/// The body of a request that has none.
struct NoBody;

impl http_body::Body for NoBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        Poll::Ready(None)
    }
}

fn no_upload() -> Upload<NoBody> {
    Upload::new(NoBody, RequestFraming::None, 0)
}

/// RFC 9110 section 9.2.1.
fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

impl<C, B> Service<Request<B>> for Client<C>
where
    C: Service<Destination> + Clone + Send + Sync + 'static,
    C::Response: Transport,
    C::Error: Into<ConnectError> + Send,
    C::Future: Send,
    B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body<B, C::Response>>;
    type Error = Error;
    type Future = ClientFuture<B, C::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let client = self.clone();
        Box::pin(async move { client.send(request).await })
    }
}

impl<C: Service<Destination> + Clone> Clone for Client<C> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            pool: Arc::clone(&self.pool),
            connector: self.connector.clone(),
            name_endpoints: self.name_endpoints,
        }
    }
}

impl<C: Service<Destination>> fmt::Debug for Client<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("cluster", &self.shared.name).finish_non_exhaustive()
    }
}
