//! Requests per client address: past the rate a request is answered 429 with `Retry-After`.
//!
//! The generic cell rate algorithm, a token bucket in one number per client, by the `governor` crate, over a
//! table of fixed size (`table.rs`). tower's `RateLimitLayer` has one bucket for everybody and makes callers wait;
//! this one has a bucket per client and refuses.
//!
//! The client is [`crate::ClientIp`] where somebody put one into the request's extensions, else the peer of
//! [`portcullis_conn::ConnInfo`]. All addresses of one IPv6 /64 are one client, since a /64 is the least that a
//! network hands to one customer (RFC 6177). Requests without any address, and those from unix sockets, share one
//! bucket: failing closed shows a forgotten `ConnInfo` at the first test instead of switching the limit off.

mod table;

use std::{
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::NoOpMiddleware,
};
use http::{HeaderValue, Request, Response, StatusCode, header::RETRY_AFTER};
use tower_layer::Layer;
use tower_service::Service;

use self::table::Table;

/// How often a client may ask, and for how many clients that is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateLimitOptions {
    /// How many requests a client may make in [`RateLimitOptions::per`], evenly spread. There is no default: the rate
    /// depends on the application.
    pub requests: NonZeroU32,
    /// The time that [`RateLimitOptions::requests`] is counted over. Held to 1 ns ..= 30 days; a rate above one request
    /// per nanosecond is taken as that.
    pub per: Duration,
    /// How many requests a client that was quiet may make at once. Default [`RateLimitOptions::requests`]: the bucket
    /// holds one period. Held to what refills in ten years.
    pub burst: NonZeroU32,
    /// How many clients are remembered. Default 1,000,000, at least 16. Memory is 16 bytes per client whatever the
    /// load, 16 MB by default, given by the system as it is first touched. Past it the client that has been idle
    /// for longest among sixteen is forgotten, and starts with a full bucket when it comes back.
    pub max_clients: usize,
}

impl RateLimitOptions {
    /// This many requests per this time, and as many at once.
    pub fn new(requests: NonZeroU32, per: Duration) -> Self {
        Self { requests, per, burst: requests, max_clients: 1_000_000 }
    }

    /// Sets [`RateLimitOptions::requests`].
    #[must_use]
    pub fn with_requests(mut self, requests: NonZeroU32) -> Self {
        self.requests = requests;
        self
    }

    /// Sets [`RateLimitOptions::per`].
    #[must_use]
    pub fn with_per(mut self, per: Duration) -> Self {
        self.per = per;
        self
    }

    /// Sets [`RateLimitOptions::burst`].
    #[must_use]
    pub fn with_burst(mut self, burst: NonZeroU32) -> Self {
        self.burst = burst;
        self
    }

    /// Sets [`RateLimitOptions::max_clients`].
    #[must_use]
    pub fn with_max_clients(mut self, max_clients: usize) -> Self {
        self.max_clients = max_clients;
        self
    }

    fn quota(&self) -> Quota {
        const MAX_PERIOD: Duration = Duration::from_secs(30 * 24 * 60 * 60);
        const MAX_REFILL_NANOS: u128 = 10 * 365 * 24 * 60 * 60 * 1_000_000_000;
        let nanos = self.per.min(MAX_PERIOD).as_nanos() / u128::from(self.requests.get());
        // 30 days fit into 64 bits of nanoseconds
        let each = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX).max(1));
        // the algorithm keeps burst * each in 64 bits of nanoseconds beside the time since start
        let most = u32::try_from(MAX_REFILL_NANOS / each.as_nanos()).unwrap_or(u32::MAX);
        let burst = self.burst.min(NonZeroU32::new(most).unwrap_or(NonZeroU32::MIN));
        Quota::with_period(each).expect("a period of at least 1 ns").allow_burst(burst)
    }
}

