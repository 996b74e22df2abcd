//! A body on its way to the client, copied to be stored.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    rules::Meta,
    stats::count,
    store::{Shared, Stored},
};

/// No more than this is allocated on the word of `Content-Length`.
const FIRST_CAPACITY: u64 = 64 << 10;

/// The copy so far. Dropped before [`Fill::finish`], nothing is stored.
pub(crate) struct Fill {
    shared: Arc<Shared>,
    /// Taken when it is stored.
    target: Option<Target>,
    bytes: Vec<u8>,
    expected: Option<u64>,
    reserved: u64,
}

struct Target {
    key: String,
    generation: u32,
    meta: Meta,
}

impl Fill {
    /// `expected` is the length that `Content-Length` announced.
    pub(crate) fn new(
        shared: Arc<Shared>,
        key: String,
        generation: u32,
        meta: Meta,
        expected: Option<u64>,
    ) -> Self {
        let capacity = expected.unwrap_or(0).min(FIRST_CAPACITY);
        let bytes = Vec::with_capacity(usize::try_from(capacity).unwrap_or(0));
        Self { shared, target: Some(Target { key, generation, meta }), bytes, expected, reserved: 0 }
    }

    /// Copies a frame. `false` when the body is too long or there is no room: the copy is of no use any more.
    pub(crate) fn push(&mut self, data: &Bytes) -> bool {
        let len = data.len() as u64;
        let total = self.reserved + len;
        let max = self.expected.unwrap_or(u64::MAX).min(self.shared.options.max_object_bytes);
        if total > max || !self.shared.reserve(len) {
            return false;
        }
        self.reserved = total;
        self.bytes.extend_from_slice(data);
        true
    }

    /// The body has ended cleanly: stores it, if it is as long as announced (RFC 9111 section 3.3).
    pub(crate) fn finish(mut self) {
        if self.expected.is_some_and(|expected| expected != self.reserved) {
            return;
        }
        if let Some(Target { key, generation, meta }) = self.target.take() {
            let mut bytes = std::mem::take(&mut self.bytes);
            // A copy of its own and of its own size, so that the weight is the memory.
            bytes.shrink_to_fit();
            self.shared.insert(&key, generation, Stored { meta, body: bytes.into() });
            count(&self.shared.counters.stored);
        }
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.shared.release(self.reserved);
        if self.target.is_some() {
            self.shared.abandon();
        }
    }
}
