//! From hyper's idea of a service to tower's.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use portcullis_conn::ConnInfo;
use tower_service::Service;

use crate::activity::{Activity, Open, Responding};

/// One per connection: hands each request, with the connection's facts, to a clone of the service.
#[derive(Debug)]
pub(crate) struct ConnService<S> {
    pub(crate) service: S,
    pub(crate) info: Arc<ConnInfo>,
    /// Kept for HTTP/2 only; HTTP/1's driver knows by itself when it is idle.
    pub(crate) activity: Option<Arc<Activity>>,
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
                    let responding = this.open.take().map(Open::respond);
                    return Poll::Ready(Ok(response.map(|body| OpenBody { body, responding })));
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
        responding: Option<Responding>,
    }
}

impl<B: Body<Data = Bytes>> Body for OpenBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let Some(responding) = this.responding else { return this.body.poll_frame(cx) };
        responding.asked();
        let frame = ready!(this.body.poll_frame(cx));
        responding.handed();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
