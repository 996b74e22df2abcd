//! Descriptors run out: `ulimit -n 100` and a thousand clients who come and stay.
//!
//! `cargo xtask torture accept` runs this, and the same for a TCP echo in the listener's own tests, and shows what they
//! print.

use std::time::{Duration, Instant};

use http::Response;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    config::plain,
    support::{
        Dir, SOON,
        client::{Client, full},
        edge::{self, Edge, command_under},
        origin::Origin,
        run, within,
    },
};

const DESCRIPTORS: u64 = 100;
const CLIENTS: usize = 1000;

fn told(edge: &Edge, part: &str) -> Vec<String> {
    edge.stderr.text().lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
}

async fn under(text: &str) -> Edge {
    let dir = Dir::new();
    let file = dir.write("edge.toml", text);
    let args = [std::ffi::OsStr::new("run"), "--config".as_ref(), file.as_ref()];
    let mut edge = Edge::start(command_under(DESCRIPTORS, args), 1).await;
    edge.keep(dir);
    edge
}

/// An origin whose every answer takes a connection of its own: a descriptor for each request.
async fn hungry() -> Origin {
    Origin::start(|_| async {
        Response::builder().header("connection", "close").body(full("from the origin")).unwrap()
    })
    .await
}

#[test]
fn a_thousand_clients_and_a_hundred_descriptors() {
    run(async {
        let origin = hungry().await;
        let mut edge = under(&plain(origin.addr())).await;
        let begun = edge.stderr.find("fewer connections than usual are let in").await;
        assert!(begun.contains("ulimit -n"), "{begun}");
        eprintln!("at start: {begun}");
        let mut served: Vec<Client> = Vec::new();
        for _ in 0..4 {
            let mut client = Client::plain(edge.http(), "a.test").await;
            assert_eq!(client.get("/").await.body, "from the origin");
            served.push(client);
        }

        let mut clients = Vec::with_capacity(CLIENTS);
        for n in 0..CLIENTS {
            let connect = timeout(SOON, TcpStream::connect(edge.http())).await;
            if let Ok(Ok(mut client)) = connect {
                // some say nothing, some begin
                if n % 2 == 0 {
                    let _ = client.write_all(b"GET / HTTP/1.1\r\n").await;
                }
                clients.push(client);
            }
        }
        let line = edge.stderr.find("the limit of connections is reached").await;
        eprintln!("told: {line}");

        // what it costs, while requests that need a descriptor each are answered on open connections
        let (cpu, since) = (edge.cpu(), Instant::now());
        tokio::time::sleep(Duration::from_secs(3)).await;
        let (used, passed) = (edge.cpu() - cpu, since.elapsed());
        eprintln!("processor time in {passed:?} with {} clients waiting: {used:?}", clients.len());
        assert!(used < passed / 20, "{used:?} of processor time in {passed:?}");
        for round in 0..5 {
            for client in &mut served {
                let reply = within(SOON, "an answer in the shortage", client.get("/")).await;
                assert_eq!((reply.status.as_u16(), reply.body.as_str()), (200, "from the origin"), "{round}");
            }
        }
        assert_eq!(told(&edge, "the limit of connections is reached").len(), 1, "an episode is told once");
        assert!(told(&edge, "Too many open files").is_empty(), "{}", edge.stderr.text());

        drop(clients);
        let begin = Instant::now();
        let fresh = async { Client::plain(edge.http(), "a.test").await.get("/").await.status.as_u16() };
        assert_eq!(within(Duration::from_secs(2), "a fresh client", fresh).await, 200);
        eprintln!("a fresh client is served {:?} after the load has ended", begin.elapsed());
        assert!(edge.is_running());
        edge.terminate();
        drop(served);
        assert!(edge.ended(Duration::from_secs(12)).await.0.success());
    });
}

/// A limit that the arithmetic allows and that is not enough all the same: one connection of HTTP/2 makes a hundred
/// upstream connections. The edge stays, and says what is short.
#[test]
fn upstreams_that_eat_the_descriptors() {
    run(async {
        let origin = Origin::start(|_| async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Response::new(full("late"))
        })
        .await;
        let mut edge = under(&plain(origin.addr())).await;
        let mut busy = Vec::new();
        for _ in 0..15 {
            let mut io = TcpStream::connect(edge.http()).await.unwrap();
            // prior knowledge, settings, and eight requests
            let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
            for stream in 0..8u32 {
                // :method GET, :scheme http, :path /, :authority a
                let head = b"\x82\x86\x84\x41\x01a";
                bytes.extend_from_slice(&[0, 0, head.len() as u8, 1, 5]);
                bytes.extend_from_slice(&(stream * 2 + 1).to_be_bytes());
                bytes.extend_from_slice(head);
            }
            io.write_all(&bytes).await.unwrap();
            busy.push(io);
        }
        // they get something: an answer, or that it could not be done
        for io in &mut busy {
            let mut some = [0; 64];
            assert_ne!(within(Duration::from_secs(10), "frames", io.read(&mut some)).await.unwrap(), 0);
        }
        drop(busy);
        let fresh = async {
            loop {
                if let Ok(mut io) = TcpStream::connect(edge.http()).await {
                    let _ = io.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").await;
                    let mut some = [0; 12];
                    if io.read_exact(&mut some).await.is_ok() && some == *b"HTTP/1.1 200" {
                        break;
                    }
                }
            }
        };
        within(SOON, "a fresh client", fresh).await;
        assert!(edge.is_running());
        assert!(told(&edge, "panicked").is_empty(), "{}", edge.stderr.text());
    });
}

#[test]
fn a_limit_that_the_descriptors_do_not_carry_is_refused() {
    run(async {
        let origin = Origin::text("ok").await;
        let dir = Dir::new();
        let file =
            dir.write("edge.toml", &format!("[limits]\nmax_connections = 1000\n{}", plain(origin.addr())));
        let output =
            command_under(DESCRIPTORS, [std::ffi::OsStr::new("run"), "--config".as_ref(), file.as_ref()]);
        let (status, _, stderr) = edge::to_end(output);
        assert!(!status.success());
        for part in [
            "max_connections is too high",
            "1000 connections need ",
            "1000 x 2",
            "this process may open 100",
            "allow at most ",
            "LimitNOFILE=",
        ] {
            assert!(stderr.contains(part), "{part} is missing in {stderr}");
        }
    });
}
