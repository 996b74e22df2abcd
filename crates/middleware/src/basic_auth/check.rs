//! Checking passwords without letting that take the machine.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::{hmac, rand::SystemRandom};
use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::Instant};

use super::{BasicAuthOptions, UserStore, users};

/// What is known of a name and a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Right(Arc<str>),
    Wrong,
    /// Too many are being checked.
    Busy,
}

type Digest = [u8; 32];

/// Shared by all services of a layer.
#[derive(Debug)]
pub(super) struct Checker {
    users: UserStore,
    /// `None` where the system had no random bytes: nothing is remembered then.
    key: Option<hmac::Key>,
    recent: Mutex<Recent>,
    hashing: Arc<Semaphore>,
    waiting: AtomicUsize,
    max_waiting: usize,
}

/// A name and a password, with what they are remembered by. Without `Debug`, which would show the password.
pub(super) struct Credentials {
    name: Box<str>,
    password: Box<[u8]>,
    digest: Option<Digest>,
    generation: Arc<users::Generation>,
}

impl Checker {
    pub(super) fn new(users: UserStore, options: &BasicAuthOptions) -> Self {
        Self {
            users,
            key: hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok(),
            recent: Mutex::new(Recent::new(options.remember, options.remember_for)),
            hashing: Arc::new(Semaphore::new(options.max_hashing.clamp(1, Semaphore::MAX_PERMITS))),
            waiting: AtomicUsize::new(0),
            max_waiting: options.max_waiting,
        }
    }

    /// Looks at what was right a while ago. `Err` is what has to be computed.
    pub(super) fn recall(&self, name: &str, password: &[u8]) -> Result<Arc<str>, Credentials> {
        let generation = self.users.load();
        let digest = self.key.as_ref().map(|key| digest(key, generation.number, name, password));
        match digest.as_ref().and_then(|digest| self.recent.lock().get(digest)) {
            Some(user) => Ok(user),
            None => Err(Credentials { name: name.into(), password: password.into(), digest, generation }),
        }
    }

    /// Computes it, on a thread for that, when it is its turn. Who waits no longer has no turn; what is being computed goes on and holds its place.
    pub(super) async fn check(self: Arc<Self>, credentials: Credentials) -> Verdict {
        let Some(waiting) = Waiting::begin(&self) else { return Verdict::Busy };
        let Ok(permit) = Arc::clone(&self.hashing).acquire_owned().await else { return Verdict::Busy };
        drop(waiting);
        // a browser asks for many things at once: the one before may have been the same
        if let Some(user) = credentials.digest.as_ref().and_then(|digest| self.recent.lock().get(digest)) {
            return Verdict::Right(user);
        }
        let Some((hash, known)) = credentials.generation.users.hash_of(&credentials.name) else {
            return Verdict::Wrong;
        };
        let Credentials { name, password, digest, .. } = credentials;
        let right = tokio::task::spawn_blocking(move || {
            let right = users::is_right(&password, &hash);
            drop(permit);
            right
        });
        if !right.await.unwrap_or(false) || !known {
            return Verdict::Wrong;
        }
        let user: Arc<str> = name.into();
        if let Some(digest) = digest {
            self.recent.lock().insert(digest, Arc::clone(&user));
        }
        Verdict::Right(user)
    }
}

#[cfg(test)]
impl Checker {
    /// As if all threads were at work.
    pub(super) async fn hold_all(&self) -> impl Sized + use<> {
        Arc::clone(&self.hashing).acquire_owned().await.unwrap()
    }
}

/// A place among those that wait, given back however the waiting ends.
struct Waiting<'c>(&'c AtomicUsize);

impl<'c> Waiting<'c> {
    fn begin(checker: &'c Checker) -> Option<Self> {
        let place = Self(&checker.waiting);
        let before = place.0.fetch_add(1, Ordering::Relaxed);
        // those that needn't wait are free to go
        (before < checker.max_waiting || checker.hashing.available_permits() > 0).then_some(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Without the key nothing can be learned from it, and nobody can make two that meet in the table.
fn digest(key: &hmac::Key, generation: u64, name: &str, password: &[u8]) -> Digest {
    let mut context = hmac::Context::with_key(key);
    context.update(&generation.to_be_bytes());
    context.update(&(name.len() as u64).to_be_bytes());
    context.update(name.as_bytes());
    context.update(password);
    let mut digest = Digest::default();
    digest.copy_from_slice(context.sign().as_ref());
    digest
}

/// What was right a while ago, at most so many.
#[derive(Debug)]
struct Recent {
    /// With when it was used last.
    known: HashMap<Digest, (Arc<str>, Instant)>,
    /// Oldest first; never longer than `max`.
    order: VecDeque<Digest>,
    max: usize,
    keep: Duration,
}

impl Recent {
    fn new(max: usize, keep: Duration) -> Self {
        Self { known: HashMap::new(), order: VecDeque::new(), max, keep }
    }

    fn get(&mut self, digest: &Digest) -> Option<Arc<str>> {
        let (user, since) = self.known.get_mut(digest)?;
        let now = Instant::now();
        // one that is too old keeps its place in the order until it is pushed out or is right once more
        if now.duration_since(*since) >= self.keep {
            return None;
        }
        // who is active need not be hashed for again, however many others wait for that; another password is another generation of users
        *since = now;
        Some(Arc::clone(user))
    }

    fn insert(&mut self, digest: Digest, user: Arc<str>) {
        if self.max == 0 || self.keep.is_zero() {
            return;
        }
        if self.known.insert(digest, (user, Instant::now())).is_some() {
            // it stands in the order already, once
            return;
        }
        while self.order.len() >= self.max {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
        self.order.push_back(digest);
    }
}

#[cfg(test)]
mod recent_tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_comes_back_pushes_nobody_out() {
        let keep = Duration::from_secs(60);
        let mut recent = Recent::new(4, keep);
        let users = [1, 2].map(|n| ([n; 32], Arc::<str>::from(format!("user {n}"))));
        for _ in 0..20 {
            for (digest, user) in &users {
                assert_eq!(recent.get(digest), None, "too old");
                // two at once had to be computed
                recent.insert(*digest, Arc::clone(user));
                recent.insert(*digest, Arc::clone(user));
            }
            for (digest, user) in &users {
                assert_eq!(recent.get(digest).as_ref(), Some(user));
            }
            tokio::time::advance(keep).await;
        }
        for n in 10..20 {
            recent.insert([n; 32], "another".into());
        }
        assert_eq!((recent.known.len(), recent.order.len()), (4, 4));
    }
}
