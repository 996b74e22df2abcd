//! The configuration changes while the edge runs: nobody who is served notices.

use std::{env, fs, time::Duration};

use futures_util::{SinkExt, StreamExt};
use http::{Method, StatusCode};
use portcullis_testkit::certs::TestCa;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::{
    config::{plain, secure},
    drains::{PIECE, PIECES, origin},
    support::{
        Dir, SOON,
        client::{Client, Protocol, empty},
        edge::Edge,
        load::Load,
        origin::Origin,
        run, tls, within,
    },
    websocket::peers::{Echo, Http, open},
};

/// The same connections before and after, of each protocol; a download on each that began before.
#[test]
fn new_requests_take_new_routes_and_old_ones_end_where_they_began() {
    run(async {
        let (slow, other) = (origin().await, Origin::text("the other").await);
        let edge = Edge::run(&secure(slow.addr())).await;
        let mut downloads = JoinSet::new();
        let mut clients = Vec::new();
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let request = client.request(Method::GET, "/slow").body(empty()).unwrap();
            downloads.spawn(async move {
                let body = client.try_fetch(request).await.expect("a whole download").body;
                assert!(body.len() == PIECES * PIECE && body.ends_with('t'), "{protocol:?}: {}", body.len());
                (protocol, client)
            });
            clients.push((protocol, Client::connect(protocol, edge.https(), "localhost").await));
        }
        slow.wait_for_requests(3).await;
        let line = edge.reload(&secure(other.addr()), 1).await;
        assert!(line.contains("changed=\"cluster app\""), "{line}");
        for (protocol, client) in &mut clients {
            assert_eq!(client.get("/").await.body, "the other", "{protocol:?}");
        }
        // a connection that was busy all the while meets the new routes with its next request, and was not told to go
        while let Some(ended) = downloads.join_next().await {
            let (protocol, mut client) = ended.unwrap();
            assert_eq!(client.get("/").await.body, "the other", "{protocol:?}");
        }
    });
}

#[test]
fn a_websocket_lives_on_over_both_protocols() {
    run(async {
        let echo = Echo::start(Http::One).await;
        let other = Origin::text("the other").await;
        let edge = Edge::run(&echo.config(Http::One, Http::One)).await;
        let (mut one, _) = open(Http::One, &edge).await;
        let (mut two, _connection) = open(Http::Two, &edge).await;
        edge.reload(
            &echo.config(Http::One, Http::One).replace(&echo.addr.to_string(), &other.addr().to_string()),
            1,
        )
        .await;
        for socket in [&mut one, &mut two] {
            socket.send(Message::text("still there?")).await.unwrap();
            let back = within(SOON, "the echo", socket.next()).await.unwrap().unwrap();
            assert_eq!(back, Message::text("still there?"));
        }
    });
}

#[test]
fn a_file_with_mistakes_changes_nothing_and_says_why() {
    run(async {
        let first = Origin::text("first").await;
        let second = Origin::text("second").await;
        let admin = "[admin]\naddress = \"127.0.0.1:0\"\n";
        let edge = Edge::run(&format!("{admin}{}", secure(first.addr()))).await;
        let mut client = Client::connect(Protocol::H2, edge.https(), "localhost").await;
        let bad = format!("colour = \"red\"\n{admin}{}", secure(second.addr()));
        edge.reload(&bad, 1).await;
        let said = edge.stderr.find("unknown key `colour`").await;
        assert!(edge.stderr.text().contains("not reloaded, the configuration before stays"), "{said}");
        // sound by itself, and can't be carried out
        let files = "cert = \"no.pem\"\nkey = \"no.key\"";
        let cert = secure(second.addr()).replace("self_signed = [\"localhost\"]", files);
        edge.reload(&format!("{admin}{cert}"), 2).await;
        edge.stderr.find("no.pem").await;
        assert_eq!(client.get("/").await.body, "first");
        assert!((edge.metric("portcullis_reloads_total{result=\"failed\"}").await - 2.0).abs() < 0.1);
    });
}

