//! `portcullis-listener`, `portcullis-tls` and `portcullis-server` under an axum application: HTTPS with HTTP/1.1 and
//! HTTP/2, every limit set, and a drain on Ctrl-C.
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use axum::{Router, routing::get};
use portcullis_listener::{Incoming, Limits};
use portcullis_server::{HttpOptions, ServerCounters, serve};
use portcullis_tls::{Acceptor, AcceptorOptions, CertStore, ServerOptions, tcp_config};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = Arc::new(CertStore::new());
    store.add_self_signed(&["localhost".to_owned()])?;
    let tls = Acceptor::new(tcp_config(store, &ServerOptions::default())?, AcceptorOptions::default());

    let incoming = Incoming::bind("127.0.0.1:8443".parse()?, Limits::new(1000))?;
    println!("https://{}", incoming.local_addr());

    let app: Router = Router::new().route("/", get(|| async { "hello\n" }));
    let shutdown = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    serve(incoming, tls, app, HttpOptions::default(), Arc::new(ServerCounters::default()), shutdown).await;
    Ok(())
}
