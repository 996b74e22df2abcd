//! Against a small authority of our own, for what Pebble does not do: suggestions when to renew (RFC 9773), rate
//! limits, refusals without a problem document.

#![allow(clippy::unwrap_used, reason = "a test may end where it cannot go on")]

use std::{
    fmt::Write as _,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use portcullis_acme::{Acme, AcmeOptions, CertState, Directory, MemoryStorage, Storage};
use portcullis_testkit::{certs::TestCa, conn};
use portcullis_tls::{AcceptorOptions, CertStore, ServerOptions, ServerTls, client::Roots};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::AbortHandle,
};

const LIMIT: Duration = Duration::from_secs(20);

/// What it says to the requests of a test, by method and path.
type Script = Box<dyn Fn(&str, &str) -> Option<String> + Send + Sync>;

struct Authority {
    url: String,
    ca: TestCa,
    /// Methods, paths and bodies, in their order.
    asked: Arc<Mutex<Vec<(String, String)>>>,
    serving: AbortHandle,
}

impl Authority {
    async fn start(script: Script) -> Self {
        let ca = TestCa::new();
        let cert = ca.issue(&["127.0.0.1"]);
        let store = Arc::new(CertStore::new());
        store.add_pem(cert.chain_pem().as_bytes(), cert.key_pem().as_bytes()).unwrap();
        let tls = ServerTls::new(store, &ServerOptions::default()).unwrap();
        let acceptor = tls.acceptor(AcceptorOptions::default());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (script, log, base) = (Arc::new(script), Arc::clone(&asked), url.clone());
        let serving = tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                let (acceptor, script, log, base) =
                    (acceptor.clone(), Arc::clone(&script), Arc::clone(&log), base.clone());
                tokio::spawn(async move {
                    let Ok(conn) = acceptor.accept(conn(io)).await else { return };
                    let mut io = conn.io;
                    let (line, body) = read_request(&mut io).await;
                    let (method, path) = line.split_once(' ').unwrap();
                    let response = script(method, path).unwrap_or_else(|| usual(method, path, &base));
                    log.lock().unwrap().push((line, body));
                    let _ = io.write_all(response.as_bytes()).await;
                    let _ = io.shutdown().await;
                });
            }
        })
        .abort_handle();
        Self { url, ca, asked, serving }
    }

    fn options(&self) -> AcmeOptions {
        AcmeOptions::new(Directory::Url(format!("{}/dir", self.url)))
            .with_roots(Roots::Given(vec![self.ca.der()]))
            .with_poll(Duration::from_millis(100))
    }

    fn asked(&self, what: &str) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(line, _)| line.starts_with(what)).map(|(_, body)| body.clone()).collect()
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// The first two words of the request line, and the body.
async fn read_request(io: &mut (impl AsyncRead + Unpin)) -> (String, String) {
    let mut read = Vec::new();
    let (mut head_end, mut length) = (None, 0);
    loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
            let field = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            (head_end, length) = (Some(end + 4), field.map_or(0, |length| length.parse().unwrap()));
        }
        if head_end.is_some_and(|end| read.len() >= end + length)
            || io.read_buf(&mut read).await.unwrap_or(0) == 0
        {
            break;
        }
    }
    let text = String::from_utf8_lossy(&read).into_owned();
    let line: Vec<_> = text.split(' ').take(2).collect();
    (line.join(" "), text[head_end.unwrap_or(text.len())..].to_owned())
}

fn response(status: &str, fields: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    let fields = format!("{fields}Content-Type: {kind}\r\nContent-Length: {length}\r\n");
    format!("HTTP/1.1 {status}\r\nReplay-Nonce: bm9uY2U\r\n{fields}\r\n{body}")
}

fn json(body: &serde_json::Value) -> String {
    response("200 OK", "", "application/json", &body.to_string())
}

fn problem(status: u16, kind: &str, fields: &str) -> String {
    let body = serde_json::json!({
        "type": format!("urn:ietf:params:acme:error:{kind}"), "detail": "no", "status": status,
    });
    response(&format!("{status} No"), fields, "application/problem+json", &body.to_string())
}

fn usual(method: &str, path: &str, base: &str) -> String {
    match (method, path) {
        ("GET", "/dir") => json(&serde_json::json!({
            "newNonce": format!("{base}/nonce"), "newAccount": format!("{base}/account"),
            "newOrder": format!("{base}/order"), "renewalInfo": format!("{base}/ari"),
        })),
        ("HEAD", "/nonce") => response("200 OK", "", "text/plain", ""),
        ("POST", "/account") => {
            response("201 Created", &format!("Location: {base}/account/1\r\n"), "application/json", "{}")
        }
        _ => response("404 Not Found", "", "text/html", "<p>"),
    }
}

/// Runs until something is so.
async fn run_until(acme: &Acme, what: &str, mut is_so: impl FnMut() -> bool) {
    let asking = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let running = acme.run(asking);
    if tokio::time::timeout(LIMIT, running).await.is_err() {
        panic!("it did not come to be that {what}: {:?}", acme.status());
    }
}

fn acme(options: AcmeOptions, storage: Arc<dyn Storage>) -> Acme {
    Acme::new(&Arc::new(CertStore::new()), storage, options).unwrap()
}

