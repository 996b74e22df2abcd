//! Answers to challenges: in memory for this instance's orders, and in the storage for all others.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use portcullis_tls::CertStore;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::{crypto::aws_lc_rs, sign::CertifiedKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::{
    error::{AcmeError, Causes},
    names::{alpn_name, hex, unhex},
    seldom::Seldom,
    storage::{Storage, StorageError},
};

/// An answer in the storage is good for so long; one of a process that died is removed after it.
const GOOD_FOR: Duration = Duration::from_secs(3600);
/// How many look into the storage for answers at once.
const READS_AT_ONCE: usize = 8;
/// How long one that waits for its turn to look waits.
const READ_WAIT: Duration = Duration::from_secs(1);
/// A name without an answer is not looked for again for so long.
const MISS_KEPT: Duration = Duration::from_millis(100);
/// After an answer is stored, so long until the authority is told: then no instance still thinks that there is none.
pub(crate) const SETTLE: Duration = Duration::from_millis(200);
/// Names of which a miss, or another instance's answer, is remembered.
const MAX_REMEMBERED: usize = 1024;
/// RFC 8555 section 8.3: base64url, at least 128 bits; no authority's is near this.
const MAX_TOKEN: usize = 128;

const ALPN: &str = "challenges/alpn";
const HTTP: &str = "challenges/http";

