//! HTTP/3 to the endpoints of a cluster: one QUIC connection to each, made when it is needed and shared by the requests of a worker.

use std::{
    collections::HashMap,
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version, header, request, uri,
};
use http_body::{Body as _, Frame, SizeHint};
use portcullis_conn::{ConnectProtocol, Interim};
use portcullis_h3::{
    Tunnel,
    client::{Client, ClientError, Connection, OnInterim, ResponseBody, ResponseTimeout},
};
use portcullis_proxy::UpstreamTunnel;
use portcullis_tls::client::ServerName;
use portcullis_upstream::{
    Address, BoxError, Cluster, Destination, Endpoint, EndpointName, Error, Picked, Trip, Turn,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::lookup_host,
    sync::Mutex as AsyncMutex,
    time::{Instant, Sleep, sleep, timeout},
};

use crate::{
    Body, PlanFault,
    connect::{name_of, tls_config},
    plan::ClusterPlan,
};

/// RFC 9114 section 8.1: the endpoint did nothing of the request.
const REQUEST_REJECTED: u64 = 0x10b;
/// A time longer than this is this.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// Endpoints that connections are kept for beyond those that the cluster has, before the rest is forgotten.
const SPARE: usize = 16;

/// How the endpoints of one cluster are spoken to by HTTP/3.
#[derive(Clone)]
pub(crate) struct ByHttp3 {
    tls: Arc<rustls::ClientConfig>,
    name: Option<ServerName<'static>>,
}

impl fmt::Debug for ByHttp3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByHttp3").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ByHttp3 {
    /// `None` where the plan asks for no HTTP/3. Reads the files that the cluster's TLS names; blocks.
    pub(crate) fn new(plan: &ClusterPlan) -> Result<Option<Self>, PlanFault> {
        if !plan.http3 {
            return Ok(None);
        }
        let tls =
            plan.tls.as_ref().ok_or_else(|| PlanFault::Http3WithoutTls { cluster: plan.name.clone() })?;
        let (tls, name) = tls_config(plan, tls, &[b"h3"])?;
        Ok(Some(Self { tls, name }))
    }
}

/// The client of one worker.
#[derive(Clone)]
pub(crate) struct H3Cluster(Arc<Inner>);

struct Inner {
    cluster: Cluster,
    by: ByHttp3,
    names: bool,
    v4: OnceLock<Client>,
    v6: OnceLock<Client>,
    /// By the names of endpoints; who connects holds the lock, and the others wait for the same.
    connections: Mutex<HashMap<Arc<str>, Arc<Slot>>>,
}

type Slot = AsyncMutex<Option<Connection>>;

impl fmt::Debug for H3Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H3Cluster").field("cluster", self.0.cluster.name()).finish_non_exhaustive()
    }
}

/// Why an attempt brought no answer.
struct Miss {
    error: Error,
    /// The endpoint did nothing of it.
    untouched: bool,
    /// The connection was there before, and ended before it brought an answer.
    stale: bool,
}

impl H3Cluster {
    pub(crate) fn new(cluster: Cluster, by: ByHttp3, names: bool) -> Self {
        let (v4, v6, connections) = Default::default();
        Self(Arc::new(Inner { cluster, by, names, v4, v6, connections }))
    }

    /// Sends a request that has an origin-form target and a `Host`, and waits for the response's head.
    pub(crate) async fn send(&self, request: Request<Body>) -> Result<Response<Body>, Error> {
        let (parts, body) = request.into_parts();
        let waiting = trip_of(&parts).map(Trip::waiting);
        let mut turn = self.0.cluster.turn(&parts).await?;
        drop(waiting);
        let total = self.0.cluster.options().total_timeout;
        let tries = self.tries(&parts, body, &mut turn);
        let result = match total {
            None => tries.await,
            Some(total) => timeout(total, tries).await.unwrap_or(Err(Error::TotalTimeout)),
        };
        match result {
            Ok((picked, mut response)) => {
                if self.0.names {
                    let name = EndpointName(Arc::clone(picked.name()));
                    response.extensions_mut().insert(name);
                }
                Ok(self.finish(response, Keep { _turn: turn, picked }))
            }
            Err(error) => {
                turn.failed(&error);
                Err(error)
            }
        }
    }

