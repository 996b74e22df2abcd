//! Advertises HTTP/3 on responses of HTTP/1 and HTTP/2 (RFC 7838, RFC 9114 section 3.1.1).
//!
//! Over TLS only: an advertisement on a plain connection could come from anybody on the path, and HTTP/3 has no plain
//! form to offer. A request without `ConnInfo` is taken as plain. What an application said in `Alt-Svc` is replaced,
//! because its ports aren't the edge's.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{HeaderValue, Request, Response, Version, header::ALT_SVC};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

/// Sets `Alt-Svc: h3=":PORT"; ma=SECONDS`.
#[derive(Clone, Debug)]
pub struct AltSvcLayer {
    port: u16,
    advert: Arc<Advert>,
}

#[derive(Debug)]
struct Advert {
    value: HeaderValue,
    enabled: Arc<AtomicBool>,
}

impl AltSvcLayer {
    /// HTTP/3 is on this UDP port of the same host; clients may remember it for a day.
    pub fn new(port: u16) -> Self {
        Self::build(port, Duration::from_secs(86_400), Arc::new(AtomicBool::new(true)))
    }

    /// Sets for how long clients may remember, in whole seconds. Default one day: what a client that finds UDP
    /// closed pays is one failed attempt.
    #[must_use]
    pub fn with_max_age(self, max_age: Duration) -> Self {
        Self::build(self.port, max_age, Arc::clone(&self.advert.enabled))
    }

    /// The switch that all services of this layer look at. Store `false` while HTTP/3 doesn't serve, as in a drain.
    pub fn switch(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.advert.enabled)
    }

    /// Has the services look at a switch that others turn too.
    #[must_use]
    pub fn with_switch(self, switch: Arc<AtomicBool>) -> Self {
        let value = self.advert.value.clone();
        Self { port: self.port, advert: Arc::new(Advert { value, enabled: switch }) }
    }

    fn build(port: u16, max_age: Duration, enabled: Arc<AtomicBool>) -> Self {
        let value = format!("h3=\":{port}\"; ma={}", max_age.as_secs());
        let value = HeaderValue::try_from(value).expect("quotes, digits and ASCII letters are a field value");
        Self { port, advert: Arc::new(Advert { value, enabled }) }
    }
}

impl<S> Layer<S> for AltSvcLayer {
    type Service = AltSvc<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AltSvc { inner, advert: Arc::clone(&self.advert) }
    }
}

/// The service of [`AltSvcLayer`].
#[derive(Clone, Debug)]
pub struct AltSvc<S> {
    inner: S,
    advert: Arc<Advert>,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for AltSvc<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let wanted = request.version() < Version::HTTP_3 && crate::is_secure(request.extensions());
        let advert = wanted.then(|| Arc::clone(&self.advert));
        ResponseFuture { inner: self.inner.call(request), advert }
    }
}

pin_project! {
    /// The future of [`AltSvc`].
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        advert: Option<Arc<Advert>>,
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.inner.poll(cx))?;
        if let Some(advert) = this.advert.take()
            && advert.enabled.load(Ordering::Relaxed)
        {
            // a map that is full to its last slot stays as it is; `insert` would panic
            let _ = response.headers_mut().try_insert(ALT_SVC, advert.value.clone());
        }
        Poll::Ready(Ok(response))
    }
}

#[cfg(test)]
mod tests {
    use portcullis_conn::ConnInfo;

    use super::*;
    use crate::test_support::{Body, get, ok, plain, secure, through, with_conn};

    async fn field(layer: &AltSvcLayer, version: Version, info: Option<Arc<ConnInfo>>) -> Option<String> {
        let mut request = get("/");
        *request.version_mut() = version;
        if let Some(info) = info {
            request = with_conn(request, info);
        }
        let response = through(layer, ok, request).await;
        response.headers().get(ALT_SVC).map(|value| value.to_str().unwrap().to_owned())
    }

    #[tokio::test]
    async fn over_tls_and_not_over_http3() {
        let value = Some("h3=\":8443\"; ma=86400".to_owned());
        let layer = AltSvcLayer::new(8443);
        let table = [
            (Version::HTTP_10, Some(secure()), value.clone()),
            (Version::HTTP_11, Some(secure()), value.clone()),
            (Version::HTTP_2, Some(secure()), value.clone()),
            (Version::HTTP_3, Some(secure()), None),
            (Version::HTTP_11, Some(plain()), None),
            (Version::HTTP_2, None, None),
        ];
        for (version, info, expected) in table {
            assert_eq!(field(&layer, version, info).await, expected, "{version:?}");
        }
    }

    #[tokio::test]
    async fn the_switch_is_shared() {
        let layer = AltSvcLayer::new(443);
        let switch = layer.switch();
        let layer = layer.with_max_age(Duration::from_secs(60));
        let on = Some("h3=\":443\"; ma=60".to_owned());
        assert_eq!(field(&layer, Version::HTTP_2, Some(secure())).await, on);
        switch.store(false, Ordering::Relaxed);
        assert_eq!(field(&layer.clone(), Version::HTTP_2, Some(secure())).await, None);
        switch.store(true, Ordering::Relaxed);
        assert_eq!(field(&layer, Version::HTTP_2, Some(secure())).await, on);
        // and one from elsewhere, whenever it is given
        let own = Arc::new(AtomicBool::new(false));
        let layer = layer.with_switch(own.clone()).with_max_age(Duration::from_secs(60));
        assert_eq!(field(&layer, Version::HTTP_2, Some(secure())).await, None);
        own.store(true, Ordering::Relaxed);
        assert_eq!(field(&layer, Version::HTTP_2, Some(secure())).await, on);
    }

    #[tokio::test]
    async fn what_the_application_said_is_replaced() {
        let answer = |_| Response::builder().header(ALT_SVC, "h3=\":1\"").body(Body::default()).unwrap();
        let response = through(&AltSvcLayer::new(443), answer, with_conn(get("/"), secure())).await;
        let all: Vec<_> = response.headers().get_all(ALT_SVC).iter().collect();
        assert_eq!(all, ["h3=\":443\"; ma=86400"]);
    }
}
