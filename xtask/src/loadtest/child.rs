//! The programs that a load test starts: each ends when its guard goes, whatever happens.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use super::proc;
use crate::{Result, sys};

const POLL: Duration = Duration::from_millis(20);
/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(3);

/// A running program. Dropping it ends the program and everything that it started.
pub(crate) struct Running {
    name: String,
    child: Child,
    log: PathBuf,
    lines: Option<Receiver<String>>,
}

impl Running {
    /// Starts it; what it writes goes to `log`, or, with `lines`, its stdout to [`Self::line`].
    pub(crate) fn start(name: &str, mut command: Command, log: &Path, lines: bool) -> Result<Self> {
        let file = File::create(log).map_err(|error| format!("{}: {error}", log.display()))?;
        let out = if lines { Stdio::piped() } else { Stdio::from(file.try_clone()?) };
        command.stdin(Stdio::null()).stdout(out).stderr(file);
        let mut child = command.spawn().map_err(|error| format!("{name} did not start: {error}"))?;
        // a thread reads, so that waiting for a line can be interrupted
        let lines = child.stdout.take().map(|stdout| {
            let (send, lines) = channel();
            thread::spawn(move || {
                let mut all = BufReader::new(stdout).lines().map_while(|line| line.ok());
                all.by_ref().take_while(|line| send.send(line.clone()).is_ok()).for_each(drop);
                // nobody asks any more, but the program must still be able to write
                all.for_each(drop);
            });
            lines
        });
        Ok(Self { name: name.to_owned(), child, log: log.to_owned(), lines })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line that it prints; `None` when it has closed its stdout.
    pub(crate) fn line(&mut self, within: Duration) -> Result<Option<String>> {
        let Some(lines) = &self.lines else { return Ok(None) };
        let deadline = Instant::now() + within;
        loop {
            check_interrupt()?;
            match lines.recv_timeout(POLL) {
                Ok(line) => return Ok(Some(line)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(RecvTimeoutError::Timeout) => return Err(self.failed("printed nothing in time")),
            }
        }
    }

    /// Waits until TCP connections are accepted.
    pub(crate) fn wait_for(&mut self, addr: SocketAddr, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            check_interrupt()?;
            if let Some(status) = self.child.try_wait()? {
                return Err(self.failed(&format!("ended early ({status})")));
            }
            if connects(addr) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.failed(&format!("does not listen on {addr}")));
            }
            pause();
        }
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            check_interrupt()?;
            match self.child.try_wait()? {
                Some(status) => return Ok(status),
                None if Instant::now() > deadline => return Err(self.failed("does not end")),
                None => pause(),
            }
        }
    }

    /// An error with what the program said last.
    pub(crate) fn failed(&self, what: &str) -> Box<dyn std::error::Error> {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(15)..].join("\n  ");
        format!("{} {what}{}{last}", self.name, if last.is_empty() { "" } else { "; it said:\n  " }).into()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // asked for while the parent lives: afterwards its children belong to another
        let descendants = proc::tree(self.child.id());
        sys::terminate(self.child.id());
        let deadline = Instant::now() + GRACE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                for pid in descendants.iter().filter(|pid| **pid != self.child.id()) {
                    sys::terminate(*pid);
                }
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            pause();
        }
    }
}

/// An error once Ctrl-C or SIGTERM came, so that all guards go.
pub(crate) fn check_interrupt() -> Result<()> {
    if sys::interrupted() { Err("interrupted".into()) } else { Ok(()) }
}

/// A port that is free for TCP and UDP now; whoever it is for must take it soon.
#[allow(clippy::disallowed_methods, reason = "no runtime here, and the socket is closed at once")]
pub(crate) fn free_port() -> Result<u16> {
    for _ in 0..100 {
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let addr = tcp.local_addr()?;
        if std::net::UdpSocket::bind(addr).is_ok() {
            return Ok(addr.port());
        }
    }
    Err("no port is free for both TCP and UDP".into())
}

#[allow(clippy::disallowed_methods, reason = "no runtime here")]
fn connects(addr: SocketAddr) -> bool {
    TcpStream::connect(addr).is_ok()
}

#[allow(clippy::disallowed_methods, reason = "no runtime here")]
fn pause() {
    thread::sleep(POLL);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("portcullis-xtask-{}-{name}", std::process::id()))
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn dropping_ends_the_program() {
        let log = log("drop");
        let running = Running::start("sleep", shell("exec sleep 600"), &log, false).unwrap();
        let pid = running.pid();
        drop(running);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        std::fs::remove_file(log).unwrap();
    }

    #[test]
    fn failures_show_what_was_said() {
        let log = log("say");
        let mut running = Running::start("it", shell("echo no such key >&2"), &log, false).unwrap();
        let status = running.child.wait().unwrap();
        assert!(status.success());
        assert_eq!(running.failed("ended").to_string(), "it ended; it said:\n  no such key");
        std::fs::remove_file(log).unwrap();
    }

    #[test]
    fn free_ports_are_free() {
        let port = free_port().unwrap();
        assert!(TcpListener::bind(("127.0.0.1", port)).is_ok());
    }
}
