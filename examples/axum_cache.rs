//! `portcullis-cache` as a layer of an axum application: what says how long it is fresh is answered from memory, once for all who ask at one time.
//! `curl -i http://127.0.0.1:8080/slow` twice, and look at `Cache-Status`.
#![allow(clippy::print_stdout)]

use std::time::Duration;

use axum::{Router, http::header::CACHE_CONTROL, http::uri::Scheme, routing::get};
use portcullis_cache::{CacheLayer, CacheOptions, CacheRules};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The scheme is a part of the key, and here nothing but this tells it.
    let options = CacheOptions::default().with_max_bytes(64 << 20).with_scheme(Some(Scheme::HTTP));
    let store = CacheLayer::new(options);
    let rules = CacheRules::default().with_stale_while_revalidate(Duration::from_secs(10));

    let app = Router::new().route("/slow", get(slow)).layer(store.with_rules(rules));
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(5));
        loop {
            tick.tick().await;
            store.run_pending();
        }
    });

    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    println!("http://{}/slow", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}

async fn slow() -> ([(axum::http::HeaderName, &'static str); 1], &'static str) {
    tokio::time::sleep(Duration::from_secs(2)).await;
    ([(CACHE_CONTROL, "max-age=5")], "that took two seconds\n")
}
