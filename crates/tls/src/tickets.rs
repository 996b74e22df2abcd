//! Session tickets: keys that rotate by themselves, or that several instances share.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey},
    hkdf, rand,
};
use parking_lot::Mutex;
use rustls::server::ProducesTickets;

/// How long a client may use a ticket: RFC 8446 section 4.6.1 allows seven days, forward secrecy asks for less.
const LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// How often keys that nobody shares are renewed. Two more are kept, so a ticket lives for its whole lifetime.
const ROTATE_EVERY: Duration = Duration::from_secs(6 * 3600);
const KEPT: usize = 3;
/// More keys than anybody rotates through.
const MAX_KEYS: usize = 16;
const MAX_FILE: u64 = 64 * 1024;

type Secret = [u8; 32];

/// The secrets of which session tickets (RFC 8446 section 4.6.1, RFC 5077) are made. Clones share them.
///
/// One set of secrets may serve any number of configurations: each derives keys of its own, by transport. Configurations that ask clients for
/// certificates have no tickets at all, so that a ticket never carries a client past a rule that it did not meet.
///
/// A ticket carries the session and the time when it was made; nothing is kept here, and for 12 hours it works on every instance that has the
/// secret, if clocks agree within 5 minutes. It can be used more than once, so there is no early data with tickets; see [`crate::Resumption`].
#[derive(Clone)]
pub struct TicketKeys(Arc<Keys>);

struct Keys {
    current: ArcSwap<Secrets>,
    /// Held while they change.
    change: Mutex<()>,
    rotates: bool,
}

struct Secrets {
    /// Counts changes, for keys derived from them.
    generation: u64,
    /// The first seals; all of them open.
    list: Vec<Secret>,
    since: Instant,
}

/// Why secrets for tickets were not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TicketKeyError {
    /// The file could not be read.
    #[error("cannot read the ticket keys in {}: make it a file that only this server's user can read", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line is not a key.
    #[error(
        "line {line} of the ticket keys is not 64 hexadecimal digits: make one with `openssl rand -hex 32`"
    )]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// There is none.
    #[error(
        "there is no ticket key: write one line of 64 hexadecimal digits, as `openssl rand -hex 32` makes it"
    )]
    None,
    /// There are too many.
    #[error("{0} ticket keys are too many: 16 at most")]
    TooMany(usize),
    /// The system gives no randomness.
    #[error("the system gives no random bytes")]
    Random,
}

impl TicketKeys {
    /// Secrets of this process alone. A new one seals every 6 hours and opens for 12 hours more.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn random() -> Result<Self, TicketKeyError> {
        Ok(Self::with(vec![new_secret()?], true))
    }

    /// Secrets that several instances share: one to a line, 64 hexadecimal digits; empty lines and those that begin
    /// with `#` are left out; 16 at most. The first seals, all open.
    ///
    /// To rotate without loss: add the new one as the second line everywhere, then make it the first everywhere,
    /// and take the old one out after 12 hours.
    ///
    /// # Errors
    /// When a line is not a key, or there is none.
    pub fn from_text(text: &str) -> Result<Self, TicketKeyError> {
        Ok(Self::with(read(text)?, false))
    }

    /// Shared secrets from a file.
    ///
    /// # Errors
    /// As [`TicketKeys::from_text`], and when the file can't be read.
    pub fn from_file(path: &Path) -> Result<Self, TicketKeyError> {
        Self::from_text(&read_file(path)?)
    }

    fn with(list: Vec<Secret>, rotates: bool) -> Self {
        let secrets = Secrets { generation: 0, list, since: Instant::now() };
        Self(Arc::new(Keys { current: ArcSwap::from_pointee(secrets), change: Mutex::new(()), rotates }))
    }

    /// Puts other shared secrets in place of these, in all configurations that use them; `false` when they are the
    /// same. Tickets of a secret that is still there go on working.
    ///
    /// # Errors
    /// As [`TicketKeys::from_text`]; nothing is changed then.
    pub fn replace(&self, text: &str) -> Result<bool, TicketKeyError> {
        let list = read(text)?;
        let _guard = self.0.change.lock();
        let before = self.0.current.load_full();
        if before.list == list {
            return Ok(false);
        }
        let generation = before.generation + 1;
        self.0.current.store(Arc::new(Secrets { generation, list, since: Instant::now() }));
        Ok(true)
    }

    /// The same with a file.
    ///
    /// # Errors
    /// As [`TicketKeys::from_file`]; nothing is changed then.
    pub fn replace_from_file(&self, path: &Path) -> Result<bool, TicketKeyError> {
        self.replace(&read_file(path)?)
    }

    /// Tickets for one kind of configuration.
    pub(crate) fn ticketer(&self, context: &'static str) -> Arc<dyn ProducesTickets> {
        Arc::new(Ticketer { keys: self.clone(), context, derived: ArcSwapOption::empty() })
    }

    fn secrets(&self, now: Instant) -> arc_swap::Guard<Arc<Secrets>> {
        let current = self.0.current.load();
        if !self.0.rotates || now.saturating_duration_since(current.since) < ROTATE_EVERY {
            return current;
        }
        let _guard = self.0.change.lock();
        let before = self.0.current.load_full();
        if now.saturating_duration_since(before.since) >= ROTATE_EVERY
            && let Ok(secret) = new_secret()
        {
            let mut list = vec![secret];
            // after a day without a client the old ones are too old
            if now.saturating_duration_since(before.since) < LIFETIME {
                list.extend(before.list.iter().take(KEPT - 1));
            }
            self.0.current.store(Arc::new(Secrets { generation: before.generation + 1, list, since: now }));
        }
        self.0.current.load()
    }
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secrets = self.0.current.load();
        f.debug_struct("TicketKeys").field("keys", &secrets.list.len()).finish_non_exhaustive()
    }
}

