//! A server on loopback, and ways to talk to it.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use portcullis_h3::{BoxError, ConnLimits, Endpoint, QuicOptions, RecvBody, WorkerId, client::Connection};
use portcullis_testkit::{body::ScriptBody, certs::TestCa};
use tokio::{sync::oneshot, task::JoinHandle};
use tower::util::BoxCloneService;

pub type Service = BoxCloneService<Request<RecvBody>, Response<ScriptBody>, BoxError>;

pub struct Server {
    pub addr: SocketAddr,
    pub limits: ConnLimits,
    pub ca: TestCa,
    stop: Option<oneshot::Sender<()>>,
    done: JoinHandle<()>,
}

pub fn server_tls(ca: &TestCa) -> rustls::ServerConfig {
    let leaf = ca.issue(&["localhost"]);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der()], leaf.key_der())
        .unwrap();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    tls
}

pub async fn udp() -> std::net::UdpSocket {
    tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap().into_std().unwrap()
}

pub const GRACE: Duration = Duration::from_secs(5);

impl Server {
    pub async fn start<S, B>(options: QuicOptions, service: S) -> Self
    where
        S: tower::Service<Request<RecvBody>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self::start_with(options, service, ConnLimits::new(100), GRACE).await
    }

    pub async fn start_with<S, B>(
        options: QuicOptions,
        service: S,
        limits: ConnLimits,
        grace: Duration,
    ) -> Self
    where
        S: tower::Service<Request<RecvBody>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let ca = TestCa::new();
        let tls = Arc::new(server_tls(&ca));
        let endpoint = Endpoint::new(udp().await, tls, &options, WorkerId::new(7), limits.clone()).unwrap();
        let addr = endpoint.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let done = tokio::spawn(endpoint.serve(
            service,
            async move {
                let _ = stopped.await;
            },
            grace,
        ));
        Self { addr, limits, ca, stop: Some(stop), done }
    }

    pub fn client_tls(&self) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    pub async fn connect(&self) -> Connection {
        self.try_connect().await.unwrap()
    }

    pub async fn try_connect(&self) -> Result<Connection, portcullis_h3::client::ClientError> {
        Connection::connect(self.addr, "localhost", Arc::new(self.client_tls())).await
    }

    /// A QUIC connection without HTTP/3, for what no client would send.
    pub async fn raw(&self) -> quinn::Connection {
        let mut tls = self.client_tls();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint.connect_with(config, self.addr, "localhost").unwrap().await.unwrap()
    }

    /// A connection, if there is one within a moment.
    pub async fn try_connect_briefly(&self) -> Option<Connection> {
        tokio::time::timeout(Duration::from_millis(300), self.try_connect()).await.ok()?.ok()
    }

    /// Drops the serve future.
    pub fn abort(&self) {
        self.done.abort();
    }

    /// Tells the server to drain; the handle completes when it is done.
    pub fn stop(&mut self) -> &mut JoinHandle<()> {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        &mut self.done
    }
}

pub fn get(path: &str) -> Request<http_body_util::Empty<Bytes>> {
    request("GET", path, http_body_util::Empty::new())
}

pub fn request<B>(method: &str, path: &str, body: B) -> Request<B> {
    Request::builder().method(method).uri(format!("https://localhost{path}")).body(body).unwrap()
}

pub fn service<F, Fut>(f: F) -> Service
where
    F: Fn(Request<RecvBody>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Response<ScriptBody>> + Send + 'static,
{
    let service = tower::service_fn(move |request| {
        let answer = f(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    BoxCloneService::new(tower::ServiceExt::map_err(service, |never| match never {}))
}

/// Frames as a raw client writes them; the length in its two-byte form.
pub fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&(payload.len() as u16 | 0x4000).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The head of `GET https://localhost/` or, with a length, of a POST: QPACK with the static table.
pub fn raw_head(content_length: Option<&str>) -> Vec<u8> {
    let method = if content_length.is_some() { 20 } else { 17 };
    let mut block = vec![0, 0, 0xc0 | method, 0xc0 | 23, 0xc0 | 1, 0x50, 9];
    block.extend_from_slice(b"localhost");
    if let Some(length) = content_length {
        block.extend_from_slice(&[0x54, length.len() as u8]);
        block.extend_from_slice(length.as_bytes());
    }
    frame(0x01, &block)
}

/// What a client's control stream begins with: its type and empty settings.
pub const CONTROL: &[u8] = &[0x00, 0x04, 0x00];

pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("this takes no 20 s")
}

/// Polls a condition that other tasks bring about.
pub async fn until(condition: impl Fn() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}
