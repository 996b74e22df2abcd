//! Several paths at once, between two ends of ours.
#![cfg(feature = "multipath")]
#![allow(clippy::unwrap_used, clippy::large_futures, reason = "a test may panic")]

mod common;

use std::{sync::Arc, time::Duration};

use common::{GRACE, get, request, server_tls, service, soon};
use http::Response;
use http_body_util::{BodyExt, Full};
use portcullis_h3::{
    ConnLimits, QuicOptions, Retry,
    multipath::{Connection, Endpoint},
};
use portcullis_testkit::{body::ScriptBody, certs::TestCa};

fn client_tls(ca: &TestCa) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

#[tokio::test]
async fn a_client_has_its_share_and_proves_its_address() {
    let ca = TestCa::new();
    let limits = ConnLimits::with_admission(10, |_| None);
    let options = QuicOptions::default().with_retry(Retry::Always);
    let socket = common::udp().await;
    let to = socket.local_addr().unwrap();
    let endpoint = Endpoint::new(socket, Arc::new(server_tls(&ca)), &options, limits.clone()).unwrap();
    let served = service(|_| async { Response::new(ScriptBody::new()) });
    let serving = tokio::spawn(endpoint.serve(served, std::future::pending(), GRACE));
    // the handshake is done before anybody is asked for: it ends with the connection
    if let Ok(connection) = soon(Connection::connect(to, "localhost", Arc::new(client_tls(&ca)))).await {
        soon(connection.send(get("/"))).await.unwrap_err();
    }
    let stats = limits.stats();
    assert_eq!((stats.accepted, stats.refused, stats.retried), (0, 1, 1));
    serving.abort();
}

#[tokio::test]
async fn requests_go_over_two_paths_of_one_connection() {
    let ca = TestCa::new();
    let socket = tokio::net::UdpSocket::bind("0.0.0.0:0").await.unwrap().into_std().unwrap();
    let port = socket.local_addr().unwrap().port();
    let limits = ConnLimits::new(10);
    let endpoint =
        Endpoint::new(socket, Arc::new(server_tls(&ca)), &QuicOptions::default(), limits.clone()).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = service(|request| async move {
        let sent = request.into_body().collect().await.unwrap().to_bytes().len();
        Response::new(ScriptBody::new().data(vec![7; 2 << 20]).data(format!(" {sent}")))
    });
    let done = tokio::spawn(endpoint.serve(
        served,
        async move {
            let _ = stopped.await;
        },
        GRACE,
    ));

    let tls = client_tls(&ca);
    let first = ([127, 0, 0, 1], port).into();
    let connection = soon(Connection::connect(first, "localhost", Arc::new(tls))).await.unwrap();
    assert_eq!(connection.paths().len(), 1);
    soon(connection.open_path(([127, 0, 0, 2], port).into())).await.unwrap();
    for n in 0..4 {
        let body = Full::new(bytes::Bytes::from(vec![b'x'; 300_000]));
        let answer = soon(connection.send(request("POST", "/", body))).await.unwrap();
        let body = soon(answer.into_body().collect()).await.unwrap().to_bytes();
        assert!(body.len() == (2 << 20) + 7 && body.ends_with(b" 300000"), "{n}: {} bytes", body.len());
    }
    let paths = connection.paths();
    assert_eq!(paths.len(), 2);
    let carried: Vec<_> = paths.iter().map(|path| path.received).collect();
    assert!(carried.iter().all(|bytes| *bytes > 20_000), "{paths:?}");
    assert_eq!(limits.stats().accepted, 1);

    // a drain like on one path
    drop(stop);
    let late = soon(async {
        loop {
            if connection.send(get("/late")).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    late.await;
    drop(connection);
    soon(done).await.unwrap();
}
