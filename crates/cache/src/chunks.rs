//! The pieces of a body as they come, read by several at their own pace.

use std::{collections::VecDeque, sync::Arc};

use bytes::{Bytes, BytesMut};

use crate::store::StoredBody;

/// Pieces are copied into blocks of this size, so that what is kept is as large as it counts and not a corner of a larger buffer.
const BLOCK: usize = 64 << 10;

/// Where nobody said how long it will be.
const FIRST_BLOCK: usize = 4 << 10;

/// Up to this a stored body is one piece.
const ONE_PIECE: u64 = 256 << 10;

#[derive(Default)]
pub(crate) struct Chunks {
    /// With how many have still to read it, which counts only after [`Chunks::count_readers`].
    kept: VecDeque<(Bytes, usize)>,
    /// The number of the first that is kept.
    first: usize,
    /// Of all that came.
    len: u64,
    kept_bytes: u64,
    block: BytesMut,
    expected: Option<u64>,
}

impl Chunks {
    pub(crate) fn expect(&mut self, expected: Option<u64>) {
        self.expected = expected;
    }

    pub(crate) fn expected(&self) -> Option<u64> {
        self.expected
    }

    /// Of all that came, kept or not.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The bytes in memory.
    pub(crate) fn kept(&self) -> u64 {
        self.kept_bytes
    }

    /// How many pieces that is.
    pub(crate) fn pieces(&self) -> u64 {
        self.kept.len() as u64
    }

    pub(crate) fn first(&self) -> usize {
        self.first
    }

    pub(crate) fn get(&self, number: usize) -> Option<Bytes> {
        self.kept.get(number.checked_sub(self.first)?).map(|(data, _)| data.clone())
    }

    /// A piece that is kept to the end.
    pub(crate) fn copy(&mut self, data: &Bytes) {
        let mut rest = &data[..];
        while !rest.is_empty() {
            if self.block.capacity() == 0 {
                self.block = BytesMut::with_capacity(self.next_block(rest.len()));
            }
            let (now, later) = rest.split_at(rest.len().min(self.block.capacity()));
            self.block.extend_from_slice(now);
            let piece = self.block.split().freeze();
            self.push(piece, 0);
            rest = later;
        }
    }

    fn next_block(&self, more: usize) -> usize {
        let announced = self.expected.map(|expected| expected.saturating_sub(self.len));
        match announced.and_then(|left| usize::try_from(left).ok()) {
            // No more than a block on the word of `Content-Length`.
            Some(left) => left.clamp(1, BLOCK),
            None if self.len == 0 => more.clamp(FIRST_BLOCK, BLOCK),
            None => BLOCK,
        }
    }

    /// A piece that is let go of when so many have read it.
    pub(crate) fn pass(&mut self, data: Bytes, readers: usize) {
        self.push(data, readers);
    }

    fn push(&mut self, data: Bytes, readers: usize) {
        self.len += data.len() as u64;
        self.kept_bytes += data.len() as u64;
        self.kept.push_back((data, readers));
    }

    /// From now on a piece goes when all readers have it, who stand at these numbers.
    pub(crate) fn count_readers(&mut self, readers: impl Iterator<Item = usize>) {
        let mut starts = vec![0_usize; self.kept.len() + 1];
        for reader in readers {
            let at = reader.saturating_sub(self.first).min(self.kept.len());
            starts[at] += 1;
        }
        let mut before = 0;
        for ((_, left), start) in self.kept.iter_mut().zip(starts) {
            before += start;
            *left = before;
        }
        self.trim();
    }

    /// A reader has this one. Whether that made room.
    pub(crate) fn was_read(&mut self, number: usize) -> bool {
        if let Some((_, left)) = number.checked_sub(self.first).and_then(|at| self.kept.get_mut(at)) {
            *left = left.saturating_sub(1);
        }
        self.trim()
    }

    /// A reader that had still to read from this one on is gone. Whether that made room.
    pub(crate) fn left(&mut self, next: usize) -> bool {
        for (_, left) in self.kept.iter_mut().skip(next.saturating_sub(self.first)) {
            *left = left.saturating_sub(1);
        }
        self.trim()
    }

