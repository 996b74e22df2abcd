//! What the unit tests of several layers need.

use std::{
    convert::Infallible,
    marker::PhantomData,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use portcullis_conn::{ConnInfo, TlsInfo, Transport};
use tower::{Layer, Service, ServiceExt};

pub(crate) type Body = Full<Bytes>;

pub(crate) fn conn(peer: &str) -> ConnInfo {
    let peer: SocketAddr = peer.parse().unwrap();
    ConnInfo::new(Transport::Tcp, peer, "192.0.2.1:443".parse().unwrap())
}

pub(crate) fn plain() -> Arc<ConnInfo> {
    Arc::new(conn("198.51.100.7:4000"))
}

pub(crate) fn secure() -> Arc<ConnInfo> {
    Arc::new(conn("198.51.100.7:4000").with_tls(TlsInfo::default()))
}

pub(crate) fn get(target: &str) -> Request<()> {
    Request::get(target).body(()).unwrap()
}

pub(crate) fn with_conn(mut request: Request<()>, info: Arc<ConnInfo>) -> Request<()> {
    request.extensions_mut().insert(info);
    request
}

/// Sends one request through a layer over a service that answers with `answer`.
pub(crate) async fn through<L, F, B>(layer: &L, answer: F, request: Request<()>) -> Response<B>
where
    F: Fn(Request<()>) -> Response<Body> + Clone,
    L: Layer<FnService<F>>,
    L::Service: Service<Request<()>, Response = Response<B>, Error = Infallible>,
{
    layer.layer(FnService(answer)).oneshot(request).await.unwrap()
}

/// A service out of a plain function.
#[derive(Clone)]
pub(crate) struct FnService<F>(pub(crate) F);

impl<F> Service<Request<()>> for FnService<F>
where
    F: Fn(Request<()>) -> Response<Body>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        std::future::ready(Ok((self.0)(request)))
    }
}

/// A service that has to be asked whether it is ready before each call, and each of its clones by itself.
pub(crate) struct NotReady<B> {
    calls: Arc<AtomicUsize>,
    is_ready: bool,
    body: PhantomData<fn() -> B>,
}

impl<B> NotReady<B> {
    /// With the count of its calls.
    pub(crate) fn new() -> (Self, Arc<AtomicUsize>) {
        let calls = Arc::default();
        (Self { calls: Arc::clone(&calls), is_ready: false, body: PhantomData }, calls)
    }
}

impl<B> Clone for NotReady<B> {
    fn clone(&self) -> Self {
        Self { calls: Arc::clone(&self.calls), is_ready: false, body: PhantomData }
    }
}

impl<B: Default> Service<Request<()>> for NotReady<B> {
    type Response = Response<B>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<B>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready), "called without being ready");
        self.calls.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok(Response::new(B::default())))
    }
}

pub(crate) fn ok(_: Request<()>) -> Response<Body> {
    Response::new(Body::from("inner"))
}

/// A stream out of an iterator.
pub(crate) struct Iter<I>(pub(crate) I);

impl<I: Iterator + Unpin> futures_core::Stream for Iter<I> {
    type Item = I::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<I::Item>> {
        std::task::Poll::Ready(self.0.next())
    }
}
