//! A success to a CONNECT opens a tunnel (RFC 9110 section 9.3.6), so only what knows of one may answer so.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Method, Request, Response, StatusCode};
use portcullis_proxy::TunnelBegun;
use tower_layer::Layer;
use tower_service::Service;

use crate::{Body, service::respond};

/// Answers 501 in the place of a success to a CONNECT, extended or not, behind which no tunnel begins: a layer or a route that
/// answers every request alike does not see that here its answer would be the begin of a byte stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoTunnelLayer;

impl<S> Layer<S> for NoTunnelLayer {
    type Service = NoTunnel<S>;

    fn layer(&self, inner: S) -> NoTunnel<S> {
        NoTunnel { inner }
    }
}

/// The service of [`NoTunnelLayer`].
#[derive(Clone, Debug)]
pub(crate) struct NoTunnel<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for NoTunnel<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = NoTunnelFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let connects = request.method() == Method::CONNECT;
        NoTunnelFuture { future: self.inner.call(request), connects }
    }
}

pin_project_lite::pin_project! {
    /// The future of [`NoTunnel`].
    pub(crate) struct NoTunnelFuture<F> {
        #[pin]
        future: F,
        connects: bool,
    }
}

impl<F: Future<Output = Result<Response<Body>, Infallible>>> Future for NoTunnelFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(response) = ready!(this.future.poll(cx));
        let is_safe = !*this.connects
            || !response.status().is_success()
            || response.extensions().get::<TunnelBegun>().is_some();
        Poll::Ready(Ok(if is_safe { response } else { respond(StatusCode::NOT_IMPLEMENTED) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::ServiceExt as _;

    #[tokio::test]
    async fn rfc9110_9_3_6_a_success_to_a_connect_is_not_passed_on() {
        for (method, status, expected) in [
            (Method::CONNECT, 200, 501),
            (Method::CONNECT, 204, 501),
            (Method::CONNECT, 308, 308),
            (Method::CONNECT, 404, 404),
            (Method::GET, 200, 200),
        ] {
            let service = NoTunnelLayer.layer(tower::service_fn(move |_: Request<Body>| async move {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                Ok(response)
            }));
            let request = Request::builder().method(method.clone()).uri("/").body(Body::empty()).unwrap();
            assert_eq!(service.oneshot(request).await.unwrap().status(), expected, "{method} {status}");
        }
    }
}
