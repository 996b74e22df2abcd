//! Certificate compression (RFC 8879) that is paid once per chain.
//!
//! rustls keeps compressed chains in a list that each handshake walks; with thousands of certificates the walk costs
//! more than it spares. Here they are found by the hash of what is compressed.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use aws_lc_rs::digest;
use parking_lot::Mutex;
use rustls::{
    CertificateCompressionAlgorithm,
    compress::{BROTLI_COMPRESSOR, CertCompressor, CompressionFailed, CompressionLevel, ZLIB_COMPRESSOR},
};

/// What all compressed chains of the process may take together, per algorithm, at least: some 8,000 chains.
const MIN_BYTES: usize = 16 << 20;
/// And for each certificate that a store has, so that none is compressed again and again.
const EACH: usize = 4 << 10;
const SHARDS: usize = 16;
/// An entry's share of the tables.
const OVERHEAD: usize = 128;

type Key = [u8; 32];

/// Brotli before zlib: it makes the smaller of the two, and a client that offers both takes either.
pub(crate) fn compressors() -> Vec<&'static dyn CertCompressor> {
    vec![&*BROTLI, &*ZLIB]
}

static BROTLI: LazyLock<Remembering> = LazyLock::new(|| Remembering::new(BROTLI_COMPRESSOR, MIN_BYTES));
static ZLIB: LazyLock<Remembering> = LazyLock::new(|| Remembering::new(ZLIB_COMPRESSOR, MIN_BYTES));

/// Has a store of so many certificates: what is remembered may grow with it, and does not shrink again.
pub(crate) fn make_room(certificates: usize) {
    for remembering in [&*BROTLI, &*ZLIB] {
        remembering.max_bytes.fetch_max(certificates.saturating_mul(EACH) / SHARDS, Ordering::Relaxed);
    }
}

/// A compressor that remembers what it made. It is process-wide, for rustls wants it for ever; what is in it is found
/// by its content alone, so nobody sees what others put there.
#[derive(Debug)]
struct Remembering {
    inner: &'static dyn CertCompressor,
    shards: [Mutex<Shard>; SHARDS],
    /// Of each shard.
    max_bytes: AtomicUsize,
}

#[derive(Debug, Default)]
struct Shard {
    made: HashMap<Key, Arc<[u8]>>,
    /// The oldest first, which goes first.
    order: VecDeque<Key>,
    bytes: usize,
}

impl Remembering {
    fn new(inner: &'static dyn CertCompressor, max_bytes: usize) -> Self {
        Self { inner, shards: Default::default(), max_bytes: AtomicUsize::new(max_bytes / SHARDS) }
    }

    fn keep(&self, shard: &mut Shard, key: Key, made: &[u8]) {
        let (size, max_bytes) = (made.len() + OVERHEAD, self.max_bytes.load(Ordering::Relaxed));
        if size > max_bytes || shard.made.insert(key, made.into()).is_some() {
            return;
        }
        shard.order.push_back(key);
        shard.bytes += size;
        while shard.bytes > max_bytes {
            let Some(oldest) = shard.order.pop_front() else { break };
            if let Some(gone) = shard.made.remove(&oldest) {
                shard.bytes -= gone.len() + OVERHEAD;
            }
        }
    }
}

impl CertCompressor for Remembering {
    fn compress(&self, input: Vec<u8>, level: CompressionLevel) -> Result<Vec<u8>, CompressionFailed> {
        let mut key = Key::default();
        key.copy_from_slice(digest::digest(&digest::SHA256, &input).as_ref());
        let shard = &self.shards[usize::from(key[0]) % SHARDS];
        if let Some(made) = shard.lock().made.get(&key) {
            return Ok(made.to_vec());
        }
        // Outside of the lock; two that come at once both do it. At the level for a handshake that waits: the highest one takes some
        // milliseconds for the last percents.
        let made = self.inner.compress(input, level)?;
        self.keep(&mut shard.lock(), key, &made);
        Ok(made)
    }

    fn algorithm(&self) -> CertificateCompressionAlgorithm {
        self.inner.algorithm()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_and_stays_bounded() {
        let remembering = Remembering::new(ZLIB_COMPRESSOR, SHARDS * 1000);
        let input = |i: u32| i.to_be_bytes().repeat(100);
        let first = remembering.compress(input(0), CompressionLevel::Interactive).unwrap();
        assert_eq!(remembering.compress(input(0), CompressionLevel::Interactive).unwrap(), first);
        assert!(first.len() < 400);
        let kept = || remembering.shards.iter().map(|shard| shard.lock().made.len()).sum::<usize>();
        assert_eq!(kept(), 1);
        for i in 0..1000 {
            remembering.compress(input(i), CompressionLevel::Interactive).unwrap();
        }
        assert!((SHARDS..200).contains(&kept()), "{} kept", kept());
        let room = remembering.max_bytes.load(Ordering::Relaxed);
        assert_eq!(room, 1000);
        for shard in &remembering.shards {
            let shard = shard.lock();
            assert!(shard.bytes <= 1000 && shard.order.len() == shard.made.len());
        }
    }
}
