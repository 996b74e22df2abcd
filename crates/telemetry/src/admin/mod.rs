//! `/metrics`, `/health`, and pages and actions of the program as a tower service, for whoever has a private socket to serve it on.
//!
//! It changes nothing but by the program's actions. Requests that a web page in somebody's browser may have sent are refused: an admin
//! port on loopback can be reached from every page the machine's user opens.

mod fields;

use std::{
    convert::Infallible,
    error::Error,
    fmt,
    future::{Future, Ready, ready},
    pin::Pin,
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
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use tower_service::Service;

pub use fields::Fields;

use crate::metrics::{self, Metrics};

/// Longest body of a request to an action, in bytes: more than any URL has.
const ACTION_BODY: usize = 64 * 1024;
const TEXT: &str = "text/plain; charset=utf-8";
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Answers GET and HEAD of `/metrics`, `/health` and the program's own pages, and POST of its actions; other methods there 405, other paths
/// 404, and requests from web pages of other sites 403.
#[derive(Clone, Debug)]
pub struct AdminService {
    metrics: Metrics,
    draining: Arc<AtomicBool>,
    pages: Arc<Vec<Page>>,
    actions: Arc<Vec<Action>>,
}

/// A page that is made when somebody asks for it.
#[derive(Clone)]
struct Page {
    path: &'static str,
    content_type: &'static str,
    make: Arc<dyn Fn() -> String + Send + Sync>,
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Something that is done when somebody posts to its path.
#[derive(Clone)]
struct Action {
    path: &'static str,
    run: Arc<Run>,
}

type Run = dyn Fn(Fields) -> Done + Send + Sync;
type Done = Pin<Box<dyn Future<Output = Result<String, String>> + Send>>;

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Action").field("path", &self.path).finish_non_exhaustive()
    }
}

impl AdminService {
    /// Shows these metrics, and never a drain.
    pub fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            draining: Arc::new(AtomicBool::new(false)),
            pages: Arc::default(),
            actions: Arc::default(),
        }
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

    /// Adds an action, such as `/cache/purge`: `run` is called for each POST with the fields of the query and of a body of at most 64 KiB, which
    /// is a form or a JSON object. What its future gives is the answer: JSON with 200, or text that says what is wrong with the request,
    /// with 400. It is polled on the runtime, so it must not block, and dropped if the client goes.
    #[must_use]
    pub fn with_action<F>(
        mut self,
        path: &'static str,
        run: impl Fn(Fields) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<String, String>> + Send + 'static,
    {
        let run = Arc::new(move |fields| -> Done { Box::pin(run(fields)) });
        Arc::make_mut(&mut self.actions).push(Action { path, run });
        self
    }

    /// Sets the flag that says whether a drain is under way: while it holds `/health` answers 503.
    #[must_use]
    pub fn with_draining(mut self, draining: Arc<AtomicBool>) -> Self {
        self.draining = draining;
        self
    }

    /// The answer to a request for a page; actions take the service, since they read the body.
    pub fn respond<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if is_from_a_web_page(request.headers()) {
            return answer(StatusCode::FORBIDDEN, TEXT, "cross-origin requests are refused\n");
        }
        let path = request.uri().path();
        if self.actions.iter().any(|action| action.path == path) {
            return not_allowed("POST");
        }
        let page = self.pages.iter().find(|page| page.path == path);
        if page.is_none() && !matches!(path, "/metrics" | "/health") {
            return answer(StatusCode::NOT_FOUND, TEXT, "not found\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return not_allowed("GET, HEAD");
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

    /// What is to be done for a request, if it is one to an action.
    fn action<B>(&self, request: &Request<B>) -> Option<Action> {
        if *request.method() != Method::POST || is_from_a_web_page(request.headers()) {
            return None;
        }
        self.actions.iter().find(|action| action.path == request.uri().path()).cloned()
    }
}

/// Reads the request and does it.
async fn act<B>(action: Action, request: Request<B>) -> Response<Full<Bytes>>
where
    B: Body,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, ACTION_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return answer(StatusCode::PAYLOAD_TOO_LARGE, TEXT, "the body is too long\n");
        }
        // nobody is there to read it
        Err(_) => return answer(StatusCode::BAD_REQUEST, TEXT, "the body did not come\n"),
    };
    let done = match Fields::read(parts.uri.query(), &parts.headers, &body) {
        Ok(fields) => (action.run)(fields).await,
        Err(wrong) => Err(wrong.to_owned()),
    };
    match done {
        Ok(said) => answer(StatusCode::OK, "application/json", said),
        Err(wrong) => answer(StatusCode::BAD_REQUEST, TEXT, wrong + "\n"),
    }
}

