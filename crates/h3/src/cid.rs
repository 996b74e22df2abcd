//! Connection ids that name the worker which owns the connection, and the instance if a load balancer is to know.

mod lb;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use quinn::{ConnectionId, ConnectionIdGenerator};
use rustls::crypto::CryptoProvider;

use self::lb::Cipher;

/// The length of ids that name no instance.
const LEN: usize = 8;
/// Which byte of them names the worker; the generation follows.
const WORKER_BYTE: usize = 3;
/// The most that an id may have (RFC 9000 section 17.2).
const MAX_LEN: usize = 20;
/// What stands in a routable id besides the server's id and the nonce: the first octet, the worker, the generation.
const AROUND: usize = 3;
/// The rotation of an id that balancers route by address, as draft-ietf-quic-load-balancers section 3.1 has it.
const UNROUTABLE: u8 = 7;

/// The index of a worker among those that share one UDP port. Every connection id an endpoint issues holds this index in a byte of its
/// own ([`ConnectionIds::worker_byte`]), so that a packet filter can steer the packets of a connection to its worker even after the
/// client's address changed.
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

/// The key of encrypted connection ids. It is not shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CidKey([u8; 16]);

impl CidKey {
    /// All instances behind one balancer, and the balancer, have the same.
    pub const fn new(key: [u8; 16]) -> Self {
        Self(key)
    }
}

impl fmt::Debug for CidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CidKey(..)")
    }
}

/// What ids look like that a load balancer can route by (draft-ietf-quic-load-balancers-21). All instances behind one balancer have the same
/// rotation, lengths and key, and each a server id of its own.
///
/// An id is an octet with the rotation, the server id, the nonce, and two bytes that balancers leave alone: worker and generation. These two
/// stay readable, for a packet filter: who sees ids of one connection at two addresses learns as much about it as they tell. That is one of
/// the few values that an instance has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoutableIds {
    /// Which configuration of the balancer the ids are of. From 0 to 6; default 0.
    pub rotation: u8,
    /// Who this instance is, 1 to 13 bytes.
    pub server_id: Vec<u8>,
    /// Bytes of the nonce. Default 8. At least 4; with the server id at most 17. With a key nonces are counted from a random start, so with
    /// few bytes a restarted instance may repeat some. When all are used up the rest of the ids are unroutable ones.
    pub nonce_len: u8,
    /// Encrypts server id and nonce. Default `None`: anybody can read which instance an id belongs to, and nonces are random.
    pub key: Option<CidKey>,
    /// Whether the first octet tells the id's length, for hardware that wants it there. Default `true`; else its five bits are random.
    pub length_in_first_octet: bool,
}

impl RoutableIds {
    /// Ids of the instance `server_id`.
    pub fn new(server_id: impl Into<Vec<u8>>) -> Self {
        Self {
            rotation: 0,
            server_id: server_id.into(),
            nonce_len: 8,
            key: None,
            length_in_first_octet: true,
        }
    }

    /// Sets [`RoutableIds::rotation`].
    #[must_use]
    pub fn with_rotation(mut self, rotation: u8) -> Self {
        self.rotation = rotation;
        self
    }

    /// Sets [`RoutableIds::nonce_len`].
    #[must_use]
    pub fn with_nonce_len(mut self, nonce_len: u8) -> Self {
        self.nonce_len = nonce_len;
        self
    }

    /// Sets [`RoutableIds::key`].
    #[must_use]
    pub fn with_key(mut self, key: Option<CidKey>) -> Self {
        self.key = key;
        self
    }

    /// Sets [`RoutableIds::length_in_first_octet`].
    #[must_use]
    pub fn with_length_in_first_octet(mut self, length_in_first_octet: bool) -> Self {
        self.length_in_first_octet = length_in_first_octet;
        self
    }

