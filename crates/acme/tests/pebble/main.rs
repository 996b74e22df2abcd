//! Against a real authority: Pebble, with its DNS server, both started for each test on ports of their own.
//!
//! They are found by the system (`pebble`, `pebble-challtestsrv`), and a test fails where they are not there.

#![allow(clippy::unwrap_used, reason = "a test may end where it cannot go on")]

mod world;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use portcullis_acme::{
    BoxFuture, CertState, Challenge, DnsError, DnsHook, ExternalAccount, KeyKind, OnDemand, Storage,
};
use portcullis_testkit::certs::TestCa;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use world::{EXTERNAL_KEY, Instance, World, some_listener, until};

const WHY: &str = "it was issued by Pebble";

fn issued(instance: &Instance) -> u64 {
    instance.acme.stats().orders_ok
}

#[tokio::test]
#[ignore = "needs Pebble: run by cargo xtask pebble"]
async fn tls_alpn_01_on_a_current_thread_runtime() {
    let mut world = World::new().await;
    let options =
        world.options().with_certificate(["a.example", "www.a.example"]).with_certificate(["b.example"]);
    let instance = Instance::start(world.storage(), options, world.tls.take()).await;
    let shown = instance.until_served("www.a.example").await;
    until("both are there", async || issued(&instance) == 2).await;
    assert_eq!(instance.shows("a.example").await.unwrap(), shown, "one certificate has both names");
    assert_ne!(instance.shows("b.example").await.unwrap(), shown);
    assert_eq!(world.orders(), 2, "{WHY}");
    let status = instance.acme.status();
    assert!(status.iter().all(|status| status.state == CertState::Valid && status.issued == 1), "{status:?}");
    assert_eq!(status[0].names, ["a.example", "www.a.example"]);
    // the answers are gone from the storage, and from what is shown
    for prefix in ["challenges/alpn", "challenges/http"] {
        assert!(world.storage().list(prefix).unwrap().is_empty(), "{prefix}");
    }
    instance.stop().await;
    // the next start serves it without a word to the authority
    let options = world.options().with_certificate(["www.a.example", "a.example"]);
    let again = Instance::start(world.storage(), options, some_listener().await).await;
    assert_eq!(again.shows("a.example").await.unwrap(), shown);
    again.stop().await;
    assert_eq!(world.orders(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Pebble: run by cargo xtask pebble"]
async fn addresses_and_other_keys() {
    let mut world = World::new().await;
    let options = world.options().with_certificate(["127.0.0.1"]).with_key(KeyKind::P384);
    let instance = Instance::start(world.storage(), options, world.tls.take()).await;
    until("the address has one", async || issued(&instance) == 1).await;
    let shown = instance.shows("127.0.0.1").await.unwrap();
    // who connects by address sends no name and gets the first one with an address
    assert_eq!(shown.len(), 64);
    instance.stop().await;
    let options = world.options().with_certificate(["rsa.example"]).with_key(KeyKind::Rsa2048);
    // RSA keys go through the same flow; the answer is given by HTTP
    let options = options.with_challenge(Challenge::Http01);
    let instance = Instance::start(world.storage(), options, some_listener().await).await;
    serve_http(world.http.take(), &instance.acme);
    instance.until_served("rsa.example").await;
    instance.stop().await;
}

/// An axum application with the layer, as a program would have it.
fn serve_http(listener: tokio::net::TcpListener, acme: &portcullis_acme::Acme) {
    let app = axum::Router::new().fallback(|| async { "the application" }).layer(acme.http01());
    tokio::spawn(async move { axum::serve(listener, app).await });
}

async fn get(port: u16, path: &str) -> String {
    let mut io = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n");
    io.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    io.read_to_string(&mut response).await.unwrap();
    response
}

#[tokio::test]
#[ignore = "needs Pebble: run by cargo xtask pebble"]
async fn http_01_by_the_layer() {
    let mut world = World::new().await;
    let options =
        world.options().with_certificate(["a.example", "b.example"]).with_challenge(Challenge::Http01);
    let instance = Instance::start(world.storage(), options, some_listener().await).await;
    let port = world.http.port;
    serve_http(world.http.take(), &instance.acme);
    instance.until_served("a.example").await;
    for path in ["/", "/.well-known/acme-challenge/unknown", "/.well-known/acme-challenge/../x"] {
        assert!(get(port, path).await.ends_with("the application"), "{path}");
    }
    instance.stop().await;
}

/// Sets records through the management interface of Pebble's DNS server.
struct TestDns {
    port: u16,
    set: AtomicUsize,
    cleared: AtomicUsize,
    is_wrong: bool,
}

impl TestDns {
    fn new(port: u16, is_wrong: bool) -> Arc<Self> {
        Arc::new(Self { port, set: AtomicUsize::new(0), cleared: AtomicUsize::new(0), is_wrong })
    }

    async fn post(&self, path: &str, body: serde_json::Value) -> Result<(), DnsError> {
        let post = async {
            let body = body.to_string();
            let mut io = TcpStream::connect(("127.0.0.1", self.port)).await?;
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: dns\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            io.write_all((head + &body).as_bytes()).await?;
            let mut response = String::new();
            io.read_to_string(&mut response).await?;
            assert!(response.starts_with("HTTP/1.1 200"), "{response}");
            Ok::<_, std::io::Error>(())
        };
        post.await.map_err(|error| DnsError::Other(error.into()))
    }
}

impl DnsHook for TestDns {
    fn set<'a>(&'a self, name: &'a str, value: &'a str) -> BoxFuture<'a, Result<(), DnsError>> {
        self.set.fetch_add(1, Ordering::Relaxed);
        let value = if self.is_wrong { "something else" } else { value };
        let body = serde_json::json!({ "host": format!("{name}."), "value": value });
        Box::pin(self.post("/set-txt", body))
    }

    fn clear<'a>(&'a self, name: &'a str, _: &'a str) -> BoxFuture<'a, Result<(), DnsError>> {
        self.cleared.fetch_add(1, Ordering::Relaxed);
        Box::pin(self.post("/clear-txt", serde_json::json!({ "host": format!("{name}.") })))
    }

    fn propagation(&self) -> Duration {
        Duration::from_millis(100)
    }
}

