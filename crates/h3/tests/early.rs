//! Requests in early data: served before the handshake is complete, and only for who has proven the address.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use portcullis_conn::ConnInfo;
use portcullis_h3::{
    ConnLimits, Endpoint, QuicOptions, RecvBody, WorkerId,
    client::{Client, Connection},
};
use portcullis_testkit::{body::ScriptBody, certs::TestCa};

/// Says whether the request was early when it came, and whether it waited for the handshake.
async fn tell(request: Request<RecvBody>) -> Result<Response<ScriptBody>, Infallible> {
    let info = Arc::clone(request.extensions().get::<Arc<ConnInfo>>().unwrap());
    let early = info.is_early();
    if request.uri().path() == "/held"
        && let Some(early) = info.early_data()
    {
        early.confirmed().await;
    }
    Ok(Response::new(ScriptBody::new().data(format!("{early} {}", info.is_early()))))
}

async fn get(connection: &Connection, path: &str) -> String {
    let request = Request::get(format!("https://localhost{path}")).body(Empty::<Bytes>::new()).unwrap();
    let response = connection.send(request).await.unwrap();
    assert_eq!(response.status(), 200, "{response:?}");
    let body = response.into_body().collect().await.unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

struct World {
    addrs: Vec<std::net::SocketAddr>,
    tls: Arc<rustls::ClientConfig>,
}

impl World {
    /// Two endpoints, as two workers have them.
    async fn new() -> Self {
        let ca = TestCa::new();
        let mut tls = common::server_tls(&ca);
        tls.max_early_data_size = u32::MAX;
        tls.send_half_rtt_data = true;
        let (tls, limits) = (Arc::new(tls), ConnLimits::new(100));
        let mut addrs = Vec::new();
        for worker in 0..2 {
            let endpoint = Endpoint::new(
                common::udp().await,
                Arc::clone(&tls),
                &QuicOptions::default(),
                WorkerId::new(worker),
                limits.clone(),
            )
            .unwrap();
            addrs.push(endpoint.local_addr().unwrap());
            tokio::spawn(endpoint.serve(tower::service_fn(tell), std::future::pending(), common::GRACE));
        }
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.enable_early_data = true;
        Self { addrs, tls: Arc::new(client) }
    }

    async fn connect(&self, client: &Client, endpoint: usize) -> Connection {
        client.connect_early(self.addrs[endpoint], "localhost", Arc::clone(&self.tls)).await.unwrap()
    }
}

#[tokio::test]
async fn who_comes_back_is_served_before_the_handshake_is_complete() {
    let world = World::new().await;
    let client = Client::new("127.0.0.1:0".parse().unwrap()).unwrap();
    let first = world.connect(&client, 0).await;
    assert_eq!(get(&first, "/").await, "false false", "nothing to come back to yet");
    // tickets and tokens come after the handshake
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(get(&world.connect(&client, 0).await, "/").await, "true true");
    let early = world.connect(&client, 1).await;
    assert_eq!(
        get(&early, "/held").await,
        "true false",
        "at another worker; held until the handshake is complete"
    );
    assert_eq!(get(&early, "/").await, "false false", "later requests are not early");
}

#[tokio::test]
async fn an_address_that_is_only_claimed_is_not_served_early() {
    let world = World::new().await;
    let first = Client::new("127.0.0.1:0".parse().unwrap()).unwrap();
    assert_eq!(get(&world.connect(&first, 0).await, "/").await, "false false");
    tokio::time::sleep(Duration::from_millis(50)).await;
    // it has the ticket and no token: whose address it is nobody knows
    let second = Client::new("127.0.0.1:0".parse().unwrap()).unwrap();
    assert_eq!(get(&world.connect(&second, 0).await, "/").await, "false false");
}
