//! What accepting costs: processor time of the acceptor's thread for each connection that it accepts and closes, for a
//! bare tokio loop and for `portcullis_listener` with its limits, in turns.
//!
//! `cargo bench -p portcullis-benches --bench accept` prints a table. One variant alone, for `valgrind --tool=callgrind`
//! or `perf stat -e instructions:u`: `accept --variant limits --connections 20000`.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a program for measuring"
)]

use std::{fmt::Write as _, net::SocketAddr, sync::mpsc, thread, time::Duration};

use futures_util::StreamExt;
use portcullis_listener::{AcceptOptions, ClientLimit, Incoming, LimitOptions, Limits, TcpOptions};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::TcpListener;

/// Odd, so that there is a median.
const ROUNDS: usize = 15;
const CONNECTIONS: usize = 10_000;
/// Connections that wait to be accepted at a time.
const BURST: usize = 200;

#[derive(Clone, Copy, PartialEq)]
enum Variant {
    /// `accept`, and the stream is dropped.
    Bare,
    /// The same with `set_nodelay`, as servers do.
    Nodelay,
    /// `Incoming` under a limit of all.
    Limits,
    /// The same, with a limit for each client and one for the listener.
    Clients,
}

const VARIANTS: [(&str, Variant); 4] = [
    ("bare", Variant::Bare),
    ("nodelay", Variant::Nodelay),
    ("limits", Variant::Limits),
    ("clients", Variant::Clients),
];

/// Processor time of this thread, in ns: the first field of its schedstat.
fn cpu() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_ascii_whitespace().next().unwrap().parse().unwrap()
}

/// Processor time for each connection.
fn measure(variant: Variant, spawn: bool, connections: usize) -> f64 {
    let (tell, address) = mpsc::channel();
    let acceptor = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(accept(variant, spawn, connections, tell))
    });
    connect(address.recv().unwrap(), connections);
    acceptor.join().unwrap() as f64 / connections as f64
}

async fn accept(variant: Variant, spawn: bool, connections: usize, tell: mpsc::Sender<SocketAddr>) -> u64 {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(1024).unwrap();
    socket.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(socket.into()).unwrap();
    tell.send(listener.local_addr().unwrap()).unwrap();
    let done = |io| {
        if spawn {
            drop(tokio::spawn(async move { drop(io) }));
        }
    };
    match variant {
        Variant::Bare | Variant::Nodelay => {
            let begin = cpu();
            for _ in 0..connections {
                let (io, _) = listener.accept().await.unwrap();
                if variant == Variant::Nodelay {
                    io.set_nodelay(true).unwrap();
                }
                done(io);
            }
            tokio::task::yield_now().await;
            cpu() - begin
        }
        Variant::Limits | Variant::Clients => {
            let per_client = (variant == Variant::Clients).then(|| ClientLimit::new(100_000));
            let options = LimitOptions::default().with_max_connections(100_000).with_per_client(per_client);
            let limits = Limits::with_options(options);
            let own = limits.listener("bench", (variant == Variant::Clients).then_some(100_000));
            let mut incoming = Incoming::new(listener, own, AcceptOptions::default(), &TcpOptions::default());
            let begin = cpu();
            for _ in 0..connections {
                let conn = incoming.next().await.unwrap();
                if spawn {
                    drop(tokio::spawn(async move { drop(conn) }));
                }
            }
            tokio::task::yield_now().await;
            cpu() - begin
        }
    }
}

/// In bursts, from several addresses, and closed by a reset when the other end has closed: neither ports nor TIME_WAIT
/// run out.
fn connect(address: SocketAddr, connections: usize) {
    for burst in 0..connections.div_ceil(BURST) {
        let clients: Vec<Socket> = (0..BURST.min(connections - burst * BURST))
            .map(|n| {
                let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                client.bind(&SocketAddr::from(([127, 0, 0, 2 + (n % 8) as u8], 0)).into()).unwrap();
                client.connect(&address.into()).unwrap();
                client
            })
            .collect();
        for client in clients {
            client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            let _ = std::io::Read::read(&mut &client, &mut [0; 1]);
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
    if let Some(wanted) = value("--variant") {
        let variant =
            VARIANTS.iter().find(|(name, _)| name == wanted).expect("bare, nodelay, limits or clients").1;
        let connections = value("--connections").map_or(CONNECTIONS, |text| text.parse().unwrap());
        println!("{:.0} ns a connection", measure(variant, false, connections));
        return;
    }
    println!(
        "processor time of the acceptor for each connection, {ROUNDS} rounds of {CONNECTIONS}, in turns\n"
    );
    for spawn in [false, true] {
        println!("{}", if spawn { "handed to a task:" } else { "closed at once:" });
        // one round to warm up
        for (_, variant) in VARIANTS {
            measure(variant, spawn, CONNECTIONS / 10);
        }
        let mut times = vec![Vec::new(); VARIANTS.len()];
        for _ in 0..ROUNDS {
            for (at, (_, variant)) in VARIANTS.iter().enumerate() {
                times[at].push(measure(*variant, spawn, CONNECTIONS));
            }
        }
        for (at, (name, _)) in VARIANTS.iter().enumerate() {
            let mut line = format!("  {name:8} {:7.0} ns", median(times[at].clone()));
            for base in [0, 1] {
                let ratios = times[at].iter().zip(&times[base]).map(|(own, bare)| own / bare);
                let _ = write!(line, "   {:.3} x {}", median(ratios.collect()), VARIANTS[base].0);
            }
            println!("{line}");
        }
    }
}
