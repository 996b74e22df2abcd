use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_test::{assert_pending, assert_ready, task};

use super::{recovery::MOST_IN_A_ROW, *};
use crate::{BindPlan, ClientLimit, LimitOptions, Limits, test_log::Log};

mod limits;

/// What `accept` answers, in order; then nothing comes.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<Result<IpAddr, i32>>>>,
    calls: Arc<AtomicUsize>,
    resets: Arc<AtomicUsize>,
    /// The number that the next descriptor gets.
    descriptor: Arc<AtomicUsize>,
}

/// A connection: how many resets there were, and its descriptor.
struct ScriptIo(Arc<AtomicUsize>, usize);

impl Script {
    fn new(answers: impl IntoIterator<Item = Result<(), i32>>) -> Self {
        let script = Self::default();
        script.push(answers);
        script
    }

    fn push(&self, answers: impl IntoIterator<Item = Result<(), i32>>) {
        let client = IpAddr::from([192, 0, 2, 1]);
        self.answers.lock().extend(answers.into_iter().map(|answer| answer.map(|()| client)));
    }

    /// A connection of this client.
    fn push_client(&self, client: &str) {
        self.answers.lock().push_back(Ok(client.parse().unwrap()));
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn resets(&self) -> usize {
        self.resets.load(Ordering::SeqCst)
    }
}

impl Listen for Script {
    type Io = ScriptIo;

    fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<(ScriptIo, ConnInfo)>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        match self.answers.lock().pop_front() {
            Some(Ok(ip)) => {
                let local = SocketAddr::from(([127, 0, 0, 1], 80));
                let info = ConnInfo::new(Transport::Tcp, SocketAddr::new(ip, 4000), local);
                let io = ScriptIo(Arc::clone(&self.resets), self.descriptor.load(Ordering::SeqCst));
                Poll::Ready(Ok((io, info)))
            }
            Some(Err(code)) => Poll::Ready(Err(io::Error::from_raw_os_error(code))),
            None => Poll::Pending,
        }
    }

    fn local_addr(&self) -> ListenAddr {
        SocketAddr::from(([127, 0, 0, 1], 80)).into()
    }

    fn reset(io: ScriptIo) {
        io.0.fetch_add(1, Ordering::SeqCst);
    }

    fn descriptor(io: &ScriptIo) -> Option<u64> {
        Some(io.1 as u64)
    }

    fn lowest_free_descriptor(&self) -> Option<u64> {
        Some(self.descriptor.load(Ordering::SeqCst) as u64)
    }
}

struct Loop(Incoming<Script>);

impl Loop {
    fn spawn(script: &Script, limits: impl Into<ListenerLimits>) -> task::Spawn<Self> {
        Self::with(script, limits, AcceptOptions::default())
    }

    fn with(script: &Script, limits: impl Into<ListenerLimits>, options: AcceptOptions) -> task::Spawn<Self> {
        task::spawn(Self(Incoming::listen(script.clone(), limits, options)))
    }
}

trait PollLoop {
    fn poll_accept(&mut self) -> Poll<Option<Permit>>;
}

impl PollLoop for task::Spawn<Loop> {
    fn poll_accept(&mut self) -> Poll<Option<Permit>> {
        self.enter(|cx, mut it| it.0.poll(cx).map(|accepted| accepted.map(|(_, _, permit)| permit)))
    }
}

async fn advance(millis: u64) {
    tokio::time::advance(Duration::from_millis(millis)).await;
}

