//! A new process takes over while clients are served: none of them notices.

use std::{
    env, fs,
    io::Write,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::Path,
    process::Command,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use http::{Method, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::{
    config::{plain, secure},
    support::{
        Dir, SOON,
        client::{Body, Client, Protocol, Reply, empty, full},
        edge::{Edge, command},
        load::Load,
        origin::Origin,
        run, within,
    },
    websocket::peers::{Echo, Http, open},
};

/// The edge as a row of processes, of which the newest is here.
struct Row {
    edge: Edge,
    /// The newest process.
    pid: u32,
    upgrades: usize,
}

impl Row {
    fn new(edge: Edge) -> Self {
        Self { pid: edge.pid(), edge, upgrades: 0 }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.pid.to_string()]).status();
        assert!(sent.unwrap().success(), "{name} to {}", self.pid);
    }

    /// Until the next process serves.
    async fn upgrade(&mut self) {
        self.signal("USR2");
        self.upgrades += 1;
        let what = "a new process has taken over";
        let line = self.edge.stderr.wait(self.upgrades, |line| line.contains(what), what).await;
        let pid = line[self.upgrades - 1].rsplit("process=").next().unwrap().trim();
        self.pid = pid.parse().unwrap();
    }

    /// The first process has ended, with success, whatever its successors do.
    async fn first_ended(&mut self) {
        within(SOON, "the end of the first process", async {
            while self.edge.is_running() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// Ends the newest, and waits until nobody holds its output.
    async fn end(mut self) {
        self.signal("TERM");
        let (status, _) = self.edge.ended(Duration::from_secs(10)).await;
        assert!(status.success(), "the first process: {status}");
        self.upgrades = 0;
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        if self.upgrades > 0 {
            // nobody else would: it is no child of this test
            let _ = Command::new("kill").args(["-KILL", &self.pid.to_string()]).status();
        }
    }
}

const PIECES: u32 = 50;
const PIECE: usize = 20_000;

fn piece(n: u32) -> Bytes {
    let mut bytes = n.to_string().into_bytes();
    bytes.resize(PIECE, b'a' + u8::try_from(n % 26).unwrap());
    bytes.into()
}

fn whole() -> String {
    (0..PIECES).map(|n| String::from_utf8(piece(n).to_vec()).unwrap()).collect()
}

/// A second of download.
fn long() -> Body {
    let pieces = stream::unfold(0, |n| async move {
        if n == PIECES {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        Some((Ok::<_, std::convert::Infallible>(Frame::data(piece(n))), n + 1))
    });
    StreamBody::new(pieces).map_err(|never| match never {}).boxed_unsync()
}

async fn origin() -> Origin {
    Origin::start(|request| async move {
        Response::new(if request.uri().path() == "/long" { long() } else { full("short") })
    })
    .await
}

/// A download that has begun.
async fn download(protocol: Protocol, edge: &Edge) -> impl Future<Output = Client> + use<> {
    let mut client = Client::connect(protocol, edge.https(), "localhost").await;
    let request = client.request(Method::GET, "/long").body(empty()).unwrap();
    let response = client.send(request).await.expect("a response");
    async move {
        let body = Reply::read(response).await.unwrap_or_else(|error| panic!("{protocol:?}: {error:?}")).body;
        assert!(body == whole(), "{protocol:?}: {} bytes came, or others than were sent", body.len());
        client
    }
}

fn times(variable: &str, usual: usize) -> usize {
    env::var(variable).ok().and_then(|times| times.parse().ok()).unwrap_or(usual)
}

/// 3 times, or as often as `PORTCULLIS_E2E_UPGRADES` says: clients of all protocols who never pause, and downloads that span several processes' ends.
#[test]
fn upgrades_under_load_fail_no_request() {
    let times = times("PORTCULLIS_E2E_UPGRADES", 3);
    run(async move {
        let origin = origin().await;
        let edge =
            Edge::run(&format!("threads = 2\ndrain_timeout = \"30s\"\n{}", secure(origin.addr()))).await;
        let (addr, mut row) = (edge.https(), Row::new(edge));
        let right = |reply: &Reply| reply.status == 200 && reply.body == "short";
        let kept = Protocol::ALL.map(|protocol| Load::start(addr, &[protocol], 2, "/", right));
        let anew = Protocol::ALL.map(|protocol| Load::start_anew(addr, &[protocol], 1, "/", right));
        let mut downloads = JoinSet::new();
        for _ in 0..times {
            for protocol in Protocol::ALL {
                downloads.spawn(download(protocol, &row.edge).await);
            }
            row.upgrade().await;
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        let spanned = downloads.len();
        while let Some(ended) = downloads.join_next().await {
            ended.unwrap();
        }
        let mut tallies = Vec::new();
        for load in kept.into_iter().chain(anew) {
            tallies.push(load.end().await);
        }
        println!("{times} upgrades, {spanned} downloads: {tallies:#?}");
        tallies.iter().for_each(|tally| tally.check());
        row.first_ended().await;
        row.end().await;
    });
}

/// Those that were open stay where they are until they end; the next one is the new process's.
#[test]
fn who_is_connected_stays_and_who_comes_is_new() {
    run(async {
        let (first, second) = (origin().await, Origin::text("the other").await);
        let config = |addr| format!("drain_timeout = \"20s\"\n{}", secure(addr));
        let mut row = Row::new(Edge::run(&config(first.addr())).await);
        let mut downloads = Vec::new();
        for protocol in Protocol::ALL {
            downloads.push(download(protocol, &row.edge).await);
        }
        row.edge.dir().write("edge.toml", &config(second.addr()));
        row.upgrade().await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, row.edge.https(), "localhost").await;
            assert_eq!(client.get("/").await.body, "the other", "{protocol:?}");
        }
        futures_util::future::join_all(downloads).await;
        row.first_ended().await;
        row.end().await;
    });
}

async fn websockets(downstream: &[Http]) {
    let echo = Echo::start(Http::One).await;
    let config = echo.config(downstream[0], Http::One);
    let mut row = Row::new(Edge::run(&format!("drain_timeout = \"20s\"\n{config}")).await);
    let mut sockets = Vec::new();
    for http in downstream {
        sockets.push(open(*http, &row.edge).await);
    }
    for _ in 0..2 {
        row.upgrade().await;
        for (socket, _connection) in &mut sockets {
            socket.send(Message::text("still there?")).await.unwrap();
            let back = within(SOON, "the echo", socket.next()).await.unwrap().unwrap();
            assert_eq!(back, Message::text("still there?"));
        }
    }
    assert!(row.edge.is_running(), "its tunnels hold it");
    drop(sockets);
    row.first_ended().await;
    row.end().await;
}

#[test]
fn a_websocket_outlives_its_process_s_successor() {
    run(websockets(&[Http::One, Http::Two]));
}

#[test]
fn rfc9220_a_websocket_outlives_its_process_s_successor() {
    run(websockets(&[Http::Three]));
}

/// A file with mistakes, or a program that hangs or is none.
#[test]
fn a_new_process_that_fails_leaves_the_old_one_as_it_was() {
    run(async {
        let origin = origin().await;
        let dir = Dir::new();
        let program = dir.path().join("portcullis");
        fs::hard_link(command([""; 0]).get_program(), &program).unwrap();
        let config = format!("[upgrade]\ntimeout = \"2s\"\n{}", secure(origin.addr()));
        let file = dir.write("edge.toml", &config);
        let mut start = Command::new(&program);
        start.env_remove("PORTCULLIS_LOG").arg("run").arg("--config").arg(&file);
        let edge = Edge::start(start, 1).await;
        let mut clients = Vec::new();
        for protocol in Protocol::ALL {
            clients.push(Client::connect(protocol, edge.https(), "localhost").await);
        }
        let mut row = Row::new(edge);
        let (sound, none) = (config, "colour = \"red\"");
        let hangs = "#!/bin/sh\nexec sleep 60\n";
        for (n, (text, script, why)) in [
            (none, None, "the new process ended with exit status: 1"),
            (&*sound, Some(hangs), "within 2s"),
            (&*sound, Some("no program"), "could not be started"),
        ]
        .into_iter()
        .enumerate()
        {
            fs::write(&file, text).unwrap();
            if let Some(script) = script {
                replace(&program, script);
            }
            row.signal("USR2");
            let is = |line: &str| line.contains("no upgrade, this process goes on");
            let lines = row.edge.stderr.wait(n + 1, is, "no upgrade").await;
            assert!(lines.len() == n + 1 && row.edge.stderr.text().contains(why), "{lines:?}");
            // on the connections that are open, and on new ones
            for client in &mut clients {
                assert_eq!(client.get("/").await.body, "short");
            }
            for protocol in Protocol::ALL {
                let mut client = Client::connect(protocol, row.edge.https(), "localhost").await;
                assert_eq!(client.get("/").await.body, "short", "{protocol:?}");
            }
        }
        fs::remove_file(&program).unwrap();
        fs::hard_link(command([""; 0]).get_program(), &program).unwrap();
        row.upgrade().await;
        let mut client = Client::connect(Protocol::H3, row.edge.https(), "localhost").await;
        assert_eq!(client.get("/").await.body, "short");
        row.end().await;
        drop(dir);
    });
}

/// As a package manager does: another file takes the name.
fn replace(program: &Path, text: &str) {
    let new = program.with_extension("new");
    let mut file = fs::File::create(&new).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o755)).unwrap();
    drop(file);
    fs::rename(new, program).unwrap();
}

#[test]
fn every_kind_of_socket_goes_over_and_systemd_is_told() {
    run(async {
        let origin = origin().await;
        let dir = Dir::new();
        let socket = dir.path().join("edge.sock");
        let notify = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        notify.set_read_timeout(Some(SOON)).unwrap();
        let told = || {
            let mut buffer = [0; 100];
            let len = notify.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..len]).into_owned()
        };
        let unix = format!("[[listener]]\naddress = \"unix:{}\"\nprotocol = \"http\"\n", socket.display());
        let config = format!(
            "[admin]\naddress = \"127.0.0.1:0\"\n{}{unix}",
            plain(origin.addr()).replace("[[route]]", &format!("{unix}[[route]]")).replace(&unix, "")
        );
        let file = dir.write("edge.toml", &config);
        let mut start = command(["run", "--config", file.to_str().unwrap()]);
        start.env("NOTIFY_SOCKET", dir.path().join("notify"));
        let mut row = Row::new(Edge::start(start, 3).await);
        assert_eq!(told(), "READY=1");
        for _ in 0..2 {
            row.upgrade().await;
            assert_eq!(told(), format!("MAINPID={}\nREADY=1", row.pid));
            row.first_ended().await;
            assert_eq!(Client::plain(row.edge.http(), "localhost").await.get("/").await.body, "short");
            assert_eq!(Client::plain(row.edge.admin(), "localhost").await.get("/health").await.status, 200);
            std::os::unix::net::UnixStream::connect(&socket).expect("the socket's file is there, and heard");
        }
        row.end().await;
        assert!(!socket.exists(), "the last one takes its file with it");
        drop(dir);
    });
}

/// Sockets stay as many as they were: connection ids name them.
#[test]
fn the_number_of_workers_may_change() {
    run(async {
        let origin = origin().await;
        let config =
            |threads: u8| format!("threads = {threads}\ndrain_timeout = \"20s\"\n{}", secure(origin.addr()));
        let mut row = Row::new(Edge::run(&config(2)).await);
        let mut open = Vec::new();
        for threads in [1, 3] {
            open.push(download(Protocol::H3, &row.edge).await);
            row.edge.dir().write("edge.toml", &config(threads));
            row.upgrade().await;
            for protocol in [Protocol::H3; 6].into_iter().chain([Protocol::H1; 6]) {
                let mut client = Client::connect(protocol, row.edge.https(), "localhost").await;
                assert_eq!(client.get("/").await.body, "short", "{protocol:?}");
            }
        }
        futures_util::future::join_all(open).await;
        row.end().await;
    });
}
