//! Buckets that instances share, without a question for each request.
//!
//! An instance borrows a portion of a shared bucket from a [`Lender`], gives it out to its own requests, and asks for the
//! next portion in the background before the last is used up. A portion follows demand: what was asked for in the last tenth of a
//! second, at most a tenth of the burst. So at a rate that the limit allows, requests wait for nothing; when the bucket is
//! empty the lender says until when, and nobody asks before.
//!
//! **How exact.** Nothing is lent twice, so all instances together let through what one would, but for portions that lie
//! elsewhere: each holds at most a tenth of the burst of each bucket, for a second at most; what is not used by then
//! is lost. Errors are on the strict side.
//!
//! **Bounds.** A question is waited for [`BorrowOptions::timeout`] at most, whatever the lender does, and a request whose question had no answer in that time
//! waits for none of its other rules: a lender that says nothing holds it up once. One that answers late, but in time, does so for each shared rule, and once more when
//! its seed has changed. A lender that says that it can't, or leaves three questions in a row unanswered (those that overlap are one), is left alone for a while, from a tenth of a second doubling to two, and then asked one
//! question in the background; meanwhile [`super::OnFailure`] decides at once. Buckets that are borrowed from are kept in a table of fixed size.

use std::{
    fmt,
    future::Future,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Notify, time::Instant};

use super::{
    options::RateQuota,
    store::{Bucket, RateStore, Standing, Take, Verdict},
};

mod slot;

use self::slot::{Next, Slot};

/// So many questions in a row may go unanswered, since one is soon late on a busy machine. All that a single stall makes late count as one.
const PATIENCE: u32 = 3;
/// The first rest of a lender that has failed.
const FIRST_REST: Duration = Duration::from_millis(100);
/// The longest.
const LONGEST_REST: Duration = Duration::from_secs(2);
/// Slots that are looked at for a bucket.
const WAYS: usize = 8;
/// What [`BorrowOptions::max_buckets`] is held to: 512 MiB.
const MOST_BUCKETS: usize = 1 << 22;
/// What [`BorrowOptions::timeout`] is held to.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Keeps the buckets that instances share.
pub trait Lender: fmt::Debug + Send + Sync + 'static {
    /// As [`RateStore::seed`].
    fn seed(&self) -> [u64; 2];

    /// Takes from a bucket: as much of [`Loan::want`] as it has, if that is [`Loan::need`] at least, or nothing. It may take as long as
    /// it likes, nobody waits for longer than he would; dropping the future is harmless.
    fn lend(&self, loan: Loan) -> impl Future<Output = Result<Lent, LendError>> + Send;
}

/// What is asked of a [`Lender`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Loan {
    /// The rule's name.
    pub rule: Arc<str>,
    /// As [`Bucket::key`].
    pub key: u128,
    /// As [`Bucket::seed`].
    pub seed: [u64; 2],
    /// The bucket's size and how fast it fills.
    pub quota: RateQuota,
    /// The least that is of use.
    pub need: NonZeroU32,
    /// The most, never below `need`.
    pub want: NonZeroU32,
}

/// A [`Lender`]'s answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lent {
    /// What was taken: nothing, or `need` at least.
    pub granted: u32,
    /// What is left in the bucket.
    pub left: u32,
    /// Where nothing was taken: how long until there is enough.
    pub wait: Duration,
}

/// Why a [`Lender`] gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LendError {
    /// The bucket's key was made with another seed than is in use now.
    #[error("the seed has changed")]
    Seed,
    /// The store can't be asked.
    #[error("the store of the rate limit is out of reach")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// How to borrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BorrowOptions {
    /// How long a request waits for an answer of the lender. Default 50 ms, held to a minute.
    pub timeout: Duration,
    /// How many buckets are borrowed from at once. Default 65,536; 128 bytes each, taken at once, so 8 MiB. Held to 8 ..= 4,194,304, which
    /// is 512 MiB. Past it the one that has been idle for longest among eight is forgotten, with what is left of its portion.
    pub max_buckets: usize,
    /// How many questions are on their way at once. Default 1,024; a request that needs another is as if the
    /// lender were out of reach.
    pub max_questions: usize,
}

