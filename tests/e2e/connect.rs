//! Tunnels by CONNECT: to what the list allows, and to nothing else.

use std::{net::SocketAddr, time::Duration};

use http::{Request, StatusCode};
use portcullis_h3::client::Connection;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::AbortHandle,
    time::timeout,
};

use crate::{
    config::{plain, secure},
    support::{
        SOON,
        client::{Client, Protocol, empty},
        edge::Edge,
        raw, run, within,
    },
    websocket::peers::{BoxIo, H2Io, Two, connect_two},
};

/// Sends back what it gets, and `the end` when its client is done. Cut when it is dropped.
struct Target {
    addr: SocketAddr,
    accept: AbortHandle,
}

impl Drop for Target {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

impl Target {
    async fn echo() -> Self {
        Self::with(|mut io| async move {
            let (mut read, mut write) = io.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            write.write_all(b"the end").await.unwrap();
        })
        .await
    }

    async fn with<F: Future<Output = ()> + Send + 'static>(serve: fn(TcpStream) -> F) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let accept = tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                tokio::spawn(serve(io));
            }
        });
        Self { addr, accept: accept.abort_handle() }
    }
}

/// Plain HTTP and a list. `more` are keys of `[connect]`.
fn config(allow: &[String], more: &str) -> String {
    format!(
        "[connect]\nallow = {allow:?}\nclients = [\"127.0.0.1\"]\n{more}\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"http\"\n\
         [[route]]\nrespond = \"a route\"\n"
    )
}

async fn edge_to(target: &Target) -> Edge {
    Edge::run(&config(&[target.addr.to_string()], "")).await
}

fn ask(target: impl std::fmt::Display) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")
}

/// A tunnel over HTTP/1.1, and the head of its answer.
async fn one(edge: SocketAddr, target: SocketAddr) -> (BoxIo, String) {
    let mut io = TcpStream::connect(edge).await.unwrap();
    io.write_all(ask(target).as_bytes()).await.unwrap();
    // byte by byte: what comes behind it is the tunnel's
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within(SOON, "a head", io.read_u8()).await.unwrap());
    }
    (Box::new(io), String::from_utf8(head).unwrap())
}

/// A tunnel over HTTP/2.
async fn two(edge: SocketAddr, target: SocketAddr) -> (BoxIo, Two) {
    let two = connect_two(edge).await;
    let (response, send) = two.ask(None, &target.to_string()).await;
    assert_eq!(response.status(), 200);
    for absent in ["content-length", "transfer-encoding", "connection"] {
        assert!(!response.headers().contains_key(absent), "{absent}");
    }
    (Box::new(H2Io::new(send, response.into_body())), two)
}

/// Both ways, more than every buffer holds, and to the end of each.
async fn echoes(io: BoxIo) {
    let (mut read, mut write) = tokio::io::split(io);
    let bytes: Vec<u8> = (0..2_000_000_u32).map(|at| (at * 31 % 251) as u8).collect();
    let sent = bytes.clone();
    let sending = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        // this end is done, and the other still speaks
        write.shutdown().await.unwrap();
        write
    });
    let mut got = Vec::new();
    within(SOON, "all of it", read.read_to_end(&mut got)).await.unwrap();
    let end = got.split_off(got.len() - b"the end".len());
    assert!(got == bytes, "{} bytes came back changed", got.len());
    assert_eq!(end, b"the end");
    drop(sending.await.unwrap());
}

