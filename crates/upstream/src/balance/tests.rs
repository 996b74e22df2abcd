//! Tables, fairness at fixed seeds, and properties.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::*;

struct Fake {
    table: Table,
    loads: Vec<Load>,
    up: Vec<bool>,
    now: Instant,
}

impl Endpoints for Fake {
    fn load(&self, index: usize) -> &Load {
        &self.loads[index]
    }

    fn is_available(&self, index: usize, _: Instant) -> bool {
        self.up[index]
    }
}

fn member(n: usize, weight: u32) -> Member {
    Member { name: format!("10.0.{}.{}:80", n / 250, n % 250).into(), weight, priority: 0, zone: None }
}

impl Fake {
    fn new(options: &BalanceOptions, members: &[Member]) -> Self {
        let now = Instant::now();
        Self {
            table: Table::with_seed(options, members, 42),
            loads: members.iter().map(|member| Load::new(member.weight, now)).collect(),
            up: vec![true; members.len()],
            now,
        }
    }

    fn even(policy: Policy, count: usize) -> Self {
        let members: Vec<_> = (0..count).map(|n| member(n, 1)).collect();
        Self::new(&BalanceOptions::default().with_policy(policy), &members)
    }

    fn ask(&self, hash: Option<u64>, tried: &[usize]) -> Option<usize> {
        let mut set = Tried::default();
        tried.iter().for_each(|index| set.insert(*index));
        self.table.pick(self, self.now, &Ask { hash, tried: &set })
    }

    fn pick(&self) -> usize {
        self.ask(None, &[]).unwrap()
    }

    fn counts(&self, picks: usize) -> Vec<usize> {
        let mut counts = vec![0; self.loads.len()];
        (0..picks).for_each(|_| counts[self.pick()] += 1);
        counts
    }

    fn owners(&self, keys: u64) -> Vec<usize> {
        (0..keys).map(|key| self.ask(Some(stable_hash(&key.to_le_bytes())), &[]).unwrap()).collect()
    }
}

fn policies() -> [Policy; 6] {
    [
        Policy::LeastRequest,
        Policy::RoundRobin,
        Policy::Random,
        Policy::PeakEwma,
        Policy::Maglev { table_size: 1021 },
        Policy::RingHash { replicas: 20 },
    ]
}

#[test]
fn a_thousand_endpoints_share_evenly() {
    for policy in [Policy::LeastRequest, Policy::RoundRobin] {
        assert!(Fake::even(policy, 1000).counts(20_000).iter().all(|count| *count == 20));
    }
    // chi-square of 999 degrees: 99.9 % are below 1143; the seed is fixed
    let counts = Fake::even(Policy::Random, 1000).counts(100_000);
    let chi: f64 = counts.iter().map(|count| (*count as f64 - 100.0).powi(2) / 100.0).sum();
    assert!((850.0..1143.0).contains(&chi), "{chi}");
}

#[test]
fn the_share_of_those_that_are_down_is_shared() {
    for policy in [Policy::LeastRequest, Policy::RoundRobin, Policy::Random] {
        let mut fake = Fake::even(policy.clone(), 1000);
        (0..400).for_each(|index| fake.up[index] = false);
        let counts = fake.counts(60_000);
        assert!(counts[..400].iter().all(|count| *count == 0));
        assert!(counts[400..].iter().all(|count| (50..160).contains(count)), "{policy:?}");
    }
}

#[test]
fn weights_are_shares_and_turns_are_spread() {
    let members = [member(0, 5), member(1, 1), member(2, 1)];
    for policy in [Policy::RoundRobin, Policy::LeastRequest] {
        let fake = Fake::new(&BalanceOptions::default().with_policy(policy), &members);
        assert_eq!(fake.counts(700), [500, 100, 100]);
    }
    let fake =
        Fake::new(&BalanceOptions::default().with_policy(Policy::RoundRobin), &[member(0, 2), member(1, 2)]);
    let picks: Vec<_> = (0..4).map(|_| fake.pick()).collect();
    assert_eq!(picks, [0, 1, 0, 1]);
    for policy in [Policy::Random, Policy::maglev()] {
        let fake = Fake::new(&BalanceOptions::default().with_policy(policy), &members);
        let mut counts = [0_usize; 3];
        for key in 0..7000_u64 {
            counts[fake.ask(Some(stable_hash(&key.to_le_bytes())), &[]).unwrap()] += 1;
        }
        assert!((4800..5200).contains(&counts[0]), "{counts:?}");
    }
}