fn new_secret() -> Result<Secret, TicketKeyError> {
    let mut secret = [0; 32];
    rand::fill(&mut secret).map_err(|_| TicketKeyError::Random)?;
    Ok(secret)
}

fn read_file(path: &Path) -> Result<String, TicketKeyError> {
    let read = || {
        let mut text = String::new();
        io::Read::read_to_string(&mut io::Read::take(fs::File::open(path)?, MAX_FILE), &mut text)?;
        Ok(text)
    };
    read().map_err(|source| TicketKeyError::Read { path: path.to_owned(), source })
}

fn read(text: &str) -> Result<Vec<Secret>, TicketKeyError> {
    let lines = (1..).zip(text.lines().map(str::trim));
    let keys = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let list = keys
        .map(|(number, line)| secret(line).ok_or(TicketKeyError::Line { line: number }))
        .collect::<Result<Vec<_>, _>>()?;
    match list.len() {
        0 => Err(TicketKeyError::None),
        1..=MAX_KEYS => Ok(list),
        many => Err(TicketKeyError::TooMany(many)),
    }
}

fn secret(line: &str) -> Option<Secret> {
    let digits = line.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut secret = [0; 32];
    for (byte, pair) in secret.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
    }
    Some(secret)
}

/// A ticket is the key's name, a nonce, and, sealed, the time in seconds since 1970 and the session.
struct Ticketer {
    keys: TicketKeys,
    context: &'static str,
    derived: ArcSwapOption<Derived>,
}

struct Derived {
    generation: u64,
    keys: Vec<(Name, RandomizedNonceKey)>,
}

type Name = [u8; 16];
const NONCE: usize = 12;
const TIME: usize = 8;
/// By how much the clocks of instances may differ.
const CLOCKS: Duration = Duration::from_secs(300);

impl Ticketer {
    fn derived(&self) -> Option<Arc<Derived>> {
        let secrets = self.keys.secrets(Instant::now());
        if let Some(derived) = &*self.derived.load()
            && derived.generation == secrets.generation
        {
            return Some(Arc::clone(derived));
        }
        let keys = secrets.list.iter().map(|secret| derive(secret, self.context)).collect::<Option<_>>()?;
        let derived = Arc::new(Derived { generation: secrets.generation, keys });
        self.derived.store(Some(Arc::clone(&derived)));
        Some(derived)
    }

    fn seal(&self, plain: &[u8], now: u64) -> Option<Vec<u8>> {
        let derived = self.derived()?;
        let (name, key) = derived.keys.first()?;
        let mut sealed = Vec::with_capacity(TIME + plain.len() + 16);
        sealed.extend_from_slice(&now.to_be_bytes());
        sealed.extend_from_slice(plain);
        let nonce = key.seal_in_place_append_tag(Aad::from(name), &mut sealed).ok()?;
        let mut ticket = Vec::with_capacity(name.len() + NONCE + sealed.len());
        ticket.extend_from_slice(name);
        ticket.extend_from_slice(nonce.as_ref());
        ticket.append(&mut sealed);
        Some(ticket)
    }

    fn open(&self, ticket: &[u8], now: u64) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<16>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>()?;
        let derived = self.derived()?;
        let (_, key) = derived.keys.iter().find(|(known, _)| known == name)?;
        let mut opened = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = key.open_in_place(nonce, Aad::from(name), &mut opened).ok()?;
        let (made, session) = opened.split_first_chunk::<TIME>()?;
        let made = u64::from_be_bytes(*made);
        // clients keep to the lifetime that they were told; a thief does not
        let fresh = made <= now + CLOCKS.as_secs() && now <= made + LIFETIME.as_secs() + CLOCKS.as_secs();
        fresh.then(|| session.to_vec())
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A key and its name, by HKDF (RFC 5869): the same on every instance that has the secret.
fn derive(secret: &Secret, context: &str) -> Option<(Name, RandomizedNonceKey)> {
    struct Bytes(usize);
    impl hkdf::KeyType for Bytes {
        fn len(&self) -> usize {
            self.0
        }
    }
    let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, b"portcullis session tickets 1").extract(secret);
    let mut name = Name::default();
    let mut key = Secret::default();
    extracted.expand(&[b"name ", context.as_bytes()], Bytes(name.len())).ok()?.fill(&mut name).ok()?;
    extracted.expand(&[b"key ", context.as_bytes()], Bytes(key.len())).ok()?.fill(&mut key).ok()?;
    Some((name, RandomizedNonceKey::new(&AES_256_GCM, &key).ok()?))
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(LIFETIME.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, now())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.open(ticket, now())
    }
}

