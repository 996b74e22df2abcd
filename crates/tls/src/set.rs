//! A collection of certificates that is built beside the running store.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use rustls::sign::CertifiedKey;

use crate::{
    ca,
    cert_error::CertError,
    pair::{self, Added, Pair},
    x509::normal_name,
};

/// No chain or key comes near it; a path to something else is refused before it fills the memory.
const MAX_FILE: u64 = 1 << 20;

/// File names of a pair in a directory, the first that is there wins: as certbot, mkcert-like tools and
/// Kubernetes write them.
const FORMS: [(&str, &str); 3] =
    [("fullchain.pem", "privkey.pem"), ("cert.pem", "key.pem"), ("tls.crt", "tls.key")];

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

    /// Adds a chain and its key from two files; they may be the same file.
    ///
    /// # Errors
    /// As [`CertSet::add_pem`], and when a file can't be read or is larger than 1 MiB.
    pub fn load_files(&mut self, cert: &Path, key: &Path) -> Result<Added, CertError> {
        let pair = pair::read(
            &read_bounded(cert)?,
            &read_bounded(key)?,
            &cert.display().to_string(),
            &key.display().to_string(),
        )?;
        self.push(pair)
    }

    /// Adds the pair in a directory (`fullchain.pem` and `privkey.pem`, `cert.pem` and `key.pem`, or `tls.crt` and
    /// `tls.key`), or, where there is none, the pairs in the directories directly below it, by name. Names that
    /// begin with a dot are left out: Kubernetes keeps its hidden copies there.
    ///
    /// # Errors
    /// When the directory can't be read, when there is no pair, or when no pair in it could be taken (the first
    /// reason). Where some were taken, the others' reasons are in [`Loaded::failed`].
    pub fn load_directory(&mut self, directory: &Path) -> Result<Loaded, CertError> {
        if let Some((cert, key)) = pair_in(directory) {
            return Ok(Loaded { added: vec![self.load_files(&cert, &key)?], failed: Vec::new() });
        }
        let mut loaded = Loaded::default();
        for below in directories_in(directory)? {
            let Some((cert, key)) = pair_in(&below) else { continue };
            match self.load_files(&cert, &key) {
                Ok(added) => loaded.added.push(added),
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

/// The form of which the certificate file is there; whether its key is too is seen when it is read.
fn pair_in(directory: &Path) -> Option<(PathBuf, PathBuf)> {
    FORMS
        .iter()
        .map(|(cert, key)| (directory.join(cert), directory.join(key)))
        .find(|(cert, _)| cert.symlink_metadata().is_ok())
}

fn directories_in(directory: &Path) -> Result<Vec<PathBuf>, CertError> {
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

fn read_bounded(path: &Path) -> Result<Vec<u8>, CertError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|source| CertError::Read { path: path.to_owned(), source })?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(CertError::TooLarge { path: path.to_owned(), limit: MAX_FILE });
    }
    Ok(bytes)
}
