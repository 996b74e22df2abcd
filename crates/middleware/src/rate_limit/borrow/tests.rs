//! With a lender inside the test and a paused clock.

use std::{collections::HashMap, sync::atomic::AtomicBool};

use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A bucket for each key, by the same arithmetic as the script.
#[derive(Clone, Debug, Default)]
struct Bank(Arc<State>);

#[derive(Debug, Default)]
struct State {
    buckets: Mutex<HashMap<u128, Instant>>,
    lent: AtomicU32,
    loans: AtomicU32,
    delay: Mutex<Duration>,
    is_down: AtomicBool,
    seed: AtomicU64,
}

impl Lender for Bank {
    fn seed(&self) -> [u64; 2] {
        [1, self.0.seed.load(Ordering::Relaxed)]
    }

    async fn lend(&self, loan: Loan) -> Result<Lent, LendError> {
        self.0.loans.fetch_add(1, Ordering::Relaxed);
        let delay = *self.0.delay.lock();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if self.0.is_down.load(Ordering::Relaxed) {
            return Err(LendError::Failed("down".into()));
        }
        if loan.seed != self.seed() {
            return Err(LendError::Seed);
        }
        let now = Instant::now();
        let mut buckets = self.0.buckets.lock();
        let full_at = buckets.entry(loan.key).or_insert(now);
        let debt = full_at.saturating_duration_since(now);
        let room = loan.quota.fills_in().saturating_sub(debt);
        let left = (room.as_nanos() / loan.quota.each.as_nanos()) as u32;
        let granted = left.min(loan.want.get());
        if granted < loan.need.get() {
            let wait = debt + loan.quota.each * loan.need.get() - loan.quota.fills_in();
            return Ok(Lent { granted: 0, left, wait });
        }
        *full_at = now + debt + loan.quota.each * granted;
        self.0.lent.fetch_add(granted, Ordering::Relaxed);
        Ok(Lent { granted, left: left - granted, wait: Duration::ZERO })
    }
}

fn n(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

fn store(bank: &Bank) -> Borrowing<Bank> {
    Borrowing::new(bank.clone(), BorrowOptions::default())
}

fn bucket(key: u128, each: Duration, burst: u32) -> Bucket<'static> {
    Bucket::new("rule", key, [1, 0], RateQuota { each, burst: n(burst) })
}

async fn take(store: &Borrowing<Bank>, bucket: &Bucket<'_>) -> Verdict {
    match store.take(bucket, NonZeroU32::MIN) {
        Take::Now(verdict) => verdict,
        Take::Later(later) => later.await,
    }
}

fn is_allowed(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Allowed(_))
}

