//! Whose a datagram is, by its destination connection id.

use crate::{ConnectionIds, WorkerId};

/// Who is to have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The endpoint that received it.
    Own,
    /// Another worker of this process.
    Worker(WorkerId),
    /// A process before this one.
    Generation(u8),
}

/// The layout is the one that no version of QUIC may change (RFC 8999 sections 5.1 and 5.2). What is too short, or has an id that is none of ours, is
/// the endpoint's, to be answered or dropped. `initials` tells whether ids that a client may have chosen (RFC 9000 section 17.2.2) count for generations.
pub(super) fn of(datagram: &[u8], ids: &ConnectionIds, own: WorkerId, initials: bool) -> Whose {
    let Some((id, chosen)) = destination(datagram, ids.len()) else { return Whose::Own };
    match ids.owner(id) {
        Some((_, generation)) if generation != ids.generation() && (!chosen || initials) => {
            Whose::Generation(generation)
        }
        // whoever chose it: all workers must agree where a connection is
        Some((worker, _)) if worker != own => Whose::Worker(worker),
        _ => Whose::Own,
    }
}

/// The id, if it is as long as ours are, and whether a client may have chosen it.
fn destination(datagram: &[u8], len: usize) -> Option<(&[u8], bool)> {
    let first = *datagram.first()?;
    if first & 0x80 == 0 {
        return datagram.get(1..1 + len).map(|id| (id, false));
    }
    // Initial and 0-RTT, by the numbers of version 1; other versions are negotiated away
    let chosen = first & 0x30 <= 0x10;
    (usize::from(*datagram.get(5)?) == len).then_some(())?;
    datagram.get(6..6 + len).map(|id| (id, chosen))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Byte 3 is the worker, byte 4 the generation.
    const ID: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

    fn short() -> Vec<u8> {
        [&[0x40][..], &ID, &[9; 20]].concat()
    }

    fn long(first: u8, len: u8) -> Vec<u8> {
        [&[first, 0, 0, 0, 1, len][..], &ID, &[0; 20]].concat()
    }

    #[test]
    fn rfc8999_5_the_id_tells() {
        let ids = |generation| ConnectionIds::default().with_generation(generation);
        let (four, zero) = (WorkerId::new(4), WorkerId::new(0));
        for (datagram, initials) in [(short(), false), (long(0xe0, 8), false), (long(0xc0, 8), true)] {
            assert_eq!(of(&datagram, &ids(5), four, initials), Whose::Own);
            assert_eq!(of(&datagram, &ids(5), zero, initials), Whose::Worker(four));
            assert_eq!(of(&datagram, &ids(6), four, initials), Whose::Generation(5));
            assert_eq!(of(&datagram, &ids(6), zero, initials), Whose::Generation(5));
        }
        // a client's own choice, after the time of handshakes that began before
        for first in [0xc0, 0xd0] {
            assert_eq!(of(&long(first, 8), &ids(6), four, false), Whose::Own);
            assert_eq!(of(&long(first, 8), &ids(6), zero, false), Whose::Worker(four));
        }
        for none in [vec![], vec![0x40], short()[..8].to_vec(), long(0xe0, 8)[..13].to_vec(), long(0xe0, 9)] {
            assert_eq!(of(&none, &ids(6), zero, true), Whose::Own, "{none:?}");
        }
    }
}
