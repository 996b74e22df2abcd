//! An axum app with bounds on bodies, time and how much runs at once, and with compressed responses.
//!
//! `cargo run -p portcullis-examples --example axum_limits_and_compression`, then `curl -i --compressed http://127.0.0.1:8080/`

use std::{error::Error, time::Duration};

use axum::{Router, routing::get};
use portcullis_middleware::{
    body_limit::BodyLimitLayer,
    compression::CompressionLayer,
    concurrency::{AdaptiveOptions, ConcurrencyLayer, ConcurrencyOptions},
    deadline::{DeadlineLayer, DeadlineOptions},
    request_id::RequestIdLayer,
};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let places = ConcurrencyOptions::new(1000).with_adaptive(Some(AdaptiveOptions::default()));
    // the last one is the outermost
    let app = Router::new()
        .route("/", get(|| async { "hello\n".repeat(1000) }))
        .layer(ConcurrencyLayer::new(places))
        .layer(CompressionLayer::default())
        .layer(DeadlineLayer::new(DeadlineOptions::default().with_head(Some(Duration::from_secs(10)))))
        .layer(BodyLimitLayer::new(1 << 20))
        .layer(RequestIdLayer::new().with_response(true));
    axum::serve(TcpListener::bind("127.0.0.1:8080").await?, app).await?;
    Ok(())
}