fn loans(bank: &Bank) -> u32 {
    bank.0.loans.load(Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn two_instances_share_one_bucket() {
    let bank = Bank::default();
    *bank.0.delay.lock() = MS;
    let bucket = bucket(5, MS * 10, 20);
    let stores = [store(&bank), store(&bank)];
    let mut passed = [0, 0];
    // ten seconds at three times the limit, split unevenly
    for step in 0..3000u32 {
        tokio::time::advance(Duration::from_nanos(3_333_333)).await;
        let instance = usize::from(step % 4 == 0);
        passed[instance] += u32::from(is_allowed(take(&stores[instance], &bucket).await));
    }
    let total = passed[0] + passed[1];
    // the virtual clock also moves while a request waits
    let lent = bank.0.lent.load(Ordering::Relaxed);
    assert!(total <= lent && f64::from(total) > f64::from(lent) * 0.95, "{total} of {lent} that were lent");
    assert!(passed.iter().all(|passed| *passed > 100), "{passed:?}");
    assert!(loans(&bank) < 3000, "{} questions for 3000 requests", loans(&bank));
}

#[tokio::test(start_paused = true)]
async fn portions_grow_with_demand_and_are_fetched_ahead() {
    let bank = Bank::default();
    *bank.0.delay.lock() = MS;
    let store = store(&bank);
    let bucket = bucket(5, Duration::from_micros(100), 10_000);
    let mut waited = 0;
    for _ in 0..3000 {
        tokio::time::sleep(MS).await;
        match store.take(&bucket, NonZeroU32::MIN) {
            Take::Now(verdict) => assert!(is_allowed(verdict)),
            Take::Later(later) => {
                waited += 1;
                assert!(is_allowed(later.await));
            }
        }
    }
    assert!(waited < 10, "{waited} requests waited");
    assert!(loans(&bank) < 150, "{} questions", loans(&bank));
}

#[tokio::test(start_paused = true)]
async fn a_refused_bucket_is_not_asked_about_again_before_its_time() {
    let bank = Bank::default();
    let store = store(&bank);
    let bucket = bucket(5, SECOND, 2);
    assert!(is_allowed(take(&store, &bucket).await) && is_allowed(take(&store, &bucket).await));
    let Verdict::Refused { wait: Some(wait), .. } = take(&store, &bucket).await else {
        panic!("it is empty")
    };
    assert_eq!(wait, SECOND);
    for _ in 0..100 {
        assert!(matches!(store.take(&bucket, NonZeroU32::MIN), Take::Now(Verdict::Refused { .. })));
    }
    assert_eq!(loans(&bank), 3);
    tokio::time::advance(SECOND).await;
    assert!(is_allowed(take(&store, &bucket).await));
    let never = store.take(&bucket, n(3));
    assert!(matches!(never, Take::Now(Verdict::Refused { wait: None, .. })), "{never:?}");
}

#[tokio::test(start_paused = true)]
async fn a_thousand_at_once_are_one_question_at_a_time() {
    let bank = Bank::default();
    *bank.0.delay.lock() = MS;
    let store = store(&bank);
    let bucket = bucket(5, SECOND, 100);
    let tasks: Vec<_> = (0..1000)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { is_allowed(take(&store, &bucket).await) })
        })
        .collect();
    let mut passed = 0;
    for task in tasks {
        passed += u32::from(task.await.unwrap());
    }
    assert_eq!(passed, 100);
    assert!(loans(&bank) <= 20, "{} questions", loans(&bank));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_longer_than_the_bound() {
    let bank = Bank::default();
    *bank.0.delay.lock() = SECOND * 3600;
    let store = store(&bank);
    let bucket = bucket(5, SECOND, 100);
    let begin = Instant::now();
    let (a, b) = tokio::join!(take(&store, &bucket), take(&store, &bucket));
    assert_eq!((a, b), (Verdict::Unavailable, Verdict::Unavailable));
    assert_eq!(begin.elapsed(), MS * 50);
    for _ in 0..2 {
        // the question itself fails in the same moment
        tokio::time::sleep(MS).await;
        let begin = Instant::now();
        assert_eq!((take(&store, &bucket).await, begin.elapsed()), (Verdict::Unavailable, MS * 50));
    }
    tokio::time::sleep(MS).await;
    // it rests now, and then one question finds out, for which nobody waits
    for _ in 0..10 {
        assert!(matches!(store.take(&bucket, NonZeroU32::MIN), Take::Now(Verdict::Unavailable)));
    }
    assert_eq!(loans(&bank), 3);
    tokio::time::sleep(MS * 101).await;
    for key in 0..100 {
        let other = self::bucket(key + 10, SECOND, 100);
        assert!(matches!(store.take(&other, NonZeroU32::MIN), Take::Now(Verdict::Unavailable)), "{key}");
    }
    tokio::time::sleep(MS).await;
    assert_eq!(loans(&bank), 4);
    // back again: a question of the next rest finds it out
    *bank.0.delay.lock() = MS;
    let mut passed = false;
    for _ in 0..40 {
        tokio::time::sleep(MS * 100).await;
        passed |= is_allowed(take(&store, &bucket).await);
    }
    assert!(passed);
}

#[tokio::test(start_paused = true)]
async fn a_lender_that_says_no_is_left_alone_for_longer_each_time() {
    let bank = Bank::default();
    bank.0.is_down.store(true, Ordering::Relaxed);
    let store = store(&bank);
    let bucket = bucket(5, SECOND, 100);
    for _ in 0..10_000 {
        assert_eq!(take(&store, &bucket).await, Verdict::Unavailable);
        tokio::time::sleep(MS).await;
    }
    // 0.1, 0.2, 0.4, 0.8, 1.6 and then every 2 s
    assert!((8..=10).contains(&loans(&bank)), "{}", loans(&bank));
}

