//! What the rate limit promises by the real clock: exact under many clients at once.

use std::{
    convert::Infallible,
    net::IpAddr,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use portcullis_middleware::{
    ClientIp,
    rate_limit::{KeyPart, RateLimitLayer, RateLimitOptions, RateRule},
};
use tower::{Layer, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);

/// For how long the limit is tried. Default 3 s; the full time is 60.
const SECONDS: &str = "PORTCULLIS_RATE_SECONDS";

fn n(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("no test asks for 0")
}

fn from(client: IpAddr) -> Request<()> {
    let mut request = Request::new(());
    request.extensions_mut().insert(ClientIp(client));
    request
}

async fn answer(_: Request<()>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::default()))
}

#[allow(clippy::disallowed_methods, reason = "the full time is asked for from outside")]
fn run_time() -> Duration {
    let text = std::env::var(SECONDS).unwrap_or_else(|_| "3".to_owned());
    Duration::from_secs(text.parse().expect("whole seconds"))
}

/// So many clients, each at three times its share of `per_second`, until the time is over. Returns what each got through.
async fn three_times(layer: &RateLimitLayer, clients: u32, per_second: u32, time: Duration) -> Vec<u32> {
    let begin = Instant::now();
    let tasks = (0..clients).map(|client| {
        let service = layer.layer(service_fn(answer));
        let pause = SECOND * clients / (per_second * 3);
        let address = IpAddr::from([10, 0, (client >> 8) as u8, client as u8]);
        tokio::spawn(async move {
            let mut passed = 0;
            // spread evenly, so that no two ask at the same moment
            let mut next = begin + pause * client / clients;
            while next < begin + time {
                tokio::time::sleep_until(next.into()).await;
                let response = service.clone().oneshot(from(address)).await.expect("infallible");
                passed += u32::from(response.status() == 200);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_clients_at_three_times_the_limit() {
    let time = run_time();
    // each by itself: 20 a second, and a burst of 5
    let each = RateRule::new(n(20), SECOND).with_burst(n(5));
    let passed = three_times(&RateLimitLayer::new(&RateLimitOptions::new(each)), 100, 2000, time).await;
    let allowed = 20.0 * time.as_secs_f64() + 5.0;
    let total = f64::from(passed.iter().sum::<u32>());
    // the last one of each may still have been under way: in a short run that is more than 1 %
    let slack = (allowed * 100.0 * 0.01).max(100.0);
    assert!((total - allowed * 100.0).abs() <= slack, "{total} of {}", allowed * 100.0);
    let least = *passed.iter().min().unwrap();
    assert!(f64::from(least) >= allowed * 0.95, "one got {least} of {allowed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_clients_with_one_bucket() {
    let time = run_time();
    // the burst is half a second's worth: a machine that stalls for less than that loses nothing
    let all = RateRule::new(n(2000), SECOND).with_burst(n(1000)).with_key(KeyPart::Constant);
    let passed = three_times(&RateLimitLayer::new(&RateLimitOptions::new(all)), 100, 2000, time).await;
    let allowed = 2000.0 * time.as_secs_f64() + 1000.0;
    let total = f64::from(passed.iter().sum::<u32>());
    assert!((total / allowed - 1.0).abs() < 0.01, "{total} of {allowed}");
    let least = *passed.iter().min().unwrap();
    assert!(f64::from(least) >= allowed / 100.0 * 0.2, "one got {least} of {}", allowed / 100.0);
}
