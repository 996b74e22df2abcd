//! Floods over QUIC: connections that hold all that they may, and frames, streams and packets without end. Memory stays below what the
//! limits allow, and whoever asks beside them is served.
//!
//! Small by default; `PORTCULLIS_FLOODS_FULL=1` makes them a thousand connections. The figures of each are printed (`--nocapture`).

mod raw;

use std::{env, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Response};
use http_body_util::BodyExt;
use tokio::{
    net::UdpSocket,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

use self::raw::{CANCELLED, Clients, EXCESSIVE_LOAD, HEADERS, Raw, first_packets, frame, head, section};
use crate::{
    config::secure,
    floods,
    support::{
        SOON,
        client::{Client, Protocol, empty, full},
        edge::Edge,
        origin::Origin,
        run_within, within,
    },
};

/// What each connection may make the edge hold, in KiB, with the defaults: request bodies on their way in, and responses on theirs out.
const CONNECTION_WINDOW: u64 = 1 << 10;
const SEND_WINDOW: u64 = 1 << 10;
/// A request: its two tasks' state, its upstream connection and that one's buffers.
const REQUEST: u64 = 24;
/// What a response that its client does not take has in hand besides: what is gathered for one write, and a read from upstream.
const IN_HAND: u64 = 64 + 128;
const STREAMS: u64 = 100;
/// A connection with nothing in it, and a handshake.
const CONNECTION: u64 = 160;
/// What an allocator keeps, and the honest.
const SLACK: u64 = 48 << 10;

fn is_full() -> bool {
    env::var_os("PORTCULLIS_FLOODS_FULL").is_some_and(|value| value == "1")
}

/// How many connections, and for how long.
fn size(small: u32) -> (u32, Duration) {
    if is_full() { (1000, Duration::from_secs(12)) } else { (small, Duration::from_secs(3)) }
}

/// The same for clients that never rest: each does as much as it can.
fn restless(small: u32) -> (u32, Duration) {
    let (connections, time) = size(small);
    (connections.min(small * 5), time)
}

/// An edge before an origin that never reads what goes to `/hang`, and has a long answer at `/long`; both are a cluster of their own, for what
/// they use up of it is not the matter here.
async fn setup() -> (Origin, Edge) {
    // more than a client takes, and little for the kernel to keep
    let long: Bytes = vec![b'x'; 128 << 10].into();
    let origin = Origin::start(move |request| {
        let long = long.clone();
        async move {
            match request.uri().path() {
                "/held/hang" => std::future::pending().await,
                "/held/long" => Response::new(full(long)),
                _ => {
                    let _ = request.into_body().collect().await;
                    Response::new(full("ok"))
                }
            }
        }
    })
    .await;
    let config = format!(
        "[admin]\naddress = \"127.0.0.1:0\"\n[limits]\nmax_quic_connections = 3000\n\
         {}[[route]]\npath = \"/held/\"\ncluster = \"held\"\n\
         [[cluster]]\nname = \"held\"\nendpoints = [\"{}\"]\n",
        secure(origin.addr()).replace(
            "protocol = \"https\"\n",
            "protocol = \"https\"\n[listener.tls]\nresumption = \"zero-rtt\"\n"
        ),
        origin.addr()
    );
    let edge = Edge::run(&config).await;
    (origin, edge)
}

/// Requests one after the other over HTTP/3, on a new connection after every five; how long each took.
async fn honest(addr: SocketAddr, time: Duration) -> Vec<Duration> {
    let end = Instant::now() + time;
    let mut lanes = JoinSet::new();
    for _ in 0..4 {
        lanes.spawn(async move {
            let mut due = interval(Duration::from_millis(50));
            due.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let (mut took, mut client) = (Vec::new(), None);
            while Instant::now() < end {
                due.tick().await;
                let begin = Instant::now();
                if took.len() % 5 == 0 {
                    client = Some(
                        within(SOON, "a connection", Client::connect(Protocol::H3, addr, "localhost")).await,
                    );
                }
                let client = client.as_mut().unwrap();
                let request = client.request(Method::GET, "/honest").body(empty()).unwrap();
                let reply = within(SOON, "an answer", client.fetch(request)).await;
                assert_eq!((reply.status.as_u16(), reply.body.as_str()), (200, "ok"));
                took.push(begin.elapsed());
            }
            took
        });
    }
    let mut took: Vec<Duration> = lanes.join_all().await.into_iter().flatten().collect();
    took.sort_unstable();
    took
}

/// What a flood is judged by, besides the honest.
struct Flood<F> {
    name: &'static str,
    connections: u32,
    time: Duration,
    /// What a client takes before it reads.
    window: u32,
    /// KiB that it may add.
    bound: u64,
    /// One client until the end of the flood; how often it saw what it is about.
    client: F,
}

impl<F, Fut> Flood<F>
where
    F: Fn(Arc<Clients>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = u64> + Send + 'static,
{
    /// Runs it beside honest clients; gives what its clients saw.
    async fn run(self, edge: &Edge) -> u64 {
        let to = edge.https();
        honest(to, Duration::from_millis(300)).await;
        let quiet = honest(to, Duration::from_secs(1)).await;
        let (memory, cpu) = (edge.resident_memory(), edge.cpu());
        let (connections, time, window, client) = (self.connections, self.time, self.window, self.client);
        // on a thread of its own: it is not to hold up those whose latency is taken
        let attack = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let (clients, end) = (Clients::new(to, window), Instant::now() + time);
                let mut all = JoinSet::new();
                for _ in 0..connections {
                    all.spawn(client(clients.clone()));
                }
                let mut seen = 0;
                loop {
                    tokio::select! {
                        Some(client) = all.join_next() => seen += client.unwrap(),
                        () = sleep_until(end) => return seen,
                    }
                }
            })
        });
        let flooded = honest(to, time).await;
        let (held, open) = (edge.resident_memory(), edge.metric("portcullis_quic_connections_open").await);
        let seen = within(SOON * 4, "the end of the flood", attack).await.unwrap();
        let grown = edge.peak_memory().saturating_sub(memory);
        let middle = |took: &[Duration]| (took[took.len() / 2], took[took.len() * 99 / 100]);
        eprintln!(
            "{}: {connections} clients, {open} connections open at the end; {grown} KiB more at most, {} at the end, of {} allowed; \
             {seen} seen; {:?} of CPU; honest p50 and p99 {:.1?} quiet, {:.1?} beside it",
            self.name,
            held.saturating_sub(memory),
            self.bound,
            edge.cpu() - cpu,
            middle(&quiet),
            middle(&flooded),
        );
        assert!(grown < self.bound, "{}: {grown} KiB more, {} are allowed", self.name, self.bound);
        seen
    }
}

