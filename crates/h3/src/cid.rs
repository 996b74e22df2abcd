//! Connection ids that name the worker which owns the connection.

use std::{fmt, sync::Arc, time::Duration};

use quinn::{ConnectionId, ConnectionIdGenerator};
use rustls::crypto::CryptoProvider;

/// The length of every connection id we issue.
const LEN: usize = 8;
/// Which byte of it names the worker.
const WORKER_BYTE: usize = 3;

/// The index of a worker among those that share one UDP port. Byte 3 of every connection id an endpoint issues is
/// this index, so that a packet filter can steer the packets of a connection to its worker even after the client's
/// address changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(u8);

impl WorkerId {
    /// Worker number `index`, counted from 0.
    pub const fn new(index: u8) -> Self {
        Self(index)
    }

    /// The index.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl From<u8> for WorkerId {
    fn from(index: u8) -> Self {
        Self(index)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Issues ids of 8 bytes: the worker in byte 3, the rest random.
pub(crate) struct WorkerIds {
    worker: WorkerId,
    provider: Arc<CryptoProvider>,
}

impl WorkerIds {
    pub(crate) fn new(worker: WorkerId, provider: Arc<CryptoProvider>) -> Self {
        Self { worker, provider }
    }
}

impl ConnectionIdGenerator for WorkerIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; LEN];
        // RFC 9000 section 5.1: an observer must not be able to tie two ids to one connection
        self.provider
            .secure_random
            .fill(&mut id)
            .expect("the same source gave TLS its keys for this connection a moment ago");
        id[WORKER_BYTE] = self.worker.0;
        ConnectionId::new(&id)
    }

    /// An id of another worker gets silence, not a stateless reset that would kill a connection which lives on.
    fn validate(&self, id: &ConnectionId) -> Result<(), quinn_proto::InvalidCid> {
        if id.len() == LEN && id[WORKER_BYTE] == self.worker.0 {
            Ok(())
        } else {
            Err(quinn_proto::InvalidCid)
        }
    }

    fn cid_len(&self) -> usize {
        LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(worker: u8) -> WorkerIds {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        WorkerIds::new(WorkerId::new(worker), Arc::new(provider))
    }

    #[test]
    fn byte_three_is_the_worker_and_the_rest_is_random() {
        let mut ids = ids(200);
        let (a, b) = (ids.generate_cid(), ids.generate_cid());
        assert_eq!((a.len(), a[WORKER_BYTE], b[WORKER_BYTE]), (LEN, 200, 200));
        assert_ne!(a, b);
    }

    #[test]
    fn only_own_ids_are_recognised() {
        let (mut one, two) = (ids(1), ids(2));
        let id = one.generate_cid();
        assert!(one.validate(&id).is_ok());
        assert!(two.validate(&id).is_err());
        assert!(one.validate(&ConnectionId::new(&id[..4])).is_err());
    }
}
