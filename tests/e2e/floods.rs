//! Floods that cost their clients little: they are closed and counted, they take no memory, and whoever asks beside them is
//! served as fast as before.
//!
//! The figures of each are printed (`--nocapture`).

mod http1;
mod http2;

use std::{
    fmt,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{Method, Response};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout},
};

use crate::{
    config::plain,
    support::{
        SOON,
        client::{Client, empty, full},
        edge::Edge,
        origin::Origin,
        run, within,
    },
};

const QUIET: Duration = Duration::from_secs(2);
const FLOOD: Duration = Duration::from_secs(3);
/// What the attackers' connections begin in: that many at once would be a load like any other, which is not what is looked at.
const BEGIN: Duration = Duration::from_millis(500);
/// Below this a 99th percentile says more of the machine, which runs other tests too, than of the flood; a median is steadier by far.
const FLOOR: Duration = Duration::from_millis(20);
/// CPU of the edge for a request in a debug build on the machine that the floods' paces were chosen on. Where it takes more, they
/// are slower by as much: what is to be seen is what an attack does by being one, not what any load does that takes the whole machine.
const USUAL: Duration = Duration::from_micros(1200);
/// KiB that a flood may add.
const MEMORY: u64 = 64 << 10;

/// How an attacker reads.
#[derive(Clone, Copy, PartialEq)]
enum Reads {
    All,
    /// A byte at a time, out of the smallest buffer that there is.
    Trickle,
    Nothing,
}

/// Connections that are made again as soon as they are closed.
#[derive(Clone, Copy)]
struct Flood {
    name: &'static str,
    /// Keys of the listener's table `http`, and tables below the listener.
    keys: &'static str,
    connections: u32,
    /// What a connection sends, by its number and that of the turn; there is one every `pace`, on a machine like that of [`USUAL`].
    sends: fn(u32, u32) -> Vec<u8>,
    pace: Duration,
    reads: Reads,
    /// Why they are closed, and how many of them at least.
    reason: &'static str,
    closed: u32,
}

impl Flood {
    /// One connection, until it is closed by the edge or the flood is over. Whether it was.
    async fn connection(&self, addr: SocketAddr, number: u32) -> bool {
        let socket = TcpSocket::new_v4().unwrap();
        if self.reads == Reads::Trickle {
            socket.set_recv_buffer_size(4 << 10).unwrap();
        }
        let Ok(stream) = socket.connect(addr).await else { return false };
        stream.set_nodelay(true).unwrap();
        let (mut reader, mut writer) = stream.into_split();
        let feed = async {
            for turn in 0.. {
                if writer.write_all(&(self.sends)(number, turn)).await.is_err() {
                    break;
                }
                sleep(self.pace).await;
            }
        };
        let hear = async {
            let mut scrap = [0; 16 << 10];
            let size = if self.reads == Reads::Trickle { 1 } else { scrap.len() };
            while self.reads != Reads::Nothing
                && reader.read(&mut scrap[..size]).await.is_ok_and(|read| read > 0)
            {
                if self.reads == Reads::Trickle {
                    sleep(self.pace).await;
                }
            }
            if self.reads == Reads::Nothing {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = feed => true,
            () = hear => true,
        }
    }

    /// All of it; how many connections were closed.
    async fn run(self, addr: SocketAddr) -> u32 {
        let end = Instant::now() + FLOOD;
        let mut all = JoinSet::new();
        for number in 0..self.connections {
            all.spawn(async move {
                let mut closed = 0;
                sleep(BEGIN * number / self.connections).await;
                loop {
                    tokio::select! {
                        was = self.connection(addr, number) => closed += u32::from(was),
                        () = sleep_until(end) => return closed,
                    }
                    sleep(self.pace).await;
                }
            });
        }
        all.join_all().await.into_iter().sum()
    }
}

/// What honest clients saw.
struct Honest {
    latencies: Vec<Duration>,
    failures: Vec<String>,
}

impl Honest {
    /// 200 requests a second in an open loop: two clients of HTTP/1 and two of HTTP/2, which come on a new connection after every ten.
    /// A latency counts from when its request was due. They have a thread of their own, as the attackers have: the origin's work for those is not to be taken for the edge's.
    async fn ask(addr: SocketAddr, time: Duration) -> Self {
        on_a_thread(Self::ask_here(addr, time)).await
    }

    async fn ask_here(addr: SocketAddr, time: Duration) -> Self {
        let begin = Instant::now();
        let mut all = JoinSet::new();
        for lane in 0..4_u32 {
            all.spawn(async move {
                let mut due = interval_at(begin + Duration::from_millis(5) * lane, Duration::from_millis(20));
                due.set_missed_tick_behavior(MissedTickBehavior::Burst);
                let mut seen = Self { latencies: Vec::new(), failures: Vec::new() };
                let mut client = None;
                loop {
                    let since = due.tick().await;
                    if since >= begin + time {
                        return seen;
                    }
                    if seen.latencies.len().is_multiple_of(10) {
                        client = None;
                    }
                    match timeout(SOON, one(addr, lane, &mut client)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(failure)) => seen.failures.push(failure),
                        Err(_) => seen.failures.push("no answer".to_owned()),
                    }
                    seen.latencies.push(since.elapsed());
                }
            });
        }
        let mut sum = Self { latencies: Vec::new(), failures: Vec::new() };
        for seen in all.join_all().await {
            sum.latencies.extend(seen.latencies);
            sum.failures.extend(seen.failures);
        }
        sum.latencies.sort_unstable();
        sum
    }

