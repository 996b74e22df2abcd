//! Bytes that mostly fit on the stack.

/// What most keys and selections stay below.
const INLINE: usize = 256;

/// Grows on the stack first, and moves to the heap when it must. Built for every look-up, so that a hit allocates nothing for its key.
#[derive(Clone)]
pub(crate) struct Buf {
    stack: [u8; INLINE],
    len: usize,
    heap: Vec<u8>,
}

impl Buf {
    pub(crate) fn new() -> Self {
        Self { stack: [0; INLINE], len: 0, heap: Vec::new() }
    }

    pub(crate) fn push(&mut self, byte: u8) {
        self.extend(&[byte]);
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        if self.heap.is_empty() {
            if let Some(free) = self.stack.get_mut(self.len..self.len + bytes.len()) {
                free.copy_from_slice(bytes);
                self.len += bytes.len();
                return;
            }
            self.heap.reserve(2 * INLINE + bytes.len());
            self.heap.extend_from_slice(&self.stack[..self.len]);
        }
        self.heap.extend_from_slice(bytes);
    }

    pub(crate) fn extend_lower(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.push(byte.to_ascii_lowercase());
        }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        if self.heap.is_empty() { &self.stack[..self.len] } else { &self.heap }
    }
}

impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.as_slice()))
    }
}

impl PartialEq for Buf {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Buf {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_on_the_heap() {
        for step in [1, 7, 255, 256, 257, 1000] {
            let (mut buf, mut want) = (Buf::new(), Vec::new());
            for n in 0..5_u8 {
                let bytes = vec![b'A' + n; step];
                buf.extend(&bytes);
                want.extend_from_slice(&bytes);
                assert_eq!(buf.as_slice(), want);
            }
            buf.extend_lower(b"XyZ");
            assert!(buf.as_slice().ends_with(b"xyz"));
        }
    }
}
