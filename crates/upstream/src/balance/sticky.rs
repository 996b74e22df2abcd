//! A cookie that names the endpoint a client was sent to, sealed.

use std::{fmt, time::Duration};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use http::{HeaderMap, HeaderValue};

use super::{hash::cookie, stable_hash};

const TAG_LEN: usize = 16;
const SEALED_LEN: usize = NONCE_LEN + 8 + TAG_LEN;
/// Base64 of 36 bytes needs no padding.
const TEXT_LEN: usize = SEALED_LEN / 3 * 4;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// A cookie that brings a client back to the endpoint that it was sent to.
///
/// Its value is a hash of the endpoint's name, sealed by AES-256-GCM: a client learns nothing of it and can not choose
/// an endpoint. A value that is not ours, or of another key, is ignored, as is one whose endpoint is gone or
/// unavailable: then the request is balanced as if it had none, and the answer sets a new one.
#[derive(Debug)]
pub struct StickyCookie {
    key: RandomizedNonceKey,
    name: String,
    attributes: String,
}

/// A sticky cookie that can not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StickyError {
    /// The name is no token (RFC 6265 section 4.1.1) of at most 64 bytes.
    #[error("`{0}` is no name for a cookie")]
    Name(String),
    /// The system gave no random bytes, or refused the key.
    #[error("the key can not be used")]
    Key,
}

impl StickyCookie {
    /// The default name.
    pub const NAME: &str = "portcullis_sticky";

    /// A cookie of this name (default [`StickyCookie::NAME`]).
    ///
    /// With `key`, all processes that have the same one understand each other's cookies, and a restart keeps them; else
    /// it is random, for this process. `secure` sends it over TLS only. `max_age` is how long a client keeps it, in whole
    /// seconds; without, until it is closed. Always Path=/, HttpOnly and SameSite=Lax.
    pub fn new(
        name: Option<&str>,
        key: Option<&[u8; 32]>,
        secure: bool,
        max_age: Option<Duration>,
    ) -> Result<Self, StickyError> {
        let name = name.unwrap_or(Self::NAME);
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || name.len() > 64 || !name.bytes().all(token) {
            return Err(StickyError::Name(name.to_owned()));
        }
        let key = match key {
            Some(key) => *key,
            None => {
                let mut key = [0; 32];
                aws_lc_rs::rand::fill(&mut key).map_err(|_| StickyError::Key)?;
                key
            }
        };
        let key = RandomizedNonceKey::new(&AES_256_GCM, &key).map_err(|_| StickyError::Key)?;
        let mut attributes = String::from("; Path=/; HttpOnly; SameSite=Lax");
        if secure {
            attributes.push_str("; Secure");
        }
        if let Some(age) = max_age {
            attributes.push_str(&format!("; Max-Age={}", age.as_secs()));
        }
        Ok(Self { key, name: name.to_owned(), attributes })
    }

    /// The endpoint that the request's cookie names: the hash that [`StickyCookie::identity`] gives for its name.
    pub fn read(&self, headers: &HeaderMap) -> Option<u64> {
        let mut sealed = decode(cookie(headers, &self.name)?)?;
        let (nonce, sealed) = sealed.split_at_mut(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let open = self.key.open_in_place(nonce, Aad::from(self.name.as_bytes()), sealed).ok()?;
        Some(u64::from_le_bytes(<[u8; 8]>::try_from(&*open).ok()?))
    }

    /// The value of a Set-Cookie field for an endpoint; none if the system fails to seal it.
    pub fn write(&self, endpoint: &str) -> Option<HeaderValue> {
        let mut sealed = Self::identity(endpoint).to_le_bytes().to_vec();
        let nonce = self.key.seal_in_place_append_tag(Aad::from(self.name.as_bytes()), &mut sealed).ok()?;
        let mut bytes = [0; SEALED_LEN];
        bytes[..NONCE_LEN].copy_from_slice(nonce.as_ref());
        bytes[NONCE_LEN..].copy_from_slice(&sealed);
        let value = format!("{}={}{}", self.name, Text(&bytes), self.attributes);
        HeaderValue::try_from(value).ok()
    }

    /// What stands for an endpoint of this name in a cookie.
    pub fn identity(endpoint: &str) -> u64 {
        stable_hash(endpoint.as_bytes())
    }
}

/// Base64 for URLs (RFC 4648 section 5).
struct Text<'a>(&'a [u8; SEALED_LEN]);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chunks_exact(3).try_for_each(|three| {
            let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
            [18, 12, 6, 0].iter().try_for_each(|by| {
                fmt::Write::write_char(f, char::from(ALPHABET[(bits >> by) as usize & 63]))
            })
        })
    }
}

