//! From hyper's idea of a service to tower's.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use portcullis_conn::{ConnInfo, Interim, StreamHold};
use tower_service::Service;

use crate::{
    CloseReason, OnDisconnect, RequestBody, ServerCounters,
    activity::{Activity, Open, Responding},
    state::ConnState,
};

/// One per connection: hands each request, with the connection's facts, to a clone of the service.
pub(crate) struct ConnService<S> {
    pub(crate) service: S,
    pub(crate) info: Arc<ConnInfo>,
    /// Kept for HTTP/2 only; HTTP/1's driver knows by itself when it is idle.
    pub(crate) activity: Option<Arc<Activity>>,
    pub(crate) state: Arc<ConnState>,
    pub(crate) max_requests: u64,
    pub(crate) on_disconnect: OnDisconnect,
    pub(crate) counters: Arc<ServerCounters>,
}

impl<S, B> hyper::service::Service<Request<Incoming>> for ConnService<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>> + Clone,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
{
    type Response = Response<OpenBody<B>>;
    type Error = S::Error;
    type Future = CallFuture<S, B>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let number = self.state.on_request();
        let is_last = number >= self.max_requests && self.max_requests != 0;
        if is_last {
            self.state.finish_for(CloseReason::MaxRequests);
        }
        let connects = *request.method() == Method::CONNECT;
        let is_head = *request.method() == Method::HEAD;
        let http1 = self.activity.is_none();
        let talks = !request.body().is_end_stream() && is_grpc(request.headers());
        let mut request = request.map(|body| RequestBody::new(body, &self.state, http1, talks));
        let answered = request.body().answered();
        request.extensions_mut().insert(Arc::clone(&self.info));
        // RFC 9110 section 15.2: an older client knows no interim responses
        if http1 && !connects && request.version() == http::Version::HTTP_11 {
            self.state.interim.open(number);
            request.extensions_mut().insert(Interim::new(Arc::clone(&self.state) as _, number));
        }
        if connects && let Some(activity) = &self.activity {
            request.extensions_mut().insert(StreamHold::new(Open::tunnel(activity)));
        }
        let state = State::NotReady { service: self.service.clone(), request: Some(request) };
        let finish = match self.on_disconnect {
            OnDisconnect::Cancel => None,
            OnDisconnect::Finish { max, within } => {
                Some(Finish { counters: Arc::clone(&self.counters), max: max as u64, within })
            }
        };
        CallFuture {
            state,
            open: self.activity.as_ref().map(Open::new),
            // HTTP/2 has no such field, and says it by GOAWAY
            http1: self.activity.is_none().then(|| (Arc::clone(&self.state), is_last, connects)),
            answered,
            is_head,
            finish,
            held: None,
        }
    }
}

