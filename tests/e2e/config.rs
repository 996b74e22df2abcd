//! `portcullis run --config`: listeners, certificates, routes, clusters, the admin service and the access log.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use portcullis_testkit::certs::TestCa;
use serde_json::Value;

use crate::support::{
    Dir, SOON,
    client::{Client, Protocol, empty},
    edge::Edge,
    origin::Origin,
    raw, run, tls, within,
};

/// Plain HTTP and a cluster of one.
pub(crate) fn plain(origin: SocketAddr) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"http\"\n\
         [[route]]\ncluster = \"app\"\n\
         [[cluster]]\nname = \"app\"\nendpoints = [\"{origin}\"]\n"
    )
}

/// HTTPS with HTTP/3 and a cluster of one. The cluster is last: its keys can be appended.
pub(crate) fn secure(origin: SocketAddr) -> String {
    let rest = plain(origin).replace("\"http\"", "\"https\"");
    format!("[[certificate]]\nself_signed = [\"localhost\"]\n{rest}")
}

const TWO_HOSTS: &str = r#"
[[listener]]
address = "127.0.0.1:0"
protocol = "https"

[[listener]]
address = "127.0.0.1:0"
protocol = "redirect"
redirect_port = 8443

[[certificate]]
cert = "a.pem"
key = "a.key"

[[certificate]]
cert = "b.pem"
key = "b.key"

[[route]]
host = "a.example.test"
cluster = "a"

[[route]]
host = "b.example.test"
cluster = "b"

[[route]]
host = "b.example.test"
path = "/api"
cluster = "a"

[[route]]
host = "b.example.test"
path = "/old"
redirect = "https://new.example.test"
status = 301

[[route]]
path = "/robots.txt"
respond = "User-agent: *\n"

[[route]]
host = "b.example.test"
path = "/teapot"
respond = "short and stout"
status = 418

[[cluster]]
name = "a"
endpoints = ["A1", "A2"]

[[cluster]]
name = "b"
endpoints = ["B"]
"#;

#[test]
fn hosts_paths_endpoints_and_certificates() {
    run(async {
        let (a1, a2, b) = (Origin::text("a1").await, Origin::text("a2").await, Origin::text("b").await);
        let (ca, dir) = (TestCa::new(), Dir::new());
        for name in ["a", "b"] {
            let cert = ca.issue(&[&format!("{name}.example.test")]);
            dir.write(&format!("{name}.pem"), &cert.chain_pem());
            dir.write(&format!("{name}.key"), &cert.key_pem());
        }
        let config = TWO_HOSTS
            .replace("A1", &a1.addr().to_string())
            .replace("A2", &a2.addr().to_string())
            .replace("\"B\"", &format!("\"{}\"", b.addr()));
        let edge = Edge::run_in(dir, &config).await;

        for protocol in Protocol::ALL {
            // each name has its own certificate, and the client looks
            let trusting = tls::config(Some(ca.der()), &[protocol.alpn()]);
            let connect = |name| Client::try_connect(protocol, edge.https(), name, trusting.clone());
            let mut client = connect("a.example.test").await.expect("the certificate of a");
            let mut got: Vec<_> = [client.get("/").await.body, client.get("/").await.body].into();
            got.sort();
            assert_eq!(got, ["a1", "a2"], "{protocol:?}: both endpoints have their turn");

            let mut client = connect("b.example.test").await.expect("the certificate of b");
            for (path, status, body) in [
                ("/", 200, "b"),
                ("/apix", 200, "b"),
                ("/api", 200, "a"),
                ("/api/x", 200, "a"),
                ("/teapot", 418, "short and stout"),
            ] {
                let reply = client.get(path).await;
                assert_eq!(reply.status.as_u16(), status, "{protocol:?} {path}");
                assert!(reply.body.starts_with(body), "{protocol:?} {path}: {reply:?}");
            }
            let reply = client.get("/old/x?y=z").await;
            assert_eq!(
                (reply.status.as_u16(), reply.field("location")),
                (301, "https://new.example.test/old/x?y=z")
            );
            client.authority = format!("B.Example.TEST:{}", edge.https().port());
            assert_eq!(client.get("/").await.body, "b", "{protocol:?}: hosts have no case");
            client.authority = "c.example.test".to_owned();
            assert_eq!(client.get("/").await.status, 404, "{protocol:?}");
            assert_eq!(
                client.get("/robots.txt").await.body,
                "User-agent: *\n",
                "{protocol:?}: any other host"
            );
        }
        let redirected =
            raw::send(edge.redirect(), "GET /x?y HTTP/1.1\r\nHost: a.example.test\r\n\r\n").await;
        assert_eq!(redirected.statuses(), [308]);
        assert!(redirected.text.contains("location: https://a.example.test:8443/x?y\r\n"), "{redirected:?}");
    });
}

