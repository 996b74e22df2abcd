//! Asking anew while a stale response is given out (RFC 5861 section 3).

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::{
    complete::{Plan, complete},
    flight::BoxError,
    layer::Core,
};

/// One task for each key at a time, since the plan has the lead. It ends with the response, or with the inner service's own deadlines.
pub(crate) fn spawn<S, B, R>(mut inner: S, core: &Arc<Core>, (request, plan): (Request<B>, Plan))
where
    S: Service<Request<B>, Response = Response<R>> + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let core = Arc::clone(core);
    tokio::spawn(async move {
        if poll_fn(|cx| inner.poll_ready(cx)).await.is_err() {
            return;
        }
        // The others get what they had; an error is for who asks next.
        let Ok(response) = inner.call(request).await else { return };
        let body = complete(&core, plan, response).into_body();
        if body.is_shared() {
            let mut body = pin!(body);
            while poll_fn(|cx| Pin::as_mut(&mut body).poll_frame(cx)).await.is_some_and(|frame| frame.is_ok())
            {
            }
        }
    });
}