    fn trim(&mut self) -> bool {
        let before = self.first;
        while let Some((data, 0)) = self.kept.front() {
            self.kept_bytes -= data.len() as u64;
            self.kept.pop_front();
            self.first += 1;
        }
        self.first > before
    }

    /// All of it, to be stored: in one piece where that is small, else in pieces of a block's size.
    pub(crate) fn whole(&self) -> StoredBody {
        let pieces = || self.kept.iter().map(|(data, _)| data);
        let average = self.len / (self.kept.len().max(1) as u64);
        let chunks: Arc<[Bytes]> = if self.kept.len() > 1 && self.len <= ONE_PIECE {
            std::iter::once(regroup(pieces(), usize::try_from(self.len).unwrap_or(0))).flatten().collect()
        } else if average < (BLOCK / 8) as u64 {
            regroup(pieces(), BLOCK).into()
        } else {
            pieces().cloned().collect()
        };
        StoredBody { chunks, len: self.len }
    }
}

fn regroup<'a>(pieces: impl Iterator<Item = &'a Bytes>, size: usize) -> Vec<Bytes> {
    let mut groups = Vec::new();
    let mut group: Vec<u8> = Vec::new();
    for mut piece in pieces.map(|piece| &piece[..]) {
        while !piece.is_empty() {
            if group.capacity() == 0 {
                group.reserve_exact(size);
            }
            let (now, later) = piece.split_at(piece.len().min(size - group.len()));
            group.extend_from_slice(now);
            piece = later;
            if group.len() == size {
                groups.push(std::mem::take(&mut group).into());
            }
        }
    }
    if !group.is_empty() {
        group.shrink_to_fit();
        groups.push(group.into());
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn joined(body: &StoredBody) -> Vec<u8> {
        body.chunks.concat()
    }

    #[test]
    fn what_is_stored_is_what_came() {
        for (expected, pieces, size) in [
            (None, 1, 10),
            (Some(10), 1, 10),
            (Some(300), 3, 100),
            (None, 30, 7),
            (None, 40, 16_384),
            (Some(655_360), 40, 16_384),
            (None, 5_000, 100),
            (None, 2, 200_000),
        ] {
            let mut chunks = Chunks::default();
            chunks.expect(expected);
            let mut all = Vec::new();
            for n in 0..pieces {
                let piece = vec![u8::try_from(n % 251).unwrap(); size];
                chunks.copy(&piece.clone().into());
                all.extend_from_slice(&piece);
            }
            let whole = chunks.whole();
            assert_eq!((whole.len, joined(&whole) == all), (all.len() as u64, true), "{pieces} of {size}");
            let most = if whole.len <= ONE_PIECE { 1 } else { all.len() / (BLOCK / 8) + 1 };
            assert!(whole.chunks.len() <= most, "{} pieces of {size}", whole.chunks.len());
        }
        assert_eq!(Chunks::default().whole().chunks.len(), 0);
    }

    proptest! {
        /// Readers that come along at any pace get everything, and nothing is kept that all of them have.
        #[test]
        fn a_window_holds_what_somebody_needs(steps in proptest::collection::vec(0_usize..5, 1..200)) {
            let mut chunks = Chunks::default();
            for n in 0..3_u8 {
                chunks.copy(&vec![n; 3].into());
            }
            let mut readers = [0_usize, 1, 3];
            chunks.count_readers(readers.into_iter());
            let mut came = 3;
            for step in steps {
                match readers.get_mut(step) {
                    Some(next) => if let Some(data) = chunks.get(*next) {
                        prop_assert_eq!(usize::from(data[0]), *next);
                        *next += 1;
                        chunks.was_read(*next - 1);
                    } else {
                        prop_assert_eq!(*next, came);
                    },
                    None if came < 250 => {
                        chunks.pass(vec![u8::try_from(came).unwrap(); 3].into(), 3);
                        came += 1;
                    }
                    None => {}
                }
                let slowest = *readers.iter().min().unwrap();
                prop_assert_eq!(chunks.first(), slowest);
                prop_assert_eq!(chunks.kept(), 3 * (came - slowest) as u64);
            }
            let slowest = *readers.iter().min().unwrap();
            for reader in readers.iter().filter(|next| **next == slowest) {
                chunks.left(*reader);
            }
            prop_assert!(chunks.first() >= slowest);
        }
    }
}
