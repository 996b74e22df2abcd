//! Shared buckets against a real redis-server, as Debian has it. `cargo xtask redis` runs these; without the server
//! they fail.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says what it saw")]
#![allow(
    clippy::disallowed_methods,
    reason = "the full time is asked for from outside, and a server is waited for"
)]

mod server;

use std::{
    convert::Infallible,
    net::IpAddr,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use portcullis_middleware::{
    ClientIp,
    rate_limit::{
        KeyPart, OnFailure, RateLimitLayer, RateLimitOptions, RateRule,
        redis::{self, RedisOptions},
    },
};
use tower::{Layer, ServiceExt, service_fn};

use self::server::Server;

const SECOND: Duration = Duration::from_secs(1);

/// For how long a limit is tried. Default 3 s.
const SECONDS: &str = "PORTCULLIS_RATE_SECONDS";

fn n(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("no test asks for 0")
}

fn run_time() -> Duration {
    let text = std::env::var(SECONDS).unwrap_or_else(|_| "3".to_owned());
    Duration::from_secs(text.parse().expect("whole seconds"))
}

/// The bound of what a request waits for.
const BOUND: Duration = Duration::from_millis(50);

/// One instance: a layer with a connection of its own.
fn instance(url: &str, rule: RateRule, bound: Duration) -> RateLimitLayer {
    let store = redis::store(&RedisOptions::new(url).with_timeout(bound)).expect("a good address");
    let store = Arc::new(store);
    RateLimitLayer::with_store(&RateLimitOptions::new(rule), store)
}

/// The status of one request, and how long it took.
async fn ask(layer: &RateLimitLayer, client: [u8; 4]) -> (u16, Duration) {
    let service = layer.layer(service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    }));
    let mut request = Request::new(());
    request.extensions_mut().insert(ClientIp(IpAddr::from(client)));
    let begin = Instant::now();
    let response = service.oneshot(request).await.expect("infallible");
    (response.status().as_u16(), begin.elapsed())
}

/// Asks at this rate from so many tasks until the time is over. Returns how many passed.
async fn flood(layer: &RateLimitLayer, clients: u8, per_second: u32, time: Duration) -> Vec<u32> {
    let begin = Instant::now();
    let pause = SECOND * u32::from(clients) / per_second;
    let tasks = (0..clients).map(|client| {
        let layer = layer.clone();
        tokio::spawn(async move {
            let (mut passed, mut next) = (0, begin + pause * u32::from(client) / u32::from(clients));
            while next < begin + time {
                tokio::time::sleep_until(next.into()).await;
                passed += u32::from(ask(&layer, [10, 0, 0, client]).await.0 == 200);
                next += pause;
            }
            passed
        })
    });
    let mut passed = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        passed.push(task.await.expect("no panic"));
    }
    passed
}

