//! An edge as a program would run it.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{
    convert::Infallible,
    net::SocketAddr,
    num::{NonZeroU32, NonZeroUsize},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use http::{HeaderValue, Request, Response, StatusCode};
use portcullis_edge::{
    Body, Edge, EdgeError, EdgeService, PlanFault,
    h3::QuicOptions,
    middleware::rate_limit::{KeyPart, OnFailure, RateLimitOptions, RateRule, redis::RedisOptions},
    plan::{
        ClusterPlan, ListenerMode, ListenerPlan, PlainHttp, Plan, RouteAction, RoutePlan, Setting, Workers,
    },
    proxy::PathMatch,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
};

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn hello() -> RoutePlan {
    RoutePlan::new(None, RouteAction::Respond { status: StatusCode::OK, body: "hello".to_owned() })
}

fn n(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut io = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    io.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn an_edge_of_ones_own_with_its_layers() {
    let tag = |name: &'static str| {
        tower::layer::layer_fn(move |inner: EdgeService| {
            tower::service_fn(move |mut request: Request<Body>| {
                let mut inner = inner.clone();
                async move {
                    request.headers_mut().append("x-seen", HeaderValue::from_static(name));
                    tower_service::Service::call(&mut inner, request).await
                }
            })
        })
    };
    let end = tower::layer::layer_fn(|_: EdgeService| {
        tower::service_fn(|request: Request<Body>| async move {
            let seen: Vec<_> =
                request.headers().get_all("x-seen").iter().map(|v| v.to_str().unwrap()).collect();
            Ok::<_, Infallible>(Response::new(Body::from(seen.join(","))))
        })
    });
    for workers in [Workers::PerCore(NonZeroUsize::new(2)), Workers::WorkStealing(NonZeroUsize::new(2))] {
        let app = ClusterPlan::new("app", ["127.0.0.1:1"]);
        let edge = Edge::builder().workers(workers).http(any()).route("*", app);
        let edge = edge.layer(tag("first")).layer(tag("second")).layer(end).build().unwrap();
        let address = edge.listening()[0].address.ip().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(edge.run(async {
            let _ = stopped.await;
        }));
        let answer = get(address, "/").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("first,second"), "{answer}");
        assert!(get(address, "/health").await.ends_with("ok\n"));
        drop(stop);
        running.await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}

#[tokio::test]
async fn one_listener_that_fails_ends_all_and_is_told() {
    let mut plan = Plan::default();
    plan.workers = Workers::PerCore(NonZeroUsize::new(2));
    plan.listeners.push(ListenerPlan::new(any(), ListenerMode::Http));
    let mut https =
        ListenerPlan::new(any(), ListenerMode::Https { http3: true, plain_http: PlainHttp::Redirect });
    // HTTP/3 needs three streams of its own
    https.quic = QuicOptions::default().with_max_uni_streams(0);
    plan.listeners.push(https);
    plan.certificates
        .push(portcullis_edge::plan::CertificateSource::SelfSigned { names: vec!["a".to_owned()] });
    plan.routes.push(hello());
    let edge = Edge::new(plan).unwrap();
    let address = edge.listening()[0].address.ip().unwrap();
    let begin = Instant::now();
    let error = edge.run(std::future::pending()).await.unwrap_err();
    assert!(matches!(error, EdgeError::Quic { .. }), "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn quic_is_tuned_while_the_edge_runs() {
    let mut plan = Plan::default();
    plan.workers = Workers::PerCore(NonZeroUsize::new(2));
    plan.listeners.push(ListenerPlan::new(any(), ListenerMode::Http));
    let https = ListenerMode::Https { http3: true, plain_http: PlainHttp::Redirect };
    plan.listeners.push(ListenerPlan::new(any(), https));
    plan.certificates
        .push(portcullis_edge::plan::CertificateSource::SelfSigned { names: vec!["a".to_owned()] });
    plan.routes.push(hello());
    let edge = Edge::new(plan).unwrap();
    let handle = edge.handle();
    assert!(handle.quic_options(1).is_none(), "it does not run yet");
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(edge.run(async {
        let _ = stopped.await;
    }));
    let begun = async {
        while handle.quic_options(1).is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), begun).await.unwrap();
    let other = QuicOptions::default().with_max_bidi_streams(7);
    assert!(handle.set_quic_options(1, &other).unwrap());
    assert_eq!(handle.quic_options(1).unwrap().max_bidi_streams, 7);
    let wrong = handle.set_quic_options(1, &QuicOptions::default().with_max_uni_streams(0));
    assert!(matches!(wrong, Err(EdgeError::Quic { .. })));
    assert_eq!(handle.quic_options(1).unwrap().max_uni_streams, 8);
    assert!(!handle.set_quic_options(0, &other).unwrap(), "plain HTTP has no QUIC");
    handle.set_max_quic_connections(5);
    assert_eq!(handle.open_quic_connections(), 0);
    drop(stop);
    running.await.unwrap().unwrap();
    assert!(!handle.set_quic_options(1, &other).unwrap(), "it has ended");
}

