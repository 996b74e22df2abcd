//! The layer as a whole, with a paused clock.

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use http::{HeaderValue, Method, Request, Response, StatusCode, header::RETRY_AFTER};
use http_body_util::BodyExt;
use tower::{Service, ServiceExt};

use super::*;
use crate::{
    ClientIp,
    test_support::{Body, FnService, NotReady, conn, get, ok, plain, through, with_conn},
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn n(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

fn rule(requests: u32, per: Duration) -> RateRule {
    RateRule::new(n(requests), per)
}

fn layer(rule: RateRule) -> RateLimitLayer {
    RateLimitLayer::new(&RateLimitOptions::new(rule))
}

fn from(client: &str) -> Request<()> {
    let mut request = with_conn(get("/"), plain());
    request.extensions_mut().insert(ClientIp(client.parse().unwrap()));
    request
}

async fn status(layer: &RateLimitLayer, request: Request<()>) -> u16 {
    through(layer, ok, request).await.status().as_u16()
}

/// How many of so many requests pass.
async fn passed(layer: &RateLimitLayer, client: &str, requests: u32) -> u32 {
    let mut passed = 0;
    for _ in 0..requests {
        passed += u32::from(status(layer, from(client)).await == 200);
    }
    passed
}

#[tokio::test(start_paused = true)]
async fn the_answer_and_the_shared_state() {
    let layer = layer(rule(1, HOUR));
    let first = through(&layer, ok, with_conn(get("/"), plain())).await;
    assert_eq!(first.status(), StatusCode::OK);
    let second = through(&layer.clone(), ok, with_conn(get("/"), plain())).await;
    assert_eq!(second.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(second.headers()[RETRY_AFTER], "3600");
    assert_eq!(second.headers().len(), 1);
    assert_eq!(layer.rejected(), 1);
    let other = Arc::new(conn("198.51.100.8:4000"));
    assert_eq!(through(&layer, ok, with_conn(get("/"), other)).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_believed_client_address_goes_before_the_peer() {
    let layer = layer(rule(1, HOUR));
    for (client, expected) in [("203.0.113.1", 200), ("203.0.113.2", 200), ("::ffff:203.0.113.1", 429)] {
        assert_eq!(status(&layer, from(client)).await, expected, "{client}");
    }
}

#[tokio::test]
async fn clients_do_not_share_and_the_unknown_do() {
    let shares = layer(rule(1, HOUR));
    let skips = layer(rule(1, HOUR).with_on_missing(OnMissing::Skip));
    for layer in [&shares, &skips] {
        assert_eq!(passed(layer, "192.0.2.1", 2).await, 1);
        assert_eq!(passed(layer, "192.0.2.2", 2).await, 1);
    }
    assert_eq!((status(&shares, get("/")).await, status(&shares, get("/")).await), (200, 429));
    assert_eq!((status(&skips, get("/")).await, status(&skips, get("/")).await), (200, 200));
}

#[tokio::test(start_paused = true)]
async fn several_rules_and_none_pays_for_another() {
    let day = rule(5, HOUR * 24).with_name("day");
    let layer =
        RateLimitLayer::new(&RateLimitOptions::new(day).with_rule(rule(2, SECOND).with_name("second")));
    // the second refuses what the day would allow, and the day gets it back
    assert_eq!(passed(&layer, "192.0.2.1", 10).await, 2);
    assert_eq!(layer.counts()[0].allowed, 2);
    tokio::time::advance(SECOND).await;
    assert_eq!(passed(&layer, "192.0.2.1", 10).await, 2);
    tokio::time::advance(SECOND).await;
    assert_eq!(passed(&layer, "192.0.2.1", 10).await, 1, "five a day");
    tokio::time::advance(SECOND).await;
    let refused = through(&layer, ok, from("192.0.2.1")).await;
    // a fifth of a day, and three seconds have passed
    assert_eq!(refused.headers()[RETRY_AFTER], (24 * 3600 / 5 - 3).to_string().as_str());
    let counts = layer.counts();
    assert_eq!((&*counts[0].rule, counts[0].allowed, counts[0].refused), ("day", 5, 10));
    assert_eq!((&*counts[1].rule, counts[1].allowed, counts[1].refused), ("second", 5, 16));
    // which refused that one? the day stands first, so the second was not asked
    assert_eq!(passed(&layer, "192.0.2.2", 10).await, 2, "another client");
}

#[tokio::test]
async fn costs_by_rule_method_and_program() {
    let limited = layer(
        rule(10, HOUR).with_cost(2).with_method_cost(Method::POST, 5).with_method_cost(Method::HEAD, 0),
    );
    let with = |method: Method, cost: Option<u32>| {
        let mut request = from("192.0.2.1");
        *request.method_mut() = method;
        if let Some(cost) = cost {
            request.extensions_mut().insert(Cost(cost));
        }
        request
    };
    let table = [
        (Method::GET, None, 200),     // 8 left
        (Method::POST, None, 200),    // 3
        (Method::POST, None, 429),    // 3
        (Method::POST, Some(1), 200), // 2
        (Method::HEAD, None, 200),    // 2
        (Method::GET, Some(0), 200),  // 2
        (Method::GET, None, 200),     // 0
        (Method::GET, None, 429),
        (Method::HEAD, None, 200),
    ];
    for (method, cost, expected) in table {
        assert_eq!(status(&limited, with(method.clone(), cost)).await, expected, "{method} {cost:?}");
    }
    // more than the bucket ever holds: there is no use in coming again
    let never = through(&limited, ok, with(Method::GET, Some(11))).await;
    assert_eq!(never.status(), 429);
    assert!(!never.headers().contains_key(RETRY_AFTER));
}

#[tokio::test]
async fn listed_clients_are_left_alone() {
    let limited =
        layer(rule(1, HOUR).with_allow(["192.0.2.0/24", "2001:db8::/32"].map(|net| net.parse().unwrap())));
    for (client, expected) in [("192.0.2.7", 5), ("2001:db8:1::1", 5), ("192.0.3.7", 1), ("2001:db9::", 1)] {
        assert_eq!(passed(&limited, client, 5).await, expected, "{client}");
    }
}

#[tokio::test]
async fn a_dry_run_counts_and_refuses_nothing() {
    let dry = rule(1, HOUR).with_name("dry").with_dry_run(true);
    let layer = RateLimitLayer::new(&RateLimitOptions::new(dry).with_rule(rule(3, HOUR)));
    assert_eq!(passed(&layer, "192.0.2.1", 5).await, 3);
    let counts = layer.counts();
    assert_eq!((counts[0].allowed, counts[0].refused, counts[0].dry_run), (1, 0, 4));
    assert_eq!((counts[1].allowed, counts[1].refused, counts[1].dry_run), (3, 2, 0));
}

#[tokio::test]
async fn the_answer_is_a_choice() {
    let page = || Refusal::default().with_body(HeaderValue::from_static("text/html"), "<p>slower");
    let table = [
        (Refusal::default(), 429, "", None),
        (page(), 429, "<p>slower", Some("text/html")),
        (page().with_status(StatusCode::SERVICE_UNAVAILABLE), 503, "<p>slower", Some("text/html")),
        (Refusal::default().with_status(StatusCode::NOT_FOUND), 404, "", None),
        (Refusal::default().with_status(StatusCode::FOUND), 429, "", None),
    ];
    for (refusal, expected, body, content_type) in table {
        let layer = layer(rule(1, HOUR).with_refusal(refusal));
        assert_eq!(passed(&layer, "192.0.2.1", 1).await, 1);
        let answer = through(&layer, ok, from("192.0.2.1")).await;
        assert_eq!(answer.status(), expected);
        let field = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(field("content-type"), content_type);
        assert_eq!(field("cache-control"), (expected != 429).then_some("no-store"));
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), body);
    }
}

#[tokio::test(start_paused = true)]
async fn a_tarpit_holds_so_many_for_so_long() {
    let tarpit = Tarpit::new(SECOND * 3).with_max_held(2);
    let layer = layer(rule(1, HOUR).with_refusal(Refusal::default().with_tarpit(tarpit)));
    assert_eq!(passed(&layer, "192.0.2.1", 1).await, 1);
    let begin = tokio::time::Instant::now();
    let ask = || {
        let layer = layer.clone();
        async move {
            assert_eq!(status(&layer, from("192.0.2.1")).await, 429);
            begin.elapsed()
        }
    };
    let (first, second, third) = tokio::join!(ask(), ask(), ask());
    assert_eq!((first, second, third), (SECOND * 3, SECOND * 3, Duration::ZERO));
    // the places are free again, also those of clients that left
    let given_up = tokio::time::timeout(SECOND, ask()).await;
    assert!(given_up.is_err());
    let (first, second, third) = tokio::join!(ask(), ask(), ask());
    assert_eq!((first, second, third), (SECOND * 7, SECOND * 7, SECOND * 4));
}

#[tokio::test(start_paused = true)]
async fn fields_tell_what_is_left() {
    let rules = RateLimitOptions::new(rule(4, SECOND * 2).with_name("a b\"c"))
        .with_rule(rule(100, HOUR).with_name("hour").with_allow(["192.0.2.9/32".parse().unwrap()]))
        .with_rule(rule(1, HOUR).with_name("trial").with_dry_run(true))
        .with_fields(true);
    let layer = RateLimitLayer::new(&rules);
    let upstream = |_: Request<()>| {
        let mut response = Response::new(Body::from("inner"));
        response.headers_mut().insert("ratelimit", HeaderValue::from_static("\"origin\";r=7"));
        response
    };
    let of = |response: &Response<Body>, name: &str| -> Vec<String> {
        let values = response.headers().get_all(name).iter();
        values.map(|value| value.to_str().unwrap().to_owned()).collect()
    };
    let response = through(&layer, upstream, from("192.0.2.1")).await;
    assert_eq!(of(&response, "ratelimit-policy"), [r#""a_b_c";q=4;w=2, "hour";q=100;w=3600"#]);
    assert_eq!(of(&response, "ratelimit"), [r#""origin";r=7"#, r#""a_b_c";r=3;t=1, "hour";r=99;t=36"#]);
    for _ in 0..3 {
        through(&layer, ok, from("192.0.2.1")).await;
    }
    let refused = through(&layer, ok, from("192.0.2.1")).await;
    assert_eq!(
        (refused.status().as_u16(), &of(&refused, "ratelimit")[..]),
        (429, &[r#""a_b_c";r=0;t=2"#.to_owned()][..])
    );
    let allowed = through(&layer, ok, from("192.0.2.9")).await;
    assert_eq!(of(&allowed, "ratelimit"), [r#""a_b_c";r=3;t=1"#], "the rule that left it alone says nothing");
}

#[tokio::test(start_paused = true)]
async fn rules_change_and_buckets_stay() {
    let layer = layer(rule(4, HOUR));
    // services that were made before see the change, too
    let mut service = layer.layer(FnService(ok));
    assert_eq!(passed(&layer, "192.0.2.1", 4).await, 4);
    assert_eq!(passed(&layer, "192.0.2.2", 2).await, 2);
    layer.replace(&RateLimitOptions::new(rule(8, SECOND)));
    assert_eq!(passed(&layer, "192.0.2.1", 9).await, 0, "what was empty is empty");
    assert_eq!(passed(&layer, "192.0.2.2", 9).await, 4, "what was half full is half full");
    assert_eq!(passed(&layer, "192.0.2.3", 9).await, 8);
    tokio::time::advance(SECOND).await;
    for _ in 0..8 {
        assert_eq!(service.ready().await.unwrap().call(from("192.0.2.1")).await.unwrap().status(), 200);
    }
    assert_eq!(layer.counts()[0].allowed, 26);
    // another key, another name: other buckets
    layer.replace(&RateLimitOptions::new(rule(2, HOUR).with_key(KeyPart::Constant)));
    assert_eq!((passed(&layer, "192.0.2.1", 2).await, passed(&layer, "192.0.2.2", 1).await), (2, 0));
    layer.replace(&RateLimitOptions::new(rule(2, HOUR).with_name("new")));
    assert_eq!(passed(&layer, "192.0.2.1", 3).await, 2);
    assert_eq!(layer.counts()[0].allowed, 2);
}

#[tokio::test]
async fn rules_that_count_the_same_keep_a_table_each() {
    let twice = |requests| RateLimitOptions::new(rule(requests, HOUR)).with_rule(rule(requests, HOUR));
    let layer = layer(rule(9, HOUR));
    layer.replace(&twice(4));
    assert_eq!(passed(&layer, "192.0.2.1", 2).await, 2);
    for _ in 0..2 {
        layer.replace(&twice(4));
    }
    assert_eq!(passed(&layer, "192.0.2.1", 9).await, 2, "each takes one of its own");
    let allowed: Vec<_> = layer.counts().iter().map(|counts| counts.allowed).collect();
    assert_eq!(allowed, [4, 4]);
}

#[tokio::test]
async fn no_more_rules_than_there_are_bits() {
    let mut options = RateLimitOptions::new(rule(100, HOUR));
    for index in 0..100 {
        options = options.with_rule(rule(100, HOUR).with_name(index.to_string()));
    }
    let layer = RateLimitLayer::new(&options);
    assert_eq!(layer.counts().len(), 64);
    assert_eq!(passed(&layer, "192.0.2.1", 101).await, 100);
    assert!(layer.counts().iter().all(|counts| counts.allowed == 100));
    let none = RateLimitLayer::new(&RateLimitOptions { rules: Vec::new(), fields: true });
    assert_eq!(passed(&none, "192.0.2.1", 10).await, 10);
}

#[tokio::test]
async fn the_inner_service_says_when_it_is_ready() {
    let (mut service, mut handle) = tower_test::mock::spawn_layer(layer(rule(1, HOUR)));
    handle.allow(0);
    assert!(service.poll_ready().is_pending());
    handle.allow(1);
    assert!(service.poll_ready().is_ready());
    let response = service.call(from("192.0.2.1"));
    let (request, send) = handle.next_request().await.unwrap();
    let _: Request<()> = request;
    send.send_response(Response::new(Body::from("inner")));
    assert_eq!(response.await.unwrap().status(), 200);
    // what is refused never reaches it
    handle.allow(1);
    assert!(service.poll_ready().is_ready());
    assert_eq!(service.call(from("192.0.2.1")).await.unwrap().status(), 429);
}

/// Answers from a list; later if told to.
#[derive(Debug, Default)]
struct Scripted {
    verdicts: Mutex<Vec<(bool, Verdict)>>,
    /// By which seeds and keys it was asked.
    asked: Mutex<Vec<([u64; 2], u128)>>,
    given_back: Mutex<Vec<(String, u32)>>,
}

impl RateStore for Scripted {
    fn seed(&self) -> [u64; 2] {
        // another one after the first question
        [7, u64::from(!self.asked.lock().unwrap().is_empty())]
    }

    fn take(&self, bucket: &Bucket<'_>, _: NonZeroU32) -> Take {
        self.asked.lock().unwrap().push((bucket.seed, bucket.key));
        match self.verdicts.lock().unwrap().pop().unwrap() {
            (false, verdict) => Take::Now(verdict),
            (true, verdict) => Take::Later(Box::pin(async move {
                tokio::time::sleep(SECOND / 100).await;
                verdict
            })),
        }
    }

    fn give_back(&self, bucket: &Bucket<'_>, cost: NonZeroU32) {
        self.given_back.lock().unwrap().push((bucket.rule.to_owned(), cost.get()));
    }
}

fn allowed() -> Verdict {
    Verdict::Allowed(Standing::default())
}

fn refused() -> Verdict {
    Verdict::Refused { wait: Some(SECOND), standing: Standing::default() }
}

/// Two rules with a store that answers with these, and the response to one request.
async fn scripted(
    on_failure: OnFailure,
    verdicts: &[(bool, Verdict)],
) -> (Response<Body>, RateLimitLayer, Arc<Scripted>) {
    let store = Arc::new(Scripted::default());
    *store.verdicts.lock().unwrap() = verdicts.iter().rev().copied().collect();
    let rules = ["a", "b"].map(|name| rule(1, HOUR).with_name(name).with_cost(1).with_shared(on_failure));
    let [a, b] = rules;
    let own = rule(5, HOUR).with_name("own");
    let options = RateLimitOptions::new(own).with_rule(a).with_rule(b);
    let layer = RateLimitLayer::with_store(&options, Arc::clone(&store) as Arc<dyn RateStore>);
    let response = through(&layer, ok, from("192.0.2.1")).await;
    assert!(store.verdicts.lock().unwrap().is_empty(), "{verdicts:?}");
    (response, layer, store)
}

#[tokio::test(start_paused = true)]
async fn a_store_answers_now_or_later() {
    for (now, then) in [(false, false), (true, false), (false, true), (true, true)] {
        let (response, layer, _) = scripted(OnFailure::Closed, &[(now, allowed()), (then, allowed())]).await;
        assert_eq!(response.status(), 200);
        assert!(layer.counts().iter().all(|counts| counts.allowed == 1));
        let (response, layer, store) =
            scripted(OnFailure::Closed, &[(now, allowed()), (then, refused())]).await;
        assert_eq!(response.status(), 429);
        assert_eq!(*store.given_back.lock().unwrap(), [("a".to_owned(), 1)]);
        let counts: Vec<_> = layer.counts().iter().map(|counts| (counts.allowed, counts.refused)).collect();
        assert_eq!(counts, [(0, 0), (0, 0), (0, 1)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_out_of_reach_leaves_it_to_the_rule() {
    for later in [false, true] {
        let dead = (later, Verdict::Unavailable);
        let (open, layer, _) = scripted(OnFailure::Open, &[dead, dead]).await;
        assert_eq!(open.status(), 200);
        assert_eq!(layer.counts()[1].unavailable, 1);
        let (closed, layer, _) = scripted(OnFailure::Closed, &[dead]).await;
        assert_eq!((closed.status().as_u16(), &closed.headers()[RETRY_AFTER]), (503, &HeaderValue::from(1)));
        assert_eq!(
            (layer.counts()[0].allowed, layer.rejected()),
            (0, 0),
            "it is no refusal, and costs nothing"
        );
        let (local, layer, store) = scripted(OnFailure::Local, &[dead, dead]).await;
        assert_eq!(local.status(), 200);
        *store.verdicts.lock().unwrap() = vec![dead, dead];
        assert_eq!(status(&layer, from("192.0.2.1")).await, 429);
        let (local, layer, store) = scripted(OnFailure::Local, &[dead, (false, refused())]).await;
        assert_eq!((local.status().as_u16(), layer.counts()[1].allowed), (429, 0));
        assert!(store.given_back.lock().unwrap().is_empty(), "what its own table gave goes back there");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_store_holds_a_request_up_once() {
    let begin = tokio::time::Instant::now();
    let dead = (true, Verdict::Unavailable);
    let (open, layer, _) = scripted(OnFailure::Open, &[dead, dead]).await;
    assert_eq!((open.status().as_u16(), begin.elapsed()), (200, SECOND / 100));
    assert_eq!([1, 2].map(|rule| layer.counts()[rule].unavailable), [1, 1]);
    // one that answers is waited for by each rule
    let begin = tokio::time::Instant::now();
    let (open, ..) = scripted(OnFailure::Open, &[(true, allowed()), (true, allowed())]).await;
    assert_eq!((open.status().as_u16(), begin.elapsed()), (200, SECOND / 50));
}

#[tokio::test(start_paused = true)]
async fn a_new_seed_makes_a_new_key_once() {
    let rekey = (true, Verdict::Rekey);
    let (response, _, store) =
        scripted(OnFailure::Closed, &[rekey, (false, allowed()), (false, allowed())]).await;
    assert_eq!(response.status(), 200);
    let asked = store.asked.lock().unwrap().clone();
    assert_eq!(asked.iter().map(|(seed, _)| *seed).collect::<Vec<_>>(), [[7, 0], [7, 1], [7, 1]]);
    assert_ne!(asked[0].1, asked[1].1, "the same rule asks again, by another key");
    assert_ne!(asked[1].1, asked[2].1, "the other rule has its own");
    let (response, ..) = scripted(OnFailure::Closed, &[rekey, rekey]).await;
    assert_eq!(response.status(), 503);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waited_goes_to_the_service_that_was_ready() {
    let store = Arc::new(Scripted::default());
    let options = RateLimitOptions::new(rule(1, HOUR).with_shared(OnFailure::Closed));
    let layer = RateLimitLayer::with_store(&options, Arc::clone(&store) as Arc<dyn RateStore>);
    let (inner, calls) = NotReady::<Body>::new();
    let mut service = layer.layer(inner);
    for count in 1..=3 {
        store.verdicts.lock().unwrap().push((true, allowed()));
        let response = service.ready().await.unwrap().call(from("192.0.2.1")).await.unwrap();
        assert_eq!((response.status().as_u16(), calls.load(Ordering::Relaxed)), (200, count));
    }
}

#[test]
fn shared_rules_of_one_name_have_to_be_alike() {
    let shared = |requests, per| rule(requests, per).with_shared(OnFailure::Open);
    let one = shared(10, SECOND);
    let table = [
        (shared(10, SECOND).with_cost(3).with_dry_run(true), false),
        (shared(5, SECOND), true),
        (shared(10, HOUR), true),
        (shared(10, SECOND).with_burst(n(5)), true),
        (shared(10, SECOND).with_key(KeyPart::Host), true),
        (shared(5, SECOND).with_name("other"), false),
        (rule(5, SECOND), false),
    ];
    for (other, expected) in table {
        assert_eq!((one.clashes_with(&other), other.clashes_with(&one)), (expected, expected), "{other:?}");
    }
    let [a, b] = ["a b", "a_b"].map(|name| shared(if name == "a b" { 1 } else { 2 }, SECOND).with_name(name));
    assert!(a.clashes_with(&b), "they are called the same in the store");
}

#[test]
fn the_future_is_small() {
    type Future = ResponseFuture<FnService<fn(Request<()>) -> Response<Body>>, (), Body>;
    let inner = size_of::<std::future::Ready<Result<Response<Body>, std::convert::Infallible>>>();
    assert!(size_of::<Future>() <= inner + 24, "{} {inner}", size_of::<Future>());
}