#[tokio::test(start_paused = true)]
async fn a_stall_is_one_failure_however_many_wait() {
    let bank = Bank::default();
    *bank.0.delay.lock() = SECOND * 3600;
    let store = store(&bank);
    // at once, and one after another while the stall lasts
    let mut takes = Vec::new();
    for key in 1..=100 {
        takes.push(store.take(&bucket(key, SECOND, 100), NonZeroU32::MIN));
        if key > 90 {
            tokio::time::sleep(MS * 4).await;
        }
    }
    for take in takes {
        let Take::Later(later) = take else { panic!("it has to ask") };
        assert_eq!(later.await, Verdict::Unavailable);
    }
    assert_eq!((loans(&bank), store.inner.failures.load(Ordering::Relaxed)), (100, 1));
    *bank.0.delay.lock() = MS;
    assert!(is_allowed(take(&store, &bucket(101, SECOND, 100)).await), "it goes on as before");
}

#[tokio::test(start_paused = true)]
async fn one_failure_of_many_questions_is_one_rest() {
    let bank = Bank::default();
    *bank.0.delay.lock() = MS * 10;
    bank.0.is_down.store(true, Ordering::Relaxed);
    let store = store(&bank);
    let takes: Vec<_> = (1..=100).map(|key| store.take(&bucket(key, SECOND, 100), NonZeroU32::MIN)).collect();
    for take in takes {
        let Take::Later(later) = take else { panic!("it has to ask") };
        assert_eq!(later.await, Verdict::Unavailable);
    }
    tokio::time::sleep(MS * 101).await;
    assert_eq!(loans(&bank), 100);
    bank.0.is_down.store(false, Ordering::Relaxed);
    let bucket = bucket(101, SECOND, 100);
    assert_eq!(take(&store, &bucket).await, Verdict::Unavailable, "nobody waits for what finds it out");
    tokio::time::sleep(MS * 11).await;
    assert_eq!(loans(&bank), 101);
    assert!(is_allowed(take(&store, &bucket).await), "and it is back");
}