#[test]
fn the_busier_is_passed_over() {
    let fake = Fake::even(Policy::LeastRequest, 2);
    fake.loads[0].begin();
    assert!((0..10).all(|_| fake.pick() == 1));
    fake.loads[0].end();
    assert_eq!(fake.counts(10), [5, 5]);
}

#[test]
fn who_fails_fast_draws_little() {
    let fake = Fake::even(Policy::PeakEwma, 10);
    for load in &fake.loads {
        load.observe(fake.now, Duration::from_millis(40));
    }
    fake.loads[3].penalise(fake.now);
    fake.loads[3].observe(fake.now, Duration::from_micros(10));
    let counts = fake.counts(10_000);
    assert!(counts[3] < 10, "{counts:?}");
    // it is forgiven in time
    let later = fake.now + Duration::from_secs(200);
    assert!(fake.loads[3].latency(later) < 1_000_000.0);
}

#[test]
fn one_that_leaves_moves_little_but_its_own() {
    for (policy, most) in [(Policy::maglev(), 2.0), (Policy::ring_hash(), 0.001)] {
        for count in [10, 100, 1000] {
            let options = BalanceOptions::default().with_policy(policy.clone());
            let members: Vec<_> = (0..count).map(|n| member(n, 1)).collect();
            let all = Fake::new(&options, &members);
            let before = all.owners(20_000);
            // configured in another order, and without the last
            let fewer: Vec<_> = members[..count - 1].iter().rev().cloned().collect();
            let after = Fake::new(&options, &fewer).owners(20_000);
            let moved =
                before.iter().zip(&after).filter(|(a, b)| **a != count - 1 && **a != count - 2 - **b).count();
            let percent = moved as f64 / 200.0;
            assert!(percent < most, "{policy:?} {count}: {percent} %");
            // one that is down moves nothing but its own
            let mut down = Fake::new(&options, &members);
            down.up[count / 2] = false;
            let after = down.owners(20_000);
            assert!(before.iter().zip(&after).all(|(a, b)| a == b || *a == count / 2));
            assert!(!after.contains(&(count / 2)));
        }
    }
}

#[test]
fn hashing_is_balanced() {
    for (policy, spread) in [(Policy::maglev(), 0.05), (Policy::ring_hash(), 0.35)] {
        let mut counts = [0_f64; 10];
        Fake::even(policy.clone(), 10).owners(100_000).iter().for_each(|owner| counts[*owner] += 1.0);
        assert!(counts.iter().all(|count| (count / 10_000.0 - 1.0).abs() < spread), "{policy:?} {counts:?}");
    }
}

#[test]
fn the_load_of_a_hot_key_is_bounded() {
    for policy in [Policy::maglev(), Policy::ring_hash()] {
        let options = BalanceOptions::default().with_policy(policy).with_hash_balance_factor(125);
        let members: Vec<_> = (0..10).map(|n| member(n, 1)).collect();
        let fake = Fake::new(&options, &members);
        for _ in 0..100 {
            fake.loads[fake.ask(Some(7), &[]).unwrap()].begin();
        }
        let most = fake.loads.iter().map(Load::busy).max();
        assert!(most <= Some(13), "{most:?}");
    }
}

#[test]
fn slow_start_grows() {
    let options =
        BalanceOptions::default().with_policy(Policy::RoundRobin).with_slow_start(Duration::from_secs(10));
    let members: Vec<_> = (0..10).map(|n| member(n, 1)).collect();
    let mut fake = Fake::new(&options, &members);
    fake.loads[0].became_available(fake.now);
    let mut last = 0;
    for (second, range) in [(0, 50..200), (5, 400..650), (8, 700..900), (10, 1000..1001)] {
        fake.now += Duration::from_secs(second - last);
        last = second;
        let count = fake.counts(10_000)[0];
        assert!(range.contains(&count), "{second} s: {count}");
    }
}