    /// Finds what no id can be made of.
    pub fn check(&self) -> Result<(), CidError> {
        let (server, nonce) = (self.server_id.len(), usize::from(self.nonce_len));
        if self.rotation >= UNROUTABLE {
            return Err(CidError::Rotation(self.rotation));
        }
        if server == 0 {
            return Err(CidError::NoServerId);
        }
        if nonce < 4 {
            return Err(CidError::ShortNonce(self.nonce_len));
        }
        if server + nonce + AROUND > MAX_LEN {
            return Err(CidError::TooLong { server, nonce });
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.server_id.len() + usize::from(self.nonce_len) + AROUND
    }

    /// The first octet; `low` has five bits for it if it does not tell the length.
    fn first(&self, rotation: u8, low: u8) -> u8 {
        // `check` keeps the length within five bits. What balancers know nothing of counts too: section 5.3 speaks of the id
        let low = if self.length_in_first_octet { (self.len() - 1) as u8 } else { low };
        (rotation << 5) | (low & 0x1f)
    }
}

/// Why connection ids can't be made as asked.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CidError {
    /// Rotations have three bits, and 7 is for unroutable ids.
    #[error("the rotation must be from 0 to 6, not {0}")]
    Rotation(u8),
    /// There is no server id.
    #[error("a routable connection id needs a server id of at least 1 byte")]
    NoServerId,
    /// The nonce is shorter than the draft allows.
    #[error("the nonce must have at least 4 bytes, not {0}")]
    ShortNonce(u8),
    /// A connection id of QUIC version 1 has 20 bytes.
    #[error("server id ({server} bytes) and nonce ({nonce}) must have at most 17 bytes together")]
    TooLong {
        /// Bytes of the server id.
        server: usize,
        /// Bytes of the nonce.
        nonce: usize,
    },
    /// The system gives no random bytes, or the cipher took no key: neither happens on a healthy system.
    #[error("the cryptography of this system does not work")]
    Crypto,
}

/// How an endpoint's connection ids are made, and read back. Clones share the nonces, so endpoints of one process that have the same key have
/// clones of one.
///
/// By default an id has 8 bytes that name no instance: the worker in byte 3, the generation in byte 4, the rest random.
#[derive(Clone, Default)]
pub struct ConnectionIds {
    routable: Option<Arc<Routable>>,
    generation: u8,
}

struct Routable {
    ids: RoutableIds,
    cipher: Option<Cipher>,
    /// The first nonce.
    start: u128,
    /// How many were used.
    used: AtomicU64,
}

/// What a connection id says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decoded {
    /// The balancer's configuration; `None` where no balancer is meant to read ids.
    pub rotation: Option<u8>,
    /// The instance; `None` where none is named, as in an unroutable id.
    pub server_id: Option<Vec<u8>>,
    /// What makes it unlike others; empty where no instance is named.
    pub nonce: Vec<u8>,
    /// The worker.
    pub worker: WorkerId,
    /// The generation.
    pub generation: u8,
}

impl ConnectionIds {
    /// Ids that a balancer can route by.
    ///
    /// # Errors
    ///
    /// What [`RoutableIds::check`] finds.
    pub fn routable(ids: RoutableIds) -> Result<Self, CidError> {
        ids.check()?;
        let cipher = ids.key.map(|key| Cipher::new(&key.0)).transpose().map_err(|_| CidError::Crypto)?;
        let mut start = [0; 16];
        aws_lc_rs::rand::fill(&mut start).map_err(|_| CidError::Crypto)?;
        let (start, used) = (u128::from_be_bytes(start), AtomicU64::new(0));
        Ok(Self { routable: Some(Arc::new(Routable { ids, cipher, start, used })), generation: 0 })
    }

    /// The number that this process gives its ids, default 0: of two processes that share a port, as in an upgrade, each knows by it whose a packet is.
    /// A packet of another generation gets no answer.
    #[must_use]
    pub fn with_generation(mut self, generation: u8) -> Self {
        self.generation = generation;
        self
    }

    /// See [`ConnectionIds::with_generation`].
    pub fn generation(&self) -> u8 {
        self.generation
    }

