//! What the tests share.

pub(crate) mod client;
pub(crate) mod edge;
pub(crate) mod frames;
pub(crate) mod judge;
pub(crate) mod load;
pub(crate) mod origin;
pub(crate) mod raw;
pub(crate) mod tls;
pub(crate) mod tls_origin;

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// No test takes longer, whatever hangs.
const DEADLINE: Duration = Duration::from_secs(40);

/// Runs a test on a runtime of its own, under the deadline.
pub(crate) fn run(test: impl Future<Output = ()>) {
    run_within(DEADLINE, test);
}

/// The same under a deadline of its own.
pub(crate) fn run_within(deadline: Duration, test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let in_time = runtime.block_on(async { tokio::time::timeout(deadline, Box::pin(test)).await.is_ok() });
    assert!(in_time, "the test did not end within {deadline:?}");
}

/// Fails the test when the future takes longer than it may.
pub(crate) async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("not within {limit:?}: {what}"))
}

/// A few seconds: for what takes milliseconds where nothing is wrong.
pub(crate) const SOON: Duration = Duration::from_secs(5);

/// A directory that is removed with this.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("e2e-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file and says where it is.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // what stays behind is in the build's own directory for such files
        let _ = fs::remove_dir_all(&self.0);
    }
}