#[tokio::test]
async fn health_fails_before_the_door_closes() {
    let mut plan = Plan::default();
    plan.workers = Workers::PerCore(NonZeroUsize::new(1));
    plan.listeners.push(ListenerPlan::new(any(), ListenerMode::Http));
    plan.routes.push(hello());
    plan.drain_delay = Duration::from_millis(600);
    let edge = Edge::new(plan).unwrap();
    let address = edge.listening()[0].address.ip().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(edge.run(async {
        let _ = stopped.await;
    }));
    assert!(get(address, "/health").await.starts_with("HTTP/1.1 200"));
    drop(stop);
    // the flag is set by a task that may not have run yet
    while get(address, "/health").await.starts_with("HTTP/1.1 200") {}
    assert!(get(address, "/health").await.starts_with("HTTP/1.1 503"));
    assert!(get(address, "/").await.ends_with("hello"), "all else is served as before");
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_rate_limit_of_all_routes_counts_by_route() {
    let mut plan = Plan::default();
    plan.workers = Workers::PerCore(NonZeroUsize::new(1));
    plan.listeners.push(ListenerPlan::new(any(), ListenerMode::Http));
    let rule = RateRule::new(n(1), Duration::from_secs(3600));
    plan.chain.rate_limit = Setting::Own(RateLimitOptions::new(rule.with_key(KeyPart::Route)));
    for (path, name) in [("/a", None), ("/b", None), ("/c", Some("c and d")), ("/d", Some("c and d"))] {
        let mut route = hello();
        route.matches.path = PathMatch::Prefix(path.to_owned());
        route.name = name.map(str::to_owned);
        plan.routes.push(route);
    }
    let edge = Edge::new(plan).unwrap();
    let address = edge.listening()[0].address.ip().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(edge.run(async {
        let _ = stopped.await;
    }));
    // what no route is for has one bucket
    let table = [
        ("/a", 200),
        ("/a/x", 429),
        ("/b", 200),
        ("/b", 429),
        ("/c", 200),
        ("/d", 429),
        ("/none", 404),
        ("/no", 429),
    ];
    for (path, expected) in table {
        let answer = get(address, path).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{path}: {answer}");
    }
    drop(stop);
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_service_that_blocks_its_worker_does_not_hold_the_end() {
    let release = Arc::new(AtomicBool::new(false));
    let blocking = {
        let release = Arc::clone(&release);
        tower::layer::layer_fn(move |_: EdgeService| {
            let release = Arc::clone(&release);
            tower::service_fn(move |_: Request<Body>| {
                while !release.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                async { Ok::<_, Infallible>(Response::new(Body::empty())) }
            })
        })
    };
    let edge = Edge::builder()
        .workers(Workers::PerCore(NonZeroUsize::new(1)))
        .http(any())
        .route("*", ClusterPlan::new("app", ["127.0.0.1:1"]))
        .layer(blocking)
        .plan(|plan| plan.drain_timeout = Duration::from_millis(100))
        .build()
        .unwrap();
    let mut io = TcpStream::connect(edge.listening()[0].address.ip().unwrap()).await.unwrap();
    io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let stop = tokio::time::sleep(Duration::from_millis(300));
    let error = edge.run(stop).await.unwrap_err();
    assert!(matches!(error, EdgeError::WorkerStuck), "{error:?}");
    release.store(true, Ordering::SeqCst);
}

#[test]
fn contradictions_are_found_before_anything_is_opened() {
    let check = |change: fn(&mut Plan)| {
        let mut plan = Plan::default();
        plan.listeners.push(ListenerPlan::new(any(), ListenerMode::Http));
        plan.routes.push(hello());
        change(&mut plan);
        plan.check()
    };
    assert!(check(|_| {}).is_ok());
    let fault = |change: fn(&mut Plan)| match check(change) {
        Err(EdgeError::Plan(fault)) => fault,
        other => panic!("{other:?}"),
    };
    assert!(matches!(fault(|plan| plan.listeners.clear()), PlanFault::NoListener));
    assert!(matches!(
        fault(|plan| plan.listeners[0].mode =
            ListenerMode::Https { http3: false, plain_http: PlainHttp::Refuse }),
        PlanFault::NoCertificate(_)
    ));
    assert!(matches!(
        fault(|plan| plan.routes[0].action = RouteAction::Forward { cluster: "x".to_owned() }),
        PlanFault::UnknownCluster(name) if name == "x"
    ));
    assert!(matches!(fault(|plan| plan.routes.push(hello())), PlanFault::Route(_)));
    assert!(matches!(
        fault(|plan| plan.clusters = vec![ClusterPlan::new("a", ["b:1"]), ClusterPlan::new("a", ["b:2"])]),
        PlanFault::DuplicateCluster(_)
    ));
    assert!(matches!(
        fault(|plan| plan.clusters = vec![ClusterPlan::new("a", ["nonsense"])]),
        PlanFault::Endpoint { .. }
    ));
    assert!(matches!(
        fault(|plan| plan.clusters = vec![ClusterPlan::new("a", [""; 0])]),
        PlanFault::Cluster(_)
    ));
    assert!(matches!(
        fault(|plan| plan.workers = Workers::PerCore(NonZeroUsize::new(256))),
        PlanFault::TooManyWorkers(256)
    ));
    let shared = |rates: RateRule| Setting::Own(RateLimitOptions::new(rates.with_shared(OnFailure::Open)));
    let check = |store: bool, route: RateRule| {
        let mut plan = Plan::default();
        plan.listeners.push(ListenerPlan::new(any(), ListenerMode::Http));
        plan.routes.push(hello());
        plan.chain.rate_limit = shared(RateRule::new(n(1000), Duration::from_secs(1)));
        plan.routes[0].chain.rate_limit = shared(route);
        plan.rate_store = store.then(|| RedisOptions::new("redis://127.0.0.1:1"));
        plan.check()
    };
    // rules of one name have the same buckets in a store, wherever they stand
    let login = RateRule::new(n(5), Duration::from_secs(60));
    let missing = check(false, login.clone()).unwrap_err();
    assert!(matches!(missing, EdgeError::Plan(PlanFault::NoRateStore(_))), "{missing:?}");
    if cfg!(feature = "redis") {
        assert!(check(true, RateRule::new(n(1000), Duration::from_secs(1)).with_dry_run(true)).is_ok());
        assert!(check(true, login.clone().with_name("login")).is_ok());
        let clash = check(true, login).unwrap_err();
        assert!(
            matches!(&clash, EdgeError::Plan(PlanFault::RatesClash(name)) if name == "default"),
            "{clash:?}"
        );
    } else {
        let without = check(true, login).unwrap_err();
        assert!(matches!(without, EdgeError::RateStore(_)), "{without:?}");
    }
    let same: SocketAddr = "127.0.0.1:18080".parse().unwrap();
    let twice = |plan: &mut Plan| {
        plan.listeners =
            vec![ListenerPlan::new(same, ListenerMode::Http), ListenerPlan::new(same, ListenerMode::Http)];
    };
    let mut plan = Plan::default();
    twice(&mut plan);
    assert!(matches!(plan.check(), Err(EdgeError::Listeners(_))));
}

/// A UDP relay before an edge, which can take another port towards it as a NAT does.
#[cfg(target_os = "linux")]
async fn relay(to: SocketAddr) -> (SocketAddr, Arc<tokio::sync::Notify>) {
    use tokio::net::UdpSocket;

    let front = UdpSocket::bind(any()).await.unwrap();
    let address = front.local_addr().unwrap();
    let rebind = Arc::new(tokio::sync::Notify::new());
    let told = Arc::clone(&rebind);
    tokio::spawn(async move {
        let mut back = UdpSocket::bind(any()).await.unwrap();
        let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
        let mut client = address;
        loop {
            tokio::select! {
                () = told.notified() => back = UdpSocket::bind(any()).await.unwrap(),
                Ok((len, from)) = front.recv_from(&mut up) => {
                    client = from;
                    back.send_to(&up[..len], to).await.unwrap();
                }
                Ok((len, _)) = back.recv_from(&mut down) => {
                    front.send_to(&down[..len], client).await.unwrap();
                }
            }
        }
    });
    (address, rebind)
}

/// As where the system has no packet filter: workers pass packets on to one another.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn without_steering_a_quic_client_may_change_its_address_all_the_same() {
    let ca = portcullis_testkit::certs::TestCa::new();
    let cert = ca.issue(&["localhost"]);
    let store = Arc::new(portcullis_edge::tls::CertStore::new());
    store.add_pem(cert.chain_pem().as_bytes(), cert.key_pem().as_bytes()).unwrap();
    let mode = ListenerMode::Https { http3: true, plain_http: PlainHttp::Refuse };
    let mut listener = ListenerPlan::new(any(), mode);
    listener.udp.steer_by_cid_byte = None;
    let workers = Workers::PerCore(NonZeroUsize::new(4));
    let edge = Edge::builder().tls(store).listener(listener).workers(workers);
    let edge = edge.plan(|plan| plan.routes.push(hello())).build().unwrap();
    let to = edge.listening()[0].address.ip().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(edge.run(async {
        let _: Result<(), _> = stopped.await;
    }));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der()).unwrap();
    let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let (address, rebind) = relay(to).await;
    let connection =
        portcullis_edge::h3::client::Connection::connect(address, "localhost", Arc::new(tls)).await.unwrap();
    // by the hash of addresses alone one port in four would do
    for _ in 0..12 {
        let request = Request::get("https://localhost/").body(http_body_util::Empty::<bytes::Bytes>::new());
        let sent = tokio::time::timeout(Duration::from_secs(5), connection.send(request.unwrap()));
        assert_eq!(sent.await.expect("an answer").unwrap().status(), StatusCode::OK);
        rebind.notify_one();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
}