impl Default for BorrowOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_millis(50), max_buckets: 1 << 16, max_questions: 1024 }
    }
}

impl BorrowOptions {
    /// Sets [`BorrowOptions::timeout`].
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets [`BorrowOptions::max_buckets`].
    #[must_use]
    pub fn with_max_buckets(mut self, max_buckets: usize) -> Self {
        self.max_buckets = max_buckets;
        self
    }

    /// Sets [`BorrowOptions::max_questions`].
    #[must_use]
    pub fn with_max_questions(mut self, max_questions: usize) -> Self {
        self.max_questions = max_questions;
        self
    }
}

/// A [`RateStore`] that borrows from a [`Lender`]. Clones are the same. Its questions are asked by tasks of the tokio runtime that a
/// request is on; without one it is as if the lender were out of reach.
#[derive(Debug)]
pub struct Borrowing<L> {
    inner: Arc<Inner<L>>,
}

impl<L> Clone for Borrowing<L> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

#[derive(Debug)]
struct Inner<L> {
    lender: L,
    options: BorrowOptions,
    epoch: Instant,
    sets: Box<[Mutex<Box<[Slot]>>]>,
    questions: AtomicUsize,
    /// Nanoseconds after `epoch` until which the lender is left alone.
    rests_until: AtomicU64,
    /// Questions in a row without an answer; [`PATIENCE`] and more where the lender has failed.
    failures: AtomicU32,
    /// Nanoseconds after `epoch` at which the last of them was counted.
    failed_at: AtomicU64,
    /// Whether a question is under way that finds out if the lender is back.
    probing: AtomicBool,
}

/// A question on its way, shared by who waits for it.
#[derive(Debug, Default)]
struct Question {
    answered: Notify,
    outcome: Mutex<Option<Outcome>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Answered,
    Failed,
    Rekey,
}

impl<L: Lender> Borrowing<L> {
    /// Nothing is borrowed yet.
    pub fn new(lender: L, mut options: BorrowOptions) -> Self {
        options.timeout = options.timeout.min(LONGEST_TIMEOUT);
        let sets = (options.max_buckets.min(MOST_BUCKETS) / WAYS).max(1);
        let set = |_| Mutex::new((0..WAYS).map(|_| Slot::default()).collect());
        Self {
            inner: Arc::new(Inner {
                lender,
                options,
                epoch: Instant::now(),
                sets: (0..sets).map(set).collect(),
                questions: AtomicUsize::new(0),
                rests_until: AtomicU64::new(0),
                failures: AtomicU32::new(0),
                failed_at: AtomicU64::new(0),
                probing: AtomicBool::new(false),
            }),
        }
    }

    /// The lender.
    pub fn lender(&self) -> &L {
        &self.inner.lender
    }
}

impl<L: Lender> RateStore for Borrowing<L> {
    fn seed(&self) -> [u64; 2] {
        self.inner.lender.seed()
    }

    fn take(&self, bucket: &Bucket<'_>, cost: NonZeroU32) -> Take {
        if cost > bucket.quota.burst {
            return Take::Now(Verdict::Refused { wait: None, standing: Standing::default() });
        }
        let question = match self.inner.try_take(bucket, cost) {
            Ok(verdict) => return Take::Now(verdict),
            Err(question) => question,
        };
        let inner = Arc::clone(&self.inner);
        let (rule, Bucket { key, seed, quota, .. }) = (Arc::<str>::from(bucket.rule), *bucket);
        Take::Later(Box::pin(async move {
            inner.wait(&Bucket::new(&rule, key, seed, quota), cost, question).await
        }))
    }

