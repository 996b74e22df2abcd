//! Users and the hashes of their passwords.

use std::{collections::HashMap, fmt, sync::Arc};

use arc_swap::ArcSwap;
use argon2::{
    Argon2, Params,
    password_hash::{PasswordHasher as _, PasswordVerifier as _, phc::PasswordHash},
};

/// The most that one hash may ask for: memory in KiB, passes, lanes.
const MAX_COST: (u32, u32, u32) = (256 * 1024, 32, 16);
/// More are a matter for a directory.
const MAX_USERS: usize = 100_000;

/// Who may pass, each with the argon2 hash of a password in the PHC form: `$argon2id$v=19$m=19456,t=2,p=1$...`. Takes some 200 bytes a user.
#[derive(Clone, Default)]
pub struct Users {
    known: HashMap<Box<str>, Arc<PasswordHash>>,
    /// What is computed for a name that is not known.
    decoy: Option<Arc<PasswordHash>>,
}

impl Users {
    /// Reads a list in the manner of htpasswd: a name, a colon and a hash on each line; lines that begin with `#` are comments. At most 100,000
    /// users. Hashes that ask for more than 256 MiB, 32 passes or 16 lanes are refused.
    ///
    /// A name that is not known costs as much as the first of the list, so that the time of an answer doesn't tell which names there are; let all
    /// hashes have the same parameters.
    ///
    /// # Errors
    /// When a line is wrong; it gives no list then.
    pub fn parse(text: &str) -> Result<Self, InvalidUser> {
        let mut users = Self::default();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |why| InvalidUser { line: at + 1, why };
            let (name, hash) = line.split_once(':').ok_or(wrong("it is not `name:hash`"))?;
            if name.is_empty() || name.chars().any(char::is_control) {
                return Err(wrong("the name is empty or has control characters"));
            }
            let hash = Arc::new(read_hash(hash).map_err(wrong)?);
            users.decoy.get_or_insert_with(|| Arc::clone(&hash));
            if users.known.insert(name.into(), hash).is_some() {
                return Err(wrong("the user is named twice"));
            }
            if users.known.len() > MAX_USERS {
                return Err(wrong("there are too many users"));
            }
        }
        Ok(users)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there is none, so that nobody passes.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// What to compute for a name, and whether it is a user's.
    pub(super) fn hash_of(&self, name: &str) -> Option<(Arc<PasswordHash>, bool)> {
        let known = self.known.get(name);
        known.or(self.decoy.as_ref()).map(|hash| (Arc::clone(hash), known.is_some()))
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("len", &self.len()).finish_non_exhaustive()
    }
}

fn read_hash(text: &str) -> Result<PasswordHash, &'static str> {
    const NONE: &str = "it has no argon2 hash in the PHC form, as `portcullis hash-password` makes it";
    let hash = PasswordHash::new(text).map_err(|_| NONE)?;
    if !hash.algorithm.as_str().starts_with("argon2") || hash.salt.is_none() || hash.hash.is_none() {
        return Err(NONE);
    }
    let params = Params::try_from(&hash).map_err(|_| NONE)?;
    let (memory, passes, lanes) = MAX_COST;
    if params.m_cost() > memory || params.t_cost() > passes || params.p_cost() > lanes {
        return Err("the hash asks for more than 256 MiB, 32 passes or 16 lanes");
    }
    Ok(hash)
}

/// A line that names no user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct InvalidUser {
    /// Which line, from 1.
    pub line: usize,
    why: &'static str,
}

/// [`Users`] that can be replaced while they are in use. Clones are the same.
#[derive(Clone, Debug)]
pub struct UserStore(Arc<ArcSwap<Generation>>);

/// Users, and how often they were replaced: what was found out about those before is not known of these.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) users: Arc<Users>,
    pub(super) number: u64,
}

impl UserStore {
    /// Begins with these users.
    pub fn new(users: Users) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Generation { users: Arc::new(users), number: 0 })))
    }

    /// Puts other users in their place. From then on nobody passes by a password that was right before.
    pub fn replace(&self, users: Users) {
        let users = Arc::new(users);
        self.0.rcu(|before| Generation { users: Arc::clone(&users), number: before.number + 1 });
    }

    pub(super) fn load(&self) -> Arc<Generation> {
        self.0.load_full()
    }
}

/// Computes for some 20 ms, in 19 MiB with the usual parameters.
pub(super) fn is_right(password: &[u8], hash: &PasswordHash) -> bool {
    // the comparison at its end takes the same time wherever the two differ
    Argon2::default().verify_password(password, hash).is_ok()
}

/// Hashes a password for a list of [`Users`]: argon2id with 19 MiB, 2 passes and 1 lane, as OWASP advises, and a salt of 16 random bytes. Blocks for
/// some 20 ms.
///
/// # Errors
/// When the system has no random bytes.
pub fn hash_password(password: &[u8]) -> Result<String, HashError> {
    let mut salt = [0; 16];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| HashError)?;
    let hash: PasswordHash =
        Argon2::default().hash_password_with_salt(password, &salt).map_err(|_| HashError)?;
    Ok(hash.to_string())
}

/// A password can't be hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the password can't be hashed: it is too long, or the system has no random bytes")]
pub struct HashError;
