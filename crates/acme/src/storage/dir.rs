//! A directory as storage.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use super::{LockGuard, Storage, StorageError};
use crate::schedule::random;

/// No certificate with its chain and key comes near it.
const MAX_VALUE: u64 = 1 << 20;
/// Locks are kept apart from values, so that none is taken for the other.
const LOCKS: &str = "locks";
const VALUES: &str = "values";
/// What file systems take for one name.
const MAX_FILE_NAME: usize = 255;

/// Files below one directory, for one machine or for several that mount it.
///
/// Directories are made with mode 0700 and files with 0600, before anything is in them. A value is written to a file
/// beside its own, made durable, and renamed; so it is whole or not there. What other programs put beside the files is
/// left alone.
///
/// A lock is one of the file system (`flock`) on a file that stays: the kernel frees it when the process ends, however
/// it does. On NFS locks need version 4, or a lock daemon; where a file system has none, taking one is an error and
/// nothing is issued. Clocks of several machines should agree within minutes: answers to challenges carry the time
/// until which they are good.
pub struct DirStorage {
    path: PathBuf,
}

impl DirStorage {
    /// With this directory; it is made, with those above it, when something is stored first.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self, kind: &str, key: &str) -> Result<PathBuf, StorageError> {
        let mut path = self.path.join(kind);
        for segment in key.split('/') {
            path.push(escape(segment).ok_or_else(|| StorageError::Key { key: key.to_owned() })?);
        }
        Ok(path)
    }
}

impl fmt::Debug for DirStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DirStorage").field(&self.path).finish()
    }
}

#[cfg(unix)]
fn exposed(path: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then(|| {
        let path = path.display();
        format!("{path} has mode {mode:04o}, and private keys are in it: run `chmod 700 {path}`")
    })
}

#[cfg(not(unix))]
fn exposed(_: &Path) -> Option<String> {
    None
}

/// A segment as a file name: never hidden, never `.` or `..`, and no two segments have the same.
fn escape(segment: &str) -> Option<String> {
    use std::fmt::Write as _;
    if segment.is_empty() || !segment.is_ascii() {
        return None;
    }
    let mut name = String::with_capacity(segment.len());
    for (place, byte) in segment.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            b'.' if place > 0 => name.push('.'),
            // writing to a String can't fail
            _ => drop(write!(name, "%{byte:02x}")),
        }
    }
    // the longest ending that is put to it has 21 characters and more
    (name.len() <= MAX_FILE_NAME - 40).then_some(name)
}

/// The segment of a file name that [`escape`] gives; `None` for every other file.
fn unescape(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    let segment = String::from_utf8(bytes).ok()?;
    (escape(&segment).as_deref() == Some(name)).then_some(segment)
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> StorageError + 'a {
    move |source| StorageError::Io { action, path: path.to_owned(), source }
}

fn make_directories(path: &Path) -> Result<(), StorageError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(failed("make the directory", path))
}

/// For this user alone from the beginning.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

impl Storage for DirStorage {
    fn load(&self, key: &str) -> Result<Option<Vec<u8>>, StorageError> {
        let path = self.file(VALUES, key)?;
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", &path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_VALUE + 1).read_to_end(&mut bytes).map_err(failed("read", &path))?;
        if bytes.len() as u64 > MAX_VALUE {
            return Err(StorageError::TooLarge { path, limit: MAX_VALUE });
        }
        Ok(Some(bytes))
    }

    fn store(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        let path = self.file(VALUES, key)?;
        let directory = path.parent().unwrap_or(&self.path);
        make_directories(directory)?;
        let beside = beside(&path);
        let written = write_durably(&beside, bytes)
            .map_err(failed("write", &beside))
            .and_then(|()| fs::rename(&beside, &path).map_err(failed("rename to", &path)));
        if written.is_err() {
            // it may not have come to be
            let _ = fs::remove_file(&beside);
            return written;
        }
        sync_directory(directory)
    }

    fn remove(&self, key: &str) -> Result<(), StorageError> {
        let path = self.file(VALUES, key)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        let directory = self.file(VALUES, prefix)?;
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &directory)(error)),
        };
        let mut keys = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed("list", &directory))?;
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if let Some(segment) = entry.file_name().to_str().and_then(unescape)
                && is_file
            {
                keys.push(format!("{prefix}/{segment}"));
            }
        }
        keys.sort_unstable();
        Ok(keys)
    }

    fn try_lock(&self, key: &str) -> Result<Option<Box<dyn LockGuard>>, StorageError> {
        let path = self.file(LOCKS, key)?;
        make_directories(path.parent().unwrap_or(&self.path))?;
        // it is never removed: who waits for a removed file's lock would share it with nobody
        let file = private().create(true).open(&path).map_err(failed("open the lock", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(FileLock(file)))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
        }
    }

    fn exposed(&self) -> Option<String> {
        exposed(&self.path)
    }
}

/// Where a value is written before it takes its place. No segment has a tilde in its file name, so no list shows it;
/// and a file that a crash left behind is in nobody's way.
fn beside(path: &Path) -> PathBuf {
    let mut beside = path.to_owned().into_os_string();
    beside.push(format!("~{:016x}", random()));
    beside.into()
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = private().create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes a rename durable.
fn sync_directory(path: &Path) -> Result<(), StorageError> {
    if cfg!(unix) {
        File::open(path).and_then(|directory| directory.sync_all()).map_err(failed("sync", path))?;
    }
    Ok(())
}

/// The lock ends when the file is closed.
#[derive(Debug)]
struct FileLock(#[allow(dead_code, reason = "held to be closed")] File);

impl LockGuard for FileLock {}

#[cfg(test)]
mod tests;
