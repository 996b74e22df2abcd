//! The cache in front of real origins: many clients for one cold object, rules of routes, ranges.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Response};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::{
    config::plain,
    support::{
        client::{Client, empty, full},
        edge::Edge,
        origin::Origin,
        raw, run, run_within,
    },
};

/// 10 MiB that tell where they are.
fn object() -> Bytes {
    (0..10 << 20).map(|at: u32| (at / 997 % 251) as u8).collect::<Vec<_>>().into()
}

/// An origin that has the object under one path, and counts who asks for it.
async fn origin_of(object: Bytes) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            let (object, count) = (object.clone(), Arc::clone(&count));
            tokio::spawn(async move {
                let mut head = [0; 4096];
                while let Ok(len @ 1..) = io.read(&mut head).await {
                    let big = head[..len].starts_with(b"GET /big ");
                    let body = if big { object.clone() } else { Bytes::from_static(b"small") };
                    count.fetch_add(usize::from(big), Ordering::SeqCst);
                    let begin = format!(
                        "HTTP/1.1 200 OK\r\ncache-control: max-age=600\r\ncontent-length: {}\r\n\r\n",
                        body.len()
                    );
                    if io.write_all(begin.as_bytes()).await.is_err() || io.write_all(&body).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (addr, requests)
}

/// A connection that was used once, for something small.
async fn used(addr: SocketAddr) -> TcpStream {
    let mut io = TcpStream::connect(addr).await.unwrap();
    io.write_all(b"GET /small HTTP/1.1\r\nHost: a.test\r\n\r\n").await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"small") {
        assert!(io.read_buf(&mut got).await.unwrap() > 0);
    }
    io
}

/// What a slow client reads before it stops.
const BEGINNING: usize = 64 << 10;

/// What came after the head. One that is given something to wait for reads no more than the beginning until that is so.
async fn fetch(mut io: TcpStream, object: &[u8], mut until: Option<watch::Receiver<bool>>) {
    io.write_all(b"GET /big HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut buffer = vec![0; 64 << 10];
    let (mut head, mut at) = (Vec::new(), None);
    loop {
        let len = io.read(&mut buffer).await.unwrap();
        if len == 0 {
            break;
        }
        let mut data = &buffer[..len];
        if at.is_none() {
            head.extend_from_slice(data);
            let Some(end) = head.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
            assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head[..end]));
            let before = head.len() - data.len();
            data = &data[(end + 4).saturating_sub(before)..];
            at = Some(0);
        }
        let from = at.unwrap_or(0);
        assert!(object[from..].starts_with(data), "other bytes at {from}");
        at = Some(from + data.len());
        if from + data.len() >= BEGINNING
            && let Some(mut until) = until.take()
        {
            until.wait_for(|go_on| *go_on).await.unwrap();
        }
    }
    assert_eq!(at, Some(object.len()));
}

/// A thousand clients at once, fast and slow ones, for ten cold mebibytes: one request upstream, every byte for everybody, and it is in memory once.
#[test]
fn a_thousand_clients_for_one_cold_object() {
    run_within(Duration::from_secs(240), async {
        let object = object();
        let (origin, requests) = origin_of(object.clone()).await;
        // who stands still on purpose is not to be taken for one who is gone
        let listener =
            plain(origin).replace("[[route]]", "[listener.http]\nsend_timeout = \"4m\"\n[[route]]");
        let config = format!("[cache]\nmax_object = \"16MiB\"\n[limits]\nmax_connections = 1500\n{listener}");
        let edge = Edge::run(&config).await;
        // What the connections cost by themselves is there before it is measured.
        let mut connections = Vec::new();
        for _ in 0..1000 {
            connections.push(used(edge.http()).await);
        }
        let before = edge.resident_memory();
        let (mut fast, mut slow) = (tokio::task::JoinSet::new(), tokio::task::JoinSet::new());
        let (go_on, until) = watch::channel(false);
        for (n, io) in connections.into_iter().enumerate() {
            let (object, until) = (object.clone(), (n % 3 == 0).then(|| until.clone()));
            let clients = if until.is_some() { &mut slow } else { &mut fast };
            clients.spawn(async move { fetch(io, &object, until).await });
        }
        // a third of them stands still, and nobody else waits for those
        while let Some(client) = fast.join_next().await {
            client.unwrap();
        }
        assert_eq!(slow.len(), 334);
        assert!(slow.try_join_next().is_none());
        go_on.send(true).unwrap();
        while let Some(client) = slow.join_next().await {
            client.unwrap();
        }
        let grown = edge.peak_memory().saturating_sub(before);
        assert_eq!(requests.load(Ordering::SeqCst), 1);
        assert!(grown < 3 * 10 * 1024, "{grown} KiB more than before");
    });
}

