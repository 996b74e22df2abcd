//! From hyper's idea of a service to tower's.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use portcullis_conn::ConnInfo;
use tower_service::Service;

/// One per connection: hands each request, with the connection's facts, to a clone of the service.
#[derive(Debug)]
pub(crate) struct ConnService<S> {
    pub(crate) service: S,
    pub(crate) info: Arc<ConnInfo>,
    /// Kept for HTTP/2 only; HTTP/1's driver knows by itself when it is idle.
    pub(crate) activity: Option<Arc<Activity>>,
}

/// How many streams a connection has open, and how many it has had.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    open: AtomicU64,
    total: AtomicU64,
}

impl Activity {
    pub(crate) fn is_idle(&self) -> bool {
        self.open.load(Ordering::Relaxed) == 0
    }

    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

impl<S, B> hyper::service::Service<Request<Incoming>> for ConnService<S>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone,
{
    type Response = Response<OpenBody<B>>;
    type Error = S::Error;
    type Future = CallFuture<S>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(Arc::clone(&self.info));
        CallFuture {
            state: State::NotReady { service: self.service.clone(), request: Some(request) },
            open: self.activity.as_ref().map(Open::new),
        }
    }
}

/// Counts a stream as open until its response is over or it is cancelled.
struct Open(Arc<Activity>);

impl Open {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.open.fetch_add(1, Ordering::Relaxed);
        activity.total.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

pin_project_lite::pin_project! {
    /// Waits until the service is ready, and then for its response.
    pub(crate) struct CallFuture<S: Service<Request<Incoming>>> {
        #[pin]
        state: State<S>,
        open: Option<Open>,
    }
}

pin_project_lite::pin_project! {
    #[project = StateProj]
    enum State<S: Service<Request<Incoming>>> {
        NotReady { service: S, request: Option<Request<Incoming>> },
        Called { #[pin] future: S::Future },
    }
}

impl<S, B> Future for CallFuture<S>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
{
    type Output = Result<Response<OpenBody<B>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut state = this.state;
        loop {
            let future = match state.as_mut().project() {
                StateProj::Called { future } => {
                    let response = ready!(future.poll(cx))?;
                    let open = this.open.take();
                    return Poll::Ready(Ok(response.map(|body| OpenBody { body, _open: open })));
                }
                StateProj::NotReady { service, request } => {
                    ready!(service.poll_ready(cx))?;
                    match request.take() {
                        Some(request) => service.call(request),
                        // the state changes right below: the request is taken once
                        None => return Poll::Pending,
                    }
                }
            };
            state.set(State::Called { future });
        }
    }
}

pin_project_lite::pin_project! {
    /// A response body that counts as an open stream until it is dropped.
    pub(crate) struct OpenBody<B> {
        #[pin]
        body: B,
        _open: Option<Open>,
    }
}

impl<B: Body<Data = Bytes>> Body for OpenBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
