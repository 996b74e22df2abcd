//! Shared buckets in Valkey or Redis.
//!
//! One script for each question, and one key for each bucket that is not full: it holds the microsecond at which the bucket
//! will be, and goes away by itself at that time. Redis 5 or later, any Valkey; the time is the server's, so that instances need not agree.
//! The keys of the hash that names buckets are in the store too, made by the first instance that comes, so that all of them
//! count in the same buckets and nobody else can tell which. Where the store loses them, by a flush or for want of room, the next question of any instance puts
//! its own there, and the others take them over with theirs.
//!
//! One connection for all questions, made again in the background when it is lost. Plain TCP or a unix socket: there is no TLS, so
//! the way to another machine has to be one that is trusted, or a tunnel.
//!
//! [`RedisOptions`] are there without the feature `redis` too, for who keeps options but need not connect.

use std::{fmt, time::Duration};

#[cfg(feature = "redis")]
mod lender;

#[cfg(feature = "redis")]
pub use self::lender::{RedisError, RedisLender, store};

/// Where the store is.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisOptions {
    /// `redis://[user:password@]host[:port][/database]`, or `unix:///path[?db=N&pass=…]`. There is no default, and no TLS.
    pub url: String,
    /// What keys begin with. Default `portcullis:rate`. Instances with the same share their buckets.
    pub prefix: String,
    /// How long a request waits for an answer, as [`super::borrow::BorrowOptions::timeout`]. A connection that has left a question without one for four times as long
    /// is given up, and the next question is asked on another. Default 50 ms.
    pub timeout: Duration,
}

impl RedisOptions {
    /// The store at this address.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), prefix: "portcullis:rate".to_owned(), timeout: Duration::from_millis(50) }
    }

    /// Sets [`RedisOptions::prefix`].
    #[must_use]
    pub fn with_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets [`RedisOptions::timeout`].
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // the URL may hold a password
        let (prefix, timeout) = (&self.prefix, &self.timeout);
        f.debug_struct("RedisOptions")
            .field("prefix", prefix)
            .field("timeout", timeout)
            .finish_non_exhaustive()
    }
}