    fn give_back(&self, bucket: &Bucket<'_>, cost: NonZeroU32) {
        let mut set = self.inner.set(bucket.key).lock();
        if let Some(slot) = set.iter_mut().find(|slot| slot.is_of(bucket.key, bucket.quota)) {
            slot.give_back(cost.get());
        }
    }
}

impl<L: Lender> Inner<L> {
    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn set(&self, key: u128) -> &Mutex<Box<[Slot]>> {
        // the key is a keyed hash already
        &self.sets[(key as usize) % self.sets.len()]
    }

    /// What can be said without waiting, or the question to wait for.
    fn try_take(self: &Arc<Self>, bucket: &Bucket<'_>, cost: NonZeroU32) -> Result<Verdict, Arc<Question>> {
        let now = self.now();
        let mut set = self.set(bucket.key).lock();
        let Some(slot) = Slot::of(&mut set, bucket.key, bucket.quota) else {
            return Ok(Verdict::Unavailable);
        };
        let rests = now < self.rests_until.load(Ordering::Relaxed);
        let is_well = self.is_well();
        let (result, task) = match slot.take(now, cost.get(), bucket.quota) {
            Next::Verdict(verdict) => return Ok(verdict),
            // if it can't be asked for now, who finds nothing left does
            Next::Refill(verdict) if !is_well || slot.question.is_some() => return Ok(verdict),
            Next::Refill(verdict) => (Ok(verdict), self.ask(slot, bucket, now, cost)),
            Next::Empty if rests => return Ok(Verdict::Unavailable),
            Next::Empty => match slot.question.clone() {
                Some(question) if is_well => return Err(question),
                Some(_) => return Ok(Verdict::Unavailable),
                // after a failure one question finds out if it is over, and nobody waits for it
                None if !is_well && self.probing.swap(true, Ordering::Relaxed) => {
                    return Ok(Verdict::Unavailable);
                }
                None => {
                    let task = self.ask(slot, bucket, now, cost);
                    if task.is_none() {
                        self.probing.store(false, Ordering::Relaxed);
                    }
                    let question =
                        task.as_ref().filter(|_| is_well).map(|task| Arc::clone(&task.asked.question));
                    (question.map_or(Ok(Verdict::Unavailable), Err), task)
                }
            },
        };
        // a runtime that is shutting down drops the task here and now, which takes the lock
        drop(set);
        if let Some(task) = task {
            task.runtime.spawn(task.asked.run(task.loan));
        }
        result
    }