/// A stream of messages, both ways.
fn is_grpc(headers: &http::HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

/// RFC 9110 sections 9.3.2, 15.3.5 and 15.4.5: no content, whatever the response's body has. HTTP/1's driver sees to it by itself.
fn without_content(
    headers: &mut http::HeaderMap,
    status: StatusCode,
    is_head: bool,
    length: Option<u64>,
) -> bool {
    let never = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if is_head
        && !never
        && let Some(length) = length
        && !headers.contains_key(header::CONTENT_LENGTH)
    {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    is_head || never
}

/// What it takes to go on without the client.
struct Finish {
    counters: Arc<ServerCounters>,
    max: u64,
    within: Duration,
}

impl Finish {
    /// Runs what is left, if not too much is being finished already.
    fn spawn(self, rest: impl Future<Output = ()> + Send + 'static) {
        let Self { counters, max, within } = self;
        if counters.finishing.fetch_add(1, Ordering::Relaxed) >= max {
            counters.finishing.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        // counted out in its drop, also if it panics
        let guard = Finishing(counters);
        tokio::spawn(async move {
            let _guard = guard;
            let _ = tokio::time::timeout(within, rest).await;
        });
    }
}

struct Finishing(Arc<ServerCounters>);

impl Drop for Finishing {
    fn drop(&mut self) {
        self.0.finishing.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reads a body to its end for nobody.
async fn drain<B: Body>(mut body: Pin<Box<B>>) {
    while let Some(Ok(_)) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {}
}

pin_project_lite::pin_project! {
    /// Waits until the service is ready, and then for its response.
    pub(crate) struct CallFuture<S, B>
    where
        S: Service<Request<RequestBody>, Response = Response<B>>,
        S::Future: Send,
        S::Future: 'static,
        B: Body,
        B: Send,
        B: 'static,
    {
        #[pin]
        state: State<S>,
        open: Option<Open>,
        // the connection, whether this is its last request, and whether it is a CONNECT.
        http1: Option<(Arc<ConnState>, bool, bool)>,
        answered: Option<Arc<AtomicBool>>,
        is_head: bool,
        finish: Option<Finish>,
        // the response, while what goes ahead of it is written
        held: Option<Box<Response<B>>>,
    }

    impl<S, B> PinnedDrop for CallFuture<S, B>
    where
        S: Service<Request<RequestBody>, Response = Response<B>>,
        S::Future: Send,
        S::Future: 'static,
        B: Body,
        B: Send,
        B: 'static,
    {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let Some((state, ..)) = this.http1.as_ref() {
                state.interim.close();
            }
            let Some(finish) = this.finish.take() else { return };
            if let Some(response) = this.held.take() {
                finish.spawn(drain(Box::pin(response.into_body())));
            } else if let StateProj::Boxed { future } = this.state.project()
                && let Some(future) = future.take()
            {
                finish.spawn(async move {
                    let body = future.await.ok().map(|response| Box::pin(response.into_body()));
                    if let Some(body) = body {
                        drain(body).await;
                    }
                });
            }
        }
    }
}

pin_project_lite::pin_project! {
    #[project = StateProj]
    enum State<S: Service<Request<RequestBody>>> {
        NotReady { service: S, request: Option<Request<RequestBody>> },
        Called { #[pin] future: S::Future },
        // may outlive its client
        Boxed { future: Option<Pin<Box<S::Future>>> },
    }
}

impl<S, B> Future for CallFuture<S, B>
where
    S: Service<Request<RequestBody>, Response = Response<B>>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
{
    type Output = Result<Response<OpenBody<B>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut state = this.state;
        let response = loop {
            if let Some(response) = this.held.take() {
                break *response;
            }
            let future = match state.as_mut().project() {
                StateProj::Called { future } => break ready!(future.poll(cx))?,
                StateProj::Boxed { future: Some(future) } => break ready!(future.as_mut().poll(cx))?,
                // it was taken when this was dropped
                StateProj::Boxed { future: None } => return Poll::Pending,
                StateProj::NotReady { service, request } => {
                    ready!(service.poll_ready(cx))?;
                    match request.take() {
                        Some(request) => service.call(request),
                        // the state changes right below: the request is taken once
                        None => return Poll::Pending,
                    }
                }
            };
            state.set(match this.finish {
                None => State::Called { future },
                Some(_) => State::Boxed { future: Some(Box::pin(future)) },
            });
        };
        if let Some((conn, ..)) = this.http1.as_ref() {
            conn.interim.close();
            if conn.interim.any() {
                // the flush behind this writes them, and wakes this task when it has
                *this.held = Some(Box::new(response));
                return Poll::Pending;
            }
        }
        if let Some(answered) = this.answered {
            answered.store(true, Ordering::Relaxed);
        }
        let responding = this.open.take().map(Open::respond);
        let finish = this.finish.take();
        let (status, length) = (response.status(), response.body().size_hint().exact());
        let mut response = response;
        let bodiless =
            this.http1.is_none() && without_content(response.headers_mut(), status, *this.is_head, length);
        let mut response = response.map(|body| OpenBody {
            kind: match finish {
                _ if bodiless => Kind::Boxed { body: None },
                None => Kind::Plain { body },
                Some(_) => Kind::Boxed { body: Some(Box::pin(body)) },
            },
            responding,
            finish,
        });
        if let Some((state, is_last, connects)) = this.http1.take() {
            let status = response.status();
            if status == StatusCode::SWITCHING_PROTOCOLS || (connects && status.is_success()) {
                state.on_upgrade();
            } else if is_last {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
        }
        Poll::Ready(Ok(response))
    }
}

pin_project_lite::pin_project! {
    /// A response body that counts as an open stream until it is dropped.
    pub(crate) struct OpenBody<B>
    where
        B: Body,
        B: Send,
        B: 'static,
    {
        #[pin]
        kind: Kind<B>,
        responding: Option<Responding>,
        finish: Option<Finish>,
    }

    impl<B> PinnedDrop for OpenBody<B>
    where
        B: Body,
        B: Send,
        B: 'static,
    {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let Some(finish) = this.finish.take()
                && let KindProj::Boxed { body } = this.kind.project()
                && let Some(body) = body.take()
                && !body.is_end_stream()
            {
                finish.spawn(drain(body));
            }
        }
    }
}

pin_project_lite::pin_project! {
    #[project = KindProj]
    enum Kind<B> {
        Plain { #[pin] body: B },
        // may outlive its client `None` once it is at its end.
        Boxed { body: Option<Pin<Box<B>>> },
    }
}

impl<B: Body<Data = Bytes> + Send> Body for OpenBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        if let Some(responding) = this.responding {
            responding.asked();
        }
        let frame = match this.kind.project() {
            KindProj::Plain { body } => ready!(body.poll_frame(cx)),
            KindProj::Boxed { body: Some(inner) } => {
                let frame = ready!(inner.as_mut().poll_frame(cx));
                if !matches!(frame, Some(Ok(_))) {
                    this.finish.take();
                }
                frame
            }
            KindProj::Boxed { body: None } => None,
        };
        if let Some(responding) = this.responding {
            responding.handed();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Plain { body } => body.is_end_stream(),
            Kind::Boxed { body } => body.as_ref().is_none_or(|body| body.is_end_stream()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Plain { body } => body.size_hint(),
            Kind::Boxed { body } => body.as_ref().map_or(SizeHint::with_exact(0), |body| body.size_hint()),
        }
    }
}
