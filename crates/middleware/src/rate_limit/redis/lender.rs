//! The lender and its connection.

use std::{
    error::Error,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use redis::{AsyncConnectionConfig, Client, Script, aio::MultiplexedConnection};
use tokio::sync::Notify;

use super::{
    super::borrow::{BorrowOptions, Borrowing, LendError, Lender, Lent, Loan},
    RedisOptions,
};

/// A bucket is kept as the time at which it is full. Times are microseconds. `KEYS`: the bucket's and the seed's. `ARGV`: the time for one, the burst, the
/// least that is of use and the most, and the seed that the bucket is named by. Answers what is granted, what is left, and how long until the least is
/// there; or, where the instances have another seed now, -1 and that one.
const LEND: &str = r"
local seed = redis.call('GET', KEYS[2])
if not seed then
    redis.call('SET', KEYS[2], ARGV[5])
elseif seed ~= ARGV[5] then
    return {-1, 0, 0, seed}
end
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local each, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local need, want = tonumber(ARGV[3]), tonumber(ARGV[4])
local debt = math.max((tonumber(redis.call('GET', KEYS[1])) or 0) - now, 0)
debt = math.min(debt, each * burst)
local left = math.floor(burst - debt / each + 0.001)
if left < need then
    return {0, left, math.ceil(debt + (need - burst) * each), ''}
end
local granted = math.min(left, want)
debt = debt + granted * each
redis.call('SET', KEYS[1], string.format('%.3f', now + debt), 'PX', math.ceil(debt / 1000) + 1)
return {granted, left - granted, 0, ''}
";

/// The longest that connecting takes. No request waits for it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a store's address is of no use.
#[derive(Debug, thiserror::Error)]
#[error("the address of the store is not one")]
pub struct RedisError(#[source] Box<dyn Error + Send + Sync>);

/// A store for rules that share their buckets. Connects with the first question.
///
/// # Errors
///
/// As [`RedisLender::open`].
pub fn store(options: &RedisOptions) -> Result<Borrowing<RedisLender>, RedisError> {
    let lender = RedisLender::open(options)?;
    Ok(Borrowing::new(lender, BorrowOptions::default().with_timeout(options.timeout)))
}

/// Lends from Valkey or Redis; for [`Borrowing`], of which [`store`] makes one. Clones share the connection.
#[derive(Clone)]
pub struct RedisLender {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    config: AsyncConnectionConfig,
    script: Script,
    prefix: String,
    seed: ArcSwap<[u64; 2]>,
    connection: Mutex<Option<Connected>>,
    connecting: AtomicBool,
    /// An attempt to connect is over.
    tried: Notify,
    connections: AtomicU64,
}

#[derive(Clone)]
struct Connected {
    number: u64,
    connection: MultiplexedConnection,
}

impl RedisLender {
    /// Looks at the address; connects with the first question.
    ///
    /// # Errors
    ///
    /// The address can't be read, or asks for TLS.
    pub fn open(options: &RedisOptions) -> Result<Self, RedisError> {
        let client = Client::open(&*options.url).map_err(|error| RedisError(error.into()))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            // who asks gives up first, by a clock of his own: then the answer is late, and past this the connection is lost
            .set_response_timeout(Some(options.timeout.saturating_mul(4)));
        // until the store has told which
        let random = RandomState::new();
        let seed = [random.hash_one(0), random.hash_one(1)];
        Ok(Self {
            inner: Arc::new(Inner {
                client,
                config,
                script: Script::new(LEND),
                prefix: options.prefix.clone(),
                seed: ArcSwap::from_pointee(seed),
                connection: Mutex::new(None),
                connecting: AtomicBool::new(false),
                tried: Notify::new(),
                connections: AtomicU64::new(0),
            }),
        })
    }
}

impl fmt::Debug for RedisLender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLender").field("prefix", &self.inner.prefix).finish_non_exhaustive()
    }
}

impl Lender for RedisLender {
    fn seed(&self) -> [u64; 2] {
        **self.inner.seed.load()
    }

