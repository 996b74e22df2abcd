//! Checks of clusters, with a clock of the test's.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicUsize},
};

use tokio::io::{DuplexStream, duplex};

use super::*;
use crate::health::{Check, HttpCheck, TcpCheck};

#[derive(Clone)]
struct Handle(Arc<State>);

struct State {
    endpoint: Endpoint,
    healthy: AtomicBool,
    removed: AtomicBool,
    answers: AtomicBool,
    checks: AtomicUsize,
}

impl Target for Handle {
    fn endpoint(&self) -> &Endpoint {
        &self.0.endpoint
    }

    fn set_healthy(&self, healthy: bool) -> bool {
        self.0.healthy.swap(healthy, Ordering::Relaxed) != healthy
    }

    fn is_removed(&self) -> bool {
        self.0.removed.load(Ordering::Relaxed)
    }
}

impl Handle {
    fn is_healthy(&self) -> bool {
        self.0.healthy.load(Ordering::Relaxed)
    }

    fn answer(&self, answers: bool) {
        self.0.answers.store(answers, Ordering::Relaxed);
    }

    fn checks(&self) -> usize {
        self.0.checks.load(Ordering::Relaxed)
    }
}

#[derive(Clone, Default)]
struct Cluster(Arc<Mutex<Vec<Handle>>>);

impl Cluster {
    fn new(count: usize) -> Self {
        let cluster = Self::default();
        (0..count).for_each(|n| drop(cluster.add(n)));
        cluster
    }

    fn add(&self, number: usize) -> Handle {
        let handle = Handle(Arc::new(State {
            endpoint: format!("app-{number}:80").parse().unwrap(),
            healthy: AtomicBool::new(true),
            removed: AtomicBool::new(false),
            answers: AtomicBool::new(true),
            checks: AtomicUsize::new(0),
        }));
        self.0.lock().unwrap().push(handle.clone());
        handle
    }

    fn remove(&self, at: usize) -> Handle {
        let handle = self.0.lock().unwrap().remove(at);
        handle.0.removed.store(true, Ordering::Relaxed);
        handle
    }

    fn get(&self, at: usize) -> Handle {
        self.0.lock().unwrap()[at].clone()
    }

    fn all(&self) -> Vec<Handle> {
        self.0.lock().unwrap().clone()
    }

    /// A connection that says `ok` if the endpoint answers, and is refused if not.
    fn connect(&self, endpoint: &Endpoint) -> impl Future<Output = io::Result<DuplexStream>> + Send + use<> {
        let handle = self.all().into_iter().find(|h| h.0.endpoint == *endpoint);
        async move {
            let handle = handle.ok_or(io::ErrorKind::NotFound)?;
            handle.0.checks.fetch_add(1, Ordering::Relaxed);
            if !handle.0.answers.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (ours, mut theirs) = duplex(64);
            tokio::io::AsyncWriteExt::write_all(&mut theirs, b"ok").await?;
            Ok(ours)
        }
    }

    fn check(&self, options: HealthOptions) -> (Arc<HealthCounters>, JoinSet<Infallible>) {
        let (targets, connect) = (self.clone(), self.clone());
        let checker =
            Checker::new("app", options, move || targets.all(), move |e: &Endpoint| connect.connect(e))
                .unwrap();
        let counters = checker.counters();
        let mut tasks = JoinSet::new();
        tasks.spawn(checker.run());
        (counters, tasks)
    }
}

