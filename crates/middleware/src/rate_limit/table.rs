//! The state of every client in a table of fixed size.
//!
//! governor's own keyed stores grow by one entry per address ever seen, and shrink only when somebody sweeps them; an
//! attacker with a /32 of IPv6 has four thousand million /64s to fill them with. Here a client's number is hashed, with
//! a secret seed, to a set of sixteen slots. A client without a slot takes that of the client whose bucket is
//! nearest to full, which is the least that can be forgotten; most often it *is* full, and nothing is lost. No
//! sweep, no allocation after the first, and no pause.
//!
//! A slot's time is when its client's bucket is full again, in nanoseconds since the table was made, whichever limiter
//! uses it: so a changed rule goes on with the same table.

use std::hash::{BuildHasher, RandomState};

use governor::{nanos::Nanos, state::StateStore};
use parking_lot::Mutex;

/// Slots per set. Two cache lines of times and two of keys.
const WAYS: usize = 16;
/// Locks. More than the cores of most machines, so that two workers seldom want the same one.
const MAX_SHARDS: usize = 256;
/// 4 GiB of address space.
const MOST_KEYS: usize = 1 << 28;

#[derive(Debug)]
pub(super) struct Table {
    /// Secret keys of the hash that places clients.
    secret: [u64; 4],
    sets: usize,
    sets_per_shard: usize,
    shards: Box<[Shard]>,
}

/// Alone on its cache lines, so that one lock's traffic doesn't slow its neighbour.
#[derive(Debug)]
#[repr(align(128))]
struct Shard(Mutex<Slots>);

/// Counted here, under the lock that is held anyway: a counter for all would be one cache line that every worker wants.
#[derive(Debug)]
struct Slots {
    words: Box<[u64]>,
    taken: u64,
    forgotten: u64,
}

/// What a limiter asks the table for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Probe {
    /// The client's number.
    pub(super) key: u64,
    /// By how much the answer moves the time on: what is asked for, in nanoseconds.
    pub(super) weight: u64,
}

/// What a table has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TableCounts {
    /// Requests that got what they asked for.
    pub(super) taken: u64,
    /// Clients that were forgotten before their bucket was full again, for want of slots.
    pub(super) forgotten: u64,
}

impl Table {
    /// A table of at most `max_keys` slots, and [`MOST_KEYS`], and at least one set.
    pub(super) fn new(max_keys: usize) -> Self {
        let wanted = (max_keys.min(MOST_KEYS) / WAYS).max(1);
        let shards = wanted.min(MAX_SHARDS);
        let sets_per_shard = wanted / shards;
        // one allocation of zeros per shard: the system hands out pages as they are touched
        let shard = || Slots { words: vec![0; sets_per_shard * WAYS * 2].into(), taken: 0, forgotten: 0 };
        let random = RandomState::new();
        Self {
            secret: [0, 1, 2, 3].map(|n| random.hash_one(n)),
            sets: sets_per_shard * shards,
            sets_per_shard,
            shards: (0..shards).map(|_| Shard(Mutex::new(shard()))).collect(),
        }
    }

    /// Which shard, and where in it the set begins. Two folded multiplications with secret keys, as ahash has them: nobody
    /// outside sees what shares a set, and keys that are no addresses come out of SipHash already.
    #[inline]
    fn place(&self, key: u64) -> (usize, usize) {
        let [a, b, c, d] = self.secret;
        let hash = folded(folded(key ^ a, b | 1) ^ c, d | 1);
        // scales the hash to 0..sets without a division
        let set = ((u128::from(hash) * self.sets as u128) >> 64) as usize;
        (set / self.sets_per_shard, (set % self.sets_per_shard) * WAYS * 2)
    }

    /// Puts back what a request took that was then refused elsewhere. A client that was forgotten meanwhile has a
    /// full bucket anyway.
    pub(super) fn give_back(&self, probe: Probe) {
        let (shard, start) = self.place(probe.key);
        let mut slots = self.shards[shard].0.lock();
        slots.taken = slots.taken.saturating_sub(1);
        let (keys, times) = slots.words[start..start + WAYS * 2].split_at_mut(WAYS);
        if let Some(way) = (0..WAYS).find(|way| times[*way] != 0 && keys[*way] == probe.key) {
            // 0 would be a free slot
            times[way] = times[way].saturating_sub(probe.weight).max(1);
        }
    }

    /// Makes a client's bucket be full no later than this.
    pub(super) fn hold_to(&self, key: u64, full_at: u64) {
        let (shard, start) = self.place(key);
        let mut slots = self.shards[shard].0.lock();
        let (keys, times) = slots.words[start..start + WAYS * 2].split_at_mut(WAYS);
        if let Some(way) = (0..WAYS).find(|way| times[*way] != 0 && keys[*way] == key) {
            // 0 would be a free slot
            times[way] = times[way].min(full_at.max(1));
        }
    }

    /// Makes every bucket as full by the new rule as it is by the old one; `before` and `after` are the times that an
    /// empty bucket takes to fill. One pass over the table, shard by shard.
    pub(super) fn rescale(&self, now: u64, before: u64, after: u64) {
        for shard in &self.shards {
            let mut slots = shard.0.lock();
            for set in slots.words.chunks_exact_mut(WAYS * 2) {
                for time in set[WAYS..].iter_mut().filter(|time| **time > now) {
                    let debt = u128::from(*time - now) * u128::from(after) / u128::from(before.max(1));
                    *time = now.saturating_add(u64::try_from(debt).unwrap_or(u64::MAX).min(after)).max(1);
                }
            }
        }
    }

