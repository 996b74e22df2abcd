//! The pieces of a body as they come, read by several at their own pace.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::store::StoredBody;

/// Pieces are copied into blocks of this size, so that what is kept is as large as it counts and not a corner of a larger buffer.
const BLOCK: usize = 64 << 10;

/// Up to this a stored body is one piece.
const ONE_PIECE: u64 = 256 << 10;

#[derive(Default)]
pub(crate) struct Chunks {
    kept: VecDeque<Piece>,
    /// The number of the first that is kept.
    first: usize,
    /// Of all that came.
    len: u64,
    kept_bytes: u64,
    /// Of the blocks, full or not, that pieces are kept of.
    held: u64,
    block: BytesMut,
    /// The size of `block`, with what of it is in pieces by now.
    block_size: u64,
    /// The number of the first piece of `block`.
    block_first: usize,
    expected: Option<u64>,
}

struct Piece {
    data: Bytes,
    /// How many have still to read it, which counts only after [`Chunks::count_readers`].
    readers: usize,
    /// What is free when it goes: the block of which it is the last piece.
    frees: u64,
}

impl Chunks {
    pub(crate) fn expect(&mut self, expected: Option<u64>) {
        self.expected = expected;
    }

    pub(crate) fn expected(&self) -> Option<u64> {
        self.expected
    }

    /// Whether there is as much as was announced.
    pub(crate) fn is_complete(&self) -> bool {
        self.expected == Some(self.len)
    }

    /// Of all that came, kept or not.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The bytes in memory.
    pub(crate) fn kept(&self) -> u64 {
        self.kept_bytes
    }

    /// What these take: a piece holds its whole block.
    pub(crate) fn held(&self) -> u64 {
        self.held
    }

    /// How many pieces that is.
    pub(crate) fn pieces(&self) -> u64 {
        self.kept.len() as u64
    }

    pub(crate) fn first(&self) -> usize {
        self.first
    }

    pub(crate) fn get(&self, number: usize) -> Option<Bytes> {
        self.kept.get(number.checked_sub(self.first)?).map(|piece| piece.data.clone())
    }

    /// What [`Chunks::copy`] of so many bytes takes: the blocks that it makes, in bytes, and the number of pieces.
    pub(crate) fn cost(&self, more: usize) -> (u64, u64) {
        let (mut rest, mut room, mut len) = (more, self.block.capacity(), self.len);
        let (mut blocks, mut pieces) = (0, 0);
        while rest > 0 {
            if room == 0 {
                room = self.next_block(len, rest);
                blocks += room as u64;
            }
            let now = rest.min(room);
            (rest, room, len) = (rest - now, room - now, len + now as u64);
            pieces += 1;
        }
        (blocks, pieces)
    }

    /// A piece that is kept to the end.
    pub(crate) fn copy(&mut self, data: &Bytes) {
        let mut rest = &data[..];
        while !rest.is_empty() {
            if self.block.capacity() == 0 {
                let size = self.next_block(self.len, rest.len());
                self.block = BytesMut::with_capacity(size);
                self.block_size = size as u64;
                self.block_first = self.first + self.kept.len();
                self.held += size as u64;
            }
            let (now, later) = rest.split_at(rest.len().min(self.block.capacity()));
            self.block.extend_from_slice(now);
            let data = self.block.split().freeze();
            let frees = if self.block.capacity() == 0 { std::mem::take(&mut self.block_size) } else { 0 };
            self.push(Piece { data, readers: 0, frees });
            rest = later;
        }
    }

    /// As large as what is there: no more is set aside for a body than it has shown that it needs, whatever `Content-Length` announces, and blocks are few all
    /// the same.
    fn next_block(&self, len: u64, more: usize) -> usize {
        let at_least = usize::try_from(len).unwrap_or(BLOCK).max(more);
        let left = self.expected.and_then(|expected| usize::try_from(expected.saturating_sub(len)).ok());
        at_least.min(left.unwrap_or(BLOCK)).clamp(1, BLOCK)
    }

    /// A piece that is let go of when so many have read it.
    pub(crate) fn pass(&mut self, data: Bytes, readers: usize) {
        let frees = data.len() as u64;
        self.held += frees;
        self.push(Piece { data, readers, frees });
    }

