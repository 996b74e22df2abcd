//! What came in early data, and may be a replay (RFC 8470).
//!
//! A connection that began as 0-RTT says so in its [`ConnInfo`](portcullis_conn::ConnInfo::is_early) until its handshake is complete. A request that is read
//! before may have been recorded and sent again by somebody else. This layer lets through at once what does no harm twice, holds
//! back the rest until the handshake is complete, which takes one round trip, and marks what it let through, so that those behind it
//! can refuse: with `Early-Data: 1` for an upstream, with [`InEarlyData`] for a handler.
//!
//! Everything else passes untouched, at the cost of one look at the connection. A field `Early-Data` that a client
//! sent by itself is left where it is, as section 5.1 asks of intermediaries.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use pin_project_lite::pin_project;
use portcullis_conn::EarlyData;
use tokio::time::Sleep;
use tower_layer::Layer;
use tower_service::Service;

use crate::conn_info;

/// Tells who handles a request that it came in early data (RFC 8470 section 5.1).
pub const EARLY_DATA: HeaderName = HeaderName::from_static("early-data");

/// In the extensions of a request that was let through before the handshake of its connection was complete. A handler that
/// would rather not act on it answers 425 (Too Early), and the client comes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InEarlyData;

/// What happens to a request in early data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EarlyPolicy {
    /// It goes on at once, marked.
    Serve,
    /// It waits until the handshake is complete, and goes on unmarked; 425 when that takes too long.
    Hold,
    /// It is answered 425, and the client comes again by itself (RFC 8470 section 5.2).
    Refuse,
}

impl EarlyPolicy {
    /// Serves GET, HEAD and OPTIONS, which are safe (RFC 9110 section 9.2.1), holds everything else, and holds upgrades too.
    pub fn by_method(request: &Parts) -> Self {
        let safe = matches!(request.method, Method::GET | Method::HEAD | Method::OPTIONS);
        if safe && !request.headers.contains_key(header::UPGRADE) { Self::Serve } else { Self::Hold }
    }
}

type Policy = Arc<dyn Fn(&Parts) -> EarlyPolicy + Send + Sync>;

/// Guards a service against replayed early data.
#[derive(Clone)]
pub struct EarlyDataLayer {
    policy: Policy,
    wait: Duration,
}

impl EarlyDataLayer {
    /// Goes by the method, and waits for 10 s at most.
    pub fn new() -> Self {
        Self { policy: Arc::new(EarlyPolicy::by_method), wait: Duration::from_secs(10) }
    }

    /// Asks this for each request in early data, by route for example. [`EarlyPolicy::by_method`] is the default; to serve
    /// a POST early, its handler must stand being called twice.
    #[must_use]
    pub fn with_policy(mut self, policy: impl Fn(&Parts) -> EarlyPolicy + Send + Sync + 'static) -> Self {
        self.policy = Arc::new(policy);
        self
    }

    /// How long a request is held back. Default 10 s, that of a handshake. As many are held as a connection may have
    /// requests open, each with its head and what of its body was read.
    #[must_use]
    pub fn with_wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }
}

impl Default for EarlyDataLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for EarlyDataLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EarlyDataLayer").field("wait", &self.wait).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for EarlyDataLayer {
    type Service = EarlyDataGuard<S>;

    fn layer(&self, inner: S) -> Self::Service {
        EarlyDataGuard { inner, layer: self.clone() }
    }
}

/// The service of [`EarlyDataLayer`].
#[derive(Clone, Debug)]
pub struct EarlyDataGuard<S> {
    inner: S,
    layer: EarlyDataLayer,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for EarlyDataGuard<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    ResBody: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let early = conn_info(request.extensions())
            .and_then(|info| info.early_data())
            .filter(|early| !early.is_confirmed())
            .cloned();
        let Some(early) = early else { return ResponseFuture::called(self.inner.call(request)) };
        let (mut parts, body) = request.into_parts();
        match (self.layer.policy)(&parts) {
            EarlyPolicy::Serve => {
                parts.headers.insert(EARLY_DATA, HeaderValue::from_static("1"));
                parts.extensions.insert(InEarlyData);
                ResponseFuture::called(self.inner.call(Request::from_parts(parts, body)))
            }
            EarlyPolicy::Hold => {
                // the one that is ready is the one to call
                let clone = self.inner.clone();
                let held = Held {
                    service: std::mem::replace(&mut self.inner, clone),
                    request: Request::from_parts(parts, body),
                    early,
                    deadline: Box::pin(tokio::time::sleep(self.layer.wait)),
                };
                ResponseFuture { state: State::Held { held: Some(Box::new(held)) } }
            }
            EarlyPolicy::Refuse => ResponseFuture { state: State::TooEarly },
        }
    }
}

struct Held<S, B> {
    service: S,
    request: Request<B>,
    early: EarlyData,
    deadline: Pin<Box<Sleep>>,
}