/// As it is stored.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    /// The key authorization for HTTP-01, its digest in hexadecimal for TLS-ALPN-01.
    value: String,
    /// The name, or address, that is proved.
    name: String,
    /// In seconds since 1970.
    until: u64,
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Stored {
    fn new(value: String, name: &str) -> Self {
        Self { value, name: name.to_owned(), until: seconds(SystemTime::now() + GOOD_FOR) }
    }

    fn read(bytes: &[u8], now: SystemTime) -> Option<Self> {
        let stored: Self = serde_json::from_slice(bytes).ok()?;
        (stored.until > seconds(now)).then_some(stored)
    }

    fn bytes(&self) -> Vec<u8> {
        // strings and a number always become JSON
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// Something that was put where the authority looks for it, to be taken away again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    Alpn { name: String },
    Http { token: String },
    Dns { record: String, value: String },
}

pub(crate) struct Answers {
    storage: Arc<dyn Storage>,
    store: Arc<CertStore>,
    /// This instance's, by token; as many as its orders have names.
    http: Mutex<HashMap<String, String>>,
    /// The names of which this instance has the answer; bounded likewise.
    alpn: Mutex<HashSet<String>>,
    /// Other instances' answers in the certificate store, and until when.
    foreign: Mutex<HashMap<String, Instant>>,
    misses: Mutex<HashMap<String, Instant>>,
    reads: Arc<Semaphore>,
    told: Seldom,
}

impl Answers {
    pub(crate) fn new(storage: Arc<dyn Storage>, store: Arc<CertStore>) -> Self {
        Self {
            storage,
            store,
            http: Mutex::default(),
            alpn: Mutex::default(),
            foreign: Mutex::default(),
            misses: Mutex::default(),
            reads: Arc::new(Semaphore::new(READS_AT_ONCE)),
            told: Seldom::default(),
        }
    }

    /// Puts an answer into the storage and into memory. Blocks.
    pub(crate) fn put_alpn(&self, name: &str, digest: &[u8]) -> Result<(), AcmeError> {
        let asked = alpn_name(name);
        let key = alpn_certificate(name, digest).map_err(AcmeError::Generate)?;
        self.storage.store(&format!("{ALPN}/{asked}"), &Stored::new(hex(digest), name).bytes())?;
        self.alpn.lock().insert(asked.clone());
        self.foreign.lock().remove(&asked);
        self.store.challenges().insert(&asked, Arc::new(key));
        Ok(())
    }

    /// Puts an answer into the storage and into memory. Blocks.
    pub(crate) fn put_http(&self, token: &str, value: &str, name: &str) -> Result<(), AcmeError> {
        if !is_token(token) {
            return Err(StorageError::Key { key: token.to_owned() }.into());
        }
        self.storage.store(&format!("{HTTP}/{token}"), &Stored::new(value.to_owned(), name).bytes())?;
        self.http.lock().insert(token.to_owned(), value.to_owned());
        Ok(())
    }

    /// Takes an answer away again. Blocks.
    pub(crate) fn remove(&self, placed: &Placed) -> Result<(), StorageError> {
        match placed {
            Placed::Alpn { name } => {
                let asked = alpn_name(name);
                self.alpn.lock().remove(&asked);
                self.store.challenges().remove(&asked);
                self.storage.remove(&format!("{ALPN}/{asked}"))
            }
            Placed::Http { token } => {
                self.http.lock().remove(token);
                self.storage.remove(&format!("{HTTP}/{token}"))
            }
            Placed::Dns { .. } => Ok(()),
        }
    }

    /// Whether the certificate store has this instance's answer for a name, or it is known that there is none.
    pub(crate) fn is_settled(&self, asked: &str) -> bool {
        self.alpn.lock().contains(asked)
            || self.misses.lock().get(asked).is_some_and(|at| at.elapsed() < MISS_KEPT)
    }

    /// Takes another instance's answer for a name into the certificate store, if it has one.
    pub(crate) async fn fetch_alpn(self: Arc<Self>, asked: String) {
        let turn = Arc::clone(&self.reads).acquire_owned();
        let Ok(Ok(turn)) = tokio::time::timeout(READ_WAIT, turn).await else { return };
        let this = Arc::clone(&self);
        let fetched = tokio::task::spawn_blocking(move || {
            // given back when the reading is over, whoever has left meanwhile
            let _turn = turn;
            this.fetch_alpn_now(&asked);
        });
        // a panic there would be told by the runtime; the handshake goes on without an answer
        let _ = fetched.await;
    }

    fn fetch_alpn_now(&self, asked: &str) {
        let now = SystemTime::now();
        let stored = match self.storage.load(&format!("{ALPN}/{asked}")) {
            Ok(bytes) => bytes.and_then(|bytes| Stored::read(&bytes, now)),
            Err(error) => {
                self.tell(&error);
                self.miss(asked);
                return;
            }
        };
        let found = stored.filter(|stored| alpn_name(&stored.name) == asked).and_then(|stored| {
            Some((unhex(&stored.value).filter(|digest| digest.len() == 32)?, stored.name))
        });
        let key = found.and_then(|(digest, name)| alpn_certificate(&name, &digest).ok());
        if self.alpn.lock().contains(asked) {
            // begun here in the meantime
            return;
        }
        match key {
            Some(key) if self.remember(asked) => self.store.challenges().insert(asked, Arc::new(key)),
            Some(_) => {}
            None => {
                if self.foreign.lock().remove(asked).is_some() {
                    self.store.challenges().remove(asked);
                }
                self.miss(asked);
            }
        }
    }

    /// There is no answer for it, which is remembered for a moment.
    fn miss(&self, asked: &str) {
        let mut misses = self.misses.lock();
        if misses.len() >= MAX_REMEMBERED {
            misses.clear();
        }
        misses.insert(asked.to_owned(), Instant::now());
    }

    fn tell(&self, error: &StorageError) {
        if let Some(others) = self.told.now() {
            tracing::warn!(error = %Causes(error), others, "no answer to a challenge could be read");
        }
    }

    fn remember(&self, asked: &str) -> bool {
        let mut foreign = self.foreign.lock();
        let has_room = foreign.len() < MAX_REMEMBERED || foreign.contains_key(asked);
        if has_room {
            foreign.insert(asked.to_owned(), Instant::now() + Duration::from_secs(60));
        }
        has_room
    }

    /// The answer to an HTTP-01 challenge.
    pub(crate) async fn http(self: &Arc<Self>, token: &str) -> Option<String> {
        if !is_token(token) {
            return None;
        }
        if let Some(value) = self.http.lock().get(token) {
            return Some(value.clone());
        }
        let turn = Arc::clone(&self.reads).acquire_owned();
        let turn = tokio::time::timeout(READ_WAIT, turn).await.ok()?.ok()?;
        let (this, key) = (Arc::clone(self), format!("{HTTP}/{token}"));
        let load = move || {
            let _turn = turn;
            this.storage.load(&key)
        };
        let loaded = tokio::task::spawn_blocking(load).await.ok()?;
        match loaded {
            Ok(bytes) => Some(Stored::read(&bytes?, SystemTime::now())?.value),
            Err(error) => {
                self.tell(&error);
                None
            }
        }
    }

    /// Forgets other instances' answers after a minute.
    pub(crate) fn sweep_memory(&self) {
        let now = Instant::now();
        self.foreign.lock().retain(|name, until| {
            let stays = now < *until;
            if !stays {
                self.store.challenges().remove(name);
            }
            stays
        });
        self.misses.lock().retain(|_, at| at.elapsed() < MISS_KEPT);
    }

    /// Removes from the storage what nobody needs any more: answers whose time is over. What can't be read stays. Blocks.
    pub(crate) fn sweep_storage(&self, now: SystemTime) {
        for prefix in [ALPN, HTTP] {
            for key in self.storage.list(prefix).unwrap_or_default() {
                let swept = self.storage.load(&key).and_then(|bytes| {
                    let is_over = bytes.is_some_and(|bytes| Stored::read(&bytes, now).is_none());
                    if is_over { self.storage.remove(&key) } else { Ok(()) }
                });
                if let Err(error) = swept {
                    tracing::warn!(error = %Causes(&error), "an old answer to a challenge could not be removed");
                }
            }
        }
    }
}

/// RFC 8555 section 8.3: nothing but base64url.
fn is_token(token: &str) -> bool {
    !token.is_empty()
        && token.len() <= MAX_TOKEN
        && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// RFC 8737 section 3: it signs itself, is for the name alone, and has the digest in a critical extension.
fn alpn_certificate(name: &str, digest: &[u8]) -> Result<CertifiedKey, rcgen::Error> {
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = aws_lc_rs::sign::any_supported_type(&key).map_err(|_| rcgen::Error::RemoteKeyError)?;
    Ok(CertifiedKey::new(vec![cert.der().clone()], key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    fn two(storage: &MemoryStorage) -> [Arc<Answers>; 2] {
        [(); 2].map(|()| Arc::new(Answers::new(Arc::new(storage.clone()), Arc::default())))
    }

    #[tokio::test]
    async fn the_other_instance_answers_http() {
        let [one, other] = two(&MemoryStorage::new());
        one.put_http("tok_en-1", "tok_en-1.thumb", "a.example").unwrap();
        for answers in [&one, &other] {
            assert_eq!(answers.http("tok_en-1").await.as_deref(), Some("tok_en-1.thumb"));
            assert_eq!(answers.http("other").await, None);
        }
        one.remove(&Placed::Http { token: "tok_en-1".to_owned() }).unwrap();
        assert_eq!((one.http("tok_en-1").await, other.http("tok_en-1").await), (None, None));
    }

    #[test]
    fn tokens() {
        let long = "a".repeat(128);
        for (token, want) in [
            ("evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA", true),
            (long.as_str(), true),
            (&format!("{long}a"), false),
            ("", false),
            ("..", false),
            ("a/b", false),
            ("a%2e", false),
        ] {
            assert_eq!(is_token(token), want, "{token}");
        }
    }

    #[tokio::test]
    async fn the_other_instance_answers_tls() {
        let [one, other] = two(&MemoryStorage::new());
        one.put_alpn("192.0.2.1", &[7; 32]).unwrap();
        let asked = "1.2.0.192.in-addr.arpa";
        assert!(one.is_settled(asked) && !other.is_settled(asked));
        Arc::clone(&other).fetch_alpn(asked.to_owned()).await;
        assert!(other.foreign.lock().contains_key(asked), "taken over");
        assert!(!other.is_settled(asked), "and looked at anew each time");
        one.remove(&Placed::Alpn { name: "192.0.2.1".to_owned() }).unwrap();
        Arc::clone(&other).fetch_alpn(asked.to_owned()).await;
        assert!(other.foreign.lock().is_empty() && other.is_settled(asked), "gone, and known for a moment");
        assert!(!one.is_settled(asked));
    }

    #[tokio::test]
    async fn what_is_remembered_has_a_bound() {
        let [one, _] = two(&MemoryStorage::new());
        for n in 0..MAX_REMEMBERED + 10 {
            one.fetch_alpn_now(&format!("{n}.example"));
        }
        assert!(one.misses.lock().len() <= MAX_REMEMBERED);
    }

    #[test]
    fn old_answers_go() {
        let storage = MemoryStorage::new();
        let [one, _] = two(&storage);
        one.put_http("token", "value", "a.example").unwrap();
        one.put_alpn("a.example", &[1; 32]).unwrap();
        storage.store("challenges/http/damaged", b"{").unwrap();
        one.sweep_storage(SystemTime::now());
        assert_eq!(
            storage.list(HTTP).unwrap(),
            ["challenges/http/token"],
            "another one's order may be under way"
        );
        one.sweep_storage(SystemTime::now() + GOOD_FOR + Duration::from_secs(1));
        assert!(storage.list(HTTP).unwrap().is_empty() && storage.list(ALPN).unwrap().is_empty());
    }
}