    async fn tries(
        &self,
        parts: &request::Parts,
        body: Body,
        turn: &mut Turn,
    ) -> Result<(Picked, Response<Answer>), Error> {
        // what has a body is sent once: the connection takes it as it comes, and nothing of it is kept
        let again = body.is_end_stream();
        // RFC 9110 section 9.2.2
        let idempotent = parts.method.is_idempotent();
        let mut body = Some(body);
        let retry = &self.0.cluster.options().retry;
        loop {
            let picked = turn.pick()?;
            let mut answer = self.attempt(parts, &mut body, &picked).await;
            if again && idempotent && matches!(&answer, Err(miss) if miss.stale) {
                // it says nothing of the endpoint: once more to the same
                answer = self.attempt(parts, &mut body, &picked).await;
            }
            match answer {
                Ok(response) => {
                    picked.answered(response.status());
                    let retried = again && idempotent && retry.is_retried(response.status());
                    if !retried || !turn.may_retry() {
                        return Ok((picked, response));
                    }
                }
                Err(Miss { error, untouched, .. }) => {
                    if !error.is_request() {
                        picked.failed();
                    }
                    let timed_out = matches!(error, Error::ResponseTimeout { .. }) && !retry.on_timeout;
                    let may = match again {
                        true => untouched || (idempotent && !timed_out && !error.is_request()),
                        // there was no connection to send any of it on
                        false => untouched && body.is_some(),
                    };
                    if !may || !turn.may_retry() {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// One attempt. The body is taken when there is a connection to send it on; an empty one stays.
    async fn attempt(
        &self,
        parts: &request::Parts,
        body: &mut Option<Body>,
        picked: &Picked,
    ) -> Result<Response<Answer>, Miss> {
        let endpoint = picked.endpoint();
        let trip = trip_of(parts);
        if let Some(trip) = trip {
            trip.begin(picked.name());
        }
        let connected = self.connection(endpoint, trip).await;
        let (connection, reused) =
            connected.map_err(|error| Miss { error, untouched: true, stale: false })?;
        let request = request_of(parts, endpoint).map_err(|reason| Miss {
            error: Error::InvalidRequest { reason },
            untouched: true,
            stale: false,
        })?;
        let limit = self.0.cluster.options().response_timeout.min(FOREVER);
        let sent = async {
            if let Some(protocol) = parts.headers.get(header::UPGRADE) {
                let opened = timeout(limit, tunnel(&connection, request, protocol)).await;
                return opened.unwrap_or(Err(ClientError::Timeout));
            }
            let mut request = request;
            request.extensions_mut().insert(ResponseTimeout(limit));
            if let Some(interim) = parts.extensions.get::<Interim>() {
                request.extensions_mut().insert(pass_on(interim.clone()));
            }
            let sending = match body.take() {
                Some(taken) if taken.is_end_stream() => {
                    *body = Some(Body::empty());
                    taken
                }
                taken => taken.unwrap_or_else(Body::empty),
            };
            Ok(connection.send(request.map(|()| sending)).await?.map(Answer::Body))
        };
        let name = || Arc::<str>::from(endpoint.name());
        let sends = trip.map(|_| Instant::now());
        match sent.await {
            Ok(response) => {
                if let (Some(trip), Some(sends)) = (trip, sends) {
                    trip.answered(sends);
                }
                Ok(response)
            }
            Err(ClientError::Timeout) => {
                let error = Error::ResponseTimeout { endpoint: name() };
                Err(Miss { error, untouched: false, stale: false })
            }
            Err(ClientError::RequestBody(source)) => {
                Err(Miss { error: Error::RequestBody { source }, untouched: false, stale: false })
            }
            Err(error) => {
                let untouched =
                    matches!(error, ClientError::GoingAway | ClientError::Reset { code: REQUEST_REJECTED });
                let stale = reused && matches!(error, ClientError::Connection(_) | ClientError::GoingAway);
                let source = io::Error::new(io::ErrorKind::ConnectionAborted, error);
                Err(Miss {
                    error: Error::Closed { endpoint: name(), source: Some(source) },
                    untouched,
                    stale,
                })
            }
        }
    }

    fn finish(&self, response: Response<Answer>, keep: Keep) -> Response<Body> {
        let (mut parts, answer) = response.into_parts();
        let body = match answer {
            Answer::Body(body) => {
                let read_timeout = self.0.cluster.options().read_timeout;
                Body::new(H3Body { body, keep, read_timeout, timer: None })
            }
            Answer::Tunnel(io) => {
                parts.extensions.insert(UpstreamTunnel::new(Held { io, _keep: keep }));
                Body::empty()
            }
        };
        Response::from_parts(parts, body)
    }

    /// The connection to an endpoint, and whether it was there. Who waits for another's attempt waits no longer than for his own.
    async fn connection(
        &self,
        endpoint: &Endpoint,
        trip: Option<&Trip>,
    ) -> Result<(Connection, bool), Error> {
        let options = self.0.cluster.options();
        let limit = options.connect_timeout.saturating_add(options.tls_timeout);
        let connected = timeout(limit, async {
            let slot = self.slot(endpoint.name());
            let waiting = trip.map(Trip::waiting);
            let mut slot = slot.lock().await;
            drop(waiting);
            if let Some(connection) = slot.as_ref().filter(|connection| connection.is_ready()) {
                return Ok((connection.clone(), true));
            }
            // what is under way on it keeps it until it is over
            *slot = None;
            let connecting = trip.map(Trip::connecting);
            let connection = self.connect(endpoint).await?;
            drop(connecting);
            *slot = Some(connection.clone());
            Ok((connection, false))
        });
        let name = || Arc::<str>::from(endpoint.name());
        connected.await.map_err(|_| Error::ConnectTimeout { endpoint: name() })?
    }

    fn slot(&self, name: &str) -> Arc<Slot> {
        let mut connections = self.0.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = connections.get(name) {
            return Arc::clone(slot);
        }
        let endpoints = self.0.cluster.endpoints();
        if connections.len() > endpoints.len() + SPARE {
            connections
                .retain(|known, _| endpoints.iter().any(|endpoint| endpoint.endpoint().name() == &**known));
        }
        Arc::clone(connections.entry(name.into()).or_default())
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Connection, Error> {
        let name = || Arc::<str>::from(endpoint.name());
        let addresses: Vec<SocketAddr> = match endpoint.address() {
            Address::Socket(address) => vec![*address],
            Address::Name { host, port } => lookup_host((&**host, *port))
                .await
                .map_err(|source| Error::Resolve { endpoint: name(), source })?
                .collect(),
            _ => Vec::new(),
        };
        let server_name = match &self.0.by.name {
            Some(known) => known.clone(),
            None => name_of(&Destination::from(endpoint))
                .map_err(|error| Error::Tls { endpoint: name(), source: error.into() })?,
        };
        let server_name = server_name.to_str().into_owned();
        let mut last = Error::Resolve { endpoint: name(), source: io::ErrorKind::NotFound.into() };
        for address in addresses {
            let client =
                self.client(address).map_err(|source| Error::Connect { endpoint: name(), source })?;
            match client.connect(address, &server_name, Arc::clone(&self.0.by.tls)).await {
                Ok(connection) => return Ok(connection),
                Err(ClientError::Tls(source)) => last = Error::Tls { endpoint: name(), source },
                Err(error) => {
                    let source = io::Error::new(io::ErrorKind::ConnectionRefused, error);
                    last = Error::Connect { endpoint: name(), source };
                }
            }
        }
        Err(last)
    }

    fn client(&self, to: SocketAddr) -> io::Result<&Client> {
        let (client, bind) = match to {
            SocketAddr::V4(_) => (&self.0.v4, (Ipv4Addr::UNSPECIFIED, 0).into()),
            SocketAddr::V6(_) => (&self.0.v6, (Ipv6Addr::UNSPECIFIED, 0).into()),
        };
        if let Some(client) = client.get() {
            return Ok(client);
        }
        let made = Client::new(bind).map_err(io::Error::other)?;
        Ok(client.get_or_init(|| made))
    }
}

/// Who wants to know how it goes.
fn trip_of(parts: &request::Parts) -> Option<&Trip> {
    parts.extensions.get::<Arc<Trip>>().map(|trip| &**trip)
}

/// The head as HTTP/3 has it: with scheme and authority, without what is of HTTP/1.1.
fn request_of(parts: &request::Parts, endpoint: &Endpoint) -> Result<Request<()>, &'static str> {
    const HOST: &str = "the host is no authority that HTTP/3 can name";
    let authority = match parts.headers.get(header::HOST) {
        Some(host) => uri::Authority::try_from(host.as_bytes()).map_err(|_| HOST)?,
        None => uri::Authority::try_from(endpoint.name()).map_err(|_| HOST)?,
    };
    let mut target = uri::Parts::default();
    target.scheme = Some(uri::Scheme::HTTPS);
    target.authority = Some(authority);
    target.path_and_query =
        Some(parts.uri.path_and_query().cloned().unwrap_or_else(|| uri::PathAndQuery::from_static("/")));
    let mut request = Request::new(());
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = Uri::from_parts(target).map_err(|_| HOST)?;
    *request.headers_mut() = parts.headers.clone();
    // the body is sent at once, and the client is asked for it by that
    request.headers_mut().remove(header::EXPECT);
    Ok(request)
}

/// An upgrade is an extended CONNECT (RFC 9220); a 2xx to it is what a 101 is in HTTP/1.1.
async fn tunnel(
    connection: &Connection,
    mut request: Request<()>,
    protocol: &HeaderValue,
) -> Result<Response<Answer>, ClientError> {
    let name = protocol.to_str().map_err(|error| ClientError::Protocol(error.into()))?;
    request.extensions_mut().insert(ConnectProtocol::new(&name.to_ascii_lowercase()));
    request.headers_mut().remove("sec-websocket-key");
    let (response, tunnel) = connection.open_tunnel(request).await?;
    let (mut parts, body) = response.into_parts();
    Ok(match tunnel {
        None => Response::from_parts(parts, Answer::Body(body)),
        Some(tunnel) => {
            parts.status = StatusCode::SWITCHING_PROTOCOLS;
            parts.version = Version::HTTP_3;
            parts.headers.insert(header::UPGRADE, protocol.clone());
            Response::from_parts(parts, Answer::Tunnel(tunnel))
        }
    })
}

enum Answer {
    Body(ResponseBody),
    Tunnel(Tunnel),
}

/// What counts as long as a response goes on.
struct Keep {
    _turn: Turn,
    picked: Picked,
}

/// A response's body, which may not pause for too long.
struct H3Body {
    body: ResponseBody,
    keep: Keep,
    read_timeout: Duration,
    /// Runs while the endpoint is waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl http_body::Body for H3Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.timer = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let limit = this.read_timeout.min(FOREVER);
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(timer.as_mut().poll(cx));
        timer.as_mut().reset(Instant::now() + limit);
        let endpoint = Arc::clone(this.keep.picked.name());
        Poll::Ready(Some(Err(Error::ReadTimeout { endpoint }.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A tunnel to an endpoint.
struct Held {
    io: Tunnel,
    _keep: Keep,
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Held {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// RFC 9110 sections 7.6.1 and 8.6; fields of a connection are no part of HTTP/3.
fn crosses(name: &HeaderName) -> bool {
    ![header::CONTENT_LENGTH, header::TE, header::TRAILER, header::PROXY_AUTHENTICATE].contains(name)
}

/// Passes interim responses on (RFC 9110 section 15.2). HTTP/3 has no fields of a connection; a `100 Continue` is for who sent the request, which is the edge.
fn pass_on(to: Interim) -> OnInterim {
    OnInterim::new(move |status: StatusCode, headers: &HeaderMap| {
        if status != StatusCode::CONTINUE {
            let fields = headers.iter().filter(|(name, _)| crosses(name));
            to.send(status.as_u16(), fields.map(|(name, value)| (name.as_str(), value.as_bytes())));
        }
    })
}