#[test]
fn routes_have_rules_of_their_own() {
    run(async {
        let origin = Origin::start(|request| async move {
            let mut response = Response::new(full(request.uri().to_string()));
            response.headers_mut().insert("cache-control", "max-age=600".parse().unwrap());
            if request.uri().path().starts_with("/some") {
                response.headers_mut().insert("vary", "accept-language".parse().unwrap());
            }
            response
        })
        .await;
        let routes = "[cache]\n[[route]]\npath = \"/blind\"\ncluster = \"app\"\n[route.cache]\nquery = \"none\"\ncache_status_key = true\n\
                      [[route]]\npath = \"/never\"\ncluster = \"app\"\ncache = \"off\"\n\
                      [[route]]\npath = \"/some\"\nheaders = { x-beta = \"1\" }\ncluster = \"app\"\n[route.cache]\n";
        let edge = Edge::run(&format!("{routes}{}", plain(origin.addr()))).await;
        let mut client = Client::plain(edge.http(), "a.test").await;
        assert_eq!(client.get("/blind?a").await.body, "/blind?a");
        let hit = client.get("/blind?b").await;
        assert_eq!(hit.body, "/blind?a");
        assert!(
            hit.field("cache-status").contains("; hit; ttl=")
                && hit.field("cache-status").contains("/blind\"")
        );
        for _ in 0..2 {
            assert_eq!(client.get("/never").await.field("cache-status"), "");
        }
        // Two routes for one URI share nothing.
        for beta in [true, false, true, false] {
            let request = client.request(Method::GET, "/some");
            let request = if beta { request.header("x-beta", "1") } else { request };
            client.fetch(request.body(empty()).unwrap()).await;
        }
        assert_eq!(origin.requests(), 1 + 2 + 2);
        // A part of what is stored.
        let request =
            client.request(Method::GET, "/blind").header("range", "bytes=1-5").body(empty()).unwrap();
        let reply = client.fetch(request).await;
        assert_eq!((reply.status.as_u16(), reply.body.as_str()), (206, "blind"));
        assert_eq!(reply.field("content-range"), "bytes 1-5/8");
        let head = client.request(Method::HEAD, "/blind").body(empty()).unwrap();
        let response = client.send(head).await.unwrap();
        assert_eq!(response.headers()["content-length"], "8");
        assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
    });
}

/// Behind a proxy that is trusted to tell the scheme: what one scheme was answered is not for the other, over whichever protocol it asks. And what
/// the origin was told of the client it may answer by.
#[test]
fn a_trusted_proxy_tells_schemes_and_clients_apart() {
    run(async {
        let origin = Origin::start(|request| async move {
            let told = |name: &str| {
                request.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned()
            };
            let text = format!("{} {}", told("x-forwarded-proto"), told("x-forwarded-for"));
            let mut response = Response::new(full(text));
            response.headers_mut().insert("cache-control", "max-age=600".parse().unwrap());
            if request.uri().path() == "/by-client" {
                response.headers_mut().insert("vary", "x-forwarded-for".parse().unwrap());
            }
            response
        })
        .await;
        let admin = "[admin]\naddress = \"127.0.0.1:0\"\n";
        let trusted = "[forwarded]\ntrusted = [\"127.0.0.1\"]\n[cache]\n";
        let edge = Edge::run(&format!("{admin}{trusted}{}", plain(origin.addr()))).await;
        let (h1, h2) =
            (Client::plain(edge.http(), "a.test").await, Client::plain_h2(edge.http(), "a.test").await);
        let mut clients = [h1, h2];
        let mut ask = async |client: usize, path: &str, scheme: &str, address: &str| {
            // over HTTP/2 the proxy says what it speaks itself
            let uri = if client == 0 { path.to_owned() } else { format!("http://a.test{path}") };
            let client = &mut clients[client];
            let request = client.request(Method::GET, path).uri(uri).header("x-forwarded-proto", scheme);
            let request = request.header("x-forwarded-for", address).body(empty()).unwrap();
            client.fetch(request).await.body
        };
        for (path, scheme, address, answer) in [
            ("/", "http", "192.0.2.1", "http 192.0.2.1, 127.0.0.1"),
            ("/", "https", "192.0.2.2", "https 192.0.2.2, 127.0.0.1"),
            ("/", "http", "192.0.2.3", "http 192.0.2.1, 127.0.0.1"),
            ("/", "https", "192.0.2.3", "https 192.0.2.2, 127.0.0.1"),
            ("/by-client", "http", "192.0.2.1", "http 192.0.2.1, 127.0.0.1"),
            ("/by-client", "http", "192.0.2.2", "http 192.0.2.2, 127.0.0.1"),
        ] {
            for client in [0, 1] {
                let told = ask(client, path, scheme, address).await;
                assert_eq!(told, answer, "{path} {scheme} {address} {client}");
            }
        }
        assert_eq!(origin.requests(), 2 + 4);
        // purges name what clients ask for
        let body = "url=https%3A%2F%2Fa.test%2F";
        let purge = format!(
            "POST /cache/purge HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let purged = raw::send(edge.admin(), &purge).await;
        assert_eq!(purged.statuses(), [200], "{purged:?}");
        assert_eq!(ask(0, "/", "http", "192.0.2.4").await, "http 192.0.2.1, 127.0.0.1");
        assert_eq!(ask(0, "/", "https", "192.0.2.4").await, "https 192.0.2.4, 127.0.0.1");
    });
}

/// Nobody asks it anything any more, and what has expired goes all the same.
#[test]
fn an_idle_cache_gives_its_memory_back() {
    run(async {
        let origin = Origin::start(|_| async {
            let mut response = Response::new(full("for a while"));
            response.headers_mut().insert("cache-control", "max-age=4".parse().unwrap());
            response
        })
        .await;
        let config = format!(
            "[admin]\naddress = \"127.0.0.1:0\"\n[cache]\nkeep_stale = \"0s\"\n{}",
            plain(origin.addr())
        );
        let edge = Edge::run(&config).await;
        let mut client = Client::plain(edge.http(), "a.test").await;
        for n in 0..20 {
            assert_eq!(client.get(&format!("/{n}")).await.status, 200);
        }
        // the counters follow at the store's own pace
        let mut seen = 0.0_f64;
        while seen < 20.0 {
            seen = seen.max(edge.metric("portcullis_cache_entries").await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        while edge.metric("portcullis_cache_entries").await > 0.0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(edge.metric("portcullis_cache_bytes").await < 1.0);
    });
}
