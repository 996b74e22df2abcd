//! The binary as a process.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use portcullis_testkit::process::ChildGuard;
use tokio::sync::watch;

use super::{Dir, SOON, client::Client, within};

/// Where the binary is: `PORTCULLIS_BIN`, or beside this test.
fn binary() -> PathBuf {
    if let Some(path) = env::var_os("PORTCULLIS_BIN") {
        return path.into();
    }
    let test = env::current_exe().unwrap();
    // target/PROFILE/deps/e2e-HASH
    let path = test.ancestors().nth(2).unwrap().join("portcullis");
    assert!(path.exists(), "there is no {}: run `cargo xtask test`, which builds it", path.display());
    path
}

/// A command line of the binary, with nothing inherited that changes what it does.
pub(crate) fn command<I>(args: I) -> Command
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let mut command = Command::new(binary());
    command.args(args).env_remove("PORTCULLIS_LOG").stdin(Stdio::null());
    command
}

/// The same under a limit of open files, which it can't raise.
pub(crate) fn command_under<I>(descriptors: u64, args: I) -> Command
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"")]).arg(binary()).args(args);
    command.env_remove("PORTCULLIS_LOG").stdin(Stdio::null());
    command
}

/// The same as systemd starts it: its standard input is the first socket, the variables are the caller's.
pub(crate) fn command_activated<I>(args: I) -> Command
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let mut command = Command::new("sh");
    command.args(["-c", "exec 3<&0 0</dev/null; LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(binary()).args(args);
    command.env_remove("PORTCULLIS_LOG");
    command
}

/// Runs it to its end; its status, standard output and standard error.
pub(crate) fn run_to_end<I>(args: I) -> (ExitStatus, String, String)
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    to_end(command(args))
}

/// The same for a command line that is there already.
pub(crate) fn to_end(mut command: Command) -> (ExitStatus, String, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let mut child = ChildGuard::from(child);
    let status = child.wait_for(Duration::from_secs(10)).unwrap().expect("it ends by itself");
    let (mut stdout, mut stderr) = (String::new(), String::new());
    out.read_to_string(&mut stdout).unwrap();
    err.read_to_string(&mut stderr).unwrap();
    (status, stdout, stderr)
}

/// The lines that came from a stream so far.
#[derive(Clone)]
pub(crate) struct Lines(watch::Receiver<Vec<String>>);

impl Lines {
    fn read(stream: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = watch::channel(Vec::new());
        thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                sender.send_modify(|lines| lines.push(line));
            }
        });
        Self(receiver)
    }

    pub(crate) fn text(&self) -> String {
        self.0.borrow().join("\n")
    }

    /// The first line with this in it, as soon as it is there.
    pub(crate) async fn find(&self, what: &str) -> String {
        self.wait(1, |line| line.contains(what), what).await.remove(0)
    }

    /// All matching lines, as soon as there are this many.
    pub(crate) async fn wait(&self, count: usize, is: impl Fn(&str) -> bool, what: &str) -> Vec<String> {
        let mut receiver = self.0.clone();
        let found = |lines: &Vec<String>| lines.iter().filter(|line| is(line)).count() >= count;
        let come =
            tokio::time::timeout(SOON, receiver.wait_for(found)).await.is_ok_and(|lines| lines.is_ok());
        assert!(come, "no {count} lines with {what:?} in:\n{}", self.text());
        self.0.borrow().iter().filter(|line| is(line)).cloned().collect()
    }

    /// Waits until the stream is at its end.
    async fn end(&self) {
        let mut receiver = self.0.clone();
        while receiver.changed().await.is_ok() {}
    }
}

/// A running edge; killed when dropped.
pub(crate) struct Edge {
    child: ChildGuard,
    pub(crate) stdout: Lines,
    pub(crate) stderr: Lines,
    listening: Vec<String>,
    // removed after the process is gone
    dir: Option<Dir>,
}

