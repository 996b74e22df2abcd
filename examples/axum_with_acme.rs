//! `portcullis-acme` under an axum application: HTTPS with certificates that an authority issues and that are renewed
//! by themselves. Run it where www.example.com leads to port 443 of this machine: `axum_with_acme www.example.com`.
#![allow(clippy::disallowed_methods, reason = "a program reads its arguments")]

use std::{env, future::pending, sync::Arc};

use axum::{Router, routing::get};
use portcullis_acme::{Acme, AcmeOptions, DirStorage, Directory};
use portcullis_listener::{Incoming, Limits};
use portcullis_server::{HttpOptions, ServerCounters, serve};
use portcullis_tls::{AcceptorOptions, CertStore, ServerOptions, ServerTls};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = Arc::new(CertStore::new());
    // an authority for trials, which no browser trusts; `Directory::LetsEncrypt` is the one in earnest
    let options = AcmeOptions::new(Directory::LetsEncryptStaging).with_certificate(env::args().skip(1));
    let acme = Acme::new(&store, Arc::new(DirStorage::new("acme")), options)?;
    // what an earlier run had issued; the authority is not waited for
    acme.load()?;

    let options = AcceptorOptions::default().with_name_hook(acme.name_hook());
    let tls = ServerTls::new(store, &ServerOptions::default())?.acceptor(options);
    tokio::spawn(async move { acme.run(pending()).await });

    let incoming = Incoming::bind("[::]:443".parse()?, Limits::new(1000))?;
    let app: Router = Router::new().route("/", get(|| async { "hello\n" }));
    let shutdown = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    serve(incoming, tls, app, HttpOptions::default(), Arc::new(ServerCounters::default()), shutdown).await;
    Ok(())
}