fn not_allowed(allowed: &'static str) -> Response<Full<Bytes>> {
    let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, "method not allowed\n");
    // RFC 9110 section 15.5.6: 405 must say what is allowed
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
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

impl<B> Service<Request<B>> for AdminService
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Answer {
        match self.action(&request) {
            Some(action) => Answer(Inner::Later(Box::pin(act(action, request)))),
            None => Answer(Inner::Now(ready(self.respond(&request)))),
        }
    }
}

/// The answer to come.
pub struct Answer(Inner);

enum Inner {
    Now(Ready<Response<Full<Bytes>>>),
    Later(Pin<Box<dyn Future<Output = Response<Full<Bytes>>> + Send>>),
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}

impl Future for Answer {
    type Output = Result<Response<Full<Bytes>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Inner::Now(answer) => Pin::new(answer).poll(cx),
            Inner::Later(answer) => answer.as_mut().poll(cx),
        }
        .map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Empty;
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
        let response = service.clone().oneshot(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
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

    /// Says what it was told, and refuses the name `no`.
    fn acting() -> AdminService {
        AdminService::new(Metrics::new("1")).with_action("/do", |fields: Fields| async move {
            let said: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
            if said.iter().any(|field| field.starts_with("no=")) {
                return Err("no".to_owned());
            }
            Ok(said.join(" "))
        })
    }

    #[tokio::test]
    async fn an_action_is_done_for_a_post_and_no_web_page() {
        let service = acting();
        for (method, path, field, want) in [
            ("POST", "/do?a=b", None, (200, "a=b")),
            ("POST", "/do", None, (200, "")),
            ("POST", "/do?no=1", None, (400, "no\n")),
            ("POST", "/do?a=%", None, (400, "a field is not written as forms are\n")),
            ("POST", "/do/", None, (404, "not found\n")),
            ("GET", "/do?a=b", None, (405, "method not allowed\n")),
            ("DELETE", "/do", None, (405, "method not allowed\n")),
            ("POST", "/do?a=b", Some(("origin", "null")), (403, "cross-origin requests are refused\n")),
            (
                "POST",
                "/do",
                Some(("sec-fetch-site", "cross-site")),
                (403, "cross-origin requests are refused\n"),
            ),
        ] {
            let (status, text) = ask(&service, method, path, field).await;
            assert_eq!((status, text.as_str()), want, "{method} {path} {field:?}");
        }
        let allowed = service.respond(&Request::get("/do").body(()).unwrap());
        assert_eq!(allowed.headers()[ALLOW], "POST");
    }

    #[tokio::test]
    async fn the_body_of_an_action_is_bounded() {
        for (length, status) in [(ACTION_BODY, 200), (ACTION_BODY + 1, 413)] {
            let body = Full::new(Bytes::from(format!("a={}", "b".repeat(length - 2))));
            let kind = "application/x-www-form-urlencoded";
            let request = Request::post("/do").header(CONTENT_TYPE, kind).body(body).unwrap();
            assert_eq!(acting().oneshot(request).await.unwrap().status(), status, "{length}");
        }
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