#[tokio::test(start_paused = true)]
async fn absurd_options_are_held_to_what_there_is() {
    let options = BorrowOptions::default().with_timeout(Duration::MAX).with_max_buckets(usize::MAX);
    let bank = Bank::default();
    *bank.0.delay.lock() = SECOND * 3600;
    let store = Borrowing::new(bank, options.with_max_questions(usize::MAX));
    assert_eq!(store.inner.sets.len() * WAYS, 1 << 22);
    let begin = Instant::now();
    assert_eq!(take(&store, &bucket(5, SECOND, 100)).await, Verdict::Unavailable);
    assert_eq!(begin.elapsed(), SECOND * 60);
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_ends_the_rest() {
    let bank = Bank::default();
    let store = store(&bank);
    // one question takes its time, and another one says no meanwhile
    *bank.0.delay.lock() = MS * 20;
    let slow = store.take(&bucket(5, SECOND, 100), NonZeroU32::MIN);
    tokio::time::sleep(MS).await;
    store.inner.failed(store.inner.now(), true);
    assert!(matches!(store.take(&bucket(6, SECOND, 100), NonZeroU32::MIN), Take::Now(Verdict::Unavailable)));
    let Take::Later(slow) = slow else { panic!("it has to ask") };
    assert!(is_allowed(slow.await));
    assert!(is_allowed(take(&store, &bucket(6, SECOND, 100)).await));
}

#[tokio::test(start_paused = true)]
async fn a_changed_quota_asks_anew() {
    let bank = Bank::default();
    let store = store(&bank);
    let day = bucket(5, SECOND * 86_400, 1);
    assert!(is_allowed(take(&store, &day).await));
    assert!(matches!(take(&store, &day).await, Verdict::Refused { wait: Some(wait), .. } if wait > SECOND));
    // the bank keeps how full it is as a time, and holds it to the new bucket as the script does
    bank.0.buckets.lock().insert(5, Instant::now());
    let quick = bucket(5, MS * 10, 100);
    for _ in 0..5 {
        tokio::time::sleep(MS * 10).await;
        assert!(is_allowed(take(&store, &quick).await), "it is not refused by the old quota");
    }
    // and what was lent by the old one is no part of the new one
    let before = bank.0.lent.load(Ordering::Relaxed);
    let _ = bank.0.buckets.lock().insert(5, Instant::now() + SECOND * 86_400);
    assert!(matches!(take(&store, &day).await, Verdict::Refused { .. }));
    assert_eq!(bank.0.lent.load(Ordering::Relaxed), before);
}

#[tokio::test(start_paused = true)]
async fn requests_by_the_old_quota_and_by_the_new_one_do_not_disturb_each_other() {
    let bank = Bank::default();
    *bank.0.delay.lock() = MS;
    let store = store(&bank);
    let [old, new] = [bucket(5, MS * 20, 50), bucket(5, MS * 10, 100)];
    for _ in 0..5 {
        let takes = tokio::join!(take(&store, &old), take(&store, &new), take(&store, &old));
        assert!([takes.0, takes.1, takes.2].into_iter().all(is_allowed), "{takes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_used_lapses() {
    let bank = Bank::default();
    let store = store(&bank);
    let bucket = bucket(5, MS, 100);
    for _ in 0..50 {
        tokio::time::sleep(MS).await;
        assert!(is_allowed(take(&store, &bucket).await));
    }
    let before = loans(&bank);
    assert!(
        matches!(store.take(&bucket, NonZeroU32::MIN), Take::Now(Verdict::Allowed(_))),
        "a portion is there"
    );
    tokio::time::sleep(SECOND * 2).await;
    assert!(matches!(store.take(&bucket, NonZeroU32::MIN), Take::Later(_)), "and gone");
    tokio::time::sleep(MS).await;
    assert_eq!(loans(&bank), before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_seed_is_told() {
    let bank = Bank::default();
    bank.0.seed.store(9, Ordering::Relaxed);
    let store = store(&bank);
    let old = bucket(5, SECOND, 100);
    assert_eq!(take(&store, &old).await, Verdict::Rekey);
    assert!(is_allowed(take(&store, &Bucket { seed: [1, 9], ..old }).await));
}

#[tokio::test(start_paused = true)]
async fn buckets_and_questions_are_bounded() {
    let bank = Bank::default();
    *bank.0.delay.lock() = MS;
    let options = BorrowOptions::default().with_max_buckets(8).with_max_questions(4);
    let store = Borrowing::new(bank.clone(), options);
    let takes: Vec<_> = (1..=10).map(|key| store.take(&bucket(key, SECOND, 10), NonZeroU32::MIN)).collect();
    let waiting = takes.iter().filter(|take| matches!(take, Take::Later(_))).count();
    assert_eq!(waiting, 4);
    for take in takes {
        if let Take::Later(later) = take {
            assert!(is_allowed(later.await));
        }
    }
    for key in 1..=1000 {
        assert!(is_allowed(take(&store, &bucket(key, SECOND, 10)).await), "{key}");
    }
}

#[test]
fn without_a_runtime_it_is_out_of_reach() {
    let store = store(&Bank::default());
    for _ in 0..2 {
        let take = store.take(&bucket(5, SECOND, 10), NonZeroU32::MIN);
        assert!(matches!(take, Take::Now(Verdict::Unavailable)), "{take:?}");
    }
}

#[test]
fn a_runtime_that_ends_leaves_nothing_behind() {
    let bank = Bank::default();
    *bank.0.delay.lock() = SECOND;
    let store = store(&bank);
    let bucket = bucket(5, SECOND, 10);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let first = runtime();
    let later = first.block_on(async { store.take(&bucket, NonZeroU32::MIN) });
    assert!(matches!(later, Take::Later(_)));
    drop(first);
    *bank.0.delay.lock() = Duration::ZERO;
    let passed = runtime().block_on(async {
        let Take::Later(later) = later else { panic!("it has to ask") };
        assert_eq!(later.await, Verdict::Unavailable);
        tokio::time::timeout(SECOND * 10, async {
            while !is_allowed(take(&store, &bucket).await) {
                tokio::time::sleep(MS * 10).await;
            }
        })
        .await
    });
    assert!(passed.is_ok());
}
