//! What idle connections cost.

use std::{fs, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{SOON, client::Client, edge::Edge, run, tls, within};

const CONNECTIONS: usize = 500;

const CONFIG: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"http\"\n\
    [[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"https\"\nhttp3 = false\n\
    [[certificate]]\nself_signed = [\"localhost\"]\n[admin]\naddress = \"127.0.0.1:0\"\n\
    [limits]\nmax_connections = 2000\n[[route]]\nrespond = \"hello\"\n";

/// KiB.
fn resident(edge: &Edge) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", edge.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

async fn ask(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    io.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nhello") {
        assert_ne!(within(SOON, "an answer", io.read_buf(&mut answer)).await.unwrap(), 0);
    }
}

async fn resting(edge: &Edge) -> usize {
    let mut admin = Client::plain(edge.admin(), "localhost").await;
    let metrics = admin.get("/metrics").await.body;
    let line = metrics.lines().find_map(|line| line.strip_prefix("portcullis_http_connections_resting "));
    line.unwrap().parse::<f64>().unwrap() as usize
}

/// Opens many, lets them rest, and says what each costs in KiB; then all of them are asked again.
async fn cost<Io: AsyncRead + AsyncWrite + Unpin>(edge: &Edge, connect: impl AsyncFn() -> Io) -> f64 {
    // what is made once for all
    for _ in 0..20 {
        ask(&mut connect().await).await;
    }
    let before = resident(edge);
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut io = connect().await;
        ask(&mut io).await;
        all.push(io);
    }
    within(SOON, "all rest", async {
        while resting(edge).await < CONNECTIONS {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    // pages go back within a second
    let mut each = f64::MAX;
    for _ in 0..20 {
        each = each.min((resident(edge) - before) / CONNECTIONS as f64);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for io in &mut all {
        ask(io).await;
    }
    each
}

#[test]
fn an_idle_connection_costs_little_and_is_there_when_it_is_needed() {
    run(async {
        let edge = Edge::run(CONFIG).await;
        let plain = cost(&edge, async || TcpStream::connect(edge.http()).await.unwrap()).await;
        let edge = Edge::run(CONFIG).await;
        let secure = cost(&edge, async || tls::connect(edge.https(), "localhost", &["http/1.1"]).await).await;
        eprintln!("an idle connection: {plain:.1} KiB, with TLS {secure:.1} KiB");
        assert!(plain < 8.0 && secure < 16.0, "{plain} {secure}");
    });
}
