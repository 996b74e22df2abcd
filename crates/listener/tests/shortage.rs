//! A real process under `ulimit -n 100` and a thousand clients: a TCP echo with slow handlers, and what must hold.
#![cfg(target_os = "linux")]

use std::{
    future::poll_fn,
    io::{BufRead, BufReader},
    net::SocketAddr,
    num::NonZeroUsize,
    pin::Pin,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use futures_core::Stream;
use portcullis_listener::{
    AcceptOptions, BindPlan, Incoming, Limits, TcpOptions, descriptor_limit, raise_descriptor_limit,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const DESCRIPTORS: u64 = 100;
const CLIENTS: usize = 1000;

/// The server process: a slow echo whose handlers hold their connection until the client goes, and for which `open`
/// opens a file.
#[tokio::test]
#[ignore = "the server process of the other test"]
async fn echo_server() {
    let (soft, _) = descriptor_limit().unwrap();
    assert_eq!(soft, DESCRIPTORS, "to be run under ulimit");
    tracing_subscriber::fmt()
        .with_ansi(false)
        .without_time()
        .with_writer(std::io::stderr)
        .try_init()
        .unwrap();
    let tcp = TcpOptions::default();
    let mut bound =
        BindPlan::new().tcp("127.0.0.1:0".parse().unwrap(), tcp.clone()).bind(NonZeroUsize::MIN).unwrap();
    let bound = bound.remove(0);
    let listener = bound.tcp.into_iter().next().unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let mut incoming = Incoming::new(listener, Limits::new(10_000), AcceptOptions::default(), &tcp);
    println!("\nLISTENING {}", bound.local_addr);
    while let Some(mut conn) = poll_fn(|cx| Pin::new(&mut incoming).poll_next(cx)).await {
        tokio::spawn(async move {
            let mut buf = [0; 64];
            while let Ok(len @ 1..) = conn.io.read(&mut buf).await {
                if buf.starts_with(b"open") {
                    let opened = std::fs::File::open("/dev/null").is_ok();
                    buf[..4].copy_from_slice(if opened { b"fine" } else { b"none" });
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                if conn.io.write_all(&buf[..len]).await.is_err() {
                    break;
                }
            }
        });
    }
}

struct Server {
    child: Child,
    address: SocketAddr,
    log: mpsc::Receiver<String>,
}

impl Server {
    fn start() -> Self {
        let mut child = Command::new("sh")
            .args(["-c", &format!("ulimit -n {DESCRIPTORS}; exec \"$0\" \"$@\"")])
            .arg(std::env::current_exe().expect("this test program"))
            .args(["--ignored", "--exact", "echo_server", "--nocapture"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("sh starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let address = stdout
            .lines()
            .map_while(Result::ok)
            .find_map(|line| {
                line.strip_prefix("LISTENING ").map(|address| address.parse().expect("an address"))
            })
            .expect("the server listens");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (send, log) = mpsc::channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, address, log }
    }

    fn logged(&self, part: &str) -> String {
        let line = self.log.recv_timeout(Duration::from_secs(10)).expect("a line in the log");
        assert!(line.contains(part), "{part} is missing in {line}");
        line
    }

    /// Processor time used so far: fields 14 and 15 of /proc/pid/stat, in ticks of 10 ms.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        let fields: Vec<&str> =
            stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn ask(client: &mut TcpStream, word: &[u8; 4]) -> [u8; 4] {
    client.write_all(word).await.expect("the connection is open");
    let mut back = [0; 4];
    client.read_exact(&mut back).await.expect("the server answers");
    back
}

async fn echo(client: &mut TcpStream) {
    assert_eq!(&ask(client, b"ping").await, b"ping");
}

#[tokio::test]
async fn more_clients_than_descriptors() {
    let own = raise_descriptor_limit().expect("a limit");
    assert!(
        own > CLIENTS as u64 + 100,
        "this test needs a hard limit of open files above {CLIENTS}, not {own}"
    );
    let mut server = Server::start();
    let mut served = TcpStream::connect(server.address).await.unwrap();
    echo(&mut served).await;

    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(TcpStream::connect(server.address).await.unwrap());
    }
    let line = server.logged("accepting connections is paused");
    for part in ["`ulimit -n` is 100 now", "LimitNOFILE=", "kept for the work"] {
        assert!(line.contains(part), "{part} is missing in {line}");
    }
    eprintln!("told: {line}");

    // several pauses long: the claim is about what a shortage costs over time
    let (before, since) = (server.cpu(), Instant::now());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (used, passed) = (server.cpu() - before, since.elapsed());
    assert!(used < passed / 20, "{used:?} of processor time in {passed:?}");
    eprintln!("processor time in {passed:?} of shortage: {used:?}");
    // who is in stays served, with files too: some descriptors are left for that
    echo(&mut served).await;
    assert_eq!(&ask(&mut served, b"open").await, b"fine");
    assert!(server.log.try_recv().is_err(), "a shortage is told once");

    drop(clients);
    let fresh = async {
        let mut fresh = TcpStream::connect(server.address).await.unwrap();
        echo(&mut fresh).await;
    };
    let begin = Instant::now();
    tokio::time::timeout(Duration::from_secs(2), fresh).await.expect("a fresh client is served within 2 s");
    eprintln!("a fresh client is served {:?} after the load has ended", begin.elapsed());
    server.logged("accepting connections again");
    assert!(server.log.try_recv().is_err());
    assert!(server.child.try_wait().unwrap().is_none(), "it still runs");
}