#[test]
fn the_admin_service_counts() {
    run(async {
        let origin = Origin::text("ok").await;
        let config = format!("{}[admin]\naddress = \"127.0.0.1:0\"\n", secure(origin.addr()));
        let edge = Edge::run(&config).await;
        let mut clients = Vec::new();
        for (protocol, requests) in Protocol::ALL.into_iter().zip([2, 3, 4]) {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            for _ in 0..requests {
                assert_eq!(client.get("/").await.status, 200);
            }
            clients.push(client);
        }
        let mut admin = Client::plain(edge.admin(), "localhost").await;
        assert_eq!(admin.get("/health").await.status, 200);
        let metrics = admin.get("/metrics").await;
        assert!(metrics.field("content-type").starts_with("application/openmetrics-text"), "{metrics:?}");
        let lines: Vec<_> = metrics.body.lines().collect();
        for expected in [
            "portcullis_up 1",
            "portcullis_connections_open 2.0",
            "portcullis_connections_accepted_total 2",
            "portcullis_quic_connections_open 1.0",
            "portcullis_http_connections_open{protocol=\"http1\"} 1.0",
            "portcullis_http_connections_open{protocol=\"http2\"} 1.0",
            "portcullis_tls_handshakes_total 2",
            "portcullis_upstream_requests_total{cluster=\"app\"} 9",
            "portcullis_upstream_errors_total{cluster=\"app\"} 0",
            &format!("portcullis_upstream_endpoint_healthy{{endpoint=\"app/{}\"}} 1.0", origin.addr()),
        ] {
            assert!(
                lines.contains(&expected),
                "no line {expected:?}, but\n{}",
                of_family(&metrics.body, expected)
            );
        }
        for (protocol, requests) in [("http/1.1", 2), ("h2", 3), ("h3", 4)] {
            let is = |line: &&&str| {
                line.starts_with("portcullis_requests_total{")
                    && line.contains(&format!("\"{protocol}\""))
                    && line.contains("\"2xx\"")
            };
            let line = lines.iter().find(is).unwrap_or_else(|| panic!("no {protocol} in:\n{}", metrics.body));
            assert!(line.ends_with(&format!(" {requests}")), "{line}");
        }
        for protocol in ["http/1.1", "h2", "h3"] {
            let line = format!("portcullis_requests_aborted_total{{protocol=\"{protocol}\"}} 0");
            assert!(lines.contains(&line.as_str()), "{}", of_family(&metrics.body, &line));
        }
        assert_eq!(metrics.body.lines().last(), Some("# EOF"));
        // the admin service is nobody's business on the front door
        assert_eq!(clients[0].get("/metrics").await.body, "ok");
    });
}