pin_project! {
    /// The future of [`EarlyDataGuard`].
    pub struct ResponseFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<S, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B>
    where
        S: Service<Request<B>>,
    {
        Called { #[pin] future: S::Future },
        Held { held: Option<Box<Held<S, B>>> },
        TooEarly,
    }
}

impl<S: Service<Request<B>>, B> ResponseFuture<S, B> {
    fn called(future: S::Future) -> Self {
        Self { state: State::Called { future } }
    }
}

impl<S: Service<Request<B>>, B> fmt::Debug for ResponseFuture<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<S, B, ResBody> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>, Response = Response<ResBody>>,
    ResBody: Default,
{
    type Output = Result<Response<ResBody>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Called { future } => return future.poll(cx),
                StateProj::TooEarly => {
                    let mut response = Response::new(ResBody::default());
                    *response.status_mut() = StatusCode::TOO_EARLY;
                    return Poll::Ready(Ok(response));
                }
                StateProj::Held { held } => {
                    let Some(waiting) = held.as_mut() else { return Poll::Pending };
                    if waiting.early.poll_confirmed(cx).is_pending() {
                        ready!(waiting.deadline.as_mut().poll(cx));
                        State::TooEarly
                    } else {
                        match held.take().map(|held| *held) {
                            Some(Held { mut service, request, .. }) => {
                                State::Called { future: service.call(request) }
                            }
                            // it was there a line above
                            None => return Poll::Pending,
                        }
                    }
                }
            };
            state.set(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{Body, conn, get, plain, through, with_conn};
    use portcullis_conn::{Confirm, TlsInfo};
    use tower::ServiceExt;

    fn early(mut request: Request<()>) -> (Request<()>, Confirm) {
        let (early, confirm) = EarlyData::new();
        let mut tls = TlsInfo::default();
        tls.early_data = Some(early);
        request.extensions_mut().insert(Arc::new(conn("198.51.100.7:4000").with_tls(tls)));
        (request, confirm)
    }

    /// Says how the request arrived.
    #[allow(clippy::needless_pass_by_value, reason = "the form of a service")]
    fn tell(request: Request<()>) -> Response<Body> {
        let field = request.headers().get(EARLY_DATA).map(|value| value.to_str().unwrap().to_owned());
        let marked = request.extensions().get::<InEarlyData>().is_some();
        Response::new(Body::from(format!("{field:?} {marked}")))
    }

    async fn text(response: Response<Body>) -> (u16, String) {
        use http_body_util::BodyExt;
        let status = response.status().as_u16();
        (
            status,
            String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap(),
        )
    }

    #[tokio::test]
    async fn safe_ones_go_on_marked() {
        for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
            let mut request = get("/");
            *request.method_mut() = method;
            let (request, _confirm) = early(request);
            let told = text(through(&EarlyDataLayer::new(), tell, request).await).await;
            assert_eq!(told, (200, "Some(\"1\") true".to_owned()));
        }
    }

    #[tokio::test]
    async fn what_is_not_early_is_left_alone() {
        let (confirmed, confirm) = early(Request::post("/").body(()).unwrap());
        confirm.confirm();
        let mut said = get("/");
        said.headers_mut().insert(EARLY_DATA, HeaderValue::from_static("1"));
        for (request, want) in [
            (confirmed, "None false"),
            (get("/"), "None false"),
            (with_conn(get("/"), plain()), "None false"),
            (with_conn(said, plain()), "Some(\"1\") false"),
        ] {
            assert_eq!(text(through(&EarlyDataLayer::new(), tell, request).await).await.1, want);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_rest_is_held_until_the_handshake_is_complete() {
        let upgrade = Request::get("/").header("upgrade", "websocket").body(()).unwrap();
        for request in [Request::post("/").body(()).unwrap(), Request::delete("/").body(()).unwrap(), upgrade]
        {
            let (request, confirm) = early(request);
            let held = tokio::spawn(async { through(&EarlyDataLayer::new(), tell, request).await });
            tokio::time::sleep(Duration::from_secs(9)).await;
            assert!(!held.is_finished());
            confirm.confirm();
            assert_eq!(text(held.await.unwrap()).await, (200, "None false".to_owned()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn not_for_ever() {
        let (request, _confirm) = early(Request::post("/").body(()).unwrap());
        let layer = EarlyDataLayer::new().with_wait(Duration::from_secs(2));
        let begun = tokio::time::Instant::now();
        assert_eq!(through(&layer, tell, request).await.status(), 425);
        assert_eq!(begun.elapsed().as_secs(), 2);
    }

    #[tokio::test]
    async fn the_policy_is_a_choice() {
        let layer = EarlyDataLayer::new().with_policy(|request| match request.uri.path() {
            "/again" => EarlyPolicy::Serve,
            _ => EarlyPolicy::Refuse,
        });
        for (path, want) in [("/again", 200), ("/once", 425)] {
            let (request, _confirm) = early(Request::post(path).body(()).unwrap());
            assert_eq!(through(&layer, tell, request).await.status(), want);
        }
    }

    /// A held request calls the service that was found ready, not a fresh clone of it.
    #[tokio::test]
    async fn readiness_is_kept() {
        let (mock, mut handle) = tower_test::mock::pair::<Request<()>, Response<Body>>();
        let mut guard = EarlyDataLayer::new().layer(mock);
        handle.allow(1);
        let (request, confirm) = early(Request::post("/").body(()).unwrap());
        let held = guard.ready().await.unwrap().call(request);
        confirm.confirm();
        let (answered, ()) = tokio::join!(held, async {
            handle.next_request().await.unwrap().1.send_response(Response::new(Body::default()));
        });
        assert_eq!(answered.unwrap().status(), 200);
    }
}
