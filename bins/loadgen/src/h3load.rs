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
                let result = exchange(&worker.plan, &connection, |len| worker.received(len)).await;
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

/// `received` is told the length of each piece of the response's body.
async fn exchange(
    plan: &Plan,
    connection: &Connection,
    mut received: impl FnMut(u64),
) -> Result<Outcome, Failure> {
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
        let len = frame.data_ref().map_or(0, |data| data.len() as u64);
        bytes += len;
        received(len);
    }
    Ok(Outcome { status, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::{Protocol, Trust},
        io::TlsTarget,
        tls,
        worker::Body,
    };
    use http::{HeaderValue, Method, Response, Uri};
    use portcullis_h3::{ConnLimits, Endpoint, QuicOptions, RecvBody, WorkerId};
    use portcullis_testkit::certs::TestCa;
    use rustls_pki_types::ServerName;
    use std::{net::SocketAddr, time::Duration};

    /// A server that reads the request's body and answers 201 with as many bytes.
    async fn server() -> SocketAddr {
        let cert = TestCa::new().issue(&["localhost"]);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der()], cert.key_der())
            .unwrap();
        config.alpn_protocols = vec![b"h3".to_vec()];
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap().into_std().unwrap();
        let (options, limits) = (QuicOptions::default(), ConnLimits::new(10));
        let endpoint = Endpoint::new(socket, Arc::new(config), &options, WorkerId::new(0), limits).unwrap();
        let addr = endpoint.local_addr().unwrap();
        let service = tower::service_fn(async |request: Request<RecvBody>| {
            assert_eq!(request.uri(), "https://localhost/path");
            let mut body = pin!(request.into_body());
            let mut len = 0;
            while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
                len += frame?.data_ref().map_or(0, |data| data.len() as u64);
            }
            let mut response = Response::new(Filler::new(len));
            *response.status_mut() = http::StatusCode::CREATED;
            Ok::<_, portcullis_h3::BodyError>(response)
        });
        tokio::spawn(endpoint.serve(service, std::future::pending(), Duration::ZERO));
        addr
    }

    fn plan(addr: SocketAddr, body: u64) -> Plan {
        let trust = Trust { insecure: true, ca: None };
        Plan {
            protocol: Protocol::H3,
            addr,
            tls: Some(TlsTarget {
                config: tls::client_config(&trust, &[b"h3"], true).unwrap(),
                name: ServerName::try_from("localhost").unwrap(),
            }),
            method: if body > 0 { Method::POST } else { Method::GET },
            uri: Uri::from_static("https://localhost/path"),
            host: HeaderValue::from_static("localhost"),
            body: Body::new(body),
            streams: 1,
            per_connection: None,
            timeout: Duration::from_secs(1),
        }
    }

    #[tokio::test]
    async fn bodies_both_ways_on_one_connection() {
        let addr = server().await;
        let connection = connect(&plan(addr, 0)).await.unwrap();
        for len in [0, 1, 200_000] {
            let mut pieces = 0;
            let outcome = exchange(&plan(addr, len), &connection, |len| pieces += len).await.unwrap();
            assert_eq!(outcome, Outcome { status: 201, bytes: len });
            assert_eq!(pieces, len);
        }
    }

    #[tokio::test]
    async fn a_connection_that_ended_is_a_failure() {
        let addr = server().await;
        let plan = plan(addr, 0);
        let connection = connect(&plan).await.unwrap();
        connection.close();
        assert_eq!(exchange(&plan, &connection, |_| ()).await.unwrap_err().kind, "receive");
        assert!(connection.is_closed());
    }
}