#[tokio::test]
async fn a_rate_limit_is_kept() {
    for (fields, least) in [("Retry-After: 7200\r\n", 7200), ("", 3600)] {
        let authority = Authority::start(Box::new(move |method, path| {
            ((method, path) == ("POST", "/order")).then(|| problem(429, "rateLimited", fields))
        }))
        .await;
        let options = authority.options().with_certificate(["a.example"]);
        let quick = options.with_retry(Duration::from_millis(10), Duration::from_millis(10));
        let acme = acme(quick, Arc::new(MemoryStorage::new()));
        run_until(&acme, "it failed", || acme.stats().orders_failed == 1).await;
        let CertState::Waiting { until } = acme.status()[0].state else { panic!("{:?}", acme.status()) };
        let wait = until.duration_since(SystemTime::now()).unwrap().as_secs();
        assert!(wait >= least - 5 && wait <= least * 11 / 10 + 5, "{wait} s");
        let error = acme.status()[0].last_error.clone().unwrap().text;
        assert!(error.contains("making an order failed") && error.contains("rateLimited"), "{error}");
    }
}

#[tokio::test]
async fn a_refusal_without_a_document_is_told_as_it_is() {
    let down = |method: &str, path: &str| {
        let unavailable = || response("503 Service Unavailable", "Retry-After: 600\r\n", "text/html", "<p>");
        ((method, path) == ("GET", "/dir")).then(unavailable)
    };
    let authority = Authority::start(Box::new(down)).await;
    let acme = acme(authority.options().with_certificate(["a.example"]), Arc::new(MemoryStorage::new()));
    run_until(&acme, "it failed", || acme.stats().orders_failed == 1).await;
    let status = acme.status().remove(0);
    let error = status.last_error.unwrap().text;
    assert!(error.contains("/dir answered 503"), "{error}");
    let CertState::Waiting { until } = status.state else { panic!("it waits") };
    assert!(until.duration_since(SystemTime::now()).unwrap().as_secs() > 590, "as it was told");
}

/// RFC 3339, by the days since 1970 (a good date for these years).
fn date(time: SystemTime) -> String {
    let text = httpdate::fmt_http_date(time);
    let parts: Vec<_> = text.split([' ', ':']).collect();
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months.iter().position(|month| *month == parts[2]).unwrap() + 1;
    format!("{}-{month:02}-{}T{}:{}:{}Z", parts[3], parts[1], parts[4], parts[5], parts[6])
}

/// A storage that has a certificate, as an earlier start left it, and an instance with it.
fn with_certificate(authority: &Authority) -> Acme {
    let storage = Arc::new(MemoryStorage::new());
    let options = authority.options().with_certificate(["a.example"]);
    let cert = TestCa::new().issue(&["a.example"]);
    let acme = acme(options, storage.clone());
    let mut stored = String::new();
    let _ = writeln!(stored, "portcullis-acme: {{\"names\":[\"a.example\"]}}");
    stored += &(cert.chain_pem() + &cert.key_pem());
    storage.store(&acme.storage_key("a.example").unwrap(), stored.as_bytes()).unwrap();
    acme.load().unwrap();
    assert_eq!(acme.status()[0].state, CertState::Valid);
    acme
}

fn suggests(start: SystemTime, end: SystemTime, fields: &'static str) -> Script {
    let body =
        serde_json::json!({ "suggestedWindow": { "start": date(start), "end": date(end) } }).to_string();
    Box::new(move |method, path| match (method, path) {
        ("GET", path) if path.starts_with("/ari/") => {
            Some(response("200 OK", fields, "application/json", &body))
        }
        ("POST", "/order") => Some(problem(403, "unauthorized", "")),
        _ => None,
    })
}

#[tokio::test]
async fn a_suggested_window_is_gone_by() {
    let day = Duration::from_secs(86_400);
    let (start, end) = (SystemTime::now() + 10 * day, SystemTime::now() + 11 * day);
    // the second authority does not say when to ask again, which the first one does
    for fields in ["Retry-After: 60\r\n", ""] {
        let authority = Authority::start(suggests(start, end, fields)).await;
        let acme = with_certificate(&authority);
        let before = acme.status()[0].next_renewal.unwrap();
        assert!(before > end, "by its lifetime it would be renewed in centuries");
        let within = || {
            let next = acme.status()[0].next_renewal.unwrap();
            next + Duration::from_secs(1) >= start && next <= end
        };
        run_until(&acme, "the suggestion is taken", within).await;
        let asked = authority.asked("GET /ari/").len();
        assert_eq!((asked, authority.asked("POST").len()), (1, 0), "asked once, and nothing ordered");
    }
}

#[tokio::test]
async fn a_window_that_is_over_means_now() {
    let hour = Duration::from_secs(3600);
    let (start, end) = (SystemTime::now() - 2 * hour, SystemTime::now() - hour);
    let authority = Authority::start(suggests(start, end, "")).await;
    let acme = with_certificate(&authority);
    run_until(&acme, "an order was made", || acme.stats().orders_failed == 1).await;
    let orders = authority.asked("POST /order");
    let payload = |body: &String| {
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        from_base64url(body["payload"].as_str().unwrap())
    };
    assert!(payload(&orders[0]).contains("\"replaces\""), "{}", payload(&orders[0]));
    assert!(!payload(&orders[1]).contains("\"replaces\""), "refused, it is tried without the hint");
    assert_eq!(orders.len(), 2);
    // what is there is served on
    assert!(acme.status()[0].not_after.unwrap() > SystemTime::now());
}

fn from_base64url(text: &str) -> String {
    let (mut bits, mut held, mut bytes) = (0_u32, 0, Vec::new());
    for byte in text.bytes() {
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let value = alphabet.iter().position(|letter| *letter == byte).unwrap();
        (bits, held) = (bits << 6 | u32::try_from(value).unwrap(), held + 6);
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held & 0xff) as u8);
        }
    }
    String::from_utf8(bytes).unwrap()
}