    fn push(&mut self, piece: Piece) {
        self.len += piece.data.len() as u64;
        self.kept_bytes += piece.data.len() as u64;
        self.kept.push_back(piece);
    }

    /// Nothing more is copied: the block goes with the last piece of it.
    fn close_block(&mut self) {
        self.block = BytesMut::new();
        if let Some(last) = self.kept.back_mut() {
            last.frees += std::mem::take(&mut self.block_size);
        }
    }

    /// From now on a piece goes when all readers have it, who stand at these numbers.
    pub(crate) fn count_readers(&mut self, readers: impl Iterator<Item = usize>) {
        self.close_block();
        let mut starts = vec![0_usize; self.kept.len() + 1];
        for reader in readers {
            let at = reader.saturating_sub(self.first).min(self.kept.len());
            starts[at] += 1;
        }
        let mut before = 0;
        for (piece, start) in self.kept.iter_mut().zip(starts) {
            before += start;
            piece.readers = before;
        }
        self.trim();
    }

    /// A reader has this one. Whether that made room.
    pub(crate) fn was_read(&mut self, number: usize) -> bool {
        if let Some(piece) = number.checked_sub(self.first).and_then(|at| self.kept.get_mut(at)) {
            piece.readers = piece.readers.saturating_sub(1);
        }
        self.trim()
    }

    /// A reader that had still to read from this one on is gone. Whether that made room.
    pub(crate) fn left(&mut self, next: usize) -> bool {
        for piece in self.kept.iter_mut().skip(next.saturating_sub(self.first)) {
            piece.readers = piece.readers.saturating_sub(1);
        }
        self.trim()
    }

    fn trim(&mut self) -> bool {
        let before = self.first;
        while self.kept.front().is_some_and(|piece| piece.readers == 0)
            && let Some(piece) = self.kept.pop_front()
        {
            self.kept_bytes -= piece.data.len() as u64;
            self.held -= piece.frees;
            self.first += 1;
        }
        self.first > before
    }

    /// All of it, to be stored.
    pub(crate) fn whole(&self) -> Whole {
        let pieces: Vec<Bytes> = self.kept.iter().map(|piece| piece.data.clone()).collect();
        let average = self.len / (pieces.len().max(1) as u64);
        let open = if self.block.capacity() > 0 { self.block_first - self.first } else { pieces.len() };
        let (from, size) = if pieces.len() > 1 && self.len <= ONE_PIECE {
            (0, usize::try_from(self.len).unwrap_or(0))
        } else if average < (BLOCK / 8) as u64 {
            (0, BLOCK)
        } else {
            (open, BLOCK)
        };
        Whole { pieces, len: self.len, open, from, size }
    }

    /// Where each piece begins, and where the last one ends.
    pub(crate) fn starts(&self) -> Vec<u64> {
        let mut at = self.len - self.kept_bytes;
        let ends = self.kept.iter().map(|piece| {
            at += piece.data.len() as u64;
            at
        });
        std::iter::once(self.len - self.kept_bytes).chain(ends).collect()
    }

    /// The same in the pieces in which it is stored, which count there.
    pub(crate) fn stored(body: &StoredBody) -> Self {
        let kept =
            body.chunks.iter().map(|data| Piece { data: data.clone(), readers: 0, frees: 0 }).collect();
        Self { kept, len: body.len, kept_bytes: body.len, expected: Some(body.len), ..Self::default() }
    }
}

/// A body to be stored, taken while it was locked, to be brought into its form when it is not: in one piece where that is small, else in pieces of a block's size.
pub(crate) struct Whole {
    pieces: Vec<Bytes>,
    len: u64,
    /// The pieces from this one on would hold a block that has room left.
    open: usize,
    /// The pieces from this one on are copied, into some of this size.
    from: usize,
    size: usize,
}

impl Whole {
    /// What [`Whole::regrouped`] sets aside.
    pub(crate) fn copied(&self) -> u64 {
        self.pieces[self.from..].iter().map(|piece| piece.len() as u64).sum()
    }

    /// Copies only what it must.
    pub(crate) fn copy_less(&mut self) {
        (self.from, self.size) = (self.open, BLOCK);
    }

