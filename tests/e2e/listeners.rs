//! Where the edge listens and whom it lets in: unix sockets, sockets from systemd, proxies in front, limits.

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, PermissionsExt},
    },
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UnixStream},
    time::timeout,
};

use crate::{
    config::{plain, secure},
    support::{
        Dir, SOON,
        client::{Client, Protocol},
        edge::{self, Edge},
        origin::Origin,
        raw, run, within,
    },
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";

/// The rest of a configuration whose listener is given otherwise.
fn behind(listener: &str, origin: SocketAddr) -> String {
    plain(origin).replacen("[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"http\"\n", listener, 1)
}

#[test]
fn a_unix_socket_with_its_mode() {
    run(async {
        let origin = Origin::text("over unix").await;
        let dir = Dir::new();
        let path = dir.path().join("edge.sock");
        // an earlier run left it behind
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = "[forwarded]\ntrusted = [\"unix\"]\n[[listener]]\naddress = \"unix:edge.sock\"\nprotocol = \"http\"\n[listener.unix]\nmode = \"0620\"\n";
        let mut edge = Edge::run_in(dir, &behind(listener, origin.addr())).await;
        assert!(edge.stdout.text().contains(&format!("unix:{}", path.display())), "{}", edge.stdout.text());
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o620);
        for _ in 0..3 {
            let mut io = UnixStream::connect(&path).await.unwrap();
            io.write_all(GET.as_bytes()).await.unwrap();
            let answer = raw::drain(&mut io).await;
            assert_eq!(answer.statuses(), [200]);
            assert!(answer.text.ends_with("over unix"), "{answer:?}");
        }
        // a client without an address forwards none
        let fields = origin.last().1;
        assert!(!fields.contains_key("x-real-ip") && !fields.contains_key("x-forwarded-for"), "{fields:?}");
        // its word is taken where the file says so
        let mut io = UnixStream::connect(&path).await.unwrap();
        io.write_all(GET.replace("\r\n\r\n", "\r\nX-Forwarded-For: 192.0.2.5\r\n\r\n").as_bytes())
            .await
            .unwrap();
        assert_eq!(raw::drain(&mut io).await.statuses(), [200]);
        assert_eq!(origin.last().1["x-forwarded-for"], "192.0.2.5");
        edge.terminate();
        assert!(edge.ended(SOON).await.0.success());
        assert!(!path.exists(), "it removes its socket");
    });
}

#[test]
fn a_socket_from_systemd_keeps_its_queue() {
    run(async {
        let origin = Origin::text("activated").await;
        let dir = Dir::new();
        let listener = "[[listener]]\naddress = \"systemd:web\"\nprotocol = \"http\"\n";
        let file = dir.write("edge.toml", &behind(listener, origin.addr()));
        let socket = StdListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        // it comes before there is a server
        let mut early = TcpStream::connect(address).await.unwrap();
        early.write_all(GET.as_bytes()).await.unwrap();
        let mut command =
            edge::command_activated([std::ffi::OsStr::new("run"), "--config".as_ref(), file.as_ref()]);
        command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "web").stdin(Stdio::from(OwnedFd::from(socket)));
        let edge = Edge::start(command, 1).await;
        assert_eq!(edge.http(), address);
        assert!(raw::head(&mut early).await.starts_with("HTTP/1.1 200"));
        assert_eq!(Client::plain(address, "a.test").await.get("/").await.body, "activated");

        // without systemd it says what is missing
        let (status, _, stderr) =
            edge::run_to_end([std::ffi::OsStr::new("run"), "--config".as_ref(), file.as_ref()]);
        assert!(!status.success());
        assert!(stderr.contains("inherited:web has no socket") && stderr.contains("socket unit"), "{stderr}");
    });
}

#[test]
fn a_proxy_in_front_says_who_the_client_is() {
    run(async {
        let origin = Origin::text("ok").await;
        let listener = "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"http\"\n\
                        [listener.proxy_protocol]\ntrusted = [\"127.0.0.1\"]\ntimeout = \"300ms\"\n";
        let edge = Edge::run(&behind(listener, origin.addr())).await;
        let header = "PROXY TCP4 192.0.2.77 198.51.100.1 56324 443\r\n";
        assert_eq!(raw::send(edge.http(), format!("{header}{GET}")).await.statuses(), [200]);
        assert_eq!(origin.last().1["x-forwarded-for"], "192.0.2.77");
        // a trusted proxy always sends it, and in time
        assert_eq!(raw::send(edge.http(), GET).await.statuses(), [0; 0]);
        let mut silent = TcpStream::connect(edge.http()).await.unwrap();
        silent.write_all(&header.as_bytes()[..10]).await.unwrap();
        raw::closed(&mut silent, SOON).await;
        // a stranger can't say who he is
        let stranger = from(3, edge.http()).await;
        assert!(!String::from_utf8_lossy(&talk(stranger, format!("{header}{GET}")).await).contains("200"));
        let stranger = from(3, edge.http()).await;
        assert!(talk(stranger, GET).await.starts_with(b"HTTP/1.1 200"));
        assert_eq!(origin.last().1["x-forwarded-for"], "127.0.0.3");
    });
}

/// A connection from 127.0.0.`last`.
async fn from(last: u8, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
    socket.connect(to).await.unwrap()
}

/// What comes back first; nothing, if the connection is closed.
async fn talk(mut io: TcpStream, request: impl AsRef<[u8]>) -> Vec<u8> {
    let _ = io.write_all(request.as_ref()).await;
    let mut answer = vec![0; 4096];
    let len = within(SOON, "an answer", io.read(&mut answer)).await.unwrap_or(0);
    answer.truncate(len);
    answer
}