#[test]
fn priorities_zones_and_panic() {
    let mut members: Vec<_> = (0..6).map(|n| member(n, 1)).collect();
    members[4].priority = 1;
    members[5].priority = 1;
    for policy in policies() {
        let mut fake = Fake::new(&BalanceOptions::default().with_policy(policy), &members);
        let picks = |fake: &Fake| {
            fake.owners(300).iter().fold([0; 6], |mut all, one| {
                all[*one] += 1;
                all
            })
        };
        assert_eq!(picks(&fake)[4..], [0, 0]);
        fake.up[0] = false;
        fake.up[1] = false;
        assert_eq!([picks(&fake)[0], picks(&fake)[4]], [0, 0]);
        fake.up[2] = false;
        assert_eq!(picks(&fake)[..4], [0; 4]);
        assert_eq!(fake.table.panics(), 0);
        fake.up[4] = false;
        fake.up[5] = false;
        assert!(picks(&fake).iter().all(|count| *count > 0), "panic: all are candidates");
        assert_eq!(fake.table.panics(), 300);
    }
    let zone = |name: &str| Some(Arc::from(name));
    let mut members: Vec<_> = (0..6).map(|n| member(n, 1)).collect();
    members.iter_mut().enumerate().for_each(|(n, member)| member.zone = zone(if n < 3 { "a" } else { "b" }));
    let mut fake = Fake::new(&BalanceOptions::default().with_zone(zone("a")), &members);
    assert_eq!(fake.counts(300)[3..], [0, 0, 0]);
    fake.up[0] = false;
    assert!(fake.counts(300)[1..].iter().all(|count| *count > 0), "67 % are below the threshold of 70 %");
}

#[test]
fn hashes_are_for_ever() {
    // another value here would move every key of every user
    assert_eq!(stable_hash(b"portcullis"), 0x99ff_c0e6_4840_4502);
    let request = |uri: &str| {
        let request = http::Request::get(uri).header("host", "A.test:80").header("cookie", "x=1; sid=abc");
        request.body(()).unwrap().into_parts().0
    };
    let parts = request("/p?a=1&b=2");
    let of = |key: HashKey| hash_of(&[key], &parts, Some("::ffff:1.2.3.4".parse().unwrap()));
    let text = |text: &str| Some(stable_hash(text.as_bytes()));
    assert_eq!(of(HashKey::Host), text("a.test"));
    assert_eq!(of(HashKey::Cookie("sid".into())), text("abc"));
    assert_eq!(of(HashKey::Cookie("id".into())), None);
    assert_eq!(of(HashKey::Query("b".into())), text("2"));
    assert_eq!(of(HashKey::Path), text("/p"));
    assert_eq!(of(HashKey::Uri), text("/p?a=1&b=2"));
    assert_eq!(of(HashKey::ClientIp), Some(stable_hash(&[1, 2, 3, 4])));
    let keys = [HashKey::Query("none".into()), HashKey::Path];
    assert_eq!(hash_of(&keys, &parts, None), text("/p"), "the first that is there");
}

#[test]
fn counters_are_exact_over_threads() {
    let load = Load::new(1, Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                (0..10_000).for_each(|_| {
                    load.begin();
                    load.begin();
                    load.end();
                });
            });
        }
    });
    assert_eq!(load.busy(), 40_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn the_best_that_is_left(
        policy in 0_usize..6,
        ends in proptest::collection::vec((any::<bool>(), any::<bool>(), 1_u32..9, 0_u8..3), 1..90),
        hash in any::<Option<u64>>(),
        panic_threshold in prop_oneof![Just(0_u8), Just(50)],
    ) {
        let options =
            BalanceOptions::default().with_policy(policies()[policy].clone()).with_panic_threshold(panic_threshold);
        let members: Vec<_> = ends.iter().enumerate()
            .map(|(n, (.., weight, priority))| Member { priority: *priority, ..member(n, *weight) }).collect();
        let mut fake = Fake::new(&options, &members);
        fake.up = ends.iter().map(|end| end.0).collect();
        let tried: Vec<usize> = (0..ends.len()).filter(|n| ends[*n].1).collect();
        for _ in 0..5 {
            let before = fake.table.panics();
            let picked = fake.ask(hash, &tried).unwrap();
            prop_assert!(picked < ends.len());
            let untried = (0..ends.len()).any(|n| !tried.contains(&n));
            prop_assert!(!untried || ends.len() == 1 || !tried.contains(&picked));
            let better = (0..ends.len()).any(|n| fake.up[n] && !tried.contains(&n));
            if better && ends.len() > 1 && fake.table.panics() == before {
                prop_assert!(fake.up[picked]);
            }
        }
    }
}
