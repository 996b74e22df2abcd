//! A page that says that a site is closed for a while.
//!
//! Everybody gets the same answer, 503 with `Retry-After` (RFC 9110 section 15.6.4), but for the clients and paths that are named:
//! whoever does the work has to see the site, and a balancer its health.
//!
//! [`MaintenanceSwitch`] opens and closes it while it runs. Open, a request costs an atomic load.

use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use ipnet::IpNet;
use tower_layer::Layer;
use tower_service::Service;

use crate::{client_ip, filter::AllowedPaths};

/// What is said while a site is closed, and who is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Maintenance {
    /// The status. Default 503, which tells a search engine to come again and a cache to keep nothing.
    pub status: StatusCode,
    /// When to come again: `Retry-After` in whole seconds, rounded up; `None` leaves the field out. Default 10 minutes.
    pub retry_after: Option<Duration>,
    /// The bodies, of which each client gets the first whose type its `Accept` names, else the first. Default one line of text. Kept in memory,
    /// once for all.
    pub pages: Vec<MaintenancePage>,
    /// Networks whose clients are let in. Default empty. All are looked through for every request while the site is closed.
    pub allow: Vec<IpNet>,
    /// Paths that are let through, each with all below it on a border of segments: `/api` is `/api` and `/api/x`, not `/apix`. Default empty.
    /// They are compared as [`crate::filter`] does for a rule that allows: a path is let through only if whatever servers may read it as is below the same
    /// one of these, so `/api/%252e%252e/app` is not.
    pub allow_paths: Vec<String>,
}

/// A body with its type.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MaintenancePage {
    /// `Content-Type`.
    pub content_type: HeaderValue,
    /// The body.
    pub body: Bytes,
}

impl MaintenancePage {
    /// A body of this type.
    pub fn new(content_type: HeaderValue, body: impl Into<Bytes>) -> Self {
        Self { content_type, body: body.into() }
    }
}

impl Default for Maintenance {
    fn default() -> Self {
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            retry_after: Some(Duration::from_secs(600)),
            pages: vec![MaintenancePage::new(text, "This site is closed for maintenance.\n")],
            allow: Vec::new(),
            allow_paths: Vec::new(),
        }
    }
}

impl Maintenance {
    /// Sets [`Maintenance::status`].
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// Sets [`Maintenance::retry_after`].
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Option<Duration>) -> Self {
        self.retry_after = retry_after;
        self
    }

    /// Sets [`Maintenance::pages`].
    #[must_use]
    pub fn with_pages(mut self, pages: Vec<MaintenancePage>) -> Self {
        self.pages = pages;
        self
    }

    /// Sets [`Maintenance::allow`].
    #[must_use]
    pub fn with_allow(mut self, networks: Vec<IpNet>) -> Self {
        self.allow = networks;
        self
    }

    /// Sets [`Maintenance::allow_paths`].
    #[must_use]
    pub fn with_allow_paths(mut self, paths: Vec<String>) -> Self {
        self.allow_paths = paths;
        self
    }

    fn knows(&self, ip: IpAddr) -> bool {
        self.allow.iter().any(|network| crate::unmapped(*network).contains(&ip))
    }

    fn answer<B: From<Bytes> + Default>(&self, method: &Method, accept: Option<&HeaderValue>) -> Response<B> {
        let page = self.pages.iter().find(|page| likes(accept, &page.content_type)).or(self.pages.first());
        let body = page.filter(|_| *method != Method::HEAD).map(|page| B::from(page.body.clone()));
        let mut response = Response::new(body.unwrap_or_default());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(page) = page {
            headers.insert(header::CONTENT_TYPE, page.content_type.clone());
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(page.body.len()));
        }
        if self.pages.len() > 1 {
            headers.insert(header::VARY, HeaderValue::from_static("accept"));
        }
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(crate::whole_seconds(after)));
        }
        response
    }
}

/// Whether an `Accept` names this type. Weights don't matter here but for 0: a page for people must not be an error of its own.
fn likes(accept: Option<&HeaderValue>, content_type: &HeaderValue) -> bool {
    let essence = |value: &str| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let (Some(accept), Ok(content_type)) =
        (accept.and_then(|accept| accept.to_str().ok()), content_type.to_str())
    else {
        return false;
    };
    let content_type = essence(content_type);
    accept.split(',').any(|range| {
        let refused = range.split(';').skip(1).any(|part| {
            let part = part.trim().to_ascii_lowercase();
            part.strip_prefix("q=").is_some_and(|q| q.trim().parse::<f32>().is_ok_and(|q| q == 0.0))
        });
        !refused && essence(range) == content_type
    })
}

/// Opens and closes a site.
#[derive(Clone, Debug)]
pub struct MaintenanceSwitch(Arc<AtomicBool>);

impl MaintenanceSwitch {
    /// Closes the site, or opens it. Requests that run go on.
    pub fn set(&self, closed: bool) {
        self.0.store(closed, Ordering::Relaxed);
    }

    /// Whether it is closed.
    pub fn is_closed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Answers in the place of a site that is closed.
#[derive(Clone)]
pub struct MaintenanceLayer {
    maintenance: Arc<Maintenance>,
    paths: Arc<AllowedPaths>,
    switch: MaintenanceSwitch,
}

impl MaintenanceLayer {
    /// Closed from the beginning; see [`MaintenanceLayer::switch`].
    pub fn new(maintenance: Maintenance) -> Self {
        let switch = MaintenanceSwitch(Arc::new(AtomicBool::new(true)));
        let paths = Arc::new(AllowedPaths::new(&maintenance.allow_paths));
        Self { maintenance: Arc::new(maintenance), paths, switch }
    }

