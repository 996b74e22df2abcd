//! `portcullis-h3` under an axum application: HTTP/3 with every limit set, and a drain on Ctrl-C. Ask it with
//! `cargo run -p portcullis-loadgen -- get --http3 --insecure https://localhost:8444/`.
#![allow(clippy::print_stdout)]

use std::{sync::Arc, time::Duration};

use axum::{Router, routing::get};
use portcullis_h3::{ConnLimits, Endpoint, QuicOptions, WorkerId};
use portcullis_tls::{CertStore, ServerOptions, quic_config};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = Arc::new(CertStore::new());
    store.add_self_signed(&["localhost".to_owned()])?;
    let tls = quic_config(store, &ServerOptions::default())?;

    let socket = tokio::net::UdpSocket::bind("127.0.0.1:8444").await?.into_std()?;
    let limits = ConnLimits::new(1000);
    let endpoint = Endpoint::new(socket, tls, &QuicOptions::default(), WorkerId::new(0), limits)?;
    println!("https://{} (HTTP/3)", endpoint.local_addr()?);

    let app: Router = Router::new().route("/", get(|| async { "hello\n" }));
    let shutdown = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    endpoint.serve(app, shutdown, Duration::from_secs(10)).await;
    Ok(())
}
