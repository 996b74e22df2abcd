//! Counts the open connections of each client.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::options::{ClientLimit, OverClient};

/// Locks are held for a look-up each; with so many, workers seldom want the same one.
const SHARDS: usize = 64;

/// A table that has room for fewer is left as it is.
const KEPT_CAPACITY: usize = 64;

/// A client: the leading bits of an address. Their number is part of it, so that counts survive a change of the
/// limit's prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClientKey {
    bits: u128,
    prefix: u8,
}

impl ClientKey {
    pub(crate) fn new(ip: IpAddr, limit: &ClientLimit) -> Self {
        // an IPv4 address has its place among the mapped ones: no IPv6 client has the same bits
        let (ip, prefix) = match ip.to_canonical() {
            IpAddr::V4(v4) => (v4.to_ipv6_mapped(), 96 + limit.ipv4_prefix.min(32)),
            IpAddr::V6(v6) => (v6, limit.ipv6_prefix.min(128)),
        };
        let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
        Self { bits: Ipv6Addr::to_bits(ip) & mask, prefix }
    }
}

/// Why a client's connection was refused; the connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{ip} has {max} connections open already, as many as a client may have")]
#[non_exhaustive]
pub struct ClientRefused {
    /// The client.
    pub ip: IpAddr,
    /// How many it may have.
    pub max: usize,
    /// Whether the limit asks for a reset ([`OverClient::Reset`]).
    pub reset: bool,
}

pub(crate) struct Clients {
    limit: ArcSwapOption<ClientLimit>,
    shards: Box<[Mutex<HashMap<ClientKey, u32, RandomState>>]>,
    /// An odd number by chance. Addresses that fall into one shard all the same only share its lock.
    spread: u64,
    /// Connections kept back by [`OverClient::Delay`]: while there are any, a release is told.
    pub(crate) delayed: AtomicUsize,
    pub(crate) freed: Notify,
    /// How many times they were told.
    pub(crate) told: AtomicU64,
}

/// The answer of [`Clients::enter`].
pub(crate) enum Enter {
    /// Counted under the key, or not to be counted at all.
    In(Option<ClientKey>),
    /// The client has its share.
    Full(Arc<ClientLimit>),
}

impl Clients {
    pub(crate) fn new(limit: Option<ClientLimit>) -> Self {
        // keyed by chance, so that nobody can choose addresses that fall together
        let hasher = RandomState::new();
        Self {
            limit: ArcSwapOption::from_pointee(limit),
            shards: (0..SHARDS).map(|_| Mutex::new(HashMap::with_hasher(hasher.clone()))).collect(),
            spread: hasher.hash_one(0) | 1,
            delayed: AtomicUsize::new(0),
            freed: Notify::new(),
            told: AtomicU64::new(0),
        }
    }

    pub(crate) fn set(&self, limit: Option<ClientLimit>) {
        self.limit.store(limit.map(Arc::new));
    }

    pub(crate) fn limit(&self) -> Option<Arc<ClientLimit>> {
        self.limit.load_full()
    }

    fn shard(&self, key: &ClientKey) -> &Mutex<HashMap<ClientKey, u32, RandomState>> {
        let mixed = (key.bits as u64 ^ (key.bits >> 64) as u64).wrapping_mul(self.spread);
        // the upper bits depend on all of those below
        &self.shards[(mixed >> 58) as usize % SHARDS]
    }

    /// Counts one more connection of a client, if it may have one.
    pub(crate) fn enter(&self, ip: IpAddr) -> Enter {
        let limit = self.limit.load();
        let Some(limit) = limit.as_ref().filter(|limit| limit.counts(ip)) else { return Enter::In(None) };
        let key = ClientKey::new(ip, limit);
        let mut shard = self.shard(&key).lock();
        match shard.entry(key) {
            Entry::Occupied(mut entry) => {
                if *entry.get() as usize >= limit.max {
                    return Enter::Full(Arc::clone(limit));
                }
                *entry.get_mut() += 1;
            }
            Entry::Vacant(entry) => {
                entry.insert(1);
            }
        }
        Enter::In(Some(key))
    }