#[test]
fn what_stays_until_the_next_start_is_named_and_the_rest_is_done() {
    run(async {
        let (first, second) = (Origin::text("first").await, Origin::text("second").await);
        let admin = "[admin]\naddress = \"127.0.0.1:0\"\n";
        let edge = Edge::run(&format!("{admin}{}", plain(first.addr()))).await;
        let mut client = Client::plain(edge.http(), "localhost").await;
        assert_eq!(client.get("/").await.body, "first");
        let other = plain(second.addr())
            .replace("protocol = \"http\"\n", "protocol = \"http\"\n[listener.tcp]\nnodelay = false\n")
            .replace("[[route]]", "[[listener]]\naddress = \"127.0.0.2:0\"\nprotocol = \"http\"\n[[route]]");
        let line = edge.reload(&format!("drain_timeout = \"3s\"\nthreads = 7\n{admin}{other}"), 1).await;
        assert!(line.contains("cluster app"), "{line}");
        let text = edge.stderr.text();
        for named in
            ["workers", "drain_timeout", "listener 127.0.0.1:0: tcp", "listener 127.0.0.2:0: it is new"]
        {
            let line = text.lines().find(|line| line.contains(named));
            assert!(
                line.is_some_and(|line| line.contains("at the next start or upgrade")),
                "{named}: {text}"
            );
        }
        assert_eq!(client.get("/").await.body, "second");
        assert!((edge.metric("portcullis_reloads_total{result=\"ok\"}").await - 1.0).abs() < 0.1);
        assert!(edge.metric("portcullis_last_reload_timestamp_seconds").await > 1e9);
    });
}

/// A cluster whose plan stays keeps its counters, and so everything beside them; another one's change does not touch it.
#[test]
fn what_is_the_same_goes_on_and_what_is_gone_ends() {
    run(async {
        let (kept, gone) = (Origin::text("kept").await, Origin::text("gone").await);
        let two = |second: &str| {
            format!(
                "[admin]\naddress = \"127.0.0.1:0\"\n{}[[cluster]]\nname = \"second\"\nendpoints = [\"{second}\"]\n\
                 [[route]]\npath = \"/second\"\ncluster = \"second\"\n",
                plain(kept.addr())
            )
        };
        let edge = Edge::run(&two(&gone.addr().to_string())).await;
        let mut client = Client::plain(edge.http(), "localhost").await;
        for path in ["/", "/second", "/"] {
            client.get(path).await;
        }
        assert_eq!(client.get("/second").await.body, "gone");
        edge.reload(&two("127.0.0.1:9"), 1).await;
        assert_eq!(client.get("/").await.body, "kept");
        let requests = |cluster| format!("portcullis_upstream_requests_total{{cluster=\"{cluster}\"}}");
        assert!((edge.metric(&requests("app")).await - 3.0).abs() < 0.1);
        assert!(edge.metric(&requests("second")).await.abs() < 0.1);
        assert_eq!(client.get("/second").await.status, StatusCode::BAD_GATEWAY);
    });
}

#[test]
fn limits_and_layers_change_for_connections_that_are_open() {
    run(async {
        let echo = Echo::start(Http::One).await;
        let config = echo.config(Http::One, Http::One);
        let edge = Edge::run(&config).await;
        let (mut kept, _) = open(Http::One, &edge).await;
        let mut client = Client::plain_h2(edge.http(), "localhost").await;
        assert_ne!(client.get("/").await.status, StatusCode::TOO_MANY_REQUESTS);
        let stricter =
            format!("[limits]\nmax_tunnels = 1\n[rate_limit]\nrequests = 1\nper = \"1h\"\n{config}");
        let line = edge.reload(&stricter, 1).await;
        assert!(line.contains("limits, rate_limit"), "{line}");
        client.get("/").await;
        assert_eq!(client.get("/").await.status, StatusCode::TOO_MANY_REQUESTS);
        kept.send(Message::text("still there?")).await.unwrap();
        assert_eq!(within(SOON, "it", kept.next()).await.unwrap().unwrap(), Message::text("still there?"));
        // the place that the limit has is taken
        edge.reload(&config.replace("[[route]]", "[limits]\nmax_tunnels = 1\n[[route]]"), 2).await;
        let io = tokio::net::TcpStream::connect(edge.http()).await.unwrap();
        let refused = tokio_tungstenite::client_async("ws://localhost/", io).await.unwrap_err();
        assert!(refused.to_string().contains("503"), "{refused}");
        edge.reload(&config, 3).await;
        open(Http::One, &edge).await;
    });
}

