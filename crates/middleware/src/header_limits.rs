//! How many fields a request may carry.
//!
//! Protocol drivers bound the bytes of a header section; a small HTTP/2 or HTTP/3 section can still unfold into very
//! many fields by references into a compression table. This layer bounds their number.

use std::task::{Context, Poll};

use http::{Request, Response, StatusCode};
use tower_layer::Layer;
use tower_service::Service;

/// Answers requests with too many fields 431 (RFC 6585 section 5), with an empty body.
#[derive(Clone, Copy, Debug)]
pub struct HeaderLimitsLayer {
    max_fields: usize,
}

impl HeaderLimitsLayer {
    /// At most this many fields, each value of a repeated field counted.
    pub fn new(max_fields: usize) -> Self {
        Self { max_fields }
    }
}

impl Default for HeaderLimitsLayer {
    /// 100 fields: five times what browsers send, and the default of most HTTP/1 parsers.
    fn default() -> Self {
        Self::new(100)
    }
}

impl<S> Layer<S> for HeaderLimitsLayer {
    type Service = HeaderLimits<S>;

    fn layer(&self, inner: S) -> Self::Service {
        HeaderLimits { inner, max_fields: self.max_fields }
    }
}

/// The service of [`HeaderLimitsLayer`].
#[derive(Clone, Copy, Debug)]
pub struct HeaderLimits<S> {
    inner: S,
    max_fields: usize,
}

/// The future of [`HeaderLimits`].
pub type ResponseFuture<F, B> = crate::early::EarlyFuture<F, B>;

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for HeaderLimits<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        // `len` counts values, not names
        if request.headers().len() > self.max_fields {
            let mut response = Response::new(ResBody::default());
            *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            return ResponseFuture::answered(response);
        }
        ResponseFuture::inner(self.inner.call(request))
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;
    use crate::test_support::{get, ok, through};

    #[tokio::test]
    async fn values_are_counted_not_names() {
        let table = [
            (0, 0, 200),
            (100, 0, 200),
            (101, 0, 431),
            (0, 100, 200),
            (0, 101, 431),
            (50, 50, 200),
            (51, 50, 431),
        ];
        for (distinct, repeated, status) in table {
            let mut request = get("/");
            for n in 0..distinct {
                let name = HeaderName::try_from(format!("x-{n}")).unwrap();
                request.headers_mut().append(name, HeaderValue::from_static("v"));
            }
            for _ in 0..repeated {
                request.headers_mut().append("cookie", HeaderValue::from_static("v"));
            }
            let response = through(&HeaderLimitsLayer::default(), ok, request).await;
            assert_eq!(response.status(), status, "{distinct} + {repeated}");
        }
    }

    #[tokio::test]
    async fn the_number_is_a_choice() {
        let mut request = get("/");
        request.headers_mut().append("a", HeaderValue::from_static("v"));
        let response = through(&HeaderLimitsLayer::new(0), ok, request).await;
        assert_eq!(response.status(), 431);
    }
}
