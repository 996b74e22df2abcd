//! A cluster under load whose endpoints die, hang, fail and come back, and whose connections end at any moment.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

use crate::support::{edge::Edge, run};

/// What an endpoint does with requests.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Well,
    Hangs,
    Fails,
    /// Closes kept connections now and then, after an answer or with the next request on its way.
    Moody,
}

/// A value behind a lock that nobody holds for long.
type Shared<T> = Arc<std::sync::Mutex<T>>;

/// An endpoint that can be killed and started again on its port.
struct Node {
    addr: SocketAddr,
    mood: Shared<Mood>,
    served: Arc<AtomicU64>,
    task: Option<JoinHandle<()>>,
}

impl Node {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut node =
            Self { addr, mood: Shared::new(Mood::Well.into()), served: Arc::default(), task: None };
        node.serve(listener);
        node
    }

    fn serve(&mut self, listener: TcpListener) {
        let (mood, served) = (Arc::clone(&self.mood), Arc::clone(&self.served));
        self.task = Some(tokio::spawn(async move {
            let mut conns = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        conns.spawn(answer(accepted.unwrap().0, Arc::clone(&mood), Arc::clone(&served)));
                    }
                    Some(_) = conns.join_next() => {}
                }
            }
        }));
    }

    /// The listener and every connection are gone at once.
    async fn kill(&mut self) {
        let task = self.task.take().unwrap();
        task.abort();
        let _ = task.await;
    }

    async fn restart(&mut self) {
        let listener = TcpListener::bind(self.addr).await.unwrap();
        self.serve(listener);
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn served(&self) -> u64 {
        self.served.load(Ordering::SeqCst)
    }
}

async fn answer(mut io: TcpStream, mood: Shared<Mood>, served: Arc<AtomicU64>) {
    let mut read = Vec::new();
    let mut chance = u64::from(io.peer_addr().map_or(0, |peer| peer.port()));
    for number in 0.. {
        while !read.windows(4).any(|end| end == b"\r\n\r\n") {
            let mut some = [0; 4096];
            match io.read(&mut some).await {
                Ok(0) | Err(_) => return,
                Ok(n) => read.extend_from_slice(&some[..n]),
            }
        }
        read.clear();
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let now = *mood.lock().unwrap();
        let text = match now {
            Mood::Hangs => return std::future::pending().await,
            Mood::Fails => "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2\r\n\r\nno",
            // kept connections alone: with a new one there would be nothing to tell it from an endpoint that is ill
            Mood::Moody if number > 0 && chance >> 61 == 0 => return,
            Mood::Well | Mood::Moody => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        };
        if now != Mood::Fails {
            served.fetch_add(1, Ordering::SeqCst);
        }
        if io.write_all(text.as_bytes()).await.is_err() || (now == Mood::Moody && chance >> 62 == 1) {
            return;
        }
    }
}

/// GETs on a fixed schedule, over connections that are kept and used again.
struct Load {
    to: SocketAddr,
    idle: Shared<Vec<TcpStream>>,
    answers: Shared<std::collections::BTreeMap<String, u64>>,
}

impl Load {
    async fn run(self: Arc<Self>, per_second: u32, time: Duration) {
        let begin = tokio::time::Instant::now();
        let step = Duration::from_secs(1) / per_second;
        let mut all = JoinSet::new();
        for n in 0..u32::try_from(time.as_nanos() / step.as_nanos()).unwrap() {
            tokio::time::sleep_until(begin + step * n).await;
            let load = Arc::clone(&self);
            all.spawn(async move {
                // one in ten comes on a connection of its own
                let kept = (n % 10 != 0).then(|| load.idle.lock().unwrap().pop()).flatten();
                let status = match tokio::time::timeout(Duration::from_secs(10), load.get(kept)).await {
                    Ok(Ok(status)) => status,
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "no answer".to_owned(),
                };
                *load.answers.lock().unwrap().entry(status).or_default() += 1;
            });
        }
        while all.join_next().await.is_some() {}
    }

    async fn get(&self, kept: Option<TcpStream>) -> std::io::Result<String> {
        let mut io = match kept {
            Some(io) => io,
            None => TcpStream::connect(self.to).await?,
        };
        io.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await?;
        let mut read = Vec::new();
        loop {
            let mut some = [0; 4096];
            let n = io.read(&mut some).await?;
            read.extend_from_slice(&some[..n]);
            if n == 0 {
                return Ok(format!("cut: {}", String::from_utf8_lossy(&read)));
            }
            let text = String::from_utf8_lossy(&read);
            if text.starts_with("HTTP/1.1 200 ") && text.ends_with("\r\n\r\nok") {
                self.idle.lock().unwrap().push(io);
                return Ok("200".to_owned());
            }
            if text.contains("\r\n\r\n") && !text.starts_with("HTTP/1.1 200 ") {
                return Ok(text.lines().next().unwrap_or_default().to_owned());
            }
        }
    }
}

