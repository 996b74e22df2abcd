//! A collection of certificates that is built beside the running store.

use std::{
    fs::{self, File},
    io::{self, Read},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use rustls::sign::CertifiedKey;

use crate::{
    ca,
    cert_error::CertError,
    pair::{self, Added, Pair},
    x509::{self, normal_name},
};

/// No chain or key comes near it; a path to something else is refused before it fills the memory.
const MAX_FILE: u64 = 1 << 20;

/// File names of a pair in a directory, the first that is there wins: as certbot, mkcert-like tools and
/// Kubernetes write them.
const FORMS: [(&str, &str); 3] =
    [("fullchain.pem", "privkey.pem"), ("cert.pem", "key.pem"), ("tls.crt", "tls.key")];

/// An OCSP response beside a pair in a directory; beside a certificate file it is that file's name and this.
const STAPLE: &str = "ocsp.der";
const STAPLE_SUFFIX: &str = "ocsp";
/// No response comes near it.
const MAX_STAPLE: u64 = 64 << 10;

/// Threads that load at most: reading and checking 10,000 pairs is a second's work for one.
const MAX_LOADERS: usize = 16;

/// Certificates gathered for [`crate::CertStore::replace_all`] or [`crate::CertStore::add_all`].
///
/// Loading reads files and checks keys, both on the calling thread: within a runtime, do it in
/// `tokio::task::spawn_blocking`.
#[derive(Debug, Default)]
pub struct CertSet {
    pub(crate) pairs: Vec<Pair>,
}

/// What came of a directory.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Loaded {
    /// What was taken, in the order of the directories' names.
    pub added: Vec<Added>,
    /// What was not. A directory of many certificates is not refused for one bad pair in it.
    pub failed: Vec<CertError>,
}

impl CertSet {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many certificates it holds.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Adds a chain (leaf first) and its key from PEM text.
    ///
    /// # Errors
    /// When either is missing or damaged, when they do not belong together, or out of the certificate's time.
    pub fn add_pem(&mut self, cert_pem: &[u8], key_pem: &[u8]) -> Result<Added, CertError> {
        self.push(pair::read(cert_pem, key_pem, "the given PEM", "the given PEM")?)
    }

    /// Adds a chain and its key from two files; they may be the same file. Where beside the certificate lies a file of its name with
    /// `.ocsp` added (`fullchain.pem.ocsp`), that is an OCSP response in DER, which is stapled if it is one for this certificate.
    ///
    /// # Errors
    /// As [`CertSet::add_pem`], and when a file can't be read or is larger than 1 MiB.
    pub fn load_files(&mut self, cert: &Path, key: &Path) -> Result<Added, CertError> {
        self.push(PairFiles::new(cert.to_owned(), key.to_owned()).load()?)
    }

    /// Adds the pair in a directory (`fullchain.pem` and `privkey.pem`, `cert.pem` and `key.pem`, or `tls.crt` and
    /// `tls.key`), or, where there is none, the pairs in the directories directly below it, by name. Names that
    /// begin with a dot are left out: Kubernetes keeps its hidden copies there. A file `ocsp.der` beside a pair is stapled. Many
    /// pairs are loaded on all cores.
    ///
    /// # Errors
    /// When the directory can't be read, when there is no pair, or when no pair in it could be taken (the first
    /// reason). Where some were taken, the others' reasons are in [`Loaded::failed`].
    pub fn load_directory(&mut self, directory: &Path) -> Result<Loaded, CertError> {
        let files = pairs_below(directory)?;
        let mut loaded = Loaded::default();
        for pair in load_all(&files) {
            match pair {
                Ok(pair) => loaded.added.push(self.push(pair)?),
                Err(error) => loaded.failed.push(error),
            }
        }
        if loaded.added.is_empty() {
            let none = || CertError::NoPair { path: directory.to_owned() };
            return Err(loaded.failed.into_iter().next().unwrap_or_else(none));
        }
        Ok(loaded)
    }

    /// Makes a certificate for DNS names and IP addresses and signs it with its own key: for local use, since no
    /// client trusts it before it was told the [`Added::fingerprint`]. Valid for 365 days.
    ///
    /// # Errors
    /// When a name is not one.
    pub fn add_self_signed(&mut self, names: &[String]) -> Result<Added, CertError> {
        let issued = ca::self_signed(names)?;
        let origin = "the certificate made here";
        self.push(pair::read(issued.cert_pem.as_bytes(), issued.key_pem.as_bytes(), origin, origin)?)
    }

