//! Where certificates, account and answers to challenges are kept, and how instances that share them take turns.

use std::{
    collections::{BTreeMap, HashSet},
    fmt, io,
    path::PathBuf,
    sync::Arc,
};

use parking_lot::Mutex;

use crate::error::BoxError;

mod dir;

pub use dir::DirStorage;

/// A place for small values (a few KiB each), shared by all instances that serve the same names.
///
/// Keys are segments divided by `/`, none of them empty; a segment is ASCII without control characters. Every method
/// may block: this crate calls them from blocking threads (`tokio::task::spawn_blocking`), but for
/// [`crate::Acme::load`], which runs where it is called.
///
/// What is stored has private keys in it. An implementation keeps it from others.
pub trait Storage: Send + Sync + 'static {
    /// The value of a key, or `None` where there is none.
    ///
    /// # Errors
    /// When it can't be told.
    fn load(&self, key: &str) -> Result<Option<Vec<u8>>, StorageError>;

    /// Sets the value of a key. Whoever loads it, also after a crash at any moment, gets the value before or this one,
    /// whole.
    ///
    /// # Errors
    /// When it was not stored; the value before is then still there.
    fn store(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError>;

    /// Removes a key; one that is not there is no error.
    ///
    /// # Errors
    /// When it may still be there.
    fn remove(&self, key: &str) -> Result<(), StorageError>;

    /// The keys directly below `prefix`, which are those that begin with it, a `/`, and one segment more.
    ///
    /// # Errors
    /// When they can't be listed. Nothing below it is no error.
    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError>;

    /// Takes a lock that one holder has among all instances, or `None` while another one has it. It must come free
    /// when the holder's process dies. Locks have names of their own, apart from the keys of values.
    ///
    /// # Errors
    /// When it can't be told whether it is free.
    fn try_lock(&self, key: &str) -> Result<Option<Box<dyn LockGuard>>, StorageError>;

    /// What of it others can read although private keys are in it, as a text for a person: logged by
    /// [`crate::Acme::load`]. Default `None`.
    fn exposed(&self) -> Option<String> {
        None
    }
}

/// A lock that is held until this is dropped.
pub trait LockGuard: Send + Sync + fmt::Debug {}

/// Why the storage could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The file system failed.
    #[error("cannot {action} {}: {}", path.display(), advice(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A value is larger than any certificate or account.
    #[error("{} is larger than {limit} bytes: it is nothing that was stored here, so move it away", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound in bytes.
        limit: u64,
    },
    /// A key has an empty segment, is too long, or has characters outside ASCII.
    #[error("{key:?} is no key for a storage")]
    Key {
        /// The key.
        key: String,
    },
    /// Another kind of storage failed.
    #[error("the storage failed")]
    Other(#[source] BoxError),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "permission denied: give the directory to the user that this process runs as"
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "there is a file where a directory belongs: move it away, or give another path"
        }
        io::ErrorKind::StorageFull => "the file system is full",
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only: give a path that can be written",
        _ => "the file system failed",
    }
}

/// A storage that forgets everything with the process: for tests, and where a certificate for each start is what is
/// wanted (mind the authority's rate limits). Clones are the same storage.
#[derive(Clone, Default)]
pub struct MemoryStorage(Arc<Memory>);

#[derive(Default)]
struct Memory {
    values: Mutex<BTreeMap<String, Vec<u8>>>,
    locks: Mutex<HashSet<String>>,
}

impl MemoryStorage {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }
}

impl fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // values have private keys in them
        f.debug_struct("MemoryStorage").field("values", &self.0.values.lock().len()).finish_non_exhaustive()
    }
}

impl Storage for MemoryStorage {
    fn load(&self, key: &str) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.0.values.lock().get(key).cloned())
    }

    fn store(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.0.values.lock().insert(key.to_owned(), bytes.to_owned());
        Ok(())
    }

    fn remove(&self, key: &str) -> Result<(), StorageError> {
        self.0.values.lock().remove(key);
        Ok(())
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        let below = |key: &&String| {
            let rest = key.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('/'));
            rest.is_some_and(|rest| !rest.contains('/'))
        };
        Ok(self.0.values.lock().keys().filter(below).cloned().collect())
    }

    fn try_lock(&self, key: &str) -> Result<Option<Box<dyn LockGuard>>, StorageError> {
        let is_new = self.0.locks.lock().insert(key.to_owned());
        let guard = || MemoryLock { memory: Arc::clone(&self.0), key: key.to_owned() };
        Ok(is_new.then(|| Box::new(guard()) as Box<dyn LockGuard>))
    }
}

struct MemoryLock {
    memory: Arc<Memory>,
    key: String,
}

impl LockGuard for MemoryLock {}

impl fmt::Debug for MemoryLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemoryLock").field(&self.key).finish()
    }
}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.memory.locks.lock().remove(&self.key);
    }
}
