//! A success to a CONNECT opens a tunnel (RFC 9110 section 9.3.6), so only what knows of one may answer so.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use portcullis_proxy::TunnelBegun;
use tower_layer::Layer;
use tower_service::Service;

use crate::{Body, service::respond};

/// Answers 501 in the place of a success to a CONNECT, extended or not, behind which no tunnel begins: a layer or a route that
/// answers every request alike does not see that here its answer would be the begin of a byte stream.
///
/// Where a CONNECT on HTTP/1 is answered without a tunnel, by whomever, its connection ends with the answer: what the client has sent behind it
/// in good faith was for the tunnel, and must not be read as a request.
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
        let http1 = request.version() <= Version::HTTP_11;
        NoTunnelFuture { future: self.inner.call(request), connects, http1 }
    }
}

pin_project_lite::pin_project! {
    /// The future of [`NoTunnel`].
    pub(crate) struct NoTunnelFuture<F> {
        #[pin]
        future: F,
        connects: bool,
        http1: bool,
    }
}

impl<F: Future<Output = Result<Response<Body>, Infallible>>> Future for NoTunnelFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(response) = ready!(this.future.poll(cx));
        if !*this.connects || response.extensions().get::<TunnelBegun>().is_some() {
            return Poll::Ready(Ok(response));
        }
        let success = response.status().is_success();
        let mut response = if success { respond(StatusCode::NOT_IMPLEMENTED) } else { response };
        if *this.http1 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(Ok(response))
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
            for version in [Version::HTTP_11, Version::HTTP_2] {
                let request = Request::builder().method(method.clone()).uri("a:1").version(version);
                let response = service.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
                assert_eq!(response.status(), expected, "{method} {status}");
                let closes = response.headers().get(header::CONNECTION).is_some_and(|value| value == "close");
                assert_eq!(closes, method == Method::CONNECT && version == Version::HTTP_11, "{method}");
            }
        }
    }
}
