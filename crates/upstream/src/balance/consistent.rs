//! Consistent hashing: tables that give the same endpoint to the same hash, in every process with the same members.

use super::hash::{mix, stable_hash};

/// The most positions of a Maglev table; a prime.
const MAX_TABLE: u32 = 5_000_011;
/// The most points of a ring.
const MAX_POINTS: u64 = 1 << 20;
/// Positions that are looked at before all members are compared.
const PROBES: u64 = 32;

/// A member as the tables see it.
pub(super) struct Seat {
    pub(super) index: u32,
    pub(super) weight: u32,
    /// The stable hash of its name.
    pub(super) hash: u64,
}

#[derive(Debug)]
pub(super) enum Consistent {
    Maglev(Vec<u32>),
    Ring(Vec<(u64, u32)>),
}

impl Consistent {
    /// A Maglev table. The seats have to be in an order that does not depend on how they were configured.
    pub(super) fn maglev(seats: &[Seat], size: u32) -> Self {
        let least = u32::try_from(seats.len()).unwrap_or(MAX_TABLE).max(2);
        let size = prime_from(size.min(MAX_TABLE).max(least));
        let mut table = vec![u32::MAX; size as usize];
        let heaviest = u64::from(seats.iter().map(|seat| seat.weight).max().unwrap_or(1));
        let size = u64::from(size);
        // each seat's own permutation of the positions: where it is, and how far its next is
        let mut walks: Vec<(u64, u64, u64)> =
            seats.iter().map(|seat| (seat.hash % size, mix(seat.hash) % (size - 1).max(1) + 1, 0)).collect();
        let mut free = table.len();
        while free > 0 {
            for (seat, (at, step, credit)) in seats.iter().zip(&mut walks) {
                *credit += u64::from(seat.weight);
                if *credit < heaviest {
                    continue;
                }
                *credit -= heaviest;
                while table[*at as usize] != u32::MAX {
                    *at = (*at + *step) % size;
                }
                table[*at as usize] = seat.index;
                free -= 1;
                if free == 0 {
                    break;
                }
            }
        }
        Self::Maglev(table)
    }

    /// A ring.
    pub(super) fn ring(seats: &[Seat], replicas: u32) -> Self {
        let replicas = u64::from(replicas.clamp(1, 10_000));
        let wanted: u64 = seats.iter().map(|seat| u64::from(seat.weight) * replicas).sum();
        let mut points = Vec::new();
        for seat in seats {
            let own = u64::from(seat.weight) * replicas;
            let own = if wanted > MAX_POINTS { (own * MAX_POINTS / wanted).max(1) } else { own };
            points.extend((0..own).map(|replica| {
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&seat.hash.to_le_bytes());
                bytes[8..].copy_from_slice(&replica.to_le_bytes());
                (stable_hash(&bytes), seat.index)
            }));
        }
        points.sort_unstable();
        Self::Ring(points)
    }

    /// The first endpoint in the hash's own order that will do; none when the first positions have none.
    pub(super) fn find(&self, hash: u64, mut will_do: impl FnMut(u32) -> bool) -> Option<u32> {
        match self {
            Self::Maglev(table) => {
                let size = table.len() as u64;
                (0..PROBES)
                    .map(|probe| {
                        let hash = if probe == 0 { hash } else { mix(hash.wrapping_add(probe)) };
                        table[(hash % size) as usize]
                    })
                    .find(|index| will_do(*index))
            }
            Self::Ring(points) => {
                let first = points.partition_point(|(point, _)| *point < hash);
                let (before, from) = points.split_at(first);
                let around = from.iter().chain(before).map(|(_, index)| *index);
                around.take(PROBES as usize).find(|index| will_do(*index))
            }
        }
    }
}

/// The least prime that is not below it.
fn prime_from(number: u32) -> u32 {
    let is_prime = |number: u32| {
        number >= 2
            && (2..)
                .take_while(|by| u64::from(*by) * u64::from(*by) <= u64::from(number))
                .all(|by| !number.is_multiple_of(by))
    };
    (number..=MAX_TABLE).find(|number| is_prime(*number)).unwrap_or(MAX_TABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes() {
        assert_eq!([0, 2, 4, 65_536, MAX_TABLE].map(prime_from), [2, 2, 5, 65_537, MAX_TABLE]);
    }
}
