//! QUIC below HTTP/3: connection ids, and clients that move.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::net::UdpSocket;

use crate::{
    config::secure,
    support::{
        Dir, SOON,
        client::{Client, Protocol, full},
        edge::{Edge, run_to_end},
        origin::Origin,
        run, within,
    },
};

/// What stands between a client and the edge: a NAT that gives the client another port when it is told to.
pub(crate) struct Nat {
    pub(crate) address: SocketAddr,
    outside: Arc<Mutex<Arc<UdpSocket>>>,
    edge: SocketAddr,
    inside: Arc<UdpSocket>,
    client: Arc<Mutex<Option<SocketAddr>>>,
    /// The destination ids of packets with a short header.
    pub(crate) ids: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// Bytes of the ids that the edge gives in these tests.
pub(crate) const ID_LEN: usize = 19;

impl Nat {
    pub(crate) async fn before(edge: SocketAddr) -> Self {
        let inside = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let outside = Arc::new(Mutex::new(Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap())));
        let address = inside.local_addr().unwrap();
        let (client, ids) = (Arc::default(), Arc::default());
        let nat = Self { address, outside, edge, inside, client, ids };
        nat.back(nat.outside.lock().unwrap().clone());
        let (inside, outside) = (nat.inside.clone(), nat.outside.clone());
        let (client, ids) = (nat.client.clone(), nat.ids.clone());
        tokio::spawn(async move {
            let mut packet = [0; 2048];
            while let Ok((length, from)) = inside.recv_from(&mut packet).await {
                *client.lock().unwrap() = Some(from);
                if packet[0] & 0x80 == 0 {
                    ids.lock().unwrap().push(packet[1..=ID_LEN].to_vec());
                }
                let outside = outside.lock().unwrap().clone();
                let _ = outside.send_to(&packet[..length], edge).await;
            }
        });
        nat
    }

    /// Brings answers to one port back to the client.
    fn back(&self, outside: Arc<UdpSocket>) {
        let (inside, client) = (self.inside.clone(), self.client.clone());
        tokio::spawn(async move {
            let mut packet = [0; 2048];
            while let Ok((length, _)) = outside.recv_from(&mut packet).await {
                let to = *client.lock().unwrap();
                if let Some(to) = to {
                    let _ = inside.send_to(&packet[..length], to).await;
                }
            }
        });
    }

    pub(crate) async fn rebind(&self) {
        let outside = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        assert_ne!(outside.local_addr().unwrap(), self.edge);
        self.back(outside.clone());
        *self.outside.lock().unwrap() = outside;
    }
}

const IDS: &str = "[quic]\nserver_id = \"0a0b\"\nnonce_length = 14\nrotation = 5\nid_key = \"id.key\"\n";
const KEY: &str = "8f95f09245765f80256934e50c66207f";

/// Four workers: by its address alone a packet would come to another one three times of four.
#[test]
fn a_client_keeps_its_connection_wherever_it_goes() {
    run(async {
        let origin = Origin::text("ok").await;
        let dir = Dir::new();
        dir.write("id.key", KEY);
        let rest = secure(origin.addr());
        let text = format!("threads = 4\n[admin]\naddress = \"127.0.0.1:0\"\n{IDS}{rest}");
        let edge = Edge::run_in(dir, &text).await;
        let nat = Nat::before(edge.https()).await;
        let mut client = Client::connect(Protocol::H3, nat.address, "localhost").await;
        for _ in 0..6 {
            assert_eq!(within(SOON, "an answer", client.get("/")).await.status, 200);
            nat.rebind().await;
        }
        assert_eq!(within(SOON, "an answer", client.get("/")).await.status, 200);
        assert_eq!(edge.metric("portcullis_quic_connections_total{result=\"accepted\"}").await, 1.0);
        let ids = nat.ids.lock().unwrap().clone();
        assert!(!ids.is_empty());
        let digits = |id: &[u8]| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let file = edge.dir().path().join("edge.toml");
        let (status, stdout, stderr) =
            run_to_end(["cid".as_ref(), digits(&ids[0]).as_ref(), "--config".as_ref(), file.as_os_str()]);
        assert!(status.success(), "{stderr}");
        assert!(stdout.contains("rotation    5\nserver id   0a0b\n"), "{stdout}");
        assert!(stdout.contains("generation  0\n"), "{stdout}");
        // of any other
        let (status, _, stderr) =
            run_to_end(["cid".as_ref(), "00".as_ref(), "--config".as_ref(), file.as_os_str()]);
        assert!(!status.success() && stderr.contains("this id has 1 bytes"), "{stderr}");
    });
}