fn decode(text: &[u8]) -> Option<[u8; SEALED_LEN]> {
    let text: &[u8; TEXT_LEN] = text.try_into().ok()?;
    let mut bytes = [0; SEALED_LEN];
    for (four, three) in text.chunks_exact(4).zip(bytes.chunks_exact_mut(3)) {
        let mut bits = 0;
        for byte in four {
            bits = bits << 6 | ALPHABET.iter().position(|letter| letter == byte)? as u32;
        }
        three.copy_from_slice(&bits.to_be_bytes()[1..]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent_back(set: &HeaderValue) -> HeaderMap {
        let pair = set.to_str().unwrap().split(';').next().unwrap();
        HeaderMap::from_iter([(http::header::COOKIE, format!("a=b; {pair}; c=d").parse().unwrap())])
    }

    #[test]
    fn what_was_written_is_read() {
        let one = StickyCookie::new(None, Some(&[7; 32]), true, Some(Duration::from_secs(60))).unwrap();
        let set = one.write("10.0.0.1:80").unwrap();
        let text = set.to_str().unwrap();
        assert!(text.starts_with("portcullis_sticky="), "{text}");
        assert!(text.ends_with("; Path=/; HttpOnly; SameSite=Lax; Secure; Max-Age=60"), "{text}");
        assert!(!text.contains("10.0"));
        let headers = sent_back(&set);
        assert_eq!(one.read(&headers), Some(StickyCookie::identity("10.0.0.1:80")));
        // another process with the same key, and one with another
        let same = StickyCookie::new(None, Some(&[7; 32]), false, None).unwrap();
        assert_eq!(same.read(&headers), Some(StickyCookie::identity("10.0.0.1:80")));
        assert_eq!(StickyCookie::new(None, Some(&[8; 32]), false, None).unwrap().read(&headers), None);
        assert_eq!(StickyCookie::new(None, None, false, None).unwrap().read(&headers), None);
        assert_ne!(one.write("10.0.0.1:80").unwrap(), set, "a nonce each");
    }

    #[test]
    fn what_is_not_ours_is_ignored() {
        let one = StickyCookie::new(None, Some(&[7; 32]), false, None).unwrap();
        let set = one.write("a").unwrap();
        let value = set.to_str().unwrap().split(';').next().unwrap().split_once('=').unwrap().1.to_owned();
        assert_eq!(value.len(), TEXT_LEN);
        let read = |value: &str| {
            let line = format!("portcullis_sticky={value}").parse().unwrap();
            one.read(&HeaderMap::from_iter([(http::header::COOKIE, line)]))
        };
        assert!(read(&value).is_some());
        for at in 0..TEXT_LEN {
            let mut changed = value.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(read(std::str::from_utf8(&changed).unwrap()), None, "{at}");
        }
        for garbage in ["", "x", &value[1..], &format!("{value}A"), &"*".repeat(TEXT_LEN), &"A".repeat(9000)]
        {
            assert_eq!(read(garbage), None);
        }
    }

    #[test]
    fn names_are_tokens() {
        for name in ["", "a b", "a=b", "a;b", "é"] {
            assert!(matches!(StickyCookie::new(Some(name), None, false, None), Err(StickyError::Name(_))));
        }
    }
}
