//! Packets that arrive where their connection is not: at a process that took the socket over, and at another worker.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "whatever is missing fails the test")]

mod common;

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use portcullis_h3::{
    ConnLimits, ConnectionIds, Endpoint, HandOver, Predecessor, QuicOptions, QuicSocket, RecvBody, Siblings,
    WorkerId,
    client::{Client, Connection},
};
use portcullis_testkit::certs::TestCa;
use tokio::{sync::oneshot, task::JoinHandle};

/// What all endpoints here have in common.
struct World {
    tls: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
}

struct Server {
    addr: SocketAddr,
    limits: ConnLimits,
    stop: Option<oneshot::Sender<()>>,
    done: JoinHandle<()>,
}

impl World {
    fn new() -> Self {
        let ca = TestCa::new();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { tls: Arc::new(common::server_tls(&ca)), client: Arc::new(client) }
    }

    /// Answers with its name and the length of the request's body.
    fn serve(&self, name: &'static str, socket: QuicSocket, worker: u8, generation: u8) -> Server {
        let ids = ConnectionIds::default().with_generation(generation);
        let options = QuicOptions::default().with_connection_ids(ids);
        let limits = ConnLimits::new(100);
        let (tls, worker) = (Arc::clone(&self.tls), WorkerId::new(worker));
        let endpoint = Endpoint::new(socket, tls, &options, worker, limits.clone()).unwrap();
        let addr = endpoint.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let service = tower::service_fn(move |request: Request<RecvBody>| async move {
            let body = request.into_body().collect().await?.to_bytes();
            Ok::<_, portcullis_h3::BodyError>(Response::new(Full::<Bytes>::from(format!(
                "{name} {}",
                body.len()
            ))))
        });
        let shutdown = async move {
            let _: Result<(), _> = stopped.await;
        };
        let done = tokio::spawn(endpoint.serve(service, shutdown, common::GRACE));
        Server { addr, limits, stop: Some(stop), done }
    }

    async fn connect(&self, client: &Client, addr: SocketAddr) -> Connection {
        client.connect(addr, "localhost", Arc::clone(&self.client)).await.unwrap()
    }
}

impl Server {
    async fn end(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        tokio::time::timeout(common::GRACE, self.done).await.unwrap().unwrap();
    }
}

/// What answered, after it had so many bytes.
async fn ask(connection: &Connection, bytes: usize) -> String {
    let body = Full::<Bytes>::from(vec![7; bytes]);
    let request = Request::post("https://localhost/").body(body).unwrap();
    let sent = async {
        let response = connection.send(request).await.unwrap();
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    };
    tokio::time::timeout(Duration::from_secs(10), sent).await.expect("an answer in time")
}

#[allow(clippy::disallowed_methods, reason = "outside of a runtime, and on loopback")]
fn udp() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").unwrap()
}

fn client() -> Client {
    Client::new("127.0.0.1:0".parse().unwrap()).unwrap()
}

/// An endpoint on a duplicate of the socket, as another process has it.
fn succeed(
    world: &World,
    name: &'static str,
    (generation, last): (u8, &HandOver),
    socket: &UdpSocket,
) -> (Server, HandOver) {
    let mut predecessors = last.predecessors().unwrap();
    predecessors.push(Predecessor::new(generation, last.give().unwrap()));
    let mut taken = QuicSocket::from(socket.try_clone().unwrap()).with_predecessors(predecessors);
    let hand_over = taken.hand_over();
    (world.serve(name, taken, 0, generation + 1), hand_over)
}

#[tokio::test]
async fn connections_go_on_where_they_are_and_new_ones_come_to_the_new_process() {
    let (world, socket) = (World::new(), udp());
    let mut first = QuicSocket::from(socket.try_clone().unwrap());
    let hand_over = first.hand_over();
    let first = world.serve("first", first, 0, 0);
    // one socket for all, so that the system may put packets of several connections into one batch
    let client = client();
    let old = world.connect(&client, first.addr).await;
    assert_eq!(ask(&old, 10).await, "first 10");

    let (second, its_hand_over) = succeed(&world, "second", (0, &hand_over), &socket);
    let new = world.connect(&client, second.addr).await;
    let both = tokio::join!(ask(&old, 3_000_000), ask(&new, 3_000_000));
    assert_eq!(both, ("first 3000000".to_owned(), "second 3000000".to_owned()));

    // and once more, while the first is still there
    let (third, _) = succeed(&world, "third", (1, &its_hand_over), &socket);
    let newest = world.connect(&client, third.addr).await;
    let all = tokio::join!(ask(&old, 300_000), ask(&new, 300_000), ask(&newest, 300_000));
    assert_eq!(all, ("first 300000".to_owned(), "second 300000".to_owned(), "third 300000".to_owned()));
    assert_eq!([&first, &second, &third].map(|server| server.limits.stats().accepted), [1, 1, 1]);

    // what drains is told to, and gone; the rest goes on
    let (ending, served) = tokio::join!(first.end(), ask(&new, 100));
    assert_eq!(((), served.as_str()), (ending, "second 100"));
    assert_eq!(ask(&newest, 100).await, "third 100");
}

