//! Response fields that make browsers stricter.
//!
//! tower-http's `SetResponseHeaderLayer` sets one field; this layer sets a whole preset in one pass, with every value
//! made once, and knows that HSTS belongs on encrypted connections only.
//!
//! A field that the response already has is left as it is: the application knows its pages better than the edge.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response,
    header::{
        CONTENT_SECURITY_POLICY, Entry, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS,
        X_FRAME_OPTIONS,
    },
};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Which fields are added.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SecurityHeaders {
    /// `X-Content-Type-Options: nosniff`, so that a browser doesn't guess a script out of an upload. Default `true`.
    pub nosniff: bool,
    /// `X-Frame-Options`, against click-jacking. Default [`FrameOptions::SameOrigin`]: pages that frame themselves
    /// keep working.
    pub frame_options: Option<FrameOptions>,
    /// `Referrer-Policy`. Default `strict-origin-when-cross-origin`: other sites learn the origin only, and nothing
    /// once the connection is no longer encrypted.
    pub referrer_policy: Option<HeaderValue>,
    /// `Strict-Transport-Security` with this `max-age`, in whole seconds; zero tells browsers to forget (RFC 6797
    /// section 6.1.1), `None` sends nothing. Default 365 days, the least that browsers' preload lists ask for. It is a
    /// promise that outlives the configuration: for that long a browser refuses plain HTTP and bad certificates for
    /// the host. Sent on encrypted connections only (RFC 6797 section 7.2), so a host without TLS never makes it.
    pub hsts: Option<Duration>,
    /// Adds `includeSubDomains` to HSTS. Default `false`: subdomains may be served by somebody who has no HTTPS yet,
    /// and the promise can't be taken back quickly.
    pub hsts_include_subdomains: bool,
    /// `Content-Security-Policy`. Default `None`: there is no policy that fits every application.
    pub content_security_policy: Option<HeaderValue>,
    /// `Permissions-Policy`. Default `None`.
    pub permissions_policy: Option<HeaderValue>,
}

/// Who may show a page in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameOptions {
    /// Nobody.
    Deny,
    /// Pages of the same origin.
    SameOrigin,
}

impl Default for SecurityHeaders {
    fn default() -> Self {
        Self {
            nosniff: true,
            frame_options: Some(FrameOptions::SameOrigin),
            referrer_policy: Some(HeaderValue::from_static("strict-origin-when-cross-origin")),
            hsts: Some(YEAR),
            hsts_include_subdomains: false,
            content_security_policy: None,
            permissions_policy: None,
        }
    }
}

impl SecurityHeaders {
    /// Sets [`SecurityHeaders::nosniff`].
    #[must_use]
    pub fn with_nosniff(mut self, nosniff: bool) -> Self {
        self.nosniff = nosniff;
        self
    }

    /// Sets [`SecurityHeaders::frame_options`].
    #[must_use]
    pub fn with_frame_options(mut self, frame_options: Option<FrameOptions>) -> Self {
        self.frame_options = frame_options;
        self
    }

    /// Sets [`SecurityHeaders::referrer_policy`].
    #[must_use]
    pub fn with_referrer_policy(mut self, policy: Option<HeaderValue>) -> Self {
        self.referrer_policy = policy;
        self
    }

    /// Sets [`SecurityHeaders::hsts`].
    #[must_use]
    pub fn with_hsts(mut self, max_age: Option<Duration>) -> Self {
        self.hsts = max_age;
        self
    }

    /// Sets [`SecurityHeaders::hsts_include_subdomains`].
    #[must_use]
    pub fn with_hsts_include_subdomains(mut self, include: bool) -> Self {
        self.hsts_include_subdomains = include;
        self
    }

    /// Sets [`SecurityHeaders::content_security_policy`].
    #[must_use]
    pub fn with_content_security_policy(mut self, policy: Option<HeaderValue>) -> Self {
        self.content_security_policy = policy;
        self
    }

    /// Sets [`SecurityHeaders::permissions_policy`].
    #[must_use]
    pub fn with_permissions_policy(mut self, policy: Option<HeaderValue>) -> Self {
        self.permissions_policy = policy;
        self
    }

    fn hsts_value(&self) -> Option<HeaderValue> {
        let max_age = self.hsts?;
        if max_age == YEAR && !self.hsts_include_subdomains {
            // the usual value is static, so that cloning it touches no shared counter
            return Some(HeaderValue::from_static("max-age=31536000"));
        }
        let tail = if self.hsts_include_subdomains { "; includeSubDomains" } else { "" };
        let value = format!("max-age={}{tail}", max_age.as_secs());
        Some(HeaderValue::try_from(value).expect("digits and ASCII letters are a field value"))
    }

