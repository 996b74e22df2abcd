//! From hyper's idea of a service to tower's.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use http::Request;
use hyper::body::Incoming;
use portcullis_conn::ConnInfo;
use tower_service::Service;

/// One per connection: hands each request, with the connection's facts, to a clone of the service.
#[derive(Debug)]
pub(crate) struct ConnService<S> {
    pub(crate) service: S,
    pub(crate) info: Arc<ConnInfo>,
    pub(crate) activity: Arc<Activity>,
}

/// How many requests a connection has in hand, and how many it has had.
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

impl<S> hyper::service::Service<Request<Incoming>> for ConnService<S>
where
    S: Service<Request<Incoming>> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = CallFuture<S>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(Arc::clone(&self.info));
        self.activity.open.fetch_add(1, Ordering::Relaxed);
        self.activity.total.fetch_add(1, Ordering::Relaxed);
        CallFuture {
            state: State::NotReady { service: self.service.clone(), request: Some(request) },
            _open: Open(Arc::clone(&self.activity)),
        }
    }
}

/// Counts a request as open until its response head is there or it is cancelled.
struct Open(Arc<Activity>);

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
        _open: Open,
    }
}

pin_project_lite::pin_project! {
    #[project = StateProj]
    enum State<S: Service<Request<Incoming>>> {
        NotReady { service: S, request: Option<Request<Incoming>> },
        Called { #[pin] future: S::Future },
    }
}

impl<S: Service<Request<Incoming>>> Future for CallFuture<S> {
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let future = match state.as_mut().project() {
                StateProj::Called { future } => return future.poll(cx),
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