    /// A question to send on its way.
    fn ask(
        self: &Arc<Self>,
        slot: &mut Slot,
        bucket: &Bucket<'_>,
        now: u64,
        need: NonZeroU32,
    ) -> Option<Task<L>> {
        let runtime = Handle::try_current().ok()?;
        if self.questions.fetch_add(1, Ordering::Relaxed) >= self.options.max_questions {
            self.questions.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let question = Arc::new(Question::default());
        slot.question = Some(Arc::clone(&question));
        let Bucket { rule, key, seed, quota } = *bucket;
        let loan = Loan { rule: rule.into(), key, seed, quota, need, want: slot.wants(now, need, quota) };
        let asked = Asked { inner: Arc::clone(self), key, quota, question, begun: now, outcome: None };
        Some(Task { runtime, asked, loan })
    }

    /// Waits for answers until one is of use, or the time is over.
    async fn wait(
        self: Arc<Self>,
        bucket: &Bucket<'_>,
        cost: NonZeroU32,
        mut question: Arc<Question>,
    ) -> Verdict {
        let deadline = Instant::now() + self.options.timeout;
        loop {
            match tokio::time::timeout_at(deadline, question.outcome()).await {
                Err(_) | Ok(Outcome::Failed) => return Verdict::Unavailable,
                Ok(Outcome::Rekey) => return Verdict::Rekey,
                Ok(Outcome::Answered) => {}
            }
            match self.try_take(bucket, cost) {
                Ok(verdict) => return verdict,
                Err(next) => question = next,
            }
        }
    }

    fn is_well(&self) -> bool {
        self.failures.load(Ordering::Relaxed) < PATIENCE
    }

    /// A question that was begun then has no answer. `at_once`: there is no use in patience.
    fn failed(&self, begun: u64, at_once: bool) {
        // those that were under way at the last failure are of the same one, which they must not make longer
        let last = self.failed_at.load(Ordering::Relaxed);
        let counts = begun >= last
            && self
                .failed_at
                .compare_exchange(last, self.now(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if !counts {
            return;
        }
        let least = if at_once { PATIENCE - 1 } else { 0 };
        let before = self.failures.fetch_max(least, Ordering::Relaxed).max(least);
        self.failures.fetch_add(1, Ordering::Relaxed);
        let Some(rests) = (before + 1).checked_sub(PATIENCE) else { return };
        if rests == 0 {
            tracing::warn!(timeout = ?self.options.timeout, "the store of the rate limit is out of reach");
        }
        let rest = FIRST_REST.saturating_mul(1 << rests.min(8)).min(LONGEST_REST);
        let rest = u64::try_from(rest.as_nanos()).unwrap_or(u64::MAX);
        self.rests_until.store(self.now().saturating_add(rest), Ordering::Relaxed);
    }
}

impl Question {
    async fn outcome(&self) -> Outcome {
        loop {
            let answered = self.answered.notified();
            if let Some(outcome) = *self.outcome.lock() {
                return outcome;
            }
            answered.await;
        }
    }
}

/// A question that is not on its way yet.
struct Task<L: Lender> {
    runtime: Handle,
    asked: Asked<L>,
    loan: Loan,
}

/// A question's task. However it ends, also with its runtime, the slot is free for the next question and nobody waits on.
struct Asked<L: Lender> {
    inner: Arc<Inner<L>>,
    key: u128,
    quota: RateQuota,
    question: Arc<Question>,
    /// Nanoseconds after the epoch.
    begun: u64,
    outcome: Option<Outcome>,
}

impl<L: Lender> Asked<L> {
    async fn run(mut self, loan: Loan) {
        let inner = Arc::clone(&self.inner);
        let need = loan.need;
        let answer = tokio::time::timeout(inner.options.timeout, inner.lender.lend(loan)).await;
        self.outcome = match answer {
            Ok(Ok(lent)) => {
                if inner.failures.swap(0, Ordering::Relaxed) >= PATIENCE {
                    tracing::info!("the store of the rate limit is back");
                }
                inner.rests_until.store(0, Ordering::Relaxed);
                let mut set = inner.set(self.key).lock();
                if let Some(slot) = set.iter_mut().find(|slot| slot.is_of(self.key, self.quota)) {
                    slot.put(inner.now(), need, lent);
                }
                Some(Outcome::Answered)
            }
            Ok(Err(LendError::Seed)) => Some(Outcome::Rekey),
            Ok(Err(LendError::Failed(error))) => {
                tracing::debug!(error = &*error, "the store of the rate limit has failed");
                inner.failed(self.begun, true);
                Some(Outcome::Failed)
            }
            // as one that ends with its runtime
            Err(_) => None,
        };
    }
}

impl<L: Lender> Drop for Asked<L> {
    fn drop(&mut self) {
        if self.outcome.is_none() {
            self.inner.failed(self.begun, false);
        }
        let outcome = self.outcome.unwrap_or(Outcome::Failed);
        self.inner.probing.store(false, Ordering::Relaxed);
        self.inner.questions.fetch_sub(1, Ordering::Relaxed);
        if let Some(slot) =
            self.inner.set(self.key).lock().iter_mut().find(|slot| slot.is_of(self.key, self.quota))
        {
            slot.question = None;
        }
        *self.question.outcome.lock() = Some(outcome);
        self.question.answered.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
