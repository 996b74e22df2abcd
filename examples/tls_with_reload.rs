//! `portcullis-tls` with certificates that follow their files, under an axum application: renew them with whatever tool
//! you like, and the next handshake shows the new one. `cargo run -p portcullis -- certs` makes a first pair.
#![allow(clippy::print_stdout)]

use std::{future::pending, sync::Arc};

use axum::{Router, routing::get};
use portcullis_listener::{Incoming, Limits};
use portcullis_server::{HttpOptions, ServerCounters, serve};
use portcullis_tls::{
    AcceptorOptions, CertReloader, CertSource, CertStore, ReloadOptions, ServerOptions, ServerTls,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = Arc::new(CertStore::new());
    // `cert.pem` with `key.pem`, or as certbot and Kubernetes name them, here or in the directories below
    let mut certs = CertReloader::new(&store, vec![CertSource::Directory("certs".into())]);
    certs.load()?;
    tokio::spawn(certs.run(ReloadOptions::default(), pending()));

    let tls = ServerTls::new(store, &ServerOptions::default())?.acceptor(AcceptorOptions::default());
    let incoming = Incoming::bind("127.0.0.1:8443".parse()?, Limits::new(1000))?;
    println!("https://{}", incoming.local_addr());

    let app: Router = Router::new().route("/", get(|| async { "hello\n" }));
    let shutdown = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    serve(incoming, tls, app, HttpOptions::default(), Arc::new(ServerCounters::default()), shutdown).await;
    Ok(())
}