#[test]
fn requests_that_clients_give_up_are_counted() {
    run(async {
        let origin = Origin::start(|_| std::future::pending()).await;
        let config = format!("{}[admin]\naddress = \"127.0.0.1:0\"\n", secure(origin.addr()));
        let edge = Edge::run(&config).await;
        for (turn, protocol) in (1..).zip(Protocol::ALL) {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            let request = client.request(http::Method::GET, "/").body(empty()).unwrap();
            tokio::select! {
                response = client.send(request) => panic!("{:?}", response.map(|response| response.status())),
                () = origin.wait_for_requests(turn) => {}
            }
            if protocol == Protocol::H1 {
                drop(client);
            }
        }
        let mut admin = Client::plain(edge.admin(), "localhost").await;
        let told = async {
            let all = ["http/1.1", "h2", "h3"]
                .map(|protocol| format!("portcullis_requests_aborted_total{{protocol=\"{protocol}\"}} 1"));
            loop {
                let metrics = admin.get("/metrics").await.body;
                if all.iter().all(|line| metrics.lines().any(|found| found == line)) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within(SOON, "all three are counted", told).await;
    });
}

/// The lines of the same metric, for a message.
fn of_family(metrics: &str, line: &str) -> String {
    let name = line.split(['{', ' ']).next().unwrap();
    metrics.lines().filter(|line| line.starts_with(name)).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_access_log_on_standard_output() {
    run(async {
        let origin = Origin::text("four").await;
        for format in ["combined", "json"] {
            let config = format!("[access_log]\nformat = \"{format}\"\n{}", plain(origin.addr()));
            let edge = Edge::run(&config).await;
            let request =
                "GET /logged?q HTTP/1.1\r\nHost: log.test\r\nUser-Agent: a \"b\"\r\nReferer: r\r\n\r\n";
            assert_eq!(raw::send(edge.http(), request).await.statuses(), [200]);
            let line = edge.stdout.find("/logged").await;
            let upstream = origin.addr().to_string();
            if format == "combined" {
                assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
                assert!(
                    line.contains("] \"GET /logged?q HTTP/1.1\" 200 4 \"r\" \"a \\\"b\\\"\" 0."),
                    "{line}"
                );
                assert!(line.ends_with(&format!(" \"{upstream}\" http/1.1")), "{line}");
            } else {
                let line: Value = serde_json::from_str(&line).unwrap();
                for (key, value) in [
                    ("client", Value::from("127.0.0.1")),
                    ("method", "GET".into()),
                    ("host", "log.test".into()),
                    ("target", "/logged?q".into()),
                    ("protocol", "http/1.1".into()),
                    ("status", 200.into()),
                    ("bytes", 4.into()),
                    ("referer", "r".into()),
                    ("user_agent", "a \"b\"".into()),
                    ("upstream", upstream.into()),
                    ("tls", Value::Null),
                    ("aborted", false.into()),
                ] {
                    assert_eq!(line[key], value, "{key} of {line}");
                }
            }
        }
    });
}

#[test]
fn the_access_log_in_a_file() {
    run(async {
        let origin = Origin::text("ok").await;
        let log = "[access_log]\noutput = \"./access.log\"\nformat = \"json\"\n";
        let mut edge = Edge::run(&format!("{log}{}", secure(origin.addr()))).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            assert_eq!(client.get("/missing/nothing").await.status, 200);
        }
        edge.terminate();
        let (status, _) = within(SOON, "the end", edge.ended(SOON)).await;
        assert!(status.success());
        // at the end everything is written
        let text = fs::read_to_string(edge.dir().path().join("access.log")).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let mut protocols: Vec<_> = lines.iter().map(|line| line["protocol"].as_str().unwrap()).collect();
        protocols.sort_unstable();
        assert_eq!(protocols, ["h2", "h3", "http/1.1"], "{text}");
        assert!(lines.iter().all(|line| line["status"] == 200 && line["tls"] == "TLSv1.3"), "{text}");
        assert!(!edge.stdout.text().contains("/missing"));
    });
}

/// As logrotate does it: the file is moved away, and SIGHUP begins another one.
#[test]
fn a_moved_access_log_is_opened_anew() {
    run(async {
        let origin = Origin::text("ok").await;
        let edge =
            Edge::run(&format!("[access_log]\noutput = \"./access.log\"\n{}", plain(origin.addr()))).await;
        let (log, moved) = (edge.dir().path().join("access.log"), edge.dir().path().join("access.log.1"));
        // the writer is a thread of its own
        let written = async |file: &Path, what: &str| {
            while !fs::read_to_string(file).unwrap_or_default().contains(what) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let mut client = Client::plain(edge.http(), "a.test").await;
        client.get("/before").await;
        within(SOON, "the line before", written(&log, "/before")).await;
        fs::rename(&log, &moved).unwrap();
        client.get("/moved").await;
        within(SOON, "the line in the moved file", written(&moved, "/moved")).await;
        edge.signal("HUP");
        let reopened = async {
            while !log.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(SOON, "a new file", reopened).await;
        client.get("/after").await;
        within(SOON, "the line in the new file", written(&log, "/after")).await;
        assert!(!fs::read_to_string(&moved).unwrap().contains("/after"));
    });
}

#[test]
fn both_kinds_of_workers_serve_every_protocol() {
    run(async {
        let origin = Origin::text("ok").await;
        for workers in ["per-core", "work-stealing"] {
            let edge =
                Edge::run(&format!("workers = \"{workers}\"\nthreads = 3\n{}", secure(origin.addr()))).await;
            // more connections than workers, so that each has some
            for _ in 0..8 {
                for protocol in Protocol::ALL {
                    let mut client = Client::connect(protocol, edge.https(), "localhost").await;
                    for _ in 0..3 {
                        assert_eq!(client.get("/").await.body, "ok", "{workers} {protocol:?}");
                    }
                }
            }
        }
        assert_eq!(origin.requests(), 2 * 8 * 3 * 3);
    });
}
