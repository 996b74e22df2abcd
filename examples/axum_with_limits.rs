//! `portcullis-listener` under an axum app: one line in place of `TcpListener::bind`, and the app has limits, survives running
//! out of descriptors, and drains.
#![allow(clippy::print_stdout)]

use std::time::Duration;

use axum::{Router, extract::ConnectInfo, routing::get};
use portcullis_listener::{ClientAddr, Incoming, Limits};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let limits = Limits::new(1000);
    let incoming = Incoming::bind("127.0.0.1:7001".parse()?, &limits)?;
    println!("http://{}", incoming.local_addr());

    let hello = async |ConnectInfo(ClientAddr(client)): ConnectInfo<ClientAddr>| format!("hello, {client}\n");
    let app = Router::new().route("/", get(hello));
    let shutdown = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    axum::serve(incoming, app.into_make_service_with_connect_info::<ClientAddr>())
        .with_graceful_shutdown(shutdown)
        .await?;
    limits.drain(Duration::from_secs(10)).await?;
    Ok(())
}
