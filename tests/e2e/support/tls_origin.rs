//! An origin that speaks TLS.

use std::{net::SocketAddr, sync::Arc};

use http::{HeaderName, Response, Version};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use portcullis_testkit::certs::{TestCa, TestCert};
use tokio::{net::TcpListener, task::JoinSet};

use super::client::full;

/// A TLS server that says which version of HTTP it was asked in, and for which host in `x-host`.
pub(crate) struct TlsOrigin {
    pub(crate) addr: SocketAddr,
    _task: JoinSet<()>,
}

impl TlsOrigin {
    /// With `clients` whoever has no certificate of that authority is turned away.
    pub(crate) async fn start(cert: &TestCert, clients: Option<&TestCa>, alpn: &[&str]) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = rustls::RootCertStore::empty();
                roots.add(ca.der()).unwrap();
                let verifier =
                    rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let mut config = builder.with_single_cert(vec![cert.der()], cert.key_der()).unwrap();
        config.alpn_protocols = alpn.iter().map(|alpn| alpn.as_bytes().to_vec()).collect();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut all = JoinSet::new();
            while let Ok((io, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                all.spawn(async move {
                    // those that do not trust it leave
                    let Ok(io) = acceptor.accept(io).await else { return };
                    let answer = |request: http::Request<Incoming>| async move {
                        let version = if request.version() == Version::HTTP_2 { "h2" } else { "h1" };
                        let host = request.headers().get("host").cloned();
                        let mut response = Response::new(full(version));
                        response
                            .headers_mut()
                            .extend(host.map(|host| (HeaderName::from_static("x-host"), host)));
                        Ok::<_, std::convert::Infallible>(response)
                    };
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(io), service_fn(answer)).await;
                });
            }
        });
        Self { addr, _task: task }
    }
}
