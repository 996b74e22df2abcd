//! What address tokens and stateless resets are made with.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use aws_lc_rs::{
    aead, hkdf,
    hkdf::{HKDF_SHA256, Prk, Salt},
    hmac, rand,
};
use quinn_proto::crypto::{AeadKey, CryptoError, HandshakeTokenKey, HmacKey};

/// More secrets than anybody rotates through.
const MAX_SECRETS: usize = 16;

type Secret = [u8; 32];

/// The secrets of which address tokens (RFC 9000 section 8.1) and stateless resets (section 10.3) are made. Clones share them, and so may
/// several instances: then a token of one is good at another, and each can end the connections of one that is gone.
///
/// The first secret makes tokens and resets, all of them check tokens. A reset is known to a client from when its connection id was issued, so one that is made
/// with another secret than was the first then is not understood: the QUIC stack has one key for resets. What remembers used tokens
/// is each instance's own: a token may be used once at each.
#[derive(Clone)]
pub struct QuicKeys(Arc<RwLock<Arc<Derived>>>);

/// Why secrets were not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuicKeyError {
    /// A line is not a secret.
    #[error(
        "line {line} of the QUIC keys is not 64 hexadecimal digits: make one with `openssl rand -hex 32`"
    )]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// There is none.
    #[error("there are no QUIC keys: make one with `openssl rand -hex 32`")]
    None,
    /// There are more than 16.
    #[error("there are more than 16 QUIC keys: remove the oldest, which are last")]
    TooMany,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

struct Derived {
    secrets: Vec<Secret>,
    /// The first seals; all of them open.
    tokens: Vec<Prk>,
    resets: hmac::Key,
}

impl Derived {
    fn new(secrets: Vec<Secret>) -> Result<Arc<Self>, QuicKeyError> {
        let first = secrets.first().ok_or(QuicKeyError::None)?;
        let resets = hmac::Key::new(hmac::HMAC_SHA256, &derive(first, b"stateless reset"));
        let token = |secret| Prk::new_less_safe(HKDF_SHA256, &derive(secret, b"address token"));
        let tokens = secrets.iter().map(token).collect();
        Ok(Arc::new(Self { secrets, tokens, resets }))
    }
}

/// One key for one use.
fn derive(secret: &Secret, purpose: &[u8]) -> Secret {
    let mut key = [0; 32];
    Salt::new(HKDF_SHA256, b"portcullis quic")
        .extract(secret)
        .expand(&[purpose], HKDF_SHA256)
        .and_then(|bytes| bytes.fill(&mut key))
        .expect("as much is asked for as the algorithm's output has");
    key
}

impl QuicKeys {
    /// One that nobody else has.
    ///
    /// # Errors
    ///
    /// When the system gives no random bytes.
    pub fn random() -> Result<Self, QuicKeyError> {
        let mut secret = [0; 32];
        rand::fill(&mut secret).map_err(|_| QuicKeyError::Random)?;
        Ok(Self(Arc::new(RwLock::new(Derived::new(vec![secret])?))))
    }

    /// Secrets from a text: one a line in 64 hexadecimal digits, the newest first, at most 16; blank lines and lines that begin with `#` are left out.
    ///
    /// # Errors
    ///
    /// The first line that is none, or that there is none, or too many.
    pub fn from_text(text: &str) -> Result<Self, QuicKeyError> {
        Ok(Self(Arc::new(RwLock::new(Derived::new(read(text)?)?))))
    }

    /// Puts others in place of these, wherever they are used; `false` when they are the same.
    ///
    /// # Errors
    ///
    /// As [`QuicKeys::from_text`]; nothing is changed then.
    pub fn replace(&self, text: &str) -> Result<bool, QuicKeyError> {
        let secrets = read(text)?;
        if self.current().secrets == secrets {
            return Ok(false);
        }
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Derived::new(secrets)?;
        Ok(true)
    }

    fn current(&self) -> Arc<Derived> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn read(text: &str) -> Result<Vec<Secret>, QuicKeyError> {
    let mut secrets = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let digits: Option<Vec<u32>> = line.chars().map(|digit| digit.to_digit(16)).collect();
        let bytes = digits.map(|digits| {
            digits
                .chunks(2)
                .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | *digit as u8))
                .collect::<Vec<u8>>()
        });
        let secret = bytes.filter(|_| line.len() == 64).and_then(|bytes| bytes.try_into().ok());
        secrets.push(secret.ok_or(QuicKeyError::Line { line: at + 1 })?);
        if secrets.len() > MAX_SECRETS {
            return Err(QuicKeyError::TooMany);
        }
    }
    if secrets.is_empty() { Err(QuicKeyError::None) } else { Ok(secrets) }
}

impl fmt::Debug for QuicKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicKeys").field("secrets", &self.current().secrets.len()).finish_non_exhaustive()
    }
}