/// (key, clients, the limit of each bucket per second, its burst, buckets)
async fn two_instances(rule: RateRule, clients: u8, per_second: u32, buckets: u32) {
    let server = Server::start();
    // counting is what is shown here, on a machine that may be busy
    let make = || instance(&server.url(), rule.clone(), SECOND * 2);
    let (one, other) = (make(), make());
    let time = run_time();
    let rate = per_second * buckets * 3;
    // a third comes by one instance, the rest by the other
    let (a, b) =
        tokio::join!(flood(&one, clients, rate / 3, time), flood(&other, clients, rate * 2 / 3, time));
    let total = f64::from(a.iter().chain(&b).sum::<u32>());
    let allowed =
        (f64::from(per_second) * time.as_secs_f64() + f64::from(rule.burst.get())) * f64::from(buckets);
    println!("{total} of {allowed}, {} and {}", a.iter().sum::<u32>(), b.iter().sum::<u32>());
    assert!((total / allowed - 1.0).abs() < 0.05, "{total} of {allowed}");
    for (client, (a, b)) in a.iter().zip(&b).enumerate() {
        let share = total / f64::from(clients);
        assert!(f64::from(a + b) > share * 0.3, "client {client} got {} of {share}", a + b);
    }
    for layer in [&one, &other] {
        assert_eq!(layer.counts()[0].unavailable, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server: cargo xtask redis"]
async fn two_instances_share_one_large_bucket() {
    let rule = RateRule::new(n(1000), SECOND).with_burst(n(100)).with_key(KeyPart::Constant);
    two_instances(rule.with_shared(OnFailure::Closed), 20, 1000, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server: cargo xtask redis"]
async fn two_instances_share_a_bucket_for_each_client() {
    let rule = RateRule::new(n(40), SECOND).with_burst(n(20));
    two_instances(rule.with_shared(OnFailure::Closed), 20, 40, 20).await;
}

#[tokio::test]
#[ignore = "needs redis-server: cargo xtask redis"]
async fn a_small_bucket_is_exact() {
    let server = Server::start();
    let rule = RateRule::new(n(5), SECOND * 3600).with_shared(OnFailure::Closed);
    let instances = [(); 2].map(|()| instance(&server.url(), rule.clone(), SECOND * 2));
    let mut passed = 0;
    for turn in 0..20 {
        passed += u32::from(ask(&instances[turn % 2], [192, 0, 2, 1]).await.0 == 200);
    }
    assert_eq!(passed, 5);
    let (status, _) = ask(&instances[0], [192, 0, 2, 2]).await;
    assert_eq!(status, 200, "another client has another bucket");
}

#[tokio::test]
#[ignore = "needs redis-server: cargo xtask redis"]
async fn a_lost_seed_leaves_instances_with_the_same_buckets() {
    for newcomer_first in [true, false] {
        let server = Server::start();
        let rule = RateRule::new(n(5), SECOND * 3600).with_shared(OnFailure::Closed);
        let make = || instance(&server.url(), rule.clone(), SECOND * 2);
        let one = make();
        assert_eq!(ask(&one, [192, 0, 2, 1]).await.0, 200);
        // as FLUSHALL and an eviction do, while connections live
        assert_eq!(server.cli(&["del", "portcullis:rate:seed"]).trim(), "1");
        let instances = [one, make()];
        let mut passed = 0;
        for turn in 0..20 {
            let at = (turn + usize::from(newcomer_first)) % 2;
            passed += u32::from(ask(&instances[at], [192, 0, 2, 2]).await.0 == 200);
        }
        assert_eq!(passed, 5, "newcomer first: {newcomer_first}");
        for layer in &instances {
            assert_eq!(layer.counts()[0].unavailable, 0, "a new seed costs no request");
        }
    }
}

#[tokio::test]
#[ignore = "needs redis-server: cargo xtask redis"]
async fn keys_go_away_by_themselves_and_a_new_script_is_loaded() {
    let server = Server::start();
    let rule = RateRule::new(n(20), SECOND).with_name("short").with_shared(OnFailure::Closed);
    let layer = instance(&server.url(), rule, SECOND * 2);
    assert_eq!(ask(&layer, [192, 0, 2, 1]).await.0, 200);
    let key = |line: &str| line.starts_with("portcullis:rate:short:");
    assert_eq!(server.cli(&["keys", "*"]).lines().filter(|line| key(line)).count(), 1);
    server.wait_for(|server| server.cli(&["keys", "*"]).trim() == "portcullis:rate:seed");
    server.cli(&["script", "flush"]);
    assert_eq!(ask(&layer, [192, 0, 2, 1]).await.0, 200);
    assert_eq!(layer.counts()[0].unavailable, 0);
}

/// What a rule answers while the store is away, by its choice.
async fn away(on_failure: OnFailure, silence: fn(&mut Server), back: fn(&mut Server)) {
    let mut server = Server::start();
    let rule = RateRule::new(n(2), SECOND * 3600).with_shared(on_failure);
    let layer = instance(&server.url(), rule, BOUND);
    let client = [192, 0, 2, 1];
    assert_eq!(ask(&layer, client).await.0, 200);
    silence(&mut server);
    let mut statuses = Vec::new();
    for turn in 0..300 {
        // by many clients, so that more than one bucket asks
        let client = if turn % 2 == 0 { client } else { [203, 0, 113, turn as u8] };
        let (status, took) = ask(&layer, client).await;
        // the bound, and what a busy machine adds
        assert!(took < BOUND * 4, "{took:?} at {turn}");
        if turn % 2 == 0 {
            statuses.push(status);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let passed = statuses.iter().filter(|status| **status == 200).count();
    let expected = match on_failure {
        OnFailure::Open => passed == statuses.len(),
        OnFailure::Closed => passed == 0 && statuses.iter().all(|status| *status == 503),
        OnFailure::Local => passed == 2 && statuses.iter().all(|status| matches!(status, 200 | 429)),
        _ => false,
    };
    assert!(expected, "{on_failure:?}: {passed} of {} passed, {:?}", statuses.len(), &statuses[..10]);
    assert!(layer.counts()[0].unavailable > 100);
    back(&mut server);
    let begin = Instant::now();
    let mut before = layer.counts()[0].unavailable;
    loop {
        let _ = ask(&layer, [198, 51, 100, 1]).await;
        let now = layer.counts()[0].unavailable;
        if now == before {
            break;
        }
        before = now;
        assert!(begin.elapsed() < SECOND * 20, "it does not come back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const CHOICES: [OnFailure; 3] = [OnFailure::Open, OnFailure::Closed, OnFailure::Local];

#[tokio::test]
#[ignore = "needs redis-server: cargo xtask redis"]
async fn a_server_that_is_gone_leaves_it_to_the_rule() {
    for choice in CHOICES {
        away(choice, Server::stop, Server::start_again).await;
    }
}

#[tokio::test]
#[ignore = "needs redis-server: cargo xtask redis"]
async fn a_server_that_hangs_leaves_it_to_the_rule() {
    for choice in CHOICES {
        away(choice, |server| server.signal("STOP"), |server| server.signal("CONT")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs redis-server: cargo xtask redis"]
async fn a_flood_of_clients_at_a_hanging_server_wedges_nothing() {
    let mut server = Server::start();
    let rule = RateRule::new(n(100), SECOND).with_shared(OnFailure::Open);
    let layer = instance(&server.url(), rule, BOUND);
    assert_eq!(ask(&layer, [192, 0, 2, 1]).await.0, 200);
    server.signal("STOP");
    let tasks: Vec<_> = (0..2000u32)
        .map(|client| {
            let layer = layer.clone();
            tokio::spawn(async move { ask(&layer, client.to_be_bytes()).await })
        })
        .collect();
    for task in tasks {
        let (status, took) = task.await.expect("no panic");
        assert!(status == 200 && took < Duration::from_millis(500), "{status} after {took:?}");
    }
    server.signal("CONT");
}
