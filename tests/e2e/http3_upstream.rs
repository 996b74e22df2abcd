//! HTTP/3 to the endpoints of a cluster: one edge behind another.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt, StreamExt};
use http::{Method, Response};
use http_body_util::BodyExt;
use portcullis_testkit::origin::{Answer, RawOrigin};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    config::secure,
    support::{
        Dir, SOON,
        client::{Client, Protocol, full},
        edge::{Edge, run_to_end},
        origin::Origin,
        raw, run, within,
    },
    websocket::peers::{Echo, Http, open},
};

/// An edge whose cluster is others, by HTTP/3.
fn before(behind: &[SocketAddr]) -> String {
    let endpoints: Vec<_> = behind.iter().map(|addr| format!("\"{addr}\"")).collect();
    format!(
        "[admin]\naddress = \"127.0.0.1:0\"\n\
         [[certificate]]\nself_signed = [\"localhost\"]\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"https\"\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"http\"\n\
         [[route]]\ncluster = \"behind\"\n\
         [[cluster]]\nname = \"behind\"\nendpoints = [{}]\nprotocol = \"http3\"\ntls = true\ntls_verify = false\n",
        endpoints.join(", ")
    )
}

/// Says what it got, and how much.
async fn tells() -> Origin {
    Origin::start(|request| async move {
        let line = format!("{} {}", request.method(), request.uri());
        let body = request.into_body().collect().await.map_or(0, |body| body.to_bytes().len());
        Response::new(full(format!("{line} {body}")))
    })
    .await
}

/// HTTP/3 connections that an edge has accepted.
async fn accepted(edge: &Edge) -> f64 {
    edge.metric("portcullis_quic_connections_total{result=\"accepted\"}").await
}

#[test]
fn requests_of_every_protocol_go_on_by_http3() {
    run(async {
        let origin = tells().await;
        let behind =
            Edge::run(&format!("[admin]\naddress = \"127.0.0.1:0\"\n{}", secure(origin.addr()))).await;
        let log = "threads = 1\n[access_log]\nformat = \"json\"\nfields = [\"connect\", \"first_byte\"]\n";
        let edge = Edge::run(&format!("{log}{}", before(&[behind.https()]))).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let reply = client.get("/a?b=c").await;
            assert_eq!((reply.status.as_u16(), reply.body.as_str()), (200, "GET /a?b=c 0"), "{protocol:?}");
            let request = client.request(Method::POST, "/post").body(full(vec![b'x'; 1 << 20])).unwrap();
            assert_eq!(client.fetch(request).await.body, "POST /post 1048576", "{protocol:?}");
            let request = client.request(Method::HEAD, "/head").body(full("")).unwrap();
            let reply = client.fetch(request).await;
            assert_eq!((reply.status.as_u16(), reply.field("content-length")), (200, "12"), "{protocol:?}");
        }
        assert_eq!(accepted(&behind).await, 1.0, "one connection carried them all");
        // the first has connected
        let lines = edge.stdout.wait(9, |line| line.starts_with('{'), "the log's lines").await;
        let line = |line: &String| serde_json::from_str::<serde_json::Value>(line).unwrap();
        let lines: Vec<_> = lines.iter().map(line).collect();
        let took = |name: &str| lines[0][name].as_f64().unwrap();
        assert!(took("connect") > 0.0 && took("first_byte") > 0.0, "{}", lines[0]);
        assert!(lines[1..].iter().all(|line| line["connect"].is_null()), "{lines:?}");
    });
}

#[test]
fn early_hints_come_back_through_http3() {
    run(async {
        let answer = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let origin = RawOrigin::script(vec![Answer::raw(answer)]).await;
        let behind = Edge::run(&secure(origin.addr())).await;
        let edge = Edge::run(&before(&[behind.https()])).await;
        let request = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
        let answered = raw::send(edge.http(), request).await;
        assert!(
            answered
                .text
                .starts_with("HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\n"),
            "{answered:?}"
        );
    });
}

