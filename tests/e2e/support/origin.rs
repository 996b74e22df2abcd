//! Origins with HTTP, for tests that don't care for the bytes.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use http::{HeaderMap, Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use super::client::{Body, full};

/// An HTTP/1.1 server; it stops, and its connections are cut, when this is dropped.
pub(crate) struct Origin {
    addr: SocketAddr,
    heads: Arc<Mutex<Vec<(String, HeaderMap)>>>,
    requests: watch::Receiver<usize>,
    accept: AbortHandle,
}

impl Origin {
    pub(crate) async fn start<F, Fut>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (count, requests) = watch::channel(0);
        let (answer, count) = (Arc::new(answer), Arc::new(count));
        let seen = Arc::clone(&heads);
        let accept = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let (answer, seen, count) = (Arc::clone(&answer), Arc::clone(&seen), Arc::clone(&count));
                let service = service_fn(move |request: Request<Incoming>| {
                    let line = format!("{} {}", request.method(), request.uri());
                    seen.lock().unwrap().push((line, request.headers().clone()));
                    count.send_modify(|count| *count += 1);
                    let answer = answer(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                connections.spawn(async move {
                    // an edge may cut its connections as it likes
                    let _ = http1::Builder::new()
                        .max_headers(256)
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades()
                        .await;
                });
            }
        })
        .abort_handle();
        Self { addr, heads, requests, accept }
    }

    /// Answers everything with this text.
    pub(crate) async fn text(text: &'static str) -> Self {
        Self::start(move |_| async move { Response::new(full(text)) }).await
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn requests(&self) -> usize {
        *self.requests.borrow()
    }

    pub(crate) async fn wait_for_requests(&self, count: usize) {
        self.requests.clone().wait_for(|seen| *seen >= count).await.unwrap();
    }

    /// The last request's method and target, and its fields.
    pub(crate) fn last(&self) -> (String, HeaderMap) {
        self.heads.lock().unwrap().last().expect("a request came").clone()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.accept.abort();
    }
}
