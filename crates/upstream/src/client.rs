//! Sends requests to a cluster.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header, request};
use tokio::io::{AsyncRead, AsyncWrite};
use tower_service::Service;
use tracing::{debug, warn};

use crate::{
    Address, Body, BoxError, Cluster, Error, ProtocolError, TcpConnector, Upgraded, UpgradedSlot,
    body::Source,
    cluster::{EndpointState, Shared, bit},
    h1::{ExchangeError, H1Conn, Pump, RequestFraming, ResponseHead, encode_head, framing_of},
    pool::Pool,
};

/// Sends requests to a [`Cluster`] over a pool of connections. Cheap to clone; clones share the pool.
pub struct Client<C: Service<Address> = TcpConnector> {
    shared: Arc<Shared>,
    pool: Arc<Pool<C::Response>>,
    connector: C,
    name_endpoints: bool,
}

/// The endpoint that answered, among a response's extensions; see [`Client::with_endpoint_names`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointName(pub Arc<str>);

/// The future of [`Client`] as a service.
pub type ClientFuture<B, Io> = Pin<Box<dyn Future<Output = Result<Response<Body<B, Io>>, Error>> + Send>>;

/// What one attempt came to.
enum Attempt {
    /// It is worth another, on a connection of its own to an endpoint that was not tried yet, or to the same one.
    Again { error: Error, tried: bool },
    /// It is not.
    Failed(Error),
}

impl<C: Service<Address>> Client<C> {
    pub(crate) fn new(cluster: Cluster, connector: C) -> Self {
        let shared = cluster.shared;
        let options = &shared.options;
        let pool = Pool::new(shared.endpoints.len(), options);
        Self { pool: Arc::new(pool), connector, name_endpoints: false, shared }
    }

    /// Whether responses carry the [`EndpointName`] that answered. Default `false`: it costs an allocation.
    #[must_use]
    pub fn with_endpoint_names(mut self, yes: bool) -> Self {
        self.name_endpoints = yes;
        self
    }

    /// Connections that lie in the pool.
    pub fn idle_connections(&self) -> usize {
        self.pool.len()
    }
}