    /// It takes as much memory as it is long.
    pub(crate) fn regrouped(self) -> StoredBody {
        let (kept, copied) = self.pieces.split_at(self.from);
        let chunks = kept.iter().cloned().chain(regroup(copied, self.size)).collect();
        StoredBody { chunks, len: self.len }
    }
}

fn regroup(pieces: &[Bytes], size: usize) -> Vec<Bytes> {
    let mut left: usize = pieces.iter().map(Bytes::len).sum();
    let mut groups = Vec::with_capacity(left.div_ceil(size.max(1)));
    let mut group: Vec<u8> = Vec::new();
    for mut piece in pieces.iter().map(|piece| &piece[..]) {
        while !piece.is_empty() {
            if group.capacity() == 0 {
                group.reserve_exact(size.min(left));
            }
            let (now, later) = piece.split_at(piece.len().min(size - group.len()));
            group.extend_from_slice(now);
            left -= now.len();
            piece = later;
            if group.len() == size || left == 0 {
                groups.push(std::mem::take(&mut group).into());
            }
        }
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

    /// Which block a stored piece holds, with its size.
    fn block_of(chunks: &Chunks, stored: &Bytes) -> Option<(usize, u64)> {
        let mut block = 0;
        let mut sizes = vec![0];
        let mut found = None;
        for piece in &chunks.kept {
            if piece.data.as_ptr() == stored.as_ptr() {
                found = Some(block);
            }
            if piece.frees > 0 {
                sizes[block] = piece.frees;
                sizes.push(0);
                block += 1;
            }
        }
        sizes[block] = chunks.block_size;
        found.map(|block| (block, sizes[block]))
    }

    /// What a stored body takes when all else is gone.
    fn held(chunks: &Chunks, stored: &StoredBody) -> u64 {
        let mut blocks = std::collections::HashMap::new();
        let mut own = 0;
        for chunk in &*stored.chunks {
            match block_of(chunks, chunk) {
                Some((block, size)) => _ = blocks.insert(block, size),
                None => own += chunk.len() as u64,
            }
        }
        own + blocks.values().sum::<u64>()
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
            (None, 257, 1024),
            (None, 17, 16_000),
        ] {
            let mut chunks = Chunks::default();
            chunks.expect(expected);
            let mut all = Vec::new();
            let mut costs = (0, 0);
            for n in 0..pieces {
                let piece = vec![u8::try_from(n % 251).unwrap(); size];
                let (blocks, more) = chunks.cost(size);
                costs = (costs.0 + blocks, costs.1 + more);
                chunks.copy(&piece.clone().into());
                all.extend_from_slice(&piece);
                // All blocks but the last are full.
                let memory = (all.len() + chunks.block.capacity()) as u64;
                assert_eq!((costs, chunks.held()), ((memory, chunks.pieces()), memory), "{pieces} of {size}");
                assert!(memory <= 2 * all.len() as u64, "{memory} for {pieces} of {size}");
            }
            let whole = chunks.whole();
            let copied = whole.copied();
            let whole = whole.regrouped();
            assert_eq!(held(&chunks, &whole), whole.len, "{pieces} of {size} weigh what they take");
            let own = whole.chunks.iter().filter(|chunk| block_of(&chunks, chunk).is_none());
            assert_eq!(own.map(|chunk| chunk.len() as u64).sum::<u64>(), copied, "{pieces} of {size}");
            assert_eq!((whole.len, joined(&whole) == all), (all.len() as u64, true), "{pieces} of {size}");
            let most = if whole.len <= ONE_PIECE { 1 } else { all.len() / (BLOCK / 8) + 1 };
            assert!(whole.chunks.len() <= most, "{} pieces of {size}", whole.chunks.len());
        }
        assert_eq!(Chunks::default().whole().regrouped().chunks.len(), 0);
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
                // Blocks of three, three and six bytes; the last one is half empty and goes with its piece.
                prop_assert_eq!(chunks.held() - chunks.kept(), if slowest < 3 { 3 } else { 0 });
            }
            let slowest = *readers.iter().min().unwrap();
            for reader in readers.iter().filter(|next| **next == slowest) {
                chunks.left(*reader);
            }
            prop_assert!(chunks.first() >= slowest);
        }
    }
}