    async fn lend(&self, loan: Loan) -> Result<Lent, LendError> {
        let connected = self.inner.connected().await?;
        if loan.seed != self.seed() {
            return Err(LendError::Seed);
        }
        // a task of its own: nobody may wait until the connection is known to be lost, and somebody has to know
        let question = tokio::spawn(Arc::clone(&self.inner).ask(connected, loan));
        question.await.unwrap_or_else(|ended| Err(LendError::Failed(ended.into())))
    }
}

fn seed_in_words([a, b]: [u64; 2]) -> String {
    format!("{a:016x}{b:016x}")
}

fn seed_of(words: &str) -> Result<[u64; 2], redis::RedisError> {
    let half = |range| words.get(range).and_then(|text| u64::from_str_radix(text, 16).ok());
    match (half(0..16), half(16..32)) {
        (Some(a), Some(b)) if words.len() == 32 => Ok([a, b]),
        _ => Err((redis::ErrorKind::Parse, "the seed in the store is not ours").into()),
    }
}

fn failed(error: redis::RedisError) -> LendError {
    LendError::Failed(error.into())
}

impl Inner {
    /// A question that gets no answer before the response timeout takes its connection with it: the next one is asked on another.
    async fn ask(self: Arc<Self>, connected: Connected, loan: Loan) -> Result<Lent, LendError> {
        let number = connected.number;
        let answer = self.answer(connected.connection, loan).await;
        if let Err(LendError::Failed(_)) = &answer {
            self.connection.lock().take_if(|connected| connected.number == number);
        }
        answer
    }

    async fn answer(&self, mut connection: MultiplexedConnection, loan: Loan) -> Result<Lent, LendError> {
        let mut call = self.script.key(format!("{}:{}:{:032x}", self.prefix, loan.rule, loan.key));
        call.key(self.seed_key());
        call.arg(loan.quota.each.as_nanos() as f64 / 1000.0).arg(loan.quota.burst.get());
        call.arg(loan.need.get()).arg(loan.want.get()).arg(seed_in_words(loan.seed));
        let (granted, left, wait, seed): (i64, u32, u64, String) =
            call.invoke_async(&mut connection).await.map_err(failed)?;
        let Ok(granted) = u32::try_from(granted) else {
            // one that can't be read is a failure, and the next attempt to connect says why
            self.seed.store(Arc::new(seed_of(&seed).map_err(failed)?));
            return Err(LendError::Seed);
        };
        Ok(Lent { granted, left, wait: Duration::from_micros(wait) })
    }

    fn seed_key(&self) -> String {
        format!("{}:seed", self.prefix)
    }

    /// The connection, which may have to be made first.
    async fn connected(self: &Arc<Self>) -> Result<Connected, LendError> {
        let tried = self.tried.notified();
        if let Some(connected) = self.connection.lock().clone() {
            return Ok(connected);
        }
        if !self.connecting.swap(true, Ordering::AcqRel) {
            let attempt = Attempt(Arc::clone(self));
            // a task of its own: the next question may profit from what this one has no time for
            tokio::spawn(async move {
                match attempt.0.connect().await {
                    Ok(connected) => *attempt.0.connection.lock() = Some(connected),
                    Err(error) => {
                        tracing::debug!(error = &error as &dyn Error, "connecting to the rate limit's store");
                    }
                }
            });
        }
        tried.await;
        let connected = self.connection.lock().clone();
        connected.ok_or_else(|| LendError::Failed("there is no connection".into()))
    }

    /// Connects, and learns which seed the instances have.
    async fn connect(&self) -> Result<Connected, redis::RedisError> {
        let client = &self.client;
        let mut connection = client.get_multiplexed_async_connection_with_config(&self.config).await?;
        let key = self.seed_key();
        // the first one's holds, and comes back with any instance where the store has lost it
        let offer = seed_in_words(**self.seed.load());
        let _: () = redis::cmd("SETNX").arg(&key).arg(&offer).query_async(&mut connection).await?;
        let seed: String = redis::cmd("GET").arg(&key).query_async(&mut connection).await?;
        self.seed.store(Arc::new(seed_of(&seed)?));
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        Ok(Connected { number, connection })
    }
}

/// However an attempt ends, also with its runtime, those that wait for it go on.
struct Attempt(Arc<Inner>);

impl Drop for Attempt {
    fn drop(&mut self) {
        self.0.connecting.store(false, Ordering::Release);
        self.0.tried.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