async fn metric(edge: &Edge, name: &str) -> String {
    let mut io = TcpStream::connect(edge.admin()).await.unwrap();
    io.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    io.read_to_string(&mut text).await.unwrap();
    let lines = text.lines().filter(|line| line.starts_with(name) && !line.starts_with('#'));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Waits until the edge says that an endpoint gets requests, or that it gets none.
async fn until_healthy(edge: &Edge, node: &Node, healthy: bool, within: Duration) -> Duration {
    let begin = Instant::now();
    let wanted = format!("/{}\"}} {}", node.addr, if healthy { "1" } else { "0" });
    while !metric(edge, "portcullis_upstream_endpoint_healthy").await.contains(&wanted) {
        assert!(begin.elapsed() < within, "{} is not {healthy} within {within:?}", node.addr);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    begin.elapsed()
}

fn config(nodes: &[Node], more: &str) -> String {
    let endpoints: Vec<_> = nodes.iter().map(|node| format!("\"{}\"", node.addr)).collect();
    format!(
        "[admin]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"http\"\n\
         [[route]]\ncluster = \"app\"\n[[cluster]]\nname = \"app\"\nendpoints = [{}]\n{more}",
        endpoints.join(", ")
    )
}

#[test]
fn nobody_notices_endpoints_that_die_hang_and_fail_in_turn() {
    run(async {
        let mut nodes = [Node::new().await, Node::new().await, Node::new().await];
        let edge = Edge::run(&config(
            &nodes,
            "response_timeout = \"300ms\"\nretry_statuses = [\"500-504\"]\nmax_server_errors = 3\n\
             max_fails = 3\nfail_timeout = \"500ms\"\nmax_fail_timeout = \"1s\"\n",
        ))
        .await;
        let load = Arc::new(Load { to: edge.http(), idle: Shared::default(), answers: Shared::default() });
        let running = tokio::spawn(Arc::clone(&load).run(500, Duration::from_secs(12)));
        let (soon, back) = (Duration::from_secs(3), Duration::from_secs(4));
        tokio::time::sleep(Duration::from_millis(500)).await;
        for (n, mood) in [Mood::Well, Mood::Hangs, Mood::Fails].into_iter().enumerate() {
            if mood == Mood::Well {
                nodes[n].kill().await;
            }
            nodes[n].set(mood);
            let out = until_healthy(&edge, &nodes[n], false, soon).await;
            // left alone, tried again, and left alone again
            tokio::time::sleep(Duration::from_millis(1500)).await;
            if mood == Mood::Well {
                nodes[n].restart().await;
            }
            nodes[n].set(Mood::Well);
            let before = nodes[n].served();
            let begin = Instant::now();
            while nodes[n].served() < before + 20 {
                assert!(begin.elapsed() < back, "endpoint {n} is not used again");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            println!("endpoint {n}: out after {out:?}, back after {:?}", begin.elapsed());
        }
        running.await.unwrap();
        let answers = load.answers.lock().unwrap().clone();
        println!("{answers:?}\n{}", metric(&edge, "portcullis_upstream").await);
        assert_eq!(answers.keys().collect::<Vec<_>>(), ["200"], "{answers:?}");
        assert!(answers["200"] > 5500, "{answers:?}");
    });
}

#[test]
fn connections_that_their_endpoint_closes_at_any_moment_are_nobodys_502() {
    run(async {
        let nodes = [Node::new().await, Node::new().await];
        nodes.iter().for_each(|node| node.set(Mood::Moody));
        // it is about connections: no endpoint is to be left alone for them, and as many retries are made as it takes
        let edge =
            Edge::run(&config(&nodes, "max_fails = 0\nretry_percent = 100\nmax_attempts = 10\n")).await;
        let load = Arc::new(Load { to: edge.http(), idle: Shared::default(), answers: Shared::default() });
        Arc::clone(&load).run(1000, Duration::from_secs(5)).await;
        let answers = load.answers.lock().unwrap().clone();
        println!("{answers:?}\n{}", metric(&edge, "portcullis_upstream").await);
        assert_eq!(answers.keys().collect::<Vec<_>>(), ["200"], "{answers:?}");
        assert_eq!(answers["200"], 5000);
    });
}