    pub(super) fn counts(&self) -> TableCounts {
        self.shards.iter().fold(TableCounts::default(), |sum, shard| {
            let slots = shard.0.lock();
            TableCounts { taken: sum.taken + slots.taken, forgotten: sum.forgotten + slots.forgotten }
        })
    }

    #[cfg(test)]
    fn slots(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.lock().words.len() / 2).sum()
    }
}

/// Both halves of a product, one over the other.
#[inline]
fn folded(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

impl StateStore for Table {
    type Key = Probe;

    /// A slot's time is when its client's bucket is full again; 0 is a free slot, which no time ever is, since every
    /// admitted request moves it forward.
    fn measure_and_replace<T, F, E>(&self, probe: &Probe, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (shard, start) = self.place(probe.key);
        let slots = &mut *self.shards[shard].0.lock();
        let (keys, times) = slots.words[start..start + WAYS * 2].split_at_mut(WAYS);
        let mut victim = 0;
        for way in 0..WAYS {
            if times[way] != 0 && keys[way] == probe.key {
                let (outcome, time) = f(Some(Nanos::new(times[way])))?;
                times[way] = time.as_u64();
                slots.taken += 1;
                return Ok(outcome);
            }
            if times[way] < times[victim] {
                victim = way;
            }
        }
        let (outcome, time) = f(None)?;
        // a new client's time is now and what it took
        let now = time.as_u64().saturating_sub(probe.weight);
        slots.forgotten += u64::from(times[victim] > now);
        slots.taken += 1;
        keys[victim] = probe.key;
        times[victim] = time.as_u64();
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(key: u64) -> Probe {
        Probe { key, weight: 1 }
    }

    /// Sets a client's time and tells what it was.
    fn set(table: &Table, key: u64, time: u64) -> Option<u64> {
        let swap = |old: Option<Nanos>| Ok::<_, ()>((old.map(Nanos::as_u64), Nanos::new(time)));
        table.measure_and_replace(&probe(key), swap).unwrap()
    }

    fn read(table: &Table, key: u64) -> Option<u64> {
        table
            .measure_and_replace(&probe(key), |old| Err::<((), Nanos), _>(old.map(Nanos::as_u64)))
            .unwrap_err()
    }

    #[test]
    fn never_more_slots_than_asked_for() {
        for (max, slots) in
            [(0, 16), (1, 16), (16, 16), (31, 16), (4096, 4096), (5000, 4096), (1_000_000, 999_424)]
        {
            assert_eq!(Table::new(max).slots(), slots, "{max}");
        }
        // address space alone: nothing of it is touched
        #[cfg(target_pointer_width = "64")]
        assert_eq!(Table::new(usize::MAX).slots(), MOST_KEYS);
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

    /// Neighbours, and networks of one provider, are spread as if they were random: no set gets more than chance gives it.
    #[test]
    fn clients_are_spread() {
        for step in [1, 1 << 8, 1 << 32, 1 << 48, 0x10001, u64::MAX / 1000] {
            let table = Table::new(1 << 14);
            let mut sets = std::collections::HashMap::new();
            for n in 0..1u64 << 14 {
                *sets.entry(table.place(n.wrapping_mul(step))).or_insert(0) += 1;
            }
            // 16 on average; 60 is eleven standard deviations away
            let most = sets.values().max().unwrap();
            assert!(*most < 60, "{step:#x}: {most} in one set");
        }
    }

    #[test]
    fn what_is_given_back_is_there_again() {
        let table = Table::new(16);
        set(&table, 7, 100);
        table.give_back(Probe { key: 7, weight: 30 });
        assert_eq!((read(&table, 7), table.counts().taken), (Some(70), 0));
        table.give_back(Probe { key: 7, weight: 300 });
        assert_eq!(read(&table, 7), Some(1), "its slot is not taken for a free one");
        table.give_back(Probe { key: 8, weight: 300 });
        assert_eq!(read(&table, 8), None);
    }

    #[test]
    fn a_time_is_held_to_another() {
        let table = Table::new(16);
        set(&table, 7, 100);
        for (key, full_at, expected) in
            [(7, 200, Some(100)), (7, 60, Some(60)), (7, 0, Some(1)), (8, 50, None)]
        {
            table.hold_to(key, full_at);
            assert_eq!(read(&table, key), expected, "{key} {full_at}");
        }
    }

    #[test]
    fn rescaling_keeps_how_full_a_bucket_is() {
        let table = Table::new(1 << 10);
        for (key, time) in [(1, 900), (2, 1000), (3, 1500), (4, 2000), (5, u64::MAX)] {
            set(&table, key, time);
        }
        // an empty bucket took 1000 to fill, and takes 10 now
        table.rescale(1000, 1000, 10);
        for (key, time) in [(1, 900), (2, 1000), (3, 1005), (4, 1010), (5, 1010)] {
            assert_eq!(read(&table, key), Some(time), "{key}");
        }
    }

    #[test]
    fn only_clients_in_debt_count_as_forgotten() {
        let table = Table::new(16);
        for key in 0..16 {
            set(&table, key, 100 + key);
        }
        assert_eq!(table.counts(), TableCounts { taken: 16, forgotten: 0 });
        set(&table, 16, 150); // now is 149: the bucket of key 0 is full since 100
        assert_eq!(table.counts(), TableCounts { taken: 17, forgotten: 0 });
        set(&table, 17, 100); // now is 99: that of key 1 would have been at 101
        assert_eq!(table.counts(), TableCounts { taken: 18, forgotten: 1 });
    }
}
