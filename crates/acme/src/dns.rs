//! DNS records for DNS-01, set by whoever can.

use std::{
    ffi::OsString,
    fmt, io,
    path::{Path, PathBuf},
    pin::Pin,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
};

use crate::error::BoxError;

/// A future in a box, as object-safe traits need it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How much of a program's complaint is kept.
const STDERR_KEPT: usize = 1024;

/// Sets and removes TXT records.
///
/// One name may need several values at once, as `example.com` and `*.example.com` do in one certificate: `set` adds a
/// value and leaves others, `clear` removes that value alone. `clear` is called for everything that `set` was called
/// for, also where `set` failed; a value that is not there is no error. Both may be called for different names at the
/// same time.
pub trait DnsHook: Send + Sync + 'static {
    /// Adds a TXT record of `name`, as `_acme-challenge.example.com`, with this value, and resolves when the zone's
    /// servers answer with it, as far as that can be told; [`DnsHook::propagation`] is waited after it.
    fn set<'a>(&'a self, name: &'a str, value: &'a str) -> BoxFuture<'a, Result<(), DnsError>>;

    /// Removes it.
    fn clear<'a>(&'a self, name: &'a str, value: &'a str) -> BoxFuture<'a, Result<(), DnsError>>;

    /// How long after the last `set` the authority is told. Default none.
    fn propagation(&self) -> Duration {
        Duration::ZERO
    }
}

/// Why a record was not set or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DnsError {
    /// The program could not be started.
    #[error("cannot start {}: see that the file is there and may be executed", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The program did not end in time, and was killed.
    #[error("{} did not end within {} s and was killed; it said: {said}", program.display(), limit.as_secs())]
    Timeout {
        /// The program.
        program: PathBuf,
        /// How long it had.
        limit: Duration,
        /// The last of what it wrote to its standard error.
        said: String,
    },
    /// The program failed.
    #[error("{} ended with {status}; it said: {said}", program.display())]
    Failed {
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The last of what it wrote to its standard error.
        said: String,
    },
    /// Another kind of hook failed.
    #[error("the hook for DNS records failed")]
    Other(#[source] BoxError),
}

/// Runs a program: `PROGRAM ARGS... set NAME VALUE`, and the same with `clear`. No shell is in between. Exit status 0
/// means done.
#[derive(Clone, Debug)]
pub struct ExecHook {
    program: PathBuf,
    args: Arc<[OsString]>,
    timeout: Duration,
    propagation: Duration,
}

impl ExecHook {
    /// With a program, by its path or to be found by the system, and what it gets before the verb.
    pub fn new(program: impl Into<PathBuf>, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self {
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            timeout: Duration::from_secs(60),
            propagation: Duration::ZERO,
        }
    }

    /// How long the program may take before it is killed. Default 60 s.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long to wait after the records are set before the authority is told. Default none: a program that returns
    /// when the zone's servers have the record needs none.
    #[must_use]
    pub fn with_propagation(mut self, propagation: Duration) -> Self {
        self.propagation = propagation;
        self
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    async fn run(&self, verb: &str, name: &str, value: &str) -> Result<(), DnsError> {
        let program = || self.program.clone();
        let mut child = Command::new(&self.program)
            .args(self.args.iter())
            .args([verb, name, value])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| DnsError::Start { program: program(), source })?;
        let mut said = Tail::default();
        let stderr = child.stderr.take();
        let ended = tokio::time::timeout(self.timeout, async {
            // what the program started may hold the pipe open after its end: both are waited for, within the deadline
            let ((), status) = tokio::join!(said.fill(stderr), child.wait());
            status
        })
        .await;
        match ended {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(DnsError::Failed { program: program(), status, said: said.text() }),
            Ok(Err(source)) => Err(DnsError::Start { program: program(), source }),
            Err(_) => {
                // reaped as well, so that no zombie is left
                let _ = child.kill().await;
                Err(DnsError::Timeout { program: program(), limit: self.timeout, said: said.text() })
            }
        }
    }
}

impl DnsHook for ExecHook {
    fn set<'a>(&'a self, name: &'a str, value: &'a str) -> BoxFuture<'a, Result<(), DnsError>> {
        Box::pin(self.run("set", name, value))
    }

    fn clear<'a>(&'a self, name: &'a str, value: &'a str) -> BoxFuture<'a, Result<(), DnsError>> {
        Box::pin(self.run("clear", name, value))
    }

    fn propagation(&self) -> Duration {
        self.propagation
    }
}

/// The last bytes of a stream.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

impl Tail {
    async fn fill(&mut self, from: Option<impl AsyncRead + Unpin>) {
        let Some(mut from) = from else { return };
        let mut buffer = [0; STDERR_KEPT];
        // an error is the end of it
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            self.0.extend_from_slice(&buffer[..read]);
            let surplus = self.0.len().saturating_sub(STDERR_KEPT);
            self.0.drain(..surplus);
        }
    }

    /// On one line, so that it fits into a log.
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if text.trim().is_empty() { "(nothing)".to_owned() } else { text.trim().to_owned() }
    }
}

/// Prints the kind of hook as options show it.
impl fmt::Debug for dyn DnsHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DnsHook")
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn shell(script: &str) -> ExecHook {
        // `sh -c SCRIPT NAME ARGS...`: the script sees the verb as $1
        ExecHook::new("/bin/sh", ["-c", script, "hook"])
    }

    #[tokio::test]
    async fn a_program_gets_its_arguments_as_they_are() {
        let hook = shell(r#"[ "$1|$2|$3" = 'set|_acme-challenge.a.example|v $(x)' ] && [ $# = 3 ]"#);
        hook.set("_acme-challenge.a.example", "v $(x)").await.unwrap();
        assert!(hook.clear("_acme-challenge.a.example", "v $(x)").await.is_err(), "another verb");
    }

    #[tokio::test]
    async fn the_end_of_a_complaint_is_kept() {
        let hook = shell("i=0; while [ $i -lt 500 ]; do echo line $i >&2; i=$((i+1)); done; exit 3");
        let error = hook.set("n", "v").await.unwrap_err();
        let DnsError::Failed { status, said, .. } = &error else { panic!("{error:?}") };
        assert_eq!(status.code(), Some(3));
        assert!(said.ends_with("line 499") && said.len() <= STDERR_KEPT && !said.contains('\n'), "{said}");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed() {
        let hook = shell("echo started >&2; exec sleep 1000").with_timeout(Duration::from_millis(300));
        let error = hook.set("n", "v").await.unwrap_err();
        assert!(matches!(&error, DnsError::Timeout { said, .. } if said == "started"), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there() {
        let error = ExecHook::new("/nowhere/hook", [""; 0]).set("n", "v").await.unwrap_err();
        assert!(error.to_string().contains("/nowhere/hook"), "{error}");
    }
}
