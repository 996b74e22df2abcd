//! Many connections against limits, on real sockets.
#![cfg(target_os = "linux")]

use std::{
    net::SocketAddr,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use portcullis_listener::{
    AcceptOptions, BindPlan, ClientLimit, Incoming, LimitOptions, Limits, OverClient, OverLimit, TcpOptions,
    raise_descriptor_limit,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

const DEADLINE: Duration = Duration::from_secs(60);

/// Accepts on every address of the group, and keeps each connection until its client goes: in four ways, one of which
/// is a handshake that fails, and one an upgrade.
struct Server {
    limits: Limits,
    address: SocketAddr,
    most: Arc<AtomicUsize>,
}

impl Server {
    fn start(options: LimitOptions, backlog: u32) -> Self {
        let limits = Limits::with_options(options);
        let tcp = TcpOptions::default().with_backlog(backlog);
        let plan = BindPlan::new().tcp("0.0.0.0:0".parse().expect("an address"), tcp.clone());
        let bound = plan.bind(NonZeroUsize::new(2).expect("two")).expect("bound").remove(0);
        let address = bound.local_addr.ip().expect("an IP address");
        let most = Arc::new(AtomicUsize::new(0));
        for listener in bound.tcp {
            let mut incoming =
                Incoming::from_std(listener, &limits, AcceptOptions::default(), &tcp).expect("registered");
            let (limits, most) = (limits.clone(), Arc::clone(&most));
            tokio::spawn(async move {
                while let Some(mut conn) = incoming.next().await {
                    most.fetch_max(limits.open(), Ordering::SeqCst);
                    tokio::spawn(async move {
                        let mut first = [0; 1];
                        match conn.io.read(&mut first).await {
                            // a handshake that fails
                            Ok(1) if first == *b"x" => return,
                            Ok(1) => {}
                            _ => return,
                        }
                        let _ = conn.io.write_all(b"y").await;
                        // an upgrade: the stream goes on, elsewhere and in two halves
                        let (mut read, write) = tokio::io::split(conn.io);
                        let upgraded = tokio::spawn(async move {
                            let _write = write;
                            let _ = read.read(&mut [0; 1]).await;
                        });
                        let _ = upgraded.await;
                    });
                }
            });
        }
        Self { limits, address, most }
    }
}

/// Clients come from several addresses, so that there are ports for all.
async fn connect(to: SocketAddr, from: u8) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    // closed by a reset, so that not thousands of ports linger in TIME_WAIT
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    socket.bind(SocketAddr::from(([127, 0, 0, from], 0)))?;
    socket.connect(SocketAddr::from(([127, 0, 0, 1], to.port()))).await
}

fn need_descriptors(wanted: u64) {
    let own = raise_descriptor_limit().expect("a limit");
    assert!(own >= wanted, "this test needs a hard limit of open files of {wanted}, not {own}");
}

async fn all_gone(limits: &Limits) {
    // what waits in the queue is accepted after its client has gone, and goes as well
    let gone = async {
        loop {
            limits.drained().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            if limits.open() == 0 {
                break;
            }
        }
    };
    timeout(DEADLINE, gone).await.expect("every permit comes back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connections_against_a_thousand() {
    const CLIENTS: usize = 10_000;
    need_descriptors(2 * 2_000 + 1_000);
    for over in [OverLimit::Wait, OverLimit::Close, OverLimit::Reset] {
        let options = LimitOptions::default().with_max_connections(1_000).with_over(over);
        let server = Server::start(options, 4096);
        let (served, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        // more than the limit at any time, and no more than there are descriptors for
        let at_once = Arc::new(Semaphore::new(1_800));
        let mut clients = JoinSet::new();
        for n in 0..CLIENTS {
            let (served, refused) = (Arc::clone(&served), Arc::clone(&refused));
            let (at_once, address) = (Arc::clone(&at_once), server.address);
            let limits = server.limits.clone();
            clients.spawn(async move {
                let _one = at_once.acquire().await.expect("never closed");
                let Ok(mut io) = connect(address, 2 + (n % 8) as u8).await else {
                    refused.fetch_add(1, Ordering::SeqCst);
                    return;
                };
                match n % 4 {
                    // gone without a word
                    0 => {
                        served.fetch_add(1, Ordering::SeqCst);
                    }
                    // a handshake that fails
                    1 => {
                        let _ = io.write_all(b"x").await;
                        let _ = io.read(&mut [0; 1]).await;
                        served.fetch_add(1, Ordering::SeqCst);
                    }
                    _ => {
                        let _ = io.write_all(b"h").await;
                        let answer = io.read(&mut [0; 1]).await;
                        let counter = if matches!(answer, Ok(1)) { served } else { refused };
                        counter.fetch_add(1, Ordering::SeqCst);
                        // held until the limit was met, however slow the machine
                        while over == OverLimit::Wait && limits.stats().limit_reached == 0 {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                        tokio::time::sleep(Duration::from_millis(150)).await;
                    }
                }
            });
        }
        timeout(DEADLINE, async { while clients.join_next().await.is_some() {} })
            .await
            .expect("all clients end");
        all_gone(&server.limits).await;
        let stats = server.limits.stats();
        let most = server.most.load(Ordering::SeqCst);
        let (served, refused) = (served.load(Ordering::SeqCst), refused.load(Ordering::SeqCst));
        eprintln!("{over:?}: at most {most} open, {served} served, {refused} refused; {stats:?}");
        assert!(most <= 1_000, "{over:?}: {most} were open");
        assert_eq!(served + refused, CLIENTS);
        match over {
            OverLimit::Wait => {
                assert_eq!((refused, stats.refused_over_limit), (0, 0), "all wait and are served");
                assert_eq!(stats.accepted, CLIENTS as u64);
                assert!(stats.limit_reached > 0 && most == 1_000, "the limit was met: {most}");
            }
            _ => assert!(stats.accepted + stats.refused_over_limit >= CLIENTS as u64 / 2, "{stats:?}"),
        }
        assert_eq!(stats.open, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_client_with_five_thousand_connections_keeps_nobody_out() {
    const GREEDY: usize = 5_000;
    need_descriptors(GREEDY as u64 + 1_000);
    for over in
        [OverClient::Close, OverClient::Reset, OverClient::Delay { up_to: Duration::from_millis(200) }]
    {
        let client = ClientLimit::new(100).with_over(over);
        let options = LimitOptions::default().with_max_connections(1_000).with_per_client(Some(client));
        let server = Server::start(options, 4096);
        let mut greedy = Vec::with_capacity(GREEDY);
        for _ in 0..GREEDY {
            // the kernel connects them whether they are accepted or not
            if let Ok(Ok(io)) = timeout(Duration::from_secs(5), connect(server.address, 2)).await {
                greedy.push(io);
            }
        }
        let other = async {
            let mut io = connect(server.address, 3).await.expect("connected");
            io.write_all(b"h").await.expect("sent");
            let mut answer = [0; 1];
            io.read_exact(&mut answer).await.expect("an answer");
            assert_eq!(&answer, b"y");
        };
        timeout(Duration::from_secs(5), other).await.expect("another client is served");
        let stats = server.limits.stats();
        eprintln!("{over:?}: {} of the greedy one are connected; {stats:?}", greedy.len());
        // of each of two acceptors 128 that wait, and the one in its hand that finds no place there
        let most = server.most.load(Ordering::SeqCst);
        assert!(most <= 101 + 2 * (128 + 1), "{over:?}: {most} were open; {stats:?}");
        assert!(server.limits.clients() <= 2);
        drop(greedy);
        all_gone(&server.limits).await;
        assert_eq!(server.limits.clients(), 0);
    }
}
