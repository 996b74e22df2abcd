//! `axum::serve(incoming, app)`.
#![cfg(feature = "axum")]

use std::{net::SocketAddr, time::Duration};

use axum::{Router, extract::ConnectInfo, routing::get};
use portcullis_listener::{AcceptOptions, ClientAddr, Incoming, Limits, TcpOptions};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const SOON: Duration = Duration::from_secs(10);

async fn ask(stream: &mut TcpStream, address: SocketAddr) {
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: {address}\r\n\r\n").as_bytes()).await.expect("sent");
}

async fn answer(stream: &mut TcpStream) -> String {
    let mut buf = vec![0; 4096];
    let len = timeout(SOON, stream.read(&mut buf)).await.expect("an answer").expect("an answer");
    String::from_utf8_lossy(&buf[..len]).into_owned()
}

#[tokio::test]
async fn an_app_gets_limits_and_the_clients_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let limits = Limits::new(1);
    let incoming = Incoming::new(listener, &limits, AcceptOptions::default(), &TcpOptions::default());
    let address = incoming.local_addr().ip().expect("an IP address");
    let app = Router::new()
        .route("/", get(async |ConnectInfo(client): ConnectInfo<ClientAddr>| client.0.to_string()));
    let closed = limits.clone();
    let served = tokio::spawn(async move {
        let app = app.into_make_service_with_connect_info::<ClientAddr>();
        axum::serve(incoming, app).with_graceful_shutdown(async move { closed.closed().await }).await
    });

    let mut first = TcpStream::connect(address).await.expect("connected");
    ask(&mut first, address).await;
    let text = answer(&mut first).await;
    let client = first.local_addr().expect("an address").to_string();
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with(&client), "{text}");

    // the second one waits for the first
    let mut second = TcpStream::connect(address).await.expect("connected");
    ask(&mut second, address).await;
    assert!(timeout(Duration::from_millis(100), second.read(&mut [0; 1])).await.is_err());
    assert_eq!(limits.open(), 1);
    drop(first);
    assert!(answer(&mut second).await.starts_with("HTTP/1.1 200"));
    drop(second);

    limits.drain(SOON).await.expect("all connections end");
    timeout(SOON, served).await.expect("it ends").expect("no panic").expect("no error");
}
