//! What each layer costs a request that it lets through, in instructions: the program runs itself under valgrind, with one layer around a service that
//! answers at once, for few requests and for more; what is between is the requests', and what a run without a layer has of it is not the layer's.
//! `cargo bench -p portcullis-benches --bench chain`, with valgrind installed.

#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "a program that is run by hand")]
#![allow(clippy::disallowed_methods, reason = "it runs itself")]

use std::{
    convert::Infallible,
    net::SocketAddr,
    num::NonZeroU32,
    pin::pin,
    process::Command,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use http_body_util::Full;
use portcullis_cache::{CacheLayer, CacheOptions};
use portcullis_conn::{ConnInfo, TlsInfo, Transport};
use portcullis_middleware::{
    access_log::{AccessLogLayer, AccessRecord},
    alt_svc::AltSvcLayer,
    body_limit::BodyLimitLayer,
    compression::CompressionLayer,
    concurrency::{AdaptiveOptions, ConcurrencyLayer, ConcurrencyOptions},
    deadline::{DeadlineLayer, DeadlineOptions},
    early_data::EarlyDataLayer,
    filter::{CidrSet, ClientSet, FilterLayer, FilterOptions, FilterRules, FilterSets, Rule},
    header_limits::HeaderLimitsLayer,
    health::HealthLayer,
    metrics::{RequestMetricsLayer, RequestObserver},
    rate_limit::{RateLimitLayer, RateLimitOptions, RateRule},
    request_decompression::RequestDecompressionLayer,
    request_id::RequestIdLayer,
    security_headers::{SecurityHeaders, SecurityHeadersLayer},
};
use tower::{Layer, Service, layer::util::Identity};

type Body = Full<Bytes>;

/// Between the two runs.
const REQUESTS: u64 = 10_000;

/// Before what is counted.
const WARM: u64 = 2_000;

/// What a browser sends. Never inlined, as [`answer`]: the same instructions in each run.
#[inline(never)]
fn request(info: &Arc<ConnInfo>) -> Request<Body> {
    let mut request = Request::get("/articles/2026/a-title?page=2")
        .header(header::HOST, "www.example.com")
        .header(header::USER_AGENT, "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0")
        .header(header::ACCEPT, "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
        .header(header::ACCEPT_LANGUAGE, "en-GB,en;q=0.5")
        .header(header::ACCEPT_ENCODING, "gzip, deflate, br, zstd")
        .header(header::REFERER, "https://www.example.com/articles/")
        .body(Body::default())
        .unwrap();
    request.extensions_mut().insert(Arc::clone(info));
    request
}

/// The service behind a layer; its responses have this `Cache-Control`.
#[derive(Clone)]
struct Origin(&'static str);

impl<B> Service<Request<B>> for Origin {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        std::future::ready(Ok(answer(self.0)))
    }
}

#[inline(never)]
fn answer(cache_control: &'static str) -> Response<Body> {
    let response = Response::builder()
        .header(header::CONTENT_TYPE, "text/html; charset=utf-8")
        .header(header::CACHE_CONTROL, cache_control)
        .header(header::CONTENT_LENGTH, 14);
    response.body(Body::new(Bytes::from_static(b"a short answer"))).unwrap()
}

/// Sends requests through a layer and reads the answers to their end.
fn drive<L, B>(layer: &L, cache_control: &'static str, requests: u64)
where
    L: Layer<Origin>,
    L::Service: Service<Request<Body>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body,
{
    let address: SocketAddr = "198.51.100.7:4000".parse().unwrap();
    let info = ConnInfo::new(Transport::Tcp, address, "192.0.2.1:443".parse().unwrap());
    let info = Arc::new(info.with_tls(TlsInfo::default()));
    let mut cx = Context::from_waker(Waker::noop());
    let mut service = layer.layer(Origin(cache_control));
    for _ in 0..requests {
        assert!(service.poll_ready(&mut cx).is_ready());
        let mut future = pin!(service.call(request(&info)));
        let Poll::Ready(Ok(response)) = future.as_mut().poll(&mut cx) else { panic!("it waits") };
        assert_eq!(response.status(), StatusCode::OK);
        let mut body = pin!(response.into_body());
        while !body.is_end_stream() {
            assert!(body.as_mut().poll_frame(&mut cx).is_ready());
        }
    }
}

/// Notes nothing.
struct Nobody;

impl RequestObserver for Nobody {
    fn on_request(&self, _: Version) {}
    fn on_response(&self, _: Version, _: StatusCode, _: Duration) {}
    fn on_end(&self, _: Version, _: bool) {}
}

fn rates(rules: u32) -> RateLimitLayer {
    let many = NonZeroU32::new(1_000_000_000).unwrap();
    let rule = |n: u32| RateRule::new(many, Duration::from_secs(n.into())).with_name(format!("rule-{n}"));
    let options = RateLimitOptions::new(rule(1));
    RateLimitLayer::new(&(2..=rules).fold(options, |options, n| options.with_rule(rule(n))))
}

/// Lets nobody in from these, none of which is the client's.
fn networks() -> FilterLayer {
    let lines = (0..100_000_u32).map(|n| format!("{}.{}.{}.0/24\n", 11 + n / 65_536, n / 256 % 256, n % 256));
    let set = ClientSet::new(CidrSet::parse(&lines.collect::<String>()).unwrap());
    let rule = Rule::deny(StatusCode::FORBIDDEN).with_client_set("blocked");
    let sets = FilterSets::default().with_clients("blocked", set);
    FilterLayer::new(FilterRules::compile(&FilterOptions::default().with_rule(rule), &sets).unwrap())
}

type Run = Box<dyn Fn(u64)>;

fn run<L, B>(layer: L) -> Run
where
    L: Layer<Origin> + 'static,
    L::Service: Service<Request<Body>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body,
{
    Box::new(move |requests| drive(&layer, "no-store", requests))
}

fn places() -> ConcurrencyOptions {
    ConcurrencyOptions::new(1000)
}

type Make = fn() -> Run;

/// Each made by itself: what another takes to be made varies by more than what a layer costs.
const LAYERS: [(&str, Make); 21] = [
    ("none", || run(Identity::new())),
    ("request id", || run(RequestIdLayer::new())),
    ("metrics (told to nobody)", || run(RequestMetricsLayer::new(Arc::new(Nobody)))),
    ("access log (to nowhere)", || run(AccessLogLayer::new(Arc::new(|_: &AccessRecord| {})))),
    ("field count", || run(HeaderLimitsLayer::new(128))),
    ("Alt-Svc", || run(AltSvcLayer::new(443))),
    ("health", || run(HealthLayer::new())),
    ("early data", || run(EarlyDataLayer::new())),
    ("security fields", || run(SecurityHeadersLayer::new(&SecurityHeaders::default()))),
    ("rate limit, one rule", || run(rates(1))),
    ("rate limit, two rules", || run(rates(2))),
    ("filter, two prefixes", || run(FilterLayer::new(FilterRules::deny_prefixes(["/.git", "/wp-admin"])))),
    ("filter, 100,000 networks", || run(networks())),
    ("body limit", || run(BodyLimitLayer::new(1 << 20))),
    ("deadline", || {
        run(DeadlineLayer::new(DeadlineOptions::default().with_head(Some(Duration::from_secs(30)))))
    }),
    ("compression (too short)", || run(CompressionLayer::default())),
    ("cache, not to be stored", || run(CacheLayer::new(CacheOptions::default()))),
    ("cache, a hit", || {
        let layer = CacheLayer::new(CacheOptions::default());
        Box::new(move |requests| drive(&layer, "max-age=3600", requests))
    }),
    ("request decompression", || run(RequestDecompressionLayer::default())),
    ("concurrency", || run(ConcurrencyLayer::new(places()))),
    ("concurrency, adaptive", || {
        run(ConcurrencyLayer::new(places().with_adaptive(Some(AdaptiveOptions::default()))))
    }),
];

/// The least of some runs: what has random keys is not made by the same instructions each time.
fn counted(name: &str, requests: u64) -> u64 {
    (0..5).map(|_| counted_once(name, requests)).min().unwrap()
}

/// Instructions of a run, as valgrind counts them.
fn counted_once(name: &str, requests: u64) -> u64 {
    let out = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(["--run", name, &requests.to_string()])
        .output()
        .expect("valgrind is installed (Debian: valgrind)");
    let text = String::from_utf8_lossy(&out.stderr);
    let total = text.lines().find_map(|line| line.split_once("Collected : "));
    total.unwrap_or_else(|| panic!("{text}")).1.trim().parse().unwrap()
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [run, name, requests] = &args[..]
        && run == "--run"
    {
        let (_, made) = LAYERS.iter().find(|(known, _)| known == name).expect("a known layer");
        return made()(requests.parse().unwrap());
    }
    println!("| layer | instructions | ns |\n|---|---|---|");
    let (mut least, mut quickest) = (0, 0.0);
    for (name, made) in LAYERS {
        let run = made();
        let instructions = (counted(name, WARM + REQUESTS) - counted(name, WARM)) / REQUESTS;
        let times = (0..7).map(|_| {
            let begin = Instant::now();
            run(50_000);
            begin.elapsed().as_secs_f64() / 50_000.0 * 1e9
        });
        let time = times.fold(f64::MAX, f64::min);
        if name == "none" {
            (least, quickest) = (instructions, time);
            println!("| (request, response and the service alone) | {least} | {quickest:.0} |");
        } else {
            println!(
                "| {name} | {} | {:.0} |",
                instructions.cast_signed() - least.cast_signed(),
                time - quickest
            );
        }
    }
}