#[test]
fn a_client_has_its_share_of_connections() {
    run(async {
        let origin = Origin::text("ok").await;
        let limits = "[limits]\nmax_connections = 100\nmax_connections_per_client = 3\n[admin]\naddress = \"127.0.0.1:0\"\n";
        let listener = "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"http\"\n\
                        [listener.proxy_protocol]\ntrusted = [\"127.0.0.9\"]\n";
        let edge = Edge::run(&format!("{limits}{}", behind(listener, origin.addr()))).await;
        let mut open = Vec::new();
        for _ in 0..3 {
            let mut io = from(2, edge.http()).await;
            io.write_all(GET.as_bytes()).await.unwrap();
            assert!(raw::head(&mut io).await.starts_with("HTTP/1.1 200"));
            open.push(io);
        }
        assert_eq!(talk(from(2, edge.http()).await, GET).await, b"");
        assert!(talk(from(3, edge.http()).await, GET).await.starts_with(b"HTTP/1.1 200"), "others come in");
        // behind a proxy each client has a share of its own, and the proxy none
        for client in ["192.0.2.1", "192.0.2.2"] {
            let request = format!("PROXY TCP4 {client} 192.0.2.9 1 2\r\n{GET}");
            for _ in 0..3 {
                let mut io = from(9, edge.http()).await;
                io.write_all(request.as_bytes()).await.unwrap();
                assert!(raw::head(&mut io).await.starts_with("HTTP/1.1 200"), "{client}");
                open.push(io);
            }
            assert_eq!(talk(from(9, edge.http()).await, &request).await, b"", "{client}");
        }
        let metrics = Client::plain(edge.admin(), "localhost").await.get("/metrics").await;
        let line = "portcullis_connections_refused_total{reason=\"client\"} 3";
        assert!(metrics.body.contains(line), "{line} is missing in:\n{}", metrics.body);
        drop(open.remove(0));
        let again = async {
            while talk(from(2, edge.http()).await, GET).await.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        within(SOON, "a place for the client", again).await;
    });
}

#[test]
fn two_instances_share_a_port_on_purpose() {
    run(async {
        let origin = Origin::text("ok").await;
        let text = |address: &str| {
            let listener =
                format!("[[listener]]\naddress = \"{address}\"\nprotocol = \"http\"\nshared = true\n");
            behind(&listener, origin.addr())
        };
        let mut first = Edge::run(&text("127.0.0.1:0")).await;
        let held = first.http();
        let second = Edge::run(&text(&held.to_string())).await;
        for _ in 0..20 {
            assert_eq!(
                raw::send(held, GET.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await.statuses(),
                [200]
            );
        }
        first.terminate();
        assert!(first.ended(SOON).await.0.success());
        assert_eq!(Client::plain(second.http(), "a.test").await.get("/").await.status, 200);
    });
}

#[test]
fn a_listener_has_a_limit_of_its_own() {
    run(async {
        let origin = Origin::text("ok").await;
        let listener = "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"http\"\nmax_connections = 1\n\
                        [[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"redirect\"\n";
        let edge = Edge::run(&behind(listener, origin.addr())).await;
        let mut first = Client::plain(edge.http(), "a.test").await;
        assert_eq!(first.get("/").await.status, 200);
        let mut second = Client::plain(edge.http(), "a.test").await;
        let mut answer = Box::pin(second.get("/"));
        assert!(timeout(Duration::from_millis(200), &mut answer).await.is_err(), "a second is served");
        assert_eq!(
            raw::send(edge.redirect(), GET).await.statuses(),
            [308],
            "the other listener is not held back"
        );
        drop(first);
        assert_eq!(within(SOON, "the second", answer).await.status, 200);
    });
}

#[test]
fn a_clients_share_is_one_for_all_protocols() {
    run(async {
        let origin = Origin::text("ok").await;
        let text = format!("[limits]\nmax_connections_per_client = 2\n{}", secure(origin.addr()));
        let edge = Edge::run(&text).await;
        let mut quic = Client::connect(Protocol::H3, edge.https(), "localhost").await;
        assert_eq!(quic.get("/").await.status, 200);
        let mut tcp = Client::connect(Protocol::H2, edge.https(), "localhost").await;
        assert_eq!(tcp.get("/").await.status, 200);
        let mut third = TcpStream::connect(edge.https()).await.unwrap();
        raw::closed(&mut third, SOON).await;
        // one place is free again
        drop(tcp);
        let again = async {
            loop {
                let mut plain = TcpStream::connect(edge.https()).await.unwrap();
                // plain HTTP on this port is redirected; a refused one is closed
                let _ = plain.write_all(GET.as_bytes()).await;
                if matches!(plain.read(&mut [0; 64]).await, Ok(1..)) {
                    break plain;
                }
            }
        };
        let _held = within(SOON, "a place for the client", again).await;
        assert_eq!(quic.get("/").await.status, 200, "who is in stays in");
    });
}

#[test]
fn health_is_told_at_the_limit() {
    run(async {
        let origin = Origin::text("ok").await;
        let limits = "[limits]\nmax_connections = 1\n[admin]\naddress = \"127.0.0.1:0\"\n";
        let edge = Edge::run(&format!("{limits}{}", plain(origin.addr()))).await;
        let mut only = Client::plain(edge.http(), "a.test").await;
        assert_eq!(only.get("/").await.status, 200);
        let mut waits = Client::plain(edge.http(), "a.test").await;
        let mut answer = Box::pin(waits.get("/health"));
        assert!(timeout(Duration::from_millis(200), &mut answer).await.is_err(), "there is no place for it");
        let reply = Client::plain(edge.admin(), "localhost").await.get("/health").await;
        assert_eq!((reply.status.as_u16(), reply.body.trim()), (200, "ok"));
        // and on a connection that is open already
        assert_eq!(only.get("/health").await.status, 200);
    });
}