#[tokio::test(start_paused = true)]
async fn errors_of_one_connection_cost_no_time() {
    let script = Script::new([Err(libc::ECONNABORTED), Err(libc::EPROTO), Err(libc::EPERM), Ok(())]);
    let limits = Limits::new(5);
    let mut accepting = Loop::spawn(&script, &limits);
    let permit = assert_ready!(accepting.poll_accept()).unwrap();
    assert_eq!(limits.open(), 1);
    drop(permit);
    let stats = limits.stats();
    assert_eq!((stats.accepted, stats.connection_errors, stats.shortage_errors), (1, 3, 0));
    assert_eq!(stats.paused, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn errors_without_end_do_not_spin() {
    let script = Script::new(std::iter::repeat_n(Err(libc::EPERM), 1000));
    let limits = Limits::new(5);
    let mut accepting = Loop::spawn(&script, &limits);
    assert_pending!(accepting.poll_accept());
    assert_eq!(script.calls(), MOST_IN_A_ROW as usize);
    assert_pending!(accepting.poll_accept());
    assert_eq!(script.calls(), MOST_IN_A_ROW as usize, "a poll for nothing must not accept");
    advance(11).await;
    assert!(accepting.is_woken());
    assert_pending!(accepting.poll_accept());
    assert_eq!(script.calls(), 2 * MOST_IN_A_ROW as usize);
    assert_eq!(limits.stats().shortages, 0);
}

#[tokio::test(start_paused = true)]
async fn a_shortage_pauses_and_is_told_once() {
    let log = Log::capture();
    let script = Script::new([Err(libc::EMFILE), Err(libc::EMFILE), Err(libc::EMFILE), Ok(()), Ok(())]);
    let limits = Limits::new(5);
    let mut accepting = Loop::spawn(&script, &limits);
    for calls in 1..=3 {
        assert_pending!(accepting.poll_accept());
        assert_eq!(script.calls(), calls);
        advance(499).await;
        assert_pending!(accepting.poll_accept());
        assert_eq!(script.calls(), calls, "too early");
        advance(2).await;
        assert!(accepting.is_woken());
    }
    let first = assert_ready!(accepting.poll_accept());
    let lines = log.lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in
        ["WARN", "accepting connections is paused", "500ms", "ulimit -n", "LimitNOFILE=", "127.0.0.1:80"]
    {
        assert!(lines[0].contains(part), "{part} is missing in {}", lines[0]);
    }

    let second = assert_ready!(accepting.poll_accept());
    assert_pending!(accepting.poll_accept());
    advance(501).await;
    assert!(accepting.is_woken(), "the end of the episode must not need a client");
    assert_pending!(accepting.poll_accept());
    let lines = log.lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for part in ["INFO", "accepting connections again", "errors=3", "lasted=1.50"] {
        assert!(lines[1].contains(part), "{part} is missing in {}", lines[1]);
    }
    let stats = limits.stats();
    assert_eq!((stats.shortages, stats.shortage_errors, stats.accepted, stats.open), (1, 3, 2, 2));
    assert!(stats.paused >= Duration::from_millis(1500) && stats.paused < Duration::from_millis(1600));
    drop((first, second));
}

#[tokio::test(start_paused = true)]
async fn a_closing_connection_ends_the_pause() {
    let script = Script::new([Ok(()), Err(libc::EMFILE), Ok(())]);
    let limits = Limits::new(5);
    let mut accepting = Loop::spawn(&script, &limits);
    let open = assert_ready!(accepting.poll_accept());
    assert_pending!(accepting.poll_accept());
    advance(10).await;
    assert!(!accepting.is_woken());
    drop(open);
    assert!(accepting.is_woken());
    assert!(assert_ready!(accepting.poll_accept()).is_some());
    assert_eq!(limits.stats().paused, Duration::from_millis(10));
}

#[tokio::test(start_paused = true)]
async fn connections_that_come_and_go_in_a_shortage_stay_one_episode() {
    let log = Log::capture();
    let script = Script::new([Ok(())]);
    let limits = Limits::new(5);
    let mut accepting = Loop::spawn(&script, &limits);
    let mut open = assert_ready!(accepting.poll_accept());
    for _ in 0..20 {
        script.push([Err(libc::EMFILE)]);
        assert_pending!(accepting.poll_accept());
        advance(100).await;
        drop(open);
        script.push([Ok(())]);
        open = assert_ready!(accepting.poll_accept());
    }
    advance(501).await;
    assert_pending!(accepting.poll_accept());
    assert_eq!(limits.stats().shortages, 1);
    assert_eq!(log.lines().len(), 2, "{:?}", log.lines());
    drop(open);
}

#[tokio::test(start_paused = true)]
async fn listeners_share_an_episode_and_do_not_wake_each_other() {
    let log = Log::capture();
    let limits = Limits::new(5);
    let scripts = [Script::new([Err(libc::ENFILE)]), Script::new([Err(libc::ENFILE)])];
    let [mut first, mut second] = scripts.each_ref().map(|script| Loop::spawn(script, &limits));
    assert_pending!(first.poll_accept());
    assert_pending!(second.poll_accept());
    assert!(!first.is_woken() && !second.is_woken());
    assert_eq!(log.lines().len(), 1);
    advance(501).await;
    assert_pending!(first.poll_accept());
    assert_pending!(second.poll_accept());
    advance(501).await;
    assert_pending!(first.poll_accept());
    assert_eq!(log.lines().len(), 1, "the second may still see a shortage");
    drop(second);
    assert_eq!(log.lines().len(), 2);
    assert_eq!(limits.stats().shortages, 1);

    // a later one is a new episode
    scripts[0].push([Err(libc::ENOMEM)]);
    assert_pending!(first.poll_accept());
    assert_eq!((limits.stats().shortages, log.lines().len()), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn the_limit_holds_accept_back() {
    let script = Script::new([Ok(()), Ok(()), Ok(())]);
    let limits = Limits::new(2);
    let mut accepting = Loop::spawn(&script, &limits);
    let first = assert_ready!(accepting.poll_accept());
    let second = assert_ready!(accepting.poll_accept());
    assert_pending!(accepting.poll_accept());
    assert_eq!(script.calls(), 2, "no accept without a permit");
    drop(first);
    assert!(accepting.is_woken());
    let third = assert_ready!(accepting.poll_accept());
    assert_eq!(limits.open(), 2);
    drop((second, third));
    assert_pending!(accepting.poll_accept());
    assert_eq!(limits.open(), 0, "an acceptor that waits is not an open connection");
}

#[tokio::test(start_paused = true)]
async fn an_idle_listener_holds_no_permit() {
    let limits = Limits::new(1);
    let (idle, busy) = (Script::default(), Script::new([Ok(())]));
    let mut idle = Loop::spawn(&idle, &limits);
    assert_pending!(idle.poll_accept());
    let mut busy = Loop::spawn(&busy, &limits);
    assert!(assert_ready!(busy.poll_accept()).is_some());
}

#[tokio::test(start_paused = true)]
async fn close_ends_the_stream_in_every_state() {
    let idle = Script::default();
    let short = Script::new([Err(libc::EMFILE)]);
    let breathing = Script::new(std::iter::repeat_n(Err(libc::EPERM), 200));
    let full = Script::new([Ok(())]);
    for (name, script, polls_before) in
        [("idle", idle, 0), ("short", short, 0), ("breathing", breathing, 0), ("full", full, 1)]
    {
        let limits = Limits::new(1);
        let mut accepting = Loop::spawn(&script, &limits);
        let open: Vec<_> = (0..polls_before).map(|_| assert_ready!(accepting.poll_accept())).collect();
        assert_pending!(accepting.poll_accept());
        limits.close();
        assert!(accepting.is_woken(), "{name}");
        assert!(assert_ready!(accepting.poll_accept()).is_none(), "{name}");
        assert_eq!(limits.open(), open.len());
    }
}

async fn listen(
    address: &str,
    tcp: &TcpOptions,
    limits: &Limits,
    group: usize,
) -> (SocketAddr, Vec<Incoming>) {
    let mut bound = BindPlan::new()
        .tcp(address.parse().unwrap(), tcp.clone())
        .bind(std::num::NonZeroUsize::new(group).unwrap())
        .unwrap();
    let bound = bound.remove(0);
    let incoming = bound
        .tcp
        .into_iter()
        .map(|listener| {
            let listener = TcpListener::from_std(listener).unwrap();
            Incoming::new(listener, limits.clone(), AcceptOptions::default(), tcp)
        })
        .collect();
    (bound.local_addr.ip().unwrap(), incoming)
}

async fn next(incoming: &mut Incoming) -> Option<Conn<Permitted<TcpStream>>> {
    std::future::poll_fn(|cx| Pin::new(&mut *incoming).poll_next(cx)).await
}

#[tokio::test]
async fn real_connections_carry_their_facts_and_options() {
    for (address, nodelay, keepalive) in [
        ("127.0.0.1:0", true, None),
        ("[::]:0", false, Some(Duration::from_secs(77))),
        ("0.0.0.0:0", true, Some(Duration::from_secs(5))),
    ] {
        let tcp = TcpOptions::default().with_nodelay(nodelay).with_keepalive(keepalive);
        let limits = Limits::new(1);
        let (bound, mut incoming) = listen(address, &tcp, &limits, 1).await;
        let target = SocketAddr::from(([127, 0, 0, 1], bound.port()));
        let client = TcpStream::connect(target).await.unwrap();
        let conn = next(&mut incoming[0]).await.unwrap();
        assert_eq!(conn.info.peer, client.local_addr().unwrap(), "{address}");
        assert_eq!(conn.info.local, target, "{address}");
        assert_eq!(conn.info.transport, Transport::Tcp);
        let socket = SockRef::from(conn.io.get_ref());
        assert_eq!(socket.tcp_nodelay().unwrap(), nodelay, "{address}");
        assert_eq!(socket.keepalive().unwrap(), keepalive.is_some(), "{address}");
        if let Some(idle) = keepalive {
            assert_eq!(socket.tcp_keepalive_time().unwrap(), idle);
        }
        assert_eq!((limits.open(), limits.stats().accepted), (1, 1));
        drop(conn);
        assert_eq!(limits.open(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn the_limit_is_never_exceeded_and_nothing_leaks() {
    const CLIENTS: usize = 200;
    let limits = Limits::new(7);
    let (address, group) = listen("127.0.0.1:0", &TcpOptions::default(), &limits, 3).await;
    let (most, served) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut acceptors = Vec::new();
    for mut incoming in group {
        let (limits, most, served) = (limits.clone(), Arc::clone(&most), Arc::clone(&served));
        acceptors.push(tokio::spawn(async move {
            while let Some(conn) = next(&mut incoming).await {
                most.fetch_max(limits.open(), Ordering::SeqCst);
                served.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let mut conn = conn;
                    // until the client has closed; some clients abort
                    let _ = tokio::io::AsyncReadExt::read(&mut conn.io, &mut [0; 1]).await;
                });
            }
        }));
    }
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..CLIENTS {
        clients.spawn(async move {
            let client = TcpStream::connect(address).await.unwrap();
            tokio::task::yield_now().await;
            if n % 3 == 0 {
                SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
    // all clients are gone, so each accepted connection ends by itself
    let all = async {
        while served.load(Ordering::SeqCst) < CLIENTS {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("every client is accepted in the end");
    limits.close();
    tokio::time::timeout(Duration::from_secs(20), limits.drained()).await.expect("every permit comes back");
    for acceptor in acceptors {
        tokio::time::timeout(Duration::from_secs(20), acceptor)
            .await
            .expect("close ends the stream")
            .unwrap();
    }
    assert_eq!(limits.stats().accepted, CLIENTS as u64);
    assert!(most.load(Ordering::SeqCst) <= 7, "{most:?} were open");
}

#[tokio::test(start_paused = true)]
async fn a_busy_listener_gives_way() {
    let script = Script::new([Ok(()); 10]);
    let limits = Limits::new(100);
    let mut accepting = Loop::with(&script, &limits, AcceptOptions::default().with_batch(4));
    let mut open = Vec::new();
    for accepted in [4, 4, 2] {
        for _ in 0..accepted {
            open.push(assert_ready!(accepting.poll_accept()));
        }
        assert_pending!(accepting.poll_accept());
        assert_eq!(accepting.is_woken(), accepted == 4, "it wakes itself while there is more");
    }
}

#[tokio::test(start_paused = true)]
async fn a_descriptor_that_is_no_listener_ends_the_stream() {
    let log = Log::capture();
    for code in [libc::EBADF, libc::ENOTSOCK, libc::EINVAL] {
        let script = Script::new([Ok(()), Err(code), Ok(())]);
        let mut accepting = Loop::spawn(&script, Limits::new(5));
        assert!(assert_ready!(accepting.poll_accept()).is_some());
        assert!(assert_ready!(accepting.poll_accept()).is_none());
    }
    assert_eq!(log.lines().len(), 3);
    assert!(log.lines()[0].contains("ERROR") && log.lines()[0].contains("no listening socket"));
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
#[allow(clippy::await_holding_lock, reason = "the only task of this test's runtime")]
async fn some_descriptors_are_left_for_the_work() {
    let _mine = crate::limits::LIMIT_IS_MINE.lock();
    let (soft, _) = descriptor_limit().unwrap();
    let line = usize::try_from(soft.min(1 << 40)).unwrap() - 32;
    let log = Log::capture();
    let limits = Limits::new(100);
    let script = Script::new([Ok(()); 10]);
    let mut accepting = Loop::spawn(&script, &limits);
    script.descriptor.store(line - 1, Ordering::SeqCst);
    let first = assert_ready!(accepting.poll_accept());
    assert!(log.lines().is_empty());
    // this one is served, and then accepting pauses
    script.descriptor.store(line, Ordering::SeqCst);
    let second = assert_ready!(accepting.poll_accept());
    let lines = log.lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in ["32 descriptors are left", &format!("`ulimit -n` is {soft} now"), "LimitNOFILE="] {
        assert!(lines[0].contains(part), "{part} is missing in {}", lines[0]);
    }
    for _ in 0..10 {
        assert_pending!(accepting.poll_accept());
        advance(501).await;
        assert!(accepting.is_woken());
    }
    assert_pending!(accepting.poll_accept());
    assert_eq!(script.calls(), 2, "not one more connection while only the reserve is left");
    // one closes, and its number is free
    script.descriptor.store(line - 5, Ordering::SeqCst);
    drop(first);
    assert!(accepting.is_woken());
    let third = assert_ready!(accepting.poll_accept());
    assert!(limits.stats().errors.headroom > 10);
    assert_eq!((limits.stats().shortages, log.lines().len()), (1, 1));
    drop((second, third));

    let none = AcceptOptions::default().with_headroom(0);
    let script = Script::new([Ok(()); 2]);
    script.descriptor.store(line + 31, Ordering::SeqCst);
    let mut accepting = Loop::with(&script, &limits, none);
    assert!(assert_ready!(accepting.poll_accept()).is_some());
    assert!(assert_ready!(accepting.poll_accept()).is_some());
}

#[cfg(unix)]
#[tokio::test]
async fn unix_connections_and_any() {
    let dir = std::env::temp_dir().join(format!(
        "listener-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("any.sock");
    let limits = limits::per_client(ClientLimit::new(1));
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let acceptor = AnyAcceptor::from(UnixAcceptor::new(listener));
    assert_eq!(acceptor.local_addr().to_string(), format!("unix:{}", path.display()));
    let mut incoming = Incoming::listen(acceptor, &limits, AcceptOptions::default());
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut client = tokio::net::UnixStream::connect(&path).await.unwrap();
        let mut conn = std::future::poll_fn(|cx| Pin::new(&mut incoming).poll_next(cx)).await.unwrap();
        assert_eq!(conn.info.transport, Transport::Unix);
        tokio::io::AsyncWriteExt::write_all(&mut client, b"\x16\x03").await.unwrap();
        let first = crate::sniff(&mut conn, Duration::from_secs(5)).await.unwrap();
        assert_eq!(first, portcullis_conn::FirstBytes::Tls);
        let mut buf = [0; 2];
        tokio::io::AsyncReadExt::read_exact(&mut conn.io, &mut buf).await.unwrap();
        open.push((client, conn));
    }
    assert_eq!((limits.open(), limits.clients()), (3, 0), "clients of a unix socket are not counted");
    std::fs::remove_dir_all(&dir).unwrap();
}
