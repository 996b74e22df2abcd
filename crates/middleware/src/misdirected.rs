//! Requests for a host that their connection was not made for.
//!
//! An HTTP/2 or HTTP/3 client may send requests for several hosts over one connection. Where hosts differ in what TLS
//! asks of clients, one that was let in for the first would so go around what the second asks. Such a request is
//! answered 421 (RFC 9110 section 15.5.20), and the client makes another connection.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response, StatusCode, header, uri::Authority};
use tower_layer::Layer;
use tower_service::Service;

use crate::conn_info;

type Allows = dyn Fn(Option<&str>, &str) -> bool + Send + Sync;

/// Answers 421 where a connection may not carry a request for its host. Plain connections carry every request.
#[derive(Clone)]
pub struct MisdirectedLayer {
    allows: Arc<Allows>,
}

impl MisdirectedLayer {
    /// `allows` says whether a connection that was made for a name (the SNI; `None` where the client gave none) may carry a request
    /// for a host, without its port. A host that can't be read is left to those behind.
    pub fn new(allows: impl Fn(Option<&str>, &str) -> bool + Send + Sync + 'static) -> Self {
        Self { allows: Arc::new(allows) }
    }

    /// Whether a request may stay.
    fn directed<B>(&self, request: &Request<B>) -> bool {
        let Some(tls) = conn_info(request.extensions()).and_then(|info| info.tls.as_deref()) else {
            return true;
        };
        let name = tls.server_name.as_deref();
        match request.uri().authority() {
            Some(authority) => (self.allows)(name, authority.host()),
            None => {
                // several Host fields, or one that is none, are refused elsewhere; here every one has to fit
                let fields = request.headers().get_all(header::HOST).iter();
                let hosts = fields.filter_map(|field| Authority::try_from(field.as_bytes()).ok());
                hosts.into_iter().all(|host| (self.allows)(name, host.host()))
            }
        }
    }
}

impl fmt::Debug for MisdirectedLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MisdirectedLayer").finish_non_exhaustive()
    }
}

impl<S> Layer<S> for MisdirectedLayer {
    type Service = Misdirected<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Misdirected { inner, layer: self.clone() }
    }
}

/// The service of [`MisdirectedLayer`].
#[derive(Clone, Debug)]
pub struct Misdirected<S> {
    inner: S,
    layer: MisdirectedLayer,
}

/// The future of [`Misdirected`].
pub type ResponseFuture<F, B> = crate::early::EarlyFuture<F, B>;

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Misdirected<S>
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
        if self.layer.directed(&request) {
            return ResponseFuture::inner(self.inner.call(request));
        }
        let mut response = Response::new(ResBody::default());
        *response.status_mut() = StatusCode::MISDIRECTED_REQUEST;
        ResponseFuture::answered(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{conn, get, ok, plain, through, with_conn};
    use portcullis_conn::TlsInfo;

    #[tokio::test]
    async fn a_host_of_another_policy_is_misdirected() {
        let layer =
            MisdirectedLayer::new(|name, host| name == Some("admin") || !host.eq_ignore_ascii_case("admin"));
        let over = |name: Option<&str>| {
            let mut tls = TlsInfo::default();
            tls.server_name = name.map(str::to_owned);
            Arc::new(conn("198.51.100.7:4000").with_tls(tls))
        };
        let field = |host: &str| Request::get("/").header("host", host).body(()).unwrap();
        let mut both = field("www");
        both.headers_mut().append("host", "admin".parse().unwrap());
        for (request, info, want) in [
            (get("https://www/"), over(Some("www")), 200),
            (get("https://admin/"), over(Some("admin")), 200),
            (get("https://ADMIN:443/"), over(Some("www")), 421),
            (get("https://admin/"), over(None), 421),
            (field("admin:8443"), over(Some("www")), 421),
            (both, over(Some("www")), 421),
            (field("www"), over(Some("www")), 200),
            (field("admin"), plain(), 200),
            (get("/"), over(Some("www")), 200),
        ] {
            let uri = request.uri().clone();
            let response = through(&layer, ok, with_conn(request, info)).await;
            assert_eq!(response.status(), want, "{uri}");
        }
    }
}