fn options() -> HealthOptions {
    HealthOptions::new(Check::Tcp(TcpCheck::default().with_expect("ok")))
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_goes_and_returns() {
    let cluster = Cluster::new(2);
    let (counters, _tasks) = cluster.check(options());
    pass(60).await;
    assert!(cluster.all().iter().all(Handle::is_healthy));
    assert!((10..=14).contains(&cluster.get(0).checks()), "{}", cluster.get(0).checks());
    assert_eq!((counters.failed(), counters.became_unhealthy()), (0, 0));

    cluster.get(0).answer(false);
    pass(9).await;
    assert!(cluster.get(0).is_healthy(), "three checks have not been");
    pass(8).await;
    assert!(!cluster.get(0).is_healthy());
    assert!(cluster.get(1).is_healthy());
    assert_eq!((counters.became_healthy(), counters.became_unhealthy()), (0, 1));

    cluster.get(0).answer(true);
    pass(12).await;
    assert!(cluster.get(0).is_healthy());
    assert_eq!((counters.became_healthy(), counters.became_unhealthy()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_unchecked_endpoint_may_have_to_wait() {
    let cluster = Cluster::new(2);
    cluster.get(1).answer(false);
    let (_, _tasks) = cluster.check(options().with_initial(InitialHealth::Unhealthy));
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(cluster.get(0).is_healthy());
    assert!(!cluster.get(1).is_healthy());
}

#[tokio::test(start_paused = true)]
async fn unhealthy_ones_have_an_interval_of_their_own() {
    let cluster = Cluster::new(1);
    cluster.get(0).answer(false);
    let unhealthy = options().with_unhealthy_threshold(1).with_unhealthy_interval(Duration::from_secs(60));
    let (_, _tasks) = cluster.check(unhealthy);
    pass(50).await;
    assert_eq!(cluster.get(0).checks(), 1);
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_come_and_go_are_followed() {
    let cluster = Cluster::new(1);
    let (_, _tasks) = cluster.check(options().with_unhealthy_threshold(1));
    pass(10).await;
    let late = cluster.add(7);
    late.answer(false);
    pass(12).await;
    assert!(!late.is_healthy());
    let gone = cluster.remove(1);
    let before = gone.checks();
    pass(60).await;
    assert_eq!(gone.checks(), before);
    // the same name again is another endpoint
    let again = cluster.add(7);
    pass(12).await;
    assert!(again.is_healthy() && again.checks() > 0);
    assert!(!gone.is_healthy());
}

#[tokio::test(start_paused = true)]
async fn a_name_that_changes_hands_at_once_is_noticed() {
    let cluster = Cluster::new(1);
    cluster.get(0).answer(false);
    let (_, _tasks) = cluster.check(options().with_unhealthy_threshold(1));
    pass(10).await;
    assert!(!cluster.remove(0).is_healthy());
    let again = cluster.add(0);
    pass(10).await;
    assert!(again.is_healthy() && again.checks() > 0);
}

#[tokio::test(start_paused = true)]
async fn checks_at_once_are_bounded_and_hangs_end() {
    static RUNNING: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);
    struct Count;
    impl Drop for Count {
        fn drop(&mut self) {
            RUNNING.fetch_sub(1, Ordering::Relaxed);
        }
    }

    let cluster = Cluster::new(100);
    let targets = cluster.clone();
    let connect = |_: &Endpoint| async {
        MOST.fetch_max(RUNNING.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        let _count = Count;
        std::future::pending::<io::Result<DuplexStream>>().await
    };
    let options =
        options().with_max_concurrent(7).with_unhealthy_threshold(1).with_interval(Duration::from_millis(1));
    let checker = Checker::new("app", options, move || targets.all(), connect).unwrap();
    let counters = checker.counters();
    let mut tasks = JoinSet::new();
    tasks.spawn(checker.run());
    // 100 checks of 2 s, 7 at a time
    pass(33).await;
    assert_eq!(MOST.load(Ordering::Relaxed), 7);
    assert!(counters.failed() >= 100, "{}", counters.failed());
    assert!(cluster.all().iter().all(|handle| !handle.is_healthy()));
    // dropping it ends what is under way
    tasks.shutdown().await;
    pass(1).await;
    assert_eq!(RUNNING.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_check_that_panics_has_failed() {
    let cluster = Cluster::new(1);
    let targets = cluster.clone();
    let connect = |_: &Endpoint| async { panic!("no way") as io::Result<DuplexStream> };
    let checker = Checker::new("app", options(), move || targets.all(), connect).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(checker.run());
    pass(30).await;
    assert!(!cluster.get(0).is_healthy());
}

#[tokio::test(start_paused = true)]
async fn instances_do_not_check_in_step() {
    let starts: Vec<_> = (0..8).map(|_| Cluster::new(1)).collect();
    let tasks: Vec<_> = starts.iter().map(|cluster| cluster.check(options())).collect();
    let mut moments = HashSet::new();
    for millisecond in 0..5100 {
        for (index, cluster) in starts.iter().enumerate() {
            if cluster.get(0).checks() == 1 && !moments.iter().any(|(i, _)| *i == index) {
                moments.insert((index, millisecond));
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let distinct: HashSet<_> = moments.iter().map(|(_, moment)| *moment).collect();
    assert_eq!(moments.len(), tasks.len());
    assert!(distinct.len() > 4, "{moments:?}");
}

#[tokio::test]
async fn over_loopback() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::from(listener.local_addr().unwrap());
    let cluster = Cluster::default();
    cluster.0.lock().unwrap().push(Handle(Arc::new(State {
        endpoint,
        healthy: AtomicBool::new(true),
        removed: AtomicBool::new(false),
        answers: AtomicBool::new(true),
        checks: AtomicUsize::new(0),
    })));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 1024];
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut asked).await;
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 200 OK\r\n\r\nready").await;
        }
    });
    let targets = cluster.clone();
    let connect = |endpoint: &Endpoint| {
        let name = endpoint.name().to_owned();
        async move { tokio::net::TcpStream::connect(name).await }
    };
    let check = Check::Http(HttpCheck::default().with_body_contains("ready"));
    let options = HealthOptions::new(check).with_initial(InitialHealth::Unhealthy);
    let checker = Checker::new("app", options, move || targets.all(), connect).unwrap();
    let counters = checker.counters();
    let mut checks = JoinSet::new();
    checks.spawn(async move { checker.run().await });
    let passed = async {
        while counters.passed() == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(5), passed).await.unwrap();
    assert!(cluster.get(0).is_healthy());
}
