//! `portcullis-listener` with the TLS acceptor of another crate, tokio-rustls. The handshake is in the connection's own task and
//! has a deadline; the permit stays inside of the TLS stream.
#![allow(clippy::print_stdout)]

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use portcullis_listener::{Incoming, Limits};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{io::AsyncWriteExt, time::timeout};
use tokio_rustls::TlsAcceptor;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let acceptor = TlsAcceptor::from(Arc::new(config.with_single_cert(vec![made.cert.der().clone()], key)?));

    let mut incoming = Incoming::bind("127.0.0.1:7002".parse()?, Limits::new(1000))?;
    println!("openssl s_client -connect {}", incoming.local_addr());
    while let Some(conn) = incoming.next().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // a client that does not finish its handshake gives its place back
            let tls = timeout(Duration::from_secs(10), acceptor.accept(conn.io)).await;
            if let Ok(Ok(mut tls)) = tls {
                let _ = tls.write_all(format!("hello, {}\n", conn.info.peer).as_bytes()).await;
                let _ = tls.shutdown().await;
            }
        });
    }
    Ok(())
}
