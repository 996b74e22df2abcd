//! Where sessions are kept for resumption.

use std::sync::Arc;

use rustls::server::{ServerSessionMemoryCache, StoresServerSessions};

const SHARDS: usize = 16;

/// A bounded store in memory, split by session id so that cores seldom wait for each other. Within a shard the
/// oldest session goes first. A session is taken out when it is used, so a TLS 1.3 ticket works once
/// (RFC 8446 section 8.1).
#[derive(Debug)]
pub(crate) struct SessionStore([Arc<ServerSessionMemoryCache>; SHARDS]);

impl SessionStore {
    /// Keeps about `sessions` sessions, 16 at least.
    pub(crate) fn new(sessions: usize) -> Arc<Self> {
        let each = sessions.div_ceil(SHARDS).max(1);
        Arc::new(Self(std::array::from_fn(|_| ServerSessionMemoryCache::new(each))))
    }

    /// Session ids are random bytes that the server chose; a client that invents one finds nothing in any shard.
    fn shard(&self, id: &[u8]) -> &ServerSessionMemoryCache {
        &self.0[usize::from(id.first().copied().unwrap_or(0)) % SHARDS]
    }
}

impl StoresServerSessions for SessionStore {
    fn put(&self, id: Vec<u8>, session: Vec<u8>) -> bool {
        self.shard(&id).put(id, session)
    }

    fn get(&self, id: &[u8]) -> Option<Vec<u8>> {
        self.shard(id).get(id)
    }

    fn take(&self, id: &[u8]) -> Option<Vec<u8>> {
        self.shard(id).take(id)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_taken_once() {
        let store = SessionStore::new(64);
        assert!(store.put(vec![200, 1], vec![9]));
        assert_eq!(store.take(&[200, 1]), Some(vec![9]));
        assert_eq!(store.take(&[200, 1]), None);
        assert_eq!(store.take(&[]), None);
    }

    #[test]
    fn it_stays_bounded() {
        let store = SessionStore::new(64);
        for i in 0..10_000_u32 {
            store.put(i.to_le_bytes().to_vec(), vec![0]);
        }
        let kept = (0..10_000_u32).filter(|i| store.get(&i.to_le_bytes()).is_some()).count();
        assert!((16..=128).contains(&kept), "{kept} sessions kept");
    }
}
