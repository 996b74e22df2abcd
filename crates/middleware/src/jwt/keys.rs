//! Keys that tokens are checked with.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
};
use jsonwebtoken::{
    DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use rustls_pki_types::{SubjectPublicKeyInfoDer, pem::PemObject as _};
use tokio::sync::Notify;

use super::Algorithm;

/// More than this no issuer has at a time.
const MAX_KEYS: usize = 64;

/// Keys, each for the algorithms that its kind has and no others, so that a public key is never taken for a secret.
#[derive(Clone, Default)]
pub struct Keys(Vec<Key>);

/// One of them.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) id: Option<Box<str>>,
    pub(super) key: DecodingKey,
    pub(super) algorithms: Vec<Algorithm>,
}

impl Keys {
    /// A secret for HS256, HS384 and HS512, of at least 32 bytes (RFC 7518 section 3.2).
    ///
    /// # Errors
    /// When it is shorter.
    pub fn from_secret(secret: &[u8]) -> Result<Self, KeyError> {
        if secret.len() < 32 {
            return Err(KeyError::ShortSecret);
        }
        let key = DecodingKey::from_secret(secret);
        Ok(Self(vec![Key { id: None, key, algorithms: Algorithm::HMAC.to_vec() }]))
    }

    /// Public keys in PEM, each as a `PUBLIC KEY` block: RSA of 2048 to 8192 bits, P-256, P-384, Ed25519.
    ///
    /// # Errors
    /// When there is none, one can't be read, or there are more than 64.
    pub fn from_pem(text: &[u8]) -> Result<Self, KeyError> {
        let mut keys = Vec::new();
        for (at, block) in SubjectPublicKeyInfoDer::pem_slice_iter(text).enumerate() {
            let wrong = KeyError::InvalidPem { number: at + 1 };
            let Ok(block) = block else { return Err(wrong) };
            keys.push(public_key(&block).ok_or(wrong)?);
        }
        Self::some(keys)
    }

    /// A set of public keys in JSON (RFC 7517 section 5). Keys that are not for signatures, or of a kind that there is nothing for here, are
    /// passed over (section 5 says so), and so are secrets: what is published must not be one.
    ///
    /// # Errors
    /// When it is no such set, none of its keys can be used, or there are more than 64 that can.
    pub fn from_jwks(text: &str) -> Result<Self, KeyError> {
        let set: serde_json::Value = serde_json::from_str(text).map_err(|_| KeyError::InvalidSet)?;
        let list = set.get("keys").and_then(serde_json::Value::as_array).ok_or(KeyError::InvalidSet)?;
        let read = |value: &serde_json::Value| serde_json::from_value::<Jwk>(value.clone()).ok();
        Self::some(list.iter().filter_map(read).filter_map(|jwk| of_jwk(&jwk)).collect())
    }

    fn some(keys: Vec<Key>) -> Result<Self, KeyError> {
        match keys.len() {
            0 => Err(KeyError::None),
            1..=MAX_KEYS => Ok(Self(keys)),
            _ => Err(KeyError::TooMany),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none, so that no token can be checked.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that may have signed a token of this algorithm: with the key id that it names, or all where either has none.
    pub(super) fn candidates(&self, id: Option<&str>, algorithm: Algorithm) -> impl Iterator<Item = &Key> {
        self.0.iter().filter(move |key| {
            let named = match (id, key.id.as_deref()) {
                (Some(wanted), Some(own)) => wanted == own,
                _ => true,
            };
            named && key.algorithms.contains(&algorithm)
        })
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| (&key.id, &key.algorithms))).finish()
    }
}