    fn percentile(&self, percent: usize) -> Duration {
        self.latencies[(self.latencies.len() * percent / 100).min(self.latencies.len() - 1)]
    }
}

impl fmt::Display for Honest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p50, p99, most) = (self.percentile(50), self.percentile(99), self.percentile(100));
        write!(f, "{} requests, p50 {p50:.1?}, p99 {p99:.1?}, most {most:.1?}", self.latencies.len())
    }
}

async fn one(addr: SocketAddr, lane: u32, client: &mut Option<Client>) -> Result<(), String> {
    if client.is_none() {
        *client = Some(match lane % 2 {
            0 => Client::plain(addr, "a.test").await,
            _ => Client::plain_h2(addr, "a.test").await,
        });
    }
    let client = client.as_mut().unwrap();
    let request = client.request(Method::GET, "/honest").body(empty()).unwrap();
    let reply = client.try_fetch(request).await.map_err(|error| format!("{error:?}"))?;
    if reply.status == 200 && reply.body == "ok" { Ok(()) } else { Err(format!("{reply:?}")) }
}

/// Runs it on a runtime and a thread of its own, to its end.
async fn on_a_thread<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work)
    };
    within(FLOOD + SOON, "the end of it", tokio::task::spawn_blocking(run)).await.unwrap()
}

/// Reads a request to its end and says `ok`; `/bytes/N` gets so many, `/hang` gets nothing.
async fn origin() -> Origin {
    Origin::start(|request| async move {
        let path = request.uri().path().to_owned();
        let _ = request.into_body().collect().await;
        if path == "/hang" {
            std::future::pending::<()>().await;
        }
        let count = path.strip_prefix("/bytes/").map(|count| count.parse().unwrap());
        Response::new(count.map_or_else(|| full("ok"), |count| full(vec![b'x'; count])))
    })
    .await
}

/// A flood at a time, of whatever protocol: it is not to be taken for what another does.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a flood beside honest clients; see the module. The machine may be busy with something else for a moment: their latency is
/// looked at up to three times, all else every time.
fn withstands(flood: Flood) {
    let _alone = alone();
    run(async move {
        let origin = origin().await;
        let listener = format!("[listener.http]\nlinger = \"100ms\"\n{}[[route]]", flood.keys);
        let config = plain(origin.addr()).replace("[[route]]", &listener);
        // no endpoint is to be left alone for what its clients did
        let edge = Edge::run(&format!("[admin]\naddress = \"127.0.0.1:0\"\n{config}max_fails = 0\n")).await;
        Honest::ask(edge.http(), Duration::from_millis(300)).await;
        for round in 1.. {
            let slower = round_of(&flood, &edge).await;
            if slower.is_empty() {
                break;
            }
            assert!(round < 3, "{}: {slower}", flood.name);
        }
    });
}

/// What it did to the latency of honest clients, if it did.
async fn round_of(flood: &Flood, edge: &Edge) -> String {
    let idle = edge.cpu();
    let quiet = Honest::ask(edge.http(), QUIET).await;
    let each = (edge.cpu() - idle) / quiet.latencies.len() as u32;
    let slow = (each.as_secs_f64() / USUAL.as_secs_f64()).clamp(1.0, 5.0);
    let flood = Flood { pace: flood.pace.mul_f64(slow), ..*flood };
    let (memory, cpu, before) = (edge.resident_memory(), edge.cpu(), flood.counted(edge).await);
    let to = edge.http();
    let (honest, seen) = tokio::join!(Honest::ask(to, FLOOD), on_a_thread(flood.run(to)));
    let cpu = edge.cpu() - cpu;
    let gone = async {
        while edge.metric("portcullis_http_connections_open{").await > 0.0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    within(SOON, "all connections are closed", gone).await;
    let grown = edge.peak_memory().saturating_sub(memory);
    let closed = flood.counted(edge).await - before;
    eprintln!(
        "{}: quiet {quiet}, {each:?} of CPU each; paced for {slow:.1}; flood {honest}; {grown} KiB more; {closed} counted as {}, {seen} seen closed; {cpu:?} of CPU",
        flood.name, flood.reason
    );
    let failures: Vec<_> = quiet.failures.iter().chain(&honest.failures).collect();
    assert!(failures.is_empty(), "{}: {} failed: {:?}", flood.name, failures.len(), failures[0]);
    assert!(grown < MEMORY, "{}: {grown} KiB more", flood.name);
    assert!(closed >= f64::from(flood.closed) / slow, "{}: {closed} closed for {}", flood.name, flood.reason);
    let slower = [(50, FLOOR / 4), (99, FLOOR)].into_iter().filter_map(|(percent, floor)| {
        let (now, then) = (honest.percentile(percent), quiet.percentile(percent));
        (now > floor.max(then * 2)).then(|| format!("p{percent} is {now:?}, and {then:?} without; "))
    });
    slower.collect()
}

impl Flood {
    /// How many connections were closed for its reason so far.
    async fn counted(&self, edge: &Edge) -> f64 {
        edge.metric(&format!("portcullis_http_connections_closed_total{{reason=\"{}\"}}", self.reason)).await
    }
}
