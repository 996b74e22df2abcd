//! Waits until files may have changed: by the system's word, and by the clock.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::{sync::Notify, time::Instant};

use crate::ReloadOptions;

/// Looking more often helps nobody.
const POLL_MIN: Duration = Duration::from_millis(100);
/// Directories that the system is asked to watch; what is beyond is seen by the clock.
const MAX_WATCHED: usize = 16_384;

/// Directories that are watched for changes.
pub struct Watch {
    poll: Duration,
    debounce: Duration,
    told: Arc<Notify>,
    watcher: Option<RecommendedWatcher>,
    /// Behind all links, each with which directory that was when the watch began: another one may be in its place by now.
    watched: HashMap<PathBuf, u64>,
}

impl Watch {
    /// Watches nothing yet. A system that can't tell of changes is looked at by the clock, which is logged.
    pub fn new(options: &ReloadOptions) -> Self {
        let told = Arc::new(Notify::new());
        let tell = Arc::clone(&told);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // that files were opened or read, by ourselves most often, is no change
            if event.is_ok_and(|event| !event.kind.is_access()) {
                tell.notify_one();
            }
        });
        let watcher = watcher
            .inspect_err(
                |error| tracing::info!(%error, "no word of changed files: they are looked at by the clock"),
            )
            .ok();
        let poll = options.poll.max(POLL_MIN);
        let debounce = options.debounce.min(poll);
        Self { poll, debounce, told, watcher, watched: HashMap::new() }
    }

    /// Watches these directories and no others, 16384 at most, without what is below them; an empty path is the one that the process is in. One that
    /// can't be watched is left to the clock. Blocks on the file system, which may be one that hangs.
    pub fn follow(&mut self, directories: Vec<PathBuf>) {
        let Some(watcher) = &mut self.watcher else { return };
        let target = |path: PathBuf| {
            let path = if path.as_os_str().is_empty() { PathBuf::from(".") } else { path };
            let target = fs::canonicalize(path).ok()?;
            let made = identity(&target)?;
            Some((target, made))
        };
        let wanted: HashMap<_, _> = directories.into_iter().take(MAX_WATCHED).filter_map(target).collect();
        self.watched.retain(|path, made| {
            let stays = wanted.get(path) == Some(made);
            if !stays {
                let _ = watcher.unwatch(path);
            }
            stays
        });
        for (path, made) in wanted {
            if !self.watched.contains_key(&path) && watcher.watch(&path, RecursiveMode::NonRecursive).is_ok()
            {
                self.watched.insert(path, made);
            }
        }
    }

    /// Resolves when something may have changed and was then left alone for a while, or when it is time to look. Dropping the future loses nothing.
    pub async fn changed(&self) {
        let due = Instant::now() + self.poll;
        if tokio::time::timeout_at(due, self.told.notified()).await.is_err() {
            return;
        }
        let latest = Instant::now() + self.debounce * 10;
        while Instant::now() < latest {
            if tokio::time::timeout(self.debounce, self.told.notified()).await.is_err() {
                return;
            }
        }
    }
}

/// Tells a directory from another one that takes its place.
fn identity(path: &Path) -> Option<u64> {
    let about = fs::metadata(path).ok()?;
    #[cfg(unix)]
    return Some(std::os::unix::fs::MetadataExt::ino(&about));
    #[cfg(not(unix))]
    return Some(u64::from(about.is_dir()));
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("watched", &self.watched.len()).finish_non_exhaustive()
    }
}
