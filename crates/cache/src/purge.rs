//! Forgetting on demand: by URI, by the beginning of URIs, by tag.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use crate::{
    key,
    store::{Key, Shared, Variants},
};

/// What a purge does with what it finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purge {
    /// It is forgotten.
    #[default]
    Hard,
    /// It counts as stale from now on: it is asked for anew, with its validators where it has some, and may still be given out where stale responses may
    /// ([`crate::CacheRules::stale_while_revalidate`], [`crate::CacheRules::stale_if_error`]).
    Soft,
}

/// Why nothing was purged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PurgeError {
    /// The URI has no scheme or no plain host.
    #[error("the uri is not absolute")]
    NotAbsolute,
}

/// So many purges are remembered for responses that are on their way. One that was asked for before the oldest of them is not stored.
const REMEMBERED: usize = 256;

#[derive(Debug)]
pub(crate) enum Reach {
    All,
    Prefix(Box<[u8]>),
    Tag(Box<str>),
}

impl Reach {
    fn has(&self, key: &[u8], tags: &[Box<str>]) -> bool {
        match self {
            Self::All => true,
            Self::Prefix(prefix) => key::uri(key).starts_with(prefix),
            Self::Tag(tag) => tags.contains(tag),
        }
    }
}

/// The last purges that reach more than one key, for responses on their way.
#[derive(Debug, Default)]
pub(crate) struct Purges {
    epoch: AtomicU64,
    last: Mutex<VecDeque<(u64, Reach)>>,
}

impl Purges {
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    fn remember(&self, reach: Reach) {
        let mut last = self.last.lock();
        if last.len() == REMEMBERED {
            last.pop_front();
        }
        let epoch = self.epoch.load(Ordering::Relaxed) + 1;
        last.push_back((epoch, reach));
        self.epoch.store(epoch, Ordering::Release);
    }

    /// Whether a purge after `epoch` means a response with this key and these tags.
    pub(crate) fn reached(&self, epoch: u64, key: &[u8], tags: &[Box<str>]) -> bool {
        if self.epoch() == epoch {
            return false;
        }
        let last = self.last.lock();
        let complete = last.front().is_none_or(|(oldest, _)| *oldest <= epoch + 1);
        !complete || last.iter().any(|(number, reach)| *number > epoch && reach.has(key, tags))
    }
}

impl Shared {
    /// Purges one key, with all its variants.
    pub(crate) fn purge_key(&self, key: &[u8], how: Purge) -> bool {
        let found = match how {
            Purge::Hard => self.forget(key),
            Purge::Soft => {
                self.outrun(key);
                let found = self.get(key).inspect(mark).is_some();
                self.outrun_disk(key);
                found
            }
        };
        self.counters.purged.fetch_add(u64::from(found), Ordering::Relaxed);
        found
    }

    /// Looks at every key. What is on its way when it begins is not stored; what is asked for after it ended is new.
    pub(crate) fn purge(&self, reach: &Reach, how: Purge) -> u64 {
        let matches = |key: &Key, variants: &Variants| match reach {
            Reach::Tag(tag) => variants.iter().any(|stored| stored.meta.tags.contains(tag)),
            reach => reach.has(key, &[]),
        };
        // First the responses on their way, then what is there: nothing slips in between.
        self.purges.remember(match reach {
            Reach::All => Reach::All,
            Reach::Prefix(prefix) => Reach::Prefix(prefix.clone()),
            Reach::Tag(tag) => Reach::Tag(tag.clone()),
        });
        self.flights.clear();
        let mut purged = 0;
        for (key, variants) in &self.cache {
            if matches(&key, &variants) {
                match how {
                    Purge::Hard => self.cache.invalidate(&**key),
                    Purge::Soft => mark(&variants),
                }
                purged += 1;
            }
        }
        self.counters.purged.fetch_add(purged, Ordering::Relaxed);
        purged
    }
}

fn mark(variants: &Variants) {
    for stored in variants.iter().map(Arc::as_ref) {
        stored.outdated.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_before_a_purge_is_reached() {
        let purges = Purges::default();
        let start = purges.epoch();
        let key = b"https://a:443/x/y\0p";
        assert!(!purges.reached(start, key, &[]));
        purges.remember(Reach::Prefix(b"https://a:443/x/"[..].into()));
        assert!(purges.reached(start, key, &[]) && !purges.reached(purges.epoch(), key, &[]));
        assert!(!purges.reached(start, b"https://a:443/z", &[]));
        let after = purges.epoch();
        purges.remember(Reach::Tag("t".into()));
        assert!(purges.reached(after, key, &["t".into()]) && !purges.reached(after, key, &["u".into()]));
        for _ in 0..REMEMBERED {
            purges.remember(Reach::Tag("other".into()));
        }
        assert!(
            purges.reached(start, b"https://a:443/z", &[]),
            "what is not remembered is taken for reached"
        );
    }
}
