//! Waits until files may have changed: by the system's word, and by the clock.

use std::{collections::HashMap, fs, path::PathBuf, sync::Arc, time::Duration};

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
    /// Each with what it led to when the watch began: a link may lead elsewhere by now.
    watched: HashMap<PathBuf, PathBuf>,
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

    /// Watches these directories and no others, 16384 at most, without what is below them. One that can't be watched is left to the clock.
    pub fn follow(&mut self, directories: Vec<PathBuf>) {
        let Some(watcher) = &mut self.watcher else { return };
        let target = |path: PathBuf| {
            let target = fs::canonicalize(&path).ok()?;
            Some((path, target))
        };
        let wanted: HashMap<_, _> = directories.into_iter().take(MAX_WATCHED).filter_map(target).collect();
        self.watched.retain(|path, target| {
            let stays = wanted.get(path) == Some(target);
            if !stays {
                let _ = watcher.unwatch(path);
            }
            stays
        });
        for (path, target) in wanted {
            if !self.watched.contains_key(&path) && watcher.watch(&path, RecursiveMode::NonRecursive).is_ok()
            {
                self.watched.insert(path, target);
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

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("watched", &self.watched.len()).finish_non_exhaustive()
    }
}
