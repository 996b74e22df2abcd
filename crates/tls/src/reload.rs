//! Certificates that follow their files.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tracing::{info, warn};

use crate::{
    CertError, CertSet, CertStore,
    pair::{Added, Pair},
    set::{PairFiles, load_all, pairs_below},
    store::CertPart,
    watch::Watch,
};

/// Where certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertSource {
    /// A PEM chain and its key; see [`CertSet::load_files`].
    Files {
        /// The chain, leaf first.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// A directory with one pair, or of such directories; see [`CertSet::load_directory`].
    Directory(PathBuf),
    /// Made at start and never stored; see [`CertSet::add_self_signed`].
    SelfSigned {
        /// The names and IP addresses it is good for.
        names: Vec<String>,
    },
}

/// How files are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReloadOptions {
    /// How often the files' times, sizes and inodes are looked at, whether the system tells of a change or not: network file
    /// systems don't. Default 30 s; looking at a pair takes some 10 \u{b5}s. At least 100 ms.
    pub poll: Duration,
    /// How long after a change that the system told of files are left alone, so that a tool can write key and certificate. Default 500 ms;
    /// at most ten times as long when changes don't end, and never longer than `poll`.
    pub debounce: Duration,
}

impl Default for ReloadOptions {
    fn default() -> Self {
        Self { poll: Duration::from_secs(30), debounce: Duration::from_millis(500) }
    }
}

impl ReloadOptions {
    /// Sets [`ReloadOptions::poll`].
    #[must_use]
    pub fn with_poll(mut self, poll: Duration) -> Self {
        self.poll = poll;
        self
    }

    /// Sets [`ReloadOptions::debounce`].
    #[must_use]
    pub fn with_debounce(mut self, debounce: Duration) -> Self {
        self.debounce = debounce;
        self
    }
}

/// What a look at the files changed.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Reloaded {
    /// Certificates that are new or newer.
    pub updated: Vec<Added>,
    /// Certificates of which the files are gone.
    pub removed: Vec<Added>,
    /// What could not be taken; where there was a certificate before, it is served on. A file that stays as it is is told of once.
    pub failed: Vec<CertError>,
}

impl Reloaded {
    /// Whether nothing changed and nothing failed.
    pub fn is_empty(&self) -> bool {
        self.updated.is_empty() && self.removed.is_empty() && self.failed.is_empty()
    }
}

/// Keeps a part of a [`CertStore`] as its files are.
///
/// A change is found by the files behind all symbolic links, so certbot's links and Kubernetes' swapped directories are seen. A
/// pair is checked in full before it is served; one that is not sound leaves the one before in place, is logged once, and is tried again when
/// its files change. Handshakes under way, open connections, tickets and sessions are not touched.
#[derive(Debug)]
pub struct CertReloader {
    part: CertPart,
    sources: Vec<CertSource>,
    known: HashMap<PairFiles, Known>,
    /// Certificates that have no files, by the place of their source.
    made: HashMap<usize, Pair>,
    /// The files of each source when it could be listed the last time, and why it could not be this time.
    listed: Vec<(Listed, Option<String>)>,
}

#[derive(Debug)]
struct Known {
    /// `None` when they are to be looked at again although they stay as they are.
    stamp: Option<Stamp>,
    /// What is wrong with them, as it was told.
    told: Option<String>,
    /// What is served: of these files, or of the ones before if these are not sound.
    pair: Option<Pair>,
}

/// The pairs of one source.
type Listed = Vec<PairFiles>;

/// What a file's change shows in: time, size and inode of each of the three, behind links.
type Stamp = [Option<(SystemTime, u64, u64)>; 3];

impl CertReloader {
    /// For these sources; nothing is read yet.
    pub fn new(store: &Arc<CertStore>, sources: Vec<CertSource>) -> Self {
        Self::of_part(store.part(), sources)
    }

    /// For these sources in place of those of another reloader, whose [`CertReloader::part`] this is: what [`CertReloader::load`] finds takes the place
    /// of its certificates in one step. Stop that one, and call [`CertReloader::publish`] when it has ended: it may have been about to publish.
    pub fn of_part(part: CertPart, sources: Vec<CertSource>) -> Self {
        let (known, made) = Default::default();
        let listed = vec![Default::default(); sources.len()];
        Self { part, sources, known, made, listed }
    }

    /// The part of the store that this one fills.
    pub fn part(&self) -> CertPart {
        self.part.clone()
    }