#[test]
fn certificates_come_and_go() {
    run(async {
        let ca = TestCa::new();
        let dir = Dir::new();
        for name in ["a.test", "b.test"] {
            let cert = ca.issue(&[name]);
            dir.write(&format!("{name}.pem"), &cert.chain_pem());
            dir.write(&format!("{name}.key"), &cert.key_pem());
        }
        let origin = Origin::text("here").await;
        let pair = |name: &str| format!("[[certificate]]\ncert = \"{name}.pem\"\nkey = \"{name}.key\"\n");
        let rest = plain(origin.addr()).replace("\"http\"", "\"https\"\ntls.unknown_names = \"refuse\"");
        let edge = Edge::run_in(dir, &format!("{}{rest}", pair("a.test"))).await;
        let config = || tls::config(Some(ca.der()), &["h2"]);
        let knows = |name: &'static str| async {
            Client::try_connect(Protocol::H2, edge.https(), name, config()).await.is_ok()
        };
        let mut open = Client::try_connect(Protocol::H2, edge.https(), "a.test", config()).await.unwrap();
        assert_eq!((knows("a.test").await, knows("b.test").await), (true, false));
        edge.reload(&format!("{}{}{rest}", pair("a.test"), pair("b.test")), 1).await;
        assert_eq!((knows("a.test").await, knows("b.test").await), (true, true));
        edge.reload(&format!("{}{rest}", pair("b.test")), 2).await;
        assert_eq!((knows("a.test").await, knows("b.test").await), (false, true));
        assert_eq!(open.get("/").await.body, "here");
    });
}

#[test]
fn a_change_of_the_file_is_enough_where_the_file_says_so() {
    run(async {
        let (first, second) = (Origin::text("first").await, Origin::text("second").await);
        let watched = |addr| format!("[reload]\nwatch = true\n{}", plain(addr));
        let edge = Edge::run(&watched(first.addr())).await;
        let mut client = Client::plain(edge.http(), "localhost").await;
        assert_eq!(client.get("/").await.body, "first");
        edge.stderr.find("following the configuration file").await;
        // as editors do
        let new = edge.dir().write("new.toml", &watched(second.addr()));
        fs::rename(new, edge.dir().path().join("edge.toml")).unwrap();
        edge.stderr.find("reloaded").await;
        assert_eq!(client.get("/").await.body, "second");
    });
}

/// 20 times, or as often as `PORTCULLIS_E2E_RELOADS` says, with clients of all three protocols who never pause.
#[test]
fn reloads_under_load_fail_no_request() {
    let times = env::var("PORTCULLIS_E2E_RELOADS").ok().and_then(|times| times.parse().ok()).unwrap_or(20);
    run(async move {
        let (first, second) = (Origin::text("first").await, Origin::text("second").await);
        let edge = Edge::run(&secure(first.addr())).await;
        let load = Load::start(edge.https(), &Protocol::ALL, 2, "/", |reply| {
            reply.status == 200 && (reply.body == "first" || reply.body == "second")
        });
        for n in 0..times {
            let origin = if n % 2 == 0 { &second } else { &first };
            edge.reload(&secure(origin.addr()), n + 1).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let tally = load.end().await;
        println!("{times} reloads: {tally:?}");
        tally.check();
        // nobody was sent away
        assert_eq!((tally.again, tally.connections), (0, 6), "{tally:?}");
        assert!(first.requests() > 0 && second.requests() > 0);
    });
}
