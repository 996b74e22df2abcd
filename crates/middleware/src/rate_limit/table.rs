//! The state of every client in a table of fixed size.
//!
//! governor's own keyed stores grow by one entry per address ever seen, and shrink only when somebody sweeps them; an
//! attacker with a /32 of IPv6 has four thousand million /64s to fill them with. Here a client's number is hashed, with
//! a secret seed, to a set of sixteen slots. A client without a slot takes that of the client whose bucket is
//! nearest to full, which is the least that can be forgotten; most often it *is* full, and nothing is lost. No
//! sweep, no allocation after the first, and no pause.

use std::hash::{BuildHasher, RandomState};

use governor::{nanos::Nanos, state::StateStore};
use parking_lot::Mutex;

/// Slots per set. Two cache lines of times and two of keys.
const WAYS: usize = 16;
/// Locks. More than the cores of most machines, so that two workers seldom want the same one.
const MAX_SHARDS: usize = 256;

#[derive(Debug)]
pub(super) struct Table {
    hasher: RandomState,
    sets: usize,
    sets_per_shard: usize,
    shards: Box<[Shard]>,
}

/// Alone on its cache lines, so that one lock's traffic doesn't slow its neighbour.
#[derive(Debug)]
#[repr(align(128))]
struct Shard(Mutex<Box<[u64]>>);

impl Table {
    /// A table of at most `max_clients` slots, and at least one set.
    pub(super) fn new(max_clients: usize) -> Self {
        let wanted = (max_clients / WAYS).max(1);
        let shards = wanted.min(MAX_SHARDS);
        let sets_per_shard = wanted / shards;
        Self {
            hasher: RandomState::new(),
            sets: sets_per_shard * shards,
            sets_per_shard,
            // one allocation of zeros per shard: the system hands out pages as they are touched
            shards: (0..shards)
                .map(|_| Shard(Mutex::new(vec![0; sets_per_shard * WAYS * 2].into())))
                .collect(),
        }
    }

    /// Which shard, and where in it the set begins.
    fn place(&self, key: u64) -> (usize, usize) {
        let hash = self.hasher.hash_one(key);
        // scales the hash to 0..sets without a division
        let set = ((u128::from(hash) * self.sets as u128) >> 64) as usize;
        (set / self.sets_per_shard, (set % self.sets_per_shard) * WAYS * 2)
    }

    #[cfg(test)]
    fn slots(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.lock().len() / 2).sum()
    }
}

impl StateStore for Table {
    type Key = u64;

    /// A slot's time is when its client's bucket is full again; 0 is a free slot, which no time ever is, since every
    /// admitted request moves it forward.
    fn measure_and_replace<T, F, E>(&self, key: &u64, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (shard, start) = self.place(*key);
        let mut slots = self.shards[shard].0.lock();
        let (keys, times) = slots[start..start + WAYS * 2].split_at_mut(WAYS);
        let mut victim = 0;
        for way in 0..WAYS {
            if times[way] != 0 && keys[way] == *key {
                let (outcome, time) = f(Some(Nanos::new(times[way])))?;
                times[way] = time.as_u64();
                return Ok(outcome);
            }
            if times[way] < times[victim] {
                victim = way;
            }
        }
        let (outcome, time) = f(None)?;
        keys[victim] = *key;
        times[victim] = time.as_u64();
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sets a client's time and tells what it was.
    fn set(table: &Table, key: u64, time: u64) -> Option<u64> {
        let swap = |old: Option<Nanos>| Ok::<_, ()>((old.map(Nanos::as_u64), Nanos::new(time)));
        table.measure_and_replace(&key, swap).unwrap()
    }

    fn read(table: &Table, key: u64) -> Option<u64> {
        table.measure_and_replace(&key, |old| Err::<((), Nanos), _>(old.map(Nanos::as_u64))).unwrap_err()
    }

    #[test]
    fn never_more_slots_than_asked_for() {
        for (max, slots) in
            [(0, 16), (1, 16), (16, 16), (31, 16), (4096, 4096), (5000, 4096), (1_000_000, 999_424)]
        {
            assert_eq!(Table::new(max).slots(), slots, "{max}");
        }
    }

    #[test]
    fn keys_keep_their_times() {
        let table = Table::new(1 << 14);
        for key in 0..1000 {
            assert_eq!(set(&table, key, key + 1), None);
        }
        for key in 0..1000 {
            assert_eq!(read(&table, key), Some(key + 1));
        }
    }

    #[test]
    fn key_zero_is_a_key_and_not_a_free_slot() {
        let table = Table::new(16);
        assert_eq!(read(&table, 0), None);
        set(&table, 0, 5);
        assert_eq!(read(&table, 0), Some(5));
    }

    #[test]
    fn the_fullest_bucket_is_forgotten_first() {
        let table = Table::new(16);
        for key in 0..16 {
            set(&table, key, 100 + key);
        }
        set(&table, 3, 500);
        set(&table, 0, 600);
        set(&table, 99, 700); // key 1 is now the one with the smallest time
        let kept: Vec<_> = (0..16).filter(|key| read(&table, *key).is_some()).collect();
        assert_eq!(kept, [0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(read(&table, 99), Some(700));
    }

    #[test]
    fn a_refusal_changes_nothing() {
        let table = Table::new(16);
        for key in 0..16 {
            set(&table, key, 100 + key);
        }
        assert_eq!(read(&table, 77), None);
        assert!((0..16).all(|key| read(&table, key) == Some(100 + key)));
    }

    #[test]
    fn a_flood_of_clients_does_not_forget_one_in_debt() {
        let table = Table::new(1 << 12);
        set(&table, u64::MAX, 1 << 40);
        for key in 0..100_000 {
            set(&table, key, key + 1);
        }
        assert_eq!(read(&table, u64::MAX), Some(1 << 40));
    }
}
