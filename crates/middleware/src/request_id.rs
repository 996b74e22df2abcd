//! One id for each request, on all its ways: to the service, into the log, and to the client by choice.
//!
//! tower-http's pair of layers takes over any id that a client sends. This one believes an id only from peers that are
//! trusted to give one, checks its form and bounds its length; everybody else's is replaced.
//!
//! It belongs outside of what logs. Who comes after finds the id in the request's field `X-Request-Id`, the only one of its
//! name then, and as [`RequestId`] in the extensions.
//!
//! An id of ours is 32 hexadecimal digits of 128 bits that nobody can guess and that look random: a counter under two keyed
//! hashes, whose keys came from the system's randomness when the layer was made. Making one costs two hashes and an
//! allocation of 32 bytes, and asks the system for nothing.

use std::{
    fmt,
    future::Future,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

/// The field that carries the id in both directions.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken over, in bytes. It is kept until the request is logged.
pub const LONGEST: usize = 128;

/// The id of a request, in its extensions. One token of at most [`LONGEST`] bytes, so it can stand in a log, in JSON and in a
/// field as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The id, if it has a form that is taken over: one token (RFC 9110 section 5.6.2) of 1 to [`LONGEST`] bytes.
    pub fn new(value: HeaderValue) -> Option<Self> {
        let bytes = value.as_bytes();
        let of_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
        let sound = (1..=LONGEST).contains(&bytes.len()) && bytes.iter().all(of_token);
        sound.then_some(Self(value))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        // a token is ASCII
        self.0.to_str().unwrap_or_default()
    }

    /// As the value of a field; a clone shares the bytes.
    pub fn value(&self) -> &HeaderValue {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

type Trust = Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// Whose ids are taken over.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum TrustId {
    /// Nobody's: every request gets a fresh one. The default, since an id of a stranger can be that of somebody else's request.
    #[default]
    Nobody,
    /// Everybody's, where its form is right.
    Everybody,
    /// Those of the connection's peer, where this says so. Without a `ConnInfo` nobody's.
    Peers(Trust),
}

impl fmt::Debug for TrustId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nobody => "Nobody",
            Self::Everybody => "Everybody",
            Self::Peers(_) => "Peers",
        })
    }
}

/// Gives every request an id.
#[derive(Clone, Debug)]
pub struct RequestIdLayer {
    trust: TrustId,
    respond: bool,
    ids: Arc<Ids>,
}

impl RequestIdLayer {
    /// A fresh id for every request, which the client is not told.
    pub fn new() -> Self {
        Self { trust: TrustId::Nobody, respond: false, ids: Arc::new(Ids::new()) }
    }

    /// Whose ids are taken over. Default [`TrustId::Nobody`].
    #[must_use]
    pub fn with_trust(mut self, trust: TrustId) -> Self {
        self.trust = trust;
        self
    }

    /// Takes over the ids of those peers of connections that this says yes to: proxies in front, by their networks.
    #[must_use]
    pub fn with_trusted_peers(self, trust: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Self {
        self.with_trust(TrustId::Peers(Arc::new(trust)))
    }

    /// Whether the response carries the id too, in the place of one that the service set. Default `false`.
    #[must_use]
    pub fn with_response(mut self, respond: bool) -> Self {
        self.respond = respond;
        self
    }

    fn id_of<B>(&self, request: &Request<B>) -> RequestId {
        self.believed(request).unwrap_or_else(|| self.ids.next())
    }

    fn believed<B>(&self, request: &Request<B>) -> Option<RequestId> {
        let believed = match &self.trust {
            TrustId::Nobody => false,
            TrustId::Everybody => true,
            TrustId::Peers(trust) => crate::conn_info(request.extensions())
                .is_some_and(|info| trust(info.client_ip().to_canonical())),
        };
        believed.then(|| only(request.headers())).flatten().and_then(RequestId::new)
    }
}

/// Two lines are two ids, and neither is the request's.
fn only(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut lines = headers.get_all(X_REQUEST_ID).iter();
    let first = lines.next()?;
    lines.next().is_none().then(|| first.clone())
}

impl Default for RequestIdLayer {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes ids. Shared by all clones of a layer, so that no two requests have the same.
struct Ids {
    high: RandomState,
    low: RandomState,
    count: AtomicU64,
}

impl Ids {
    fn new() -> Self {
        // the second differs from the first by one; folding each other's hashes in makes them unlike
        Self { high: RandomState::new(), low: RandomState::new(), count: AtomicU64::new(0) }
    }