/// The same if they are shared.
impl PartialEq for QuicKeys {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for QuicKeys {}

impl HandshakeTokenKey for QuicKeys {
    fn aead_from_hkdf(&self, random_bytes: &[u8]) -> Box<dyn AeadKey> {
        Box::new(TokenKey { keys: self.current(), random: random_bytes.to_vec() })
    }
}

/// The keys of one token.
struct TokenKey {
    keys: Arc<Derived>,
    random: Vec<u8>,
}

impl TokenKey {
    fn key(&self, of: &Prk) -> Result<aead::LessSafeKey, CryptoError> {
        let random = [&self.random[..]];
        let key = of.expand(&random, &aead::AES_256_GCM).map_err(|_| CryptoError)?;
        Ok(aead::LessSafeKey::new(key.into()))
    }
}

/// A key serves one token alone, which has a random part of its own.
fn nonce() -> aead::Nonce {
    aead::Nonce::assume_unique_for_key([0; 12])
}

impl AeadKey for TokenKey {
    fn seal(&self, data: &mut Vec<u8>, additional_data: &[u8]) -> Result<(), CryptoError> {
        let first = self.keys.tokens.first().ok_or(CryptoError)?;
        let sealed =
            self.key(first)?.seal_in_place_append_tag(nonce(), aead::Aad::from(additional_data), data);
        sealed.map_err(|_| CryptoError)
    }

    fn open<'a>(&self, data: &'a mut [u8], additional_data: &[u8]) -> Result<&'a mut [u8], CryptoError> {
        for prk in &self.keys.tokens {
            // what can't be opened is spoiled
            let mut copy = data.to_vec();
            if let Ok(plain) =
                self.key(prk)?.open_in_place(nonce(), aead::Aad::from(additional_data), &mut copy)
            {
                let open = &mut data[..plain.len()];
                open.copy_from_slice(plain);
                return Ok(open);
            }
        }
        Err(CryptoError)
    }
}

impl HmacKey for QuicKeys {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(hmac::sign(&self.current().resets, data).as_ref());
    }

    fn signature_len(&self) -> usize {
        hkdf::KeyType::len(&HKDF_SHA256)
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        hmac::verify(&self.current().resets, data, signature).map_err(|_| CryptoError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "1111111111111111111111111111111111111111111111111111111111111111";
    const NEW: &str = "00ff22aabbccddeeff00112233445566778899aabbccddeeff00112233445566";

    fn token(keys: &QuicKeys) -> Vec<u8> {
        let mut data = b"address".to_vec();
        keys.aead_from_hkdf(b"random").seal(&mut data, b"more").unwrap();
        data
    }

    fn opens(keys: &QuicKeys, mut token: Vec<u8>) -> bool {
        keys.aead_from_hkdf(b"random").open(&mut token, b"more").is_ok_and(|plain| plain == b"address")
    }

    fn reset(keys: &QuicKeys) -> [u8; 32] {
        let mut reset = [0; 32];
        keys.sign(b"id", &mut reset);
        reset
    }

    #[test]
    fn instances_with_the_same_secret_know_each_others_tokens_and_resets() {
        let [one, two] = [OLD, OLD].map(|text| QuicKeys::from_text(text).unwrap());
        let other = QuicKeys::from_text(NEW).unwrap();
        assert!(opens(&two, token(&one)) && !opens(&other, token(&one)));
        assert_eq!(reset(&one), reset(&two));
        assert_ne!(reset(&one), reset(&other));
        assert!(two.verify(b"id", &reset(&one)).is_ok() && other.verify(b"id", &reset(&one)).is_err());
        // and one that nobody else has
        assert!(!opens(&QuicKeys::random().unwrap(), token(&QuicKeys::random().unwrap())));
    }

    #[test]
    fn the_newest_makes_and_all_check() {
        let keys = QuicKeys::from_text(OLD).unwrap();
        let clone = keys.clone();
        let before = (token(&keys), reset(&keys));
        assert!(clone.replace(&format!("# rotated\n{NEW}\n\n{OLD}\n")).unwrap());
        assert!(!clone.replace(&format!("{NEW}\n{OLD}\n")).unwrap(), "they are the same");
        assert!(opens(&keys, before.0.clone()) && opens(&keys, token(&keys)));
        assert!(opens(&QuicKeys::from_text(NEW).unwrap(), token(&keys)), "the first makes them");
        assert_ne!(reset(&keys), before.1);
        keys.replace(NEW).unwrap();
        assert!(!opens(&keys, before.0));
    }

    #[test]
    fn what_is_no_secret_is_told_by_its_line() {
        let error = |text: &str| QuicKeys::from_text(text).unwrap_err();
        assert_eq!(error(&format!("{OLD}\n{}", &OLD[1..])), QuicKeyError::Line { line: 2 });
        assert_eq!(error(&"é".repeat(32)), QuicKeyError::Line { line: 1 });
        assert_eq!(error("# none\n"), QuicKeyError::None);
        assert_eq!(error(&[OLD; 17].join("\n")), QuicKeyError::TooMany);
        assert!(!format!("{:?}", QuicKeys::from_text(OLD).unwrap()).contains("17"), "none is shown");
    }
}
