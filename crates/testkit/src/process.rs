//! Processes that don't outlive the test that started them.

use std::{
    io,
    ops::{Deref, DerefMut},
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

/// Kills and reaps a child when it is dropped, also when the test panics.
#[derive(Debug)]
pub struct ChildGuard(Child);

impl ChildGuard {
    /// Starts the command.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        command.spawn().map(Self)
    }

    /// Sends a signal by name (`TERM`, `HUP`, `INT`) through `kill(1)`.
    pub fn signal(&self, name: &str) -> io::Result<()> {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.0.id().to_string()).status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other("kill(1) failed")) }
    }

    /// Blocks until the child ends by itself, or gives `None` when `limit` has passed.
    pub fn wait_for(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            #[allow(
                clippy::disallowed_methods,
                reason = "std has no wait with a deadline; a test thread may block"
            )]
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl From<Child> for ChildGuard {
    fn from(child: Child) -> Self {
        Self(child)
    }
}

impl Deref for ChildGuard {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for ChildGuard {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for ChildGuard {
    fn drop(&mut self) {
        // Both fail only when the child is gone and reaped already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_guard_ends_the_child() {
        let guard = ChildGuard::spawn(Command::new("sleep").arg("1000")).unwrap();
        let pid = guard.id();
        drop(guard);
        let alive = Command::new("kill").args(["-0", &pid.to_string()]).output().unwrap();
        assert!(!alive.status.success());
    }

    #[test]
    fn a_signal_is_seen_in_the_status() {
        let mut guard = ChildGuard::spawn(Command::new("sleep").arg("1000")).unwrap();
        assert!(guard.wait_for(Duration::ZERO).unwrap().is_none());
        guard.signal("TERM").unwrap();
        assert!(!guard.wait_for(Duration::from_secs(10)).unwrap().unwrap().success());
    }
}
