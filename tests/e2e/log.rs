//! The access log: what stands in it, what never does, and that nothing is lost.

use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use http::{Method, Response};
use serde_json::Value;
use tokio::{sync::watch, task::JoinSet};

use crate::{
    config::{plain, secure},
    support::{
        Dir, SOON,
        client::{Client, Protocol, empty, full},
        edge::Edge,
        origin::Origin,
        raw, run, within,
    },
};

/// Ends the edge, so that everything is written, and reads a file of its directory.
async fn ended(edge: &mut Edge, files: &[&str]) -> Vec<String> {
    edge.terminate();
    let (status, _) = within(SOON, "the end", edge.ended(SOON)).await;
    assert!(status.success());
    let read = |file: &&str| fs::read_to_string(edge.dir().path().join(file)).unwrap();
    files.iter().map(read).flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Moved away and opened anew by SIGUSR1, again and again under load: each request has its line, in one of the files.
#[test]
fn no_line_is_lost_while_the_file_is_rotated() {
    const CLIENTS: usize = 8;
    const MOVES: usize = 3;
    run(async {
        let origin = Origin::text("ok").await;
        let log = "[access_log]\noutput = \"./access.log\"\ntemplate = \"$target\"\n";
        let mut edge = Edge::run(&format!("{log}{}", plain(origin.addr()))).await;
        let mut clients = JoinSet::new();
        let (enough, told) = watch::channel(false);
        for client in 0..CLIENTS {
            let mut connection = Client::plain(edge.http(), "a.test").await;
            let told = told.clone();
            clients.spawn(async move {
                let mut n = 0;
                while !*told.borrow() {
                    assert_eq!(connection.get(&format!("/{client}/{n}")).await.status, 200);
                    n += 1;
                }
                (client, n)
            });
        }
        let path = |n: usize| edge.dir().path().join(format!("access.log.{n}"));
        let (mut moved, mut expected) = (0, Vec::new());
        while !clients.is_empty() {
            let log = edge.dir().path().join("access.log");
            if fs::rename(&log, path(moved)).is_ok() {
                moved += 1;
                edge.signal("USR1");
            }
            enough.send_replace(moved >= MOVES);
            tokio::select! {
                Some(ended) = clients.join_next() => {
                    let (client, count) = ended.unwrap();
                    expected.extend((0..count).map(|n| format!("/{client}/{n}")));
                }
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
        let names: Vec<_> = (0..moved).map(|n| format!("access.log.{n}")).collect();
        let mut files: Vec<&str> = names.iter().map(String::as_str).collect();
        let last = edge.dir().path().join("access.log");
        let opened = async {
            while !last.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(SOON, "the last file", opened).await;
        files.push("access.log");
        let mut lines = ended(&mut edge, &files).await;
        lines.sort();
        expected.sort();
        assert_eq!(lines, expected);
    });
}

#[test]
fn another_path_takes_over_at_a_reload() {
    run(async {
        let origin = Origin::text("ok").await;
        let config = |file: &str| {
            format!("[access_log]\noutput = \"./{file}\"\ntemplate = \"$target\"\n{}", plain(origin.addr()))
        };
        let mut edge = Edge::run(&config("one.log")).await;
        let mut client = Client::plain(edge.http(), "a.test").await;
        client.get("/1").await;
        assert!(edge.reload(&config("two.log"), 1).await.contains("access_log"));
        client.get("/2").await;
        assert_eq!(ended(&mut edge, &["one.log", "two.log"]).await, ["/1", "/2"]);
    });
}

#[test]
fn a_request_that_goes_on_over_a_reload_follows_the_file() {
    run(async {
        let (open, opened) = watch::channel(false);
        let origin = Origin::start(move |_| {
            let mut opened = opened.clone();
            async move {
                let _ = opened.wait_for(|open| *open).await;
                Response::new(full("ok"))
            }
        })
        .await;
        let config = |form: &str| {
            format!(
                "[access_log]\noutput = \"./a.log\"\ntemplate = \"{form} $target\"\n{}",
                plain(origin.addr())
            )
        };
        let mut edge = Edge::run(&config("one")).await;
        let mut client = Client::plain(edge.http(), "a.test").await;
        let held = tokio::spawn(async move { client.get("/held").await.status });
        origin.wait_for_requests(1).await;
        edge.reload(&config("two"), 1).await;
        let file = edge.dir().path().join("a.log");
        fs::rename(&file, edge.dir().path().join("a.log.1")).unwrap();
        edge.signal("USR1");
        let made = async {
            while !file.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(SOON, "another file", made).await;
        open.send(true).unwrap();
        assert_eq!(held.await.unwrap(), 200);
        Client::plain(edge.http(), "a.test").await.get("/new").await;
        let mut lines = ended(&mut edge, &["a.log"]).await;
        lines.sort();
        assert_eq!(lines, ["one /held", "two /new"]);
    });
}

/// Everything that a line of JSON says, over each protocol.
#[test]
fn a_line_knows_where_its_request_went() {
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    run(async {
        let origin = Origin::text("four").await;
        let fields = "\"protocol\", \"scheme\", \"path\", \"query\", \"status\", \"bytes\", \"received\", \"upstream\", \
             \"cluster\", \"route\", \"attempts\", \"queue\", \"connect\", \"first_byte\", \"time_to_head\", \"duration\", \"fault\", \
             \"outcome\", \"request_id\", \"trace_id\", \"conn_request\", \"peer\", \"transport\", \"tls\", \"tls_cipher\", \
             \"tls_group\", \"tls_resumed\", \"sni\", \"alpn\", \"header:x-a\", \"response_header:content-length\", \"cookie:id\"";
        let log = format!("[access_log]\noutput = \"./a.log\"\nformat = \"json\"\nfields = [{fields}]\n");
        let config = format!("{log}{}", secure(origin.addr()));
        let mut edge =
            Edge::run(&config.replace("cluster = \"app\"", "name = \"shop\"\ncluster = \"app\"")).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            for n in 1..3 {
                let request = client
                    .request(Method::POST, &format!("/p{n}?q=1"))
                    .header("x-request-id", "r-1")
                    .header("traceparent", TRACE)
                    .header("x-a", "some thing")
                    .header("cookie", "other=2; id=3")
                    .body(full("twelve bytes"));
                assert_eq!(client.fetch(request.unwrap()).await.body, "four");
            }
        }
        // the trace goes on as it came
        assert_eq!(origin.last().1["traceparent"], TRACE);
        let lines = ended(&mut edge, &["a.log"]).await;
        let lines: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 6);
        for line in &lines {
            let n = &line["conn_request"];
            let quic = line["protocol"] == "h3";
            for (key, value) in [
                ("scheme", Value::from("https")),
                ("path", format!("/p{n}").into()),
                ("query", "q=1".into()),
                ("status", 200.into()),
                ("bytes", 4.into()),
                ("received", 12.into()),
                ("upstream", origin.addr().to_string().into()),
                ("cluster", "app".into()),
                ("route", "shop".into()),
                ("attempts", 1.into()),
                ("fault", Value::Null),
                ("outcome", "complete".into()),
                ("request_id", "r-1".into()),
                ("trace_id", TRACE[3..35].into()),
                ("transport", if quic { "quic" } else { "tcp" }.into()),
                ("tls", "TLSv1.3".into()),
                ("sni", "localhost".into()),
                ("alpn", line["protocol"].clone()),
                ("header:x-a", "some thing".into()),
                ("response_header:content-length", "4".into()),
                ("cookie:id", "3".into()),
            ] {
                assert_eq!(line[key], value, "{key} of {line}");
            }
            let time = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key} of {line}"));
            assert!(time("first_byte") <= time("time_to_head") && time("time_to_head") <= time("duration"));
            assert!(time("queue") < 0.5 && line["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
            // the QUIC stack does not tell
            assert!(quic || line["tls_cipher"].as_str().is_some_and(|name| name.contains('_')), "{line}");
        }
        // one has connected, and those after it found a connection in their worker's pool, or made the other worker's
        let connects = lines.iter().filter(|line| !line["connect"].is_null()).count();
        assert!((1..6).contains(&connects), "{connects}");
    });
}

/// The lines in this form of a request to an endpoint that is not there, and of one whose client leaves; and the endpoints of both.
async fn dead_and_left(form: &str) -> (Vec<String>, SocketAddr, SocketAddr) {
    let (waiting, dead) = (Origin::start(|_| std::future::pending()).await, {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    });
    let log = format!("[access_log]\noutput = \"./a.log\"\n{form}\n");
    let more = format!(
        "[[route]]\npath = \"/dead\"\ncluster = \"dead\"\n[[cluster]]\nname = \"dead\"\nendpoints = [\"{dead}\"]\n"
    );
    let mut edge = Edge::run(&format!("{log}{}{more}", plain(waiting.addr()))).await;
    let mut client = Client::plain(edge.http(), "a.test").await;
    assert_eq!(client.get("/dead").await.status, 502);
    let request = client.request(Method::GET, "/left").body(empty()).unwrap();
    let sent = tokio::spawn(async move { client.send(request).await.map(|_| ()) });
    waiting.wait_for_requests(1).await;
    sent.abort();
    let _ = sent.await;
    (ended(&mut edge, &["a.log"]).await, dead, waiting.addr())
}

#[test]
fn faults_and_clients_that_leave() {
    run(async {
        let (mut lines, dead, waiting) = dead_and_left("template = \"$target $upstream $status\"").await;
        lines.sort();
        assert_eq!(lines, [format!("/dead {dead} 502"), format!("/left {waiting} -")]);
        let (lines, dead, waiting) = dead_and_left("format = \"json\"").await;
        let by_target: HashMap<String, Value> = lines
            .iter()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .map(|line| (line["target"].as_str().unwrap().to_owned(), line))
            .collect();
        let line = &by_target["/dead"];
        assert_eq!((&line["status"], &line["fault"]), (&502.into(), &"connect_failed".into()), "{line}");
        assert_eq!((&line["cluster"], &line["route"]), (&"dead".into(), &"*/dead".into()));
        assert_eq!((&line["upstream"], &line["attempts"]), (&dead.to_string().into(), &1.into()));
        assert!(line["request_id"].as_str().is_some_and(|id| !id.is_empty()), "{line}");
        // nobody ever answered, and still it is known who did not
        let line = &by_target["/left"];
        assert_eq!((&line["status"], &line["aborted"]), (&Value::Null, &true.into()), "{line}");
        assert_eq!((&line["cluster"], &line["upstream"]), (&"app".into(), &waiting.to_string().into()));
        assert_eq!(line["first_byte"], Value::Null);
    });
}

#[test]
fn secrets_are_in_no_log() {
    run(async {
        let origin = Origin::text("ok").await;
        let mut logs = String::new();
        for (n, form) in [
            "",
            "format = \"common\"",
            "format = \"json\"",
            "template = \"$request $target $query $referer\"",
        ]
        .iter()
        .enumerate()
        {
            logs += &format!(
                "[[access_log]]\noutput = \"./{n}.log\"\nredact = [\"card\"]\nredact_except = [\"sid\"]\n{form}\n"
            );
        }
        let mut edge = Edge::run(&format!("{logs}{}", plain(origin.addr()))).await;
        let request = "GET /in?token=s3cret&a=1&CARD=s3cret&sid=shown HTTP/1.1\r\nHost: a.test\r\n\
                       Referer: https://u:s3cret@b.test/?code=s3cret\r\nAuthorization: Basic s3cret\r\n\
                       Cookie: id=s3cret\r\n\r\n";
        assert_eq!(raw::send(edge.http(), request).await.statuses(), [200]);
        // what is logged is one thing, what is forwarded another
        assert!(origin.last().0.contains("token=s3cret"));
        let lines = ended(&mut edge, &["0.log", "1.log", "2.log", "3.log"]).await;
        assert_eq!(lines.len(), 4);
        for line in lines {
            assert!(line.contains("/in?token=***&a=1&CARD=***&sid=shown"), "{line}");
            assert!(!line.contains("s3cret"), "{line}");
        }
    });
}

#[test]
fn routes_are_sampled_by_themselves() {
    run(async {
        let origin = Origin::text("ok").await;
        let log = "[access_log]\noutput = \"./a.log\"\ntemplate = \"$target\"\n";
        let routes = "[[route]]\npath = \"/quiet\"\nrespond = \"x\"\naccess_log = \"off\"\n\
                      [[route]]\npath = \"/some\"\nrespond = \"x\"\n\
                      [route.access_log]\nsample = 5\nkeep_errors = \"4xx\"\n\
                      [[route]]\npath = \"/some/bad\"\nrespond = \"x\"\nstatus = 404\n\
                      [route.access_log]\nsample = 1000\nkeep_errors = \"4xx\"\n";
        let mut edge = Edge::run(&format!("{log}{}{routes}", plain(origin.addr()))).await;
        let mut client = Client::plain(edge.http(), "a.test").await;
        for n in 1..=40 {
            for path in ["/quiet", "/some", "/some/bad", "/all"] {
                let request = client.request(Method::GET, &format!("{path}?{n}"));
                let request = request.header("traceparent", format!("00-{n:032x}-00f067aa0ba902b7-01"));
                client.fetch(request.body(empty()).unwrap()).await;
            }
        }
        let lines = ended(&mut edge, &["a.log"]).await;
        let of = |path: &str| -> Vec<u32> {
            lines.iter().filter_map(|line| line.strip_prefix(path)?.strip_prefix('?')?.parse().ok()).collect()
        };
        let all: Vec<u32> = (1..=40).collect();
        assert_eq!((of("/quiet"), of("/some/bad"), of("/all")), (vec![], all.clone(), all));
        // every instance chooses the same of the same traces
        assert_eq!(of("/some"), [3, 12, 23, 25, 28, 31, 34]);
    });
}

/// A pipe that nobody reads stands still when it is full.
fn pipe(dir: &Dir) -> fs::File {
    let path = dir.path().join("a.pipe");
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    // for both, or opening it would wait for the other end
    fs::OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[test]
fn who_waits_for_the_log_loses_no_line_and_who_does_not_is_not_slowed() {
    const REQUESTS: usize = 1500;
    run(async {
        let origin = Origin::text("ok").await;
        let long = "a".repeat(200);
        for overflow in ["drop", "wait"] {
            let dir = Dir::new();
            let pipe = pipe(&dir);
            let more = if overflow == "wait" { "max_wait = \"30s\"\n" } else { "" };
            let config = format!(
                "threads = 1\n[admin]\naddress = \"127.0.0.1:0\"\n\
                 [access_log]\noutput = \"./a.pipe\"\ntemplate = \"$target\"\n\
                 overflow = \"{overflow}\"\n{more}buffer = \"512KiB\"\n{}",
                plain(origin.addr())
            );
            let edge = Edge::run_in(dir, &config).await;
            let mut client = Client::plain(edge.http(), "a.test").await;
            let requests = async {
                for n in 0..REQUESTS {
                    assert_eq!(client.get(&format!("/{n}/{long}")).await.status, 200);
                }
            };
            tokio::pin!(requests);
            if overflow == "drop" {
                within(Duration::from_secs(20), "requests that nothing holds up", requests).await;
                assert!(edge.metric("portcullis_access_log_dropped_total").await > 100.0);
                continue;
            }
            // 64 KiB in the pipe, 64 KiB on its way, 32 KiB that wait: some six hundred lines
            let stuck = async { while !still(&origin).await || origin.requests() < REQUESTS + 100 {} };
            tokio::select! {
                () = &mut requests => panic!("nobody waited"),
                () = stuck => {}
            }
            assert!(origin.requests() > 100 + REQUESTS && origin.requests() < 2 * REQUESTS - 200);
            // other connections live on
            assert!(edge.metric("portcullis_up").await > 0.0);
            // a thread of its own: one of the runtime's would be waited for if the test failed
            let (send, read) = tokio::sync::oneshot::channel();
            std::thread::spawn(move || send.send(read_lines(pipe, REQUESTS)));
            within(Duration::from_secs(20), "requests that go on", requests).await;
            let lines = within(SOON, "all lines", read).await.unwrap();
            assert!(lines.iter().enumerate().all(|(n, line)| line.starts_with(&format!("/{n}/"))));
            assert!(edge.metric("portcullis_access_log_dropped_total").await < 1.0);
        }
    });
}

/// What the last requests with a log left in its buffers is written by somebody else than who serves.
#[test]
fn a_log_that_stands_still_holds_up_nobody_at_a_reload() {
    run(async {
        let (origin, dir) = (Origin::text("ok").await, Dir::new());
        let pipe = pipe(&dir);
        let config = |log: &str| format!("threads = 1\n[access_log]\n{log}\n{}", plain(origin.addr()));
        let stuck = "output = \"./a.pipe\"\ntemplate = \"$target\"\nbuffer = \"512KiB\"";
        let edge = Edge::run_in(dir, &config(stuck)).await;
        let mut client = Client::plain(edge.http(), "a.test").await;
        let long = "a".repeat(200);
        // 64 KiB are in the pipe then, and more waits
        for n in 0..500 {
            assert_eq!(client.get(&format!("/{n}/{long}")).await.status, 200);
        }
        let (stop, mut stopped) = watch::channel(false);
        let asking = tokio::spawn(async move {
            let mut slowest = Duration::ZERO;
            while !*stopped.borrow_and_update() {
                let begin = Instant::now();
                assert_eq!(client.get("/").await.status, 200);
                slowest = slowest.max(begin.elapsed());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            slowest
        });
        edge.reload(&config("output = \"./b.log\""), 1).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop.send_replace(true);
        // two seconds are what the end of a log waits for
        let slowest = asking.await.unwrap();
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
        drop(pipe);
    });
}

/// Whether no request came to the origin for a while.
async fn still(origin: &Origin) -> bool {
    let before = origin.requests();
    tokio::time::sleep(Duration::from_millis(500)).await;
    origin.requests() == before
}

fn read_lines(pipe: fs::File, count: usize) -> Vec<String> {
    use std::io::{BufRead, BufReader};
    BufReader::new(pipe).lines().take(count).map(Result::unwrap).collect()
}

#[test]
fn lines_go_to_syslog() {
    run(async {
        let (origin, dir) = (Origin::text("ok").await, Dir::new());
        // a socket's path has little room
        let path = Path::new("/tmp").join(format!("e2e-syslog-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let daemon = tokio::net::UnixDatagram::bind(&path).unwrap();
        let log = format!("[access_log]\noutput = \"syslog:{}\"\nformat = \"common\"\n", path.display());
        let edge = Edge::run_in(dir, &format!("{log}{}", plain(origin.addr()))).await;
        Client::plain(edge.http(), "a.test").await.get("/logged").await;
        let mut message = vec![0; 4096];
        let len = within(SOON, "a message", daemon.recv(&mut message)).await.unwrap();
        let message = String::from_utf8_lossy(&message[..len]).into_owned();
        assert!(
            message.starts_with("<190>") && message.ends_with("\"GET /logged HTTP/1.1\" 200 2"),
            "{message}"
        );
        fs::remove_file(&path).unwrap();
    });
}

/// Hosts that routes name, and no other: a client can't make the metrics grow.
#[test]
fn requests_are_counted_by_host() {
    run(async {
        let origin = Origin::text("ok").await;
        let routes = "[[route]]\nhost = \"one.test\"\nrespond = \"1\"\n[[route]]\nhost = \"*.two.test\"\nrespond = \"2\"\n";
        let config = format!("[admin]\naddress = \"127.0.0.1:0\"\n{}{routes}", secure(origin.addr()));
        let edge = Edge::run(&config).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "localhost").await;
            for (host, times) in
                [("one.test", 3), ("a.two.test", 1), ("b.two.test", 1), ("localhost", 2), ("x.test", 1)]
            {
                for _ in 0..times {
                    let mut request = client.request(Method::GET, "/").body(empty()).unwrap();
                    if protocol == Protocol::H1 {
                        request.headers_mut().insert("host", host.parse().unwrap());
                    } else {
                        *request.uri_mut() = format!("https://{host}/").parse().unwrap();
                    }
                    assert_eq!(client.fetch(request).await.status, 200);
                }
            }
        }
        let config = config.replace("one.test", "three.test");
        edge.reload(&config, 1).await;
        for protocol in ["http/1.1", "h2", "h3"] {
            for (host, count) in [("*.two.test", 2.0), ("other", 3.0), ("three.test", 0.0)] {
                let line =
                    format!("portcullis_requests_by_host_total{{host=\"{host}\",protocol=\"{protocol}\"}}");
                assert_eq!(edge.metric(&line).await, count, "{line}");
            }
        }
        let all = Client::plain(edge.admin(), "localhost").await.get("/metrics").await.body;
        assert!(!all.contains("x.test") && !all.contains("host=\"one.test"), "{all}");
    });
}
