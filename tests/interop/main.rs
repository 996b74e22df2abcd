//! The real binary beside HTTP/3 clients that others wrote: ngtcp2's, aioquic and Chromium.
//!
//! `cargo xtask interop` builds the binary, makes the Python environment and runs this; whatever is missing fails. Bodies are
//! small by default; `PORTCULLIS_INTEROP_FULL=1` makes them 100 MiB up and 1 GiB down.
#![allow(clippy::unwrap_used, reason = "whatever is missing fails the test")]
#![allow(clippy::print_stderr, reason = "a failed test shows what the binary said")]
#![allow(clippy::disallowed_methods, reason = "a test reads the environment and its children's files")]

#[path = "../e2e/support/mod.rs"]
#[allow(dead_code, reason = "the other target's tests use the rest")]
mod support;

mod aioquic;
mod chromium;
mod ngtcp2;
mod origin;

use std::{
    env,
    io::Read,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use portcullis_testkit::{certs::TestCa, process::ChildGuard};

use support::{Dir, edge::Edge};

/// Whether bodies are long.
fn is_full() -> bool {
    env::var_os("PORTCULLIS_INTEROP_FULL").is_some_and(|value| value == "1")
}

/// Bytes of an upload.
fn up() -> u64 {
    if is_full() { 100 << 20 } else { 8 << 20 }
}

/// Bytes of a download.
fn down() -> u64 {
    if is_full() { 1 << 30 } else { 24 << 20 }
}

/// No test takes longer.
fn deadline() -> Duration {
    Duration::from_secs(if is_full() { 500 } else { 60 })
}

/// On two threads: the origin is served while a client runs.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let in_time = runtime.block_on(async { tokio::time::timeout(deadline(), Box::pin(test)).await.is_ok() });
    assert!(in_time, "the test did not end within {:?}", deadline());
}

/// An origin, the edge before it, and what a client needs to trust it.
struct Setup {
    origin: origin::Interop,
    edge: Edge,
}

impl Setup {
    async fn new() -> Self {
        Self::with("").await
    }

    /// With more at the top of the configuration.
    async fn with(top: &str) -> Self {
        let origin = origin::Interop::start().await;
        let (ca, dir) = (TestCa::new(), Dir::new());
        let cert = ca.issue(&["localhost"]);
        dir.write("cert.pem", cert.chain_pem().as_str());
        dir.write("key.pem", cert.key_pem().as_str());
        dir.write("ca.pem", ca.pem().as_str());
        let config = format!(
            "{top}workers = \"per-core\"\nthreads = 4\n[admin]\naddress = \"127.0.0.1:0\"\n\
             [[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"https\"\nhttp3 = true\n\
             [listener.tls]\nresumption = \"zero-rtt\"\n\
             [[certificate]]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n\
             [[route]]\ncluster = \"origin\"\n\
             [[cluster]]\nname = \"origin\"\nendpoints = [\"{}\"]\n",
            origin.addr()
        );
        Self { origin, edge: Edge::run_in(dir, &config).await }
    }

    fn port(&self) -> String {
        self.edge.https().port().to_string()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.edge.dir().path().join(name)
    }
}

/// What a client's process printed, to standard output and standard error, when it has ended well; it is killed when it does not end.
async fn printed(mut command: Command) -> (String, String) {
    let shown = format!("{command:?}");
    let ended = tokio::task::spawn_blocking(move || {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}: install it"));
        let mut child = ChildGuard::from(child);
        let read = |stream| std::thread::spawn(move || std::io::read_to_string(stream).unwrap_or_default());
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (out, err) = (read(Box::new(out) as Box<dyn Read + Send>), read(Box::new(err)));
        let status = child.wait_for(deadline() * 3 / 4).unwrap();
        drop(child);
        (status, out.join().unwrap(), err.join().unwrap())
    });
    let (status, out, err) = ended.await.unwrap();
    assert!(status.is_some_and(|status| status.success()), "{shown}: {status:?}\n{out}\n{err}");
    (out, err)
}
