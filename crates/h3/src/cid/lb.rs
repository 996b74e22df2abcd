//! The encryption of draft-ietf-quic-load-balancers-21 section 5.4: one AES block where server id and nonce fill it, else four rounds of a
//! Feistel network over two halves that may share a byte.

use aws_lc_rs::{
    cipher::{AES_128, DecryptingKey, DecryptionContext, EncryptingKey, UnboundCipherKey},
    error::Unspecified,
};

/// Bytes of a block.
const BLOCK: usize = 16;
/// The longest half: of 19 bytes.
const HALF: usize = 10;

/// Encrypts and decrypts server id and nonce together, in place: 5 to 19 bytes.
pub(crate) struct Cipher {
    seal: EncryptingKey,
    open: DecryptingKey,
}

impl Cipher {
    pub(crate) fn new(key: &[u8; 16]) -> Result<Self, Unspecified> {
        let key = || UnboundCipherKey::new(&AES_128, key);
        Ok(Self { seal: EncryptingKey::ecb(key()?)?, open: DecryptingKey::ecb(key()?)? })
    }

    pub(crate) fn seal(&self, text: &mut [u8]) {
        if let Ok(block) = <&mut [u8; BLOCK]>::try_from(&mut *text) {
            return self.encrypt(block);
        }
        let mut halves = Halves::split(text);
        for pass in [1, 2, 3, 4] {
            halves.turn(pass, |block| self.encrypt(block));
        }
        halves.join(text);
    }

    pub(crate) fn open(&self, text: &mut [u8]) {
        if text.len() == BLOCK {
            self.open.decrypt(text, DecryptionContext::None).expect("a block is what this mode takes");
            return;
        }
        let mut halves = Halves::split(text);
        for pass in [4, 3, 2, 1] {
            halves.turn(pass, |block| self.encrypt(block));
        }
        halves.join(text);
    }

    fn encrypt(&self, block: &mut [u8; BLOCK]) {
        self.seal.encrypt(block).expect("a block is what this mode takes");
    }
}

/// The two halves of a text. Of a byte in the middle each has one half, and zeros in place of the other.
struct Halves {
    left: [u8; HALF],
    right: [u8; HALF],
    /// Bytes of the whole.
    len: usize,
}

impl Halves {
    fn split(text: &[u8]) -> Self {
        let mut halves = Self { left: [0; HALF], right: [0; HALF], len: text.len() };
        let half = halves.half();
        halves.left[..half].copy_from_slice(&text[..half]);
        halves.right[..half].copy_from_slice(&text[text.len() - half..]);
        halves.clear();
        halves
    }

    fn half(&self) -> usize {
        self.len.div_ceil(2)
    }

    /// Zeros in place of what is the other's.
    fn clear(&mut self) {
        if self.len % 2 == 1 {
            self.left[self.half() - 1] &= 0xf0;
            self.right[0] &= 0x0f;
        }
    }

    /// One round, which is its own inverse: changes one half by the other.
    fn turn(&mut self, pass: u8, encrypt: impl FnOnce(&mut [u8; BLOCK])) {
        let (half, len) = (self.half(), self.len as u8);
        let (from, onto) = match pass % 2 {
            1 => (&self.left, &mut self.right),
            _ => (&self.right, &mut self.left),
        };
        let mut block = [0; BLOCK];
        block[..half].copy_from_slice(&from[..half]);
        block[BLOCK - 2..].copy_from_slice(&[len, pass]);
        encrypt(&mut block);
        for (byte, with) in onto[..half].iter_mut().zip(block) {
            *byte ^= with;
        }
        self.clear();
    }

    fn join(&self, text: &mut [u8]) {
        let half = self.half();
        text[..half].copy_from_slice(&self.left[..half]);
        let shared = 2 * half - text.len();
        text[half..].copy_from_slice(&self.right[shared..half]);
        if shared == 1 {
            text[half - 1] |= self.right[0];
        }
    }
}