    /// Whether there is no file of any source, and nothing is to be made. What is there and can't be used, or can't be looked at, is
    /// not nothing. Blocks.
    pub fn finds_nothing(&self) -> bool {
        self.sources.iter().all(|source| match source {
            CertSource::Files { cert, key } => is_missing(cert) && is_missing(key),
            CertSource::Directory(path) => {
                is_missing(path) || pairs_below(path).is_ok_and(|pairs| pairs.is_empty())
            }
            CertSource::SelfSigned { .. } => false,
        })
    }

    /// Loads all for the first time: on all cores, blocking.
    ///
    /// # Errors
    /// When a source has nothing that can be served; the store is then as it was. What of a directory could not be taken while
    /// others could is in [`Reloaded::failed`].
    pub fn load(&mut self) -> Result<Reloaded, CertError> {
        for (place, source) in self.sources.iter().enumerate() {
            if let CertSource::SelfSigned { names } = source {
                let mut set = CertSet::new();
                set.add_self_signed(names)?;
                self.made.extend(set.pairs.pop().map(|pair| (place, pair)));
            }
        }
        let listed = self.sources.iter().map(list).collect::<Result<Vec<_>, _>>()?;
        let mut reloaded = Reloaded::default();
        let files = listed.concat();
        let stamps: Vec<_> = files.iter().map(stamp).collect();
        let mut failures = HashMap::new();
        for ((files, stamp), pair) in files.iter().zip(stamps).zip(load_all(&files)) {
            let known = match pair {
                Ok(pair) => {
                    reloaded.updated.push(pair.about.clone());
                    Known { stamp: Some(stamp), told: None, pair: Some(pair) }
                }
                Err(error) => {
                    let known = Known::failed(stamp, &error, None);
                    failures.insert(files.clone(), error);
                    known
                }
            };
            self.known.insert(files.clone(), known);
        }
        let served = |files: &PairFiles| self.known.get(files).is_some_and(|known| known.pair.is_some());
        for files in listed.iter().filter(|files| !files.is_empty()) {
            if !files.iter().any(served)
                && let Some(error) = files.iter().find_map(|files| failures.remove(files))
            {
                self.known.clear();
                return Err(error);
            }
        }
        reloaded.failed = files.iter().filter_map(|files| failures.remove(files)).collect();
        self.listed = listed.into_iter().map(|files| (files, None)).collect();
        self.publish();
        Ok(reloaded)
    }

    /// Looks at the files, loads what changed, and logs it: `updated certificate for domain` for each name. Blocks.
    pub fn reload(&mut self) -> Reloaded {
        let mut reloaded = Reloaded::default();
        self.list(&mut reloaded);
        let files: HashSet<_> = self.listed.iter().flat_map(|(files, _)| files).collect();
        // what could not be listed just now is left alone
        let found = self.listed.iter().filter(|(_, unlisted)| unlisted.is_none());
        let found: HashSet<_> = found.flat_map(|(files, _)| files).collect();
        let changed: Vec<(PairFiles, Stamp)> = found
            .iter()
            .map(|files| ((*files).clone(), stamp(files)))
            .filter(|(files, stamp)| self.known.get(files).is_none_or(|known| known.stamp != Some(*stamp)))
            .collect();
        let gone: Vec<_> = self.known.keys().filter(|known| !files.contains(*known)).cloned().collect();
        if changed.is_empty() && gone.is_empty() {
            return reloaded;
        }
        let to_load: Vec<_> = changed.iter().map(|(files, _)| files.clone()).collect();
        for ((files, stamp), pair) in changed.into_iter().zip(load_all(&to_load)) {
            self.take(files, stamp, pair, &mut reloaded);
        }
        for files in gone {
            if let Some(pair) = self.known.remove(&files).and_then(|known| known.pair) {
                let names = pair.about.names.join(", ");
                info!(names, file = %files.cert.display(), "removed certificate: its files are gone");
                reloaded.removed.push(pair.about);
            }
        }
        self.publish();
        reloaded
    }

    fn take(
        &mut self,
        files: PairFiles,
        stamp: Stamp,
        pair: Result<Pair, CertError>,
        reloaded: &mut Reloaded,
    ) {
        let (before, told) = self.known.remove(&files).map_or((None, None), |known| (known.pair, known.told));
        let known = match pair {
            Ok(pair) => {
                // touched and not changed is not worth a line
                if before.as_ref().is_none_or(|before| before.about != pair.about) {
                    log_updated(&pair.about);
                    reloaded.updated.push(pair.about.clone());
                }
                Known { stamp: Some(stamp), told: None, pair: Some(pair) }
            }
            Err(error) => {
                let kept = before.as_ref().map(|before| before.about.names.join(", "));
                let known = Known::failed(stamp, &error, before);
                if known.told != told {
                    warn!(error = %Causes(&error), still_served = kept, "a certificate was not updated");
                    reloaded.failed.push(error);
                }
                known
            }
        };
        self.known.insert(files, known);
    }

