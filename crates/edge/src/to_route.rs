//! From a route's proxy to its cluster: what the route changes, where it changes anything.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header, request};
use http_body::Body as _;
use http_body_util::BodyExt;
use portcullis_proxy::{
    Fault, FieldEdits,
    mirror::{Copy, Mirror, MirrorBody},
    rewrite::Rewrite,
};
use tower_service::Service;
use tracing::debug;

use crate::{Body, forward::ToCluster};

/// Sends what the proxy has made ready to a cluster, changed as the route says.
#[derive(Clone, Debug)]
pub(crate) struct ToRoute {
    cluster: ToCluster,
    /// `None` for most: their requests pass as they are.
    changes: Option<Arc<Changes>>,
}

/// What a route changes. The proxy has done its part before: what a client sent is checked, and hop-by-hop and forwarded fields are
/// as they should be.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) rewrite: Option<Rewrite>,
    pub(crate) host: Option<HeaderValue>,
    pub(crate) request: FieldEdits,
    pub(crate) mirror: Option<(Mirror, ToCluster)>,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.rewrite.is_none() && self.host.is_none() && self.request.is_empty() && self.mirror.is_none()
    }

    /// Makes them, and puts a copy of the request on its way where one is due.
    fn apply(&self, request: Request<Body>) -> Result<Request<Body>, Fault> {
        let (mut parts, body) = request.into_parts();
        if let Some(rewrite) = &self.rewrite
            && let Some(target) = parts.uri.path_and_query()
        {
            parts.uri = Uri::from(rewrite.apply(target)?);
        }
        if let Some(host) = &self.host {
            parts.headers.insert(header::HOST, host.clone());
        }
        self.request.apply(&mut parts.headers);
        let body = match &self.mirror {
            Some((mirror, cluster)) => mirrored(mirror, cluster, &parts, body),
            None => body,
        };
        Ok(Request::from_parts(parts, body))
    }
}

/// The body, which takes a copy of the request along if there is to be one. An upgrade is a stream of its own and has none.
fn mirrored(mirror: &Mirror, cluster: &ToCluster, parts: &request::Parts, body: Body) -> Body {
    if parts.headers.contains_key(header::UPGRADE) {
        return body;
    }
    let Some(copy) = mirror.begin(&body.size_hint()) else { return body };
    let mut head = Request::new(()).into_parts().0;
    head.method = parts.method.clone();
    head.uri = parts.uri.clone();
    head.headers = parts.headers.clone();
    // the body is there: nobody has to be asked first
    head.headers.remove(header::EXPECT);
    if body.is_end_stream() {
        send_copy(cluster.clone(), head, copy, Bytes::new());
        return body;
    }
    let cluster = cluster.clone();
    Body::new(MirrorBody::new(body, copy, move |copy, bytes| send_copy(cluster, head, copy, bytes)))
}

/// How long a copy may take, with its answer.
const COPY_TIMEOUT: Duration = Duration::from_secs(30);

/// How much of the answer to a copy is read, so that its connection can be used again.
const COPY_ANSWER: usize = 64 << 10;

fn send_copy(mut cluster: ToCluster, head: request::Parts, copy: Copy, bytes: Bytes) {
    let request = Request::from_parts(head, Body::from(bytes));
    tokio::spawn(async move {
        let exchange = async {
            let mut body = cluster.call(request).await?.into_body();
            let mut read = 0;
            while read <= COPY_ANSWER
                && let Some(Ok(frame)) = body.frame().await
            {
                read += frame.data_ref().map_or(0, Bytes::len);
            }
            Ok::<_, Fault>(())
        };
        match tokio::time::timeout(COPY_TIMEOUT, exchange).await {
            Ok(Ok(())) => copy.answered(),
            Ok(Err(fault)) => {
                debug!(%fault, "a mirrored request failed");
                copy.failed();
            }
            Err(_) => copy.failed(),
        }
    });
}

impl ToRoute {
    pub(crate) fn new(cluster: ToCluster, changes: Changes) -> Self {
        Self { cluster, changes: (!changes.is_empty()).then(|| Arc::new(changes)) }
    }
}

impl Service<Request<Body>> for ToRoute {
    type Response = Response<Body>;
    type Error = Fault;
    type Future = RouteFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.cluster.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> RouteFuture {
        let Some(changes) = &self.changes else {
            return RouteFuture::Sent { future: self.cluster.call(request) };
        };
        match changes.apply(request) {
            Ok(request) => RouteFuture::Sent { future: self.cluster.call(request) },
            Err(fault) => RouteFuture::Refused { fault: Some(fault) },
        }
    }
}

/// The future of [`ToRoute`].
pub(crate) enum RouteFuture {
    Sent { future: <ToCluster as Service<Request<Body>>>::Future },
    Refused { fault: Option<Fault> },
}

impl Future for RouteFuture {
    type Output = Result<Response<Body>, Fault>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Refused { fault } => {
                Poll::Ready(Err(fault.take().expect("a future is not polled after it was ready")))
            }
            Self::Sent { future } => future.as_mut().poll(cx),
        }
    }
}