/// An answer after the drain began says nothing of HTTP/3, which takes nobody in any more.
#[test]
fn http3_is_offered_while_it_serves() {
    run(async {
        let (gate, opened) = tokio::sync::watch::channel(false);
        let origin = Origin::start(move |request| {
            let mut opened = opened.clone();
            async move {
                if request.uri().path() == "/held" {
                    opened.wait_for(|open| *open).await.unwrap();
                }
                http::Response::new(full("ok"))
            }
        })
        .await;
        let edge = Edge::run(&format!("threads = 1\n{}", secure(origin.addr()))).await;
        let mut client = Client::connect(Protocol::H2, edge.https(), "localhost").await;
        let offer = format!("h3=\":{}\"; ma=86400", edge.https().port());
        assert_eq!(client.get("/").await.field("alt-svc"), offer);
        let mut held = Client::connect(Protocol::H1, edge.https(), "localhost").await;
        let held = tokio::spawn(async move { held.get("/held").await });
        // with it the endpoint does not end at once
        let mut third = Client::connect(Protocol::H3, edge.https(), "localhost").await;
        let third = tokio::spawn(async move { third.get("/held").await });
        origin.wait_for_requests(3).await;
        edge.terminate();
        edge.stderr.find("draining").await;
        within(SOON, "TCP is closed", async {
            while tokio::net::TcpStream::connect(edge.https()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        gate.send(true).unwrap();
        let reply = within(SOON, "the answer", held).await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.field("alt-svc")), (200, ""));
        assert_eq!(within(SOON, "the answer", third).await.unwrap().status, 200);
    });
}

#[test]
fn a_reload_changes_what_quic_allows() {
    run(async {
        let origin = Origin::text("ok").await;
        let rest = secure(origin.addr());
        let with = |quic: &str| {
            let admin = "[admin]\naddress = \"127.0.0.1:0\"\n";
            format!("{admin}{}", rest.replace("[[route]]", &format!("[listener.quic]\n{quic}[[route]]")))
        };
        let edge = Edge::run(&with("retry = \"never\"\n")).await;
        let retried = "portcullis_quic_connections_total{result=\"retried\"}";
        let mut before = Client::connect(Protocol::H3, edge.https(), "localhost").await;
        assert_eq!(before.get("/").await.status, 200);
        assert_eq!(edge.metric(retried).await, 0.0);
        let line = edge.reload(&with("retry = \"always\"\n"), 1).await;
        assert!(line.contains("listeners' quic"), "{line}");
        let mut after = Client::connect(Protocol::H3, edge.https(), "localhost").await;
        assert_eq!(after.get("/").await.status, 200);
        assert_eq!(edge.metric(retried).await, 1.0);
        assert_eq!(before.get("/").await.status, 200, "open ones go on");
        edge.reload(&with("max_mtu = 1400\n"), 2).await;
        edge.stderr.find("quic.max_udp_payload").await;
    });
}

#[test]
fn what_quic_connections_are_like_is_told() {
    run(async {
        let origin = Origin::text("ok").await;
        let admin = "[admin]\naddress = \"127.0.0.1:0\"\n";
        let edge = Edge::run(&format!("{admin}{}", secure(origin.addr()))).await;
        let mut client = Client::connect(Protocol::H3, edge.https(), "localhost").await;
        assert_eq!(client.get("/").await.status, 200);
        assert_eq!(edge.metric("portcullis_quic_handshake_seconds_count").await, 1.0);
        drop(client);
        within(SOON, "the connection ends", async {
            while edge.metric("portcullis_quic_connections_open").await > 0.0 {}
        })
        .await;
        assert!(edge.metric("portcullis_quic_rtt_seconds_count").await >= 1.0);
        assert!(edge.metric("portcullis_quic_rtt_seconds_sum").await > 0.0);
        assert!(edge.metric("portcullis_quic_congestion_window_bytes_sum").await >= 12_000.0);
        assert!(edge.metric("portcullis_quic_packets_sent_total").await > 2.0);
        for zero in [
            "portcullis_quic_migrations_total",
            "portcullis_quic_congestion_events_total",
            "portcullis_http3_stream_errors_total{code=\"H3_REQUEST_CANCELLED\"}",
        ] {
            assert_eq!(edge.metric(zero).await, 0.0, "{zero}");
        }
    });
}

#[test]
fn connections_of_chosen_clients_are_traced() {
    run(async {
        let origin = Origin::text("ok").await;
        let dir = Dir::new();
        std::fs::create_dir(dir.path().join("traces")).unwrap();
        let qlog = "[qlog]\ndirectory = \"traces\"\nclients = [\"127.0.0.1\"]\nmax_files = 1\n";
        let edge = Edge::run_in(dir, &format!("threads = 2\n{qlog}{}", secure(origin.addr()))).await;
        for _ in 0..2 {
            let mut client = Client::connect(Protocol::H3, edge.https(), "localhost").await;
            assert_eq!(client.get("/").await.status, 200);
        }
        edge.stderr.find("traces of QUIC connections have reached their bound").await;
        let traces = || {
            let files = std::fs::read_dir(edge.dir().path().join("traces")).unwrap();
            files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect::<Vec<_>>()
        };
        // written when the connection is over
        within(SOON, "the trace", async {
            while !traces().iter().any(|trace| trace.contains("packet_sent")) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        assert_eq!(traces().len(), 1);
    });
}

#[test]
fn what_a_connection_id_tells() {
    let dir = Dir::new();
    let key = dir.write("id.key", KEY);
    let key = key.to_str().unwrap();
    let lengths = ["--server-id-length", "8", "--nonce-length", "8"];
    let id = "504dd2d05a7b0de9b2b9907afb5ecf8cc30109";
    for (id, options, wanted) in [
        ("0011220304556677", vec![], Ok("worker      3\ngeneration  4\n")),
        (
            id,
            [&lengths[..], &["--key-file", key]].concat(),
            Ok(
                "rotation    2\nserver id   ed793a51d49b8f5f\nnonce       ee080dbf48c0d1e5\nworker      1\ngeneration  9\n",
            ),
        ),
        (id, lengths.to_vec(), Ok("server id   4dd2d05a7b0de9b2\n")),
        ("f04dd2d05a7b0de9b2b9907afb5ecf8cc30109", lengths.to_vec(), Ok("server id   none")),
        ("0x", vec![], Err("`0x` is not in hexadecimal digits")),
        ("0011", vec![], Err("this id has 2 bytes, those of such an instance have 8")),
        (id, vec!["--server-id-length", "8", "--nonce-length", "3"], Err("at least 4 bytes, not 3")),
        (id, [&lengths[..], &["--key-file", "/nonexistent"]].concat(), Err("cannot read /nonexistent")),
    ] {
        let (status, stdout, stderr) = run_to_end([&["cid", id], &options[..]].concat());
        match wanted {
            Ok(wanted) => assert!(status.success() && stdout.contains(wanted), "{id}: {stdout}{stderr}"),
            Err(wanted) => assert!(!status.success() && stderr.contains(wanted), "{id}: {stdout}{stderr}"),
        }
    }
}

#[test]
fn keys_that_are_none_keep_the_edge_from_starting() {
    let dir = Dir::new();
    let text = format!("{IDS}{}", secure("127.0.0.1:1".parse().unwrap()));
    let file = dir.write("edge.toml", &text);
    for (key, wanted) in [(None, "cannot read"), (Some("0102"), "is no key of connection ids")] {
        if let Some(key) = key {
            dir.write("id.key", key);
        }
        let (status, _, stderr) = run_to_end(["run".as_ref(), "--config".as_ref(), file.as_os_str()]);
        assert!(!status.success() && stderr.contains(wanted) && stderr.contains("id.key"), "{stderr}");
    }
}

#[test]
fn secrets_that_are_none_keep_the_edge_from_starting() {
    let dir = Dir::new();
    let text = format!("[quic]\ntoken_keys = \"token.keys\"\n{}", secure("127.0.0.1:1".parse().unwrap()));
    let file = dir.write("edge.toml", &text);
    for (keys, wanted) in
        [(None, "cannot read"), (Some("# none"), "there are no QUIC keys"), (Some("01"), "line 1")]
    {
        if let Some(keys) = keys {
            dir.write("token.keys", keys);
        }
        let (status, _, stderr) = run_to_end(["run".as_ref(), "--config".as_ref(), file.as_os_str()]);
        assert!(!status.success() && stderr.contains(wanted) && stderr.contains("token.keys"), "{stderr}");
    }
}

#[test]
fn secrets_are_followed() {
    run(async {
        let origin = Origin::text("ok").await;
        let dir = Dir::new();
        dir.write("token.keys", &"11".repeat(32));
        let edge = Edge::run_in(
            dir,
            &format!(
                "certificate_poll = \"100ms\"\n[quic]\ntoken_keys = \"token.keys\"\n{}",
                secure(origin.addr())
            ),
        )
        .await;
        edge.stderr.find("other users can read these keys").await;
        edge.dir().write("token.keys", &format!("{}\n{}", "22".repeat(32), "11".repeat(32)));
        edge.stderr.find("updated the keys of QUIC").await;
        edge.dir().write("token.keys", "nothing");
        edge.stderr.find("the keys of QUIC stay as they were").await;
        let mut client = Client::connect(Protocol::H3, edge.https(), "localhost").await;
        assert_eq!(client.get("/").await.status, 200);
    });
}
