//! The responses on their way that others may wait for.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::Arc,
};

use parking_lot::Mutex;

use crate::{
    flight::{Flight, Outcome, Seat},
    store::Key,
};

const SHARDS: usize = 16;

type Shard = Mutex<HashMap<Key, Vec<Arc<Flight>>>>;

/// No more than one for each request that runs.
pub(crate) struct Flights {
    shards: [Shard; SHARDS],
    hasher: RandomState,
}

impl Default for Flights {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new() }
    }
}

/// Who a request is among those for one thing.
pub(crate) enum Joined {
    /// The first: it asks the origin.
    Lead(Lead),
    /// Another: it waits.
    Follow(Seat),
}

impl Flights {
    fn shard(&self, key: &[u8]) -> &Shard {
        let hash = self.hasher.hash_one(key) % SHARDS as u64;
        &self.shards[usize::try_from(hash).unwrap_or(0)]
    }

    /// Takes a seat in the flight for this key and selection, or makes `flight` the one.
    pub(crate) fn join(&self, key: &[u8], selection: &[u8], flight: impl FnOnce() -> Arc<Flight>) -> Joined {
        let mut shard = self.shard(key).lock();
        let known = shard.get(key).and_then(|all| all.iter().find(|other| other.selection() == selection));
        if let Some(seat) = known.and_then(Flight::seat) {
            return Joined::Follow(seat);
        }
        let flight = flight();
        let all = shard.entry(Arc::clone(flight.key())).or_default();
        all.retain(|other| other.selection() != selection);
        all.push(Arc::clone(&flight));
        Joined::Lead(Lead { flight })
    }

    /// As [`Flights::join`], but for who would not wait: `None` when there is one already.
    pub(crate) fn lead(
        &self,
        key: &[u8],
        selection: &[u8],
        flight: impl FnOnce() -> Arc<Flight>,
    ) -> Option<Lead> {
        match self.join(key, selection, flight) {
            Joined::Lead(lead) => Some(lead),
            Joined::Follow(_) => None,
        }
    }

    pub(crate) fn remove(&self, flight: &Arc<Flight>) {
        let mut shard = self.shard(flight.key()).lock();
        if let Some(all) = shard.get_mut(&**flight.key()) {
            all.retain(|other| !Arc::ptr_eq(other, flight));
            if all.is_empty() {
                shard.remove(&**flight.key());
            }
        }
    }

    /// Nobody joins those for this key any more.
    pub(crate) fn forget(&self, key: &[u8]) {
        let forgotten = self.shard(key).lock().remove(key);
        drop(forgotten);
    }

    /// Nobody joins those of these keys any more.
    pub(crate) fn forget_those(&self, are_meant: impl Fn(&[u8]) -> bool) {
        for shard in &self.shards {
            let forgotten: Vec<_> = shard.lock().extract_if(|key, _| are_meant(key)).collect();
            drop(forgotten);
        }
    }
}

/// The first's part. Dropped before it told an outcome, the others are told to see for themselves.
pub(crate) struct Lead {
    flight: Arc<Flight>,
}

impl Lead {
    /// One that nobody may join.
    pub(crate) fn alone(flight: Arc<Flight>) -> Self {
        Self { flight }
    }

    pub(crate) fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    /// Tells those that wait, and lets nobody in any more. For outcomes without a body.
    pub(crate) fn tell(self, outcome: Outcome) {
        self.flight.tell(outcome);
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        if self.flight.is_undecided() {
            self.flight.tell(Outcome::Again);
        }
    }
}

impl std::fmt::Debug for Lead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lead")
    }
}