#[test]
fn websockets_go_on_by_http3() {
    run(async {
        let origin = Echo::start(Http::One).await;
        let behind = Edge::run(&origin.config(Http::Three, Http::One)).await;
        let edge = Edge::run(&before(&[behind.https()])).await;
        for http in [Http::One, Http::Three] {
            let (mut socket, _below) = open(http, &edge).await;
            let message = Message::text("through three protocols ".repeat(10_000));
            socket.send(message.clone()).await.unwrap();
            assert_eq!(within(SOON, "an echo", socket.next()).await.unwrap().unwrap(), message, "{http:?}");
        }
    });
}

#[test]
fn an_endpoint_that_was_restarted_or_is_gone() {
    run(async {
        let origin = tells().await;
        let mut behind = Edge::run(&secure(origin.addr())).await;
        let at = behind.https();
        let edge = Edge::run(&format!(
            "threads = 1\n{}connect_timeout = \"1s\"\ntls_timeout = \"1s\"\n",
            before(&[at])
        ))
        .await;
        let mut client = Client::connect(Protocol::H2, edge.https(), "localhost").await;
        assert_eq!(client.get("/1").await.status, 200);
        behind.terminate();
        behind.ended(Duration::from_secs(10)).await;
        // nobody is there
        let reply = within(SOON, "an answer", client.get("/2")).await;
        assert!([502, 503, 504].contains(&reply.status.as_u16()), "{reply:?}");
        // on the same port
        let config = secure(origin.addr()).replace("127.0.0.1:0", &at.to_string());
        let _behind = Edge::run(&config).await;
        let again = async {
            while client.get("/3").await.status != 200 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        within(Duration::from_secs(15), "the endpoint's return", again).await;
    });
}

#[test]
fn another_endpoint_takes_what_one_can_not() {
    run(async {
        let origin = tells().await;
        let behind = Edge::run(&secure(origin.addr())).await;
        // a port where nobody answers
        let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let list = before(&[silent.local_addr().unwrap(), behind.https()]);
        let edge = Edge::run(&format!("{list}connect_timeout = \"300ms\"\ntls_timeout = \"300ms\"\n")).await;
        let mut client = Client::connect(Protocol::H2, edge.https(), "localhost").await;
        for n in 0..6 {
            // a body that was not begun to be sent is at hand too
            let request = client.request(Method::POST, "/n").body(full("body")).unwrap();
            let reply = within(SOON, "an answer", client.fetch(request)).await;
            assert_eq!((reply.status.as_u16(), reply.body.as_str()), (200, "POST /n 4"), "{n}");
        }
    });
}

#[test]
fn what_may_not_be_repeated_is_sent_once() {
    run(async {
        let origin = Origin::start(|_| std::future::pending()).await;
        let config = secure(origin.addr());
        let (one, two) = tokio::join!(Edge::run(&config), Edge::run(&config));
        let list = before(&[one.https(), two.https()]);
        let edge = Edge::run(&format!("{list}response_timeout = \"500ms\"\n")).await;
        let mut client = Client::connect(Protocol::H2, edge.https(), "localhost").await;
        for (method, body, attempts) in
            [(Method::POST, "", 1), (Method::POST, "body", 1), (Method::GET, "", 2)]
        {
            let seen = origin.requests();
            let request = client.request(method.clone(), "/n").body(full(body)).unwrap();
            let reply = within(SOON, "an answer", client.fetch(request)).await;
            assert_eq!(reply.status.as_u16(), 504, "{method} {body:?}");
            assert_eq!(origin.requests() - seen, attempts, "{method} {body:?}");
        }
    });
}

#[test]
fn what_http3_can_not_do_is_said() {
    let config = before(&["127.0.0.1:9".parse().unwrap()]);
    for (wrong, what) in [
        (config.replace("tls = true\ntls_verify = false\n", ""), "HTTP/3 is spoken over TLS alone"),
        (format!("{config}proxy_protocol = \"v1\"\n"), "QUIC has none"),
        (config.replace("\"127.0.0.1:9\"", "\"unix:/tmp/none.sock\""), "unix sockets"),
    ] {
        let dir = Dir::new();
        let file = dir.write("edge.toml", &wrong);
        let (status, _, stderr) = run_to_end(["check", "--config", file.to_str().unwrap()]);
        assert!(!status.success() && stderr.contains(what), "{stderr}");
    }
}
