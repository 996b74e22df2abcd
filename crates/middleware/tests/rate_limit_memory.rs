//! What the rate limit promises under millions of keys: the memory that it is allowed, and no more. The only test of its
//! process, since it looks at all of its memory.
#![cfg(target_os = "linux")]

use std::{
    convert::Infallible,
    net::Ipv6Addr,
    num::NonZeroU32,
    pin::pin,
    task::{Context, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use portcullis_middleware::{
    ClientIp,
    rate_limit::{RateLimitLayer, RateLimitOptions, RateRule},
};
use tower::{Layer, Service, service_fn};

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("every process has memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB") * 1024
}

async fn answer(_: Request<()>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::default()))
}

#[test]
fn five_million_keys_in_the_memory_of_one_million() {
    const KEYS: u64 = 5_000_000;
    let before = resident();
    let rule = RateRule::new(NonZeroU32::MIN, Duration::from_secs(3600)).with_max_keys(1_000_000);
    let layer = RateLimitLayer::new(&RateLimitOptions::new(rule));
    let mut service = layer.layer(service_fn(answer));
    let mut context = Context::from_waker(Waker::noop());
    for key in 0..KEYS {
        let client = Ipv6Addr::from_bits((0x2001_0db8_0000_0000 + u128::from(key)) << 64);
        let mut request = Request::new(());
        request.extensions_mut().insert(ClientIp(client.into()));
        assert!(pin!(service.call(request)).poll(&mut context).is_ready());
    }
    let grown = resident().saturating_sub(before);
    // 16 bytes for each key, 128 for each of 256 locks, and what the allocator rounds up
    assert!(grown < 16_000_000 + (2 << 20), "{grown} bytes");
    // who is new is let in, whatever was forgotten for it
    let counts = &layer.counts()[0];
    assert_eq!((counts.allowed, counts.refused), (KEYS, 0));
    assert!((KEYS - 1_000_000..KEYS - 990_000).contains(&counts.forgotten), "{}", counts.forgotten);
}