fn alone(test: impl Future<Output = ()>) {
    let _alone = floods::alone();
    run_within(Duration::from_secs(if is_full() { 120 } else { 40 }), test);
}

/// All streams of a connection, each with this at its begin and as much behind it as the windows take; then nothing.
async fn hold(raw: Raw, begin: Vec<u8>, end: bool) -> u64 {
    let mut held = Vec::new();
    while let Some((mut send, recv)) = raw.open().await {
        if send.write_all(&begin).await.is_err() {
            break;
        }
        if end {
            let _ = send.finish();
        }
        held.push((send, recv));
    }
    let count = held.len() as u64;
    // filled and kept open until the flood is over
    tokio::spawn(async move {
        let filler = Bytes::from(vec![b'x'; 64 << 10]);
        let fill = held
            .iter_mut()
            .map(|(send, _)| async { while !end && send.write_chunk(filler.clone()).await.is_ok() {} });
        futures_util::future::join_all(fill).await;
        std::future::pending::<()>().await;
        drop((held, raw));
    });
    count
}

#[test]
fn stalled_uploads_hold_no_more_than_their_windows() {
    alone(async {
        let (_origin, edge) = setup().await;
        let (connections, time) = size(20);
        let bound = u64::from(connections) * (CONNECTION + CONNECTION_WINDOW + STREAMS * REQUEST) + SLACK;
        let seen = Flood {
            name: "stalled uploads",
            connections,
            time,
            window: 1 << 20,
            bound,
            client: |clients: Arc<Clients>| async move {
                let Some(raw) = clients.connect().await else { return 0 };
                let upload = [head("POST", "/held/hang"), frame(0, 1 << 30, &[])].concat();
                hold(raw, upload, false).await
            },
        }
        .run(&edge)
        .await;
        assert!(is_full() || seen == u64::from(connections) * STREAMS, "all streams were open: {seen}");
    });
}

