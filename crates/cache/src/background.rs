//! Asking anew while a stale response is given out (RFC 5861 section 3).

use std::{future::poll_fn, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::sync::OwnedSemaphorePermit;
use tower_service::Service;

use crate::{
    complete::{Plan, complete},
    flight::{BoxError, read_on},
    layer::Core,
};

/// A request that is made for nobody.
pub(crate) struct Ask<B> {
    pub(crate) request: Request<B>,
    pub(crate) plan: Plan,
    /// Of [`crate::CacheOptions::max_background`].
    pub(crate) permit: OwnedSemaphorePermit,
}

/// One task for each key at a time, since the plan has the lead. It ends with the response, or with the inner service's own deadlines.
pub(crate) fn spawn<S, B, R>(mut inner: S, core: &Arc<Core>, ask: Ask<B>)
where
    S: Service<Request<B>, Response = Response<R>> + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let core = Arc::clone(core);
    let Ask { request, plan, permit } = ask;
    tokio::spawn(async move {
        if poll_fn(|cx| inner.poll_ready(cx)).await.is_err() {
            return;
        }
        // The others get what they had; an error is for who asks next.
        let Ok(response) = inner.call(request).await else { return };
        if let Some(seat) = complete(&core, plan, response).into_body().into_seat() {
            read_on(seat).await;
        }
        drop(permit);
    });
}