    /// Follows the files until `shutdown` resolves. Everything that touches files happens on a thread of its own.
    pub async fn run(mut self, options: ReloadOptions, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut watch = Watch::new(&options);
        loop {
            // watched first and looked at then, so that nothing falls in between
            let looked = tokio::task::spawn_blocking(move || {
                watch.follow(self.directories());
                self.reload();
                // what was found may be in directories that are new
                watch.follow(self.directories());
                (self, watch)
            });
            match looked.await {
                Ok(parts) => (self, watch) = parts,
                Err(error) => {
                    warn!(%error, "certificates are no longer reloaded");
                    return;
                }
            }
            tokio::select! {
                biased;
                () = &mut shutdown => return,
                () = watch.changed() => {}
            }
        }
    }

    /// Directories in which a change shows: those of the files, and those that are listed.
    fn directories(&self) -> Vec<PathBuf> {
        let files = self.known.keys().flat_map(|files| [files.cert.parent(), files.key.parent()]);
        // a directory may be a link that is swapped, which shows in the one above
        let listed = self.sources.iter().flat_map(|source| match source {
            CertSource::Directory(path) => [Some(path.as_path()), path.parent()],
            _ => [None, None],
        });
        let mut directories: Vec<_> = files.chain(listed).flatten().map(Path::to_owned).collect();
        directories.sort_unstable();
        directories.dedup();
        directories
    }

    /// Lists each source. One that can't be listed, or has nothing left, which is more likely an accident than meant, stays as it was, and
    /// that is told once.
    fn list(&mut self, reloaded: &mut Reloaded) {
        for (source, (files, unlisted)) in self.sources.iter().zip(&mut self.listed) {
            match list(source) {
                Ok(found) => (*files, *unlisted) = (found, None),
                Err(error) => {
                    let text = error.to_string();
                    if unlisted.as_ref() != Some(&text) {
                        warn!(error = %Causes(&error), "certificates are not reloaded: what was loaded is served on");
                        reloaded.failed.push(error);
                        *unlisted = Some(text);
                    }
                }
            }
        }
    }

    /// Serves what is known, in the order of the sources: the first certificate is the default one.
    pub fn publish(&self) {
        let mut pairs = Vec::with_capacity(self.known.len() + self.made.len());
        for (place, (files, _)) in self.listed.iter().enumerate() {
            pairs.extend(files.iter().filter_map(|files| self.known.get(files)?.pair.clone()));
            pairs.extend(self.made.get(&place).cloned());
        }
        self.part.replace_pairs(pairs);
    }
}

impl Known {
    fn failed(stamp: Stamp, error: &CertError, pair: Option<Pair>) -> Self {
        // one that is not valid yet becomes so without any change of its files
        let waits = matches!(error, CertError::NotYetValid { .. });
        let told = if waits { "it is not valid yet".to_owned() } else { error.to_string() };
        Self { stamp: (!waits).then_some(stamp), told: Some(told), pair }
    }
}

/// The files of a source.
fn list(source: &CertSource) -> Result<Listed, CertError> {
    match source {
        CertSource::Files { cert, key } => Ok(vec![PairFiles::new(cert.clone(), key.clone())]),
        CertSource::Directory(path) => match pairs_below(path)? {
            files if files.is_empty() => Err(CertError::NoPair { path: path.clone() }),
            files => Ok(files),
        },
        CertSource::SelfSigned { .. } => Ok(Vec::new()),
    }
}

fn is_missing(path: &Path) -> bool {
    matches!(path.try_exists(), Ok(false))
}

fn stamp(files: &PairFiles) -> Stamp {
    [&files.cert, &files.key, &files.staple].map(|path| {
        let about = fs::metadata(path).ok()?;
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(&about);
        #[cfg(not(unix))]
        let inode = 0;
        Some((about.modified().ok()?, about.len(), inode))
    })
}

fn log_updated(about: &Added) {
    let days = about.not_after.duration_since(SystemTime::now()).unwrap_or_default().as_secs() / 86_400;
    for domain in &about.names {
        info!(
            domain,
            valid_for_days = days,
            fingerprint = about.fingerprint,
            "updated certificate for domain"
        );
    }
    if about.names.is_empty() {
        let addresses = &about.addresses;
        info!(?addresses, valid_for_days = days, "updated certificate for addresses");
    }
}

/// An error with its causes in one line.
struct Causes<'a>(&'a CertError);

impl std::fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)?;
        let mut cause = std::error::Error::source(self.0);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