/// Kinds of public keys by the object identifiers in them (RFC 8017, 5480 and 8410), which stand at the beginning.
fn public_key(der: &SubjectPublicKeyInfoDer<'_>) -> Option<Key> {
    const RSA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01";
    const P256: &[u8] = b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
    const P384: &[u8] = b"\x06\x05\x2b\x81\x04\x00\x22";
    const ED25519_ID: &[u8] = b"\x06\x03\x2b\x65\x70";
    let head = der.get(..der.len().min(32))?;
    let has = |oid: &[u8]| head.windows(oid.len()).any(|part| part == oid);
    let (key, algorithms, sound) = if has(RSA) {
        let sound = ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &der[..]).is_ok();
        (DecodingKey::from_rsa_der(der), Algorithm::RSA.to_vec(), sound)
    } else if has(P256) {
        let sound = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &der[..]).is_ok();
        (DecodingKey::from_ec_der(der), vec![Algorithm::Es256], sound)
    } else if has(P384) {
        let sound = ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, &der[..]).is_ok();
        (DecodingKey::from_ec_der(der), vec![Algorithm::Es384], sound)
    } else if has(ED25519_ID) {
        let sound = ParsedPublicKey::new(&ED25519, &der[..]).is_ok();
        (DecodingKey::from_ed_der(der), vec![Algorithm::EdDsa], sound)
    } else {
        return None;
    };
    sound.then_some(Key { id: None, key, algorithms })
}

fn of_jwk(jwk: &Jwk) -> Option<Key> {
    if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
        return None;
    }
    // RFC 7517 section 4.3: what alone it is for, if it says so
    if jwk.common.key_operations.as_ref().is_some_and(|all| !all.contains(&KeyOperations::Verify)) {
        return None;
    }
    let kinds: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &Algorithm::RSA,
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => &[Algorithm::Es256],
            EllipticCurve::P384 => &[Algorithm::Es384],
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => &[Algorithm::EdDsa],
        _ => return None,
    };
    // RFC 7517 section 4.4: a key may say what alone it is for
    let algorithms = match &jwk.common.key_algorithm {
        Some(own) => {
            let own = own.to_string();
            kinds.iter().copied().filter(|kind| kind.name() == own).collect()
        }
        None => kinds.to_vec(),
    };
    let key = DecodingKey::from_jwk(jwk).ok().filter(|_| !algorithms.is_empty())?;
    Some(Key { id: jwk.common.key_id.as_deref().map(Into::into), key, algorithms })
}

/// What is wrong with keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// A secret of less than 32 bytes.
    #[error("the secret has less than 32 bytes")]
    ShortSecret,
    /// A block that is no public key, or of a kind that is not known.
    #[error("PEM block {number} is no public key of RSA (2048 to 8192 bits), P-256, P-384 or Ed25519")]
    InvalidPem {
        /// Which block, from 1.
        number: usize,
    },
    /// No set of keys in JSON.
    #[error("it is no set of keys: JSON with `keys`")]
    InvalidSet,
    /// No key that can be used.
    #[error("it has no public key that can be used")]
    None,
    /// Too many.
    #[error("it has more than {MAX_KEYS} keys")]
    TooMany,
}

/// [`Keys`] that can be replaced while they are in use. Clones are the same.
#[derive(Clone, Default)]
pub struct KeySet(Arc<Shared>);

#[derive(Default)]
struct Shared {
    keys: ArcSwap<Keys>,
    wanted: Notify,
}

impl KeySet {
    /// Begins with these keys.
    pub fn new(keys: Keys) -> Self {
        let set = Self::default();
        set.replace(keys);
        set
    }

    /// Puts other keys in their place.
    pub fn replace(&self, keys: Keys) {
        self.0.keys.store(Arc::new(keys));
    }

    /// Resolves when a token came that names a key which is not there, since the last time: the issuer may have a new one. Anybody can send such
    /// tokens; who fetches keys upon this must rest between.
    pub async fn wanted(&self) {
        self.0.wanted.notified().await;
    }

    pub(super) fn want(&self) {
        self.0.wanted.notify_one();
    }

    pub(super) fn load(&self) -> arc_swap::Guard<Arc<Keys>> {
        self.0.keys.load()
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.load().fmt(f)
    }
}
