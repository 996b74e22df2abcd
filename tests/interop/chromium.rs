//! Chromium without a window, made to speak QUIC to the edge.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use portcullis_testkit::process::ChildGuard;
use serde_json::{Value, json};

use tokio::time::timeout;

use crate::{Setup, deadline, printed, run};

/// The hash by which Chromium is told to take the certificate: SHA-256 of its public key, in base64.
async fn key_hash(setup: &Setup) -> String {
    let script = "openssl x509 -in \"$0\" -noout -pubkey | openssl pkey -pubin -outform der \
                  | openssl dgst -sha256 -binary | openssl base64";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(setup.file("cert.pem"));
    printed(command).await.0.trim().to_owned()
}

fn chromium(setup: &Setup, hash: &str, features: &str) -> ChildGuard {
    let mut command = Command::new("chromium");
    command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
    command.args(["--no-first-run", "--disable-background-networking", "--disable-component-update"]);
    command.arg(format!("--user-data-dir={}", setup.file("profile").display()));
    command.arg(format!("--origin-to-force-quic-on=localhost:{}", setup.port()));
    // it knows two addresses of that name
    command.arg("--host-resolver-rules=MAP localhost 127.0.0.1");
    command.arg(format!("--ignore-certificate-errors-spki-list={hash}"));
    command.arg(format!("--enable-features={features}"));
    command.arg(format!("--log-net-log={}", setup.file("net.json").display()));
    command.arg(format!("https://localhost:{}/page", setup.port()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    ChildGuard::spawn(&mut command).expect("chromium: install Debian's package of that name")
}

/// What it says of its network, event by event.
struct NetLog {
    kinds: Value,
    events: Vec<Value>,
}

impl NetLog {
    /// A first line with what its numbers mean, and an event a line; who is told to end may leave out the end.
    fn read(setup: &Setup) -> Self {
        let log = std::fs::read_to_string(setup.file("net.json")).unwrap();
        let mut lines = log.lines();
        let first = lines.next().unwrap().trim_end_matches(',');
        let first: Value = serde_json::from_str(&format!("{first}}}")).expect("the log's constants");
        let event = |line: &str| {
            let line = line.strip_suffix("]}").unwrap_or(line).trim_end_matches(',');
            serde_json::from_str::<Value>(line).ok().filter(Value::is_object)
        };
        Self { kinds: first["constants"]["logEventTypes"].clone(), events: lines.filter_map(event).collect() }
    }

    /// The parameters of the events of a kind.
    fn events(&self, kind: &str) -> Vec<&Value> {
        let kind = self.kinds[kind].as_i64().unwrap_or_else(|| panic!("no event is called {kind}"));
        self.events.iter().filter(|event| event["type"] == kind).map(|event| &event["params"]).collect()
    }

    /// The values of a field in the request heads that went out over HTTP/3.
    fn sent(&self, field: &str) -> Vec<String> {
        let begin = format!("{field}: ");
        let heads = self.events("HTTP3_HEADERS_SENT").into_iter();
        let fields = heads.flat_map(|params| params["headers"].as_array().unwrap());
        fields.filter_map(|line| Some(line.as_str()?.strip_prefix(&begin)?.to_owned())).collect()
    }
}

/// A page that fetches, sends, receives and opens a WebSocket, by its own account and by the browser's log.
async fn page(features: &str) -> NetLog {
    let setup = Setup::new().await;
    let mut child = chromium(&setup, &key_hash(&setup).await, features);
    let mut results = setup.origin.results.clone();
    if timeout(deadline() / 2, results.wait_for(|results| results.1)).await.is_err() {
        let log = NetLog::read(&setup);
        let errors = ["QUIC_SESSION_CLOSED", "QUIC_SESSION_POOL_JOB_RESULT", "SOCKET_ERROR"];
        panic!("no results of the page: {:?}", errors.map(|kind| log.events(kind)));
    }
    let results: Value = serde_json::from_str(results.borrow().0.as_ref().unwrap()).unwrap();
    assert_eq!(results["errors"], json!([]), "{results}");
    assert_eq!(results["fetches"], 20);
    assert_eq!(results["upload"], format!("{} good", 3 << 20));
    assert_eq!(results["download"], true);
    assert_eq!(results["websocket"], json!(["one two three", 1000]));
    assert_eq!((&results["page"], &results["protocols"]), (&json!("h3"), &json!(["h3"])), "{results}");
    child.signal("TERM").unwrap();
    let ended = tokio::task::spawn_blocking(move || child.wait_for(Duration::from_secs(10)));
    assert!(ended.await.unwrap().unwrap().is_some(), "chromium does not end");
    let log = NetLog::read(&setup);
    assert!(!log.events("QUIC_SESSION_CERTIFICATE_VERIFIED").is_empty(), "no QUIC session");
    let paths = log.sent(":path");
    for (path, count) in [("/page", 1), ("/text", 20), ("/sink", 1), ("/bytes/", 1)] {
        assert_eq!(paths.iter().filter(|sent| sent.starts_with(path)).count(), count, "{path}: {paths:?}");
    }
    log
}

#[test]
#[ignore = "takes chromium: cargo xtask interop"]
fn chromium_runs_a_page_over_http3() {
    run(async {
        let log = page("").await;
        assert!(log.sent(":protocol").is_empty(), "by default its WebSockets go over HTTP/1.1");
    });
}

/// RFC 9220, which it has behind a switch.
#[test]
#[ignore = "takes chromium: cargo xtask interop"]
fn chromium_websocket_over_http3() {
    run(async {
        let log = page("EnableWebsocketsOverHttp3").await;
        assert_eq!(log.sent(":protocol"), ["websocket"]);
        assert!(log.sent(":method").contains(&"CONNECT".to_owned()));
    });
}
