//! Endpoints of HTTP/2 that end their connections under load (RFC 9113 section 6.8).

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{Method, Response};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{
    config::plain,
    support::{
        client::{Client, empty},
        edge::Edge,
        run,
    },
};

/// Streams of one connection.
const STREAMS: usize = 50;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ends {
    /// What has come is answered.
    Gracefully,
    /// What is not answered by then never is.
    Abruptly,
}

struct Server {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// Requests that it took up.
    requests: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Server {
    async fn start(ends: Ends) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let requests = Arc::new(AtomicUsize::new(0));
        let (counted, taken) = (Arc::clone(&connections), Arc::clone(&requests));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut all = JoinSet::new();
            while let Ok((io, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                all.spawn(serve(io, ends, Arc::clone(&taken)));
            }
        });
        Self { addr, connections, requests, _task: task }
    }
}

async fn serve(io: TcpStream, ends: Ends, requests: Arc<AtomicUsize>) {
    let mut conn = h2::server::handshake(io).await.unwrap();
    let mut answers = JoinSet::new();
    let mut count = 0;
    while let Some(Ok((_, mut respond))) = conn.accept().await {
        count += 1;
        requests.fetch_add(1, Ordering::SeqCst);
        answers.spawn(async move {
            // a turn later: some are on their way when the connection ends
            tokio::task::yield_now().await;
            if let Ok(mut body) = respond.send_response(Response::new(()), false) {
                let _ = body.send_data(Bytes::from_static(b"ok"), true);
            }
        });
        match ends {
            _ if count != STREAMS => {}
            Ends::Gracefully => conn.graceful_shutdown(),
            Ends::Abruptly => conn.abrupt_shutdown(h2::Reason::NO_ERROR),
        }
    }
    answers.join_all().await;
}

fn nobody_notices(ends: Ends) {
    run(async move {
        let server = Server::start(ends).await;
        // as many retries as it takes: what is looked at is whether they are made where they may be
        let keys = "protocol = \"http2\"\nmax_fails = 0\nretry_percent = 100\nmax_attempts = 10\n";
        let admin = "[admin]\naddress = \"127.0.0.1:0\"\n";
        let edge = Edge::run(&format!("{admin}{}{keys}", plain(server.addr))).await;
        let addr = edge.http();
        let mut all = JoinSet::new();
        for task in 0..8 {
            all.spawn(async move {
                let mut client = match task % 2 {
                    0 => Client::plain(addr, "a.test").await,
                    _ => Client::plain_h2(addr, "a.test").await,
                };
                for at in 0..125 {
                    // what a graceful end leaves was not begun: even a POST goes out again
                    let method = if ends == Ends::Gracefully { Method::POST } else { Method::GET };
                    let request = client.request(method, &format!("/{task}/{at}")).body(empty()).unwrap();
                    let reply = client.fetch(request).await;
                    assert_eq!((reply.status.as_u16(), &*reply.body), (200, "ok"), "{ends:?} {task} {at}");
                }
            });
        }
        all.join_all().await;
        let requests = server.requests.load(Ordering::SeqCst);
        assert!(requests == 1000 || ends == Ends::Abruptly, "{requests}: something was done twice");
        let connections = server.connections.load(Ordering::SeqCst);
        let retries = edge.metric("portcullis_upstream_retries_total").await;
        eprintln!("{ends:?}: {connections} connections, {retries} retries");
        assert!(connections >= 1000 / STREAMS, "{ends:?}: {connections} connections");
    });
}

#[test]
fn a_graceful_end_of_a_connection_fails_nothing() {
    nobody_notices(Ends::Gracefully);
}

#[test]
fn an_abrupt_end_of_a_connection_fails_nothing_that_may_be_sent_again() {
    nobody_notices(Ends::Abruptly);
}