    /// Bytes of every id.
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.routable.as_ref().map_or(LEN, |routable| routable.ids.len())
    }

    /// Which byte of an id is the worker, counted from 0. The next one is the generation.
    pub fn worker_byte(&self) -> usize {
        self.routable.as_ref().map_or(WORKER_BYTE, |routable| routable.ids.len() - 2)
    }

    /// Worker and generation of an id, without a look at the rest: a few instructions. `None` where the length is another.
    pub fn owner(&self, id: &[u8]) -> Option<(WorkerId, u8)> {
        let at = self.worker_byte();
        (id.len() == self.len()).then(|| (WorkerId(id[at]), id[at + 1]))
    }

    /// All that an id says; decrypting it takes up to four AES blocks. `None` if it is none of these: of another length or rotation.
    pub fn decode(&self, id: &[u8]) -> Option<Decoded> {
        let (worker, generation) = self.owner(id)?;
        let Some(routable) = &self.routable else {
            return Some(Decoded { rotation: None, server_id: None, nonce: Vec::new(), worker, generation });
        };
        let rotation = id[0] >> 5;
        let tells = |low| routable.ids.first(rotation, low) == id[0];
        if !tells(id[0]) {
            return None;
        }
        if rotation == UNROUTABLE {
            let (rotation, nonce) = (Some(rotation), Vec::new());
            return Some(Decoded { rotation, server_id: None, nonce, worker, generation });
        }
        if rotation != routable.ids.rotation {
            return None;
        }
        let mut text = id[1..self.worker_byte()].to_vec();
        if let Some(cipher) = &routable.cipher {
            cipher.open(&mut text);
        }
        let nonce = text.split_off(routable.ids.server_id.len());
        Some(Decoded { rotation: Some(rotation), server_id: Some(text), nonce, worker, generation })
    }

    /// A new id; `random` fills bytes.
    fn make(&self, worker: WorkerId, random: impl FnOnce(&mut [u8])) -> ConnectionId {
        let mut bytes = [0; MAX_LEN];
        let (id, at) = (&mut bytes[..self.len()], self.worker_byte());
        // RFC 9000 section 5.1: an observer must not be able to tie two ids to one connection
        random(id);
        if let Some(routable) = &self.routable {
            routable.fill(&mut id[..at]);
        }
        id[at] = worker.0;
        id[at + 1] = self.generation;
        ConnectionId::new(id)
    }
}

impl Routable {
    /// Makes an id of random bytes.
    fn fill(&self, id: &mut [u8]) {
        let (first, text) = id.split_at_mut(1);
        let (server, nonce) = text.split_at_mut(self.ids.server_id.len());
        let mut rotation = self.ids.rotation;
        match &self.cipher {
            // section 5.3: without a key the nonce is to look random
            None => server.copy_from_slice(&self.ids.server_id),
            Some(cipher) => match self.next() {
                Some(next) => {
                    server.copy_from_slice(&self.ids.server_id);
                    nonce.copy_from_slice(&next[16 - nonce.len()..]);
                    cipher.seal(text);
                }
                // section 5.4: no nonce serves twice
                None => rotation = UNROUTABLE,
            },
        }
        first[0] = self.ids.first(rotation, first[0]);
    }

    /// A nonce that was not used before, in its last bytes.
    fn next(&self) -> Option<[u8; 16]> {
        let used = self.used.fetch_add(1, Ordering::Relaxed);
        let all = 1_u128.checked_shl(8 * u32::from(self.ids.nonce_len)).unwrap_or(u128::MAX);
        (u128::from(used) < all).then(|| self.start.wrapping_add(used.into()).to_be_bytes())
    }
}

impl PartialEq for ConnectionIds {
    fn eq(&self, other: &Self) -> bool {
        let ids = |of: &Self| of.routable.as_ref().map(|routable| routable.ids.clone());
        self.generation == other.generation && ids(self) == ids(other)
    }
}

impl Eq for ConnectionIds {}

impl fmt::Debug for ConnectionIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routable = self.routable.as_ref().map(|routable| &routable.ids);
        f.debug_struct("ConnectionIds")
            .field("routable", &routable)
            .field("generation", &self.generation)
            .finish()
    }
}

/// Issues the ids of one endpoint.
pub(crate) struct WorkerIds {
    worker: WorkerId,
    ids: ConnectionIds,
    provider: Arc<CryptoProvider>,
}

impl WorkerIds {
    pub(crate) fn new(worker: WorkerId, ids: ConnectionIds, provider: Arc<CryptoProvider>) -> Self {
        Self { worker, ids, provider }
    }
}

impl ConnectionIdGenerator for WorkerIds {
    fn generate_cid(&mut self) -> ConnectionId {
        self.ids.make(self.worker, |bytes| {
            self.provider
                .secure_random
                .fill(bytes)
                .expect("the same source gave TLS its keys for this connection a moment ago");
        })
    }

    /// An id of another worker or process gets silence, not a stateless reset that would kill a connection which lives on.
    fn validate(&self, id: &ConnectionId) -> Result<(), quinn_proto::InvalidCid> {
        if self.ids.owner(id) == Some((self.worker, self.ids.generation)) {
            Ok(())
        } else {
            Err(quinn_proto::InvalidCid)
        }
    }

    fn cid_len(&self) -> usize {
        self.ids.len()
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
