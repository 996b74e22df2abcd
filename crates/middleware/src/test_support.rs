//! What the unit tests of several layers need.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

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