    fn next(&self) -> RequestId {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let halves = [self.high.hash_one(count), self.low.hash_one(!count)];
        let mut digits = Vec::with_capacity(32);
        for byte in halves.iter().flat_map(|half| half.to_be_bytes()) {
            digits.extend([byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
        }
        RequestId(
            HeaderValue::from_maybe_shared(Bytes::from(digits))
                .expect("hexadecimal digits make a field value"),
        )
    }
}

impl fmt::Debug for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ids")
    }
}

impl<S> Layer<S> for RequestIdLayer {
    type Service = WithRequestId<S>;

    fn layer(&self, inner: S) -> Self::Service {
        WithRequestId { inner, layer: self.clone() }
    }
}

/// The service of [`RequestIdLayer`]; called so because [`RequestId`] is the id.
#[derive(Clone, Debug)]
pub struct WithRequestId<S> {
    inner: S,
    layer: RequestIdLayer,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for WithRequestId<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let id = self.layer.id_of(&request);
        let value = id.value().clone();
        request.extensions_mut().insert(id);
        let tell = self.layer.respond.then(|| value.clone());
        if request.headers_mut().try_insert(X_REQUEST_ID, value).is_err() {
            // a map that is full has no room for it; nobody may find the client's in its place
            request.headers_mut().remove(X_REQUEST_ID);
        }
        ResponseFuture { inner: self.inner.call(request), tell }
    }
}

pin_project! {
    /// The future of [`WithRequestId`].
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        tell: Option<HeaderValue>,
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
        if let Some(id) = this.tell.take() {
            // a full map stays as it is: the response matters more
            let _ = response.headers_mut().try_insert(X_REQUEST_ID, id);
        }
        Poll::Ready(Ok(response))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{Body, get, ok, plain, through, with_conn};
    use std::collections::HashSet;

    fn asked(lines: &[&str]) -> Request<()> {
        let mut request = get("/");
        for line in lines {
            request.headers_mut().append(X_REQUEST_ID, HeaderValue::from_str(line).unwrap());
        }
        with_conn(request, plain())
    }

    /// What the service finds: the field's lines, and the extension.
    #[allow(clippy::needless_pass_by_value, reason = "the form of a service")]
    fn tell(request: Request<()>) -> Response<Body> {
        let mut response = Response::new(Body::default());
        for line in request.headers().get_all(X_REQUEST_ID) {
            response.headers_mut().append("seen", line.clone());
        }
        let id = request.extensions().get::<RequestId>().unwrap();
        response.headers_mut().insert("extension", id.value().clone());
        response
    }

    async fn seen(layer: &RequestIdLayer, request: Request<()>) -> String {
        let response = through(layer, tell, request).await;
        assert!(!response.headers().contains_key(X_REQUEST_ID));
        let lines: Vec<_> = response.headers().get_all("seen").iter().collect();
        assert_eq!(lines, [&response.headers()["extension"]]);
        lines[0].to_str().unwrap().to_owned()
    }

    fn is_ours(id: &str) -> bool {
        id.len() == 32 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    }

    #[tokio::test]
    async fn a_strangers_id_is_replaced() {
        let layer = RequestIdLayer::new();
        for lines in [&[][..], &["abc"], &["abc", "def"]] {
            assert!(is_ours(&seen(&layer, asked(lines)).await));
        }
    }

    #[tokio::test]
    async fn a_trusted_peers_id_is_kept_where_its_form_is_right() {
        let trusted: IpAddr = "198.51.100.7".parse().unwrap();
        let layer = RequestIdLayer::new().with_trusted_peers(move |peer| peer == trusted);
        assert_eq!(seen(&layer, asked(&["abc-1_2.3"])).await, "abc-1_2.3");
        let longest = "x".repeat(LONGEST);
        assert_eq!(seen(&layer, asked(&[&longest])).await, longest);
        for bad in ["", "a b", "a,b", "<a>", "a\"b", &"x".repeat(LONGEST + 1)] {
            assert!(is_ours(&seen(&layer, asked(&[bad])).await), "{bad}");
        }
        assert!(is_ours(&seen(&layer, asked(&["one", "two"])).await));
        // another peer, and none at all
        let stranger = RequestIdLayer::new().with_trusted_peers(move |peer| peer != trusted);
        assert!(is_ours(&seen(&stranger, asked(&["abc"])).await));
        let mut unknown = get("/");
        unknown.headers_mut().insert(X_REQUEST_ID, HeaderValue::from_static("abc"));
        assert!(is_ours(&seen(&layer, unknown).await));
    }

    #[tokio::test]
    async fn everybody_by_choice() {
        let layer = RequestIdLayer::new().with_trust(TrustId::Everybody);
        assert_eq!(seen(&layer, asked(&["abc"])).await, "abc");
    }

    #[tokio::test]
    async fn the_response_has_it_by_choice_and_once() {
        let layer = RequestIdLayer::new().with_response(true);
        let other = |request: Request<()>| {
            let mut response = tell(request);
            response.headers_mut().append(X_REQUEST_ID, HeaderValue::from_static("other"));
            response
        };
        let response = through(&layer, other, asked(&[])).await;
        let told: Vec<_> = response.headers().get_all(X_REQUEST_ID).iter().collect();
        assert_eq!(told, [&response.headers()["seen"]]);
        assert!(!through(&RequestIdLayer::new(), ok, asked(&[])).await.headers().contains_key(X_REQUEST_ID));
    }

    #[test]
    fn no_two_are_the_same() {
        let (ids, others) = (Ids::new(), Ids::new());
        let made: HashSet<_> =
            (0..10_000).flat_map(|_| [ids.next(), others.next()]).map(|id| id.as_str().to_owned()).collect();
        assert_eq!(made.len(), 20_000);
        assert!(made.iter().all(|id| is_ours(id)));
        // each half by itself differs too
        let low: HashSet<_> = made.iter().map(|id| &id[16..]).collect();
        assert_eq!(low.len(), 20_000);
    }

    #[tokio::test]
    async fn the_service_that_was_ready_is_called() {
        use tower::{Service, ServiceExt};
        let (mock, mut handle) = tower_test::mock::pair::<Request<()>, Response<Body>>();
        let mut service = RequestIdLayer::new().layer(mock);
        handle.allow(0);
        let mut ready = tokio_test_ready(&mut service);
        assert!(ready.is_pending());
        handle.allow(1);
        ready = tokio_test_ready(&mut service);
        assert!(ready.is_ready());
        let call = service.ready().await.unwrap().call(asked(&[]));
        let (response, ()) = tokio::join!(call, async {
            let (request, send) = handle.next_request().await.unwrap();
            assert!(is_ours(request.headers()[X_REQUEST_ID].to_str().unwrap()));
            send.send_response(Response::new(Body::default()));
        });
        assert_eq!(response.unwrap().status(), 200);
    }

    fn tokio_test_ready<S: Service<Request<()>>>(service: &mut S) -> Poll<Result<(), S::Error>> {
        service.poll_ready(&mut Context::from_waker(std::task::Waker::noop()))
    }
}
