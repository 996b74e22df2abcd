//! What touches the file system. It blocks, and runs where that may be.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
};

use bytes::Bytes;

use super::{FileOptions, path::Below};
use crate::coding::Coding;

/// What is read at once, in bytes. A file that is not longer comes with its head.
pub(super) const CHUNK: u64 = 128 << 10;

/// A file that is served.
pub(super) struct Found {
    pub(super) file: File,
    pub(super) meta: Metadata,
    /// Its name without the ending of a coding.
    pub(super) name: String,
    pub(super) coding: Option<Coding>,
}

pub(super) enum Outcome {
    Found(Box<Found>),
    /// A directory that was asked for as a file.
    Directory,
    Nothing,
}

impl Outcome {
    fn found(found: Found) -> Self {
        Self::Found(Box::new(found))
    }
}

/// The root, by its one name.
struct Root<'o> {
    options: &'o FileOptions,
    real: PathBuf,
}

pub(super) fn find(options: &FileOptions, below: &Below, codings: &[Coding]) -> io::Result<Outcome> {
    // anew for each request: a link may lead to the next release by then
    let real = fs::canonicalize(&options.root)?;
    let root = Root { options, real };
    let outcome = root.find(below, codings)?;
    match (&outcome, &options.fallback) {
        (Outcome::Nothing, Some(fallback)) => {
            Ok(root.open(fallback, codings)?.map_or(Outcome::Nothing, Outcome::found))
        }
        _ => Ok(outcome),
    }
}

impl Root<'_> {
    fn find(&self, below: &Below, codings: &[Coding]) -> io::Result<Outcome> {
        let Some((_, meta)) = self.inside(&below.path)? else { return Ok(Outcome::Nothing) };
        if !meta.is_dir() {
            let found = if below.directory { None } else { self.open(&below.path, codings)? };
            return Ok(found.map_or(Outcome::Nothing, Outcome::found));
        }
        if !below.directory {
            return Ok(Outcome::Directory);
        }
        for index in &self.options.index {
            let slash = if below.path.is_empty() { "" } else { "/" };
            if let Some(found) = self.open(&format!("{}{slash}{index}", below.path), codings)? {
                return Ok(Outcome::found(found));
            }
        }
        Ok(Outcome::Nothing)
    }

    /// What a path leads to, if that is below the root when all links are followed.
    fn inside(&self, path: &str) -> io::Result<Option<(PathBuf, Metadata)>> {
        let real = match fs::canonicalize(self.real.join(path)) {
            Ok(real) => real,
            Err(error) if is_nothing(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        if !real.starts_with(&self.real) {
            return Ok(None);
        }
        match fs::symlink_metadata(&real) {
            Ok(meta) => Ok(Some((real, meta))),
            Err(error) if is_nothing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open(&self, path: &str, codings: &[Coding]) -> io::Result<Option<Found>> {
        let Some(plain) = self.open_one(path, path, None)? else { return Ok(None) };
        for coding in codings {
            let ending = match coding {
                Coding::Gzip => "gz",
                Coding::Brotli => "br",
                Coding::Zstd => "zst",
            };
            let coded = self.open_one(&format!("{path}.{ending}"), path, Some(*coding))?;
            // one that is older was forgotten when the file was changed
            let fresh = |found: &Found| match (found.meta.modified(), plain.meta.modified()) {
                (Ok(coded), Ok(plain)) => coded >= plain,
                _ => true,
            };
            if let Some(found) = coded.filter(fresh) {
                return Ok(Some(found));
            }
        }
        Ok(Some(plain))
    }

    fn open_one(&self, path: &str, name: &str, coding: Option<Coding>) -> io::Result<Option<Found>> {
        // a pipe would keep us waiting, so the kind is looked at before
        let Some((real, _)) = self.inside(path)?.filter(|(_, meta)| meta.is_file()) else { return Ok(None) };
        let file = match File::open(&real) {
            Ok(file) => file,
            Err(error) if is_nothing(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let meta = file.metadata()?;
        Ok(meta.is_file().then(|| Found { file, meta, name: name.to_owned(), coding }))
    }
}

/// Links that lead in a circle; std has no stable kind for them.
const ELOOP: i32 = if cfg!(any(target_os = "linux", target_os = "android")) { 40 } else { 62 };

/// What a client is told of as if it were not there: who may not read a file need not know of it.
fn is_nothing(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | NotADirectory | PermissionDenied | InvalidFilename)
        || (cfg!(unix) && error.raw_os_error() == Some(ELOOP))
}

/// The first piece of a part, and the file to read on in, if there is more.
pub(super) fn begin(mut file: File, from: u64, count: u64) -> io::Result<(Bytes, Option<(File, u64)>)> {
    if from > 0 {
        file.seek(SeekFrom::Start(from))?;
    }
    let (file, bytes) = read(file, count)?;
    let left = count - bytes.len() as u64;
    Ok((bytes, (left > 0).then_some((file, left))))
}

/// The next piece; an error where the file has become shorter.
pub(super) fn read(mut file: File, left: u64) -> io::Result<(File, Bytes)> {
    let want = left.min(CHUNK);
    let mut bytes = Vec::with_capacity(usize::try_from(want).unwrap_or_default());
    let read = (&mut file).take(want).read_to_end(&mut bytes)?;
    if (read as u64) < want {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a file became shorter while it was sent"));
    }
    Ok((file, bytes.into()))
}