impl fmt::Debug for Ticketer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticketer").field("context", &self.context).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: &str = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";
    const B: &str = "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn tickets(keys: &TicketKeys, context: &'static str) -> Arc<dyn ProducesTickets> {
        keys.ticketer(context)
    }

    #[test]
    fn instances_with_one_secret_open_each_others_tickets() {
        let (here, there) = (TicketKeys::from_text(A).unwrap(), TicketKeys::from_text(A).unwrap());
        let ticket = tickets(&here, "tcp").encrypt(b"session").unwrap();
        assert_eq!(tickets(&there, "tcp").decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(tickets(&there, "quic").decrypt(&ticket), None, "another kind of configuration");
        let stranger = TicketKeys::from_text(B).unwrap();
        assert_eq!(tickets(&stranger, "tcp").decrypt(&ticket), None);
    }

    #[test]
    fn rotation_loses_nothing() {
        let keys = TicketKeys::from_text(A).unwrap();
        let tickets = tickets(&keys, "tcp");
        let old = tickets.encrypt(b"old").unwrap();
        assert!(!keys.replace(&A.to_lowercase()).unwrap(), "the same");
        assert!(keys.replace(&format!("# new first\n{B}\n\n{A}\n")).unwrap());
        let new = tickets.encrypt(b"new").unwrap();
        assert_ne!(old[..16], new[..16], "the new secret seals");
        assert!(tickets.decrypt(&old).is_some() && tickets.decrypt(&new).is_some());
        assert!(keys.replace(B).unwrap());
        assert!(tickets.decrypt(&old).is_none() && tickets.decrypt(&new).is_some());
        assert!(matches!(keys.replace("x"), Err(TicketKeyError::Line { line: 1 })));
        assert!(tickets.decrypt(&new).is_some(), "a bad file changes nothing");
    }

    #[test]
    fn keys_of_ones_own_rotate_and_are_forgotten() {
        let keys = TicketKeys::random().unwrap();
        let now = Instant::now();
        let first = keys.secrets(now).list.clone();
        assert_eq!(keys.secrets(now + ROTATE_EVERY - Duration::from_secs(60)).list, first);
        let at = |turn: u32| now + (ROTATE_EVERY + Duration::from_secs(1)) * turn;
        for (turn, kept) in [(1, 2), (2, 3), (3, 3)] {
            let secrets = keys.secrets(at(turn)).list.clone();
            assert_eq!(secrets.len(), kept);
            assert_eq!(secrets.contains(&first[0]), turn < 3, "turn {turn}");
        }
        assert_eq!(keys.secrets(at(10)).list.len(), 1, "after a long silence the old ones are too old");
    }

    #[test]
    fn a_ticket_ends_with_its_lifetime() {
        let keys = TicketKeys::from_text(A).unwrap();
        let tickets = Ticketer { keys, context: "tcp", derived: ArcSwapOption::empty() };
        let (made, hours) = (1_800_000_000, 3600);
        let ticket = tickets.seal(b"session", made).unwrap();
        for (now, opens) in [
            (made, true),
            (made + 12 * hours, true),
            (made + 13 * hours, false),
            (made - 200, true),
            (made - 400, false),
        ] {
            assert_eq!(tickets.open(&ticket, now).is_some(), opens, "{now}");
        }
    }

    #[test]
    fn bad_files() {
        for (text, want) in [
            ("", "there is no ticket key"),
            ("# only a comment\n", "there is no ticket key"),
            ("\n00", "line 2 of the ticket keys"),
            (&A.replace('0', "g"), "line 1 of the ticket keys"),
            (&format!("{A}\n").repeat(17), "17 ticket keys are too many"),
        ] {
            assert!(TicketKeys::from_text(text).unwrap_err().to_string().contains(want), "{text:?}");
        }
        let missing = TicketKeys::from_file(Path::new("/nonexistent/keys")).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/keys"));
        assert!(!format!("{:?}", TicketKeys::from_text(A).unwrap()).contains("17"), "no secret is printed");
    }

    proptest! {
        #[test]
        fn any_ticket_is_survived(ticket in proptest::collection::vec(any::<u8>(), 0..200), flip in 0_usize..64) {
            let keys = TicketKeys::from_text(A).unwrap();
            let tickets = tickets(&keys, "tcp");
            prop_assert_eq!(tickets.decrypt(&ticket), None);
            let mut good = tickets.encrypt(&ticket).unwrap();
            let at = flip % good.len();
            good[at] ^= 1;
            prop_assert_eq!(tickets.decrypt(&good), None);
        }
    }
}
