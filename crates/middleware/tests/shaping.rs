//! What shapes requests and responses, from an axum app.

#![cfg(all(feature = "compression", feature = "files"))]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body, routing::post};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use portcullis_conn::{ConnInfo, Transport};
use portcullis_middleware::{
    body_limit::BodyLimitLayer,
    compression::CompressionLayer,
    concurrency::{ConcurrencyLayer, ConcurrencyOptions},
    deadline::{DeadlineLayer, DeadlineOptions},
    files::{FileOptions, ServeFiles},
    maintenance::{Maintenance, MaintenanceLayer},
    request_decompression::RequestDecompressionLayer,
    request_id::RequestIdLayer,
};
use tower::ServiceExt;

fn request(method: Method, path: &str, fields: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let peer = SocketAddr::from(([198, 51, 100, 7], 4000));
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.extension(Arc::new(ConnInfo::new(Transport::Tcp, peer, peer))).body(body.into()).unwrap()
}

async fn read(response: Response<Body>) -> (u16, Vec<u8>) {
    let status = response.status().as_u16();
    (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
}

#[tokio::test(start_paused = true)]
async fn all_of_them_around_a_router() {
    let maintenance = MaintenanceLayer::new(Maintenance::default());
    let switch = maintenance.switch();
    switch.set(false);
    let slow = || async {
        tokio::time::sleep(Duration::from_secs(60)).await;
    };
    let app = Router::new()
        .route("/", post(|body: String| async move { body.repeat(200) }))
        .route("/slow", post(slow))
        .nest_service("/files", ServeFiles::new(FileOptions::new(env!("CARGO_MANIFEST_DIR"))))
        .layer(ConcurrencyLayer::new(ConcurrencyOptions::new(1).with_queue(0)))
        .layer(RequestDecompressionLayer::default())
        .layer(CompressionLayer::default())
        .layer(DeadlineLayer::new(DeadlineOptions::default().with_head(Some(Duration::from_secs(5)))))
        .layer(BodyLimitLayer::new(1000))
        .layer(maintenance)
        .layer(RequestIdLayer::new().with_response(true));
    let send = |request| app.clone().oneshot(request);

    let zipped = [("accept-encoding", "gzip")];
    let response = send(request(Method::POST, "/", &zipped, "some text ")).await.unwrap();
    assert_eq!(response.headers()["content-encoding"], "gzip");
    assert_eq!(response.headers()["x-request-id"].len(), 32);
    let (status, body) = read(response).await;
    assert!(status == 200 && body.len() < 200, "{}", body.len());

    let unzipped = zstd::stream::encode_all(&b"tiny"[..], 3).unwrap();
    let response = send(request(Method::POST, "/", &[("content-encoding", "zstd")], unzipped)).await.unwrap();
    assert_eq!(read(response).await, (200, "tiny".repeat(200).into_bytes()));

    let long = "x".repeat(1001);
    assert_eq!(send(request(Method::POST, "/", &[], long)).await.unwrap().status(), 413);

    let (slow, other) = tokio::join!(
        send(request(Method::POST, "/slow", &[], "")),
        send(request(Method::POST, "/", &[], "x"))
    );
    assert_eq!((slow.unwrap().status().as_u16(), other.unwrap().status().as_u16()), (504, 503));

    let response =
        send(request(Method::GET, "/files/Cargo.toml", &[("range", "bytes=0-8")], "")).await.unwrap();
    assert_eq!(read(response).await, (206, b"[package]".to_vec()));

    switch.set(true);
    assert_eq!(send(request(Method::POST, "/", &[], "x")).await.unwrap().status(), 503);
}