    /// Adds a chain and key that the program made or holds in hardware, for the names it gives (wildcards as
    /// `*.example.com`; what is no name is left out). Nothing is checked.
    pub fn add_key<I>(&mut self, names: I, key: CertifiedKey) -> Added
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let names = names.into_iter().filter_map(|name| normal_name(name.as_ref())).collect();
        let pair = pair::trusted(names, key);
        let added = pair.about.clone();
        self.pairs.push(pair);
        added
    }

    fn push(&mut self, pair: Pair) -> Result<Added, CertError> {
        let added = pair.about.clone();
        self.pairs.push(pair);
        Ok(added)
    }
}

/// Where one pair is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PairFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    /// Where an OCSP response is, if there is one.
    pub(crate) staple: PathBuf,
}

impl PairFiles {
    pub(crate) fn new(cert: PathBuf, key: PathBuf) -> Self {
        let mut staple = cert.clone().into_os_string();
        staple.push(".");
        staple.push(STAPLE_SUFFIX);
        Self { cert, key, staple: staple.into() }
    }

    /// Reads and checks it.
    pub(crate) fn load(&self) -> Result<Pair, CertError> {
        let origin = |path: &Path| path.display().to_string();
        let (cert, key) = (read_bounded(&self.cert, MAX_FILE)?, read_bounded(&self.key, MAX_FILE)?);
        let mut pair = pair::read(&cert, &key, &origin(&self.cert), &origin(&self.key))?;
        if self.staple.exists() {
            // better without one than not at all: few clients ask for it
            match read_staple(&self.staple, &pair) {
                Ok(response) => pair.staple(response),
                Err(error) => tracing::warn!(%error, "an OCSP response is left out"),
            }
        }
        Ok(pair)
    }
}

/// RFC 6960 section 4.2.1: a sequence that begins with the status `successful`, and tells of a serial number: the certificate's, or else it is
/// that of the one before.
fn read_staple(path: &Path, pair: &Pair) -> Result<Vec<u8>, CertError> {
    let response = read_bounded(path, MAX_STAPLE)?;
    let successful =
        response.first() == Some(&0x30) && response.windows(3).take(6).any(|w| w == [0x0a, 1, 0]);
    let serial = pair.key.cert.first().and_then(|leaf| x509::serial(leaf));
    let fits = serial.is_none_or(|serial| response.windows(serial.len()).any(|window| window == serial));
    if successful && fits { Ok(response) } else { Err(CertError::BadStaple { path: path.to_owned() }) }
}

/// Loads many pairs on all cores; the results are in the order of the files.
pub(crate) fn load_all(files: &[PairFiles]) -> Vec<Result<Pair, CertError>> {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    // a thread is worth it for some twenty pairs
    let loaders = cores.min(MAX_LOADERS).min(files.len().div_ceil(20));
    if loaders <= 1 {
        return files.iter().map(PairFiles::load).collect();
    }
    let next = AtomicUsize::new(0);
    let load = || {
        let mut loaded = Vec::new();
        while let Some((place, files)) = {
            let place = next.fetch_add(1, Ordering::Relaxed);
            files.get(place).map(|files| (place, files))
        } {
            loaded.push((place, files.load()));
        }
        loaded
    };
    let mut loaded: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (1..loaders).map(|_| scope.spawn(load)).collect();
        let mut loaded = load();
        for thread in threads {
            // what it had begun is lost with a panic, and is a panic here too
            match thread.join() {
                Ok(more) => loaded.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        loaded
    });
    loaded.sort_unstable_by_key(|(place, _)| *place);
    loaded.into_iter().map(|(_, pair)| pair).collect()
}

/// The pair in a directory, or those in the directories directly below it.
pub(crate) fn pairs_below(directory: &Path) -> Result<Vec<PairFiles>, CertError> {
    if let Some(pair) = pair_in(directory) {
        return Ok(vec![pair]);
    }
    Ok(directories_in(directory)?.iter().filter_map(|below| pair_in(below)).collect())
}

/// The form of which the certificate file is there; whether its key is too is seen when it is read.
fn pair_in(directory: &Path) -> Option<PairFiles> {
    FORMS
        .iter()
        .map(|(cert, key)| (directory.join(cert), directory.join(key)))
        .find(|(cert, _)| cert.symlink_metadata().is_ok())
        .map(|(cert, key)| PairFiles { cert, key, staple: directory.join(STAPLE) })
}

pub(crate) fn directories_in(directory: &Path) -> Result<Vec<PathBuf>, CertError> {
    let failed = |source| CertError::Read { path: directory.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden && entry.path().is_dir() {
            found.push(entry.path());
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, CertError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|source| CertError::Read { path: path.to_owned(), source })?;
    if bytes.len() as u64 > limit {
        return Err(CertError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(bytes)
}
