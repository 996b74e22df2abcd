//! Response fields that make browsers stricter.
//!
//! tower-http's `SetResponseHeaderLayer` sets one field; this layer sets a whole preset in one pass, with every value
//! made once, and knows that HSTS belongs on encrypted connections only: the client's own, by [`crate::ClientSecure`]
//! where somebody told, else the one that the request came by.
//!
//! A field that the response already has is left as it is, unless it is to be replaced: the application knows its pages better than the edge.
//!
//! There are three presets ([`SecurityHeaders::default`], [`SecurityHeaders::strict`], [`SecurityHeaders::api`]), and [`SecurityHeaders::check`] tells what
//! browsers would pass over.

mod csp;
mod options;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response,
    header::{Entry, STRICT_TRANSPORT_SECURITY},
};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

pub use self::options::{FrameOptions, SecurityHeaders, SecurityHeadersError};

/// Adds [`SecurityHeaders`] to every response but interim ones.
#[derive(Clone, Debug)]
pub struct SecurityHeadersLayer {
    fields: Arc<Fields>,
}

#[derive(Debug)]
struct Fields {
    always: Box<[(HeaderName, HeaderValue)]>,
    hsts: Option<HeaderValue>,
    replace: bool,
    remove: Box<[HeaderName]>,
}

impl SecurityHeadersLayer {
    /// Makes every value once.
    pub fn new(headers: &SecurityHeaders) -> Self {
        let fields = Fields {
            always: headers.always(),
            hsts: headers.hsts_value(),
            replace: headers.replace,
            remove: headers.remove.clone().into_boxed_slice(),
        };
        Self { fields: Arc::new(fields) }
    }

    /// [`SecurityHeaders::remove`], for what goes to a client past this layer, as interim responses do.
    pub fn removed(&self) -> &[HeaderName] {
        &self.fields.remove
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
        let is_secure = || crate::client_secure(request.extensions()).unwrap_or(false);
        let secure = self.fields.hsts.is_some() && is_secure();
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
            for name in &this.fields.remove {
                headers.remove(name);
            }
            let set = if this.fields.replace { put } else { add_if_absent };
            for (name, value) in &this.fields.always {
                set(headers, name, value);
            }
            if let Some(hsts) = this.fields.hsts.as_ref().filter(|_| *this.secure) {
                set(headers, &STRICT_TRANSPORT_SECURITY, hsts);
            }
        }
        Poll::Ready(Ok(response))
    }
}

fn put(headers: &mut HeaderMap, name: &HeaderName, value: &HeaderValue) {
    let _ = headers.try_insert(name, value.clone());
}

fn add_if_absent(headers: &mut HeaderMap, name: &HeaderName, value: &HeaderValue) {
    // a map that is full to its last slot stays as it is; `entry` would panic
    if let Ok(Entry::Vacant(slot)) = headers.try_entry(name) {
        let _ = slot.try_insert(value.clone());
    }
}

#[cfg(test)]
mod tests;