    fn always(&self) -> Box<[(HeaderName, HeaderValue)]> {
        let mut fields = Vec::new();
        if self.nosniff {
            fields.push((X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")));
        }
        if let Some(who) = self.frame_options {
            let value = match who {
                FrameOptions::Deny => "DENY",
                FrameOptions::SameOrigin => "SAMEORIGIN",
            };
            fields.push((X_FRAME_OPTIONS, HeaderValue::from_static(value)));
        }
        let named = [
            (REFERRER_POLICY, &self.referrer_policy),
            (CONTENT_SECURITY_POLICY, &self.content_security_policy),
            (HeaderName::from_static("permissions-policy"), &self.permissions_policy),
        ];
        fields.extend(named.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
        fields.into_boxed_slice()
    }
}

/// Adds [`SecurityHeaders`] to every response but interim ones.
#[derive(Clone, Debug)]
pub struct SecurityHeadersLayer {
    fields: Arc<Fields>,
}

#[derive(Debug)]
struct Fields {
    always: Box<[(HeaderName, HeaderValue)]>,
    hsts: Option<HeaderValue>,
}

impl SecurityHeadersLayer {
    /// Makes every value once.
    pub fn new(headers: &SecurityHeaders) -> Self {
        Self { fields: Arc::new(Fields { always: headers.always(), hsts: headers.hsts_value() }) }
    }
}

impl<S> Layer<S> for SecurityHeadersLayer {
    type Service = SecurityHeadersService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        SecurityHeadersService { inner, fields: Arc::clone(&self.fields) }
    }
}

/// The service of [`SecurityHeadersLayer`]; called so because [`SecurityHeaders`] are the options.
#[derive(Clone, Debug)]
pub struct SecurityHeadersService<S> {
    inner: S,
    fields: Arc<Fields>,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for SecurityHeadersService<S>
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
        // RFC 6797 section 7.2: never over a connection that isn't encrypted
        let secure = self.fields.hsts.is_some() && crate::is_secure(request.extensions());
        ResponseFuture { inner: self.inner.call(request), fields: Arc::clone(&self.fields), secure }
    }
}

pin_project! {
    /// The future of [`SecurityHeadersService`].
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        fields: Arc<Fields>,
        secure: bool,
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
        if !response.status().is_informational() {
            let headers = response.headers_mut();
            for (name, value) in &this.fields.always {
                add_if_absent(headers, name, value);
            }
            if let Some(hsts) = this.fields.hsts.as_ref().filter(|_| *this.secure) {
                add_if_absent(headers, &STRICT_TRANSPORT_SECURITY, hsts);
            }
        }
        Poll::Ready(Ok(response))
    }
}

fn add_if_absent(headers: &mut HeaderMap, name: &HeaderName, value: &HeaderValue) {
    // a map that is full to its last slot stays as it is; `entry` would panic
    if let Ok(Entry::Vacant(slot)) = headers.try_entry(name) {
        let _ = slot.try_insert(value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{Body, get, ok, plain, secure, through, with_conn};

    async fn fields(options: SecurityHeaders, request: Request<()>) -> HeaderMap {
        through(&SecurityHeadersLayer::new(&options), ok, request).await.headers().clone()
    }

    #[tokio::test]
    async fn the_preset_over_tls() {
        let headers = fields(SecurityHeaders::default(), with_conn(get("/"), secure())).await;
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["x-frame-options"], "SAMEORIGIN");
        assert_eq!(headers["referrer-policy"], "strict-origin-when-cross-origin");
        assert_eq!(headers["strict-transport-security"], "max-age=31536000");
        assert_eq!(headers.len(), 4);
    }

    #[tokio::test]
    async fn hsts_only_where_the_connection_is_known_to_be_encrypted() {
        for request in [with_conn(get("/"), plain()), get("/")] {
            let headers = fields(SecurityHeaders::default(), request).await;
            assert!(!headers.contains_key(STRICT_TRANSPORT_SECURITY));
            assert_eq!(headers.len(), 3);
        }
    }

    #[tokio::test]
    async fn hsts_forms() {
        let table = [
            (Some(Duration::ZERO), false, Some("max-age=0")),
            (Some(Duration::from_secs(60)), true, Some("max-age=60; includeSubDomains")),
            (Some(YEAR), true, Some("max-age=31536000; includeSubDomains")),
            (None, true, None),
        ];
        for (age, subdomains, expected) in table {
            let options = SecurityHeaders::default().with_hsts(age).with_hsts_include_subdomains(subdomains);
            let headers = fields(options, with_conn(get("/"), secure())).await;
            let got = headers.get(STRICT_TRANSPORT_SECURITY).map(|value| value.to_str().unwrap());
            assert_eq!(got, expected);
        }
    }

    #[tokio::test]
    async fn what_the_application_set_stays_and_is_not_doubled() {
        let answer = |_| {
            let mut response = Response::new(Body::default());
            response.headers_mut().append(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
            response.headers_mut().append(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=1"));
            response
        };
        let layer = SecurityHeadersLayer::new(&SecurityHeaders::default());
        let response = through(&layer, answer, with_conn(get("/"), secure())).await;
        let all = |name| response.headers().get_all(name).iter().collect::<Vec<_>>();
        assert_eq!(all(X_FRAME_OPTIONS), ["DENY"]);
        assert_eq!(all(STRICT_TRANSPORT_SECURITY), ["max-age=1"]);
        assert_eq!(all(X_CONTENT_TYPE_OPTIONS), ["nosniff"]);
    }

    #[tokio::test]
    async fn every_field_can_be_chosen() {
        let options = SecurityHeaders::default()
            .with_nosniff(false)
            .with_frame_options(Some(FrameOptions::Deny))
            .with_referrer_policy(None)
            .with_hsts(None)
            .with_content_security_policy(Some(HeaderValue::from_static("default-src 'self'")))
            .with_permissions_policy(Some(HeaderValue::from_static("camera=()")));
        let headers = fields(options, with_conn(get("/"), secure())).await;
        assert_eq!(headers["x-frame-options"], "DENY");
        assert_eq!(headers["content-security-policy"], "default-src 'self'");
        assert_eq!(headers["permissions-policy"], "camera=()");
        assert_eq!(headers.len(), 3);
    }

    #[tokio::test]
    async fn interim_responses_pass_untouched() {
        let answer = |_| Response::builder().status(101).body(Body::default()).unwrap();
        let layer = SecurityHeadersLayer::new(&SecurityHeaders::default());
        let response = through(&layer, answer, with_conn(get("/"), secure())).await;
        assert!(response.headers().is_empty());
    }
}