impl<C> Client<C>
where
    C: Service<Address, Error = io::Error> + Clone,
    C::Response: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Closes pooled connections as they grow too old or are closed by their endpoints. Never ends: spawn it on the
    /// client's runtime, or leave it out and let the pool be looked at only when it is used.
    pub async fn maintain(&self) {
        let every =
            (self.shared.options.idle_timeout / 4).clamp(Duration::from_secs(1), Duration::from_secs(15));
        loop {
            tokio::time::sleep(every).await;
            self.pool.sweep();
        }
    }

    /// Closes the idle connections of this client's pool: when descriptors are short, what is idle is the first to go. Requests under way are not
    /// touched.
    pub fn close_idle(&self) {
        self.pool.clear();
    }

    /// Sends a request and waits for the response's head. Dropping the future closes the connection in use.
    pub async fn send<B>(&self, request: Request<B>) -> Result<Response<Body<B, C::Response>>, Error>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        self.shared.count_request();
        let result = self.attempts(request).await;
        if result.is_err() {
            self.shared.count_error();
        }
        result
    }

    async fn attempts<B>(&self, request: Request<B>) -> Result<Response<Body<B, C::Response>>, Error>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        let framing = framing_of(&parts.headers, &body)?;
        let mut pump = Pump::new(body, framing);
        let mut tried = 0;
        let mut fresh = false;
        let mut index = self.shared.pick(0);
        let mut left = self.shared.options.max_attempts.max(1);
        loop {
            left -= 1;
            let (error, same) = match self.attempt(index, fresh, &parts, framing, &mut pump).await {
                Ok((conn, head, sent)) => {
                    return self.respond(index, conn, head, &parts, (!sent).then_some(pump));
                }
                Err(Attempt::Failed(error)) => return Err(error),
                Err(Attempt::Again { error, tried }) => (error, !tried),
            };
            // a stale connection says nothing of its endpoint: a new one to the same is no attempt at another
            if same && !fresh {
                left += 1;
                fresh = true;
                self.shared.count_retry();
                continue;
            }
            tried |= bit(index);
            let all_tried = tried.count_ones() as usize >= self.shared.endpoints.len().min(64);
            if left == 0 || all_tried {
                return Err(error);
            }
            debug!(%error, "trying another endpoint");
            self.shared.count_retry();
            index = self.shared.pick(tried);
        }
    }

    async fn attempt<B>(
        &self,
        index: usize,
        fresh: bool,
        parts: &request::Parts,
        framing: RequestFraming,
        pump: &mut Pump<B>,
    ) -> Result<(Box<H1Conn<C::Response>>, ResponseHead, bool), Attempt>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        let state = &self.shared.endpoints[index];
        let pooled = if fresh { None } else { self.pool.take(index) };
        let mut conn = match pooled {
            Some(conn) => conn,
            None => self.connect(state).await.map_err(|error| Attempt::Again { error, tried: true })?,
        };
        conn.set_busy(true);
        encode_head(&mut conn.write, parts, framing, &state.endpoint.name).map_err(Attempt::Failed)?;
        match conn.exchange(pump, &parts.method, &self.shared.options).await {
            Ok((head, sent)) => {
                state.succeeded();
                Ok((conn, head, sent))
            }
            Err(error) => {
                let unanswered = matches!(error, ExchangeError::Closed { answered: false, .. });
                let stale = conn.reused && unanswered;
                let again = unanswered && is_idempotent(&parts.method) && !pump.started();
                let theirs = !matches!(error, ExchangeError::RequestBody(_) | ExchangeError::RequestTimeout);
                if theirs && !stale {
                    self.failed(state);
                }
                let error = to_error(error, &state.endpoint.name);
                Err(if again { Attempt::Again { error, tried: !stale } } else { Attempt::Failed(error) })
            }
        }
    }

    async fn connect(&self, state: &Arc<EndpointState>) -> Result<Box<H1Conn<C::Response>>, Error> {
        let endpoint = || Arc::clone(&state.endpoint.name);
        if !state.take_place(self.shared.options.max_connections) {
            return Err(Error::Overloaded { endpoint: endpoint() });
        }
        // from here on the place comes back with the guard, or with the connection that it becomes part of
        let place = Place(state);
        let mut connector = self.connector.clone();
        let address = state.endpoint.address.clone();
        let connect = async {
            std::future::poll_fn(|cx| connector.poll_ready(cx)).await?;
            connector.call(address).await
        };
        match tokio::time::timeout(self.shared.options.connect_timeout, connect).await {
            Ok(Ok(io)) => {
                place.keep();
                Ok(Box::new(H1Conn::new(io, Arc::clone(state))))
            }
            Ok(Err(source)) => {
                self.failed(state);
                Err(Error::Connect { endpoint: endpoint(), source })
            }
            Err(_) => {
                self.failed(state);
                Err(Error::ConnectTimeout { endpoint: endpoint() })
            }
        }
    }

    fn failed(&self, state: &EndpointState) {
        let options = &self.shared.options;
        if state.failed(options.max_fails, options.fail_timeout) {
            warn!(
                cluster = %self.shared.name,
                endpoint = %state.endpoint,
                pause = ?options.fail_timeout,
                "endpoint failed and is left alone for a while"
            );
        }
    }

    fn respond<B>(
        &self,
        index: usize,
        conn: Box<H1Conn<C::Response>>,
        head: ResponseHead,
        request: &request::Parts,
        unsent: Option<Pump<B>>,
    ) -> Result<Response<Body<B, C::Response>>, Error>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        let ResponseHead { parts, decoder, keep_alive } = head;
        let name = self.name_endpoints.then(|| EndpointName(Arc::clone(&conn.endpoint.endpoint.name)));
        let switching = parts.status == StatusCode::SWITCHING_PROTOCOLS;
        // RFC 9110 section 15.2.2: the server switches to what the client asked for, and not unasked
        // nor before it has the whole request, or what is left of that would be taken for the new protocol
        if switching && (unsent.is_some() || !request.headers.contains_key(header::UPGRADE)) {
            let endpoint = Arc::clone(&conn.endpoint.endpoint.name);
            return Err(Error::Protocol { endpoint, source: ProtocolError::UnexpectedUpgrade });
        }
        let mut response = if switching {
            let mut response = Response::from_parts(parts, Body::empty());
            response.extensions_mut().insert(UpgradedSlot::new(Upgraded::new(conn)));
            response
        } else {
            let source = Source {
                conn,
                pool: Arc::clone(&self.pool),
                shared: Arc::clone(&self.shared),
                index,
                pump: unsent.map(Box::new),
                keep_alive,
            };
            Response::from_parts(parts, Body::new(source, decoder))
        };
        if let Some(name) = name {
            response.extensions_mut().insert(name);
        }
        Ok(response)
    }
}

/// A place at an endpoint that is given back unless it is kept.
struct Place<'a>(&'a EndpointState);

impl Place<'_> {
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.release_place();
    }
}

/// RFC 9110 section 9.2.2.
fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

fn to_error(error: ExchangeError, endpoint: &Arc<str>) -> Error {
    let endpoint = Arc::clone(endpoint);
    match error {
        ExchangeError::RequestBody(source) => Error::RequestBody { source },
        ExchangeError::RequestTimeout => Error::RequestTimeout,
        ExchangeError::WriteTimeout => Error::WriteTimeout { endpoint },
        ExchangeError::ResponseTimeout => Error::ResponseTimeout { endpoint },
        ExchangeError::Closed { source, .. } => Error::Closed { endpoint, source },
        ExchangeError::Protocol(source) => Error::Protocol { endpoint, source },
    }
}

impl<C, B> Service<Request<B>> for Client<C>
where
    C: Service<Address, Error = io::Error> + Clone + Send + Sync + 'static,
    C::Response: AsyncRead + AsyncWrite + Unpin + Send + 'static,
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

impl<C: Service<Address> + Clone> Clone for Client<C> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            pool: Arc::clone(&self.pool),
            connector: self.connector.clone(),
            name_endpoints: self.name_endpoints,
        }
    }
}

impl<C: Service<Address>> fmt::Debug for Client<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("cluster", &self.shared.name).finish_non_exhaustive()
    }
}