/// Limits the requests per client. Every clone, and every service made from one, counts in the same table.
#[derive(Clone, Debug)]
pub struct RateLimitLayer {
    limiter: Arc<Limiter<DefaultClock>>,
}

impl RateLimitLayer {
    /// A layer with an empty table.
    pub fn new(options: &RateLimitOptions) -> Self {
        Self { limiter: Arc::new(Limiter::new(options, DefaultClock::default())) }
    }

    /// How many requests were answered 429 so far.
    pub fn rejected(&self) -> u64 {
        self.limiter.rejected.load(Ordering::Relaxed)
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit { inner, limiter: Arc::clone(&self.limiter) }
    }
}

/// The service of [`RateLimitLayer`].
#[derive(Clone, Debug)]
pub struct RateLimit<S> {
    inner: S,
    limiter: Arc<Limiter<DefaultClock>>,
}

/// The future of [`RateLimit`].
pub type ResponseFuture<F, B> = crate::early::EarlyFuture<F, B>;

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for RateLimit<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let client = crate::client_ip(request.extensions());
        match self.limiter.check(client) {
            Ok(()) => ResponseFuture::inner(self.inner.call(request)),
            Err(wait) => {
                tracing::debug!(?client, ?wait, "request refused by the rate limit");
                ResponseFuture::answered(too_many_requests(wait))
            }
        }
    }
}

/// RFC 6585 section 4: 429, which caches must not store.
fn too_many_requests<B: Default>(wait: Duration) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(retry_after(wait)));
    response
}

