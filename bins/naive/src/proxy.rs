//! Connections, requests, and the bodies of both ways.

use std::{
    error::Error,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use h3::{
    error::StreamError,
    server::{RequestResolver, RequestStream},
};
use http::{HeaderMap, HeaderValue, Request, Response, Uri, header};
use http_body::Frame;
use http_body_util::BodyExt as _;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

type BoxError = Box<dyn Error + Send + Sync>;

/// RFC 9110 section 7.6.1, as far as most go.
const HOP_BY_HOP: [header::HeaderName; 6] = [
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRANSFER_ENCODING,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
];
const X_FORWARDED_FOR: header::HeaderName = header::HeaderName::from_static("x-forwarded-for");

/// The origins in turn, and the client with its pool.
pub(crate) struct Proxy {
    client: Client<HttpConnector, Upload>,
    origins: Vec<String>,
    turn: AtomicUsize,
}

impl Proxy {
    pub(crate) fn new(origins: Vec<String>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Self { client, origins, turn: AtomicUsize::new(0) }
    }

    /// Serves one connection to its end; errors are the client's to notice.
    pub(crate) async fn connection(self: Arc<Self>, incoming: quinn::Incoming) {
        let Ok(connection) = incoming.await else { return };
        let peer = connection.remote_address();
        let connection = h3_quinn::Connection::new(connection);
        let Ok(mut connection) = h3::server::Connection::<_, Bytes>::new(connection).await else { return };
        while let Ok(Some(resolver)) = connection.accept().await {
            let proxy = Arc::clone(&self);
            tokio::spawn(async move {
                if let Err(error) = proxy.request(resolver, peer).await {
                    eprintln!("portcullis-naive: {error}");
                }
            });
        }
    }

    async fn request(
        &self,
        resolver: RequestResolver<h3_quinn::Connection, Bytes>,
        peer: SocketAddr,
    ) -> Result<(), BoxError> {
        let (request, stream) = resolver.resolve_request().await?;
        let (mut send, receive) = stream.split();
        let request = self.outgoing(request, peer)?.map(|()| Upload { stream: receive, in_trailers: false });
        let response = match self.client.request(request).await {
            Ok(response) => response,
            Err(error) => {
                send.send_response(Response::builder().status(502).body(())?).await?;
                send.finish().await?;
                return Err(error.into());
            }
        };
        let (mut parts, body) = response.into_parts();
        strip(&mut parts.headers);
        send.send_response(Response::from_parts(parts, ())).await?;
        let mut body = pin!(body);
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) => send.send_data(data).await?,
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        send.send_trailers(trailers).await?;
                    }
                }
            }
        }
        send.finish().await?;
        Ok(())
    }

    fn outgoing(&self, request: Request<()>, peer: SocketAddr) -> Result<Request<()>, BoxError> {
        let (mut parts, ()) = request.into_parts();
        strip(&mut parts.headers);
        if let Some(authority) = parts.uri.authority() {
            parts.headers.insert(header::HOST, HeaderValue::from_str(authority.as_str())?);
        }
        let peer = peer.ip().to_canonical();
        let list = match parts.headers.get(X_FORWARDED_FOR) {
            Some(before) => format!("{}, {peer}", before.to_str()?),
            None => peer.to_string(),
        };
        parts.headers.insert(X_FORWARDED_FOR, HeaderValue::from_str(&list)?);
        let origin = &self.origins[self.turn.fetch_add(1, Ordering::Relaxed) % self.origins.len()];
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        parts.uri = Uri::builder().scheme("http").authority(origin.as_str()).path_and_query(path).build()?;
        parts.version = http::Version::HTTP_11;
        Ok(Request::from_parts(parts, ()))
    }
}

fn strip(headers: &mut HeaderMap) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// A request's body as it comes in.
pub(crate) struct Upload {
    stream: RequestStream<h3_quinn::RecvStream, Bytes>,
    in_trailers: bool,
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let this = self.get_mut();
        if !this.in_trailers {
            match ready!(this.stream.poll_recv_data(cx))? {
                Some(mut data) => {
                    let data = data.copy_to_bytes(data.remaining());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                None => this.in_trailers = true,
            }
        }
        let trailers = ready!(this.stream.poll_recv_trailers(cx))?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }
}