#[tokio::test]
#[ignore = "needs Pebble: run by cargo xtask pebble"]
async fn dns_01_by_a_hook() {
    let world = World::new().await;
    let dns = TestDns::new(world.dns_management, false);
    let hook: Arc<dyn DnsHook> = dns.clone();
    let options =
        world.options().with_certificate(["*.a.example", "a.example"]).with_challenge(Challenge::Dns01(hook));
    let instance = Instance::start(world.storage(), options, some_listener().await).await;
    let shown = instance.until_served("any.a.example").await;
    assert_eq!(instance.shows("a.example").await.unwrap(), shown);
    until("both records are gone", async || dns.cleared.load(Ordering::Relaxed) == 2).await;
    assert_eq!(dns.set.load(Ordering::Relaxed), 2);
    instance.stop().await;
}

#[tokio::test]
#[ignore = "needs Pebble: run by cargo xtask pebble"]
async fn a_failed_validation_is_told_and_cleared_away() {
    let world = World::new().await;
    let dns = TestDns::new(world.dns_management, true);
    let hook: Arc<dyn DnsHook> = dns.clone();
    let options = world.options().with_certificate(["a.example"]).with_challenge(Challenge::Dns01(hook));
    let instance = Instance::start(world.storage(), options, some_listener().await).await;
    until("two attempts failed", async || instance.acme.stats().orders_failed >= 2).await;
    let status = instance.acme.status();
    let error = status[0].last_error.as_ref().unwrap();
    assert!(error.text.contains("could not validate a.example ("), "{}", error.text);
    assert!(status[0].attempts >= 2 && status[0].issued == 0, "{status:?}");
    until("what was set was cleared", async || {
        let set = dns.set.load(Ordering::Relaxed);
        set >= 2 && dns.cleared.load(Ordering::Relaxed) + 1 >= set
    })
    .await;
    instance.stop().await;
    assert_eq!(dns.set.load(Ordering::Relaxed), dns.cleared.load(Ordering::Relaxed), "also at the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Pebble: run by cargo xtask pebble"]
async fn renewal_without_a_gap() {
    let mut world = World::new().await;
    let options = world.options().with_certificate(["a.example"]);
    let instance = Instance::start(world.storage(), options.clone(), world.tls.take()).await;
    let first = instance.until_served("a.example").await;
    // asked for by a person, with clients all the while
    assert!(instance.acme.renew("A.example") && !instance.acme.renew("b.example"));
    let mut seen = vec![first.clone()];
    until("another one is served", async || {
        let shown = instance.shows("a.example").await.expect("there is no gap");
        if seen.last() != Some(&shown) {
            seen.push(shown);
        }
        seen.len() > 1
    })
    .await;
    assert_eq!(seen.len(), 2);
    let stats = instance.acme.stats();
    assert_eq!((stats.orders_ok, stats.renewals), (2, 1));
    let key = instance.acme.storage_key("a.example").unwrap();
    instance.stop().await;
    // and by its lifetime: one that expired is served, and renewed
    let old = TestCa::new().issue_expired(&["a.example"]);
    let text =
        format!("portcullis-acme: {{\"names\":[\"a.example\"]}}\n{}{}", old.chain_pem(), old.key_pem());
    world.storage().store(&key, text.as_bytes()).unwrap();
    let again = Instance::start(world.storage(), options, some_listener().await).await;
    let shown = again.shows("a.example").await.expect("an expired one is better than none");
    assert!(!seen.contains(&shown));
    until("it was tried", async || again.acme.stats().orders_failed > 0).await;
    assert_eq!(again.shows("a.example").await.unwrap(), shown, "Pebble looks at a port that nobody serves");
    again.stop().await;
}

#[tokio::test]
#[ignore = "needs Pebble: run by cargo xtask pebble"]
async fn two_instances_one_order() {
    let mut world = World::new().await;
    let options = world.options().with_certificate(["a.example"]);
    // Pebble comes to the first one; the second one has the storage alone in common with it
    let first = Instance::start(world.storage(), options.clone(), world.tls.take());
    let second = Instance::start(world.storage(), options, some_listener().await);
    let (first, second) = tokio::join!(first, second);
    let shown = first.until_served("a.example").await;
    assert_eq!(second.until_served("a.example").await, shown);
    assert_eq!(issued(&first) + issued(&second), 1);
    assert_eq!(world.orders(), 1, "{WHY}");
    let adopted = first.acme.stats().adopted + second.acme.stats().adopted;
    assert_eq!(adopted, 1);
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
#[ignore = "needs Pebble: run by cargo xtask pebble"]
async fn the_other_instance_answers() {
    let mut world = World::new().await;
    let options = world.options().with_certificate(["a.example"]);
    // this one serves where Pebble looks, and cannot reach Pebble itself
    let elsewhere =
        world.options().with_roots(portcullis_tls::client::Roots::Given(vec![TestCa::new().der()]));
    let mute = elsewhere
        .with_certificate(["a.example"])
        .with_retry(Duration::from_secs(3600), Duration::from_secs(3600));
    let answers = Instance::start(world.storage(), mute, world.tls.take()).await;
    until("it has failed", async || answers.acme.stats().orders_failed == 1).await;
    let orders = Instance::start(world.storage(), options, some_listener().await).await;
    let shown = orders.until_served("a.example").await;
    assert_eq!(issued(&orders), 1);
    assert_eq!(answers.until_served("a.example").await, shown, "found in the storage");
    answers.stop().await;
    orders.stop().await;
}

#[tokio::test]
#[ignore = "needs Pebble: run by cargo xtask pebble"]
async fn the_authority_is_down_at_the_start() {
    let mut world = World::without_pebble().await;
    let options = world.options().with_certificate(["a.example"]);
    let instance = Instance::start(world.storage(), options, world.tls.take()).await;
    assert!(instance.shows("a.example").await.is_err(), "nothing is there to be served");
    until("it was tried twice", async || instance.acme.stats().orders_failed >= 2).await;
    let status = &instance.acme.status()[0];
    let text = &status.last_error.as_ref().unwrap().text;
    assert!(text.contains("/dir") && text.contains("refused"), "{text}");
    world.start_pebble().await;
    instance.until_served("a.example").await;
    let status = &instance.acme.status()[0];
    assert_eq!((status.attempts, status.issued), (0, 1));
    instance.stop().await;
}

#[tokio::test]
#[ignore = "needs Pebble: run by cargo xtask pebble"]
async fn external_accounts() {
    let mut world = World::with_external_accounts().await;
    let listener = world.tls.take();
    let options = world.options().with_certificate(["a.example"]);
    let without = Instance::start(world.storage(), options.clone(), some_listener().await).await;
    until("it was refused", async || without.acme.stats().orders_failed >= 1).await;
    let error = without.acme.status()[0].last_error.clone().unwrap().text;
    assert!(error.contains("externalAccountRequired"), "{error}");
    without.stop().await;
    let options = options.with_external_account(ExternalAccount::new("kid-1", EXTERNAL_KEY));
    let instance = Instance::start(world.storage(), options, listener).await;
    instance.until_served("a.example").await;
    instance.stop().await;
}

#[tokio::test]
#[ignore = "needs Pebble: run by cargo xtask pebble"]
async fn the_account_goes_on() {
    let mut world = World::new().await;
    let options = world.options().with_certificate(["a.example"]);
    let instance = Instance::start(world.storage(), options.clone(), world.tls.take()).await;
    let first = instance.until_served("a.example").await;
    let accounts = || {
        let storage = world.storage();
        let keys = storage.list("accounts").unwrap();
        assert_eq!(keys.len(), 1, "one account");
        let bytes = storage.load(&keys[0]).unwrap().unwrap();
        serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()
    };
    let before = accounts();
    instance.acme.roll_key().await.unwrap();
    let after = accounts();
    assert_eq!(before["credentials"]["id"], after["credentials"]["id"]);
    assert_ne!(before["credentials"]["key_pkcs8"], after["credentials"]["key_pkcs8"]);
    assert_eq!(after["rolling"], false);
    instance.acme.renew("a.example");
    until("the new key is good for an order", async || issued(&instance) == 2).await;
    assert_ne!(instance.shows("a.example").await.unwrap(), first);
    // as if a process had died before it asked for the change: the mark is there, and the key is still good
    let mut marked = accounts();
    marked["rolling"] = true.into();
    let storage = world.storage();
    let key = storage.list("accounts").unwrap().remove(0);
    storage.store(&key, marked.to_string().as_bytes()).unwrap();
    instance.acme.renew("a.example");
    until("the account is found again", async || issued(&instance) == 3).await;
    assert_eq!(
        (&accounts()["credentials"]["id"], &accounts()["rolling"]),
        (&before["credentials"]["id"], &false.into())
    );
    // and as if it had died right after: the key is nobody's
    marked["credentials"]["key_pkcs8"] = before["credentials"]["key_pkcs8"].clone();
    storage.store(&key, marked.to_string().as_bytes()).unwrap();
    instance.acme.renew("a.example");
    until("another account is made", async || issued(&instance) == 4).await;
    assert_ne!(accounts()["credentials"]["id"], before["credentials"]["id"]);
    instance.stop().await;
    // other contacts, with the next order
    let options = options.with_contacts(["other@example.com", "mailto:third@example.com"]);
    let instance = Instance::start(world.storage(), options, some_listener().await).await;
    instance.acme.renew("a.example");
    until("they are stored", async || {
        accounts()["contacts"] == serde_json::json!(["mailto:other@example.com", "mailto:third@example.com"])
    })
    .await;
    instance.stop().await;
}

#[tokio::test]
#[ignore = "needs Pebble: run by cargo xtask pebble"]
async fn an_account_that_the_authority_forgot_is_made_anew() {
    let mut world = World::new().await;
    let options = world.options().with_certificate(["a.example"]);
    let instance = Instance::start(world.storage(), options, world.tls.take()).await;
    instance.until_served("a.example").await;
    // Pebble keeps nothing from one start to the next
    world.start_pebble().await;
    instance.acme.renew("a.example");
    until("it was renewed", async || issued(&instance) == 2).await;
    instance.stop().await;
}

#[tokio::test]
#[ignore = "needs Pebble: run by cargo xtask pebble"]
async fn an_unknown_profile() {
    let world = World::new().await;
    let options = world.options().with_certificate(["a.example"]).with_profile("shortlived");
    let instance = Instance::start(world.storage(), options, some_listener().await).await;
    until("it was refused", async || instance.acme.stats().orders_failed >= 1).await;
    let error = instance.acme.status()[0].last_error.clone().unwrap().text;
    assert!(error.contains("no profile \"shortlived\": it offers none"), "{error}");
    instance.stop().await;
    assert_eq!(world.orders(), 0);
}

#[tokio::test]
#[ignore = "needs Pebble: run by cargo xtask pebble"]
async fn on_demand() {
    let mut world = World::new().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let policy = move |name: String| {
        count.fetch_add(1, Ordering::Relaxed);
        async move { name.starts_with("good") }
    };
    let options = world
        .options()
        .with_on_demand(OnDemand::new(policy).with_max_issued_per(2, Duration::from_secs(600)));
    let instance = Instance::start(world.storage(), options.clone(), world.tls.take()).await;
    let (shown, same) = tokio::join!(instance.shows("good.example"), instance.shows("good.example"));
    let shown = shown.expect("the handshake waits");
    assert_eq!(shown, same.unwrap());
    assert_eq!((world.orders(), asked.load(Ordering::Relaxed)), (1, 1), "two who ask are one question");
    assert_eq!(instance.shows("good.example").await.unwrap(), shown);
    // what is refused comes near no authority, and is not asked about again
    for _ in 0..3 {
        assert!(instance.shows("bad.example").await.is_err());
    }
    assert_eq!((world.orders(), asked.load(Ordering::Relaxed)), (1, 2));
    assert_ne!(instance.shows("good2.example").await.unwrap(), shown);
    assert!(instance.shows("good3.example").await.is_err(), "two in ten minutes");
    let stats = instance.acme.stats();
    assert_eq!((stats.on_demand_asked, stats.on_demand_refused, stats.on_demand_over_bound), (3, 1, 1));
    assert_eq!(world.orders(), 2);
    instance.stop().await;
    // another start has it from the storage
    let again = Instance::start(world.storage(), options.clone(), some_listener().await).await;
    assert_eq!(again.shows("good.example").await.unwrap(), shown);
    assert_eq!(again.acme.status().len(), 2);
    again.stop().await;
}
