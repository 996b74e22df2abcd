//! HTTP/2 load: a slot is a stream, and the streams of one connection share it.
//!
//! This sits on the `h2` crate itself and not on hyper's client, whose dispatch channel and extra wake-ups would be
//! measured as well.

use std::{future::poll_fn, rc::Rc};

use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{Builder, SendRequest},
};
use http::{Request, Version};

use crate::{
    io::Io,
    shared::Shared,
    stats::{Failure, Outcome},
    worker::{Plan, Worker},
};

const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// What a connection's streams are opened with.
pub(crate) type Sender = SendRequest<Bytes>;

async fn connect(plan: &Plan) -> Result<Sender, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new("connect", error);
    let io = Io::connect(plan.addr, plan.tls.as_ref()).await.map_err(|error| failed(&error))?;
    if io.alpn() != Some(b"h2") {
        return Err(failed(&"the server did not agree on h2"));
    }
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_reset_streams(plan.streams)
        .enable_push(false);
    let (sender, connection) = builder.handshake(io).await.map_err(|error| failed(&error))?;
    tokio::task::spawn_local(async move {
        // the streams report how it ended
        let _ = connection.await;
    });
    Ok(sender)
}

/// Sends requests one after the other on the shared connection until the run is over.
pub(crate) async fn slot(worker: Rc<Worker>, shared: Rc<Shared<Sender>>) {
    let request = prepared(&worker.plan);
    while let Some(ticket) = worker.next().await {
        let mut no_connection = false;
        let result = match shared.get(&worker, async || connect(&worker.plan).await).await {
            Ok((generation, sender)) => {
                let result = exchange(&worker.plan, sender, request.clone()).await;
                if let Err((_, true)) = &result {
                    shared.forget(generation);
                }
                result.map_err(|(failure, _)| failure)
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

fn prepared(plan: &Plan) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = plan.method.clone();
    *request.uri_mut() = plan.uri.clone();
    *request.version_mut() = Version::HTTP_2;
    if plan.body.len > 0 {
        request.headers_mut().insert(http::header::CONTENT_LENGTH, plan.body.len.into());
    }
    request
}

/// The flag of an error says whether the connection is of no more use.
async fn exchange(plan: &Plan, sender: Sender, request: Request<()>) -> Result<Outcome, (Failure, bool)> {
    let failed = |kind| {
        move |error: h2::Error| {
            let dead = error.is_io() || error.is_go_away();
            (Failure::new(kind, error), dead)
        }
    };
    let mut sender = sender.ready().await.map_err(|error| (Failure::new("send", error), true))?;
    let (response, mut stream) = sender
        .send_request(request, plan.body.len == 0)
        .map_err(|error| (Failure::new("send", error), true))?;
    if plan.body.len > 0 {
        // when the server stops taking the body it has answered already, or the response tells why not
        let _ = send_body(plan, &mut stream).await;
    }
    let response = response.await.map_err(failed("receive"))?;
    let status = response.status().as_u16();
    let bytes = read_body(response.into_body()).await.map_err(failed("receive"))?;
    Ok(Outcome { status, bytes })
}

async fn send_body(plan: &Plan, stream: &mut SendStream<Bytes>) -> Result<(), h2::Error> {
    let mut left = plan.body.len;
    while left > 0 {
        stream.reserve_capacity(usize::try_from(left).unwrap_or(usize::MAX).min(64 * 1024));
        let Some(capacity) = poll_fn(|cx| stream.poll_capacity(cx)).await.transpose()? else { return Ok(()) };
        let piece = plan.body.piece(left, capacity);
        left -= piece.len() as u64;
        stream.send_data(piece, left == 0)?;
    }
    Ok(())
}

async fn read_body(mut body: RecvStream) -> Result<u64, h2::Error> {
    let mut bytes = 0;
    while let Some(data) = poll_fn(|cx| body.poll_data(cx)).await.transpose()? {
        bytes += data.len() as u64;
        body.flow_control().release_capacity(data.len())?;
    }
    if !body.is_end_stream() {
        poll_fn(|cx| body.poll_trailers(cx)).await?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::Protocol, worker::Body};
    use http::{HeaderValue, Method, Response, Uri};
    use std::{net::SocketAddr, time::Duration};

    fn plan(body: u64) -> Plan {
        Plan {
            protocol: Protocol::H2,
            addr: SocketAddr::from(([127, 0, 0, 1], 1)),
            tls: None,
            method: if body > 0 { Method::POST } else { Method::GET },
            uri: Uri::from_static("https://localhost/path"),
            host: HeaderValue::from_static("localhost"),
            body: Body::new(body),
            streams: 1,
            per_connection: None,
            timeout: Duration::from_secs(1),
        }
    }

    /// One exchange with a server that reads the request's body and then does `answer`.
    async fn exchanged(
        body: u64,
        answer: impl FnOnce(u64, h2::server::SendResponse<Bytes>) + 'static,
    ) -> Result<Outcome, (Failure, bool)> {
        let plan = plan(body);
        let (client, server) = tokio::io::duplex(1 << 12);
        let serve = async move {
            let mut connection = h2::server::handshake(server).await.unwrap();
            let (request, respond) = connection.accept().await.unwrap().unwrap();
            assert_eq!(request.uri(), "https://localhost/path");
            let read = async move { answer(read_body(request.into_body()).await.unwrap(), respond) };
            let close = async { while connection.accept().await.is_some() {} };
            tokio::join!(read, close);
        };
        let load = async {
            let (sender, connection) = h2::client::handshake(client).await.unwrap();
            let exchange = exchange(&plan, sender, prepared(&plan));
            tokio::select! {
                // both may be ready at once
                biased;
                outcome = exchange => outcome,
                ended = connection => panic!("the connection ended first: {ended:?}"),
            }
        };
        tokio::join!(load, serve).0
    }

    #[tokio::test]
    async fn bodies_both_ways() {
        for len in [0, 1, 200_000] {
            let outcome = exchanged(len, move |read, mut respond| {
                assert_eq!(read, len);
                let response = Response::builder().status(201).body(()).unwrap();
                let mut stream = respond.send_response(response, false).unwrap();
                stream.send_data(Bytes::from(vec![0; 100_000]), false).unwrap();
                stream.send_trailers(http::HeaderMap::new()).unwrap();
            })
            .await;
            assert_eq!(outcome.unwrap(), Outcome { status: 201, bytes: 100_000 }, "{len}");
        }
    }

    #[tokio::test]
    async fn a_reset_stream_does_not_end_the_connection() {
        let outcome = exchanged(0, |_, mut respond| respond.send_reset(h2::Reason::REFUSED_STREAM)).await;
        let (failure, dead) = outcome.unwrap_err();
        assert_eq!(failure.kind, "receive");
        assert!(!dead);
    }
}