/// RFC 9110 section 10.2.3: whole seconds. Rounded up, so that who obeys is let in; never 0.
fn retry_after(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

/// Layer and clock apart, so that tests can set the clock.
#[derive(Debug)]
struct Limiter<C: Clock> {
    limiter: RateLimiter<u64, Table, C, NoOpMiddleware<C::Instant>>,
    rejected: AtomicU64,
}

impl<C: Clock> Limiter<C> {
    fn new(options: &RateLimitOptions, clock: C) -> Self {
        let table = Table::new(options.max_clients);
        Self { limiter: RateLimiter::new(options.quota(), table, clock), rejected: AtomicU64::new(0) }
    }

    /// Takes one request from the client's bucket, or says how long until there is one.
    fn check(&self, client: Option<IpAddr>) -> Result<(), Duration> {
        self.limiter.check_key(&client_key(client)).map_err(|not_until| {
            self.rejected.fetch_add(1, Ordering::Relaxed);
            not_until.wait_time_from(self.limiter.clock().now())
        })
    }
}

/// One number per client: the upper half of an IPv6 address, or an IPv4 address in a range that no IPv6 peer has
/// (`ffff:ffff::/32` is multicast, RFC 4291 section 2.7, never a source). The unknown client is `::`, which is
/// also what a unix socket's peer may show.
fn client_key(client: Option<IpAddr>) -> u64 {
    const V4: u64 = 0xffff_ffff_0000_0000;
    match client {
        Some(IpAddr::V4(v4)) if !v4.is_unspecified() => V4 | u64::from(v4.to_bits()),
        Some(IpAddr::V6(v6)) => {
            let [a, b, c, d, ..] = v6.segments();
            [a, b, c, d].into_iter().fold(0, |key, part| key << 16 | u64::from(part))
        }
        Some(IpAddr::V4(_)) | None => 0,
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;
    use crate::{
        ClientIp,
        test_support::{conn, get, ok, plain, through, with_conn},
    };

    fn nonzero(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).unwrap()
    }

    fn options(requests: u32, per: Duration) -> RateLimitOptions {
        RateLimitOptions::new(nonzero(requests), per)
    }

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn burst_then_refill_by_the_clock() {
        let clock = FakeRelativeClock::default();
        let second = Duration::from_secs(1);
        let limiter = Limiter::new(&options(2, second).with_burst(nonzero(3)), clock.clone());
        let client = ip("192.0.2.9");
        for _ in 0..3 {
            assert_eq!(limiter.check(client), Ok(()));
        }
        assert_eq!(limiter.check(client), Err(second / 2));
        clock.advance(second / 4);
        assert_eq!(limiter.check(client), Err(second / 4));
        clock.advance(second / 4);
        assert_eq!(limiter.check(client), Ok(()));
        assert!(limiter.check(client).is_err());
        assert_eq!(limiter.rejected.load(Ordering::Relaxed), 3);
        // quiet for long: the bucket is full again, and no fuller
        clock.advance(second * 100);
        for _ in 0..3 {
            assert_eq!(limiter.check(client), Ok(()));
        }
        assert!(limiter.check(client).is_err());
    }

    #[test]
    fn who_is_one_client() {
        let table = [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("2001:db8:0:1::1", "2001:db8:0:1:ffff::9", true),
            ("2001:db8:0:1::1", "2001:db8:0:2::1", false),
            ("::c000:201", "192.0.2.1", false),
            ("0.0.0.0", "::", true),
        ];
        for (a, b, same) in table {
            assert_eq!(client_key(ip(a)) == client_key(ip(b)), same, "{a} {b}");
        }
        assert_eq!(client_key(None), client_key(ip("::")));
    }

    #[test]
    fn clients_do_not_share_and_the_unknown_do() {
        let limiter = Limiter::new(&options(1, Duration::from_secs(1)), FakeRelativeClock::default());
        assert_eq!(limiter.check(ip("192.0.2.1")), Ok(()));
        assert!(limiter.check(ip("192.0.2.1")).is_err());
        assert_eq!(limiter.check(ip("192.0.2.2")), Ok(()));
        assert_eq!(limiter.check(None), Ok(()));
        assert!(limiter.check(None).is_err());
    }

    #[test]
    fn retry_after_is_rounded_up() {
        let table =
            [(0, 1), (1, 1), (999_999_999, 1), (1_000_000_000, 1), (1_000_000_001, 2), (59_500_000_000, 60)];
        for (nanos, seconds) in table {
            assert_eq!(retry_after(Duration::from_nanos(nanos)), seconds, "{nanos}");
        }
    }

    #[test]
    fn absurd_rates_neither_panic_nor_stop_counting() {
        let table = [
            options(u32::MAX, Duration::ZERO),
            options(1, Duration::MAX),
            options(1, Duration::MAX).with_burst(NonZeroU32::MAX),
            options(u32::MAX, Duration::from_nanos(1)).with_max_clients(0),
        ];
        for options in table {
            let limiter = Limiter::new(&options, FakeRelativeClock::default());
            for _ in 0..1000 {
                let _ = limiter.check(None);
            }
            assert_eq!(limiter.check(ip("192.0.2.1")), Ok(()));
        }
    }

    #[tokio::test]
    async fn the_answer_and_the_shared_state() {
        let layer = RateLimitLayer::new(&options(1, Duration::from_secs(3600)));
        let first = through(&layer, ok, with_conn(get("/"), plain())).await;
        assert_eq!(first.status(), StatusCode::OK);
        let second = through(&layer.clone(), ok, with_conn(get("/"), plain())).await;
        assert_eq!(second.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(second.headers()[RETRY_AFTER], "3600");
        assert_eq!(layer.rejected(), 1);
        let other = Arc::new(conn("198.51.100.8:4000"));
        assert_eq!(through(&layer, ok, with_conn(get("/"), other)).await.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn a_believed_client_address_goes_before_the_peer() {
        let layer = RateLimitLayer::new(&options(1, Duration::from_secs(3600)));
        for (client, status) in [("203.0.113.1", 200), ("203.0.113.2", 200), ("::ffff:203.0.113.1", 429)] {
            let mut request = with_conn(get("/"), plain());
            request.extensions_mut().insert(ClientIp(client.parse().unwrap()));
            assert_eq!(through(&layer, ok, request).await.status(), status, "{client}");
        }
    }
}