#[test]
fn rfc9110_9_3_6_a_tunnel_over_http1() {
    run(async {
        let target = Target::echo().await;
        let log = "[access_log]\noutput = \"stdout\"\n[admin]\naddress = \"127.0.0.1:0\"\n";
        let edge = Edge::run(&format!("{log}{}", config(&[target.addr.to_string()], ""))).await;
        let (io, head) = one(edge.http(), target.addr).await;
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
        for absent in ["content-length", "transfer-encoding", "\r\nconnection"] {
            assert!(!head.contains(absent), "{absent} in {head}");
        }
        echoes(io).await;
        let closed = edge.stderr.find("tunnel closed").await;
        let to = format!("{}", target.addr);
        for part in ["connect", &to, "to_upstream=2000000", "to_downstream=2000007", "HTTP/1.1"] {
            assert!(closed.contains(part), "{part} in {closed}");
        }
        let logged = edge.stdout.find("CONNECT").await;
        assert!(logged.contains(&format!("\"CONNECT {to} HTTP/1.1\" 200 ")), "{logged}");
        let metrics = Client::plain(edge.admin(), "localhost").await.get("/metrics").await.body;
        for line in
            ["portcullis_tunnels_opened_total 1", "portcullis_tunnel_bytes_total{to=\"upstream\"} 2000000"]
        {
            assert!(metrics.contains(line), "{line} in {metrics}");
        }
        // HTTP/1.0, as some clients still ask
        let mut old = TcpStream::connect(edge.http()).await.unwrap();
        old.write_all(format!("CONNECT {to} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        assert!(raw::head(&mut old).await.contains(" 200 "));
        echoes(Box::new(old)).await;
    });
}

#[test]
fn rfc9113_8_5_a_tunnel_over_http2() {
    run(async {
        let target = Target::echo().await;
        let edge = edge_to(&target).await;
        let (io, two) = two(edge.http(), target.addr).await;
        echoes(io).await;
        let closed = edge.stderr.find("tunnel closed").await;
        assert!(closed.contains("HTTP/2") && closed.contains("to_downstream=2000007"), "{closed}");
        // the connection is as good as before, for requests and tunnels
        let (response, _send) = two.ask(None, "127.0.0.1:1").await;
        assert_eq!(response.status(), 403);
        let (response, send) = two.ask(None, &target.addr.to_string()).await;
        echoes(Box::new(H2Io::new(send, response.into_body()))).await;
    });
}

#[test]
fn the_target_may_be_done_first() {
    run(async {
        let target = Target::with(|mut io| async move {
            io.write_all(b"hello").await.unwrap();
            io.shutdown().await.unwrap();
            let mut got = Vec::new();
            io.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"and you?");
        })
        .await;
        let edge = edge_to(&target).await;
        let (one, _) = one(edge.http(), target.addr).await;
        let (two, _two) = two(edge.http(), target.addr).await;
        for mut io in [one, two] {
            let mut got = Vec::new();
            within(SOON, "the target's end", io.read_to_end(&mut got)).await.unwrap();
            assert_eq!(got, b"hello");
            io.write_all(b"and you?").await.unwrap();
            io.shutdown().await.unwrap();
        }
        let is = "to_upstream=8 to_downstream=5";
        within(SOON, "both closed", async {
            while edge.stderr.text().matches(is).count() < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    });
}

#[test]
fn early_bytes_are_the_tunnels_first() {
    run(async {
        let target = Target::echo().await;
        let edge = edge_to(&target).await;
        let mut io = TcpStream::connect(edge.http()).await.unwrap();
        io.write_all(format!("{}GET /early HTTP/1.1\r\n", ask(target.addr)).as_bytes()).await.unwrap();
        io.shutdown().await.unwrap();
        let mut got = String::new();
        within(SOON, "the echo", io.read_to_string(&mut got)).await.unwrap();
        assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
        assert!(got.ends_with("\r\n\r\nGET /early HTTP/1.1\r\nthe end"), "{got}");
    });
}

#[test]
fn what_is_not_allowed_is_403_and_ends_the_connection() {
    run(async {
        let target = Target::echo().await;
        let port = target.addr.port();
        let edge = Edge::run(&config(&[target.addr.to_string(), format!("*.a.test:{port}")], "")).await;
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n";
        for refused in [
            format!("127.0.0.2:{port}"),
            format!("127.0.0.1:{}", port ^ 1),
            format!("a.test:{port}"),
            format!("xa.test:{port}"),
            format!("[::1]:{port}"),
            format!("localhost:{port}"),
        ] {
            let answered = raw::send(edge.http(), ask(&refused) + smuggled).await;
            assert_eq!(answered.statuses(), [403], "{refused}: {answered:?}");
            assert!(answered.closed && answered.text.contains("connection: close"), "{answered:?}");
            assert!(!answered.text.contains("a route"), "{answered:?}");
            let (response, _send) = connect_two(edge.http()).await.ask(None, &refused).await;
            assert_eq!(response.status(), 403, "{refused}");
        }
        // the same address in another form is the same
        let mapped = format!("[::ffff:127.0.0.1]:{port}");
        assert_eq!(raw::send(edge.http(), ask(mapped)).await.statuses(), [200]);
        let others = config(&[target.addr.to_string()], "").replace("127.0.0.1\"]\n\n", "192.0.2.1\"]\n\n");
        let edge = Edge::run(&others).await;
        assert_eq!(raw::send(edge.http(), ask(target.addr)).await.statuses(), [403]);
        let believed = ask(target.addr).replace("\r\n\r\n", "\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n");
        assert_eq!(raw::send(edge.http(), believed).await.statuses(), [403]);
    });
}

#[test]
fn what_is_no_target_is_400() {
    run(async {
        let target = Target::echo().await;
        let (edge, to) = (edge_to(&target).await, target.addr);
        let field =
            |field: &str| ask(to).replace("\r\n\r\n", &format!("\r\n{field}\r\n\r\nGET / HTTP/1.1\r\n"));
        for asked in [
            ask("127.0.0.1"),
            ask("127.0.0.1:0"),
            ask("127.0.0.1:99999"),
            ask(format!("127.1:{}", to.port())),
            ask(format!("2130706433:{}", to.port())),
            ask(to).replace("CONNECT ", "CONNECT http://"),
            ask(to).replace("CONNECT ", "CONNECT user@"),
            ask(to).replace("CONNECT ", "CONNECT /"),
            format!("CONNECT {to} HTTP/1.1\r\n\r\n"),
            format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nHost: {to}\r\n\r\n"),
            // RFC 9110 section 9.3.6: no content
            field("Content-Length: 5"),
            field("Content-Length: 0"),
            field("Transfer-Encoding: chunked"),
        ] {
            let answered = raw::send(edge.http(), &asked).await;
            assert_eq!(answered.statuses(), [400], "{asked}: {answered:?}");
            assert!(answered.closed, "{asked}: {answered:?}");
        }
        let two = connect_two(edge.http()).await;
        for (at, expected) in [("127.0.0.1", 400), ("user@127.0.0.1:80", 400)] {
            let request = Request::connect(at).body(()).unwrap();
            let (response, _send) = two.sender.clone().send_request(request, false).unwrap();
            let response = within(SOON, "an answer", response).await;
            assert!(response.as_ref().map_or(true, |found| found.status() == expected), "{at}: {response:?}");
        }
        for length in ["0", "5"] {
            let request = Request::connect(to.to_string()).header("content-length", length).body(()).unwrap();
            let (response, _send) = two.sender.clone().send_request(request, false).unwrap();
            // with a length of its own the driver has reset the stream already
            let refused =
                within(SOON, "an answer", response).await.map_or(400, |found| found.status().as_u16());
            assert_eq!(refused, 400, "{length}");
        }
    });
}

/// SSRF through DNS: a name that is allowed leads to this machine only if its address is allowed too.
#[test]
fn a_name_that_resolves_to_loopback_is_refused() {
    run(async {
        let target = Target::echo().await;
        let port = target.addr.port();
        let name = format!("localhost:{port}");
        let edge = Edge::run(&config(std::slice::from_ref(&name), "")).await;
        assert_eq!(raw::send(edge.http(), ask(&name)).await.statuses(), [403]);
        let both = [name.clone(), format!("127.0.0.0/8:{port}")];
        let edge = Edge::run(&config(&both, "")).await;
        let mut io = TcpStream::connect(edge.http()).await.unwrap();
        io.write_all(ask(&name).as_bytes()).await.unwrap();
        assert!(raw::head(&mut io).await.starts_with("HTTP/1.1 200 "));
        echoes(Box::new(io)).await;
        // and for its own port alone
        let other = [name.clone(), format!("127.0.0.0/8:{}", port ^ 1)];
        let edge = Edge::run(&config(&other, "")).await;
        assert_eq!(raw::send(edge.http(), ask(&name)).await.statuses(), [403]);
    });
}

#[test]
fn what_can_not_be_reached_is_502_and_what_takes_too_long_504() {
    run(async {
        let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        // a queue of one that nobody empties
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let silent = listener.local_addr().unwrap();
        let mut queue = Vec::new();
        while let Ok(io) = timeout(Duration::from_millis(300), TcpStream::connect(silent)).await {
            queue.push(io.unwrap());
        }
        let unknown = "no-such-host.invalid:443".to_owned();
        let allow = [refusing.to_string(), silent.to_string(), unknown.clone()];
        let edge = Edge::run(&config(&allow, "connect_timeout = \"300ms\"")).await;
        let begin = std::time::Instant::now();
        for (to, expected) in [(refusing.to_string(), 502), (silent.to_string(), 504)] {
            let answered = raw::send(edge.http(), ask(&to)).await;
            assert_eq!(answered.statuses(), [expected], "{to}: {answered:?}");
            assert!(answered.closed, "{answered:?}");
            let (response, _send) = connect_two(edge.http()).await.ask(None, &to).await;
            assert_eq!(response.status(), expected, "{to}");
        }
        assert!(begin.elapsed() < SOON);
        // a name server may take its time to say no
        let answered = raw::send(edge.http(), ask(&unknown)).await.statuses();
        assert!(answered == [502] || answered == [504], "{answered:?}");
    });
}

#[test]
fn without_a_list_it_is_501() {
    run(async {
        let target = Target::echo().await;
        let edge = Edge::run(&plain(target.addr)).await;
        let answered = raw::send(edge.http(), ask(target.addr)).await;
        assert_eq!(answered.statuses(), [501], "{answered:?}");
        assert!(answered.closed);
        let (response, _send) = connect_two(edge.http()).await.ask(None, &target.addr.to_string()).await;
        assert_eq!(response.status(), 501);
    });
}

#[test]
fn past_the_bound_of_tunnels_it_is_503() {
    run(async {
        let target = Target::echo().await;
        let allow = [target.addr.to_string()];
        let limits = "[limits]\nmax_tunnels = 1\n";
        for config in
            [config(&allow, "max_tunnels = 1"), format!("{limits}{}", config(&allow, "max_tunnels = 1"))]
        {
            let edge = Edge::run(&config).await;
            let (first, _) = one(edge.http(), target.addr).await;
            let answered = raw::send(edge.http(), ask(target.addr)).await;
            assert_eq!(answered.statuses(), [503], "{answered:?}");
            assert!(answered.text.contains("retry-after: 1") && answered.closed, "{answered:?}");
            let (response, _send) = connect_two(edge.http()).await.ask(None, &allow[0]).await;
            assert_eq!(response.status(), 503);
            echoes(first).await;
            edge.stderr.find("tunnel closed").await;
            let (second, head) = one(edge.http(), target.addr).await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            echoes(second).await;
        }
    });
}

#[test]
fn the_drain_waits_for_tunnels_and_then_cuts_them() {
    run(async {
        let target = Target::echo().await;
        let text = config(&[target.addr.to_string()], "");
        for (http2, grace, ends) in
            [(false, "30s", true), (true, "30s", true), (false, "1s", false), (true, "1s", false)]
        {
            let mut edge = Edge::run(&format!("drain_timeout = \"{grace}\"\n{text}")).await;
            let (mut io, held) = if http2 {
                let (io, held) = two(edge.http(), target.addr).await;
                (io, Some(held))
            } else {
                (one(edge.http(), target.addr).await.0, None)
            };
            edge.terminate();
            edge.stderr.find("draining").await;
            // time enough to cut what nobody waits for
            tokio::time::sleep(Duration::from_millis(300)).await;
            if ends {
                echoes(io).await;
                drop(held);
            } else {
                io.write_all(b"still there").await.unwrap();
                let mut got = [0; 11];
                within(SOON, "an echo", io.read_exact(&mut got)).await.unwrap();
                assert_eq!(&got, b"still there");
                raw::closed(&mut io, SOON).await;
            }
            let (status, took) = edge.ended(Duration::from_secs(10)).await;
            assert!(status.success() && took < SOON, "{http2} {grace}: {status} after {took:?}");
        }
    });
}

#[test]
fn a_silent_tunnel_is_closed() {
    run(async {
        let target = Target::echo().await;
        let edge = Edge::run(&config(&[target.addr.to_string()], "idle_timeout = \"1s\"")).await;
        let (mut io, _) = one(edge.http(), target.addr).await;
        raw::closed(&mut io, SOON).await;
        assert!(edge.stderr.find("tunnel closed").await.contains("idle"));
    });
}

#[test]
fn what_stands_before_routes_stands_before_tunnels() {
    run(async {
        let target = Target::echo().await;
        // those that look at a path or a host find none that is theirs
        let layers = "[rate_limit]\nrequests = 1\nper = \"1m\"\nburst = 1\n[filter]\ndeny = [\"/x\"]\n[cache]\n\
                      [security_headers]\n[paths]\nnormalise = true\nencoded_slash = \"reject\"\n[forwarded]\nvia = \"edge\"\n";
        let edge = Edge::run(&format!("{layers}{}", config(&[target.addr.to_string()], ""))).await;
        let (io, head) = one(edge.http(), target.addr).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        echoes(io).await;
        let answered = raw::send(edge.http(), ask(target.addr) + &ask(target.addr)).await;
        assert_eq!(answered.statuses(), [429], "{answered:?}");
        assert!(answered.closed, "{answered:?}");
    });
}

#[test]
fn tunnels_through_tls_and_none_beside_it() {
    run(async {
        let target = Target::echo().await;
        let list = format!("[connect]\nallow = [\"{}\"]\nclients = [\"127.0.0.1\"]\n", target.addr);
        let edge = Edge::run(&format!("{list}{}", secure(target.addr))).await;
        let connect = |version| {
            let host = target.addr.to_string();
            Request::connect(&host).version(version).header("host", &host).body(empty()).unwrap()
        };
        for protocol in [Protocol::H1, Protocol::H2] {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let mut request = connect(http::Version::HTTP_11);
            if protocol == Protocol::H2 {
                request.headers_mut().remove("host");
            }
            let mut response = within(SOON, "an answer", client.send(request)).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK, "{protocol:?}");
            let io = hyper::upgrade::on(&mut response).await.unwrap();
            echoes(Box::new(hyper_util::rt::TokioIo::new(io))).await;
        }
        let config = crate::support::tls::config(None, &["h3"]);
        let three = Connection::connect(edge.https(), "localhost", config).await.unwrap();
        let ask_three = || Request::connect(target.addr.to_string()).body(()).unwrap();
        let (response, tunnel) = within(SOON, "an answer", three.open_tunnel(ask_three())).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        echoes(Box::new(tunnel.unwrap())).await;
        let elsewhere = Request::connect("127.0.0.1:9").body(()).unwrap();
        let (response, tunnel) = within(SOON, "an answer", three.open_tunnel(elsewhere)).await.unwrap();
        assert_eq!((response.status(), tunnel.is_none()), (StatusCode::FORBIDDEN, true));
        // a port of TLS has none without it
        let answered = raw::send(edge.https(), ask(target.addr)).await;
        assert_eq!(answered.statuses(), [400], "{answered:?}");
    });
}
