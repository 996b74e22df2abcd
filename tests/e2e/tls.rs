//! TLS of the running binary: early data and its guard, certificates that follow their files, tickets across instances,
//! policies by name, and clients that never finish a handshake.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Method, Response};
use http_body_util::BodyExt;
use portcullis_testkit::certs::{TestCa, TestCert};
use rustls::{ClientConfig, ClientConnection, HandshakeKind};
use rustls_pki_types::{ServerName, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    Dir, SOON,
    client::{Client, Protocol, empty, full},
    edge::Edge,
    origin::Origin,
    run, tls, within,
};

const KEYS: [&str; 2] = [
    "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
    "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
];

/// A listener with these settings of TLS, the pair in `cert`, and everything sent to the origin.
fn config(tls: &str, more: &str, origin: SocketAddr) -> String {
    format!(
        "certificate_poll = \"100ms\"\n{more}\n[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"https\"\n\
         [listener.tls]\n{tls}\n[[certificate]]\ndirectory = \"cert\"\n[[route]]\ncluster = \"app\"\n\
         [[cluster]]\nname = \"app\"\nendpoints = [\"{origin}\"]\n"
    )
}

fn put(dir: &Dir, cert: &TestCert) {
    fs::create_dir_all(dir.path().join("cert")).unwrap();
    dir.write("cert/fullchain.pem", &cert.chain_pem());
    dir.write("cert/privkey.pem", &cert.key_pem());
}

async fn edge(ca: &TestCa, names: &[&str], tls: &str, origin: SocketAddr) -> Edge {
    let dir = Dir::new();
    put(&dir, &ca.issue(names));
    Edge::run_in(dir, &config(tls, "", origin)).await
}

/// Says what the upstream was told of early data.
async fn telling_origin() -> Origin {
    Origin::start(|request| async move {
        let told = request.headers().get("early-data").map(|value| value.to_str().unwrap().to_owned());
        Response::new(full(format!("{} {told:?}", request.method())))
    })
    .await
}

/// A client that sends early data and is driven by hand.
struct Early {
    config: Arc<ClientConfig>,
    addr: SocketAddr,
}

impl Early {
    /// Has been there once.
    async fn new(ca: &TestCa, addr: SocketAddr) -> Self {
        let mut config = ClientConfig::clone(&tls::config(Some(ca.der()), &["http/1.1"]));
        config.enable_early_data = true;
        let client = Self { config: Arc::new(config), addr };
        let mut first = tls::try_connect(addr, "localhost", Arc::clone(&client.config)).await.unwrap();
        first.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut response = String::new();
        first.read_to_string(&mut response).await.unwrap();
        assert!(response.ends_with("GET None"), "{response}");
        client
    }

    fn flight(&self, request: &str) -> (ClientConnection, Vec<u8>) {
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(Arc::clone(&self.config), name).unwrap();
        client.early_data().expect("a ticket that allows it").write_all(request.as_bytes()).unwrap();
        let flight = written(&mut client);
        (client, flight)
    }

    async fn send(&self, flight: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream.write_all(flight).await.unwrap();
        stream
    }
}