impl Edge {
    /// The demo, on a port that the system chooses.
    pub(crate) async fn demo() -> Self {
        Self::start(command(["--port", "0"]), 1).await
    }

    /// `run --config` with this text.
    pub(crate) async fn run(config: &str) -> Self {
        Self::run_in(Dir::new(), config).await
    }

    /// The same, with a directory that has files which the text names.
    pub(crate) async fn run_in(dir: Dir, config: &str) -> Self {
        let file = dir.write("edge.toml", config);
        let addresses = config.matches("[[listener]]").count() + config.matches("[admin]").count();
        let mut edge =
            Self::start(command([OsStr::new("run"), "--config".as_ref(), file.as_ref()]), addresses).await;
        edge.dir = Some(dir);
        edge
    }

    /// Starts it and waits until it has said where it listens.
    pub(crate) async fn start(mut command: Command, addresses: usize) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = Lines::read(child.stdout.take().unwrap());
        let stderr = Lines::read(child.stderr.take().unwrap());
        let mut edge = Self { child: child.into(), stdout, stderr, listening: Vec::new(), dir: None };
        let is = |line: &str| line.starts_with("listening on ") || line.starts_with("admin on ");
        edge.listening = edge.stdout.wait(addresses, is, "an address").await;
        edge
    }

    /// The address behind the first line that begins so.
    fn address(&self, begin: &str, end: &str) -> SocketAddr {
        let line = self.listening.iter().find(|line| line.starts_with(begin) && line.contains(end));
        let line = line.unwrap_or_else(|| panic!("no {begin:?} among {:?}", self.listening));
        line[begin.len()..].split(' ').next().unwrap().parse().unwrap()
    }

    pub(crate) fn https(&self) -> SocketAddr {
        self.address("listening on https://", "")
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.address("listening on http://", "HTTP/1.1")
    }

    pub(crate) fn redirect(&self) -> SocketAddr {
        self.address("listening on http://", "redirects")
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.address("admin on http://", "")
    }

    /// Processor time used so far: fields 14 and 15 of /proc/pid/stat, in ticks of 10 ms.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_ascii_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Keeps the directory of its configuration as long as it runs.
    pub(crate) fn keep(&mut self, dir: Dir) {
        self.dir = Some(dir);
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn dir(&self) -> &Dir {
        self.dir.as_ref().expect("an edge with a configuration file has a directory")
    }

    /// Writes the configuration anew and has it read; waits for the line that says what came of it, the `count`th of its kind.
    pub(crate) async fn reload(&self, config: &str, count: usize) -> String {
        self.dir().write("edge.toml", config);
        self.signal("HUP");
        self.stderr.wait(count, |line| line.contains("reloaded"), "reloaded").await.remove(count - 1)
    }

    pub(crate) fn terminate(&self) {
        self.signal("TERM");
    }

    pub(crate) fn signal(&self, name: &str) {
        self.child.signal(name).unwrap();
    }

    /// Waits for the end of the process: its status, and how long that took.
    pub(crate) async fn ended(&mut self, limit: Duration) -> (ExitStatus, Duration) {
        let begin = Instant::now();
        within(limit, "the end of the process", self.stdout.end()).await;
        let took = begin.elapsed();
        let status = self.child.wait_for(SOON).unwrap().expect("its output is closed, so it has ended");
        (status, took)
    }

    /// The most memory that it ever had resident, in KiB.
    pub(crate) fn peak_memory(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// What it has resident now, in KiB.
    pub(crate) fn resident_memory(&self) -> u64 {
        self.memory("VmRSS:")
    }

    fn memory(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// The sum of the samples in its metrics that begin so; needs an admin service.
    pub(crate) async fn metric(&self, begin: &str) -> f64 {
        let text = Client::plain(self.admin(), "localhost").await.get("/metrics").await.body;
        let samples = text.lines().filter(|line| line.starts_with(begin));
        samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the edge said:\n{}\n{}", self.stdout.text(), self.stderr.text());
        }
    }
}
