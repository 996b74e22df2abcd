//! HTTP/3 load: a slot is a stream, and the streams of one connection share it. Each connection has a socket of its
//! own, as the connections of different clients have.

use std::{future::poll_fn, pin::pin, rc::Rc, sync::Arc};

use http::{Request, Version};
use http_body::Body as _;
use portcullis_h3::client::{ClientError, Connection};
use rustls::ClientConfig;

use crate::{
    error::chain,
    get::Filler,
    shared::Shared,
    stats::{Failure, Outcome},
    worker::{Plan, Worker},
};

/// Sends requests one after the other on the shared connection until the run is over.
pub(crate) async fn slot(worker: Rc<Worker>, shared: Rc<Shared<Connection>>) {
    while let Some(ticket) = worker.next().await {
        let mut no_connection = false;
        let result = match shared.get(&worker, async || connect(&worker.plan).await).await {
            Ok((generation, connection)) => {
                let result = exchange(&worker.plan, &connection).await;
                if result.is_err() && connection.is_closed() {
                    shared.forget(generation);
                }
                result
            }
            Err(failure) => {
                no_connection = true;
                Err(failure)
            }
        };
        worker.finish(ticket, result);
        if no_connection {
            worker.pause().await;
        }
    }
}

async fn connect(plan: &Plan) -> Result<Connection, Failure> {
    let tls = plan.tls.as_ref().ok_or_else(|| Failure::new("connect", "HTTP/3 needs TLS"))?;
    let config: Arc<ClientConfig> = Arc::clone(&tls.config);
    Connection::connect(plan.addr, &tls.name.to_str(), config)
        .await
        .map_err(|error| Failure::new("connect", chain(&error)))
}

async fn exchange(plan: &Plan, connection: &Connection) -> Result<Outcome, Failure> {
    let mut request = Request::new(Filler::of(&plan.body));
    *request.method_mut() = plan.method.clone();
    *request.uri_mut() = plan.uri.clone();
    *request.version_mut() = Version::HTTP_3;
    if plan.body.len > 0 {
        request.headers_mut().insert(http::header::CONTENT_LENGTH, plan.body.len.into());
    }
    let kind = |error: &ClientError| match error {
        ClientError::Protocol(_) => "protocol",
        _ => "receive",
    };
    let response =
        connection.send(request).await.map_err(|error| Failure::new(kind(&error), chain(&error)))?;
    let status = response.status().as_u16();
    let mut body = pin!(response.into_body());
    let mut bytes = 0;
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|error| Failure::new("receive", chain(&error)))?;
        bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
    Ok(Outcome { status, bytes })
}