fn written(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// What the client understands of what comes until it falls silent.
async fn receive(client: &mut ClientConnection, stream: &mut TcpStream) -> String {
    let mut plain = Vec::new();
    let mut buffer = vec![0; 1 << 14];
    while let Ok(Ok(read)) = tokio::time::timeout(Duration::from_millis(400), stream.read(&mut buffer)).await
    {
        if read == 0 {
            break;
        }
        let mut bytes = &buffer[..read];
        while !bytes.is_empty() {
            client.read_tls(&mut bytes).unwrap();
            client.process_new_packets().unwrap();
        }
        let _ = client.reader().read_to_end(&mut plain);
    }
    String::from_utf8(plain).unwrap()
}

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody";

#[test]
fn a_safe_request_is_answered_before_the_handshake_is_complete_and_an_unsafe_one_after() {
    run(async {
        let (ca, origin) = (TestCa::new(), telling_origin().await);
        let edge = edge(&ca, &["localhost"], "resumption = \"zero-rtt\"", origin.addr()).await;
        let early = Early::new(&ca, edge.https()).await;

        let (mut client, flight) = early.flight(GET);
        let mut stream = early.send(&flight).await;
        let answer = receive(&mut client, &mut stream).await;
        assert!(answer.ends_with("GET Some(\"1\")"), "marked for the upstream: {answer}");

        let (mut client, flight) = early.flight(POST);
        let mut stream = early.send(&flight).await;
        assert_eq!(receive(&mut client, &mut stream).await, "", "held");
        assert_eq!(origin.requests(), 2, "the upstream has not seen it");
        stream.write_all(&written(&mut client)).await.unwrap();
        let answer = receive(&mut client, &mut stream).await;
        assert!(answer.ends_with("POST None"), "no longer in doubt: {answer}");
    });
}

#[test]
fn a_recorded_flight_is_served_at_most_once() {
    run(async {
        let (ca, origin) = (TestCa::new(), telling_origin().await);
        let edge = edge(&ca, &["localhost"], "resumption = \"zero-rtt\"", origin.addr()).await;
        let early = Early::new(&ca, edge.https()).await;
        let (_, flight) = early.flight(GET);
        let mut streams = Vec::new();
        for _ in 0..10 {
            streams.push(early.send(&flight).await);
        }
        origin.wait_for_requests(2).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(origin.requests(), 2, "the first visit, and one of ten times the same bytes");
    });
}

#[test]
fn a_route_has_its_own_mind_about_early_data() {
    run(async {
        let (ca, origin) = (TestCa::new(), telling_origin().await);
        let dir = Dir::new();
        put(&dir, &ca.issue(&["localhost"]));
        let more = "[[route]]\npath = \"/refuse\"\ncluster = \"app\"\nearly_data = \"refuse\"\n\
                    [[route]]\npath = \"/hold\"\ncluster = \"app\"\nearly_data = \"hold\"\n\
                    [[route]]\npath = \"/again\"\ncluster = \"app\"\nearly_data = \"serve\"\n";
        let text = config("resumption = \"zero-rtt\"", "", origin.addr()) + more;
        let edge = Edge::run_in(dir, &text).await;
        for (request, want) in [
            ("GET /refuse HTTP/1.1\r\nHost: localhost\r\n\r\n", "HTTP/1.1 425"),
            ("POST /again HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200"),
            ("GET /hold HTTP/1.1\r\nHost: localhost\r\n\r\n", ""),
        ] {
            let early = Early::new(&ca, edge.https()).await;
            let (mut client, flight) = early.flight(request);
            let mut stream = early.send(&flight).await;
            let answer = receive(&mut client, &mut stream).await;
            assert!(answer.starts_with(want) && answer.is_empty() == want.is_empty(), "{request}: {answer}");
        }
    });
}

#[test]
fn over_quic_too() {
    run(async {
        let (ca, origin) = (TestCa::new(), telling_origin().await);
        let edge = edge(&ca, &["localhost"], "resumption = \"zero-rtt\"", origin.addr()).await;
        let mut config = ClientConfig::clone(&tls::config(Some(ca.der()), &["h3"]));
        config.enable_early_data = true;
        let (config, client) = (Arc::new(config), portcullis_h3::client::Client::new(LOOPBACK).unwrap());
        let connect = || client.connect_early(edge.https(), "localhost", Arc::clone(&config));
        let send = async |method: Method, connection: &portcullis_h3::client::Connection| {
            let request = http::Request::builder().method(method).uri("https://localhost/");
            let response = connection.send(request.body(full("")).unwrap()).await.unwrap();
            assert_eq!(response.status(), 200);
            String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
        };
        assert_eq!(send(Method::GET, &connect().await.unwrap()).await, "GET None", "the first visit");
        // tickets come after the handshake
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(send(Method::GET, &connect().await.unwrap()).await, "GET Some(\"1\")");
        let connection = connect().await.unwrap();
        assert_eq!(send(Method::POST, &connection).await, "POST None", "held until it is no longer in doubt");
        assert_eq!(send(Method::GET, &connection).await, "GET None");
    });
}

/// The same with another's client; it says by itself whether its early data was accepted.
#[test]
fn openssl_sends_early_data() {
    run(async {
        let (ca, origin) = (TestCa::new(), telling_origin().await);
        let edge = edge(&ca, &["localhost"], "resumption = \"zero-rtt\"", origin.addr()).await;
        let request = edge.dir().write("request", &GET.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
        let session = edge.dir().path().join("session");
        let port = edge.https().port();
        let client = move |args: &[&str], file: &Path| {
            let mut command = Command::new("openssl");
            command.args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-servername", "localhost"]);
            command.args(["-tls1_3", "-ign_eof"]).args(args);
            let output = command.stdin(fs::File::open(file).unwrap()).stderr(Stdio::null()).output();
            String::from_utf8_lossy(&output.expect("openssl is installed").stdout).into_owned()
        };
        let told = tokio::task::spawn_blocking(move || {
            let (session, request) = (session.to_str().unwrap().to_owned(), request);
            let first = client(&["-sess_out", &session], &request);
            assert!(first.contains("GET None"), "{first}");
            let early = request.to_str().unwrap().to_owned();
            client(&["-sess_in", &session, "-early_data", &early], Path::new("/dev/null"))
        })
        .await
        .unwrap();
        assert!(told.contains("Early data was accepted") && told.contains("GET Some(\"1\")"), "{told}");
    });
}

#[test]
fn certificates_are_swapped_under_load() {
    run(async {
        let (ca, origin) = (TestCa::new(), Origin::text("ok").await);
        let (dir, first) = (Dir::new(), ca.issue(&["localhost"]));
        swap(&dir, 0, &first, &first.key_pem());
        let edge = Arc::new(Edge::run_in(dir, &config("", "", origin.addr())).await);
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut clients = Vec::new();
        for protocol in Protocol::ALL {
            // one connection for the whole time, and ever new ones
            for fresh in [false, true] {
                let (edge, stop, served) = (Arc::clone(&edge), Arc::clone(&stop), Arc::clone(&served));
                let config = tls::config(Some(ca.der()), &[protocol.alpn()]);
                clients.push(tokio::spawn(async move {
                    let connect =
                        || Client::try_connect(protocol, edge.https(), "localhost", Arc::clone(&config));
                    let mut client = connect().await.unwrap();
                    while !stop.load(Ordering::Relaxed) {
                        assert_eq!(client.get("/").await.status, 200, "{protocol:?}");
                        served.fetch_add(1, Ordering::Relaxed);
                        if fresh {
                            client = connect().await.unwrap();
                        }
                    }
                }));
            }
        }
        let shown = || async {
            let config = tls::config(Some(ca.der()), &["h2"]);
            let stream = tls::try_connect(edge.https(), "localhost", config).await.unwrap();
            stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
        };
        let told = |what: &'static str, times: usize| {
            let edge = Arc::clone(&edge);
            within(SOON, what, async move {
                while edge.stderr.text().matches(what).count() < times {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            })
        };
        let resuming = tls::config(Some(ca.der()), &["http/1.1"]);
        assert!(!resumes(&resuming, edge.https()).await);
        for turn in 1..=100 {
            let cert = ca.issue(&["localhost"]);
            swap(edge.dir(), turn, &cert, &cert.key_pem());
            told("updated certificate for domain", turn).await;
            if turn % 25 == 0 {
                assert_eq!(shown().await, cert.der());
                assert!(resumes(&resuming, edge.https()).await, "tickets are not touched");
            }
            if turn == 50 {
                // a key that is another's, in the middle of it all
                swap(edge.dir(), 0, &ca.issue(&["localhost"]), &ca.issue(&["localhost"]).key_pem());
                told("a certificate was not updated", 1).await;
                assert_eq!(shown().await, cert.der(), "the old one is served");
            }
        }
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.expect("no request failed");
        }
        assert!(served.load(Ordering::Relaxed) > 500, "{served:?}");
        let log = edge.stderr.text();
        assert!(log.contains("domain=\"localhost\""), "{log}");
        assert_eq!(log.matches("a certificate was not updated").count(), 1, "one line:\n{log}");
    });
}

/// Puts another directory in place of `cert` in one step, as Kubernetes does.
fn swap(dir: &Dir, turn: usize, cert: &TestCert, key: &str) {
    let (link, fresh, name) = (dir.path().join("cert"), dir.path().join("cert.new"), format!("cert-{turn}"));
    fs::create_dir_all(dir.path().join(&name)).unwrap();
    dir.write(&format!("{name}/fullchain.pem"), &cert.chain_pem());
    dir.write(&format!("{name}/privkey.pem"), key);
    std::os::unix::fs::symlink(&name, &fresh).unwrap();
    fs::rename(fresh, link).unwrap();
}

/// Whether a client that comes back does so without a full handshake.
async fn resumes(config: &Arc<ClientConfig>, addr: SocketAddr) -> bool {
    let mut stream = tls::try_connect(addr, "localhost", Arc::clone(config)).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await.unwrap();
    stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
}

#[test]
fn instances_with_the_same_keys_resume_each_others_sessions() {
    run(async {
        let (ca, origin) = (TestCa::new(), Origin::text("ok").await);
        let cert = ca.issue(&["localhost"]);
        let mut edges = Vec::new();
        for _ in 0..2 {
            let dir = Dir::new();
            put(&dir, &cert);
            dir.write("keys", KEYS[0]);
            edges.push(Edge::run_in(dir, &config("ticket_keys = \"keys\"", "", origin.addr())).await);
        }
        let [a, b] = [edges[0].https(), edges[1].https()];
        let client = tls::config(Some(ca.der()), &["http/1.1"]);
        assert!(!resumes(&client, a).await);
        assert!(resumes(&client, b).await, "a ticket of the other instance");

        // the new key: first as the second, then as the first, everywhere
        for keys in [[KEYS[0], KEYS[1]], [KEYS[1], KEYS[0]]] {
            for edge in &edges {
                let before = edge.stderr.text().matches("updated the ticket keys").count();
                edge.dir().write("keys", &keys.join("\n"));
                let told = async {
                    while edge.stderr.text().matches("updated the ticket keys").count() == before {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                };
                within(SOON, "the new keys", told).await;
                for addr in [a, b] {
                    assert!(resumes(&client, addr).await, "nothing is lost on the way");
                }
            }
        }
        for edge in &edges {
            edge.dir().write("keys", "not a key");
            edge.stderr.find("the ticket keys stay as they were").await;
        }
        assert!(resumes(&client, b).await);
    });
}

#[test]
fn a_name_with_a_policy_of_its_own_is_not_reached_by_another() {
    run(async {
        let (ca, staff, origin) = (TestCa::new(), TestCa::new(), Origin::text("ok").await);
        let dir = Dir::new();
        put(&dir, &ca.issue(&["localhost", "admin.example.com"]));
        dir.write("staff.pem", staff.pem().as_str());
        let host = "[[listener.tls.host]]\nnames = [\"admin.example.com\"]\nclient_auth = \"required\"\n\
                    client_ca = \"staff.pem\"\n";
        let edge = Edge::run_in(dir, &config(host, "", origin.addr())).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            assert_eq!(client.get("/").await.status, 200);
            client.authority = format!("ADMIN.example.com:{}", edge.https().port());
            assert_eq!(client.get("/").await.status, 421, "{protocol:?}");
        }
        let connect = |config| Client::try_connect(Protocol::H2, edge.https(), "admin.example.com", config);
        let stranger = async { connect(tls::config(Some(ca.der()), &["h2"])).await?.try_fetch(get()).await };
        assert!(stranger.await.is_err(), "no certificate, no service");
        let alice = staff.issue_client("alice");
        let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(alice.key_pem().as_bytes()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut known = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![alice.der()], key)
            .unwrap();
        known.alpn_protocols = vec![b"h2".to_vec()];
        assert_eq!(connect(Arc::new(known)).await.unwrap().get("/").await.status, 200);
        let over_quic = tls::config(Some(ca.der()), &["h3"]);
        let refused = Client::try_connect(Protocol::H3, edge.https(), "admin.example.com", over_quic).await;
        assert!(refused.is_err(), "what is asked there is asked over TCP only");
    });
}

fn get() -> http::Request<crate::support::client::Body> {
    http::Request::builder().method(Method::GET).uri("https://admin.example.com/").body(empty()).unwrap()
}

#[test]
fn clients_that_never_finish_a_handshake_keep_nobody_out() {
    run(async {
        let (ca, origin) = (TestCa::new(), Origin::text("ok").await);
        let dir = Dir::new();
        put(&dir, &ca.issue(&["localhost"]));
        let more = "[limits]\nmax_connections = 3000\n[timeouts]\nhandshake = \"3s\"\n";
        let edge = Edge::run_in(dir, &config("", more, origin.addr())).await;
        let config = tls::config(Some(ca.der()), &["http/1.1"]);
        let (_, hello) = {
            let name = ServerName::try_from("localhost").unwrap();
            let mut client = ClientConnection::new(Arc::clone(&config), name).unwrap();
            let hello = written(&mut client);
            (client, hello)
        };
        let mut silent = Vec::new();
        for turn in 0..2000 {
            let mut stream = TcpStream::connect(edge.https()).await.unwrap();
            if turn % 2 == 0 {
                stream.write_all(&hello[..hello.len() / 2]).await.unwrap();
            }
            silent.push(stream);
        }
        for _ in 0..20 {
            let mut client =
                Client::try_connect(Protocol::H1, edge.https(), "localhost", Arc::clone(&config))
                    .await
                    .unwrap();
            let reply = within(Duration::from_secs(1), "an honest request", client.get("/")).await;
            assert_eq!(reply.status, 200);
        }
        for mut stream in silent {
            let closed = within(SOON, "the deadline", stream.read(&mut [0; 64])).await;
            assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
        }
    });
}
