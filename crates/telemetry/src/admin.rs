//! `/metrics`, `/health` and pages of the program as a tower service, for whoever has a private socket to serve it on.
//!
//! It reads and changes nothing. Requests that a web page in somebody's browser may have sent are refused: an admin
//! port on loopback can be reached from every page the machine's user opens.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, ORIGIN, X_CONTENT_TYPE_OPTIONS},
};
use http_body_util::Full;
use tower_service::Service;

use crate::metrics::{self, Metrics};

const TEXT: &str = "text/plain; charset=utf-8";
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Answers GET and HEAD of `/metrics`, `/health` and the program's own pages; other methods there 405, other paths 404, and requests from web
/// pages of other sites 403.
#[derive(Clone, Debug)]
pub struct AdminService {
    metrics: Metrics,
    draining: Arc<AtomicBool>,
    pages: Arc<Vec<Page>>,
}

/// A page that is made when somebody asks for it.
#[derive(Clone)]
struct Page {
    path: &'static str,
    content_type: &'static str,
    make: Arc<dyn Fn() -> String + Send + Sync>,
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Page").field("path", &self.path).finish_non_exhaustive()
    }
}

impl AdminService {
    /// Shows these metrics, and never a drain.
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics, draining: Arc::new(AtomicBool::new(false)), pages: Arc::default() }
    }

    /// Adds a page, such as `/certificates`: `make` is called for each request, on the runtime, so it must not block.
    #[must_use]
    pub fn with_page(
        mut self,
        path: &'static str,
        content_type: &'static str,
        make: impl Fn() -> String + Send + Sync + 'static,
    ) -> Self {
        Arc::make_mut(&mut self.pages).push(Page { path, content_type, make: Arc::new(make) });
        self
    }

    /// Sets the flag that says whether a drain is under way: while it holds `/health` answers 503.
    #[must_use]
    pub fn with_draining(mut self, draining: Arc<AtomicBool>) -> Self {
        self.draining = draining;
        self
    }

    /// The answer to a request.
    pub fn respond<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if is_from_a_web_page(request.headers()) {
            return answer(StatusCode::FORBIDDEN, TEXT, "cross-origin requests are refused\n");
        }
        let path = request.uri().path();
        let page = self.pages.iter().find(|page| page.path == path);
        if page.is_none() && !matches!(path, "/metrics" | "/health") {
            return answer(StatusCode::NOT_FOUND, TEXT, "not found\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, "method not allowed\n");
            // RFC 9110 section 15.5.6: 405 must say what is allowed
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let mut response = match (page, path) {
            (Some(page), _) => answer(StatusCode::OK, page.content_type, (page.make)()),
            (None, "/metrics") => answer(StatusCode::OK, metrics::CONTENT_TYPE, self.metrics.encode()),
            _ if self.draining.load(Ordering::Relaxed) => {
                answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n")
            }
            _ => answer(StatusCode::OK, TEXT, "ok\n"),
        };
        // RFC 9110 section 9.3.2: HEAD has no content
        if request.method() == Method::HEAD {
            *response.body_mut() = Full::default();
        }
        response
    }
}

/// A browser says so by Origin, or by Sec-Fetch-Site where it leaves Origin out, as in a plain GET.
fn is_from_a_web_page(headers: &HeaderMap) -> bool {
    let cross_site = |site: &HeaderValue| !matches!(site.as_bytes(), b"none" | b"same-origin");
    headers.contains_key(ORIGIN) || headers.get(SEC_FETCH_SITE).is_some_and(cross_site)
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

impl<B> Service<Request<B>> for AdminService {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ready(Ok(self.respond(&request)))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn ask(
        service: &AdminService,
        method: &str,
        path: &str,
        field: Option<(&str, &str)>,
    ) -> (u16, String) {
        let mut request = Request::builder().method(method).uri(path);
        if let Some((name, value)) = field {
            request = request.header(name, value);
        }
        let response = service.clone().oneshot(request.body(()).unwrap()).await.unwrap();
        assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
        assert_eq!(response.headers().contains_key(ALLOW), response.status() == 405);
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn who_gets_what() {
        let service = AdminService::new(Metrics::new("1"));
        let origin = Some(("origin", "https://evil.example"));
        let same = Some(("origin", "http://127.0.0.1:9090"));
        let table = [
            ("GET", "/metrics", None, 200),
            ("GET", "/metrics?x=1", None, 200),
            ("HEAD", "/metrics", None, 200),
            ("GET", "/health", None, 200),
            ("HEAD", "/health", None, 200),
            ("POST", "/metrics", None, 405),
            ("OPTIONS", "/metrics", None, 405),
            ("DELETE", "/health", None, 405),
            ("GET", "/", None, 404),
            ("GET", "/metrics/", None, 404),
            ("POST", "/config", None, 404),
            ("GET", "/metrics", origin, 403),
            ("GET", "/metrics", same, 403),
            ("GET", "/health", Some(("origin", "null")), 403),
            ("POST", "/x", origin, 403),
            ("GET", "/metrics", Some(("sec-fetch-site", "cross-site")), 403),
            ("GET", "/metrics", Some(("sec-fetch-site", "same-site")), 403),
            ("GET", "/metrics", Some(("sec-fetch-site", "none")), 200),
        ];
        for (method, path, field, status) in table {
            let (got, body) = ask(&service, method, path, field).await;
            assert_eq!(got, status, "{method} {path} {field:?}");
            assert_eq!(
                body.contains("portcullis_up"),
                status == 200 && path.starts_with("/m") && method == "GET"
            );
            assert_eq!(body.is_empty(), method == "HEAD");
        }
    }

    #[tokio::test]
    async fn a_page_of_the_program_is_made_anew_each_time() {
        let count = std::sync::atomic::AtomicU32::new(0);
        let service =
            AdminService::new(Metrics::new("1")).with_page("/page", "application/json", move || {
                count.fetch_add(1, Ordering::Relaxed).to_string()
            });
        for want in ["0", "1"] {
            assert_eq!(ask(&service, "GET", "/page", None).await, (200, want.to_owned()));
        }
        assert_eq!(ask(&service, "POST", "/page", None).await.0, 405);
        assert_eq!(ask(&service, "GET", "/page", Some(("origin", "null"))).await.0, 403);
        assert_eq!(ask(&service, "GET", "/pages", None).await.0, 404);
        let response = service.respond(&Request::get("/page").body(()).unwrap());
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
    }

    #[tokio::test]
    async fn health_follows_the_drain() {
        let draining = Arc::new(AtomicBool::new(false));
        let service = AdminService::new(Metrics::new("1")).with_draining(Arc::clone(&draining));
        assert_eq!(ask(&service, "GET", "/health", None).await, (200, "ok\n".to_owned()));
        draining.store(true, Ordering::Relaxed);
        assert_eq!(ask(&service, "GET", "/health", None).await, (503, "draining\n".to_owned()));
        assert_eq!(ask(&service, "GET", "/metrics", None).await.0, 200);
    }

    #[test]
    fn the_exposition_says_what_it_is() {
        let service = AdminService::new(Metrics::new("1"));
        let response = service.respond(&Request::get("/metrics").body(()).unwrap());
        assert_eq!(response.headers()[CONTENT_TYPE], metrics::CONTENT_TYPE);
    }
}