#[tokio::test]
async fn a_socket_that_nobody_reads_any_more_is_read_again() {
    let (world, socket) = (World::new(), udp());
    let mut first = QuicSocket::from(socket.try_clone().unwrap());
    let hand_over = first.hand_over();
    let first = world.serve("first", first, 0, 0);
    let client = client();
    let old = world.connect(&client, first.addr).await;
    assert_eq!(ask(&old, 1).await, "first 1");
    let (second, _) = succeed(&world, "second", (0, &hand_over), &socket);
    assert_eq!(ask(&old, 2).await, "first 2");
    // it fails, with all that it holds
    second.done.abort();
    let _ = second.done.await;
    drop(second.stop);
    assert_eq!(ask(&old, 3).await, "first 3");
    assert_eq!(ask(&world.connect(&client, first.addr).await, 4).await, "first 4");
    // the same when the process before takes it back, with the channel open
    let channel = hand_over.give().unwrap();
    hand_over.take_back();
    assert_eq!(ask(&old, 5).await, "first 5");
    drop(channel);
}

/// Client and endpoints don't see one another: everything goes over a relay, which sends to whom it is told.
async fn relay(to: [SocketAddr; 2]) -> (SocketAddr, Arc<AtomicUsize>) {
    let (front, back) = (common::udp().await, common::udp().await);
    let addr = front.local_addr().unwrap();
    let (front, back) = [front, back]
        .map(|socket| {
            socket.set_nonblocking(true).unwrap();
            Arc::new(tokio::net::UdpSocket::from_std(socket).unwrap())
        })
        .into();
    let which = Arc::new(AtomicUsize::new(0));
    let chosen = Arc::clone(&which);
    tokio::spawn(async move {
        let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
        let mut client = None;
        loop {
            tokio::select! {
                Ok((len, from)) = front.recv_from(&mut up) => {
                    client = Some(from);
                    let _ = back.send_to(&up[..len], to[chosen.load(Ordering::SeqCst)]).await;
                }
                Ok((len, _)) = back.recv_from(&mut down) => {
                    if let Some(client) = client {
                        let _ = front.send_to(&down[..len], client).await;
                    }
                }
            }
        }
    });
    (addr, which)
}

/// As where no packet filter steers and a client's address changes: the socket that its packets come to is another worker's.
#[tokio::test]
async fn packets_for_another_worker_reach_it() {
    let world = World::new();
    let siblings = Siblings::new(2);
    let with = |socket: UdpSocket| QuicSocket::from(socket).with_siblings(siblings.clone());
    let workers = [world.serve("worker 0", with(udp()), 0, 0), world.serve("worker 1", with(udp()), 1, 0)];
    let (addr, which) = relay([workers[0].addr, workers[1].addr]).await;
    let client = client();
    // a new connection is where the client's own choice of an id leads, whoever receives it
    let mut served = Vec::new();
    for n in 0..16 {
        which.store(n % 2, Ordering::SeqCst);
        let connection = world.connect(&client, addr).await;
        let first = ask(&connection, 10).await;
        which.store(1 - n % 2, Ordering::SeqCst);
        assert_eq!(ask(&connection, 10).await, first, "the same worker over another socket");
        served.push(first);
    }
    let accepted = workers.map(|worker| worker.limits.stats().accepted);
    assert_eq!(accepted.iter().sum::<u64>(), 16, "{served:?}");
}

/// Without a word between them each worker drops what is another's.
#[tokio::test]
async fn without_siblings_they_do_not() {
    let world = World::new();
    let workers = [world.serve("worker 0", udp().into(), 0, 0), world.serve("worker 1", udp().into(), 1, 0)];
    let (addr, which) = relay([workers[0].addr, workers[1].addr]).await;
    let client = client();
    let connection = world.connect(&client, addr).await;
    assert_eq!(ask(&connection, 10).await, "worker 0 10");
    which.store(1, Ordering::SeqCst);
    let lost = tokio::time::timeout(
        Duration::from_millis(300),
        connection.send(Request::get("https://localhost/").body(Full::<Bytes>::default()).unwrap()),
    );
    assert!(lost.await.is_err());
}