    fn lets_in<B>(&self, request: &Request<B>) -> bool {
        self.paths.allow(request.uri().path())
            || client_ip(request.extensions()).is_some_and(|ip| self.maintenance.knows(ip))
    }

    /// What opens and closes it, for all clones.
    pub fn switch(&self) -> MaintenanceSwitch {
        self.switch.clone()
    }
}

impl fmt::Debug for MaintenanceLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MaintenanceLayer").field("closed", &self.switch.is_closed()).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for MaintenanceLayer {
    type Service = UnderMaintenance<S>;

    fn layer(&self, inner: S) -> Self::Service {
        UnderMaintenance { inner, layer: self.clone() }
    }
}

/// The service of [`MaintenanceLayer`]; called so because [`Maintenance`] are the options.
#[derive(Clone, Debug)]
pub struct UnderMaintenance<S> {
    inner: S,
    layer: MaintenanceLayer,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for UnderMaintenance<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: From<Bytes> + Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let maintenance = &self.layer.maintenance;
        if !self.layer.switch.is_closed() || self.layer.lets_in(&request) {
            return ResponseFuture::inner(self.inner.call(request));
        }
        let response = maintenance.answer(request.method(), request.headers().get(header::ACCEPT));
        ResponseFuture::answered(response)
    }
}

/// The future of [`UnderMaintenance`].
pub type ResponseFuture<F, B> = crate::early::EarlyFuture<F, B>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{Body, get, ok, plain, through, with_conn};
    use http_body_util::BodyExt;

    async fn text(response: Response<Body>) -> String {
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn closed_and_open() {
        let layer = MaintenanceLayer::new(Maintenance::default());
        let response = through(&layer, ok, get("/")).await;
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "600");
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert_eq!(response.headers()["content-length"], "37");
        assert!(text(response).await.contains("maintenance"));
        layer.clone().switch().set(false);
        assert_eq!(through(&layer, ok, get("/")).await.status(), 200);
        layer.switch().set(true);
        assert_eq!(through(&layer, ok, get("/")).await.status(), 503);
    }

    #[tokio::test]
    async fn who_is_let_in() {
        let layer = MaintenanceLayer::new(
            Maintenance::default()
                .with_allow(vec!["198.51.100.0/24".parse().unwrap()])
                .with_allow_paths(vec!["/api".into(), "/status/".into()]),
        );
        for (path, expected) in [
            ("/", 503),
            ("/api", 200),
            ("/api/x", 200),
            ("/apix", 503),
            ("/status", 200),
            ("/status/1", 200),
            ("/x/api", 503),
            ("/status/a%20b", 200),
            ("/status/../app", 503),
            ("/status/%2e%2e/app", 503),
            ("/status/%252e%252e/app", 503),
            ("/status/..%2fapp", 503),
            ("/status/..;/app", 503),
            ("//status/..%5capp", 503),
        ] {
            assert_eq!(through(&layer, ok, get(path)).await.status(), expected, "{path}");
        }
        assert_eq!(through(&layer, ok, with_conn(get("/"), plain())).await.status(), 200);
        let mapped = Arc::new(crate::test_support::conn("[::ffff:198.51.100.9]:1"));
        assert_eq!(through(&layer, ok, with_conn(get("/"), mapped)).await.status(), 200);
        let other = Arc::new(crate::test_support::conn("203.0.113.9:1"));
        assert_eq!(through(&layer, ok, with_conn(get("/"), other)).await.status(), 503);
    }

    #[tokio::test]
    async fn the_page_by_type_and_head() {
        let page = |kind, body| MaintenancePage::new(HeaderValue::from_static(kind), body);
        let pages = vec![page("text/html; charset=utf-8", "<p>"), page("application/json", "{}")];
        let options = Maintenance::default().with_pages(pages).with_retry_after(None);
        let layer = MaintenanceLayer::new(options.with_status(StatusCode::OK));
        for (accept, expected) in [
            (None, "<p>"),
            (Some("application/json"), "{}"),
            (Some("text/html,application/json;q=0.9"), "<p>"),
            (Some("text/html;q=0, Application/JSON"), "{}"),
            (Some("image/png"), "<p>"),
            (Some("*/*"), "<p>"),
        ] {
            let mut request = get("/");
            if let Some(accept) = accept {
                request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static(accept));
            }
            let response = through(&layer, ok, request).await;
            assert_eq!(response.headers()["vary"], "accept");
            assert!(!response.headers().contains_key("retry-after"));
            assert_eq!(text(response).await, expected, "{accept:?}");
        }
        let response = through(&layer, ok, Request::head("/").body(()).unwrap()).await;
        assert_eq!(response.headers()["content-length"], "3");
        assert_eq!(text(response).await, "");
    }

    #[tokio::test]
    async fn the_service_is_not_called_while_closed() {
        use tower::{Service, ServiceExt};
        let (mock, mut handle) = tower_test::mock::pair::<Request<()>, Response<Body>>();
        let mut service = MaintenanceLayer::new(Maintenance::default()).layer(mock);
        handle.allow(1);
        let response = service.ready().await.unwrap().call(get("/")).await.unwrap();
        assert_eq!(response.status(), 503);
        drop(service);
        assert!(handle.next_request().await.is_none());
    }
}