#[test]
fn unread_responses_hold_the_send_window_and_what_is_in_hand() {
    alone(async {
        let (_origin, edge) = setup().await;
        let (connections, time) = size(20);
        let bound =
            u64::from(connections) * (CONNECTION + SEND_WINDOW + STREAMS * (REQUEST + IN_HAND)) + SLACK;
        let seen = Flood {
            name: "unread responses",
            connections,
            time,
            window: 16 << 10,
            bound,
            client: |clients: Arc<Clients>| async move {
                let Some(raw) = clients.connect().await else { return 0 };
                hold(raw, head("GET", "/held/long"), true).await
            },
        }
        .run(&edge)
        .await;
        assert!(is_full() || seen == u64::from(connections) * STREAMS, "all streams were open: {seen}");
    });
}

/// Streams that are refused for what they begin with, until the flood is over.
async fn refused(clients: Arc<Clients>, begin: Vec<u8>, code: u64) -> u64 {
    let mut seen = 0;
    let end = Instant::now() + size(0).1 - Duration::from_millis(300);
    while Instant::now() < end {
        let Some(raw) = clients.connect().await else { return seen };
        while let Some((mut send, mut recv)) = raw.open().await.filter(|_| Instant::now() < end) {
            let _ = timeout(Duration::from_millis(500), send.write_all(&begin)).await;
            match timeout(Duration::from_millis(500), recv.read_to_end(1 << 20)).await {
                Ok(Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(found)))) => {
                    seen += u64::from(found.into_inner() == code);
                }
                // what is answered without a reset
                Ok(Ok(answer)) => seen += u64::from(code == 0 && answer.first() == Some(&HEADERS)),
                _ => {}
            }
        }
        raw.connection.close(CANCELLED, b"");
    }
    seen
}

#[test]
fn huge_announced_frames_are_refused_before_they_come() {
    alone(async {
        let (_origin, edge) = setup().await;
        let (connections, time) = restless(20);
        let bound = u64::from(connections) * CONNECTION + SLACK;
        let seen = Flood {
            name: "huge announced frames",
            connections,
            time,
            window: 1 << 20,
            bound,
            client: |clients| refused(clients, frame(HEADERS, 1 << 40, &[0; 4096]), EXCESSIVE_LOAD),
        }
        .run(&edge)
        .await;
        assert!(seen > u64::from(connections), "each was reset with H3_EXCESSIVE_LOAD: {seen}");
        // a head that never came is no request of which an error would be counted
        assert!(edge.metric("portcullis_http3_stream_errors_total").await >= seen as f64);
    });
}

#[test]
fn sections_that_grow_when_unpacked_are_refused() {
    alone(async {
        let (_origin, edge) = setup().await;
        let (connections, time) = restless(20);
        // while it is read, a section and what came of it
        let bound = u64::from(connections) * (CONNECTION + 4 * 64) + SLACK;
        let seen = Flood {
            name: "QPACK bombs",
            connections,
            time,
            window: 1 << 20,
            bound,
            client: |clients| {
                let mut section = section("GET", "/held/long");
                // references to a field of 70 bytes in the static table (RFC 9204 appendix A, index 58), a byte each
                section.extend(std::iter::repeat_n(0xc0 | 58, 60_000));
                refused(clients, frame(HEADERS, section.len() as u64, &section), 0)
            },
        }
        .run(&edge)
        .await;
        assert!(seen > u64::from(connections), "each was answered: {seen}");
        let forwarded = edge.metric("portcullis_upstream_requests_total{cluster=\"held\"").await;
        assert_eq!(forwarded, 0.0, "and none by an endpoint");
    });
}

