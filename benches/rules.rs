//! What a request pays for the proxy's rules, apart from all IO.
// criterion's macros make undocumented functions
#![allow(missing_docs)]

use std::{hint::black_box, net::IpAddr};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue, Request, header};
use portcullis_proxy::{
    Downstream, FramingLimits, Router, Trust, forwarded,
    framing::{self, Head},
    hop, host,
};

/// What a browser sends, near enough.
fn request() -> Request<()> {
    Request::get("/assets/app.js?v=1")
        .header(header::HOST, "www.example.com")
        .header(header::USER_AGENT, "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")
        .header(header::ACCEPT, "*/*")
        .header(header::ACCEPT_LANGUAGE, "en-US,en;q=0.5")
        .header(header::ACCEPT_ENCODING, "gzip, deflate, br, zstd")
        .header(header::REFERER, "https://www.example.com/")
        .header(header::COOKIE, "session=0123456789abcdef")
        .header(header::CONNECTION, "keep-alive")
        .body(())
        .unwrap_or_default()
}

fn rules(c: &mut Criterion) {
    let request = request();
    let limits = FramingLimits::default();
    c.bench_function("check framing", |b| {
        b.iter(|| framing::check_request(black_box(Head::of(&request)), &limits).is_ok());
    });
    c.bench_function("strip hop-by-hop fields", |b| {
        b.iter_batched_ref(|| request.headers().clone(), hop::strip_request, BatchSize::SmallInput);
    });
    let downstream = Downstream::new(IpAddr::from([192, 0, 2, 1]), true);
    let trust = Trust::default();
    c.bench_function("set forwarded fields", |b| {
        let apply = |headers: &mut HeaderMap| {
            forwarded::apply(headers, downstream, &trust, forwarded::ForwardedOptions::default());
        };
        b.iter_batched_ref(|| request.headers().clone(), apply, BatchSize::SmallInput);
    });
    let mut response = HeaderMap::new();
    for name in [header::CONTENT_TYPE, header::DATE, header::ETAG, header::SERVER, header::CONNECTION] {
        response.insert(name, HeaderValue::from_static("value"));
    }
    c.bench_function("strip a response", |b| {
        b.iter_batched_ref(|| response.clone(), hop::strip_response, BatchSize::SmallInput);
    });
}

fn router(c: &mut Criterion) {
    for count in [10usize, 10_000] {
        let mut builder = Router::builder();
        for n in 0..count {
            let host = format!("h{n}.example.com");
            let Ok(next) = builder.route(Some(&host), "/api", n) else { return };
            builder = next;
        }
        let Ok(router) = builder.build() else { return };
        let request = Request::get(format!("http://h{}.example.com/api/users/1", count / 2))
            .body(())
            .unwrap_or_default();
        c.bench_function(&format!("find one of {count} routes"), |b| {
            b.iter(|| {
                let host = host::of(black_box(&request)).unwrap_or_default();
                router.find(host, request.uri().path()).is_some()
            });
        });
    }
}

criterion_group!(benches, rules, router);
criterion_main!(benches);
