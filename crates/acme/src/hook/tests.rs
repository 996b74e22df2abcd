use std::sync::atomic::AtomicUsize;

use portcullis_testkit::certs::TestCa;
use portcullis_tls::{CertStore, client::Roots};

use super::*;
use crate::{AcmeOptions, Directory, MemoryStorage, OnDemand};

/// An authority that is nowhere.
fn options() -> AcmeOptions {
    AcmeOptions::new(Directory::Url("https://127.0.0.1:1/dir".to_owned()))
        .with_roots(Roots::Given(vec![TestCa::new().der()]))
        .with_poll(Duration::from_secs(10))
}

fn acme(options: AcmeOptions) -> (Arc<CertStore>, Acme) {
    let store = Arc::new(CertStore::new());
    let acme = Acme::new(&store, Arc::new(MemoryStorage::new()), options).unwrap();
    acme.load().unwrap();
    (store, acme)
}

fn counting(allowed: bool) -> (Arc<AtomicUsize>, OnDemand) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let policy = move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        async move { allowed }
    };
    (asked, OnDemand::new(policy))
}

#[tokio::test]
async fn nobody_waits_in_the_usual_case() {
    let (_, on_demand) = counting(true);
    let (store, acme) = acme(options().with_on_demand(on_demand).with_certificate(["options.example"]));
    store.add_self_signed(&["known.example".to_owned()]).unwrap();
    assert!(acme.0.on_demand("new.example").is_none(), "while nothing runs there is nothing to wait for");
    acme.0.running.store(1, Ordering::Release);
    for name in ["known.example", "options.example", "localhost", "127.0.0.1", "a_b.example"] {
        assert!(acme.0.on_demand(name).is_none(), "{name}");
    }
    assert!(acme.0.on_demand("new.example").is_some());
    assert!(self::acme(options()).1.0.on_demand("new.example").is_none());
}

#[tokio::test]
async fn those_who_wait_have_a_bound() {
    let (_, on_demand) = counting(true);
    let (_, acme) = acme(options().with_on_demand(on_demand.with_max_pending(3)));
    acme.0.running.store(1, Ordering::Release);
    let waits: Vec<_> = (0..10).map(|n| acme.0.on_demand(&format!("{n}.example"))).collect();
    assert_eq!(waits.iter().filter(|wait| wait.is_some()).count(), 3);
    assert!(acme.0.on_demand("0.example").is_some(), "more for a name that is waited for are no more names");
    assert_eq!(acme.0.state.lock().pending.len(), 3);
    assert_eq!(acme.stats().on_demand_over_bound, 7);
}

#[tokio::test]
async fn answers_are_looked_for_where_they_can_be() {
    let (_, acme) = acme(options().with_certificate(["a.example", "192.0.2.1"]));
    assert!(acme.0.challenge("a.example").is_some());
    assert!(acme.0.challenge("1.2.0.192.in-addr.arpa").is_some());
    assert!(acme.0.challenge("b.example").is_none(), "not a name of ours");
    acme.0.answers.put_alpn("a.example", &[1; 32]).unwrap();
    assert!(acme.0.challenge("a.example").is_none(), "it is here");
    let http = options().with_certificate(["a.example"]).with_challenge(Challenge::Http01);
    assert!(self::acme(http).1.0.challenge("a.example").is_none());
}

/// Runs until all these names were waited for, and for a moment of paused time more.
async fn run_for(acme: &Acme, names: &[&str]) {
    let waiting = async {
        tokio::task::yield_now().await;
        for name in names {
            if let Some(wait) = acme.0.on_demand(name) {
                wait.await;
            }
        }
    };
    acme.run(waiting).await;
}

#[tokio::test]
async fn what_the_policy_refuses_is_asked_once() {
    let (asked, on_demand) = counting(false);
    let (_, acme) = acme(options().with_on_demand(on_demand));
    run_for(&acme, &["a.example", "a.example", "A.example", "b.example"]).await;
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    let stats = acme.stats();
    assert_eq!((stats.on_demand_asked, stats.on_demand_refused, stats.orders_failed), (2, 2, 0));
    assert!(acme.status().is_empty());
}

#[tokio::test]
async fn what_fails_takes_no_place_and_counts() {
    let (asked, on_demand) = counting(true);
    let (_, acme) =
        acme(options().with_on_demand(on_demand.with_max_issued_per(2, Duration::from_secs(600))));
    run_for(&acme, &["a.example", "a.example", "b.example", "c.example"]).await;
    assert_eq!(asked.load(Ordering::Relaxed), 2, "the third is over the bound and not even asked about");
    let stats = acme.stats();
    assert_eq!((stats.orders_failed, stats.on_demand_over_bound), (2, 1));
    assert!(acme.status().is_empty() && acme.0.state.lock().on_demand == 0);
    assert!(acme.0.state.lock().pending.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_says_nothing_is_a_no() {
    let silent = OnDemand::new(|_| std::future::pending()).with_wait(Duration::from_secs(60));
    let (_, acme) = acme(options().with_on_demand(silent));
    let begun = tokio::time::Instant::now();
    run_for(&acme, &["a.example"]).await;
    assert!(
        begun.elapsed() >= ASK && begun.elapsed() < ASK + Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(acme.stats().on_demand_refused, 1);
}