#[test]
fn streams_opened_and_reset_end_their_connection() {
    alone(async {
        let (_origin, edge) = setup().await;
        // `max_cancelled` is of a connection: few, so that each gets there on a slow machine too
        let (connections, time) = (if is_full() { 20 } else { 5 }, size(5).1);
        let bound = u64::from(connections) * (CONNECTION + STREAMS * REQUEST) + SLACK;
        let seen = Flood {
            name: "opened and reset",
            connections,
            time,
            window: 1 << 20,
            bound,
            client: |clients: Arc<Clients>| async move {
                let mut ended = 0;
                let end = Instant::now() + size(0).1 - Duration::from_millis(300);
                while Instant::now() < end {
                    let Some(raw) = clients.connect().await else { return ended };
                    while let Some((mut send, mut recv)) = raw.open().await.filter(|_| Instant::now() < end) {
                        let _ = send.write_all(&head("GET", "/held/hang")).await;
                        tokio::task::yield_now().await;
                        let _ = send.reset(CANCELLED);
                        let _ = recv.stop(CANCELLED);
                    }
                    ended += u64::from(raw.closed_with() == Some(EXCESSIVE_LOAD));
                }
                ended
            },
        }
        .run(&edge)
        .await;
        assert!(seen > 0, "no connection was closed with H3_EXCESSIVE_LOAD");
        assert!(edge.metric("portcullis_http3_stream_errors_total").await > 1000.0);
    });
}

#[test]
fn early_data_without_end() {
    alone(async {
        let (_origin, edge) = setup().await;
        let (connections, time) = restless(20);
        let bound = u64::from(connections) * (CONNECTION + STREAMS * REQUEST) + SLACK;
        let seen = Flood {
            name: "0-RTT",
            connections,
            time,
            window: 1 << 20,
            bound,
            client: |clients: Arc<Clients>| async move {
                let mut early = 0;
                let end = Instant::now() + size(0).1 - Duration::from_millis(300);
                while Instant::now() < end {
                    let Some((raw, was_early)) = clients.connect_early().await else { return early };
                    early += u64::from(was_early);
                    for _ in 0..20 {
                        let Some((mut send, _recv)) = raw.open().await else { break };
                        let _ = send.write_all(&head("GET", "/held/hang")).await;
                        let _ = send.finish();
                    }
                    // long enough for a ticket where there was none
                    sleep(Duration::from_millis(if was_early { 2 } else { 50 })).await;
                }
                early
            },
        }
        .run(&edge)
        .await;
        assert!(seen > u64::from(connections), "connections began with early data: {seen}");
    });
}

#[test]
fn first_packets_from_everywhere_bring_retry() {
    alone(async {
        let (_origin, edge) = setup().await;
        let sources = if is_full() { 8000 } else { 1500 };
        let packets = first_packets(sources).await;
        let to = edge.https();
        honest(to, Duration::from_millis(300)).await;
        let (memory, begin) = (edge.resident_memory(), Instant::now());
        // a quarter of `max_incoming` handshakes at each worker brings Retry, which keeps nothing
        let send = async {
            let mut sockets = Vec::new();
            for (at, packet) in packets.iter().enumerate() {
                let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                socket.send_to(packet, to).await.unwrap();
                sockets.push(socket);
                if at % 50 == 49 {
                    sleep(Duration::from_millis(5)).await;
                }
            }
            sockets
        };
        let (sockets, took) = tokio::join!(send, honest(to, Duration::from_secs(3)));
        let retried = edge.metric("portcullis_quic_connections_total{result=\"retried\"}").await;
        let open = edge.metric("portcullis_quic_connections_open").await;
        let grown = edge.peak_memory().saturating_sub(memory);
        eprintln!(
            "first packets: {} sources in {:.1?}; {retried} asked to prove their address, {open} connections open; {grown} KiB more; \
             honest p50 and p99 {:.1?}",
            sockets.len(),
            begin.elapsed(),
            (took[took.len() / 2], took[took.len() * 99 / 100]),
        );
        assert!(retried > 100.0, "{retried}");
        // those before Retry began, at each of the workers
        let workers = std::thread::available_parallelism().unwrap().get() as u64;
        assert!(grown < workers * 256 * CONNECTION + SLACK, "{grown} KiB more");
    });
}