    /// One connection of the client has ended. True if somebody waits to be told.
    pub(crate) fn leave(&self, key: ClientKey) -> bool {
        {
            let mut shard = self.shard(&key).lock();
            if let Entry::Occupied(mut entry) = shard.entry(key) {
                *entry.get_mut() -= 1;
                if *entry.get() == 0 {
                    entry.remove();
                    // after a burst the memory goes back; halving it at most keeps the cost of that small
                    let capacity = shard.capacity();
                    if capacity > KEPT_CAPACITY && shard.len() < capacity / 4 {
                        shard.shrink_to(capacity / 2);
                    }
                }
            }
        }
        self.delayed.load(Ordering::SeqCst) > 0
    }

    /// How many clients have a connection.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    #[cfg(test)]
    fn capacity(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().capacity()).sum()
    }
}

impl ClientLimit {
    pub(crate) fn refused(&self, ip: IpAddr) -> ClientRefused {
        ClientRefused { ip, max: self.max, reset: self.over == OverClient::Reset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn who_is_one_client() {
        let limit = ClientLimit::new(1);
        let wide = limit.clone().with_ipv4_prefix(24).with_ipv6_prefix(48);
        let all = limit.clone().with_ipv4_prefix(0).with_ipv6_prefix(0);
        for (a, b, under_default, under_wide, under_all) in [
            ("192.0.2.1", "192.0.2.1", true, true, true),
            ("192.0.2.1", "192.0.2.2", false, true, true),
            ("192.0.2.1", "::ffff:192.0.2.1", true, true, true),
            ("192.0.2.1", "192.0.3.1", false, false, true),
            ("2001:db8::1", "2001:db8::ffff:1", true, true, true),
            ("2001:db8:0:1::1", "2001:db8:0:2::1", false, true, true),
            ("2001:db8:1::1", "2001:db8:2::1", false, false, true),
            // however wide, the two families are never one client
            ("192.0.2.1", "2001:db8::1", false, false, false),
        ] {
            for (limit, same) in [(&limit, under_default), (&wide, under_wide), (&all, under_all)] {
                let (first, second) = (ClientKey::new(ip(a), limit), ClientKey::new(ip(b), limit));
                assert_eq!(first == second, same, "{a} {b} {limit:?}");
            }
        }
    }

    #[test]
    fn a_million_clients_leave_nothing_behind() {
        let clients = Clients::new(Some(ClientLimit::new(2)));
        let mut keys = Vec::with_capacity(1 << 20);
        for n in 0..1u32 << 20 {
            match clients.enter(IpAddr::from(n.to_be_bytes())) {
                Enter::In(Some(key)) => keys.push(key),
                _ => panic!("{n} is refused"),
            }
        }
        assert_eq!(clients.len(), 1 << 20);
        for key in keys {
            assert!(!clients.leave(key));
        }
        assert_eq!(clients.len(), 0);
        assert!(clients.capacity() <= SHARDS * KEPT_CAPACITY * 2, "{}", clients.capacity());
    }

    #[test]
    fn a_change_of_prefixes_loses_no_count() {
        let clients = Clients::new(Some(ClientLimit::new(1)));
        let Enter::In(Some(old)) = clients.enter(ip("192.0.2.1")) else { panic!() };
        assert!(matches!(clients.enter(ip("192.0.2.1")), Enter::Full(_)));
        clients.set(Some(ClientLimit::new(1).with_ipv4_prefix(24)));
        let Enter::In(Some(new)) = clients.enter(ip("192.0.2.1")) else { panic!() };
        clients.leave(old);
        assert!(matches!(clients.enter(ip("192.0.2.9")), Enter::Full(_)));
        clients.leave(new);
        assert_eq!(clients.len(), 0);
        clients.set(None);
        assert!(matches!(clients.enter(ip("192.0.2.9")), Enter::In(None)));
    }

    #[test]
    fn the_exempt_are_not_counted() {
        let limit = ClientLimit::new(1).with_exempt(["10.0.0.0/8".parse().unwrap()]);
        let clients = Clients::new(Some(limit));
        for _ in 0..3 {
            assert!(matches!(clients.enter(ip("10.1.2.3")), Enter::In(None)));
        }
        assert!(matches!(clients.enter(ip("11.1.2.3")), Enter::In(Some(_))));
    }
}
